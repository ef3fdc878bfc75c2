from dataclasses import replace

import pytest
import torch
from torch import Generator

from abc_toolkit.models.transformer import EncoderDecoder
from abc_toolkit.positions import Compose, Cyclic, NoPE, Sinusoidal
from abc_toolkit.proof.forward import margins
from abc_toolkit.proof.receptive_field import CannotDecideError
from abc_toolkit.tasks import Problems, Shape
from abc_toolkit.tasks.digits.base import DigitTask
from abc_toolkit.training import coverage as covering
from abc_toolkit.training.coverage import THIN, Coverage, Covered
from abc_toolkit.training.data import held_out
from abc_toolkit.windows.rules import Condition
from tests.small_windows import ENCODER, RULES, SIZES, cross, decoder, fails, kinds, learnt, leaves_of, make


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def every_margin(task: DigitTask, model: EncoderDecoder) -> torch.Tensor:
    """Margins in all assignments of the training shapes, `[assignment]`."""
    return torch.cat([margins(model, part, part.assignments) for part in kinds(task, model)])


def rows(found: Covered) -> list[tuple[Shape, list[int], list[int]]]:
    return [
        (part.shape, source.tolist(), target.tolist())
        for part in found.hard_examples
        for source, target in zip(part.source, part.target, strict=True)
    ]


@pytest.mark.parametrize("name", RULES)
def test_an_untrained_model_is_weak_and_its_hard_examples_are_training_problems(name: str) -> None:
    task, rules = RULES[name]
    model = make(task, rules)
    found = Coverage(task, model).examine(model, seeded())
    assert 0 < found.weak <= found.assignments
    assert found.smallest_margin < 0
    assert 0 < len(rows(found)) <= min(256, found.weak)
    shapes = [part.shape for part in found.hard_examples]
    assert len(shapes) == len(set(shapes))
    assert set(shapes) <= set(task.training_shapes())
    for part in found.hard_examples:
        assert len(part.source) == len(part.target) == len(part) > 0
        assert not held_out(task, part).any()
        assert part.source.shape[1] == len(task.layout(part.shape).source)
        for source, target in zip(part.source, part.target, strict=True):
            assert task.vocabulary.decode(target) == task.solve(task.vocabulary.decode(source))


@pytest.mark.parametrize("encoder", [0, 1])
@pytest.mark.parametrize("name", ["parity", "successor"])
def test_each_of_the_weakest_assignments_occurs_in_a_hard_example(
    name: str, encoder: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, rules = RULES[name]
    rules = (*rules, *ENCODER[: 2 * encoder])
    model = make(task, rules, encoder=encoder)
    monkeypatch.setattr(covering, "held_out", lambda _, problems: torch.zeros(len(problems), dtype=torch.bool))
    monkeypatch.setattr(covering, "_HARD_EXAMPLES", 40)
    monkeypatch.setattr(covering, "_SAMPLE", 10**6)
    found = Coverage(task, model).examine(model, seeded())
    own = kinds(task, model)
    weakest = torch.cat([margins(model, part, part.assignments) for part in own]).sort().values[: min(40, found.weak)]
    assert len(rows(found)) == len(weakest)
    shown = []
    for part in own:
        for enumeration, assignments in part.parts:
            tokens, required = enumeration.tokens(assignments)
            for problems in (p for p in found.hard_examples if p.shape == enumeration.shape):
                leaves = leaves_of(enumeration.field, problems)
                needed = problems.target[:, enumeration.field.query]
                same = (tokens[:, None] == leaves).all(dim=2) & (required[:, None] == needed)
                shown.append(margins(model, part, assignments[same.any(dim=1)]) if same.any() else torch.zeros(0))
    held = torch.cat(shown)
    for margin in weakest:
        assert (held - margin).abs().min() < 1e-5


@pytest.mark.parametrize(
    "name",
    ["parity", *(pytest.param(name, marks=pytest.mark.slow) for name in ("successor", "addition without a decoder"))],
)
def test_a_model_that_has_learnt_everything_passes(name: str) -> None:
    task, model = learnt(name)
    coverage = Coverage(task, model)
    found = coverage.examine(model, seeded())
    leads = every_margin(task, model)
    assert (found.weak, found.hard_examples, found.assignments) == (0, (), len(leads))
    assert found.smallest_margin == pytest.approx(float(leads.min()), abs=1e-5)
    assert not fails(task, model, min(task.max_length, 3))


def test_a_lead_below_the_threshold_is_weak() -> None:
    task, model = learnt("successor")
    leads = every_margin(task, model).sort().values
    coverage = Coverage(task, model)
    for number in (0, 3, 20):
        between = float(leads[number] + leads[number + 1]) / 2 if number else float(leads[0]) * 0.999
        shrunk = learnt("successor")[1]
        shrunk.output.weight.data *= THIN / between
        shrunk.output.bias.data *= THIN / between
        found = coverage.examine(shrunk, seeded())
        assert found.weak == (number + 1 if number else 0)
        assert found.smallest_margin == pytest.approx(float(leads[0]) * THIN / between, rel=1e-4)
        assert len(rows(found)) <= found.weak


def test_what_is_found_follows_from_model_and_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(covering, "_SAMPLE", 30)
    task, rules = RULES["successor"]
    model = make(task, rules)
    coverage = Coverage(task, model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    first, again, other = (coverage.examine(model, seeded(seed)) for seed in (3, 3, 4))
    assert rows(first) == rows(again) != rows(other)
    figures = [(found.assignments, found.weak, found.smallest_margin) for found in (first, again)]
    assert figures[0] == figures[1]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_sample_is_tried_first_and_everything_before_a_model_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    task, model = learnt("successor")
    coverage = Coverage(task, model)
    leads = every_margin(task, model)
    monkeypatch.setattr(covering, "_SAMPLE", 10)
    untrained = make(task, RULES["successor"][1])
    few = 10 * len(coverage.kinds)
    monkeypatch.setattr(covering, "_HARD_EXAMPLES", 5)
    assert coverage.examine(untrained, seeded()).assignments <= few < len(leads)
    # Weak in the very least assignment alone, which a sample would hardly hold.
    monkeypatch.setattr(covering, "THIN", float(leads.sort().values[:2].mean()))
    for seed in range(3):
        found = coverage.examine(model, seeded(seed))
        assert (found.assignments, found.weak) == (len(leads), 1)
        assert found.smallest_margin == pytest.approx(float(leads.min()), abs=1e-5)


def test_nothing_beyond_the_training_shapes_is_looked_at() -> None:
    task, rules = RULES["successor"]
    for longest in (1, 2, 3):
        short = replace(task, max_length=longest)
        coverage = Coverage(short, make(task, rules))
        parts = [enumeration for own in coverage.kinds for enumeration, _ in own.parts]
        assert {enumeration.shape for enumeration in parts} == set(short.training_shapes())
        assert len(parts) == sum(length + 2 for length in range(1, longest + 1))
        found = coverage.examine(make(task, rules), seeded())
        assert {part.shape for part in found.hard_examples} <= set(short.training_shapes())
        # Three digits do not show two zeros below a digit.
        count = sum(len(own.assignments) for own in coverage.kinds)
        assert count == {1: 30, 2: 231, 3: 1241}[longest]


def test_hard_examples_are_not_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held out stays so, whatever the model is weak in."""
    task = replace(RULES["successor"][0], max_length=6)
    model = make(task, RULES["successor"][1])
    coverage = Coverage(task, model)
    drawn: list[Problems] = []

    def watched(_: DigitTask, problems: Problems) -> torch.Tensor:
        drawn.append(problems)
        return held_out(task, problems)

    monkeypatch.setattr(covering, "held_out", watched)
    found = coverage.examine(model, seeded())
    assert len(drawn) == 256
    kept = [problem for problem in drawn if not held_out(task, problem).any()]
    assert 3 < len(drawn) - len(kept) < 30
    expected = sorted((p.shape, p.source[0].tolist(), p.target[0].tolist()) for p in kept)
    assert sorted(rows(found)) == expected


def test_positions_that_repeat_are_told_apart() -> None:
    task, rules = RULES["parity"]
    one, other = Cyclic(("place",), period=3), Cyclic(("place",), period=2)
    inners = (NoPE(), one, Compose((one, other)))
    models = [make(task, rules, inner) for inner in inners]
    covers = [Coverage(task, model) for model in models]
    counts = [sum(len(own.assignments) for own in coverage.kinds) for coverage in covers]
    assert counts[0] < counts[1] < counts[2]
    model = models[1]
    found = covers[1].examine(model, seeded())
    assert found.smallest_margin == pytest.approx(float(every_margin(task, model).min()), abs=1e-5)


def test_too_many_assignments_are_refused() -> None:
    task, rules = RULES["successor"]
    model = make(task, rules)
    assert Coverage(task, model, most=1341).kinds
    with pytest.raises(CannotDecideError, match="assignments"):
        Coverage(task, model, most=1340)


def test_what_no_proof_can_rest_on_is_not_covered() -> None:
    """The short lengths of training would do for the assignments, and at longer ones more would come."""
    task, rules = RULES["successor"]
    for model, reason in (
        (EncoderDecoder(len(task.vocabulary), SIZES), "the model has no window"),
        (make(task, rules, Sinusoidal()), "nothing is known for every length of what Sinusoidal positions tell"),
        (make(task, (*rules, decoder(1, ()))), "is open to more tokens, the longer the problem"),
        (make(task, (*rules, cross(1, (Condition("place", 0, "index"),)))), "move apart as the length grows"),
    ):
        with pytest.raises(CannotDecideError, match=reason):
            Coverage(task, model)
