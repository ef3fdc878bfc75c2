"""A page of HTML that needs nothing beside itself: text, tables, pictures and charts.

What is shown is built of blocks, and a template writes them, so that every text is escaped in one place. The charts are
drawn by Vega-Lite, which the page holds.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from markupsafe import Markup

from abc_toolkit.errors import UserError
from abc_toolkit.report.console import escaped

MISSING = "'abc report' needs jinja2 and vl-convert: pip install 'abc_toolkit[report]'"


@dataclass(frozen=True)
class Text:
    """A paragraph.

    Attributes:
        text: What it says.
        kind: `plain`, or how it is marked: a `note`, a `warning`, or `good` or `bad` news.
    """

    text: str
    kind: Literal["plain", "note", "warning", "good", "bad"] = "plain"


@dataclass(frozen=True)
class Marked:
    """Tokens in a cell of a table, of which wrong ones are marked.

    Attributes:
        tokens: The texts of the tokens, each with whether it is right.
    """

    tokens: Sequence[tuple[str, bool]]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        head: Its headings; none of a list of names and values.
        rows: Its rows.
        numbers: Columns of numbers, which end at the right.
    """

    head: Sequence[str]
    rows: Sequence[Sequence["str | Marked"]]
    numbers: Sequence[int] = ()


@dataclass(frozen=True)
class Code:
    """Lines to type.

    Attributes:
        lines: The lines.
    """

    lines: Sequence[str]


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        spec: Its specification in Vega-Lite.
        width: The most width it is given, in pixels.
    """

    spec: dict[str, Any]
    width: int = 900


@dataclass(frozen=True)
class Picture:
    """A picture.

    Attributes:
        png: Its file.
        words: What it shows.
    """

    png: bytes
    words: str

    @property
    def address(self) -> str:
        """The picture as an address."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode('ascii')}"


@dataclass(frozen=True)
class Folded:
    """Blocks that are shown once they are asked for.

    Attributes:
        title: What is folded.
        blocks: The blocks.
        shown: Whether they are shown at once.
    """

    title: str
    blocks: Sequence["Block"]
    shown: bool = False


Block = Text | Table | Code | Chart | Picture | Folded


@dataclass(frozen=True)
class Section:
    """A part of a page with a title.

    Attributes:
        title: The title.
        blocks: Its blocks.
    """

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Chapter:
    """The sections of a run among several, which are folded.

    Attributes:
        title: The title.
        sections: Its sections.
    """

    title: str
    sections: Sequence[Section]


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        title: Its title.
        lead: What stands below the title.
        sections: Its sections.
        chapters: Chapters that follow.
    """

    title: str
    lead: Sequence[Text]
    sections: Sequence[Section]
    chapters: Sequence[Chapter] = field(default_factory=tuple)


def check_installed() -> None:
    """Says how to get the libraries that a page needs, where one is missing.

    Raises:
        UserError: If one is missing.
    """
    try:
        import jinja2  # noqa: F401
        import vl_convert  # noqa: F401
    except ImportError:
        raise UserError(MISSING) from None


def render(page: Page) -> str:
    """The page as HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("abc_toolkit.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) or not isinstance(value, str) else escaped(value),
    )
    environment.tests["block"] = lambda value, name: type(value).__name__ == name
    environment.globals["compiled"] = _compiled
    template = environment.get_template("page.html")
    has_charts = any(_has_chart(section.blocks) for section in _sections(page))
    return template.render(page=page, library=Markup(_library()) if has_charts else None)


def _sections(page: Page) -> list[Section]:
    return [*page.sections, *(section for chapter in page.chapters for section in chapter.sections)]


def _has_chart(blocks: Sequence[Block]) -> bool:
    return any(isinstance(block, Chart) or (isinstance(block, Folded) and _has_chart(block.blocks)) for block in blocks)


def _compiled(spec: Mapping[str, Any]) -> "Markup":
    """A chart's specification in Vega, to which Vega-Lite compiles it, as JSON in which no tag can begin."""
    from jinja2.utils import htmlsafe_json_dumps
    from vl_convert import vegalite_to_vega

    return htmlsafe_json_dumps(vegalite_to_vega(dict(spec)), separators=(",", ":"))


@lru_cache
def _library() -> str:
    """Vega-Embed with all that it needs, as a script."""
    from vl_convert import javascript_bundle

    # A script ends at this tag wherever it stands in it; in a text of JavaScript `\/` is `/`.
    whole = javascript_bundle()  # pyright: ignore[reportCallIssue] - its stub lacks the default
    return whole.replace("</script", r"<\/script").replace("<!--", r"<\!--")
