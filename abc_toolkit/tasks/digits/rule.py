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
    """The tokens that hold an operand, a constant or an answer of a local rule.

    Attributes:
        segment: The segment of the tokens.
        row: The number of rows from the tokens down to the predicted token; any number, if not given.
        shift: The coordinate of the token that is read at place 0.
    """

    segment: str
    row: int | None = None
    shift: int = 0


class LocalRule(abc.ABC):
    """A finite-state transducer over places that says what the next token of a target is.

    At each place, from the least significant on (or, along `index`, from the most significant), the rule reads a digit
    of every operand (0 beyond its end), goes from one state to the next, and writes a token of every answer that has
    one there. Where the target ends, `EOS` follows.

    A rule may guess what only a later place decides: it begins in several states, and of its runs those count that end
    in an accepting state. For every problem exactly one run counts.

    Attributes:
        operands: Names of what it reads at each place, a digit each. A name is a segment, unless `read` says otherwise.
        constants: Names of segments of one digit, which it reads at every place; where a row has none, the least value.
        least_constant: Least value of a constant.
        answers: Names of the segments of the target that it writes.
        along: The coordinate that it goes along: `place`, or `index`, for which operands must have equal widths.
        num_states: Number of states.
        starts: The states in which a run may begin.
        rows: Whether it runs once for each row of a table, and reads rows above as operands. A proof then tries all
            digits in those rows, whether or not a problem has such rows.
        state_noun: What the number of a state is, as people call it: `carry`.
    """

    operands: ClassVar[tuple[str, ...]]
    constants: ClassVar[tuple[str, ...]] = ()
    least_constant: ClassVar[int] = 0
    answers: ClassVar[tuple[str, ...]] = (ANSWER,)
    along: ClassVar[Literal["place", "index"]] = "place"
    num_states: int
    starts: ClassVar[tuple[int, ...]] = (0,)
    rows: ClassVar[bool] = False
    state_noun: ClassVar[str] = "state"

    @abc.abstractmethod
    def step(
        self, state: Tensor, digits: Sequence[Tensor], constants: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """One step of the rule.

        Args:
            state: The state.
            digits: The digit of each operand.
            constants: The value of each constant.

        Returns:
            The next state, and the number of the symbol of each answer. All tensors have one shape.
        """

    def ends_well(self, state: Tensor) -> Tensor:
        """Whether states are accepting: runs that end in them count."""
        return torch.ones_like(state, dtype=torch.bool)

    def identities(self) -> tuple[Identity, ...]:
        """Identities that each step keeps, which prove what the rule means in integers; empty if none is claimed."""
        return ()

    def read(self, name: str) -> Read:
        """The tokens of an operand, a constant or an answer: those of the segment with its name, by default."""
        return Read(name)

    def name_of(self, state: int) -> str:
        """A state in words, such as `carry 1`."""
        return f"{self.state_noun} {state}"
