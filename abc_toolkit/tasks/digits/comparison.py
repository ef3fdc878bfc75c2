"""Which of two numbers is larger."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from abc_toolkit.layout import ANSWER
from abc_toolkit.tasks.digits.base import CARRY, UNEQUAL, ZEROS, DigitTask, fixed_width
from abc_toolkit.tasks.digits.identity import Identity, OrderIdentity
from abc_toolkit.tasks.digits.rule import LocalRule
from abc_toolkit.tasks.digits.sampling import choose_rows, one_shorter, pick_rows, uniform_digits, with_zeros
from abc_toolkit.tasks.lengths import Shape


@dataclass(frozen=True)
class Deciding(LocalRule):
    """The first difference decides; the state is the verdict on the digits so far: 0 is `<`, 1 is `=`, 2 is `>`.

    Attributes:
        base: Number of digits.
    """

    operands = ("operand 1", "operand 2")
    along = "index"
    num_states = 3
    starts = (1,)

    base: int = 10

    def step(
        self, state: Tensor, digits: Sequence[Tensor], constants: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        verdict = torch.where(state == 1, 1 + (digits[0] - digits[1]).sign(), state)
        return verdict, [self.base + verdict]

    def name_of(self, state: int) -> str:
        return ("less", "equal", "greater")[state]

    def identities(self) -> tuple[Identity, ...]:
        symbols = self.base, self.base + 1, self.base + 2
        statement = "each verdict is the order of the digits so far"
        return (OrderIdentity(statement, ("operand 1", "operand 2"), (-1, 0, 1), ANSWER, symbols),)


@dataclass(frozen=True)
class Comparison(DigitTask):
    """Compares two numbers: `12345?12407` has the target `==<<<`, the answer is `<`.

    The target holds the verdict on the digits so far, from the most significant one down, and the answer is its last
    token. The shorter operand is padded with zeros on the left: `123?45` is written `123?045`. A shape is the wider
    operand's length.

    Attributes:
        max_length: Longest training length, in digits.
        padding: `longest` pads to the longer operand's width, `fixed` pads both to `width`.
        width: Width that `fixed` pads to.
        base: Number of digits: `0` to `9`, then `a` to `z`.
    """

    signs: ClassVar[str] = "<=>?"  # the verdicts in the order of the rule's states
    downwards: ClassVar[bool] = True

    max_length: int = 6
    padding: Literal["longest", "fixed"] = "longest"
    width: int = 60
    base: int = 10

    @property
    def operator(self) -> str:
        return "?"

    def operand_lengths(self, shape: Shape) -> tuple[int, ...]:
        return shape * 2

    def widths(self, shape: Shape) -> tuple[int, ...]:
        return (fixed_width(shape[0], self.width) if self.padding == "fixed" else shape[0],) * 2

    def answer_length(self, shape: Shape) -> int:
        return self.widths(shape)[0]

    def training_shapes(self) -> tuple[Shape, ...]:
        return tuple((n,) for n in range(1, self.max_length + 1))

    def evaluation_shapes(self, length: int, suite: str, generator: Generator) -> tuple[Shape, ...]:
        return ((length,),)

    def draw(self, generator: Generator, batch: int, shape: Shape, suite: str) -> list[Tensor]:
        length = shape[0]
        first, second = (uniform_digits(generator, batch, length, self.base) for _ in range(2))
        if suite == UNEQUAL:
            first, second = one_shorter(generator, first, second)
        elif suite == CARRY:
            first, second = self._alike(generator, first, second)
        elif suite == ZEROS:
            second = choose_rows(generator, second, first)  # else both have the same zeros only where all are
            first, second = with_zeros(generator, first), with_zeros(generator, second)
        return [first, second]

    def _alike(self, generator: Generator, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """What corresponds to a carry, a long beginning that both have: equal, or different from a place on."""
        batch, length = first.shape
        places = torch.arange(length)
        different = (first + torch.randint(1, self.base, (batch, 1), generator=generator)) % self.base
        decides = torch.randint(0, length, (batch, 1), generator=generator)
        below = places < decides
        at_one = torch.where(places == decides, different, first)
        at_last = torch.where(places == 0, different, first)
        any_below = torch.where(below, second, at_one)
        # Below the place that decides, all digits speak for the number that is smaller.
        highest = (self.base - 1) * torch.ones_like(first)
        larger = (first > at_one).any(dim=1, keepdim=True)
        against_first = torch.where(below, torch.where(larger, 0, highest), first)
        against_second = torch.where(below, torch.where(larger, highest, 0), at_one)
        kind = torch.randint(0, 5, (batch,), generator=generator)
        return (
            pick_rows(kind, (first, first, first, first, against_first)),
            pick_rows(kind, (first, at_one, at_last, any_below, against_second)),
        )

    def compute(self, operands: Sequence[Tensor]) -> Tensor:
        signs = (operands[0] - operands[1]).sign().flip(1)
        differs = signs != 0
        first = differs & (differs.cumsum(1) == 1)
        return self.base + 1 + (signs * first).cumsum(1)

    def parse(self, text: str) -> tuple[Shape, str]:
        first, second = self.operands(text, "a comparison: write two numbers with one '?' between them, as in 123?45")
        shape = (max(len(first), len(second)),)
        width = self.widths(shape)[0]
        return shape, self.written(first.zfill(width), second.zfill(width))

    def solve(self, source: str) -> str:
        first, second = self.split(source)
        alike = next((i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b), len(first))
        return "=" * alike + ("<" if first < second else ">") * (len(first) - alike)

    def answer(self, target: str) -> str:
        return target[-1:]

    def local_rule(self) -> LocalRule | None:
        return Deciding(self.base)
