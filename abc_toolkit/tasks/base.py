"""The contract of a task, and what tasks on digit strings share."""

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import ClassVar

import torch
from torch import Generator, Tensor

from abc_toolkit.errors import UserError
from abc_toolkit.layout import Layout, digit_layout
from abc_toolkit.vocabulary import EOS, NUM_SPECIAL, Vocabulary

Shape = tuple[int, ...]
TRAINING = "training"
UNIFORM = "uniform"
UNEQUAL = "unequal"
CARRY = "carry"
ZEROS = "zeros"
SETS = (UNIFORM, UNEQUAL, CARRY, ZEROS)


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


class Task(abc.ABC):
    """What is computed. Nothing else in the toolkit knows which task it serves.

    A task is an immutable value (a frozen dataclass), so that a run folder can record it by its fields.

    Attributes:
        symbols: Every character of its strings, the digits first.
        base: Number of digits; `symbols[:base]` are the digits, `symbols[0]` is zero.
        max_length: Longest training length: digits per operand, or bits.
    """

    symbols: ClassVar[str]
    base: ClassVar[int] = 10
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
        """The oracle: the target, without `EOS`, that belongs to a source, by Python integers."""

    @abc.abstractmethod
    def answer(self, target: str) -> str:
        """What a target (without `EOS`) says, in natural order: most significant digit first, no leading zeros.

        A malformed target is rendered as it is, never repaired.
        """


@dataclass(frozen=True)
class DigitTask(Task):
    """A task whose operands are digit strings and whose target is a digit string, least significant first.

    A subclass names its segments, draws its operands and computes its answer; operands are tensors
    `[batch, width]` of digit values, least significant first.
    """

    @abc.abstractmethod
    def segments(self, shape: Shape) -> Sequence[tuple[str, int]]:
        """Name and length of each segment of the source. Those named `operand ...` hold digits."""

    @abc.abstractmethod
    def answer_length(self, shape: Shape) -> int:
        """Digits of the target, `EOS` not counted."""

    @abc.abstractmethod
    def draw(self, generator: Generator, batch: int, shape: Shape, set_name: str) -> list[Tensor]:
        """Operands of one of `SETS`, `[batch, width]` each."""

    @abc.abstractmethod
    def compute(self, operands: Sequence[Tensor]) -> Tensor:
        """Answer digits `[batch, answer_length]` of operands `[batch, width]`."""

    def num_problems(self, shape: Shape) -> int:
        return self.base ** sum(length for name, length in self.segments(shape) if name.startswith("operand"))

    @property
    def operator(self) -> str:
        """The character between two operands."""
        return ""

    def training_operands(self, generator: Generator, batch: int, shape: Shape) -> list[Tensor]:
        """Operands of the mixture that is trained on, `[batch, width]` each.

        Half of the rows are uniform over all digit strings, so that leading zeros occur; the other half is made up of
        the evaluation sets' kinds in equal parts.
        """
        widths = [length for name, length in self.segments(shape) if name.startswith("operand")]
        draws = [[torch.randint(0, self.base, (batch, width), generator=generator) for width in widths]]
        draws += [self.draw(generator, batch, shape, name) for name in SETS]
        kind = (torch.randint(0, 2 * len(SETS), (batch,), generator=generator) - len(SETS) + 1).clamp(min=0)
        rows = torch.arange(batch)
        return [torch.stack(versions)[kind, rows] for versions in zip(*draws, strict=True)]

    def sample(self, generator: Generator, batch: int, shape: Shape, set_name: str = TRAINING) -> Problems:
        if set_name != TRAINING:
            return self.problems(shape, self.draw(generator, batch, shape, set_name))
        return self.problems(shape, self.training_operands(generator, batch, shape))

    def problems(self, shape: Shape, operands: Sequence[Tensor]) -> Problems:
        """Strings of operands `[batch, width]`, and their answers."""
        batch = len(operands[0])
        parts = []
        remaining = list(operands)
        for name, _ in self.segments(shape):
            if name.startswith("operand"):
                parts.append(remaining.pop(0).flip(1) + NUM_SPECIAL)
            else:
                parts.append(self.vocabulary.encode(self.operator).expand(batch, -1))
        end = torch.full((batch, 1), EOS)
        target = torch.cat([self.compute(operands) + NUM_SPECIAL, end], dim=1)
        return Problems(shape, torch.cat(parts, dim=1), target)

    def layout(self, shape: Shape) -> Layout:
        return _cached_layout(tuple(self.segments(shape)), self.answer_length(shape))

    def answer(self, target: str) -> str:
        return target[::-1].lstrip(self.symbols[0]) or target[:1]

    def digits(self, text: str, what: str) -> str:
        """`text` if it is a string of digits.

        Raises:
            ProblemError: If it is empty or holds another character.
        """
        if not text:
            raise ProblemError(f"{what} is empty")
        for character in text:
            if character not in self.symbols[: self.base]:
                raise ProblemError(
                    f"{what} holds {character!r}, which is not one of the digits {self.symbols[: self.base]}"
                )
        return text


@lru_cache(maxsize=256)
def _cached_layout(source: tuple[tuple[str, int], ...], answer_length: int) -> Layout:
    return digit_layout(source, answer_length)


def uniform_digits(generator: Generator, batch: int, length: int, base: int = 10) -> Tensor:
    """Numbers of exactly `length` digits, `[batch, length]`; the leading digit is zero only in numbers of one digit."""
    digits = torch.randint(0, base, (batch, length), generator=generator)
    if length > 1:
        digits[:, -1] = torch.randint(1, base, (batch,), generator=generator)
    return digits


def digits_below(generator: Generator, batch: int, limit: int, width: int) -> Tensor:
    """Digits `[batch, width]` of numbers that are uniform over all below a limit."""
    numbers = torch.randint(0, limit, (batch, 1), generator=generator)
    return numbers // 10 ** torch.arange(width).clamp(max=18) % 10 * (torch.arange(width) <= 18)


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
    batch = len(versions[0])
    choice = torch.randint(0, len(versions), (batch,), generator=generator)
    return torch.stack(versions)[choice, torch.arange(batch)]


def with_zeros(generator: Generator, digits: Tensor) -> Tensor:
    """Digits `[batch, length]` with leading, trailing, scattered or only zeros."""
    batch, length = digits.shape
    cut = torch.randint(0, length + 1, (batch,), generator=generator)
    leading = keep_places(digits, cut)
    trailing = digits - leading
    scattered = digits * (torch.rand(batch, length, generator=generator) < 0.2)
    return choose_rows(generator, leading, trailing, scattered, torch.zeros_like(digits), digits)
