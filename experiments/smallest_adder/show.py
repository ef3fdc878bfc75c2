"""The table of the smallest adders, from the results of `run.py`; `--write` puts it into `results.md`."""

import argparse
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CAVEAT = (
    "The window gives the alignment, which entries of AdderBoard must learn or encode by positions. Its rules are not "
    "counted as parameters: {window}. Parameters are counted once after tying. All savings are named in "
    "`abc_toolkit/models/base.py`."
)


def row(name: str, found: dict[str, Any]) -> str:
    """A configuration's row of the table."""
    rows = found["rows"]
    stopped = [own for own in rows if own["step"] is not None]
    certified = [own for own in stopped if own["verdict"] == "correct" and own["checker"] == "agrees"]
    best = max(certified, key=lambda own: own["smallest_slack"], default=None)
    cells = [
        name,
        f"{found['parameters']}",
        ", ".join(found["savings"]),
        f"{found['padding']}, end: {found['end']}",
        f"{len(certified)} of {len(rows)}",
        f"margin {found['margin']:g} in every assignment within {found['steps']:,} steps",
        f"{found['seconds'] / 60:.0f} min",
        "-" if best is None else f"{best['smallest_margin']:.3g}",
        "-" if best is None else f"{best['largest_rounding']:.2g}",
        f"{max(own['margin'] for own in rows):.3g}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    parser.add_argument("--write", action="store_true")
    chosen = parser.parse_args()
    results = json.loads(chosen.results.read_text())
    heads = ["model", "parameters", "savings", "inputs", "certified", "stopping rule", "time of all seeds"]
    heads += ["largest certified margin", "its rounding bound", "largest margin of all"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    lines += [row(name, found) for name, found in results.items()]
    windows = {"; ".join(dict.fromkeys(found["window"])) for found in results.values()}
    text = "\n".join([*lines, "", CAVEAT.format(window=" or ".join(sorted(windows)))])
    print(text)
    if chosen.write:
        (HERE / "results.md").write_text(f"# The smallest trained adders with a proof\n\n{text}\n")


if __name__ == "__main__":
    main()
