"""Solving problems that a person writes, with a run's model, and checking the answers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from abc_toolkit import report
from abc_toolkit.attention import AttentionPath
from abc_toolkit.errors import UserError
from abc_toolkit.evaluation import check_memory, solve_problems
from abc_toolkit.model import Model
from abc_toolkit.run import Run
from abc_toolkit.tasks import ProblemError, Shape, Task


def solve(
    problems: Sequence[str],
    *,
    run: Path | None = None,
    weights: Literal["retrain", "fit"] = "retrain",
    attention: AttentionPath = "auto",
) -> list[str]:
    """Solves problems with the model's own answers, decoded step by step.

    Args:
        problems: Problems as a person writes them, such as 123+989.
        run: Run folder; the newest in runs/ if not given.
        weights: retrain, or fit for the vanilla model.
        attention: dense compares every query with every key; gathered fetches the keys that the window leaves open,
            at a cost in proportion to the length; auto goes by the size.

    Returns:
        An answer each, in natural order, most significant digit first.

    Raises:
        UserError: If a problem is not one of the run's task.
    """
    place = Run.newest(run, weights)
    task = place.task(weights)
    if not problems:
        raise UserError("there is no problem to solve: give some as arguments, with --file, or on standard input")
    parsed = [_parsed(task, number, problem) for number, problem in enumerate(problems, 1)]
    model = attending(place, weights, attention)
    for shape in {shape for shape, _ in parsed}:
        check_memory(task, model, shape, torch.device("cpu"))
    tokens = sum(task.num_tokens(shape)[1] for shape, _ in parsed)
    with report.counter("solving", tokens, "tokens") as count:
        return solve_problems(model, task, parsed, count)


def check_answers(problems: Sequence[str], answers: Sequence[str], *, run: Path | None = None) -> list[bool]:
    """Whether answers are right, by the task's oracle; `solve` itself never asks it.

    Args:
        problems: Problems as a person writes them.
        answers: An answer each.
        run: Run folder; the newest in runs/ if not given.
    """
    task = Run.newest(run, "fit").task("fit")
    right = []
    for problem, answer in zip(problems, answers, strict=True):
        _, source = task.parse(problem)
        right.append(task.answer(task.solve(source)) == answer)
    return right


def attending(place: Run, phase: Literal["fit", "retrain"], attention: AttentionPath) -> Model:
    """A phase's model, its attention on the path asked for."""
    model = place.load_model(phase)
    try:
        model.attend(attention)
    except UserError as error:
        other = "; take the other with --weights retrain" if phase == "fit" and place.has("retrain") else ""
        raise UserError(f"--attention {attention}: the model in {place.folder(phase)}: {error}{other}") from None
    return model


def _parsed(task: Task, number: int, problem: str) -> tuple[Shape, str]:
    """Shape and source of one of several problems."""
    try:
        return task.parse(problem)
    except ProblemError as error:
        raise UserError(f"problem {number} cannot be solved by this run ({task.name}): {error}") from None
