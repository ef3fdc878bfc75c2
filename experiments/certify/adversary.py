"""Random cases that try to be certified although they are wrong: how often each verdict is given, and how rightly.

Each is a random task, window and model of `tests/proof/adversary.py`, made from a seed. What certificates measure
beside what they prove is left out, so that the proof stands alone. What is in the results already is skipped.

    python -m experiments.certify.adversary --cases 10000
    python -m experiments.certify.adversary --cases 400 --predictions 50000 --results adversary_whole_budget.json
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from abc_toolkit.proof import certify
from abc_toolkit.runs.files import save_json
from tests.proof.adversary import Outcome, case, judged, proof_alone

HERE = Path(__file__).parent
FIRST_SEED = 10_000
# What a reason of an undecided verdict is about, by words in it.
GROUNDS = {
    "more predictions than the budget": "would have to be gone through",
    "a line that opens ever more keys or moves apart": "move apart",
    "a line that is open to more tokens": "is open to more tokens",
    "a line that counts whole strings": "counts whole strings",
    "positions of which nothing is known": "nothing is known for every length of what",
    "rounding": "rounding can make",
    "weights that may overflow": "overflow single precision",
    "wrong assignments, right answers": "but its answers are right",
    "too many assignments": "assignments",
    "too many tokens": "too many tokens",
}


def ground(reason: str) -> str:
    return next((name for name, words in GROUNDS.items() if words in reason), reason[:80])


def run(predictions: int, seed: int) -> tuple[Outcome, float]:
    torch.set_num_threads(1)
    start = time.process_time()
    with proof_alone(predictions):
        outcome = judged(case(seed), certify, most=16, longest=80)
    return outcome, time.process_time() - start


def summary(outcomes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    tried = {True: "no failing problem found", False: "fails"}
    counts = Counter(f"{own['verdict']}, {tried[own['right']]}" for own in outcomes)
    # A model that stands on rounding noise is right by chance: nothing else may be said of it.
    right = [own for own in outcomes if own["right"] and own["kind"] != "noise unit"]
    undecided = [own for own in right if own["verdict"] == "undecided"]
    return {
        "cases": len(outcomes),
        "faults": [own for own in outcomes if own["fault"]],
        "counts": dict(sorted(counts.items())),
        "by kind": dict(sorted(Counter(f"{own['kind']}: {own['verdict']}" for own in outcomes).items())),
        "share of right models left undecided, noise units aside": round(len(undecided) / max(len(right), 1), 3),
        "grounds of undecided right models": dict(Counter(ground(own["reason"]) for own in undecided).most_common()),
        "seconds of a processor": round(sum(own["seconds"] for own in outcomes), 1),
        "first seed": FIRST_SEED,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long; a later call goes on")
    parser.add_argument("--predictions", type=int, default=1500, help="most that a certificate goes through")
    parser.add_argument("--results", type=Path, default=HERE / "adversary.json")
    settings = parser.parse_args()
    before = json.loads(settings.results.read_text()) if settings.results.exists() else {}
    outcomes = before.get("outcomes", [])  # of a finished study the figures alone are kept
    start = time.monotonic()
    seeds = range(FIRST_SEED + len(outcomes), FIRST_SEED + settings.cases)
    with get_context("spawn").Pool(settings.processes) as pool:
        for outcome, seconds in pool.imap(partial(run, settings.predictions), seeds):
            outcomes.append({**vars(outcome), "seconds": round(seconds, 2)})
            faults = sum(bool(own["fault"]) for own in outcomes)
            print(f"\r{len(outcomes)} cases, {faults} faults", end="", flush=True)
            if outcome.fault or len(outcomes) % 20 == 0 or len(outcomes) == settings.cases:
                save_json(settings.results, summary(outcomes) | {"outcomes": outcomes})
            if time.monotonic() - start > 60 * settings.minutes:
                break
        pool.terminate()
    rest = {"outcomes": outcomes} if len(outcomes) < settings.cases else {}  # what a later call goes on from
    save_json(settings.results, summary(outcomes) | rest)
    print()


if __name__ == "__main__":
    main()
