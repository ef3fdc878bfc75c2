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

`C` runs from `n / 10` to `2 n / 5`: 5 to 20 of 50 points, as in the study. With `t` points of the target, `r` is
`n - 2 d`, or half of `N - 2 d - t`, or all of it. Noise that cannot be halved is one longer after the middle.

Source: the study of `functions/base.py`, with `N = 400`; there the parts in the middle are of equal length, and a
prompt may have one point less.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from abc_toolkit.errors import UserError

OOD = "ood"


@dataclass(frozen=True, eq=False)
class Attack:
    """A prompt that is made of another.

    Attributes:
        points: Which point of the other prompt stands where, `[length]`.
        counted: Whose predictions count, boolean `[length]`.
    """

    points: Tensor
    counted: Tensor


@dataclass(frozen=True)
class _Parts:
    """The parts of a prompt, as numbers of points."""

    n: int
    d: int

    @property
    def instruction(self) -> list[int]:
        return list(range(2 * self.d))

    @property
    def answer(self) -> list[int]:
        return list(range(self.n - self.d, self.n))

    @property
    def target(self) -> list[int]:
        return list(range(self.n - (self.d + 1) // 2, self.n))

    def noise(self, count: int) -> list[int]:
        """The noise, repeated.

        Raises:
            ValueError: If there is no room for it.
        """
        if count < 0:
            raise ValueError
        return [2 * self.d - 1] * count

    def around(self, inner: list[int], count: int, where: str) -> list[int]:
        """Noise with something at its begin, in its middle or at its end."""
        before = {"begin": 0, "middle": count // 2, "end": count}[where]
        return self.noise(before) + inner + self.noise(count - before)


# Of a prompt's parts and the number of points: the points, and how many at the end are counted (0: all).
_Maker = Callable[[_Parts, int], tuple[list[int], int]]


@lru_cache(maxsize=256)
def _makers(n: int, d: int) -> Mapping[str, _Maker]:
    """What makes each attack on prompts of `n` points of `d` channels; none, if they are too short."""
    if n < 2 * d:
        return {}
    made: dict[str, _Maker] = {"duplicates/all": lambda parts, length: (parts.noise(length), 0)}

    def tail(count: int) -> _Maker:
        return lambda p, length: (list(range(n - count)) + p.noise(count) + p.target, len(p.target))

    for count in range(max(1, -(-n // 10)), 2 * n // 5 + 1):
        made[f"duplicates/tail_{count}"] = tail(count)

    def gap(where: str) -> _Maker:
        def prompt(p: _Parts, length: int) -> tuple[list[int], int]:
            room = length - 2 * d - len(p.target)
            count = {"near": n - 2 * d, "middle": room // 2, "far": room}[where]
            return p.instruction + p.noise(count) + p.target, len(p.target)

        return prompt

    for where in ("near", "middle", "far"):
        made[f"duplicates/gap_{where}"] = gap(where)

    def instruction(where: str) -> _Maker:
        return lambda p, length: (p.around(p.instruction, length - 2 * d, where), 0)

    def lost(where: str) -> _Maker:
        def prompt(p: _Parts, length: int) -> tuple[list[int], int]:
            room = length - 2 * d - d - len(p.target)
            return p.instruction + p.around(p.answer, room, where) + p.target, len(p.target)

        return prompt

    for where in ("begin", "middle", "end"):
        made[f"duplicates/inst_{where}"] = instruction(where)
    for where in ("begin", "middle", "end"):
        made[f"lost_in_the_middle/{where}"] = lost(where)
    return made


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
    try:
        points, last = _makers(num_points, dim)[name](_Parts(num_points, dim), length)
    except ValueError:
        points, last = [], 0
    if not points or len(points) > length:
        raise UserError(
            f"--sets: {name} does not fit into {length} points (its parts are of {num_points} points of {dim} "
            f"channels): give a longer --length, such as {_shortest(name, num_points, dim)}"
        )
    counted = torch.zeros(len(points), dtype=torch.bool)
    counted[-last:] = True  # all of them, if the number is 0
    return Attack(torch.tensor(points), counted)


def _shortest(name: str, num_points: int, dim: int) -> int:
    """The least number of points that an attack fits into."""
    longest = 2 * num_points + 4 * dim
    for length in range(1, longest):
        try:
            points, _ = _makers(num_points, dim)[name](_Parts(num_points, dim), length)
        except ValueError:
            continue
        if 0 < len(points) <= length:
            return length
    return longest
