"""Sorting tokens of a small alphabet."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from abc_toolkit.tasks.chomsky.tables import ABSENT, CELL, INPUT, Neighbours, SquareTable
from abc_toolkit.tasks.lengths import Shape


@dataclass(frozen=True)
class BucketSort(SquareTable):
    """Sorts the tokens of a string of five symbols: `3142` has the target `,3000,3100,4310,4321`, the answer is 1234.

    Row i of the target holds the first i tokens in descending order, and zeros up to the string's length: the row above
    with the token of the row put in. A cell is the greater of the cell above and the lesser of the token and the cell
    above to the left. The answer is the last row, backwards.

    Attributes:
        max_length: Longest training length, in tokens of the input.
    """

    characters: ClassVar[str] = ",01234"
    alphabets: ClassVar[dict[str, str]] = {INPUT: "01234", CELL: "01234"}

    base = 6
    max_length: int = 10

    def cell(self, above: Neighbours) -> Tensor:
        zero, most = self.numbers_of("04")
        # There is no cell above in the first row, and there is none to the left of the first column.
        left = torch.where(above.column == 0, most, torch.where(above.left == ABSENT, zero, above.left))
        return torch.maximum(above.own.clamp(min=zero), torch.minimum(above.token, left))

    def occurs(self, above: Neighbours) -> Tensor:
        sorted_ = (above.column == 0) | (above.left >= above.own)
        # The last cell of the row above is still free.
        return sorted_ & ((above.token == ABSENT) | (above.right != ABSENT) | (above.own <= self.numbers_of("0")))

    def parse(self, text: str) -> tuple[Shape, str]:
        return (len(self.checked(text, self.alphabets[INPUT], "the string")),), text

    def solve(self, source: str) -> str:
        rows, length = [], len(source)
        counts = [0] * 5
        for token in source:
            counts[int(token)] += 1
            rows.append("".join(str(value) * counts[value] for value in reversed(range(5))).ljust(length, "0"))
        return "".join(f",{row}" for row in rows)

    def answer(self, target: str) -> str:
        rows = self.rows(target)
        return rows[-1][::-1] if rows else target
