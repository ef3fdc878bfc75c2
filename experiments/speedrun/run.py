"""From nothing to a certified adder: how long it takes, the start of the process included.

A recipe is fitted, calibrated, retrained and certified in one process of its own on one thread, as a user's script
would do it; its wall time is taken from outside. Recipes differ from the shipped one as `RECIPES` says. What is in the
results already is skipped; `show.py` makes the table.

    python experiments/speedrun/run.py --recipes shipped fastest --seeds 0 1 2
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
# What each recipe tells the phases, by the path of the setting.
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "two layers, until validated": {"fit.model.num_decoder_layers": 2, "retrain.until": "validated"},
    "two layers": {"fit.model.num_decoder_layers": 2},
    "until validated": {"retrain.until": "validated"},
    "shipped": {},
    "trained on 4 digits": {"task.max_length": 4},
    "vanilla to 95 %": {"fit.stopping.exact_match": 0.95},
    "validated each 50 steps": {"fit.trainer.validate_every": 50, "retrain.trainer.validate_every": 50},
    "vanilla to 95 %, validated each 50 steps": {
        "fit.stopping.exact_match": 0.95,
        "fit.trainer.validate_every": 50,
        "retrain.trainer.validate_every": 50,
    },
}


def attempt(recipe: str, seed: int) -> dict[str, Any]:
    """Does it all in this process; what came of it, and how long each part took, in seconds."""
    start = time.perf_counter()
    from dataclasses import replace

    import abc_toolkit
    from abc_toolkit.models.base import Architecture
    from abc_toolkit.phases.training import FIT_STOPPING, RETRAIN_STOPPING
    from abc_toolkit.tasks import Addition
    from abc_toolkit.training.loop import TrainerSettings

    task = Addition()
    settings: dict[str, dict[str, Any]] = {
        "fit": {"seed": seed, "trainer": TrainerSettings(), "stopping": FIT_STOPPING, "model": Architecture()},
        "calibrate": {},
        "retrain": {"trainer": TrainerSettings(), "stopping": RETRAIN_STOPPING},
    }
    for path, value in RECIPES[recipe].items():
        phase, name, *inner = path.split(".")
        if phase == "task":
            task = replace(task, **{name: value})
        elif inner:
            settings[phase][name] = replace(settings[phase][name], **{inner[0]: value})
        else:
            settings[phase][name] = value
    result: dict[str, Any] = {"start": time.perf_counter() - start}
    settings["fit"]["task"] = task
    with tempfile.TemporaryDirectory() as folder:
        for phase in ("fit", "calibrate", "retrain", "certify"):
            start = time.perf_counter()
            done = getattr(abc_toolkit, phase)(run=Path(folder) / "run", **settings.get(phase, {}))
            result[phase] = time.perf_counter() - start
            if phase in ("fit", "retrain"):
                result[f"{phase}_steps"] = done.trained.steps
    return result | {"verdict": done.verdict, "assignments": done.assignments, "smallest_margin": done.smallest_margin}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--seeds", nargs="*", type=int, default=range(10))
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    parser.add_argument("--here", action="store_true", help="one attempt in this process, its result printed")
    settings = parser.parse_args()
    if settings.here:
        result = attempt(settings.recipes[0], settings.seeds[0])
        print(json.dumps(result))
        return
    results = json.loads(settings.results.read_text()) if settings.results.exists() else []
    there = {(result["recipe"], result["seed"]) for result in results}
    for recipe, seed in ((recipe, seed) for seed in settings.seeds for recipe in settings.recipes):
        if (recipe, seed) in there:
            continue
        command = [sys.executable, __file__, "--here", "--recipes", recipe, "--seeds", str(seed)]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        result = {"recipe": recipe, "seed": seed, "seconds": time.perf_counter() - start}
        lines = (done.stdout if not done.returncode else done.stderr).strip().splitlines()
        result |= {"error": lines[-1]} if done.returncode else json.loads(lines[-1])
        results.append(result)
        settings.results.write_text(json.dumps(results, indent=1))
        verdict = result.get("verdict", result.get("error"))
        print(f"{recipe}, seed {seed}: {result['seconds']:.1f} s, {verdict}", flush=True)


if __name__ == "__main__":
    main()
