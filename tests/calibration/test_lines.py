from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from abc_toolkit.calibration.capture import AttentionMaps
from abc_toolkit.calibration.lines import Places
from abc_toolkit.errors import UserError
from abc_toolkit.layout import Layout
from abc_toolkit.positions import Site
from abc_toolkit.tasks import Addition, Multiplication, Shape, Successor, Task
from abc_toolkit.windows.lowering import site_positions
from abc_toolkit.windows.rules import Condition, Rule

Planted = Iterable[tuple[Rule, float]]
SHAPES = ((4, 4), (5, 5), (6, 6))


def own(offset: int = 0, anchor: str = "place") -> tuple[Condition, ...]:
    return (Condition(anchor, offset, anchor),)


def at(value: int, anchor: str = "place") -> tuple[Condition, ...]:
    return (Condition(anchor, value),)


def cross(layer: int, head: int, segment: str, conditions: tuple[Condition, ...]) -> Rule:
    return Rule("cross", layer, head, segment, conditions)


def planted(
    planted: Planted,
    noise: float = 0.05,
    task: Task = Addition(),  # noqa: B008
    shapes: tuple[Shape, ...] = SHAPES,
    layers: Mapping[Site, int] = MappingProxyType({"cross": 2}),
    heads: int = 2,
    seed: int = 0,
) -> tuple[AttentionMaps, dict[Shape, Layout]]:
    """Maps with noise everywhere and more along the lines that are given."""
    generator = torch.Generator().manual_seed(seed)
    layouts = {shape: task.layout(shape) for shape in shapes}
    maps: dict[Shape, dict[str, Tensor]] = {}
    for shape, layout in layouts.items():
        maps[shape] = {}
        for site, num_layers in layers.items():
            q, k = site_positions(site, layout)
            for layer in range(num_layers):
                weights = noise * torch.rand(heads, len(q), len(k), generator=generator)
                for rule, strength in planted:
                    if (rule.site, rule.layer) == (site, layer):
                        weights[rule.head] += strength * rule.holds(q, k)
                maps[shape][f"{site}.{layer}"] = weights.tril() if site == "decoder" else weights
    return AttentionMaps(maps, dict.fromkeys(shapes, 10)), layouts


def rules(method: Places, planted_lines: Planted, **settings: Any) -> set[Rule]:
    found = method.rules(*planted(planted_lines, **settings))
    assert len(set(found)) == len(found)
    return {replace(rule, bias=round(rule.bias, 1)) for rule in found}


OWN1, OWN2 = cross(0, 0, "operand 1", own()), cross(0, 0, "operand 2", own())
BELOW1, HIGH1 = cross(0, 0, "operand 1", own(1)), cross(0, 0, "operand 1", at(1))
CORNER, THIRD = cross(0, 0, "operand 1", own(-4)), cross(0, 0, "operand 1", at(3))
OPERATOR = cross(0, 1, "operator", at(0))
WRITTEN = Rule("decoder", 1, 1, "answer", own(1))
FIRST = Rule("decoder", 0, 0, "start", at(0))
CROSS_FIRST = Rule("cross", 0, 0, None, at(0, "raw"), fallback=True)
CASES: dict[str, tuple[Places, list[tuple[Rule, float]], set[Rule]]] = {
    "nothing": (Places(), [], set()),
    "own place": (Places(), [(OWN1, 0.5)], {OWN1}),
    "own place of both operands": (Places(), [(OWN1, 0.4), (OWN2, 0.3)], {OWN1, OWN2}),
    "own place - 1": (Places(), [(BELOW1, 0.5)], {BELOW1}),
    "own place + 1": (Places(), [(cross(1, 1, "operand 2", own(-1)), 0.5)], {cross(1, 1, "operand 2", own(-1))}),
    "a fixed place": (Places(), [(HIGH1, 0.5), (OPERATOR, 0.9)], {HIGH1, OPERATOR}),
    "a fixed index": (
        Places(),
        [(cross(0, 1, "operand 2", at(0, "index")), 0.5)],
        {cross(0, 1, "operand 2", at(0, "index"))},
    ),
    "each layer its own": (Places(), [(OWN1, 0.5), (replace(BELOW1, layer=1), 0.5)], {OWN1, replace(BELOW1, layer=1)}),
    "the decoder": (Places(), [(WRITTEN, 0.5), (FIRST, 0.6)], {WRITTEN, FIRST}),
    "the last layer for all": (
        Places(layers="last"),
        [(OWN1, 0.5), (replace(BELOW1, layer=1), 0.5), (WRITTEN, 0.5), (FIRST, 0.6)],
        {BELOW1, replace(BELOW1, layer=1), WRITTEN, replace(WRITTEN, layer=0)},
    ),
    "the strongest of a segment": (Places(), [(OWN1, 0.4), (BELOW1, 0.5), (OWN2, 0.3)], {BELOW1, OWN2}),
    "two of a segment": (
        Places(lines_per_segment=2),
        [(OWN1, 0.4), (BELOW1, 0.5), (OWN2, 0.3), (cross(0, 0, "operand 1", own(-1)), 0.3)],
        {OWN1, BELOW1, OWN2},
    ),
    "too weak": (Places(min_attention=0.5), [(OWN1, 0.6), (OPERATOR, 0.4)], {OWN1}),
    "a weak line kept": (Places(min_attention=0.15), [(OPERATOR, 0.15)], {OPERATOR}),
    # Of one and two cells in maps of eight queries and six keys.
    "in a corner": (Places(max_offset=6), [(CORNER, 1.0), (replace(CORNER, head=1, conditions=own(6)), 1.0)], set()),
    "in a corner of the decoder": (Places(max_offset=6), [(Rule("decoder", 0, 0, "answer", own(6)), 1.0)], set()),
    "a single cell": (Places(), [(cross(0, 0, "operator", own()), 1.0)], set()),
    "any support": (Places(min_support=0.0), [(cross(0, 0, "operator", own()), 1.0)], {cross(0, 0, "operator", own())}),
    "offset too large": (Places(), [(THIRD, 0.3)], set()),
    "larger offsets": (Places(max_offset=3), [(THIRD, 0.3)], {THIRD}),
    "differences": (
        Places(bias="difference", lines_per_segment=2),
        [(OWN1, 0.4), (BELOW1, 0.6), (OWN2, 0.3), (OPERATOR, 0.5)],
        {replace(OWN1, bias=-0.2), BELOW1, replace(OWN2, bias=-0.3), OPERATOR},
    ),
    "empty heads open": (
        Places(empty_heads="transparent"),
        [(OWN1, 0.5), (WRITTEN, 0.5), (replace(WRITTEN, layer=0), 0.5)],
        {OWN1, WRITTEN, replace(WRITTEN, layer=0)}
        | {Rule(site, layer, head) for site, layer, head in
           [("cross", 0, 1), ("cross", 1, 0), ("cross", 1, 1), ("decoder", 0, 0), ("decoder", 1, 0)]},  # type: ignore[arg-type]
    ),
    "closed rows look at the first": (
        Places(closed_rows="first"),
        [(OWN1, 0.5), (OWN2, 0.5), (WRITTEN, 0.5)],
        {OWN1, OWN2, WRITTEN}
        | {CROSS_FIRST, replace(CROSS_FIRST, site="decoder", layer=1, head=1)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_lines_that_are_kept(case: str) -> None:
    method, lines, expected = CASES[case]
    assert rules(method, lines, layers={"decoder": 2, "cross": 2}) == expected


def test_flat_heads_stay_closed() -> None:
    layouts = {shape: Addition().layout(shape) for shape in SHAPES}
    flat = {
        shape: {"cross.0": torch.full((2, len(layout.target), len(layout.source)), 1 / len(layout.source))}
        for shape, layout in layouts.items()
    }
    assert Places().rules(AttentionMaps(flat, dict.fromkeys(SHAPES, 1)), layouts) == []


OFFSETS = st.sampled_from([*(own(n) for n in range(-1, 3)), at(0), at(1), at(2), at(0, "index"), at(1, "index")])


@given(
    lines=st.dictionaries(
        st.tuples(st.integers(0, 1), st.integers(0, 2), st.sampled_from(["operand 1", "operand 2"])),
        OFFSETS,
        max_size=8,
    ),
    strength=st.floats(0.25, 1.0),
    noise=st.floats(0.0, 0.17),
    seed=st.integers(0, 99),
)
def test_planted_lines_are_found(
    lines: dict[tuple[int, int, str], tuple[Condition, ...]], strength: float, noise: float, seed: int
) -> None:
    # The mean of the noise, up to 0.085, stays below the least attention.
    given_lines = [(cross(*key, conditions), strength) for key, conditions in lines.items()]
    found = rules(Places(min_attention=0.24), given_lines, noise=noise, heads=3, seed=seed)
    assert {rule for rule, _ in given_lines} <= found
    others = {(r.layer, r.head, r.key_segment) for r in found} - set(lines)
    assert not others


@pytest.mark.parametrize(
    ("task", "shapes", "site"),
    [
        (Addition(padding="none"), ((2, 3), (4, 4), (3, 1)), "cross"),
        (Addition(), ((2, 2), (4, 4)), "encoder"),
        (Successor(), ((4,), (2,)), "decoder"),
    ],
)
def test_attention_is_the_mean_over_the_cells(task: Task, shapes: tuple[Shape, ...], site: Site) -> None:
    maps, layouts = planted([], 1.0, task, shapes, {site: 2}, heads=3)
    lines = Places(min_support=0.0).lines(maps, layouts)
    assert len({line.rule for line in lines}) == len(lines) > 50
    assert [line.attention for line in lines] == sorted((line.attention for line in lines), reverse=True)
    for line in lines[:: max(1, len(lines) // 60)]:
        (condition,) = line.rule.conditions
        cells = []
        for shape, layout in layouts.items():
            q, k = site_positions(site, layout)
            weights = maps.maps[shape][f"{site}.{line.rule.layer}"][line.rule.head].tolist()
            for i, row in enumerate(weights):
                for j, weight in enumerate(row):
                    asked = 0 if condition.query is None else int(q.coordinates[condition.query][i])
                    own_value = int(k.coordinates[condition.key][j])
                    holds = (asked - own_value if condition.query else own_value) == condition.equals
                    holds &= k.names[int(k.segment[j])] == line.rule.key_segment
                    holds &= line.rule.query_segment in (None, q.names[int(q.segment[i])])
                    if holds and not (site == "decoder" and j > i):
                        cells.append(weight)
        assert line.attention == pytest.approx(sum(cells) / len(cells), rel=1e-4)


@pytest.mark.parametrize(("shapes", "by_index"), [(SHAPES, 4), (((3, 3),), 1)])
def test_a_line_by_place_and_by_index_is_one(shapes: tuple[Shape, ...], by_index: int) -> None:
    maps, layouts = planted([], layers={"cross": 1}, heads=1, shapes=shapes)
    lines = [line.rule for line in Places(min_support=0.3).lines(maps, layouts)]
    lines = [rule for rule in lines if rule.key_segment == "operand 1"]
    cells = {tuple(str(rule.holds(own.target, own.source).tolist()) for own in layouts.values()) for rule in lines}
    assert len(cells) == len(lines)
    by_place = {rule.conditions for rule in lines if rule.conditions[0].key == "place"}
    assert by_place == {*(own(n) for n in range(-2, 3)), *(at(n) for n in range(3))}
    # By index alone: own place - 3, and fixed indices where shapes of several widths make them no fixed places.
    assert len(lines) - len(by_place) == by_index


@pytest.mark.parametrize(
    "settings", [{"lines_per_segment": 0}, {"max_offset": -1}, {"min_attention": 1.5}, {"min_support": -0.1}], ids=str
)
def test_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"method.{next(iter(settings))}"):
        Places(**settings)


def test_support_of_short_operands() -> None:
    # An own place line covers all of an operand, however short it is next to the other.
    shapes = tuple((n, m) for n in range(1, 5) for m in range(1, 5) if n * m > 1)
    task = Addition(padding="none")
    lines = [(OWN1, 0.5), (replace(OWN2, head=1), 0.5), (replace(OPERATOR, layer=1), 0.5)]
    assert rules(Places(), lines, task=task, shapes=shapes) == {rule for rule, _ in lines}
    # That of one digit never is the longest: by its own place it would be a single cell in a corner.
    task, shapes = Multiplication(), ((3,), (4,), (5,))
    assert rules(Places(), [(OWN2, 1.0)], task=task, shapes=shapes) == set()
    digit = cross(0, 0, "operand 2", at(0))
    assert rules(Places(), [(digit, 0.5)], task=task, shapes=shapes) == {digit}


def test_support_is_that_of_the_worst_shape() -> None:
    maps, layouts = planted([], layers={"cross": 1}, heads=1, shapes=((2, 2), (4, 4)))
    support = {
        line.rule.conditions: line.support
        for line in Places(min_support=0.0).lines(maps, layouts)
        if line.rule.key_segment == "operand 1"
    }
    # Four queries and two keys, six queries and four keys.
    assert support[own()] == support[own(1)] == support[own(2)] == support[at(0)] == support[at(1)] == 1
    assert support[own(-1)] == pytest.approx(1 / 2)
    assert support.get(own(-2), 0) == support.get(at(2), 0) == 0


def test_the_encoders_segments_ask_each_for_itself() -> None:
    lines = [
        (Rule("encoder", 0, 0, "operand 2", own(), query_segment="operand 1"), 0.5),
        (Rule("encoder", 0, 0, "operand 2", own(1), query_segment="operand 2"), 0.4),
        (Rule("encoder", 0, 1, "operand 1", at(1), query_segment="operand 2"), 0.5),
    ]
    layers: dict[Site, int] = {"encoder": 1, "cross": 1}
    found = rules(Places(), [*lines, (OWN1, 0.5)], layers=layers)
    assert found == {*(rule for rule, _ in lines), OWN1}
    assert rules(Places(), lines[:1], layers={"encoder": 1}) == {lines[0][0]}
