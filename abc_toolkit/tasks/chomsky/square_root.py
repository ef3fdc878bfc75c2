"""The square root of a binary number, rounded down."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from math import isqrt, prod
from typing import ClassVar

import torch
from torch import Generator, Tensor
from torch.nn import functional

from abc_toolkit.layout import END, START, LayoutDescription, Repeat, Token
from abc_toolkit.linear import symbol
from abc_toolkit.tasks.base import ProblemError
from abc_toolkit.tasks.chomsky.tables import StringTable
from abc_toolkit.tasks.digits.base import CARRY as CARRIES
from abc_toolkit.tasks.digits.base import ZEROS
from abc_toolkit.tasks.digits.rule import LocalRule, Read
from abc_toolkit.tasks.digits.sampling import carried, choose_rows, random_run, with_zeros
from abc_toolkit.tasks.digits.tables import COMMA
from abc_toolkit.tasks.lengths import Shape

INPUT = "operand 1"
DIGIT = "digit"
CARRY = "carry"
ROOT = "root"
_LESS, _EQUAL, _GREATER = range(3)
_MARKED = 4  # the number of the symbol for a 0 at place 0
_CARRIES = 6  # and for a carry of 0


@dataclass(frozen=True)
class _Run:
    """What a run has read, as numbers of one shape. The fields are those of the rule's state, with their sizes.

    Attributes:
        place: The place, up to 3 for all further ones.
        bit: The guessed bit of the root.
        carry: The carry.
        order: The order of excess and root so far.
        excess: The bits of the excess above, at the last two places, as one number.
        trial: The bit of the trial root above, at the last place.
        ended: Whether the bit of the root has been read, and is 1.
        over: The bit of the trial root that was written last; at the end of a row there is none.
    """

    place: Tensor
    bit: Tensor
    carry: Tensor
    order: Tensor
    excess: Tensor
    trial: Tensor
    ended: Tensor
    over: Tensor


_SIZES = (4, 2, 2, 3, 4, 2, 2, 2)
_NEVER = (3, 0, 0, _GREATER, 0, 0, 1, 0)  # a state from which no run counts
_DIGITS = (6, 6, 6)  # of the operands: the base of each


def _state(run: _Run) -> Tensor:
    number = torch.zeros_like(run.place)
    for size, part in zip(_SIZES, vars(run).values(), strict=True):
        number = number * size + part
    return number


def _run(state: Tensor) -> _Run:
    parts: list[Tensor] = []
    for size in reversed(_SIZES):
        parts.append(state % size)
        state = state // size
    return _Run(*reversed(parts))


@lru_cache
def _reached() -> tuple[Tensor, Tensor, Tensor]:
    """The states of runs that are reached, and of each the next state and what is written, `[state, digits]`."""
    starts = [(0, bit, 1, _EQUAL, 0, 0, 0, 0) for bit in (0, 1)]
    found = [int(_state(_Run(*map(torch.tensor, start)))) for start in starts]
    digits = torch.cartesian_prod(*map(torch.arange, _DIGITS)).unbind(1)
    steps: list[tuple[Tensor, Tensor]] = []
    for state in found:  # grows by the states that are reached
        after, written = _step(_run(torch.full_like(digits[0], state)), digits)
        steps.append((after, torch.stack(written, dim=1)))
        found += [other for other in dict.fromkeys(after.tolist()) if other not in found]
    number = torch.zeros(prod(_SIZES), dtype=torch.long)
    number[found] = torch.arange(len(found))
    following, symbols = (torch.stack(part).reshape(len(found), *_DIGITS, -1) for part in zip(*steps, strict=True))
    return torch.tensor(found), number[following[..., 0]], symbols


def _step(run: _Run, digits: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The next state, and the symbols that are written: digit, carry, and bit of the root."""
    token, above, end = digits[0].clamp(max=1), digits[1], digits[2].clamp(max=1)
    low = run.place < 2
    # Four times the excess above, and of four times the root so far the digits or their complements.
    excess = torch.where(low, 1 - token, run.excess // 2)
    trial = torch.where(low, 0, torch.where(run.place == 2, run.bit, run.trial))
    total = excess + torch.where(low, 0, torch.where(run.bit == 1, trial, 1 - trial)) + run.carry
    # The digit above, and the one that the order of excess and root follows from.
    marked = above >= _MARKED
    mine, its = above % 2, torch.where(marked, 0, above // 2)
    mine = torch.where(end == 1, 1, mine)
    other = torch.where(run.place == 1, run.bit, its)
    sign = mine ^ run.bit
    order = torch.where(sign > other, _GREATER, torch.where(sign < other, _LESS, run.order))
    place, last = (run.place + 1).clamp(max=3), run.excess % 2 * 2 + mine
    after = (place, run.bit, total // 2, order, last, its, run.ended | end, trial)
    # The row above has its mark at place 0, and there is one if its bit of the root is 1.
    bad = (low & (its == 1)) | (run.ended == 1) | (marked & (run.place != 0))
    bad |= (run.place == 0) & ~marked & (run.bit == 1)
    state = _state(_Run(*(torch.where(bad, never, part) for never, part in zip(_NEVER, after, strict=True))))
    shown = torch.where(run.place == 0, _MARKED, 2 * trial) + total % 2
    return state, [shown, _CARRIES + total // 2, total % 2]


class DigitByDigit(LocalRule):
    """In each row, four times the excess above, plus or minus four times the root so far, less the row's two bits.

    The bit of the root above comes at the end of its row, and decides whether the root is added: the rule guesses it.

    A row holds an excess E and a root Q with `E` from `-2Q - 1` to `2Q` (less one bit at the end of Q); other rows do
    not occur, and no run over them counts.
    """

    operands = (INPUT, "digit above", "root above")
    answers = (DIGIT, CARRY, ROOT)
    rows = True
    starts = (0, 1)

    def __init__(self) -> None:
        self._runs, self._next, self._written = _reached()
        self.num_states = len(self._runs)

    def read(self, name: str) -> Read:
        own = {"digit above": Read(DIGIT, row=1), "root above": Read(ROOT, row=1)}
        return own.get(name, Read(name, row=0))

    def step(
        self, state: Tensor, digits: Sequence[Tensor], constants: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        which = (state, *digits)
        return self._next[which], list(self._written[which].unbind(-1))

    def ends_well(self, state: Tensor) -> Tensor:
        run = _run(self._runs[state])
        return (run.order != _GREATER) & (run.ended == run.bit) & (run.over == 0)


@dataclass(frozen=True)
class SquareRoot(StringTable):
    """The square root of a binary number, rounded down: `1101` has the target `5-0-1-1,5-1-2+1,`, the answer is 11.

    The bits of the number are taken in pairs, from its most significant end, and each pair gives a bit of the root.
    Row j of the target holds an *excess*: the square of `2 Q + 1`, less the number that the first j + 1 pairs make up,
    less 1, where Q is the root's first j bits. If it is negative, a 1 can follow Q. It is written in two's complement,
    least significant digit first, and so the last digit of a row is a bit of the root. From one row to the next

        excess = 4 * excess above + 4 * Q + 4 - pair     if the bit of the root above is 1, and
        excess = 4 * excess above - 4 * Q - pair         if it is 0, as above the first row.

    A digit of a row shows a bit of the excess, and 2 is added where 4 Q has a 1; 4 is added to the first digit, so that
    the third one of the next row knows its place. Each digit but the last one is followed by what is carried, `+` for 1
    and `-` for 0. A comma ends a row.

    Attributes:
        max_length: Longest training length, in bits.
    """

    characters: ClassVar[str] = "012345-+,"
    alphabets: ClassVar[dict[str, str]] = {INPUT: "01", DIGIT: "012345", CARRY: "-+", ROOT: "01"}

    base = 6
    max_length: int = 10

    def sizes(self, shape: Shape) -> tuple[int, ...]:
        count = (shape[0] + 1) // 2
        return count, count + 2, 2 - shape[0] % 2

    def shape_of(self, sizes: Shape) -> Shape | None:
        count, _, bits = sizes
        shape = (2 * count - 2 + bits,)
        return shape if self.sizes(shape) == sizes else None

    @property
    def least_sizes(self) -> tuple[int, ...]:
        return 1, 3, 1

    def answer_length(self, shape: Shape) -> int:
        count, *_ = self.sizes(shape)
        return count * (2 * count + 4)

    def describe_layout(self, sizes: Shape) -> LayoutDescription:
        count, width, bits = sizes
        if bits > 2:
            raise ProblemError("the first pair has one bit or two")
        i, j = symbol("i"), symbol("j")
        high, low = Token(INPUT, 1, 0, 0, 1), Token(INPUT, 0, 1, 0, 0)
        pair = (Token(INPUT, 1, 0, i + 1, 1), Token(INPUT, 0, 1, i + 1, 0))
        cells = (Token(DIGIT, j, width - 1 - j, i), Token(CARRY, j, width - 1 - j, i))
        row = (Repeat(width - 1, "j", cells), Token(ROOT, width - 1, 0, i), Token(COMMA, width, -1, i))
        return LayoutDescription(
            (INPUT, START, DIGIT, CARRY, ROOT, COMMA, END),
            (*((high, low) if bits > 1 else (low,)), Repeat(count - 1, "i", pair)),
            Token(START, 0, width - 1),
            (Repeat(count, "i", row), Token(END, 0, width - 1, count)),
        )

    def draw(self, generator: Generator, batch: int, shape: Shape, suite: str) -> list[Tensor]:
        length = shape[0]
        bits = torch.randint(0, 2, (batch, length), generator=generator)
        if suite == ZEROS:
            return [with_zeros(generator, bits)]
        if suite == CARRIES:
            # Squares, and numbers beside them; all ones, and runs of ones.
            root = torch.randint(0, 2, (batch, (length + 1) // 2), generator=generator)
            width = root.shape[1]
            parts = [functional.pad(root * root[:, [place]], (place, width - place)) for place in range(width)]
            square = carried(torch.stack(parts).sum(dim=0), 2)[:, :length]
            beside = square.clone()
            beside[:, 0] ^= 1
            ones = torch.ones_like(bits)
            return [choose_rows(generator, square, beside, ones, bits | random_run(generator, batch, length))]
        while (zero := ~bits.any(dim=1)).any():  # numbers from 1 on, as in the benchmark
            bits[zero] = torch.randint(0, 2, (int(zero.sum()), length), generator=generator)
        return [bits]

    def compute(self, operands: Sequence[Tensor]) -> Tensor:
        bits = operands[0]
        count = (bits.shape[1] + 1) // 2
        pairs = functional.pad(bits, (0, 2 * count - bits.shape[1])).unflatten(1, (count, 2)).flip(1)
        nothing = torch.zeros_like(bits[:, 0])
        excess, trial, bit = [nothing] * (count + 2), [nothing] * (count + 2), nothing
        comma, rows = torch.full_like(nothing, self.characters.index(",")), []
        for pair in pairs.unbind(1):
            trial = [nothing, nothing, bit, *trial[2:-1]][: count + 2]
            carry, above, excess = torch.ones_like(nothing), excess, []
            for place, digit in enumerate(trial):
                own = 1 - pair[:, place] if place < 2 else above[place - 2]
                total = own + carry + (nothing if place < 2 else 1 - (digit ^ bit))
                carry = total // 2
                excess.append(total % 2)
                rows += [(_MARKED if place == 0 else 2 * digit) + total % 2, _CARRIES + carry]
            bit = excess[-1]
            rows = [*rows[:-2], bit, comma]
        return torch.stack(rows, dim=1)

    def parse(self, text: str) -> tuple[Shape, str]:
        return (len(self.checked(text, self.alphabets[INPUT], "the number")),), text

    def solve(self, source: str) -> str:
        count = (len(source) + 1) // 2
        width, mask = count + 2, 4 * 2**count - 1
        source, above, rows = source.zfill(2 * count), 0, []
        for end in range(2, 2 * count + 1, 2):
            number = int(source[:end], 2)
            root = isqrt(number >> 2)
            excess = ((2 * root + 1) ** 2 - number - 1) & mask
            # What is carried in a sum is seen where it differs from the sum without carries.
            one = (above << 2 & mask) | (3 - number % 4)
            other = ((root if root % 2 and end > 2 else ~root) << 2) & mask
            carries = one ^ other ^ (one + other + 1)
            shown = f"{excess:0{width}b}"[::-1], f"{root << 2:0{width}b}"[::-1], f"{carries:0{width + 1}b}"[::-1]
            digits = [str(int(low) + 2 * int(high)) for low, high in zip(*shown[:2], strict=True)]
            digits[0] = "45"[int(digits[0])]
            signs = ["-+"[int(carry)] for carry in shown[2][1:]]
            rows.append("".join(chain.from_iterable(zip(digits, signs, strict=True)))[:-1])
            above = excess
        return "".join(f"{row}," for row in rows)

    def rows(self, target: str) -> list[str]:
        """The rows of a target; none if it is no table of such rows."""
        *rows, rest = target.split(",")
        good = not rest and not any(row.strip(self.characters) for row in rows)
        return rows if good and all(len(row) == 2 * len(rows) + 3 for row in rows) else []

    def answer(self, target: str) -> str:
        return "".join(row[-1] for row in self.rows(target)) or target

    def local_rule(self) -> LocalRule | None:
        return DigitByDigit()
