"""Makes `accuracy.png` and the table of docs/any_length.md: `python experiments/any_length/show.py`.

Up to 50 times the training length the numbers are those of `experiments/pipeline`, beyond it those of
`experiments/any_length`.
"""

import json
import statistics
from pathlib import Path

from matplotlib.figure import Figure

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "any_length.md"
BEGIN, END = "<!-- long problems: made by experiments/any_length/show.py -->", "<!-- end of long problems -->"
LOOKS = {
    "fit": {"label": "vanilla", "color": "#b3541e", "marker": "o"},
    "retrain": {"label": "retrained inside the window", "color": "#1f5a94", "marker": "s"},
}
Point = tuple[float, float, float, float]


def rows() -> dict[tuple[str, int, str, str], list[dict]]:
    """The rows of the tasks of this experiment, by task, multiple of the training length, weights and suite."""
    found: dict[tuple[str, int, str, str], list[dict]] = {}
    near, far = (json.loads((folder / "results.json").read_text()) for folder in (HERE.parent / "pipeline", HERE))
    tasks = {result["task"] for result in far}
    for result in (result for result in (*near, *far) if result["task"] in tasks):
        longest = {"parity": 20}.get(result["task"], 6)
        for row in long_rows(result["rows"]):
            key = (result["task"], row["length"] // longest, row["weights"], row["suite"])
            found.setdefault(key, []).append(row)
    return found


def long_rows(rows: list[dict]) -> list[dict]:
    """A row for each suite, of rows that may hold the values of several."""
    found: list[dict] = []
    for row in rows:
        values = row["value"] if isinstance(row["value"], dict) else {row["suite"]: row["value"]}
        found += [row | {"suite": suite, "value": value} for suite, value in values.items()]
    return found


def curve(found: dict, task: str, weights: str) -> list[Point]:
    """Multiple of the training length; median, worst and best exact match over the seeds, on `uniform` problems."""
    points = []
    for name, multiple, model, suite in sorted(found):
        if (name, model, suite) == (task, weights, "uniform"):
            shares = [row["value"] for row in found[name, multiple, model, suite]]
            points.append((multiple, statistics.median(shares), min(shares), max(shares)))
    return points


def figure(found: dict) -> Figure:
    """Exact match against length, a panel a task."""
    tasks = list(dict.fromkeys(task for task, *_ in found))
    picture = Figure(figsize=(10, 2.9), layout="constrained")
    panels = picture.subplots(1, len(tasks), sharey=True)
    for panel, task in zip(panels, tasks, strict=True):
        for weights, look in LOOKS.items():
            x, median, worst, best = (list(part) for part in zip(*curve(found, task, weights), strict=True))
            ranges = [
                [m - w for m, w in zip(median, worst, strict=True)],
                [b - m for b, m in zip(best, median, strict=True)],
            ]
            panel.errorbar(x, median, yerr=ranges, linewidth=1.6, markersize=4.5, clip_on=False, **look)
        panel.set(xscale="log", ylim=(-0.02, 1.02), title=task)
        panel.set_xticks([1, 10, 100, 1000, 10000], ["1x", "10x", "100x", "1,000x", "10,000x"], fontsize=8)
        panel.minorticks_off()
        panel.set_yticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
        panel.grid(axis="y", color="#e5e5e5", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("problems solved whole")
    picture.supxlabel("length, as a multiple of the longest trained on", fontsize=10)
    picture.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return picture


def table(found: dict) -> str:
    """Problems solved beyond 50 times the training length, over all suites and seeds, in Markdown."""
    lines = ["| task | digits an operand | vanilla | retrained |", "|---|---|---|---|"]
    tasks = list(dict.fromkeys(task for task, *_ in found))
    long = {(task, multiple) for task, multiple, *_ in found if multiple > 50}
    for task, multiple in sorted(long, key=lambda key: (tasks.index(key[0]), key[1])):
        cells = []
        for weights in LOOKS:
            own = [row for key, part in found.items() if key[:3] == (task, multiple, weights) for row in part]
            total = sum(row["samples"] for row in own)
            cells.append(f"{sum(round(row['value'] * row['samples']) for row in own):,} of {total:,}")
        length = next(row["length"] for row in found[task, multiple, "fit", "uniform"])
        lines.append(f"| {task} | {length:,} ({multiple:,}x) | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def main() -> None:
    found = rows()
    figure(found).savefig(HERE / "accuracy.png", dpi=130)
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table(found)}\n{END}{after}")


if __name__ == "__main__":
    main()
