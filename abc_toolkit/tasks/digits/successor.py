"""The number after a number."""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import add
from typing import Literal

import torch
from torch import Generator, Tensor

from abc_toolkit.layout import ANSWER
from abc_toolkit.tasks.base import quoted
from abc_toolkit.tasks.digits.base import CARRY, ZEROS, DigitTask, check_numbers_below, exact_result, fixed_width
from abc_toolkit.tasks.digits.identity import Identity, carried_sum, share
from abc_toolkit.tasks.digits.rule import LocalRule
from abc_toolkit.tasks.digits.sampling import (
    choose_rows,
    digits_below,
    keep_places,
    pad,
    random_run,
    uniform_digits,
    with_zeros,
)
from abc_toolkit.tasks.lengths import Shape


class Increment(LocalRule):
    """The digit and the carry; the state is the carry, which is 1 to begin with."""

    state_noun = "carry"
    operands = ("operand 1",)
    num_states = 2
    starts = (1,)

    def step(
        self, state: Tensor, digits: Sequence[Tensor], constants: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        total = digits[0] + state
        return total // 10, [total % 10]

    def identities(self) -> tuple[Identity, ...]:
        return (carried_sum("operand 1 + 1 = answer", 2, [share("operand 1", 2)], [share(ANSWER, 2)]),)


@dataclass(frozen=True)
class Successor(DigitTask):
    """Adds one: `1299` has the target `00310` (1300, least significant digit first).

    The target has one digit more than the operand. A shape is the operand's length.

    Attributes:
        max_length: Longest training length, in digits.
        padding: `longest` and `none` leave the operand as it is written; `fixed` pads it with zeros on the left
            to `width`, as the paper does.
        width: Width that `fixed` pads to.
        numbers_below: Where given, training numbers are uniform over the numbers below it, as in the paper, in place
            of the mixture of lengths and kinds.
    """

    max_length: int = 6
    padding: Literal["longest", "none", "fixed"] = "longest"
    width: int = 60
    numbers_below: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers_below(self.numbers_below, self.max_length)

    def operand_lengths(self, shape: Shape) -> tuple[int, ...]:
        return shape

    def widths(self, shape: Shape) -> tuple[int, ...]:
        return (fixed_width(shape[0], self.width) if self.padding == "fixed" else shape[0],)

    def answer_length(self, shape: Shape) -> int:
        return self.widths(shape)[0] + 1

    def training_shapes(self) -> tuple[Shape, ...]:
        if self.numbers_below is not None:
            return ((self.max_length,),)
        return tuple((n,) for n in range(1, self.max_length + 1))

    def num_problems(self, shape: Shape) -> int:
        return min(super().num_problems(shape), self.numbers_below or self.base ** shape[0])

    def training_operands(self, generator: Generator, batch: int, shape: Shape) -> list[Tensor]:
        if self.numbers_below is None:
            return super().training_operands(generator, batch, shape)
        return [digits_below(generator, batch, self.numbers_below, shape[0])]

    def draw(self, generator: Generator, batch: int, shape: Shape, suite: str) -> list[Tensor]:
        digits = uniform_digits(generator, batch, shape[0])
        if suite == CARRY:
            nines = torch.full_like(digits, 9)
            trailing = torch.randint(1, shape[0] + 1, (batch,), generator=generator)
            ends_in_nines = torch.where(keep_places(nines, trailing) > 0, nines, digits)
            inner_run = torch.where(random_run(generator, batch, shape[0]), nines, digits)
            digits = choose_rows(generator, nines, ends_in_nines, inner_run)
        elif suite == ZEROS:
            digits = with_zeros(generator, digits)
        return [digits]

    def compute(self, operands: Sequence[Tensor]) -> Tensor:
        digits = pad(operands[0], operands[0].shape[1] + 1)
        # A carry reaches a place where every digit below it is nine.
        nines_below = torch.nn.functional.pad((digits[:, :-1] == 9).long().cumprod(1), (1, 0), value=1)
        return (digits + nines_below) % 10

    def parse(self, text: str) -> tuple[Shape, str]:
        digits = self.digits(text, f"the number {quoted(text)}" if text else "the number")
        shape = (len(digits),)
        return shape, digits.zfill(self.widths(shape)[0])

    def solve(self, source: str) -> str:
        return exact_result(add, source, "1", len(source) + 1)

    def local_rule(self) -> LocalRule | None:
        return Increment()
