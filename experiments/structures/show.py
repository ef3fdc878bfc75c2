"""Makes `results.md` of what `run.py` measured, with the paper's own figures beside it.

python experiments/structures/show.py
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
SEQUENCES = ("copy", "repeat", "reverse")
TREES = tuple((name, order) for name in ("copy", "rotate", "c3", "operations") for order in ("breadth", "depth"))
METHODS = ("Sinusoidal", "TreePE", "Learned", "ShawRelative", "RoPE", "AlgebraicPE", "AlgebraicPE (tree)")
# Kogkalidis et al. 2024 (arXiv 2312.16045): perplexity, means of three seeds.
PAPER_SEQUENCES = {
    "Sinusoidal": (1.01, 1.85, 3.92),
    "Learned": (1.11, 3.66, 4.62),
    "ShawRelative": (1.00, 1.44, 4.08),
    "RoPE": (1.00, 1.08, 1.09),
    "AlgebraicPE": (1.00, 1.00, 1.01),
}
PAPER_TREES = {
    "Sinusoidal": (1.06, 5.68, 6.93, 7.13, 2.66, 2.78, 20.5, 64.9),
    "TreePE": (1.29, 1.07, 2.60, 1.87, 2.27, 2.29, 19.2, 16.4),
    "Learned": (6.64, 7.02, 7.77, 7.24, 2.77, 2.79, 37.8, 48.9),
    "ShawRelative": (1.01, 6.12, 6.00, 7.72, 1.70, 2.43, 2.36, 16.9),
    "RoPE": (1.42, 2.46, 4.58, 4.97, 1.55, 2.15, 2.53, 33.5),
    "AlgebraicPE": (1.00, 1.63, 2.95, 2.48, 1.07, 1.83, 2.30, 20.1),
    "AlgebraicPE (tree)": (1.01, 1.00, 1.05, 1.01, 1.00, 1.00, 2.24, 1.83),
}
Results = Sequence[Mapping[str, Any]]


def interval(numbers: Sequence[float]) -> str:
    """Mean over seeds, with half the width of its 95 % interval by Student's t."""
    shown = f"{mean(numbers):.3g}"
    if len(numbers) < 2:
        return shown
    return f"{shown} ± {half_width(numbers):.1g}"


def cell(results: Results, metric: str, length: int, **wanted: Any) -> str:
    """What is measured of a method on a task at a length; nothing, if it is not."""
    own = [result for result in results if all(result[key] == value for key, value in wanted.items())]
    rows = [row for result in own for row in result["rows"] if (row["metric"], row["length"]) == (metric, length)]
    values = [100 * row["value"] if metric == "exact_match" else row["value"] for row in rows]
    return interval(values) if values else ""


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table, without rows that are empty."""
    lines = [heading, ["---"] * len(heading), *(row for row in rows if any(row[1:]))]
    return [f"| {' | '.join(line)} |" for line in lines]


def report(results: Results) -> str:
    """The tables, and what is in them."""
    lines = [
        "# Trees and sequences: results",
        "",
        "Made by `show.py` from `results.json`, which `run.py` measured. Numbers are means over seeds, with 95 %",
        "intervals by Student's t, on 2,000 fresh problems each. *Paper* has the perplexities of Kogkalidis et al.",
        "2024 (arXiv 2312.16045), of width 512, trees of mean depth 7 and sequences of 100 symbols, after 400 passes",
        "over 6,000 problems: other sizes, not to be compared number by number. Of its two rows of RoPE, and of",
        "AlgebraicPE, the one is taken whose frequencies or initial matrices are ours.",
        "",
        "## Trees: perplexity, breadth-first / depth-first",
        "",
    ]
    heading = ["method", "seeds, up to", *(f"{name}, {order}" for name, order in TREES)]
    rows = []
    for method in METHODS:
        seeds = {r["seed"] for r in results if r["study"] == "trees" and r["method"] == method}
        own = [
            cell(results, "perplexity", 4, study="trees", name=name, order=order, method=method, fixpoint=False)
            for name, order in TREES
        ]
        rows.append([method, str(len(seeds)) if any(own) else "", *own])
        rows.append([f"*paper: {method}*", "3", *(f"*{value:.3g}*" for value in PAPER_TREES[method])])
    lines += [*table(heading, rows), ""]
    rows = [
        [method]
        + [
            cell(results, "perplexity", 4, study="trees", name="rotate", order=order, method=method, fixpoint=True)
            for order in ("breadth", "depth")
        ]
        for method in METHODS
    ]
    if any(any(row[1:]) for row in rows):
        to_fixpoint = table(["method", "breadth", "depth"], rows)
        lines += ["Rotations are one pass, as released. To the fixpoint:", "", *to_fixpoint, ""]
    for metric, title in (("perplexity", "perplexity"), ("exact_match", "exact match in per cent")):
        lines += [f"## Sequences: {title}", ""]
        heading = ["method", "seeds, up to", *(f"{name}, {n}x" for name in SEQUENCES for n in (1, 2, 4))]
        heading += [f"paper: {name}" for name in SEQUENCES] if metric == "perplexity" else []
        rows = []
        for method, paper in PAPER_SEQUENCES.items():
            seeds = {r["seed"] for r in results if r["study"] == "sequences" and r["method"] == method}
            own = [
                cell(results, metric, 30 * n, study="sequences", name=name, method=method)
                for name in SEQUENCES
                for n in (1, 2, 4)
            ]
            theirs = [f"*{value:.3g}*" for value in paper] if metric == "perplexity" else []
            rows.append([method, str(len(seeds)) if any(own) else "", *own, *theirs])
        lines += [*table(heading, rows), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    results = parser.parse_args().results
    save_text(results.with_suffix(".md"), report(json.loads(results.read_text())))


if __name__ == "__main__":
    main()
