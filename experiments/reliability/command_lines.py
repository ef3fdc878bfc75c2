"""Command lines and files of settings that make no sense: each is refused in one line, with nothing changed, at once.

    python -m experiments.reliability.command_lines --lines 2000 --files 400 --processes 40

Each option of each command, as the parser knows them, is given numbers, texts, paths and classes of all kinds. A case
runs in this process, in a folder with a finished run of its own; some run once more in a process of theirs. What makes
sense by accident is done, cut short. The rest must end with exit status 2 and one line on standard error, within 20
seconds, and leave the folder as it was.
"""

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from tests.reliability.command_lines import Bench, Case, command_line, judged, made, settings_file, snapshot

HERE = Path(__file__).parent


def in_a_process(case: Case, bench: Bench) -> dict[str, object] | None:
    """What is wrong with how a command line ends in a process of its own; `None` if nothing is."""
    before = bench.prepare(case)
    command = [sys.executable, "-m", "abc_toolkit.cli.main", *case.words]
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1])}
    start = _seconds_of_children()
    try:
        done = subprocess.run(
            command, cwd=bench.folder, input=case.stdin, capture_output=True, timeout=600, check=False, env=environment
        )
    except (ValueError, OSError):  # no such word can be passed on: a NUL, a lone surrogate, too long
        return None
    except subprocess.TimeoutExpired:
        return {"words": case.words, "kind": "too long", "told": ""}
    seconds = _seconds_of_children() - start
    after = snapshot(bench.folder)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    bench.changed = bool(changed)
    out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    outcome = judged(case, done.returncode, out, err, seconds, changed)
    return {"words": case.words} | asdict(outcome) if outcome.is_fault else None


def _seconds_of_children() -> float:
    """What processes that were started took of the processor, whoever else uses it."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=2000)
    parser.add_argument("--files", type=int, default=400)
    parser.add_argument("--processes", type=int, default=40, help="Refused cases that are done in their own process.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="*", help="Numbers of cases, whose outcomes are shown.")
    arguments = parser.parse_args()
    warnings.simplefilter("error")
    work = Path(tempfile.mkdtemp(prefix="command_lines"))
    (work / "template").mkdir()
    bench = Bench(made(work / "template"), work / "case")
    counts: Counter[str] = Counter()
    faults, refused, slowest, again, start = [], [], 0.0, 0, time.monotonic()
    total = arguments.lines + arguments.files
    for number in arguments.only or range(total):
        draws = random.Random(f"{arguments.seed}-{number}")
        is_line = number < arguments.lines
        case = command_line(draws) if is_line else settings_file(draws)
        outcome = bench.outcome(case)
        if outcome.kind == "too long":  # on a machine that others use too, once more
            again += 1
            bench.changed = True
            outcome = bench.outcome(case)
        counts[f"{'lines' if is_line else 'files'}, {outcome.kind}"] += 1
        slowest = max(slowest, outcome.seconds)
        shown = {"number": number, "words": case.words, "settings": repr(case.settings)} | asdict(outcome)
        if arguments.only:
            print(json.dumps(shown, indent=1))
        elif outcome.is_fault:
            faults.append(shown)
            print(
                f"\n{number} {outcome.kind}: {' '.join(map(repr, case.words))[-300:]}\n{outcome.told[-400:]}",
                flush=True,
            )
        elif outcome.kind == "refused" and is_line:
            refused.append(case)
        if number % 50 == 49:
            print(f"\r{number + 1} of {total}, {len(faults)} faults", end="", file=sys.stderr, flush=True)
    apart = random.Random(arguments.seed).sample(refused, min(arguments.processes, len(refused)))
    for case in apart:
        fault = in_a_process(case, bench)
        counts["processes, " + ("refused" if fault is None else str(fault["kind"]))] += 1
        if fault is not None:
            faults.append(fault)
            print(f"\nin a process: {fault}", flush=True)
    shutil.rmtree(work)
    if not arguments.only:
        found = {
            "lines": arguments.lines,
            "files": arguments.files,
            "processes": len(apart),
            "seed": arguments.seed,
            "counts": dict(sorted(counts.items())),
            "slowest_seconds": round(slowest, 1),
            "timed_twice": again,
            "seconds": round(time.monotonic() - start),
            "faults": faults,
        }
        text = json.dumps(found, indent=1) + "\n"
        (HERE / "command_lines.json").write_text(text, encoding="utf-8")
        print(f"\n{json.dumps(found['counts'], indent=1)}")


if __name__ == "__main__":
    main()
