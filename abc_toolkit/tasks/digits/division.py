"""Division of a number by one digit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from abc_toolkit.tasks.base import ProblemError, quoted
from abc_toolkit.tasks.digits.base import CARRY, DIGITS, ZEROS, DigitTask
from abc_toolkit.tasks.digits.identity import CarryIdentity, Identity, carried_sum, share
from abc_toolkit.tasks.digits.rule import LocalRule
from abc_toolkit.tasks.digits.sampling import carried, choose_rows, random_run, uniform_digits, with_zeros
from abc_toolkit.tasks.lengths import Shape


@dataclass(frozen=True)
class Dividing(LocalRule):
    """The remainder so far and the next digit, divided by the second operand; the state is the remainder.

    Attributes:
        base: Number of digits.
    """

    state_noun = "remainder"
    operands = ("operand 1",)
    constants = ("operand 2",)
    least_constant = 1
    answers = ("quotient", "remainder")
    along = "index"

    base: int = 10

    @property
    def num_states(self) -> int:  # type: ignore[override]
        return self.base - 1

    def step(
        self, state: Tensor, digits: Sequence[Tensor], constants: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        total = state * self.base + digits[0]
        remainder = total % constants[0]
        return remainder, [total // constants[0], remainder]

    def identities(self) -> tuple[Identity, ...]:
        states = self.num_states
        quotient = share("quotient", states, times_constant=True)
        return (
            carried_sum(
                "operand 1 = operand 2 * quotient + last remainder", states, [share("operand 1", states)], [quotient]
            ),
            CarryIdentity(
                "each remainder is what is left of the digits so far, below operand 2",
                "remainder",
                tuple(range(states)),
                "constant",
            ),
        )


@dataclass(frozen=True)
class Division(DigitTask):
    """Divides a number by one digit: `1234/7` has the target `01157462`, the answer is 176 r 2.

    The target is long division as it is done by hand: for each digit of the number, from the most significant down,
    the digit of the *quotient* and then the *remainder* so far: 1/7 is 0 r 1, 12/7 is 1 r 5, 53/7 is 7 r 4, 44/7 is
    6 r 2. The answer is the quotient, ` r ` and the last remainder, 0 or not. A shape is the number's length; the
    divisor is always a single token, and not 0.

    Attributes:
        max_length: Longest training length, in digits of the number.
        base: Number of digits: `0` to `9`, then `a` to `z`.
    """

    signs: ClassVar[str] = "/"
    answers_in_turn: ClassVar[bool] = True
    downwards: ClassVar[bool] = True

    max_length: int = 6
    base: int = 10

    @property
    def operator(self) -> str:
        return "/"

    def operand_lengths(self, shape: Shape) -> tuple[int, ...]:
        return shape[0], 1

    def widths(self, shape: Shape) -> tuple[int, ...]:
        return shape[0], 1

    def answer_length(self, shape: Shape) -> int:
        return 2 * shape[0]

    def answers(self, shape: Shape) -> Sequence[tuple[str, int]]:
        return [("quotient", shape[0]), ("remainder", shape[0])]

    def training_shapes(self) -> tuple[Shape, ...]:
        return tuple((n,) for n in range(1, self.max_length + 1))

    def num_problems(self, shape: Shape) -> int:
        return self.base ** shape[0] * (self.base - 1)

    def training_operands(self, generator: Generator, batch: int, shape: Shape) -> list[Tensor]:
        number, divisor = super().training_operands(generator, batch, shape)
        other = torch.randint(1, self.base, (batch, 1), generator=generator)
        return [number, torch.where(divisor == 0, other, divisor)]

    def draw(self, generator: Generator, batch: int, shape: Shape, suite: str) -> list[Tensor]:
        length = shape[0]
        number = uniform_digits(generator, batch, length, self.base)
        divisor = torch.randint(1, self.base, (batch, 1), generator=generator)
        if suite == CARRY:
            # What corresponds to a carry is the remainder: runs of one digit make it go round, or stay.
            nines = torch.full_like(number, self.base - 1)
            repeated = torch.randint(1, self.base, (batch, 1), generator=generator).expand(-1, length)
            run = torch.where(random_run(generator, batch, length), repeated, number)
            # A multiple of the divisor leaves no remainder in the end.
            quotient, _ = self._divided(number, divisor)
            multiple = carried(quotient * divisor, self.base)[:, :length]
            number = choose_rows(generator, nines, repeated, run, multiple)
        elif suite == ZEROS:
            number = with_zeros(generator, number)
        return [number, divisor]

    def _divided(self, number: Tensor, divisor: Tensor) -> tuple[Tensor, Tensor]:
        """Quotient, and remainder from the most significant place down to each, `[batch, length]`."""
        # All places at once: what is known of twice as many digits above each place, over and over.
        remainder, weight, known = number % divisor, self.base % divisor, 1
        while known < number.shape[1]:
            above = weight * remainder[:, known:]
            remainder = torch.cat([remainder[:, :-known] + above, remainder[:, -known:]], dim=1) % divisor
            weight, known = weight * weight % divisor, 2 * known
        above = torch.nn.functional.pad(remainder[:, 1:], (0, 1))
        return (above * self.base + number) // divisor, remainder

    def compute(self, operands: Sequence[Tensor]) -> Tensor:
        return torch.stack(self._divided(*operands), dim=2).flip(1).flatten(1)

    def parse(self, text: str) -> tuple[Shape, str]:
        number, divisor = self.operands(text, "a division: write a number, '/' and one digit, as in 1234/7")
        if len(divisor) != 1:
            raise ProblemError(f"operand 2 of {quoted(text)} has {len(divisor)} digits: this task divides by one digit")
        if divisor == self.symbols[0]:
            raise ProblemError(f"{quoted(text)} divides by 0: the divisor is a digit from 1")
        return (len(number),), self.written(number, divisor)

    def solve(self, source: str) -> str:
        number, sign = self.split(source)
        divisor, remainder, written = int(sign, self.base), 0, []
        for digit in number:
            quotient, remainder = divmod(remainder * self.base + int(digit, self.base), divisor)
            written += [DIGITS[quotient], DIGITS[remainder]]
        return "".join(written)

    def answer(self, target: str) -> str:
        if not target or len(target) % 2 or target.strip(self.symbols[: self.base]):
            return target
        quotient = target[::2].lstrip(self.symbols[0]) or self.symbols[0]
        return f"{quotient} r {target[-1]}"

    def local_rule(self) -> LocalRule | None:
        return Dividing(self.base)
