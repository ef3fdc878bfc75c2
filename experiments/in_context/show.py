"""Figures and tables of the results of `run.py`: errors and accuracies at 1 to 8 times the trained points, attacks.

python experiments/in_context/show.py
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from abc_toolkit.runs.files import save_text
from abc_toolkit.sweeps.summary import half_width

HERE = Path(__file__).parent
ATTACKS = (
    "duplicates/all",
    "duplicates/gap_near",
    "duplicates/gap_far",
    "duplicates/inst_begin",
    "duplicates/inst_end",
    "lost_in_the_middle/begin",
    "lost_in_the_middle/middle",
    "lost_in_the_middle/end",
)

CLASSES = ("linear_regression", "conjunction", "disjunction", "sparse_disjunction", "majority", "int_halfspace")
METHODS = ("NoPE", "RoPE", "YaRN", "DynamicYaRN", "ALiBi", "FIRE", "Mamba")
Result = Mapping[str, Any]


def is_error(name: str) -> bool:
    """Whether a class is judged by an error, and not by accuracy."""
    return name.endswith("regression")


def values(result: Result, suite: str, metric: str, weights: str = "fit") -> list[float]:
    """A metric of one run on a suite, length by length."""
    rows = [r for r in result["rows"] if (r["suite"], r["weights"]) == (suite, weights) and r["metric"] == metric]
    return [row["value"] for row in sorted(rows, key=lambda row: row["length"])]


def interval(numbers: Sequence[float]) -> tuple[float, float]:
    """Mean over seeds and half the width of its 95 % interval, by Student's t."""
    if len(numbers) < 2:
        return mean(numbers), math.nan
    return mean(numbers), half_width(numbers)


def shown(name: str, numbers: Sequence[float]) -> str:
    """Mean over seeds with its interval, as tables show it."""
    if not numbers:
        return ""
    centre, half = interval(numbers)
    if is_error(name):
        return f"{centre:.3f}" + ("" if math.isnan(half) else f" ± {half:.3f}")
    return f"{100 * centre:.1f}" + ("" if math.isnan(half) else f" ± {100 * half:.1f}")


def lengths_table(results: Sequence[Result], name: str) -> list[str]:
    """A table of the last point at each length: methods, then baselines."""
    own = [result for result in results if result["class"] == name]
    metric = "last_squared_error" if is_error(name) else "last_accuracy"
    methods = list(dict.fromkeys(result["method"] for result in own))
    lines = ["| | seeds | 1x | 2x | 4x | 8x |", "|---|---|---|---|---|---|"]
    for method in methods:
        runs = [result for result in own if result["method"] == method]
        found = list(zip(*(values(run, "ood", metric) for run in runs), strict=True))
        lines.append(f"| {method} | {len(runs)} | " + " | ".join(shown(name, column) for column in found) + " |")
    first = own[0]
    baselines = dict.fromkeys(row["weights"] for row in first["rows"] if row["weights"] != "fit")
    for baseline in baselines:
        found = values(first, "ood", metric, baseline)
        lines.append(f"| *{baseline}* | | " + " | ".join(shown(name, [value]) for value in found) + " |")
    return lines


def attacks_table(results: Sequence[Result], name: str) -> list[str]:
    """A table of the attacks at 8 times the trained points."""
    own = [result for result in results if result["class"] == name]
    metric = "squared_error" if is_error(name) else "accuracy"
    lines = ["| | " + " | ".join(attack.replace("lost_in_the_middle", "lost") for attack in ATTACKS) + " |"]
    lines.append("|---|" + "---|" * len(ATTACKS))
    for method in dict.fromkeys(result["method"] for result in own):
        runs = [result for result in own if result["method"] == method]
        columns = [[values(run, attack, metric)[0] for run in runs] for attack in ATTACKS]
        lines.append(f"| {method} | " + " | ".join(shown(name, column) for column in columns) + " |")
    return lines


def report(results: Sequence[Result]) -> str:
    """All tables."""
    lines = ["# Functions in context: results", ""]
    lines += [
        "Made by `show.py` from `results.json`, which `run.py` measured. Numbers are means over seeds, with 95 %",
        "intervals by Student's t. Errors are shares of the error of predicting 0, accuracies in per cent, both of the",
        "last point of 1,280 prompts. Attacks: 100 prompts of 8 times the trained points; the points that the attack",
        "judges.",
        "",
    ]
    for name in dict.fromkeys(result["class"] for result in results):
        lines += [f"## {name}", "", *lengths_table(results, name), "", *attacks_table(results, name), ""]
    return "\n".join(lines)


def draw_lengths(results: Sequence[Result], path: Path) -> None:
    """A panel for each class: the first metric point by point, the mean over seeds for each method."""
    import numpy as np
    import seaborn as sns
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    names = list(dict.fromkeys(result["class"] for result in results))
    methods = list(dict.fromkeys(result["method"] for result in results))
    colours = dict(zip(methods, sns.color_palette("colorblind", len(methods)), strict=True))
    figure = Figure(figsize=(13, 3.6 * math.ceil(len(names) / 2)), layout="constrained")
    for axes, name in zip(figure.subplots(math.ceil(len(names) / 2), 2).flatten(), names, strict=False):
        own = [result for result in results if result["class"] == name]
        points = len(own[0]["curve"])
        x = np.arange(1, points + 1)
        for method in methods:
            curves = np.array([result["curve"] for result in own if result["method"] == method])
            if len(curves):
                axes.plot(x, curves.mean(axis=0), color=colours[method], linewidth=1.3)
                axes.fill_between(
                    x, curves.min(axis=0), curves.max(axis=0), color=colours[method], alpha=0.12, linewidth=0
                )
        for baseline, dash in zip(own[0]["baselines"], (":", "--", "-.", (0, (1, 4))), strict=False):
            axes.plot(
                x, own[0]["baselines"][baseline], color="0.4", linestyle=dash, linewidth=0.9, label=f"({baseline})"
            )
        axes.axvspan(0, points / 8, color="0.75", alpha=0.35, linewidth=0)
        axes.set(xlim=(1, points), title=name.replace("_", " "), xlabel="point of the prompt")
        if is_error(name):
            axes.set(yscale="log", ylim=(1e-3, 20), ylabel="squared error")
        else:
            axes.set(ylim=(0.35, 1.01), ylabel="accuracy")
        axes.legend(frameon=False, fontsize=7, loc="upper right" if is_error(name) else "lower right", ncols=3)
    marks = [Line2D([], [], color=colours[method], label=method) for method in methods]
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), frameon=False)
    figure.savefig(path, dpi=110)


def draw_attention(results: Sequence[Result], path: Path) -> None:
    """A panel for each method: attention of the last point to the labels of linear regression, a curve a layer."""
    import numpy as np
    import seaborn as sns
    from matplotlib.figure import Figure

    own = [r for r in results if r["class"] == "linear_regression" and r["seed"] == 0 and r["attention"]]
    figure = Figure(figsize=(12, 6), layout="constrained")
    for axes, result in zip(figure.subplots(2, 3).flatten(), own, strict=False):
        layers = result["attention"]
        colours = sns.color_palette("viridis", len(layers))
        for layer, (attention, colour) in enumerate(zip(layers, colours, strict=True)):
            axes.plot(np.linspace(0, 1, len(attention)), attention, color=colour, linewidth=1, label=f"layer {layer}")
        axes.set(yscale="log", ylim=(1e-4, 1), title=result["method"], xlabel="label, 0 = first, 1 = last")
        axes.legend(frameon=False, fontsize=6)
    figure.savefig(path, dpi=110)


def main() -> None:
    results = json.loads((HERE / "results.json").read_text())
    results.sort(key=lambda r: (CLASSES.index(r["class"]), METHODS.index(r["method"]), r["seed"]))
    save_text(HERE / "results.md", report(results))
    draw_lengths(results, HERE / "lengths.png")
    draw_attention(results, HERE / "attention.png")


if __name__ == "__main__":
    main()
