"""What the pages say is true of the code: Python runs, commands parse, files and options are there."""

import ast
import importlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import abc_toolkit
import abc_toolkit.testing
from abc_toolkit.cli.commands import COMMANDS
from abc_toolkit.cli.parser import options
from abc_toolkit.sweeps.specification import read_sweep
from tests.docs.pages import PAGES, ROOT, blocks, commands, name_of, prose, spans

Abc = Callable[..., tuple[int, str, str]]
OWN = ("own_task", "own_position")  # folders whose modules the pages import
WITH_PYTHON = [page for page in PAGES if blocks(prose(page), "python")]
WITH_SHELL = [page for page in PAGES if blocks(prose(page), "sh")]


@pytest.fixture
def _forgotten() -> Iterator[None]:
    """Modules that a page imports from elsewhere are met anew by the next one."""
    before, path = dict(sys.modules), list(sys.path)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - set(before):
        if Path(getattr(sys.modules[name], "__file__", None) or "/").stem in ("doubling", "fading", "scaled"):
            del sys.modules[name]


def is_slow(page: Path) -> bool:
    return any(block.mark == "slow" for block in blocks(prose(page), "python"))


@pytest.mark.usefixtures("_forgotten")
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow) if is_slow(page) else page for page in WITH_PYTHON],
    ids=name_of,
)
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page follow one another in one program."""
    monkeypatch.chdir(tmp_path)
    for folder in OWN:
        monkeypatch.syspath_prepend(str(ROOT / "experiments" / folder))
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks(prose(page), "python"):
        tree = ast.parse(block.text)
        if block.mark is None or block.mark == "slow":
            for node in ast.walk(tree):
                if isinstance(node, ast.Import) and node.names[0].name == "pandas":
                    pytest.importorskip("pandas")
            exec(compile(tree, name_of(page), "exec"), names)


@pytest.mark.usefixtures("_forgotten")
@pytest.mark.parametrize("page", WITH_SHELL, ids=name_of)
def test_commands_are_ones_that_abc_takes(
    page: Path, abc: Abc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each `abc` line is parsed, and nothing is done; files of settings are read where the page says `cd`."""
    monkeypatch.chdir(tmp_path)
    for block in blocks(prose(page), "yaml"):
        if name := re.match(r"# (\w+\.yaml)\n", block.text):
            Path(name[1]).write_text(block.text)
    for block in blocks(prose(page), "sh"):
        for line in block.text.replace("\\\n", " ").splitlines():
            for words in commands(line):
                if words[0] == "cd":
                    monkeypatch.chdir(shutil.copytree(ROOT / words[1], tmp_path / words[1], dirs_exist_ok=True))
                elif words[0].startswith("python") and words[1:2] and words[1].endswith(".py"):
                    assert (ROOT / words[1]).is_file(), line
                elif Path(words[0]).name == "abc":
                    status, _, err = parsed(abc, words[1:])
                    assert status == 0, f"{line}: {err}"
        monkeypatch.chdir(tmp_path)


def parsed(abc: Abc, words: list[str]) -> tuple[int, str, str]:
    """What comes of a command line that is parsed only."""
    return abc(*words, "--help") if words == ["doctor"] else abc(*words, *["--print_config"] * (words[0] in COMMANDS))


@pytest.mark.parametrize("words", ["fit --sed 1", "fit --model.position Rope", "evalute", "run --config no"])
def test_a_command_that_abc_does_not_take_would_be_found(
    words: str, abc: Abc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert parsed(abc, words.split())[0] == 2


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_options_in_sentences_exist(page: Path) -> None:
    known = options()
    every = {name: any(own.get(name, False) for own in known.values()) for own in known.values() for name in own}
    for span in spans(prose(page)):
        words = span.split()
        if words[0] == "abc" and len(words) > 1 and words[1].islower():
            assert words[1] in COMMANDS or words[1] == "doctor" or words[1].startswith("--"), span
            own = known.get(words[1], every)
        elif words[0].startswith("--"):
            own = every
        else:
            continue
        for option in re.findall(r"(?<=--)[a-z](?:[\w.]*\w)?", span):
            if option in own or option in ("help", "version", "print_config"):
                continue
            # A setting of the class that an option chooses.
            assert any(own.get(option.rsplit(".", i)[0]) for i in range(1, 4)), f"{span}: there is no --{option}"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(prose(page), "yaml")], ids=name_of)
def test_yaml_is_a_sweep_file_or_a_configuration(page: Path, abc: Abc, tmp_path: Path) -> None:
    path = tmp_path / "block.yaml"
    for block in blocks(prose(page), "yaml"):
        path.write_text(block.text)
        if "grid" in yaml.safe_load(block.text):
            assert read_sweep(path).runs
        else:
            status, _, err = abc("fit", "--config", str(path), "--print_config")
            assert status == 0, err


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_pages_name_are_there(page: Path) -> None:
    """Links, as a code host follows them, and paths of the repository in code."""
    text = prose(page)
    for link in re.findall(r"\]\(([^)\s#]+)[^)\s]*\)", text):
        assert re.match("https?:", link) or (page.parent / link).exists(), link
    for span in spans(text):
        path = span.split()[0]
        if re.match(r"(\.ci|\.github|abc_toolkit|configs|docs|experiments|tests)/[\w./-]*$", path):
            own = {"abc_toolkit/configs": "configs"}.get(path, path)  # where the wheel has it
            assert (ROOT / own).exists() or re.search("TASK|METHOD", path), path


def test_the_api_has_every_public_name() -> None:
    pages = "".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    functions = (ROOT / "docs" / "python.md").read_text()
    for name in abc_toolkit._PUBLIC:
        assert f"heading: abc_toolkit.{name}," in pages
        assert f"| `{name}(" in functions
    for name in abc_toolkit.testing._PUBLIC:
        assert f"heading: abc_toolkit.testing.{name}," in pages
    for path in (ROOT / "abc_toolkit").rglob("__init__.py"):
        module = ".".join(path.relative_to(ROOT).parts[:-1])
        if hasattr(importlib.import_module(module), "__all__"):
            assert f"::: {module}\n" in pages
    for identifier in re.findall(r"^::: (\S+)$", pages, re.M):
        module, _, name = identifier.rpartition(".")
        assert name in vars(importlib.import_module(module)) or importlib.import_module(identifier), identifier


def test_the_citation_is_that_of_the_file() -> None:
    page = (ROOT / "docs" / "cite.md").read_text()
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    (paper,) = cited["references"]
    assert f"title = {{{paper['title']}}}" in page
    assert " and ".join(f"{one['family-names']}, {one['given-names']}" for one in paper["authors"]) in page
    assert (f"year = {{{paper['year']}}}" in page, paper["identifiers"][0]["value"] in page) == (True, True)
    assert (f"title = {{{cited['title']}}}" in page, f"{{{{{cited['authors'][0]['name']}}}}}" in page) == (True, True)


@given(st.lists(st.lists(st.text("ab12+-=./,? '\"", min_size=1), min_size=1, max_size=4), min_size=1, max_size=3))
def test_the_commands_of_a_line_are_told_apart(lines: list[list[str]]) -> None:
    quoted = ["'" + word.replace("'", "'\"'\"'") + "'" for words in lines for word in words]
    ends = [sum(len(words) for words in lines[: i + 1]) for i in range(len(lines))]
    text = " ".join(word + (" &&" if i + 1 in ends[:-1] else "") for i, word in enumerate(quoted))
    assert list(commands(f"{text}  # a comment")) == lines
