"""Tasks in context, from `fit` to the curves, the attacks and the attention of `evaluate`."""

import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from abc_toolkit import positions
from abc_toolkit.errors import UserError
from abc_toolkit.models.base import Architecture, Model, predict
from abc_toolkit.phases.measure import attended, bootstrap, evaluate_models, evaluation_problems
from abc_toolkit.positions import ALiBi, NoPE
from abc_toolkit.runs.folder import build_model
from abc_toolkit.seeds import seeded
from abc_toolkit.tasks import Addition, Conjunction, LinearRegression, Task
from abc_toolkit.tasks.base import ATTENTION, check_suites

Abc = Callable[..., tuple[int, str, str]]
CPU = torch.device("cpu")
TASK = LinearRegression(max_length=6, dim=2)
TINY = ["--model.num_decoder_layers", "1", "--model.model_dim", "16", "--model.num_heads", "2"]
TINY += ["--model.feedforward_dim", "16", "--trainer.max_steps", "4", "--trainer.validate_every", "4"]
TINY += ["--data.validation_problems", "32", "--trainer.accelerator", "cpu"]


def is_method(name: str) -> bool:
    kind = getattr(positions, name)
    return (
        isinstance(kind, type) and issubclass(kind, positions.PositionMethod) and kind is not positions.PositionMethod
    )


def model(task: Task = TASK, **settings: Any) -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"num_decoder_layers": 2, "model_dim": 16, "num_heads": 2, "position": NoPE()}
    return build_model(task, Architecture(**(sizes | settings)).for_task(decoded=False), None).eval()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two classes, and one of Mamba."""
    from abc_toolkit.cli.main import main

    folder = tmp_path_factory.mktemp("runs")
    small = ["--task.max_length", "6", "--task.dim", "2", *TINY]
    for words in (
        ["--config", "functions/linear_regression", *small, "--run", str(folder / "linear")],
        ["--config", "functions/conjunction", *small, "--run", str(folder / "conjunction")],
        ["--task", "Majority", *small, "--model.backbone", "mamba", "--run", str(folder / "mamba")],
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["abc"])
            assert main(["fit", *words]) == 0
    return folder


def test_a_curve_is_the_mean_of_what_the_model_does_at_each_point() -> None:
    network = model()
    found = evaluate_models(TASK, {"fit": network}, [6, 12], ["ood"], 40, "parallel", 0, CPU)
    curves = {curve.weights: curve for curve in found.curves}
    assert list(curves) == ["fit", "least squares", "3 nearest", "averaging", "zero"]
    (problems,) = evaluation_problems(TASK, 12, "ood", 40, 0)
    with torch.no_grad():
        outputs = predict(network, problems, TASK.layout((12,)))
    errors = ((outputs - problems.targets) ** 2 / 2)[:, 0::2]
    assert curves["fit"].values == pytest.approx(errors.double().mean(dim=0).tolist(), abs=1e-5)
    assert curves["fit"].samples == 40
    assert curves["fit"].counted == [True] * 12
    rows = {(row.weights, row.metric, row.length): row.value for row in found.rows}
    for weights, curve in curves.items():
        assert rows[weights, "last_squared_error", 12] == pytest.approx(curve.values[-1], abs=1e-6)
        assert rows[weights, "squared_error", 12] == pytest.approx(sum(curve.values) / 12, abs=1e-6)
        assert all(low <= value <= high for low, value, high in zip(curve.low, curve.values, curve.high, strict=True))
    assert (rows["fit", "squared_error", 6], rows["zero", "squared_error", 6]) != (0, 0)


def test_baselines_stand_beside_fresh_prompts_alone() -> None:
    suites = ["ood", "duplicates/all", "lost_in_the_middle/end"]
    found = evaluate_models(TASK, {"fit": model()}, [24], suites, 8, "parallel", 0, CPU)
    assert {row.weights for row in found.rows if row.suite == "ood"} == {"fit", *TASK.baselines()}
    assert {row.weights for row in found.rows if row.suite != "ood"} == {"fit"}
    lost = next(curve for curve in found.curves if curve.suite == "lost_in_the_middle/end")
    assert lost.counted == [False] * 23 + [True]
    row = next(row for row in found.rows if row.suite == lost.suite and row.metric == "squared_error")
    assert row.value == pytest.approx(lost.values[-1], abs=1e-6)


def test_attention_is_the_mean_of_the_last_points_rows() -> None:
    task = Conjunction(max_length=5, dim=3)
    network = model(task, position=ALiBi())
    found = attended(task, network, "fit", 10, 7, 3)
    (problems,) = evaluation_problems(task, 10, "ood", 7, 3)
    maps: dict[tuple[str, int], Tensor] = {}
    with torch.no_grad():
        predict(network, problems, task.layout((10,)), maps)
    assert (found.weights, found.samples, len(found.layers)) == ("fit", 7, 2)
    for layer, attention in enumerate(found.layers):
        rows = maps["decoder", layer].mean(dim=(0, 1))[18]
        assert attention == pytest.approx(rows[[1, 3, 5, 7, 9, 11, 13, 15, 17]].tolist(), abs=1e-6)
        assert sum(attention) < 1


def test_bootstrap_intervals_cover_the_mean_as_often_as_they_say() -> None:
    draws = random.Random(0)
    covered = 0
    for trial in range(400):
        values = torch.tensor([[draws.gauss(1, 2)] for _ in range(60)])
        low, high = bootstrap(values, seeded(trial), resamples=400)
        covered += int(low[0] <= 1 <= high[0])
    # 95 % less what a bootstrap of 60 numbers is known to lose; four standard errors of 400 trials are 4.4 %.
    assert 0.89 < covered / 400 < 0.985
    values = torch.randn(50, 4)
    low, high = bootstrap(values, seeded(0))
    assert torch.equal(low, bootstrap(values, seeded(0))[0])
    half = 1.96 * values.std(dim=0) / math.sqrt(50)
    torch.testing.assert_close((high - low).float() / 2, half, rtol=0.15, atol=0)


def test_every_suite_has_rows_a_figure_and_numbers(runs: Path, abc: Abc) -> None:
    words = ("--length", "24", "--samples", "6", "--sets", "ood,duplicates,lost_in_the_middle,attention", "--overwrite")
    for name, metric in (("linear", "squared_error"), ("conjunction", "accuracy")):
        status, out, err = abc("evaluate", "--run", str(runs / name), *words)
        assert status == 0, err
        folder = runs / name / "evaluate"
        assert {path.stem for path in folder.glob("*.png")} == {"ood", "duplicates", "lost_in_the_middle", "attention"}
        rows = json.loads((folder / "results.json").read_text())
        suites = {row["suite"] for row in rows}
        assert "lost_in_the_middle/middle" in suites
        assert ATTENTION not in suites
        assert {row["metric"] for row in rows} == {metric, f"last_{metric}"}
        curves = json.loads((folder / "curves.json").read_text())
        assert {curve["suite"] for curve in curves} == suites
        assert all(len(curve["values"]) == len(curve["low"]) == len(curve["counted"]) for curve in curves)
        (seen,) = json.loads((folder / "attention.json").read_text())
        assert [len(layer) for layer in seen["layers"]] == [23]
        for suite in suites:
            assert suite in "".join(out.split()), suite
        assert "Attention of the last point" in out


def test_an_evaluation_that_names_nothing_takes_1280_fresh_prompts(runs: Path, abc: Abc) -> None:
    status, _, err = abc("evaluate", "--run", str(runs / "linear"), "--length", "1x", "--overwrite")
    assert status == 0, err
    rows = json.loads((runs / "linear" / "evaluate" / "results.json").read_text())
    assert {(row["suite"], row["samples"]) for row in rows} == {("ood", 1280)}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("calibrate --run {}/linear", "'abc calibrate' is not available"),
        ("certify --run {}/linear", "'abc certify' is not available"),
        ("solve --run {}/linear 1", "'abc solve' is not available"),
        ("retrain --run {}/linear", "'abc retrain' is not available"),
        ("run --config functions/cnf --run {}/new", "'abc run' is not available"),
        ("evaluate --run {}/linear --sets duplicates --length 1x", "does not fit into 6 points .* such as [0-9]+"),
        ("evaluate --run {}/linear --sets lost_in_the_middle/end --length 2", "lost_in_the_middle/end does not fit"),
        ("evaluate --run {}/linear --sets carry", "they are ood, duplicates, lost_in_the_middle, attention"),
        ("evaluate --run {}/mamba --sets attention", "attention is not available: mamba has no attention"),
        ("fit --task SparseParity --task.dim 1 --run {}/new", "SparseParity needs at least 2"),
        ("fit --task SparseLinearRegression --task.dim 2 --run {}/new", "SparseLinearRegression needs at least 3"),
        ("fit --task DNF --task.overwriting 1.5 --run {}/new", "overwriting 1.5: give a probability"),
        ("fit --task DNF --model.position Abacus --run {}/new", "Abacus needs digits of operands or of an answer"),
        ("fit --task DNF --model.position PositionCoupling --run {}/new", "PositionCoupling needs digits"),
        ("fit --task DNF --model.position Learned --model.position.capacity 34 --run {}/new", "capacity of 34"),
        ("fit --task DNF --model.position TreePE --run {}/new", "TreePE needs the coordinate 'path'"),
        ("fit --task DNF --model.backbone encoder-decoder --run {}/new", "needs a target to decode"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(words: str, said: str, runs: Path, abc: Abc) -> None:
    before = sorted(path for path in runs.rglob("*") if "evaluate" not in path.parts)
    status, out, err = abc(*words.format(runs).split())
    assert (status, out, len(err.splitlines())) == (2, "", 1), err
    assert re.search(said, err), err
    assert sorted(path for path in runs.rglob("*") if "evaluate" not in path.parts) == before


@pytest.mark.parametrize("name", [name for name in positions.__all__ if is_method(name)])
def test_every_position_method_acts_or_is_refused(name: str) -> None:
    """None passes in silence for one that it is not: with a method, outputs are others than without, or it is NoPE."""
    inner = {"Compose": {"methods": (positions.RoPE(), ALiBi())}, "RandomizedPositions": {"inner": positions.RoPE()}}
    task = Conjunction(max_length=6, dim=3)
    sizes: dict[str, Any] = {"num_decoder_layers": 2, "model_dim": 16, "num_heads": 2, "block": "llama"}
    batch = task.sample(torch.Generator().manual_seed(0), 4, (6,))

    def outputs(method: positions.PositionMethod) -> Tensor:
        torch.manual_seed(0)
        network = build_model(task, Architecture(position=method, backbone="decoder-only", **sizes), None).train()
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(parameter.numel()))
        return predict(network, batch, task.layout((6,)))

    method = getattr(positions, name)(**inner.get(name, {}))
    if name in ("Abacus", "PositionCoupling", "Sinusoidal2D", "TreePE"):
        with pytest.raises(UserError, match=f"^{name} needs .* choose another position method$"):
            outputs(method)
    else:
        assert torch.allclose(outputs(method), outputs(NoPE())) == (name == "NoPE")


def test_digits_have_no_attention_suite(runs: Path) -> None:
    with pytest.raises(UserError, match="they are uniform, unequal, carry, zeros"):
        check_suites(Addition(), ATTENTION)
    assert check_suites(Addition(), None) == Addition().suites


def test_a_model_reads_no_label_before_it_predicts_it() -> None:
    """Predictions do not change with labels from their own point on, and the last label is not in the prompt."""
    task, network = Conjunction(max_length=8, dim=4), model(Conjunction(max_length=8, dim=4))
    assert isinstance(network, Model)
    batch = task.sample(torch.Generator().manual_seed(0), 5, (8,))
    with torch.no_grad():
        before = predict(network, batch, task.layout((8,)))
        for point in range(7):
            changed = batch.inputs.clone()
            changed[:, 2 * point + 1 :: 2] *= -1
            after = network(changed, None, task.layout((8,)))
            torch.testing.assert_close(after[:, : 2 * point + 1 : 2], before[:, : 2 * point + 1 : 2])
            assert not torch.allclose(after[:, 2 * point + 2], before[:, 2 * point + 2])
