"""What the tests of functions learned in context share: laws by statistics, and the functions behind prompts."""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import product

import pytest
from torch import Tensor

from abc_toolkit.tasks.functions.base import InContextTask
from abc_toolkit.testing.task_contract import generator

# A true law misses a test by this many standard errors with probability 7e-6.
ERRORS = 4.5

Law = dict[int, Fraction]


def assert_mean(values: Tensor, expected: float) -> None:
    """The mean of independent values, `[sample]`, is the expected one, by the standard error of the sample."""
    values = values.double().flatten()
    error = values.std().item() / math.sqrt(len(values))
    assert abs(values.mean().item() - expected) <= ERRORS * error, (values.mean().item(), expected, error)


def assert_share(number: int, total: int, share: float) -> None:
    """A number out of independent trials agrees with a probability, by the standard error that it implies."""
    error = math.sqrt(share * (1 - share) / total)
    assert abs(number / total - share) <= ERRORS * error, (number / total, share, error)


def label_shares(task: InContextTask, prompts: int) -> Tensor:
    """The share of labels that are 1 in each prompt, `[prompt]`: prompts are independent, points of one are not."""
    return (task.sample(generator(), prompts, (task.max_length,)).targets[:, 0::2] > 0).double().mean(dim=1)


def sum_law(weight: Law, dim: int) -> Law:
    """The law of `w x` with independent weights, for uniform points: every term is `w` or `-w`."""
    total: Law = {0: Fraction(1)}
    for _ in range(dim):
        longer: Law = {}
        for (value, share), (w, chance), sign in product(total.items(), weight.items(), (1, -1)):
            longer[value + sign * w] = longer.get(value + sign * w, Fraction(0)) + share * chance / 2
        total = longer
    return total


def drawn(
    task: InContextTask, monkeypatch: pytest.MonkeyPatch, batch: int, length: int, suite: str = "training"
) -> tuple[list[object], list[list[list[float]]], list[list[float]]]:
    """The functions, points and labels of a batch of prompts, as nested lists; functions as they were drawn, once."""
    functions: list[Tensor] = []
    draw = type(task).draw_function

    def recording(*arguments: object) -> Tensor:
        functions.append(draw(*arguments))  # type: ignore[arg-type]
        return functions[-1].clone()

    monkeypatch.setattr(type(task), "draw_function", recording)
    prompts = task.sample(generator(3), batch, (length,), suite)
    monkeypatch.undo()
    (function,) = functions
    return function.tolist(), prompts.inputs[:, 0::2, : task.dim].tolist(), prompts.targets[:, 0::2].tolist()


def assert_labels_follow(
    task: InContextTask,
    oracle: Callable[[Sequence[float], Sequence[float]], float],
    monkeypatch: pytest.MonkeyPatch,
    suites: Sequence[str] = ("training", "ood", "duplicates/gap_far", "lost_in_the_middle/middle"),
) -> None:
    """Every label is what an oracle says of the one function that was drawn, and of its point."""
    for suite in suites:
        found = drawn(task, monkeypatch, 60, 3 * task.max_length, suite)
        for function, points, labels in zip(*found, strict=True):
            expected = [oracle(function, point) for point in points]  # type: ignore[arg-type]
            assert labels == pytest.approx(expected, abs=1e-4), suite
