"""Processes that write in one run at the same time, or are killed at any moment."""

import os
import random
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import abc_toolkit.runs.folder as run_module
from abc_toolkit.errors import UserError
from abc_toolkit.runs.folder import CONFIG, PROGRESS, RECORD, WEIGHTS, Run
from tests.grids import covering
from tests.small_runs import fill, finish, text_of

KILLED = 9
# What changes a folder: a process is killed before or after each call of these.
STEPS = ("replace", "unlink", "mkdir", "rmdir", "fsync")


def forked(function: Callable[[], None]) -> int:
    """Runs a function in a process of its own, and gives its number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads, which end here
        number = os.fork()
    if number:
        return number
    status = 1
    try:
        function()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def status_of(number: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def dies_at(step: int, after: bool) -> None:
    """Ends this process at one of its changes of a folder, with nothing of its own tidied up."""
    count = 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            nonlocal count
            count += 1
            if count == step and not after:
                os._exit(KILLED)
            own = count
            try:
                return call(*arguments, **keywords)
            finally:
                if own == step:
                    os._exit(KILLED)

        return wrapped

    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records need not ask git for the commit."""
    monkeypatch.setattr(run_module, "_commit", lambda: None)


WHOLE = sorted(["fit", *(f"fit/{name}" for name in (CONFIG, RECORD, WEIGHTS))])


@pytest.mark.parametrize(("training", "existing", "after"), covering([False, True], [False, True], [False, True]))
def test_a_writer_is_killed_at_every_change(training: bool, existing: bool, after: bool, tmp_path: Path) -> None:
    """What there is stays whole, whoever looks changes nothing, and the next writer leaves nothing behind."""
    for step in range(1, 200):
        run = Run(tmp_path / str(step))
        if existing:
            finish(run, text="old")

        def write(run: Run = run, step: int = step) -> None:
            dies_at(step, after)
            with run.writing("fit", overwrite=existing) as folder:
                if training:
                    (folder / PROGRESS).write_text("half")
                fill(run, "fit", folder, "new", reached=True)

        status = status_of(forked(write))
        assert status in (0, KILLED)
        found = listing(tmp_path / str(step)) if run.path.exists() else []
        named = run.has("fit")
        if named:
            assert text_of(run) in (("old", "new") if existing else ("new",))
        assert named or not existing
        assert (listing(run.path) if run.path.exists() else []) == found
        if status == 0:
            assert text_of(run) == "new"
            assert found == WHOLE
            break
        if run.interrupted("fit"):
            with run.writing("fit", resume=True) as folder:
                assert (folder / PROGRESS).read_text() == "half"
                fill(run, "fit", folder, "new", reached=True)
        elif not named or text_of(run) == "old":
            finish(run, overwrite=True)
        else:
            with run.locked():
                pass
        assert text_of(run) == "new"
        assert listing(run.path) == WHOLE
    else:
        raise AssertionError("the writer never came to its end")
    assert step > 15


@contextmanager
def suppress_refusals(run: Run) -> Iterator[None]:
    """Goes on where another process is writing, and nowhere else."""
    try:
        yield
    except UserError as error:
        if not str(error).startswith(f"{run.path} is being written by "):
            raise


def test_writers_at_the_same_time_and_readers_beside_them(tmp_path: Path) -> None:
    """One writer is let in at a time, the others are told whom they wait for, and readers see one state or another."""
    run, marker = Run(tmp_path / "run"), tmp_path / "writing"
    finish(run, text="-1")

    def write(number: int) -> None:
        draw, done = random.Random(number), 0
        while done < 12:
            with suppress_refusals(run), run.writing("fit", overwrite=True) as folder:
                os.close(os.open(marker, os.O_CREAT | os.O_EXCL))  # fails where another process is inside
                time.sleep(draw.random() / 200)
                fill(run, "fit", folder, str(number))
                marker.unlink()
                done += 1
            time.sleep(draw.random() / 100)

    writers = [forked(lambda number=number: write(number)) for number in range(4)]
    seen, ended = set(), []
    while len(ended) < len(writers):
        seen.add(text_of(run))
        record = run.record("fit")
        assert record["task"] in {"-1", "0", "1", "2", "3"}
        run.check("fit")
        for number in set(writers) - {number for number, _ in ended}:
            waited, status = os.waitpid(number, os.WNOHANG)
            if waited:
                ended.append((number, os.waitstatus_to_exitcode(status)))
    assert {status for _, status in ended} == {0}
    assert len(seen) > 2
    assert listing(run.path) == WHOLE


def test_a_writer_that_is_killed_at_a_random_moment_frees_the_run(tmp_path: Path) -> None:
    run, draw = Run(tmp_path / "run"), random.Random(0)

    def write() -> None:
        number = 0
        while True:
            with run.writing("fit", overwrite=True) as folder:
                if number % 2:
                    (folder / PROGRESS).write_text("half")
                fill(run, "fit", folder, str(number), reached=True)
            number += 1

    finish(run, text="-1")
    for _ in range(25):
        number = forked(write)
        time.sleep(draw.random() / 10)
        os.kill(number, signal.SIGKILL)
        assert status_of(number) == -signal.SIGKILL
        assert int(text_of(run)) >= -1
        finish(run, text="-1", overwrite=True)
        assert text_of(run) == "-1"
        assert listing(run.path) == WHOLE


def test_the_second_writer_is_told_who_is_the_first(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    read, write = os.pipe()

    def hold() -> None:
        with run.locked():
            os.write(write, b"x")
            time.sleep(60)

    number = forked(hold)
    os.read(read, 1)
    before = listing(run.path)
    with pytest.raises(UserError, match=rf"is being written by process {number} on .* \('abc.*', since .*\): wait"):
        finish(run)
    assert listing(run.path) == before
    os.kill(number, signal.SIGKILL)
    status_of(number)
    finish(run)
    assert listing(run.path) == WHOLE
    for descriptor in (read, write):
        with suppress(OSError):
            os.close(descriptor)
