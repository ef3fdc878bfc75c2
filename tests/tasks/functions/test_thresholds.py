from fractions import Fraction
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abc_toolkit.errors import UserError
from abc_toolkit.tasks import IntHalfspace, Majority, SparseThreshold
from abc_toolkit.tasks.functions.base import BooleanTask
from abc_toolkit.testing.task_contract import TaskContract, generator
from tests.tasks.functions.laws import assert_labels_follow, assert_mean, assert_share, label_shares, sum_law


class TestThresholds(TaskContract):
    cases = {  # noqa: RUF012
        "majority": Majority(max_length=8, dim=4),
        "majority, one channel": Majority(max_length=2, dim=1),
        "halfspace": IntHalfspace(max_length=7, dim=3, marked=True),
        "sparse threshold": SparseThreshold(max_length=4, dim=2),
    }


def above(weights: list[float], point: list[float], threshold: float) -> float:
    total = 0.0
    for w, x in zip(weights, point, strict=True):
        total += w if x == 1 else -w
    return 1.0 if total > threshold else -1.0


ORACLES = {
    Majority: lambda function, point: 1.0 if more_than_half(function, point) else -1.0,
    IntHalfspace: lambda function, point: above(function, point, 0.5),
    SparseThreshold: lambda function, point: above(function[:-1], point, function[-1]),
}


def more_than_half(function: list[float], point: list[float]) -> bool:
    votes = [x for w, x in zip(function, point, strict=True) if w]
    return 2 * votes.count(1.0) > len(votes)


SPARSE = {0: Fraction(7, 10), 1: Fraction(15, 100), -1: Fraction(15, 100)}
WEIGHTS = {
    Majority: {0: Fraction(7, 10), 1: Fraction(3, 10)},
    IntHalfspace: {weight: Fraction(1, 7) for weight in range(-3, 4)},
    SparseThreshold: SPARSE,
}
THRESHOLDS = {Majority: [0.5], IntHalfspace: [0.5], SparseThreshold: [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]}

# Shares of labels that are 1 in training, at 10, 16 and 20 channels: measured with the released code of the study.
MEASURED = {Majority: (0.38, 0.41, 0.42), IntHalfspace: (0.47, 0.48, 0.48), SparseThreshold: (0.49, 0.50, 0.49)}


@pytest.mark.parametrize("dim", [10, 16, 20])
@pytest.mark.parametrize("kind", ORACLES)
def test_shares_of_labels(kind: type[BooleanTask], dim: int) -> None:
    """The exact share to 4.5 standard errors over prompts; the study's, itself a sample in two digits, to 0.01."""
    law = sum_law(WEIGHTS[kind], dim)
    shares = [sum(share for value, share in law.items() if value > threshold) for threshold in THRESHOLDS[kind]]
    exact = float(sum(shares) / len(shares))
    assert_mean(label_shares(kind(max_length=20, dim=dim), 6000), exact)
    assert exact == pytest.approx(MEASURED[kind][(10, 16, 20).index(dim)], abs=0.0101)


@pytest.mark.parametrize("kind", ORACLES)
def test_labels_are_of_the_one_function(kind: type[BooleanTask], monkeypatch: pytest.MonkeyPatch) -> None:
    assert_labels_follow(kind(max_length=12, dim=5), ORACLES[kind], monkeypatch)


@pytest.mark.parametrize("kind", ORACLES)
def test_weights_are_drawn_one_by_one(kind: type[BooleanTask]) -> None:
    weights = kind(dim=7).draw_function(generator(), 7000)[:, :7]
    for value, share in WEIGHTS[kind].items():
        assert_share(int((weights == value).sum()), weights.numel(), float(share))
    zero = float(WEIGHTS[kind][0])
    assert_share(int(((weights[:, 0] == 0) & (weights[:, 6] == 0)).sum()), 7000, zero**2)


def test_thresholds_are_uniform() -> None:
    thresholds = SparseThreshold(dim=3).draw_function(generator(), 6000)[:, 3]
    assert sorted(thresholds.unique().tolist()) == THRESHOLDS[SparseThreshold]
    for threshold in THRESHOLDS[SparseThreshold]:
        assert_share(int((thresholds == threshold).sum()), 6000, 1 / 6)


@pytest.mark.parametrize("kind", ORACLES)
def test_points_are_uniform(kind: type[BooleanTask]) -> None:
    points = kind(dim=3).sample(generator(), 2000, (4,)).inputs[:, 0::2]
    corners = [(points == torch.tensor(corner)).all(dim=-1) for corner in product((-1.0, 1.0), repeat=3)]
    for corner in corners:
        assert_share(int(corner.sum()), 8000, 1 / 8)


@given(dim=st.integers(1, 6), data=st.data())
def test_every_function_on_every_point(dim: int, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(list(ORACLES)))
    function = data.draw(st.lists(st.sampled_from([float(w) for w in WEIGHTS[kind]]), min_size=dim, max_size=dim))
    if kind is SparseThreshold:
        function.append(data.draw(st.sampled_from(THRESHOLDS[kind])))
    points = [list(map(float, point)) for point in product((-1, 1), repeat=dim)]
    labels = kind(dim=dim).labels(torch.tensor([function]), torch.tensor([points]))
    assert labels.tolist() == [[ORACLES[kind](function, point) for point in points]]


@given(kind=st.sampled_from(list(ORACLES)), dim=st.integers(1, 8), length=st.integers(1, 9), seed=st.integers(0, 99))
def test_points_and_labels_are_signs(kind: type[BooleanTask], dim: int, length: int, seed: int) -> None:
    task = kind(max_length=length, dim=dim)
    batch = task.sample(generator(seed), 3, (length,))
    assert batch.inputs.shape == (3, 2 * length - 1, dim)
    assert set(batch.inputs[:, 0::2].unique().tolist()) <= {-1, 1}
    assert set(batch.targets.unique().tolist()) <= {-1, 1}
    torch.manual_seed(seed + 1)
    assert torch.equal(batch.inputs, task.sample(generator(seed), 3, (length,)).inputs)


def test_no_channel_is_refused() -> None:
    for kind in ORACLES:
        with pytest.raises(UserError, match=f"dim 0: {kind.__name__} needs at least 1"):
            kind(dim=0)


def test_a_stage_of_boolean_points_keeps_every_channel() -> None:
    task = Majority(max_length=10, dim=5)
    stage = task.stage(2, 4)
    assert stage == Majority(max_length=4, dim=5)
    assert (stage.interface, stage.objective.metrics) == (task.interface, task.objective.metrics)


def test_baselines_are_those_of_the_study() -> None:
    assert list(Majority().predictors()) == ["1 nearest", "averaging", "always -1"]
    for kind in (IntHalfspace, SparseThreshold):
        assert list(kind().predictors()) == ["3 nearest", "averaging", "always -1"]
