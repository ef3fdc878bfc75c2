"""How long the command line takes to answer, as multiples of the time that importing PyTorch takes.

Each command is a process of its own. Rounds go through all of them in turn, so that a change of the machine's load
meets all alike; the table shows CPU time (user and system), which other work on the machine disturbs least, and wall
time, each as the median over the rounds and as a multiple of the import's median.

    python experiments/benchmarks/door.py --rounds 5
    python experiments/benchmarks/door.py --rounds 3 --four
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
ABC = [sys.executable, str(ROOT / "cli.py")]
IMPORT = [sys.executable, "-c", "import torch"]
SMALL = ["--task", "Parity", "--task.max_length", "3", "--fit.model.model_dim", "32", "--evaluate.samples", "10"]


def timed(command: list[str], folder: Path) -> tuple[float, float]:
    """CPU and wall seconds of a command."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {done.stderr}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def main() -> None:
    """Prints a row for each command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--four", action="store_true", help="time the way from nothing to a certified adder too")
    settings = parser.parse_args()
    commands = {
        "import torch": IMPORT,
        "abc --help": [*ABC, "--help"],
        "abc --version": [*ABC, "--version"],
        "abc solve 101": [*ABC, "solve", "101"],
    }
    commands |= {f"abc {name} --help": [*ABC, name, "--help"] for name in ("fit", "evaluate", "certify", "run")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        timed([*ABC, "run", *SMALL], folder)
        times: dict[str, list[tuple[float, float]]] = {what: [] for what in commands}
        for _ in range(settings.rounds):
            for what, command in commands.items():
                times[what].append(timed(command, folder))
        if settings.four:
            times["four commands"] = []
            for number in range(settings.rounds):
                run = ["--run", f"adder{number}"]
                own = [timed([*ABC, phase, *run], folder) for phase in ("fit", "calibrate", "retrain", "certify")]
                times["four commands"].append((sum(cpu for cpu, _ in own), sum(wall for _, wall in own)))
    base = [statistics.median(part) for part in zip(*times["import torch"], strict=True)]
    print(f"{'':22} {'CPU s':>8} {'ratio':>7} {'wall s':>8} {'ratio':>7}")
    for what, own in times.items():
        cpu, wall = (statistics.median(part) for part in zip(*own, strict=True))
        print(f"{what:22} {cpu:8.2f} {cpu / base[0]:7.2f} {wall:8.2f} {wall / base[1]:7.2f}")


if __name__ == "__main__":
    main()
