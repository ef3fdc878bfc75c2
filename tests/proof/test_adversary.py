from collections import Counter

import pytest
import torch

from abc_toolkit.proof import certify
from tests.proof.adversary import Outcome, case, failing, judged, proof_alone, shapes_to, solves

CHUNKS, FAST, SIZE = 15, 2, 20
SEEN: dict[int, Outcome] = {}
BUDGET = 600  # predictions that a certificate goes through


def outcomes(chunk: int) -> list[Outcome]:
    """The outcomes of a chunk of cases; each is made once a session."""
    for seed in range(chunk * SIZE, (chunk + 1) * SIZE):
        if seed not in SEEN:
            with proof_alone(BUDGET):
                SEEN[seed] = judged(case(seed), certify, most=10, longest=40)
    return [SEEN[seed] for seed in range(chunk * SIZE, (chunk + 1) * SIZE)]


@pytest.mark.parametrize("chunk", [pytest.param(n, marks=[pytest.mark.slow] * (n >= FAST)) for n in range(CHUNKS)])
def test_no_certificate_is_wrong(chunk: int) -> None:
    """A model that is certified fails on no problem, and one that is refuted fails on the problem that is named."""
    assert [own for own in outcomes(chunk) if own.fault] == []


def test_cases_are_of_every_kind() -> None:
    found = [own for chunk in range(FAST) for own in outcomes(chunk)]
    verdicts = Counter(own.verdict for own in found)
    assert min(verdicts[verdict] for verdict in ("correct", "wrong", "undecided")) >= 3
    assert any(not own.right for own in found if own.kind in ("short", "pinned"))
    # Of right models, those that are not certified are few beside what costs too much or has positions of its own.
    right = [own for own in found if own.right and "would have to be gone" not in own.reason]
    assert sum(own.verdict == "correct" for own in right) > 0.5 * len(right)


@pytest.mark.parametrize("seed", [1, 8])
def test_what_judges_finds_a_wrong_entry(seed: int) -> None:
    """A model that was right is no longer once a token's output is turned off."""
    own = case(seed)
    shapes = shapes_to(own.task, 3)
    assert failing(own.task, own.model, shapes, 4, 64) is None
    own.model.output.bias.data[2] = -1000
    problem = failing(own.task, own.model, shapes, 4, 64)
    assert problem is not None
    assert not solves(own.task, own.model, problem)


def test_a_seed_makes_one_case() -> None:
    first, second = case(5), case(5)
    assert first.describe() == second.describe()
    pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
