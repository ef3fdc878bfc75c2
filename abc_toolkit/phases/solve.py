"""Solving problems that a person writes, with a run's model, and checking the answers."""

import os
import re
import stat
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from abc_toolkit.errors import UserError
from abc_toolkit.models.attention import AttentionPath
from abc_toolkit.models.base import DecodingModel, Model
from abc_toolkit.models.decoding import solve_problems
from abc_toolkit.models.memory import check_memory
from abc_toolkit.models.transformer import AttentionModel
from abc_toolkit.phases.base import run_with
from abc_toolkit.report import console, terminal
from abc_toolkit.runs.folder import Run
from abc_toolkit.tasks import ProblemError, Shape, Solvable
from abc_toolkit.tasks.base import quoted, require

if TYPE_CHECKING:
    from abc_toolkit.phases.sharing.pretrained import PretrainedModel

NOTHING = "there is no problem to solve: give some as arguments, with --file, or on standard input"
# How numbers are also written: signs that mean what one on the keyboard means, and marks that group digits in threes.
_SIGNS = {"\N{MINUS SIGN}": "-", "\N{MULTIPLICATION SIGN}": "*", "\N{DIVISION SIGN}": "/"}
_GROUPED = re.compile(
    r"(?<![^\W_])[^\W_]{1,3}([, _'\N{RIGHT SINGLE QUOTATION MARK}])[^\W_]{3}(?:\1[^\W_]{3})*(?![^\W_]|\1)"
)
_MARK = "\N{ZERO WIDTH NO-BREAK SPACE}"  # at the beginning of a file: a byte-order mark
_LONGEST_LINE = 2**24  # bytes; what is longer is no problem, or has no end
_PIECE = 2**16  # bytes that are read at once
_TOGETHER = 256  # problems that are answered before the answers are shown


@dataclass(frozen=True)
class Problem:
    """A problem as the task reads it.

    Attributes:
        shape: Its shape.
        source: Its source.
        read_as: How it was read where that is not how it was written.
    """

    shape: Shape
    source: str
    read_as: str | None = None

    def tell(self, where: str) -> None:
        """Says how it was read, if that is not how it was written."""
        if self.read_as is not None:
            console.remark(f"{where} is read as {quoted(self.read_as)}.")


def read_problem(task: Solvable, text: str) -> Problem:
    """A problem as a person writes it.

    What the task reads as it stands is never changed, nor are characters among its symbols. Otherwise spaces beside
    signs are left out, as are marks between groups of three digits; digits of other scripts, signs of typography and
    capitals are read as what they mean.

    Raises:
        ProblemError: If it is not one of the task's, in either way.
    """
    text = text.strip("\r\n").removeprefix(_MARK)
    try:
        return Problem(*task.parse(text))
    except ProblemError as error:
        plain = _plainly(task, text)
        if plain == text:
            raise
        try:
            read = task.parse(plain)
        except ProblemError:
            raise error from None
    return Problem(*read, read_as=plain if plain != text.strip() else None)


def _plainly(task: Solvable, text: str) -> str:
    """A problem with what its characters mean in place of those that the task does not know."""
    plain = "".join(character if character in task.symbols else _meant(task, character) for character in text)
    if " " not in task.symbols:
        plain = " ".join(plain.split())
    plain = _GROUPED.sub(lambda group: group[0] if group[1] in task.symbols else group[0].replace(group[1], ""), plain)
    return plain if " " in task.symbols else re.sub(r"(?<!\w) | (?!\w)", "", plain)


def _meant(task: Solvable, character: str) -> str:
    """What a character that is none of the task's symbols stands for, or itself."""
    forms = [_SIGNS.get(character, character), character.lower(), character.upper()]
    forms.append(str(unicodedata.decimal(character, "")))
    if "\N{FULLWIDTH EXCLAMATION MARK}" <= character <= "\N{FULLWIDTH TILDE}":
        forms.append(chr(ord(character) - ord("\N{FULLWIDTH EXCLAMATION MARK}") + ord("!")))
    known = [form for form in forms if len(form) == 1 and form in task.symbols]
    return known[0] if known else " " if character.isspace() else character


class Solver:
    """What answers problems with a model, which is loaded once there is a problem that can be asked.

    Args:
        task: The task.
        load: Loads the model, its attention on the path asked for.
        called: What messages call it.
    """

    def __init__(self, task: Solvable, load: Callable[[], Model], called: str) -> None:
        self.task, self._load, self._called = task, load, called
        self._fitting: set[Shape] = set()

    @classmethod
    def of_run(cls, run: Path | None, weights: Literal["retrain", "fit"], attention: AttentionPath) -> "Solver":
        """What answers with a run's model.

        Args:
            run: Run folder; the newest in runs/ if not given.
            weights: Which model.
            attention: How it attends.

        Raises:
            UserError: If there is no such model.
        """
        place = run_with(run, weights, Solvable, "abc solve")

        def load() -> Model:
            for warning in place.warnings(weights):
                console.remark(warning)
            return attending(place, weights, attention)

        return cls(require(place.task(weights), Solvable, "abc solve"), load, "this run")

    @classmethod
    def of_export(cls, model: "PretrainedModel", attention: AttentionPath, told: Sequence[str] = ()) -> "Solver":
        """What answers with an exported model.

        Args:
            model: The model.
            attention: How it attends.
            told: Lines that are told once a problem can be asked.

        Raises:
            UserError: If its task has no problems that can be written.
        """
        task = require(model.task, Solvable, "abc solve")

        def load() -> Model:
            for line in told:
                console.remark(line)
            return on_path(model.model, attention, f"the model in {model.export.path}")

        return cls(task, load, "this model")

    @cached_property
    def _model(self) -> DecodingModel:
        model = self._load()
        assert isinstance(model, DecodingModel)  # as that of a task with a target is
        return model

    def read(self, text: str, where: str) -> Problem:
        """A problem of the task, as a person writes it.

        Args:
            text: The problem.
            where: What messages call it.

        Raises:
            UserError: If it is none.
        """
        try:
            return read_problem(self.task, text)
        except ProblemError as error:
            raise UserError(f"{where} cannot be solved by {self._called} ({self.task.name}): {error}") from None

    def check_fits(self, problem: Problem, where: str) -> None:
        """Refuses a problem that is too long for memory.

        Raises:
            UserError: With the estimate.
        """
        if problem.shape in self._fitting:
            return
        try:
            check_memory(self.task, self._model, problem.shape, torch.device("cpu"))
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        self._fitting.add(problem.shape)

    def read_all(self, texts: Iterable[str]) -> list[Problem]:
        """Problems all of which can be solved.

        Raises:
            UserError: If one of them cannot.
        """
        named = [(f"problem {number}", text) for number, text in enumerate(texts, 1)]
        problems = [(self.read(text, where), where) for where, text in named]
        for problem, where in problems:
            self.check_fits(problem, where)
        for problem, where in problems:
            problem.tell(where)
        return [problem for problem, _ in problems]

    def answers(self, problems: Sequence[Problem]) -> list[str]:
        """An answer each, decoded step by step."""
        if not problems:
            return []
        tokens = sum(self.task.num_tokens(problem.shape)[1] for problem in problems)
        with terminal.counter("solving", tokens, "tokens") as count:
            return solve_problems(self._model, self.task, [(p.shape, p.source) for p in problems], count)

    def right(self, problem: Problem, answer: str) -> bool:
        """Whether an answer is right, by the task's oracle; nothing else here asks it."""
        return self.task.answer(self.task.solve(problem.source)) == answer


def asked_of(
    run: Path | None, model: Path | None, weights: Literal["retrain", "fit"] | None, attention: AttentionPath
) -> Solver:
    """What answers problems with the model of a run or of an export.

    Args:
        run: Run folder; the newest in runs/ if neither it nor an export is given.
        model: Exported folder.
        weights: Which model of a run.
        attention: How it attends.

    Raises:
        UserError: If both are given, or there is no such model.
    """
    if model is None:
        return Solver.of_run(run, weights or "retrain", attention)
    if run is not None:
        raise UserError(f"--model {model} and --run {run} exclude each other: give one")
    from abc_toolkit.phases.sharing.format import read
    from abc_toolkit.phases.sharing.pretrained import PretrainedModel  # which solves problems by what is above

    found = PretrainedModel(read(model))
    if weights not in (None, found.phase):
        raise UserError(f"--weights {weights}: {model} holds the model of '{found.phase}' alone: leave it out")
    return Solver.of_export(found, attention, found.warnings)


def solve(
    problems: Sequence[str],
    *,
    run: Path | None = None,
    model: Path | None = None,
    weights: Literal["retrain", "fit"] | None = None,
    attention: AttentionPath = "auto",
) -> list[str]:
    """Solves problems with the model's own answers, decoded step by step.

    Args:
        problems: Problems as a person writes them, such as 123+989.
        run: Run folder; the newest in runs/ if not given.
        model: Folder that abc export wrote, in place of a run.
        weights: retrain, which is the default, or fit for the vanilla model; an export holds one of them.
        attention: dense compares every query with every key; gathered fetches the keys that the window leaves open,
            at a cost in proportion to the length; auto goes by the size.

    Returns:
        An answer each, in natural order, most significant digit first.

    Raises:
        UserError: If a problem is not one of the model's task.
    """
    asked = asked_of(run, model, weights, attention)
    if not problems:
        raise UserError(NOTHING)
    return asked.answers(asked.read_all(problems))


def check_answers(problems: Sequence[str], answers: Sequence[str], *, run: Path | None = None) -> list[bool]:
    """Whether answers are right, by the task's oracle; `solve` itself never asks it.

    Args:
        problems: Problems as a person writes them.
        answers: An answer each.
        run: Run folder; the newest in runs/ if not given.
    """
    own = Run.newest(run)
    task = require(own.task(own.first), Solvable, "abc solve")
    sources = [read_problem(task, problem).source for problem in problems]
    return [task.answer(task.solve(source)) == answer for source, answer in zip(sources, answers, strict=True)]


def answer_all(
    problems: Sequence[str],
    file: str | None,
    check: bool,
    *,
    run: Path | None = None,
    model: Path | None = None,
    weights: Literal["retrain", "fit"] | None = None,
    attention: AttentionPath = "auto",
) -> int:
    """Prints the answers to problems that are given, then, as they come, to those of a file.

    Args:
        problems: Problems that are given; one that cannot be solved ends the command before any is answered.
        file: File of a problem a line, `-` for standard input; that too if neither it nor a problem is given. A line
            that cannot be solved is told of, and has an empty line among the answers.
        check: Whether to add if each answer is right.
        run: Run folder; the newest in runs/ if not given.
        model: Exported folder, in place of a run.
        weights: Which model.
        attention: How it attends.

    Returns:
        The exit status: 2 if there was a line that could not be solved.

    Raises:
        UserError: If there is no problem, one that is given cannot be solved, or the file cannot be read.
    """
    if sys.stdout is None:
        raise UserError("standard output is closed: there is nowhere to write answers to")
    asked = asked_of(run, model, weights, attention)
    if file is None and not problems and sys.stdin is not None and not sys.stdin.isatty():
        file = "-"
    if file is None and not problems:
        raise UserError(NOTHING)
    with nullcontext() if file is None else _opened(file) as stream:
        _print(asked, asked.read_all(problems), check)
        if stream is None:
            return 0
        return _answer_lines(asked, stream, "standard input" if file == "-" else str(file), check, bool(problems))


def _answer_lines(asked: Solver, stream: Any, name: str, check: bool, answered: bool) -> int:
    """Answers a stream's lines as they come; returns the exit status."""
    status, number, blank = 0, 0, 0
    for lines in _lines(stream, name):
        read: list[Problem | None] = []
        for line in lines:
            number += 1
            if not line.strip():
                blank += 1  # what follows shows whether it stands between problems or at the end
                continue
            read += [None] * blank
            blank, answered = 0, True
            where = f"line {number} of {name}"
            try:
                problem = asked.read(_decoded(line, where), where)
                asked.check_fits(problem, where)
                problem.tell(where)
                read.append(problem)
            except UserError as error:
                console.remark(f"abc solve: error: {console.line(error)}")
                read.append(None)
                status = 2
        _print(asked, read, check)
    if not answered:
        raise UserError(NOTHING)
    return status


def _print(asked: Solver, problems: Sequence[Problem | None], check: bool) -> None:
    """Prints answers, and an empty line for what is no problem."""
    answers = iter(asked.answers([problem for problem in problems if problem is not None]))
    for problem in problems:
        line = "" if problem is None else next(answers)
        if problem is not None and check:
            line += "\tright" if asked.right(problem, line) else "\twrong"
        print(line)
    sys.stdout.flush()


def _decoded(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is no UTF-8 (byte {error.start + 1})") from None


@contextmanager
def _opened(file: str) -> Iterator[Any]:
    """A file, or standard input, to be read in bytes as they come.

    Raises:
        UserError: If it cannot be read.
    """
    if file == "-":
        if sys.stdin is None:
            raise UserError("standard input is closed: give problems as arguments or with --file")
        yield getattr(sys.stdin, "buffer", sys.stdin)
        return
    try:
        stream = open(file, "rb")  # noqa: SIM115 - what fails below it is another fault
    except (OSError, ValueError) as error:
        raise UserError(f"--file {file} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    with stream:
        kind = os.fstat(stream.fileno()).st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISFIFO(kind) or stream.isatty()):
            raise UserError(f"--file {file} cannot be read: it is a device")
        yield stream


def _lines(stream: Any, name: str) -> Iterator[list[bytes]]:
    """A stream's lines, as many at a time as are there, without waiting for more."""
    begun: list[bytes] = []  # pieces of the line whose end is to come
    length = 0
    while piece := _piece(stream, name):
        whole, end, rest = piece.rpartition(b"\n")
        if end:
            lines = b"".join([*begun, whole]).split(b"\n")
            begun, length = [], 0
            for start in range(0, len(lines), _TOGETHER):
                yield lines[start : start + _TOGETHER]
        begun.append(rest)
        length += len(rest)
        if length > _LONGEST_LINE:
            raise UserError(f"{name} holds a line of more than {_LONGEST_LINE:,} bytes, which is no problem")
    if length:
        yield [b"".join(begun)]


def _piece(stream: Any, name: str) -> bytes:
    try:
        return stream.read1(_PIECE) if hasattr(stream, "read1") else stream.read().encode()
    except (OSError, ValueError) as error:
        raise UserError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def attending(run: Run, phase: Literal["fit", "retrain"], attention: AttentionPath) -> Model:
    """A phase's model, its attention on the path asked for."""
    other = "; take the other with --weights retrain" if phase == "fit" and run.has("retrain") else ""
    return on_path(run.load_model(phase), attention, f"the model in {run.folder(phase)}", other)


def on_path(model: Model, attention: AttentionPath, called: str, remedy: str = "") -> Model:
    """A model, its attention on the path asked for.

    Args:
        model: The model.
        attention: The path.
        called: What messages call the model.
        remedy: How messages end.

    Raises:
        UserError: If the model cannot attend so.
    """
    try:
        if isinstance(model, AttentionModel):
            model.attend(attention)
        elif attention == "gathered":
            raise UserError("there is no attention in this model whose keys could be gathered")
    except UserError as error:
        raise UserError(f"--attention {attention}: {called}: {error}{remedy}") from None
    return model
