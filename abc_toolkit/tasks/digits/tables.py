"""What tasks share whose target is a table."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Generator

from abc_toolkit.tasks.digits.base import UNEQUAL, DigitTask
from abc_toolkit.tasks.digits.sampling import pairs_of_lengths, unequal_lengths
from abc_toolkit.tasks.lengths import Shape

COMMA = "comma"


@dataclass(frozen=True)
class TableTask(DigitTask):
    """A task on digit strings whose target is written in rows, a comma after each. A shape is two lengths.

    Attributes:
        max_length: Longest of either in training.
    """

    max_length: int = 5

    def training_shapes(self) -> tuple[Shape, ...]:
        return pairs_of_lengths(self.max_length)

    def evaluation_shapes(self, length: int, suite: str, generator: Generator) -> tuple[Shape, ...]:
        if suite != UNEQUAL or length == 1:
            return ((length, length),)
        return unequal_lengths(generator, length)

    @property
    def literals(self) -> Mapping[str, str]:
        return {**super().literals, COMMA: ","}

    def rows(self, target: str) -> list[str]:
        """The rows of a target; none if it is no table, of rows of one length."""
        *rows, rest = target.split(",")
        return rows if not rest and all(rows) and len(set(map(len, rows))) == 1 else []
