"""The bound: the lemma on predictions that are really built, and the bounds of windows and rules."""

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from abc_toolkit.layout import Item, LayoutDescription, Repeat, Token
from abc_toolkit.linear import Linear, symbol
from abc_toolkit.positions import Cyclic, ModelPosition, ModelSizes
from abc_toolkit.proof.bound import (
    Bound,
    Case,
    _Facts,
    _follow,
    _ranges,
    _read,
    _satisfiable,
    _Strings,
    _Symbolic,
    bound_of,
    layout_cases,
    settles,
    size_symbols,
)
from abc_toolkit.proof.enumeration import Enumeration, Reading
from abc_toolkit.proof.receptive_field import CannotDecideError, ReceptiveFields
from abc_toolkit.proof.table import TabledRule
from abc_toolkit.tasks import (
    Addition,
    Comparison,
    Division,
    LongMultiplication,
    MultiOperandAddition,
    Parity,
    Reverse,
    Subtraction,
)
from abc_toolkit.tasks.digits.base import DigitTask
from abc_toolkit.windows.rules import Condition, Rule, Window
from tests.proof.adversary import Machine, random_machine

MOST = 60_000  # assignments of a prediction that is compared
SIZES: tuple[DigitTask, ...] = (
    Addition(max_length=2, base=2, padding="none"),
    Addition(max_length=2, base=2),
    Addition(max_length=2, base=2, interleaved=True),
    Subtraction(max_length=2, base=2),
    Division(max_length=2, base=3),
    Comparison(max_length=2, base=3),
    Reverse(max_length=2, base=2),
    Parity(max_length=2),
    LongMultiplication(max_length=2),
    MultiOperandAddition(max_length=2),
)


def ruled(task: DigitTask) -> TabledRule:
    rule = task.local_rule()
    assert rule is not None
    return TabledRule(task, rule)


def window_of(*rules: Rule, encoder: int = 0, decoder: int = 2) -> Window:
    return Window("", encoder, decoder, 2, rules, {})


def line(site: str, segment: str | None, *conditions: Condition, **more: Any) -> Rule:
    return Rule(site, more.pop("layer", 0), more.pop("head", 0), segment, conditions, **more)  # type: ignore[arg-type]


def random_window(draw: random.Random, task: DigitTask, one_string: bool = False) -> Window:
    """Lines with all kinds of conditions, mostly ones that a proof can follow."""
    encoder, decoder = draw.choice((0, 0, 1)), draw.choice((1, 2))
    shape = task.training_shapes()[0]
    sources = [name for name, _ in task.segments(shape)]
    targets = [name for name in task.layout(shape).target.names if name not in sources]
    rules = []
    for _ in range(draw.choice((1, 2, 2, 3))):
        site = draw.choice(("cross", "cross", "decoder", *["encoder"] * encoder))
        conditions = []
        for _ in range(draw.choice((1, 1, 2, 2, 3))):
            coordinate = draw.choice(("place", "place", "index", "index", "row", "column", "raw", "raw_from_end"))
            far = draw.choice((0, 0, 0, 1, 1, 2, 3, -1, -2, 5))
            other = draw.choice((coordinate, coordinate, coordinate, "place", "index", None, None))
            conditions.append(Condition(coordinate, abs(far) if other is None else far, other))
        rules.append(
            Rule(
                site,  # type: ignore[arg-type]
                draw.randrange(encoder if site == "encoder" else decoder),
                draw.randrange(2),
                draw.choice([*(targets if site == "decoder" else sources), *[None] * (draw.random() < 0.3)]),
                tuple(conditions),
                draw.choice((0.0, 0.5)),
                draw.choice([*targets]) if site != "encoder" and draw.random() < 0.2 else None,
                draw.random() < 0.2,
            )
        )
    if one_string:
        asking = {"encoder": ("source",), "cross": ("target", "target", None), "decoder": ("target", None)}
        rules = [
            replace(
                rule,
                site="decoder",
                layer=draw.randrange(decoder),
                query_segment=rule.query_segment if rule.site != "encoder" else draw.choice((None, *sources)),
                query_string=draw.choice(asking[rule.site]),
            )
            for rule in rules
        ]
        return Window("", 0, decoder, 2, tuple(rules), {}, backbone="decoder-only")
    return Window("", encoder, decoder, 2, tuple(rules), {})


# The lemma.


def walked(
    items: Sequence[Item], sizes: Mapping[str, int], path: tuple[int, ...] = (), values: tuple[int, ...] = ()
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The tokens of a string in order: the path in the description, and the values of the repeats."""
    for number, item in enumerate(items):
        if isinstance(item, Token):
            yield (*path, number), values
            continue
        count = Linear.from_value(item.count)
        own = count.constant + sum(factor * sizes[name] for name, factor in count.terms.items())
        for value in range(own):
            yield from walked(item.items, sizes, (*path, number), (*values, value))


def shortened(values: Mapping[str, int], facts: _Facts, settling: int, period: int) -> dict[str, int]:
    """The lemma's replacement: a long gap becomes the shortest long gap of the same residue."""
    components: dict[str, list[str]] = {}
    for name in values:
        components.setdefault(facts._root(name), []).append(name)
    settled = {facts._root(name) for name in facts._of_rule}
    found = {}
    for root, members in components.items():
        gap = 2 * facts.constants()[root] + 1 + (settling if root in settled else 0)
        moved, last = {0: 0}, 0
        for point in sorted({values[name] for name in members} - {0}):
            wide = point - last
            if wide > gap + period:
                wide = next(n for n in range(gap + 1, gap + period + 1) if (point - last - n) % period == 0)
            moved[point] = moved[last] + wide
            last = point
        found |= {name: moved[values[name]] for name in members}
    return found


@dataclass
class Built:
    """A prediction that is built."""

    kind: Any
    assignments: Tensor


class Builder:
    """Predictions of a task, each layout made once."""

    def __init__(self, task: DigitTask, window: Window, positioning: ModelPosition | None) -> None:
        self.task, self.window, self.positioning = task, window, positioning
        self.rule = ruled(task)
        self.known: dict[tuple[int, ...], tuple[LayoutDescription, Reading, ReceptiveFields]] = {}

    def of(self, sizes: tuple[int, ...], path: tuple[int, ...], values: tuple[int, ...]) -> Built:
        if sizes not in self.known:
            description = self.task.describe_layout(sizes)
            layout = description.layout()
            fields = ReceptiveFields(self.window, layout, self.positioning)
            self.known[sizes] = description, Reading(self.rule, layout), fields
        description, reading, fields = self.known[sizes]
        known = dict(zip(size_symbols(self.task), sizes, strict=True))
        # Cases of a description may differ in the number of items: the path is that of the case's.
        number = list(walked(description.target, known)).index((path, values))
        field = fields.at(number)
        return Built(field.kind, Enumeration(self.task, reading, sizes, None, field, most=MOST).assignments())


def drawn_values(draw: random.Random, case: Case, query: _Symbolic, least: Mapping[str, int], most: int) -> Any:
    """Sizes and variables of a query: close to each other, close to the ends, or anywhere."""
    sizes: dict[str, int] = {}
    for name, value in least.items():
        near = draw.choice([value, *sizes.values()]) + draw.randint(-2, 3)
        sizes[name] = max(value, draw.choice((near, draw.randint(value, most), draw.randint(most // 2, most))))
    if any(at(expression, sizes) < 0 for expression in case.where):
        return None
    variables = {}
    for number, (_, count) in enumerate(query.template.loops):
        own = at(count, sizes)
        if own < 1:
            return None
        near = draw.choice((0, own - 1, *sizes.values(), *variables.values())) + draw.randint(-3, 3)
        variables[f"q{number}"] = min(max(draw.choice((near, near, draw.randrange(own))), 0), own - 1)
    return sizes, variables


def at(expression: Linear, values: Mapping[str, int]) -> int:
    return expression.constant + sum(factor * values[name] for name, factor in expression.terms.items())


def check_lemma(draw: random.Random, task: DigitTask, window: Window, inner: Cyclic | None, tries: int) -> int:
    """Shortens random long predictions, builds both and compares; returns how many were shortened."""
    rule, period = ruled(task), inner.period if inner is not None else 1
    bound = bound_of(task, rule, window, period)
    least = dict(zip(size_symbols(task), task.least_sizes, strict=True))
    positioning = None if inner is None else inner.build(ModelSizes(8, 2, window.num_encoder_layers, 2))
    builder, count = Builder(task, window, positioning), 0
    cases = layout_cases(task)
    longest = 24 if len(builder.task.layout(task.training_shapes()[-1]).target.coordinates["row"].unique()) > 1 else 110
    most = min(longest, 3 * max(bound.sizes.values()))
    for _ in range(tries):
        case = draw.choice(cases)
        strings = _Strings(case.description, one_string=window.reads_one_string)
        query = draw.choice(strings.queries)
        made = drawn_values(draw, case, query, least, most)
        if made is None:
            continue
        sizes, variables = made
        facts = _Facts(_ranges(case, least, query))
        _read(strings, rule, query, _follow(strings, window, query, facts), facts)
        new = shortened({**sizes, **variables}, facts, bound.settling, bound.period)
        if new == {**sizes, **variables}:
            continue
        count += 1
        assert all(new[name] <= bound.sizes[name] for name in sizes), (bound, new)
        assert all(at(expression, new) >= 0 for expression in case.where)
        short = builder.of(tuple(new[name] for name in sizes), query.template.path, tuple(new[v] for v in variables))
        long = builder.of(tuple(sizes.values()), query.template.path, tuple(variables.values()))
        where = (task, window, sizes, variables, new)
        assert short.kind == long.kind, where
        assert torch.equal(short.assignments, long.assignments), where
    return count


def random_task(draw: random.Random) -> DigitTask:
    if draw.random() < 0.4:
        return draw.choice(SIZES)
    machine = random_machine(draw)
    return replace(machine, max_length=2, fixed=0)


@pytest.mark.parametrize(
    ("seed", "one_string"), [*((seed, False) for seed in range(6)), (6, True), (7, True), (8, True)]
)
def test_shortened_predictions_are_the_same_function_of_the_same_assignments(seed: int, one_string: bool) -> None:
    draw, shortened_ones = random.Random(seed), 0
    for _ in range(22):
        task = random_task(draw)
        window = random_window(draw, task, one_string)
        inner = None
        if draw.random() < 0.4:
            names = draw.sample(("place", "index", "raw", "raw_from_end", "row", "column"), draw.choice((1, 2)))
            inner = Cyclic(tuple(names), base=100.0, period=draw.choice((1, 2, 3, 4)))  # type: ignore[arg-type]
        try:
            shortened_ones += check_lemma(draw, task, window, inner, 6)
        except CannotDecideError:
            continue
    assert shortened_ones > 15


BLACK_BOX: dict[str, tuple[DigitTask, list[Rule], int]] = {
    "parity": (Parity(max_length=2), [line("cross", "operand 1", Condition("place", 0, "place"))], 3),
    "both ends": (
        Parity(max_length=2),
        [line("cross", "operand 1", Condition("place", 3), Condition("index", 2, "index"))],
        1,
    ),
    "machine": (
        Machine(2, 2, 2, (1, 1, 0, 1), (0, 1, 1, 1), more=1, form="turn"),
        [
            line("cross", "operand 1", Condition("place", -1, "place")),
            line("decoder", "trace", Condition("place", 1, "place")),
        ],
        2,
    ),
    "raw": (
        Reverse(max_length=2, base=2),
        [
            line("cross", None, Condition("raw_from_end", 1, "raw"), head=1),
            line("cross", None, Condition("raw", 1)),
        ],
        1,
    ),
    "fallback": (
        Machine(2, 2, 2, (1, 1, 1, 0), (0, 1, 1, 0)),
        [
            line("cross", "operand 1", Condition("index", 2), fallback=True),
            line("cross", None, Condition("place", 1, "place")),
        ],
        1,
    ),
}


@pytest.mark.parametrize("name", BLACK_BOX)
def test_what_is_found_beyond_the_bound_is_found_up_to_it(name: str) -> None:
    """Every prediction up to two and a half times the bound, with its assignments."""
    task, rules, period = BLACK_BOX[name]
    window = window_of(*rules, decoder=1)
    inner = Cyclic(("index",), base=100.0, period=period)
    positioning = None if period == 1 else inner.build(ModelSizes(8, 2, 0, 1))
    rule = ruled(task)
    bound = bound_of(task, rule, window, period)
    (limit,) = bound.sizes.values()
    seen: set[Any] = set()
    lengths = itertools.chain(range(1, limit + 1), range(limit + 1, 5 * limit // 2, max(1, limit // 4)))
    for length in lengths:
        layout = task.describe_layout((length,)).layout()
        reading, fields = Reading(rule, layout), ReceptiveFields(window, layout, positioning)
        found = set()
        for query in range(len(layout.target)):
            field = fields.at(query)
            assignments = Enumeration(task, reading, (length,), None, field).assignments()
            found.add((field.kind, assignments.numpy().tobytes()))
        assert length <= limit or found <= seen, length
        seen |= found


# What the bound is.


def counted(most: int) -> Machine:
    """A transducer that counts places up to a number and ignores the digits."""
    moves = [min(state + 1, most) for state in range(most + 1) for _ in range(2)]
    return Machine(2, 2, most + 1, tuple(moves), tuple(state % 2 for state in range(most + 1) for _ in range(2)))


def circle(length: int) -> Machine:
    moves = [(state + 1) % length for state in range(length) for _ in range(2)]
    return Machine(2, 2, length, tuple(moves), (0,) * (2 * length))


def powers(matrix: list[list[bool]], most: int) -> list[list[list[bool]]]:
    size = range(len(matrix))
    found = [[[row == column for column in size] for row in size]]
    for _ in range(most):
        last = found[-1]
        found.append([[any(last[a][k] and matrix[k][b] for k in size) for b in size] for a in size])
    return found


def relations(task: Machine) -> list[list[list[bool]]]:
    """The relations of states for each choice of operands present and of the constant, by the task's settings."""
    inputs = 1 + (task.second in ("same", "own", "constant"))
    states = range(task.states)
    # A guess is one more copy of the states.
    columns = list(itertools.product(range(task.base), repeat=inputs))
    found = []
    constants = [None] if task.second != "constant" else range(task.base)
    operands = 2 if task.second in ("same", "own") else 1
    for present, constant in itertools.product(itertools.product((False, True), repeat=operands), constants):
        relation = [[False] * task.states for _ in states]
        for state, (number, column) in itertools.product(states, enumerate(columns)):
            digits, given = (column[:-1], column[-1]) if constant is not None else (column, None)
            if given == constant and all(there or not digit for there, digit in zip(present, digits, strict=True)):
                relation[state][task.moves[state * len(columns) + number]] = True
        found.append(relation)
    return found


@pytest.mark.parametrize("seed", range(12))
def test_relations_settle_where_they_settle(seed: int) -> None:
    """Compared with written-out powers of the relations: periodic from `S` on, and not from `S - 1` on."""
    draw = random.Random(seed)
    task = replace(random_machine(draw), fixed=0)
    start, period = settles(ruled(task))
    tails, rounds = [], []
    for relation in relations(task):
        found = powers(relation, 3 * start + 3 * period + 70)
        first = next(g for g in range(len(found)) if found[g] in found[:g])
        tails.append(found.index(found[first]))
        rounds.append(first - found.index(found[first]))
        assert all(found[g] == found[g + period] for g in range(start, len(found) - period))
    assert (start, period) == (max(tails), math.lcm(*rounds))


@pytest.mark.parametrize("most", [1, 2, 5])
def test_a_counter_settles_when_it_has_counted(most: int) -> None:
    assert settles(ruled(counted(most))) == (most, 1)
    assert settles(ruled(circle(most))) == (0, most)


def test_rules_that_settle_later_raise_the_bound_by_as_much() -> None:
    window = window_of(line("cross", "operand 1", Condition("place", 0, "place")))
    sizes = [bound_of(task, ruled(task), window, 1).sizes["s0"] for task in (counted(1), counted(3), circle(4))]
    assert sizes[1] - sizes[0] == 2 * 2  # a symbol is the length, another the query's
    assert sizes[2] - sizes[0] == 2 * (3 - 1)


NEVER = {
    "two places": (Condition("place", 10**6, "place"), Condition("place", 0, "place")),
    "below the first": (Condition("place", -(10**9)),),
    "beyond both ends": (Condition("place", -2), Condition("index", 10**6)),
    "before and after": (Condition("place", 10**6, "place"), Condition("index", 10**6, "index")),
    "on one line at another place": (Condition("raw", 0, "raw"), Condition("raw", 10**5, "raw")),
    "in a row that is none": (Condition("row", 10**5),),
}


@pytest.mark.parametrize("name", NEVER)
@pytest.mark.parametrize("site", ["cross", "decoder", "encoder"])
def test_lines_that_can_never_open_cost_nothing(name: str, site: str) -> None:
    task = Addition(max_length=2, base=2)
    needed = line("cross", "operand 1", Condition("place", 1, "place"))
    dead = line(site, "answer" if site == "decoder" else "operand 1", *NEVER[name], head=1)
    if name == "before and after" and site == "encoder":
        dead = replace(dead, conditions=NEVER["two places"])
    without, with_it = (
        bound_of(task, ruled(task), window_of(*rules, encoder=1), 1) for rules in ([needed], [needed, dead])
    )
    # The line says nothing of any length; only the words may tell of it.
    assert (with_it.sizes, with_it.constants) == (without.sizes, without.constants)


@pytest.mark.parametrize("far", [9, 40, 1000, 10**9])
@pytest.mark.parametrize(
    ("conditions", "length"),
    [
        (lambda n: (Condition("place", n),), lambda n: n + 1),
        (lambda n: (Condition("place", n, "place"),), lambda n: n),
        (lambda n: (Condition("index", n, "index"),), lambda n: n),
        (lambda n: (Condition("place", n), Condition("index", n)), lambda n: 2 * n + 1),
        (
            lambda n: (Condition("place", n), Condition("place", n, "place"), Condition("place", n, "index")),
            lambda n: n + 1,
        ),
        (lambda n: (Condition("raw", n),), lambda n: n + 1),
        (lambda n: (Condition("raw_from_end", n),), lambda n: n + 1),
    ],
    ids=["place", "offset", "index", "both ends", "pinned", "raw", "from the end"],
)
def test_lines_that_open_at_a_length_raise_the_bound_to_it(far: int, conditions: Any, length: Any) -> None:
    task = Parity(max_length=2)
    bound = bound_of(task, ruled(task), window_of(line("cross", "operand 1", *conditions(far))), 1)
    assert bound.sizes["s0"] >= length(far)
    assert bound.sizes["s0"] <= 20 * (far + 10)
    assert bound.constants >= far - 1
    assert str(far) in bound.culprit


@pytest.mark.parametrize("far", [9, 1000])
def test_lines_to_tokens_that_the_rule_does_not_read_count_too(far: int) -> None:
    """An operand that does not matter: whether it has a token is a fact too."""
    task = Machine(2, 2, second="idle")
    for condition, size in ((Condition("place", far), "s1"), (Condition("place", far, "place"), "s0")):
        bound = bound_of(task, ruled(task), window_of(line("cross", "operand 2", condition)), 1)
        assert bound.sizes[size] > far
    # A token at a fixed place and one at a distance are the same where the distance is as long again.
    lines = [line("cross", "operand 2", own) for own in (Condition("place", far), Condition("place", far, "place"))]
    assert bound_of(task, ruled(task), window_of(*lines), 1).constants >= 2 * far


# What cannot be decided.

OWN = Condition("place", 0, "place")
ADDITION, PARITY, TABLE = Addition(), Parity(), LongMultiplication()
UNDECIDED: dict[str, tuple[DigitTask, Rule, str]] = {
    "anti-diagonal": (ADDITION, line("cross", "operand 1", Condition("place", 0, "index")), "place = query's index"),
    "and a diagonal": (ADDITION, line("cross", None, OWN, Condition("place", 0, "index")), "place = query's index"),
    "whole segment": (PARITY, line("cross", "operand 1"), "all of it"),
    "whole answer": (PARITY, line("decoder", "answer", layer=1, head=1), "all of it"),
    "a row": (TABLE, line("decoder", "digit", Condition("row", 0, "row")), "row = query's row"),
    "a column": (TABLE, line("decoder", "digit", Condition("column", 0, "column")), "column = query's column"),
    "raw in a table": (TABLE, line("decoder", "digit", Condition("raw", 1, "raw")), "raw = query's raw"),
    "behind a table": (TABLE, line("decoder", None, Condition("raw_from_end", 0)), "raw_from_end 0"),
}


@pytest.mark.parametrize("name", UNDECIDED)
def test_what_cannot_be_decided_is_named(name: str) -> None:
    task, rule, words = UNDECIDED[name]
    window = window_of(line("cross", "operand 1", OWN, head=1), rule)
    with pytest.raises(CannotDecideError) as caught:
        bound_of(task, ruled(task), window, 1)
    message = str(caught.value)
    assert words in message
    assert f"{rule.site} layer {rule.layer} head {rule.head}" in message
    assert "\n" not in message


def test_what_is_written_in_full_is_open_in_full() -> None:
    """A whole segment may be open where it has so many tokens at every length."""
    task = Addition(max_length=2, base=2)
    window = window_of(line("cross", "operator"), line("decoder", "start", head=1))
    assert bound_of(task, ruled(task), window, 1).constants < 5


# Difference constraints.

NAMES = ("a", "b", "c")


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(st.sampled_from(NAMES), st.sampled_from((*NAMES, "")), st.integers(-3, 3), st.booleans()), max_size=6
    )
)
def test_constraints_can_hold_if_some_small_numbers_fulfil_them(parts: list[tuple[str, str, int, bool]]) -> None:
    """Of three symbols and constants up to 3, the least solution is at most 9 if there is one."""
    expressions = []
    for one, other, constant, turned in parts:
        expression = symbol(one) - (symbol(other) if other else 0)
        expressions.append((-expression if turned else expression) + constant)
    values = itertools.product(range(10), repeat=3)
    holds = any(
        all(at(expression, dict(zip(NAMES, own, strict=True))) >= 0 for expression in expressions) for own in values
    )
    assert _satisfiable(expressions) == holds


# Cases.


@pytest.mark.parametrize(
    "task", [*SIZES, Addition(padding="fixed", width=9), Machine(second="idle"), Machine(second="own")]
)
def test_cases_describe_the_layouts_of_all_sizes(task: DigitTask) -> None:
    names = size_symbols(task)
    cases = layout_cases(task)
    for sizes in itertools.product(*(range(least, least + 5) for least in task.least_sizes)):
        known = dict(zip(names, sizes, strict=True))
        fitting = [case for case in cases if all(at(expression, known) >= 0 for expression in case.where)]
        assert len(fitting) == 1
        own, other = task.describe_layout(sizes), fitting[0].description
        assert written(own.source, {}) == written(other.source, known)
        assert written(own.target, {}) == written(other.target, known)
        assert written((own.start,), {}) == written((other.start,), known)
        assert other.target_length(known) == len(written(own.target, {}))


def written(items: Sequence[Item], values: Mapping[str, int]) -> list[tuple]:
    """Segment and coordinates of every token."""
    found: list[tuple] = []
    for item in items:
        if isinstance(item, Token):
            found.append((item.segment, *(at(own, values) for own in item.coordinates.values())))
            continue
        assert isinstance(item, Repeat)
        for value in range(at(Linear.from_value(item.count), values)):
            found += written(item.items, {**values, item.variable: value})
    return found


def test_the_largest_sizes_of_all_predictions_count() -> None:
    """The bound is the largest that any token of the target needs, and at least the least size."""
    task = Parity(max_length=2)
    rule = ruled(task)

    def sizes(*rules: Rule) -> Bound:
        return bound_of(task, rule, window_of(*rules), 1)

    own, far = Condition("place", 0, "place"), Condition("place", 30)
    only_end = line("cross", "operand 1", far, query_segment="end")
    assert sizes(only_end).sizes["s0"] > 31
    assert sizes(line("cross", "operand 1", own)).sizes["s0"] < 31
