"""The phases, each one function: `fit`, `calibrate`, `retrain`, `evaluate`; `run_all` does the four, `solve` uses one.

Each phase writes a folder of its run and returns a small result; the next one finds what it needs in that folder.
"""

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from inspect import signature
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch

from abc_toolkit import report
from abc_toolkit.attention import AttentionPath
from abc_toolkit.calibration import CalibrationMethod, Places, Rule, Window
from abc_toolkit.calibration.capture import AttentionMaps, capture
from abc_toolkit.calibration.method import find_window
from abc_toolkit.costs import check_fits, check_held_out, check_training_memory
from abc_toolkit.coverage import THIN, Coverage
from abc_toolkit.data import Data, seeded, validation_problems
from abc_toolkit.description import describe, differences, rebuild
from abc_toolkit.errors import Interrupted, UserError
from abc_toolkit.evaluation import (
    Decode,
    Row,
    Size,
    check_memory,
    check_sets,
    chunks,
    drawing,
    evaluate_models,
    parse_sizes,
)
from abc_toolkit.files import load_json, read_text, save_json, save_tensors, save_text, sha256
from abc_toolkit.layout import Layout, raw_layout
from abc_toolkit.model import Architecture, Backbone, Model
from abc_toolkit.module import Optimizer
from abc_toolkit.positions import NoPE, PositionMethod
from abc_toolkit.processes import only_first, starts_processes, undisturbed, wanted_help
from abc_toolkit.proof import CannotDecideError, Certificate
from abc_toolkit.proof import certify as prove
from abc_toolkit.proof.basis import basis_of
from abc_toolkit.proof.certificate import difference, document, foreign, read_certificate
from abc_toolkit.run import (
    CERTIFICATE,
    PIPELINE,
    RECORD,
    WINDOW,
    Phase,
    Run,
    build_model,
    device_for,
    save_record,
    save_weights,
    versions,
)
from abc_toolkit.solving import attending
from abc_toolkit.solving import check_answers as check_answers
from abc_toolkit.solving import solve as solve
from abc_toolkit.tasks import Addition, ProblemError, Task
from abc_toolkit.tasks.base import SETS, UNIFORM, shape_name
from abc_toolkit.training import HISTORY, MAY_DIFFER, Stopping, Trained, TrainerSettings, lightning_trainer, train

MAPS = "attention_maps.safetensors"
RESULTS = "results.json"
DIGITS = "digit_accuracy.json"
Until = Literal["auto", "certified", "validated"]
# What the seeds of the phases are drawn for.
_PURPOSES: Mapping[Phase, int] = {"fit": 100, "calibrate": 101, "retrain": 102}
# The held-out problems that calibration asks are others than those that ended the training.
SAMPLING_SLACK = 0.002
# A model that hovers about the threshold reaches it by chance, and settles above it as the rate falls:
# experiments/reliability/stopping.py compares rules.
FIT_STOPPING = Stopping(exact_match=0.999, loss=1.0, decay_steps=300)
RETRAIN_STOPPING = Stopping(exact_match=1.0, loss=2e-4, decay_steps=800)
RETRAIN_DATA = Data(batch_size=128)


@dataclass(frozen=True)
class ArchitectureChanges:
    """What of the vanilla model's architecture the retrained model changes.

    Attributes:
        num_encoder_layers: Encoder depth; must be the window's.
        num_decoder_layers: Decoder depth; must be the window's.
        model_dim: Width of the streams.
        num_heads: Attention heads a layer; must be the window's.
        feedforward_dim: Width of the hidden layer of each feed-forward block.
        norm: Layer normalisation before (`pre`) or after (`post`) each block.
        dropout: Probability of dropping an activation or an attention weight while training.
        position: Position method beside the window.
        backbone: Must be `encoder-decoder`, as windows are of such.
    """

    num_encoder_layers: int | None = None
    num_decoder_layers: int | None = None
    model_dim: int | None = None
    num_heads: int | None = None
    feedforward_dim: int | None = None
    norm: Literal["pre", "post"] | None = None
    dropout: float | None = None
    position: PositionMethod = field(default_factory=NoPE)
    backbone: Backbone | None = None

    def of(self, vanilla: Architecture) -> Architecture:
        """The vanilla model's architecture with these changes."""
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


@dataclass(frozen=True)
class CalibrationResult:
    """What `calibrate` returns.

    Attributes:
        run: The run.
        window: The window.
        maps: Averaged attention of the vanilla model.
        added: Rules that were added because the window was not sufficient without them.
        exact_match: The vanilla model's exact match on held-out problems.
    """

    run: Run
    window: Window
    maps: AttentionMaps
    added: tuple[Rule, ...]
    exact_match: float


@dataclass(frozen=True)
class EvaluationResult:
    """What `evaluate` returns.

    Attributes:
        run: The run.
        rows: A row for each length or shape, set and model.
    """

    run: Run
    rows: tuple[Row, ...]


def fit(
    task: Task | None = None,
    *,
    run: Path | None = None,
    seed: int = 0,
    model: Architecture = Architecture(),  # noqa: B008
    data: Data = Data(),  # noqa: B008
    optimizer: Optimizer = Optimizer(),  # noqa: B008
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
    place = Run.of(run, task)
    settings = {"model": model, "data": data, "optimizer": optimizer, "stopping": stopping, "trainer": trainer}
    arguments = {"task": task, "seed": seed} | settings
    _check_task(place, task, overwrite)
    result = _train(place, "fit", task, None, seed, settings, "validated", resume, overwrite, arguments, {})
    summary = _training_summary("The vanilla model", result.trained, stopping, trainer)
    following = _next(place, "calibrate") if model.backbone == "encoder-decoder" else _next(place, "evaluate")
    report.done(summary, place.folder("fit"), following)
    return result


def calibrate(
    *,
    run: Path | None = None,
    method: CalibrationMethod = Places(),  # noqa: B008
    problems: int = 2560,
    force: bool = False,
    export: Path | None = None,
    size: str | None = None,
    accelerator: str = "cpu",
    overwrite: bool = False,
) -> CalibrationResult:
    """Turns the vanilla model's attention into a window: phase 2.

    Args:
        run: Run folder; the newest in runs/ if not given.
        method: How lines are found: Places or Paper.
        problems: Held-out problems whose attention is averaged, over all training shapes.
        force: Calibrate even if the model does not interpolate, or keep a window that is not sufficient.
        export: Also write the window to this safetensors file as the paper's M x N matrices, minus infinity where
            closed.
        size: Size of the exported matrices, such as 61x123: target tokens, the first ones if a problem has more, by
            source tokens; that of the longest training shape if not given.
        accelerator: cpu, gpu or auto.
        overwrite: Replace a calibration that is there.

    Returns:
        The window and what it was found in.

    Raises:
        UserError: If the model does not interpolate or the window is not sufficient, unless forced.
    """
    place = Run.newest(run, "fit")
    record, inputs = place.record("fit"), place.produced("fit")
    asked_for = rebuild(record["arguments"].get("stopping"), Stopping, place.folder("fit") / RECORD, whole=True)
    sizes = place.architecture("fit")
    _check_backbone(sizes, place)
    task, model = place.task("fit"), place.load_model("fit")
    start = time.perf_counter()
    device = _check_calibrating(task, sizes, problems, export, size, accelerator)
    with place.writing("calibrate", overwrite=overwrite, inputs=inputs) as folder:
        batches = validation_problems(task, seeded(record["seed"], _PURPOSES["calibrate"]).initial_seed(), problems)
        batches = [piece for batch in batches for piece in (batch[i : i + 256] for i in range(0, len(batch), 256))]
        work = list(chunks(task, batches, device))
        with drawing(record["seed"], _PURPOSES["calibrate"], 2):
            maps = capture(model.to(device), report.track(work, "averaging attention"))
        model.cpu()
        solved, asked = sum(maps.solved.values()), sum(len(batch) for batch in batches)
        exact_match, threshold = solved / asked, asked_for.exact_match
        if (exact_match < threshold - SAMPLING_SLACK and not force) or not solved:
            raise UserError(
                f"the model in {place.folder('fit')} does not interpolate: it solves {100 * exact_match:.2f} % of "
                f"{asked} held-out problems and {100 * threshold:g} % are asked for; train it longer "
                "(abc fit --overwrite --trainer.max_steps N)"
                + (", or go on all the same with --force" if solved else "")
            )
        frame = Window(
            task=type(task).__name__,
            num_encoder_layers=sizes.num_encoder_layers,
            num_decoder_layers=sizes.num_decoder_layers,
            num_heads=sizes.num_heads,
            rules=(),
            calibration=describe(method),
            weights=inputs["fit: weights"],
        )
        found = find_window(method, maps, task, frame, seeded(record["seed"], _PURPOSES["calibrate"], 1))
        if found.conflict is not None:
            message = f"the window is not sufficient: {found.conflict.describe()}"
            if isinstance(method, Places) and not force:
                raise UserError(f"{message}; lower --method.min_attention, or go on all the same with --force")
            report.remark(f"Warning: {message}.")
        maps.save(folder / MAPS)
        save_text(folder / WINDOW, found.window.to_json())
        if export is not None:
            _export(export, size, found.window, task, maps)
        longest = maps.longest
        results = {
            "exact_match": exact_match,
            "problems": asked,
            "rules": len(found.window.rules),
            "added": len(found.added),
            "closed": len(found.closed),
            "moved": len(found.moved),
            "sufficient": found.conflict is None,
            "seconds": time.perf_counter() - start,
        }
        _draw_calibration(folder, maps, found.window, task)
        arguments = {"method": method, "problems": problems, "force": force, "export": export, "size": size}
        arguments |= {"accelerator": accelerator}
        save_record(folder, "calibrate", record["seed"], arguments, results, inputs=inputs, facts={"task": task})
    report.print_window(found.window, found.attention, found.added, found.moved)
    summary = (
        f"{len(found.window.rules)} lines from {solved} solved problems of {len(maps.maps)} shapes up to "
        f"{shape_name(longest)}"
        + (f"; {len(found.added)} added to make the window sufficient" if found.added else "")
        + (f"; {len(found.closed)} closed or made fallbacks, as it is sufficient without" if found.closed else "")
        + (f"; {len(found.moved)} moved to heads of their own" if found.moved else "")
        + "."
    )
    report.done(summary, place.folder("calibrate"), _next(place, "retrain"))
    return CalibrationResult(place, found.window, maps, found.added, exact_match)


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
        until: certified ends training when the model leads in everything that it can meet at the training lengths,
            and trains more on that where it is weak; stopping.loss does not count then. validated ends it by held-out
            problems. auto is certified where the task and the window allow it.
        trainer: Lightning's trainer.
        resume: Go on with an interrupted retrain.
        overwrite: Replace a retrain that is there.

    Returns:
        The model and how training ended.

    Raises:
        UserError: If the window does not fit, the run folder is not free, or training breaks.
    """
    place = Run.newest(run, "fit" if window is not None else "calibrate")
    task = place.task("fit")
    sizes = model.of(place.architecture("fit"))
    _check_backbone(sizes, place)
    inputs = {name: value for name, value in place.produced("fit").items() if name != "fit: weights"}
    inputs |= place.produced("calibrate") if window is None else {"window": sha256(window)}
    rules = place.window() if window is None else Window.load(window)
    _check_window(rules, window, place, task)
    settings = {"data": data, "optimizer": optimizer, "stopping": stopping, "trainer": trainer}
    arguments = {"seed": seed, "window": window, "model": model, "until": until} | settings
    seed = int(place.record("fit")["seed"]) if seed is None else seed
    settings |= {"model": sizes}
    result = _train(place, "retrain", task, rules, seed, settings, until, resume, overwrite, arguments, inputs)
    summary = _training_summary("The model inside the window", result.trained, stopping, trainer)
    try:
        reason = place.stale("certify") if place.has("certify") else None
    except UserError as error:  # of a damaged certificate; what was trained is whole
        reason = str(error)
    if reason is not None:
        summary += f" The certificate in the run is stale: {reason}."
    report.done(summary, place.folder("retrain"), _next(place, "evaluate", " --length 10x"))
    return result


def evaluate(
    *,
    run: Path | None = None,
    length: str = "1x,2x,5x,10x",
    samples: int = 1000,
    sets: Sequence[str] | str = SETS,
    decode: Decode = "parallel",
    weights: Literal["all", "fit", "retrain"] = "all",
    attention: AttentionPath = "auto",
    seed: int = 0,
    accelerator: str = "cpu",
    overwrite: bool = False,
) -> EvaluationResult:
    """Measures exact match at any length, vanilla against retrained: phase 4.

    Args:
        run: Run folder; the newest in runs/ if not given.
        length: 60; 10x, times the longest training length; a list 1x,2x,10x; a range 1x:10x; or a shape 3x200, where a
            task has such.
        samples: Problems of each length and set.
        sets: Which of uniform,unequal,carry,zeros.
        decode: parallel, or steps, which also gives accuracy by digit.
        weights: Which model: fit for the vanilla one, retrain, or all that there are.
        attention: dense compares every query with every key; gathered fetches the keys that the window leaves open,
            at a cost in proportion to the length; auto goes by the size.
        seed: What the problems follow from, and positions that a method draws at random.
        accelerator: cpu, gpu or auto.
        overwrite: Replace an evaluation that is there.

    Returns:
        The rows of results.json.

    Raises:
        UserError: If a length, a set or a number of samples makes no sense, or is too large for memory.
    """
    start = time.perf_counter()
    needed = "retrain" if weights == "retrain" else "fit"
    place = Run.newest(run, needed)
    task = place.task(needed)
    sizes, sets, device = _check_evaluating(task, length, sets, samples, accelerator)
    asked: list[Literal["fit", "retrain"]] = ["fit", "retrain"] if weights == "all" else [weights]
    if weights == "all" and not place.has("retrain"):
        if os.path.lexists(place.folder("retrain")):
            raise UserError(
                f"{place.folder('retrain')} lacks its record: do 'abc retrain --overwrite' again, or take --weights fit"
            )
        asked = ["fit"]
        report.remark(f"{place.path} holds no finished 'retrain': only the vanilla model is evaluated.")
    inputs: dict[str, str] = {}
    for phase in asked:
        inputs |= place.produced(phase)
    for warning in place.warnings(*asked, "certify"):
        report.remark(warning)
    models = {phase: attending(place, phase, attention) for phase in asked}
    shapes = [size for size in sizes if not isinstance(size, int)]
    lengths = [size for size in sizes if isinstance(size, int)]
    if lengths:  # of other sets no shape is larger
        shapes.append(task.evaluation_shapes(max(lengths), UNIFORM, torch.Generator())[0])
    for shape, model in product(shapes, models.values()):
        check_memory(task, model, shape, device)
    with place.writing("evaluate", overwrite=overwrite, inputs=inputs) as folder:
        rows, digits = evaluate_models(task, models, sizes, sets, samples, decode, seed, device)
        plain = [row.plain() for row in rows]
        save_json(folder / RESULTS, plain)
        from abc_toolkit import figures

        curve = [row for row in plain if row["shape"] is None]
        if curve:
            figures.accuracy(folder / "accuracy.png", curve, task.max_length, task.name)
        if digits:
            save_json(folder / DIGITS, digits)
            figures.digit_accuracy(folder / "digit_accuracy.png", digits, task.max_length, task.name)
        arguments = {"length": length, "samples": samples, "sets": sets, "decode": decode, "weights": weights}
        arguments |= {"attention": attention, "seed": seed, "accelerator": accelerator}
        results = {"rows": len(rows), "seconds": time.perf_counter() - start}
        save_record(folder, "evaluate", seed, arguments, results, inputs=inputs, facts={"task": task})
    report.print_results(plain)
    done = f"{len(rows)} rows, {samples} problems each."
    which = "" if "retrain" in asked else " --weights fit"
    report.done(done, place.folder("evaluate"), _next(place, "solve", f"{which} PROBLEM ..."))
    return EvaluationResult(place, tuple(rows))


def run_all(
    task: Task | None = None,
    *,
    run: Path | None = None,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    fit_settings: Mapping[str, Any] | None = None,
    calibrate_settings: Mapping[str, Any] | None = None,
    retrain_settings: Mapping[str, Any] | None = None,
    evaluate_settings: Mapping[str, Any] | None = None,
) -> EvaluationResult:
    """Does all four phases: fit, calibrate, retrain, evaluate. Takes every option of theirs as --PHASE.OPTION.

    Args:
        task: What to learn; Addition if not given.
        run: Run folder; runs/TASK if not given.
        seed: Everything random follows from it.
        resume: Go on with an interrupted run; finished phases are kept. A finished run stays as it is.
        overwrite: Replace what is there.
        fit_settings: Arguments of `fit` by name.
        calibrate_settings: Arguments of `calibrate` by name.
        retrain_settings: Arguments of `retrain` by name.
        evaluate_settings: Arguments of `evaluate` by name.

    Returns:
        The evaluation.

    Raises:
        UserError: As the phases.
    """
    task = Addition() if task is None else task
    place = Run.of(run, task)
    _check_task(place, task, overwrite)
    settings: dict[Phase, dict[str, Any]] = {
        "fit": {"task": task, "seed": seed} | dict(fit_settings or {}),
        "calibrate": dict(calibrate_settings or {}),
        "retrain": {"seed": seed} | dict(retrain_settings or {}),
        "evaluate": {"seed": seed} | dict(evaluate_settings or {}),
    }
    _check_backbone(settings["fit"].get("model", Architecture()), place)
    helped = wanted_help()
    if helped is not None:  # this process was started for one training, and ends with it
        own: dict[str, Any] = {"run": place.path, "resume": helped.resume, "overwrite": not helped.resume}
        return COMMANDS[helped.phase](**(settings[helped.phase] | own))
    _check_asked(task, settings)
    for phase in ("fit", "retrain"):
        trainer = settings[phase].get("trainer", TrainerSettings())
        if not starts_processes(trainer.devices, trainer.num_nodes):
            raise UserError(
                f"'abc run' starts the processes of {phase} itself, on this machine: where torchrun, srun or several "
                "machines start them, do the phases one by one, with 'abc fit' and so on"
            )
    with place.locked():
        there = [phase for phase in PIPELINE if place.has(phase) or place.interrupted(phase)]
        if there and not resume and not overwrite:
            raise UserError(
                f"{place.path} holds {', '.join(there)} already: go on with --resume, replace it with --overwrite, "
                "or name another --run"
            )
        kept = _kept(place, settings) if resume else []
        if len(kept) == len(PIPELINE):
            return _finished_before(place)
        for phase in kept:
            report.remark(f"{phase}: finished before, kept.")
        result = None
        for phase in PIPELINE[len(kept) :]:
            go_on = resume and (place.interrupted(phase) or _is_extended(place, phase, settings[phase]))
            arguments: dict[str, Any] = {"run": place.path, "overwrite": not go_on if resume else overwrite}
            if phase in ("fit", "retrain"):
                arguments["resume"] = go_on
            try:
                result = COMMANDS[phase](**(settings[phase] | arguments))
            except KeyboardInterrupt:
                raise Interrupted(phase != PIPELINE[0] or place.interrupted(phase)) from None
    assert isinstance(result, EvaluationResult)
    return result


def _finished_before(place: Run) -> EvaluationResult:
    """Shows the results of a run of which nothing is left to do."""
    path = place.folder("evaluate") / RESULTS
    rows = rebuild(load_json(path), tuple[Row, ...], path, whole=True)
    report.print_results([row.plain() for row in rows])
    report.done(f"{place.path} was finished before.", path.parent, _next(place, "solve", " PROBLEM ..."))
    return EvaluationResult(place, rows)


def _check_asked(task: Task, settings: Mapping[Phase, Mapping[str, Any]]) -> None:
    """Refuses settings of phases to come now rather than after a training."""

    def asked(phase: Phase) -> dict[str, Any]:
        defaults = {name: parameter.default for name, parameter in signature(COMMANDS[phase]).parameters.items()}
        return defaults | dict(settings[phase])

    fitted, retrained = asked("fit"), asked("retrain")
    sizes = retrained["model"].of(fitted["model"])
    for model, phase in ((fitted["model"], fitted), (sizes, retrained)):
        check_training_memory(task, model, phase["data"], phase["trainer"].accelerator)
    with undisturbed():
        lightning_trainer(replace(retrained["trainer"], logger=False))
    if retrained["window"] is not None:
        Window.load(retrained["window"])
    names = ("problems", "export", "size", "accelerator")
    _check_calibrating(task, fitted["model"], *(asked("calibrate")[name] for name in names))
    _check_evaluating(task, *(asked("evaluate")[name] for name in ("length", "sets", "samples", "accelerator")))


def _check_calibrating(
    task: Task, sizes: Architecture, problems: int, export: Path | None, size: str | None, accelerator: str
) -> torch.device:
    """Refuses what a calibration cannot do; the device that it runs on."""
    if problems < 1:
        raise UserError(f"--problems {problems}: give at least 1")
    if size is not None and export is None:
        raise UserError("--size is the size of the matrix that --export writes: give --export FILE too")
    if size is not None:
        _check_size(size, sizes)
    if export is not None and not export.absolute().parent.is_dir():
        raise UserError(f"--export: {export} cannot be written: there is no folder {export.absolute().parent}")
    check_held_out(task, problems, "--problems")
    return device_for(accelerator)


def _check_evaluating(
    task: Task, length: str, sets: Sequence[str] | str, samples: int, accelerator: str
) -> tuple[list[Size], tuple[str, ...], torch.device]:
    """Refuses what an evaluation cannot do; the sizes, the sets and the device."""
    if samples < 1:
        raise UserError(f"--samples {samples}: give at least 1")
    return parse_sizes(length, task), check_sets(sets), device_for(accelerator)


def _kept(place: Run, settings: Mapping[Phase, Mapping[str, Any]]) -> list[Phase]:
    """The first phases of a run that are finished and up to date, in all files and under the settings asked for.

    Raises:
        UserError: If a file of one of them is missing or was changed, or a setting that counts is another.
    """
    kept: list[Phase] = []
    for phase in PIPELINE:
        if not place.up_to_date(phase) or _is_extended(place, phase, settings[phase]):
            break
        place.check(phase)
        different = _differences(place, phase, settings[phase])
        if different:
            raise UserError(
                f"'{phase}' in {place.path} was done under other settings: {'; '.join(different)}; give the same to "
                "resume the run, or start afresh with --overwrite"
            )
        kept.append(phase)
    return kept


def _is_extended(place: Run, phase: Phase, settings: Mapping[str, Any]) -> bool:
    """Whether a finished training that ended with its steps is asked to take more."""
    if not place.has(phase) or not place.extensible(phase) or "trainer" not in settings:
        return False
    return settings["trainer"].max_steps > place.record(phase)["arguments"]["trainer"]["max_steps"]


def _differences(place: Run, phase: Phase, settings: Mapping[str, Any]) -> list[str]:
    """Which settings of a finished phase are others than those asked for, each with both values."""
    record = place.record(phase)
    before = record["arguments"] | ({"seed": record["seed"]} if "seed" in record["arguments"] else {})
    defaults = {name: parameter.default for name, parameter in signature(COMMANDS[phase]).parameters.items()}
    asked = {name: describe(settings.get(name, defaults.get(name))) for name in before}
    return list(differences(before, json.loads(json.dumps(asked)), (*MAY_DIFFER, "export", "size")))


COMMANDS: Mapping[Phase, Callable[..., Any]] = {
    "fit": fit,
    "calibrate": calibrate,
    "retrain": retrain,
    "evaluate": evaluate,
}


def certify(
    *,
    run: Path | None = None,
    verify: Path | None = None,
    overwrite: bool = False,
) -> Certificate:
    """Proves that the retrained model is right at every length, or finds a problem that it fails on.

    Exit status 0: correct at every length; 1: wrong, with a problem on which abc solve fails; 3: it cannot be decided.

    Args:
        run: Run folder; the newest in runs/ if not given.
        verify: Certificate to check again from the run's files, field by field; none is written.
        overwrite: Replace a certificate that is there.

    Returns:
        The verdict and what it rests on.

    Raises:
        UserError: If there is no finished retrain, or the certificate to verify is not this run's or does not hold.
    """
    place = Run.newest(run, "retrain")
    task, architecture = place.task("retrain"), place.architecture("retrain")
    model = place.load_model("retrain")
    inputs = place.produced("retrain")
    facts = {"hashes": place.certified_hashes(), "versions": versions()}
    stated = None if verify is None else _stated(verify, facts)
    start = time.perf_counter()
    with contextlib.ExitStack() as stack:
        folder = None
        if stated is None:
            _check_certificate(place, overwrite)
            folder = stack.enter_context(place.writing("certify", overwrite=overwrite, inputs=inputs))
        certificate = prove(task, model, report.track)
        basis = None
        with contextlib.suppress(CannotDecideError):
            basis = basis_of(task, model)
        found = document(
            certificate,
            basis,
            task=describe(task),
            architecture=describe(architecture),
            versions=facts["versions"],
            **facts["hashes"],
        )
        seconds = time.perf_counter() - start
        if folder is not None:
            save_json(folder / CERTIFICATE, found)
            seed = int(place.record("retrain")["seed"])
            results = {"verdict": certificate.verdict, "seconds": seconds}
            save_record(folder, "certify", seed, {}, results, inputs=inputs, facts={"task": task})
    if stated is not None:
        wrong = foreign(stated, found) or difference(stated, found)
        if wrong is not None:
            raise UserError(f"--verify {verify} does not hold: {wrong}; certify the run anew")
    report.print_certificate(certificate, task.name)
    report.done(f"{seconds:.0f} s.", place.folder("certify") / CERTIFICATE if verify is None else verify, None)
    return certificate


def _check_certificate(place: Run, overwrite: bool) -> None:
    """Refuses to replace a certificate that nobody asked to replace, and says whether it is stale."""
    path = place.folder("certify") / CERTIFICATE
    if not place.has("certify") or overwrite:
        return
    reason = place.stale("certify")
    if reason is not None:
        raise UserError(f"{path} is stale: {reason}; replace it with --overwrite")
    raise UserError(f"{path} is there already: replace it with --overwrite, or check it with --verify {path}")


def _stated(path: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a certificate's file states, if it is one of a run's files and of this version."""
    try:
        stated = read_certificate(read_text(path))
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--verify {path} cannot be checked: {reason}; certify the run anew") from None
    wrong = foreign(stated, facts)
    if wrong is not None:
        raise UserError(f"--verify {path} is not of this run: {wrong}; certify the run anew")
    return stated


def _check_task(place: Run, task: Task, overwrite: bool) -> None:
    """Refuses a run folder of another task; one whose record cannot be read may be overwritten."""
    if place.has("fit"):
        try:
            own = place.task("fit")
        except UserError:
            if not overwrite:
                raise
            return
        if own != task:
            difference = own.name if type(own) is not type(task) else f"{own.name} with other settings ({own})"
            raise UserError(f"{place.path} is a run of {difference}: name another folder with --run")


def _check_backbone(sizes: Architecture, place: Run) -> None:
    """Refuses a model that no window can be read off."""
    if sizes.backbone != "encoder-decoder":
        raise UserError(
            f"windows are of encoder-decoders, and the model of {place.path} is {sizes.backbone}: 'abc fit' and "
            "'abc evaluate' are what there is for it"
        )


def _check_window(window: Window, path: Path | None, place: Run, task: Task) -> None:
    """Refuses a window of another task or its segments, and the run's own if it is of other weights."""
    if window.task != type(task).__name__:
        raise UserError(f"the window is for {window.task} and the run in {place.path} is of {type(task).__name__}")
    segments = task.layout(task.training_shapes()[-1]).source.names
    for rule in window.rules:
        for segment in (rule.key_segment, rule.query_segment):
            if segment is not None and segment not in segments:
                raise UserError(
                    f"the window names the segment {segment!r}, which {task.name} has not: it has {', '.join(segments)}"
                )
    reason = place.stale("calibrate") if path is None else None
    if reason is not None:
        raise UserError(f"the window in {place.path} is stale: {reason}; do 'abc calibrate --overwrite' first")


def _train(
    place: Run,
    phase: Literal["fit", "retrain"],
    task: Task,
    window: Window | None,
    seed: int,
    settings: Mapping[str, Any],
    until: Until,
    resume: bool,
    overwrite: bool,
    arguments: Mapping[str, Any],
    inputs: Mapping[str, str],
) -> TrainingResult:
    """Trains a fresh model and writes the phase's folder."""
    check_training_memory(task, settings["model"], settings["data"], settings["trainer"].accelerator)
    with undisturbed():
        runner = lightning_trainer(settings["trainer"])
        rank = runner.global_rank
        with only_first(rank):
            draws = seeded(seed, _PURPOSES[phase]).initial_seed()
            torch.manual_seed(draws)
            model = build_model(task, settings["model"], window)
            with _told(place, phase), place.writing(phase, resume, overwrite, inputs=inputs, rank=rank) as folder:
                coverage = None if until == "validated" else _coverage(task, model, until)
                beside: dict[str, Any] = {"seed": seed, "draws": draws, "folder": folder, "resume": resume}
                trained = train(task, model, **settings, **beside, coverage=coverage, title=phase, runner=runner)
                if not rank:
                    if window is not None:
                        save_text(folder / WINDOW, window.to_json())
                    save_weights(folder, model)
                    from abc_toolkit import figures  # here and below where it is used: it loads seaborn and pandas

                    figures.training(folder / "training.png", load_json(folder / HISTORY) | {"phase": phase})
                    facts = {"task": task, "model": settings["model"]}
                    save_record(folder, phase, seed, arguments, asdict(trained), inputs=inputs, facts=facts)
    return TrainingResult(place, model, trained)


@contextlib.contextmanager
def _told(place: Run, phase: Phase) -> Iterator[None]:
    """Tells whoever catches an interruption whether a training can go on from its progress."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(place.interrupted(phase)) from None


def _draw_calibration(folder: Path, maps: AttentionMaps, window: Window, task: Task) -> None:
    """Draws the averaged maps of the longest shape, and the window there and at ten times the length."""
    from abc_toolkit import figures

    shape = maps.longest
    layout = task.layout(shape)
    title = f"{task.name}: attention averaged over {maps.solved[shape]} problems of {shape_name(shape)}"
    figures.attention_maps(folder / "attention_maps.png", maps.maps[shape], layout, window, None, title)
    sizes = [(f"shape {shape_name(shape)}", layout)]
    longer = task.evaluation_shapes(10 * task.max_length, UNIFORM, torch.Generator())[0]
    with contextlib.suppress(ProblemError):  # a fixed width has no room for ten times the length
        sizes.append((f"shape {shape_name(longer)}", task.layout(longer)))
    figures.windows(folder / "window.png", window, sizes)


def _export(path: Path, size: str | None, window: Window, task: Task, maps: AttentionMaps) -> None:
    """Writes the window's matrices for the problems whose strings have the size asked for."""
    layout = task.layout(maps.longest) if size is None else _layout_of_size(task, window, *_lengths_of(size))
    lengths = f"{len(layout.target)}x{len(layout.source)}"
    save_tensors(path, window.matrices(layout), {"task": window.task, "size": lengths})


def _lengths_of(size: str) -> tuple[int, int]:
    """Numbers of target and source tokens that a size names."""
    numbers = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", size)
    if not numbers:
        raise UserError(f"--size {size!r}: write target tokens x source tokens, such as 61x123")
    return int(numbers[1]), int(numbers[2])


def _check_size(size: str, sizes: Architecture) -> None:
    """Refuses a size that is none, or of which the matrices do not fit into memory."""
    target, source = _lengths_of(size)
    cells = sizes.num_encoder_layers * source**2 + sizes.num_decoder_layers * target * (target + source)
    check_fits(4 * sizes.num_heads * cells, f"the matrices of --size {size}", torch.device("cpu"))


def _layout_of_size(task: Task, window: Window, target_length: int, source_length: int) -> Layout:
    """Layout of the first target tokens of the problems with a source of the length, or of bare strings."""
    with contextlib.suppress(ProblemError):  # beyond a fixed width
        for length in range(1, source_length + 1):
            shape = task.evaluation_shapes(length, UNIFORM, torch.Generator())[0]
            source, target = task.num_tokens(shape)
            if source == source_length and target >= target_length:
                layout = task.layout(shape)
                return Layout(layout.source, layout.target[:target_length], layout.prefix[:target_length])
            if source > source_length:
                break
    if any(rule.key_segment is not None for rule in window.rules):
        raise UserError(
            f"--size {target_length}x{source_length}: no problem of {task.name} has so many target and source tokens, "
            "and the window's lines are those of operands; choose the size of a problem"
        )
    return raw_layout(target_length, source_length)


def _coverage(task: Task, model: Model, until: Until) -> Coverage | None:
    """The assignments that training is to go on for, if they can be enumerated."""
    try:
        return Coverage(task, model)
    except CannotDecideError as error:
        if until == "certified":
            raise UserError(f"--until certified is not available: {error}; take --until validated") from None
        report.remark(f"Training ends by validation alone: {error}.")
    return None


def _training_summary(what: str, trained: Trained, stopping: Stopping, trainer: TrainerSettings) -> str:
    share = f"{100 * trained.exact_match:.2f} % of {trained.validated_on} held-out problems"
    summary = f"{what} solves {share} after {trained.steps} steps ({trained.seconds:.0f} s)."
    if trained.weak:
        summary += f" In {trained.weak} assignments it is wrong or leads by less than {THIN:g}:"
    elif trained.reached and trained.weak is not None:
        summary += " So it does everything that it can meet at these lengths."
    elif not trained.reached:
        summary += f" Asked for were {100 * stopping.exact_match:g} % and a loss of {stopping.loss:g} (it is "
        summary += f"{trained.loss:.2g}):"
    if not trained.reached and trained.steps >= trainer.max_steps:
        summary += " train longer with --resume --trainer.max_steps N."
    elif not trained.reached:
        summary += " it reached them and lost them; start afresh with --overwrite and more --stopping.decay_steps."
    return summary


def _next(place: Run, command: str, options: str = "") -> str:
    return f"abc {command} --run {place.path}{options}"
