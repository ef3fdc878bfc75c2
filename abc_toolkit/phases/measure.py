"""The problems and the rows of an evaluation."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from abc_toolkit.errors import UserError
from abc_toolkit.layout import Layout
from abc_toolkit.models.base import DecodingModel, Model, predict
from abc_toolkit.models.decoding import Decode, greedy, pieces, planned, solves
from abc_toolkit.report import terminal
from abc_toolkit.runs.description import rebuild
from abc_toolkit.runs.files import load_json
from abc_toolkit.seeds import Stream, drawing, seeded
from abc_toolkit.tasks.base import SMALL, UNIFORM, Batch, HeldOut, Problems, Task
from abc_toolkit.tasks.lengths import Shape, Size
from abc_toolkit.tasks.objective import Metric
from abc_toolkit.training.data import draw

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
        value: Its mean over the problems.
        low: Lower end of the 95 % interval: Wilson's for a share, else that of a normal mean.
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

    Within the training lengths, `uniform` problems are those held out of training, where there are any.

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


def evaluate_models(
    task: Task,
    models: Mapping[str, Model],
    sizes: Sequence[Size],
    suites: Sequence[str],
    samples: int,
    decode: Decode,
    seed: int,
    device: torch.device,
) -> tuple[list[Row], list[dict[str, Any]]]:
    """The task's metrics, of several models and of the task's baselines, on the same problems.

    Args:
        task: The task.
        models: Models in evaluation mode, by the phase they come from.
        sizes: Lengths and shapes.
        suites: Evaluation suites.
        samples: Problems of each length and suite.
        decode: `parallel` judges every token under the true tokens before it, which finds the same problems solved
            as greedy decoding does; `steps` decodes, which accuracy by digit needs.
        seed: What the problems follow from.
        device: Where to run.

    Returns:
        A row for each length or shape, suite, model and metric; and, with `steps`, accuracy by place as rows of plain
        data.
    """
    rows, digit_rows = [], []
    baselines = task.baselines()
    work = [(size, suite) for size in sizes for suite in suites]
    with terminal.counter("evaluating", len(work) * (len(models) + len(baselines)) * samples, "problems") as count:
        for size, suite in work:
            length, shape = (size, None) if isinstance(size, int) else (max(size), size)
            totals = {weights: Total(task) for weights in (*models, *baselines)}
            tokens = 0
            for number, problems in enumerate(evaluation_problems(task, size, suite, samples, seed)):
                tokens = max(tokens, sum(task.num_tokens(problems.shape)))
                layout = task.layout(problems.shape).to(device)
                for weights, model in models.items():
                    with drawing(seed, Stream.POSITIONS, *_numbers(size), task.suites.index(suite), number):
                        totals[weights].add(model.to(device), problems.to(device), layout, decode, count)
                for name, baseline in baselines.items():
                    totals[name].count(problems, baseline(problems))
                    count(len(problems))
            for weights, total in totals.items():
                for metric, summary in total.summaries():
                    made = (total.samples, metric.name, *summary, weights, seed, decode, shape)
                    rows.append(Row(task.name, suite, length, tokens, *made))
                digit_rows += [
                    {"weights": weights, "suite": suite, "length": length, "place": place, "accuracy": accuracy}
                    for place, accuracy in enumerate(total.accuracies() if shape is None else ())
                ]
    return rows, digit_rows


class Total:
    """Sums of a task's metrics over some problems.

    Args:
        task: The task.
    """

    def __init__(self, task: Task) -> None:
        self.samples = 0
        self._objective = task.objective
        self._sums = {metric: [0.0, 0.0] for metric in self._objective.metrics}
        self._right_at: Tensor | None = None  # problems whose token at each place is right, as they were decoded
        self._shapes: set[Shape] = set()

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
        if not isinstance(problems, Problems):
            for batch in pieces(model, problems):
                with torch.no_grad():
                    self.count(batch, predict(model, batch, layout))
                count(len(batch))
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

    def accuracies(self) -> list[float]:
        """Accuracy by place, if problems of one shape were decoded step by step: places of several do not match."""
        if self._right_at is None or len(self._shapes) > 1:
            return []
        return (self._right_at / self.samples).tolist()
