"""Baselines, against other programs of what they compute."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from abc_toolkit.tasks import Conjunction, LinearRegression, SparseLinearRegression
from abc_toolkit.tasks.functions import baselines
from abc_toolkit.testing.task_contract import generator

PREDICTORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "least squares": baselines.least_squares,
    "1 nearest": lambda points, labels: baselines.nearest(points, labels, 1),
    "3 nearest": lambda points, labels: baselines.nearest(points, labels, 3),
    "averaging": baselines.averaging,
    "lasso": baselines.lasso,
}


def normal(batch: int, length: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points and labels that no weights fit."""
    g = generator(seed)
    points = torch.randn(batch, length, dim, generator=g, dtype=torch.float64)
    return points, torch.randn(batch, length, generator=g, dtype=torch.float64)


def signs(batch: int, length: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Boolean points and labels: many are equal."""
    g = generator(seed)
    points = 2.0 * torch.randint(2, (batch, length, dim), generator=g, dtype=torch.float64) - 1
    return points, 2.0 * torch.randint(2, (batch, length), generator=g, dtype=torch.float64) - 1


def numpy_least_squares(points: Tensor, labels: Tensor) -> Tensor:
    found = torch.zeros_like(labels)
    for row, (x, y) in enumerate(zip(points.numpy(), labels.numpy(), strict=True)):
        for number in range(1, len(x)):
            found[row, number] = float(x[number] @ np.linalg.lstsq(x[:number], y[:number], rcond=None)[0])
    return found


def repeated(points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """A prompt of which most points are equal, before and after others."""
    order = [0] * 9 + list(range(points.shape[1])) + [3, 0, 3] * 4
    return points[:, order], labels[:, order]


def of_rank(points: Tensor, rank: int) -> Tensor:
    """Points in a subspace, in no axis' direction."""
    first = torch.randn(points.shape[-1], rank, generator=generator(7), dtype=torch.float64)
    second = torch.randn(rank, points.shape[-1], generator=generator(8), dtype=torch.float64)
    return points @ first @ second


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_least_squares_is_that_of_numpy(dim: int) -> None:
    points, labels = normal(4, 30, dim)
    for x, y in ((points, labels), repeated(points, labels), signs(4, 30, dim)):
        torch.testing.assert_close(baselines.least_squares(x, y), numpy_least_squares(x, y), atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("rank", [1, 3])
def test_least_squares_of_points_in_a_subspace(rank: int) -> None:
    """Weights of least norm are unique where those that fit best are not; one more point leaves the subspace."""
    points, labels = normal(4, 24, 5)
    points = of_rank(points, rank)
    points[:, -3] += 1
    for x, y in ((points, labels), repeated(points, labels)):
        torch.testing.assert_close(baselines.least_squares(x, y), numpy_least_squares(x, y), atol=1e-7, rtol=1e-7)
    zeros = points.clone()
    zeros[..., 2:] = 0
    torch.testing.assert_close(
        baselines.least_squares(zeros, labels), numpy_least_squares(zeros, labels), atol=1e-8, rtol=1e-8
    )
    assert not baselines.least_squares(torch.zeros_like(points), labels).any()


def test_a_small_direction_counts_and_rounding_does_not() -> None:
    """A channel of 1e-6 has its weight; what rounding leaves of one in a long prompt of equal points has none."""
    points, _ = normal(3, 40, 3)
    points[..., 2] *= 1e-6
    labels = points @ torch.tensor([1.0, -2.0, 3e6], dtype=torch.float64)
    found = baselines.least_squares(points, labels)
    torch.testing.assert_close(found, numpy_least_squares(points, labels), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found[:, 3:], labels[:, 3:], atol=1e-6, rtol=1e-6)
    points, labels = normal(1, 3, 4)
    order = [0] * 1500 + [1] * 1500 + [2]
    found = baselines.least_squares(points[:, order], labels[:, order])
    assert torch.allclose(found[0, 1:1500], labels[0, 0])
    exact = points[0, 2] @ torch.linalg.pinv(points[0, :2]) @ labels[0, :2]
    assert found[0, -1].item() == pytest.approx(exact.item())


@pytest.mark.parametrize("suite", ["ood", "duplicates/all", "duplicates/inst_end", "lost_in_the_middle/end"])
def test_least_squares_on_long_prompts(suite: str) -> None:
    """Many equal points hide nothing of the few others: with 200 before, 12 channels are solved exactly."""
    task = LinearRegression(max_length=24, dim=12)
    batch = task.sample(generator(), 60, (220,), suite)
    points, labels = batch.inputs[:, 0::2].double(), batch.targets[:, 0::2].double()
    found = baselines.least_squares(points, labels)
    expected = numpy_least_squares(points[:3], labels[:3])
    torch.testing.assert_close(found[:3], expected, atol=1e-7, rtol=1e-7)
    if suite == "duplicates/inst_end":
        assert ((found - labels)[:, -8:].abs() < 1e-3).all()


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_nearest_by_loops(number: int) -> None:
    for points, labels in (normal(3, 14, 3), signs(3, 14, 3), repeated(*normal(2, 8, 2))):
        found = baselines.nearest(points, labels, number).tolist()
        for row, (x, y) in enumerate(zip(points.tolist(), labels.tolist(), strict=True)):
            for place in range(len(x)):
                ranked = sorted((math.dist(x[place], x[other]), other) for other in range(place))
                near = [y[other] for _, other in ranked[:number]]
                assert found[row][place] == pytest.approx(sum(near) / len(near) if near else 0.0)


def test_nearest_of_many_prompts_is_that_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    points, labels = signs(7, 10, 4)
    whole = baselines.nearest(points, labels, 3)
    monkeypatch.setattr(baselines, "_CELLS", 250)
    assert torch.equal(baselines.nearest(points, labels, 3), whole)


def test_averaging_by_loops() -> None:
    for points, labels in (normal(3, 12, 3), signs(3, 12, 3)):
        found = baselines.averaging(points, labels).tolist()
        for row, (x, y) in enumerate(zip(points.tolist(), labels.tolist(), strict=True)):
            for place in range(len(x)):
                weights = [sum(y[i] * x[i][k] for i in range(place)) / max(1, place) for k in range(3)]
                assert found[row][place] == pytest.approx(sum(w * v for w, v in zip(weights, x[place], strict=True)))


def test_lasso_is_where_no_weight_can_gain() -> None:
    """Of `|y - X w|^2 / 2n + a |w|_1` the gradient of the first term is `-a` times the sign of each weight.

    It lies between `-a` and `a` where a weight is 0. The weights are read off predictions at unit vectors.
    """
    dim, alpha = 4, 0.01
    zeros = 0
    for seed, count in ((0, 3), (1, 6), (2, 20)):
        points, labels = normal(dim, count, dim, seed)
        points, labels = points[:1].expand(dim, -1, -1), labels[:1].expand(dim, -1)
        labels = points[..., 0] + 0.02 * labels  # the other weights are about 0
        asked = torch.cat([points, torch.eye(dim, dtype=torch.float64)[:, None]], dim=1)
        weights = baselines.lasso(asked, torch.cat([labels, labels[:, :1]], dim=1))[:, -1]
        gradients = points[0].T @ (points[0] @ weights - labels[0]) / count
        for weight, gradient in zip(weights.tolist(), gradients.tolist(), strict=True):
            if weight:
                assert gradient == pytest.approx(-math.copysign(alpha, weight), abs=2e-4)
            else:
                assert abs(gradient) <= alpha + 2e-4
                zeros += 1
    assert zeros >= 2


@pytest.mark.parametrize("name", PREDICTORS)
@settings(max_examples=12)
@given(dim=st.integers(1, 4), length=st.integers(2, 12), boolean=st.booleans(), data=st.data())
def test_predictions_rest_on_what_came_before(
    name: str, dim: int, length: int, boolean: bool, data: st.DataObject
) -> None:
    """What a predictor says at a point changes neither with its label nor with anything after it."""
    points, labels = (signs if boolean else normal)(2, length, dim)
    place = data.draw(st.integers(0, length - 1))
    found = PREDICTORS[name](points, labels)
    assert found.shape == labels.shape
    assert not found[:, 0].any()
    points, labels = points.clone(), labels.clone()
    points[:, place + 1 :] = 1 - points[:, place + 1 :]
    labels[:, place:] = 5 - labels[:, place:]
    again = PREDICTORS[name](points, labels)
    torch.testing.assert_close(again[:, : place + 1], found[:, : place + 1], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", PREDICTORS)
def test_one_point_is_predicted_0(name: str) -> None:
    points, labels = normal(3, 1, 2)
    assert PREDICTORS[name](points, labels).tolist() == [[0.0]] * 3


def test_outputs_are_those_of_a_model() -> None:
    """Predictions stand at the points; the width of a prompt's markers changes nothing."""
    for task in (SparseLinearRegression(max_length=7, dim=3), Conjunction(max_length=7, dim=3, marked=True)):
        batch = task.sample(generator(), 4, (7,))
        points, labels = batch.inputs[:, 0::2, :3].double(), batch.targets[:, 0::2].double()
        assert list(task.baselines()) == list(task.predictors())
        for name, baseline in task.baselines().items():
            outputs = baseline(batch)
            assert outputs.dtype == batch.targets.dtype
            assert outputs.shape == batch.targets.shape
            assert not outputs[:, 1::2].any()
            assert torch.equal(outputs[:, 0::2], task.predictors()[name](points, labels).float())


def test_baselines_of_regression_are_those_of_the_study() -> None:
    dense = ["least squares", "3 nearest", "averaging", "zero"]
    assert list(LinearRegression().predictors()) == dense
    assert list(SparseLinearRegression().predictors()) == ["lasso", *dense]


def test_least_squares_is_right_after_as_many_points_as_channels() -> None:
    task = LinearRegression(max_length=9, dim=3)
    batch = task.sample(generator(), 2000, (9,))
    measured = task.objective.measured(task.baselines()["least squares"](batch), batch)
    assert measured["last_squared_error"].max() < 1e-3
    errors = task.objective.by_output(task.baselines()["least squares"](batch), batch)
    assert errors is not None
    # Of standard normal weights, `i` points leave the part that is orthogonal to them: `(3 - i) / 3` of the variance.
    for place, left in ((0, 1), (1, 2 / 3), (2, 1 / 3)):
        values = errors[:, 2 * place].double()
        assert abs(values.mean().item() - left) <= 4.5 * values.std().item() / math.sqrt(2000)
