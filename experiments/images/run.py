"""Images: five position methods on Fashion-MNIST, three seeds each, judged on all 10,000 test images.

Each run is `abc fit` with `configs/structures/fashion_mnist.yaml` and a position method in place of the one in it, then
`abc evaluate` of the test images. All methods get the same steps, rate and images. Nothing is chosen by looking at the
test images: the model of the last step is the one that is judged.

What is in the results already is skipped, and trainings that were interrupted go on. Seed 0 of every method comes
first, then seed 1, and so on. `show.py` makes the table.

    apt-get install dataset-fashion-mnist
    python experiments/images/run.py --processes 2
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import yaml

import abc_toolkit
from abc_toolkit.errors import UserError
from abc_toolkit.models.base import Architecture
from abc_toolkit.positions import AlgebraicPE, Learned, NoPE, PositionMethod, RoPE, Sinusoidal2D
from abc_toolkit.runs.description import describe, rebuild
from abc_toolkit.runs.files import replacing
from abc_toolkit.runs.folder import PROGRESS, Run
from abc_toolkit.tasks import ImageClassification, Task
from abc_toolkit.training.data import Data
from abc_toolkit.training.loop import TrainerSettings
from abc_toolkit.training.module import Optimizer

HERE = Path(__file__).parent
CONFIG = HERE.parent.parent / "configs" / "structures" / "fashion_mnist.yaml"
METHODS: Mapping[str, PositionMethod] = {
    "AlgebraicPE (grid)": AlgebraicPE("grid"),
    "Sinusoidal2D": Sinusoidal2D(),
    "Learned": Learned(capacity=64),
    "NoPE": NoPE(),
    "RoPE": RoPE(),
}
SEEDS = range(3)


def attempt(method: str, seed: int, steps: int | None, images: Path | None, runs: Path) -> dict[str, Any]:
    """Trains and evaluates one run.

    Args:
        method: The position method.
        seed: The seed.
        steps: Training steps in place of the configuration's.
        images: A folder with the images in place of the configuration's.
        runs: Where the run's folder goes.
    """
    start = time.perf_counter()
    config = yaml.safe_load(CONFIG.read_text())
    task, fit = rebuild(config["task"], Task), config["fit"]
    assert isinstance(task, ImageClassification)
    task = task if images is None else replace(task, path=images)
    architecture = replace(rebuild(fit["model"], Architecture), position=METHODS[method])
    trainer = rebuild(fit["trainer"], TrainerSettings)
    if steps is not None:
        trainer = replace(trainer, max_steps=steps, validate_every=min(steps, trainer.validate_every))
    run_folder = runs / method / str(seed)
    if not Run(run_folder).has("fit"):
        abc_toolkit.fit(
            task,
            run=run_folder,
            seed=seed,
            model=architecture,
            data=rebuild(fit["data"], Data),
            optimizer=rebuild(fit["optimizer"], Optimizer),
            trainer=trainer,
            resume=(Run(run_folder).partial("fit") / PROGRESS).exists(),
        )
    (row,) = abc_toolkit.evaluate(run=run_folder, length="1x", accelerator="auto", overwrite=True).rows
    record = Run(run_folder).record("fit")
    return {
        "model": describe(architecture),
        "accuracy": row.value,
        "low": row.low,
        "high": row.high,
        "test_images": row.samples,
        "validation_accuracy": record["results"]["metrics"]["accuracy"],
        "steps": record["results"]["steps"],
        "step_seconds": record["results"]["step_seconds"],
        "seconds": time.perf_counter() - start,
        "versions": record["versions"],
    }


def in_own_process(method: str, seed: int, chosen: argparse.Namespace) -> dict[str, Any]:
    """An attempt in a process of its own."""
    command = [
        sys.executable,
        __file__,
        "--here",
        "--methods",
        method,
        "--seeds",
        str(seed),
        "--runs",
        str(chosen.runs),
    ]
    command += ["--steps", str(chosen.steps)] if chosen.steps is not None else []
    command += ["--images", str(chosen.images)] if chosen.images is not None else []
    done = subprocess.run(command, capture_output=True, text=True)
    lines = (done.stdout if not done.returncode else done.stderr).strip().splitlines()
    return {"error": lines[-1]} if done.returncode else json.loads(lines[-1])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS)
    parser.add_argument("--steps", type=int, help="training steps in place of the configuration's")
    parser.add_argument("--images", type=Path, help="folder with the images in place of the configuration's")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs") / "images")
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    parser.add_argument("--here", action="store_true", help="one attempt in this process, its result printed")
    chosen = parser.parse_args(arguments)
    if chosen.here:
        try:
            found = attempt(chosen.methods[0], chosen.seeds[0], chosen.steps, chosen.images, chosen.runs)
        except UserError as error:
            found = {"error": str(error)}
        print(json.dumps(found))
        return
    results = json.loads(chosen.results.read_text()) if chosen.results.exists() else []
    there = {(result["method"], result["seed"]) for result in results}
    work = [(method, seed) for seed, method in product(chosen.seeds, chosen.methods) if (method, seed) not in there]
    with ThreadPoolExecutor(chosen.processes) as pool:
        waiting = {pool.submit(in_own_process, *item, chosen): item for item in work}
        for done in as_completed(waiting):
            method, seed = waiting[done]
            result = done.result()
            if "error" in result:
                print(f"{method} {seed}: {result['error']}", flush=True)
                continue
            results.append({"method": method, "seed": seed} | result)
            with replacing(chosen.results) as temporary:
                temporary.write_text(json.dumps(results, indent=1))
            print(f"{method} {seed}: {100 * result['accuracy']:.2f} % ({result['seconds']:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
