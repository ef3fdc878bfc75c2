import shutil
from pathlib import Path

import pytest

import abc_toolkit


@pytest.fixture(scope="session")
def certified_once(_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of parity with a certificate, and its export."""
    folder = tmp_path_factory.mktemp("certified")
    run = Path(shutil.copytree(_pipeline, folder / "parity"))
    if abc_toolkit.certify(run=run).verdict != "correct":
        pytest.skip("three bits showed the model too little")
    return run, abc_toolkit.export(folder / "shared", run=run)


@pytest.fixture
def certified(certified_once: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run, `runs/parity` of the folder that the test is in."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(certified_once[0], Path("runs", "parity")))


@pytest.fixture
def shared(certified_once: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the export, `shared` of the folder that the test is in, in which there is no run."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(certified_once[1], Path("shared")))
