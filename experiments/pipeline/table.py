"""Makes the README's table, those of docs/tables.md, and `results.md`: `python experiments/pipeline/table.py`."""

import json
import statistics
from pathlib import Path

README = Path(__file__).parent.parent.parent / "README.md"
TABLES = README.parent / "docs" / "tables.md"
RESULTS = Path(__file__).parent / "results.json"
LENGTHS = Path(__file__).parent / "results.md"
PROOFS = Path(__file__).parent.parent / "certify" / "certificates.json"
RESULTS_MARKS = "<!-- results: made by experiments/pipeline/table.py -->", "<!-- end of results -->"
SHAPES = "<!-- shapes: made by experiments/pipeline/table.py -->", "<!-- end of shapes -->"
CERTIFIED = "<!-- certificates: made by experiments/pipeline/table.py -->", "<!-- end of certificates -->"
SUITES = ("uniform", "unequal", "carry", "zeros")


def read_results() -> list[dict]:
    """The runs in `results.json`, with a row for each suite."""
    results = json.loads(RESULTS.read_text())
    for result in results:
        result["rows"] = [
            row | {"suite": suite, "value": value} for row in result["rows"] for suite, value in row["value"].items()
        ]
    return results


def size_of(row: dict) -> str:
    """The length, or the shape, that a row is of."""
    return "x".join(map(str, row.get("shape") or (row["length"],)))


def cell(results: list[dict], weights: str, suite: str, size: str) -> str:
    """Median and worst exact match over seeds."""
    shares = [
        100 * row["value"]
        for result in results
        for row in result["rows"]
        if (row["weights"], row["suite"], size_of(row)) == (weights, suite, size)
    ]
    if not shares:
        return "-"
    median, worst = statistics.median(shares), min(shares)
    text = f"{median:.4g}"
    return text if worst == median == max(shares) else f"{text} ({worst:.4g} to {max(shares):.4g})"


def summary(results: list[dict], multiple: int = 10) -> str:
    """The table of the README in Markdown, a row for each task, at a multiple of its training length."""

    def share(values: list[float]) -> str:
        return f"{100 * statistics.median(values):.4g} ({100 * min(values):.4g})"

    lines = [
        "| task | trained to | tested at | problems a suite | vanilla, median (worst) | retrained, median (worst) | "
        "correct at every length | time, median |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task in dict.fromkeys(result["task"] for result in results):
        own = [result for result in results if result["task"] == task]
        base = training_length(own)
        samples = {r["samples"] for result in own for r in result["rows"] if size_of(r) == str(multiple * base)}
        worst: dict[str, list[float]] = {"fit": [], "retrain": []}
        for result in (result for result in own if result["rows"]):
            for weights, values in worst.items():
                at = [
                    r["value"] for r in result["rows"] if (r["weights"], size_of(r)) == (weights, str(multiple * base))
                ]
                values.append(min(at))
        right = sum(result.get("verdict") == "correct" for result in own)
        seconds = statistics.median(result["seconds"] for result in own)
        cells = [task, str(base), str(multiple * base), " and ".join(f"{count:,}" for count in sorted(samples))]
        cells += [*map(share, worst.values()), f"{right} of {len(own)}"]
        lines.append(f"| {' | '.join(cells)} | {seconds:.0f} s |")
    return "\n".join(lines)


def table(results: list[dict]) -> str:
    """The table in Markdown, a row for each task and length or shape."""
    lines = [
        "| task | length | vanilla, `uniform` | retrained, `uniform` | `unequal` | `carry` | `zeros` |",
        "|---|---|---|---|---|---|---|",
    ]
    for task in dict.fromkeys(result["task"] for result in results):
        own = [result for result in results if result["task"] == task]
        sizes = {size_of(row): bool(row.get("shape")) for result in own for row in result["rows"]}
        for size in sorted(sizes, key=lambda size: (sizes[size], *map(int, size.split("x")))):
            samples = sorted({row["samples"] for result in own for row in result["rows"] if size_of(row) == size})
            cells = [cell(own, "fit", "uniform", size)]
            cells += [cell(own, "retrain", suite, size) for suite in SUITES]
            number = " and ".join(f"{count:,}" for count in samples) + " each"
            times = "" if sizes[size] else f"{int(size) // training_length(own)}x, "
            lines.append(f"| {task} | {size} ({times}{number}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def training_length(results: list[dict]) -> int:
    """The longest training length, which is the least that is evaluated."""
    return min(row["length"] for result in results for row in result["rows"] if not row.get("shape"))


def shapes(results: list[dict]) -> str:
    """The table of single shapes in Markdown: problems solved whole, those of all seeds together."""
    lines = [
        "| task | shape | tokens | vanilla | retrained | retrained, worst suite and seed |",
        "|---|---|---|---|---|---|",
    ]
    rows = [row | {"run": result["task"]} for result in results for row in result["rows"] if row.get("shape")]
    for task, size in dict.fromkeys((row["run"], size_of(row)) for row in rows):
        own = [row for row in rows if (row["run"], size_of(row)) == (task, size)]
        counts = []
        for weights in ("fit", "retrain"):
            part = [row for row in own if row["weights"] == weights]
            right = sum(round(row["value"] * row["samples"]) for row in part)
            counts.append(f"{right:,} of {sum(row['samples'] for row in part):,}")
        least = min((row for row in own if row["weights"] == "retrain"), key=lambda row: row["value"])
        counts.append(f"{round(least['value'] * least['samples'])} of {least['samples']}")
        lines.append(f"| {task} | {size} | {own[0]['tokens']:,} | {' | '.join(counts)} |")
    return "\n".join(lines)


def certificates(results: list[dict], proofs: list[dict]) -> str:
    """The table of certificates in Markdown, a row for each task; from least to most over seeds, or the median.

    Args:
        results: What the runs measured.
        proofs: What certifier and checker said of them, made by `experiments/certify/recertify.py`.
    """

    def span(values: list[float], form: str = ",.0f") -> str:
        low, high = f"{min(values):{form}}", f"{max(values):{form}}"
        return low if low == high else f"{low} to {high}"

    by_run = {proof["run"]: proof for proof in proofs}
    lines = [
        "| task | correct at every length | the checker agrees | retraining steps | assignments | that occur in no "
        "training shape | smallest margin | left of it by rounding, at least | largest deviation measured "
        "| `abc certify`, checker, median |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for task in dict.fromkeys(result["task"] for result in results):
        own = [result for result in results if result["task"] == task]
        runs = [by_run.get(f"{task.replace(' ', '')}-{result['seed']}") for result in own]
        there = [proof for proof in runs if proof is not None]
        right = [proof for proof in there if proof["verdict"] == "correct"]
        if not there:
            continue
        agreed = sum(proof["checker"] == 0 for proof in there)
        steps = [result["retrain_steps"] for result in own if "retrain_steps" in result]
        cells = [task, f"{len(right)} of {len(there)}", f"{agreed} of {len(there)}", span(steps)]
        cells += [span([proof[name] for proof in right]) for name in ("assignments", "beyond_training")]
        cells += [span([proof[name] for proof in right], ".2g") for name in ("smallest_margin", "smallest_slack")]
        cells.append(span([max(proof["deviations"].values()) for proof in right], ".0e"))
        times = [statistics.median(proof[name] for proof in there) for name in ("seconds", "checker_seconds")]
        cells.append(", ".join(f"{seconds:.0f} s" for seconds in times))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def between(text: str, marks: tuple[str, str], new: str) -> str:
    """A text with what stands between two marks replaced."""
    before, _, rest = text.partition(marks[0])
    _, _, after = rest.partition(marks[1])
    return f"{before}{marks[0]}\n{new}\n{marks[1]}{after}"


def main() -> None:
    results = read_results()
    failed = [f"{result['task']} seed {result['seed']}: {result['error']}" for result in results if "error" in result]
    seeds: dict[str, list[int]] = {}
    for result in results:
        seeds.setdefault(result["task"], []).append(result["seed"])
    which = "; ".join(f"{task} {min(own)} to {max(own)}" for task, own in seeds.items())
    text = (
        "Exact match in % on the worst of the four suites: the median over seeds and, in brackets, the worst seed.\n\n"
        f"{summary(results)}"
    )
    if failed:
        text += "\n\nRuns that failed: " + "; ".join(failed) + "."
    README.write_text(between(README.read_text(), RESULTS_MARKS, text))
    tables = between(TABLES.read_text(), SHAPES, shapes(results))
    TABLES.write_text(between(tables, CERTIFIED, certificates(results, json.loads(PROOFS.read_text()))))
    LENGTHS.write_text(
        "# The shipped configurations, length by length\n\n"
        "Made by `python experiments/pipeline/table.py` of `results.json`. Exact match in %: the same number for all "
        "seeds, or the median and, in brackets, the worst and the best. "
        f"Seeds: {which}.\n\n{table(results)}\n"
    )


if __name__ == "__main__":
    main()
