"""Makes `golden.md`: how far each position method is from the arrays of other code that its tests compare it with.

python -m experiments.position_methods.golden
"""

import importlib
from pathlib import Path

import numpy as np

FAMILIES = ("absolute", "trees", "rotary", "algebraic", "biases", "windowed", "relative", "contextual")


def apart(ours: object, theirs: object) -> float:
    """Largest difference of two arrays; of infinities alike, none."""
    first, second = (np.asarray(part, dtype=np.float64) for part in (ours, theirs))
    with np.errstate(invalid="ignore"):
        return float(np.where(first == second, 0.0, np.abs(first - second)).max())


def main() -> None:
    lines = ["| method | compared with | largest deviation | allowed |", "|---|---|---|---|"]
    for family in FAMILIES:
        cases = importlib.import_module(f"tests.positions.test_{family}").GOLDEN_CASES
        for name, (method, compare) in cases.items():
            compared = compare()
            deviation = max(apart(ours, theirs) for ours, theirs, _ in compared)
            lines.append(f"| {method} | {name} | {deviation:.1e} | {max(atol for *_, atol in compared):.1e} |")
    text = "Where the arrays are from: `tests/golden/README.md`. Made by `golden.py` beside this file.\n\n"
    Path(__file__).with_name("golden.md").write_text(text + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
