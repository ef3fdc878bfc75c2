"""Damage to the files of a run, and whether a command notices it or does the same as before."""

import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from abc_toolkit.runs.files import canonical_hash

FLIPS = 20
LONGEST = 300  # seconds that a command may take, on a machine that has much else to do
Damage = tuple[str, Callable[[], None]]
# What each command says or leaves, and so what must be the same; the certificate is all but the time that it took.
OUTCOMES: Mapping[str, tuple[str, ...]] = {
    "evaluate": ("evaluate/results.json",),
    "calibrate": ("calibrate/window.json",),
    "retrain": ("retrain/weights.safetensors",),
    "certify": ("certify/certificate.json",),
    "fit --resume": ("fit/weights.safetensors",),
    "run --resume": (
        *("fit/weights.safetensors", "calibrate/window.json", "retrain/weights.safetensors", "evaluate/results.json"),
    ),
}


@dataclass(frozen=True)
class Result:
    """What a command did.

    Attributes:
        status: Its exit status; -1 if it raised.
        said: What it wrote to standard error, or the traceback.
        outcome: What must be the same.
    """

    status: int
    said: str
    outcome: tuple[Any, ...]


def call(words: tuple[str, ...]) -> tuple[int, str, str]:
    """A command in this process: exit status, standard output and standard error; -1 and the traceback if it raises."""
    from abc_toolkit.cli.main import main

    def stop(*_: Any) -> None:
        raise TimeoutError(f"takes longer than {LONGEST} s")

    out, err = io.StringIO(), io.StringIO()
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LONGEST)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            sys.argv = ["abc"]
            status = main(list(words))
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        return -1, out.getvalue(), traceback.format_exc()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return status, out.getvalue(), err.getvalue()


def done(name: str, words: tuple[str, ...], run: Path) -> Result:
    """What a command did with a run."""
    status, out, said = call(words)
    left = tuple(_content(run / path) for path in OUTCOMES.get(name, ()))
    return Result(status, said, (out if name.startswith("solve") else "", *left))


def _content(path: Path) -> Any:
    if not path.is_file():
        return None
    return path.read_bytes()


def snapshot(folder: Path) -> dict[str, str]:
    """Everything in a folder, links not followed."""
    found = {}
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            if path.is_symlink():
                what = f"link to {os.readlink(path)}"
            elif path.is_file():
                what = sha256(path.read_bytes()).hexdigest()
            else:
                what = "no file"
            found[str(path.relative_to(folder))] = what
    return found


def fault(
    result: Result, expected: Result, before: Mapping[str, str], after: Mapping[str, str], whole: Mapping[str, str]
) -> str | None:
    """What is wrong with what a command did with a damaged run; `None` if nothing is.

    Args:
        result: What it did.
        expected: What it does with the run as it was.
        before: The folder, damaged.
        after: The folder afterwards.
        whole: The folder before it was damaged, which a writer may mend it to.
    """
    if result.status == -1:
        return "raises"
    if result.status == 2:
        if sum("error: " in line for line in result.said.splitlines()) != 1 or "Traceback" in result.said:
            return "does not say why in one line"
        if after not in (before, whole, _without_leftovers(before)):
            return "refuses, and changed something"
        return None
    if result.outcome != expected.outcome:
        missing = "holds no finished 'retrain': only" in result.said and "run/retrain" not in before
        return None if missing else "another outcome"
    if expected.status != 2 and result.status != expected.status:
        return "another status"
    return None


def _without_leftovers(folder: Mapping[str, str]) -> dict[str, str]:
    """A folder after a writer removed phases that were begun and have no progress."""
    parts = {name.partition(".partial")[0] for name in folder if ".partial" in name}
    begun = [part for part in parts if len(folder.get(f"{part}.partial/progress.ckpt", "")) != 64]  # no file's hash
    return {name: what for name, what in folder.items() if name.partition(".partial")[0] not in begun}


def damages(run: Path, other: Path, path: Path, draw: random.Random) -> Iterator[Damage]:
    """Ways to damage a file of a run.

    Args:
        run: The run.
        other: Another run of the same task and sizes.
        path: The file, inside the run.
        draw: What is drawn is drawn from it.
    """
    content = path.read_bytes()
    name = path.relative_to(run)

    def write(new: bytes) -> Callable[[], None]:
        return lambda: void(path.write_bytes(new))

    for _ in range(FLIPS):
        bit = draw.randrange(8 * len(content))
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        yield f"bit {bit} flipped", write(bytes(flipped))
    for length in (0, 1, len(content) // 2, draw.randrange(len(content)), len(content) - 1):
        yield f"truncated to {length}", write(content[:length])
    yield "a byte more", write(content + b"\n")
    yield "zeros", write(bytes(len(content)))
    yield "removed", path.unlink
    yield "a folder in its place", lambda: (path.unlink(), path.mkdir())[1]
    if (other / name).is_file() and (other / name).read_bytes() != content:
        yield "that of another run", write((other / name).read_bytes())
    for same in sorted(run.glob(f"*/{path.name}")):
        if same != path and same.read_bytes() != content:
            yield f"that of {same.parent.name}", write(same.read_bytes())
    away = run.parent / "away"
    for target in (str(away), "nowhere", path.name, "/dev/zero", "../record.json"):

        def link(target: str = target) -> None:
            shutil.copyfile(path, away)
            path.unlink()
            path.symlink_to(target)

        yield f"a link to {Path(target).name}", link
    yield "a pipe in its place", lambda: (path.unlink(), os.mkfifo(path))[1]
    if path.suffix == ".json":
        for what, text in _other_schemas(json.loads(content)):
            yield what, write(text.encode())
        for encoding in ("utf-8-sig", "utf-16"):
            yield f"as {encoding}", write(content.decode().encode(encoding))


def void(_: object) -> None:
    """Nothing, of something."""


def _other_schemas(data: Any) -> Iterator[tuple[str, str]]:
    for value in ([], {}, None, 3, "text", [data]):
        yield f"{str(value)[:8]} in its place", json.dumps(value)
    yield "nested without end", "[" * 100_000
    if isinstance(data, dict):
        for schema in (1, 99, "2", None):
            yield f"of schema {schema!r}", json.dumps(data | {"schema": schema})
        yield "every key twice", json.dumps(data)[:-1] + "," + json.dumps(data)[1:]
        for key in data:
            yield f"without {key}", json.dumps({name: value for name, value in data.items() if name != key})


def phase_damages(run: Path, phase: str) -> Iterator[Damage]:
    """Ways to damage the folder of a phase."""
    folder = run / phase

    def move(target: Path) -> Callable[[], None]:
        def link() -> None:
            shutil.move(folder, target)
            folder.symlink_to(target)

        return link

    yield "removed", lambda: shutil.rmtree(folder)
    yield "emptied", lambda: (shutil.rmtree(folder), folder.mkdir())[1]
    yield "a file in its place", lambda: (shutil.rmtree(folder), folder.write_text("x"), None)[2]
    yield "a link to where it was moved", move(run.parent / f"{phase}.away")
    yield "a link to nowhere", lambda: (shutil.rmtree(folder), folder.symlink_to("nowhere"))[1]
    yield "a link to itself", lambda: (shutil.rmtree(folder), folder.symlink_to(phase))[1]
    yield "moved aside", lambda: void(shutil.move(folder, run / f".{phase}.old"))
    yield "begun anew", lambda: (run / f".{phase}.partial").mkdir()
    yield (
        "begun anew, with progress that is none",
        lambda: (
            (run / f".{phase}.partial").mkdir(),
            (run / f".{phase}.partial" / "progress.ckpt").write_bytes(b"x"),
            None,
        )[2],
    )


def sealed_changes(path: Path, draw: random.Random, count: int) -> Iterator[Damage]:
    """Changes of a record whose hash is made right again: whatever they do, it must be no traceback."""
    record = json.loads(path.read_text())
    record.pop("hash", None)
    for _ in range(count):
        changed = json.loads(json.dumps(record))
        holder, key = draw.choice(list(_places(changed)))
        what = f"{key!r} changed"
        value = draw.choice((None, True, 0, -1, 3, 10**30, 0.5, 1e308, "", "x", "../x", [], {}, [[]], {"x": 1}, "gone"))
        if value == "gone":
            del holder[key]
        else:
            holder[key] = value
        text = json.dumps(changed | {"hash": canonical_hash(changed)})
        yield f"{what} to {value!r}", lambda text=text: void(path.write_text(text))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in plain data, and each key in it."""
    items = list(value.items() if isinstance(value, dict) else enumerate(value))
    for key, item in items:
        yield value, key
        if isinstance(item, dict | list):
            yield from _places(item)
