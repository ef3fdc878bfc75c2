"""What a training step of the paper's configuration costs, against the same step with PyTorch's own dropout.

The configuration is `configs/paper/addition.yaml`: batches of 512 problems, one encoder and six decoder layers, dropout
0.3. Both take the same batches, in turn; the ratio of the medians is printed. PyTorch draws Bernoulli numbers one by
one on a single thread, and its attention with dropout writes out what every query scores for every key of the batch.

    python experiments/benchmarks/paper_step.py --threads 2 --steps 2 --repeats 3
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
import yaml
from torch import Tensor
from torch.nn import functional

from abc_toolkit.models.base import Architecture, predict
from abc_toolkit.runs.description import rebuild
from abc_toolkit.runs.folder import build_model
from abc_toolkit.tasks import Task
from abc_toolkit.training.data import Data, TrainingBatches

CONFIG = Path(__file__).parents[2] / "configs" / "paper" / "addition.yaml"


def _attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, probability: float) -> Tensor:
    added = bias[None] if bias is not None and bias.dim() == 3 else bias
    return functional.scaled_dot_product_attention(q, k, v, added, dropout_p=probability, scale=1.0)


@contextmanager
def of_pytorch() -> Iterator[None]:
    """Dropout and attention with dropout are PyTorch's own."""
    with ExitStack() as stack:
        stack.enter_context(patch("abc_toolkit.models.attention._with_dropout", _attention))
        stack.enter_context(patch("abc_toolkit.models.dropout.dropout", functional.dropout))
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    config = yaml.safe_load(CONFIG.read_text())
    task = rebuild(config["task"], Task)
    model = build_model(task, rebuild(config["fit"]["model"], Architecture), None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    batches = iter(TrainingBatches(task, rebuild(config["fit"]["data"], Data), 0, lambda: 0))

    def seconds(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            batch = next(batches)
            logits = predict(model, batch, task.layout(batch.shape))
            loss = functional.cross_entropy(logits.flatten(0, 1), batch.target.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return (time.perf_counter() - start) / steps

    seconds(1)
    times: dict[str, list[float]] = {"PyTorch's dropout": [], "toolkit": []}
    for _ in range(chosen.repeats):
        with of_pytorch():
            times["PyTorch's dropout"].append(seconds(chosen.steps))
        times["toolkit"].append(seconds(chosen.steps))
    first, *_ = medians = [statistics.median(found) for found in times.values()]
    print(f"{'step':<20}{'seconds':>10}{'spread':>18}{'ratio':>8}")
    for (name, found), median in zip(times.items(), medians, strict=True):
        print(f"{name:<20}{median:>10.2f}{f'{min(found):.2f} to {max(found):.2f}':>18}{median / first:>8.3f}")


if __name__ == "__main__":
    main()
