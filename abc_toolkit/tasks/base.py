"""The contract of a task, and what tasks on digit strings share."""

import abc
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from abc_toolkit.errors import UserError
from abc_toolkit.layout import Layout
from abc_toolkit.vocabulary import Vocabulary

if TYPE_CHECKING:
    from abc_toolkit.tasks.digits.rule import LocalRule

Shape = tuple[int, ...]
TRAINING = "training"
UNIFORM = "uniform"
UNEQUAL = "unequal"
CARRY = "carry"
ZEROS = "zeros"
SETS = (UNIFORM, UNEQUAL, CARRY, ZEROS)
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

    def local_rule(self) -> "LocalRule | None":
        """The rule by which a proof goes from place to place; `None` if the task has none."""
        return None

    @abc.abstractmethod
    def answer(self, target: str) -> str:
        """What a target (without `EOS`) says, in natural order: most significant digit first, no leading zeros.

        A malformed target is rendered as it is, never repaired.
        """


def shape_name(shape: Shape) -> str:
    """A shape as it stands in files, messages and tables, such as `6x6`."""
    return "x".join(map(str, shape))


def quoted(text: str) -> str:
    """A text as a message quotes it: its beginning, end and length where it is long."""
    if len(text) <= _QUOTED:
        return repr(text)
    shown = f"{text[: _QUOTED // 2]}...{text[-_QUOTED // 2 + 3 :]}"
    return f"{shown!r} ({len(text)} characters)"
