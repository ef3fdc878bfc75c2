"""A string of digits again: as it is, reversed, or several times."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from abc_toolkit.errors import UserError
from abc_toolkit.layout import ANSWER
from abc_toolkit.tasks.base import quoted
from abc_toolkit.tasks.digits.base import CARRY, ZEROS, DigitTask
from abc_toolkit.tasks.digits.identity import CopyIdentity, Identity
from abc_toolkit.tasks.digits.rule import LocalRule
from abc_toolkit.tasks.digits.sampling import choose_rows, random_run, with_zeros
from abc_toolkit.tasks.lengths import Shape


@dataclass(frozen=True)
class Written(LocalRule):
    """The digit itself, once for each segment of the target; there is one state.

    Attributes:
        answers: Segments of the target.
    """

    operands = ("operand 1",)
    num_states = 1

    answers: tuple[str, ...] = (ANSWER,)  # type: ignore[override]

    def step(
        self, state: Tensor, digits: Sequence[Tensor], constants: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        return state, [digits[0]] * len(self.answers)

    def identities(self) -> tuple[Identity, ...]:
        return tuple(CopyIdentity(f"{answer} = operand 1", "operand 1", answer) for answer in self.answers)


def draw_string(generator: Generator, batch: int, length: int, suite: str, base: int) -> Tensor:
    """Strings of digits of an evaluation suite, `[batch, length]`.

    Args:
        generator: The only source of randomness.
        batch: How many.
        length: Their length.
        suite: One of `SETS`.
        base: Number of digits.
    """
    digits = torch.randint(0, base, (batch, length), generator=generator)
    if suite == CARRY:
        # What corresponds to a carry is a digit that does not tell its place, as it comes again and again.
        repeated = digits[:, :1].expand(-1, length)
        period = torch.randint(1, max(length // 2, 1) + 1, (batch, 1), generator=generator)
        periodic = digits.gather(1, torch.arange(length) % period)
        run = torch.where(random_run(generator, batch, length), repeated, digits)
        digits = choose_rows(generator, repeated, periodic, run)
    elif suite == ZEROS:
        digits = with_zeros(generator, digits)
    return digits


@dataclass(frozen=True)
class StringTask(DigitTask):
    """What tasks share whose operand and answer are strings of digits, not numbers: leading zeros count.

    Attributes:
        max_length: Longest training length, in digits.
        base: Number of digits: `0` to `9`, then `a` to `z`.
    """

    max_length: int = 6
    base: int = 10

    def operand_lengths(self, shape: Shape) -> tuple[int, ...]:
        return shape

    def widths(self, shape: Shape) -> tuple[int, ...]:
        return shape

    def answer_length(self, shape: Shape) -> int:
        return shape[0]

    def training_shapes(self) -> tuple[Shape, ...]:
        return tuple((n,) for n in range(1, self.max_length + 1))

    def draw(self, generator: Generator, batch: int, shape: Shape, suite: str) -> list[Tensor]:
        return [draw_string(generator, batch, shape[0], suite, self.base)]

    def parse(self, text: str) -> tuple[Shape, str]:
        digits = self.digits(text, f"the string {quoted(text)}" if text else "the string")
        return (len(digits),), digits

    def answer(self, target: str) -> str:
        return target

    def local_rule(self) -> LocalRule | None:
        return Written(tuple(name for name, _ in self.answers((1,))))


@dataclass(frozen=True)
class Copy(StringTask):
    """Writes a string of digits again: `0042` has the target `0042`, which is the answer.

    A shape is the string's length.

    Attributes:
        max_length: Longest training length, in digits.
        base: Number of digits: `0` to `9`, then `a` to `z`.
    """

    downwards: ClassVar[bool] = True

    def compute(self, operands: Sequence[Tensor]) -> Tensor:
        return operands[0].flip(1)

    def solve(self, source: str) -> str:
        return source


@dataclass(frozen=True)
class Reverse(StringTask):
    """Writes a string of digits from its end: `0042` has the target `2400`, which is the answer.

    A shape is the string's length.

    Attributes:
        max_length: Longest training length, in digits.
        base: Number of digits: `0` to `9`, then `a` to `z`.
    """

    def compute(self, operands: Sequence[Tensor]) -> Tensor:
        return operands[0]

    def solve(self, source: str) -> str:
        return source[::-1]


@dataclass(frozen=True)
class Repeat(StringTask):
    """Writes a string of digits several times: `042` has the target `042042`, which is the answer.

    The target has a segment for each copy, `copy 1` and so on, so that the layout tells where one ends and the next
    begins. A shape is the string's length.

    Attributes:
        max_length: Longest training length, in digits.
        base: Number of digits: `0` to `9`, then `a` to `z`.
        times: How many times.
    """

    downwards: ClassVar[bool] = True

    times: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.times < 1:
            raise UserError(f"times {self.times}: give at least 1")

    def answer_length(self, shape: Shape) -> int:
        return self.times * shape[0]

    def answers(self, shape: Shape) -> Sequence[tuple[str, int]]:
        return [(f"copy {i}", shape[0]) for i in range(1, self.times + 1)]

    def compute(self, operands: Sequence[Tensor]) -> Tensor:
        return operands[0].flip(1).repeat(1, self.times)

    def solve(self, source: str) -> str:
        return source * self.times
