"""Every position method on addition: how soon it interpolates, how far it extrapolates, alone and inside a window.

Each file of `configs/positions/` that is of plain addition names a method; the toolkit's own sinusoids of place and
segment are one more, and a model of Mamba blocks, which has no attention. All are trained with seed 0 on 1 to 6 digits,
and evaluated to 10 times that, in three settings:

* `decoder-only`: two causal layers read `source target` as one string, which is what most of the methods are for;
* `encoder-decoder`: one layer of encoder, one of decoder;
* `window`: a decoder of one layer, inside the window that was calibrated once for all from the toolkit's vanilla model,
  with the method beside it.

Without a window a model trains until it interpolates, 8,000 steps at most, inside one until `abc retrain --until
validated` ends it, 3,000 at most; all with the same rate of learning in a setting.

What is in the results already is skipped, and trainings that were interrupted go on. `show.py` makes the figures and
the table.

    python experiments/position_methods/run.py --processes 2
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

import abc_toolkit
from abc_toolkit.errors import UserError
from abc_toolkit.models.base import Architecture
from abc_toolkit.phases.training import ArchitectureChanges
from abc_toolkit.positions import PositionMethod
from abc_toolkit.runs.description import describe, rebuild
from abc_toolkit.runs.folder import PROGRESS, Run
from abc_toolkit.tasks import Addition
from abc_toolkit.training.loop import TrainerSettings
from abc_toolkit.training.module import Optimizer

HERE = Path(__file__).parent
CONFIGS = HERE.parent.parent / "configs" / "positions"
SETTINGS: Mapping[str, Architecture] = {
    "decoder-only": Architecture(num_decoder_layers=2, backbone="decoder-only"),
    "encoder-decoder": Architecture(num_encoder_layers=1),
    "window": Architecture(),
}
MAMBA = "mamba"
SEED = 0
EVALUATION = {"length": "3,6,9,12,18,24,36,48,60", "samples": 500, "sets": "uniform,carry", "overwrite": True}


def methods() -> dict[str, PositionMethod]:
    """The methods by the names of their files."""
    found: dict[str, PositionMethod] = {"place_and_segment": Architecture().positions}
    for path in sorted(CONFIGS.glob("*.yaml")):
        config = yaml.safe_load(path.read_text())
        if config["task"] == {"class_path": "abc_toolkit.tasks.Addition"}:
            found[path.stem] = rebuild(config["fit"]["model"]["position"], PositionMethod)
    return found


def architecture(name: str, setting: str) -> Architecture:
    """What is trained."""
    if name == MAMBA:
        return replace(SETTINGS[setting], backbone="mamba")
    return replace(SETTINGS[setting], position=methods()[name])


def base(runs: Path) -> Path:
    """The run whose window all share; it is made if it is not there."""
    path = runs / "base"
    if not Run(path).has("fit"):
        abc_toolkit.fit(Addition(), run=path, seed=SEED, overwrite=True)
    if not Run(path).has("calibrate"):
        abc_toolkit.calibrate(run=path, overwrite=True)
    return path


def attempt(name: str, setting: str, runs: Path) -> dict[str, Any]:
    """Trains a method in a setting and evaluates it."""
    start = time.perf_counter()
    sizes, path = architecture(name, setting), runs / setting / name
    phase = "retrain" if setting == "window" else "fit"
    shared: dict[str, Any] = {"run": path, "seed": SEED}
    if setting == "window" and not path.exists():
        shutil.copytree(runs / "base", path)
    resume = (Run(path).partial(phase) / PROGRESS).exists()
    try:
        if Run(path).has(phase):
            pass  # it was only evaluated no more
        elif phase == "fit":
            trainer, optimizer = TrainerSettings(max_steps=8000), Optimizer(learning_rate=1e-3)
            abc_toolkit.fit(Addition(), model=sizes, optimizer=optimizer, trainer=trainer, resume=resume, **shared)
        else:
            assert sizes.position is not None
            beside, trainer = ArchitectureChanges(position=sizes.position), TrainerSettings(max_steps=3000)
            abc_toolkit.retrain(model=beside, until="validated", trainer=trainer, resume=resume, **shared)
        evaluated = abc_toolkit.evaluate(run=path, weights=phase, **EVALUATION)
    except UserError as error:
        return {"error": str(error)}
    record = Run(path).record(phase)
    history = json.loads((path / phase / "training.json").read_text())
    trained = {key: record["results"][key] for key in ("steps", "reached", "step_seconds")}
    trained |= record["results"]["metrics"]
    validation = [[point["step"], point["exact_match"]] for point in history["validation"]]
    rows = [
        {"set": row.suite, "length": row.length, "samples": row.samples, row.metric: row.value}
        for row in evaluated.rows
    ]
    seconds = time.perf_counter() - start
    return trained | {"validation": validation, "rows": rows, "seconds": seconds, "versions": record["versions"]}


def started(name: str, setting: str, runs: Path) -> dict[str, Any]:
    """An attempt in a process of its own."""
    command = [sys.executable, __file__, "--here", "--methods", name, "--settings", setting, "--runs", str(runs)]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = (done.stdout if not done.returncode else done.stderr).strip().splitlines()
    return {"error": lines[-1]} if done.returncode else json.loads(lines[-1])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [*methods(), MAMBA]
    parser.add_argument("--methods", nargs="*", default=names, choices=names)
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs") / "position_methods")
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    parser.add_argument("--here", action="store_true", help="one attempt in this process, its result printed")
    settings = parser.parse_args(arguments)
    if settings.here:
        print(json.dumps(attempt(settings.methods[0], settings.settings[0], settings.runs)))
        return
    results = json.loads(settings.results.read_text()) if settings.results.exists() else []
    there = {(result["setting"], result["method"]) for result in results}
    work = [(name, kind) for kind in settings.settings for name in settings.methods if (kind, name) not in there]
    work = [(name, kind) for name, kind in work if name != MAMBA or kind == "decoder-only"]
    if any(kind == "window" for _, kind in work):
        base(settings.runs)

    def one(item: tuple[str, str]) -> dict[str, Any]:
        name, kind = item
        own = describe(architecture(name, kind))
        return {"setting": kind, "method": name, "model": own, "seed": SEED} | started(name, kind, settings.runs)

    with ThreadPoolExecutor(settings.processes) as pool:
        for done in as_completed([pool.submit(one, item) for item in work]):
            result = done.result()
            results.append(result)
            settings.results.write_text(json.dumps(results, indent=1))
            said = result.get("error") or f"{result['steps']} steps, {100 * result['exact_match']:.2f} % validated"
            print(f"{result['setting']} {result['method']}: {said}", flush=True)


if __name__ == "__main__":
    main()
