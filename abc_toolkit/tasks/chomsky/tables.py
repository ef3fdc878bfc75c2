"""What tasks share whose target is a table with a row for each token of the input."""

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Generator, Tensor
from torch.nn import functional

from abc_toolkit.layout import END, START, LayoutDescription, Repeat, Token
from abc_toolkit.linear import symbol
from abc_toolkit.tasks.base import Problems
from abc_toolkit.tasks.chomsky.base import ChomskyTask
from abc_toolkit.tasks.digits.rule import LocalRule, Read
from abc_toolkit.tasks.digits.tables import COMMA
from abc_toolkit.tasks.lengths import Shape
from abc_toolkit.vocabulary import EOS, NUM_SPECIAL

INPUT = "operand 1"
CELL = "cell"
ABSENT = 0  # the number of the comma, which no cell holds: what is read where there is no cell or token


@dataclass(frozen=True)
class Neighbours:
    """The cells above a new cell, and what else it follows from, as numbers of symbols, all of one shape.

    Attributes:
        token: The token of the row; `ABSENT` for the row that would follow the last one.
        column: The column, up to 3 for all further ones.
        left: The cell above and one column to the left; `ABSENT` where there is none.
        own: The cell above.
        right: The cell above and one column to the right.
    """

    token: Tensor
    column: Tensor
    left: Tensor
    own: Tensor
    right: Tensor


@dataclass(frozen=True)
class StringTable(ChomskyTask):
    """A task on one string whose target is a table, with a comma for each row."""

    @property
    def operator(self) -> str:
        return ""

    @property
    def literals(self) -> Mapping[str, str]:
        return {COMMA: ","}

    def operand_lengths(self, shape: Shape) -> tuple[int, ...]:
        return shape[:1]

    def numbers(self, problems: Problems) -> list[Tensor]:
        return [problems.source.flip(1) - NUM_SPECIAL]

    def problems(self, shape: Shape, operands: Sequence[Tensor]) -> Problems:
        target = functional.pad(self.compute(operands) + NUM_SPECIAL, (0, 1), value=EOS)
        return Problems(shape, operands[0].flip(1) + NUM_SPECIAL, target)


@dataclass(frozen=True)
class TokenTable(StringTable):
    """A task whose target has a row for each token of the input, a comma before each.

    A cell follows from the row's token and three cells of the row above: at its own column and its neighbours. The
    comma is the first character, as no cell holds it: it stands for a cell that is not there.
    """

    @abc.abstractmethod
    def width(self, length: int) -> int:
        """Cells of a row, for an input of a length."""

    @abc.abstractmethod
    def cell(self, above: Neighbours) -> Tensor:
        """The number of the symbol of a new cell."""

    def occurs(self, above: Neighbours) -> Tensor:
        """Whether a problem has such neighbours; of what no problem has nothing is proved."""
        return torch.ones_like(above.own, dtype=torch.bool)

    def sizes(self, shape: Shape) -> tuple[int, ...]:
        return shape[0], self.width(shape[0])

    @property
    def least_sizes(self) -> tuple[int, ...]:
        return self.shortest, 1

    def shape_of(self, sizes: Shape) -> Shape | None:
        shape = sizes[:1]
        return shape if self.sizes(shape) == sizes else None

    def num_tokens(self, shape: Shape) -> tuple[int, int]:
        return shape[0], shape[0] * (self.width(shape[0]) + 1) + 1

    def answer_length(self, shape: Shape) -> int:
        return self.num_tokens(shape)[1] - 1

    def describe_layout(self, sizes: Shape) -> LayoutDescription:
        n, width = sizes
        i, j = symbol("i"), symbol("j")
        # A comma behind the cells would look like a cell of the first row, as neither has a cell above.
        row = (Token(COMMA, -1, width, i, 0), Repeat(width, "j", (Token(CELL, j, width - 1 - j, i),)))
        return LayoutDescription(
            (INPUT, START, COMMA, CELL, END),
            (Repeat(n, "i", (Token(INPUT, 0, 0, i, 0),)),),
            Token(START, -1, width, 0, 0),
            (Repeat(n, "i", row), Token(END, -1, width, n, 0)),
        )

    def numbers_of(self, characters: str) -> Tensor:
        """Numbers of symbols, `[character]`."""
        return self.vocabulary.encode(characters) - NUM_SPECIAL

    def holding(self, generator: Generator, shape: Shape, tokens: Mapping[int, int]) -> Problems:
        # Other tokens would seldom make a problem of a problem.
        problems = self.sample(generator, 1024, shape)
        fits = [problems.source[:, number] == token for number, token in tokens.items()]
        return problems[torch.stack(fits).all(dim=0)] if fits else problems

    def of_codes(self, codes: Tensor) -> Tensor:
        """Numbers of symbols, of codes of characters."""
        numbers = torch.zeros(128, dtype=torch.long)
        numbers[[ord(letter) for letter in self.characters]] = self.numbers_of(self.characters)
        return numbers[codes]

    def compute(self, operands: Sequence[Tensor]) -> Tensor:
        tokens = operands[0].flip(1)
        batch, length = tokens.shape
        above = torch.full((batch, self.width(length)), ABSENT)
        column = torch.arange(above.shape[1]).clamp(max=3).expand(batch, -1)
        comma, rows = self.numbers_of(",").expand(batch, -1), []
        for token in tokens.unbind(1):
            left, right = functional.pad(above, (1, 0))[:, :-1], functional.pad(above, (0, 1))[:, 1:]
            above = self.cell(Neighbours(token[:, None].expand_as(above), column, left, above, right))
            rows += [comma, above]
        return torch.cat(rows, dim=1)

    def rows(self, target: str) -> list[str]:
        """The rows of a target; none if it is no table, of rows of one length."""
        rest, *rows = target.split(",")
        cells = self.alphabets[CELL]
        good = not rest and all(rows) and len(set(map(len, rows))) == 1 and not any(row.strip(cells) for row in rows)
        return rows if good and rows and len(rows[0]) == self.width(len(rows)) else []

    def local_rule(self) -> LocalRule | None:
        return _rule_of(self)


@dataclass(frozen=True)
class SquareTable(TokenTable):
    """A table with as many columns as rows."""

    def width(self, length: int) -> int:
        return length

    def sizes(self, shape: Shape) -> tuple[int, ...]:
        return shape[:1]

    @property
    def least_sizes(self) -> tuple[int, ...]:
        return (self.shortest,)

    def describe_layout(self, sizes: Shape) -> LayoutDescription:
        return super().describe_layout((sizes[0], sizes[0]))


@lru_cache
def _rule_of(task: TokenTable) -> "Cells":
    return Cells(task)


class Cells(LocalRule):
    """The cell that follows from the row's token and three cells of the row above.

    Before it writes a cell, the rule has read the cell above it to the right. Its state holds the two cells read last.
    A run whose cells no problem has ends in a state that does not count.

    Args:
        task: The task.
    """

    operands = ("above",)
    constants = (INPUT,)
    answers = (CELL,)
    rows = True

    def __init__(self, task: TokenTable) -> None:
        self._task = task
        self._next, self._written = self._table()
        self.num_states = len(self._next)

    def read(self, name: str) -> Read:
        return {"above": Read(CELL, row=1), CELL: Read(CELL, row=0, shift=-1)}.get(name, Read(name, row=0))

    def step(
        self, state: Tensor, digits: Sequence[Tensor], constants: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        which = (state, digits[0], constants[0])
        return self._next[which], [self._written[which]]

    def ends_well(self, state: Tensor) -> Tensor:
        return state != self.num_states - 1

    def _table(self) -> tuple[Tensor, Tensor]:
        """The next state, and what is written, `[state, cell above, token of the row]`.

        State 0 has read nothing, the last one is that of runs that do not count.
        """
        task, base = self._task, self._task.base
        cells = [ABSENT, *task.numbers_of(task.alphabets[CELL]).tolist()]
        tokens = [ABSENT, *task.numbers_of(task.alphabets[INPUT]).tolist()]
        grid = torch.cartesian_prod(*map(torch.tensor, (tokens, [0, 1, 2, 3], cells, cells, cells)))
        neighbours = Neighbours(*grid.unbind(1))
        good = task.occurs(neighbours) & ((neighbours.left == ABSENT) | (neighbours.column > 0))
        # No cell stands to the right of one that is not there.
        good &= (neighbours.own != ABSENT) | (neighbours.right == ABSENT)
        written = torch.where(good & (neighbours.token != ABSENT), task.cell(neighbours), cells[1])
        known: dict[tuple[int, ...], dict[tuple[int, int], tuple[int, int]]] = {}
        for (token, column, left, own, right), new in zip(grid[good].tolist(), written[good].tolist(), strict=True):
            known.setdefault((column, left, own), {})[right, token] = (new, min(column + 1, 3))
        number = {(0, ABSENT, cell): 1 + place for place, cell in enumerate(cells)}
        todo = list(number)
        for state in todo:  # grows by the states that are reached
            for (right, _), (_, column) in known.get(state, {}).items():
                after = (column, state[2], right)
                if after not in number:
                    number[after] = 1 + len(number)
                    todo.append(after)
        dead = 1 + len(number)
        following = torch.full((dead + 1, base, base), dead)
        symbols = torch.full((dead + 1, base, base), cells[1])
        for cell, token in ((cell, token) for cell in cells for token in tokens):
            following[0, cell, token] = number[0, ABSENT, cell]
        for state, own in number.items():
            for (right, token), (new, column) in known.get(state, {}).items():
                following[own, right, token] = number[column, state[2], right]
                symbols[own, right, token] = new
        return following, symbols
