"""Makes the table of the speed run in `experiments/LOG.md`: `python experiments/speedrun/show.py`."""

import json
import statistics
from pathlib import Path

HERE = Path(__file__).parent
LOG = HERE.parent / "LOG.md"
MARKS = "<!-- speed run: made by experiments/speedrun/show.py -->", "<!-- end of speed run -->"
PARTS = ("start", "fit", "calibrate", "retrain", "certify")


def span(values: list[float]) -> str:
    """Median, least and most."""
    return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"


def main() -> None:
    results = json.loads((HERE / "results.json").read_text())
    heading = [
        "recipe",
        "certified",
        "seconds in all",
        *PARTS,
        "steps of fit",
        "of retrain",
        "assignments",
        "smallest margin",
    ]
    lines = [f"| {' | '.join(heading)} |", "|" + "---|" * len(heading)]
    for recipe in dict.fromkeys(result["recipe"] for result in results):
        own = [result for result in results if result["recipe"] == recipe]
        done = [result for result in own if result.get("verdict") == "correct"]
        cells = [recipe, f"{len(done)} of {len(own)}"]
        if done:
            cells.append(span([result["seconds"] for result in done]))
            cells += [f"{statistics.median(result[part] for result in done):.1f}" for part in PARTS]
            cells += [span([result[f"{part}_steps"] for result in done]) for part in ("fit", "retrain")]
            cells += [span([result["assignments"] for result in done])]
            cells.append(f"{min(result['smallest_margin'] for result in done):.2g}")
        lines.append(f"| {' | '.join(cells)} |")
    text = LOG.read_text()
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    LOG.write_text(f"{before}{MARKS[0]}\n" + "\n".join(lines) + f"\n{MARKS[1]}{after}")


if __name__ == "__main__":
    main()
