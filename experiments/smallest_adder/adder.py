"""The smallest adder as a module that a verifier in AdderBoard's style can call: `build_model` and `add`.

`build_model(folder)` takes one of the adders that `run.py` keeps: weights, window and certificate in one folder. Run as
a script it tests the adder on random pairs, edge cases, and two numbers of 1,000 digits.

    python experiments/smallest_adder/adder.py runs/smallest_adder/4_units/7
"""

import argparse
import json
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from abc_toolkit.errors import UserError
from abc_toolkit.models.base import Architecture
from abc_toolkit.models.decoding import solve_problems
from abc_toolkit.models.transformer import DecoderOnly
from abc_toolkit.runs.description import rebuild
from abc_toolkit.runs.weights import fill
from abc_toolkit.tasks import Addition, Task
from abc_toolkit.windows.attention import Windowed
from abc_toolkit.windows.rules import Window

FOLDER = Path(os.environ.get("SMALLEST_ADDER", Path(__file__).parent / "adder"))
EDGES = [(0, 0), (0, 1), (9_999_999_999, 0), (9_999_999_999, 1), (9_999_999_999, 9_999_999_999), (5_000_000_000,) * 2]
EDGES += [(1_111_111_111, 8_888_888_889), (1_234_567_890, 9_876_543_210), (9_999_999_999, 1_111_111_111), (1, 99_999)]


class Adder(DecoderOnly):
    """The model, with its task beside it."""

    task: Addition


def build_model(folder: Path = FOLDER) -> tuple[Adder, dict[str, Any]]:
    """The model, and what a verifier is told of it."""
    certificate = json.loads((folder / "certificate.json").read_text())
    if certificate["verdict"] != "correct":
        raise UserError(f"{folder} holds an adder that is not proved correct: choose another folder")
    task = rebuild(certificate["task"], Task, folder)
    architecture = rebuild(certificate["architecture"], Architecture, folder)
    window = Window.from_json((folder / "window.json").read_text())
    model = Adder(len(task.vocabulary), architecture, Windowed(window, architecture.positions))
    model.task = task
    fill(model, load_file(folder / "weights.safetensors"))
    params = sum(parameter.numel() for parameter in model.parameters())
    about = {
        "name": "an adder inside a window, certified at every length",
        "params": params,
        "architecture": f"decoder-only, one layer, width {architecture.model_dim}, {architecture.num_heads} heads, "
        f"{architecture.feedforward_dim} hidden units, without: {', '.join(architecture.savings)}",
        "tricks": ["a window gives the alignment", *(rule.describe() for rule in window.rules)],
    }
    return model.eval(), about


def add_all(model: Adder, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """The model's sums, decoded greedily token by token, each under its own tokens."""
    parsed = [model.task.parse(f"{a}+{b}") for a, b in pairs]
    return [int(answer) for answer in solve_problems(model, model.task, parsed)]


def add(model: Adder, a: int, b: int) -> int:
    """The model's sum of two numbers."""
    return add_all(model, [(a, b)])[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    parser.add_argument("--pairs", type=int, default=10_000)
    chosen = parser.parse_args()
    model, about = build_model(chosen.folder)
    print(f"{about['params']} parameters: {about['architecture']}")
    draw = random.Random(2025)
    pairs = [(draw.randrange(10**10), draw.randrange(10**10)) for _ in range(chosen.pairs)]
    long = [(draw.randrange(10**999, 10**1000), draw.randrange(10**999, 10**1000))]
    for name, tried in ((f"{chosen.pairs} pairs of 10 digits", pairs), ("edge cases", EDGES), ("1,000 digits", long)):
        start = time.perf_counter()
        right = sum(found == a + b for found, (a, b) in zip(add_all(model, tried), tried, strict=True))
        print(f"{name}: {right} of {len(tried)} right, {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
