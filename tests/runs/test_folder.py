import os
import shutil
from pathlib import Path

import pytest

from abc_toolkit.errors import UserError
from abc_toolkit.runs.folder import CONFIG, PHASES, PIPELINE, PROGRESS, RECORD, WEIGHTS, WINDOW, Run, device_for
from tests.small_runs import fill, finish, resealed, text_of


def _interrupt(run: Run) -> None:
    with run.writing("fit", overwrite=True) as folder:
        (folder / PROGRESS).write_text("half")
        raise KeyboardInterrupt


def test_a_phase_appears_when_it_is_whole(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with run.writing("fit") as folder:
        fill(run, "fit", folder)
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
    finish(run, text="old")
    with pytest.raises(KeyboardInterrupt):
        _interrupt(run)
    assert text_of(run) == "old"
    with run.writing("fit", resume=True) as folder:
        assert (folder / PROGRESS).read_text() == "half"
        fill(run, "fit", folder)
    assert text_of(run) == "new"
    assert sorted(os.listdir(tmp_path)) == ["fit"]
    assert sorted(os.listdir(run.folder("fit"))) == [CONFIG, RECORD, WEIGHTS]


def test_a_phase_is_replaced_on_demand_alone(tmp_path: Path) -> None:
    run = Run(tmp_path)
    finish(run, text="old")
    for options, message in [({}, "--overwrite"), ({"resume": True}, "nothing to resume")]:
        with pytest.raises(UserError, match=message):
            finish(run, **options)
    with pytest.raises(UserError, match="exclude each other"):
        finish(run, resume=True, overwrite=True)
    assert text_of(run) == "old"
    finish(run, overwrite=True)
    assert text_of(run) == "new"


def test_an_interrupted_phase_is_not_begun_again_silently(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.partial("fit").mkdir()
    (run.partial("fit") / PROGRESS).touch()
    with pytest.raises(UserError, match="was interrupted: go on with --resume"):
        finish(run)
    with pytest.raises(UserError, match="was interrupted in"):
        Run.newest(tmp_path, "fit")
    finish(run, overwrite=True)
    assert run.has("fit")


def test_an_old_phase_comes_back_if_its_replacement_was_killed_on_the_last_step(tmp_path: Path) -> None:
    finish(Run(tmp_path), text="old")
    os.replace(tmp_path / "fit", tmp_path / ".fit.old")
    (tmp_path / ".fit.partial").mkdir()
    run = Run(tmp_path)
    assert run.has("fit")
    assert text_of(run) == "old"
    assert sorted(os.listdir(tmp_path)) == [".fit.old", ".fit.partial"]  # who only looks changes nothing
    finish(run, "calibrate")
    assert text_of(run) == "old"
    assert sorted(os.listdir(tmp_path)) == ["calibrate", "fit"]


@pytest.mark.parametrize("blocked", ["run", "run/.fit.partial"])
def test_a_folder_that_cannot_be_made_is_named(blocked: str, tmp_path: Path) -> None:
    (tmp_path / blocked).parent.mkdir(exist_ok=True)
    (tmp_path / blocked).write_text("a file in its way")
    with pytest.raises(UserError, match="cannot be written"):
        finish(Run(tmp_path / "run"))
    assert (tmp_path / blocked).read_text() == "a file in its way"


def test_the_newest_run_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="there is no run in runs"):
        Run.newest(None, "fit")
    for name in ("b", "c", "a"):
        finish(Run(Path("runs", name)))
    for age, name in enumerate(["a", "c", "b"]):  # when files were written says nothing
        os.utime(Path("runs", name, "fit", RECORD), (age, age))
    Path("runs", "empty").mkdir()
    assert Run.newest(None, "fit").path == Path("runs", "a")
    with pytest.raises(UserError, match="holds no finished 'calibrate': do 'abc calibrate --run"):
        Run.newest(None, "calibrate")
    with pytest.raises(UserError, match="there is no run at nowhere"):
        Run.newest("nowhere", "fit")


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
        (RECORD, '{"schema": 2, "phase": "calibrate"}'),
        (RECORD, '{"schema": 99, "phase": "fit"}'),
        (RECORD, '{"schema": 2, "phase": "fit"}'),
        (WEIGHTS, "not safetensors"),
    ],
)
def test_a_foreign_file_is_named(file: str, text: str, pipeline: Path) -> None:
    (pipeline / "fit" / file).write_text(text)
    with pytest.raises(UserError, match=f"fit/{file}"):
        Run(pipeline).load_model("fit")


@pytest.mark.parametrize("task", [{"class_path": "os.path", "init_args": {}}, {"class_path": "nosuch.Task"}, 3, None])
def test_a_record_that_names_no_task_is_refused(task: object, pipeline: Path) -> None:
    resealed(pipeline / "fit", lambda record: record.update(task=task))
    with pytest.raises(UserError, match=f"fit/{RECORD}"):
        Run(pipeline).load_model("fit")


def test_weights_of_another_model_are_refused(pipeline: Path) -> None:
    resealed(pipeline / "fit", lambda record: record["model"].update(model_dim=64))
    with pytest.raises(UserError, match="does not hold this model's weights"):
        Run(pipeline).load_model("fit")


@pytest.mark.parametrize("name", [RECORD, WEIGHTS, WINDOW])
def test_what_was_changed_is_refused(name: str, pipeline: Path) -> None:
    path = pipeline / "retrain" / name
    content = path.read_bytes()
    path.write_bytes(content.replace(b"0", b"1", 1))
    with pytest.raises(UserError, match=rf"retrain/{name} was changed after 'retrain' wrote it"):
        Run(pipeline).load_model("retrain")


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


def test_a_copy_is_as_fresh_as_what_was_copied(pipeline: Path) -> None:
    copy = Run(Path(shutil.copytree(pipeline, Path("copy"), copy_function=shutil.copyfile)))
    for phase in ("evaluate", "retrain", "calibrate", "fit"):
        os.utime(copy.folder(phase) / RECORD)  # the first phases are the last that were written
    assert all(copy.up_to_date(phase) for phase in PIPELINE)


def test_a_phase_is_stale_as_soon_as_what_it_read_is_another(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for phase in PHASES:
        finish(run, phase)
    assert all(run.up_to_date(phase) for phase in PHASES)
    finish(run, "fit", overwrite=True)  # the same once more
    assert all(run.up_to_date(phase) for phase in PHASES)
    finish(run, "fit", text="other", overwrite=True)
    os.utime(run.folder("fit") / RECORD, (0, 0))  # its age says nothing
    assert run.up_to_date("fit")
    assert run.stale("calibrate") == "it was made of another weights than 'fit' holds now"
    assert run.warnings("fit", "calibrate") == [
        f"Warning: 'calibrate' in {tmp_path} is stale: {run.stale('calibrate')}."
    ]
    assert run.stale("retrain") == f"'calibrate', which it was made of, is stale: {run.stale('calibrate')}"
    assert run.stale("certify") == f"'retrain', which it was made of, is stale: {run.stale('retrain')}"
    finish(run, "calibrate", overwrite=True)
    assert run.stale("calibrate") is None
    assert run.stale("retrain") is None  # the window is the same
    finish(run, "calibrate", text="other", overwrite=True)
    assert run.stale("retrain") == "it was made of another window than 'calibrate' holds now"


def test_what_was_read_must_still_be_there_when_writing_begins(tmp_path: Path) -> None:
    run = Run(tmp_path)
    finish(run, "fit")
    read = run.produced("fit")
    finish(run, "fit", text="other", overwrite=True)
    message = "the weights of 'fit' in .* was replaced while 'calibrate' began: start again"
    with pytest.raises(UserError, match=message), run.writing("calibrate", inputs=read):
        raise AssertionError
    assert os.listdir(tmp_path) == ["fit"]


def test_links_in_place_of_phases_are_read_and_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    finish(Run(tmp_path / "elsewhere"), text="old")
    run = Run(tmp_path / "run")
    run.path.mkdir()
    (run.path / "fit").symlink_to(tmp_path / "elsewhere" / "fit")
    assert text_of(run) == "old"
    with pytest.raises(UserError, match="is a link, which is not replaced"):
        finish(run, overwrite=True)
    assert text_of(Run(tmp_path / "elsewhere")) == "old"
    linked = Run(tmp_path / "link")
    linked.path.symlink_to(tmp_path / "elsewhere")
    finish(linked, overwrite=True)
    assert text_of(Run(tmp_path / "elsewhere")) == "new"


def test_a_training_that_ended_with_its_steps_can_be_extended(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for reached in (False, True):
        with run.writing("fit", resume=run.has("fit")) as folder:
            assert (folder / PROGRESS).exists() == run.has("fit")
            (folder / PROGRESS).write_text("half")
            fill(run, "fit", folder, reached=reached)
        assert (run.folder("fit") / PROGRESS).exists() != reached
    with pytest.raises(UserError, match="is finished: there is nothing to resume"):
        finish(run, resume=True)


def test_what_a_damaged_record_leaves_open_is_said(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for phase in ("fit", "calibrate"):
        finish(run, phase)
    (run.folder("fit") / RECORD).write_text("{}")
    (warning,) = run.warnings("calibrate", "retrain")
    assert warning.startswith(f"Warning: whether 'calibrate' in {tmp_path} is stale cannot be said: ")
    assert f"fit/{RECORD}" in warning


@pytest.mark.parametrize("target", ["/dev/zero", "nowhere", "."])
def test_links_in_place_of_files_are_damage_and_not_absence(target: str, tmp_path: Path) -> None:
    run = Run(tmp_path)
    finish(run)
    (run.folder("fit") / RECORD).unlink()
    (run.folder("fit") / RECORD).symlink_to(target)
    assert run.has("fit")
    with pytest.raises(UserError, match=f"fit/{RECORD}"):
        run.record("fit")
    run.partial("retrain").mkdir()
    (run.partial("retrain") / PROGRESS).symlink_to(target)
    with run.locked():
        pass
    assert run.interrupted("retrain")
