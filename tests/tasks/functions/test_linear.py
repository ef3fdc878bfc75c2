import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abc_toolkit.errors import UserError
from abc_toolkit.tasks import LinearRegression, SparseLinearRegression
from abc_toolkit.testing.task_contract import TaskContract
from tests.tasks.functions.laws import assert_labels_follow, assert_mean, assert_share

CLASSES = (LinearRegression, SparseLinearRegression)


class TestRegression(TaskContract):
    cases = {  # noqa: RUF012
        "linear": LinearRegression(max_length=9, dim=3),
        "linear, one channel": LinearRegression(max_length=2, dim=1),
        "linear, marked": LinearRegression(max_length=4, dim=2, marked=True),
        "linear, a stage": LinearRegression(max_length=4, dim=2, used_dim=1),
        "sparse": SparseLinearRegression(max_length=8, dim=4),
    }


@pytest.mark.parametrize("kind", CLASSES)
def test_labels_are_of_the_one_function(kind: type[LinearRegression], monkeypatch: pytest.MonkeyPatch) -> None:
    def oracle(weights: list[float], point: list[float]) -> float:
        return sum(w * x for w, x in zip(weights, point, strict=True))

    for settings in ({}, {"used_dim": 2}, {"marked": True}):
        assert_labels_follow(kind(max_length=12, dim=4, **settings), oracle, monkeypatch)


def test_weights_are_standard_normal(generator: torch.Generator) -> None:
    """By mean, variance and fourth moment, which is 3; each to 4.5 standard errors."""
    weights = LinearRegression(dim=5).draw_function(generator, 8000)
    assert weights.shape == (8000, 5)
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        assert_mean(weights**power, moment)
    for first in range(5):
        for second in range(first):
            assert_mean(weights[:, first] * weights[:, second], 0)


def test_three_weights_are_standard_normal_and_others_zero(generator: torch.Generator) -> None:
    weights = SparseLinearRegression(dim=6).draw_function(generator, 8000)
    used = weights != 0
    assert (used.sum(dim=1) == 3).all()
    for power, moment in ((1, 0), (2, 1), (4, 3)):
        assert_mean(weights[used] ** power, moment)
    for number in range(6):
        assert_share(int(used[:, number].sum()), 8000, 1 / 2)
    pairs = used[:, :, None] & used[:, None]
    assert_share(int(pairs[:, 0, 1].sum()), 8000, 1 / 5)  # of 20 subsets, 4 hold two given coordinates


@pytest.mark.parametrize("kind", CLASSES)
def test_points_are_standard_normal(kind: type[LinearRegression], generator: torch.Generator) -> None:
    points = kind(max_length=7, dim=4).sample(generator, 2000, (7,)).inputs[:, 0::2]
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        assert_mean(points**power, moment)
    assert_mean(points[:, 1:] * points[:, :-1], 0)
    assert_mean(points[..., 1:] * points[..., :-1], 0)


@pytest.mark.parametrize(("kind", "variance"), [(LinearRegression, 5), (SparseLinearRegression, 3)])
def test_the_error_of_zero_is_the_variance(kind: type[LinearRegression], variance: int) -> None:
    """Prompts are independent, points of one are not: the standard error is that of the prompts' means."""
    task = kind(max_length=6, dim=5)
    assert task.variance == variance
    batch = task.sample(torch.Generator().manual_seed(1), 8000, (6,))
    assert_mean((batch.targets[:, 0::2] ** 2).mean(dim=1), variance)
    zero = task.objective.measured(task.baselines()["zero"](batch), batch)
    assert_mean(zero["squared_error"], 1)
    assert_mean(zero["last_squared_error"], 1)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_stage_has_fewer_channels_and_points(kind: type[LinearRegression], generator: torch.Generator) -> None:
    task = kind(max_length=12, dim=5)
    stage = task.stage(2, 7)
    assert stage.training_shapes() == ((7,),)
    assert (stage.interface, stage.objective) == (task.interface, task.objective)
    batch = stage.sample(generator, 2000, (7,))
    points = batch.inputs[:, 0::2]
    assert not points[..., 2:].any()
    assert_mean(points[..., :2] ** 2, 1)
    assert torch.equal(
        task.stage(5, 12).sample(generator.manual_seed(4), 3, (12,)).inputs,
        task.sample(generator.manual_seed(4), 3, (12,)).inputs,
    )
    for dim, length in ((0, 1), (6, 1), (1, 0), (1, 13)):
        with pytest.raises(UserError, match=f"{dim} channels and {length} points: {task.name} has 5 and 12"):
            task.stage(dim, length)


@given(dim=st.integers(1, 7), length=st.integers(1, 9), batch=st.integers(1, 4), marked=st.booleans(), data=st.data())
def test_prompts_are_points_and_labels_in_turn(
    dim: int, length: int, batch: int, marked: bool, data: st.DataObject
) -> None:
    used = data.draw(st.none() | st.integers(1, dim))
    task = LinearRegression(max_length=length, dim=dim, marked=marked, used_dim=used)
    prompts = task.sample(torch.Generator().manual_seed(0), batch, (length,))
    assert prompts.inputs.shape == (batch, 2 * length - 1, dim + 2 * marked)
    assert prompts.targets.shape == (batch, 2 * length - 1)
    for tokens, targets in zip(prompts.inputs.tolist(), prompts.targets.tolist(), strict=True):
        for number, token in enumerate(tokens):
            width = (used or dim) if number % 2 == 0 else 1
            assert all(token[:width])
            assert not any(token[width:dim])
            assert token[dim:] == ([1 - number % 2, number % 2] if marked else [])
            if number % 2:  # a label is told after it was asked for, and the last never is
                assert token[0] == targets[number - 1]
    assert prompts.counted is not None
    assert prompts.counted.tolist() == batch * [[number % 2 == 0 for number in range(2 * length - 1)]]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dim": 0}, "dim 0: LinearRegression needs at least 1"),
        ({"max_length": 0}, "max_length 0: LinearRegression needs at least 1"),
        ({"used_dim": 0}, "used_dim 0: give at least 1 and at most the dim, 4"),
        ({"used_dim": 5}, "used_dim 5: give at least 1 and at most the dim, 4"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, int], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        LinearRegression(**settings)


def test_too_few_channels_are_refused() -> None:
    for dim in (0, 1, 2):
        with pytest.raises(UserError, match=f"dim {dim}: SparseLinearRegression needs at least 3"):
            SparseLinearRegression(dim=dim)


def test_three_weights_of_three_channels_are_all(generator: torch.Generator) -> None:
    assert SparseLinearRegression(dim=3).draw_function(generator, 50).all()
