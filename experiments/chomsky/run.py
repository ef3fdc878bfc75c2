"""The fifteen tasks of *Neural Networks and the Chomsky Hierarchy* (arXiv 2207.02098), with windows and without.

`windows`: `abc run` with a configuration of `configs/chomsky/`, that is fit, calibrate, retrain, and the certificate
and its independent check. Then the retrained model is measured at lengths from 41 to 500, as the benchmark does, by
the accuracy of each token of the answer, averaged over lengths, and as this toolkit does, by whole answers. The target
has steps, from which the answer is read off, and the model is told the layout.

The position methods: the benchmark's own protocol (`unaided.py`), with the same width, without a window and without
steps: the model reads the input and as many blanks as the answer has tokens, looks both ways, and the answer is read at
the blanks. It is trained on lengths up to 40.

What is in the results already is skipped, and interrupted runs go on. Seed 0 of everything comes first. `show.py` makes
the table.

    python experiments/chomsky/run.py --processes 2
    python experiments/chomsky/run.py --methods NoPE RoPE ALiBi FIRE Randomized --seeds 0
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import product
from pathlib import Path
from typing import Any

import torch
import yaml
from unaided import Unaided, length_of, pool

import abc_toolkit
from abc_toolkit.errors import UserError
from abc_toolkit.models.base import Architecture, predict
from abc_toolkit.models.decoding import greedy, planned, solves
from abc_toolkit.positions import FIRE, ALiBi, NoPE, PositionMethod, RandomizedPositions, RoPE
from abc_toolkit.runs.files import replacing
from abc_toolkit.runs.folder import Run
from abc_toolkit.seeds import seeded
from abc_toolkit.tasks.base import UNIFORM
from abc_toolkit.tasks.digits.base import DigitTask
from abc_toolkit.tasks.objective import Stopping
from abc_toolkit.training.data import Data
from abc_toolkit.training.loop import TrainerSettings
from abc_toolkit.training.module import Optimizer

HERE = Path(__file__).parent
CONFIGS = HERE.parent.parent / "configs" / "chomsky"
CLI = HERE.parent.parent / "cli.py"
WINDOWS = "windows"
METHODS: Mapping[str, PositionMethod] = {
    "NoPE": NoPE(),
    "RoPE": RoPE(),
    "ALiBi": ALiBi(),
    "FIRE": FIRE(),
    "Randomized": RandomizedPositions(RoPE(), 2048),
}
SEEDS = range(5)
LENGTHS = (41, 60, 80, 100, 150, 200, 300, 400, 500)
STEPS = 2000
TOKENS = 400_000  # of the targets of a length that are decoded; at least one problem is
MOST = 200  # problems of a length


def accuracy_of_tokens(said: str, right: str) -> float:
    """Share of the right answer's tokens that are said at their place."""
    return sum(a == b for a, b in zip(said, right, strict=False)) / len(right)


@torch.no_grad()
def measured(task: DigitTask, run: Run, lengths: Sequence[int], seed: int) -> list[dict[str, Any]]:
    """Whole answers and tokens of answers of a retrained model, length by length."""
    model, rows = run.load_model("retrain"), []
    for length in lengths:
        shape = length_of(task, length)
        count = max(1, min(MOST, TOKENS // task.num_tokens(shape)[1]))
        problems = task.sample(seeded(seed, length), count, shape, UNIFORM)
        whole = tokens = 0.0
        for batch, plan in planned(model, problems, task.layout(shape), "parallel"):
            right = solves(model, batch, plan)
            whole, tokens = whole + float(right.sum()), tokens + float(right.sum())
            wrong = batch[~right]
            if len(wrong):
                decoded = greedy(model, wrong.source, model.plan(task.layout(shape), len(wrong)))
                vocabulary = task.vocabulary
                for said, true in zip(decoded, wrong.target, strict=True):
                    answers = (task.answer(vocabulary.decode(row)) for row in (said, true))
                    tokens += accuracy_of_tokens(*answers)
        rows.append({"length": shape[0], "problems": count, "whole": whole / count, "tokens": tokens / count})
    return rows


def inside_a_window(name: str, seed: int, lengths: Sequence[int], runs: Path) -> dict[str, Any]:
    """A run of the pipeline, its certificate, and its accuracy beyond the benchmark's training lengths."""
    folder = runs / name / WINDOWS / str(seed)
    go_on = ["--resume"] if folder.exists() else []
    words = ["run", "--config", str(CONFIGS / f"{name}.yaml"), "--run", str(folder), "--seed", str(seed)]
    words += ["--evaluate.length", "1x", "--evaluate.samples", "200", *go_on]
    done = subprocess.run([sys.executable, str(CLI), *words], capture_output=True, text=True)
    if done.returncode not in (0, 1, 3):  # a verdict is no failure
        raise UserError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"status {done.returncode}")
    run = Run(folder)
    task = run.task("retrain")
    assert isinstance(task, DigitTask)
    found: dict[str, Any] = {"trained_to": task.max_length, "rows": measured(task, run, lengths, seed)}
    found["steps"] = {phase: run.record(phase)["results"]["steps"] for phase in ("fit", "retrain")}
    found["tokens_of_target"] = task.num_tokens(length_of(task, lengths[-1]))[1]
    certificate = folder / "certify" / "certificate.json"
    if certificate.exists():
        stated = json.loads(certificate.read_text())
        found["verdict"], found["reason"] = stated["verdict"], stated["reason"]
        found |= {key: stated[key] for key in ("assignments", "smallest_margin", "meaning") if key in stated}
        checker = [sys.executable, "-m", "abc_toolkit.checker", str(certificate)]
        found["checker"] = subprocess.run(checker, capture_output=True, text=True).returncode
    return found


@torch.no_grad()
def without(name: str, method: str, seed: int, lengths: Sequence[int], steps: int, runs: Path) -> dict[str, Any]:
    """The benchmark's protocol with a position method."""
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    benchmark = config["task"]["class_path"].rpartition(".")[2]
    task = Unaided(benchmark, 40)
    with torch.enable_grad(), abc_toolkit.trusting("unaided"):
        result = abc_toolkit.fit(
            task,
            run=runs / name / method / str(seed),
            seed=seed,
            model=Architecture(2, 1, 64, 8, 256, position=METHODS[method], backbone="encoder-only"),
            data=Data(batch_size=64, validation_problems=640),
            optimizer=Optimizer(learning_rate=1e-3, schedule="linear"),
            stopping=Stopping(exact_match=2.0),
            trainer=TrainerSettings(max_steps=steps, validate_every=min(500, steps), accelerator="cpu"),
            overwrite=True,
        )
    rows = []
    for length in (40, *lengths):
        shape = length_of(task.own, length)
        source, answer = pool(benchmark, 40, shape, UNIFORM, 100)
        batch = task.batch(shape, source, answer)
        right = []
        for piece in batch.split(20):
            said = predict(result.model, piece, task.layout(shape)).argmax(-1)[:, source.shape[1] :]
            right.append(said == piece.targets[:, source.shape[1] :])
        found = torch.cat(right).float()
        whole = float(found.all(dim=1).float().mean())
        rows.append({"length": shape[0], "problems": len(found), "whole": whole, "tokens": float(found.mean())})
    return {"trained_to": 40, "rows": rows, "steps": {"fit": result.trained.steps}}


def in_own_process(item: tuple[int, str, str], chosen: argparse.Namespace) -> dict[str, Any]:
    """An attempt in a process of its own."""
    seed, name, method = item
    command = [sys.executable, __file__, "--here", "--tasks", name, "--methods", method, "--seeds", str(seed)]
    command += ["--runs", str(chosen.runs), "--steps", str(chosen.steps), "--lengths", *map(str, chosen.lengths)]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = (done.stdout if not done.returncode else done.stderr).strip().splitlines()
    return {"error": lines[-1] if lines else "no output"} if done.returncode else json.loads(lines[-1])


def main(arguments: Sequence[str] | None = None) -> None:
    names = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="*", choices=names, default=names)
    parser.add_argument("--methods", nargs="*", choices=[WINDOWS, *METHODS], default=[WINDOWS])
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS)
    parser.add_argument("--lengths", nargs="*", type=int, default=LENGTHS)
    parser.add_argument("--steps", type=int, default=STEPS, help="of the protocol without a window")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs") / "chomsky")
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    parser.add_argument("--here", action="store_true", help="one attempt in this process, its result printed")
    chosen = parser.parse_args(arguments)
    if chosen.here:
        name, method, seed = chosen.tasks[0], chosen.methods[0], chosen.seeds[0]
        start = time.perf_counter()
        try:
            if method == WINDOWS:
                found = inside_a_window(name, seed, chosen.lengths, chosen.runs)
            else:
                found = without(name, method, seed, chosen.lengths, chosen.steps, chosen.runs)
            found["seconds"] = time.perf_counter() - start
        except UserError as error:
            found = {"error": str(error)}
        print(json.dumps(found))
        return
    results = json.loads(chosen.results.read_text()) if chosen.results.exists() else []
    there = {(result["seed"], result["task"], result["method"]) for result in results}
    work = [item for item in product(chosen.seeds, chosen.tasks, chosen.methods) if item not in there]
    with ThreadPoolExecutor(chosen.processes) as workers:
        waiting = {workers.submit(in_own_process, item, chosen): item for item in work}
        for done in as_completed(waiting):
            seed, name, method = waiting[done]
            result, said = done.result(), f"{name} {method} {seed}"
            if "error" in result:
                print(f"{said}: {result['error']}", flush=True)
                continue
            results.append({"task": name, "method": method, "seed": seed} | result)
            with replacing(chosen.results) as temporary:
                temporary.write_text(json.dumps(results, separators=(",", ":")))
            beyond = [row for row in result["rows"] if row["length"] > 40]
            tokens, whole = (100 * sum(row[key] for row in beyond) / len(beyond) for key in ("tokens", "whole"))
            verdict = result.get("verdict", "no certificate")
            print(
                f"{said}: tokens {tokens:.4g} %, whole {whole:.4g} %, {verdict} ({result['seconds']:.0f} s)", flush=True
            )


if __name__ == "__main__":
    main()
