"""What can be asked of the command line before anything is loaded, and what commands do without."""

import inspect
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from abc_toolkit.cli import doctor
from abc_toolkit.cli.commands import COMMANDS, PIPELINE
from abc_toolkit.cli.configuration import find_settings
from abc_toolkit.errors import UserError
from abc_toolkit.runs import folder

Abc = Callable[..., tuple[int, str, str]]
HEAVY = ("torch", "lightning", "matplotlib", "seaborn", "pandas", "torchmetrics", "jsonargparse", "rich")
BASH = shutil.which("bash")


def loaded(*calls: str, folder: Path) -> list[set[str]]:
    """Which of the heavy packages a process has loaded after each of some calls of the command line."""
    lines = [f"sys.stdout, ended = io.StringIO(), ended; called({call.split()!r}); told()" for call in calls]
    code = f"""
import io, sys
from abc_toolkit.cli.main import main
out, ended = sys.stdout, []
def called(words):
    try:
        main(words)
    except SystemExit:
        pass
def told():
    print(*(name for name in {HEAVY!r} if name in sys.modules), file=out)
""" + "\n".join(lines)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [set(line.split()) for line in done.stdout.split("\n")[:-1]]


def test_help_and_version_load_nothing(tmp_path: Path) -> None:
    assert loaded("--help", "--version", folder=tmp_path) == [set(), set()]


def test_commands_that_do_not_train_do_without_lightning_and_figures(pipeline: Path, tmp_path: Path) -> None:
    run = f"--run {pipeline.absolute()}"
    calls = [f"solve {run} 101", "evaluate --help", "calibrate --help", "certify --help", f"certify {run} --overwrite"]
    for found in loaded(*calls, folder=tmp_path):
        assert found <= {"torch", "jsonargparse", "rich"}


def test_the_table_says_what_the_functions_say() -> None:
    assert PIPELINE == folder.PIPELINE
    for command in COMMANDS.values():
        first = inspect.cleandoc(command.load().__doc__ or "").split("\n\n")[0]
        assert command.summary == " ".join(first.split())


def test_the_version_is_the_installed_one(abc: Abc) -> None:
    assert abc("--version") == (0, f"{version('abc_toolkit')}\n", "")


def test_a_command_is_asked_for(abc: Abc) -> None:
    for words, said in (((), "a command is missing"), (("--nosuch",), "unknown options or arguments: --nosuch")):
        status, out, err = abc(*words)
        assert (status, out) == (2, "")
        assert said in err


def test_the_doctor_tells_and_leaves_nothing(abc: Abc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = abc("doctor")
    assert (status, err) == (0, "")
    for name in ("python", "abc_toolkit", "torch", "lightning", "devices", "threads", "runs", "self-test: attention"):
        assert name in out
    assert os.listdir(tmp_path) == []
    assert abc("doctor", "--help")[0] == 0
    assert abc("doctor", "now")[0] == 2


def test_the_doctor_says_what_fails(abc: Abc, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> str:
        raise RuntimeError("out of order")

    monkeypatch.setattr(doctor, "_attention", broken)
    status, out, _ = abc("doctor")
    assert status == 1
    assert "RuntimeError: out of order" in " ".join(out.split())
    assert out.count("failed") == 1


@pytest.mark.skipif(BASH is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("so",), {"solve"}),
        (("",), {*COMMANDS, "doctor", "--help", "--version", "--print-completion"}),
        (("fit", "--trainer.max"), {"--trainer.max_steps"}),
        (("run", "--evaluate.sam"), {"--evaluate.samples"}),
        (("certify", "--ver"), {"--verify"}),
    ],
)
def test_completion(words: tuple[str, ...], expected: set[str], abc: Abc, tmp_path: Path) -> None:
    status, script, err = abc("--print-completion", "bash")
    assert (status, err) == (0, "")
    (tmp_path / "abc.bash").write_text(script)
    line = " ".join(f"'{word}'" for word in ("abc", *words))
    code = f"source abc.bash; COMP_WORDS=({line}); COMP_CWORD={len(words)}; _abc; echo ${{COMPREPLY[@]}}"
    done = subprocess.run([str(BASH), "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == expected


def test_completion_is_for_two_shells(abc: Abc) -> None:
    assert abc("--print-completion", "zsh")[1].startswith("#compdef abc\n")
    for words in (("fish",), ()):
        status, _, err = abc("--print-completion", *words)
        assert status == 2
        assert "choose bash or zsh" in err


def test_a_shipped_configuration_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("multiplication_nxm", "positions/alibi", "paper/addition"):
        assert find_settings(name).is_file()
    with pytest.raises(UserError, match=r"multiplication_nxn is neither .*; did you mean multiplication_nxm"):
        find_settings("multiplication_nxn")
    with pytest.raises(UserError, match=r"^---- is neither a file nor a configuration that is shipped$"):
        find_settings("----")
    Path("parity").write_text("seed: 3")
    assert find_settings("parity") == Path("parity")  # a file of the user's comes first
    assert find_settings("no.yaml") == Path("no.yaml")
