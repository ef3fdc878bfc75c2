import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from abc_toolkit.calibration import Paper, Places, sufficiency
from abc_toolkit.calibration.capture import AttentionMaps
from abc_toolkit.calibration.method import CalibrationMethod, Found, Line, _with_line, find_window, spread_out
from abc_toolkit.calibration.sufficiency import Evidence, receptive_fields, views
from abc_toolkit.layout import Layout
from abc_toolkit.positions import SITES, Site
from abc_toolkit.tasks import Addition, Parity, Shape, Successor, Task
from abc_toolkit.windows.lowering import site_positions
from abc_toolkit.windows.rules import Condition, Rule, Window

MIXED_HEADS = Path(__file__).parents[1] / "golden" / "calibration_mixed_heads.json"
OWN, BELOW, TWO_BELOW = ((Condition("place", offset, "place"),) for offset in (0, 1, 2))
FIRST = (Condition("place", 0),)
# Open for no training problem.
NEVER, NOR_THIS, NOWHERE = ((Condition("place", place),) for place in (97, 98, 99))


def cross(head: int, conditions: tuple[Condition, ...], segment: str = "operand 1", layer: int = 0) -> Rule:
    return Rule("cross", layer, head, segment, conditions)


@dataclass(frozen=True)
class Fixed(CalibrationMethod):
    """Finds what it is told."""

    found: tuple[Rule, ...] = ()
    more: tuple[Rule, ...] = ()
    complete: bool = True
    narrow: bool = False
    spread: bool = False

    def rules(self, maps: AttentionMaps, layouts: Mapping[Shape, Layout]) -> list[Rule]:
        assert {shape: len(layout.source) for shape, layout in layouts.items()} == {
            shape: own["cross.0"].shape[-1] for shape, own in maps.maps.items()
        }
        return list(self.found)

    def lines(self, maps: AttentionMaps, layouts: Mapping[Shape, Layout]) -> list[Line]:
        return [Line(rule, 1 / (2 + number), 1.0) for number, rule in enumerate(self.more)]


def maps_of(task: Task, heads: int, layers: int = 1, encoder: int = 0, shapes: Sequence[Shape] = ()) -> AttentionMaps:
    maps = {}
    for shape in shapes or task.training_shapes()[-2:]:
        layout = task.layout(shape)
        sizes = {site: tuple(map(len, site_positions(site, layout))) for site in SITES}
        own = {"encoder": encoder, "decoder": layers, "cross": layers}
        maps[shape] = {
            f"{site}.{layer}": torch.full((heads, *sizes[site]), 0.01) for site in SITES for layer in range(own[site])
        }
    return AttentionMaps(maps, dict.fromkeys(maps, 1))


def find(task: Task, method: CalibrationMethod, heads: int = 3, maps: AttentionMaps | None = None) -> Found:
    maps = maps or maps_of(task, heads)
    layers = len([name for name in maps.maps[maps.longest] if name.startswith("cross.")])
    frame = Window(type(task).__name__, 0, layers, heads, (), {"method": "own"}, "ab")
    return find_window(method, maps, task, frame, torch.Generator().manual_seed(0))


TASK = Successor(max_length=4)
OPEN = Rule("cross", 0, 1)
FALLBACK = Rule("cross", 0, 1, None, (Condition("raw", 0),), fallback=True)
# What is found, what else there is, which head the line comes to, what else is left: own place - 1 is needed.
PLACES: dict[str, tuple[list[Rule], list[Rule], list[Rule]]] = {
    "its own head is empty": ([cross(0, OWN)], [cross(2, BELOW)], [cross(0, OWN), cross(2, BELOW)]),
    "another head is empty": ([cross(0, OWN)], [cross(0, BELOW)], [cross(0, OWN), cross(1, BELOW)]),
    "nothing to spare, the emptiest of all": (
        [cross(0, OWN), cross(0, NEVER), cross(1, NEVER), cross(1, NOR_THIS), cross(2, NOWHERE)],
        [cross(0, BELOW)],
        [cross(0, OWN), cross(0, NEVER), cross(1, NEVER), cross(1, NOR_THIS), cross(2, NOWHERE), cross(2, BELOW)],
    ),
    "nothing to spare, its own head of several": (
        [cross(0, OWN), cross(1, NEVER), cross(2, NOR_THIS)],
        [cross(2, BELOW)],
        [cross(0, OWN), cross(1, NEVER), cross(2, NOR_THIS), cross(2, BELOW)],
    ),
    "a head whose line another holds as well": (
        [cross(0, OWN), cross(1, OWN), cross(2, NEVER)],
        [cross(2, BELOW)],
        [cross(1, OWN), cross(2, NEVER), cross(0, BELOW)],
    ),
    "the one of several that can be spared at no loss": (
        [cross(0, OWN), cross(1, OWN), cross(1, FIRST), cross(2, FIRST)],
        [cross(0, BELOW)],
        [cross(0, OWN), cross(2, FIRST), cross(1, BELOW)],
    ),
    "a head shared, where what the others hold is held elsewhere mixed with more": (
        [cross(0, OWN), cross(1, OWN), cross(1, FIRST), cross(2, NEVER)],
        [cross(2, BELOW)],
        [cross(0, OWN), cross(1, OWN), cross(1, FIRST), cross(2, NEVER), cross(2, BELOW)],
    ),
    "an empty head before one to spare": (
        [cross(0, OWN), cross(1, OWN)],
        [cross(0, BELOW)],
        [cross(0, OWN), cross(1, OWN), cross(2, BELOW)],
    ),
    "several lines that others hold between them": (
        [cross(0, OWN), cross(0, NEVER), cross(1, OWN), cross(2, NEVER), cross(2, NOR_THIS)],
        [cross(0, BELOW)],
        [cross(1, OWN), cross(2, NEVER), cross(2, NOR_THIS), cross(0, BELOW)],
    ),
    "held at another layer or segment or bias is not held as well": (
        [cross(0, OWN), cross(1, NEVER), cross(2, NEVER, "answer"), replace(cross(2, NEVER), bias=1.0)],
        [cross(1, BELOW)],
        [
            cross(0, OWN),
            cross(1, NEVER),
            cross(2, NEVER, "answer"),
            replace(cross(2, NEVER), bias=1.0),
            cross(1, BELOW),
        ],
    ),
    "in place of an open head": (
        [cross(0, OWN), OPEN, replace(OPEN, head=2)],
        [cross(0, BELOW)],
        [cross(0, OWN), replace(OPEN, head=2), cross(1, BELOW)],
    ),
    "a fallback is no line": (
        [cross(0, OWN), FALLBACK, replace(OPEN, layer=0, head=2, query_segment="end")],
        [cross(1, BELOW)],
        [cross(0, OWN), FALLBACK, replace(OPEN, layer=0, head=2, query_segment="end"), cross(1, BELOW)],
    ),
}


@pytest.mark.parametrize("case", PLACES)
def test_a_missing_line_is_added(case: str) -> None:
    found, more, expected = PLACES[case]
    result = find(TASK, Fixed(tuple(found), tuple(more)))
    assert result.window.rules == tuple(expected)
    assert result.added == (expected[-1],)
    assert result.conflict is None
    assert not Evidence(TASK, torch.Generator().manual_seed(1)).conflicts(result.window)


def test_a_line_that_no_head_holds_alone_is_given_up_by_one_alone() -> None:
    """Two heads that hold a line could both be spared, but not both at once."""
    window = Window("Successor", 0, 2, 3, tuple(cross(head, OWN, layer=n) for n in (0, 1) for head in range(2)), {})
    for number, layer in enumerate((0, 1, 1)):
        conditions = (BELOW, TWO_BELOW, FIRST)[number]
        window = next(_with_line(window, cross(0, conditions, layer=layer), 3))
    assert [(rule.layer, rule.head, rule.conditions) for rule in window.rules] == [
        (0, 0, OWN),
        (0, 1, OWN),
        (1, 1, OWN),
        (0, 2, BELOW),
        (1, 2, TWO_BELOW),
        (1, 0, FIRST),
    ]


@pytest.mark.parametrize("seed", range(30))
def test_with_a_line_more_a_window_shows_no_less(seed: int) -> None:
    """What looked different looks different still: heads that give a line up gave nothing that others do not give."""
    generator = torch.Generator().manual_seed(seed)
    lines = [cross(0, c, layer=n) for n in (0, 1) for c in (OWN, BELOW, TWO_BELOW, FIRST)]
    rules: list[Rule] = []
    for layer, head in ((n, h) for n in (0, 1) for h in range(3)):
        own = [rule for rule in lines if rule.layer == layer]
        number = int(torch.randint(len(own) + 1, (), generator=generator))
        rules += [replace(rule, head=head) for rule in own[number : number + 1]]
    window = Window("Successor", 0, 2, 3, tuple(rules), {})
    line = lines[int(torch.randint(len(lines), (), generator=generator))]
    found = list(_with_line(window, replace(line, head=seed % 3), 3))
    before = window.rules_at("cross", line.layer)
    kinds = len({rule.conditions for rule in before})
    assert len(found) == ({1: 3, 2: 2, 3: 0}[kinds] + 1 if len(before) == 3 else 1)
    for wider in found:
        shares = len(before) == 3 and wider is found[-1]  # the last resort
        head, after = wider.rules[-1].head, wider.rules_at("cross", line.layer)
        assert wider.rules[-1] == replace(line, head=head)
        assert {replace(rule, head=0) for rule in after} == {replace(rule, head=0) for rule in (*before, line)}
        assert set(window.rules) - set(before) == set(wider.rules) - set(after)
        assert sum(rule.head == head for rule in after) == 1 + shares
        shown: dict[int, int] = {}
        for shape in () if shares else TASK.training_shapes():
            problems, layout = TASK.sample(generator, 400, shape), TASK.layout(shape)
            seen = (views(own, problems, layout).flatten().tolist() for own in (wider, window))
            for wide, narrow in zip(*seen, strict=True):
                assert shown.setdefault(wide, narrow) == narrow


def test_what_is_known_of_the_window_stays() -> None:
    result = find(TASK, Fixed((cross(0, OWN),), (cross(0, BELOW),)))
    assert result.window == replace(result.window, task="Successor", calibration={"method": "own"}, weights="ab")
    assert result.attention == {cross(0, BELOW): 0.5}


def test_nothing_is_added_where_nothing_is_missing() -> None:
    rules = (cross(0, OWN), cross(1, BELOW))
    result = find(TASK, Fixed(rules, (cross(2, FIRST),)))
    assert (result.window.rules, result.added, result.conflict) == (rules, (), None)


def test_the_line_that_suffices_is_preferred_to_stronger_ones() -> None:
    # The stronger ones tell some problems apart, by chance or in part.
    junk = [cross(1, FIRST), cross(1, TWO_BELOW), cross(2, (Condition("index", 0),))]
    result = find(TASK, Fixed((cross(0, OWN),), (*junk, cross(0, BELOW))), heads=6)
    assert result.added == (cross(1, BELOW),)


def test_the_head_that_attends_most_along_a_line_lends_it() -> None:
    result = find(TASK, Fixed((cross(0, OWN), cross(1, OWN)), (cross(3, BELOW), cross(2, BELOW))), heads=4)
    assert result.added == (cross(3, BELOW),)


def test_several_lines_are_added() -> None:
    task = Addition(max_length=2)
    own = (cross(0, OWN), cross(1, OWN, "operand 2"))
    more = (cross(0, BELOW), cross(1, BELOW, "operand 2"))
    result = find(task, Fixed(own, more), heads=4)
    assert result.conflict is None
    assert result.window.rules[:2] == own
    assert set(result.added) == {cross(2, BELOW), cross(3, BELOW, "operand 2")} or set(result.added) == {
        cross(3, BELOW),
        cross(2, BELOW, "operand 2"),
    }
    assert set(result.window.rules) == {*own, *result.added}


@pytest.mark.parametrize("complete", [True, False])
def test_what_no_line_mends_is_named(complete: bool) -> None:
    more = Rule("decoder", 0, 0, "start") if complete else cross(0, BELOW)
    result = find(TASK, Fixed((cross(0, OWN),), (more,), complete))
    assert result.window.rules == (cross(0, OWN),)
    assert result.added == ()
    conflict = result.conflict
    assert conflict is not None
    for source, place, token in zip(conflict.sources, conflict.places, conflict.tokens, strict=True):
        target = TASK.solve(source)
        assert token == (target[place] if place < len(target) else "the end")


def test_what_helps_in_part_is_added_and_the_rest_named() -> None:
    task = Addition(max_length=2)
    result = find(task, Fixed((cross(0, OWN),), (cross(0, OWN, "operand 2"),)))
    assert result.added == (cross(1, OWN, "operand 2"),)
    assert result.conflict is not None


def test_places_is_completed_and_paper_is_not() -> None:
    # In both maps the line that is missing is too weak to be found.
    maps = maps_of(TASK, 2)
    for shape, own in maps.maps.items():
        layout = TASK.layout(shape)
        for head in range(2):
            own["cross.0"][head] += 0.5 * cross(head, OWN).holds(layout.target, layout.source)
        own["cross.0"][1] += 0.1 * cross(1, BELOW).holds(layout.target, layout.source)
    result = find(TASK, Places(), 2, maps)
    # The first head gives up what the other holds as well.
    assert set(result.window.rules_at("cross", 0)) == {cross(1, OWN), cross(0, BELOW)}
    assert result.added == (cross(0, BELOW),)
    assert result.conflict is None
    assert result.attention[cross(1, BELOW)] == pytest.approx(0.11)
    short = find(TASK, Places(complete=False), 2, maps)
    assert set(short.window.rules_at("cross", 0)) == {cross(0, OWN), cross(1, OWN)}
    assert short.added == ()
    assert short.conflict is not None
    paper = find(TASK, Paper(kappa_cross=1.5, kappa_self=9.0, cross_directions=("anti-diagonal",)), 2, maps)
    assert paper.added == ()
    diagonal = (Condition("raw_from_end", 0, "raw"),)
    assert {r.conditions for r in paper.window.rules if r.site == "cross"} == {diagonal}
    assert paper.conflict is not None


def test_parity_needs_no_more_than_its_own_bit() -> None:
    assert find(Parity(max_length=5), Fixed((cross(0, OWN),))).conflict is None
    assert find(Parity(max_length=5), Fixed()).conflict is not None


def test_heads_of_every_site() -> None:
    maps = maps_of(TASK, 3, layers=2, encoder=1)
    expected = {("encoder", 0): 3, **{(site, layer): 3 for site in ("decoder", "cross") for layer in (0, 1)}}
    assert maps.num_heads == expected
    assert list(maps_of(TASK, 2).num_heads) == [("decoder", 0), ("cross", 0)]


def decoder(head: int, segment: str, conditions: tuple[Condition, ...], layer: int = 1) -> Rule:
    return Rule("decoder", layer, head, segment, conditions)


DIGITS = (cross(0, OWN), cross(1, OWN, "operand 2"))
CARRIES = (decoder(0, "answer", TWO_BELOW), decoder(1, "answer", TWO_BELOW))
RESTS = (
    cross(2, FIRST, "operator", 1),  # brings in a token that says nothing
    decoder(2, "answer", FIRST),  # brings in the digits of the second place
    decoder(0, "start", FIRST),
    decoder(1, "start", FIRST),
)


def test_a_window_is_narrowed_to_what_predictions_need() -> None:
    task = Addition()
    rules = (*DIGITS, *CARRIES, *RESTS)
    maps = maps_of(task, 3, layers=2)
    wide = find(task, Fixed(rules), maps=maps)
    found = find(task, Fixed(rules, narrow=True), maps=maps)
    assert (wide.window.rules, wide.closed, wide.conflict) == (rules, (), None)
    # What the start token holds is needed where the carry comes from the first place, and nowhere else.
    assert found.window.rules == (*DIGITS, *CARRIES, *(replace(rule, fallback=True) for rule in RESTS[2:]))
    assert set(found.closed) == set(RESTS)
    assert found.conflict is None


def test_a_line_that_shows_no_further_token_stays() -> None:
    twice = (*DIGITS, *CARRIES, RESTS[2], cross(1, OWN), cross(2, OWN, "operand 2", 1), decoder(2, "answer", BELOW))
    found = find(Addition(), Fixed(twice, narrow=True), maps=maps_of(Addition(), 3, layers=2))
    assert [replace(rule, fallback=False) for rule in found.window.rules] == list(twice)
    assert found.closed == (RESTS[2],)


def test_a_window_that_lacks_a_line_is_not_narrowed() -> None:
    rules = (*DIGITS, RESTS[1])
    found = find(Addition(), Fixed(rules, complete=False, narrow=True), maps=maps_of(Addition(), 3, layers=2))
    assert found.window.rules == rules
    assert found.closed == ()
    assert found.conflict is not None


@pytest.mark.parametrize(
    ("task", "seed"), [(Addition(max_length=3), 0), (Successor(max_length=4), 1), (Parity(max_length=5), 2)]
)
def test_narrowing_keeps_a_window_sufficient_and_its_receptive_fields_within(task: Task, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    operands = [name for name in task.layout(task.training_shapes()[0]).source.names if name.startswith("operand ")]
    candidates = [cross(h, c, s, n) for h in (0, 1) for c in (OWN, BELOW, FIRST) for s in operands for n in (0, 1)]
    candidates += [decoder(h, s, c) for h in (0, 1) for s in ("answer", "start") for c in (TWO_BELOW, FIRST)]
    evidence = Evidence(task, torch.Generator().manual_seed(seed + 99))
    frame = Window(type(task).__name__, 0, 2, 2, (), {}, "ab")
    drawn: list[Rule] = []
    while not drawn or evidence.conflicts(frame.with_rules(drawn)):
        drawn = [rule for rule in candidates if torch.rand((), generator=generator) < 0.3]
    found = find(task, Fixed(tuple(drawn), narrow=True), heads=2, maps=maps_of(task, 2, layers=2))
    assert found.conflict is None
    assert not evidence.conflicts(found.window)
    for shape in task.training_shapes():
        layout = task.layout(shape)
        for narrow, wide in zip(
            receptive_fields(found.window, layout),
            receptive_fields(found.window.with_rules(drawn), layout),
            strict=True,
        ):
            assert (narrow <= wide).all()
    # Nothing more can be closed in one head: a line either is needed or shows no further token.
    layout = task.layout(task.training_shapes()[-1])
    size = sum(int(field.sum()) for field in receptive_fields(found.window, layout))
    for rule in found.window.rules:
        less = found.window.with_rules([other for other in found.window.rules if other != rule])
        smaller = sum(int(field.sum()) for field in receptive_fields(less, layout)) < size
        assert not smaller or evidence.conflicts(less)


def in_heads(*heads: str) -> list[Rule]:
    """A rule for each letter of each head: own place of operand 1, of operand 2, one below of either, place 0."""
    first, second = "operand 1", "operand 2"
    lines = {"a": (OWN, first), "b": (OWN, second), "c": (BELOW, first), "d": (BELOW, second), "e": (FIRST, first)}
    return [cross(head, *lines[letter]) for head, letters in enumerate(heads) for letter in letters]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (("", "cb", "da", "ba"), ("c", "b", "d", "a")),
        (("ab", "ab", "ab", "cd"), ("a", "b", "c", "d")),  # heads that others make needless
        (("a", "b", "c", "d"), ("a", "b", "c", "d")),
        (("a", "ba", "c", "d"), ("a", "b", "c", "d")),  # what is alone elsewhere is given up
        (("ab", "c", "cd", "e"), ("ab", "c", "d", "e")),  # no head to spare
    ],
)
def test_lines_that_share_a_head_are_spread(before: Sequence[str], after: Sequence[str]) -> None:
    held = decoder(0, "answer", BELOW, 0)
    found = find(Addition(max_length=4, base=2), Fixed((*in_heads(*before), held), spread=True), heads=4)
    assert set(found.window.rules) == {*in_heads(*after), held}
    assert found.conflict is None
    assert found.closed == ()
    assert set(found.moved) == set(in_heads(*after)) - set(in_heads(*before))


def test_a_line_that_was_added_is_one_wherever_it_comes_to() -> None:
    lacking, needed = tuple(in_heads("abd")), cross(1, BELOW)
    found = find(Addition(base=2), Fixed(lacking, (needed,), spread=True))
    assert [replace(rule, head=0) for rule in found.added] == [replace(needed, head=0)]
    assert set(found.added) <= set(found.window.rules)


def test_a_head_with_a_place_to_rest_keeps_its_lines() -> None:
    rest = Rule("cross", 0, 1, "operator", fallback=True)
    rules = (*in_heads("a", "ba", "c", "d"), rest)
    found = find(Addition(max_length=4, base=2), Fixed(rules, spread=True), heads=4)
    assert found.window.rules == rules


def test_a_window_that_lacks_a_line_is_not_spread() -> None:
    rules = tuple(in_heads("ab"))
    found = find(Addition(base=2), Fixed(rules, complete=False, spread=True))
    assert found.window.rules == rules
    assert found.conflict is not None


@pytest.mark.parametrize("task", [Addition(max_length=3, base=2), Successor(max_length=4), Parity(max_length=5)])
@pytest.mark.parametrize("seed", range(2))
def test_spreading_loses_no_line_and_adds_none(task: Task, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    operands = [name for name in task.layout(task.training_shapes()[0]).source.names if name.startswith("operand ")]
    candidates = [cross(h, c, s, 0) for h in range(4) for c in (OWN, BELOW) for s in operands]
    candidates += [decoder(h, s, c, 0) for h in range(4) for s in ("answer", "start") for c in (TWO_BELOW, FIRST)]
    evidence = Evidence(task, torch.Generator().manual_seed(seed + 99))
    window = Window(type(task).__name__, 0, 1, 4, (), {}, "ab")
    while not window.rules or evidence.conflicts(window):
        drawn = [rule for rule in candidates if torch.rand((), generator=generator) < 0.3]
        window = window.with_rules(drawn)
    spread = spread_out(window, evidence)
    assert not evidence.conflicts(spread)
    assert {replace(rule, head=0) for rule in spread.rules} == {replace(rule, head=0) for rule in window.rules}

    def sharing(window: Window) -> int:
        return sum(
            max(0, sum(rule.head == head for rule in window.rules_at(site, 0)) - 1)
            for site in ("cross", "decoder")
            for head in range(4)
        )

    assert sharing(spread) <= sharing(window)
    assert spread_out(spread, evidence).rules == spread.rules


@dataclass(frozen=True)
class Measured(CalibrationMethod):
    """Finds what `Places` measured in the heads of a trained model."""

    complete: bool = True

    def rules(self, maps: AttentionMaps, layouts: Mapping[Shape, Layout]) -> list[Rule]:
        return [measured(*line) for line in json.loads(MIXED_HEADS.read_text())["rules"]]

    def lines(self, maps: AttentionMaps, layouts: Mapping[Shape, Layout]) -> list[Line]:
        found = json.loads(MIXED_HEADS.read_text())["lines"]
        return [Line(measured(*line), attention, 1.0) for *line, attention in found]


def measured(site: Site, layer: int, head: int, segment: str, conditions: Sequence[tuple[Any, int, Any]]) -> Rule:
    return Rule(site, layer, head, segment, tuple(Condition(*own) for own in conditions))


def test_heads_that_mix_many_lines_do_not_keep_a_window_from_being_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sufficiency, "MOST_PREDICTIONS", 2**11)
    # Addition in base 2, seed 203: of three lines added to the sixteen measured ones, no fourth leaves fewer conflicts.
    task = Addition(max_length=4, base=2)
    found = find(task, Measured(), heads=4)
    assert found.conflict is None
    own = Measured().rules(maps_of(task, 4), {})
    assert 0 < len(found.dropped) < len(own)
    weakest = max(found.attention[rule] for rule in found.dropped)
    assert all(found.attention[rule] >= weakest for rule in own if rule not in found.dropped)
    assert not Evidence(task, torch.Generator().manual_seed(1)).conflicts(found.window)
