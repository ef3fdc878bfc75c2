"""The table and the figure of the results of `run.py`: perplexity against length, for each position method.

python experiments/language_models/show.py
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from abc_toolkit.runs.files import replacing, save_text

HERE = Path(__file__).parent
TRAINED = 128
ORDER = (
    *("NoPE", "RoPE", "T5", "ALiBi", "Kerple", "FIRE", "CoPE", "DAPE-ALiBi", "DAPE-Kerple", "DAPE-FIRE"),
    *("DAPEv2-ALiBi", "DAPEv2-Kerple", "DAPEv2-FIRE"),
)
# Perplexity on arXiv papers by GPT-2's subwords, 125M parameters, trained at 512: at 512, 1,024, 2,048, 4,096, 8,192.
# As reported for DAPE V2 (arXiv 2410.04798) by a third party's notes. Rows of other methods were in no text read.
PAPER = {
    "NoPE": ("5.10", "42.27", "huge", "huge", "huge"),
    "RoPE": ("4.57", "86.20", "237.67", "256.12", ""),
    "Kerple": ("4.57", "4.37", "5.09", "6.80", "9.08"),
    "DAPE-Kerple": ("4.49", "4.20", "4.17", "3.95", "3.70"),
    "DAPEv2-Kerple": ("4.44", "4.14", "4.09", "3.87", "3.58"),
}
Result = Mapping[str, Any]


def columns(runs: Sequence[Result]) -> list[list[float]]:
    """Perplexity of some runs, length by length."""
    rows = [[row["value"] for row in sorted(run["rows"], key=lambda row: row["length"])] for run in runs]
    return [list(column) for column in zip(*rows, strict=True)]


def shown(values: Sequence[float]) -> str:
    """Perplexity of one seed, or the mean of several with the least and the greatest."""
    if len(values) == 1:
        return f"{values[0]:.3g}"
    return f"{mean(values):.3g} [{min(values):.3g}, {max(values):.3g}]"


def table(results: Sequence[Result]) -> list[str]:
    """Our numbers, method by method."""
    lengths = sorted({row["length"] for result in results for row in result["rows"]})
    lines = ["| | seeds | " + " | ".join(f"{length:,}" for length in lengths) + " |"]
    lines.append("|---|" + "---|" * (1 + len(lengths)))
    for method in ORDER:
        runs = [result for result in results if result["method"] == method]
        if runs:
            lines.append(f"| {method} | {len(runs)} | " + " | ".join(map(shown, columns(runs))) + " |")
    return lines


def papers_table() -> list[str]:
    """The papers' numbers, at their size."""
    lines = ["| | 512 | 1,024 | 2,048 | 4,096 | 8,192 |", "|---|---|---|---|---|---|"]
    return lines + [f"| *{method}* | " + " | ".join(values) + " |" for method, values in PAPER.items()]


def report(results: Sequence[Result]) -> str:
    """The page `results.md`."""
    first = results[0]
    sample = first["rows"][0]
    steps = sorted({result["steps"] for result in results})
    return "\n".join(
        [
            "# Language models past the trained length",
            "",
            f"Perplexity of a byte, of the last {TRAINED // 4} bytes of {sample['samples']} windows of the held-out "
            f"text. The windows of all methods and lengths end with the same bytes. Trained on windows of {TRAINED} "
            f"bytes for {', '.join(f'{number:,}' for number in steps)} steps. Of several seeds: the mean, with the "
            "least and the greatest.",
            "",
            *table(results),
            "",
            "*The papers' numbers, at their size: 125M parameters, trained on windows of 512 subwords of arXiv papers, "
            "perplexity of a subword (DAPE V2, arXiv 2410.04798, by a third party's notes). Perplexities of bytes and "
            "of subwords are not comparable; how they change with the length is.*",
            "",
            *papers_table(),
            "",
            "![Perplexity against length](lengths.png)",
            "",
        ]
    )


def draw(results: Sequence[Result], path: Path) -> None:
    """Draws the mean over seeds against the length, shaded from the least to the greatest."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    styles = {"DAPEv2": ":", "DAPE": "--"}
    colours: dict[str, str] = {}
    for method in ORDER:
        runs = [result for result in results if result["method"] == method]
        if not runs:
            continue
        kind, _, base = method.rpartition("-")
        colour = colours.setdefault(base, f"C{len(colours)}")
        lengths = sorted(row["length"] for row in runs[0]["rows"])
        found = columns(runs)
        axes.plot(
            lengths, [mean(c) for c in found], styles.get(kind, "-"), color=colour, marker="o", ms=3, label=method
        )
        axes.fill_between(lengths, [min(c) for c in found], [max(c) for c in found], color=colour, alpha=0.2, lw=0)
    ticks = sorted({row["length"] for result in results for row in result["rows"]})
    axes.axvspan(axes.get_xlim()[0], TRAINED, color="0.9", lw=0, zorder=0)
    axes.set(xscale="log", xlabel="context (bytes)", ylabel="perplexity of a byte")
    axes.set_xlim(ticks[0] / 1.1, ticks[-1] * 1.1)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    values = [row["value"] for result in results for row in result["rows"]]
    if max(values) > 2 * min(values):
        axes.set_yscale("log")
        marks = [mark * 10**power for power in range(6) for mark in (1, 1.5, 2, 3, 5, 7)]
        marks = [mark for mark in marks if min(values) / 1.3 <= mark <= max(values) * 1.3]
        axes.set_yticks(marks, [f"{mark:g}" for mark in marks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    parser.add_argument("--folder", type=Path, default=HERE)
    chosen = parser.parse_args()
    results = json.loads(chosen.results.read_text())
    save_text(chosen.folder / "results.md", report(results))
    draw(results, chosen.folder / "lengths.png")


if __name__ == "__main__":
    main()
