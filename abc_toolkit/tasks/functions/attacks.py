"""Attacks: prompts that repeat points, made of prompts of the training length.

Of `n` points of `d` channels, the *instruction* is the first `2 d`, the *noise* the last point of the instruction, the
*answer* the last `d` points and the *target* the last `ceil(d / 2)`. Prompts of `N` points are, `k x` meaning repeated:

| suite | prompt | counted |
|---|---|---|
| `duplicates/all` | N x noise | all |
| `duplicates/tail_C` | the first `n - C` points, C x noise, target | target |
| `duplicates/gap_near`, `_middle`, `_far` | instruction, r x noise, target | target |
| `duplicates/inst_begin`, `_middle`, `_end` | the instruction in `N - 2 d` x noise | all |
| `lost_in_the_middle/begin`, `/middle`, `/end` | instruction, then the answer in noise, then the target | target |

`C` runs from `n / 10` to `2 n / 5` in at most 16 steps: 5 to 20 of 50 points, as in the study. With `t` points of the
target, `r` is `n - 2 d`, or half of `N - 2 d - t`, or all of it. Noise that cannot be halved is one longer after the
middle.

Source: the study of `functions/base.py`, with `N = 400`; there the parts in the middle are of equal length, and a
prompt may have one point less.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial

import torch
from torch import Tensor

from abc_toolkit.errors import UserError

OOD = "ood"
_MOST_TAILS = 16
_PLACES = ("begin", "middle", "end")


@dataclass(frozen=True)
class Part:
    """A part of a prompt: points of another prompt one after the other, or one of them again and again.

    Attributes:
        first: The first point.
        count: How many points there are.
        repeated: Whether all of them are the first.
    """

    first: int
    count: int
    repeated: bool = False


@dataclass(frozen=True)
class Attack:
    """A prompt that is made of another.

    Attributes:
        parts: Its parts in their order. Nothing is made of them before it is asked for: they may be long.
        num_counted: Points at the end whose predictions count; 0 for all.
    """

    parts: tuple[Part, ...]
    num_counted: int = 0

    @property
    def length(self) -> int:
        """Points of the prompt."""
        return sum(part.count for part in self.parts)

    def fits(self, length: int) -> bool:
        """Whether there is room for every part in so many points."""
        return all(part.count >= 0 for part in self.parts) and 0 < self.length <= length

    @cached_property
    def points(self) -> Tensor:
        """Which point of the other prompt stands where, `[length]`."""
        made = (
            torch.full((part.count,), part.first)
            if part.repeated
            else torch.arange(part.first, part.first + part.count)
            for part in self.parts
        )
        return torch.cat([*made])

    @cached_property
    def counted(self) -> Tensor:
        """Whose predictions count, boolean `[length]`."""
        counted = torch.zeros(self.length, dtype=torch.bool)
        counted[-self.num_counted :] = True  # all of them, if the number is 0
        return counted


@dataclass(frozen=True)
class _Prompt:
    """The prompt that attacks are made of: `n` points of `d` channels."""

    n: int
    d: int

    @property
    def instruction(self) -> Part:
        return Part(0, 2 * self.d)

    @property
    def answer(self) -> Part:
        return Part(self.n - self.d, self.d)

    @property
    def target(self) -> Part:
        size = (self.d + 1) // 2
        return Part(self.n - size, size)

    def noise(self, count: int) -> Part:
        return Part(2 * self.d - 1, count, repeated=True)

    def around(self, inner: Part, count: int, where: str) -> tuple[Part, ...]:
        """So much noise, with something at its begin, in its middle or at its end."""
        before = {"begin": 0, "middle": count // 2, "end": count}[where]
        return self.noise(before), inner, self.noise(count - before)

    def all_noise(self, length: int) -> Attack:
        return Attack((self.noise(length),))

    def tail(self, count: int, length: int) -> Attack:
        parts = (Part(0, self.n - count), self.noise(count), self.target)
        return Attack(parts, self.target.count)

    def gap(self, where: str, length: int) -> Attack:
        room = length - 2 * self.d - self.target.count
        count = {"near": self.n - 2 * self.d, "middle": room // 2, "far": room}[where]
        return Attack((self.instruction, self.noise(count), self.target), self.target.count)

    def instruction_in_noise(self, where: str, length: int) -> Attack:
        return Attack(self.around(self.instruction, length - 2 * self.d, where))

    def lost(self, where: str, length: int) -> Attack:
        room = length - 3 * self.d - self.target.count
        parts = (self.instruction, *self.around(self.answer, room, where), self.target)
        return Attack(parts, self.target.count)


@lru_cache(maxsize=256)
def _makers(num_points: int, dim: int) -> Mapping[str, Callable[[int], Attack]]:
    """What makes each attack of a length; none, if a prompt is shorter than an instruction."""
    if num_points < 2 * dim:
        return {}
    prompt = _Prompt(num_points, dim)
    least, most = max(1, -(-num_points // 10)), 2 * num_points // 5
    tails = _spread(least, most, _MOST_TAILS)
    return (
        {"duplicates/all": prompt.all_noise}
        | {f"duplicates/tail_{count}": partial(prompt.tail, count) for count in tails}
        | {f"duplicates/gap_{where}": partial(prompt.gap, where) for where in ("near", "middle", "far")}
        | {f"duplicates/inst_{where}": partial(prompt.instruction_in_noise, where) for where in _PLACES}
        | {f"lost_in_the_middle/{where}": partial(prompt.lost, where) for where in _PLACES}
    )


def _spread(least: int, most: int, number: int) -> Sequence[int]:
    """At most so many numbers from the least to the most, evenly spread."""
    if most - least < number:
        return range(least, most + 1)
    return [least + (most - least) * step // (number - 1) for step in range(number)]


def attack_names(num_points: int, dim: int) -> tuple[str, ...]:
    """The attacks on prompts of so many points; none, if they are fewer than `2 dim`."""
    return tuple(_makers(num_points, dim))


def attack(name: str, num_points: int, dim: int, length: int) -> Attack:
    """An attack on a prompt.

    Args:
        name: One of `attack_names`.
        num_points: Points of the prompt.
        dim: Channels of a point.
        length: Points of the attack, or the most that it may have.

    Raises:
        UserError: If it does not fit into so many points.
    """
    make = _makers(num_points, dim)[name]
    made = make(length)
    if not made.fits(length):
        # What fits into a length fits into every longer one, and all attacks fit into this many.
        shortest = bisect_left(range(3 * num_points), True, key=lambda shorter: make(shorter).fits(shorter))
        raise UserError(
            f"--sets: {name} does not fit into {length} points (its parts are of {num_points} points of {dim} "
            f"channels): give a longer --length, such as {shortest}"
        )
    return made
