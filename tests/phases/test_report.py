"""`abc report` on runs: what the page says, what is refused, and how the page does in a browser."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vl_convert", reason="a page needs vl-convert")

from abc_toolkit.phases import report as module
from abc_toolkit.runs.folder import Run
from tests.small_runs import resealed

Abc = Callable[..., tuple[int, str, str]]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def _text(path: Path) -> str:
    """The text of a page, without tags, scripts and styles."""
    html = re.sub(r"(?s)<(script|style)\b.*?</\1>", " ", path.read_text(encoding="utf-8"))
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


def _refused(answer: tuple[int, str, str], *words: str) -> None:
    status, out, err = answer
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert all(word in err for word in words), err


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium without a window."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("there is no Chromium here")
    driver = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    with driver.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


def _opened(browser: Any, path: Path, width: int = 1200, scheme: str = "light") -> tuple[Any, list[str]]:
    """A page in a browser once its charts are drawn, and what was said in the console."""
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True).new_page()
    page.set_default_timeout(20_000)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if request.url.startswith("http") else None)
    page.goto(path.resolve().as_uri())
    page.wait_for_function("[...document.querySelectorAll('.chart')].every(chart => chart.dataset.drawn)")
    return page, said


def _drawn(chart: Any) -> str:
    """What a chart shows."""
    return chart.locator("svg").first.inner_html()


@pytest.fixture
def explained(abc: Abc, pipeline: Path) -> Path:
    if abc("certify")[0]:
        pytest.skip("three bits showed the model too little")
    assert abc("explain")[0] == 0
    return pipeline


def test_a_whole_run_is_told(abc: Abc, explained: Path, browser: Any) -> None:
    before = {path: path.read_bytes() for path in explained.rglob("*") if path.is_file()}
    status, out, err = abc("report")
    assert (status, out) == (0, ""), err
    page = explained / "report.html"
    assert f"Files: {page}" in err
    assert {path: path.read_bytes() for path in explained.rglob("*") if path.is_file() and path != page} == before
    assert page.stat().st_size < 1_500_000
    text = _text(page)
    for words in (
        "Parity: runs/parity",
        "The retrained model is proved correct at every length.",
        "abc fit --run runs/parity-again --task Parity --task.max_length 3",
        "abc explain --run runs/parity-again",
        "uniform",
        "6 uniform",
        "operand 1, own place",
        "beyond training",
        "the layout, that is, the segment and the coordinates of every token, is given to the window",
        "python -m abc_toolkit.checker runs/parity/certify/certificate.json",
        "parity 0 (start) 0 0 parity 0",
        "8 of 8 assignments",
        "retrain/weights.safetensors " + Run(explained).record("retrain")["files"]["weights.safetensors"],
    ):
        assert words in text, words
    assert "Left out" not in text
    assert "missing" not in text
    _refused(abc("report"), "is there already", "--overwrite", "--output")
    assert abc("report", "--overwrite")[0] == 0
    _look_at(browser, page)


def _look_at(browser: Any, path: Path) -> None:
    """The page of a run in a browser: light and dark, wide and narrow; all parts that can be chosen change it."""
    for scheme, width in (("light", 1200), ("dark", 400)):
        page, said = _opened(browser, path, width, scheme)
        assert said == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.wait_for_function("[...document.images].every(image => image.naturalWidth > 0)")
        assert len(page.query_selector_all("img")) == 3
        charts = page.locator(".chart").all()
        assert len(charts) == 4
        for chart in charts:
            size = chart.locator("svg").first.bounding_box()
            assert size["width"] > 200
            assert size["height"] > 80
            assert size["width"] <= width
        paper, ink = (
            page.evaluate(f"getComputedStyle(document.body).{name}").removeprefix("rgb(").rstrip(")").split(", ")
            for name in ("backgroundColor", "color")
        )
        assert abs(int(paper[0]) - int(ink[0])) > 150
        assert (int(paper[0]) < 100) == (scheme == "dark")
    accuracy, maps, window, tokens = charts
    shown = _drawn(accuracy)
    accuracy.get_by_text("vanilla", exact=True).first.click()
    page.wait_for_function("before => document.querySelector('.chart svg').innerHTML !== before", arg=shown)
    changes: list[tuple[Any, Callable[[], Any]]] = [
        (maps, lambda: maps.locator("select").first.select_option(index=1)),
        (maps, lambda: maps.locator("input[type=radio]").nth(1).check()),
        (window, lambda: window.locator("select").nth(0).select_option(index=1)),
        (window, lambda: window.locator("select").nth(1).select_option(index=1)),
        (tokens, lambda: tokens.locator("input[type=range]").fill("2")),
        (tokens, lambda: tokens.locator("input[type=radio]").nth(1).check()),
        (tokens, lambda: tokens.locator("select").first.select_option(index=2)),
        (tokens, lambda: tokens.locator("g.mark-rect").last.locator("path").nth(4).click()),
    ]
    for number, (chart, change) in enumerate(changes):
        before = _drawn(chart)
        change()
        page.wait_for_timeout(150)
        assert _drawn(chart) != before, number
    assert said == []
    page.mouse.move(*_middle_of(accuracy.locator(".mark-symbol.role-mark path").last))
    page.wait_for_selector("#vg-tooltip-element.visible")
    assert "95 % from" in page.inner_text("#vg-tooltip-element")


def _middle_of(mark: Any) -> tuple[float, float]:
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("01", [("0", True), ("1", True)]),
        ("0", [("0", True), (" end", False)]),
        ("11", [("1", False), ("1", True)]),
        ("0110", [("0", True), ("1", True), ("1", False), ("0", False)]),
    ],
)
def test_an_answer_is_marked_up_to_its_end(written: str, shown: list[tuple[str, bool]]) -> None:
    def answer(text: str) -> module.Answer:
        return module.Answer(text, (*text, *["end"] * (5 - len(text))))

    assert module._marked(answer("01"), answer(written)).tokens == shown


def test_several_runs_are_compared(abc: Abc, pipeline: Path, browser: Any) -> None:
    other = Path(shutil.copytree(pipeline, "runs/<script>alert(1)</script>"))
    half = Path(shutil.copytree(pipeline, "runs/half"))
    shutil.rmtree(half / "evaluate")
    shutil.rmtree(half / "retrain")
    status, _, err = abc("report", str(pipeline), str(other), str(half))
    assert status == 0, err
    path = Path("report.html")
    assert path.stat().st_size < 3_000_000
    text = _text(path)
    assert "A comparison of 3 runs." in text
    assert "parity retrained 100.0" in text
    assert "script> retrained 100.0" in text
    assert "Not evaluated: half." in text
    assert "The run is not finished: retrain, evaluate, certify are missing." in text
    page, said = _opened(browser, path, 400, "dark")
    assert said == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    for title in page.locator("details.run > summary").all():
        title.click()
    page.wait_for_timeout(300)
    widths = page.evaluate("[...document.querySelectorAll('.chart svg')].map(one => one.getBoundingClientRect().width)")
    assert len(widths) == 1 + 4 + 4 + 3
    assert all(200 < width <= 400 for width in widths)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert said == []


def test_what_is_missing_is_named_with_its_command(abc: Abc, pipeline: Path) -> None:
    for phase in ("evaluate", "retrain"):
        shutil.rmtree(pipeline / phase)
    (pipeline / ".retrain.partial").mkdir()
    (pipeline / ".retrain.partial" / "progress.ckpt").write_text("")
    assert abc("report", "--output", "page.html")[0] == 0
    text = _text(Path("page.html"))
    assert "retrain interrupted" in text
    assert "abc retrain --run runs/parity --resume" in text
    assert "abc evaluate --run runs/parity" in text
    assert "abc certify --run runs/parity" in text
    assert "vanilla model, as it wrote it" in text
    assert "retrained model, as it wrote it" not in text


def test_a_stale_certificate_is_told_to_be_so(abc: Abc, explained: Path) -> None:
    resealed(explained / "retrain", lambda record: record["model"].__setitem__("dropout", 0.5))
    assert abc("report")[0] == 0
    text = _text(explained / "report.html")
    assert "The certificate is stale: it was made of another model than 'retrain' holds now." in text
    assert "explain finished" in text
    assert ", stale" in text


def test_a_refuted_model_is_told_to_be_wrong(abc: Abc, explained: Path) -> None:
    from abc_toolkit.proof.certificate import _FACTS

    path = explained / "certify" / "certificate.json"
    stated = json.loads(path.read_text())
    facts = {name: stated[name] for name in _FACTS} | {"verdict": "wrong", "reason": "11 makes 0", "problem": "11"}
    path.write_text(json.dumps(facts))
    resealed(path.parent, lambda record: record["results"].__setitem__("verdict", "wrong"))
    assert abc("report")[0] == 0
    text = _text(explained / "report.html")
    assert "The retrained model is proved wrong." in text
    assert "reason 11 makes 0" in text


def test_tasks_without_windows_have_a_report(abc: Abc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("--model.model_dim", "8", "--model.feedforward_dim", "8", "--model.num_decoder_layers", "1")
    words += ("--trainer.max_steps", "2", "--data.validation_problems", "8", "--trainer.validate_every", "2")
    assert abc("fit", "--config", "functions/conjunction", *words, "--run", "runs/conjunction")[0] == 0
    assert abc("evaluate", "--samples", "4", "--length", "1x")[0] == 0
    assert abc("report", "--output", "page.html")[0] == 0
    text = _text(Path("page.html"))
    assert "averaging" in text
    assert "Left out Attention There are no windows for this task" in text
    assert "Sample problems The problems of this task cannot be written as text." in text
    assert "missing" not in text


def test_a_task_that_cannot_be_made_leaves_parts_out(abc: Abc, pipeline: Path) -> None:
    foreign = {"class_path": "theirs.tasks.<b>Theirs</b>", "init_args": {"max_length": 3}}
    for phase in ("fit", "retrain"):
        resealed(pipeline / phase, lambda record: record.__setitem__("task", foreign))
    status, _, err = abc("report")
    assert status == 0
    assert "Warning: " in err
    text = _text(pipeline / "report.html")
    assert "The task cannot be made, so that less is shown" in text
    assert "6 uniform" in text
    assert "<b>Theirs" not in (pipeline / "report.html").read_text()


def test_what_cannot_be_reported_is_refused(abc: Abc, pipeline: Path) -> None:
    _refused(abc("report", "nowhere"), "there is no run at nowhere")
    _refused(abc("report", str(pipeline), str(pipeline)), "named twice")
    _refused(abc("report", "--output", "no/where.html"), "there is no folder")
    Path("empty").mkdir()
    _refused(abc("report", "empty"), "'fit'")
    (pipeline / "calibrate" / "window.json").write_text("{}")
    _refused(abc("report"), "window.json was changed")
    assert not list(Path().rglob("*.html"))


def test_a_page_is_whole_or_not_there(abc: Abc, pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "render", interrupted)
    assert abc("report")[0] == 130
    assert not list(Path().rglob("*.html*"))


def test_help_and_settings(abc: Abc) -> None:
    status, out, _ = abc("report", "--help")
    assert status == 0
    assert "abc report [options] [RUN ...]" in out
    assert "--output" in out
    status, first, _ = abc("report", "--output", "x.html", "--print_config")
    assert status == 0
    assert "output: x.html" in first
