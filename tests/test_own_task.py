"""What a user adds from outside: the contract tests of `experiments/own_task` and `own_position`, and a certificate."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.test_outside import OWN_POSITION, lines_of_code

OWN_TASK = OWN_POSITION.parent / "own_task"


@pytest.mark.slow  # .ci/run does so with the wheel
@pytest.mark.parametrize("folder", [OWN_TASK, OWN_POSITION], ids=lambda folder: folder.name)
def test_the_contract_tests_run_from_outside(folder: Path, tmp_path: Path) -> None:
    """As a user runs them: `pytest` in a folder that holds nothing of the toolkit, and none of its settings."""
    shutil.copytree(folder, tmp_path / "own", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    finished = subprocess.run(command, cwd=tmp_path / "own", capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    assert int(re.findall(r"(\d+) passed", finished.stdout)[-1]) >= 40


@pytest.fixture
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(OWN_TASK, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "doubling", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_here")
def test_it_comes_to_a_certificate(abc: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    small = ["model_dim", "32", "num_heads", "2", "feedforward_dim", "64"]
    sizes = [f"--fit.model.{word}" if i % 2 == 0 else word for i, word in enumerate(small)]
    training = ["--task.max_length", "4", "--evaluate.samples", "40", "--evaluate.length", "4,40"]
    status, _, err = abc("run", "--config", "doubling.yaml", *training, *sizes)
    assert status == 0, err
    rows = json.loads(Path("runs/doubling/evaluate/results.json").read_text())
    assert {row["value"] for row in rows if row["weights"] == "retrain"} == {1.0}
    monkeypatch.delitem(sys.modules, "doubling")  # as in a process that has not met it
    certificate = "runs/doubling/certify/certificate.json"
    status, _, err = abc("certify", "--verify", certificate)
    assert status == 2
    assert "add --trust doubling " in err
    status, _, err = abc("certify", "--verify", certificate, "--trust", "doubling")
    assert status == 0, err
    assert json.loads(Path(certificate).read_text())["verdict"] == "correct"
    assert abc("solve", "--trust", "doubling", "--check", "5", "9" * 20) == (0, f"10\tright\n1{'9' * 19}8\tright\n", "")


def test_it_is_short() -> None:
    source, config = (OWN_TASK / "doubling.py").read_text(), (OWN_TASK / "doubling.yaml").read_text()
    assert lines_of_code(source) <= 40
    assert len(source.splitlines()) <= 60
    assert len(config.splitlines()) == 2
