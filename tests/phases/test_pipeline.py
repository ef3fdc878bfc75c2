import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import abc_toolkit
from abc_toolkit import checker
from abc_toolkit.calibration import Places
from abc_toolkit.calibration.capture import AttentionMaps
from abc_toolkit.errors import UserError
from abc_toolkit.models.base import Architecture
from abc_toolkit.models.decoding import Decode
from abc_toolkit.phases import pipeline as phase_module
from abc_toolkit.phases.evaluate import EvaluationResult
from abc_toolkit.phases.training import ArchitectureChanges
from abc_toolkit.positions import NoPE, Sinusoidal
from abc_toolkit.proof import CannotDecideError
from abc_toolkit.runs.folder import PIPELINE, PROGRESS, WEIGHTS, Phase, Run
from abc_toolkit.tasks import Parity
from abc_toolkit.tasks.objective import Stopping
from abc_toolkit.training.data import Data
from abc_toolkit.training.loop import TrainerSettings
from abc_toolkit.training.module import Optimizer
from abc_toolkit.windows import Window, matrices
from tests.small_runs import fill, finish, resealed


def test_retraining_changes_what_it_is_told_to_alone() -> None:
    vanilla = Architecture(num_heads=2, dropout=0.2, position=Sinusoidal(("place",)))
    assert ArchitectureChanges().applied_to(vanilla) == Architecture(num_heads=2, dropout=0.2, position=NoPE())
    assert ArchitectureChanges(model_dim=32, norm="post").applied_to(vanilla).model_dim == 32
    with pytest.raises(UserError, match="num_heads 2 does not divide"):
        ArchitectureChanges(model_dim=33).applied_to(vanilla)


def _count(monkeypatch: pytest.MonkeyPatch, path: Path, text: str = "new") -> list[tuple[str, bool, bool]]:
    """Replaces the phases by ones that are recorded and only write a text."""
    done: list[tuple[str, bool, bool]] = []

    def phase(name: Any) -> Any:
        def run(*, seed: int = 0, resume: bool = False, overwrite: bool = False, **_: Any) -> EvaluationResult:
            done.append((name, resume, overwrite))
            own = Run(path)
            with own.writing(name, resume, overwrite) as folder:
                fill(own, name, folder, text, reached=True)
            return EvaluationResult(own, ())

        return run

    monkeypatch.setattr(phase_module, "PHASES", {name: phase(name) for name in PIPELINE})
    monkeypatch.setattr(phase_module, "check_task", lambda *_: None)
    monkeypatch.setattr(phase_module, "_check_asked", lambda *_: None)
    monkeypatch.setattr(phase_module, "_certified", lambda result, *_: result)
    return done


def _interrupt(run: Run, phase: Phase) -> None:
    with suppress(KeyboardInterrupt), run.writing(phase, overwrite=True) as folder:
        (folder / PROGRESS).touch()
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("state", "text", "expected"),
    [
        # fit was interrupted
        ("fit*", "new", [("fit", True, False), *((phase, False, True) for phase in PIPELINE[1:])]),
        # retrain was interrupted
        ("fit calibrate retrain*", "new", [("retrain", True, False), ("evaluate", False, True)]),
        # as before, in a run that was being overwritten with others: what there is of retrain and evaluate is older
        (
            "fit calibrate retrain evaluate fit! calibrate! retrain*",
            "other",
            [("retrain", True, False), ("evaluate", False, True)],
        ),
        # calibrate was killed in a run that was being overwritten with others
        ("fit calibrate retrain evaluate fit!", "other", [(phase, False, True) for phase in PIPELINE[1:]]),
        # a phase was done again and came to the same: what follows from it stays
        ("fit calibrate retrain evaluate fit!", "new", None),
    ],
)
def test_a_run_is_resumed_where_it_stopped(
    state: str,
    text: str,
    expected: list[tuple[str, bool, bool]] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run(tmp_path)
    for word in state.split():
        phase: Any = word.strip("*!")
        if word.endswith("*"):
            _interrupt(run, phase)
        else:
            finish(run, phase, text if word.endswith("!") else "new", overwrite=True)
    done = _count(monkeypatch, tmp_path, text)
    with pytest.raises(UserError, match=r"go on with --resume"):
        abc_toolkit.run_all(Parity(), run=tmp_path)
    if expected is not None:
        abc_toolkit.run_all(Parity(), run=tmp_path, resume=True)
        assert done == expected
    assert all(run.up_to_date(phase) for phase in PIPELINE)
    done.clear()
    monkeypatch.setattr(phase_module, "_finished_before", lambda place, _: place)
    assert abc_toolkit.run_all(Parity(), run=tmp_path, resume=True) == Run(tmp_path)
    assert done == []
    abc_toolkit.run_all(Parity(), run=tmp_path, overwrite=True)
    assert done == [(phase, False, True) for phase in PIPELINE]


@pytest.mark.parametrize(
    "text", ["{}", "[1]", '[{"task": "parity"}]', "[", '["class_path"]', '[{"class_path": "os.Row"}]']
)
def test_results_that_somebody_wrote_are_refused_in_a_line(text: str, pipeline: Path) -> None:
    (pipeline / "evaluate" / "results.json").write_text(text)
    resealed(pipeline / "evaluate")
    with pytest.raises(UserError, match=r"results\.json"):
        phase_module._finished_before(Run(pipeline), True)


SMALL = {"model": Architecture(model_dim=32, feedforward_dim=64, num_heads=2)}


def _settings_of_the_pipeline() -> dict[str, Any]:
    training = {
        "data": Data(validation_problems=64),
        "optimizer": Optimizer(warmup_steps=10, averaging=0.9),
        "trainer": TrainerSettings(max_steps=800, validate_every=20, accelerator="cpu"),
    }
    return {
        "fit_settings": SMALL | {"stopping": Stopping(exact_match=1.0, loss=0.02)} | training,
        "calibrate_settings": {"problems": 64},
        "retrain_settings": {"stopping": Stopping(exact_match=1.0, loss=0.05)} | training,
        "evaluate_settings": {"length": "1x,2x", "samples": 16},
    }


def test_a_run_is_certified_at_its_end(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def resume(**more: Any) -> Any:
        settings = _settings_of_the_pipeline() | more
        return abc_toolkit.run_all(Parity(max_length=3), run=pipeline, resume=True, **settings)

    assert resume(phases=PIPELINE).verdict is None
    assert not Run(pipeline).has("certify")
    result = resume()
    path = pipeline / "certify" / "certificate.json"
    assert result.verdict == json.loads(path.read_text())["verdict"]
    before = path.read_bytes()
    monkeypatch.setattr(phase_module, "prove", None)  # is not called: what is up to date stays
    assert resume().verdict == result.verdict
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ("fit,retrain", "retrain needs calibrate"),
        ("certify,evaluate,fit", "certify needs retrain"),
        ("evaluate", "evaluate needs fit"),
        ("fit,solve", "--phases fit,solve: choose of fit,calibrate,retrain,evaluate,certify"),
        ("", "choose of"),
    ],
)
def test_a_phase_is_not_done_without_those_that_it_needs(tmp_path: Path, phases: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        abc_toolkit.run_all(Parity(), run=tmp_path / "new", phases=phases)
    assert not (tmp_path / "new").exists()


def test_a_run_may_have_some_of_the_phases(tmp_path: Path, abc: Callable[..., tuple[int, str, str]]) -> None:
    def run(*more: str) -> tuple[int, str, str]:
        sizes = ("--fit.trainer.max_steps", "2", "--evaluate.samples", "4", "--evaluate.length", "3")
        # A backbone that no window can be read off.
        own = ("--task", "Parity", "--task.max_length", "3", "--fit.model.backbone", "mamba", *sizes)
        return abc("run", *own, "--run", str(tmp_path), *more)

    assert run("--phases", "fit,calibrate")[0] == 2
    assert run("--phases", "fit")[0] == 0
    assert (Run(tmp_path).has("fit"), Run(tmp_path).has("evaluate")) == (True, False)
    assert "was finished before" in run("--phases", "fit", "--resume")[2]
    status, said, told = run("--phases", "fit,evaluate", "--resume")
    assert (status, "fit: finished before, kept." in told, "vanilla" in said) == (0, True, True)
    assert "was finished before" in run("--phases", "evaluate,fit", "--resume")[2]


def test_a_run_that_cannot_be_certified_says_why(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cannot(*_: Any) -> None:
        raise CannotDecideError("nothing is known of it")

    monkeypatch.setattr(phase_module, "basis_of", cannot)
    settings = _settings_of_the_pipeline()
    result = abc_toolkit.run_all(Parity(max_length=3), run=pipeline, resume=True, **settings)
    assert result.verdict is None
    assert "Not certified: nothing is known of it." in capsys.readouterr().err
    assert not Run(pipeline).has("certify")


def test_a_run_is_resumed_under_the_same_settings_alone(pipeline: Path) -> None:
    same = _settings_of_the_pipeline()

    def resume(**changes: Any) -> EvaluationResult:
        return abc_toolkit.run_all(Parity(max_length=3), run=pipeline, resume=True, phases=PIPELINE, **(same | changes))

    before = {path: path.read_bytes() for path in sorted(pipeline.rglob("*.*")) if path.parent != pipeline}
    rows = resume().rows
    assert [row.plain() for row in rows] == [
        row | {"shape": None} for row in json.loads((pipeline / "evaluate" / "results.json").read_text())
    ]
    loud = TrainerSettings(max_steps=900, validate_every=20, accelerator="cpu", log_every=20, progress_bar=False)
    assert resume(fit_settings=same["fit_settings"] | {"trainer": loud}).rows == rows
    assert before == {path: path.read_bytes() for path in sorted(pipeline.rglob("*.*")) if path.parent != pipeline}
    with pytest.raises(UserError, match=r"'fit' in .* was done under other settings: seed was 0 and is 7; give"):
        resume(seed=7)
    changed = {"model": Architecture(model_dim=16, feedforward_dim=64, num_heads=2, position=NoPE())}
    with pytest.raises(UserError, match=r"model\.model_dim was 32 and is 16; model\.position was None and is .*NoPE"):
        resume(fit_settings=same["fit_settings"] | changed)
    with pytest.raises(UserError, match=r"'evaluate' .*: samples was 16 and is 32;"):
        resume(evaluate_settings={"length": "1x,2x", "samples": 32})
    (pipeline / "retrain" / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"there is no file runs/parity/retrain/weights\.safetensors"):
        resume()


def test_a_model_that_does_not_interpolate_is_not_calibrated(pipeline: Path) -> None:
    untrained = TrainerSettings(max_steps=1, accelerator="cpu")
    sizes = Architecture(model_dim=16, num_heads=2, feedforward_dim=16)
    abc_toolkit.fit(Parity(max_length=3), run=pipeline, model=sizes, trainer=untrained, overwrite=True)
    before = (pipeline / "calibrate" / "window.json").read_text()
    with pytest.raises(UserError, match=r"does not interpolate: it solves .* %"):
        abc_toolkit.calibrate(run=pipeline, overwrite=True)
    assert (pipeline / "calibrate" / "window.json").read_text() == before
    with pytest.raises(UserError, match="it was made of another weights than 'fit' holds now; do 'abc calibrate --ov"):
        abc_toolkit.retrain(run=pipeline, overwrite=True)


def test_a_window_that_is_not_sufficient_is_refused_with_both_remedies(pipeline: Path) -> None:
    before = (pipeline / "calibrate" / "window.json").read_text()
    method = Places(min_attention=1, complete=False)
    remedies = r"lower --method.min_attention, .*, or raise it where .*, or go on all the same with --force$"
    with pytest.raises(UserError, match=remedies) as raised:
        abc_toolkit.calibrate(run=pipeline, method=method, overwrite=True)
    assert "\n" not in str(raised.value)
    assert (pipeline / "calibrate" / "window.json").read_text() == before


@pytest.mark.parametrize("size", [None, "5x9", "2x3"])
def test_the_window_is_exported_as_matrices(size: str | None, pipeline: Path) -> None:
    result = abc_toolkit.calibrate(run=pipeline, problems=64, overwrite=True, export=Path("m.safetensors"), size=size)
    exported = load_file("m.safetensors")
    assert set(exported) == {"decoder.0", "cross.0"}
    queries, keys = map(int, (size or "4x3").split("x"))
    assert exported["cross.0"].shape == (2, queries, keys)
    # Of a problem with as many bits as there are keys, the first queries; self-attention has as many keys as queries.
    expected = matrices(result.window, Parity().layout((keys,)))
    for name, matrix in expected.items():
        cut = matrix[:, :queries, : queries if name.startswith("decoder") else None]
        assert torch.equal(exported[name], cut)


def test_a_size_that_no_problem_has_is_not_exported(pipeline: Path) -> None:
    with pytest.raises(UserError, match="--size 9x3: no problem of parity has so many"):
        abc_toolkit.calibrate(run=pipeline, problems=64, overwrite=True, export=Path("m.safetensors"), size="9x3")
    assert not Path("m.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "Addition"}, "the window is for Addition and the run in .* is of Parity"),
        ({"schema": 99}, "its schema is not"),
        ({"num_heads": 4}, "the window is for 4 heads and the model has 2"),
        ({"num_decoder_layers": 3}, "the window is for 3 decoder layers and the model has 1"),
        ({"rules": [{"site": "nowhere"}]}, "cannot be used"),
        ({"rules": 3}, "cannot be used"),
        (
            {"rules": [{"site": "cross", "layer": 0, "head": 0, "key_segment": "operand 7", "conditions": []}]},
            "names the segment 'operand 7', which parity has not",
        ),
    ],
)
def test_a_window_that_does_not_fit_is_refused(change: dict[str, Any], message: str, pipeline: Path) -> None:
    window = json.loads((pipeline / "calibrate" / "window.json").read_text())
    Path("other.json").write_text(json.dumps(window | change))
    before = sorted(os.listdir(pipeline))
    with pytest.raises(UserError, match=message):
        abc_toolkit.retrain(run=pipeline, window=Path("other.json"), overwrite=True)
    assert sorted(os.listdir(pipeline)) == before


@pytest.mark.parametrize("decode", ["parallel", "steps"])
def test_a_thousand_times_the_length_is_as_right_by_either_path(decode: Decode, pipeline: Path) -> None:
    rows = {}
    for path in ("gathered", "dense"):
        result = abc_toolkit.evaluate(
            run=pipeline,
            length="1000x" if decode == "parallel" else "20x",
            samples=3,
            sets=("uniform", "carry"),
            decode=decode,
            weights="retrain",
            attention=path,
            overwrite=True,
        )
        rows[path] = [row.plain() for row in result.rows]
    assert rows["gathered"] == rows["dense"]
    assert [row["length"] for row in rows["dense"]] == [3000 if decode == "parallel" else 60] * 2
    assert all(row["value"] == 1 for row in rows["dense"])


def test_saved_maps_and_window_are_what_calibrate_returned(pipeline: Path) -> None:
    result = abc_toolkit.calibrate(run=pipeline, problems=64, overwrite=True)
    assert Window.load(pipeline / "calibrate" / "window.json") == result.window
    saved = AttentionMaps.load(pipeline / "calibrate" / "attention_maps.safetensors")
    assert saved.solved == result.maps.solved
    (pipeline / "calibrate" / "attention_maps.safetensors").write_bytes(b"\x00" * 50)
    with pytest.raises(UserError, match=r"attention_maps\.safetensors is not a whole file"):
        AttentionMaps.load(pipeline / "calibrate" / "attention_maps.safetensors")


def test_a_decoder_only_model_goes_through_all_phases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abc: Callable[..., tuple[int, str, str]]
) -> None:
    monkeypatch.chdir(tmp_path)
    own = ["--task", "Parity", "--task.max_length", "5", "--fit.model.backbone", "decoder-only"]
    own += ["--fit.model.model_dim", "32", "--fit.model.num_heads", "2", "--fit.model.feedforward_dim", "64"]
    training = ["--fit.trainer.validate_every", "50", "--fit.stopping.exact_match", "0.99"]
    training += ["--fit.stopping.decay_steps", "50", "--fit.optimizer.warmup_steps", "20"]
    training += ["--retrain.stopping.decay_steps", "50", "--retrain.trainer.validate_every", "50"]
    status, said, error = abc("run", *own, *training, "--calibrate.problems", "200", "--evaluate.samples", "50")
    assert (status, "parity: correct at every length" in said) == (0, True), error
    assert checker.main(["runs/parity/certify/certificate.json"]) == 0
    rows = json.loads(Path("runs/parity/evaluate/results.json").read_text())
    assert {row["length"] for row in rows} >= {5, 50}
    assert all(row["value"] == 1 for row in rows if row["weights"] == "retrain")
    window = Window.load(Path("runs/parity/retrain/window.json"))
    assert (window.backbone, {rule.site for rule in window.rules}) == ("decoder-only", {"decoder"})
    assert {rule.query_string for rule in window.rules} == {"target"}, "what the source's queries see is read by nobody"
    for path in ("dense", "gathered"):
        given = ["--length", "60", "--samples", "20", "--weights", "retrain", "--attention", path, "--overwrite"]
        assert abc("evaluate", *given)[0] == 0
    assert abc("solve", "1" * 300 + "0", "1" * 301)[:2] == (0, "0\n1\n")
    other = tmp_path / "window.json"
    other.write_text(Window("Parity", 0, 1, 2, (), {}).to_json())
    status, _, error = abc("retrain", "--window", str(other), "--overwrite")
    assert (status, error.count("\n")) == (2, 1)
    assert "the window is for encoder-decoder models and the model is decoder-only" in error
    status, _, error = abc("calibrate", "--method", "Paper", "--overwrite")
    assert (status, error.count("\n")) == (2, 1)
    assert "the paper's lines are those of encoder-decoders" in error


@pytest.mark.parametrize("backbone", ["mamba"])
def test_a_model_without_attention_is_fitted_evaluated_and_no_more(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abc: Callable[..., tuple[int, str, str]]
) -> None:
    monkeypatch.chdir(tmp_path)
    own = ["--task", "Parity", "--task.max_length", "3", "--model.backbone", backbone, "--model.model_dim", "32"]
    own += ["--model.num_heads", "2", "--model.feedforward_dim", "64"]
    training = ["--trainer.max_steps", "400", "--trainer.validate_every", "20", "--optimizer.warmup_steps", "10"]
    status, _, error = abc("fit", *own, *training, "--optimizer.averaging", "0.9", "--stopping.loss", "0.05")
    assert (status, "Next:  abc evaluate --run runs/parity" in error) == (0, True)
    results = []
    for decode in ("parallel", "steps"):
        sizes = ["--length", "3", "--samples", "40", "--overwrite"]
        status, _, error = abc("evaluate", *sizes, "--decode", decode)
        assert (status, "abc solve --run runs/parity --weights fit PROBLEM" in error) == (0, True)
        rows = json.loads(Path("runs/parity/evaluate/results.json").read_text())
        results.append([row["value"] for row in rows])
        assert min(results[-1]) == 1
    assert results[0] == results[1]
    assert abc("solve", "--weights", "fit", "110", "101")[:2] == (0, "0\n0\n")
    window = tmp_path / "window.json"
    window.write_text(Window("Parity", 0, 1, 2, (), {}).to_json())
    refused = [("calibrate",), ("retrain", "--window", str(window)), ("run", *own[:-2], "--run", "other")]
    for words in refused:
        words = [word.replace("--model", "--fit.model") if words[0] == "run" else word for word in words]
        status, _, error = abc(*words)
        assert (status, error.count("\n")) == (2, 1)
        assert f"is {backbone}: 'abc fit' and 'abc evaluate' are what there is for it" in error
    assert not Path("other").exists()
    status, _, error = abc("evaluate", "--weights", "fit", "--attention", "gathered", "--overwrite")
    assert (status, error.count("\n")) == (2, 1)
