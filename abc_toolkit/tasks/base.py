"""The contract of a task, and what tasks on digit strings share."""

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal, Inexact, InvalidOperation, localcontext
from functools import cached_property, lru_cache
from itertools import chain, cycle
from typing import Any, ClassVar, Literal, get_args, get_origin

import torch
from torch import Generator, Tensor

from abc_toolkit.errors import UserError
from abc_toolkit.layout import ANSWER, END, START, Layout, LayoutDescription, Positions, digit_description
from abc_toolkit.tasks.identity import Identity
from abc_toolkit.vocabulary import BOS, EOS, NUM_SPECIAL, Vocabulary

Shape = tuple[int, ...]
TRAINING = "training"
UNIFORM = "uniform"
UNEQUAL = "unequal"
CARRY = "carry"
ZEROS = "zeros"
SETS = (UNIFORM, UNEQUAL, CARRY, ZEROS)
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_CACHED_TOKENS = 2048  # far beyond training lengths; a cache full of such layouts takes half a gigabyte
_QUOTED = 40  # characters of a text that a message quotes


@dataclass(frozen=True)
class Problems:
    """A batch of problems of one shape.

    Attributes:
        shape: What sizes them.
        source: Token ids `[batch, source_length]`.
        target: Token ids `[batch, target_length]`, `EOS` last.
    """

    shape: Shape
    source: Tensor
    target: Tensor

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, item: slice | Tensor) -> "Problems":
        return Problems(self.shape, self.source[item], self.target[item])

    def to(self, device: torch.device) -> "Problems":
        """The same problems on a device."""
        return Problems(self.shape, self.source.to(device), self.target.to(device))


class ProblemError(UserError):
    """A problem as written by a user is not one of the task's; the message is one line that says why."""


@dataclass(frozen=True)
class Read:
    """Where a local rule finds the digits or symbols that it knows by a name.

    Attributes:
        segment: The segment of the tokens that hold them.
        row: How many rows above that of the predicted token they are; any row, if not given.
        shift: What a token's coordinate is above the place at which the rule reads it.
    """

    segment: str
    row: int | None = None
    shift: int = 0


class LocalRule(abc.ABC):
    """From place to place, what the next token of a target follows from: a finite-state transducer over places.

    At each place, from the least significant on (or, along `index`, from the most significant), it reads a digit of
    every operand (0 beyond its end), goes from one state to the next and writes a token of every segment of the target
    that has one there. Where the target ends, `EOS` follows. It may guess what only a later place decides: it begins in
    several states, and of its runs those count that end well; there is exactly one for every problem.

    Attributes:
        operands: Segments that give it a digit at each place.
        constants: Segments of one digit that it reads at every place.
        least_constant: Least value of such a digit.
        answers: Segments of the target.
        along: The coordinate by which it goes: `place`, or `index`, for which operands must be of equal width.
        num_states: Its states.
        starts: Those in which it may begin.
        rows: Whether it begins anew in each row of a table, whose rows above give it operands. All that these could
            hold is gone through, whether or not there are such rows.
    """

    operands: ClassVar[tuple[str, ...]]
    constants: ClassVar[tuple[str, ...]] = ()
    least_constant: ClassVar[int] = 0
    answers: ClassVar[tuple[str, ...]] = (ANSWER,)
    along: ClassVar[Literal["place", "index"]] = "place"
    num_states: int
    starts: ClassVar[tuple[int, ...]] = (0,)
    rows: ClassVar[bool] = False

    @abc.abstractmethod
    def step(
        self, state: Tensor, digits: Sequence[Tensor], constants: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """The next state, and the symbol that each of `answers` has here, by its number; all of one shape."""

    def ends_well(self, state: Tensor) -> Tensor:
        """Which states it may end in, boolean."""
        return torch.ones_like(state, dtype=torch.bool)

    def identities(self) -> tuple[Identity, ...]:
        """What each step keeps, so that runs are proved to say what is meant; none, if nothing is claimed."""
        return ()

    def read(self, name: str) -> Read:
        """Where it finds what it knows by a name: the segment of that name, unless it says otherwise."""
        return Read(name)


def _digits(source: Tensor, positions: Positions, segment: str, along: str) -> Tensor:
    """Digits `[batch, length]` of a segment in the order of a coordinate."""
    tokens = positions.within(segment).nonzero()[:, 0]
    return source[:, tokens[positions.coordinates[along][tokens].argsort()]] - NUM_SPECIAL


class Task(abc.ABC):
    """What is computed. Nothing else in the toolkit knows which task it serves.

    A task is an immutable value (a frozen dataclass), so that a run folder can record it by its fields.

    Attributes:
        symbols: Every character of its strings, the digits first.
        base: Number of digits; `symbols[:base]` are the digits, `symbols[0]` is zero.
        max_length: Longest training length: digits per operand, or bits.
    """

    symbols: str
    base: int = 10
    max_length: int

    @property
    def name(self) -> str:
        """The task's name in files and folders: its class name in lower case."""
        return type(self).__name__.lower()

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The task's token ids."""
        return Vocabulary(self.symbols)

    @abc.abstractmethod
    def training_shapes(self) -> tuple[Shape, ...]:
        """Every shape that is trained on, shortest first."""

    @abc.abstractmethod
    def num_problems(self, shape: Shape) -> int:
        """How many problems of a shape there are."""

    @abc.abstractmethod
    def evaluation_shapes(self, length: int, set_name: str, generator: Generator) -> tuple[Shape, ...]:
        """Shapes over which the samples of an evaluation set of a length are spread evenly.

        Args:
            length: Digits per operand.
            set_name: One of `SETS`.
            generator: Draws operand lengths where the set leaves them open.
        """

    @abc.abstractmethod
    def sample(self, generator: Generator, batch: int, shape: Shape, set_name: str = TRAINING) -> Problems:
        """Draws problems of one shape.

        Args:
            generator: The only source of randomness.
            batch: How many.
            shape: Their shape.
            set_name: `"training"` for the mixture trained on, or one of `SETS`.
        """

    @abc.abstractmethod
    def num_tokens(self, shape: Shape) -> tuple[int, int]:
        """Tokens of source and target, `EOS` included, of the problems of a shape, however long: none is made."""

    @abc.abstractmethod
    def numbers(self, problems: Problems) -> list[Tensor]:
        """The operands' digits, least significant first, `[batch, width]` each: problems of equal ones are equal."""

    @abc.abstractmethod
    def layout(self, shape: Shape) -> Layout:
        """Segment and coordinates of every token of the problems of a shape."""

    @abc.abstractmethod
    def parse(self, text: str) -> tuple[Shape, str]:
        """Shape and source of a problem as a person writes it.

        Raises:
            ProblemError: If it is not a problem of this task.
        """

    @abc.abstractmethod
    def solve(self, source: str) -> str:
        """The oracle: the target, without `EOS`, that belongs to a source, by other means than `sample`'s."""

    def local_rule(self) -> LocalRule | None:
        """The rule by which a proof goes from place to place; `None` if the task has none."""
        return None

    @abc.abstractmethod
    def answer(self, target: str) -> str:
        """What a target (without `EOS`) says, in natural order: most significant digit first, no leading zeros.

        A malformed target is rendered as it is, never repaired.
        """


@dataclass(frozen=True)
class DigitTask(Task):
    """A task whose operands are digit strings and whose target is a digit string, least significant first.

    A subclass names its segments, draws its operands and computes its answer; operands are tensors of digit values,
    least significant first: `[batch, length]` as they are drawn, `[batch, width]` once they are padded.

    Attributes:
        signs: Characters of its strings that are no digits.
        answers_in_turn: Whether the target's segments are written in turn, one token of each.
        downwards: Whether they are written from the most significant digit down.
    """

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
        for field in fields(self):
            choices = get_args(field.type) if get_origin(field.type) is Literal else ()
            if choices and getattr(self, field.name) not in choices:
                raise UserError(f"{field.name} {getattr(self, field.name)!r}: choose one of {', '.join(choices)}")

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
        return operands if len(operands) == 1 else [operands[0], ("operator", 1), operands[1]]

    @abc.abstractmethod
    def answer_length(self, shape: Shape) -> int:
        """Tokens of the target, `EOS` not counted."""

    def answers(self, shape: Shape) -> Sequence[tuple[str, int]]:
        """Name and length of each segment of the target."""
        return [(ANSWER, self.answer_length(shape))]

    @abc.abstractmethod
    def draw(self, generator: Generator, batch: int, shape: Shape, set_name: str) -> list[Tensor]:
        """Operands of one of `SETS`, `[batch, length]` each."""

    @abc.abstractmethod
    def compute(self, operands: Sequence[Tensor]) -> Tensor:
        """The target, as numbers of symbols `[batch, answer_length]` in their order, of operands `[batch, width]`."""

    def evaluation_shapes(self, length: int, set_name: str, generator: Generator) -> tuple[Shape, ...]:
        """One shape; for `unequal`, where no second operand can have another length, eight lengths up to it."""
        if set_name != UNEQUAL:
            return ((length,),)
        return tuple((n,) for n in torch.randint(1, length + 1, (8,), generator=generator).tolist())

    def num_problems(self, shape: Shape) -> int:
        return self.base ** sum(self.operand_lengths(shape))

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

    def sample(self, generator: Generator, batch: int, shape: Shape, set_name: str = TRAINING) -> Problems:
        if set_name != TRAINING:
            return self.problems(shape, self.draw(generator, batch, shape, set_name))
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
            parts = [tokens[0]]
            for digits in tokens[1:]:
                parts += [operator, digits]
        end = torch.full((batch, 1), EOS)
        target = torch.cat([self.compute(operands) + NUM_SPECIAL, end], dim=1)
        return Problems(shape, torch.cat(parts, dim=1), target)

    def numbers(self, problems: Problems) -> list[Tensor]:
        positions, widths = self.layout(problems.shape).source, self.widths(problems.shape)
        named = enumerate(widths, 1)
        return [_digits(problems.source, positions, f"operand {i}", "place")[:, :width] for i, width in named]

    def num_tokens(self, shape: Shape) -> tuple[int, int]:
        return sum(length for _, length in self.segments(shape)), self.answer_length(shape) + 1

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
            self.segments(sizes), self.answers(sizes), self.in_turn, self.answers_in_turn, self.downwards
        )

    @property
    def literals(self) -> Mapping[str, str]:
        """The character that each segment holds which always holds the same."""
        return {"operator": self.operator} if self.operator else {}

    def values(self, segment: str) -> tuple[int, ...]:
        """Token ids that can stand in a segment."""
        special = {START: (BOS,), END: (EOS,)}
        if segment in special:
            return special[segment]
        symbols = self.literals.get(segment, self.symbols[: self.base] if segment.startswith("operand") else "")
        return tuple(self.vocabulary.encode(symbols or self.symbols).tolist())

    def answer(self, target: str) -> str:
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
        return f"{first}{self.operator}{second}"


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


def shape_name(shape: Shape) -> str:
    """A shape as it stands in files, messages and tables, such as `6x6`."""
    return "x".join(map(str, shape))


def quoted(text: str) -> str:
    """A text as a message quotes it: its beginning, end and length where it is long."""
    if len(text) <= _QUOTED:
        return repr(text)
    shown = f"{text[: _QUOTED // 2]}...{text[-_QUOTED // 2 + 3 :]}"
    return f"{shown!r} ({len(text)} characters)"


def pad(digits: Tensor, width: int) -> Tensor:
    """Digits `[batch, length]` with zeros at the places up to a width; the very same ones if there is none."""
    missing = width - digits.shape[1]
    return torch.nn.functional.pad(digits, (0, missing)) if missing else digits


def carried(columns: Tensor, base: int = 10) -> Tensor:
    """Digits `[batch, width + 1]` of numbers given by what falls on each place, `[batch, width]`.

    All places at once, by carry lookahead.

    Args:
        columns: Integers of any size from 0. What is left to carry beyond the last place stays one element: a digit
            if the number has no more than `width + 1`, as sums of two numbers and multiples by one digit have.
        base: Number of digits.
    """
    digits = torch.nn.functional.pad(columns, (0, 1))
    places, above = digits[:, :-1], digits[:, 1:]
    # A place that holds at most twice the highest digit carries at most 1, and passes a carry on only if it holds that.
    while (places > 2 * (base - 1)).any():
        more = places // base
        places -= base * more
        above += more
    # Whether a place carries is up to the highest place, itself or below it, that does not hold the highest digit.
    decides = 2 * torch.arange(places.shape[1], device=digits.device) + (places > base - 1)
    above += decides.masked_fill_(places == base - 1, 0).cummax(1).values & 1
    places -= base * (places > base - 1)
    return digits


def fixed_width(length: int, width: int) -> int:
    """The width that an operand of a length is padded to.

    Raises:
        ProblemError: If it is longer than that.
    """
    if length > width:
        digits = f"{length} digits" if isinstance(length, int) else "some digits"  # of a symbol nothing can be shown
        raise ProblemError(f"an operand of {digits} does not fit the fixed width of {width}")
    return width


def uniform_digits(generator: Generator, batch: int, length: int, base: int = 10) -> Tensor:
    """Numbers of exactly `length` digits, `[batch, length]`; the leading digit is zero only in numbers of one digit."""
    digits = torch.randint(0, base, (batch, length), generator=generator)
    if length > 1:
        digits[:, -1] = torch.randint(1, base, (batch,), generator=generator)
    return digits


def digits_below(generator: Generator, batch: int, limit: int, length: int) -> Tensor:
    """Digits `[batch, length]` of numbers that are uniform over all below a limit."""
    numbers = torch.randint(0, limit, (batch, 1), generator=generator)
    return numbers // 10 ** torch.arange(length).clamp(max=18) % 10  # 10^19 is beyond 64 bits


def check_numbers_below(limit: int | None, max_length: int) -> None:
    """Raises:
    UserError: If a limit on training numbers does not go with the longest training length.
    """
    if limit is not None and not 1 <= limit <= 10 ** min(max_length, 18):
        raise UserError(
            f"numbers_below {limit}: give a number from 1 to {10 ** min(max_length, 18)}, or a larger max_length"
        )


def pairs_of_lengths(max_length: int) -> tuple[Shape, ...]:
    """All shapes of two operands of up to a length each, shortest first."""
    lengths = range(1, max_length + 1)
    return tuple(sorted(((n, m) for n in lengths for m in lengths), key=max))


def unequal_lengths(generator: Generator, length: int) -> tuple[Shape, ...]:
    """Shapes of one operand of a length above 1 and a shorter one, drawn; either way round."""
    shorter = torch.randint(1, length, (4,), generator=generator).tolist()
    return tuple(shape for n in shorter for shape in ((length, n), (n, length)))


def one_shorter(generator: Generator, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two operands `[batch, length]`, the one or the other with zeros from a place on that is drawn."""
    batch, length = first.shape
    kept = torch.randint(1, max(length, 2), (batch,), generator=generator)
    full = torch.full_like(kept, length)
    swap = torch.rand(batch, generator=generator) < 0.5
    return keep_places(first, torch.where(swap, kept, full)), keep_places(second, torch.where(swap, full, kept))


def keep_places(digits: Tensor, lengths: Tensor) -> Tensor:
    """Digits `[batch, length]` with zeros from place `lengths` `[batch]` upwards."""
    return digits * (torch.arange(digits.shape[1]) < lengths[:, None])


def random_run(generator: Generator, batch: int, length: int) -> Tensor:
    """A random run of places for each row, boolean `[batch, length]`."""
    ends = torch.randint(0, length + 1, (batch, 2), generator=generator).sort(dim=1).values
    places = torch.arange(length)
    return (places >= ends[:, :1]) & (places < ends[:, 1:])


def choose_rows(generator: Generator, *versions: Tensor) -> Tensor:
    """For each row one of several versions `[batch, length]`, at random."""
    return pick_rows(torch.randint(0, len(versions), (len(versions[0]),), generator=generator), versions)


def pick_rows(choice: Tensor, versions: Sequence[Tensor]) -> Tensor:
    """For each row the one of several versions `[batch, length]` whose number `choice` `[batch]` holds."""
    rows = versions[0]
    for number, version in enumerate(versions[1:], 1):
        rows = torch.where((choice == number)[:, None], version, rows)
    return rows


def with_zeros(generator: Generator, digits: Tensor) -> Tensor:
    """Digits `[batch, length]` with leading, trailing, scattered or only zeros."""
    batch, length = digits.shape
    cut = torch.randint(0, length + 1, (batch,), generator=generator)
    leading = keep_places(digits, cut)
    trailing = digits - leading
    scattered = digits * (torch.rand(batch, length, generator=generator) < 0.2)
    return choose_rows(generator, leading, trailing, scattered, torch.zeros_like(digits), digits)
