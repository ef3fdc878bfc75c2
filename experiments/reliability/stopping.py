"""Compares rules by which `fit` may end, on training lengths alone, by whether calibration takes the model.

Each seed is trained once, on and on, and every rule is asked of its validations: steps do not depend on the rule that
ends them. Rules that let the learning rate fall first (`decay N`) are trained anew. A model that a rule ends with is
calibrated on several draws of held-out problems, the first of which is that of `abc calibrate`, which asks for the
threshold less a slack; its own window is looked for on the first. Results are kept seed by seed, so that an interrupted
comparison goes on where it was.

    python experiments/reliability/stopping.py --configs multiplication --seeds 10 11 12
"""

import argparse
import copy
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from abc_toolkit.calibration import Places
from abc_toolkit.calibration.capture import capture, chunks
from abc_toolkit.calibration.method import find_window
from abc_toolkit.cli.main import main as abc
from abc_toolkit.models.base import Model, predict
from abc_toolkit.phases.calibrate import SAMPLING_SLACK
from abc_toolkit.runs.files import save_json
from abc_toolkit.runs.folder import Run
from abc_toolkit.seeds import seeded
from abc_toolkit.tasks import Task
from abc_toolkit.training import callbacks, loop
from abc_toolkit.training.data import validation_problems
from abc_toolkit.windows import Window

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CALIBRATE = 101  # what `abc calibrate` draws its problems for
# A rule by name: how many validations in a row must reach the threshold, on how many draws of held-out problems.
RULES = {"once": (1, 1), "twice": (2, 1), "three times": (3, 1), "two draws": (1, 2), "two draws twice": (2, 2)}


class Recorder(callbacks.StopByValidation):
    """Keeps every validation and the weights at those that a rule may end with; ends when all rules have been met."""

    rules: dict[str, int]
    weights: dict[int, dict[str, torch.Tensor]]

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        type(self).made = self
        self.shares: list[tuple[float, float]] = []
        self.rules, self.weights = {}, {}
        # Another draw of held-out problems, which no rule of today looks at.
        self.others = validation_problems(pl_module.task, seeded(pl_module.seed, 999).initial_seed(), 2560)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_validation_end(trainer, pl_module)
        trainer.should_stop, pl_module.decay_from = False, None
        model = copy.deepcopy(pl_module.averaged).cpu().eval()
        self.shares.append(
            (self.history.validation[-1]["exact_match"], exact_match(model, pl_module.task, self.others))
        )
        for name, (times, draws) in RULES.items():
            lately = self.shares[-times:]
            reached = len(lately) == times and all(
                share >= self.stopping.exact_match for shares in lately for share in shares[:draws]
            )
            if reached and name not in self.rules:
                self.rules[name] = trainer.global_step
                self.weights[trainer.global_step] = model.state_dict()
        trainer.should_stop = len(self.rules) == len(RULES)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.weights[trainer.global_step] = copy.deepcopy(pl_module.averaged).cpu().state_dict()
        for name in RULES:  # a rule that is not met ends with the last step
            self.rules.setdefault(name, trainer.global_step)


@torch.no_grad()
def exact_match(model: Model, task: Task, batches: list) -> float:
    right = 0
    for batch in batches:
        found = predict(model, batch, task.layout(batch.shape)).argmax(-1)
        right += int((found == batch.target).all(dim=1).sum())
    return right / sum(map(len, batches))


def calibrated(task: Task, model: Model, threshold: float, seed: int, draws: int) -> dict:
    """Whether calibration takes a model: what it solves of several draws, and whether its window is sufficient."""
    shares, sufficient, rules = [], True, 0
    for draw in range(draws):
        purpose = (CALIBRATE,) if draw == 0 else (CALIBRATE, 7000 + draw)
        batches = validation_problems(task, seeded(seed, *purpose).initial_seed(), 2560)
        if draw:
            shares.append(exact_match(model, task, batches))
            continue
        pieces = [batch[i : i + 256] for batch in batches for i in range(0, len(batch), 256)]
        maps = capture(model, chunks(task, pieces, torch.device("cpu")))
        shares.append(sum(maps.solved.values()) / sum(map(len, batches)))
        sizes = model.architecture
        layers = (sizes.num_encoder_layers, sizes.num_decoder_layers, sizes.num_heads)
        frame = Window(type(task).__name__, *layers, rules=(), calibration={}, weights="0" * 64)
        found = find_window(Places(), maps, task, frame, seeded(seed, CALIBRATE, 1))
        sufficient, rules = found.conflict is None, len(found.window.rules)
    taken = shares[0] >= threshold - SAMPLING_SLACK and sufficient
    return {
        "taken": taken,
        "sufficient": sufficient,
        "rules": rules,
        "exact_match": shares,
        "refused_draws": sum(share < threshold - SAMPLING_SLACK for share in shares),
    }


def fitted(config: str, seed: int, folder: Path, *options: str) -> None:
    name, _, base = config.partition(" ")
    chosen = [f"--task.base={base}"] if base else []
    words = [
        "fit",
        "--trainer.progress_bar=false",
        "--config",
        str(ROOT / "configs" / f"{name}.yaml"),
        *chosen,
        "--seed",
        str(seed),
    ]
    if status := abc([*words, "--run", str(folder), "--overwrite", *options]):
        raise SystemExit(f"abc fit ended with exit status {status}")


def compared(config: str, seed: int, decays: list[int], draws: int, alone: bool) -> dict:
    """What every rule ends with, or the decays alone, for one configuration and seed."""
    result: dict[str, Any] = {"config": config, "seed": seed, "rules": {}}
    with tempfile.TemporaryDirectory() as place:
        folder, start = Path(place) / "run", time.perf_counter()
        run = Run(folder)
        if not alone:
            with mock.patch.object(loop, "StopByValidation", Recorder):
                fitted(config, seed, folder, "--stopping.decay_steps=0")
            watch, task, model = Recorder.made, run.task("fit"), run.load_model("fit")
            result["history"] = watch.shares
            done: dict[int, dict] = {}
            for name, steps in watch.rules.items():
                if steps not in done:
                    model.load_state_dict(watch.weights[steps])
                    done[steps] = calibrated(task, model, watch.stopping.exact_match, seed, draws)
                result["rules"][name] = {"steps": steps} | done[steps]
        for steps in decays:
            fitted(config, seed, folder, f"--stopping.decay_steps={steps}")
            record = run.record("fit")
            threshold = record["arguments"]["stopping"]["exact_match"]
            found = calibrated(run.task("fit"), run.load_model("fit"), threshold, seed, draws)
            result["rules"][f"decay {steps}"] = {"steps": record["results"]["steps"]} | found
        result["seconds"] = time.perf_counter() - start
    return result


def show(results: list[dict]) -> None:
    """A line for each configuration and rule: how many windows, refusals over all draws, steps."""
    for config in dict.fromkeys(result["config"] for result in results):
        own = [result for result in results if result["config"] == config]
        for name in own[0]["rules"]:
            rows = [result["rules"][name] for result in own if name in result["rules"]]
            shares = [share for row in rows for share in row["exact_match"]]
            print(
                f"{config:24} {name:16} windows {sum(row['taken'] for row in rows)} of {len(rows)}, draws refused "
                f"{sum(row['refused_draws'] for row in rows)} of {len(shares)}, least {100 * min(shares):.2f} %, mean "
                f"{100 * sum(shares) / len(shares):.3f} %, steps {sum(row['steps'] for row in rows) / len(rows):.0f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configs", nargs="*", default=["multiplication"])
    parser.add_argument("--seeds", nargs="*", type=int, default=range(10, 20))
    parser.add_argument("--decays", nargs="*", type=int, default=[])
    parser.add_argument("--alone", action="store_true", help="the decays alone")
    parser.add_argument("--draws", type=int, default=5, help="draws of held-out problems that a model is asked")
    parser.add_argument("--results", type=Path, default=HERE / "stopping.json")
    settings = parser.parse_args()
    sys.argv = ["abc"]  # LightningCLI warns of arguments that it is not meant to see
    torch.set_num_threads(1)
    results = json.loads(settings.results.read_text(encoding="utf-8")) if settings.results.exists() else []
    there = {(result["config"], result["seed"]) for result in results}
    for seed in settings.seeds:
        for config in settings.configs:
            if (config, seed) not in there:
                results.append(compared(config, seed, settings.decays, settings.draws, settings.alone))
                save_json(settings.results, results)
                print(json.dumps(results[-1] | {"history": None}), flush=True)
    show(results)


if __name__ == "__main__":
    main()
