"""The local rule of a task: a finite-state transducer over places."""

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from abc_toolkit.layout import ANSWER
from abc_toolkit.tasks.digits.identity import Identity


@dataclass(frozen=True)
class Read:
    """Where a local rule reads an operand or an answer.

    Attributes:
        segment: The segment of the tokens that hold them.
        row: How many rows above that of the predicted token they are; any row, if not given.
        shift: What a token's coordinate is above the place at which the rule reads it.
    """

    segment: str
    row: int | None = None
    shift: int = 0


class LocalRule(abc.ABC):
    """A finite-state transducer over places that says what the next token of a target is.

    At each place, from the least significant on (or, along `index`, from the most significant), it reads a digit of
    every operand (0 beyond its end), goes from one state to the next and writes a token of every segment of the target
    that has one there. Where the target ends, `EOS` follows. It may guess what only a later place decides: it begins in
    several states, and of its runs those count that end well; there is exactly one for every problem.

    Attributes:
        operands: Segments that give it a digit at each place.
        constants: Segments of one digit that it reads at every place.
        least_constant: Least value of such a digit.
        answers: Segments of the target.
        along: The coordinate by which it goes: `place`, or `index`, for which operands must be of equal width.
        num_states: Its states.
        starts: Those in which it may begin.
        rows: Whether it begins anew in each row of a table, whose rows above give it operands. All that these could
            hold is gone through, whether or not there are such rows.
    """

    operands: ClassVar[tuple[str, ...]]
    constants: ClassVar[tuple[str, ...]] = ()
    least_constant: ClassVar[int] = 0
    answers: ClassVar[tuple[str, ...]] = (ANSWER,)
    along: ClassVar[Literal["place", "index"]] = "place"
    num_states: int
    starts: ClassVar[tuple[int, ...]] = (0,)
    rows: ClassVar[bool] = False

    @abc.abstractmethod
    def step(
        self, state: Tensor, digits: Sequence[Tensor], constants: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """The next state, and the symbol that each of `answers` has here, by its number; all of one shape."""

    def ends_well(self, state: Tensor) -> Tensor:
        """The states in which a run may end, boolean."""
        return torch.ones_like(state, dtype=torch.bool)

    def identities(self) -> tuple[Identity, ...]:
        """Identities that each step keeps, which prove what the rule means; empty if none is claimed."""
        return ()

    def read(self, name: str) -> Read:
        """Where the rule reads an operand or an answer: the segment of that name, unless the rule says otherwise."""
        return Read(name)
