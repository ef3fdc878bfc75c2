"""Tasks on digit strings."""

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal, Inexact, InvalidOperation, localcontext
from functools import lru_cache
from itertools import chain, cycle, product
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from abc_toolkit.errors import UserError, check_literals
from abc_toolkit.hashing import scatter
from abc_toolkit.layout import ANSWER, END, START, Layout, LayoutDescription, Positions, digit_description
from abc_toolkit.tasks.base import SMALL, TRAINING, UNIFORM, Certifiable, HeldOut, ProblemError, Problems, quoted
from abc_toolkit.tasks.digits.rule import LocalRule
from abc_toolkit.tasks.digits.sampling import pad, pick_rows
from abc_toolkit.tasks.lengths import Shape
from abc_toolkit.vocabulary import BOS, EOS, NUM_SPECIAL

ZERO = "zero"  # the segment of a zero that is no operand's
UNEQUAL = "unequal"
CARRY = "carry"
ZEROS = "zeros"
SETS = (UNIFORM, UNEQUAL, CARRY, ZEROS)
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_CACHED_TOKENS = 2048  # far beyond training lengths; a cache full of such layouts takes half a gigabyte


def _digits(source: Tensor, positions: Positions, segment: str, along: str) -> Tensor:
    """Digits `[batch, length]` of a segment in the order of a coordinate."""
    tokens = positions.within(segment).nonzero()[:, 0]
    return source[:, tokens[positions.coordinates[along][tokens].argsort()]] - NUM_SPECIAL


@dataclass(frozen=True)
class DigitTask(Certifiable, HeldOut):
    """A task whose operands are digit strings and whose target is a digit string, least significant first.

    A subclass names its segments, draws its operands and computes its answer; operands are tensors of digit values,
    least significant first: `[batch, length]` as they are drawn, `[batch, width]` once they are padded.

    Attributes:
        base: Number of digits; `symbols[:base]` are the digits, `symbols[0]` is zero.
        signs: Characters of its strings that are no digits.
        answers_in_turn: Whether the target's segments are written in turn, one token of each.
        downwards: Whether they are written from the most significant digit down.
        end: `token`, if the target ends with `EOS`, or `layout`, if the layout says where it ends.
    """

    base = 10  # without an annotation, so that it is the last field of a task that has it as a field
    end = "token"
    suites = SETS
    signs: ClassVar[str] = ""
    answers_in_turn: ClassVar[bool] = False
    downwards: ClassVar[bool] = False

    @property
    def symbols(self) -> str:  # type: ignore[override]
        return DIGITS[: self.base] + self.signs

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise UserError(f"max_length {self.max_length}: give at least 1")
        if not 2 <= self.base <= len(DIGITS):
            raise UserError(f"base {self.base}: give at least 2 and at most {len(DIGITS)}, as there are so many digits")
        check_literals(self)

    @abc.abstractmethod
    def operand_lengths(self, shape: Shape) -> tuple[int, ...]:
        """Digits of each operand before it is padded."""

    @abc.abstractmethod
    def widths(self, shape: Shape) -> tuple[int, ...]:
        """Digits of each operand as it stands in the source."""

    def segments(self, shape: Shape) -> Sequence[tuple[str, int]]:
        """Name and length of each segment of the source. Those named `operand ...` hold digits."""
        widths = self.widths(shape)
        if self.in_turn:
            return [("operator", 1), *((f"operand {i}", max(widths)) for i in range(1, len(widths) + 1))]
        operands = [(f"operand {i}", width) for i, width in enumerate(widths, 1)]
        lead = [(ZERO, 1)] if self.lead else []
        return [*lead, *(operands if len(operands) == 1 else [operands[0], ("operator", 1), operands[1]])]

    @abc.abstractmethod
    def answer_length(self, shape: Shape) -> int:
        """Tokens of the target, `EOS` not counted."""

    def answers(self, shape: Shape) -> Sequence[tuple[str, int]]:
        """Name and length of each segment of the target."""
        return [(ANSWER, self.answer_length(shape))]

    @abc.abstractmethod
    def draw(self, generator: Generator, batch: int, shape: Shape, suite: str) -> list[Tensor]:
        """Operands of one of `SETS`, `[batch, length]` each."""

    @abc.abstractmethod
    def compute(self, operands: Sequence[Tensor]) -> Tensor:
        """The target, as numbers of symbols `[batch, answer_length]` in their order, of operands `[batch, width]`."""

    def evaluation_shapes(self, length: int, suite: str, generator: Generator) -> tuple[Shape, ...]:
        """One shape; for `unequal`, where no second operand can have another length, eight lengths up to it."""
        if suite != UNEQUAL:
            return ((length,),)
        return tuple((n,) for n in torch.randint(1, length + 1, (8,), generator=generator).tolist())

    def num_problems(self, shape: Shape) -> int:
        return self.base ** sum(self.operand_lengths(shape))

    def all_operands(self, shape: Shape) -> list[Tensor]:
        """The operands of all problems of a shape, `[problem, length]` each."""
        lengths = self.operand_lengths(shape)
        values = [self.values(f"operand {number}") for number, length in enumerate(lengths, 1) for _ in range(length)]
        symbols = torch.tensor(list(product(*values)), dtype=torch.long).reshape(-1, len(values)) - NUM_SPECIAL
        return list(symbols.split(list(lengths), dim=1))

    @property
    def lead(self) -> str:
        """The zero that the source begins with, which is no operand's; nothing, if it begins with an operand."""
        return ""

    @property
    def operator(self) -> str:
        """The character between two operands."""
        return ""

    @property
    def in_turn(self) -> bool:
        """Whether two operands are written digit by digit in turn, the operator first; a single digit is repeated."""
        return False

    def training_operands(self, generator: Generator, batch: int, shape: Shape) -> list[Tensor]:
        """Operands of the mixture that is trained on, `[batch, length]` each.

        Half of the rows are uniform over all digit strings, so that leading zeros occur; the other half is made up of
        the evaluation sets' kinds in equal parts.
        """
        lengths = self.operand_lengths(shape)
        draws = [[torch.randint(0, self.base, (batch, length), generator=generator) for length in lengths]]
        draws += [self.draw(generator, batch, shape, name) for name in SETS]
        kind = (torch.randint(0, 2 * len(SETS), (batch,), generator=generator) - len(SETS) + 1).clamp(min=0)
        return [pick_rows(kind, versions) for versions in zip(*draws, strict=True)]

    def sample(self, generator: Generator, batch: int, shape: Shape, suite: str = TRAINING) -> Problems:
        if suite != TRAINING:
            return self.problems(shape, self.draw(generator, batch, shape, suite))
        return self.problems(shape, self.training_operands(generator, batch, shape))

    def problems(self, shape: Shape, operands: Sequence[Tensor]) -> Problems:
        """Strings of operands `[batch, length]`, and their answers."""
        batch = len(operands[0])
        operands = [pad(digits, width) for digits, width in zip(operands, self.widths(shape), strict=True)]
        operator = self.vocabulary.encode(self.operator).expand(batch, -1)
        tokens = [digits.flip(1) + NUM_SPECIAL for digits in operands]
        if self.in_turn:
            parts = [operator, torch.stack([digits.expand_as(tokens[0]) for digits in tokens], dim=2).flatten(1)]
        else:
            parts = [self.vocabulary.encode(self.lead).expand(batch, -1), tokens[0]]
            for digits in tokens[1:]:
                parts += [operator, digits]
        target = self.compute(operands) + NUM_SPECIAL
        if self.end == "token":
            target = torch.cat([target, torch.full((batch, 1), EOS)], dim=1)
        return Problems(shape, torch.cat(parts, dim=1), target)

    def holding(self, generator: Generator, shape: Shape, tokens: Mapping[int, int]) -> Problems:
        """Problems that are drawn and have certain tokens in their source; some of them may be no problems of the task.

        Args:
            generator: The only source of randomness.
            shape: Their shape.
            tokens: Token ids, by their number in the source.
        """
        problems = self.sample(generator, 4096, shape, UNIFORM)
        for number, token in tokens.items():
            problems.source[:, number] = token
        return self.problems(shape, self.numbers(problems))

    def numbers(self, problems: Problems) -> list[Tensor]:
        """The operands' digits, least significant first, `[batch, width]` each: problems of equal ones are equal."""
        positions, widths = self.layout(problems.shape).source, self.widths(problems.shape)
        named = enumerate(widths, 1)
        return [_digits(problems.source, positions, f"operand {i}", "place")[:, :width] for i, width in named]

    def keys(self, problems: Problems) -> Tensor:
        """A hash of the operands' values, whatever zeros they are padded with."""
        hashed = significant = torch.zeros(len(problems), dtype=torch.long)
        for number, digits in enumerate(self.numbers(problems)):
            places = torch.arange(digits.shape[1])
            hashed = hashed + (digits * scatter(places * 64 + 2 * number + 1)).sum(dim=1)
            significant = significant + ((places + 1) * (digits > 0)).amax(dim=1)
        enough = self.base ** significant.clamp(max=16).double() >= SMALL
        return torch.where(enough, scatter(hashed), -1)

    def num_tokens(self, shape: Shape) -> tuple[int, int]:
        return sum(length for _, length in self.segments(shape)), self.answer_length(shape) + (self.end == "token")

    def layout(self, shape: Shape) -> Layout:
        laid_out = _cached_layout if sum(self.num_tokens(shape)) <= _CACHED_TOKENS else _new_layout
        return laid_out(self, self.sizes(shape))

    def sizes(self, shape: Shape) -> tuple[int, ...]:
        """What the layout of a shape follows from."""
        return shape

    @property
    def least_sizes(self) -> tuple[int, ...]:
        """Least value of each size."""
        return (1,) * len(self.sizes(self.training_shapes()[0]))

    def describe_layout(self, sizes: Shape) -> LayoutDescription:
        """The layout of a problem's sizes: one, or, of symbols in their place, that of every problem.

        It may compute with sizes what is linear, and compare them; a proof for every length runs it on symbols.
        """
        return digit_description(
            self.segments(sizes),
            self.answers(sizes),
            self.in_turn,
            self.answers_in_turn,
            self.downwards,
            self.end == "token",
        )

    @property
    def literals(self) -> Mapping[str, str]:
        """The character that each segment holds which always holds the same."""
        found = {"operator": self.operator, ZERO: self.lead}
        return {segment: character for segment, character in found.items() if character}

    def values(self, segment: str) -> tuple[int, ...]:
        """Token ids that can stand in a segment."""
        special = {START: (BOS,), END: (EOS,)}
        if segment in special:
            return special[segment]
        symbols = self.literals.get(segment, self.symbols[: self.base] if segment.startswith("operand") else "")
        return tuple(self.vocabulary.encode(symbols or self.symbols).tolist())

    def local_rule(self) -> LocalRule | None:
        return None

    def answer(self, target: str) -> str:
        """What a target (without `EOS`) says: most significant digit first, no leading zeros."""
        return target[::-1].lstrip(self.symbols[0]) or target[:1]

    def digits(self, text: str, what: str) -> str:
        """`text` if it is a string of digits.

        Raises:
            ProblemError: If it is empty or holds another character.
        """
        if not text:
            raise ProblemError(f"{what} is empty")
        digits = self.symbols[: self.base]
        rest = text.lstrip(digits)
        if rest:
            raise ProblemError(f"{what} holds {rest[0]!r}, which is not one of the digits {digits}")
        return text

    def split(self, text: str) -> list[str]:
        """What stands to the sides of the operator; behind it, two operands that are written in turn."""
        if self.in_turn and text.startswith(self.operator):
            return [text[1::2], text[2::2]]
        return text.split(self.operator)

    def operands(self, text: str, wanted: str) -> list[str]:
        """The two operands in a text, as a person writes them or as they stand in the source.

        Args:
            text: The text.
            wanted: What it has to be, in words.

        Raises:
            ProblemError: If it is not.
        """
        parts = self.split(text)
        if len(parts) != 2:
            raise ProblemError(f"{quoted(text)} is not {wanted}")
        parts = [self.digits(part, f"operand {i} of {quoted(text)}") for i, part in enumerate(parts, 1)]
        if text.startswith(self.operator) and len(text) % 2 == 0:
            raise ProblemError(
                f"{quoted(text)} has an odd number of digits: two operands that are written in turn have as many each"
            )
        return parts

    def written(self, first: str, second: str) -> str:
        """The source of two operands that are padded already."""
        if self.in_turn:
            return self.operator + "".join(chain.from_iterable(zip(first, cycle(second), strict=False)))
        return f"{self.lead}{first}{self.operator}{second}"


def _new_layout(task: DigitTask, sizes: Shape) -> Layout:
    with torch.inference_mode(False):  # a layout that evaluation makes may be trained on later
        return task.describe_layout(sizes).layout()


_cached_layout = lru_cache(maxsize=4096)(_new_layout)


def exact_result(operation: Callable[[Any, Any], Any], first: str, second: str, num_digits: int, base: int = 10) -> str:
    """Digits of an operation's result, least significant first, zero-filled; exact, for oracles.

    It takes about linear time; Python's own integers take quadratic time to be read and written, and refuse to be so
    beyond 4,300 digits.

    Args:
        operation: Adds, subtracts and multiplies; its result is not negative.
        first: Digits of the one operand, most significant first.
        second: Digits of the other.
        num_digits: Digits of the result, at least.
        base: Of all of them.
    """
    exact = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[Inexact, InvalidOperation])
    with localcontext(exact):
        if base == 10:
            return str(operation(Decimal(first), Decimal(second))).zfill(num_digits)[::-1]
        # Numbers as polynomials: their digits stand so far apart that no coefficient of the result meets the next.
        longest = max(len(first), len(second))
        apart = len(str(2 * base**2 * longest))
        middle = "5".ljust(apart, "0")  # added to each coefficient, as some are negative
        spread = [Decimal("".join(str(DIGITS.index(digit)).zfill(apart) for digit in text)) for text in (first, second)]
        result = str(operation(*spread) + Decimal(middle * max(num_digits, 2 * longest)))
    digits, carry = [], 0
    for end in range(len(result), 0, -apart):
        carry, digit = divmod(int(result[max(0, end - apart) : end]) - int(middle) + carry, base)
        digits.append(DIGITS[digit])
    return "".join(digits).rstrip(DIGITS[0]).ljust(num_digits, DIGITS[0])


def fixed_width(length: int, width: int) -> int:
    """The width that an operand of a length is padded to.

    Raises:
        ProblemError: If it is longer than that.
    """
    if length > width:
        digits = f"{length} digits" if isinstance(length, int) else "some digits"  # of a symbol nothing can be shown
        raise ProblemError(f"an operand of {digits} does not fit the fixed width of {width}")
    return width


def check_numbers_below(limit: int | None, max_length: int) -> None:
    """Raises:
    UserError: If a limit on training numbers does not go with the longest training length.
    """
    if limit is not None and not 1 <= limit <= 10 ** min(max_length, 18):
        raise UserError(
            f"numbers_below {limit}: give a number from 1 to {10 ** min(max_length, 18)}, or a larger max_length"
        )
