"""Pages: what stands in them, as text."""

import json
import re
import sys
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("vl_convert", reason="a page needs vl-convert")
pytest.importorskip("jinja2", reason="a page needs jinja2")

from abc_toolkit.errors import UserError
from abc_toolkit.report.page import (
    Block,
    Chapter,
    Chart,
    Code,
    Folded,
    Marked,
    Page,
    Picture,
    Section,
    Table,
    Text,
    charts,
    check_installed,
    render,
)

NASTY = "</script><script>alert('1')</script> <img src=x onerror=alert(2)> & \"quoted\" {{ 7 * 7 }} <!-- \N{SNOWMAN}"


class _Reader(HTMLParser):
    """The tags of a page, its texts, and what its scripts of data hold."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.data: list[str] = []
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = "data" if dict(attrs).get("type") == "application/json" else tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "data":
            self.data.append(data)
        elif self._inside not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def _page(*blocks: Block, title: str = "title", chapters: tuple[Chapter, ...] = ()) -> Page:
    return Page(title, [Text("lead")], [Section("section", blocks)], chapters)


def _chart(name: str = "uniform") -> Chart:
    row = {"length": 3, "value": 0.5, "low": 0.2, "high": 0.9, "samples": 8, "suite": name, "model": "vanilla"}
    rows = [row, row | {"length": 30, "value": float("inf")}]
    return Chart(charts.metric_by_length(rows, "exact match", "model", "suite", 3, percent=True, log=False))


def test_every_kind_of_block_is_shown() -> None:
    blocks = [
        Text("a paragraph"),
        Table(["name", "number"], [["one", "1"], [Marked([("2", True), ("7", False)]), "2"]], numbers=(1,)),
        Code(["abc fit --seed 3"]),
        Picture(b"\x89PNG", "a picture"),
        Folded("folded", [Text("inside")]),
    ]
    html = render(_page(*blocks, chapters=(Chapter("chapter", [Section("its section", [Text("its text")])]),)))
    page = _Reader(html)
    for words in ("a paragraph", "name number one 1", "abc fit --seed 3", "folded inside", "its section its text"):
        assert words in page.text
    assert "<span>2</span><mark>7</mark>" in html
    assert ("img", {"src": "data:image/png;base64,iVBORw==", "alt": "a picture"}) in page.tags
    assert len(html) < 20_000  # no library without a chart


def test_a_chart_is_in_the_page_with_all_that_draws_it() -> None:
    html = render(_page(Folded("folded", [_chart()])))
    (data,) = _Reader(html).data
    spec = json.loads(data)
    assert spec["$schema"].startswith("https://vega.github.io/schema/vega/")
    assert "Infinity" not in data
    assert "vegaEmbed" in html
    assert 800_000 < len(html) < 1_000_000


def test_nothing_is_fetched() -> None:
    page = _Reader(render(_page(_chart(), Picture(b"x", "y"))))
    for tag, attributes in page.tags:
        for name in ("src", "href"):
            address = attributes.get(name)
            assert address is None or address.startswith(("data:", "#")), (tag, address)
    assert not any(tag == "link" and own.get("rel") != "icon" for tag, own in page.tags)


def test_texts_are_escaped_everywhere() -> None:
    blocks = [
        Text(NASTY),
        Table([NASTY], [[NASTY, Marked([(NASTY, False)])]]),
        Code([NASTY]),
        Picture(b"x", NASTY),
        Folded(NASTY, [_chart(NASTY)]),
    ]
    section = Section(NASTY, blocks)
    html = render(Page(NASTY, [Text(NASTY)], [section, section, section], [Chapter(NASTY, [section])]))
    plain = _Reader(render(_page(*blocks[:0], _chart())))
    page = _Reader(html)
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in plain.tags} | {
        *("table", "thead", "tbody", "tr", "th", "td", "pre", "code", "span", "mark", "img", "details", "summary"),
        *("nav", "a"),
    }
    assert [own for tag, own in page.tags if tag == "script" and "type" not in own] == [{}, {}]  # library and start
    assert not any(name.startswith("on") for _, own in page.tags for name in own)
    assert page.text.count("alert(2)") > 10
    assert "{{ 7 * 7 }}" in page.text
    assert all(NASTY in json.dumps(json.loads(data), ensure_ascii=False).replace('\\"', '"') for data in page.data)


@given(st.text())
def test_a_text_is_read_as_it_was_written(text: str) -> None:
    page = _Reader(render(_page(Text(text), title="t")))
    shown = re.sub(r"\s", "", "".join(page.texts))
    from abc_toolkit.report.console import escaped

    assert re.sub(r"\s", "", escaped(text)) in shown


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_installed()
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(UserError, match=r"needs jinja2 and vl-convert: pip install 'abc_toolkit\[report\]'"):
        check_installed()
