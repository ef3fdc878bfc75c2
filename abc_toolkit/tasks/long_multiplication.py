"""Multiplication of two numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from abc_toolkit.layout import END, START, Layout, positions_of
from abc_toolkit.tasks.base import (
    CARRY,
    UNEQUAL,
    ZEROS,
    DigitTask,
    ProblemError,
    Shape,
    carried,
    choose_rows,
    quoted,
    random_run,
    uniform_digits,
    with_zeros,
)

ROW = "row"
SEPARATOR = "separator"


@dataclass(frozen=True)
class LongMultiplication(DigitTask):
    """Multiplies two numbers: `12*34` has the target `840,804` (product 408).

    The target has a row for each digit of the second operand, least significant digits first. Row j holds, from place
    j upwards, the first operand times the lowest j + 1 digits of the second, in one digit more than the first operand
    has: its first digit is final, as the rows to come leave place j alone. So each row is the one above without its
    first digit plus the first operand times one digit, and the product is the first digits of all rows followed by the
    rest of the last one. A shape is the two operands' lengths.

    Attributes:
        max_length: Longest training length of either operand, in digits.
    """

    signs: ClassVar[str] = "*,"

    max_length: int = 5

    @property
    def operator(self) -> str:
        return "*"

    def operand_lengths(self, shape: Shape) -> tuple[int, ...]:
        return shape

    def widths(self, shape: Shape) -> tuple[int, ...]:
        return shape

    def answer_length(self, shape: Shape) -> int:
        return shape[1] * (shape[0] + 2) - 1

    def training_shapes(self) -> tuple[Shape, ...]:
        lengths = range(1, self.max_length + 1)
        return tuple(sorted(((n, m) for n in lengths for m in lengths), key=max))

    def evaluation_shapes(self, length: int, set_name: str, generator: Generator) -> tuple[Shape, ...]:
        if set_name != UNEQUAL or length == 1:
            return ((length, length),)
        shorter = torch.randint(1, length, (4,), generator=generator).tolist()
        return tuple(shape for n in shorter for shape in ((length, n), (n, length)))

    def layout(self, shape: Shape) -> Layout:
        return _layout(shape)

    def draw(self, generator: Generator, batch: int, shape: Shape, set_name: str) -> list[Tensor]:
        operands = [uniform_digits(generator, batch, length) for length in shape]
        if set_name == CARRY:
            for i, digits in enumerate(operands):
                nines = torch.full_like(digits, 9)
                run = torch.where(random_run(generator, batch, digits.shape[1]), nines, digits)
                operands[i] = choose_rows(generator, nines, run, digits)
        elif set_name == ZEROS:
            for i, digits in enumerate(operands):
                power = torch.zeros_like(digits)
                power[:, -1] = torch.randint(1, 10, (batch,), generator=generator)  # leading digit, then zeros
                unit = torch.zeros_like(digits)
                unit[:, 0] = torch.randint(1, 10, (batch,), generator=generator)  # zeros, then a digit
                operands[i] = choose_rows(generator, with_zeros(generator, digits), power, unit)
        return operands

    def compute(self, operands: Sequence[Tensor]) -> Tensor:
        first, second = operands
        above, rows = torch.zeros_like(first), []
        separator = torch.full_like(first[:, :1], len(self.symbols) - 1)
        for j in range(second.shape[1]):
            row = carried(above + first * second[:, j : j + 1])
            rows += [row, separator]
            above = row[:, 1:]
        return torch.cat(rows[:-1], dim=1)

    def parse(self, text: str) -> tuple[Shape, str]:
        parts = text.split("*")
        if len(parts) != 2:
            raise ProblemError(f"{quoted(text)} is not a multiplication: write two numbers and '*', as in 123*45")
        first, second = (self.digits(part, f"operand {i} of {quoted(text)}") for i, part in enumerate(parts, 1))
        return (len(first), len(second)), text

    def solve(self, source: str) -> str:
        first, second = source.split("*")
        rows, value = [], int(first)
        for j in range(len(second)):
            partial = value * int(second[len(second) - 1 - j :]) // 10**j
            rows.append(str(partial).zfill(len(first) + 1)[::-1])
        return ",".join(rows)

    def answer(self, target: str) -> str:
        rows = target.split(",")
        if not all(rows):
            return target
        digits = "".join(row[0] for row in rows) + rows[-1][1:]
        return digits[::-1].lstrip("0") or "0"


def _layout(shape: Shape) -> Layout:
    n, m = shape
    names = ("operand 1", "operator", "operand 2", START, ROW, SEPARATOR, END)
    first, second = torch.arange(n - 1, -1, -1), torch.arange(m - 1, -1, -1)
    zero = torch.tensor([0])
    source = positions_of(
        names,
        torch.cat([torch.full((n,), 0), torch.tensor([1]), torch.full((m,), 2)]),
        torch.cat([first, zero, second]),
        torch.cat([first.flip(0), zero, second.flip(0)]),
        torch.cat([torch.zeros(n + 1, dtype=torch.long), second]),
        torch.cat([first, torch.zeros(m + 1, dtype=torch.long)]),
    )
    column = torch.arange(n + 2).repeat(m)  # the last of each row is the separator, and `EOS` in the last row
    row = torch.arange(m).repeat_interleave(n + 2)
    segment = torch.where(column > n, 5, 4)
    index = n - column

    def after(part: Tensor, value: int) -> Tensor:
        return torch.cat([part.new_tensor([value]), part[:-1]])

    ends = segment.clone()
    ends[-1] = 6
    target = positions_of(names, ends, column, index, row, column)
    prefix = positions_of(names, after(segment, 3), after(column, 0), after(index, 0), after(row, 0), after(column, 0))
    return Layout(source, target, prefix)
