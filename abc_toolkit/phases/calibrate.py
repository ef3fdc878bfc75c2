"""`calibrate`: from a vanilla model's attention to a window."""

import contextlib
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from abc_toolkit.calibration import CalibrationMethod, Places
from abc_toolkit.calibration.capture import AttentionMaps, capture, chunks
from abc_toolkit.calibration.method import Found, find_window
from abc_toolkit.errors import UserError
from abc_toolkit.layout import Layout, raw_layout
from abc_toolkit.models.base import Architecture, Model
from abc_toolkit.models.memory import check_fits, check_held_out
from abc_toolkit.phases.base import check_backbone, check_task, next_command, run_with
from abc_toolkit.positions import SITES, Site
from abc_toolkit.report import console, terminal
from abc_toolkit.runs.description import describe, rebuild
from abc_toolkit.runs.files import save_tensors, save_text, sha256
from abc_toolkit.runs.folder import (
    RECORD,
    WINDOW,
    Run,
    device_for,
    save_record,
)
from abc_toolkit.seeds import Stream, drawing, seeded
from abc_toolkit.tasks import Addition, Calibratable, ProblemError, Task
from abc_toolkit.tasks.base import UNIFORM, require
from abc_toolkit.tasks.lengths import Shape, shape_name
from abc_toolkit.tasks.objective import Stopping
from abc_toolkit.training.data import validation_problems
from abc_toolkit.windows import Rule, Window
from abc_toolkit.windows.lowering import matrices

MAPS = "attention_maps.safetensors"
_MOST_DRAWN = 700  # tokens of a string at which a window is drawn
# The held-out problems that calibration asks are others than those that ended the training.
SAMPLING_SLACK = 0.002
_OTHER_LINES = (
    "lower --method.min_attention, so that weaker lines are found, or raise it where heads mix many lines, so that "
    "each shows more"
)


@dataclass(frozen=True)
class CalibrationResult:
    """What `calibrate` returns.

    Attributes:
        run: The run.
        window: The window.
        maps: Averaged attention of the vanilla model.
        added: Rules that were added because the window was not sufficient without them.
        exact_match: The vanilla model's exact match on held-out problems; `None` of a model from elsewhere.
    """

    run: Run
    window: Window
    maps: AttentionMaps
    added: tuple[Rule, ...]
    exact_match: float | None


def calibrate(
    *,
    task: Task | None = None,
    run: Path | None = None,
    maps: Path | None = None,
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
        task: The task of --maps, Addition if not given; else that of the run.
        run: Run folder; the newest in runs/ if not given, or, with --maps, runs/TASK.
        maps: Averaged attention of a model from elsewhere, which begins the run in place of a fit; a safetensors file,
            as docs/method.md describes it.
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
    start = time.perf_counter()
    if maps is not None:
        return _calibrated_elsewhere(task, run, maps, method, force, export, size, overwrite)
    source = run_with(run, "fit", Calibratable, "abc calibrate")
    if task is not None:
        check_task(source, task, overwrite=False)
    record, inputs = source.record("fit"), source.produced("fit")
    architecture = source.architecture("fit")
    check_backbone(architecture, source)
    task = require(source.task("fit"), Calibratable, "abc calibrate")
    model, seed = source.load_model("fit"), int(record["seed"])
    device = check_calibrating(task, architecture, problems, export, size, accelerator)
    with source.writing("calibrate", overwrite=overwrite, inputs=inputs) as folder:
        averaged, asked = _averaged(task, model, seed, problems, device)
        exact_match = sum(averaged.solved.values()) / asked
        _check_interpolates(source, record, exact_match, asked, force)
        window = _without_rules(task, architecture, method, inputs["fit: weights"])
        found = find_window(method, averaged, task, window, seeded(seed, Stream.CALIBRATE, 1))
        _check_sufficient(found, refused=isinstance(method, Places) and not force)
        _write(folder, averaged, found, task, export, size)
        arguments = {"method": method, "problems": problems, "force": force, "export": export, "size": size}
        arguments |= {"accelerator": accelerator}
        results = {"exact_match": exact_match, "problems": asked} | _counts(found)
        results |= {"seconds": time.perf_counter() - start}
        save_record(folder, "calibrate", seed, arguments, results, inputs=inputs, facts={"task": task})
    _tell(found, averaged, source)
    return CalibrationResult(source, found.window, averaged, found.added, exact_match)


def _calibrated_elsewhere(
    task: Task | None,
    run: Path | None,
    path: Path,
    method: CalibrationMethod,
    force: bool,
    export: Path | None,
    size: str | None,
    overwrite: bool,
) -> CalibrationResult:
    """A calibration of maps from elsewhere, with which a run begins."""
    start = time.perf_counter()
    task = require(Addition() if task is None else task, Calibratable, "abc calibrate")
    target = Run.named(run, task)
    if target.has("fit"):
        raise UserError(f"--maps: {target.path} has a fit of its own: name another folder with --run")
    check_task(target, task, overwrite)
    averaged = AttentionMaps.load(path)
    architecture = _architecture_of(averaged.check_fits(task, path), path)
    check_calibrating(task, architecture, 1, export, size, "cpu")
    inputs = {"maps": sha256(path)}
    with target.writing("calibrate", overwrite=overwrite, inputs=inputs) as folder:
        found = find_window(
            method, averaged, task, _without_rules(task, architecture, method, ""), seeded(0, Stream.CALIBRATE, 1)
        )
        _check_sufficient(found, refused=isinstance(method, Places) and not force)
        _write(folder, averaged, found, task, export, size)
        arguments = {"task": task, "maps": path, "method": method, "force": force, "export": export, "size": size}
        results = _counts(found) | {"seconds": time.perf_counter() - start}
        facts = {"task": task, "model": architecture}
        save_record(folder, "calibrate", 0, arguments, results, inputs=inputs, facts=facts)
    _tell(found, averaged, target)
    return CalibrationResult(target, found.window, averaged, found.added, None)


def _architecture_of(heads: Mapping[tuple[Site, int], int], path: Path) -> Architecture:
    """The architecture of a fresh model for the lines of maps from elsewhere: their layers and heads, else defaults."""
    num_heads = next(iter(heads.values()))
    layers = {site: sum(own == site for own, _ in heads) for site in SITES}
    if not layers["decoder"]:
        raise UserError(f"--maps {path} holds no map of the decoder: name one decoder.0")
    default = Architecture()
    return Architecture(
        layers["encoder"],
        layers["decoder"],
        num_heads * -(-default.model_dim // num_heads),
        num_heads,
        backbone="encoder-decoder" if layers["cross"] else "decoder-only",
    )


def _write(folder: Path, maps: AttentionMaps, found: Found, task: Task, export: Path | None, size: str | None) -> None:
    """Writes maps and window, and draws them."""
    maps.save(folder / MAPS)
    save_text(folder / WINDOW, found.window.to_json())
    if export is not None:
        _export(export, size, found.window, task, maps)
    _draw_calibration(folder, maps, found.window, task)


def _tell(found: Found, maps: AttentionMaps, run: Run) -> None:
    """Prints the window and what comes next."""
    terminal.print_window(found.window, found.attention, found.added, found.moved)
    if found.dropped:
        console.remark(f"Dropped as the weakest, to make the window sufficient: {_listed(found.dropped, found)}.")
    terminal.done(_summary(found, maps), run.folder("calibrate"), next_command(run, "retrain"))


def _averaged(
    task: Calibratable, model: Model, seed: int, problems: int, device: torch.device
) -> tuple[AttentionMaps, int]:
    """Attention averaged over the held-out problems that the model solves, and how many it was asked."""
    batches = validation_problems(task, seeded(seed, Stream.CALIBRATE).initial_seed(), problems)
    batches = [piece for batch in batches for piece in (batch[i : i + 256] for i in range(0, len(batch), 256))]
    work = list(chunks(task, batches, device))
    with drawing(seed, Stream.CALIBRATE, 2):
        maps = capture(model.to(device), terminal.track(work, "averaging attention"))
    model.cpu()
    return maps, sum(len(batch) for batch in batches)


def _check_interpolates(run: Run, record: Mapping[str, Any], exact_match: float, asked: int, force: bool) -> None:
    """Refuses a model that solves fewer held-out problems than its training was asked for."""
    stopping = rebuild(record["arguments"].get("stopping"), Stopping, run.folder("fit") / RECORD, whole=True)
    if exact_match and (force or exact_match >= stopping.exact_match - SAMPLING_SLACK):
        return
    raise UserError(
        f"the model in {run.folder('fit')} does not interpolate: it solves {100 * exact_match:.2f} % of {asked} "
        f"held-out problems and {100 * stopping.exact_match:g} % are asked for; train it longer (abc fit --overwrite "
        f"--trainer.max_steps N){', or go on all the same with --force' if exact_match else ''}"
    )


def _check_sufficient(found: Found, refused: bool) -> None:
    """Refuses a window that is not sufficient, or warns of it."""
    if found.conflict is None:
        return
    message = f"the window is not sufficient: {found.conflict.describe()}"
    if refused:
        raise UserError(f"{message}; {_OTHER_LINES}, or go on all the same with --force")
    console.remark(f"Warning: {message}.")


def _without_rules(task: Task, architecture: Architecture, method: CalibrationMethod, weights: str) -> Window:
    """The window of a model, before its rules are found."""
    return Window(
        task=type(task).__name__,
        num_encoder_layers=architecture.num_encoder_layers,
        num_decoder_layers=architecture.num_decoder_layers,
        num_heads=architecture.num_heads,
        rules=(),
        calibration=describe(method),
        weights=weights,
        backbone="decoder-only" if architecture.kind == "decoder-only" else "encoder-decoder",
    )


def _counts(found: Found) -> dict[str, int | bool]:
    """What the record says of a window."""
    return {
        "rules": len(found.window.rules),
        "added": len(found.added),
        "closed": len(found.closed),
        "moved": len(found.moved),
        "sufficient": found.conflict is None,
    }


def _summary(found: Found, maps: AttentionMaps) -> str:
    """What came of a calibration, in a sentence."""
    solved = sum(maps.solved.values())
    parts = [
        f"{len(found.window.rules)} lines from {solved} solved problems of {len(maps.maps)} shapes up to "
        f"{shape_name(maps.longest)}"
    ]
    if found.added:
        parts.append(f"{len(found.added)} added to make the window sufficient")
    if found.closed:
        parts.append(f"{len(found.closed)} closed or made fallbacks, as the window is sufficient without them")
    if found.moved:
        parts.append(f"{len(found.moved)} moved to heads of their own")
    return f"{'; '.join(parts)}."


def _listed(rules: Sequence[Rule], found: Found) -> str:
    """Rules in words, each with its mean attention."""
    return "; ".join(
        f"{terminal.SITE_NAMES[rule.site]}, layer {rule.layer}, head {rule.head}: {rule.describe()} "
        f"({found.attention.get(replace(rule, bias=0.0), 0.0):.2f})"
        for rule in rules
    )


def check_calibrating(
    task: Task, architecture: Architecture, problems: int, export: Path | None, size: str | None, accelerator: str
) -> torch.device:
    """Refuses what a calibration cannot do; the device that it runs on."""
    if problems < 1:
        raise UserError(f"--problems {problems}: give at least 1")
    if size is not None and export is None:
        raise UserError("--size is the size of the matrix that --export writes: give --export FILE too")
    if size is not None:
        _check_size(size, architecture)
    if export is not None and not export.absolute().parent.is_dir():
        raise UserError(f"--export: {export} cannot be written: there is no folder {export.absolute().parent}")
    check_held_out(task, problems, "--problems")
    return device_for(accelerator)


def _draw_calibration(folder: Path, maps: AttentionMaps, window: Window, task: Task) -> None:
    """Draws the averaged maps of the longest shape, and the window there and at ten times the length."""
    from abc_toolkit.report import figures

    shape = maps.longest
    layout = task.layout(shape)
    title = f"{task.name}: attention averaged over {maps.solved[shape]} problems of {shape_name(shape)}"
    read = window.read(layout)
    figures.attention_maps(folder / "attention_maps.png", maps.maps[shape], read, window, None, title)
    sizes = [(f"shape {shape_name(shape)}", layout)]
    longer = _longer_shape(task)
    if longer is not None:
        sizes.append((f"shape {shape_name(longer)}", task.layout(longer)))
    figures.windows(folder / "window.png", window, sizes)


def _longer_shape(task: Task) -> Shape | None:
    """A shape beyond training at which a window is drawn, up to ten times the length; `None` if all are too large.

    The target of a table grows with the square of the length. A picture of thousands of tokens shows nothing, and takes
    minutes and gigabytes.
    """
    for multiple in range(10, 1, -1):
        shape = task.evaluation_shapes(multiple * task.max_length, UNIFORM, torch.Generator())[0]
        with contextlib.suppress(ProblemError):  # a fixed width may have no room for it
            if max(task.num_tokens(shape)) <= _MOST_DRAWN:
                return shape
    return None


def _export(path: Path, size: str | None, window: Window, task: Task, maps: AttentionMaps) -> None:
    """Writes the window's matrices for the problems whose strings have the size asked for."""
    layout = task.layout(maps.longest) if size is None else _layout_of_size(task, window, *_lengths_of(size))
    lengths = f"{len(layout.target)}x{len(layout.source)}"
    save_tensors(path, matrices(window, layout), {"task": window.task, "size": lengths})


def _lengths_of(size: str) -> tuple[int, int]:
    """Numbers of target and source tokens that a size names."""
    numbers = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", size)
    if not numbers:
        raise UserError(f"--size {size!r}: write target tokens x source tokens, such as 61x123")
    return int(numbers[1]), int(numbers[2])


def _check_size(size: str, architecture: Architecture) -> None:
    """Refuses a size that is none, or of which the matrices do not fit into memory."""
    target, source = _lengths_of(size)
    own = target + source if architecture.kind == "decoder-only" else target  # queries of the decoder
    cells = architecture.num_encoder_layers * source**2 + architecture.num_decoder_layers * own * (target + source)
    check_fits(4 * architecture.num_heads * cells, f"the matrices of --size {size}", torch.device("cpu"))


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
