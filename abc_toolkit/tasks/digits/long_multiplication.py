"""Multiplication of two numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from abc_toolkit.layout import END, START, LayoutDescription, Repeat, Token
from abc_toolkit.linear import symbol
from abc_toolkit.tasks.digits.base import CARRY, ZEROS, exact_result
from abc_toolkit.tasks.digits.identity import CarryIdentity, Identity, carried_sum, share
from abc_toolkit.tasks.digits.rule import LocalRule, Read
from abc_toolkit.tasks.digits.sampling import choose_rows, random_run, uniform_digits, with_zeros
from abc_toolkit.tasks.digits.tables import COMMA, TableTask
from abc_toolkit.tasks.lengths import Shape

DIGIT = "digit"
CARRIED = "carry"


@dataclass(frozen=True)
class Rows(LocalRule):
    """In each row, the digit of the first operand times that of the row, the digit above and the carry, the state.

    Attributes:
        base: Number of digits.
    """

    state_noun = "carry"
    operands = ("operand 1", "above")
    constants = ("operand 2",)
    answers = (DIGIT, CARRIED)
    rows = True

    base: int = 10

    @property
    def num_states(self) -> int:  # type: ignore[override]
        return self.base

    def step(
        self, state: Tensor, digits: Sequence[Tensor], constants: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        total = digits[0] * constants[0] + digits[1] + state
        return total // self.base, [total % self.base, total // self.base]

    def identities(self) -> tuple[Identity, ...]:
        terms = [share("operand 1", self.base, times_constant=True), share("above", self.base)]
        statement = "operand 1 * the row's digit of operand 2 + the row above without its first digit = the row"
        return (
            carried_sum(statement, self.base, terms, [share(DIGIT, self.base)]),
            CarryIdentity("each carry is what is carried on", CARRIED, tuple(range(self.base)), self.base),
        )

    def read(self, name: str) -> Read:
        own = {"above": Read(DIGIT, row=1, shift=1), "operand 2": Read("operand 2", row=0)}
        return own.get(name, Read(name, row=0 if name in self.answers else None))


@dataclass(frozen=True)
class LongMultiplication(TableTask):
    """Multiplies two numbers: `12*34` has the target `80400,01400,` (product 408).

    The target has a row for each digit of the second operand, least significant first. Row j is the row above without
    its first digit, plus the first operand times digit j: from place j upwards, the first operand times the lowest
    j + 1 digits of the second. Its columns go from the least significant on: each has a digit and what is carried from
    it, `80 40` for 12 * 4 = 48, but the last, which is what is carried into it; a comma ends it. The first digit of a
    row is final, as the rows to come leave its place alone: the product is the first digits of all rows and the rest of
    the last one.

    Writing what is carried makes each token depend on one digit of either operand, one of the row above and the token
    just written, 10^4 assignments, where without it the digits one column below are needed too, 10^6. A shape is the
    two operands' lengths.

    Attributes:
        max_length: Longest training length of either operand, in digits.
    """

    signs: ClassVar[str] = "*,"

    @property
    def operator(self) -> str:
        return "*"

    def operand_lengths(self, shape: Shape) -> tuple[int, ...]:
        return shape

    def widths(self, shape: Shape) -> tuple[int, ...]:
        return shape

    def answer_length(self, shape: Shape) -> int:
        return shape[1] * (2 * shape[0] + 2)

    def describe_layout(self, sizes: Shape) -> LayoutDescription:
        n, m = sizes
        i, j = symbol("i"), symbol("j")
        pair = tuple(Token(name, j, n - j, i) for name in (DIGIT, CARRIED))
        row = (Repeat(n, "j", pair), Token(DIGIT, n, 0, i), Token(COMMA, n + 1, -1, i))
        return LayoutDescription(
            ("operand 1", "operator", "operand 2", START, DIGIT, CARRIED, COMMA, END),
            (
                Repeat(n, "i", (Token("operand 1", n - 1 - i, i),)),
                Token("operator", 0, 0),
                Repeat(m, "i", (Token("operand 2", m - 1 - i, i, m - 1 - i, 0),)),
            ),
            Token(START, 0, n),
            (Repeat(m, "i", row), Token(END, 0, n, m)),
        )

    def draw(self, generator: Generator, batch: int, shape: Shape, suite: str) -> list[Tensor]:
        operands = [uniform_digits(generator, batch, length) for length in shape]
        if suite == CARRY:
            for i, digits in enumerate(operands):
                nines = torch.full_like(digits, 9)
                run = torch.where(random_run(generator, batch, digits.shape[1]), nines, digits)
                operands[i] = choose_rows(generator, nines, run, digits)
        elif suite == ZEROS:
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
        comma = torch.full_like(first[:, 0], self.base + 1)
        for digit in second.unbind(1):
            carry, digits = torch.zeros_like(digit), []
            for factor, upper in zip(first.unbind(1), above.unbind(1), strict=True):
                total = factor * digit + upper + carry
                carry = total // 10
                digits += [total % 10, carry]
            rows += [*digits, carry, comma]
            above = torch.stack([*digits[2::2], carry], dim=1)
        return torch.stack(rows, dim=1)

    def parse(self, text: str) -> tuple[Shape, str]:
        first, second = self.operands(text, "a multiplication: write two numbers and '*', as in 123*45")
        return (len(first), len(second)), text

    def solve(self, source: str) -> str:
        first, second = source.split("*")
        rows, above = [], "0" * len(first)
        for digit in reversed(second):
            by = int(digit)
            row = exact_result(lambda number, rest, by=by: number * by + rest, first, above[::-1], len(first) + 1)
            carried = 0
            for factor, upper, written in zip(reversed(first), above, row, strict=False):
                carried = (int(factor) * by + int(upper) + carried - int(written)) // 10
                rows.append(written + str(carried))
            rows.append(row[-1] + ",")
            above = row[1:]
        return "".join(rows)

    def local_rule(self) -> LocalRule | None:
        return Rows()

    def answer(self, target: str) -> str:
        rows = self.rows(target)
        if not rows or len(rows[0]) % 2 == 0:  # a digit and a carry each, but for the last column
            return target
        digits = "".join(row[0] for row in rows) + rows[-1][2::2]
        return digits[::-1].lstrip("0") or "0"
