"""`evaluate`: the models of a run, measured at any length."""

import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch

from abc_toolkit.errors import UserError
from abc_toolkit.models.attention import AttentionPath
from abc_toolkit.models.base import Model
from abc_toolkit.models.decoding import Decode
from abc_toolkit.models.memory import check_memory
from abc_toolkit.models.transformer import AttentionModel
from abc_toolkit.phases.base import next_command
from abc_toolkit.phases.measure import Attended, Measured, Row, attended, evaluate_models, reported_metrics
from abc_toolkit.phases.solve import attending
from abc_toolkit.report import console, terminal
from abc_toolkit.runs.files import save_json
from abc_toolkit.runs.folder import Run, device_for, save_record
from abc_toolkit.tasks.base import ATTENTION, Calibratable, Listed, Solvable, Task, check_suites
from abc_toolkit.tasks.lengths import Size
from abc_toolkit.tasks.objective import Metric

RESULTS = "results.json"
DIGITS = "digit_accuracy.json"
CURVES = "curves.json"
OBSERVED_PROMPTS = 64  # whose attention is averaged


@dataclass(frozen=True)
class EvaluationResult:
    """What `evaluate` returns.

    Attributes:
        run: The run.
        rows: A row for each length or shape, set and model.
    """

    run: Run
    rows: tuple[Row, ...]


def evaluate(
    *,
    run: Path | None = None,
    length: str = "1x,2x,5x,10x",
    samples: int | None = None,
    sets: Sequence[str] | str | None = None,
    decode: Decode = "parallel",
    weights: Literal["all", "fit", "retrain"] = "all",
    attention: AttentionPath = "auto",
    seed: int = 0,
    accelerator: str = "cpu",
    overwrite: bool = False,
) -> EvaluationResult:
    """Measures the task's metrics at any length, vanilla against retrained: phase 4.

    Args:
        run: Run folder; the newest in runs/ if not given.
        length: 60; 10x, times the longest training length; a list 1x,2x,10x; a range 1x:10x; or a shape 3x200, where a
            task has such.
        samples: Problems of each length and suite; if not given, 1000, or 1280 prompts of a task in context.
        sets: Which of the task's suites, such as uniform,unequal,carry,zeros, or ood,duplicates,lost_in_the_middle,
            attention of a task in context; all, or ood, if not given.
        decode: parallel, or steps, which also gives accuracy by digit, or BLEU of translations.
        weights: Which model: fit for the vanilla one, retrain, or all that there are.
        attention: dense compares every query with every key; gathered fetches the keys that the window leaves open,
            at a cost in proportion to the length; auto goes by the size.
        seed: What the problems follow from, and positions that a method draws at random.
        accelerator: cpu, gpu or auto.
        overwrite: Replace an evaluation that is there.

    Returns:
        The rows of results.json.

    Raises:
        UserError: If a length, a suite or a number of samples makes no sense, or is too large for memory; or if the
            task cannot be decoded as asked.
    """
    start = time.perf_counter()
    source = Run.newest(run, None if weights == "all" else weights)
    if source.first != "fit":  # one that began with maps has no vanilla model
        source.check_has("retrain")
    task = source.task("retrain" if weights == "retrain" or source.first != "fit" else "fit")
    sizes, suites, device = check_evaluating(task, length, sets, samples, decode, accelerator)
    metrics = reported_metrics(task, decode)
    samples = task.num_samples if samples is None else samples
    phases = _phases(source, task, weights)
    inputs: dict[str, str] = {}
    for phase in phases:
        inputs |= source.produced(phase)
    for warning in (*source.warnings(*phases, "certify"), *task.remarks()):
        console.remark(warning)
    models = {phase: attending(source, phase, attention) for phase in phases}
    _check_room(task, models.values(), sizes, device)
    observed = _observable(models) if ATTENTION in suites else {}
    suites = tuple(suite for suite in suites if suite != ATTENTION)
    with source.writing("evaluate", overwrite=overwrite, inputs=inputs) as folder:
        measured = evaluate_models(task, models, sizes, suites, samples, decode, seed, device)
        rows = measured.rows
        plain = [row.plain() for row in rows]
        save_json(folder / RESULTS, plain)
        _draw(folder, task, metrics, plain, measured)
        seen = _observe(folder, task, observed, sizes, samples, seed)
        arguments = {"length": length, "samples": samples, "sets": sets, "decode": decode, "weights": weights}
        arguments |= {"attention": attention, "seed": seed, "accelerator": accelerator}
        results = {"rows": len(rows), "seconds": time.perf_counter() - start}
        save_record(folder, "evaluate", seed, arguments, results, inputs=inputs, facts={"task": task})
    terminal.print_results(plain, metrics)
    for attention_of_model in seen:
        terminal.print_attention(attention_of_model.weights, attention_of_model.layers, attention_of_model.samples)
    following = None
    if isinstance(task, Solvable):
        which = "" if "retrain" in phases else " --weights fit"
        following = next_command(source, "solve", f"{which} PROBLEM ...")
    terminal.done(f"{len(rows)} rows, {samples} problems each.", source.folder("evaluate"), following)
    return EvaluationResult(source, tuple(rows))


def _phases(run: Run, task: Task, weights: Literal["all", "fit", "retrain"]) -> list[Literal["fit", "retrain"]]:
    """The phases whose models are evaluated."""
    if weights != "all":
        return [weights]
    if run.has("retrain"):
        return ["fit", "retrain"] if run.has("fit") else ["retrain"]
    if os.path.lexists(run.folder("retrain")):
        raise UserError(
            f"{run.folder('retrain')} lacks its record: do 'abc retrain --overwrite' again, or take --weights fit"
        )
    if isinstance(task, Calibratable):
        console.remark(f"{run.path} holds no finished 'retrain': only the vanilla model is evaluated.")
    return ["fit"]


def _check_room(task: Task, models: Collection[Model], sizes: Sequence[Size], device: torch.device) -> None:
    """Refuses sizes of which a problem does not fit into memory."""
    shapes = [size for size in sizes if not isinstance(size, int)]
    lengths = [size for size in sizes if isinstance(size, int)]
    if lengths:  # of other suites no shape is larger
        shapes.append(task.evaluation_shapes(max(lengths), task.suites[0], torch.Generator())[0])
    for shape, model in product(shapes, models):
        check_memory(task, model, shape, device)


def _observable(models: Mapping[str, Model]) -> dict[str, AttentionModel]:
    """The models whose attention is shown.

    Raises:
        UserError: If one has no attention.
    """
    found: dict[str, AttentionModel] = {}
    for phase, model in models.items():
        if not isinstance(model, AttentionModel):
            raise UserError(f"--sets: {ATTENTION} is not available: {model.architecture.kind} has no attention")
        found[phase] = model
    return found


def _observe(
    folder: Path, task: Task, models: Mapping[str, AttentionModel], sizes: Sequence[Size], samples: int, seed: int
) -> list[Attended]:
    """Writes and draws the attention of the models at the largest length."""
    if not models:
        return []
    from abc_toolkit.report import figures

    length = max(size if isinstance(size, int) else max(size) for size in sizes)
    count = min(samples, OBSERVED_PROMPTS)
    found = [attended(task, model.cpu(), phase, length, count, seed) for phase, model in models.items()]
    plain = [asdict(one) for one in found]
    save_json(folder / "attention.json", plain)
    figures.attention_curves(folder / "attention.png", plain, f"{task.name}: attention in prompts of {length} points")
    return found


def _draw(folder: Path, task: Task, metrics: Sequence[Metric], rows: list[dict[str, Any]], measured: Measured) -> None:
    """Draws each metric against the length, or output by output, and accuracy by digit where it was measured."""
    from abc_toolkit.report import figures

    if measured.curves:
        save_json(folder / CURVES, [asdict(curve) for curve in measured.curves])
        judged = task.objective.metrics[0]
        groups: dict[str, list[dict[str, Any]]] = {}
        for curve in measured.curves:
            groups.setdefault(curve.suite.partition("/")[0], []).append(asdict(curve))
        for group, curves in groups.items():
            title = f"{task.name}: {group.replace('_', ' ')}"
            figures.output_curves(folder / f"{group}.png", curves, task.max_length, title, judged)
    for metric in metrics:
        curve = [row for row in rows if row["shape"] is None and row["metric"] == metric.name]
        name = "accuracy" if metric.name == "exact_match" else metric.name
        if curve and not measured.curves:
            figures.metric_curve(folder / f"{name}.png", curve, task.max_length, task.name, metric)
    if measured.digits:
        save_json(folder / DIGITS, measured.digits)
        figures.digit_accuracy(folder / "digit_accuracy.png", measured.digits, task.max_length, task.name)


def check_evaluating(
    task: Task, length: str, sets: Sequence[str] | str | None, samples: int | None, decode: Decode, accelerator: str
) -> tuple[list[Size], tuple[str, ...], torch.device]:
    """Refuses what an evaluation cannot do; the sizes, the suites and the device."""
    if samples is not None and samples < 1:
        raise UserError(f"--samples {samples}: give at least 1")
    reported_metrics(task, decode)  # raises where the task has no such decoding
    sizes, suites = task.lengths(length), check_suites(task, sets)
    for size, suite in product(sizes, suites):
        if isinstance(size, int) and suite not in (*task.default_suites, ATTENTION):
            task.evaluation_shapes(size, suite, torch.Generator())  # raises where the suite does not fit
        if isinstance(task, Listed) and isinstance(size, int):
            count = task.num_samples if samples is None else samples
            for shape in task.evaluation_shapes(size, suite, torch.Generator()):
                task.choose(torch.Generator(), count, shape, suite)  # raises where there are fewer problems
    return sizes, suites, device_for(accelerator)
