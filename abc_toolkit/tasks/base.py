"""The contract of a task: what is learned. Nothing else in the toolkit knows which task it serves.

Every task is a `Task`. What only some tasks can do are contracts of their own, of which a task inherits those that it
meets: `HeldOut`, `Calibratable`, `Solvable`, `Certifiable`. A command that needs one asks for it with `require`.
"""

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, ClassVar, TypeVar

import torch
from torch import Generator, Tensor

from abc_toolkit.errors import UserError
from abc_toolkit.layout import Layout, LayoutDescription
from abc_toolkit.tasks.lengths import Shape, Size, parse_sizes, shape_name
from abc_toolkit.tasks.objective import Metric, Objective, TokenCrossEntropy
from abc_toolkit.vocabulary import Vocabulary

if TYPE_CHECKING:
    from abc_toolkit.tasks.digits.rule import LocalRule

T = TypeVar("T")
B = TypeVar("B", bound="Batch")
TRAINING = "training"
UNIFORM = "uniform"
ATTENTION = "attention"  # the suite that shows attention in place of measuring
SMALL = 10_000  # problems of a size below which all are trained on
_QUOTED = 40  # characters of a text that a message quotes


@dataclass(frozen=True)
class Batch:
    """Problems of one shape, as a model reads them and as its outputs are judged.

    Attributes:
        shape: The shape.
        inputs: What the model reads: token ids `[batch, length]` or vectors `[batch, length, dim]`.
        targets: What its outputs are compared with: token ids, classes or numbers, `[batch, outputs]`.
        counted: Which outputs count, boolean `[batch, outputs]`; all, if not given.
        layout: The layout of the batch, where problems have coordinates or lengths of their own; that of the shape, if
            not given. Shorter problems are padded at their ends, and padding does not count.
    """

    shape: Shape
    inputs: Tensor
    targets: Tensor
    counted: Tensor | None = None
    layout: Layout | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self: B, item: slice | Tensor) -> B:
        layout = None if self.layout is None else self.layout.problems(item)
        counted = None if self.counted is None else self.counted[item]
        return replace(self, inputs=self.inputs[item], targets=self.targets[item], counted=counted, layout=layout)

    def split(self: B, size: int) -> Iterator[B]:
        """The same problems in pieces of at most so many."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def trimmed(self: B) -> B:
        """The same problems without the padding that none of them needs."""
        if self.layout is None:
            return self
        layout = self.layout.trimmed()
        inputs, outputs = self.inputs[:, : len(layout.source)], self.targets.shape[1]
        if outputs == len(self.layout.target):
            outputs = len(layout.target)
        elif outputs == self.inputs.shape[1]:
            outputs = inputs.shape[1]
        counted = None if self.counted is None else self.counted[:, :outputs]
        return replace(self, inputs=inputs, targets=self.targets[:, :outputs], counted=counted, layout=layout)

    def to(self: B, device: torch.device) -> B:
        """The same problems on a device."""
        counted = None if self.counted is None else self.counted.to(device)
        layout = None if self.layout is None else self.layout.to(device)
        inputs, targets = self.inputs.to(device), self.targets.to(device)
        return replace(self, inputs=inputs, targets=targets, counted=counted, layout=layout)


@dataclass(frozen=True)
class Problems(Batch):
    """A batch of token streams: `inputs` are the source, `targets` the target, which may end with `EOS`."""

    @property
    def source(self) -> Tensor:
        """Token ids `[batch, source_length]`."""
        return self.inputs

    @property
    def target(self) -> Tensor:
        """Token ids `[batch, target_length]`."""
        return self.targets


class ProblemError(UserError):
    """A problem as written by a user is not one of the task's; the message is one line that says why."""


@dataclass(frozen=True)
class Interface:
    """What a model of a task reads and writes.

    Attributes:
        num_outputs: Numbers of each output: logits, or 1 where outputs are numbers themselves.
        num_tokens: Size of the vocabulary of the inputs; 0 where inputs are vectors.
        input_dim: Width of the input vectors; 0 where inputs are tokens.
        decoded: Whether outputs are the tokens of a target that is decoded one by one, each under those before it.
        pooled: Whether there is one output for a whole input, in place of one for each of its positions.
        patch_channels: Channels of an image whose patches of 5x5 pixels the input vectors are, so that the model reads
            them through a convolution; 0 where they are not.
    """

    num_outputs: int
    num_tokens: int = 0
    input_dim: int = 0
    decoded: bool = False
    pooled: bool = False
    patch_channels: int = 0

    @classmethod
    def token_streams(cls, num_tokens: int) -> "Interface":
        """A source and a target of one vocabulary."""
        return cls(num_tokens, num_tokens, decoded=True)


class Task(abc.ABC):
    """What is learned, from short problems, to be done on long ones.

    A task is an immutable value (a frozen dataclass), so that a run folder can record it by its fields.

    Attributes:
        max_length: Longest training length, in the task's own unit: digits of an operand, bits, points of a prompt.
        suites: Names of its evaluation suites, the plain one first. Of suites `a/b` and `a/c`, `a` names both.
        num_samples: Problems of each suite and length, where an evaluation names no number.
        one_length: Whether there are no problems of another length than `max_length`.
        shortest: Least length of which there are problems.
    """

    max_length: int
    suites: ClassVar[tuple[str, ...]] = (UNIFORM,)
    num_samples: ClassVar[int] = 1000
    one_length: ClassVar[bool] = False
    shortest: ClassVar[int] = 1

    @property
    def name(self) -> str:
        """The task's name in files and folders: its class name in lower case."""
        return type(self).__name__.lower()

    @property
    @abc.abstractmethod
    def interface(self) -> Interface:
        """What a model of the task reads and writes."""

    @property
    @abc.abstractmethod
    def objective(self) -> Objective:
        """What a model of the task is trained and judged by."""

    @abc.abstractmethod
    def training_shapes(self) -> tuple[Shape, ...]:
        """Every shape that is trained on, shortest first."""

    @abc.abstractmethod
    def evaluation_shapes(self, length: int, suite: str, generator: Generator) -> tuple[Shape, ...]:
        """Shapes over which the samples of a suite are spread evenly.

        Args:
            length: The length, in the unit of `max_length`.
            suite: One of `suites`.
            generator: Draws what the suite leaves open.

        Raises:
            UserError: If the suite has no problems of such a length.
        """

    @property
    def default_suites(self) -> tuple[str, ...]:
        """The suites of an evaluation that names none."""
        return self.suites

    def lengths(self, spec: str) -> list[Size]:
        """The lengths and shapes that `--length` names, such as `10x`, `60` or `3x200`.

        Raises:
            UserError: If it names none, or the task has no problems of a shape.
        """
        return parse_sizes(spec, self.name, self.max_length, self.training_shapes())

    @abc.abstractmethod
    def sample(self, generator: Generator, batch: int, shape: Shape, suite: str = TRAINING) -> Batch:
        """Draws problems of one shape.

        Args:
            generator: The only source of randomness.
            batch: How many.
            shape: Their shape.
            suite: `"training"` for the mixture trained on, or one of `suites`.
        """

    @abc.abstractmethod
    def num_tokens(self, shape: Shape) -> tuple[int, int]:
        """Lengths of the inputs and of a decoded target (`EOS` included) of a shape, however long: none is made.

        Where problems of a shape differ in length, lengths that hardly any exceeds.
        """

    @abc.abstractmethod
    def layout(self, shape: Shape) -> Layout:
        """Segment and coordinates of every token of the problems of a shape.

        Where each batch has a layout of its own, it is that of some problem of the shape.
        """

    def baselines(self) -> Mapping[str, Callable[[Batch], Tensor]]:
        """Predictors, by name, that an evaluation shows beside the models; each gives outputs as a model does."""
        return {}

    def data_files(self) -> Mapping[str, str]:
        """SHA-256 of what the task reads from files, by path. A run records it, and refuses other content later."""
        return {}

    def remarks(self) -> Sequence[str]:
        """What a training or an evaluation tells about the data, each a line."""
        return ()


class Listed(Task):
    """A task whose suites are lists of problems, of which an evaluation chooses some without repetition.

    Its models are validated on such a list too, as its training problems come up again.

    Attributes:
        validation_suite: The suite that a training is validated on, whose problems are never trained on; the first, if
            not given.
    """

    validation_suite: ClassVar[str | None] = None

    @abc.abstractmethod
    def num_listed(self, shape: Shape, suite: str) -> int:
        """How many problems of a shape a suite has; of a larger shape there are as many, or fewer.

        Raises:
            UserError: If there is none.
        """

    @abc.abstractmethod
    def listed(self, numbers: Tensor, shape: Shape, suite: str) -> Batch:
        """Problems by their numbers `[batch]`, from 0 on. Problems of one number at several shapes belong together."""

    def choose(self, generator: Generator, samples: int, shape: Shape, suite: str) -> Tensor:
        """Numbers of distinct problems, `[samples]`.

        A generator in the same state chooses the same numbers at every shape, but for those that a shape has not.

        Raises:
            UserError: If the suite has fewer problems of the shape.
        """
        available = self.num_listed(shape, suite)
        if samples > available:
            raise UserError(
                f"--samples {samples}: there are {available:,} problems of length {shape_name(shape)} in {suite}: "
                f"choose at most {available}"
            )
        order = torch.randperm(self.num_listed(self.training_shapes()[0], suite), generator=generator)
        return order[order < available][:samples]


class OneLength(Listed):
    """A task with lists of problems, all of them of one shape `(max_length,)`."""

    one_length: ClassVar[bool] = True

    @abc.abstractmethod
    def only_length(self) -> str:
        """Why there are no problems of another length, as a message goes on after the length that was asked for."""

    def training_shapes(self) -> tuple[Shape, ...]:
        return ((self.max_length,),)

    def evaluation_shapes(self, length: int, suite: str, generator: Generator) -> tuple[Shape, ...]:
        self._check_size(length)
        return ((length,),)

    def lengths(self, spec: str) -> list[Size]:
        sizes = super().lengths(spec)
        for size in sizes:
            self._check_size(size)
        return sizes

    def _check_size(self, size: Size) -> None:
        """Refuses every size but the trained one."""
        if size != self.max_length:
            named = shape_name((size,) if isinstance(size, int) else size)
            raise UserError(f"length {named}: {self.only_length()}: give --length 1x")


class Staged(abc.ABC):
    """A task that can be made easier for the beginning of a training."""

    @abc.abstractmethod
    def stage(self: T, dim: int, points: int) -> T:
        """The task with points of fewer channels, and fewer of them, of the same interface and objective.

        Raises:
            UserError: If the task has not so many.
        """


class Observed(abc.ABC):
    """A task whose models are looked at more closely: output by output, and in their attention.

    An evaluation draws its first metric for each observed output, and has the suite `attention`.
    """

    @abc.abstractmethod
    def observed_outputs(self, shape: Shape) -> Tensor:
        """The outputs of interest in their order, as indices into those of a shape, `[output]`."""

    @abc.abstractmethod
    def observed_attention(self, shape: Shape) -> tuple[int, Tensor]:
        """A query, and the keys of interest in their order, `[key]`; both as indices into the inputs of a shape."""


class Decodable(Task):
    """A task whose targets end where a model ends them, and whose decoded targets are judged by a metric of its own.

    The metric is one number for many problems together, such as BLEU. It follows from statistics of each problem,
    summed over the problems, so that a bootstrap gives its interval.
    """

    @property
    @abc.abstractmethod
    def decoded_metric(self) -> Metric:
        """The metric.

        Raises:
            UserError: If a library that computes it is not installed.
        """

    @abc.abstractmethod
    def decoding_layout(self, source_length: int) -> Layout:
        """The layout of problems with a source of so many tokens, and with the longest target that is decoded for it.

        Its coordinates must not depend on where a target ends.
        """

    @abc.abstractmethod
    def statistics(self, decoded: Tensor, problems: Problems) -> Tensor:
        """What the metric follows from, `[batch, statistic]`.

        Args:
            decoded: Decoded tokens `[batch, length]`, of which those after the first `EOS` do not count.
            problems: The problems.
        """

    @abc.abstractmethod
    def score(self, statistics: Tensor) -> float:
        """The metric of several problems, by the sums of their statistics, `[statistic]`."""


class HeldOut(abc.ABC):
    """A task whose problems are held out of training by a key, as there are few enough that they come up again."""

    @abc.abstractmethod
    def num_problems(self, shape: Shape) -> int:
        """How many problems of a shape there are."""

    @abc.abstractmethod
    def keys(self, problems: Problems) -> Tensor:
        """A key for each problem, `[batch]`: a hash that equal problems share.

        It is -1 for a problem of a size of which there are fewer than `SMALL`: such are never held out.
        """


class Calibratable(Task):
    """A task of token streams: a source, and a target that is decoded, whose layout follows from the shape alone.

    Attributes:
        symbols: Every character of its strings.
    """

    symbols: str

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The task's token ids."""
        return Vocabulary(self.symbols)

    @property
    def interface(self) -> Interface:
        return Interface.token_streams(len(self.vocabulary))

    @property
    def objective(self) -> Objective:
        return TokenCrossEntropy()

    @abc.abstractmethod
    def sample(self, generator: Generator, batch: int, shape: Shape, suite: str = TRAINING) -> Problems: ...


class Solvable(Calibratable):
    """A task whose problems a person can write, and an oracle can solve."""

    @abc.abstractmethod
    def parse(self, text: str) -> tuple[Shape, str]:
        """Shape and source of a problem as a person writes it.

        Raises:
            ProblemError: If it is not a problem of this task.
        """

    @abc.abstractmethod
    def solve(self, source: str) -> str:
        """The oracle: the target, without `EOS`, that belongs to a source, by other means than `sample`'s."""

    @abc.abstractmethod
    def answer(self, target: str) -> str:
        """What a target (without `EOS`) says, as a person writes it.

        A malformed target is rendered as it is, never repaired.
        """


class Certifiable(Solvable):
    """A task whose target follows from its source place by place, so that a model can be proved right.

    Attributes:
        literals: The character that each segment holds which always holds the same.
        least_sizes: Least value of each size of a layout.
    """

    @property
    @abc.abstractmethod
    def literals(self) -> Mapping[str, str]:
        """The character that each segment holds which always holds the same."""

    @property
    @abc.abstractmethod
    def least_sizes(self) -> tuple[int, ...]:
        """Least value of each size of a layout."""

    @abc.abstractmethod
    def local_rule(self) -> "LocalRule | None":
        """The rule by which a proof goes from place to place; `None` if the task has none under its settings."""

    @abc.abstractmethod
    def sizes(self, shape: Shape) -> tuple[int, ...]:
        """The sizes that the layout of a shape follows from."""

    def shape_of(self, sizes: Shape) -> Shape | None:
        """A shape of problems with the given sizes; `None` if there is none."""
        with suppress(ProblemError):
            if self.sizes(sizes) == sizes:
                return sizes
        candidates = product(*(range(max(1, size - 3), size + 1) for size in sizes))
        return next((shape for shape in candidates if self.sizes(shape) == sizes), None)

    @abc.abstractmethod
    def describe_layout(self, sizes: Shape) -> LayoutDescription:
        """The layout of a problem's sizes: one, or, of symbols in their place, that of every problem.

        It may compute with sizes what is linear, and compare them; a proof for every length runs it on symbols.
        """

    @abc.abstractmethod
    def values(self, segment: str) -> tuple[int, ...]:
        """Token ids that can stand in a segment."""


_LACKS = {
    Staged: "has no easier stages",
    HeldOut: "holds no problems out of training",
    Calibratable: "has no token streams with a layout, from whose attention a window could be read",
    Solvable: "has no problems that can be written as text",
    Certifiable: "has no local rule to prove a model by",
}


def require(task: Task, capability: type[T], command: str) -> T:
    """The task as one that has a capability.

    Args:
        task: The task.
        capability: `HeldOut`, `Calibratable`, `Solvable` or `Certifiable`.
        command: What needs it, such as `abc solve`.

    Raises:
        UserError: If the task lacks it.
    """
    if not isinstance(task, capability):
        raise UserError(f"{task.name} {_LACKS[capability]}: '{command}' is not available for it")
    return task


def quoted(text: str) -> str:
    """A text as a message quotes it: its beginning, end and length where it is long."""
    if len(text) <= _QUOTED:
        return repr(text)
    shown = f"{text[: _QUOTED // 2]}...{text[-_QUOTED // 2 + 3 :]}"
    return f"{shown!r} ({len(text)} characters)"


def check_suites(task: Task, names: Sequence[str] | str | None) -> tuple[str, ...]:
    """The names of evaluation suites, each once, which may be given as a text with commas.

    Args:
        task: The task.
        names: Suites, or what several of them begin with, before a slash; the task's default suites, if not given.

    Raises:
        UserError: If there is none, or one that the task lacks.
    """
    if names is None:
        return task.default_suites
    names = [name.strip() for name in names.split(",")] if isinstance(names, str) else names
    known = (*task.suites, ATTENTION) if isinstance(task, Observed) else task.suites
    groups: dict[str, list[str]] = {}
    for suite in known:
        groups.setdefault(suite.partition("/")[0], []).append(suite)
    unknown = [name for name in names if name not in known and name not in groups]
    if unknown or not names:
        named = repr(unknown[0]) if unknown else "an empty list"
        raise UserError(f"--sets: {named} names no evaluation set; they are {', '.join(groups)}")
    found = [suite for name in names for suite in ([name] if name in known else groups[name])]
    return tuple(dict.fromkeys(found))
