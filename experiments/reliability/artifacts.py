"""Files of runs damaged in every way: each command refuses them in a line and changes nothing, or does the same.

The commands are called in this process. Figures are left out of what they write: they cost most of the time.

    python -m experiments.reliability.artifacts --cases 3000
    python -m experiments.reliability.artifacts --cases 200 --only "fit/record.json"
"""

import argparse
import json
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from abc_toolkit.report import figures
from abc_toolkit.runs.files import save_json
from tests.reliability import artifacts
from tests.reliability.received import BASE, COMMANDS

HERE = Path(__file__).parent
RUN = ("--run", "run")
CALLS: Mapping[str, tuple[str, ...]] = {name: (words[0], *RUN, *words[1:]) for name, words in COMMANDS.items()} | {
    "solve --weights fit": ("solve", *RUN, "--weights", "fit", "101"),
    "certify --verify": ("certify", *RUN, "--verify", "run/certify/certificate.json"),
    "run --resume": (*BASE, "--resume"),
}
READERS: Mapping[str, tuple[str, ...]] = {
    "fit": ("solve --weights fit", "evaluate", "calibrate", "retrain", "run --resume", "fit --resume"),
    "calibrate": ("retrain", "evaluate", "run --resume"),
    "retrain": ("solve", "evaluate", "certify", "certify --verify", "run --resume"),
    "evaluate": ("run --resume", "solve"),
    "certify": ("certify --verify", "evaluate", "retrain"),
    ".retrain.partial": ("run --resume", "retrain --resume"),
}
INTERRUPTED: Mapping[str, tuple[str, ...]] = {
    "run --resume": CALLS["run --resume"],
    "retrain --resume": (
        *("retrain", *RUN, "--resume", "--trainer.max_steps", "40", "--trainer.validate_every", "20"),
        *("--data.validation_problems", "64"),
    ),
}


def quick_figures() -> None:
    """Figures are empty files."""
    for name in ("training", "attention_maps", "windows", "metric_curve", "digit_accuracy"):
        setattr(figures, name, lambda path, *_, **__: Path(path).write_bytes(b"figure"))


def made(work: Path) -> dict[str, Path]:
    """A finished run, another one, and one whose retraining was interrupted."""
    runs = {name: work / name for name in ("finished", "other", "interrupted")}
    for name, seed in (("finished", "0"), ("other", "1")):
        for words in ((*BASE, "--seed", seed), ("certify", *RUN)):
            status, _, said = artifacts.call(words)
            assert status in (0, 1, 3), said
        shutil.move("run", runs[name])
    shutil.copytree(runs["finished"], "run")
    for phase in ("retrain", "evaluate", "certify"):
        shutil.rmtree(Path("run", phase))
    short = ("20" if word == "40" else word for word in INTERRUPTED["retrain --resume"] if word != "--resume")
    status, _, said = artifacts.call(tuple(short))
    assert status == 0, said
    partial = Path("run", ".retrain.partial")
    partial.mkdir()
    shutil.move(Path("run", "retrain", "progress.ckpt"), partial)
    shutil.rmtree(Path("run", "retrain"))
    shutil.move("run", runs["interrupted"])
    return runs


def fresh(base: Path) -> Path:
    """A copy of a run, in the current folder, in which nothing else is."""
    for path in Path.cwd().iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return Path(shutil.copytree(base, "run"))


def cases(runs: Mapping[str, Path], draw: random.Random) -> Iterator[tuple[str, str, str, Callable[[Path], None]]]:
    """Every damage: which run, which part of it, what is done, and how it is done to a copy."""
    for kind in ("finished", "interrupted"):
        base = runs[kind]
        for path in sorted(path for path in base.rglob("*") if path.is_file()):
            if kind == "finished" or ".partial" in str(path):
                name = str(path.relative_to(base))
                for number, (what, _) in enumerate(artifacts.damages(base, runs["other"], path, random.Random(name))):
                    yield kind, name, what, damage_of(runs["other"], name, number)
    for phase in ("fit", "calibrate", "retrain", "evaluate", "certify"):
        for number, (what, _) in enumerate(artifacts.phase_damages(runs["finished"], phase)):

            def damage(run: Path, phase: str = phase, number: int = number) -> None:
                list(artifacts.phase_damages(run, phase))[number][1]()

            yield "finished", phase, what, damage


def damage_of(other: Path, name: str, number: int) -> Callable[[Path], None]:
    """The damage of a number to a file, done to a copy of its run."""

    def damage(run: Path) -> None:
        list(artifacts.damages(run, other, run / name, random.Random(name)))[number][1]()

    return damage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--sealed", type=int, default=60, help="changes of each record whose hash is made right")
    parser.add_argument("--only", default="", help="files whose paths hold this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=HERE / "artifacts.json")
    options = parser.parse_args()
    draw, start = random.Random(options.seed), time.perf_counter()
    results = options.results.resolve()
    quick_figures()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name).resolve()
        (work / "here").mkdir()
        os.chdir(work / "here")
        runs = made(work)
        expected = {}
        for kind, calls in (("finished", CALLS), ("interrupted", INTERRUPTED)):
            for command, words in calls.items():
                expected[kind, command] = artifacts.done(command, words, fresh(runs[kind]))
                print(kind, command, expected[kind, command].status, flush=True)
        tried = []
        for kind, part, what, damage in cases(runs, draw):
            if options.only in part:
                calls = CALLS if kind == "finished" else INTERRUPTED
                readers = READERS[Path(part).parts[0]]
                tried += [(kind, part, what, damage, command, calls[command]) for command in readers]
        if len(tried) > options.cases:
            tried = draw.sample(tried, options.cases)
        verdicts: Counter[str] = Counter()
        faults: list[dict[str, Any]] = []
        for kind, part, what, damage, command, words in tried:
            run = fresh(runs[kind])
            whole = artifacts.snapshot(Path.cwd())
            damage(run)
            before = artifacts.snapshot(Path.cwd())
            result = artifacts.done(command, words, run)
            wrong = artifacts.fault(result, expected[kind, command], before, artifacts.snapshot(Path.cwd()), whole)
            verdicts[wrong or ("refused" if result.status == 2 else "the same outcome")] += 1
            count = sum(verdicts.values())
            if count % 100 == 0:
                print(f"{count} of {len(tried)}: {dict(verdicts)}", flush=True)
                save_json(results, {"summary": {"cases": count, "verdicts": dict(verdicts)}, "faults": faults})
            if wrong:
                said = result.said.splitlines()[-6:]
                faults.append({"file": part, "damage": what, "command": command, "fault": wrong, "said": said})
                print(part, "|", what, "|", command, "|", wrong, "|", said[-1:], flush=True)
        sealed: Counter[str] = Counter()
        for phase in ("fit", "calibrate", "retrain", "evaluate", "certify"):
            path = Path("run", phase, "record.json")
            fresh(runs["finished"])
            for what, damage in artifacts.sealed_changes(path, random.Random(phase), options.sealed):
                command = draw.choice(READERS[phase])
                fresh(runs["finished"])
                damage()
                status, _, said = artifacts.call(CALLS[command])
                wrong = status == -1 or "Traceback" in said
                sealed["raises" if wrong else str(status)] += 1
                if wrong:
                    last = said.splitlines()[-6:]
                    faults.append(
                        {"file": str(path), "damage": what, "command": command, "fault": "sealed", "said": last}
                    )
                    print(path, "|", what, "|", command, "| sealed |", last[-1:], flush=True)
        os.chdir(HERE)
    summary = {"cases": len(tried), "verdicts": dict(verdicts), "sealed": dict(sealed)}
    summary |= {"files": len({part for _, part, *_ in tried}), "seconds": round(time.perf_counter() - start)}
    save_json(results, {"summary": summary, "faults": faults})
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
