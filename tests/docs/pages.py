"""The pages that a reader sees, their blocks of code and the commands on them."""

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "tutorial.ipynb"
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md")), *sorted((ROOT / "docs").rglob("*.md")), TUTORIAL]
_BLOCK = re.compile(r"(?:<!-- (?P<mark>not run: [^\n]+|slow) -->\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block, and the comment above it that says how it is tested."""

    kind: str
    text: str
    mark: str | None


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    """The text of a page; of the notebook, its cells of text."""
    text = page.read_text()
    if page != TUTORIAL:
        return text
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")


def blocks(text: str, kind: str) -> list[Block]:
    """The blocks of one kind on a page, such as `python`."""
    found = (Block(block["kind"], block["text"], block["mark"]) for block in _BLOCK.finditer(text))
    return [block for block in found if block.kind == kind]


def spans(text: str) -> Iterator[str]:
    """The code within sentences, on one line each."""
    for found in re.finditer(r"`([^`]+)`", re.sub(r"(?ms)^```.*?^```$", "", text)):
        yield " ".join(found[1].split())


def commands(line: str) -> Iterator[list[str]]:
    """The words of each command on a line of the shell."""
    substituted = re.sub(r"<\(([^)]*)\)", r"&& \1", line)  # source <(abc ...)
    lexer = shlex.shlex(substituted, posix=True, punctuation_chars="|&;")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, "&&"]:
        if word in ("&&", "||", "|", ";", "&"):
            if words:
                yield words
            words = []
        else:
            words.append(word)
