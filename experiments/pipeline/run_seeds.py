"""Runs the shipped configurations over tasks and seeds and keeps what they measured.

Each run is `abc run --config configs/TASK.yaml --seed SEED` and `abc certify`, each timed as a whole process, and then
its models at 20 and 50 times the training length, or at tables of other shapes, on 200 problems of each set. A task may
name a base as well. A run that is in the results already is skipped, so that an interrupted sweep goes on where it was.

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

from abc_toolkit.phases.measure import evaluate_models, parse_sizes
from abc_toolkit.runs.files import save_json
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
KEPT = (
    "verdict", "reason", "bound", "kinds", "assignments", "beyond_training", "examples", "smallest_margin",
    "largest_rounding", "smallest_slack", "meaning", "deviations", "outside"
)  # fmt: skip


def abc(*arguments: object) -> tuple[subprocess.CompletedProcess[str], float]:
    """One command, and how long it took."""
    start = time.perf_counter()
    command = [str(Path(sys.executable).parent / "abc"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True), time.perf_counter() - start


def run(task: str, seed: int, folder: Path, far: str, samples: int) -> dict:
    """One whole run; what it measured and how long it took."""
    name, _, base = task.partition(" ")
    options = [f"--task.base={base}"] if base else []
    config, going_on = ROOT / "configs" / f"{name}.yaml", "--resume" if folder.exists() else "--overwrite"
    finished, seconds = abc("run", "--config", config, *options, "--seed", seed, "--run", folder, going_on)
    result: dict = {"task": task, "seed": seed, "seconds": seconds, "status": finished.returncode, "rows": []}
    if finished.returncode:
        return result | {"error": finished.stderr.strip().splitlines()[-1]}
    place = Run(folder)
    certified, result["certify_seconds"] = abc("certify", "--run", folder, "--overwrite")
    certificate = json.loads((place.folder("certify") / CERTIFICATE).read_text())
    result["certificate"] = {"status": certified.returncode} | {key: certificate.get(key) for key in KEPT}
    result["phases"] = {phase: place.record(phase)["results"] for phase in ("fit", "calibrate", "retrain")}
    result["versions"] = place.record("retrain")["versions"]
    result["commit"] = place.record("retrain")["commit"]
    result["rows"] = json.loads((place.folder("evaluate") / "results.json").read_text())
    kind = place.task("fit")
    models = {phase: place.load_model(phase) for phase in ("fit", "retrain")}
    sizes = parse_sizes(FAR.get(task, far), kind)
    rows, _ = evaluate_models(kind, models, sizes, SETS, samples, "parallel", seed, torch.device("cpu"))
    result["rows"] += [row.plain() for row in rows]
    return result


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
        save_json(settings.results, sorted(results, key=lambda r: (TASKS.index(r["task"]), r["seed"])))
        worst = min((row["exact_match"] for row in result["rows"] if row["weights"] == "retrain"), default=0.0)
        verdict = result.get("certificate", {}).get("verdict", result.get("error"))
        print(f"{task} {seed}: {result['seconds']:.0f} s, worst {worst:.4f}, {verdict}", flush=True)

    with ThreadPoolExecutor(settings.jobs) as pool:
        list(pool.map(do, work))


if __name__ == "__main__":
    main()
