"""Addition of two numbers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import add
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from abc_toolkit.errors import UserError
from abc_toolkit.layout import ANSWER
from abc_toolkit.tasks.digits.base import (
    CARRY,
    UNEQUAL,
    ZEROS,
    DigitTask,
    check_numbers_below,
    exact_result,
    fixed_width,
)
from abc_toolkit.tasks.digits.identity import Identity, carried_sum, share
from abc_toolkit.tasks.digits.rule import LocalRule
from abc_toolkit.tasks.digits.sampling import (
    carried,
    digits_below,
    one_shorter,
    pad,
    pairs_of_lengths,
    pick_rows,
    random_run,
    unequal_lengths,
    uniform_digits,
    with_zeros,
)
from abc_toolkit.tasks.lengths import Shape


@dataclass(frozen=True)
class Carrying(LocalRule):
    """The sum of the digits and the carry; the state is the carry.

    Attributes:
        base: Number of digits.
    """

    state_noun = "carry"
    operands = ("operand 1", "operand 2")
    num_states = 2

    base: int = 10

    def step(
        self, state: Tensor, digits: Sequence[Tensor], constants: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        total = digits[0] + digits[1] + state
        return total // self.base, [total % self.base]

    def identities(self) -> tuple[Identity, ...]:
        operands = [share(name, 2) for name in self.operands]
        return (carried_sum("operand 1 + operand 2 = answer", 2, operands, [share(ANSWER, 2)]),)


@dataclass(frozen=True)
class Addition(DigitTask):
    """Adds two numbers: `123+989` has the target `2111` (1112, least significant digit first).

    The target has one digit more than the wider operand, so that it ends in `0` where no carry is left:
    `123+456` has the target `9750`. A shape is the two operand lengths.

    Attributes:
        max_length: Longest training length, in digits.
        padding: `longest` pads the shorter operand with zeros on the left to the longer one's width; `none`
            leaves both as they are written, which is harder; `fixed` pads both to `width`, as the paper does.
        width: Width that `fixed` pads to.
        numbers_below: Where given, training operands are uniform over the numbers below it, as in the paper, in place
            of the mixture of lengths and kinds.
        interleaved: Whether the source holds the operator and then the operands' digits in turn, the operands being of
            equal width: `123+989` is written `+192839`. It is the input alignment of arXiv 2310.11984, appendix A.4.
            A problem may be given either way.
        base: Number of digits: `0` to `9`, then `a` to `z`.
        end: `token` ends the target with a token of its own; `layout` leaves it out, as the layout tells the length.
        leading_zero: Whether the source begins with a zero that is no operand's, `0123+989`, which a head can read
            where an operand has no digit. A text in that form is taken as it is.
    """

    signs: ClassVar[str] = "+"

    max_length: int = 6
    padding: Literal["longest", "none", "fixed"] = "longest"
    width: int = 60
    numbers_below: int | None = None
    interleaved: bool = False
    base: int = 10
    end: Literal["token", "layout"] = field(default="token", metadata={"later": True})
    leading_zero: bool = field(default=False, metadata={"later": True})

    @property
    def operator(self) -> str:
        return "+"

    @property
    def lead(self) -> str:
        return self.symbols[0] if self.leading_zero else ""

    @property
    def in_turn(self) -> bool:
        return self.interleaved

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.interleaved and self.padding == "none":
            raise UserError("interleaved: operands of unequal width have no pairs: choose padding longest or fixed")
        if self.interleaved and self.leading_zero:
            raise UserError("interleaved: the source begins with the operator: leave out leading_zero")
        check_numbers_below(self.numbers_below, self.max_length)
        if self.numbers_below is not None and self.base != 10:
            raise UserError(f"numbers_below is for base 10, and base is {self.base}: leave out one of them")

    def operand_lengths(self, shape: Shape) -> tuple[int, ...]:
        return shape

    def widths(self, shape: Shape) -> tuple[int, ...]:
        if self.padding == "none":
            return shape
        width = max(shape)
        return (fixed_width(width, self.width) if self.padding == "fixed" else width,) * 2

    def answer_length(self, shape: Shape) -> int:
        return max(self.widths(shape)) + 1

    def training_shapes(self) -> tuple[Shape, ...]:
        if self.numbers_below is not None:
            return ((self.max_length, self.max_length),)
        if self.padding == "none":
            return pairs_of_lengths(self.max_length)
        return tuple((n, n) for n in range(1, self.max_length + 1))

    def num_problems(self, shape: Shape) -> int:
        return min(super().num_problems(shape), (self.numbers_below or self.base ** max(shape)) ** 2)

    def evaluation_shapes(self, length: int, suite: str, generator: Generator) -> tuple[Shape, ...]:
        if suite != UNEQUAL or self.padding != "none" or length == 1:
            return ((length, length),)
        return unequal_lengths(generator, length)

    def training_operands(self, generator: Generator, batch: int, shape: Shape) -> list[Tensor]:
        if self.numbers_below is None:
            return super().training_operands(generator, batch, shape)
        return [digits_below(generator, batch, self.numbers_below, length) for length in shape]

    def draw(self, generator: Generator, batch: int, shape: Shape, suite: str) -> list[Tensor]:
        first = uniform_digits(generator, batch, shape[0], self.base)
        second = uniform_digits(generator, batch, shape[1], self.base)
        if suite == UNEQUAL and shape[0] == shape[1]:
            first, second = one_shorter(generator, first, second)
        elif suite == CARRY:
            first, second = self._carries(generator, first, second)
        elif suite == ZEROS:
            first, second = with_zeros(generator, first), with_zeros(generator, second)
        return [first, second]

    def _carries(self, generator: Generator, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        batch = len(first)
        width = max(first.shape[1], second.shape[1])
        a, b = pad(first, width), pad(second, width)
        one = torch.zeros_like(a)
        one[:, 0] = 1
        highest = self.base - 1
        nines = torch.full_like(a, highest)
        # A number and its nines' complement sum to all nines: one more carries through every place.
        complement = highest - a
        complement[:, 0] += torch.randint(0, 2, (batch,), generator=generator) * (a[:, 0] > 0)
        # A carry is made just below a run of places whose digits sum to nine.
        run = random_run(generator, batch, width)
        below = run.roll(-1, 1) & ~run
        below[:, -1] = False
        long_a = torch.where(below, highest, a)
        long_b = torch.where(run, highest - a, torch.where(below, b.clamp(min=1), b))
        kind = torch.randint(0, 4, (batch,), generator=generator)
        a, b = pick_rows(kind, (nines, one, a, long_a)), pick_rows(kind, (one, nines, complement, long_b))
        return a[:, : first.shape[1]], b[:, : second.shape[1]]

    def compute(self, operands: Sequence[Tensor]) -> Tensor:
        width = max(operand.shape[1] for operand in operands)
        first, second = (pad(operand, width) for operand in operands)
        return carried(first + second, self.base)

    def parse(self, text: str) -> tuple[Shape, str]:
        first, second = self.operands(text, "an addition: write two numbers with one '+' between them, as in 123+9")
        if self.leading_zero and self._has_lead(first, second):
            first = first[1:]
        shape = (len(first), len(second))
        widths = self.widths(shape)
        return shape, self.written(first.zfill(widths[0]), second.zfill(widths[1]))

    def _has_lead(self, first: str, second: str) -> bool:
        """Whether the first operand of a text begins with the leading zero of a source."""
        if len(first) == 1 or not first.startswith(self.lead):
            return False
        return self.padding == "none" or len(first) == len(second) + 1

    def solve(self, source: str) -> str:
        first, second = self.split(source[len(self.lead) :])
        return exact_result(add, first, second, max(len(first), len(second)) + 1, self.base)

    def local_rule(self) -> LocalRule | None:
        return Carrying(self.base)
