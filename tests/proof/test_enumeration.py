import copy
import itertools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from abc_toolkit.calibration.window import Condition, Rule, Window, Windowed
from abc_toolkit.contexts import (
    CannotDecideError,
    Cone,
    Cones,
    Enumeration,
    all_of,
    cone_logits,
    decidable,
    functions_of,
    gaps,
)
from abc_toolkit.model import prefix_of, teacher_forced
from abc_toolkit.positions import ALiBi, AttentionPosition, Compose, Cyclic, NoPE, PositionMethod, Sinusoidal, Site
from abc_toolkit.tasks import Addition, Parity, Problems, Shape, Subtraction, Successor, Task
from abc_toolkit.tasks.base import DigitTask
from abc_toolkit.tasks.subtraction import Borrowing
from tests.small_windows import (
    BELOW,
    ENCODER,
    FIRST,
    OWN,
    RULES,
    TWO_BELOW,
    cross,
    decoder,
    every_problem,
    functions,
    leaves_of,
    make,
    rule_of,
    window,
)

WIDER = (decoder(0, BELOW), decoder(1, FIRST), cross(0, (Condition("index", 0),), layer=1))


def places_of(cone: Cone) -> list[tuple[str, int]]:
    return [(segment, token["place"]) for segment, token in cone.tokens]


def enumerations(task: DigitTask, rules: Sequence[Rule], shape: Shape) -> Iterator[Enumeration]:
    """Those of every prediction of a shape."""
    cones = Cones(window(task, rules), task.layout(shape))
    for query in range(len(cones.layout.target)):
        yield Enumeration(task, rule_of(task), shape, cones.of(query))


# What a prediction depends on.


@pytest.mark.parametrize("encoder", [0, 1])
@pytest.mark.parametrize("name", RULES)
@torch.no_grad()
def test_tokens_outside_a_cone_do_not_matter_and_those_inside_do(name: str, encoder: int) -> None:
    task, rules = RULES[name]
    own = (*rules, decoder(1, TWO_BELOW, layer=0), *ENCODER[: 2 * encoder])
    model = make(task, own, encoder=encoder).double()
    shape = task.training_shapes()[-1]
    layout = task.layout(shape)
    problems = task.sample(torch.Generator().manual_seed(1), 1, shape)
    prefix = prefix_of(problems.target)
    cones = [Cones(window(task, own, encoder), layout).of(query) for query in range(len(layout.target))]
    before = model(problems.source, prefix, layout)[0]
    for string, tokens in (("source", problems.source), ("prefix", prefix)):
        for number in range(tokens.shape[1]):
            other = tokens.clone()
            other[0, number] += 1 if other[0, number] < len(task.vocabulary) - 1 else -1
            changed = (other, prefix) if string == "source" else (problems.source, other)
            moved = (model(*changed, layout)[0] - before).abs().amax(dim=1)
            inside = torch.tensor([(string, number) in cone.leaves for cone in cones])
            assert torch.equal(moved > 1e-9, inside), (string, number)


@pytest.mark.parametrize("inner", [NoPE(), Cyclic()], ids=str)
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("encoder", [0, 1])
@pytest.mark.parametrize("name", RULES)
@torch.no_grad()
def test_a_cone_alone_gives_the_models_logits(name: str, encoder: int, double: bool, inner: PositionMethod) -> None:
    task, rules = RULES[name]
    own = (*rules, decoder(1, TWO_BELOW, layer=0), *ENCODER[: 2 * encoder])
    model = make(task, own, inner, encoder)
    near = {"atol": 1e-12, "rtol": 1e-12} if double else {"atol": 2e-5, "rtol": 1e-5}
    model = model.double() if double else model
    for shape in task.training_shapes():
        layout = task.layout(shape)
        problems = task.sample(torch.Generator().manual_seed(1), 16, shape)
        whole = teacher_forced(model, problems, layout)
        cones = Cones(window(task, own, encoder), layout, inner)
        for query in range(len(layout.target)):
            cone = cones.of(query)
            logits = cone_logits(model, cone, leaves_of(cone, problems))
            assert logits.dtype == whole.dtype
            torch.testing.assert_close(logits, whole[:, query], **near)


@pytest.mark.parametrize("encoder", [0, 1])
@pytest.mark.parametrize("name", ["successor", "multiplication"])
@torch.no_grad()
def test_contexts_that_differ_in_some_leaves_are_not_mixed_up(name: str, encoder: int) -> None:
    """Contexts that agree in most leaves give, all at once, what each gives alone."""
    task, rules = RULES[name]
    own = (*rules, decoder(1, TWO_BELOW, layer=0), *ENCODER[: 2 * encoder])
    model = make(task, own, encoder=encoder).double()
    shape = task.training_shapes()[-1]
    cone = Cones(window(task, own, encoder), task.layout(shape)).of(2)
    base = leaves_of(cone, task.sample(torch.Generator().manual_seed(1), 1, shape))
    pairs = itertools.product(range(base.shape[1]), (4, 7), range(base.shape[1]), (5, 7))
    rows = []
    for first, value, second, other in pairs:
        row = base.clone()
        row[0, first], row[0, second] = value, other
        rows.append(row)
    tokens = torch.cat(rows)
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))
    together = cone_logits(model, cone, tokens[order])
    alone = torch.cat([cone_logits(model, cone, row[None]) for row in tokens[order]])
    torch.testing.assert_close(together, alone, atol=1e-12, rtol=1e-12)
    assert len(together.unique(dim=0)) >= 0.9 * len(tokens.unique(dim=0))


# What it can be.


@pytest.mark.parametrize("name", RULES)
def test_what_is_enumerated_is_what_occurs(name: str) -> None:
    task, rules = RULES[name]
    shapes = [shape for shape in task.training_shapes() if task.num_problems(shape) <= 10_000][-3:]
    for shape, own in itertools.product(shapes, (rules, (*rules, *WIDER))):
        problems = every_problem(task, shape)
        for query, enumeration in enumerate(enumerations(task, own, shape)):
            leaves = leaves_of(enumeration.cone, problems)
            occurs = set(map(tuple, torch.cat([leaves, problems.target[:, query : query + 1]], dim=1).tolist()))
            tokens, required = enumeration.tokens(enumeration.contexts())
            found = torch.cat([tokens, required[:, None]], dim=1).tolist()
            assert len(found) == len(set(map(tuple, found)))
            assert set(map(tuple, found)) == occurs


@pytest.mark.parametrize(
    ("name", "more"), [*((name, ()) for name in RULES), *((name, WIDER) for name in ("parity", "successor"))]
)
def test_cones_that_are_alike_share_their_contexts(name: str, more: Sequence[Rule]) -> None:
    task = replace(RULES[name][0], max_length=5)
    known: dict[Hashable, Tensor] = {}
    predictions = []
    for shape in task.training_shapes():
        for enumeration in enumerations(task, (*RULES[name][1], *more), shape):
            shared = Enumeration(task, enumeration.rule, shape, enumeration.cone, known)
            assert torch.equal(shared.contexts(), enumeration.contexts())
            predictions.append(shared)
    assert len(known) < len(predictions) or more
    assert len({id(own.contexts()) for own in predictions}) == len(known)


@pytest.mark.parametrize("name", RULES)
def test_a_context_is_found_in_a_problem(name: str) -> None:
    task, rules = RULES[name]
    shape = replace(task, max_length=5).training_shapes()[-1]
    for enumeration in enumerations(task, rules, shape):
        contexts = enumeration.contexts()
        for number, context in enumerate(contexts[:: max(1, len(contexts) // 7)]):
            generator = torch.Generator().manual_seed(number)
            smallest, *drawn = [enumeration.problem(context)] + [enumeration.problem(context, generator) for _ in "ab"]
            for problem in (smallest, *drawn):
                check_holds(enumeration, context, problem)
            digits = [problem.source[0, enumeration.cone.layout.source.within("operand 1")] for problem in drawn]
            assert all((digits.sum() >= smallest.source[0, : len(digits)].sum()) for digits in digits)


def check_holds(enumeration: Enumeration, context: Tensor, problem: Problems) -> None:
    """Whether one right problem of the shape holds a context."""
    task, cone = enumeration.task, enumeration.cone
    text = task.vocabulary.decode(problem.source[0])
    assert problem.shape == enumeration.shape
    assert len(problem.source) == len(problem.target) == 1
    assert problem.source.shape[1] == len(cone.layout.source)
    assert problem.target.shape[1] == len(cone.layout.target)
    assert task.parse(text) == (enumeration.shape, text)
    assert task.vocabulary.decode(problem.target[0]) == task.solve(text)
    leaves, required = enumeration.tokens(context[None])
    assert torch.equal(leaves_of(cone, problem), leaves)
    assert torch.equal(problem.target[:, cone.query], required)


@pytest.mark.parametrize("name", RULES)
def test_a_generator_draws_what_a_context_leaves_open(name: str) -> None:
    task, rules = RULES[name]
    shape = replace(task, max_length=4 if task.name == "addition" else 6).training_shapes()[-1]
    enumeration = list(enumerations(task, rules, shape))[3]
    context = enumeration.contexts()[0]

    def texts(seed: int) -> list[str]:
        generator = torch.Generator().manual_seed(seed)
        return [task.vocabulary.decode(enumeration.problem(context, generator).source[0]) for _ in range(12)]

    state = torch.get_rng_state()
    assert texts(0) == texts(0)
    assert len(set(texts(0) + texts(1))) > 5
    smallest = {task.vocabulary.decode(enumeration.problem(context).source[0]) for _ in range(2)}
    assert len(smallest) == 1
    assert torch.equal(torch.get_rng_state(), state)


def test_a_drawn_constant_is_any_that_the_context_allows() -> None:
    """Only what a context shows of the second factor is fixed."""
    task, _ = RULES["multiplication"]
    (enumeration, *_) = enumerations(task, (), (3,))
    (context,) = (
        c for c in enumeration.contexts() if int(enumeration.tokens(c[None])[1]) == task.vocabulary.encode("0")
    )
    generator = torch.Generator().manual_seed(0)
    texts = [task.vocabulary.decode(enumeration.problem(context, generator).source[0]) for _ in range(60)]
    assert len({text[-1] for text in texts}) > 5
    assert len({text[0] for text in texts}) > 5


def test_too_many_contexts_are_refused_with_the_prediction_that_has_them() -> None:
    task, rules = RULES["addition"]
    enumeration = list(enumerations(task, rules, (2, 2)))[1]
    count = len(enumeration.contexts())
    cone = enumeration.cone
    few = Enumeration(task, rule_of(task), (2, 2), cone, most=50)
    with pytest.raises(CannotDecideError, match=r"more than 50 contexts: a prediction depends on at place 1 of 2x2,"):
        few.contexts()
    predictions = [((2, 2), own.cone) for own in enumerations(task, rules, (2, 2))]
    total = sum(len(own.contexts) for own in functions_of(task, rule_of(task), predictions))
    assert total > count
    assert sum(len(own.contexts) for own in functions_of(task, rule_of(task), predictions, most=total)) == total
    with pytest.raises(CannotDecideError, match=rf"there are {total:,} contexts, more than {total - 1:,}$"):
        functions_of(task, rule_of(task), predictions, most=total - 1)


def test_what_the_cone_does_not_show_is_not_counted() -> None:
    """Between the places of a cone there may be many more, each with digits of its own."""
    _, rules = RULES["subtraction"]
    task = Subtraction(max_length=9)
    for enumeration in enumerations(task, rules, (9, 9)):
        few = Enumeration(task, rule_of(task), (9, 9), enumeration.cone, most=30_000)
        assert len(few.contexts()) < 10_000


class Patient(Borrowing):
    """Subtraction with many states more than there are tokens."""

    num_states = 8 * Borrowing.num_states
    starts = tuple(8 * start for start in Borrowing.starts)

    def step(self, state: Tensor, digits: Sequence[Tensor], constants: Sequence[Tensor]) -> Any:
        after, written = super().step(state // 8, digits, constants)
        return 8 * after + (digits[0] + digits[1]) % 8, written

    def ends_well(self, state: Tensor) -> Tensor:
        return super().ends_well(state // 8)


def test_a_rule_may_have_more_states_than_there_are_tokens() -> None:
    task, rules = RULES["subtraction"]
    rule = Patient(task.base)
    assert rule.num_states > len(task.vocabulary)
    for own in enumerations(task, rules, (3, 3)):
        more = Enumeration(task, rule, (3, 3), own.cone)
        for found, expected in zip(more.tokens(more.contexts()), own.tokens(own.contexts()), strict=True):
            assert torch.equal(found, expected)


def test_a_cone_of_too_many_tokens_is_refused() -> None:
    task = Successor(max_length=20)
    rules = [cross(0, (Condition("place", offset, "place"),)) for offset in range(18)]
    last = list(enumerations(task, rules, (20,)))[-3]
    with pytest.raises(CannotDecideError, match="depends on too many tokens: at place 19 of 20, from operand 1 place"):
        last._packed([torch.zeros(1, dtype=torch.long)] * 18)
    assert last._packed([torch.ones(1, dtype=torch.long)] * 17).item() > 0
    assert len(last.describe().split(",")) == 1 + len(last.cone.leaves)


def test_a_context_is_described_token_by_token() -> None:
    task, rules = RULES["successor"]
    enumeration = list(enumerations(task, rules, (3,)))[2]
    assert enumeration.where() == "at place 2 of 3"
    tokens = "operand 1 place 2, operand 1 place 1, answer place 0, answer place 1"
    assert enumeration.describe() == f"at place 2 of 3, from {tokens}"
    context = enumeration.contexts()[0]
    words = enumeration.describe(context)
    assert words.count(" = ") == len(enumeration.cone.leaves)
    leaves, _ = enumeration.tokens(context[None])
    for (segment, place), token in zip(places_of(enumeration.cone), leaves[0], strict=True):
        assert f"{segment} place {place} = {task.vocabulary.decode(token[None])}" in words


def test_all_tuples_below_some_sizes() -> None:
    assert all_of([2, 1, 3]).tolist() == [[a, 0, b] for a in range(2) for b in range(3)]
    assert all_of([]).shape == (1, 0)


# The functions that a model is.


@pytest.mark.parametrize("name", RULES)
def test_functions_hold_every_prediction_and_every_context(name: str) -> None:
    task, rules = RULES[name]
    found = functions(task, window(task, rules))
    expected = [(shape, query) for shape in task.training_shapes() for query in range(len(task.layout(shape).target))]
    parts = [(enumeration.shape, enumeration.cone.query) for own in found for enumeration, _ in own.parts]
    assert sorted(parts) == sorted(expected)
    for own in found:
        assert own.enumeration is own.parts[0][0]
        assert len({enumeration.cone.form for enumeration, _ in own.parts}) == 1
        held = set().union(*(part.tolist() for _, part in own.parts))
        assert own.contexts.tolist() == sorted(held)
        for context in own.contexts[:: max(1, len(own.contexts) // 20)]:
            met = own.met(context)
            assert met == [enumeration for enumeration, part in own.parts if context in part]
            assert met
    assert len({own.enumeration.cone.form for own in found}) == len(found)


@pytest.mark.parametrize("inner", [NoPE(), Cyclic(("place",), period=2), Cyclic(("raw", "raw_from_end"))], ids=str)
@pytest.mark.parametrize("name", ["parity", "successor"])
@torch.no_grad()
def test_equal_forms_are_one_function(name: str, inner: PositionMethod) -> None:
    """Predictions of one form get equal logits for equal tokens, whichever of their cones computes them."""
    task, rules = RULES[name]
    model = make(task, rules, inner).double()
    several = 0
    for own in functions(replace(task, max_length=9), window(task, rules), inner):
        tokens, _ = own.enumeration.tokens(own.contexts[:: max(1, len(own.contexts) // 50)])
        first, *others = [cone_logits(model, enumeration.cone, tokens) for enumeration, _ in own.parts]
        several += len(others)
        for other in others:
            torch.testing.assert_close(other, first, atol=1e-6, rtol=1e-6)  # sinusoids are in single precision
    assert several > 5


@torch.no_grad()
def test_predictions_that_differ_in_biases_alone_are_not_one_function() -> None:
    """At place 2 the own digit counts for more."""
    task = Successor(max_length=6)
    rules = (cross(0), cross(0, FIRST), replace(cross(0, (*OWN, Condition("place", 2))), bias=2.0))
    model = make(task, rules).double()
    cones = Cones(window(task, rules), task.layout((6,)))
    second, third, fourth = (cones.of(query) for query in (2, 3, 4))
    tokens = torch.tensor([[4, 6, 7]])
    assert not torch.allclose(cone_logits(model, second, tokens), cone_logits(model, third, tokens))
    assert torch.allclose(cone_logits(model, third, tokens), cone_logits(model, fourth, tokens))
    assert second.form != third.form == fourth.form


@torch.no_grad()
def test_gaps_are_leads_of_the_required_token(monkeypatch: pytest.MonkeyPatch) -> None:
    task, rules = RULES["successor"]
    model = make(task, rules)
    (_, own, *_) = functions(task, window(task, rules))
    contexts = own.contexts[torch.tensor([5, 0, 3, 3])]
    tokens, required = own.enumeration.tokens(contexts)
    expected = []
    for row, right in zip(cone_logits(model, own.enumeration.cone, tokens).tolist(), required.tolist(), strict=True):
        expected.append(row[right] - max(value for token, value in enumerate(row) if token != right))
    monkeypatch.setattr("abc_toolkit.contexts._AT_ONCE", 3)
    assert gaps(model, own, contexts).tolist() == pytest.approx(expected, abs=1e-5)
    broken = copy.deepcopy(model)
    broken.output.bias[int(required[0])] = torch.nan
    assert (gaps(broken, own, contexts) == -torch.inf).all()


# What cannot be decided.


@dataclass(frozen=True)
class Foreign(PositionMethod):
    """Positions beside which nothing else is known."""


def line(site: str, *conditions: Condition, segment: str | None = None) -> Rule:
    return Rule(site, 0, 1, segment, conditions)  # type: ignore[arg-type]


SEGMENT = Condition("segment", 0)
ADDITION = Addition(max_length=2)
DECIDABLE = {
    "a place of any segment": line("cross", *OWN),
    "the operator": line("cross", segment="operator"),
    "an end": line("cross", Condition("index", 0), segment="operand 2"),
    "raw in the decoder": line("decoder", Condition("raw", 1, "raw")),
    "the start": line("decoder", segment="start"),
    "the operator in the encoder": line("encoder", segment="operator"),
}
UNDECIDABLE = {
    "raw in cross-attention": (line("cross", Condition("raw", 2), segment="operand 1"), "counts whole strings"),
    "from the end": (line("cross", Condition("raw_from_end", 0, "index")), "counts whole strings"),
    "against raw": (line("cross", Condition("place", 0, "raw"), segment="operand 1"), "counts whole strings"),
    "raw in the encoder": (line("encoder", Condition("raw", 0, "raw")), "counts whole strings"),
    "all in cross-attention": (line("cross"), "is open to more tokens, the longer the problem"),
    "an operand": (line("cross", segment="operand 2"), "is open to more tokens, the longer the problem"),
    "a segment by its number": (line("cross", SEGMENT), "is open to more tokens, the longer the problem"),
    "all in the decoder": (line("decoder"), "is open to more tokens, the longer the problem"),
    "the answer": (line("decoder", segment="answer"), "is open to more tokens, the longer the problem"),
    "all in the encoder": (line("encoder"), "is open to more tokens, the longer the problem"),
    "an operand in the encoder": (line("encoder", segment="operand 1"), "is open to more tokens, the longer"),
    "a fallback": (replace(line("cross"), fallback=True), "is open to more tokens, the longer the problem"),
}


@pytest.mark.parametrize("case", DECIDABLE)
def test_lines_that_reach_a_fixed_number_of_tokens_can_be_decided(case: str) -> None:
    own = window(ADDITION, (*RULES["addition"][1], DECIDABLE[case]), encoder=1)
    task, rule, found, _ = decidable(ADDITION, Windowed(own, NoPE()))
    assert (task, type(rule), found) == (ADDITION, type(ADDITION.local_rule()), own)


@pytest.mark.parametrize("case", UNDECIDABLE)
def test_a_line_without_end_is_named(case: str) -> None:
    rule, what = UNDECIDABLE[case]
    own = window(ADDITION, (*RULES["addition"][1], rule), encoder=1)
    with pytest.raises(CannotDecideError) as caught:
        decidable(ADDITION, Windowed(own, NoPE()))
    words = str(caught.value)
    assert words.startswith(f"the line '{rule.describe()}' ({rule.site} layer 0 head 1) {what}")
    assert "\n" not in words


class Fading(NoPE):
    """A method that inherits what NoPE says of itself, and does more."""

    def at(self, site: Site, layer: int, num_heads: int, head_dim: int) -> AttentionPosition:
        return ALiBi().at(site, layer, num_heads, head_dim)


@pytest.mark.parametrize(
    ("task", "position", "reason"),
    [
        (Parity(form="label"), Windowed(window(Parity(), ()), NoPE()), "parity has no local rule"),
        (Parity(), NoPE(), "the model has no window"),
        (Parity(), Sinusoidal(), "the model has no window"),
        (Parity(), Windowed(window(Parity(), ()), Sinusoidal()), "Sinusoidal positions tell places apart"),
        (Parity(), Windowed(window(Parity(), ()), Fading()), "Fading positions tell places apart"),
        (Parity(), Windowed(window(Parity(), ()), Compose((NoPE(), Fading()))), "Compose positions tell places apart"),
        (Parity(), Windowed(window(Parity(), ()), Foreign()), "Foreign positions tell places apart"),
    ],
)
def test_what_a_proof_lacks_is_named(task: Task, position: PositionMethod, reason: str) -> None:
    with pytest.raises(CannotDecideError, match=reason):
        decidable(task, position)


def test_a_cone_knows_its_tokens() -> None:
    task, rules = RULES["addition"]
    cone: Cone = Cones(window(task, rules), task.layout((2, 2))).of(2)
    assert set(zip(cone.leaves, places_of(cone), strict=True)) == {
        (("source", 0), ("operand 1", 1)),
        (("source", 3), ("operand 2", 1)),
        (("prefix", 1), ("answer", 0)),
        (("prefix", 2), ("answer", 1)),
    }
    empty = Cones(Window("Addition", 0, 1, 1, (), {}), task.layout((2, 2))).of(0)
    assert (empty.leaves, places_of(empty)) == ((("prefix", 0),), [("start", 0)])
