"""Pairs of commands in one run at the same time: who is let in, who is refused, and what the run holds afterwards.

    python -m experiments.reliability.races --times 20

Of two writers one may be refused, in one line and with exit status 2; a reader gives its answer. Afterwards each phase
is whole, no file is left over, and what a process ended well with is what the run holds, if it was the only one.
"""

import argparse
import random
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

from abc_toolkit.runs.files import save_json
from abc_toolkit.runs.folder import PHASES, Run
from experiments.reliability.processes import SETTINGS, done, emptied, listing, own_settings, start, status_of

HERE = Path(__file__).parent
FIT, RETRAIN = ["fit", *own_settings("fit")], ["retrain", *own_settings("retrain")]
EVALUATE = ["evaluate", *own_settings("evaluate"), "--overwrite"]
SOLVE = ["solve", "1011"]
# Two commands each, whether they begin in a finished run, and which of them only read.
PAIRS = {
    "fit, fit of another seed": ([*FIT, "--seed", "1"], [*FIT, "--seed", "2"], False, ""),
    "fit --overwrite, fit --overwrite": (
        [*FIT, "--seed", "1", "--overwrite"], [*FIT, "--seed", "2", "--overwrite"], True, "",
    ),
    "evaluate --overwrite, evaluate --overwrite": ([*EVALUATE, "--seed", "1"], [*EVALUATE, "--seed", "2"], True, ""),
    "run, run --resume": (["run", *SETTINGS], ["run", *SETTINGS, "--resume"], False, ""),
    "calibrate --overwrite, retrain --overwrite": (
        ["calibrate", "--problems", "64", "--overwrite"], [*RETRAIN, "--overwrite"], True, "",
    ),
    "certify --overwrite, certify --overwrite": (["certify", "--overwrite"], ["certify", "--overwrite"], True, ""),
    "retrain --overwrite, solve": ([*RETRAIN, "--overwrite"], SOLVE, True, "second"),
    "evaluate --overwrite, solve": (EVALUATE, SOLVE, True, "second"),
    "fit --overwrite, evaluate --overwrite": ([*FIT, "--overwrite", "--seed", "1"], EVALUATE, True, ""),
}  # fmt: skip


def race(work: Path, finished: Path, name: str, draw: random.Random) -> tuple[str, str]:
    """One race: how both ended, and what is wrong, if anything is."""
    first, second, in_finished, reader = PAIRS[name]
    folder = emptied(work / "case")
    path = folder / "runs" / "parity"
    path.parent.mkdir()
    if in_finished:
        shutil.copytree(finished, path)
    # A reader finds the run by itself.
    commands = [[*words, "--run", "runs/parity"] if words is not SOLVE else words for words in (first, second)]
    order = [0, 1] if reader else draw.sample([0, 1], 2)
    outputs = [work / "first", work / "second"]
    numbers = {}
    for which in order:
        outputs[which].write_text("")
        numbers[which] = start(commands[which], folder, outputs[which])
        time.sleep(draw.choice((0, 0, 0.02, 0.1, 0.3, 1)) * draw.random())
    statuses = [status_of(numbers[which]) for which in (0, 1)]
    ended = f"{statuses[0]} and {statuses[1]}"
    for status, output in zip(statuses, outputs, strict=True):
        text = output.read_text()
        if status not in (0, 2):
            return ended, f"ended with {status}: {text[-400:]}"
        if status == 2 and len([line for line in text.splitlines() if "error" in line]) != 1:
            return ended, f"not one line: {text[-400:]}"
    if statuses == [2, 2]:
        return ended, f"both were refused: {[output.read_text()[-200:] for output in outputs]}"
    if reader and outputs[1].read_text().strip() != "1":
        return ended, f"the reader was told {outputs[1].read_text()[-300:]}"
    run = Run(path)
    left = [name for name in listing(path) if name.split("/")[0] not in PHASES]
    if left:
        return ended, f"left over: {left}"
    for phase in PHASES:
        if run.has(phase):
            run.check(phase)
    if name.startswith("fit") and "evaluate" not in name and statuses.count(0) == 1:
        seed = int(commands[statuses.index(0)][commands[statuses.index(0)].index("--seed") + 1])
        if run.record("fit")["seed"] != seed:
            return ended, f"seed {seed} ended well, and the run holds seed {run.record('fit')['seed']}"
    return ended, ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "abc_races")
    parser.add_argument("--results", type=Path, default=HERE / "races.json")
    settings = parser.parse_args()
    work = emptied(settings.folder)
    words = ["run", *SETTINGS, "--run", "run"]
    assert done(words, work, work / "output") == 0, (work / "output").read_text()
    assert done(["certify", "--run", "run"], work, work / "output") == 0, (work / "output").read_text()
    draw, results = random.Random(0), {}
    for name in PAIRS:
        ends, faults = Counter(), []
        for _ in range(settings.times):
            ended, fault = race(work, work / "run", name, draw)
            ends[ended] += 1
            faults += [fault] if fault else []
        results[name] = {"exit statuses": dict(ends), "faults": faults}
        save_json(settings.results, results)
        print(f"{name}: {dict(ends)}, {len(faults)} faults", flush=True)


if __name__ == "__main__":
    main()
