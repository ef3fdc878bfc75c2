"""Multiplication of a number by one digit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from abc_toolkit.tasks.addition import divmod_ten
from abc_toolkit.tasks.base import (
    CARRY,
    UNEQUAL,
    ZEROS,
    DigitTask,
    ProblemError,
    Shape,
    choose_rows,
    random_run,
    uniform_digits,
    with_zeros,
)


@dataclass(frozen=True)
class Multiplication(DigitTask):
    """Multiplies a number by one digit: `123*4` has the target `2940` (0492, least significant digit first).

    The target has one digit more than the first operand. A shape is the first operand's length; the second
    operand is always a single token.

    Attributes:
        max_length: Longest training length, in digits of the first operand.
        padding: `longest` and `none` leave the first operand as it is written; `fixed` pads it with zeros on
            the left to `width`, as the paper does.
        width: Width that `fixed` pads to.
    """

    symbols: ClassVar[str] = "0123456789*"

    max_length: int = 6
    padding: Literal["longest", "none", "fixed"] = "longest"
    width: int = 60

    @property
    def operator(self) -> str:
        return "*"

    def _width(self, shape: Shape) -> int:
        if self.padding != "fixed":
            return shape[0]
        if shape[0] > self.width:
            raise ProblemError(f"an operand of {shape[0]} digits does not fit the fixed width of {self.width}")
        return self.width

    def segments(self, shape: Shape) -> Sequence[tuple[str, int]]:
        return ("operand 1", self._width(shape)), ("operator", 1), ("operand 2", 1)

    def answer_length(self, shape: Shape) -> int:
        return self._width(shape) + 1

    def training_shapes(self) -> tuple[Shape, ...]:
        return tuple((n,) for n in range(1, self.max_length + 1))

    def evaluation_shapes(self, length: int, set_name: str, generator: Generator) -> tuple[Shape, ...]:
        """One shape; for `unequal`, where the second operand's length is fixed, eight first lengths up to it."""
        if set_name != UNEQUAL:
            return ((length,),)
        return tuple((n,) for n in torch.randint(1, length + 1, (8,), generator=generator).tolist())

    def draw(self, generator: Generator, batch: int, shape: Shape, set_name: str) -> list[Tensor]:
        length = shape[0]
        first = uniform_digits(generator, batch, length)
        second = torch.randint(0, 10, (batch, 1), generator=generator)
        if set_name == CARRY:
            nines = torch.full_like(first, 9)
            repeated = torch.randint(1, 10, (batch, 1), generator=generator).expand(-1, length)
            run = torch.where(random_run(generator, batch, length), repeated, first)
            first = choose_rows(generator, nines, repeated, run)
            second = torch.randint(2, 10, (batch, 1), generator=generator)
        elif set_name == ZEROS:
            first, second = with_zeros(generator, first), with_zeros(generator, second)
        return [torch.nn.functional.pad(first, (0, self._width(shape) - length)), second]

    def compute(self, operands: Sequence[Tensor]) -> Tensor:
        products = operands[0] * operands[1]
        carry = torch.zeros(len(products), dtype=torch.long)
        digits = []
        for column in products.unbind(1):
            carry, digit = divmod_ten(column + carry)
            digits.append(digit)
        return torch.stack([*digits, carry], dim=1)

    def parse(self, text: str) -> tuple[Shape, str]:
        parts = text.split("*")
        if len(parts) != 2:
            raise ProblemError(f"{text!r} is not a multiplication: write a number, '*' and one digit, as in 123*4")
        first, second = (self.digits(part, f"operand {i} of {text!r}") for i, part in enumerate(parts, 1))
        if len(second) != 1:
            raise ProblemError(f"operand 2 of {text!r} has {len(second)} digits: this task multiplies by one digit")
        shape = (len(first),)
        return shape, f"{first.zfill(self._width(shape))}*{second}"

    def solve(self, source: str) -> str:
        first, second = source.split("*")
        return str(int(first) * int(second)).zfill(len(first) + 1)[::-1]
