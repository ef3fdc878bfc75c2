"""Trees and sequences: position methods on the tasks of *Algebraic Positional Encodings* (arXiv 2312.16045).

Trees have a mean depth of 4 less a half: seven methods on four tasks, with the target breadth-first and depth-first.
Sequences have 30 symbols in the mean: five methods on three tasks, judged at 1, 2 and 4 times that. Each run is
`abc fit` with a configuration of `configs/structures/` and a position method in place of the one in it, then
`abc evaluate` of 2,000 fresh problems. All methods get the same steps, rate and batches, and three seeds.

Rotations are those of the released code, one pass: at the fixpoint both orders are the same. `--fixpoint` does these.

What is in the results already is skipped, and trainings that were interrupted go on. Seed 0 of everything comes first,
then seed 1, and so on. `show.py` makes the tables.

    python experiments/structures/run.py --study trees --processes 2
    python experiments/structures/run.py --study sequences --processes 2
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
from abc_toolkit.positions import AlgebraicPE, Learned, PositionMethod, RoPE, ShawRelative, Sinusoidal, TreePE
from abc_toolkit.runs.description import describe, rebuild
from abc_toolkit.runs.files import replacing
from abc_toolkit.runs.folder import PROGRESS, Run
from abc_toolkit.tasks import Task, TreeRotate
from abc_toolkit.tasks.objective import Stopping
from abc_toolkit.training.loop import TrainerSettings
from abc_toolkit.training.module import Optimizer

HERE = Path(__file__).parent
CONFIGS = HERE.parent.parent / "configs" / "structures"
OF_SEQUENCES: Mapping[str, PositionMethod] = {
    "Sinusoidal": Sinusoidal(("raw",)),
    "Learned": Learned(capacity=512),
    "ShawRelative": ShawRelative(window=100, cross=True),
    "RoPE": RoPE(cross=True),
    "AlgebraicPE": AlgebraicPE(decay=0.98, cross=True),
}
METHODS: Mapping[str, Mapping[str, PositionMethod]] = {
    "sequences": OF_SEQUENCES,
    "trees": OF_SEQUENCES
    | {"TreePE": TreePE(depth=16), "AlgebraicPE (tree)": AlgebraicPE("tree", decay=0.98, cross=True)},
}
TASKS: Mapping[str, Sequence[tuple[str, str]]] = {
    "sequences": [(name, "") for name in ("copy", "repeat", "reverse")],
    "trees": list(product(("copy", "rotate", "c3", "operations"), ("breadth", "depth"))),
}
LENGTHS = {"sequences": "1x,2x,4x", "trees": "1x"}
SEEDS = range(3)
SAMPLES = 2000


def chosen_task(study: str, name: str, order: str, fixpoint: bool) -> tuple[Task, Mapping[str, Any]]:
    """A task, and the settings of its configuration for `abc fit`."""
    config = yaml.safe_load((CONFIGS / f"{study.removesuffix('s')}_{name}.yaml").read_text())
    task = rebuild(config["task"], Task)
    if study == "trees":
        task = replace(task, order=order)  # type: ignore[call-arg]
    if isinstance(task, TreeRotate):
        task = replace(task, to_fixpoint=fixpoint)
    return task, config["fit"]


def attempt(study: str, name: str, order: str, method: str, seed: int, chosen: argparse.Namespace) -> dict[str, Any]:
    """Trains and evaluates one run."""
    start = time.perf_counter()
    task, fit = chosen_task(study, name, order, chosen.fixpoint)
    architecture = replace(rebuild(fit["model"], Architecture), position=METHODS[study][method])
    trainer = rebuild(fit["trainer"], TrainerSettings)
    if chosen.steps is not None:
        trainer = replace(trainer, max_steps=chosen.steps, validate_every=min(chosen.steps, trainer.validate_every))
    folder = chosen.runs / study / f"{name}{order}{'fixpoint' * chosen.fixpoint}" / method / str(seed)
    if not Run(folder).has("fit"):
        abc_toolkit.fit(
            task,
            run=folder,
            seed=seed,
            model=architecture,
            optimizer=rebuild(fit["optimizer"], Optimizer),
            stopping=rebuild(fit["stopping"], Stopping),
            trainer=trainer,
            resume=(Run(folder).partial("fit") / PROGRESS).exists(),
        )
    found = abc_toolkit.evaluate(run=folder, length=LENGTHS[study], samples=SAMPLES, accelerator="auto", overwrite=True)
    record = Run(folder).record("fit")
    keep = ("length", "samples", "metric", "value", "low", "high")
    return {
        "task": describe(task),
        "model": describe(architecture),
        "rows": [{key: getattr(row, key) for key in keep} for row in found.rows],
        "steps": record["results"]["steps"],
        "step_seconds": record["results"]["step_seconds"],
        "seconds": time.perf_counter() - start,
        "versions": record["versions"],
    }


def in_own_process(item: tuple[str, str, str, int], chosen: argparse.Namespace) -> dict[str, Any]:
    """An attempt in a process of its own."""
    name, order, method, seed = item
    command = [sys.executable, __file__, "--here", "--study", chosen.study, "--tasks", name, "--orders", order]
    command += ["--methods", method, "--seeds", str(seed), "--runs", str(chosen.runs)]
    command += ["--steps", str(chosen.steps)] if chosen.steps is not None else []
    command += ["--fixpoint"] if chosen.fixpoint else []
    done = subprocess.run(command, capture_output=True, text=True)
    lines = (done.stdout if not done.returncode else done.stderr).strip().splitlines()
    return {"error": lines[-1]} if done.returncode else json.loads(lines[-1])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", default="trees", choices=list(METHODS))
    parser.add_argument("--tasks", nargs="*", help="all, if not given")
    parser.add_argument("--orders", nargs="*", help="breadth, depth; both, if not given")
    parser.add_argument("--methods", nargs="*", choices=list(METHODS["trees"]), help="all, if not given")
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS)
    parser.add_argument("--steps", type=int, help="training steps in place of the configurations'")
    parser.add_argument("--fixpoint", action="store_true", help="rotations go on until none is left")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs") / "structures")
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    parser.add_argument("--here", action="store_true", help="one attempt in this process, its result printed")
    chosen = parser.parse_args(arguments)
    tasks = [
        (name, order)
        for name, order in TASKS[chosen.study]
        if name in (chosen.tasks or [name]) and order in (chosen.orders or [order])
    ]
    methods = chosen.methods or list(METHODS[chosen.study])
    if chosen.here:
        try:
            found = attempt(chosen.study, *tasks[0], methods[0], chosen.seeds[0], chosen)
        except UserError as error:
            found = {"error": str(error)}
        print(json.dumps(found))
        return
    results = json.loads(chosen.results.read_text()) if chosen.results.exists() else []
    keys = ("study", "name", "order", "fixpoint", "method", "seed")
    there = {tuple(result[key] for key in keys) for result in results}
    work = [(*task, method, seed) for seed, task, method in product(chosen.seeds, tasks, methods)]
    work = [item for item in work if (chosen.study, *item[:2], chosen.fixpoint, *item[2:]) not in there]
    with ThreadPoolExecutor(chosen.processes) as pool:
        waiting = {pool.submit(in_own_process, item, chosen): item for item in work}
        for done in as_completed(waiting):
            name, order, method, seed = waiting[done]
            result, said = done.result(), f"{name} {order} {method} {seed}"
            if "error" in result:
                print(f"{said}: {result['error']}", flush=True)
                continue
            facts = (chosen.study, name, order, chosen.fixpoint, method, seed)
            results.append(dict(zip(keys, facts, strict=True)) | result)
            with replacing(chosen.results) as temporary:
                temporary.write_text(json.dumps(results, separators=(",", ":")))
            values = [f"{row['value']:.4g}" for row in result["rows"] if row["metric"] == "perplexity"]
            print(f"{said}: perplexity {', '.join(values)} ({result['seconds']:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
