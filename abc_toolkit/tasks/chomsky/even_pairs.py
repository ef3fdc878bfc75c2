"""Whether a bit string has an even number of unequal neighbours, and whether it has an even number of ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from abc_toolkit.tasks.chomsky.base import ChomskyTask
from abc_toolkit.tasks.digits.parity import Parity
from abc_toolkit.tasks.digits.rule import LocalRule
from abc_toolkit.tasks.lengths import Shape


class Ends(LocalRule):
    """The exclusive or of the last bit and of the first, which is guessed; the state is twice the guess and the bit."""

    operands = ("operand 1",)
    num_states = 4
    starts = (0, 2)

    def step(
        self, state: Tensor, digits: Sequence[Tensor], constants: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        first = state // 2
        return 2 * first + digits[0], [(first + digits[0]) % 2]

    def ends_well(self, state: Tensor) -> Tensor:
        return state // 2 == state % 2


@dataclass(frozen=True)
class EvenPairs(ChomskyTask):
    """Tells whether a bit string has an odd number of neighbours that differ: `0101001` has the target `1`.

    The output is 1 if the number of `01` and `10` is odd. It is so if the last bit is not the first, so that two tokens
    of the input tell the output, and no steps are needed. The benchmark's output is the target.

    Attributes:
        max_length: Longest training length, in bits.
    """

    characters: ClassVar[str] = "01"
    alphabets: ClassVar[Mapping[str, str]] = {}
    base = 2

    def operand_lengths(self, shape: Shape) -> tuple[int, ...]:
        return shape

    def answer_length(self, shape: Shape) -> int:
        return 1

    def compute(self, operands: Sequence[Tensor]) -> Tensor:
        return (operands[0][:, :1] + operands[0][:, -1:]) % 2

    def parse(self, text: str) -> tuple[Shape, str]:
        return (len(text),), self.checked(text, "01", "the bit string")

    def solve(self, source: str) -> str:
        return str(int(source[0] != source[-1]))

    def answer(self, target: str) -> str:
        return target

    def local_rule(self) -> LocalRule | None:
        return Ends()


@dataclass(frozen=True)
class ParityCheck(Parity):
    """Tells whether a bit string has an odd number of ones: `10110` has the target `01001`, the answer is 1.

    The target holds the exclusive or of the bits so far, from the last bit to the first. The benchmark's output is its
    last token. A shape is the number of bits.

    Attributes:
        max_length: Longest training length, in bits.
        form: `scratchpad`, or `label` for the benchmark's output without steps.
    """
