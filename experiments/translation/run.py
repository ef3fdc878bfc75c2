"""English to German with five position methods: BLEU on pages of LibreOffice's help that no method was trained on.

Each run is `abc fit` with `configs/text/translation.yaml` and a position method in place of the one in it, on the pairs
that `prepare.py` writes. Validation is on the pages of `valid`. The pages of `test` are translated once, by beam search
with 4 beams and a length penalty of 0.6 as in the study, and greedily. All methods get the same steps, rate, batches
and seed.

What is in the results already is skipped, and trainings that were interrupted go on. `show.py` makes the table.

    python experiments/translation/prepare.py
    python experiments/translation/run.py --processes 2
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

import abc_toolkit
from abc_toolkit.errors import UserError
from abc_toolkit.models.base import Architecture, DecodingModel
from abc_toolkit.models.decoding import Search, beam_search, decode_problems, greedy
from abc_toolkit.phases.measure import evaluation_problems
from abc_toolkit.positions import AlgebraicPE, Learned, PositionMethod, RoPE, ShawRelative, Sinusoidal
from abc_toolkit.runs.description import describe, rebuild
from abc_toolkit.runs.files import replacing, save_text
from abc_toolkit.runs.folder import PROGRESS, Run
from abc_toolkit.tasks import Task, Translation
from abc_toolkit.tasks.objective import Stopping
from abc_toolkit.training.data import Data
from abc_toolkit.training.loop import TrainerSettings
from abc_toolkit.training.module import Optimizer

HERE = Path(__file__).parent
CONFIG = HERE.parent.parent / "configs" / "text" / "translation.yaml"
METHODS: Mapping[str, PositionMethod] = {
    "Sinusoidal": Sinusoidal(("raw",)),
    "Learned": Learned(capacity=512),
    "ShawRelative": ShawRelative(window=100, cross=True),
    "RoPE": RoPE(cross=True),
    "AlgebraicPE": AlgebraicPE(decay=0.98, cross=True),
}
SEED = 0
BEAMS = 4
LENGTH_PENALTY = 0.6
SHOWN = 10  # translations that are kept to be read


def bleu(model: DecodingModel, task: Translation, search: Search, samples: int | None) -> tuple[float, str]:
    """BLEU on held-out pairs, and some of them with their translations: three lines each."""
    number = task.num_samples if samples is None else min(samples, task.num_samples)
    statistics: list[torch.Tensor] = []
    shown: list[str] = []
    for problems in evaluation_problems(task, task.max_length, task.suites[0], number, SEED):
        decoded = decode_problems(model, task, problems, search)
        statistics.append(task.statistics(decoded, problems))
        for rows in zip(problems.inputs, problems.targets, decoded, strict=True):
            if len(shown) < SHOWN:
                shown.append("".join(f"{task.line(row)}\n" for row in rows))
    return task.score(torch.cat(statistics).sum(dim=0)), "\n".join(shown)


def attempt(method: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """Trains one run and translates the test part."""
    start = time.perf_counter()
    config = yaml.safe_load(CONFIG.read_text())
    fit = config["fit"]
    task = replace(
        rebuild(config["task"], Task),
        source_path=chosen.text / "train.en",  # type: ignore[call-arg]
        target_path=chosen.text / "train.de",
        held_out_source_path=chosen.text / "valid.en",
        held_out_target_path=chosen.text / "valid.de",
        vocabulary=chosen.text / "subwords.json",
    )
    assert isinstance(task, Translation)
    architecture = replace(rebuild(fit["model"], Architecture), position=METHODS[method])
    trainer = rebuild(fit["trainer"], TrainerSettings)
    if chosen.steps is not None:
        trainer = replace(trainer, max_steps=chosen.steps, validate_every=min(chosen.steps, trainer.validate_every))
    folder = chosen.runs / method / str(SEED)
    if not Run(folder).has("fit"):
        abc_toolkit.fit(
            task,
            run=folder,
            seed=SEED,
            model=architecture,
            data=rebuild(fit["data"], Data),
            optimizer=rebuild(fit["optimizer"], Optimizer),
            stopping=rebuild(fit["stopping"], Stopping),
            trainer=trainer,
            resume=(Run(folder).partial("fit") / PROGRESS).exists(),
        )
    record = Run(folder).record("fit")
    model = Run(folder).load_model("fit")
    assert isinstance(model, DecodingModel)
    test = replace(task, held_out_source_path=chosen.text / "test.en", held_out_target_path=chosen.text / "test.de")
    by_beams, shown = bleu(
        model, test, partial(beam_search, beams=BEAMS, length_penalty=LENGTH_PENALTY), chosen.samples
    )
    save_text(chosen.runs / f"{method}.txt", shown)  # beside the runs: no text of the help enters the results
    return {
        "bleu": by_beams,
        "bleu_greedy": bleu(model, test, greedy, chosen.samples)[0],
        "valid_perplexity": record["results"]["metrics"]["perplexity"],
        "pairs": {"train": len(test.text.training), "test": len(test.text.held_out)},
        "too_long": {"train": test.text.training.too_long, "test": test.text.held_out.too_long},
        "samples": chosen.samples,
        "steps": record["results"]["steps"],
        "step_seconds": record["results"]["step_seconds"],
        "seconds": time.perf_counter() - start,
        "model": describe(architecture),
        "data_files": {Path(path).name: value for path, value in test.data_files().items()},
        "versions": record["versions"],
    }


def in_own_process(method: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """An attempt in a process of its own."""
    command = [sys.executable, __file__, "--here", "--methods", method, "--text", chosen.text, "--runs", chosen.runs]
    command += [] if chosen.steps is None else ["--steps", chosen.steps]
    command += [] if chosen.samples is None else ["--samples", chosen.samples]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    lines = (done.stdout if not done.returncode else done.stderr).strip().splitlines()
    return {"error": lines[-1]} if done.returncode else json.loads(lines[-1])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--steps", type=int, help="training steps in place of the configuration's")
    parser.add_argument("--samples", type=int, help="test pairs; all, if not given")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--text", type=Path, default=Path("runs") / "translation", help="what prepare.py wrote")
    parser.add_argument("--runs", type=Path, default=Path("runs") / "translation" / "runs")
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    parser.add_argument("--here", action="store_true", help="one attempt in this process, its result printed")
    chosen = parser.parse_args(arguments)
    if chosen.here:
        try:
            found = attempt(chosen.methods[0], chosen)
        except UserError as error:
            found = {"error": str(error)}
        print(json.dumps(found))
        return
    results = json.loads(chosen.results.read_text()) if chosen.results.exists() else []
    there = {result["method"] for result in results}
    work = [method for method in chosen.methods if method not in there]

    def one(method: str) -> dict[str, Any]:
        return {"method": method, "seed": SEED} | in_own_process(method, chosen)

    with ThreadPoolExecutor(chosen.processes) as pool:
        for done in as_completed([pool.submit(one, method) for method in work]):
            result = done.result()
            if "error" in result:
                print(f"{result['method']}: {result['error']}", flush=True)
                continue
            results.append(result)
            with replacing(chosen.results) as temporary:
                temporary.write_text(json.dumps(results, indent=1, ensure_ascii=False), encoding="utf-8")
            print(f"{result['method']}: BLEU {result['bleu']:.2f} ({result['seconds']:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
