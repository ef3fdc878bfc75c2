"""Labels, metrics, losses, prompts and baselines, against what the study's released code made of the same points."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from abc_toolkit.tasks import (
    CNF,
    DNF,
    Conjunction,
    Disjunction,
    IntHalfspace,
    LinearRegression,
    Majority,
    ParityFunction,
    SparseDisjunction,
    SparseLinearRegression,
    SparseParity,
    SparseThreshold,
)
from abc_toolkit.tasks.functions import baselines
from abc_toolkit.tasks.functions.base import InContextTask, RegressionTask

FOLDER = Path(__file__).parents[2] / "golden"
GOLDEN = np.load(FOLDER / "icl_tasks.npz")
CURRICULUM = np.load(FOLDER / "icl_curriculum.npz")
DIM, POINTS, USED = 10, 12, 7
LIMIT = 2e-6  # of float32
CLASSES: dict[str, type[InContextTask]] = {
    "linear_regression": LinearRegression,
    "sparse_linear_regression": SparseLinearRegression,
    "conjunction": Conjunction,
    "disjunction": Disjunction,
    "sparse_disjunction": SparseDisjunction,
    "cnf": CNF,
    "dnf": DNF,
    "majority": Majority,
    "int_halfspace": IntHalfspace,
    "sparse_thres": SparseThreshold,
    "parity": ParityFunction,
    "sparse_parity": SparseParity,
}


def golden(name: str, array: str) -> Tensor:
    return torch.from_numpy(GOLDEN[f"{name}_{array}"])


def function(name: str) -> Tensor:
    """The function, as the class draws it: clauses after prompts, and a threshold after its weights."""
    weights = golden(name, "w")[..., 0]
    if name in ("cnf", "dnf"):
        return weights.transpose(0, 1)
    return torch.cat([weights, golden(name, "kw")], dim=1) if name == "sparse_thres" else weights


def assert_near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected.double(), atol=LIMIT, rtol=0)


@pytest.fixture(params=CLASSES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def task(name: str) -> InContextTask:
    return CLASSES[name](max_length=POINTS, dim=DIM)


def test_labels(name: str, task: InContextTask) -> None:
    assert torch.equal(task.labels(function(name), golden(name, "xs")), golden(name, "ys"))


def test_metric_and_loss(name: str, task: InContextTask) -> None:
    """Ours divide the errors of a regression by the variance of a label."""
    scale = task.variance if isinstance(task, RegressionTask) else 1.0
    batch = task.prompts(golden(name, "xs"), golden(name, "ys"), torch.ones(POINTS, dtype=torch.bool))
    outputs = torch.full((4, 2 * POINTS - 1), 7.0)  # at labels, where it must not matter
    outputs[:, 0::2] = golden(name, "pred")
    metric = task.objective.by_output(outputs, batch)
    assert metric is not None
    assert_near(scale * metric[:, 0::2], golden(name, "metric"))
    loss = scale * task.objective.loss(outputs, batch)
    assert loss.item() == pytest.approx(golden(name, "train_loss").item(), abs=LIMIT)
    first, last = (scale * value for value in task.objective.measured(outputs, batch).values())
    assert_near(first, golden(name, "metric").mean(dim=1))
    assert_near(last, golden(name, "metric")[:, -1])


def test_prompts() -> None:
    """The released prompt ends with the last label, from which nothing is predicted."""
    task = LinearRegression(max_length=POINTS, dim=DIM)
    points, labels = golden("linear_regression", "xs"), golden("linear_regression", "ys")
    batch = task.prompts(points, labels, torch.ones(POINTS, dtype=torch.bool))
    assert torch.equal(batch.inputs, torch.from_numpy(GOLDEN["combine_zs"])[:, :-1])
    assert torch.equal(batch.targets[:, 0::2], labels)


@pytest.mark.parametrize("number", [1, 3])
def test_nearest(name: str, number: int) -> None:
    points, labels = golden(name, "xs").double(), golden(name, "ys").double()
    assert_near(baselines.nearest(points, labels, number), golden(name, f"baseline_nn{number}"))


def test_averaging(name: str) -> None:
    found = baselines.averaging(golden(name, "xs").double(), golden(name, "ys").double())
    assert_near(found, golden(name, "baseline_avg"))


def test_the_constant_answer(name: str, task: InContextTask) -> None:
    points, labels = golden(name, "xs").double(), golden(name, "ys").double()
    if isinstance(task, RegressionTask):
        assert not task.predictors()["zero"](points, labels).any()
    else:
        assert_near(task.predictors()["always -1"](points, labels), golden(name, "baseline_null"))


@pytest.mark.parametrize("name", ["linear_regression", "sparse_linear_regression"], indirect=False)
def test_least_squares(name: str) -> None:
    """As released where ranks are full, which the released code finds in float32; as numpy's everywhere.

    After 7 points in 7 channels of 10 the rank is not full, and the released predictions are wrong: `README.md` of the
    arrays says why.
    """
    points, labels = golden(name, "xs").double(), golden(name, "ys").double()
    assert not points[..., USED:].any()
    found, released = baselines.least_squares(points, labels), golden(name, "baseline_ols")
    torch.testing.assert_close(found[:, :USED].float(), released[:, :USED], atol=1e-5, rtol=0)
    for row, (x, y) in enumerate(zip(points.numpy(), labels.numpy(), strict=True)):
        for number in range(1, POINTS):
            weights = np.linalg.lstsq(x[:number], y[:number], rcond=None)[0]
            assert found[row, number].item() == pytest.approx(float(x[number] @ weights), abs=LIMIT)
    torch.testing.assert_close(found[:, USED:], labels[:, USED:], atol=5e-5, rtol=0)  # labels are float32 sums
    assert (released - labels)[:, USED:].abs().max() > 0.5


def test_lasso() -> None:
    name = "sparse_linear_regression"
    found = baselines.lasso(golden(name, "xs").double(), golden(name, "ys").double())
    assert_near(found, golden(name, "baseline_lasso0.01"))


@pytest.mark.parametrize("name", CURRICULUM.files, indirect=False)
def test_every_stage_of_the_released_curricula(name: str) -> None:
    """Its channels are drawn and no others, and it has as many points."""
    dim, points = (int(number) for number in CURRICULUM[name][:, 1:].max(axis=0))
    task = LinearRegression(max_length=points, dim=dim)
    for used, length in {(int(used), int(length)) for _, used, length in CURRICULUM[name]}:
        stage = task.stage(used, length)
        assert stage.training_shapes() == ((length,),)
        inputs = stage.sample(torch.Generator().manual_seed(0), 2, (length,)).inputs
        assert inputs.shape == (2, 2 * length - 1, dim)
        assert inputs[:, 0::2, :used].all()
        assert not inputs[..., used:].any()
