"""Commands that are killed: at random moments and at every rename; what is there afterwards, and after going on.

    python -m experiments.reliability.kills --random 40

A case is one kill of `abc run`, in an empty folder, or with `--overwrite` in a finished run of another seed. Then the
run is read, and `abc run --resume` (or, where there is nothing to resume, the command itself) does the rest. It must
come to the bytes of a run that was not interrupted, and leave nothing behind, in the run or in the folder for temporary
files.
"""

import argparse
import os
import random
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from abc_toolkit.files import save_json
from experiments.reliability.processes import SETTINGS, content, done, emptied, listing, start, status_of

HERE = Path(__file__).parent
KILLED = 9


def dies_at_rename(step: int, after: bool) -> Callable[[], None]:
    """Ends the process at one of its renames."""

    def prepare() -> None:
        rename, count = os.replace, 0

        def wrapped(*arguments: Any, **keywords: Any) -> None:
            nonlocal count
            count += 1
            if count == step and not after:
                os._exit(KILLED)
            rename(*arguments, **keywords)
            if count == step:
                os._exit(KILLED)

        os.replace = wrapped  # type: ignore[assignment]

    return prepare


def told(output: Path) -> str:
    """The last thing that a command said."""
    lines = output.read_text().strip().splitlines()
    return lines[-1][:300] if lines else ""


def case(work: Path, finished: Path | None, expected: dict[str, bytes], names: list[str], kill: Any) -> tuple[str, str]:
    """One kill: how the process ended, and what is wrong afterwards, if anything is."""
    folder, output, temporary = emptied(work / "case"), work / "output", emptied(work / "temporary")
    os.environ["TMPDIR"] = str(temporary)
    tempfile.tempdir = None
    run, words = folder / "run", ["run", *SETTINGS, "--run", "run", "--seed", "0"]
    if finished is not None:
        shutil.copytree(finished, run)
    again = [*words, "--overwrite"] if finished is not None else words
    output.write_text("")
    if callable(kill):
        status = done(again, folder, output, kill)
    else:
        number = start(again, folder, output)
        timer = threading.Timer(kill, lambda: os.kill(number, signal.SIGKILL))
        timer.start()
        status = status_of(number)
        timer.cancel()
    if status == 0:
        ended = "ended before"
    else:
        ended = "killed"
        before = listing(folder)
        for reader in (["solve", "--run", "run", "101"], ["evaluate", "--help"]):
            reading = done(reader, folder, output)
            if reading not in (0, 2):
                return ended, f"{reader[0]} ended with {reading}: {told(output)}"
        if listing(folder) != before:
            return ended, "reading changed the folder"
        status = done([*words, "--resume"], folder, output)
        if status == 2:  # there was nothing to resume
            status = done(again, folder, output)
    if status != 0:
        return ended, f"going on ended with {status}: {told(output)}"
    found = content(run)
    if found != expected:
        different = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        return ended, f"other bytes in {', '.join(different)}"
    if listing(run) != names:
        return ended, f"left behind: {sorted(set(listing(run)) ^ set(names))}"
    if os.listdir(folder) != ["run"] or listing(temporary):
        return ended, f"left behind: {os.listdir(folder)}, {listing(temporary)}"
    return ended, ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--random", type=int, default=40, help="kills at random moments, half of them with --overwrite")
    parser.add_argument("--every", type=int, default=1, help="at each of so many renames, one kill")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "abc_kills")
    parser.add_argument("--results", type=Path, default=HERE / "kills.json")
    settings = parser.parse_args()
    work = emptied(settings.folder)
    output = work / "output"
    start_time = time.monotonic()
    runs = {}
    for seed in (0, 1):
        folder = emptied(work / str(seed))
        assert done(["run", *SETTINGS, "--run", "run", "--seed", str(seed)], folder, output) == 0, output.read_text()
        runs[seed] = folder / "run"
    whole = (time.monotonic() - start_time) / 2
    expected, names = content(runs[0]), listing(runs[0])
    draw, cases = random.Random(0), []

    def note(kind: str, finished: bool, kill: Any) -> str:
        ended, fault = case(work, runs[1] if finished else None, expected, names, kill)
        cases.append({"kind": kind, "overwrite": finished, "ended": ended, "fault": fault})
        counts = Counter((own["kind"], own["ended"]) for own in cases)
        faults = [own["fault"] for own in cases if own["fault"]]
        save_json(settings.results, {
            "kills": {kind: count for (kind, ended), count in sorted(counts.items()) if ended == "killed"},
            "ended before": sum(count for (_, ended), count in counts.items() if ended != "killed"),
            "faults": faults,
            "cases": cases,
        })  # fmt: skip
        print(f"\r{len(cases)} cases, {len(faults)} faults", end="", flush=True)
        return ended

    for number in range(settings.random):
        note("at a random moment", number % 2 == 1, draw.random() * whole)
    for finished in (False, True):
        for after in (False, True):
            kind, step = f"{'after' if after else 'before'} a rename", 1
            while note(kind, finished, dies_at_rename(step, after)) == "killed":
                step += settings.every
    print()


if __name__ == "__main__":
    main()
