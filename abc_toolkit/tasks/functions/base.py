"""The contract of a task in context: a function is drawn for each prompt, and learned from the examples in it.

Source of the study: *How Do Position Encodings Affect Length Generalization? Case Studies on In-Context Function
Learning*, AAAI 2025 (doi 10.1609/aaai.v39i23.34637). Its evaluation draws points from one object of a task and labels
from another, so that points made to fit a function are judged by a different one. Here a prompt has one function.
"""

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, TypeVar

import torch
from torch import Generator, Tensor

from abc_toolkit.errors import UserError
from abc_toolkit.layout import Layout, stream_layout
from abc_toolkit.tasks.base import TRAINING, Batch, Interface, Observed, Staged, Task
from abc_toolkit.tasks.functions import baselines
from abc_toolkit.tasks.functions.attacks import OOD, attack, attack_names
from abc_toolkit.tasks.lengths import Shape
from abc_toolkit.tasks.objective import LogisticLoss, Objective, SquaredError

Predictor = Callable[[Tensor, Tensor], Tensor]
T = TypeVar("T", bound="InContextTask")
R = TypeVar("R", bound="RegressionTask")


@dataclass(frozen=True)
class InContextTask(Staged, Observed, Task):
    """Predicts `y_i = f(x_i)` from `x_1, y_1, ..., x_(i-1), y_(i-1), x_i`, with a function `f` of each prompt.

    A prompt is `x_1, y_1, ..., x_n`, each token a vector of width `dim`; a label stands in the first channel, before
    zeros. The output at a point predicts its label, the first one without any example. A shape is the number of points.

    A subclass says how functions are drawn, how points, and what a label is. Functions of a batch are a tensor
    `[batch, ...]`, mostly weights `[batch, dim]`.

    Attributes:
        max_length: Points of a training prompt.
        dim: Width of a point.
        marked: Whether two more channels say which tokens are points and which labels. The study's have none.
    """

    max_length: int = 12
    dim: int = 4
    marked: bool = False

    least_dim: ClassVar[int] = 1
    num_samples: ClassVar[int] = 1280

    def __post_init__(self) -> None:
        for name, least in (("max_length", 1), ("dim", self.least_dim)):
            if getattr(self, name) < least:
                raise UserError(f"{name} {getattr(self, name)}: {type(self).__name__} needs at least {least}")

    @property
    def suites(self) -> tuple[str, ...]:  # type: ignore[override]
        """`ood`, fresh prompts, and the attacks that can be made of prompts of the training length."""
        return (OOD, *attack_names(self.max_length, self.dim))

    @property
    def default_suites(self) -> tuple[str, ...]:
        return (OOD,)

    @property
    def interface(self) -> Interface:
        return Interface(num_outputs=1, input_dim=self.dim + 2 * self.marked)

    def training_shapes(self) -> tuple[Shape, ...]:
        """The longest alone: a prompt is a problem of every number of examples up to its own."""
        return ((self.max_length,),)

    def evaluation_shapes(self, length: int, suite: str, generator: Generator) -> tuple[Shape, ...]:
        """The length, of which a prompt of an attack may have fewer points.

        Raises:
            UserError: If an attack does not fit into such a length.
        """
        if suite != OOD:
            attack(suite, self.max_length, self.dim, length)
        return ((length,),)

    def stage(self: T, dim: int, points: int) -> T:
        if not (1 <= dim <= self.dim and 1 <= points <= self.max_length):
            raise UserError(
                f"--curriculum: {dim} channels and {points} points: {self.name} has {self.dim} and {self.max_length}"
            )
        return replace(self, max_length=points)

    @abc.abstractmethod
    def draw_function(self, generator: Generator, batch: int) -> Tensor:
        """A function for each prompt, `[batch, ...]`."""

    @abc.abstractmethod
    def draw_points(self, generator: Generator, function: Tensor, length: int) -> Tensor:
        """Points for each function, `[batch, length, dim]`."""

    @abc.abstractmethod
    def labels(self, function: Tensor, points: Tensor) -> Tensor:
        """The label of each point, `[batch, length]`."""

    def sample(self, generator: Generator, batch: int, shape: Shape, suite: str = TRAINING) -> Batch:
        (length,) = shape
        made = None if suite in (TRAINING, OOD) else attack(suite, self.max_length, self.dim, length)
        function = self.draw_function(generator, batch)
        points = self.draw_points(generator, function, length if made is None else self.max_length)
        labels = self.labels(function, points)
        if made is None:
            return self.prompts(points, labels, torch.ones(length, dtype=torch.bool))
        # A point has its label before it is repeated: sums of floats differ a little with their row.
        return self.prompts(points[:, made.points], labels[:, made.points], made.counted)

    def prompts(self, points: Tensor, labels: Tensor, counted: Tensor) -> Batch:
        """Prompts of given points.

        Args:
            points: `[batch, length, dim]`.
            labels: `[batch, length]`.
            counted: Points whose predictions count, boolean `[length]`.
        """
        batch, length, _ = points.shape
        inputs = torch.zeros(batch, 2 * length - 1, self.interface.input_dim)
        inputs[:, 0::2, : self.dim] = points
        inputs[:, 1::2, 0] = labels[:, :-1]
        if self.marked:
            inputs[:, 0::2, self.dim] = 1
            inputs[:, 1::2, self.dim + 1] = 1
        targets = labels.repeat_interleave(2, dim=1)[:, :-1]
        counts = torch.zeros(2 * length - 1, dtype=torch.bool)
        counts[0::2] = counted
        return Batch((length,), inputs, targets, counts.expand(batch, -1))

    def num_tokens(self, shape: Shape) -> tuple[int, int]:
        return 2 * shape[0] - 1, 0

    def layout(self, shape: Shape) -> Layout:
        """Segments `point` and `label`; `place` and the coordinate `point` count pairs, `index` those that follow."""
        return _layout(shape[0])

    def observed_outputs(self, shape: Shape) -> Tensor:
        """The predictions of labels, point by point."""
        return torch.arange(0, 2 * shape[0] - 1, 2)

    def observed_attention(self, shape: Shape) -> tuple[int, Tensor]:
        """The last point, and the labels before it."""
        return 2 * shape[0] - 2, torch.arange(1, 2 * shape[0] - 1, 2)

    def predictors(self) -> Mapping[str, Predictor]:
        """Simple learners by name, each a function of points `[batch, length, dim]` and labels `[batch, length]`.

        Prediction `i` of `[batch, length]` rests on the points and labels before it, and on point `i`.
        """
        return {}

    def baselines(self) -> Mapping[str, Callable[[Batch], Tensor]]:
        return {name: self._on_prompts(predictor) for name, predictor in self.predictors().items()}

    def _on_prompts(self, predictor: Predictor) -> Callable[[Batch], Tensor]:
        """A predictor that reads a batch of prompts, and gives outputs as a model does."""

        def outputs(batch: Batch) -> Tensor:
            found = torch.zeros_like(batch.targets)
            points, labels = batch.inputs[:, 0::2, : self.dim].double(), batch.targets[:, 0::2].double()
            found[:, 0::2] = predictor(points, labels).to(found.dtype)
            return found

        return outputs


@dataclass(frozen=True)
class RegressionTask(InContextTask):
    """Points are standard normal, labels numbers. Errors are divided by `variance`, the error of predicting 0.

    Attributes:
        used_dim: Channels of a point that are drawn, the others being zero; all if not given. A curriculum sets it.
    """

    used_dim: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.used_dim is not None and not 1 <= self.used_dim <= self.dim:
            raise UserError(f"used_dim {self.used_dim}: give at least 1 and at most the dim, {self.dim}")

    def stage(self: R, dim: int, points: int) -> R:
        return replace(super().stage(dim, points), used_dim=dim)

    @property
    def variance(self) -> float:
        """Variance of a label."""
        return float(self.dim)

    @property
    def objective(self) -> Objective:
        return SquaredError(scale=self.variance)

    def draw_points(self, generator: Generator, function: Tensor, length: int) -> Tensor:
        points = torch.randn(len(function), length, self.dim, generator=generator)
        points[..., self.used_dim or self.dim :] = 0
        return points

    def predictors(self) -> Mapping[str, Predictor]:
        return {
            "least squares": baselines.least_squares,
            "3 nearest": lambda points, labels: baselines.nearest(points, labels, 3),
            "averaging": baselines.averaging,
            "zero": lambda points, labels: torch.zeros_like(labels),
        }


@dataclass(frozen=True)
class BooleanTask(InContextTask):
    """Points are uniform in `{-1, 1}^dim`, labels are -1 or 1, and the sign of an output is what it predicts."""

    max_length: int = 18
    dim: int = 8

    num_neighbours: ClassVar[int] = 3

    @property
    def objective(self) -> Objective:
        return LogisticLoss()

    def draw_points(self, generator: Generator, function: Tensor, length: int) -> Tensor:
        return 2.0 * torch.randint(2, (len(function), length, self.dim), generator=generator) - 1

    def predictors(self) -> Mapping[str, Predictor]:
        number = self.num_neighbours
        return {
            f"{number} nearest": lambda points, labels: baselines.nearest(points, labels, number),
            "averaging": baselines.averaging,
            "always -1": lambda points, labels: -torch.ones_like(labels),
        }


@dataclass(frozen=True)
class BalancedTask(BooleanTask):
    """Without help nearly all labels would be equal, so a part of the points, drawn one by one, is *overwritten*.

    The coordinates of an overwritten point on which the function depends are set so that the point has the rare label.

    Attributes:
        overwriting: Probability that a point is overwritten.
    """

    overwriting: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.overwriting <= 1:
            raise UserError(f"overwriting {self.overwriting}: give a probability, between 0 and 1")

    @abc.abstractmethod
    def fixed(self, generator: Generator, function: Tensor) -> Tensor:
        """What coordinates of an overwritten point are set to, `[batch, dim]`; 0 where they stay as they are."""

    def draw_points(self, generator: Generator, function: Tensor, length: int) -> Tensor:
        points = super().draw_points(generator, function, length)
        fixed = self.fixed(generator, function)[:, None]
        chosen = torch.rand(*points.shape[:2], 1, generator=generator) < self.overwriting
        return torch.where(chosen & (fixed != 0), fixed, points)


def drawn_weights(generator: Generator, shape: tuple[int, ...], probabilities: Mapping[int, float]) -> Tensor:
    """Independent weights with given probabilities; those that are left have the first value of all."""
    uniform = torch.rand(shape, generator=generator)
    first, *others = probabilities
    weights = torch.full(shape, float(first))
    end = 0.0
    for value in others:
        start, end = end, end + probabilities[value]
        weights[(uniform >= start) & (uniform < end)] = value
    return weights


def drawn_subsets(generator: Generator, batch: int, dim: int, size: int) -> Tensor:
    """Uniform subsets of `size` coordinates, as 0 and 1 `[batch, dim]`."""
    chosen = torch.rand(batch, dim, generator=generator).argsort(dim=1)[:, :size]
    return torch.zeros(batch, dim).scatter_(1, chosen, 1.0)


def signs(values: Tensor) -> Tensor:
    """The signs of values that are never 0, as 1 and -1."""
    return torch.where(values > 0, 1.0, -1.0)


@lru_cache(maxsize=64)
def _layout(num_points: int) -> Layout:
    with torch.inference_mode(False):  # a layout that evaluation makes may be trained on later
        number = torch.arange(2 * num_points - 1)
        pair = number // 2
        coordinates = {"point": pair, "place": pair, "index": num_points - 1 - pair}
        return stream_layout(("point", "label"), number % 2, coordinates)
