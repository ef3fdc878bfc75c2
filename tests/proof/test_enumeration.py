import copy
import itertools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from abc_toolkit.models.base import predict, prefix_of
from abc_toolkit.models.transformer import DecoderOnly, EncoderDecoder
from abc_toolkit.positions import ALiBi, AttentionPosition, Compose, Cyclic, NoPE, PositionMethod, Sinusoidal, Site
from abc_toolkit.proof.basis import basis_of
from abc_toolkit.proof.bound import Bound, bound_of
from abc_toolkit.proof.enumeration import Enumeration, Reading, kinds_of
from abc_toolkit.proof.forward import margins, receptive_field_logits
from abc_toolkit.proof.receptive_field import CannotDecideError, ReceptiveField, ReceptiveFields
from abc_toolkit.proof.table import TabledRule, all_of
from abc_toolkit.tasks import (
    Addition,
    LongMultiplication,
    MultiOperandAddition,
    Parity,
    Problems,
    Shape,
    Subtraction,
    Successor,
    Task,
)
from abc_toolkit.tasks.digits.base import DigitTask
from abc_toolkit.tasks.digits.copying import Written
from abc_toolkit.tasks.digits.rule import LocalRule, Read
from abc_toolkit.tasks.digits.subtraction import Borrowing
from abc_toolkit.vocabulary import EOS
from abc_toolkit.windows.attention import Windowed
from abc_toolkit.windows.rules import Condition, Rule, Window
from tests.small_windows import (
    BELOW,
    ENCODER,
    FIRST,
    OWN,
    RULES,
    SIZES,
    TWO_BELOW,
    cross,
    decoder,
    every_problem,
    kinds,
    leaves_of,
    make,
    predictions,
    rule_of,
    window,
)

WIDER = (decoder(0, BELOW), decoder(1, FIRST), cross(0, (Condition("index", 0),), layer=1))


def places_of(field: ReceptiveField) -> list[tuple[str, int]]:
    return [(segment, token["place"]) for segment, token in field.tokens]


def enumerations(task: DigitTask, rules: Sequence[Rule], shape: Shape) -> Iterator[Enumeration]:
    """The enumerations of every prediction of a shape."""
    reading = Reading(rule_of(task), task.layout(shape))
    fields = ReceptiveFields(window(task, rules), reading.layout)
    for query in range(len(reading.layout.target)):
        yield Enumeration(task, reading, task.sizes(shape), shape, fields.at(query))


def again(own: Enumeration, **others: Any) -> Enumeration:
    """The same enumeration anew."""
    return Enumeration(own.task, Reading(own.rule, own.field.layout), own.sizes, own.shape, own.field, **others)


# What a prediction depends on.


@pytest.mark.parametrize("encoder", [0, 1])
@pytest.mark.parametrize("name", RULES)
@torch.no_grad()
def test_tokens_outside_a_receptive_field_do_not_matter_and_those_inside_do(name: str, encoder: int) -> None:
    task, rules = RULES[name]
    own = (*rules, decoder(1, TWO_BELOW, layer=0), *ENCODER[: 2 * encoder])
    model = make(task, own, encoder=encoder).double()
    shape = task.training_shapes()[-1]
    layout = task.layout(shape)
    problems = task.sample(torch.Generator().manual_seed(1), 1, shape)
    prefix = prefix_of(problems.target)
    fields = [ReceptiveFields(window(task, own, encoder), layout).at(query) for query in range(len(layout.target))]
    before = model(problems.source, prefix, layout)[0]
    for string, tokens in (("source", problems.source), ("prefix", prefix)):
        for number in range(tokens.shape[1]):
            other = tokens.clone()
            other[0, number] += 1 if other[0, number] < len(task.vocabulary) - 1 else -1
            changed = (other, prefix) if string == "source" else (problems.source, other)
            moved = (model(*changed, layout)[0] - before).abs().amax(dim=1)
            inside = torch.tensor([(string, number) in field.leaves for field in fields])
            assert torch.equal(moved > 1e-9, inside), (string, number)


@pytest.mark.parametrize("inner", [NoPE(), Cyclic()], ids=str)
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("encoder", [0, 1])
@pytest.mark.parametrize("name", RULES)
@torch.no_grad()
def test_a_receptive_field_alone_gives_the_models_logits(
    name: str, encoder: int, double: bool, inner: PositionMethod
) -> None:
    task, rules = RULES[name]
    own = (*rules, decoder(1, TWO_BELOW, layer=0), *ENCODER[: 2 * encoder])
    model = make(task, own, inner, encoder)
    near = {"atol": 1e-12, "rtol": 1e-12} if double else {"atol": 2e-5, "rtol": 1e-5}
    model = model.double() if double else model
    for shape in task.training_shapes():
        layout = task.layout(shape)
        problems = task.sample(torch.Generator().manual_seed(1), 16, shape)
        whole = predict(model, problems, layout)
        fields = ReceptiveFields(window(task, own, encoder), layout, model.positioning)
        for query in range(len(layout.target)):
            field = fields.at(query)
            logits = receptive_field_logits(model, field, leaves_of(field, problems))
            assert logits.dtype == whole.dtype
            torch.testing.assert_close(logits, whole[:, query], **near)


@pytest.mark.parametrize("encoder", [0, 1])
@pytest.mark.parametrize("name", ["successor", "multiplication"])
@torch.no_grad()
def test_assignments_that_differ_in_some_leaves_are_not_mixed_up(name: str, encoder: int) -> None:
    """Assignments that agree in most leaves have the same logits together as alone."""
    task, rules = RULES[name]
    own = (*rules, decoder(1, TWO_BELOW, layer=0), *ENCODER[: 2 * encoder])
    model = make(task, own, encoder=encoder).double()
    shape = task.training_shapes()[-1]
    field = ReceptiveFields(window(task, own, encoder), task.layout(shape)).at(2)
    base = leaves_of(field, task.sample(torch.Generator().manual_seed(1), 1, shape))
    pairs = itertools.product(range(base.shape[1]), (4, 7), range(base.shape[1]), (5, 7))
    rows = []
    for first, value, second, other in pairs:
        row = base.clone()
        row[0, first], row[0, second] = value, other
        rows.append(row)
    tokens = torch.cat(rows)
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))
    together = receptive_field_logits(model, field, tokens[order])
    alone = torch.cat([receptive_field_logits(model, field, row[None]) for row in tokens[order]])
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
            leaves = leaves_of(enumeration.field, problems)
            occurs = set(map(tuple, torch.cat([leaves, problems.target[:, query : query + 1]], dim=1).tolist()))
            tokens, required = enumeration.tokens(enumeration.assignments())
            found = torch.cat([tokens, required[:, None]], dim=1).tolist()
            assert len(found) == len(set(map(tuple, found)))
            assert set(map(tuple, found)) == occurs


@pytest.mark.parametrize(
    ("name", "more"), [*((name, ()) for name in RULES), *((name, WIDER) for name in ("parity", "successor"))]
)
def test_receptive_fields_that_are_alike_share_their_assignments(name: str, more: Sequence[Rule]) -> None:
    task = replace(RULES[name][0], max_length=5)
    known: dict[Hashable, Tensor] = {}
    every = []
    for shape in task.training_shapes():
        for enumeration in enumerations(task, (*RULES[name][1], *more), shape):
            shared = again(enumeration, known=known)
            assert torch.equal(shared.assignments(), enumeration.assignments())
            every.append(shared)
    assert len(known) < len(every) or more
    assert len({id(own.assignments()) for own in every}) == len(known)


@pytest.mark.parametrize("name", RULES)
def test_an_assignment_is_found_in_a_problem(name: str) -> None:
    task, rules = RULES[name]
    shape = replace(task, max_length=5).training_shapes()[-1]
    for enumeration in enumerations(task, rules, shape):
        assignments = enumeration.assignments()
        for number, assignment in enumerate(assignments[:: max(1, len(assignments) // 7)]):
            generator = torch.Generator().manual_seed(number)
            smallest, *drawn = [enumeration.problem(assignment, drawing) for drawing in (None, generator, generator)]
            for problem in (smallest, *drawn):
                check_holds(enumeration, assignment, problem)
            digits = [problem.source[0, enumeration.field.layout.source.within("operand 1")] for problem in drawn]
            assert all((digits.sum() >= smallest.source[0, : len(digits)].sum()) for digits in digits)


def check_holds(enumeration: Enumeration, assignment: Tensor, problem: Problems) -> None:
    """Whether one right problem of the shape holds an assignment."""
    task, field = enumeration.task, enumeration.field
    text = task.vocabulary.decode(problem.source[0])
    assert problem.shape == enumeration.shape
    assert len(problem.source) == len(problem.target) == 1
    assert problem.source.shape[1] == len(field.layout.source)
    assert problem.target.shape[1] == len(field.layout.target)
    assert task.parse(text) == (enumeration.shape, text)
    assert task.vocabulary.decode(problem.target[0]) == task.solve(text)
    leaves, required = enumeration.tokens(assignment[None])
    assert torch.equal(leaves_of(field, problem), leaves)
    assert torch.equal(problem.target[:, field.query], required)


@pytest.mark.parametrize("name", RULES)
def test_a_generator_draws_what_a_assignment_leaves_open(name: str) -> None:
    task, rules = RULES[name]
    shape = replace(task, max_length=4 if task.name == "addition" else 6).training_shapes()[-1]
    enumeration = list(enumerations(task, rules, shape))[3]
    assignment = enumeration.assignments()[0]

    def texts(seed: int) -> list[str]:
        generator = torch.Generator().manual_seed(seed)
        return [task.vocabulary.decode(enumeration.problem(assignment, generator).source[0]) for _ in range(12)]

    state = torch.get_rng_state()
    assert texts(0) == texts(0)
    assert len(set(texts(0) + texts(1))) > 5
    smallest = {task.vocabulary.decode(enumeration.problem(assignment).source[0]) for _ in range(2)}
    assert len(smallest) == 1
    assert torch.equal(torch.get_rng_state(), state)


def test_a_drawn_constant_is_any_that_the_assignment_allows() -> None:
    """Only the digits of the second factor that an assignment shows are fixed."""
    task, _ = RULES["multiplication"]
    (enumeration, *_) = enumerations(task, (), (3,))
    (assignment,) = (
        c for c in enumeration.assignments() if int(enumeration.tokens(c[None])[1]) == task.vocabulary.encode("0")
    )
    generator = torch.Generator().manual_seed(0)
    texts = [task.vocabulary.decode(enumeration.problem(assignment, generator).source[0]) for _ in range(60)]
    assert len({text[-1] for text in texts}) > 5
    assert len({text[0] for text in texts}) > 5


def test_too_many_assignments_are_refused_with_the_prediction_that_has_them() -> None:
    task, rules = RULES["addition"]
    enumeration = list(enumerations(task, rules, (2, 2)))[1]
    count = len(enumeration.assignments())
    few = again(enumeration, most=50)
    with pytest.raises(CannotDecideError, match="than 50 assignments: a prediction depends on at place 1 of 2x2,"):
        few.assignments()
    every = [own for own in predictions(task, make(task, rules)) if own[2] == (2, 2)]
    total = sum(len(own.assignments) for own in kinds_of(task, every))
    assert total > count
    assert sum(len(own.assignments) for own in kinds_of(task, every, most=total)) == total
    with pytest.raises(CannotDecideError, match=rf"there are {total:,} assignments, more than {total - 1:,}$"):
        kinds_of(task, every, most=total - 1)


def test_what_the_receptive_field_does_not_show_is_not_counted() -> None:
    """Between the places of a receptive field there may be many others, with any digits."""
    _, rules = RULES["subtraction"]
    task = Subtraction(max_length=9)
    for enumeration in enumerations(task, rules, (9, 9)):
        few = again(enumeration, most=30_000)
        assert len(few.assignments()) < 10_000


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
    rule = TabledRule(task, Patient(task.base))
    assert rule.num_states > len(task.vocabulary)
    for own in enumerations(task, rules, (3, 3)):
        more = Enumeration(task, Reading(rule, own.field.layout), (3, 3), (3, 3), own.field)
        for found, expected in zip(more.tokens(more.assignments()), own.tokens(own.assignments()), strict=True):
            assert torch.equal(found, expected)


class First(Written):
    """Copies the first operand, and names no other."""


@dataclass(frozen=True)
class Ignoring(Addition):
    """Two operands, of which the second does not matter."""

    def local_rule(self) -> LocalRule:
        return First()

    def answer_length(self, shape: Shape) -> int:
        return self.widths(shape)[0]

    def compute(self, operands: Sequence[Tensor]) -> Tensor:
        return operands[0]

    def solve(self, source: str) -> str:
        return source.split("+")[0][::-1]


def test_what_the_rule_does_not_name_runs_through_all_that_can_stand_there() -> None:
    task = Ignoring(max_length=2)
    rules = (cross(0), cross(1, segment="operand 2"), cross(1, segment="operator", conditions=(), layer=1))
    seen = set()
    for query, own in enumerate(enumerations(task, rules, (2, 2))):
        problems = every_problem(task, (2, 2))
        tokens, required = own.tokens(own.assignments())
        found = torch.cat([tokens, required[:, None]], dim=1).tolist()
        leaves = leaves_of(own.field, problems)
        occurs = torch.cat([leaves, problems.target[:, query : query + 1]], dim=1)
        free = [column for column, (segment, _) in enumerate(own.field.tokens) if segment == "operand 2"]
        assert set(own.free) >= set(free)
        assert len(found) == len(set(map(tuple, found)))
        assert set(map(tuple, found)) == set(map(tuple, occurs.tolist()))
        for column in free:
            assert set(tokens[:, column].tolist()) == set(task.vocabulary.encode("0123456789").tolist())
        seen |= {segment for segment, _ in own.field.tokens}
        for assignment in own.assignments()[::29]:
            for drawing in (None, torch.Generator().manual_seed(0)):
                check_holds(own, assignment, own.problem(assignment, drawing))
    assert seen == {"operand 1", "operand 2", "operator", "start", "answer"}


class Silent(Written):
    """A rule that does not say what is written."""


class Twofold(Written):
    """A rule that reads two operands under one name."""

    def read(self, name: str) -> Read:
        return Read("operand", row=None) if name == "operand 1" else super().read(name)


def test_a_rule_that_does_not_say_what_to_predict_or_where_it_reads_is_refused() -> None:
    task, rules = RULES["successor"]
    fields = ReceptiveFields(window(task, rules), task.layout((2,)))
    reading = Reading(TabledRule(task, Silent(("nothing",))), fields.layout)
    with pytest.raises(CannotDecideError, match="the local rule of successor does not say what stands in answer"):
        Enumeration(task, reading, (2,), (2,), fields.at(0))
    assert Enumeration(task, reading, (2,), (2,), fields.at(3)).required == EOS
    table = MultiOperandAddition(max_length=2)
    twofold = Reading(TabledRule(table, Twofold(("sum",))), table.layout((1, 2)))
    with pytest.raises(CannotDecideError, match="knows several tokens of operand by one name and place"):
        twofold.present(0)


def test_sizes_that_no_problem_has_make_none() -> None:
    task, rules = RULES["successor"]
    (own, *_) = enumerations(task, rules, (2,))
    none = Enumeration(task, Reading(own.rule, own.field.layout), (2,), None, own.field)
    assert torch.equal(none.assignments(), own.assignments())
    with pytest.raises(
        CannotDecideError, match="no problem has the sizes of at place 0 of 2, from operand 1 place 0 = "
    ):
        none.problem(none.assignments()[0])


def test_a_receptive_field_of_too_many_tokens_is_refused() -> None:
    task = Successor(max_length=20)
    rules = [cross(0, (Condition("place", offset, "place"),)) for offset in range(18)]
    last = list(enumerations(task, rules, (20,)))[-3]
    with pytest.raises(CannotDecideError, match="depends on too many tokens: at place 19 of 20, from operand 1 place"):
        last._packed([torch.ones(1, dtype=torch.long)] * 18, [13] * 17)
    assert last._packed([torch.ones(1, dtype=torch.long)] * 17, [13] * 16).item() > 0
    assert len(last.describe().split(",")) == 1 + len(last.field.leaves)


def test_an_assignment_is_described_token_by_token() -> None:
    task, rules = RULES["successor"]
    enumeration = list(enumerations(task, rules, (3,)))[2]
    assert enumeration.where() == "at place 2 of 3"
    tokens = "operand 1 place 2, operand 1 place 1, answer place 0, answer place 1"
    assert enumeration.describe() == f"at place 2 of 3, from {tokens}"
    assignment = enumeration.assignments()[0]
    words = enumeration.describe(assignment)
    assert words.count(" = ") == len(enumeration.field.leaves)
    leaves, _ = enumeration.tokens(assignment[None])
    for (segment, place), token in zip(places_of(enumeration.field), leaves[0], strict=True):
        assert f"{segment} place {place} = {task.vocabulary.decode(token[None])}" in words


def test_all_tuples_below_some_sizes() -> None:
    assert all_of([2, 1, 3]).tolist() == [[a, 0, b] for a in range(2) for b in range(3)]
    assert all_of([]).shape == (1, 0)


# The kinds of a model's predictions.


@pytest.mark.parametrize("name", RULES)
def test_kinds_hold_every_prediction_and_every_assignment(name: str) -> None:
    task, rules = RULES[name]
    found = kinds(task, make(task, rules))
    expected = [(shape, query) for shape in task.training_shapes() for query in range(len(task.layout(shape).target))]
    parts = [(enumeration.shape, enumeration.field.query) for own in found for enumeration, _ in own.parts]
    assert sorted(parts) == sorted(expected)
    for own in found:
        assert own.enumeration is own.parts[0][0]
        assert len({enumeration.field.kind for enumeration, _ in own.parts}) == 1
        held = set().union(*(part.tolist() for _, part in own.parts))
        assert own.assignments.tolist() == sorted(held)
        for assignment in own.assignments[:: max(1, len(own.assignments) // 20)]:
            met = own.predictions_with(assignment)
            assert met == [enumeration for enumeration, part in own.parts if assignment in part]
            assert met
    assert len({own.enumeration.field.kind for own in found}) == len(found)


@pytest.mark.parametrize("inner", [NoPE(), Cyclic(("place",), period=2), Cyclic(("raw", "raw_from_end"))], ids=str)
@pytest.mark.parametrize("name", ["parity", "successor"])
@torch.no_grad()
def test_predictions_of_one_kind_are_one_function(name: str, inner: PositionMethod) -> None:
    """Predictions of a kind have equal logits for equal tokens, by any of their receptive fields."""
    task, rules = RULES[name]
    model = make(task, rules, inner)
    found, several = kinds(replace(task, max_length=9), model), 0
    model = model.double()
    for own in found:
        tokens, _ = own.enumeration.tokens(own.assignments[:: max(1, len(own.assignments) // 50)])
        first, *others = [receptive_field_logits(model, enumeration.field, tokens) for enumeration, _ in own.parts]
        several += len(others)
        for other in others:
            torch.testing.assert_close(other, first, atol=1e-6, rtol=1e-6)  # sinusoids are in single precision
    assert several > 5


@torch.no_grad()
def test_predictions_that_differ_in_biases_alone_are_of_two_kinds() -> None:
    """At place 2 the query's own digit counts for more."""
    task = Successor(max_length=6)
    rules = (cross(0), cross(0, FIRST), replace(cross(0, (*OWN, Condition("place", 2))), bias=2.0))
    model = make(task, rules).double()
    fields = ReceptiveFields(window(task, rules), task.layout((6,)))
    second, third, fourth = (fields.at(query) for query in (2, 3, 4))
    tokens = torch.tensor([[4, 6, 7]])
    logits = [receptive_field_logits(model, own, tokens) for own in (second, third, fourth)]
    assert not torch.allclose(*logits[:2])
    assert torch.allclose(*logits[1:])
    assert second.kind != third.kind == fourth.kind


@torch.no_grad()
def test_margins_are_leads_of_the_required_token(monkeypatch: pytest.MonkeyPatch) -> None:
    task, rules = RULES["successor"]
    model = make(task, rules)
    (_, own, *_) = kinds(task, model)
    assignments = own.assignments[torch.tensor([5, 0, 3, 3])]
    tokens, required = own.enumeration.tokens(assignments)
    expected = []
    logits = receptive_field_logits(model, own.enumeration.field, tokens)
    for row, right in zip(logits.tolist(), required.tolist(), strict=True):
        expected.append(row[right] - max(value for token, value in enumerate(row) if token != right))
    monkeypatch.setattr("abc_toolkit.proof.forward._AT_ONCE", 3)
    assert margins(model, own, assignments).tolist() == pytest.approx(expected, abs=1e-5)
    broken = copy.deepcopy(model)
    broken.output.bias[int(required[0])] = torch.nan
    assert (margins(broken, own, assignments) == -torch.inf).all()


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
    "a raw number in cross-attention": line("cross", Condition("raw", 2), segment="operand 1"),
    "the last of the source": line("cross", Condition("raw_from_end", 0)),
    "a place that is the query's raw": line("cross", Condition("place", 0, "raw"), segment="operand 1"),
    "raw in the encoder": line("encoder", Condition("raw", 0, "raw")),
    "an end at every query but one": replace(line("cross", Condition("index", 0, None)), query_segment="end"),
}
GROWS = "is open to more tokens, the longer the problem"
APART = "compares positions that move apart as the length grows: nothing bounds what longer problems bring"
UNDECIDABLE = {
    "all in cross-attention": (line("cross"), GROWS),
    "an operand": (line("cross", segment="operand 2"), GROWS),
    "a segment by its number": (line("cross", SEGMENT), GROWS),
    "all in the decoder": (line("decoder"), GROWS),
    "the answer": (line("decoder", segment="answer"), GROWS),
    "all in the encoder": (line("encoder"), GROWS),
    "an operand in the encoder": (line("encoder", segment="operand 1"), GROWS),
    "a fallback": (replace(line("cross"), fallback=True), GROWS),
    "all of it from one token on": (replace(line("cross"), query_segment="end"), GROWS),
    "a place that must be its own index": (
        line("cross", *OWN, Condition("index", 0, "place"), segment="operand 1"),
        APART,
    ),
}


def bound(task: DigitTask, model: EncoderDecoder) -> Bound:
    basis = basis_of(task, model)
    return bound_of(basis.task, basis.rule, basis.window, basis.period)


@pytest.mark.parametrize("case", DECIDABLE)
def test_lines_that_reach_a_fixed_number_of_tokens_can_be_decided(case: str) -> None:
    rules = RULES["addition"][1]
    model = make(ADDITION, (*rules, DECIDABLE[case]), encoder=1)
    basis = basis_of(ADDITION, model)
    assert (basis.task, type(basis.rule.rule)) == (ADDITION, type(ADDITION.local_rule()))
    assert (basis.window, basis.cyclic, basis.period) == (model.position.window, (), 1)  # type: ignore[attr-defined]
    without, found = bound(ADDITION, make(ADDITION, rules, encoder=1)), bound(ADDITION, model)
    assert all(found.sizes[name] >= size > 10 for name, size in without.sizes.items())


@pytest.mark.parametrize("case", UNDECIDABLE)
def test_a_line_without_end_is_named(case: str) -> None:
    rule, what = UNDECIDABLE[case]
    with pytest.raises(CannotDecideError) as caught:
        bound(ADDITION, make(ADDITION, (*RULES["addition"][1], rule), encoder=1))
    words = str(caught.value)
    assert words == f"the line '{rule.describe()}' ({rule.site} layer 0 head 1) {what}"


@pytest.mark.parametrize("line", [line("cross", Condition("place", 0, "index")), line("encoder", segment="operand 1")])
def test_lines_that_no_query_has_are_not_held_against_a_window(line: Rule) -> None:
    """The lines open no key at any length."""
    for own in (replace(line, query_segment="start"), replace(line, key_segment="order")):
        assert bound(ADDITION, make(ADDITION, (own,), encoder=1)) == replace(
            bound(ADDITION, make(ADDITION, (), encoder=1)), culprit=own.describe() if own.conditions else ""
        )


@pytest.mark.parametrize("coordinate", ["raw", "raw_from_end"])
@pytest.mark.parametrize("site", ["decoder", "cross"])
def test_whole_strings_are_not_counted_in_tables(site: str, coordinate: str) -> None:
    task = LongMultiplication(max_length=2)
    rule = line(site, Condition(coordinate, 0, coordinate))  # type: ignore[arg-type]
    with pytest.raises(CannotDecideError) as caught:
        bound(task, make(task, (rule,)))
    words = f"the line '{rule.describe()}' ({site} layer 0 head 1) counts whole strings, which in tables is no linear"
    assert str(caught.value) == f"{words} function of rows"


def test_leaves_whose_order_turns_as_the_length_grows_are_not_decided() -> None:
    turned = (Condition("place", 0, "index"),)
    for own in (cross(1, turned), decoder(1, turned), line("encoder", *turned)):
        with pytest.raises(CannotDecideError, match=APART):
            bound(ADDITION, make(ADDITION, (*RULES["addition"][1], own), encoder=1))


@dataclass(frozen=True)
class Turning(Cyclic):
    """A method that inherits what Cyclic says of itself, and may do more."""


class Fading(NoPE):
    """A method that inherits what NoPE says of itself, and does more."""

    def at(self, site: Site, layer: int, num_heads: int, head_dim: int) -> AttentionPosition:
        return ALiBi().at(site, layer, num_heads, head_dim)


UNKNOWN = "nothing is known for every length of what {} positions tell"


@pytest.mark.parametrize(
    ("task", "position", "reason"),
    [
        (Parity(form="label"), Windowed(window(Parity(), ()), NoPE()), "parity has no local rule"),
        (Parity(), NoPE(), "the model has no window"),
        (Parity(), Sinusoidal(), "the model has no window"),
        (Parity(), Compose((Windowed(window(Parity(), ()), NoPE()),)), "the model has no window"),
        *(
            (Parity(), Windowed(window(Parity(), ()), inner), UNKNOWN.format(name))
            for inner, name in (
                (Sinusoidal(), "Sinusoidal"),
                (Fading(), "Fading"),
                (Turning(), "Turning"),
                (Foreign(), "Foreign"),
                (Compose((NoPE(), Fading())), "Fading"),
                (Compose((Cyclic(), Compose((Cyclic(), Foreign())))), "Foreign"),
                (Compose((Cyclic(), ALiBi())), "ALiBi"),
            )
        ),
    ],
)
def test_what_a_proof_lacks_is_named(task: Task, position: PositionMethod, reason: str) -> None:
    model = EncoderDecoder(len(task.vocabulary), SIZES, position)
    with pytest.raises(CannotDecideError, match=reason):
        basis_of(task, model)


def test_a_proof_needs_a_model_of_a_known_kind_inside_its_window() -> None:
    class Other(EncoderDecoder):
        """It may do anything."""

    task = Parity()
    own = Windowed(window(task, ()), NoPE())
    for kind, position, reason in (
        (Other, own, "no window is of the model's kind, Other"),
        (DecoderOnly, NoPE(), "the model has no window"),
        (DecoderOnly, own, "the model's window is of another backbone"),
    ):
        model = kind(len(task.vocabulary), replace(SIZES, num_encoder_layers=0), position)
        with pytest.raises(CannotDecideError, match=reason):
            basis_of(task, model)


def test_positions_that_repeat_are_found_in_compositions() -> None:
    task, (one, other) = Parity(), (Cyclic(("place",), period=4), Cyclic(("index",), period=6))
    for inner, cyclic in (
        (NoPE(), ()),
        (one, (one,)),
        (Compose((one, NoPE(), other)), (one, other)),
        (Compose((Compose((other,)), one)), (other, one)),
    ):
        basis = basis_of(task, make(task, (cross(0),), inner))
        assert (basis.cyclic, basis.period) == (cyclic, {0: 1, 1: 4, 2: 12}[len(cyclic)])


def test_a_receptive_field_knows_its_tokens() -> None:
    task, rules = RULES["addition"]
    field: ReceptiveField = ReceptiveFields(window(task, rules), task.layout((2, 2))).at(2)
    assert set(zip(field.leaves, places_of(field), strict=True)) == {
        (("source", 0), ("operand 1", 1)),
        (("source", 3), ("operand 2", 1)),
        (("prefix", 1), ("answer", 0)),
        (("prefix", 2), ("answer", 1)),
    }
    empty = ReceptiveFields(Window("Addition", 0, 1, 1, (), {}), task.layout((2, 2))).at(0)
    assert (empty.leaves, places_of(empty)) == ((("prefix", 0),), [("start", 0)])
