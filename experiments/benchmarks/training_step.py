"""What a training step of the toolkit costs against a bare PyTorch loop over the same model and batches.

Both take the same steps with the shipped settings, in turn, several times; the ratio of the medians is printed. With
a finished run folder, the phases' shares of its time as well.

    python experiments/benchmarks/training_step.py --steps 300 --repeats 5 --run runs/addition
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from abc_toolkit.models.base import Architecture, predict
from abc_toolkit.runs.folder import Run, build_model
from abc_toolkit.tasks import Addition
from abc_toolkit.tasks.objective import Stopping
from abc_toolkit.training.data import Data, TrainingBatches
from abc_toolkit.training.loop import TrainerSettings, Training, lightning_trainer, train
from abc_toolkit.training.module import Optimizer


def bare(steps: int) -> float:
    """Seconds a step of a loop that does only what training needs."""
    task, optimizer = Addition(), Optimizer()
    model = build_model(task, Architecture(), None)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(optimizer.averaging))
    adam = torch.optim.AdamW(
        model.parameters(),
        lr=optimizer.learning_rate,
        betas=(optimizer.beta1, optimizer.beta2),
        weight_decay=optimizer.weight_decay,
        fused=True,
    )
    batches = iter(TrainingBatches(task, Data(), 0, lambda: 0))
    start = time.perf_counter()
    for _ in range(steps):
        batch = next(batches)
        logits = predict(model, batch, task.layout(batch.shape))
        loss = functional.cross_entropy(logits.flatten(0, 1), batch.target.flatten())
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        average.update_parameters(model)
    return (time.perf_counter() - start) / steps


def toolkit(steps: int) -> float:
    """Seconds a step of the toolkit's training, its validation and saving at the end left in."""
    task = Addition()
    model = build_model(task, Architecture(), None)
    settings = TrainerSettings(max_steps=steps, validate_every=100, accelerator="cpu", progress_bar=False)
    with tempfile.TemporaryDirectory() as folder:
        asked = Training(
            "fit", task, Architecture(), Data(), Optimizer(), Stopping(exact_match=1.0, loss=0.0), settings, 0
        )
        trained = train(asked, model, folder=Path(folder), runner=lightning_trainer(settings))
    return trained.step_seconds / trained.steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--run", type=Path)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    bare(50)
    times: dict[str, list[float]] = {"bare": [], "toolkit": []}
    for _ in range(settings.repeats):
        times["bare"].append(bare(settings.steps))
        times["toolkit"].append(toolkit(settings.steps))
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{'loop':<10}{'ms a step':>12}{'spread':>18}{'ratio':>8}")
    for name, values in times.items():
        spread = f"{1e3 * min(values):.1f} to {1e3 * max(values):.1f}"
        print(f"{name:<10}{1e3 * medians[name]:>12.2f}{spread:>18}{medians[name] / medians['bare']:>8.3f}")
    if settings.run is not None:
        phases = ("fit", "calibrate", "retrain", "evaluate")
        seconds = {phase: Run(settings.run).record(phase)["results"]["seconds"] for phase in phases}
        print(f"\n{'phase':<10}{'seconds':>12}{'share':>8}")
        for phase, value in seconds.items():
            print(f"{phase:<10}{value:>12.1f}{value / sum(seconds.values()):>8.0%}")


if __name__ == "__main__":
    main()
