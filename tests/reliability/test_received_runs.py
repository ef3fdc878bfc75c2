"""No command runs code that came with a run; a short form of `experiments/reliability/received_runs.py`."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.reliability.received import COMMANDS, FILES, FOLDERS, NAMED, OPTIONAL, RECORDS, Probe, Sent, sent

Abc = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def base(pipeline: Path, abc: Abc) -> Path:
    assert abc("certify")[0] in (0, 1, 3)
    return pipeline.resolve()


@pytest.fixture
def _forgetting() -> Iterator[None]:
    """What a test imports is forgotten."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if "evil" in name:
            del sys.modules[name]


def _try(probe: Probe, base: Path, folder: Path, abc: Abc, monkeypatch: pytest.MonkeyPatch, number: int) -> Sent:
    """Runs one of a probe's commands in this process."""
    lines = list(probe.lines())
    words = lines[number % len(lines)]
    made = sent(probe, base, folder)
    monkeypatch.chdir(made.folder)
    status, _, err = abc(*words)
    assert status in (0, 1, 2, 3), err
    assert [("error: " in line) for line in err.splitlines()].count(True) == (status == 2), err
    return made


@pytest.mark.usefixtures("_forgetting")
def test_no_record_and_no_file_of_a_run_brings_code(
    base: Path, tmp_path: Path, abc: Abc, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with one of the commands, in turn."""
    for number, probe in enumerate((*RECORDS, *FILES)):
        made = _try(probe, base, tmp_path / f"sent{number}", abc, monkeypatch, number)
        assert not made.mark.exists(), probe.name


@pytest.mark.usefixtures("_forgetting")
@pytest.mark.parametrize("probe", NAMED, ids=lambda probe: probe.name)
def test_what_the_user_names_is_run(
    probe: Probe, base: Path, tmp_path: Path, abc: Abc, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the probes can tell."""
    assert _try(probe, base, tmp_path / "sent", abc, monkeypatch, 0).mark.exists()


@pytest.mark.parametrize("module", [False, True])
def test_no_file_of_the_current_folder_is_run(base: Path, tmp_path: Path, module: bool) -> None:
    """All at once, in a process that starts in their midst."""
    folder = tmp_path / "sent"
    made = sent(FOLDERS[0], base, folder)
    for probe in FOLDERS:
        if probe.module == module and probe.run == "run" and "packages of" not in probe.name:
            probe.prepare(made)
    script = tmp_path / "bin" / "abc"
    script.parent.mkdir()
    script.write_text("import sys\nfrom abc_toolkit.cli.main import main\nsys.exit(main())\n")
    start = ["-m", "abc_toolkit.cli.main"] if module else [str(script)]
    words = ("evaluate", "--run", "run", *COMMANDS["evaluate"][1:])
    done = subprocess.run(
        [sys.executable, *start, *words],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not made.mark.exists()
    assert (folder / f"{OPTIONAL[0]}.py").exists()
