"""Doubling a number: a task that the package knows nothing of."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Generator, Tensor

from abc_toolkit.tasks import Shape
from abc_toolkit.tasks.digits import CARRY, ZEROS, DigitTask, LocalRule, carried, quoted, uniform_digits, with_zeros


class DoublingRule(LocalRule):
    """Twice the digit and the carry; the state is the carry. With it, a proof for every length is possible."""

    operands = ("operand 1",)
    num_states = 2

    def step(self, state: Tensor, digits: Sequence[Tensor], constants: Sequence[Tensor]):
        total = 2 * digits[0] + state
        return total // 10, [total % 10]


@dataclass(frozen=True)
class Doubling(DigitTask):
    """Doubles a number: `65` has the target `031` (130, least significant digit first). A shape is its length."""

    max_length: int = 6

    def operand_lengths(self, shape: Shape) -> tuple[int, ...]:
        return shape

    def widths(self, shape: Shape) -> tuple[int, ...]:
        return shape

    def answer_length(self, shape: Shape) -> int:
        return shape[0] + 1

    def training_shapes(self) -> tuple[Shape, ...]:
        return tuple((n,) for n in range(1, self.max_length + 1))

    def draw(self, generator: Generator, batch: int, shape: Shape, set_name: str) -> list[Tensor]:
        digits = uniform_digits(generator, batch, shape[0])
        if set_name == CARRY:
            return [digits.clamp(min=5)]  # every place carries
        return [with_zeros(generator, digits) if set_name == ZEROS else digits]

    def compute(self, operands: Sequence[Tensor]) -> Tensor:
        return carried(2 * operands[0])

    def parse(self, text: str) -> tuple[Shape, str]:
        return (len(text),), self.digits(text, f"the number {quoted(text)}")

    def solve(self, source: str) -> str:
        return str(2 * int(source)).zfill(len(source) + 1)[::-1]

    def local_rule(self) -> LocalRule:
        return DoublingRule()
