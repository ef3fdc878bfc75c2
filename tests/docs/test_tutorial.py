"""The notebook runs from its first cell to its last, and the site shows it and what pages link to."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.docs.pages import ROOT, TUTORIAL

NEEDED = ("ipykernel", "mkdocs", "nbclient", "nbconvert")


@pytest.fixture(scope="module")
def site() -> ModuleType:
    """The hooks of MkDocs."""
    for name in NEEDED:
        pytest.importorskip(name, reason=f"{name} comes with the extra 'docs'")
    described = importlib.util.spec_from_file_location("pages_of_the_site", ROOT / ".ci" / "pages.py")
    assert described is not None
    assert described.loader is not None
    module = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    return module


def test_it_is_kept_without_outputs() -> None:
    cells = [cell for cell in json.loads(TUTORIAL.read_text())["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert all((cell["outputs"], cell["execution_count"]) == ([], None) for cell in cells)


def test_it_comes_to_a_certificate(site: ModuleType) -> None:
    body, pictures = site.tutorial(site.executed(TUTORIAL))
    assert "correct at every length" in body
    assert "100 of 100 right" in body
    assert len(pictures) == body.count("![") == 5
    assert all(content.startswith(b"\x89PNG") for content in pictures.values())
    assert "\x1b" not in body


@pytest.mark.parametrize(
    ("cell", "reason"), [("1 / 0", "ZeroDivisionError"), ("import warnings\nwarnings.warn('old')", "UserWarning")]
)
def test_a_cell_that_fails_or_warns_ends_it(site: ModuleType, cell: str, reason: str, tmp_path: Path) -> None:
    import nbformat
    from nbclient.exceptions import CellExecutionError

    path = tmp_path / "notebook.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)]), path)
    with pytest.raises(CellExecutionError, match=reason):
        site.executed(path)


@pytest.mark.parametrize(
    ("page", "source", "text", "expected"),
    [
        ("method.md", "docs/method.md", "[x](../README.md#results)", "[x](index.md#results)"),
        ("method.md", "docs/method.md", "[x](commands.md#tasks) [y](#here)", "[x](commands.md#tasks) [y](#here)"),
        ("api/proof.md", "docs/api/proof.md", "[x](../method.md)", "[x](../method.md)"),
        ("maps.md", "docs/maps.md", "![a\nb](../experiments/maps/a.png)", "![a\nb](experiments/maps/a.png)"),
        ("maps.md", "docs/maps.md", "[x](tutorial.ipynb)", "[x](tutorial.md)"),
        ("index.md", "README.md", "[x](docs/words.md) [y](https://a.org/b)", "[x](words.md) [y](https://a.org/b)"),
        ("experiments/LOG.md", "experiments/LOG.md", "[x](maps/a.png)", "[x](maps/a.png)"),
        ("experiments/LOG.md", "experiments/LOG.md", "[x](../docs/words.md)", "[x](../words.md)"),
        ("tutorial.md", None, "[x](own_task.md) ![p](tutorial/a.png)", "[x](own_task.md) ![p](tutorial/a.png)"),
        (
            "words.md",
            "docs/words.md",
            "`[x](../README.md)`\n```\na[0](b)\n```",
            "`[x](../README.md)`\n```\na[0](b)\n```",
        ),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(
    site: ModuleType, page: str, source: str | None, text: str, expected: str
) -> None:
    file = SimpleNamespace(src_uri=page, abs_src_path=source and str(ROOT / source))
    assert site.on_page_markdown(text, SimpleNamespace(file=file)) == expected


@pytest.mark.parametrize(
    ("html", "fetched"),
    [
        ('<script src="https://a.org/x.js"></script>', True),
        ('<link rel="stylesheet" href="//a.org/x.css">', True),
        ('<link href="https://a.org/x.css" rel="stylesheet">', True),
        ('<img alt="x" src="https://a.org/x.png">', True),
        ('<link rel="canonical" href="https://a.org/">', False),
        ('<a href="https://a.org/">x</a><script src="x.js"></script><img src="../x.png">', False),
    ],
)
def test_a_page_that_fetches_from_another_host_is_told(
    site: ModuleType, html: str, fetched: bool, caplog: pytest.LogCaptureFixture
) -> None:
    page: Any = SimpleNamespace(file=SimpleNamespace(src_uri="page.md"))
    assert site.on_post_page(html, page=page) == html
    assert ("fetches from another host" in caplog.text) == fetched
