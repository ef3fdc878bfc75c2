"""Bars as they are seen on a terminal, and elsewhere not at all."""

import re
from dataclasses import replace
from typing import Any

import pytest
from rich.progress import Progress

from abc_toolkit.proof import Certificate
from abc_toolkit.proof.meaning import Meaning
from abc_toolkit.report import terminal


@pytest.fixture
def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard error is taken for a terminal, on which every movement is drawn."""

    class Drawn(Progress):
        def advance(self, *arguments: Any) -> None:
            super().advance(*arguments)
            self.refresh()

    monkeypatch.setattr(terminal, "Progress", Drawn)
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "100"}.items():
        monkeypatch.setenv(name, value)


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.mark.usefixtures("on_a_terminal")
def test_a_counter_moves_and_goes(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.counter("solving", 1200, "tokens") as count:
        for more in (50, 50, 1100):
            count(more)
    out, err = capsys.readouterr()
    assert out == ""
    shown = list(dict.fromkeys(re.findall(r"solving \S+ +(\d+)/1200 +tokens 0:00:0\d", _plain(err))))
    assert shown == ["0", "50", "100", "1200"]
    assert err.endswith("\x1b[2K")  # the line is erased


@pytest.mark.usefixtures("on_a_terminal")
def test_items_are_counted_as_they_are_done(capsys: pytest.CaptureFixture[str]) -> None:
    def shown() -> list[str]:
        return re.findall(r"averaging .*?(\d)/3", _plain(capsys.readouterr().err))[-1:]

    seen = [(item, shown()) for item in terminal.track("abc", "averaging")]
    # Of a bar that has just begun nothing need have been drawn.
    assert seen == [("a", seen[0][1]), ("b", ["1"]), ("c", ["2"])]
    assert shown() == ["3"]


@pytest.mark.usefixtures("on_a_terminal")
def test_a_bar_goes_when_what_it_counts_fails(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with terminal.counter("evaluating", 4, "problems") as count:
            count(1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    err = capsys.readouterr().err
    assert "1/4" in _plain(err)
    assert err.endswith("\x1b[2K")


def test_nothing_is_shown_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.counter("evaluating", 3, "problems") as count:
        count(3)
    assert list(terminal.track([1, 2], "averaging")) == [1, 2]
    assert capsys.readouterr() == ("", "")


MEANING = Meaning(("operand 1 + operand 2 = answer",), "it begins in one state", 10484, 60)
CERTIFICATE = Certificate(
    "correct",
    bound={"s0": 21, "s1": 15},
    layouts=315,
    kinds=4,
    assignments=20302,
    beyond_training=10000,
    smallest_margin=2.81,
    narrowest="at place 1 of 2x2",
    largest_rounding=0.31,
    smallest_slack=2.5,
    meaning=MEANING,
    deviations={"one batch": 1e-6, "batches of one": 3e-6},
    outside=0.0,
)


@pytest.fixture
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.usefixtures("_wide")
def test_a_certificate_shows_what_it_rests_on(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_certificate(CERTIFICATE, "addition")
    out, err = capsys.readouterr()
    words = " ".join(out.split())
    for shown in (
        "addition: correct at every length",
        "315 (sizes up to 21 and 15)",
        "20,302 of 4 kinds; 10,000 do not occur in training shapes",
        "2.81, at place 1 of 2x2",
        "0.31, in float32 and any order of summation; it leaves a margin of 2.5",
        "3e-06 over paths, pieces and batches",
        "operand 1 + operand 2 = answer",
        "10,484 problems of up to 60 digits",
    ):
        assert shown in words, shown
    assert err == ""
    terminal.print_certificate(replace(CERTIFICATE, meaning=replace(MEANING, proved=()), beyond_training=0), "addition")
    words = " ".join(capsys.readouterr().out.split())
    assert "nothing: the task gives no identity" in words
    assert "all occur in training shapes" in words


@pytest.mark.parametrize("verdict", ["wrong", "undecided"])
@pytest.mark.usefixtures("_wide")
def test_a_verdict_is_shown_with_its_reason_alone(verdict: Any, capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_certificate(Certificate(verdict, "it is so", "1+1"), "addition")
    out = capsys.readouterr().out
    assert "it is so" in out
    assert "correct at every length" not in out
    for word in ("margin", "rounding", "nan", "assignments"):
        assert word not in out
