"""Does a sweep while its processes are killed at random, and checks that no finished run is lost or changed.

Now and then a worker is killed, or the whole sweep, which is then started again, until the sweep ends by itself. The
hash of each run's folder is taken when the sweep first lists it as finished, and compared at the end.

    python experiments/sweeps/kills.py experiments/sweeps/digits.yaml --processes 2 --every 60
"""

import argparse
import hashlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import psutil

from abc_toolkit.sweeps.specification import STATE


def content(folder: Path) -> str:
    """SHA-256 of a folder's files and their names."""
    found = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


def finished(folder: Path) -> list[str]:
    """The runs that the sweep lists as finished."""
    path = folder / STATE
    found = json.loads(path.read_text())["runs"] if path.exists() else {}
    return [name for name, outcome in found.items() if outcome["state"] == "finished"]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--runs", type=Path, help="runs/NAME, if not given")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--every", type=float, default=60, help="seconds between kills, in the mean")
    parser.add_argument("--sweeps", type=float, default=0.25, help="share of the kills that end the sweep")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    folder = Path("runs") / chosen.file.stem if chosen.runs is None else chosen.runs
    draws, killed = random.Random(chosen.seed), Counter[str]()
    words = [sys.executable, "-m", "abc_toolkit.cli.main", "sweep", str(chosen.file), "--runs", str(folder)]
    words += ["--processes", str(chosen.processes)]
    hashes: dict[str, str] = {}
    start, sweep = time.perf_counter(), psutil.Popen(words)
    due = time.perf_counter() + draws.expovariate(1 / chosen.every)
    while sweep.poll() is None:
        time.sleep(0.5)
        for name in finished(folder):
            hashes.setdefault(name, content(folder / name))
        if time.perf_counter() < due:
            continue
        due = time.perf_counter() + draws.expovariate(1 / chosen.every)
        if draws.random() < chosen.sweeps:
            sweep.kill()
            sweep.wait()
            killed["sweeps"] += 1
            sweep = psutil.Popen(words)
            continue
        workers = [child for child in sweep.children(recursive=True) if child.name().startswith("ray::attempt")]
        if workers:
            draws.choice(workers).kill()
            killed["workers"] += 1
    ended = finished(folder)
    lost = [name for name in hashes if name not in ended]
    changed = [name for name, own in hashes.items() if name in ended and own != content(folder / name)]
    print(
        f"{killed['workers']} workers and {killed['sweeps']} sweeps killed in {time.perf_counter() - start:.0f} s: "
        f"{len(ended)} runs finished, {len(lost)} lost, {len(changed)} changed after they were finished; the sweep's "
        f"exit status {sweep.returncode}"
    )
    raise SystemExit(1 if lost or changed else 0)


if __name__ == "__main__":
    main()
