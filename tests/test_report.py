"""Bars as they are seen on a terminal, and elsewhere not at all."""

import re
from typing import Any

import pytest
from rich.progress import Progress

from abc_toolkit import report


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard error is taken for a terminal, on which every movement is drawn."""

    class Drawn(Progress):
        def advance(self, *arguments: Any) -> None:
            super().advance(*arguments)
            self.refresh()

    monkeypatch.setattr(report, "Progress", Drawn)
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "100"}.items():
        monkeypatch.setenv(name, value)


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.mark.usefixtures("terminal")
def test_a_counter_moves_and_goes(capsys: pytest.CaptureFixture[str]) -> None:
    with report.counter("solving", 1200, "tokens") as count:
        for more in (50, 50, 1100):
            count(more)
    out, err = capsys.readouterr()
    assert out == ""
    shown = list(dict.fromkeys(re.findall(r"solving \S+ +(\d+)/1200 +tokens 0:00:0\d", _plain(err))))
    assert shown == ["0", "50", "100", "1200"]
    assert err.endswith("\x1b[2K")  # the line is erased


@pytest.mark.usefixtures("terminal")
def test_items_are_counted_as_they_are_done(capsys: pytest.CaptureFixture[str]) -> None:
    def shown() -> list[str]:
        return re.findall(r"averaging .*?(\d)/3", _plain(capsys.readouterr().err))[-1:]

    seen = [(item, shown()) for item in report.track("abc", "averaging")]
    # Of a bar that has just begun nothing need have been drawn.
    assert seen == [("a", seen[0][1]), ("b", ["1"]), ("c", ["2"])]
    assert shown() == ["3"]


@pytest.mark.usefixtures("terminal")
def test_a_bar_goes_when_what_it_counts_fails(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with report.counter("evaluating", 4, "problems") as count:
            count(1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    err = capsys.readouterr().err
    assert "1/4" in _plain(err)
    assert err.endswith("\x1b[2K")


def test_nothing_is_shown_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with report.counter("evaluating", 3, "problems") as count:
        count(3)
    assert list(report.track([1, 2], "averaging")) == [1, 2]
    assert capsys.readouterr() == ("", "")
