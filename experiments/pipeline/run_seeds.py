"""Runs the shipped configurations over tasks and seeds, and keeps a summary of what they measured in `results.json`.

Each run is `abc run --config TASK --seed SEED`, all phases but `abc certify`, which comes after it; each is timed as a
whole process. Its models are then evaluated at 20 and 50 times the training length, or on tables of other shapes, on
200 problems of each suite. A task may name a base as well. A run that is in the summary is skipped, so an interrupted
sweep goes on. The whole results stay in the run folders.

    python experiments/pipeline/run_seeds.py --seeds 0 1 2 3 4 --jobs 2
"""

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from abc_toolkit.phases.measure import evaluate_models
from abc_toolkit.runs.folder import CERTIFICATE, Run
from abc_toolkit.tasks.digits.base import SETS

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
TASKS = (
    "successor", "addition", "subtraction", "multiplication", "division", "parity", "comparison", "copy", "reverse",
    "repeat", "multi_operand_addition", "multiplication_nxm", *(f"addition_base {base}" for base in (2, 16, 36)),
    *(f"multiplication_base {base}" for base in (2, 16)),
)  # fmt: skip
FAR = {
    "multi_operand_addition": "2x500,500x2,100x100",
    "multiplication_nxm": "20x20,100x100,3x200,200x3",
}


def abc(*arguments: object) -> tuple[subprocess.CompletedProcess[str], float]:
    """One command, and how long it took."""
    start = time.perf_counter()
    command = [str(Path(sys.executable).parent / "abc"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True), time.perf_counter() - start


def run(task: str, seed: int, folder: Path, far: str, samples: int) -> dict:
    """The summary of one whole run."""
    name, _, base = task.partition(" ")
    options = [f"--task.base={base}"] if base else []
    going_on = "--resume" if folder.exists() else "--overwrite"
    phases = ("--phases", "fit,calibrate,retrain,evaluate")
    words = ("--config", name, *options, "--seed", seed, "--run", folder, *phases, going_on)
    finished, seconds = abc("run", *words)
    result: dict = {"task": task, "seed": seed, "seconds": round(seconds, 2)}
    if finished.returncode:
        return result | {"error": finished.stderr.strip().splitlines()[-1], "rows": []}
    run_folder = Run(folder)
    abc("certify", "--run", folder, "--overwrite")
    result["verdict"] = json.loads((run_folder.folder("certify") / CERTIFICATE).read_text())["verdict"]
    result["retrain_steps"] = run_folder.record("retrain")["results"]["steps"]
    result["commit"] = run_folder.record("retrain")["commit"]
    trained_on = run_folder.task("fit")
    models = {phase: run_folder.load_model(phase) for phase in ("fit", "retrain")}
    sizes = trained_on.lengths(FAR.get(task, far))
    rows = evaluate_models(trained_on, models, sizes, SETS, samples, "parallel", seed, torch.device("cpu")).rows
    near = json.loads((run_folder.folder("evaluate") / "results.json").read_text())
    return result | {"rows": summary([*near, *(row.plain() for row in rows)])}


def summary(rows: list[dict]) -> list[dict]:
    """The rows of an evaluation with the values of all suites in one: `value` maps the suite to exact match."""
    found: dict[tuple, dict] = {}
    for row in rows:
        size = tuple(row["shape"] or (row["length"],))
        kept = {name: row[name] for name in ("weights", "length", "shape", "tokens", "samples", "metric")}
        found.setdefault((row["weights"], size), kept | {"value": {}})["value"][row["suite"]] = row["value"]
    return list(found.values())


def written(results: list[dict]) -> str:
    """The summary as JSON, a line for each row."""
    runs = []
    for result in sorted(results, key=lambda result: (TASKS.index(result["task"]), result["seed"])):
        head = json.dumps({name: value for name, value in result.items() if name != "rows"})
        rows = ",\n".join(f"  {json.dumps(row)}" for row in result["rows"])
        runs.append(f'{head[:-1]}, "rows": [\n{rows}\n]}}')
    return "[" + ",\n".join(runs) + "]\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="*", default=TASKS)
    parser.add_argument("--seeds", nargs="*", type=int, default=range(5))
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, each on one thread")
    parser.add_argument("--far", default="20x,50x")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "pipeline")
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    results = json.loads(settings.results.read_text()) if settings.results.exists() else []
    there = {(result["task"], result["seed"]) for result in results}
    work = [(task, seed) for seed in settings.seeds for task in settings.tasks if (task, seed) not in there]

    def do(item: tuple[str, int]) -> None:
        task, seed = item
        result = run(task, seed, settings.runs / f"{task.replace(' ', '')}-{seed}", settings.far, settings.samples)
        results.append(result)
        settings.results.write_text(written(results))
        shares = [share for row in result["rows"] if row["weights"] == "retrain" for share in row["value"].values()]
        ending = result.get("verdict", result.get("error"))
        print(f"{task} {seed}: {result['seconds']:.0f} s, worst {min(shares, default=0.0):.4f}, {ending}", flush=True)

    with ThreadPoolExecutor(settings.jobs) as pool:
        list(pool.map(do, work))


if __name__ == "__main__":
    main()
