"""Shows that several processes train as one does: losses and validations of the same steps, side by side.

Each case is `abc fit` with one process and with several, in a folder of its own, without dropout, which each process
draws for itself. What is compared is every loss of `training.json`, logged at each step, and every validation. Rounding
alone tells them apart, and grows with the steps. Then several processes take half of the steps and are resumed, which
must change nothing at all. What is in the results already is skipped.

    python experiments/reliability/ranks.py --processes 2 3
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from abc_toolkit.runs.files import save_json

HERE = Path(__file__).parent
CASES = {
    "parity": {"task": "Parity", "data.batch_size": 64},
    "parity, 33 in a batch": {"task": "Parity", "data.batch_size": 33},
    "addition": {"task": "Addition"},
    "multiplication, 5 in a batch": {"task": "Multiplication", "data.batch_size": 5},
    "comparison, clipped at 0.1": {"task": "Comparison", "trainer.gradient_clip": 0.1},
    "decoder-only": {"task": "Addition", "model.backbone": "decoder-only", "model.num_encoder_layers": 0},
}


def fit(case: dict, folder: Path, steps: int, processes: int, resume: bool = False) -> dict:
    """The history of one training."""
    settings = case | {
        "run": folder,
        "resume": resume,
        "model.dropout": 0,
        "stopping.exact_match": 1.0,
        "stopping.loss": 0,
    }
    settings |= {"trainer.max_steps": steps, "trainer.validate_every": 20, "trainer.log_every": 1}
    settings |= {"trainer.accelerator": "cpu", "trainer.devices": processes}
    if processes > 1:
        settings |= {"trainer.strategy": "ddp"}
    words = [f"--{name}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "abc_toolkit.cli.main", "fit", *words]
    finished = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    if finished.returncode:
        raise SystemExit(f"{' '.join(words)}: {finished.stderr}")
    return json.loads((folder / "fit" / "training.json").read_text(encoding="utf-8"))


def largest(one: list[dict], other: list[dict], key: str, share: bool = True) -> float:
    """The largest difference of a value at the same steps, as a share of it."""
    assert [point["step"] for point in one] == [point["step"] for point in other]
    pairs = [(before[key], after[key]) for before, after in zip(one, other, strict=True)]
    return max(abs(before - after) / (abs(before) if share else 1) for before, after in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--processes", type=int, nargs="*", default=[2])
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    parser.add_argument("--results", type=Path, default=HERE / "ranks.json")
    settings = parser.parse_args()
    results = json.loads(settings.results.read_text(encoding="utf-8")) if settings.results.exists() else []
    there = {(result["case"], result["processes"]) for result in results}
    for name in settings.cases:
        wanted = [processes for processes in settings.processes if (name, processes) not in there]
        if not wanted:
            continue
        with tempfile.TemporaryDirectory() as place:
            one = fit(CASES[name], Path(place) / "1", settings.steps, 1)
            for processes in wanted:
                several = fit(CASES[name], Path(place) / str(processes), settings.steps, processes)
                result = {"case": name, "processes": processes, "steps": settings.steps}
                result["first_loss"] = largest(one["train"][:1], several["train"][:1], "loss")
                result["losses"] = largest(one["train"], several["train"], "loss")
                result["validation_losses"] = largest(one["validation"], several["validation"], "loss")
                result["exact_match"] = largest(one["validation"], several["validation"], "exact_match", share=False)
                halves = Path(place) / f"{processes} resumed"
                fit(CASES[name], halves, settings.steps // 40 * 20, processes)
                resumed = fit(CASES[name], halves, settings.steps, processes, resume=True)
                result["resumed_alike"] = resumed == several
                results.append(result)
                save_json(settings.results, results)
                print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
