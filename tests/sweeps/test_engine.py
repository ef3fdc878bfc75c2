"""Sweeps whose processes are really killed."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock

from abc_toolkit.sweeps.specification import LOGS, ROWS, STATE

pytest.importorskip("ray")
Abc = Callable[..., tuple[int, str, str]]
SWEEP = """
phases: [fit, evaluate]
options:
  task: {class_path: Parity, init_args: {max_length: 3}}
  fit: {trainer: {max_steps: 150, validate_every: 10}, data: {validation_problems: 16}, stopping.exact_match: 1}
  evaluate: {length: 1x, samples: 8}
grid:
  which:
    first: {seed: 0}
    # The loss of this one is soon no number.
    broken: {fit.optimizer.learning_rate: 1.0e+30, fit.optimizer.warmup_steps: 0, fit.model.norm: none}
    last: {seed: 1}
retries: 1
"""
PATIENCE = 240  # seconds, on a busy machine


def _until(found: Callable[[], Any]) -> Any:
    """What a function finds, once it finds something."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.05)
    raise AssertionError(f"nothing came in {PATIENCE} s")


def _state(folder: Path) -> dict[str, Any]:
    path = folder / STATE
    return json.loads(path.read_text())["runs"] if path.exists() else {}


def _workers(sweep: psutil.Process) -> list[psutil.Process]:
    """The processes that do a run at the moment."""
    return [child for child in sweep.children(recursive=True) if "ray::attempt" in " ".join(child.cmdline())]


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[[], psutil.Process]]:
    (tmp_path / "own.yaml").write_text(SWEEP)
    processes: list[psutil.Popen] = []

    def start() -> psutil.Process:
        words = [sys.executable, "-m", "abc_toolkit.cli.main", "sweep", "own.yaml", "--processes", "1"]
        with (tmp_path / "said.txt").open("a") as said:
            processes.append(psutil.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=said))
        return processes[-1]

    yield start
    for process in processes:
        if process.is_running():
            process.kill()
            process.wait()


def test_a_killed_sweep_loses_no_finished_run(tmp_path: Path, started: Callable[[], psutil.Process]) -> None:
    folder = tmp_path / "runs" / "own"
    sweep = started()
    # A worker is killed while it trains: its run is tried again.
    _until(lambda: (folder / "first" / ".fit.partial").exists())
    for worker in _until(lambda: _workers(sweep)):
        worker.kill()
    _until(lambda: "first" in _state(folder))
    assert _state(folder)["first"] | {"seconds": 0} == {
        "settings": {"which": "first"},
        "words": _state(folder)["first"]["words"],
        "state": "finished",
        "reason": "",
        "attempts": 2,
        "seconds": 0,
        "verdict": None,
    }
    # The sweep itself is killed, in the middle of another run, and its workers end with it.
    workers = _until(lambda: (folder / LOGS / "broken.log").exists() and _workers(sweep))
    sweep.kill()
    sweep.wait()
    assert not psutil.wait_procs(workers, timeout=PATIENCE)[1]  # agents of Ray, which do no run, stay for a minute
    before = {path: path.read_bytes() for path in sorted((folder / "first").rglob("*.*"))}
    assert before
    assert started().wait() == 1  # as one run fails
    assert before == {path: path.read_bytes() for path in sorted((folder / "first").rglob("*.*"))}
    ended = _state(folder)
    assert {name: run["state"] for name, run in ended.items()} == {
        "first": "finished",
        "broken": "failed",
        "last": "finished",
    }
    assert ended["broken"]["attempts"] == 2
    assert "loss" in ended["broken"]["reason"]
    said = (tmp_path / "said.txt").read_text()
    assert " of 3 runs were finished before." in said
    assert "2 of 3 runs finished. Failed: broken (" in said
    assert "'abc sweep own.yaml' tries them again" in said
    rows = (folder / ROWS).read_text().splitlines()
    assert {row.partition(",")[0] for row in rows[1:]} == {"first", "last"}


def test_a_machine_without_ray_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abc: Abc) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    Path("own.yaml").write_text("grid: {seed: [0]}\n")
    status, _, error = abc("sweep", "own.yaml")
    assert (status, error) == (2, "abc: error: sweeps need Ray: pip install 'abc_toolkit[sweep]'\n")
    # Two sweeps of one folder exclude each other.
    with FileLock(Path("runs", "own", ".sweep.lock")):
        status, _, error = abc("sweep", "own.yaml")
    assert (status, error.count("\n"), "another sweep is running in runs/own" in error) == (2, 1, True)


def test_options_that_abc_run_refuses_end_the_sweep_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abc: Abc
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text("grid: {fit.model.position: [NoPE, NoSuchMethod]}\n")
    status, _, error = abc("sweep", "own.yaml")
    assert (status, error.count("\n"), "NoSuchMethod does not exist" in error) == (2, 1, True)
    assert not list(Path("runs", "own").glob("*/*"))
    for words in (("sweep",), ("sweep", "own.yaml", "other.yaml"), ("sweep", "own.yaml", "--processes", "0")):
        status, _, error = abc(*words)
        assert (status, error.count("\n")) == (2, 1)
