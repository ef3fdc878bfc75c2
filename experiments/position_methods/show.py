"""Makes `results.md` and the figures of what `run.py` measured: `python experiments/position_methods/show.py`."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

HERE = Path(__file__).parent
LONGEST = 6  # digits that are trained on
SHOWN = (9, 12, 24, 60)  # digits beyond that, for the table
FAMILIES = {
    "added to embeddings": ("absolute", "random", "trees"),
    "rotations": ("rotary", "algebraic"),
    "biases": ("biases", "windowed"),
    "of content; Mamba": ("relative", "contextual", "mamba"),
}
COLOURS = ("#1f5a94", "#b3541e", "#2e7d4f", "#7b4ea3", "#c2185b", "#5d6b73", "#b58900", "#00838f")
MARKERS = "osD^vPX*"
LENGTHS = "times the longest training length"
Result = dict[str, Any]


def module(result: Result) -> str:
    """The file of the package that a method is of."""
    position = result["model"]["position"]
    return "mamba" if position is None else position["class_path"].split(".")[2]


def exact_match(result: Result, set_name: str, length: int) -> float:
    """A share from the results' rows."""
    return next(r["exact_match"] for r in result["rows"] if (r["set"], r["length"]) == (set_name, length))


def extrapolation(result: Result) -> list[tuple[float, float]]:
    """Multiple of the training length, and the share of `uniform` problems that is solved."""
    return [(row["length"] / LONGEST, row["exact_match"]) for row in result["rows"] if row["set"] == "uniform"]


def interpolation(result: Result) -> list[tuple[float, float]]:
    """Step, and the share of held-out problems of the training lengths that is solved."""
    return [(step, share) for step, share in result["validation"]]


def figure(results: Sequence[Result], points: Callable[[Result], list[tuple[float, float]]], label: str) -> Figure:
    """A row of panels a setting, a column a family of methods."""
    settings = list(dict.fromkeys(result["setting"] for result in results))
    picture = Figure(figsize=(13, 2.9 * len(settings)), layout="constrained")
    panels = picture.subplots(len(settings), len(FAMILIES), sharex="row", sharey=True, squeeze=False)
    for row, setting in zip(panels, settings, strict=True):
        for panel, (family, modules) in zip(row, FAMILIES.items(), strict=True):
            own = [r for r in results if module(r) in modules and "rows" in r]
            names = list(dict.fromkeys(r["method"] for r in own))
            for result in (r for r in own if r["setting"] == setting):
                number = names.index(result["method"])
                x, y = zip(*points(result), strict=True)
                look = {"color": COLOURS[number], "marker": MARKERS[number], "markersize": 3, "linewidth": 1.2}
                panel.plot(x, y, label=result["method"].replace("_", " "), clip_on=False, **look)
            panel.set(ylim=(-0.02, 1.02))
            panel.spines[["top", "right"]].set_visible(False)
            panel.grid(axis="y", color="#e4e4e4", linewidth=0.6)
            if label == LENGTHS:
                panel.set_xscale("log")
                panel.set_xticks([0.5, 1, 2, 4, 10], ["0.5", "1", "2", "4", "10"])
                panel.minorticks_off()
            if panel in panels[0]:
                panel.set_title(family, fontsize=10)
            if panel in panels[0]:  # the names are the same below
                panel.legend(fontsize=6.5, facecolor="white", edgecolor="none", framealpha=0.85)
        row[0].set_ylabel(f"{setting}\nsolved", fontsize=9)
    picture.supxlabel(label, fontsize=9)
    return picture


def table(results: Sequence[Result]) -> str:
    """A row a method: for every setting, steps until it interpolated, and problems solved at some lengths."""
    settings = list(dict.fromkeys(result["setting"] for result in results))
    heading = ["method"]
    for setting in settings:
        heading += [f"{setting}: steps", *(f"{length / LONGEST:g}x" for length in SHOWN)]
    lines = [f"| {' | '.join(heading)} |", "|" + "---|" * len(heading)]
    for name in dict.fromkeys(result["method"] for result in results):
        cells = [name.replace("_", " ")]
        for setting in settings:
            result = next((r for r in results if (r["setting"], r["method"]) == (setting, name)), None)
            if result is None:
                cells += [""] * (1 + len(SHOWN))
            elif "error" in result:
                cells += [result["error"], *[""] * len(SHOWN)]
            else:
                steps = f"{result['steps']:,}" if result["reached"] else f"no ({100 * result['exact_match']:.1f} %)"
                cells += [steps, *(f"{100 * exact_match(result, 'uniform', length):.3g}" for length in SHOWN)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    results = json.loads((HERE / "results.json").read_text())
    order = {setting: number for number, setting in enumerate(("decoder-only", "encoder-decoder", "window"))}
    results.sort(key=lambda result: (order[result["setting"]], result["method"]))
    figure(results, extrapolation, LENGTHS).savefig(HERE / "extrapolation.png", dpi=110)
    figure(results, interpolation, "training steps").savefig(HERE / "interpolation.png", dpi=110)
    samples = {row["samples"] for result in results for row in result.get("rows", ())}
    text = (
        "# Position methods on addition\n\n"
        "Made by `python experiments/position_methods/show.py` of what `run.py` there measured, which says what was "
        f"trained; one seed, {', '.join(map(str, samples))} problems of each length and set. Steps until held-out "
        "problems of the training lengths are solved (`no`: not within the budget; in brackets the share that is), "
        "and percent of `uniform` problems solved at multiples of the longest training length.\n\n"
    )
    (HERE / "results.md").write_text(f"{text}{table(results)}\n")


if __name__ == "__main__":
    main()
