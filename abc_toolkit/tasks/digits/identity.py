"""What each step of a local rule keeps, so that by induction a whole run says what is meant of whole numbers.

An identity is a claim about one step: about a state, the digits at a place, the next state and what is written. It is
finite to check, and a proof checks it on the rule's whole table. Written in the order of places, `A` is the number that
an operand's digits make, `W` the number that an answer's make, and `c` the constant that the rule reads at every place.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Share:
    """How often the digits of an operand or an answer count.

    Attributes:
        name: The operand or answer.
        per_state: How often, in each state; it must not change along a run.
        times_constant: Whether `c` times as often.
    """

    name: str
    per_state: tuple[int, ...]
    times_constant: bool = False


@dataclass(frozen=True)
class Identity:
    """A claim about each step.

    Attributes:
        kind: Its name in a certificate.
        statement: What follows of whole numbers, in words.
    """

    kind: ClassVar[str]
    statement: str

    def plain(self) -> dict[str, Any]:
        """The identity as JSON."""
        return {"kind": self.kind} | asdict(self)


@dataclass(frozen=True)
class SumIdentity(Identity):
    """What goes in at a place and what was carried is what comes out and what is carried on.

    Along `place`: `sum of takes + carry = sum of gives + base * next carry`, and no run ends with a carry. Multiplied
    by `base^place` and added up, the carries cancel: `sum of takes A + first carry = sum of gives W`. Along `index`:
    `base * carry + sum of takes = sum of gives + next carry`, which adds up, from the first digit on, to `sum of takes
    A = sum of gives W + last carry`.

    Attributes:
        takes: Operands.
        gives: Answers.
        carry: What each state carries.
    """

    kind = "linear"

    takes: tuple[Share, ...]
    gives: tuple[Share, ...]
    carry: tuple[int, ...]


@dataclass(frozen=True)
class CarryIdentity(Identity):
    """An answer shows what is carried on, which is at least 0 and below a bound.

    Attributes:
        answer: The answer.
        carry: What each state carries.
        bound: The bound; `constant` for `c`.
    """

    kind = "remainder"

    answer: str
    carry: tuple[int, ...]
    bound: int | str


@dataclass(frozen=True)
class RunningIdentity(Identity):
    """An answer shows the sum of the digits so far, modulo a number.

    Attributes:
        operand: The operand.
        answer: The answer.
        carry: What each state stands for.
        modulus: The modulus.
    """

    kind = "running"

    operand: str
    answer: str
    carry: tuple[int, ...]
    modulus: int


@dataclass(frozen=True)
class OrderIdentity(Identity):
    """A state is the order of two numbers made of the digits so far: the highest place that differs decides.

    Attributes:
        operands: The two operands.
        order: What each state stands for: -1 if the first number is smaller, 0 if they are equal, else 1.
        answer: The answer that shows it.
        symbols: The symbols that it shows for -1, 0 and 1.
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
    """A share of 1 in every state."""
    return Share(name, (1,) * states, times_constant)


def carried_sum(statement: str, states: int, takes: Sequence[Share], gives: Sequence[Share]) -> SumIdentity:
    """The identity of a rule whose state is the number that is carried."""
    return SumIdentity(statement, tuple(takes), tuple(gives), tuple(range(states)))
