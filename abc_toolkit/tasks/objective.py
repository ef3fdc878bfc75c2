"""Objectives: what a model is trained and judged by."""

import abc
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor
from torch.nn import functional

from abc_toolkit.errors import check_numbers

if TYPE_CHECKING:
    from abc_toolkit.tasks.base import Batch

_QUANTILE = 1.959963984540054  # of the standard normal distribution, at the upper end of a 95 % interval
_LARGEST_LOGARITHM = 700.0  # of a number that a float can be


@dataclass(frozen=True)
class Metric:
    """A metric: a number for each problem, whose mean over problems is reported with a 95 % interval.

    Attributes:
        name: Its name in tables and files.
        higher_is_better: Whether more of it is better.
        is_share: Whether each problem has 0 or 1 of it, so that the mean is a share.
        in_percent: Whether it is shown in per cent, as every share is.
        of_logarithms: Whether problems have logarithms of it, so that the exponential of their mean is reported.
        digits: Significant digits in tables, where it is neither in per cent nor of logarithms.
        is_acronym: Whether its name is written in capitals in a heading.
    """

    name: str
    higher_is_better: bool
    is_share: bool = False
    in_percent: bool = False
    of_logarithms: bool = False
    digits: int = 2
    is_acronym: bool = False

    def __post_init__(self) -> None:
        if self.is_share and not self.in_percent:
            object.__setattr__(self, "in_percent", True)

    @property
    def title(self) -> str:
        """Its name in a heading."""
        return self.name.upper() if self.is_acronym else self.name.replace("_", " ")

    def summary(self, total: float, squares: float, count: int) -> tuple[float, float, float]:
        """Mean and 95 % interval: Wilson's for a share, else that of a normal mean; of logarithms, its exponential.

        Args:
            total: Sum over the problems.
            squares: Sum of squares over the problems.
            count: Number of problems, at least 1.
        """
        mean = total / count
        if self.is_share:
            return mean, *wilson_interval(round(total), count)
        variance = max(0.0, squares - count * mean**2) / max(1, count - 1)
        half = _QUANTILE * math.sqrt(variance / count)
        return self.reported(mean), self.reported(mean - half), self.reported(mean + half)

    def reported(self, mean: float) -> float:
        """What is reported of the mean of problems' numbers."""
        if not self.of_logarithms:
            return mean
        return math.exp(mean) if mean < _LARGEST_LOGARITHM else math.inf

    def shown(self, value: float) -> str:
        """A value as tables show it: a share in per cent."""
        if self.in_percent:
            return f"{100 * value:.1f}"
        return f"{value:.4g}" if self.of_logarithms else f"{value:.{self.digits}g}"

    def told(self, value: float) -> str:
        """A value in a sentence or beside a bar, with its name."""
        return f"{self.title} {100 * value:.2f} %" if self.in_percent else f"{self.title} {value:.4g}"


EXACT_MATCH = Metric("exact_match", higher_is_better=True, is_share=True)
PERPLEXITY = Metric("perplexity", higher_is_better=False, of_logarithms=True)


@dataclass(frozen=True)
class Stopping:
    """When training has reached its end, by validation on training lengths alone.

    Attributes:
        exact_match: Exact match on held-out problems to reach, between 0 and 1.
        loss: Loss on held-out problems to reach as well; if not given, 1 for tokens, and none for numbers.
        decay_steps: Steps over which the rate falls to zero once both are reached, so that a model settles that
            reached them by chance.
    """

    exact_match: float = 0.999
    loss: float | None = None
    decay_steps: int = 0

    def __post_init__(self) -> None:
        check_numbers(self, "stopping", ("exact_match",), at_most=1)
        check_numbers(self, "stopping", ("decay_steps",) if self.loss is None else ("loss", "decay_steps"))


class Objective(abc.ABC):
    """The loss of a task, its metrics, and when a training may stop.

    Attributes:
        metrics: The metrics; the first is the one that a training is judged by.
        default_loss: Validation loss that ends a training where the user names none; `None` where none does.
    """

    metrics: ClassVar[tuple[Metric, ...]]
    default_loss: ClassVar[float | None] = None

    @abc.abstractmethod
    def loss(self, outputs: Tensor, batch: "Batch") -> Tensor:
        """The mean loss over the outputs that count.

        Args:
            outputs: What the model made of the batch: `[batch, outputs, num_outputs]`, or `[batch, outputs]` where
                outputs are numbers.
            batch: The batch.
        """

    @abc.abstractmethod
    def measured(self, outputs: Tensor, batch: "Batch") -> dict[str, Tensor]:
        """Each metric, by name, of each problem: `[batch]`."""

    def by_output(self, outputs: Tensor, batch: "Batch") -> Tensor | None:
        """The first metric of each output, `[batch, outputs]`; `None` where it is of whole problems alone."""
        return None

    @abc.abstractmethod
    def reached(self, values: Mapping[str, float], loss: float, stopping: Stopping) -> bool:
        """Whether a training may stop.

        Args:
            values: Each metric on held-out problems.
            loss: The loss on held-out problems.
            stopping: The thresholds asked for.
        """

    def loss_limit(self, stopping: Stopping) -> float | None:
        """The validation loss that ends a training, if one does."""
        return self.default_loss if stopping.loss is None else stopping.loss


class TokenCrossEntropy(Objective):
    """Cross-entropy of each token or class, judged by exact match: every output of a problem that counts is right."""

    metrics = (EXACT_MATCH,)
    default_loss = 1.0

    def loss(self, outputs: Tensor, batch: "Batch") -> Tensor:
        outputs, targets = outputs.flatten(0, 1), batch.targets.flatten()
        if batch.counted is not None:
            counted = batch.counted.flatten()
            outputs, targets = outputs[counted], targets[counted]
        return functional.cross_entropy(outputs, targets)

    def measured(self, outputs: Tensor, batch: "Batch") -> dict[str, Tensor]:
        return {"exact_match": solved(outputs, batch)}

    def reached(self, values: Mapping[str, float], loss: float, stopping: Stopping) -> bool:
        limit = self.loss_limit(stopping)
        return values["exact_match"] >= stopping.exact_match and (limit is None or loss <= limit)


@dataclass(frozen=True)
class ClassCrossEntropy(Objective):
    """Cross-entropy of a class, judged by accuracy: the likeliest class is the right one.

    Attributes:
        label_smoothing: Share of the target's probability that is spread evenly over all classes, at least 0 and less
            than 1 (Szegedy et al. 2016, arXiv 1512.00567).
    """

    label_smoothing: float = 0.0

    metrics: ClassVar[tuple[Metric, ...]] = (Metric("accuracy", higher_is_better=True, is_share=True),)

    def loss(self, outputs: Tensor, batch: "Batch") -> Tensor:
        targets = batch.targets.flatten()
        return functional.cross_entropy(outputs.flatten(0, 1), targets, label_smoothing=self.label_smoothing)

    def measured(self, outputs: Tensor, batch: "Batch") -> dict[str, Tensor]:
        return {"accuracy": solved(outputs, batch)}

    def reached(self, values: Mapping[str, float], loss: float, stopping: Stopping) -> bool:
        limit = self.loss_limit(stopping)
        return limit is not None and loss <= limit


class Perplexity(Objective):
    """Cross-entropy of each token, judged by perplexity: `exp(mean cross-entropy)`, each problem counting alike."""

    metrics = (PERPLEXITY,)

    def by_token(self, outputs: Tensor, batch: "Batch") -> Tensor:
        """Cross-entropy of each output, `[batch, outputs]`."""
        return functional.cross_entropy(outputs.transpose(1, 2), batch.targets, reduction="none")

    def loss(self, outputs: Tensor, batch: "Batch") -> Tensor:
        return _mean_of_counted(self.by_token(outputs, batch), batch.counted)

    def measured(self, outputs: Tensor, batch: "Batch") -> dict[str, Tensor]:
        """The mean cross-entropy of each problem's outputs that count, under the name of what is reported of it."""
        losses, counted = self.by_token(outputs.float(), batch), batch.counted
        mean = losses.mean(dim=1) if counted is None else (losses * counted).sum(dim=1) / counted.sum(dim=1)
        return {"perplexity": mean}

    def reached(self, values: Mapping[str, float], loss: float, stopping: Stopping) -> bool:
        limit = self.loss_limit(stopping)
        return limit is not None and loss <= limit


class SequencePerplexity(Perplexity):
    """`Perplexity`, with exact match beside it: every output of a problem that counts is right."""

    metrics = (PERPLEXITY, EXACT_MATCH)
    default_loss = 1.0

    def measured(self, outputs: Tensor, batch: "Batch") -> dict[str, Tensor]:
        return super().measured(outputs, batch) | {"exact_match": solved(outputs, batch)}

    def reached(self, values: Mapping[str, float], loss: float, stopping: Stopping) -> bool:
        return values["exact_match"] >= stopping.exact_match and super().reached(values, loss, stopping)


class _EachOutput(Objective):
    """An objective whose outputs are judged one by one: by their mean in a problem, and by the last of them."""

    @abc.abstractmethod
    def by_output(self, outputs: Tensor, batch: "Batch") -> Tensor: ...

    def measured(self, outputs: Tensor, batch: "Batch") -> dict[str, Tensor]:
        """The mean over a problem's outputs that count, and the last of them."""
        values, counted = self.by_output(outputs, batch), batch.counted
        mean_name, last_name = (metric.name for metric in self.metrics)
        if counted is None:
            return {mean_name: values.mean(dim=1), last_name: values[:, -1]}
        last = values.shape[1] - 1 - counted.long().flip(1).argmax(dim=1, keepdim=True)
        mean = (values * counted).sum(dim=1) / counted.sum(dim=1)
        return {mean_name: mean, last_name: values.gather(1, last)[:, 0]}

    def reached(self, values: Mapping[str, float], loss: float, stopping: Stopping) -> bool:
        limit = self.loss_limit(stopping)
        return limit is not None and loss <= limit


@dataclass(frozen=True)
class SquaredError(_EachOutput):
    """Mean squared error over the outputs that count.

    Attributes:
        scale: What errors are divided by, such as the variance of the targets.
    """

    scale: float = 1.0

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("squared_error", higher_is_better=False),
        Metric("last_squared_error", higher_is_better=False),
    )

    def by_output(self, outputs: Tensor, batch: "Batch") -> Tensor:
        return (outputs - batch.targets) ** 2 / self.scale

    def loss(self, outputs: Tensor, batch: "Batch") -> Tensor:
        return _mean_of_counted(self.by_output(outputs, batch), batch.counted)


class LogisticLoss(_EachOutput):
    """Cross-entropy of `sigmoid(output)` where targets are -1 and 1; the sign of an output is what it predicts."""

    metrics = (
        Metric("accuracy", higher_is_better=True, in_percent=True),
        Metric("last_accuracy", higher_is_better=True, is_share=True),
    )

    def by_output(self, outputs: Tensor, batch: "Batch") -> Tensor:
        return (outputs.sign() == batch.targets).to(outputs.dtype)

    def loss(self, outputs: Tensor, batch: "Batch") -> Tensor:
        return _mean_of_counted(functional.softplus(-outputs * batch.targets), batch.counted)


def solved(outputs: Tensor, batch: "Batch") -> Tensor:
    """Which problems are right in every output that counts, boolean `[batch]`."""
    right = outputs.argmax(-1) == batch.targets
    return (right if batch.counted is None else right | ~batch.counted).all(dim=1)


def _mean_of_counted(values: Tensor, counted: Tensor | None) -> Tensor:
    return values.mean() if counted is None else (values * counted).sum() / counted.sum()


def wilson_interval(right: int, total: int, z: float = _QUANTILE) -> tuple[float, float]:
    """Wilson's score interval for a share (Wilson 1927), 95 % by default.

    Args:
        right: Successes.
        total: Trials, at least 1.
        z: Standard normal quantile of the interval's upper end.
    """
    share = right / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    # At either end the interval touches it exactly; rounding must not say otherwise.
    low = 0.0 if right == 0 else max(0.0, centre - half)
    high = 1.0 if right == total else min(1.0, centre + half)
    return low, high
