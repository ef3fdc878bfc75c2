"""The symbols of a string at odd positions, then those at even ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from abc_toolkit.layout import ANSWER, END, START, LayoutDescription, Repeat, Token
from abc_toolkit.linear import symbol
from abc_toolkit.tasks.chomsky.base import ChomskyTask, at_most_one
from abc_toolkit.tasks.digits.identity import CopyIdentity, Identity
from abc_toolkit.tasks.digits.rule import LocalRule, Read
from abc_toolkit.tasks.lengths import Shape


class Chosen(LocalRule):
    """In each row, the symbols of the operand in the same row; there is one state."""

    operands = ("operand 1",)
    along = "index"
    num_states = 1
    rows = True

    def step(
        self, state: Tensor, digits: Sequence[Tensor], constants: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        return state, [digits[0]]

    def identities(self) -> tuple[Identity, ...]:
        return (CopyIdentity("each row of the answer is the same row of operand 1", "operand 1", ANSWER),)

    def read(self, name: str) -> Read:
        return Read(name, row=0)


@dataclass(frozen=True)
class OddsFirst(ChomskyTask):
    """Writes every second bit of a string, then the others: `00110101` has the target `01110100`.

    Counted from 0, those at odd positions come first, as in the benchmark's code; the target is its output. The layout
    is a table with a row for either parity: the bit at position i is in row i mod 2 and column i div 2.

    Attributes:
        max_length: Longest training length, in bits.
    """

    characters: ClassVar[str] = "01"
    alphabets: ClassVar[Mapping[str, str]] = {}
    base = 2

    def operand_lengths(self, shape: Shape) -> tuple[int, ...]:
        return shape

    def sizes(self, shape: Shape) -> tuple[int, ...]:
        """The number of bits at even positions, and by how many they are more than the others."""
        return (shape[0] + 1) // 2, shape[0] % 2

    def shape_of(self, sizes: Shape) -> Shape | None:
        evens, rest = sizes
        return (2 * evens - rest,) if rest < 2 else None

    @property
    def least_sizes(self) -> tuple[int, ...]:
        return 1, 0

    def describe_layout(self, sizes: Shape) -> LayoutDescription:
        evens, rest = sizes[0], at_most_one(sizes[1])
        pairs, last, i = evens - rest, 2 * evens - rest - 1, symbol("i")
        pair = tuple(Token("operand 1", last - 2 * i - row, i, row, i) for row in (0, 1))
        left = (Token("operand 1", 0, pairs, 0, pairs),) * rest

        def row(number: int, length: int) -> Repeat:
            return Repeat(length, "i", (Token(ANSWER, length - 1 - i, i, number, i),))

        return LayoutDescription(
            ("operand 1", START, ANSWER, END),
            (Repeat(pairs, "i", pair), *left),
            Token(START, 0, 0),
            (row(1, pairs), row(0, evens), Token(END, -1, evens)),
        )

    def answer_length(self, shape: Shape) -> int:
        return shape[0]

    def compute(self, operands: Sequence[Tensor]) -> Tensor:
        string = operands[0].flip(1)
        return torch.cat([string[:, 1::2], string[:, ::2]], dim=1)

    def parse(self, text: str) -> tuple[Shape, str]:
        return (len(text),), self.checked(text, "01", "the bit string")

    def solve(self, source: str) -> str:
        return source[1::2] + source[::2]

    def answer(self, target: str) -> str:
        return target

    def local_rule(self) -> LocalRule | None:
        return Chosen()
