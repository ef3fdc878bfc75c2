"""Problems as people write them, from the command line, files and streams."""

import io
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from abc_toolkit import tasks
from abc_toolkit.phases import solve
from abc_toolkit.phases.solve import read_problem
from abc_toolkit.tasks import ProblemError, Task
from abc_toolkit.tasks.digits.copying import StringTask

Abc = Callable[..., tuple[int, str, str]]


@pytest.fixture
def started(pipeline: Path) -> Iterator[Callable[..., "subprocess.Popen[bytes]"]]:
    """The command line in a process of its own, with pipes."""
    processes = []

    def start(*words: str, **keywords: object) -> "subprocess.Popen[bytes]":
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [sys.executable, "-m", "abc_toolkit.cli.main", "solve", *words]
        process = subprocess.Popen(command, **(pipes | keywords))  # type: ignore[call-overload]
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("task", "written", "plain"),
    [
        ("Addition", "12 + 3", "12+3"),
        ("Addition", " 12\t+ 3 ", "12+3"),
        ("Addition", "1,234+5", "1234+5"),
        ("Addition", "1 234 567+89", "1234567+89"),
        ("Addition", "1'234+1_000", "1234+1000"),
        ("Addition", "\uff11\uff12\uff0b\uff13", "12+3"),  # full width
        ("Addition", "\u0661\u0662+\u0663", "12+3"),  # Arabic digits
        ("Addition", "\N{DEVANAGARI DIGIT FIVE}+\N{NO-BREAK SPACE}5", "5+5"),
        ("Subtraction", "45 \N{MINUS SIGN} 123", "45-123"),
        ("Multiplication", "12\N{MULTIPLICATION SIGN}3", "12*3"),
        ("Division", "12 \N{DIVISION SIGN} 3", "12/3"),
        ("Parity", "101 101", "101101"),
        ("Copy", "00,123", "00123"),
    ],
)
def test_what_is_meant_is_read_and_said(
    task: str, written: str, plain: str, capsys: pytest.CaptureFixture[str]
) -> None:
    known: Task = getattr(tasks, task)()
    read = read_problem(known, written)
    assert (read.shape, read.source) == known.parse(plain)
    assert read.read_as == plain


@pytest.mark.parametrize("mark", ["\r\n", "\r", "\n", ""])
@pytest.mark.parametrize("before", ["", "\ufeff"])
def test_marks_of_files_are_left_out_in_silence(mark: str, before: str) -> None:
    read = read_problem(tasks.Addition(), f"{before}12+3{mark}")
    assert (read.shape, read.read_as) == ((2, 1), None)


@pytest.mark.parametrize(
    ("task", "written"),
    [
        *(("Addition", text) for text in ("1,23+5", "1,2345+5", "1 2+3", "12,34,567+1", "1.5+2", "1\u00b2+3", "1+-2")),
        *(("Addition", text) for text in ("", " ", ",", "1,234,+5", ",123+5", "\u2460+1", "12 + + 3", "1e3+4")),
        ("Successor", "-5"),
        ("Parity", "1011 0110"),  # groups of four: another way to write it, or something else
        ("Parity", "\uff12"),
        ("MultiOperandAddition", "1,234+5"),  # a comma is one of the symbols
    ],
)
def test_what_could_mean_something_else_is_refused(task: str, written: str) -> None:
    with pytest.raises(ProblemError):
        read_problem(getattr(tasks, task)(), written)


@dataclass(frozen=True)
class Sentence(StringTask):
    """Strings in which spaces and commas count."""

    signs: ClassVar[str] = " ,"

    def compute(self, operands: object) -> torch.Tensor:
        raise NotImplementedError

    def solve(self, source: str) -> str:
        return source

    def parse(self, text: str) -> tuple[tuple[int, ...], str]:
        if set(text) - set(self.symbols):
            raise ProblemError("no")
        return (len(text),), text


def test_spaces_and_commas_are_kept_where_they_are_symbols() -> None:
    task = Sentence(max_length=5)
    for text in ("1,234", " 1 234", "1  ,2 ", ",", " "):
        assert read_problem(task, text) == solve.Problem((len(text),), text)
    read = read_problem(task, " 1,\uff12\uff13\uff14 ")
    assert (read.source, read.read_as) == (" 1,234 ", " 1,234 ")


@pytest.mark.parametrize("task", [tasks.Addition(), tasks.Addition(base=16), tasks.Parity(), tasks.Copy(base=36)])
def test_random_texts_are_read_as_they_stand_or_said_or_refused(task: Task) -> None:
    draws = random.Random(0)
    characters = [
        *"0123456789abzAF+-*/?,. _'\t\r\ufeff\uff11\uff0b\u0663\u00b2",
        "\N{MINUS SIGN}",
        "",
        "\x00",
        "e\u0301",
    ]
    for _ in range(3000):
        text = "".join(draws.choices(characters, k=draws.randint(0, 9)))
        try:
            expected = task.parse(text)
        except ProblemError:
            expected = None
        try:
            read = read_problem(task, text)
        except ProblemError:
            assert expected is None
            continue
        if expected is not None:
            assert (read.shape, read.source, read.read_as) == (*expected, None)
        else:
            written = text.strip("\r\n").removeprefix("\ufeff")
            assert (read.shape, read.source) == task.parse(read.read_as or written.strip())
            assert set(read.source) <= set(task.symbols)


def test_every_oracle_answers_beyond_pythons_limit() -> None:
    generator = torch.Generator().manual_seed(0)
    long = [tasks.Copy(), tasks.Reverse(), tasks.Repeat(), tasks.Parity(), tasks.Successor()]
    for base in (2, 3, 7, 10, 16, 36):
        long += [kind(base=base) for kind in (tasks.Addition, tasks.Subtraction, tasks.Multiplication, tasks.Division)]
        long.append(tasks.Comparison(base=base))
    cases = [(task, task.evaluation_shapes(6000, "uniform", generator)[0]) for task in long]
    cases += [(tasks.LongMultiplication(), (6000, 2)), (tasks.MultiOperandAddition(), (6000, 3))]
    for task, shape in cases:
        for name in ("uniform", "carry"):
            problems = task.sample(generator, 1, shape, name)
            source, target = (task.vocabulary.decode(tokens[0]) for tokens in (problems.source, problems.target))
            assert task.solve(source) == target, (task, name)


def test_oracles_take_linear_time() -> None:
    seconds = []
    for length in (20_000, 160_000):
        start = time.perf_counter()
        tasks.Addition(base=36).solve("z" * length + "+" + "y" * length)
        seconds.append(time.perf_counter() - start)
    assert seconds[1] < 8 * 4 * seconds[0]  # four times what is linear; a quadratic one takes 64 times as long


def test_problems_that_are_given_are_all_checked_before_one_is_answered(
    abc: Abc, pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solve, "solve_problems", None)  # is not called
    for words in (("101", "12"), ("101", "--file", "nowhere"), ("--file", "problems", "101", "x"), ("1", "")):
        Path("problems").write_text("1\n")
        status, out, err = abc("solve", *words)
        assert (status, out, len(err.splitlines())) == (2, "", 1), err


def test_options_may_stand_between_problems(abc: Abc, pipeline: Path) -> None:
    expected = (0, "0\tright\n0\tright\n1\tright\n1\tright\n", "")
    problems, options = ["101", "11", "1", "111"], ["--check", "--weights=retrain"]
    draws = random.Random(0)
    for _ in range(12):
        words: list[str] = []
        others = draws.sample(options, 2)
        for problem in [*problems, None]:
            while others and (problem is None or draws.random() < 0.4):
                words.append(others.pop())
            words += [problem] if problem else []
        assert abc("solve", *words) == expected, words
    assert abc("solve", "101", "--run", "runs/parity", "11")[1] == "0\n0\n"
    assert abc("solve", "--", "101")[1] == "0\n"
    assert abc("solve", "101", "--check", "--", "11")[1] == "0\tright\n0\tright\n"
    for words in (("101", "--nosuch", "11"), ("101", "-x"), ("--run",)):
        status, out, err = abc("solve", *words)
        assert (status, out, len(err.splitlines())) == (2, "", 1)


def test_a_bad_line_leaves_an_empty_one_and_the_others_are_answered(
    abc: Abc, pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b"\xef\xbb\xbf101\r\n11\r\n\r\n1 + 1\r\n\xff\xfe1\n1 1 1\n\xef\xbc\x91\xef\xbc\x90\n111\n1\xc2\xa0\n\n\n"
    Path("problems").write_bytes(content)
    Path("-x").write_bytes(content)
    expected = "0\n0\n\n\n\n\n1\n1\n1\n"
    for name, words, stream in (
        ("problems", ("--file", "problems"), None),
        ("-x", ("--file=-x",), None),
        ("standard input", ("--file", "-"), io.TextIOWrapper(io.BytesIO(content))),
        ("standard input", (), io.TextIOWrapper(io.BytesIO(content))),
    ):
        monkeypatch.setattr(sys, "stdin", stream)
        status, out, err = abc("solve", *words)
        assert (status, out) == (2, expected)
        lines = err.splitlines()
        assert [line.split(f" of {name}")[0] for line in lines] == [
            *(f"abc solve: error: line {number}" for number in (4, 5, 6)),
            "line 7",
        ]
        assert "is no UTF-8 (byte 1)" in lines[1]
    Path("problems").write_bytes(content[: content.index(b"1 + 1")])
    assert abc("solve", "--file", "problems", "1") == (0, "1\n0\n0\n", "")


@pytest.mark.parametrize("content", ["", "\n", "\r\n \n", "\ufeff"])
def test_a_file_of_nothing_is_told_of(content: str, abc: Abc, pipeline: Path) -> None:
    Path("problems").write_bytes(content.encode())
    status, out, err = abc("solve", "--file", "problems")
    assert (status, len(err.splitlines())) == (2, 1)
    assert out.strip() == ""
    assert abc("solve", "--file", "problems", "101")[1].startswith("0\n")


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/urandom", ".", "nowhere", "", "\0", "a" * 5000])
def test_what_is_no_file_is_refused(name: str, abc: Abc, pipeline: Path) -> None:
    start = time.monotonic()
    status, out, err = abc("solve", "101", f"--file={name}")
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert "cannot be read" in err or name == "\0"
    assert time.monotonic() - start < 5


def test_a_line_without_an_end_is_refused(abc: Abc, pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"1" * 2**25)))
    status, out, err = abc("solve")
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert "a line of more than 16,777,216 bytes" in err


def test_answers_appear_as_problems_come(started: Callable[..., "subprocess.Popen[bytes]"]) -> None:
    process = started("--check")
    assert process.stdin is not None
    assert process.stdout is not None
    for problem, answer in (("101", b"0\tright\n"), ("1", b"1\tright\n"), ("x", b"\n"), ("11", b"0\tright\n")):
        process.stdin.write(problem.encode() + b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == answer
    out, err = process.communicate()
    assert (process.returncode, out, len(err.splitlines())) == (2, b"", 1)


@pytest.mark.slow
def test_streams_that_are_closed_are_named(started: Callable[..., "subprocess.Popen[bytes]"]) -> None:
    for words, closed in ((("--file", "-"), 0), (("101",), 1)):
        process = started(*words, stdin=None, preexec_fn=lambda closed=closed: os.close(closed))
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, len(err.splitlines())) == (2, b"", 1), err
        assert b"closed" in err


@pytest.mark.usefixtures("pipeline")
def test_a_closed_standard_input_is_no_traceback(abc: Abc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)  # as Python sets it then
    assert abc("solve", "101") == (0, "0\n", "")
    status, out, err = abc("solve")
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert "there is no problem to solve" in err


def test_lines_are_the_same_in_whatever_pieces_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = random.Random(0)
    for _ in range(300):
        content = bytes(draws.choices(b"1\n\r+", k=draws.randint(0, 40)))
        monkeypatch.setattr(solve, "_PIECE", draws.randint(1, 9))
        monkeypatch.setattr(solve, "_TOGETHER", draws.randint(1, 4))
        lines = [line for some in solve._lines(io.BytesIO(content), "it") for line in some]
        assert lines == content.removesuffix(b"\n").split(b"\n") if content else not lines
