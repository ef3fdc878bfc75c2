"""What MkDocs shows besides the files of docs/: the tutorial with its outputs, and pages that lie elsewhere.

A page of docs/ links to files of the repository by relative links, as a code host shows them. The files that are linked
become part of the site: Markdown as pages, the README as the front page, everything else as it is.
"""

import logging
import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from nbclient import NotebookClient
from nbconvert import MarkdownExporter
from nbconvert.filters import strip_ansi
from nbformat import NotebookNode
from traitlets.config import Config

ROOT = Path(__file__).resolve().parents[1]
TUTORIAL = ROOT / "docs" / "tutorial.ipynb"
_NAMES = {"README.md": "index.md", "docs/tutorial.ipynb": "tutorial.md"}
# Code, which is left alone, or the target of a link or an image.
_LINK = re.compile(r"(?s)```.*?```|`[^`]*`|(?<=\]\()(?P<link>[^)\s]+)(?=\))")
# A tag that the browser follows by itself, with the address of another host.
_FETCHED = re.compile(
    r"""<(?:script|img|iframe|link(?=[^>]*rel="(?:stylesheet|icon|preload)"))\b[^>]*?(?:src|href)="(?:https?:)?//[^"]*"""
)
_log = logging.getLogger("mkdocs.hooks.pages")


def executed(path: Path) -> NotebookNode:
    """A notebook with its outputs, executed in an empty folder. A warning in a cell is an error.

    Raises:
        CellExecutionError: If a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    cells = notebook.cells
    strict, lenient = (f"import warnings\nwarnings.simplefilter({action!r})" for action in ("error", "default"))
    notebook.cells = [nbformat.v4.new_code_cell(strict), *cells, nbformat.v4.new_code_cell(lenient)]
    with TemporaryDirectory() as folder, TemporaryDirectory() as sockets:
        local = Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/kernel"}})
        client = NotebookClient(notebook, config=local, timeout=600, resources={"metadata": {"path": folder}})
        client.execute(env=os.environ | {"JUPYTER_COLUMNS": "80"})  # as wide as the site shows without scrolling
    notebook.cells = cells
    return notebook


def tutorial(notebook: NotebookNode) -> tuple[str, Mapping[str, bytes]]:
    """An executed notebook as Markdown, and its pictures by name."""
    for output in (output for cell in notebook.cells for output in cell.get("outputs", ())):
        if text := output.get("data", {}).get("text/plain"):
            output.data["text/plain"] = strip_ansi(text).rstrip()
    # Tables come as text too, which follows the palette of the site.
    order = {"NbConvertBase": {"display_data_priority": ["image/png", "text/plain"]}}
    body, resources = MarkdownExporter(config=Config(order)).from_notebook_node(
        notebook, {"unique_key": "tutorial", "output_files_dir": "tutorial"}
    )
    return re.sub(r"\n(?: *\n){3,}", "\n\n", body), resources["outputs"]


@lru_cache(maxsize=1)
def _tutorial(_: bytes) -> tuple[str, Mapping[str, bytes]]:
    """The tutorial; `mkdocs serve` asks for it at every change of any page."""
    return tutorial(executed(TUTORIAL))


def links(text: str) -> Iterator[str]:
    """The relative links of a page in Markdown, without those to its own headings."""
    for found in _LINK.finditer(text):
        link = found["link"]
        if link and not re.match(r"[a-z]+:|#", link):
            yield link


def target(page: str, link: str) -> str:
    """The path in the repository that a relative link of a page leads to, without the heading.

    Args:
        page: Path of the page in the repository.
        link: The link.
    """
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link.partition("#")[0]))


def in_site(path: str) -> str:
    """The path below docs/ that MkDocs knows a file of the repository by."""
    return _NAMES.get(path, path.removeprefix("docs/"))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the front page, the tutorial, and every file outside docs/ that a page links to."""
    body, pictures = _tutorial(TUTORIAL.read_bytes())
    files.append(File.generated(config, "tutorial.md", content=body))
    for name, content in pictures.items():
        files.append(File.generated(config, name, content=content))
    waiting = ["README.md", *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    known = set(waiting) | set(_NAMES)
    files.append(File.generated(config, "index.md", abs_src_path=str(ROOT / "README.md")))
    for page in waiting:
        source = TUTORIAL if page == "docs/tutorial.md" else ROOT / page
        for path in (target(page, link) for link in links(source.read_text(encoding="utf-8"))):
            if path in known or path.startswith("docs/") or not (ROOT / path).is_file():
                continue
            known.add(path)
            file = File.generated(config, path, abs_src_path=str(ROOT / path), inclusion=InclusionLevel.NOT_IN_NAV)
            files.append(file)
            if file.is_documentation_page():
                waiting.append(path)
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turns links of the repository into links of the site."""
    uri, source = page.file.src_uri, page.file.abs_src_path
    path = f"docs/{uri}" if source is None else Path(source).resolve().relative_to(ROOT).as_posix()

    def relinked(found: re.Match[str]) -> str:
        link = found["link"]
        if not link or re.match(r"[a-z]+:|#", link) or link.startswith("tutorial/"):
            return found[0]
        heading = link.partition("#")[1:]
        return posixpath.relpath(in_site(target(path, link)), posixpath.dirname(uri) or ".") + "".join(heading)

    return _LINK.sub(relinked, markdown)


def on_post_page(output: str, page: Page, **_: Any) -> str:
    """Warns of a page that lets the browser fetch something from another host."""
    for found in _FETCHED.findall(output):
        _log.warning("%s fetches from another host: %s", page.file.src_uri, found)
    return output
