"""A damaged file of a run is refused, or changes nothing; a short form of `experiments/reliability/artifacts.py`."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from abc_toolkit.errors import UserError
from abc_toolkit.report import figures
from abc_toolkit.runs.folder import PROGRESS, Run
from tests.reliability.artifacts import Result, damages, done, fault, phase_damages, sealed_changes, snapshot
from tests.small_runs import fill

CASES = 40
CALLS = {
    "solve": ("solve", "--run", "run", "101", "011"),
    "solve --weights fit": ("solve", "--run", "run", "--weights", "fit", "101"),
    "evaluate": ("evaluate", "--run", "run", "--overwrite", "--length", "3", "--samples", "4"),
    "calibrate": ("calibrate", "--run", "run", "--overwrite", "--problems", "16"),
}
READERS = {
    "fit": ("solve --weights fit", "evaluate", "calibrate"),
    "calibrate": ("evaluate",),
    "retrain": ("solve", "solve", "evaluate"),
}
Fresh = Callable[[], Path]


@pytest.fixture
def fresh(pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fresh:
    """Copies the run into the current folder, in which nothing else is."""
    base, here = pipeline.resolve(), tmp_path / "here"
    for name in ("attention_maps", "windows", "metric_curve", "digit_accuracy"):
        monkeypatch.setattr(figures, name, lambda path, *_, **__: Path(path).write_bytes(b"figure"))

    def copy() -> Path:
        monkeypatch.chdir(tmp_path)
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir()
        monkeypatch.chdir(here)
        return Path(shutil.copytree(base, "run"))

    return copy


def test_damage_is_refused_or_changes_nothing(fresh: Fresh) -> None:
    draw, expected = random.Random(0), dict[str, Result]()
    for command, words in CALLS.items():
        expected[command] = done(command, words, fresh())
        assert expected[command].status == 0, expected[command].said
    run = fresh()
    places = sorted(path.relative_to(run) for path in run.rglob("*") if path.is_file() and path.parts[1] in READERS)
    refused = 0
    for case in range(CASES):
        run = fresh()
        place = draw.choice((*places, *map(Path, READERS)))
        phase = place.parts[0]
        if len(place.parts) == 1:
            what, damage = draw.choice(list(phase_damages(run, phase)))
        else:
            what, damage = draw.choice(list(damages(run, run, run / place, draw)))
        whole = snapshot(Path.cwd())
        damage()
        before = snapshot(Path.cwd())
        command = draw.choice(READERS[phase])
        result = done(command, CALLS[command], run)
        wrong = fault(result, expected[command], before, snapshot(Path.cwd()), whole)
        assert wrong is None, f"case {case}: {place}, {what}, {command}: {wrong}\n{result.said}"
        refused += result.status == 2
    assert CASES / 5 < refused < CASES


@pytest.mark.parametrize("phase", ["fit", "retrain"])
def test_a_record_of_which_the_hash_was_made_right_is_read_or_refused(phase: str, fresh: Fresh) -> None:
    for what, damage in sealed_changes(fresh() / phase / "record.json", random.Random(phase), 20):
        run = fresh()
        damage()
        command = "solve" if phase == "retrain" else "solve --weights fit"
        result = done(command, CALLS[command], run)
        assert result.status in (0, 2), f"{what}\n{result.said}"


def test_an_extension_that_takes_no_step_leaves_a_run_as_it_was(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with run.writing("fit") as folder:
        fill(run, "fit", folder, reached=False)
        (folder / PROGRESS).write_bytes(b"progress")
    before = snapshot(tmp_path)

    def extend(progress: bytes) -> None:
        with run.writing("fit", resume=True) as folder:
            assert (folder / PROGRESS).read_bytes() == b"progress"
            (folder / PROGRESS).write_bytes(progress)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extend(b"progress")
    assert snapshot(tmp_path) == before
    with pytest.raises(KeyboardInterrupt):
        extend(b"more")
    assert run.interrupted("fit")
    shutil.rmtree(run.partial("fit"))
    (run.folder("fit") / PROGRESS).unlink()
    (run.folder("fit") / PROGRESS).mkdir()
    with pytest.raises(UserError, match="nothing to resume"):
        extend(b"")
    assert snapshot(tmp_path) == before | {f"run/fit/{PROGRESS}": "no file"}
