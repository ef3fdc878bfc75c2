"""The task of `experiments/own_task`, which the package knows nothing of, from its file to a certificate."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from abc_toolkit.testing.digit_contract import Example, NumberContract, TaskCase
from tests.test_outside import lines_of_code

FOLDER = Path(__file__).parent.parent / "experiments" / "own_task"
sys.path.append(str(FOLDER))
from doubling import Doubling  # noqa: E402

sys.path.remove(str(FOLDER))


class TestDoubling(NumberContract):
    cases = {  # noqa: RUF012
        "it": TaskCase(
            Doubling(max_length=4),
            oracle=lambda source: 2 * int(source),
            grammar="[0-9]+",
            examples=(Example("65", (2,), "65", "031", "130"), Example("0", (1,), "0", "00", "0")),
            wrong={"6+5": "'+'"},
        )
    }


@pytest.fixture
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "doubling")
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
    status, _, err = abc("certify")
    assert status == 2
    assert "add --trust doubling " in err
    status, _, err = abc("certify", "--trust", "doubling")
    assert status == 0, err
    assert json.loads(Path("runs/doubling/certify/certificate.json").read_text())["verdict"] == "correct"
    assert abc("solve", "--trust", "doubling", "--check", "5", "9" * 20) == (0, f"10\tright\n1{'9' * 19}8\tright\n", "")


def test_it_is_short() -> None:
    source, config = (FOLDER / "doubling.py").read_text(), (FOLDER / "doubling.yaml").read_text()
    assert lines_of_code(source) <= 40
    assert len(source.splitlines()) + len(config.splitlines()) < 60
