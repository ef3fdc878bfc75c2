"""Subtraction of two numbers, with sign."""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import sub
from typing import ClassVar

import torch
from torch import Generator, Tensor

from abc_toolkit.tasks.digits.base import CARRY, UNEQUAL, ZEROS, DigitTask, exact_result
from abc_toolkit.tasks.digits.identity import Identity, OrderIdentity, Share, SumIdentity, share
from abc_toolkit.tasks.digits.rule import LocalRule
from abc_toolkit.tasks.digits.sampling import keep_places, pad, pick_rows, random_run, uniform_digits, with_zeros
from abc_toolkit.tasks.lengths import Shape

ORDERS = "<=>"
LESS, EQUAL, GREATER = range(3)


@dataclass(frozen=True)
class Borrowing(LocalRule):
    """The order of the operands up to this place, and the difference of the digits, taken from the larger operand's.

    Which operand is the larger only the last place tells: the state holds a guess whether the first is the smaller, and
    the order so far, which also tells what was borrowed. A run ends well if the order comes to be as was guessed.

    Attributes:
        base: Number of digits.
    """

    operands = ("operand 1", "operand 2")
    answers = ("order", "magnitude")
    num_states = 2 * len(ORDERS)
    starts = (EQUAL, len(ORDERS) + EQUAL)

    base: int = 10

    def step(
        self, state: Tensor, digits: Sequence[Tensor], constants: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        first, second = digits
        negative, below = state // len(ORDERS), state % len(ORDERS)
        order = torch.where(first == second, below, EQUAL + (first - second).sign())
        difference = subtracted(first, second, negative == 1, below, self.base)
        return len(ORDERS) * negative + order, [symbols_of(order, self.base), difference]

    def ends_well(self, state: Tensor) -> Tensor:
        return (state // len(ORDERS) == 1) == (state % len(ORDERS) == LESS)

    def name_of(self, state: int) -> str:
        return ("less", "equal", "greater")[state % len(ORDERS)]

    def identities(self) -> tuple[Identity, ...]:
        states = self.num_states
        sign = tuple(1 if state < len(ORDERS) else -1 for state in range(states))
        # Less the operand that is guessed to be smaller: what its digits so far exceed is borrowed.
        exceeds = tuple(-int(state in (LESS, len(ORDERS) + GREATER)) for state in range(states))
        first, second = Share("operand 1", sign), Share("operand 2", tuple(-own for own in sign))
        return (
            SumIdentity(
                "magnitude = operand 1 - operand 2, or operand 2 - operand 1 where the sign is <",
                (first, second),
                (share("magnitude", states),),
                exceeds,
            ),
            OrderIdentity(
                "each order is that of the digits so far",
                ("operand 1", "operand 2"),
                tuple(state % len(ORDERS) - EQUAL for state in range(states)),
                "order",
                (self.base + 1, self.base + 2, self.base + 3),
            ),
        )


def subtracted(first: Tensor, second: Tensor, negative: Tensor, below: Tensor, base: int) -> Tensor:
    """Digits of the larger number less the smaller, of the numbers' digits and their order below each place."""
    turned = second - first - (below == GREATER).long()
    return torch.where(negative, turned, first - second - (below == LESS).long()) % base


def symbols_of(order: Tensor, base: int) -> Tensor:
    """The numbers of the symbols for orders: they come behind the digits and the operator."""
    return base + 1 + order


@dataclass(frozen=True)
class Subtraction(DigitTask):
    """Subtracts one number from another: `45-123` has the target `>><870`, the answer is -78.

    The shorter operand is padded with zeros on the left to the longer one's width, and the target has as many tokens
    twice. First, for each place from the least significant on, comes the *order* of the operands up to it: 5 > 3, 45 >
    23, 045 < 123. Its last token is the sign of the answer. Then comes the *magnitude*, the larger operand less the
    smaller, least significant digit first (870, that is 078): what its digits borrow follows from the order below their
    place. A shape is the two operand lengths.

    Writing the difference in ten's complement, and after it the complement of that where it is negative, would take a
    token more, and two chains of borrows in place of one order that serves the sign and all borrows.

    Attributes:
        max_length: Longest training length, in digits.
        base: Number of digits: `0` to `9`, then `a` to `z`.
    """

    signs: ClassVar[str] = "-" + ORDERS

    max_length: int = 6
    base: int = 10

    @property
    def operator(self) -> str:
        return "-"

    def operand_lengths(self, shape: Shape) -> tuple[int, ...]:
        return shape

    def widths(self, shape: Shape) -> tuple[int, ...]:
        return (max(shape),) * 2

    def answer_length(self, shape: Shape) -> int:
        return 2 * max(shape)

    def answers(self, shape: Shape) -> Sequence[tuple[str, int]]:
        return [("order", max(shape)), ("magnitude", max(shape))]

    def training_shapes(self) -> tuple[Shape, ...]:
        return tuple((n, n) for n in range(1, self.max_length + 1))

    def evaluation_shapes(self, length: int, suite: str, generator: Generator) -> tuple[Shape, ...]:
        return ((length, length),)

    def draw(self, generator: Generator, batch: int, shape: Shape, suite: str) -> list[Tensor]:
        width = max(shape)
        first, second = (pad(uniform_digits(generator, batch, length, self.base), width) for length in shape)
        swap = torch.rand(batch, generator=generator) < 0.5
        if suite == UNEQUAL:
            kept = torch.randint(1, max(width, 2), (batch,), generator=generator)
            second = keep_places(second, kept)
        elif suite == CARRY:
            first, second = self._borrows(generator, first, second)
        elif suite == ZEROS:
            first, second = with_zeros(generator, first), with_zeros(generator, second)
        drawn = pick_rows(swap.long(), (first, second)), pick_rows(swap.long(), (second, first))
        return [digits[:, :length] for digits, length in zip(drawn, shape, strict=True)]

    def _borrows(self, generator: Generator, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        batch, width = first.shape
        one = torch.zeros_like(first)
        one[:, 0] = 1
        # 1000 - 1, and 5000 - 4999: a borrow goes through every place.
        thousand = one.flip(1)
        leading = torch.randint(1, self.base, (batch,), generator=generator)
        round_number = thousand * leading[:, None]
        just_below = torch.full_like(first, self.base - 1)
        just_below[:, -1] = leading - 1
        # In a run of equal digits, the order of what is below it stays, and what that borrows.
        alike = torch.where(random_run(generator, batch, width), first, second)
        kind = torch.randint(0, 4, (batch,), generator=generator)
        return (
            pick_rows(kind, (first, thousand, round_number, first)),
            pick_rows(kind, (first, one, just_below, alike)),
        )

    def compute(self, operands: Sequence[Tensor]) -> Tensor:
        first, second = operands
        # The highest place up to each that decides the order; before the first, the numbers are equal.
        place = torch.arange(1, first.shape[1] + 1, device=first.device)
        decides = (place * (first != second)).cummax(dim=1).values
        by_place = torch.nn.functional.pad(EQUAL + (first - second).sign(), (1, 0), value=EQUAL)
        order = by_place.gather(1, decides)
        below = torch.nn.functional.pad(order[:, :-1], (1, 0), value=EQUAL)
        magnitude = subtracted(first, second, order[:, -1:] == LESS, below, self.base)
        return torch.cat([symbols_of(order, self.base), magnitude], dim=1)

    def parse(self, text: str) -> tuple[Shape, str]:
        first, second = self.operands(text, "a subtraction: write two numbers with one '-' between them, as in 45-123")
        width = max(len(first), len(second))
        return (len(first), len(second)), self.written(first.zfill(width), second.zfill(width))

    def solve(self, source: str) -> str:
        first, second = self.split(source)
        order, orders = ORDERS[EQUAL], []
        for a, b in zip(reversed(first), reversed(second), strict=True):
            if a != b:
                order = ORDERS[LESS if a < b else GREATER]
            orders.append(order)
        larger, smaller = max(first, second), min(first, second)  # of one width, so that texts compare as numbers do
        return "".join(orders) + exact_result(sub, larger, smaller, len(first), self.base)

    def answer(self, target: str) -> str:
        width = len(target) // 2
        order, magnitude = target[:width], target[width:]
        if len(order) != len(magnitude) or order.strip(ORDERS) or magnitude.strip(self.symbols[: self.base]):
            return target
        sign = "-" if order.endswith(ORDERS[LESS]) else ""
        return sign + super().answer(magnitude)

    def local_rule(self) -> LocalRule | None:
        return Borrowing(self.base)
