"""Carrying out the actions on a stack."""

from dataclasses import dataclass
from itertools import chain, product
from typing import ClassVar

import torch
from torch import Generator, Tensor

from abc_toolkit.tasks.base import ProblemError, quoted
from abc_toolkit.tasks.chomsky.tables import ABSENT, CELL, INPUT, Neighbours, SquareTable
from abc_toolkit.tasks.digits.base import CARRY, ZEROS
from abc_toolkit.tasks.lengths import Shape


@dataclass(frozen=True)
class StackManipulation(SquareTable):
    """Pushes and pops bits: `01342` has the target `,02222,10222,01022,10102,01022`, the answer is `010200`.

    The input is a stack of bits, bottom first, and actions: 2 pops, 3 pushes 0, and 4 pushes 1; a pop from the empty
    stack does nothing. Row i of the target is the stack after i tokens, top first, and 2 in the cells beyond its
    bottom: a bit is pushed as by an action. The answer is the last stack, 2 as its end, and zeros up to one token more
    than the input has.

    The benchmark's inputs of more than one token hold an action; here there may be none.

    Attributes:
        max_length: Longest training length, in tokens of the input.
    """

    characters: ClassVar[str] = ",01234"
    alphabets: ClassVar[dict[str, str]] = {INPUT: "01234", CELL: "012"}

    base = 6
    max_length: int = 10

    def cell(self, above: Neighbours) -> Tensor:
        zero, one, empty = self.numbers_of("012")
        token = above.token
        pushed = torch.where((token == one) | (token == self.numbers_of("4")), one, zero)
        pushed = torch.where(above.column == 0, pushed, torch.where(above.left == ABSENT, empty, above.left))
        popped = torch.where(above.right == ABSENT, empty, above.right)
        return torch.where(token == self.numbers_of("2"), popped, pushed)

    def occurs(self, above: Neighbours) -> Tensor:
        zero, one = self.numbers_of("01")
        filled = (above.own == zero) | (above.own == one)
        below = (above.right == zero) | (above.right == one)
        # Cells are filled from the first on, and the last one is still free. The first token of all is a bit.
        good = ~(below & ~filled) & ~((above.token != ABSENT) & (above.right == ABSENT) & filled)
        first = (above.column == 0) & (above.own == ABSENT)
        return good & (~first | (above.token == zero) | (above.token == one))

    def num_problems(self, shape: Shape) -> int:
        return sum(2**bits * 3 ** (shape[0] - bits) for bits in range(1, shape[0] + 1))

    def all_operands(self, shape: Shape) -> list[Tensor]:
        bits, actions = (self.numbers_of(letters).tolist() for letters in ("01", "234"))
        parts = [product(*[bits] * size, *[actions] * (shape[0] - size)) for size in range(1, shape[0] + 1)]
        return [torch.tensor(list(chain.from_iterable(parts))).flip(1)]

    def draw(self, generator: Generator, batch: int, shape: Shape, suite: str) -> list[Tensor]:
        length = shape[0]
        tokens = torch.arange(length)
        bits = torch.randint(0, 2, (batch, length), generator=generator)
        actions = torch.randint(2, 5, (batch, length), generator=generator)
        size = torch.randint(1, max(length, 2), (batch, 1), generator=generator)
        if suite == CARRY:
            # Long runs of pushes and pops: the stack is emptied, or filled to its last cell.
            size = torch.where(torch.rand(batch, 1, generator=generator) < 0.25, length, size)
            turn = torch.randint(1, length + 1, (batch, 1), generator=generator)
            pops = (tokens < turn) ^ (torch.rand(batch, 1, generator=generator) < 0.5)
            actions = torch.where(pops, 2, torch.randint(3, 5, (batch, length), generator=generator))
        elif suite == ZEROS:
            bits = bits * (torch.rand(batch, length, generator=generator) < 0.2)
            actions = torch.where(torch.rand(batch, length, generator=generator) < 0.5, 2, 3)
        letters = self.numbers_of("01234")
        return [letters[torch.where(tokens < size, bits, actions)].flip(1)]

    def parse(self, text: str) -> tuple[Shape, str]:
        self.checked(text, self.alphabets[INPUT], "the string")
        actions = text.lstrip("01")
        if len(actions) == len(text):
            raise ProblemError(f"{quoted(text)} begins with an action: write the bits of a stack first, as in 0134")
        if set(actions) & set("01"):
            raise ProblemError(f"{quoted(text)} has a bit behind an action: push it by 3 or 4")
        return (len(text),), text

    def solve(self, source: str) -> str:
        stack: list[str] = []
        rows = []
        for token in source:
            if token == "2":
                del stack[-1:]
            else:
                stack.append("01"["14".count(token)])
            rows.append("".join(reversed(stack)).ljust(len(source), "2"))
        return "".join(f",{row}" for row in rows)

    def answer(self, target: str) -> str:
        rows = self.rows(target)
        if not rows:
            return target
        return f"{rows[-1].rstrip('2')}2".ljust(len(rows) + 1, "0")
