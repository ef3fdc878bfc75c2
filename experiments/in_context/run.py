"""Functions learned in context: seven position methods on six classes of functions, to 8 times the trained points.

Each run is `abc fit` with a configuration of `configs/functions/` and a position method in place of the one in it, then
`abc evaluate` of fresh prompts at 1, 2, 4 and 8 times the trained points, and of the attacks and the attention at 8
times. All methods get the same steps, rate and batches. Nothing is chosen by looking beyond the trained points. Linear
regression has five seeds, the other classes three.

What is in the results already is skipped, and trainings that were interrupted go on. Seed 0 of everything comes first,
then seed 1, and so on. `show.py` makes the figures and the tables.

    python experiments/in_context/run.py --processes 2
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
from abc_toolkit.positions import FIRE, ALiBi, DynamicYaRN, NoPE, PositionMethod, RoPE, YaRN
from abc_toolkit.runs.description import describe, rebuild
from abc_toolkit.runs.files import replacing
from abc_toolkit.runs.folder import PROGRESS, Run
from abc_toolkit.tasks import Task
from abc_toolkit.training.loop import TrainerSettings
from abc_toolkit.training.module import Optimizer

HERE = Path(__file__).parent
CONFIGS = HERE.parent.parent / "configs" / "functions"
CLASSES = ("linear_regression", "conjunction", "disjunction", "sparse_disjunction", "majority", "int_halfspace")
NUM_SEEDS = {name: 5 if name == "linear_regression" else 3 for name in CLASSES}
STEPS = 1500  # of every run; the configurations of Boolean classes take more
MAMBA = "Mamba"
MAMBA_LAYERS = 4  # a step of them takes twice as long as one of the six layers of attention
PROMPTS, ATTACKED = 1280, 100


def methods(num_tokens: int) -> Mapping[str, PositionMethod | None]:
    """The study's position methods, for prompts of so many trained tokens; `None` for Mamba.

    In the study YaRN stretches by 8. Its dynamic form begins to stretch past 8 times the trained tokens, that is, not
    at the lengths tested; here it begins past the trained ones, as in its paper.
    """
    return {
        "NoPE": NoPE(),
        "RoPE": RoPE(),
        "YaRN": YaRN(factor=8.0, original_length=num_tokens),
        "DynamicYaRN": DynamicYaRN(original_length=num_tokens),
        "ALiBi": ALiBi(),
        "FIRE": FIRE(),
        MAMBA: None,
    }


METHODS = tuple(methods(2))


def settings(name: str) -> tuple[Task, Architecture, Optimizer, TrainerSettings]:
    """Task and settings of a configuration."""
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    fit = config["fit"]
    task = rebuild(config["task"], Task)
    architecture = replace(rebuild(fit["model"], Architecture), backbone="decoder-only")
    return task, architecture, rebuild(fit["optimizer"], Optimizer), rebuild(fit["trainer"], TrainerSettings)


def architecture(name: str, method: str) -> Architecture:
    """The model of a run."""
    task, sizes, _, _ = settings(name)
    if method == MAMBA:
        return Architecture(num_decoder_layers=MAMBA_LAYERS, model_dim=sizes.model_dim, backbone="mamba")
    return replace(sizes, position=methods(2 * task.max_length)[method])


def attempt(name: str, method: str, seed: int, runs: Path) -> dict[str, Any]:
    """Trains and evaluates one run."""
    start = time.perf_counter()
    task, _, optimizer, trainer = settings(name)
    path = runs / name / method / str(seed)
    resume = (Run(path).partial("fit") / PROGRESS).exists()
    shared: dict[str, Any] = {"optimizer": optimizer, "trainer": replace(trainer, max_steps=STEPS), "resume": resume}
    if not Run(path).has("fit"):
        abc_toolkit.fit(task, run=path, seed=seed, model=architecture(name, method), **shared)
    whole = abc_toolkit.evaluate(run=path, length="1x,2x,4x,8x", samples=PROMPTS, accelerator="auto", overwrite=True)
    curves = {curve["weights"]: curve for curve in json.loads((path / "evaluate" / "curves.json").read_text())}
    suites = ["duplicates", "lost_in_the_middle", *(["attention"] if method != MAMBA else [])]
    attacked = abc_toolkit.evaluate(
        run=path, length="8x", samples=ATTACKED, sets=suites, accelerator="auto", overwrite=True
    )
    seen = path / "evaluate" / "attention.json"
    record = Run(path).record("fit")
    keep = ("suite", "length", "samples", "metric", "value", "low", "high", "weights")
    return {
        "rows": [{key: getattr(row, key) for key in keep} for row in (*whole.rows, *attacked.rows)],
        "curve": curves["fit"]["values"],
        "baselines": {key: curve["values"] for key, curve in curves.items() if key != "fit"} if seed == 0 else {},
        "attention": json.loads(seen.read_text())[0]["layers"] if seen.exists() and seed == 0 else [],
        "steps": record["results"]["steps"],
        "step_seconds": record["results"]["step_seconds"],
        "seconds": time.perf_counter() - start,
        "versions": record["versions"],
    }


def started(name: str, method: str, seed: int, runs: Path) -> dict[str, Any]:
    """An attempt in a process of its own."""
    command = [sys.executable, __file__, "--here", "--classes", name, "--methods", method, "--seeds", str(seed)]
    done = subprocess.run([*command, "--runs", str(runs)], capture_output=True, text=True)
    lines = (done.stdout if not done.returncode else done.stderr).strip().splitlines()
    return {"error": lines[-1]} if done.returncode else json.loads(lines[-1])


def rounded(value: Any) -> Any:
    """Plain data with numbers of five digits, which is more than their intervals leave certain."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", nargs="*", default=CLASSES, choices=CLASSES)
    parser.add_argument("--methods", nargs="*", default=METHODS, choices=METHODS)
    parser.add_argument("--seeds", nargs="*", type=int, default=range(max(NUM_SEEDS.values())))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs") / "in_context")
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    parser.add_argument("--here", action="store_true", help="one attempt in this process, its result printed")
    chosen = parser.parse_args(arguments)
    if chosen.here:
        try:
            found = attempt(chosen.classes[0], chosen.methods[0], chosen.seeds[0], chosen.runs)
        except UserError as error:
            found = {"error": str(error)}
        print(json.dumps(found))
        return
    results = json.loads(chosen.results.read_text()) if chosen.results.exists() else []
    there = {(result["class"], result["method"], result["seed"]) for result in results}
    work = [(name, method, seed) for seed, name, method in product(chosen.seeds, chosen.classes, chosen.methods)]
    work = [item for item in work if item not in there and item[2] < NUM_SEEDS[item[0]]]

    def one(item: tuple[str, str, int]) -> dict[str, Any]:
        name, method, seed = item
        facts = {"class": name, "method": method, "seed": seed, "model": describe(architecture(name, method))}
        return facts | started(name, method, seed, chosen.runs)

    with ThreadPoolExecutor(chosen.processes) as pool:
        for done in as_completed([pool.submit(one, item) for item in work]):
            result = done.result()
            said = f"{result['class']} {result['method']} {result['seed']}"
            if "error" in result:
                print(f"{said}: {result['error']}", flush=True)
                continue
            results.append(result)
            with replacing(chosen.results) as temporary:
                temporary.write_text(json.dumps(rounded(results), separators=(",", ":")))
            last = [row for row in result["rows"] if row["suite"] == "ood" and row["metric"].startswith("last")]
            values = ", ".join(f"{row['value']:.3g}" for row in last if row["weights"] == "fit")
            print(f"{said}: last point at 1x, 2x, 4x, 8x: {values} ({result['seconds']:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
