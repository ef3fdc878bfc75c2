"""Multiplication of a number by one digit."""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import mul
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from abc_toolkit.layout import ANSWER
from abc_toolkit.tasks.base import ProblemError, quoted
from abc_toolkit.tasks.digits.base import CARRY, ZEROS, DigitTask, exact_result, fixed_width
from abc_toolkit.tasks.digits.identity import Identity, carried_sum, share
from abc_toolkit.tasks.digits.rule import LocalRule
from abc_toolkit.tasks.digits.sampling import carried, choose_rows, random_run, uniform_digits, with_zeros
from abc_toolkit.tasks.lengths import Shape


@dataclass(frozen=True)
class Product(LocalRule):
    """The digit times the second operand and the carry; the state is the carry.

    Attributes:
        base: Number of digits.
    """

    state_noun = "carry"
    operands = ("operand 1",)
    constants = ("operand 2",)

    base: int = 10

    @property
    def num_states(self) -> int:  # type: ignore[override]
        return self.base - 1

    def step(
        self, state: Tensor, digits: Sequence[Tensor], constants: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        total = digits[0] * constants[0] + state
        return total // self.base, [total % self.base]

    def identities(self) -> tuple[Identity, ...]:
        states = self.num_states
        number = share("operand 1", states, times_constant=True)
        return (carried_sum("operand 1 * operand 2 = answer", states, [number], [share(ANSWER, states)]),)


@dataclass(frozen=True)
class Multiplication(DigitTask):
    """Multiplies a number by one digit: `123*4` has the target `2940` (0492, least significant digit first).

    The target has one digit more than the first operand. A shape is the first operand's length; the second
    operand is always a single token.

    Attributes:
        max_length: Longest training length, in digits of the first operand.
        padding: `longest` and `none` leave the first operand as it is written; `fixed` pads it with zeros on
            the left to `width`, as the paper does.
        width: Width that `fixed` pads to.
        interleaved: Whether the source holds the operator and then each digit of the first operand with the second
            operand behind it: `123*4` is written `*142434`. It is the input alignment of arXiv 2310.11984, appendix
            A.4. A problem may be given either way.
        base: Number of digits: `0` to `9`, then `a` to `z`.
    """

    signs: ClassVar[str] = "*"

    max_length: int = 6
    padding: Literal["longest", "none", "fixed"] = "longest"
    width: int = 60
    interleaved: bool = False
    base: int = 10

    @property
    def operator(self) -> str:
        return "*"

    @property
    def in_turn(self) -> bool:
        return self.interleaved

    def operand_lengths(self, shape: Shape) -> tuple[int, ...]:
        return shape[0], 1

    def widths(self, shape: Shape) -> tuple[int, ...]:
        return fixed_width(shape[0], self.width) if self.padding == "fixed" else shape[0], 1

    def answer_length(self, shape: Shape) -> int:
        return self.widths(shape)[0] + 1

    def training_shapes(self) -> tuple[Shape, ...]:
        return tuple((n,) for n in range(1, self.max_length + 1))

    def draw(self, generator: Generator, batch: int, shape: Shape, suite: str) -> list[Tensor]:
        length = shape[0]
        first = uniform_digits(generator, batch, length, self.base)
        second = torch.randint(0, self.base, (batch, 1), generator=generator)
        if suite == CARRY:
            nines = torch.full_like(first, self.base - 1)
            repeated = torch.randint(1, self.base, (batch, 1), generator=generator).expand(-1, length)
            run = torch.where(random_run(generator, batch, length), repeated, first)
            first = choose_rows(generator, nines, repeated, run)
            second = torch.randint(min(2, self.base - 1), self.base, (batch, 1), generator=generator)
        elif suite == ZEROS:
            first, second = with_zeros(generator, first), with_zeros(generator, second)
        return [first, second]

    def compute(self, operands: Sequence[Tensor]) -> Tensor:
        return carried(operands[0] * operands[1], self.base)

    def factors(self, text: str) -> tuple[str, str]:
        """The number and the one digit in a text, as a person writes them or as they stand in the source.

        Raises:
            ProblemError: If it holds anything else.
        """
        first, second = self.operands(text, "a multiplication: write a number, '*' and one digit, as in 123*4")
        if text.startswith(self.operator) and second == second[0] * len(second):
            second = second[0]
        if len(second) != 1:
            raise ProblemError(
                f"operand 2 of {quoted(text)} has {len(second)} digits: this task multiplies by one digit"
            )
        return first, second

    def parse(self, text: str) -> tuple[Shape, str]:
        first, second = self.factors(text)
        shape = (len(first),)
        return shape, self.written(first.zfill(self.widths(shape)[0]), second)

    def solve(self, source: str) -> str:
        first, second = self.factors(source)
        return exact_result(mul, first, second, len(first) + 1, self.base)

    def local_rule(self) -> LocalRule | None:
        # A proof takes a constant to be one token, at place 0; in turn, there is a copy of it at every place.
        return None if self.interleaved else Product(self.base)
