"""The position after steps on a cycle."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

from torch import Tensor

from abc_toolkit.layout import ANSWER
from abc_toolkit.tasks.chomsky.base import ChomskyTask
from abc_toolkit.tasks.digits.identity import Identity, RunningIdentity
from abc_toolkit.tasks.digits.rule import LocalRule
from abc_toolkit.tasks.lengths import Shape

CYCLE = 5  # positions


class Walking(LocalRule):
    """The position after each step, which is the state."""

    state_noun = "position"
    operands = ("operand 1",)
    along = "index"
    num_states = CYCLE

    def step(
        self, state: Tensor, digits: Sequence[Tensor], constants: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        position = (state + digits[0] - 1) % CYCLE
        return position, [position]

    def identities(self) -> tuple[Identity, ...]:
        statement = "each position is the sum of the steps so far, each minus 1, modulo 5"
        return (RunningIdentity(statement, "operand 1", ANSWER, tuple(range(CYCLE)), CYCLE, -1),)


@dataclass(frozen=True)
class CycleNavigation(ChomskyTask):
    """Walks on a cycle of five positions: `20100` has the target `10043`, the answer is 3.

    A token of the input is a step plus 1: `0` goes back, `1` stays, `2` goes on. The target holds the position after
    each step, from position 0 on. The benchmark's output is its last token. A shape is the number of steps.

    Attributes:
        max_length: Longest training length, in steps.
    """

    characters: ClassVar[str] = "01234"
    alphabets: ClassVar[Mapping[str, str]] = {"operand 1": "012"}
    downwards: ClassVar[bool] = True
    base = CYCLE

    def operand_lengths(self, shape: Shape) -> tuple[int, ...]:
        return shape

    def answer_length(self, shape: Shape) -> int:
        return shape[0]

    def compute(self, operands: Sequence[Tensor]) -> Tensor:
        return (operands[0].flip(1) - 1).cumsum(1) % CYCLE

    def parse(self, text: str) -> tuple[Shape, str]:
        return (len(text),), self.checked(text, "012", "the string of steps")

    def solve(self, source: str) -> str:
        return "".join(str(position % CYCLE) for position in accumulate(int(step) - 1 for step in source))

    def answer(self, target: str) -> str:
        return target[-1:]

    def local_rule(self) -> LocalRule | None:
        return Walking()
