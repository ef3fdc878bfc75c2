"""The problems and the rows of an evaluation."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from abc_toolkit.errors import UserError
from abc_toolkit.layout import Layout
from abc_toolkit.models.base import DecodingModel, Maps, Model, predict
from abc_toolkit.models.decoding import Decode, decode_problems, greedy, pieces, planned, solves
from abc_toolkit.models.transformer import AttentionModel
from abc_toolkit.report import terminal
from abc_toolkit.runs.description import rebuild
from abc_toolkit.runs.files import load_json
from abc_toolkit.seeds import Stream, drawing, seeded
from abc_toolkit.tasks.base import SMALL, UNIFORM, Batch, Decodable, HeldOut, Listed, Observed, Problems, Task
from abc_toolkit.tasks.lengths import Shape, Size
from abc_toolkit.tasks.objective import EXACT_MATCH, Metric
from abc_toolkit.training.data import draw

_AT_ONCE = 64  # problems that a baseline does at once
_RESAMPLES = 1000  # of a bootstrap
_MAPPED = 4  # problems whose attention maps are held at once
_TOKENS_DRAWN = 2**20  # of problems that are made at once; which ones they are depends on it


@dataclass(frozen=True)
class Row:
    """One line of `results.json`: one metric of one model on one suite of one length.

    Attributes:
        task: The task's name.
        suite: Evaluation suite.
        length: The length, in the unit of the task's `max_length`.
        tokens: Tokens of inputs and target together, in the suite's largest shape.
        samples: Number of problems.
        metric: Name of the metric.
        value: Its mean over the problems; of a metric of decoded targets, its value for all problems together.
        low: Lower end of the 95 % interval: Wilson's for a share, a bootstrap's for a metric of decoded targets, else
            that of a normal mean.
        high: Upper end.
        weights: The phase whose model it is, or the baseline.
        seed: What the problems were drawn from.
        decode: How it was computed.
        shape: The one shape that was asked for, the larger of whose lengths is `length`.
    """

    task: str
    suite: str
    length: int
    tokens: int
    samples: int
    metric: str
    value: float
    low: float
    high: float
    weights: str
    seed: int
    decode: Decode
    shape: Shape | None = None

    def plain(self) -> dict[str, Any]:
        """The row as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Curve:
    """The first metric of one model at each observed output of one suite.

    Attributes:
        suite: Evaluation suite.
        weights: The phase whose model it is, or the baseline.
        metric: Name of the metric.
        samples: Number of problems.
        values: Its mean over the problems, output by output.
        low: Lower ends of 95 % bootstrap intervals.
        high: Upper ends.
        counted: Which outputs count in the suite's rows.
    """

    suite: str
    weights: str
    metric: str
    samples: int
    values: list[float]
    low: list[float]
    high: list[float]
    counted: list[bool]


@dataclass(frozen=True)
class Attended:
    """The attention of a model's query of interest, averaged over problems and heads.

    Attributes:
        weights: The phase whose model it is.
        samples: Number of problems.
        layers: Of each layer, the attention to each key of interest.
    """

    weights: str
    samples: int
    layers: list[list[float]]


@dataclass(frozen=True)
class Measured:
    """What an evaluation found.

    Attributes:
        rows: A row for each length or shape, suite, model and metric.
        digits: Accuracy by place, where problems were decoded step by step, as rows of plain data.
        curves: The first metric output by output, at the largest length, where the task's outputs are observed.
    """

    rows: list[Row]
    digits: list[dict[str, Any]]
    curves: list[Curve]


def read_rows(path: Path) -> tuple[Row, ...]:
    """The rows of a results file.

    Raises:
        UserError: If the file is not one of this version.
    """
    found = load_json(path)
    if isinstance(found, list) and any(isinstance(row, dict) and "exact_match" in row for row in found):
        raise UserError(f"{path} has the rows of an earlier version: do 'abc evaluate --overwrite' again")
    return rebuild(found, tuple[Row, ...], path, whole=True)


def evaluation_problems(task: Task, size: Size, suite: str, samples: int, seed: int) -> Iterator[Batch]:
    """The problems of one length, or shape, and suite, made piece by piece.

    Within the training lengths, `uniform` problems are those held out of training, where there are any. Of a task with
    lists of problems, the same ones are chosen at every length, as far as each has them.

    Args:
        task: The task.
        size: The length, or one shape.
        suite: One of the task's suites.
        samples: How many, over all shapes of the suite.
        seed: What they follow from.
    """
    generator = seeded(seed, Stream.EVALUATION, *_numbers(size), task.suites.index(suite))
    shapes = _shapes(task, size, suite, generator)[:samples]
    for number, shape in enumerate(shapes):
        left = samples // len(shapes) + (number < samples % len(shapes))
        most = max(1, _TOKENS_DRAWN // sum(task.num_tokens(shape)))
        if isinstance(task, Listed):
            choosing = seeded(seed, Stream.EVALUATION, task.suites.index(suite))
            for numbers in task.choose(choosing, left, shape, suite).split(most):
                yield task.listed(numbers, shape, suite)
            continue
        trained = suite == UNIFORM and max(_numbers(size)) <= task.max_length
        holds_out = trained and isinstance(task, HeldOut) and task.num_problems(shape) >= SMALL
        while left:
            batch = min(left, most)
            left -= batch
            if holds_out:
                yield draw(task, generator, batch, shape, for_validation=True, suite=suite)
            else:
                yield task.sample(generator, batch, shape, suite)


def _shapes(task: Task, size: Size, suite: str, generator: torch.Generator) -> tuple[Shape, ...]:
    return task.evaluation_shapes(size, suite, generator) if isinstance(size, int) else (size,)


def _numbers(size: Size) -> Shape:
    return (size,) if isinstance(size, int) else size


def reported_metrics(task: Task, decode: Decode) -> tuple[Metric, ...]:
    """The metrics that an evaluation finds.

    Raises:
        UserError: If `steps` is asked for and the task has no such decoding, or a library that it needs is missing.
    """
    metrics = task.objective.metrics
    if decode == "parallel":
        return metrics
    if isinstance(task, Decodable):
        return (*metrics, task.decoded_metric)
    if not task.interface.decoded or metrics != (EXACT_MATCH,):
        raise UserError(f"--decode steps is not available for {task.name}: leave it out")
    return metrics


def evaluate_models(
    task: Task,
    models: Mapping[str, Model],
    sizes: Sequence[Size],
    suites: Sequence[str],
    samples: int,
    decode: Decode,
    seed: int,
    device: torch.device,
) -> Measured:
    """The task's metrics, of several models on the same problems; on the default suites, of the baselines as well.

    Args:
        task: The task.
        models: Models in evaluation mode, by the phase they come from.
        sizes: Lengths and shapes.
        suites: Evaluation suites.
        samples: Problems of each length and suite.
        decode: `parallel` judges every token under the true tokens before it, which finds the same problems solved
            as greedy decoding does; `steps` decodes, which accuracy by digit and metrics of decoded targets need.
        seed: What the problems follow from.
        device: Where to run.
    """
    found = Measured([], [], [])
    baselines = task.baselines()
    work = [(size, suite) for size in sizes for suite in suites]
    longest = max((_numbers(size) for size in sizes), default=(0,))
    shown = [len(models) + (len(baselines) if suite in task.default_suites else 0) for _, suite in work]
    with terminal.counter("evaluating", sum(shown) * samples, "problems") as count:
        for size, suite in work:
            length, shape = (size, None) if isinstance(size, int) else (max(size), size)
            beside = baselines if suite in task.default_suites else {}
            totals = {weights: Total(task) for weights in (*models, *beside)}
            tokens = 0
            for number, problems in enumerate(evaluation_problems(task, size, suite, samples, seed)):
                tokens = max(tokens, sum(task.num_tokens(problems.shape)))
                layout = task.layout(problems.shape).to(device)
                for weights, model in models.items():
                    with drawing(seed, Stream.POSITIONS, *_numbers(size), task.suites.index(suite), number):
                        totals[weights].add(model.to(device), problems.to(device), layout, decode, count)
                for name, baseline in beside.items():
                    for piece in problems.split(_AT_ONCE):
                        totals[name].count(piece, baseline(piece))
                        count(len(piece))
            for weights, total in totals.items():
                resampling = seeded(seed, Stream.BOOTSTRAP, length, task.suites.index(suite))
                for metric, summary in (*total.summaries(), *total.decoded_summaries(resampling)):
                    made = (total.samples, metric.name, *summary, weights, seed, decode, shape)
                    found.rows.append(Row(task.name, suite, length, tokens, *made))
                found.digits.extend(
                    {"weights": weights, "suite": suite, "length": length, "place": place, "accuracy": accuracy}
                    for place, accuracy in enumerate(total.accuracies() if shape is None else ())
                )
                if _numbers(size) == longest:
                    generator = seeded(seed, Stream.BOOTSTRAP, length, task.suites.index(suite))
                    found.curves.extend(total.curves(suite, weights, generator))
    return found


def attended(task: Task, model: AttentionModel, weights: str, length: int, samples: int, seed: int) -> Attended:
    """The attention of the query of interest to the keys of interest, on problems of the plain suite.

    Args:
        task: The task.
        model: The model, in evaluation mode, on the processor.
        weights: The phase that it is of.
        length: The length.
        samples: How many problems.
        seed: What the problems follow from.
    """
    assert isinstance(task, Observed)
    sums: list[Tensor] = []
    for problems in evaluation_problems(task, length, task.suites[0], samples, seed):
        query, keys = task.observed_attention(problems.shape)
        layout = task.layout(problems.shape)
        for batch in problems.split(_MAPPED):
            maps: Maps = {}
            with torch.no_grad():
                predict(model, batch, layout, maps)
            own = [maps[site_and_layer][:, :, query, keys].mean(dim=1).sum(dim=0) for site_and_layer in sorted(maps)]
            sums = [total + more for total, more in zip(sums, own, strict=True)] if sums else own
    return Attended(weights, samples, [(total / samples).tolist() for total in sums])


def bootstrap(values: Tensor, generator: torch.Generator, resamples: int = _RESAMPLES) -> tuple[Tensor, Tensor]:
    """95 % intervals of means, by the percentiles of means of samples drawn again (Efron 1979).

    Args:
        values: A number for each problem, and for each of several things, `[problem, ...]`.
        generator: Draws the samples, the same ones for everything.
        resamples: How many.

    Returns:
        Lower and upper ends, `[...]`.
    """
    means = (_resampled_sums(values.flatten(1), generator, resamples) / len(values)).unflatten(1, values.shape[1:])
    return _ends(means)


def _resampled_sums(values: Tensor, generator: torch.Generator, resamples: int) -> Tensor:
    """Sums over problems drawn again, `[resample, number]`, of numbers `[problem, number]`."""
    number = len(values)
    drawn = torch.randint(number, (resamples, number), generator=generator)
    counts = torch.zeros(resamples, number).scatter_add_(1, drawn, torch.ones(resamples, number))
    return counts.double() @ values.double()


def _ends(found: Tensor) -> tuple[Tensor, Tensor]:
    """Lower and upper end of what was found in each resample, `[resample, ...]`."""
    low, high = found.quantile(torch.tensor([0.025, 0.975], dtype=found.dtype), dim=0)
    return low, high


class Total:
    """Sums of a task's metrics over some problems.

    Args:
        task: The task.
    """

    def __init__(self, task: Task) -> None:
        self.samples = 0
        self._objective = task.objective
        self._decodable = task if isinstance(task, Decodable) else None
        self._statistics: list[Tensor] = []  # of decoded targets
        self._sums = {metric: [0.0, 0.0] for metric in self._objective.metrics}
        self._right_at: Tensor | None = None  # problems whose token at each place is right, as they were decoded
        self._shapes: set[Shape] = set()
        self._observed = task.observed_outputs if isinstance(task, Observed) else None
        self._by_output: list[Tensor] = []
        self._counted: list[bool] = []

    def add(
        self,
        model: Model,
        problems: Batch,
        layout: Layout,
        decode: Decode,
        count: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Lets a model do problems of one shape, on its device; `count` is told how many more are done."""
        self._shapes.add(problems.shape)
        # Decoding finds exact match alone; other metrics are of outputs under the true tokens.
        if not isinstance(problems, Problems) or len(self._sums) > 1 or self._decodable is not None:
            decodes = self._decodable is not None and decode == "steps"
            for batch in pieces(model, problems):
                with torch.no_grad():
                    self.count(batch, predict(model, batch, layout))
                if not decodes:
                    count(len(batch))
            if self._decodable is not None and decodes:
                assert isinstance(model, DecodingModel)
                assert isinstance(problems, Problems)
                decoded = decode_problems(model, self._decodable, problems, greedy, count)
                self._statistics.append(self._decodable.statistics(decoded, problems))
            return
        assert isinstance(model, DecodingModel)
        for batch, plan in planned(model, problems, layout, decode):
            if decode == "parallel":
                right = solves(model, batch, plan)
            else:
                decoded = greedy(model, batch.source, plan)
                right = (decoded == batch.target).all(dim=1)
                if len(self._shapes) == 1:
                    at = (decoded == batch.target)[:, :-1].sum(dim=0)
                    self._right_at = at if self._right_at is None else self._right_at + at
            self._add({self._objective.metrics[0].name: right})
            count(len(batch))

    def count(self, batch: Batch, outputs: Tensor) -> None:
        """Counts the metrics of outputs for a batch."""
        self._add(self._objective.measured(outputs, batch))
        values = self._objective.by_output(outputs, batch)
        if self._observed is not None and values is not None:
            outputs_of_interest = self._observed(batch.shape)
            self._by_output.append(values.cpu()[:, outputs_of_interest])
            if batch.counted is not None:
                self._counted = batch.counted[0].cpu()[outputs_of_interest].tolist()

    def _add(self, measured: Mapping[str, Tensor]) -> None:
        for metric, sums in self._sums.items():
            values = measured[metric.name].double()
            sums[0] += float(values.sum())
            sums[1] += float((values**2).sum())
        self.samples += len(next(iter(measured.values())))

    def summaries(self) -> Iterator[tuple[Metric, tuple[float, float, float]]]:
        """Each metric, with its mean and 95 % interval."""
        for metric, (total, squares) in self._sums.items():
            yield metric, metric.summary(total, squares, self.samples)

    def decoded_summaries(self, generator: torch.Generator) -> Iterator[tuple[Metric, tuple[float, float, float]]]:
        """The metric of decoded targets with its 95 % bootstrap interval, if targets were decoded for one.

        Args:
            generator: Draws problems again.
        """
        if self._decodable is None or not self._statistics:
            return
        statistics = torch.cat(self._statistics)
        sums = _resampled_sums(statistics, generator, _RESAMPLES)
        low, high = _ends(torch.tensor([self._decodable.score(row) for row in sums], dtype=torch.double))
        yield self._decodable.decoded_metric, (self._decodable.score(statistics.sum(dim=0)), float(low), float(high))

    def accuracies(self) -> list[float]:
        """Accuracy by place, if problems of one shape were decoded step by step: places of several do not match."""
        if self._right_at is None or len(self._shapes) > 1:
            return []
        return (self._right_at / self.samples).tolist()

    def curves(self, suite: str, weights: str, generator: torch.Generator) -> Iterator[Curve]:
        """The first metric at each observed output, if outputs were observed."""
        if not self._by_output:
            return
        values = torch.cat(self._by_output)
        low, high = bootstrap(values, generator)
        counted = self._counted or [True] * values.shape[1]
        numbers = (values.double().mean(dim=0).tolist(), low.tolist(), high.tolist())
        yield Curve(suite, weights, self._objective.metrics[0].name, len(values), *numbers, counted)
