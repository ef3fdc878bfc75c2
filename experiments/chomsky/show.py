"""Makes the tables of `results.md` from `results.json`: `python experiments/chomsky/show.py`."""

import json
import statistics
from pathlib import Path

HERE = Path(__file__).parent
# Best of ten seeds and three rates, after a million steps of a transformer of five layers, at lengths 41 to 500, as the
# paper reports it. Those of tasks that are not here could not be checked against a second source.
PUBLISHED = {
    "modular_arithmetic": "24.2",
    "parity_check": "52.0",
    "stack_manipulation": "57.5",
    "reverse_string": "62.3",
    "duplicate_string": "52.8",
    "odds_first": "52.8",
}
ORDER = (
    "even_pairs", "modular_arithmetic", "parity_check", "cycle_navigation", "stack_manipulation", "reverse_string",
    "modular_arithmetic_brackets", "solve_equation", "duplicate_string", "missing_duplicate", "odds_first",
    "binary_addition", "binary_multiplication", "square_root", "bucket_sort",
)  # fmt: skip
METHODS = ("NoPE", "RoPE", "ALiBi", "FIRE", "Randomized")


def beyond(result: dict, key: str) -> float:
    """Per cent, averaged over lengths beyond 40."""
    return 100 * statistics.mean(row[key] for row in result["rows"] if row["length"] > 40)


def spread(values: list[float]) -> str:
    """The median, and the least where they differ."""
    if not values:
        return ""
    return f"{statistics.median(values):.4g}" + (f" ({min(values):.4g})" if min(values) < max(values) else "")


def main() -> None:
    results = json.loads((HERE / "results.json").read_text())
    lines = [
        "# Neural Networks and the Chomsky Hierarchy: results",
        "",
        "Made by `show.py` from `results.json`, which `run.py` measured. *Tokens* is the benchmark's measure: accuracy",
        "of each token of the answer, averaged over lengths from 41 to 500. *Whole* counts answers that are right in",
        "every token. Per cent; the median over seeds and, in brackets, the worst seed.",
        "",
        "**Caveat.** Our models write steps, from which the answer is read off, and are told the layout. Those of the",
        "benchmark read the input and blanks, and answer at once. The columns of position methods are the latter, of",
        "our size and 2,000 steps; *published* is the paper's best transformer, of its size and after a million steps.",
        "",
        "| task | trained to | seeds | tokens | whole | correct at every length | checker agrees | assignments "
        "| target tokens at 500 | " + " | ".join(f"{name}: tokens" for name in METHODS) + " | published |",
        "|" + "---|" * (10 + len(METHODS)),
    ]
    for task in (name for name in ORDER if any(result["task"] == name for result in results)):
        own = [result for result in results if (result["task"], result["method"]) == (task, "windows")]
        right = sum(result.get("verdict") == "correct" for result in own)
        agreed = sum(result.get("checker") == 0 for result in own)
        cells = [task.replace("_", " ")]
        cells.append(str(own[0]["trained_to"]) if own else "")
        cells += [str(len(own)), *(spread([beyond(result, key) for result in own]) for key in ("tokens", "whole"))]
        cells += [f"{right} of {len(own)}", f"{agreed} of {len(own)}"]
        assignments = sorted({result["assignments"] for result in own if "assignments" in result})
        cells.append(
            " to ".join(f"{count:,}" for count in dict.fromkeys((assignments or [0])[:: max(1, len(assignments) - 1)]))
        )
        cells.append(f"{own[0]['tokens_of_target']:,}" if own else "")
        for method in METHODS:
            there = [result for result in results if (result["task"], result["method"]) == (task, method)]
            cells.append(spread([beyond(result, "tokens") for result in there]))
        lines.append(f"| {' | '.join([*cells, PUBLISHED.get(task, '')])} |")
    undecided = [result for result in results if result["method"] == "windows" and result.get("verdict") != "correct"]
    if undecided:
        lines += ["", "Not certified:", ""]
        lines += [f"- {r['task']} seed {r['seed']}: {r.get('verdict')}, {r.get('reason')}" for r in undecided]
    (HERE / "results.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
