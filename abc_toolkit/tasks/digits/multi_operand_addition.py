"""Addition of any number of numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate
from math import comb
from operator import add
from typing import ClassVar

import torch
from torch import Generator, Tensor
from torch.nn import functional

from abc_toolkit.layout import END, START, LayoutDescription, Repeat, Token
from abc_toolkit.linear import symbol
from abc_toolkit.tasks.base import Problems, quoted
from abc_toolkit.tasks.digits.base import CARRY, UNEQUAL, ZEROS, exact_result
from abc_toolkit.tasks.digits.identity import Identity, carried_sum, share
from abc_toolkit.tasks.digits.rule import LocalRule, Read
from abc_toolkit.tasks.digits.sampling import carried, keep_places, pad, random_run, uniform_digits, with_zeros
from abc_toolkit.tasks.digits.tables import COMMA, TableTask
from abc_toolkit.tasks.lengths import Shape
from abc_toolkit.vocabulary import NUM_SPECIAL

OPERAND = "operand"
SUM = "sum"


class RunningSums(LocalRule):
    """In each row, the digit of the row's operand plus the one above plus the carry, the state."""

    state_noun = "carry"
    operands = (OPERAND, "above")
    answers = (SUM,)
    num_states = 2
    rows = True

    def step(
        self, state: Tensor, digits: Sequence[Tensor], constants: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        total = digits[0] + digits[1] + state
        return total // 10, [total % 10]

    def ends_well(self, state: Tensor) -> Tensor:
        return state == 0  # a sum fits its row

    def identities(self) -> tuple[Identity, ...]:
        terms = [share(name, 2) for name in self.operands]
        return (carried_sum("the row's operand + the row above = the row", 2, terms, [share(SUM, 2)]),)

    def read(self, name: str) -> Read:
        return Read(SUM, row=1) if name == "above" else Read(name, row=0)


@dataclass(frozen=True)
class MultiOperandAddition(TableTask):
    """Adds any number of numbers: `012+034+056` has the target `210,640,201,` (sum 102).

    The target has a row for each operand, a comma after each: the sum of the operands so far, least significant digit
    first. The last row is the answer. All operands are padded with zeros to a width that their sum fits, so that no row
    outgrows another. A shape is the number of digits with which the sum of so many operands always fits the width, and
    their number.

    Attributes:
        max_length: Longest training length of an operand, in digits, and most operands in training.
    """

    signs: ClassVar[str] = "+,"

    @property
    def operator(self) -> str:
        return "+"

    def operand_lengths(self, shape: Shape) -> tuple[int, ...]:
        length, count = shape
        return (length,) * count

    def widths(self, shape: Shape) -> tuple[int, ...]:
        return (width_of(shape),) * shape[1]

    def num_tokens(self, shape: Shape) -> tuple[int, int]:
        tokens = shape[1] * (width_of(shape) + 1)
        return tokens - 1, tokens + 1

    def answer_length(self, shape: Shape) -> int:
        return self.num_tokens(shape)[1] - 1

    def num_problems(self, shape: Shape) -> int:
        count = shape[1]
        return comb(10 ** width_of(shape) - 1 + count, count)  # that many numbers whose sum fits the width

    def training_operands(self, generator: Generator, batch: int, shape: Shape) -> list[Tensor]:
        """As of every task; where they stay within the training lengths, a quarter with digits up to the width."""
        operands = super().training_operands(generator, batch, shape)
        count = shape[1]
        if width_of(shape) > self.max_length:
            return operands
        higher = torch.randint(0, 10, (count, batch, spare(count)), generator=generator)
        longer = [torch.cat(parts, dim=1) for parts in zip(operands, higher, strict=True)]
        fits = carried(torch.stack(longer).sum(dim=0))[:, -1] == 0
        chosen = fits & (torch.rand(batch, generator=generator) < 0.25)
        padded = [pad(digits, width_of(shape)) for digits in operands]
        return [torch.where(chosen[:, None], *versions) for versions in zip(longer, padded, strict=True)]

    def sizes(self, shape: Shape) -> tuple[int, ...]:
        return width_of(shape), shape[1]

    @property
    def least_sizes(self) -> tuple[int, ...]:
        return 1 + spare(1), 1

    def describe_layout(self, sizes: Shape) -> LayoutDescription:
        width, count = sizes
        i, j = symbol("i"), symbol("j")
        operand = Repeat(width, "j", (Token(OPERAND, width - 1 - j, j, i),))
        last = Repeat(width, "j", (Token(OPERAND, width - 1 - j, j, count - 1),))
        row = (Repeat(width, "j", (Token(SUM, j, width - 1 - j, i),)), Token(COMMA, width, -1, i))
        return LayoutDescription(
            (OPERAND, "operator", START, SUM, COMMA, END),
            (Repeat(count - 1, "i", (operand, Token("operator", 0, 0, i))), last),
            Token(START, 0, width - 1),
            (Repeat(count, "i", row), Token(END, 0, width - 1, count)),
        )

    def draw(self, generator: Generator, batch: int, shape: Shape, suite: str) -> list[Tensor]:
        operands = [uniform_digits(generator, batch, length) for length in self.operand_lengths(shape)]
        if suite == UNEQUAL:
            length, count = shape
            kept = torch.randint(1, length + 1, (count, batch), generator=generator)
            kept[torch.randint(count, (batch,), generator=generator), torch.arange(batch)] = length
            return [keep_places(digits, own) for digits, own in zip(operands, kept, strict=True)]
        if suite == ZEROS:
            return [with_zeros(generator, digits) for digits in operands]
        if suite == CARRY:
            return self._carries(generator, operands)
        return operands

    def _carries(self, generator: Generator, operands: list[Tensor]) -> list[Tensor]:
        """All nines; or nines and then ones, zeros between them; or runs of nines."""
        batch, length = operands[0].shape
        one = keep_places(torch.ones_like(operands[0]), torch.ones(batch))
        kind = torch.randint(0, 3, (batch, 1), generator=generator)
        found = []
        for number, digits in enumerate(operands):
            nines = torch.full_like(digits, 9)
            small = one * torch.randint(0, 2, (batch, 1), generator=generator) if number else nines
            runs = torch.where(random_run(generator, batch, length), nines, digits)
            found.append(torch.where(kind == 0, nines, torch.where(kind == 1, small, runs)))
        return found

    def compute(self, operands: Sequence[Tensor]) -> Tensor:
        comma = torch.full_like(operands[0][:, :1], self.base + 1)
        sums = accumulate(operands, lambda total, digits: carried(total + digits)[:, :-1])
        return torch.cat([part for row in sums for part in (row, comma)], dim=1)

    def numbers(self, problems: Problems) -> list[Tensor]:
        rows = functional.pad(problems.source, (0, 1)).unflatten(1, (problems.shape[1], -1))  # an operator after each
        return [row.flip(1) - NUM_SPECIAL for row in rows[:, :, :-1].unbind(1)]

    def parse(self, text: str) -> tuple[Shape, str]:
        named = enumerate(text.split(self.operator), 1)
        parts = [self.digits(part, f"operand {i} of {quoted(text)}") for i, part in named]
        width = max(1 + spare(len(parts)), *map(len, parts))
        width = len(reduce(lambda total, part: exact_result(add, total, part, width)[::-1], parts, "0"))
        return (width - spare(len(parts)), len(parts)), self.operator.join(part.zfill(width) for part in parts)

    def solve(self, source: str) -> str:
        first, *others = source.split(self.operator)
        sums = accumulate(others, lambda total, part: exact_result(add, total, part, len(part))[::-1], initial=first)
        return "".join(f"{row[::-1]}," for row in sums)

    def local_rule(self) -> LocalRule | None:
        return RunningSums()

    def answer(self, target: str) -> str:
        rows = self.rows(target)
        return (rows[-1][::-1].lstrip("0") or "0") if rows else target


def spare(count: int) -> int:
    """Digits that the sum of so many numbers may have above theirs."""
    return len(str(count - 1))


def width_of(shape: Shape) -> int:
    """Digits that operands and sums of a shape are padded to."""
    length, count = shape
    return length + spare(count)
