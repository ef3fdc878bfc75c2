"""Makes the README's table of results from `results.json`: `python experiments/pipeline/table.py`."""

import json
import statistics
from pathlib import Path

README = Path(__file__).parent.parent.parent / "README.md"
RESULTS = Path(__file__).parent / "results.json"
BEGIN, END = "<!-- results: made by experiments/pipeline/table.py -->", "<!-- end of results -->"
SETS = ("uniform", "unequal", "carry", "zeros")


def cell(results: list[dict], weights: str, set_name: str, length: int) -> str:
    """Median and worst exact match over seeds."""
    shares = [
        100 * row["exact_match"]
        for result in results
        for row in result["rows"]
        if (row["weights"], row["set"], row["length"]) == (weights, set_name, length)
    ]
    if not shares:
        return "-"
    median, worst = statistics.median(shares), min(shares)
    text = f"{median:.4g}"
    return text if worst == median == max(shares) else f"{text} ({worst:.4g} to {max(shares):.4g})"


def table(results: list[dict]) -> str:
    """The table in Markdown, a row for each task and length."""
    lines = [
        "| task | length | vanilla, `uniform` | retrained, `uniform` | `unequal` | `carry` | `zeros` |",
        "|---|---|---|---|---|---|---|",
    ]
    for task in dict.fromkeys(result["task"] for result in results):
        own = [result for result in results if result["task"] == task]
        base = min(row["length"] for result in own for row in result["rows"])
        for length in sorted({row["length"] for result in own for row in result["rows"]}):
            samples = sorted({row["samples"] for result in own for row in result["rows"] if row["length"] == length})
            cells = [cell(own, "fit", "uniform", length)]
            cells += [cell(own, "retrain", set_name, length) for set_name in SETS]
            number = " and ".join(f"{count:,}" for count in samples)
            lines.append(f"| {task} | {length} ({length // base}x, {number} each) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    results = json.loads(RESULTS.read_text())
    failed = [f"{result['task']} seed {result['seed']}: {result['error']}" for result in results if result["status"]]
    seeds = sorted({result["seed"] for result in results})
    text = (
        f"Exact match in %, seeds {seeds[0]} to {seeds[-1]} (those from 5 on were run once, when nothing was left to "
        f"change): the same number for all seeds, or the median and, in brackets, the worst and the best.\n\n"
        f"{table(results)}\n"
    )
    if failed:
        text += "\nRuns that failed: " + "; ".join(failed) + ".\n"
    readme = README.read_text()
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(f"{before}{BEGIN}\n{text}{END}{after}")


if __name__ == "__main__":
    main()
