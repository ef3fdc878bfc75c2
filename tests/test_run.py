import json
import os
from pathlib import Path

import pytest

from abc_toolkit.calibration import Places
from abc_toolkit.description import describe, rebuild
from abc_toolkit.errors import UserError
from abc_toolkit.model import Architecture
from abc_toolkit.positions import NoPE, PositionMethod, Sinusoidal
from abc_toolkit.run import CERTIFICATE, PROGRESS, RECORD, WEIGHTS, WINDOW, Run, device_for
from abc_toolkit.tasks import Addition, Parity, Task


def _finish(run: Run, text: str = "new", **options: bool) -> None:
    with run.writing("fit", **options) as folder:
        (folder / RECORD).write_text(text)


def _interrupt(run: Run) -> None:
    with run.writing("fit", overwrite=True) as folder:
        (folder / PROGRESS).write_text("half")
        raise KeyboardInterrupt


def test_a_phase_appears_when_it_is_whole(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with run.writing("fit") as folder:
        (folder / RECORD).write_text("{}")
        assert not run.has("fit")
    assert run.has("fit")
    assert os.listdir(run.path) == ["fit"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, UserError])
def test_what_fails_leaves_nothing_behind(error: type[BaseException], tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with pytest.raises(error), run.writing("fit"):
        raise error
    assert os.listdir(tmp_path) == []


def test_what_fails_leaves_the_old_phase_and_the_progress(tmp_path: Path) -> None:
    run = Run(tmp_path)
    _finish(run, "old")
    with pytest.raises(KeyboardInterrupt):
        _interrupt(run)
    assert (run.folder("fit") / RECORD).read_text() == "old"
    with run.writing("fit", resume=True) as folder:
        assert (folder / PROGRESS).read_text() == "half"
        (folder / RECORD).write_text("new")
    assert (run.folder("fit") / RECORD).read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["fit"]
    assert os.listdir(run.folder("fit")) == [RECORD]


def test_a_phase_is_replaced_on_demand_alone(tmp_path: Path) -> None:
    run = Run(tmp_path)
    _finish(run, "old")
    for options, message in [({}, "--overwrite"), ({"resume": True}, "nothing to resume")]:
        with pytest.raises(UserError, match=message):
            _finish(run, **options)
    with pytest.raises(UserError, match="exclude each other"):
        _finish(run, resume=True, overwrite=True)
    assert (run.folder("fit") / RECORD).read_text() == "old"
    _finish(run, overwrite=True)
    assert (run.folder("fit") / RECORD).read_text() == "new"


def test_an_interrupted_phase_is_not_begun_again_silently(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.partial("fit").mkdir()
    (run.partial("fit") / PROGRESS).touch()
    with pytest.raises(UserError, match="was interrupted: go on with --resume"):
        _finish(run)
    with pytest.raises(UserError, match="was interrupted in"):
        Run.newest(tmp_path, "fit")
    _finish(run, overwrite=True)
    assert run.has("fit")


def test_an_old_phase_comes_back_if_its_replacement_was_killed_on_the_last_step(tmp_path: Path) -> None:
    _finish(Run(tmp_path), "old")
    os.replace(tmp_path / "fit", tmp_path / ".fit.old")
    (tmp_path / ".fit.partial").mkdir()
    assert (Run(tmp_path).folder("fit") / RECORD).read_text() == "old"


@pytest.mark.parametrize("blocked", ["run", "run/.fit.partial"])
def test_a_folder_that_cannot_be_made_is_named(blocked: str, tmp_path: Path) -> None:
    (tmp_path / blocked).parent.mkdir(exist_ok=True)
    (tmp_path / blocked).write_text("a file in its way")
    with pytest.raises(UserError, match="cannot be written"):
        _finish(Run(tmp_path / "run"))
    assert (tmp_path / blocked).read_text() == "a file in its way"


def test_the_newest_run_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="there is no run in runs"):
        Run.newest(None, "fit")
    for age, name in enumerate(["b", "c", "a"]):
        _finish(Run(Path("runs", name)))
        os.utime(Path("runs", name, "fit"), (age, age))
    Path("runs", "empty").mkdir()
    assert Run.newest(None, "fit").path == Path("runs", "a")
    with pytest.raises(UserError, match="holds no finished 'calibrate': do 'abc calibrate --run"):
        Run.newest(None, "calibrate")
    with pytest.raises(UserError, match="there is no run at nowhere"):
        Run.newest("nowhere", "fit")


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (Addition(max_length=4), Task),
        (Parity(form="label"), Task),
        (Architecture(norm="post", position=NoPE()), Architecture),
        (Sinusoidal(("place", "segment"), base=10.0), PositionMethod),
        (Places(min_attention=0.5), Places),
    ],
)
def test_settings_survive_the_record(value: object, kind: type) -> None:
    assert rebuild(json.loads(json.dumps(describe(value))), kind) == value


def test_a_record_builds_nothing_but_what_is_asked_for() -> None:
    with pytest.raises(TypeError, match="is no Task"):
        rebuild({"class_path": "pathlib.Path", "init_args": {}}, Task)


@pytest.mark.parametrize(
    ("file", "phase", "load"),
    [
        (RECORD, "fit", lambda run: run.task("fit")),
        (WEIGHTS, "fit", lambda run: run.load_model("fit")),
        ("window.json", "calibrate", lambda run: run.window()),
        ("window.json", "retrain", lambda run: run.load_model("retrain")),
    ],
)
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_named(file: str, phase: str, load: object, kept: float, pipeline: Path) -> None:
    assert callable(load)
    path = pipeline / phase / file
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UserError, match=f"{phase}/{file}") as caught:
        load(Run(pipeline))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (RECORD, "[]"),
        (RECORD, '{"schema": 1, "phase": "calibrate"}'),
        (RECORD, '{"schema": 99, "phase": "fit"}'),
        (RECORD, '{"schema": 1, "phase": "fit", "task": {"class_path": "os.path", "init_args": {}}}'),
        (RECORD, '{"schema": 1, "phase": "fit", "task": {"class_path": "nosuch.Task", "init_args": {}}}'),
        (RECORD, '{"schema": 1, "phase": "fit", "task": 3}'),
        (WEIGHTS, "not safetensors"),
    ],
)
def test_a_foreign_file_is_named(file: str, text: str, pipeline: Path) -> None:
    (pipeline / "fit" / file).write_text(text)
    with pytest.raises(UserError, match=f"fit/{file}"):
        Run(pipeline).load_model("fit")


def test_weights_of_another_model_are_refused(pipeline: Path) -> None:
    record = json.loads((pipeline / "fit" / RECORD).read_text())
    record["model"]["model_dim"] = 64
    (pipeline / "fit" / RECORD).write_text(json.dumps(record))
    with pytest.raises(UserError, match="does not hold this model's weights"):
        Run(pipeline).load_model("fit")


def test_an_unknown_accelerator_is_named() -> None:
    with pytest.raises(UserError, match="choose cpu, gpu or auto"):
        device_for("nosuch")


def test_a_run_whose_fit_was_interrupted_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    partial = tmp_path / "runs" / "parity" / ".fit.partial"
    partial.mkdir(parents=True)
    with pytest.raises(UserError, match="start with 'abc fit'"):  # there is nothing to resume
        Run.newest(None, "fit")
    (partial / PROGRESS).touch()
    with pytest.raises(UserError, match="parity holds an interrupted fit: finish it with 'abc fit --resume'"):
        Run.newest(None, "fit")


def test_a_certificate_is_of_the_weights_and_the_window_that_it_names(pipeline: Path) -> None:
    run = Run(pipeline)
    assert not run.certificate_is_stale()  # there is none
    folder = pipeline / "certify"
    folder.mkdir()
    (folder / RECORD).write_text("{}")
    own = run.certified_hashes()
    assert set(own) == {"weights", "window"}
    for text, stale in (
        (json.dumps({"hashes": own}), False),
        (json.dumps({"hashes": own | {"more": 1}}), False),
        (json.dumps({"hashes": own | {"weights": own["window"]}}), True),
        (json.dumps({"hashes": {"weights": own["weights"]}}), True),
        (json.dumps({"weights": own["weights"]}), True),
        (json.dumps({"hashes": None}), True),
        ("[]", True),
        ("{", True),
    ):
        (folder / CERTIFICATE).write_text(text)
        assert run.certificate_is_stale() == stale, text
    (folder / CERTIFICATE).unlink()
    assert run.certificate_is_stale()
    (folder / CERTIFICATE).write_text(json.dumps({"hashes": own}))
    for name in (WEIGHTS, WINDOW):
        path = pipeline / "retrain" / name
        before = path.read_bytes()
        path.write_bytes(before + b" ")
        assert run.certificate_is_stale()
        path.write_bytes(before)
    assert not run.certificate_is_stale()
