import gc
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abc_toolkit.layout import COORDINATES, Layout, Positions, digit_layout
from abc_toolkit.positions import SITES, AttentionPosition, Cyclic, ModelSizes, NoPE, OpenKeys, Site
from abc_toolkit.testing.position_contract import PositionCase, PositionContract
from abc_toolkit.windows import attention
from abc_toolkit.windows.attention import Windowed, WindowedAttention
from abc_toolkit.windows.lowering import dense_bias, matrices, open_keys, site_positions
from abc_toolkit.windows.rules import SCHEMA, Condition, Rule, Window, WindowError

NAMES = ("operand 1", "operator", "operand 2", "start", "answer", "end")
LAYOUT = digit_layout((("operand 1", 3), ("operator", 1), ("operand 2", 2)), 4)
OTHER = digit_layout((("operand 1", 1), ("operator", 1), ("operand 2", 2)), 3)
OWN_PLACE = Condition("place", 0, "place")
INF = math.inf

segments = st.none() | st.sampled_from((*NAMES, 'n"\u00f6where\n'))
numbers = st.integers(-3, 4)
coordinates = st.sampled_from(COORDINATES)
biases = st.floats(allow_nan=False, allow_infinity=False, width=32)
conditions = st.builds(Condition, coordinates, numbers, st.none() | coordinates)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | biases | st.text(), lambda inner: st.lists(inner, max_size=3)
)


@st.composite
def windows(draw: st.DrawFn) -> Window:
    encoder, decoder, heads = draw(st.integers(0, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    layers = {"encoder": encoder, "decoder": decoder, "cross": decoder}
    rules = []
    for _ in range(draw(st.integers(0, 6))):
        site = draw(st.sampled_from([site for site in SITES if layers[site]]))
        layer, head = draw(st.integers(0, layers[site] - 1)), draw(st.integers(0, heads - 1))
        held = tuple(draw(st.lists(conditions, max_size=3)))
        rules.append(Rule(site, layer, head, draw(segments), held, draw(biases), draw(segments), draw(st.booleans())))
    calibration = draw(st.dictionaries(st.text(), plain, max_size=3))
    return Window(draw(st.text()), encoder, decoder, heads, tuple(rules), calibration, draw(st.text()))


@st.composite
def crowded_windows(draw: st.DrawFn, site: Site, biases: st.SearchStrategy[float] = biases) -> Window:
    """Two heads of one site with lines that mostly hold somewhere, and often overlap."""
    few = st.sampled_from((None, "operand 1", "answer"))
    near = st.builds(Condition, coordinates, st.integers(-1, 1), st.none() | coordinates)
    rules = st.builds(
        Rule,
        site=st.just(site),
        layer=st.just(0),
        head=st.integers(0, 1),
        key_segment=few,
        conditions=st.lists(near, max_size=2).map(tuple),
        bias=biases,
        query_segment=few,
        fallback=st.booleans(),
    )
    drawn = draw(st.lists(rules, max_size=5))
    for rule in drawn[: draw(st.integers(0, 2))]:  # a line that holds at least where another does
        conditions = rule.conditions[: draw(st.integers(0, 2))]
        segment = draw(st.sampled_from((None, rule.key_segment)))
        drawn.append(replace(rule, key_segment=segment, conditions=conditions, bias=draw(biases), fallback=False))
    return Window("Addition", 1, 1, 2, tuple(drawn), {})


@st.composite
def layouts(draw: st.DrawFn, longest: int = 3) -> Layout:
    """Layouts of addition, with segments that may be empty."""
    digits = st.integers(0, longest)
    lengths = [("operand 1", draw(digits)), ("operator", 1), ("operand 2", draw(digits))]
    return digit_layout(lengths, draw(digits))


def window(*rules: Rule, num_heads: int = 2) -> Window:
    return Window("Addition", 1, 2, num_heads, rules, {"method": "Places", "lines": 1}, "ab12")


WINDOW = window(
    Rule("encoder", 0, 1, "operand 1"),
    Rule("decoder", 0, 0, "answer", (Condition("place", 1, "place"),), 0.5),
    Rule("decoder", 1, 1, None, (Condition("raw", 0),), -1.0),
    Rule("cross", 0, 0, "operand 1", (OWN_PLACE,)),
    Rule("cross", 0, 1, "operator", (), 1.5, "end", True),
    Rule("cross", 1, 1, "operand 2", (Condition("place", 1, "place"), Condition("index", 0)), 0.25, "answer"),
)
SIZES = ModelSizes(8, 2, 2, 2)


def site_bias(own: Window, site: Site, layer: int, layout: Layout) -> torch.Tensor:
    return dense_bias(own, site, layer, *site_positions(site, layout))


# What a window says, cell by cell.


def holds_oracle(rule: Rule, q_positions: Positions, k_positions: Positions) -> list[list[bool]]:
    def cell(query: int, key: int) -> bool:
        def value(positions: Positions, coordinate: str, i: int) -> int:
            return int(positions.coordinates[coordinate][i])

        def segment(positions: Positions, i: int) -> str:
            return positions.names[int(positions.segment[i])]

        if rule.query_segment is not None and segment(q_positions, query) != rule.query_segment:
            return False
        if rule.key_segment is not None and segment(k_positions, key) != rule.key_segment:
            return False
        for c in rule.conditions:
            own = 0 if c.query is None else value(q_positions, c.query, query)
            sign = 1 if c.query is None else -1
            if own + sign * value(k_positions, c.key, key) != c.equals:
                return False
        return True

    return [[cell(query, key) for key in range(len(k_positions))] for query in range(len(q_positions))]


def bias_oracle(own: Window, site: str, layer: int, q: Positions, k: Positions) -> list[list[list[float]]]:
    bias = [[[-INF] * len(k) for _ in range(len(q))] for _ in range(own.num_heads)]
    for head, rows in enumerate(bias):
        rules = [rule for rule in own.rules if (rule.site, rule.layer, rule.head) == (site, layer, head)]
        cells = [holds_oracle(rule, q, k) for rule in rules]
        for i, row in enumerate(rows):
            # In the decoder the causal mask closes what is yet to be written.
            seen = [
                site != "decoder" or int(k.coordinates["raw"][j]) <= int(q.coordinates["raw"][i]) for j in range(len(k))
            ]
            usual = [held[i] for rule, held in zip(rules, cells, strict=True) if not rule.fallback]
            is_open = any(own and past for held in usual for own, past in zip(held, seen, strict=True))
            for rule, held in zip(rules, cells, strict=True):
                if not (rule.fallback and is_open):
                    row[:] = [max(b, rule.bias) if open_ else b for b, open_ in zip(row, held[i], strict=True)]
    return bias


@st.composite
def positions(draw: st.DrawFn, max_length: int = 5) -> Positions:
    length = draw(st.integers(1, max_length))
    tensors = [torch.tensor(draw(st.lists(numbers, min_size=length, max_size=length))) for _ in COORDINATES]
    segment = torch.tensor(draw(st.lists(st.integers(0, 5), min_size=length, max_size=length)))
    return Positions(NAMES, dict(zip(COORDINATES, tensors, strict=True)) | {"segment": segment})


@given(
    st.builds(Rule, st.just("cross"), st.just(0), st.just(0), segments, st.lists(conditions, max_size=3).map(tuple)),
    segments,
    positions(),
    positions(),
)
def test_rules_hold_where_they_say(rule: Rule, query_segment: str | None, q: Positions, k: Positions) -> None:
    rule = replace(rule, query_segment=query_segment)
    cells = rule.holds(q, k)
    assert cells.dtype == torch.bool
    assert cells.tolist() == holds_oracle(rule, q, k)


Case = tuple[Window, Site, int, Positions, Positions]


@st.composite
def cases(draw: st.DrawFn, biases: st.SearchStrategy[float] = biases) -> Case:
    """A window, one of its sites and layers, queries and keys: those of a layout, or any."""
    site = draw(st.sampled_from(SITES))
    own = draw(crowded_windows(site, biases))
    if draw(st.booleans()):
        return own, site, 0, *site_positions(site, draw(layouts()))
    return own, site, 0, draw(positions()), draw(positions())


@settings(max_examples=150)
@given(windows(), positions(), positions())
def test_bias_is_the_largest_of_the_rules(own: Window, q: Positions, k: Positions) -> None:
    for site in SITES:
        for layer in range(own.layers(site)):
            bias = dense_bias(own, site, layer, q, k)
            assert bias.shape == (own.num_heads, len(q), len(k))
            assert bias.tolist() == bias_oracle(own, site, layer, q, k)


@given(cases())
def test_bias_of_crowded_heads(case: Case) -> None:
    own, site, layer, q, k = case
    assert dense_bias(own, site, layer, q, k).tolist() == bias_oracle(own, site, layer, q, k)


# What a window says as a table of open keys.


def scattered(table: OpenKeys, num_keys: int) -> list[list[list[float]]]:
    """The table as a dense bias `[head, query, key]`; no key may be open twice in a row."""
    assert table.index.dtype == torch.int64
    assert table.index.shape == table.bias.shape
    dense = [[[-INF] * num_keys for _ in head] for head in table.index]
    for row, keys, biases in (
        (dense[head][query], table.index[head, query].tolist(), table.bias[head, query].tolist())
        for head in range(len(dense))
        for query in range(len(dense[head]))
    ):
        assert all(0 <= key < num_keys for key in keys)
        for key, bias in zip(keys, biases, strict=True):
            if bias > -INF:
                assert row[key] == -INF
                row[key] = bias
    return dense


def visible_oracle(own: Window, site: str, layer: int, q: Positions, k: Positions) -> list[list[list[float]]]:
    """The dense bias, in the decoder with the keys after a query closed."""
    bias = bias_oracle(own, site, layer, q, k)
    for i, j in ((i, j) for i in range(len(q)) for j in range(len(k))):
        if site == "decoder" and k.coordinates["raw"][j] > q.coordinates["raw"][i]:
            for rows in bias:
                rows[i][j] = -INF
    return bias


def slots_oracle(own: Window, site: str, layer: int, q: Positions, k: Positions) -> int:
    """Slots of the fullest head, where each line needs as many as the query with most keys on it."""
    slots = [0] * own.num_heads
    for rule in own.rules:
        if (rule.site, rule.layer) == (site, layer):
            slots[rule.head] += max(map(sum, holds_oracle(rule, q, k)))
    return max(1, *slots)


def check_table(own: Window, site: Site, layer: int, q: Positions, k: Positions) -> None:
    table = open_keys(own, site, layer, q, k)
    assert table is not None
    expected = visible_oracle(own, site, layer, q, k)
    assert scattered(table, len(k)) == expected
    dense = dense_bias(own, site, layer, q, k)
    if site == "decoder":
        dense = dense.masked_fill(k.coordinates["raw"] > q.coordinates["raw"][:, None], -INF)
    assert dense.tolist() == expected

    # As many slots as are needed, and no table where fewer are wanted.
    needed = slots_oracle(own, site, layer, q, k)
    assert table.index.shape == (own.num_heads, len(q), needed)
    assert open_keys(own, site, layer, q, k, needed - 1) is None
    assert open_keys(own, site, layer, q, k, needed - 0.5) is None
    for enough in (needed, needed + 1):
        same = open_keys(own, site, layer, q, k, enough)
        assert same is not None
        assert torch.equal(same.index, table.index)
        assert torch.equal(same.bias, table.bias)


@settings(max_examples=150)
@given(cases())
def test_a_table_is_the_dense_bias(case: Case) -> None:
    check_table(*case)


@given(windows(), positions(), positions())
def test_a_table_of_any_window_is_the_dense_bias(own: Window, q: Positions, k: Positions) -> None:
    for site in SITES:
        for layer in range(own.layers(site)):
            check_table(own, site, layer, q, k)


@given(cases(), st.data())
def test_a_table_of_some_queries_is_those_rows_of_the_whole(case: Case, data: st.DataObject) -> None:
    own, site, layer, q, k = case
    start = data.draw(st.integers(0, len(q) - 1))
    piece = slice(start, data.draw(st.integers(start + 1, len(q))))
    table = open_keys(own, site, layer, q[piece], k)
    assert table is not None
    whole = visible_oracle(own, site, layer, q, k)
    assert scattered(table, len(k)) == [rows[piece] for rows in whole]


def table_of(*rules: Rule, layout: Layout = LAYOUT) -> OpenKeys:
    q, k = site_positions(rules[0].site, layout)
    table = open_keys(window(*rules), rules[0].site, rules[0].layer, q, k)
    assert table is not None
    return table


def cells_of(table: OpenKeys) -> list[list[dict[int, float]]]:
    """Open keys and their biases of each head and query."""
    return [
        [
            {key: bias for key, bias in zip(keys, biases, strict=True) if bias > -INF}
            for keys, biases in zip(index, bias, strict=True)
        ]
        for index, bias in zip(table.index.tolist(), table.bias.tolist(), strict=True)
    ]


def test_tables_by_hand() -> None:
    # 123+45: the keys of the source are 0 .. 5, the queries digits 0 .. 3 and the end
    own_place, carry = (
        Rule("cross", 0, 0, "operand 1", (OWN_PLACE,), 0.5),
        Rule("cross", 0, 0, "operand 2", (Condition("place", 1, "place"),)),
    )
    fallback = Rule("cross", 0, 0, "operator", (), -1.0, fallback=True)
    closed = [{}] * 5
    expected = [{2: 0.5}, {1: 0.5, 5: 0.0}, {0: 0.5, 4: 0.0}, {3: -1.0}, {3: -1.0}]
    for rules in ((own_place, carry, fallback), (fallback, carry, own_place)):
        assert cells_of(table_of(*rules)) == [expected, closed]
    # The larger bias holds where lines overlap, in either order.
    low = Rule("cross", 0, 1, "operator", bias=-2.0)
    for segment in (None, "operator"):
        high = Rule("cross", 0, 1, segment, (Condition("raw", 3),), -1.0)
        for rules in ((low, high), (high, low)):
            assert cells_of(table_of(*rules)) == [closed, [{3: -1.0}] * 5]
    # In the decoder, nothing of what is yet to be written; a fallback opens where only that would be.
    ahead = Rule("decoder", 0, 0, "answer", (Condition("place", 2),))
    fallback = Rule("decoder", 0, 0, None, (Condition("raw", 0),), fallback=True)
    assert cells_of(table_of(ahead)) == [[{}, {}, {}, {3: 0.0}, {3: 0.0}], closed]
    assert cells_of(table_of(ahead, fallback)) == [[{0: 0.0}, {0: 0.0}, {0: 0.0}, {3: 0.0}, {3: 0.0}], closed]


def test_a_table_does_not_grow_with_the_length() -> None:
    rules = (
        Rule("cross", 0, 0, "operand 1", (OWN_PLACE,)),
        Rule("cross", 0, 0, "operand 2", (Condition("place", 1, "place"),)),
        Rule("cross", 0, 1, None, (Condition("raw", 0),)),
        Rule("cross", 0, 1, "operator"),
    )
    for length in (3, 5_000):
        layout = digit_layout((("operand 1", length), ("operator", 1), ("operand 2", length)), length)
        table = table_of(*rules, layout=layout)
        assert table.index.shape == (2, length + 1, 2)
        # The first and the last digit, asked for by the first and the last of the answer's.
        cells = cells_of(table)
        assert cells[0][0] == {length - 1: 0.0}
        assert cells[0][length - 1] == {0: 0.0, length + 2: 0.0}
        assert cells[1][length] == {0: 0.0, length: 0.0}


def test_fallbacks_do_not_depend_on_their_order() -> None:
    rules = [Rule("cross", 0, 0, name, fallback=True) for name in ("operator", "operand 2")]
    one, other = (site_bias(window(*order), "cross", 0, LAYOUT) for order in (rules, rules[::-1]))
    assert torch.equal(one, other)


def test_a_fallback_opens_rows_that_only_the_future_would_fill() -> None:
    rules = (
        Rule("decoder", 0, 0, "answer", (Condition("place", 2),)),
        Rule("decoder", 0, 0, None, (Condition("raw", 0),), fallback=True),
    )
    q, k = site_positions("decoder", LAYOUT)
    whole = dense_bias(window(*rules), "decoder", 0, q, k)
    for i in range(len(q)):
        step = dense_bias(window(*rules), "decoder", 0, q[i : i + 1], k[: i + 1])
        assert torch.equal(step[:, 0], whole[:, i, : i + 1])


def opened(*rules: Rule, layout: Any = LAYOUT) -> list[tuple[int, int]]:
    """Open cells of the first head of the rules' site."""
    bias = site_bias(window(*rules), rules[0].site, rules[0].layer, layout)
    assert (bias[1] == -INF).all()
    return [(i, j) for i, j in (bias[0] > -INF).nonzero().tolist()]


@pytest.mark.parametrize(
    ("rule", "cells", "other_cells"),
    [
        # 123+45 and 1+45: the keys of the source are 0 .. 5 and 0 .. 3
        (Rule("cross", 0, 0, "operand 1", (OWN_PLACE,)), [(0, 2), (1, 1), (2, 0)], [(0, 0)]),
        (Rule("cross", 0, 0, "operand 2", (OWN_PLACE,)), [(0, 5), (1, 4)], [(0, 3), (1, 2)]),
        (
            Rule("cross", 0, 0, "operand 2", (Condition("place", 1, "place"),)),
            [(1, 5), (2, 4)],
            [(1, 3), (2, 2)],
        ),
        (Rule("cross", 0, 0, "operator"), [(i, 3) for i in range(5)], [(i, 1) for i in range(4)]),
        (
            Rule("cross", 0, 0, "operand 2", (Condition("index", 0),), query_segment="end"),
            [(4, 4)],
            [(3, 2)],
        ),
        (
            Rule("decoder", 0, 0, "answer", (Condition("place", 1, "place"),)),
            [(1, 1), (2, 2), (3, 3), (4, 4)],
            [(1, 1), (2, 2), (3, 3)],
        ),
        (Rule("decoder", 0, 0, None, (Condition("raw", 0),)), [(i, 0) for i in range(5)], [(i, 0) for i in range(4)]),
        (
            Rule("encoder", 0, 0, "operand 1", (OWN_PLACE,), query_segment="operand 2"),
            [(4, 1), (5, 2)],
            [(3, 0)],
        ),
        (
            Rule("encoder", 0, 0, None, (Condition("raw", 1, "raw"), Condition("segment", 0, "segment"))),
            [(1, 0), (2, 1), (5, 4)],
            [(3, 2)],
        ),
    ],
)
def test_lines_by_hand_at_two_lengths(rule: Rule, cells: list, other_cells: list) -> None:
    assert opened(rule) == cells
    assert opened(rule, layout=OTHER) == other_cells


def test_overlapping_lines_take_the_larger_bias() -> None:
    low, high = Rule("cross", 0, 0, "operator", bias=-2.0), Rule("cross", 0, 0, None, (Condition("raw", 3),), -1.0)
    for rules in ((low, high), (high, low)):
        bias = site_bias(window(*rules), "cross", 0, LAYOUT)
        assert bias[0, :, 3].tolist() == [-1.0] * 5
        assert opened(*rules) == [(i, 3) for i in range(5)]


def test_a_fallback_opens_rows_without_another_line() -> None:
    line = Rule("cross", 0, 0, "operand 1", (OWN_PLACE,))
    fallback = Rule("cross", 0, 0, "operator", (), 2.0, fallback=True)
    for rules in ((line, fallback), (fallback, line)):
        assert opened(*rules) == [(0, 2), (1, 1), (2, 0), (3, 3), (4, 3)]
        assert site_bias(window(*rules), "cross", 0, LAYOUT)[0, 3:, 3].tolist() == [2.0, 2.0]
    assert opened(fallback) == [(i, 3) for i in range(5)]


def test_matrices_are_every_site_and_layer() -> None:
    found = matrices(WINDOW, LAYOUT)
    sizes = {"encoder": (6, 6), "decoder": (5, 5), "cross": (5, 6)}
    names = ["encoder.0", "decoder.0", "decoder.1", "cross.0", "cross.1"]
    assert {name: tuple(m.shape) for name, m in found.items()} == {n: (2, *sizes[n[:-2]]) for n in names}
    for name, matrix in found.items():
        site, layer = name.split(".")
        q, k = site_positions(site, LAYOUT)  # type: ignore[arg-type]
        assert matrix.tolist() == bias_oracle(WINDOW, site, int(layer), q, k)


def test_site_positions() -> None:
    assert site_positions("encoder", LAYOUT) == (LAYOUT.source, LAYOUT.source)
    assert site_positions("decoder", LAYOUT) == (LAYOUT.target, LAYOUT.prefix)
    assert site_positions("cross", LAYOUT) == (LAYOUT.target, LAYOUT.source)


def test_rules_of_a_site_and_layer() -> None:
    assert WINDOW.rules_at("cross", 0) == WINDOW.rules[3:5]
    assert WINDOW.rules_at("encoder", 1) == ()
    assert [WINDOW.layers(site) for site in SITES] == [1, 2, 2]
    fewer = WINDOW.with_rules(WINDOW.rules[:1])
    assert fewer == replace(WINDOW, rules=WINDOW.rules[:1])
    assert len(WINDOW.rules) == 6


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (Rule("cross", 0, 0, "operand 1", (OWN_PLACE,)), "operand 1, own place"),
        (Rule("decoder", 0, 0, "answer", (Condition("place", 1, "place"),)), "answer, own place - 1"),
        (Rule("decoder", 0, 0, "answer", (Condition("place", -2, "place"),)), "answer, own place + 2"),
        (Rule("cross", 0, 0, "operator"), "operator, all of it"),
        (Rule("cross", 0, 0), "any token, all of it"),
        (Rule("cross", 0, 0, None, (Condition("raw", -1),)), "any token, raw -1"),
        (Rule("cross", 0, 0, None, (Condition("raw", 1, "place"),)), "any token, raw = query's place - 1"),
        (Rule("cross", 0, 0, None, (Condition("raw", -1, "raw"),)), "any token, raw = query's raw + 1"),
        (Rule("cross", 0, 0, "operator", query_segment="end"), "operator, all of it (asked by end)"),
        (Rule("cross", 0, 0, "operator", fallback=True), "operator, all of it (where nothing else is open)"),
        (Rule("cross", 0, 0, None, (Condition("raw", 0, "raw"),)), "any token, raw = query's raw"),
    ],
)
def test_lines_in_words(rule: Rule, words: str) -> None:
    assert rule.describe() == words


# The file.


@given(windows())
def test_json_round_trip(own: Window) -> None:
    assert Window.from_json(own.to_json()) == own


def test_file_is_readable_with_one_rule_a_line(tmp_path: Path) -> None:
    text = WINDOW.to_json()
    lines = [line.strip().removesuffix(",") for line in text.splitlines() if '"site"' in line]
    assert [json.loads(line)["site"] for line in lines] == [rule.site for rule in WINDOW.rules]
    assert json.loads(lines[-1]) == {
        "site": "cross",
        "layer": 1,
        "head": 1,
        "key_segment": "operand 2",
        "conditions": [
            {"key": "place", "equals": 1, "query": "place"},
            {"key": "index", "equals": 0, "query": None},
        ],
        "bias": 0.25,
        "query_segment": "answer",
        "fallback": False,
    }
    data = json.loads(text)
    assert (data["schema"], data["task"], data["weights"], data["num_heads"]) == (SCHEMA, "Addition", "ab12", 2)
    (tmp_path / "window.json").write_text(text)
    assert Window.load(tmp_path / "window.json") == WINDOW


def one_line(call: Callable[[], Any]) -> str:
    with pytest.raises(WindowError) as error:
        call()
    message = str(error.value)
    assert message.splitlines() == [message]
    return message


def edited(top: dict[str, Any] | None = None, **rule: Any) -> str:
    """The file with fields of it, or of its first rule, replaced."""
    data = json.loads(WINDOW.to_json()) | (top or {})
    if rule:
        data["rules"][0] |= rule
    return json.dumps(data)


def without(name: str) -> str:
    data = json.loads(WINDOW.to_json())
    (data if name in data else data["rules"][0]).pop(name)
    return json.dumps(data)


MISSING = "a field of the window is missing"
RULE = "a rule of layer 0 and head 1"
RAW = {"key": "raw", "equals": 0}
SEGMENTS = ("key_segment", "query_segment")
OTHERS = ("task", "weights", "calibration")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "it is not JSON"),
        (WINDOW.to_json()[:-5], "it is not JSON"),
        ("\ufeff" + WINDOW.to_json(), "it is not JSON"),
        ("[]", "names no schema"),
        ("5", "names no schema"),
        ('{"task": "Addition"}', "names no schema"),
        (edited({"schema": 2}), "schema is not 1"),
        (edited({"schema": None}), "schema is not 1"),
        *((without(name), name) for name in ("task", "num_heads", "num_encoder_layers", "rules", "calibration")),
        *((without(name), name) for name in ("site", "layer", "head", "conditions")),
        (edited({"surplus": 1}), "surplus"),
        (edited(surplus=1), "surplus"),
        (edited(conditions=[RAW | {"surplus": 1}]), "surplus"),
        (edited(conditions=[{"equals": 0}]), "key"),
        *((edited({"rules": rules}), MISSING) for rules in (5, None, "ab", [1], [[]], {"a": 1})),
        (edited(conditions=5), MISSING),
        (edited(conditions=["raw"]), MISSING),
        *((edited(site=s), f"{RULE} names the site {s!r}: give one of") for s in ("self", ["encoder"], "a\nb")),
        (edited(layer=1), "encoder layer 1 head 1 is outside the window's 1 layers of 2 heads"),
        (edited(head=2), "encoder layer 0 head 2 is outside the window's 1 layers of 2 heads"),
        *((edited(layer=v), f"layer {v!r} and head 1: give integers") for v in (-1, 0.0, "0", None, False)),
        *((edited(head=v), f"layer 0 and head {v!r}: give integers") for v in (-1, 1.0, "1", None, True)),
        *(
            (edited(bias=b), f"{RULE} has the bias {b!r}: give")
            for b in ("0", None, [], True, math.nan, INF, -INF, 1e39)
        ),
        *((edited(**{n: v}), f"{RULE} names the segment {v!r}") for n in SEGMENTS for v in (["a"], 5)),
        (edited(fallback="no"), f"{RULE} has fallback 'no'"),
        *((edited(query_string=v), f"{RULE} has the query_string {v!r}") for v in ("both", 1, True)),
        (edited(query_string="target"), "names a query_string, which is for windows of decoder-only models"),
        *((edited({"backbone": v}), f"its backbone is {v!r}") for v in ("mamba", None, 5)),
        (edited({"backbone": "decoder-only"}), "of a decoder-only model and has encoder layers"),
        *(
            (edited(conditions=[RAW | {"key": k}]), f"names the coordinate {k!r}")
            for k in ("a corner", "", 5, [], None)
        ),
        (edited(conditions=[RAW | {"query": "9x"}]), "names the coordinate '9x'"),
        *(
            (edited(conditions=[RAW | {"equals": e}]), f"compares a coordinate with {e!r}")
            for e in (0.5, "1", None, True, 2**63)
        ),
        *(
            (edited({name: value}), f"its {name} is {value!r}: give an integer of at least {least}")
            for name, least in (("num_encoder_layers", 0), ("num_decoder_layers", 1), ("num_heads", 1))
            for value in ("2", None, 2.0, True, least - 1)
        ),
        *((edited({name: 5}), "its task and weights must be strings and its calibration") for name in OTHERS),
        (edited(**{"a\nb": 1}), MISSING),
        ("[" * 100_000, "it is not JSON"),
        (f'{{"schema": {"1" * 5000}}}', "it is not JSON"),
    ],
    ids=lambda value: value if len(value) < 80 else "edited",
)
def test_what_is_no_window_is_refused_in_one_line(text: str, named: str) -> None:
    assert named in one_line(lambda: Window.from_json(text))


def test_what_is_no_window_cannot_be_made() -> None:
    assert "'a corner'" in one_line(lambda: Condition("a corner", 0))
    assert "layer -1" in one_line(lambda: Rule("cross", -1, 0))
    assert "encoder layer 1 head 0 is outside" in one_line(lambda: WINDOW.with_rules([Rule("encoder", 1, 0)]))
    assert "num_heads" in one_line(lambda: window(num_heads=0))


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    missing, broken, binary = (tmp_path / name for name in ("none.json", "broken.json", "binary.json"))
    broken.write_text(WINDOW.to_json()[:40])
    binary.write_bytes(b"\xff\xfe\x00{")
    assert one_line(lambda: Window.load(missing)) == f"there is no window at {missing}"
    assert one_line(lambda: Window.load(broken)).startswith(f"{broken} cannot be used: it is not JSON")
    assert one_line(lambda: Window.load(binary)).startswith(f"{binary} cannot be used: ")
    assert one_line(lambda: Window.load(tmp_path)).startswith(f"{tmp_path} cannot be used: ")
    assert one_line(lambda: Window.load(broken / "x")).startswith(f"{broken / 'x'} cannot be used: ")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 2, 2), "the window is for 1 encoder layers and the model has 0"),
        ((1, 3, 2), "the window is for 2 decoder layers and the model has 3"),
        ((1, 2, 8), "the window is for 2 heads and the model has 8"),
    ],
)
def test_check_fits(sizes: tuple[int, int, int], message: str) -> None:
    WINDOW.check_fits(1, 2, 2)
    assert message in one_line(lambda: WINDOW.check_fits(*sizes))


def test_a_coordinate_that_the_layout_lacks_is_named_with_those_that_it_has() -> None:
    names = "column, index, place, raw, raw_from_end, row, segment"
    message = f"a rule of the window does not fit this task: the layout has no coordinate 'x': choose one of {names}"
    for condition in (Condition("x", 0), Condition("raw", 0, "x")):
        own, pair = window(Rule("cross", 0, 0, None, (condition,))), site_positions("cross", LAYOUT)
        assert one_line(lambda own=own, pair=pair: dense_bias(own, "cross", 0, *pair)) == message
        assert one_line(lambda own=own, pair=pair: open_keys(own, "cross", 0, *pair)) == message


def test_rules_of_a_coordinate_that_is_the_tasks_own() -> None:
    layout = Layout(
        *(
            Positions(
                p.names, dict(p.coordinates) | {"x": 2 * p.coordinates["raw"], "path": p.coordinates["raw"][:, None]}
            )
            for p in (LAYOUT.source, LAYOUT.target, LAYOUT.prefix)
        )
    )
    assert opened(Rule("cross", 0, 0, None, (Condition("x", 2),)), layout=layout) == [(i, 1) for i in range(5)]
    related = Rule("cross", 0, 0, None, (Condition("x", 2, "x"),))
    assert opened(related, layout=layout) == [(i, i - 1) for i in range(1, 5)]
    message = one_line(lambda: opened(Rule("cross", 0, 0, None, (Condition("path", 2),)), layout=layout))
    assert message == "a rule of the window names the coordinate 'path', which is not one number a token"


# As a position method.


class TestWindowed(PositionContract):
    cases = {  # noqa: RUF012
        "around NoPE": PositionCase(Windowed(WINDOW, NoPE()), configured=False),
        "around cyclic": PositionCase(Windowed(WINDOW, Cyclic(("place",))), configured=False),
        "empty": PositionCase(Windowed(window(), NoPE()), configured=False),
    }


class Inner(AttentionPosition):
    """Doubles queries, adds 1 to scores and the distance to the logits."""

    pointwise = False
    transforms = True

    def rotate(self, q: torch.Tensor, k: torch.Tensor, *_: Positions) -> tuple[torch.Tensor, torch.Tensor]:
        return 2 * q, k

    def bias(self, q_positions: Positions, k_positions: Positions) -> torch.Tensor:
        return (q_positions.coordinates["raw"][:, None] - k_positions.coordinates["raw"])[None].float()

    def transform(self, scores: torch.Tensor, *_: Any) -> torch.Tensor:
        return scores + 1


def test_an_inner_method_keeps_its_say() -> None:
    class Method(Cyclic):
        def at(self, site: str, layer: int, num_heads: int, head_dim: int) -> AttentionPosition:
            assert (site, layer, num_heads, head_dim) == ("cross", 1, 2, 4)
            return Inner()

    method = Windowed(WINDOW, Method())
    q_positions, k_positions = site_positions("cross", LAYOUT)
    hook = method.build(SIZES).at("cross", 1)
    assert (hook.pointwise, hook.transforms) == (False, True)
    q, k, scores = PositionContract.tensors(q_positions, k_positions)
    rotated = hook.rotate(q, k, q_positions, k_positions)
    assert torch.equal(rotated[0], 2 * q)
    assert torch.equal(rotated[1], k)
    assert torch.equal(hook.transform(scores, q, k, q_positions, k_positions), scores + 1)
    expected = site_bias(WINDOW, "cross", 1, LAYOUT) + Inner().bias(q_positions, k_positions)
    assert torch.equal(hook.bias(q_positions, k_positions), expected)
    x = torch.randn(2, len(q_positions), 8)
    assert torch.equal(method.build(SIZES).embed(x, q_positions), Cyclic().embed(x, q_positions))


def test_a_bias_is_kept_for_its_own_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(attention, "dense_bias", lambda *a: made.append(a[1:3]) or dense_bias(*a))
    hooks = [Windowed(WINDOW, NoPE()).build(SIZES).at(site, layer) for site in SITES for layer in range(2)]
    sites = [(site, layer) for site in SITES for layer in range(2)]
    for _ in range(3):
        for layout in (LAYOUT, OTHER):
            for hook, (site, layer) in zip(hooks, sites, strict=True):
                q_positions, k_positions = site_positions(site, layout)
                expected = dense_bias(WINDOW, site, layer, q_positions, k_positions)
                assert torch.equal(hook.bias(q_positions, k_positions), expected)
    # Once a site, layer and layout.
    assert len(made) == 2 * len(sites)


def test_a_table_is_kept_for_its_own_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(attention, "open_keys", lambda *a: made.append(a[1:3]) or open_keys(*a))
    hooks = {
        (site, layer): Windowed(WINDOW, NoPE()).build(SIZES).at(site, layer) for site in SITES for layer in range(2)
    }
    for _ in range(3):
        for layout in (LAYOUT, OTHER):
            for (site, layer), hook in hooks.items():
                q_positions, k_positions = site_positions(site, layout)
                expected = visible_oracle(WINDOW, site, layer, q_positions, k_positions)
                table = hook.open_keys(q_positions, k_positions, INF)
                assert table is not None
                assert scattered(table, len(k_positions)) == expected
                # Fewer slots than there are may be wanted of the table that is kept, too.
                slots = table.index.shape[-1]
                assert hook.open_keys(q_positions, k_positions, slots - 1) is None
                assert hook.open_keys(q_positions, k_positions, slots) is table
    assert len(made) == 2 * len(hooks)


def test_large_tables_are_made_anew_and_small_ones_go_with_their_positions() -> None:
    hook = Windowed(window(Rule("cross", 0, 0, None, (OWN_PLACE,))), NoPE()).build(SIZES).at("cross", 0)
    assert isinstance(hook, WindowedAttention)
    q_positions, k_positions = site_positions("cross", digit_layout((("operand 1", 3),), 2**17))
    for size in (1, 5):
        hook.open_keys(q_positions[:size], k_positions, INF)
    hook.open_keys(q_positions, k_positions, INF)
    gc.collect()
    assert sum(len(by_key) for by_key in hook._tables._by_query.values()) == 0


def test_a_bias_goes_with_its_positions() -> None:
    hook = Windowed(WINDOW, NoPE()).build(SIZES).at("cross", 0)
    assert isinstance(hook, WindowedAttention)
    q_positions, k_positions = site_positions("cross", LAYOUT)
    for i in range(5):
        hook.bias(q_positions[i : i + 1], k_positions)  # queries of a step
        hook.bias(q_positions, k_positions[: i + 1])
    gc.collect()
    assert sum(len(by_key) for by_key in hook._biases._by_query.values()) == 0


def test_what_is_not_pointwise_cannot_be_gathered() -> None:
    class Method(NoPE):
        def at(self, site: str, layer: int, num_heads: int, head_dim: int) -> AttentionPosition:
            return Inner()

    windowed, other = (Windowed(WINDOW, inner).build(SIZES).at("cross", 0) for inner in (NoPE(), Method()))
    assert windowed.why_not_gathered() is None
    assert other.why_not_gathered() == ("Inner is not pointwise: a logit depends on more than its query and key")
    assert type(other.among_open_keys()) is Inner
