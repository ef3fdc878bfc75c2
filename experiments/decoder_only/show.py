"""Makes the table of `results.md` from `results.json`: `python experiments/decoder_only/show.py`."""

import json
import statistics
from pathlib import Path

HERE = Path(__file__).parent
NAMES = {
    "decoder-only": "decoder-only, in its window",
    "encoder-decoder": "encoder-decoder, in its window",
    "gpt": "GPT: decoder-only, 2 layers, RoPE",
}


def worst(result: dict, far: bool) -> float:
    """The worst suite at the training length, or at ten times it, in per cent."""
    weights = "fit" if result["backbone"] == "gpt" else "retrain"
    lengths = [row["length"] for row in result["rows"]]
    length = max(lengths) if far else min(lengths)
    own = [row["value"] for row in result["rows"] if row["weights"] == weights and row["length"] == length]
    return 100 * min(own)


def spread(values: list[float]) -> str:
    """The median, and the least where they differ."""
    median, least = f"{statistics.median(values):.4g}", f"{min(values):.4g}"
    return median if median == least and min(values) == max(values) else f"{median} ({least})"


def row(task: str, backbone: str, own: list[dict]) -> str:
    """A row of the table."""
    lengths = [length["length"] for length in own[0]["rows"]]
    cells = [task, NAMES[backbone], str(len(own)), f"{min(lengths)} to {max(lengths)}"]
    cells += [spread([worst(result, far) for result in own]) for far in (False, True)]
    if backbone == "gpt":
        cells += ["", "", ""]
    else:
        right = sum(result.get("verdict") == "correct" for result in own)
        agreed = sum(result.get("checker") == 0 for result in own)
        heads = {result["phases"]["calibrate"]["rules"] for result in own}
        cells += [
            f"{right} of {len(own)}",
            f"{agreed} of {len(own)}",
            " to ".join(map(str, sorted(heads)[:: max(1, len(heads) - 1)])),
        ]
    steps = [
        statistics.median(result["phases"][phase]["steps"] for result in own)
        for phase in ("fit", "retrain")
        if all(phase in r["phases"] for r in own)
    ]
    cells += [" + ".join(f"{step:.0f}" for step in steps), f"{statistics.median(r['seconds'] for r in own):.0f}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    results = json.loads((HERE / "results.json").read_text())
    lines = [
        "# Decoder-only models in calibrated windows",
        "",
        "Made by `show.py` from `results.json`, which `run.py` measured. Exact match in per cent on the worst of all",
        "suites, 1,000 problems each (long multiplication 100, the GPT 10): the median over seeds and, in brackets,",
        "the worst seed. Seconds are medians on shared cores with other work beside them: compare them roughly.",
        "",
        "| task | model | seeds | trained to, tested at | 1x | 10x | correct at every length | checker agrees | lines "
        "| steps, fit + retrain | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for task in dict.fromkeys(result["task"] for result in results):
        for backbone in NAMES:
            own = [result for result in results if (result["task"], result["backbone"]) == (task, backbone)]
            lines += [row(task, backbone, own)] if own else []
    (HERE / "results.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
