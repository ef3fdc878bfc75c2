"""Identities: claims about each step of a local rule, from which claims about whole numbers follow by induction.

An identity is about one step: a state, the digits at a place, the next state, and the symbols that are written. A proof
checks it on all steps of the rule's table. Below, `A` is the number whose digits an operand holds, `W` the number whose
digits an answer holds, and `c` the constant that the rule reads at every place.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Share:
    """The factor of an operand or an answer in a sum.

    Attributes:
        name: The operand or answer.
        per_state: The factor in each state; it must not change along a run.
        times_constant: Whether the factor is multiplied by `c`.
    """

    name: str
    per_state: tuple[int, ...]
    times_constant: bool = False


@dataclass(frozen=True)
class Identity:
    """A claim about each step.

    Attributes:
        kind: Its name in a certificate.
        statement: The claim about whole numbers that follows, in words.
    """

    kind: ClassVar[str]
    statement: str

    def plain(self) -> dict[str, Any]:
        """The identity as JSON."""
        return {"kind": self.kind} | asdict(self)


@dataclass(frozen=True)
class SumIdentity(Identity):
    """A sum of digits with a carry: what is read and carried in equals what is written and carried out.

    Along `place`: `sum of takes + carry = sum of gives + base * next carry`, and no run ends with a carry. Multiply
    these equations by `base^place` and add them up: the carries cancel, and `sum of takes A + first carry = sum of
    gives W`. Along `index`: `base * carry + sum of takes = sum of gives + next carry`. From the first digit on these
    add up to `sum of takes A = sum of gives W + last carry`.

    Attributes:
        takes: Operands, with their factors.
        gives: Answers, with their factors.
        carry: The carry of each state.
    """

    kind = "linear"

    takes: tuple[Share, ...]
    gives: tuple[Share, ...]
    carry: tuple[int, ...]


@dataclass(frozen=True)
class CarryIdentity(Identity):
    """An answer shows the carry out, which is at least 0 and below a bound.

    Attributes:
        answer: The answer.
        carry: The carry of each state.
        bound: The bound; `constant` for `c`.
    """

    kind = "remainder"

    answer: str
    carry: tuple[int, ...]
    bound: int | str


@dataclass(frozen=True)
class RunningIdentity(Identity):
    """An answer shows the sum of the digits so far, modulo a number; something may be added to each digit.

    Attributes:
        operand: The operand.
        answer: The answer.
        carry: The sum that each state stands for.
        modulus: The modulus.
        offset: What is added to each digit.
    """

    kind = "running"

    operand: str
    answer: str
    carry: tuple[int, ...]
    modulus: int
    offset: int = 0

    def plain(self) -> dict[str, Any]:
        found = super().plain()
        return found if self.offset else {name: value for name, value in found.items() if name != "offset"}


@dataclass(frozen=True)
class OrderIdentity(Identity):
    """A state is the order of two numbers, of their digits so far: the highest place that differs decides.

    Attributes:
        operands: The two operands.
        order: The order that each state stands for: -1 if the first number is smaller, 0 if they are equal, else 1.
        answer: The answer that shows the order.
        symbols: The symbols that the answer shows for -1, 0 and 1.
    """

    kind = "order"

    operands: tuple[str, str]
    order: tuple[int, ...]
    answer: str
    symbols: tuple[int, int, int]


@dataclass(frozen=True)
class CopyIdentity(Identity):
    """An answer is an operand.

    Attributes:
        operand: The operand.
        answer: The answer.
    """

    kind = "copy"

    operand: str
    answer: str


def share(name: str, states: int, times_constant: bool = False) -> Share:
    """The factor 1 in every state."""
    return Share(name, (1,) * states, times_constant)


def carried_sum(statement: str, states: int, takes: Sequence[Share], gives: Sequence[Share]) -> SumIdentity:
    """The identity of a rule whose state is the carry."""
    return SumIdentity(statement, tuple(takes), tuple(gives), tuple(range(states)))
