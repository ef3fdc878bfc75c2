"""Whose code runs: modules are imported for the user's words alone, and found in the current folder for them alone."""

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from abc_toolkit.errors import UserError
from abc_toolkit.runs import folder as runs
from abc_toolkit.runs.description import rebuild
from abc_toolkit.runs.trust import searching_current_folder, trusting
from abc_toolkit.tasks import Parity, Task
from tests.small_runs import resealed

Abc = Callable[..., tuple[int, str, str]]
OWN = """
from dataclasses import dataclass
from abc_toolkit.tasks import Parity

@dataclass(frozen=True)
class Own(Parity):
    pass

class Plain(Parity):
    def __init__(self, **settings):
        raise AssertionError("was called")

def function(**settings):
    raise AssertionError("was called")
"""
GIT = shutil.which("git")


@dataclass(frozen=True)
class Loaded(Parity):
    """A task of a module that is loaded already."""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty current folder; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    importlib.invalidate_caches()
    yield
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(sys.modules[name].__spec__):
            del sys.modules[name]


def _described(class_path: str) -> dict[str, Any]:
    return {"class_path": class_path, "init_args": {"max_length": 3}}


def test_what_is_not_trusted_is_not_imported_even_where_python_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("mine").mkdir()
    Path("mine/__init__.py").touch()
    Path("mine/tasks.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    described = _described("mine.tasks.Own")
    with pytest.raises(UserError, match=r"x/record.json names mine.tasks.Own, .* add --trust mine.tasks "):
        rebuild(described, Task, "x/record.json")
    for other in ("mine.task", "mine.tasks.Own", "min", "tasks"):
        with trusting(other), pytest.raises(UserError, match="add --trust mine"):
            rebuild(described, Task)
    assert "mine" not in sys.modules
    for names in (("mine",), ("other", "mine.tasks"), ("other, mine",)):
        with trusting(*names):
            assert rebuild(described, Task).max_length == 3
        for name in ("mine", "mine.tasks"):
            sys.modules.pop(name)
    with trusting("other"), trusting("mine"), trusting():
        rebuild(described, Task)


@pytest.mark.parametrize("name", ["Plain", "function", "dataclass", "nosuch", "__doc__"])
def test_a_trusted_module_gives_dataclasses_of_the_kind_alone(name: str) -> None:
    Path("mine.py").write_text(OWN.replace("class Plain(Parity)", "class Plain"))
    with searching_current_folder(), trusting("mine"), pytest.raises(UserError, match="is no Task"):
        rebuild(_described(f"mine.{name}"), Task)


def test_a_module_that_cannot_be_imported_is_named() -> None:
    Path("mine.py").write_text("1 / 0")
    with searching_current_folder(), trusting("mine"), pytest.raises(UserError, match="ZeroDivisionError: division"):
        rebuild(_described("mine.Own"), Task)
    Path("script.py").write_text("raise SystemExit(3)")
    with searching_current_folder(), trusting("script"), pytest.raises(UserError, match="SystemExit: 3"):
        rebuild(_described("script.Own"), Task)
    with searching_current_folder(), trusting("nosuch"), pytest.raises(UserError, match="nor in the current folder"):
        rebuild(_described("nosuch.Own"), Task)


@pytest.mark.parametrize("name", ["", ".", "a b", "../mine", "mine.", "mine/x", "1", "mine,"])
def test_what_is_no_module_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"--trust .*: give the name of a module"), trusting("good", name or ".x"):
        pass


def test_a_loaded_module_gives_subclasses_of_the_toolkits_contracts_alone() -> None:
    path = f"{__name__}.Loaded"
    assert rebuild(_described(path), Task) == Loaded(max_length=3)
    with pytest.raises(UserError, match="is no PositionMethod"):
        rebuild(_described(path), __import__("abc_toolkit.positions").positions.PositionMethod)
    with pytest.raises(UserError, match="add --trust"):  # of a kind that is not the toolkit's
        rebuild(_described(path), object)


def test_the_current_folder_is_searched_for_what_is_trusted_and_what_that_imports() -> None:
    Path("mine.py").write_text(f"import helper\n{OWN}\ndef later():\n    import late\n    return late.x\n")
    Path("helper.py").write_text("import package.inner\n")
    Path("package").mkdir()
    Path("package/inner.py").write_text("import importlib\nimportlib.import_module('deep')\n")
    Path("deep.py").touch()
    Path("late.py").write_text("x = 7")
    Path("bait.py").write_text("raise AssertionError('was run')")
    path, finders = list(sys.path), list(sys.meta_path)
    with searching_current_folder():
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("mine")  # nobody named it
        with trusting("mine"):
            own = rebuild(_described("mine.Own"), Task)
            with pytest.raises(ModuleNotFoundError):
                importlib.import_module("bait")
        assert sys.modules[type(own).__module__].later() == 7
        assert {"helper", "package.inner", "deep"} < set(sys.modules)
        assert sys.path == path
    assert sys.meta_path == finders
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("bait")


def test_what_a_module_of_the_user_loads_does_not_find_more() -> None:
    """Such as pandas, which looks for pyarrow: that the user's module imports pandas does not name pyarrow."""
    installed = Path("installed")
    installed.mkdir()
    (installed / "big.py").write_text("try:\n    import optional\nexcept ImportError:\n    optional = None\n")
    Path("optional.py").write_text("raise AssertionError('was run')")
    Path("mine.py").write_text(f"import big\n{OWN}")
    sys.path.append(str(installed.resolve()))
    try:
        with searching_current_folder(), trusting("mine"):
            rebuild(_described("mine.Own"), Task)
    finally:
        sys.path.remove(str(installed.resolve()))
    assert sys.modules["big"].optional is None
    sys.modules.pop("big")


def test_installed_packages_come_first() -> None:
    for name in ("json", "torch", "safetensors", "colorsys"):
        Path(f"{name}.py").write_text("raise AssertionError('was run')")
    sys.modules.pop("colorsys", None)
    with searching_current_folder(), trusting("colorsys"), pytest.raises(UserError, match="is no Task"):
        rebuild(_described("colorsys.Own"), Task)


def test_a_folder_that_is_gone_is_not_searched(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    finders = list(sys.meta_path)
    with searching_current_folder():
        assert sys.meta_path == finders
    os.chdir(tmp_path)


@pytest.mark.parametrize("words", [("--trust", "mine"), ("--trust", "a", "--trust", "b,mine"), ("--trust=mine,a",)])
def test_the_option_can_be_given_in_every_way(words: tuple[str, ...], abc: Abc, pipeline: Path) -> None:
    Path("mine.py").write_text(OWN)
    resealed(pipeline / "retrain", lambda record: record["task"].update(class_path="mine.Own"))
    status, _, err = abc("solve", "101")
    assert status == 2
    assert "retrain/record.json names mine.Own" in err
    assert "add --trust mine " in err
    assert len(err.splitlines()) == 1
    assert "mine" not in sys.modules
    status, out, err = abc("solve", *words, "101")
    assert (status, out) == (0, "0\n"), err


def test_the_environment_and_a_configuration_can_trust(abc: Abc, pipeline: Path, monkeypatch: Any) -> None:
    Path("mine.py").write_text(OWN)
    resealed(pipeline / "retrain", lambda record: record["task"].update(class_path="mine.Own"))
    for text in ("trust: mine", "trust: [other, mine]", "trust: mine\nfit: {seed: 3}\n"):
        Path("settings.yaml").write_text(text)
        assert abc("solve", "--config", "settings.yaml", "101")[:2] == (0, "0\n")
        sys.modules.pop("mine")
    monkeypatch.setenv("ABC_SOLVE__TRUST", "mine")
    assert abc("solve", "101")[:2] == (0, "0\n")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes a repository that has the package in some folder, and lets the toolkit think that it lies there."""
    if GIT is None:
        pytest.skip("there is no git")
    for kind in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{kind}_NAME", "a")
        monkeypatch.setenv(f"GIT_{kind}_EMAIL", "a@b")

    def make(folder: str = "", add: str = ".", project: str = "abc_toolkit") -> Path:
        package = tmp_path / "repository" / folder / "abc_toolkit"
        package.mkdir(parents=True)
        (package / "runs.py").write_text("1")
        (package.parent / "pyproject.toml").write_text(f'[project]\nname = "{project}"\n')
        (tmp_path / "repository" / "other").touch()
        for words in (["init", "-q"], ["add", "-f", add], ["commit", "-qm", "x"]):
            subprocess.run(["git", "-C", str(tmp_path / "repository"), *words], check=True)
        monkeypatch.setattr(runs, "PACKAGE", package)
        return package

    return make


def test_a_commit_is_that_of_the_toolkits_checkout(repository: Callable[..., Path], monkeypatch: Any) -> None:
    package = repository()
    head = subprocess.run(
        ["git", "-C", str(package), "rev-parse", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    assert runs._commit() == head
    (package / "runs.py").write_text("2")
    monitor = package.parent.parent / "monitor"
    monitor.write_text(f"#!/bin/sh\ntouch {monitor}.ran\n")
    monitor.chmod(0o755)
    subprocess.run(["git", "-C", str(package), "config", "core.fsmonitor", str(monitor)], check=True)
    index = (package.parent / ".git" / "index").read_bytes()
    assert runs._commit() == f"{head}+"
    assert not Path(f"{monitor}.ran").exists()
    assert (package.parent / ".git" / "index").read_bytes() == index
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # as in a hook of another repository
        monkeypatch.setenv(name, "/nowhere")
    assert runs._commit() == f"{head}+"
    monkeypatch.setenv("PATH", "")
    assert runs._commit() is None


@pytest.mark.parametrize(
    "where",
    [
        {"folder": ".venv/lib/site-packages", "add": "other"},
        {"folder": ".venv/lib/site-packages"},
        {"folder": "vendored"},
        {"add": "other"},
        {"project": "other"},
    ],
)
def test_a_repository_around_the_package_is_not_its_own(where: dict[str, str], repository: Callable[..., Path]) -> None:
    package = repository(**where)
    assert runs._commit() is None
    (package.parent / ".git").mkdir(exist_ok=True)  # is none, so that git would go on to the one around it
    assert runs._commit() is None
