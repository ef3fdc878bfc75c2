"""`evaluate`: the models of a run, measured at any length."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

import torch

from abc_toolkit.errors import UserError
from abc_toolkit.models.attention import AttentionPath
from abc_toolkit.models.decoding import Decode
from abc_toolkit.models.memory import check_memory
from abc_toolkit.phases.base import next_command
from abc_toolkit.phases.measure import Row, Size, check_sets, evaluate_models, parse_sizes
from abc_toolkit.phases.solve import attending
from abc_toolkit.report import terminal
from abc_toolkit.runs.files import save_json
from abc_toolkit.runs.folder import Run, device_for, save_record
from abc_toolkit.tasks import Task
from abc_toolkit.tasks.base import SETS, UNIFORM

RESULTS = "results.json"
DIGITS = "digit_accuracy.json"


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
    sizes, sets, device = check_evaluating(task, length, sets, samples, accelerator)
    asked: list[Literal["fit", "retrain"]] = ["fit", "retrain"] if weights == "all" else [weights]
    if weights == "all" and not place.has("retrain"):
        if os.path.lexists(place.folder("retrain")):
            raise UserError(
                f"{place.folder('retrain')} lacks its record: do 'abc retrain --overwrite' again, or take --weights fit"
            )
        asked = ["fit"]
        terminal.remark(f"{place.path} holds no finished 'retrain': only the vanilla model is evaluated.")
    inputs: dict[str, str] = {}
    for phase in asked:
        inputs |= place.produced(phase)
    for warning in place.warnings(*asked, "certify"):
        terminal.remark(warning)
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
        from abc_toolkit.report import figures

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
    terminal.print_results(plain)
    done = f"{len(rows)} rows, {samples} problems each."
    which = "" if "retrain" in asked else " --weights fit"
    terminal.done(done, place.folder("evaluate"), next_command(place, "solve", f"{which} PROBLEM ..."))
    return EvaluationResult(place, tuple(rows))


def check_evaluating(
    task: Task, length: str, sets: Sequence[str] | str, samples: int, accelerator: str
) -> tuple[list[Size], tuple[str, ...], torch.device]:
    """Refuses what an evaluation cannot do; the sizes, the sets and the device."""
    if samples < 1:
        raise UserError(f"--samples {samples}: give at least 1")
    return parse_sizes(length, task), check_sets(sets), device_for(accelerator)
