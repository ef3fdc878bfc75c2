"""The table of the results of `run.py`: BLEU of each position method, beside the paper's on another text.

python experiments/translation/show.py
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from abc_toolkit.runs.files import save_text

HERE = Path(__file__).parent
# BLEU on WMT14 English to German, 6 + 6 layers of width 512 (Algebraic Positional Encodings, arXiv 2312.16045).
PAPER = {"Sinusoidal": 14.57, "Learned": 22.09, "ShawRelative": 23.15, "RoPE": 24.03, "AlgebraicPE": 23.93}
Result = Mapping[str, Any]


def report(results: Sequence[Result]) -> str:
    """The page `results.md`."""
    first = results[0]
    steps = sorted({result["steps"] for result in results})
    number = first["pairs"]["test"] if first["samples"] is None else first["samples"]
    by_method = {result["method"]: result for result in results}
    rows = [
        f"| {method} | {own['valid_perplexity']:.2f} | {own['bleu_greedy']:.1f} | {own['bleu']:.1f} | *{paper:.2f}* |"
        for method, paper in PAPER.items()
        if (own := by_method.get(method)) is not None
    ]
    return "\n".join(
        [
            "# Translation from English to German",
            "",
            f"Trained on {first['pairs']['train']:,} pairs of LibreOffice's help for "
            f"{', '.join(f'{number:,}' for number in steps)} steps, one seed. BLEU (sacrebleu, 13a) is of "
            f"{number:,} pairs from pages that are neither trained nor validated on; "
            f"{first['too_long']['test']} longer pairs are left out. Beam search has 4 beams and a length penalty "
            "of 0.6.",
            "",
            "**These are help texts.** They are short and repetitive. No test page is trained on, but training pages "
            "may say the same in nearly the same words, so that BLEU is not comparable with that of news. The last "
            "column is the paper's, on WMT14, of models with 6 + 6 layers of width 512 and 150,000 updates. The order "
            "of the methods is all that may be compared, and one seed does not settle it.",
            "",
            "| | perplexity of a subword, valid | BLEU, greedy | BLEU, beam search | *the paper's BLEU, WMT14* |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    parser.add_argument("--page", type=Path, default=HERE / "results.md")
    chosen = parser.parse_args()
    page = report(json.loads(chosen.results.read_text()))
    save_text(chosen.page, page)
    print(page)


if __name__ == "__main__":
    main()
