"""Parity of a bit string."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import xor
from typing import Literal

import torch
from torch import Generator, Tensor

from abc_toolkit.layout import ANSWER
from abc_toolkit.tasks.base import UNIFORM, quoted
from abc_toolkit.tasks.digits.base import CARRY, UNEQUAL, ZEROS, DigitTask
from abc_toolkit.tasks.digits.identity import Identity, RunningIdentity
from abc_toolkit.tasks.digits.rule import LocalRule
from abc_toolkit.tasks.digits.sampling import choose_rows, random_run, with_zeros
from abc_toolkit.tasks.lengths import Shape


class Running(LocalRule):
    """The exclusive or of the bit and the state; the state is the last answer."""

    state_noun = "parity"
    operands = ("operand 1",)
    num_states = 2

    def step(
        self, state: Tensor, digits: Sequence[Tensor], constants: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        total = (digits[0] + state) % 2
        return total, [total]

    def identities(self) -> tuple[Identity, ...]:
        return (RunningIdentity("each bit is the parity of the bits so far", "operand 1", ANSWER, (0, 1), 2),)


@dataclass(frozen=True)
class Parity(DigitTask):
    """Tells whether a bit string holds an odd number of ones.

    As a scratchpad, the target holds the exclusive or of the bits so far, from the last bit to the first, and the
    answer is its last bit: `10110` has the target `01001`, the answer is 1. As a label, the target is the answer
    alone: `10110` has the target `1`. A shape is the number of bits.

    Attributes:
        max_length: Longest training length, in bits.
        form: `scratchpad` (running exclusive or) or `label` (one bit, which no window can help: the failing case).
    """

    base = 2

    max_length: int = 20
    form: Literal["scratchpad", "label"] = "scratchpad"

    def operand_lengths(self, shape: Shape) -> tuple[int, ...]:
        return shape

    def widths(self, shape: Shape) -> tuple[int, ...]:
        return shape

    def answer_length(self, shape: Shape) -> int:
        return shape[0] if self.form == "scratchpad" else 1

    def training_shapes(self) -> tuple[Shape, ...]:
        return tuple((n,) for n in range(1, self.max_length + 1))

    def draw(self, generator: Generator, batch: int, shape: Shape, suite: str) -> list[Tensor]:
        bits = torch.randint(0, 2, (batch, shape[0]), generator=generator)
        if suite in (UNIFORM, UNEQUAL):
            return [bits]
        if suite == CARRY:
            # What corresponds to a carry is the running bit: ones flip it at every step.
            ones = torch.ones_like(bits)
            alternating = (torch.arange(shape[0]) + bits[:, :1]) % 2
            run = torch.where(random_run(generator, batch, shape[0]), ones, bits)
            return [choose_rows(generator, ones, alternating, run)]
        assert suite == ZEROS
        return [with_zeros(generator, bits)]

    def compute(self, operands: Sequence[Tensor]) -> Tensor:
        running = operands[0].cumsum(1) % 2
        return running if self.form == "scratchpad" else running[:, -1:]

    def parse(self, text: str) -> tuple[Shape, str]:
        bits = self.digits(text, f"the bit string {quoted(text)}" if text else "the bit string")
        return (len(bits),), bits

    def solve(self, source: str) -> str:
        running = "".join(map(str, accumulate(map(int, reversed(source)), xor)))
        return running if self.form == "scratchpad" else running[-1]

    def answer(self, target: str) -> str:
        return target[-1:]

    def local_rule(self) -> LocalRule | None:
        return Running() if self.form == "scratchpad" else None
