"""Makes `results.md`: the rows of the paper's tables 1 to 3 (arXiv 2310.11984), ours beside the paper's numbers.

It reads the evaluations of the two sweeps, and keeps them in `results.csv`. Without folders it reads that file.

    abc sweep experiments/paper_tables/methods.yaml --processes 2
    abc sweep experiments/paper_tables/calibrated.yaml --processes 2
    python experiments/paper_tables/show.py runs/methods runs/calibrated
"""

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

from abc_toolkit.runs.files import save_text
from abc_toolkit.sweeps.specification import ROWS

HERE = Path(__file__).parent
LENGTHS = (6, 10, 15, 20, 60)
COLUMNS = ("row", "seed", "weights", "length", "samples", "value")
# Per cent at these lengths, as the paper prints them; None where it prints nothing.
PAPER: Mapping[str, Sequence[float | None]] = {
    "successor; vanilla": (100, 0, 0, 0, 0),
    "successor; ALiBi": (1.3, 0, 0, 0, 0),
    "successor; RoPE": (100, 0, 0, 0, 0),
    "successor; + w = 1": (100,) * 5,
    "successor; + T = 3": (100,) * 5,
    "successor; NoPE + w = 1": (100,) * 5,
    "successor; ABC": (100, 100, None, 100, 100),
    "addition; vanilla": (100, 0, 0, 0, 0),
    "addition; ALiBi": (0,) * 5,
    "addition; RoPE": (100, 0, 0, 0, 0),
    "addition; RPE": (100, 99.9, 97.2, 21.3, None),
    "addition; + w = 1": (100, 0, 0, 0, 0),
    "addition; + T = 3": (100,) * 5,
    "addition; NoPE + w = 1": (99.95, 99.81, 99.84, 99.76, 99.35),
    "addition; ABC": (100, 100, None, 99.9, 99.8),
    "multiplication; vanilla": (100, 0, 0, 0, 0),
    "multiplication; RoPE": (100, 0, 0, 0, 0),
    "multiplication; + w = 1": (100, 6.0, 0.19, 0, 0),
    "multiplication; + T = 3": (100,) * 5,
    "multiplication; NoPE + w = 1": (99.89, 99.63, 99.49, 99.39, 98.31),
    "multiplication; ABC": (100, 100, None, 100, 100),
    "parity, scratchpad; vanilla": (29.23, 0.29, 0, 0, 0),
    "parity, scratchpad; + w = 1": (100,) * 5,
    "parity, scratchpad; + T = 3": (100,) * 5,
    "parity, scratchpad; NoPE + w = 1": (100,) * 5,
}


def measured(folders: Sequence[Path]) -> list[dict[str, str]]:
    """The rows of evaluations that the tables are made of."""
    found = [row for folder in folders for row in csv.DictReader((folder / ROWS).open(encoding="utf-8"))]
    own = [row for row in found if row["weights"] == ("retrain" if row["row"].endswith("; ABC") else "fit")]
    return [{column: row[column] for column in COLUMNS} for row in own]


def lines(rows: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """The table in Markdown."""
    values: defaultdict[str, defaultdict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        values[row["row"]][int(row["length"])].append(100 * float(row["value"]))
    lengths = " | ".join(map(str, LENGTHS))
    yield f"| task | method | seeds | {lengths} | the paper: {lengths} |"
    yield "|---" * (3 + 2 * len(LENGTHS)) + "|"
    for name in [*PAPER, *(name for name in values if name not in PAPER)]:
        task, method = name.split("; ")
        own = values.get(name, {})
        cells = [f"{median(own[n]):.4g} ({min(own[n]):.4g})" if n in own else "" for n in LENGTHS]
        theirs = ["" if value is None else f"{value:g}" for value in PAPER.get(name, [None] * len(LENGTHS))]
        yield f"| {task} | {method} | {len(own.get(LENGTHS[0], ()))} | {' | '.join([*cells, *theirs])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, help="the folders of the two sweeps")
    chosen = parser.parse_args()
    kept = HERE / "results.csv"
    if chosen.folders:
        with kept.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(measured(chosen.folders))
    rows = list(csv.DictReader(kept.open(encoding="utf-8")))
    samples = "/".join(sorted({row["samples"] for row in rows}))
    text = f"""# The paper's tables

Made by `show.py` from `results.csv`. Whole answers that are right, per cent, of {samples} problems of each length: the
median over seeds and, in brackets, the worst seed. Ours are trained on up to 6 digits with the toolkit's own settings,
a layer of encoder and one of decoder, 8,000 steps at most (`methods.yaml`, `calibrated.yaml`). The paper's have one
layer of encoder and six of decoder, and are trained far longer. Ours do not reproduce them.

"""
    save_text(HERE / "results.md", text + "\n".join(lines(rows)) + "\n")


if __name__ == "__main__":
    main()
