"""Calibrated windows for a model of the usual kind: decoder-only beside encoder-decoder, and a GPT without a window.

Each run of `decoder-only` and `encoder-decoder` is `abc run` with a shipped configuration and that backbone: fit,
calibrate, retrain, evaluate at the training length and at ten times it on all suites, certify, and the independent
checker. `gpt` is `abc fit` and `abc evaluate` of a decoder-only model of two layers with RoPE, on the same data.

What is in the results already is skipped, and interrupted runs go on. Seed 0 of everything comes first. `show.py` makes
the table.

    python experiments/decoder_only/run.py --processes 2
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import product
from pathlib import Path
from typing import Any

from abc_toolkit.runs.files import replacing

HERE = Path(__file__).parent
CONFIGS = HERE.parent.parent / "configs"
TASKS = ("addition", "multiplication", "successor", "parity", "comparison", "multiplication_nxm")
BACKBONES = ("decoder-only", "encoder-decoder", "gpt")
SEEDS = range(5)
LONG = "multiplication_nxm"  # its targets have thousands of tokens at ten times the length
CLI = HERE.parent.parent / "cli.py"


def abc(*words: str) -> None:
    """Runs a command; its last line of complaint is raised."""
    done = subprocess.run([sys.executable, str(CLI), *words], capture_output=True, text=True)
    if done.returncode not in (0, 1, 3):  # a verdict is no failure
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"status {done.returncode}")


def attempt(task: str, backbone: str, seed: int, samples: int, runs: Path) -> dict[str, Any]:
    """Makes one run and reads what it left."""
    folder = runs / task / backbone / str(seed)
    config, common = str(CONFIGS / f"{task}.yaml"), ("--run", str(folder), "--seed", str(seed))
    own_samples = samples if task != LONG else min(samples, 100 if backbone != "gpt" else 10)
    measured = ("--length", "1x,10x", "--samples", str(own_samples))
    measured += ("--weights", "retrain") if task == LONG and backbone != "gpt" else ()
    start = time.perf_counter()
    if backbone == "gpt":
        model = ("--model.backbone", "decoder-only", "--model.num_decoder_layers", "2", "--model.position", "RoPE")
        if not (folder / "fit" / "record.json").exists():
            go_on = ("--resume",) if (folder / ".fit.partial" / "progress.ckpt").exists() else ()
            abc("fit", "--config", config, *common, *model, *go_on)
        abc("evaluate", "--run", str(folder), *measured, "--overwrite")
    else:
        options = [f"--evaluate.{word.removeprefix('--')}" if word.startswith("--") else word for word in measured]
        go_on = ("--resume",) if folder.exists() else ()
        abc("run", "--config", config, *common, "--fit.model.backbone", backbone, *options, *go_on)
    records = {
        phase: json.loads((folder / phase / "record.json").read_text())
        for phase in ("fit", "calibrate", "retrain", "evaluate", "certify")
        if (folder / phase / "record.json").exists()
    }
    rows = json.loads((folder / "evaluate" / "results.json").read_text())
    keep = ("weights", "suite", "length", "shape", "samples", "value")
    found: dict[str, Any] = {
        "rows": [{key: row[key] for key in keep} for row in rows if row["metric"] == "exact_match"],
        "phases": {phase: record["results"] for phase, record in records.items()},
        "seconds": time.perf_counter() - start,
        "versions": records["fit"]["versions"],
    }
    certificate = folder / "certify" / "certificate.json"
    if certificate.exists():
        window = json.loads((folder / "retrain" / "window.json").read_text())
        found["rules"] = [{key: rule[key] for key in ("site", "layer", "head")} for rule in window["rules"]]
        stated = json.loads(certificate.read_text())
        found["verdict"] = stated["verdict"]
        found |= {name: stated[name] for name in ("assignments", "smallest_margin") if name in stated}
        checker = [sys.executable, "-m", "abc_toolkit.checker", str(certificate)]
        found["checker"] = subprocess.run(checker, capture_output=True, text=True).returncode
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=TASKS)
    parser.add_argument("--backbones", nargs="*", choices=BACKBONES, default=BACKBONES)
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs") / "decoder_only")
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    chosen = parser.parse_args(arguments)
    results = json.loads(chosen.results.read_text()) if chosen.results.exists() else []
    there = {(result["task"], result["backbone"], result["seed"]) for result in results}
    wanted = product(chosen.seeds, chosen.tasks, chosen.backbones)
    work = [(task, backbone, seed) for seed, task, backbone in wanted if (task, backbone, seed) not in there]
    with ThreadPoolExecutor(chosen.processes) as pool:
        waiting = {pool.submit(attempt, *item, chosen.samples, chosen.runs): item for item in work}
        for done in as_completed(waiting):
            task, backbone, seed = waiting[done]
            said = f"{task} {backbone} {seed}"
            try:
                result = done.result()
            except RuntimeError as error:
                print(f"{said}: {error}", flush=True)
                continue
            results.append({"task": task, "backbone": backbone, "seed": seed} | result)
            with replacing(chosen.results) as temporary:
                temporary.write_text(json.dumps(results, separators=(",", ":")))
            weights = "fit" if backbone == "gpt" else "retrain"
            far = max(row["length"] for row in result["rows"])
            worst = min(row["value"] for row in result["rows"] if row["weights"] == weights and row["length"] == far)
            verdict = result.get("verdict", "no certificate")
            print(f"{said}: {100 * worst:.4g} % at {far}, {verdict} ({result['seconds']:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
