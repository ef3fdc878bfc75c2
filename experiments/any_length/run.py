"""Evaluates the models of `experiments/pipeline` at 100, 1,000 and 10,000 times the training length.

A run that does not exist is trained first, with `abc run --config TASK --seed SEED`. A run that is in the results is
skipped, so an interrupted sweep goes on.

    python experiments/any_length/run.py --seeds 0 1 2 3 4 --jobs 2
"""

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from abc_toolkit.phases.measure import evaluate_models
from abc_toolkit.runs.files import save_json
from abc_toolkit.runs.folder import Run
from abc_toolkit.tasks.digits.base import SETS

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
TASKS = ("successor", "addition", "multiplication", "parity")
SAMPLES = {"100x": 250, "1000x": 25, "10000x": 3}  # problems of each of the four sets


def evaluate(task: str, seed: int, folder: Path) -> dict:
    """Exact match of the two models of a run on every set, and how long each length took."""
    torch.set_num_threads(1)
    if not Run(folder).has("retrain"):
        command = [Path(sys.executable).parent / "abc", "run", "--config", task, "--seed", str(seed), "--run", folder]
        subprocess.run([*map(str, command), *(["--resume"] if folder.exists() else [])], check=True)
    run_folder = Run(folder)
    trained_on = run_folder.task("fit")
    models = {phase: run_folder.load_model(phase) for phase in ("fit", "retrain")}
    record = run_folder.record("retrain")
    result: dict = {"task": task, "seed": seed, "versions": record["versions"], "commit": record["commit"]}
    result |= {"rows": [], "seconds": {}}
    for spec, samples in SAMPLES.items():
        start = time.perf_counter()
        rows = evaluate_models(
            trained_on, models, trained_on.lengths(spec), SETS, samples, "parallel", seed, torch.device("cpu")
        ).rows
        result["rows"] += [row.plain() for row in rows]
        result["seconds"][spec] = time.perf_counter() - start
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="*", default=TASKS)
    parser.add_argument("--seeds", nargs="*", type=int, default=range(5))
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, each on one thread")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "pipeline")
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    settings = parser.parse_args()
    results = json.loads(settings.results.read_text()) if settings.results.exists() else []
    there = {(result["task"], result["seed"]) for result in results}
    work = [(task, seed) for seed in settings.seeds for task in settings.tasks if (task, seed) not in there]
    with ProcessPoolExecutor(settings.jobs) as pool:
        running = [pool.submit(evaluate, task, seed, settings.runs / f"{task}-{seed}") for task, seed in work]
        for finished in as_completed(running):
            result = finished.result()
            results.append(result)
            save_json(settings.results, sorted(results, key=lambda r: (TASKS.index(r["task"]), r["seed"])))
            worst = min(row["value"] for row in result["rows"] if row["weights"] == "retrain")
            took = ", ".join(f"{spec} {seconds:.0f} s" for spec, seconds in result["seconds"].items())
            print(f"{result['task']} {result['seed']}: worst {worst:.4f} ({took})", flush=True)


if __name__ == "__main__":
    main()
