import re

import numpy as np
import pytest
import torch

from abc_toolkit.errors import UserError
from abc_toolkit.tasks import LinearRegression
from abc_toolkit.testing.task_contract import TaskContract

TASK = LinearRegression(max_length=9, dim=3)


class TestLinearRegression(TaskContract):
    cases = {"plain": TASK, "noisy": LinearRegression(max_length=4, dim=2, noise=0.5)}  # noqa: RUF012


def test_labels_are_a_linear_function_of_the_points(generator: torch.Generator) -> None:
    batch = TASK.sample(generator, 50, (9,))
    for inputs, targets in zip(batch.inputs.numpy(), batch.targets.numpy(), strict=True):
        points, labels = inputs[0::2, :3], targets[0::2]
        weights, *_ = np.linalg.lstsq(points, labels, rcond=None)
        np.testing.assert_allclose(points @ weights, labels, atol=1e-4)
        assert not inputs[0::2, 3].any()
        assert not inputs[1::2, :3].any()
        np.testing.assert_array_equal(inputs[1::2, 3], labels[:-1])  # the last is asked for, and not told


def test_least_squares_is_that_of_numpy_at_every_point(generator: torch.Generator) -> None:
    batch = LinearRegression(max_length=8, dim=4, noise=0.3).sample(generator, 20, (8,))
    found = LinearRegression(max_length=8, dim=4).baselines()["least squares"](batch)
    for row in range(len(batch)):
        points, labels = batch.inputs[row, 0::2, :4].double().numpy(), batch.targets[row, 0::2].double().numpy()
        for number in range(1, 8):
            weights, *_ = np.linalg.lstsq(points[:number], labels[:number], rcond=None)
            assert found[row, 2 * number].item() == pytest.approx(points[number] @ weights, abs=1e-4)
    assert not found[:, 1::2].any()
    assert not found[:, 0].any()


def test_errors_are_shares_of_the_variance(generator: torch.Generator) -> None:
    batch = TASK.sample(generator, 4000, (9,))
    zero = TASK.objective.measured(torch.zeros_like(batch.targets), batch)
    best = TASK.objective.measured(TASK.baselines()["least squares"](batch), batch)
    assert zero["squared_error"].mean().item() == pytest.approx(1, abs=0.06)
    assert zero["last_squared_error"].mean().item() == pytest.approx(1, abs=0.15)
    assert best["last_squared_error"].max() < 1e-3  # after more points than dimensions
    assert 0.1 < best["squared_error"].mean() < 0.4  # 0 after three points of nine, of which the first is all error


def test_noise_is_of_its_size(generator: torch.Generator) -> None:
    noisy = LinearRegression(max_length=40, dim=2, noise=0.5)
    batch = noisy.sample(generator, 500, (40,))
    points, labels = batch.inputs[:, 0::2, :2].numpy(), batch.targets[:, 0::2].numpy()
    left = [y - x @ np.linalg.lstsq(x, y, rcond=None)[0] for x, y in zip(points, labels, strict=True)]
    assert np.sqrt(np.square(left).sum() / (500 * 38)) == pytest.approx(0.5, rel=0.03)


@pytest.mark.parametrize(
    ("settings", "said"), [({"dim": 0}, "dim 0"), ({"max_length": 0}, "max_length 0"), ({"noise": -1.0}, "noise -1")]
)
def test_wrong_settings_are_refused(settings: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        LinearRegression(**settings)  # type: ignore[arg-type]
