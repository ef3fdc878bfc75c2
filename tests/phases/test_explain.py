"""`abc explain` on a run: its files, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from abc_toolkit.proof.certificate import _FACTS
from abc_toolkit.proof.explanation import Explanation
from abc_toolkit.report import figures
from abc_toolkit.report.transducers import read_machines
from abc_toolkit.runs.folder import Run
from tests.small_runs import resealed

Abc = Callable[..., tuple[int, str, str]]
FILES = {"config.yaml", "record.json", "transducer.dot", "transducer.json", "transducer.png"}


@pytest.fixture
def certified(abc: Abc, pipeline: Path) -> Path:
    if abc("certify")[0]:
        pytest.skip("three bits showed the model too little")
    return pipeline


def _refused(answer: tuple[int, str, str], *words: str) -> None:
    status, out, err = answer
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert all(word in err for word in words), err


def test_a_run_is_explained(abc: Abc, certified: Path) -> None:
    status, out, err = abc("explain")
    assert status == 0, err
    folder = certified / "explain"
    assert {path.name for path in folder.iterdir()} == FILES
    assert "parity 1" in out
    assert "8 of 8 assignments" in out
    (machine,) = read_machines((folder / "transducer.json").read_text())
    written = machine.run([(bit, "+") for bit in "10110"])
    assert written == [(bit,) for bit in "11011"]
    record = json.loads((folder / "record.json").read_text())
    assert record["phase"] == "explain"
    assert (record["results"]["states"], record["results"]["is_the_rule"]) == (2, True)
    assert (folder / "transducer.png").read_bytes()[:4] == b"\x89PNG"
    Run(certified).check("explain")
    assert Run(certified).stale("explain") is None
    _refused(abc("explain"), "is there already", "--overwrite")
    before = (folder / "transducer.json").read_bytes()
    assert abc("explain", "--overwrite")[0] == 0
    assert (folder / "transducer.json").read_bytes() == before


def test_only_certified_runs_are_explained(abc: Abc, pipeline: Path) -> None:
    _refused(abc("explain"), "no finished 'certify'", "abc certify --run")
    _refused(abc("explain", "--run", "nowhere"), "there is no run at nowhere")


def test_a_certificate_that_does_not_hold_is_refused(abc: Abc, certified: Path) -> None:
    assert abc("explain")[0] == 0
    folder = certified / "certify"
    stated = json.loads((folder / "certificate.json").read_text())
    facts = {name: stated[name] for name in _FACTS}
    for verdict in ("wrong", "undecided"):
        refuted = facts | {"verdict": verdict, "reason": "11 makes 0"}
        (folder / "certificate.json").write_text(json.dumps(refuted))
        resealed(folder)
        _refused(abc("explain", "--overwrite"), "11 makes 0", "abc retrain --run")
    assert Run(certified).stale("explain") is not None
    (folder / "certificate.json").write_text(json.dumps(stated | {"schema": 2}))
    resealed(folder)
    _refused(abc("explain", "--overwrite"), "of schema 2", "abc certify --run")
    (folder / "certificate.json").write_text(json.dumps(stated | {"verdict": 5}))
    _refused(abc("explain", "--overwrite"), "was changed", "abc certify --overwrite")
    assert {path.name for path in (certified / "explain").iterdir()} == FILES


def test_a_stale_certificate_is_refused(abc: Abc, certified: Path) -> None:
    weights = certified / "retrain" / "weights.safetensors"
    weights.write_bytes((certified / "fit" / "weights.safetensors").read_bytes())
    resealed(certified / "retrain")
    _refused(abc("explain"), "is stale", "abc certify --run", "--overwrite")
    assert not (certified / "explain").exists()


def test_files_are_whole_or_not_there(abc: Abc, certified: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: Path, explanation: Explanation) -> Path:
        assert (path.parent / "transducer.json").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(figures, "transducer", interrupted)
    assert abc("explain")[0] == 130
    assert not any("explain" in path.name for path in certified.iterdir())
