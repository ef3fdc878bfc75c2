from dataclasses import replace

import pytest
import torch
from torch import Generator

from abc_toolkit import examination as examining
from abc_toolkit.calibration.window import Windowed
from abc_toolkit.contexts import CannotDecideError, gaps
from abc_toolkit.data import held_out
from abc_toolkit.examination import THIN, Examination, Examined
from abc_toolkit.positions import Cyclic, NoPE
from abc_toolkit.tasks import Problems, Shape
from abc_toolkit.tasks.base import DigitTask
from abc_toolkit.transformer import EncoderDecoder
from tests.small_windows import ENCODER, LEARNT, RULES, fails, functions, learnt, leaves_of, make, window


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def every_gap(task: DigitTask, model: EncoderDecoder) -> torch.Tensor:
    """Leads in all contexts of the training shapes, `[context]`."""
    own = functions(task, model.position.window, model.position.inner)  # type: ignore[attr-defined]
    return torch.cat([gaps(model, part, part.contexts) for part in own])


def rows(found: Examined) -> list[tuple[Shape, list[int], list[int]]]:
    return [
        (part.shape, source.tolist(), target.tolist())
        for part in found.problems
        for source, target in zip(part.source, part.target, strict=True)
    ]


@pytest.mark.parametrize("name", RULES)
def test_an_untrained_model_is_weak_and_its_lessons_are_training_problems(name: str) -> None:
    task, rules = RULES[name]
    model = make(task, rules)
    found = Examination(task, model.position).of(model, seeded())
    assert 0 < found.weak <= found.contexts
    assert found.smallest_gap < 0
    assert 0 < len(rows(found)) <= min(256, found.weak)
    shapes = [part.shape for part in found.problems]
    assert len(shapes) == len(set(shapes))
    assert set(shapes) <= set(task.training_shapes())
    for part in found.problems:
        assert len(part.source) == len(part.target) == len(part) > 0
        assert not held_out(task, part).any()
        assert part.source.shape[1] == len(task.layout(part.shape).source)
        for source, target in zip(part.source, part.target, strict=True):
            assert task.vocabulary.decode(target) == task.solve(task.vocabulary.decode(source))


@pytest.mark.parametrize("encoder", [0, 1])
@pytest.mark.parametrize("name", ["parity", "successor"])
def test_each_of_the_weakest_contexts_occurs_in_a_lesson(
    name: str, encoder: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, rules = RULES[name]
    rules = (*rules, *ENCODER[: 2 * encoder])
    model = make(task, rules, encoder=encoder)
    monkeypatch.setattr(examining, "held_out", lambda _, problems: torch.zeros(len(problems), dtype=torch.bool))
    monkeypatch.setattr(examining, "_LESSONS", 40)
    monkeypatch.setattr(examining, "_SAMPLE", 10**6)
    found = Examination(task, model.position).of(model, seeded())
    own = functions(task, window(task, rules, encoder))
    weakest = torch.cat([gaps(model, part, part.contexts) for part in own]).sort().values[: min(40, found.weak)]
    assert len(rows(found)) == len(weakest)
    shown = []
    for part in own:
        for enumeration, contexts in part.parts:
            tokens, required = enumeration.tokens(contexts)
            for problems in (p for p in found.problems if p.shape == enumeration.shape):
                leaves, needed = leaves_of(enumeration.cone, problems), problems.target[:, enumeration.cone.query]
                same = (tokens[:, None] == leaves).all(dim=2) & (required[:, None] == needed)
                shown.append(gaps(model, part, contexts[same.any(dim=1)]) if same.any() else torch.zeros(0))
    held = torch.cat(shown)
    for gap in weakest:
        assert (held - gap).abs().min() < 1e-5


@pytest.mark.parametrize("name", LEARNT)
def test_a_model_that_has_learnt_everything_passes(name: str) -> None:
    task, model = learnt(name)
    examination = Examination(task, model.position)
    found = examination.of(model, seeded())
    leads = every_gap(task, model)
    assert (found.weak, found.problems, found.contexts) == (0, (), len(leads))
    assert found.smallest_gap == pytest.approx(float(leads.min()), abs=1e-5)
    assert not fails(task, model, min(task.max_length, 3))


def test_a_lead_below_the_threshold_is_weak() -> None:
    task, model = learnt("successor")
    leads = every_gap(task, model).sort().values
    examination = Examination(task, model.position)
    for number in (0, 3, 20):
        between = float(leads[number] + leads[number + 1]) / 2 if number else float(leads[0]) * 0.999
        shrunk = learnt("successor")[1]
        shrunk.output.weight.data *= THIN / between
        shrunk.output.bias.data *= THIN / between
        found = examination.of(shrunk, seeded())
        assert found.weak == (number + 1 if number else 0)
        assert found.smallest_gap == pytest.approx(float(leads[0]) * THIN / between, rel=1e-4)
        assert len(rows(found)) <= found.weak


def test_what_is_found_follows_from_model_and_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examining, "_SAMPLE", 30)
    task, rules = RULES["successor"]
    model = make(task, rules)
    examination = Examination(task, model.position)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    first, again, other = (examination.of(model, seeded(seed)) for seed in (3, 3, 4))
    assert rows(first) == rows(again) != rows(other)
    assert (first.contexts, first.weak, first.smallest_gap) == (again.contexts, again.weak, again.smallest_gap)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_sample_is_tried_first_and_everything_before_a_model_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    task, model = learnt("successor")
    examination = Examination(task, model.position)
    leads = every_gap(task, model)
    monkeypatch.setattr(examining, "_SAMPLE", 10)
    untrained = make(task, RULES["successor"][1])
    few = 10 * len(examination.functions)
    monkeypatch.setattr(examining, "_LESSONS", 5)
    assert examination.of(untrained, seeded()).contexts <= few < len(leads)
    # Weak in the very least context alone, which a sample would hardly hold.
    monkeypatch.setattr(examining, "THIN", float(leads.sort().values[:2].mean()))
    for seed in range(3):
        found = examination.of(model, seeded(seed))
        assert (found.contexts, found.weak) == (len(leads), 1)
        assert found.smallest_gap == pytest.approx(float(leads.min()), abs=1e-5)


def test_nothing_beyond_the_training_shapes_is_looked_at() -> None:
    task, rules = RULES["successor"]
    for longest in (1, 2, 3):
        short = replace(task, max_length=longest)
        examination = Examination(short, Windowed(window(task, rules), NoPE()))
        parts = [enumeration for own in examination.functions for enumeration, _ in own.parts]
        assert {enumeration.shape for enumeration in parts} == set(short.training_shapes())
        assert len(parts) == sum(length + 2 for length in range(1, longest + 1))
        found = examination.of(make(task, rules), seeded())
        assert {part.shape for part in found.problems} <= set(short.training_shapes())
        # Three digits do not show two zeros below a digit.
        count = sum(len(own.contexts) for own in examination.functions)
        assert count == {1: 30, 2: 231, 3: 1241}[longest]


def test_lessons_are_not_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held out stays so, whatever the model is weak in."""
    task = replace(RULES["successor"][0], max_length=6)
    model = make(task, RULES["successor"][1])
    examination = Examination(task, model.position)
    drawn: list[Problems] = []

    def watched(_: DigitTask, problems: Problems) -> torch.Tensor:
        drawn.append(problems)
        return held_out(task, problems)

    monkeypatch.setattr(examining, "held_out", watched)
    found = examination.of(model, seeded())
    assert len(drawn) == 256
    kept = [problem for problem in drawn if not held_out(task, problem).any()]
    assert 3 < len(drawn) - len(kept) < 30
    expected = sorted((p.shape, p.source[0].tolist(), p.target[0].tolist()) for p in kept)
    assert sorted(rows(found)) == expected


def test_positions_that_repeat_are_told_apart() -> None:
    task, rules = RULES["parity"]
    plain, cyclic = (Examination(task, Windowed(window(task, rules), own)) for own in (NoPE(), Cyclic(("place",))))
    assert sum(len(own.contexts) for own in cyclic.functions) > sum(len(own.contexts) for own in plain.functions)
    model = make(task, rules, Cyclic(("place",)))
    found = cyclic.of(model, seeded())
    assert found.smallest_gap == pytest.approx(float(every_gap(task, model).min()), abs=1e-5)


def test_too_many_contexts_are_refused() -> None:
    task, rules = RULES["successor"]
    position = Windowed(window(task, rules), NoPE())
    assert Examination(task, position, most=1341).functions
    with pytest.raises(CannotDecideError, match="contexts"):
        Examination(task, position, most=1340)
    with pytest.raises(CannotDecideError, match="the model has no window"):
        Examination(task, NoPE())
