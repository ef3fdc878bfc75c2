"""Commands that are killed: at random moments and at every rename; what is there afterwards, and after going on.

    python -m experiments.reliability.kills --random 40 --two 12

A case is one kill of `abc run`, in an empty folder, or with `--overwrite` in a finished run of another seed. Then the
run is read, and `abc run --resume` (or, where there is nothing to resume, the command itself) does the rest. It must
come to the bytes of a run that was not interrupted, and leave nothing behind, in the run or in the folder for temporary
files. `--two` kills one of two processes that train together.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from abc_toolkit.runs.files import save_json
from experiments.reliability.processes import SETTINGS, content, done, emptied, listing, start, status_of

HERE = Path(__file__).parent
KILLED = 9
TOGETHER = [
    word
    for phase in ("fit", "retrain")
    for word in (f"--{phase}.trainer.devices", "2", f"--{phase}.trainer.strategy", "ddp")
]
RUN_OF_TWO = [sys.executable, "-m", "abc_toolkit.cli.main", "run", *SETTINGS, *TOGETHER, "--run", "run", "--seed", "0"]


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


def of_two(work: Path, expected: dict[str, bytes], moment: float, victim: int) -> tuple[str, str]:
    """One of two processes that train together killed: how the command ended, and what is wrong afterwards."""
    folder, output = emptied(work / "case"), work / "output"
    with output.open("w", encoding="utf-8") as stream:
        first = subprocess.Popen(RUN_OF_TWO, cwd=folder, stdout=stream, stderr=stream, start_new_session=True)
        deadline = time.monotonic() + moment
        while time.monotonic() < deadline and first.poll() is None:
            time.sleep(0.05)
        if first.poll() is None:
            helpers = psutil.Process(first.pid).children(recursive=True)
            chosen = [first.pid, *(helper.pid for helper in helpers)]
            os.kill(chosen[min(victim, len(chosen) - 1)], signal.SIGKILL)
            who = "the first" if victim == 0 or not helpers else "the second"
        else:
            helpers, who = [], "nobody"
        try:
            status = first.wait(timeout=120)
        except subprocess.TimeoutExpired:
            os.killpg(first.pid, signal.SIGKILL)
            return who, "the first process waits for ever"
        _, alive = psutil.wait_procs(helpers, timeout=120)
        if alive:
            os.killpg(first.pid, signal.SIGKILL)
            return who, "the second process outlives the first"
        # One that ended well did not need its second process any more.
        for go_on in () if status == 0 else ([*RUN_OF_TWO, "--resume"], RUN_OF_TWO):
            status = subprocess.run(go_on, cwd=folder, stdout=stream, stderr=stream).returncode
            if status != 2:  # with 2, there was nothing to resume
                break
    if status != 0:
        return who, f"going on ended with {status}: {told(output)}"
    found = content(folder / "run")
    different = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    return who, f"other bytes in {', '.join(different)}" if different else ""


def kills_of_two(work: Path, number: int) -> dict[str, Any]:
    """Kills one of two processes at random moments, the first and the second in turn."""
    folder = emptied(work / "two")
    begin = time.monotonic()
    subprocess.run(RUN_OF_TWO, cwd=folder, check=True, capture_output=True)
    whole = time.monotonic() - begin
    expected, draw = content(folder / "run"), random.Random(1)
    cases = []
    for case_number in range(number):
        who, fault = of_two(work, expected, draw.uniform(0.2, 1) * whole, case_number % 2)
        cases.append({"killed": who, "fault": fault})
        print(f"two processes: {cases[-1]}", flush=True)
    return {"kills": Counter(own["killed"] for own in cases), "faults": [own["fault"] for own in cases if own["fault"]]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--random", type=int, default=40, help="kills at random moments, half of them with --overwrite")
    parser.add_argument("--two", type=int, default=12, help="kills of one of two processes")
    parser.add_argument("--every", type=int, default=1, help="at each of so many renames, one kill")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "abc_kills")
    parser.add_argument("--results", type=Path, default=HERE / "kills.json")
    settings = parser.parse_args()
    work = emptied(settings.folder)
    if settings.two:
        save_json(settings.results.with_name("kills_of_two.json"), kills_of_two(work, settings.two))
    if not settings.random:
        return
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
