"""`fit` and `retrain`: the two phases that train a model."""

import contextlib
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from abc_toolkit.errors import Interrupted, UserError
from abc_toolkit.models.base import Architecture, Backbone, Model
from abc_toolkit.models.memory import check_training_memory
from abc_toolkit.models.savings import Saving
from abc_toolkit.phases.base import check_backbone, check_task, next_command, run_with
from abc_toolkit.positions import NoPE, PositionMethod
from abc_toolkit.proof import CannotDecideError
from abc_toolkit.report import console, terminal
from abc_toolkit.runs.files import load_json, save_text, sha256
from abc_toolkit.runs.folder import (
    WINDOW,
    Phase,
    Run,
    build_model,
    save_record,
    save_weights,
)
from abc_toolkit.tasks import Addition, Calibratable, Task
from abc_toolkit.tasks.base import Staged, require
from abc_toolkit.tasks.objective import EXACT_MATCH, Objective, Stopping
from abc_toolkit.training.coverage import THIN, Coverage
from abc_toolkit.training.curriculum import Curriculum
from abc_toolkit.training.data import Data
from abc_toolkit.training.loop import HISTORY, Trained, TrainerSettings, Training, lightning_trainer, train
from abc_toolkit.training.module import Optimizer
from abc_toolkit.training.processes import undisturbed
from abc_toolkit.windows import Window
from abc_toolkit.windows.rules import WindowBackbone

Until = Literal["auto", "certified", "validated"]
# A model that hovers about the threshold reaches it by chance, and settles above it as the rate falls:
# experiments/reliability/stopping.py compares rules.
FIT_STOPPING = Stopping(exact_match=0.999, decay_steps=300)
RETRAIN_STOPPING = Stopping(exact_match=1.0, loss=2e-4, decay_steps=800)
RETRAIN_DATA = Data(batch_size=128)


@dataclass(frozen=True)
class ArchitectureChanges:
    """Overrides of the vanilla architecture: what is not given stays.

    Attributes:
        num_encoder_layers: Encoder depth; must be the window's.
        num_decoder_layers: Decoder depth; must be the window's.
        model_dim: Width of the streams.
        num_heads: Attention heads a layer; must be the window's.
        feedforward_dim: Width of the hidden layer of each feed-forward block.
        norm: Layer normalisation before (`pre`) or after (`post`) each block, or `none`.
        dropout: Probability of dropping an activation or an attention weight while training.
        position: Position method beside the window.
        backbone: Must be the window's.
        savings: Parameters to do without, as in `abc fit`.
    """

    num_encoder_layers: int | None = None
    num_decoder_layers: int | None = None
    model_dim: int | None = None
    num_heads: int | None = None
    feedforward_dim: int | None = None
    norm: Literal["pre", "post", "none"] | None = None
    dropout: float | None = None
    position: PositionMethod = field(default_factory=NoPE)
    backbone: Backbone | None = None
    savings: tuple[Saving, ...] | None = None

    def applied_to(self, vanilla: Architecture) -> Architecture:
        """The vanilla architecture with these overrides."""
        return replace(vanilla, **{name: value for name, value in vars(self).items() if value is not None})


@dataclass(frozen=True)
class TrainingResult:
    """What `fit` and `retrain` return.

    Attributes:
        run: The run.
        model: The trained model, in evaluation mode.
        trained: How training ended.
    """

    run: Run
    model: Model
    trained: Trained


def fit(
    task: Task | None = None,
    *,
    run: Path | None = None,
    seed: int = 0,
    model: Architecture = Architecture(),  # noqa: B008
    data: Data = Data(),  # noqa: B008
    optimizer: Optimizer = Optimizer(),  # noqa: B008
    curriculum: Curriculum | None = None,
    stopping: Stopping = FIT_STOPPING,
    trainer: TrainerSettings = TrainerSettings(),  # noqa: B008
    resume: bool = False,
    overwrite: bool = False,
) -> TrainingResult:
    """Trains the vanilla model until it interpolates: phase 1.

    Args:
        task: What to learn; Addition if not given.
        run: Run folder; runs/TASK if not given.
        seed: Everything random follows from it.
        model: Sizes of the model and its position method.
        data: Training batches and validation problems.
        optimizer: Optimiser.
        curriculum: Stages of a task in context.
        stopping: When the model interpolates.
        trainer: Lightning's trainer.
        resume: Go on with an interrupted fit.
        overwrite: Replace a fit that is there.

    Returns:
        The model and how training ended.

    Raises:
        UserError: If the run folder is not free, or training breaks.
    """
    # No default instance above: on the command line its settings would be passed on to another task's class.
    task = Addition() if task is None else task
    model = model.for_task(task.interface.decoded)
    target = Run.named(run, task)
    settings = {"model": model, "data": data, "optimizer": optimizer, "stopping": stopping, "trainer": trainer}
    check_task(target, task, overwrite)
    if curriculum is not None:
        settings |= {"curriculum": curriculum}
        require(task, Staged, "abc fit --curriculum").stage(curriculum.dim_end, curriculum.points_end)
    training = Training("fit", task, model, data, optimizer, stopping, trainer, seed, curriculum)
    order = _Order(target, resume, overwrite, {"task": task, "seed": seed} | settings, {})
    result = _train(training, order, None, "validated")
    summary = _training_summary("The vanilla model", task.objective, result.trained, stopping, trainer)
    if isinstance(task, Calibratable) and model.kind in get_args(WindowBackbone):
        following = next_command(target, "calibrate")
    else:
        following = next_command(target, "evaluate", " --length 1x" if task.one_length else "")
    terminal.done(summary, target.folder("fit"), following)
    return result


def retrain(
    *,
    run: Path | None = None,
    seed: int | None = None,
    window: Path | None = None,
    model: ArchitectureChanges = ArchitectureChanges(),
    data: Data = RETRAIN_DATA,
    optimizer: Optimizer = Optimizer(),  # noqa: B008
    stopping: Stopping = RETRAIN_STOPPING,
    until: Until = "auto",
    trainer: TrainerSettings = TrainerSettings(),  # noqa: B008
    resume: bool = False,
    overwrite: bool = False,
) -> TrainingResult:
    """Trains a fresh model inside the window: phase 3.

    Args:
        run: Run folder; the newest in runs/ if not given.
        seed: Everything random follows from it; that of the fit if not given.
        window: Window file; that of the run's calibration if not given.
        model: Sizes and position method; what is not given is the vanilla model's, but without positions.
        data: Training batches and validation problems.
        optimizer: Optimiser.
        stopping: When training has reached its end.
        until: certified trains until the model is right, with a margin, in all that can occur at the training lengths,
            and adds examples of that in which it is weak; stopping.loss does not count. validated trains until the
            stopping rule is met on held-out problems. auto is certified where the task and the window allow it.
        trainer: Lightning's trainer.
        resume: Go on with an interrupted retrain.
        overwrite: Replace a retrain that is there.

    Returns:
        The model and how training ended.

    Raises:
        UserError: If the window does not fit, the run folder is not free, or training breaks.
    """
    target = run_with(run, "fit" if window is not None else "calibrate", Calibratable, "abc retrain")
    began = target.first
    task = target.task(began)
    architecture = model.applied_to(target.architecture(began))
    check_backbone(architecture, target)
    inputs = {name: value for name, value in target.produced(began).items() if name != "fit: weights"}
    inputs |= target.produced("calibrate") if window is None else {"window": sha256(window)}
    rules = target.window() if window is None else Window.load(window)
    _check_window(rules, window, target, task)
    settings = {"data": data, "optimizer": optimizer, "stopping": stopping, "trainer": trainer}
    arguments = {"seed": seed, "window": window, "model": model, "until": until} | settings
    seed = int(target.record(began)["seed"]) if seed is None else seed
    training = Training("retrain", task, architecture, data, optimizer, stopping, trainer, seed)
    result = _train(training, _Order(target, resume, overwrite, arguments, inputs), rules, until)
    summary = _training_summary("The model inside the window", task.objective, result.trained, stopping, trainer)
    try:
        reason = target.stale("certify") if target.has("certify") else None
    except UserError as error:  # of a damaged certificate; what was trained is whole
        reason = str(error)
    if reason is not None:
        summary += f" The certificate in the run is stale: {reason}."
    terminal.done(summary, target.folder("retrain"), next_command(target, "evaluate", " --length 10x"))
    return result


def _check_window(window: Window, path: Path | None, run: Run, task: Task) -> None:
    """Refuses a window of another task or its segments, and the run's own if it is of other weights."""
    if window.task != type(task).__name__:
        raise UserError(f"the window is for {window.task} and the run in {run.path} is of {type(task).__name__}")
    segments = task.layout(task.training_shapes()[-1]).source.names
    for rule in window.rules:
        for segment in (rule.key_segment, rule.query_segment):
            if segment is not None and segment not in segments:
                raise UserError(
                    f"the window names the segment {segment!r}, which {task.name} has not: it has {', '.join(segments)}"
                )
    reason = run.stale("calibrate") if path is None else None
    if reason is not None:
        raise UserError(f"the window in {run.path} is stale: {reason}; do 'abc calibrate --overwrite' first")


@dataclass(frozen=True)
class _Order:
    """How a phase that trains is written.

    Attributes:
        run: The run.
        resume: Whether to go on with an interrupted training.
        overwrite: Whether to replace what is there.
        arguments: The arguments of the phase, as they were given.
        inputs: Hashes of what it read of the phases before.
    """

    run: Run
    resume: bool
    overwrite: bool
    arguments: Mapping[str, Any]
    inputs: Mapping[str, str]


def _train(training: Training, order: _Order, window: Window | None, until: Until) -> TrainingResult:
    """Trains a fresh model and writes the phase's folder."""
    phase, run = training.phase, order.run
    data, accelerator = training.data, training.trainer.accelerator
    check_training_memory(training.task, training.architecture, data.batch_size, data.validation_problems, accelerator)
    with undisturbed():
        runner = lightning_trainer(training.trainer)
        rank = runner.global_rank
        for remark in training.task.remarks() if not rank else ():
            console.remark(remark)
        writing = run.writing(phase, order.resume, order.overwrite, inputs=order.inputs, rank=rank)
        with _only_first(rank):
            torch.manual_seed(training.stream)
            model = build_model(training.task, training.architecture, window)
            with _told(run, phase), writing as folder:
                coverage = None if until == "validated" else _coverage(training.task, model, until)
                settings = training.trainer
                with terminal.training_bar(phase, settings.max_steps, settings.progress_bar) as bar:
                    trained = train(
                        training,
                        model,
                        folder=folder,
                        runner=runner,
                        coverage=coverage,
                        resume=order.resume,
                        progress=bar,
                    )
                if not rank:
                    _write(folder, training, order, model, window, trained)
    return TrainingResult(run, model, trained)


def _write(
    folder: Path, training: Training, order: _Order, model: Model, window: Window | None, trained: Trained
) -> None:
    """Writes what a training ended with."""
    from abc_toolkit.report import figures  # loads seaborn and pandas

    if window is not None:
        save_text(folder / WINDOW, window.to_json())
    save_weights(folder, model)
    figures.training(folder / "training.png", load_json(folder / HISTORY) | {"phase": training.phase})
    facts: dict[str, Any] = {"task": training.task, "model": training.architecture}
    if training.task.data_files():
        facts["data_files"] = training.task.data_files()
    results = asdict(trained)
    save_record(folder, training.phase, training.seed, order.arguments, results, inputs=order.inputs, facts=facts)


@contextlib.contextmanager
def _only_first(rank: int) -> Generator[None, None, None]:
    """Lets the first process of a training go on after the block, and ends the others there.

    Raises:
        SystemExit: In the others, silently: the first one reports errors.
    """
    if not rank:
        yield
        return
    with console.silent():
        try:
            yield
        except UserError:
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            raise SystemExit(130) from None
        raise SystemExit(0)


@contextlib.contextmanager
def _told(run: Run, phase: Phase) -> Generator[None, None, None]:
    """Says in the interruption whether the training can be resumed from its progress."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(run.interrupted(phase)) from None


def _coverage(task: Task, model: Model, until: Until) -> Coverage | None:
    """The assignments that the model is to be right in, if they can be enumerated."""
    try:
        return Coverage(task, model)
    except CannotDecideError as error:
        if until == "certified":
            raise UserError(f"--until certified is not available: {error}; take --until validated") from None
        console.remark(f"Training ends by validation alone: {error}.")
    return None


def _training_summary(
    what: str, objective: Objective, trained: Trained, stopping: Stopping, trainer: TrainerSettings
) -> str:
    after = f"after {trained.steps} steps ({trained.seconds:.0f} s)."
    metric = objective.metrics[0]
    value = trained.metrics[metric.name]
    if metric.name != EXACT_MATCH.name:
        return f"{what} reaches a {metric.told(value)} on {trained.validated_on} held-out problems {after}".replace(
            "a accuracy", "an accuracy of"
        )
    summary = f"{what} solves {100 * value:.2f} % of {trained.validated_on} held-out problems {after}"
    if trained.weak:
        summary += f" In {trained.weak} assignments it is wrong or leads by less than {THIN:g}:"
    elif trained.reached and trained.weak is not None:
        summary += " It is right, with a margin, in all that can occur at the training lengths."
    elif not trained.reached:
        limit = objective.loss_limit(stopping)
        loss = "" if limit is None else f" and a loss of at most {limit:g} (it is {trained.loss:.2g})"
        summary += f" The stopping rule asks for {100 * stopping.exact_match:g} %{loss}:"
    if not trained.reached and trained.steps >= trainer.max_steps:
        summary += " train longer with --resume --trainer.max_steps N."
    elif not trained.reached:
        summary += " it was met and then no longer; start afresh with --overwrite and more --stopping.decay_steps."
    return summary
