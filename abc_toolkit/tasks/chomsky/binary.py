"""Sums and products of two binary numbers, least significant bit first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from abc_toolkit.layout import ANSWER, END, START, LayoutDescription, Repeat, Token
from abc_toolkit.linear import symbol
from abc_toolkit.tasks.base import ProblemError, quoted
from abc_toolkit.tasks.chomsky.base import ChomskyTask
from abc_toolkit.tasks.digits.addition import Addition, Carrying
from abc_toolkit.tasks.digits.base import CARRY, UNEQUAL, ZEROS
from abc_toolkit.tasks.digits.long_multiplication import CARRIED, DIGIT, Rows
from abc_toolkit.tasks.digits.rule import LocalRule, Read
from abc_toolkit.tasks.digits.sampling import carried, pad
from abc_toolkit.tasks.digits.tables import COMMA
from abc_toolkit.tasks.lengths import Shape

OPERATOR = "operator"
_SPLITS = 8  # splits of a length into two operands that an evaluation draws


@dataclass(frozen=True)
class BinaryTask(ChomskyTask):
    """A task on two binary numbers, least significant bit first, with a `2` between them.

    The output is the result without zeros behind its highest bit, a `2` that ends it, and zeros. A shape is the number
    of tokens of the input, and that of the bits of the first number.
    """

    shortest: ClassVar[int] = 3
    base = 2

    @property
    def literals(self) -> Mapping[str, str]:
        return {OPERATOR: "2"}

    def operand_lengths(self, shape: Shape) -> tuple[int, ...]:
        return self.sizes(shape)

    def sizes(self, shape: Shape) -> tuple[int, ...]:
        """The number of bits of either number."""
        length, first = shape
        return first, length - 1 - first

    def shape_of(self, sizes: Shape) -> Shape | None:
        first, second = sizes
        return first + second + 1, first

    @property
    def least_sizes(self) -> tuple[int, ...]:
        return 1, 1

    def training_shapes(self) -> tuple[Shape, ...]:
        return tuple((n, first) for n in range(self.shortest, self.max_length + 1) for first in range(1, n - 1))

    def evaluation_shapes(self, length: int, suite: str, generator: Generator) -> tuple[Shape, ...]:
        """Some splits into two numbers, at random as in the benchmark; for `unequal`, of lengths up to it."""
        self.check_length(length)
        shortest = self.shortest if suite == UNEQUAL else length
        lengths = torch.randint(shortest, length + 1, (_SPLITS,), generator=generator).tolist()
        splits = [(n, int(torch.randint(1, n - 1, (1,), generator=generator))) for n in lengths]
        return tuple(dict.fromkeys(splits))

    def num_problems(self, shape: Shape) -> int:
        first, second = self.sizes(shape)
        return (2**first - 1) * (2**second - 1)

    def draw(self, generator: Generator, batch: int, shape: Shape, suite: str) -> list[Tensor]:
        if suite in (CARRY, ZEROS):
            drawn = Addition(base=2, padding="none").draw(generator, batch, self.sizes(shape), suite)
        else:
            drawn = [torch.randint(0, 2, (batch, length), generator=generator) for length in self.sizes(shape)]
        for bits in drawn:  # no number is 0
            while (zero := ~bits.any(dim=1)).any():
                bits[zero] = torch.randint(0, 2, (int(zero.sum()), bits.shape[1]), generator=generator)
        return drawn

    def parse(self, text: str) -> tuple[Shape, str]:
        self.checked(text, "012", "the pair of numbers")
        first, *others = text.split("2")
        if len(others) != 1 or "1" not in first or "1" not in others[0]:
            raise ProblemError(
                f"{quoted(text)} is not two numbers: write either in bits, lowest first, not 0, and '2' between them: "
                "001201101 for 4 and 22"
            )
        return (len(text), len(first)), text

    def padded(self, bits: str, length: int) -> str:
        """The benchmark's output for the bits of a result: `2` behind the highest bit that is set, then zeros."""
        return ((bits.rstrip("0") or "0") + "2").ljust(length, "0")


def _operand(number: int, length: int, tabled: bool = False) -> Repeat:
    """The layout of an operand, least significant bit first; of a second operand in a table, a bit for each row.

    Numbers of unequal lengths are aligned at their least significant bits alone, so `index` counts from there too.
    """
    i = symbol("i")
    at = {"row": i, "column": 0} if tabled else {}
    return Repeat(length, "i", (Token(f"operand {number}", i, i, **at),))


@dataclass(frozen=True)
class Padded(Carrying):
    """The sum in the row of the operands, and zeros in the row behind it, where nothing is read."""

    rows = True

    def read(self, name: str) -> Read:
        return Read(name, row=0)


@dataclass(frozen=True)
class BinaryAddition(BinaryTask):
    """Adds two binary numbers, least significant bit first: `001201101` has the target `010110000`, the answer is
    `0101120000`.

    That is 4 + 22 = 26. The target is the sum, with one bit more than the longer number, and in a second row of the
    layout a zero for each bit of the shorter one, so that it has as many tokens as the input. The benchmark's output is
    read off: it ends the sum behind the highest bit with a `2`, and pads it with zeros to one token more than the
    input.

    Attributes:
        max_length: Longest training length, in tokens of the input.
    """

    characters: ClassVar[str] = "012"
    alphabets: ClassVar[Mapping[str, str]] = {
        "operand 1": "01",
        "operand 2": "01",
        ANSWER: "01",
        OPERATOR: "2",
    }

    max_length: int = 8

    def answer_length(self, shape: Shape) -> int:
        return shape[0]

    def describe_layout(self, sizes: Shape) -> LayoutDescription:
        first, second = sizes
        shorter, longer = (first, second) if first <= second else (second, first)
        i = symbol("i")
        return LayoutDescription(
            ("operand 1", OPERATOR, "operand 2", START, ANSWER, END),
            (_operand(1, first), Token(OPERATOR, 0, 0), _operand(2, second)),
            Token(START, 0, 0),
            (
                Repeat(longer + 1, "i", (Token(ANSWER, i, i),)),
                Repeat(shorter, "i", (Token(ANSWER, i, i, 1),)),
                Token(END, shorter, shorter, 1),
            ),
        )

    def compute(self, operands: Sequence[Tensor]) -> Tensor:
        length = sum(bits.shape[1] for bits in operands) + 1
        first, second = (pad(bits, length - 1) for bits in operands)
        return carried(first + second, 2)

    def solve(self, source: str) -> str:
        first, second = (int(bits[::-1], 2) for bits in source.split("2"))
        return f"{first + second:b}"[::-1].ljust(len(source), "0")

    def answer(self, target: str) -> str:
        return self.padded(target, len(target) + 1) if target and not target.strip("01") else target

    def local_rule(self) -> LocalRule | None:
        return Padded(2)


@dataclass(frozen=True)
class BinaryMultiplication(BinaryTask):
    """Multiplies two binary numbers, least significant bit first: `0120101` has the target
    `00000,00100,10000,00100,`.

    That is 2 * 10 = 20. The target has a row for each bit of the second number, which begins with the least significant
    one. A row is the row above without its first bit, plus the first number times the bit. As in `LongMultiplication`,
    whose rule this is in base 2, each column has a bit and what is carried from it, but the last, which is what is
    carried into it; a comma ends the row. The first bit of a row is final: the product is the first bits of all rows
    and the bits of the rest of the last one. The benchmark's output is read off: it ends the product behind the highest
    bit with a `2`, and pads it with zeros to the length of the input, `0010120`.

    Attributes:
        max_length: Longest training length, in tokens of the input.
    """

    characters: ClassVar[str] = "012,"
    alphabets: ClassVar[Mapping[str, str]] = {
        "operand 1": "01",
        "operand 2": "01",
        DIGIT: "01",
        CARRIED: "01",
        OPERATOR: "2",
        COMMA: ",",
    }

    max_length: int = 8

    @property
    def literals(self) -> Mapping[str, str]:
        return {OPERATOR: "2", COMMA: ","}

    def answer_length(self, shape: Shape) -> int:
        first, second = self.sizes(shape)
        return second * (2 * first + 2)

    def describe_layout(self, sizes: Shape) -> LayoutDescription:
        first, second = sizes
        i, j = symbol("i"), symbol("j")
        pair = tuple(Token(name, j, j, i) for name in (DIGIT, CARRIED))
        row = (Repeat(first, "j", pair), Token(DIGIT, first, first, i), Token(COMMA, first + 1, first + 1, i))
        return LayoutDescription(
            ("operand 1", OPERATOR, "operand 2", START, DIGIT, CARRIED, COMMA, END),
            (_operand(1, first), Token(OPERATOR, 0, 0), _operand(2, second, tabled=True)),
            Token(START, 0, 0),
            (Repeat(second, "i", row), Token(END, 0, 0, second)),
        )

    def compute(self, operands: Sequence[Tensor]) -> Tensor:
        first, second = operands
        row, rows = torch.zeros_like(first[:, :1]).expand(-1, first.shape[1] + 1), []
        comma = torch.full_like(first[:, :1], self.characters.index(","))
        for bit in second.unbind(1):
            term, above = first * bit[:, None], row[:, 1:]
            row = carried(term + above, 2)
            into = (row[:, :-1] + term + above) % 2  # what is carried into each column but the last
            out = torch.cat([into[:, 1:], row[:, -1:]], dim=1)
            rows += [torch.stack([row[:, :-1], out], dim=2).flatten(1), row[:, -1:], comma]
        return torch.cat(rows, dim=1)

    def solve(self, source: str) -> str:
        first, second = source.split("2")
        number, row, rows = int(first[::-1], 2), 0, []
        for bit in second:
            above, term = row // 2, number * int(bit)
            row = above + term
            into = row ^ above ^ term  # what is carried into each column
            bits, carries = (f"{each:0{len(first) + 1}b}"[::-1] for each in (row, into))
            rows += [*map("".join, zip(bits[:-1], carries[1:], strict=True)), bits[-1], ","]
        return "".join(rows)

    def answer(self, target: str) -> str:
        *rows, rest = target.split(",")
        if rest or not rows or len(set(map(len, rows))) != 1 or len(rows[0]) % 2 == 0 or target.strip("01,"):
            return target
        bits = "".join(row[0] for row in rows) + rows[-1][2::2]
        return self.padded(bits, len(bits) + 1)

    def local_rule(self) -> LocalRule | None:
        return Rows(2)
