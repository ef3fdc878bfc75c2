"""Language models with thirteen position methods: trained on windows of 128 bytes, perplexity to 2,048.

Each run is `abc fit` with `configs/text/language_model.yaml`, a position method in place of the one in it and half of
its steps, then `abc evaluate` at 1, 2, 4, 8 and 16 times the trained length. All methods get the same steps, rate and
windows, and are scored on the same blocks of the held-out text. Nothing is chosen by looking beyond the trained length.
Every method has seed 0; NoPE, RoPE, Kerple and DAPE over Kerple have seeds 1 and 2 as well.

What is in the results already is skipped, and trainings that were interrupted go on. `show.py` makes the table and the
figure.

    python experiments/language_models/run.py --processes 2
"""

import argparse
import json
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
from abc_toolkit.positions import DAPE, FIRE, ALiBi, CoPE, DAPEv2, KerpleLog, NoPE, PositionMethod, RoPE, T5RelativeBias
from abc_toolkit.runs.description import describe, rebuild
from abc_toolkit.runs.files import replacing
from abc_toolkit.runs.folder import PROGRESS, Run
from abc_toolkit.tasks import LanguageModel, Task
from abc_toolkit.training.data import Data
from abc_toolkit.training.loop import TrainerSettings
from abc_toolkit.training.module import Optimizer

HERE = Path(__file__).parent
CONFIG = HERE.parent.parent / "configs" / "text" / "language_model.yaml"
TRAINED = 128
# FIRE has the threshold of the DAPE study's code, half the trained length, and under DAPE its leaky ReLU.
METHODS: Mapping[str, PositionMethod] = {
    "NoPE": NoPE(),
    "RoPE": RoPE(),
    "Kerple": KerpleLog(),
    "DAPE-Kerple": DAPE(KerpleLog()),
    "ALiBi": ALiBi(),
    "T5": T5RelativeBias(),
    "FIRE": FIRE(threshold=TRAINED / 2),
    "CoPE": CoPE(),
    "DAPE-ALiBi": DAPE(ALiBi()),
    "DAPE-FIRE": DAPE(FIRE(threshold=TRAINED / 2, activation="leaky_relu")),
    "DAPEv2-Kerple": DAPEv2(KerpleLog()),
    "DAPEv2-ALiBi": DAPEv2(ALiBi()),
    "DAPEv2-FIRE": DAPEv2(FIRE(threshold=TRAINED / 2, activation="leaky_relu")),
}
OF_THREE_SEEDS = ("NoPE", "RoPE", "Kerple", "DAPE-Kerple")
STEPS = 1000
LENGTHS = "1x,2x,4x,8x,16x"
SAMPLES = 64  # windows a length; of each the last 32 bytes count


def attempt(method: str, seed: int, chosen: argparse.Namespace) -> dict[str, Any]:
    """Trains and evaluates one run."""
    start = time.perf_counter()
    config = yaml.safe_load(CONFIG.read_text())
    fit = config["fit"]
    task = rebuild(config["task"], Task)
    assert isinstance(task, LanguageModel)
    task = task if chosen.text is None else replace(task, path=chosen.text)
    architecture = replace(rebuild(fit["model"], Architecture), position=METHODS[method])
    trainer = replace(rebuild(fit["trainer"], TrainerSettings), max_steps=chosen.steps, accelerator=chosen.accelerator)
    path = chosen.runs / method / str(seed)
    if not Run(path).has("fit"):
        abc_toolkit.fit(
            task,
            run=path,
            seed=seed,
            model=architecture,
            data=rebuild(fit["data"], Data),
            optimizer=rebuild(fit["optimizer"], Optimizer),
            trainer=trainer,
            resume=(Run(path).partial("fit") / PROGRESS).exists(),
        )
    measured = abc_toolkit.evaluate(
        run=path, length=LENGTHS, samples=chosen.samples, accelerator=chosen.accelerator, overwrite=True
    )
    record = Run(path).record("fit")
    keep = ("length", "samples", "metric", "value", "low", "high")
    return {
        "rows": [{key: getattr(row, key) for key in keep} for row in measured.rows],
        "loss": record["results"]["loss"],
        "steps": record["results"]["steps"],
        "step_seconds": record["results"]["step_seconds"],
        "seconds": time.perf_counter() - start,
        "accelerator": chosen.accelerator,
        "data_files": record["data_files"],
        "versions": record["versions"],
    }


def started(method: str, seed: int, chosen: argparse.Namespace) -> dict[str, Any]:
    """An attempt in a process of its own."""
    command = [sys.executable, __file__, "--here", "--methods", method, "--seeds", str(seed), "--runs", chosen.runs]
    command += ["--steps", chosen.steps, "--samples", chosen.samples, "--accelerator", chosen.accelerator]
    command += [] if chosen.text is None else ["--text", chosen.text]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
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
    parser.add_argument("--methods", nargs="*", default=METHODS, choices=METHODS)
    parser.add_argument("--seeds", nargs="*", type=int, default=range(3))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--text", type=Path, help="another text than that of the configuration")
    parser.add_argument("--runs", type=Path, default=Path("runs") / "language_models")
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    parser.add_argument("--here", action="store_true", help="one attempt in this process, its result printed")
    chosen = parser.parse_args(arguments)
    if chosen.here:
        try:
            found = attempt(chosen.methods[0], chosen.seeds[0], chosen)
        except UserError as error:
            found = {"error": str(error)}
        print(json.dumps(found))
        return
    results = json.loads(chosen.results.read_text()) if chosen.results.exists() else []
    there = {(result["method"], result["seed"]) for result in results}
    work = [(method, seed) for seed in chosen.seeds for method in chosen.methods]
    work = [item for item in work if item not in there and (item[1] == 0 or item[0] in OF_THREE_SEEDS)]

    def one(item: tuple[str, int]) -> dict[str, Any]:
        method, seed = item
        facts = {"method": method, "seed": seed, "position": describe(METHODS[method])}
        return facts | started(method, seed, chosen)

    with ThreadPoolExecutor(chosen.processes) as pool:
        for done in as_completed([pool.submit(one, item) for item in work]):
            result = done.result()
            said = f"{result['method']} {result['seed']}"
            if "error" in result:
                print(f"{said}: {result['error']}", flush=True)
                continue
            results.append(result)
            with replacing(chosen.results) as temporary:
                temporary.write_text(json.dumps(rounded(results), separators=(",", ":")))
            values = ", ".join(f"{row['value']:.3g}" for row in result["rows"])
            print(f"{said}: perplexity at {LENGTHS}: {values} ({result['seconds']:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
