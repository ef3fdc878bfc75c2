"""Makes `results.md` of what `run.py` measured, with the paper's own figures beside it.

python experiments/images/show.py
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from abc_toolkit.runs.files import save_text
from abc_toolkit.sweeps.summary import half_width

HERE = Path(__file__).parent
# Kogkalidis et al. 2024 (arXiv 2312.16045): top-1 accuracy on CIFAR-10, in the two columns of its table.
PAPER = {
    "AlgebraicPE (grid)": (93.13, 94.67),
    "AlgebraicPE (sequence)": (92.68, 94.59),
    "Sinusoidal2D": (91.57, 92.79),
    "Learned": (90.86, 92.68),
}
METHODS = ("AlgebraicPE (grid)", "AlgebraicPE (sequence)", "Sinusoidal2D", "Learned", "NoPE", "RoPE")


def interval(numbers: Sequence[float]) -> str:
    """Mean over seeds, with half the width of its 95 % interval by Student's t, in per cent."""
    shown = f"{100 * mean(numbers):.2f}"
    if len(numbers) < 2:
        return shown
    return f"{shown} ± {100 * half_width(numbers):.2f}"


def report(results: Sequence[Mapping[str, Any]]) -> str:
    """The table, and what its columns are."""
    lines = [
        "# Images: results",
        "",
        "Made by `show.py` from `results.json`, which `run.py` measured. *Test* and *validation* are ours: top-1",
        "accuracy in per cent on Fashion-MNIST, means over seeds with 95 % intervals by Student's t. *Paper* has the",
        "figures of Kogkalidis et al. 2024 (arXiv 2312.16045) on CIFAR-10, of 7 layers of width 256 after 300 epochs:",
        "other images, another size, not to be compared number by number. Their table has two columns, whose headings",
        "are not known to us. Their sinusoidal 2D counts the tokens of the grid in one row in the released code.",
        "",
        "| method | seeds | test | validation | steps | paper: CIFAR-10, two columns |",
        "|---|---|---|---|---|---|",
    ]
    for method in METHODS:
        own = [result for result in results if result["method"] == method]
        paper = " / ".join(f"{value:.2f}" for value in PAPER[method]) if method in PAPER else ""
        if own:
            test, validation = (
                interval([result[key] for result in own]) for key in ("accuracy", "validation_accuracy")
            )
            lines.append(f"| {method} | {len(own)} | {test} | {validation} | {own[0]['steps']} | {paper} |")
        elif paper:
            lines.append(f"| {method} | | | | | {paper} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    results = parser.parse_args().results
    save_text(results.with_suffix(".md"), report(json.loads(results.read_text())))


if __name__ == "__main__":
    main()
