"""Receptive fields against an oracle of nested loops over the rules of a window, as the certificate's format says."""

import math
import random
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abc_toolkit.layout import Layout, Positions
from abc_toolkit.positions import Compose, Cyclic, ModelSizes, NoPE
from abc_toolkit.proof.receptive_field import ReceptiveField, ReceptiveFields
from abc_toolkit.tasks import Addition, Division, LongMultiplication, MultiOperandAddition, Subtraction, Task
from abc_toolkit.windows.rules import Condition, Rule, Window

HEADS = 2
LAYOUTS: dict[str, tuple[Task, tuple[int, ...]]] = {
    "addition": (Addition(), (3, 2)),
    "unpadded": (Addition(padding="none"), (2, 4)),
    "interleaved": (Addition(interleaved=True), (3, 3)),
    "subtraction": (Subtraction(), (2, 3)),
    "division": (Division(), (3,)),
    "long multiplication": (LongMultiplication(), (2, 2)),
    "many numbers": (MultiOperandAddition(), (1, 3)),
}
COORDINATES = ("place", "index", "row", "column", "raw", "raw_from_end", "segment")
Tokens = list[dict[str, Any]]


# The oracle.


@dataclass
class Strings:
    """Tokens of a layout as dictionaries."""

    source: Tokens
    target: Tokens
    prefix: Tokens


def tokens_of(positions: Positions) -> Tokens:
    columns = {name: values.tolist() for name, values in positions.coordinates.items()}
    return [
        {name: column[number] for name, column in columns.items()}
        | {"name": positions.names[columns["segment"][number]]}
        for number in range(len(columns["raw"]))
    ]


@lru_cache
def strings_of(layout: Layout) -> Strings:
    return Strings(*(tokens_of(part) for part in (layout.source, layout.target, layout.prefix)))


def opens(rule: Rule, query: dict[str, Any], key: dict[str, Any]) -> bool:
    if rule.query_segment is not None and query["name"] != rule.query_segment:
        return False
    if rule.key_segment is not None and key["name"] != rule.key_segment:
        return False
    for condition in rule.conditions:
        own = key[condition.key]
        found = own if condition.query is None else query[condition.query] - own
        if found != condition.equals:
            return False
    return True


def open_to(window: Window, strings: Strings, site: str, layer: int, head: int, query: int) -> dict[int, float]:
    """The open keys of a query with their biases, by brute force."""
    queries = strings.source if site == "encoder" else strings.target
    keys = strings.prefix if site == "decoder" else strings.source
    found: dict[int, float] = {}
    for fallback in (False, True):
        if fallback and found:
            break
        for rule in window.rules:
            if (rule.site, rule.layer, rule.head, rule.fallback) != (site, layer, head, fallback):
                continue
            for number, key in enumerate(keys):
                if site == "decoder" and key["raw"] > queries[query]["raw"]:
                    continue
                if opens(rule, queries[query], key):
                    found[number] = max(found.get(number, -math.inf), rule.bias)
    return found


@dataclass
class Expected:
    """A receptive field by the oracle: tokens needed before each layer and after the last, and open keys."""

    streams: list[set[int]]
    sources: list[set[int]]
    opened: dict[tuple[str, int, int, int], dict[int, float]]  # by site, layer, head and query

    def form(self) -> Any:
        """Equal for predictions that are the same function of their leaves."""
        sources, streams = ([sorted(part) for part in parts] for parts in (self.sources, self.streams))
        rank = {"source": sources[0].index, "stream": streams[0].index}
        opened = set()
        for (site, layer, head, query), keys in self.opened.items():
            asks = rank["source" if site == "encoder" else "stream"](query)
            side = rank["stream" if site == "decoder" else "source"]
            opened.add((site, layer, head, asks, tuple(sorted((side(key), bias) for key, bias in keys.items()))))
        needed = [[rank["stream"](own) for own in part] for part in streams]
        read = [[rank["source"](own) for own in part] for part in sources]
        return sorted(opened), needed, read


def expected(window: Window, layout: Layout, query: int) -> Expected:
    strings = strings_of(layout)
    opened: dict[tuple[str, int, int, int], dict[int, float]] = {}

    def read(site: str, layer: int, queries: set[int]) -> set[int]:
        keys = set()
        for own in queries:
            for head in range(HEADS):
                found = open_to(window, strings, site, layer, head, own)
                opened[site, layer, head, own] = found
                keys |= set(found)
        return keys

    streams, sources = [{query}], [set[int]()]
    for layer in reversed(range(window.num_decoder_layers)):
        sources[0] |= read("cross", layer, streams[0])
        streams.insert(0, streams[0] | read("decoder", layer, streams[0]))
    for layer in reversed(range(window.num_encoder_layers)):
        sources.insert(0, sources[0] | read("encoder", layer, sources[0]))
    return Expected(streams, sources, opened)


# Windows.

CONDITIONS = st.builds(
    lambda key, equals, query: Condition(key, equals, query),
    st.sampled_from(COORDINATES),
    st.integers(-2, 3),
    st.none() | st.sampled_from(COORDINATES),
)
NEAR = st.builds(lambda name, equals: Condition(name, equals, name), st.sampled_from(COORDINATES), st.integers(-1, 2))


@st.composite
def windows(draw: Any) -> tuple[str, Window]:
    name = draw(st.sampled_from(list(LAYOUTS)))
    task, shape = LAYOUTS[name]
    segments = st.none() | st.sampled_from([*task.layout(shape).source.names, "nowhere"])
    encoder, decoder = draw(st.integers(0, 2)), draw(st.integers(1, 2))
    rules = []
    for _ in range(draw(st.integers(1, 7))):
        site = draw(st.sampled_from(["cross", "decoder", *["encoder"] * (encoder > 0)]))
        rules.append(
            Rule(
                site,
                draw(st.integers(0, (encoder if site == "encoder" else decoder) - 1)),
                draw(st.integers(0, HEADS - 1)),
                draw(segments),
                tuple(draw(st.lists(NEAR | CONDITIONS, max_size=2))),
                draw(st.sampled_from([0.0, 0.0, 0.5, -1.5])),
                draw(st.none() | segments),
                draw(st.booleans()) if draw(st.booleans()) else False,
            )
        )
    return name, Window("", encoder, decoder, HEADS, tuple(rules), {})


def check(window: Window, layout: Layout, field: ReceptiveField) -> Expected:
    """A receptive field against the oracle's; returns that."""
    own = expected(window, layout, field.query)
    assert [set(part) for part in field.streams] == own.streams
    assert [set(part) for part in field.sources] == own.sources
    for parts in (field.streams, field.sources):
        assert all(list(part) == sorted(set(part)) for part in parts)
    assert field.leaves == (
        *(("source", number) for number in sorted(own.sources[0])),
        *(("prefix", number) for number in sorted(own.streams[0])),
    )
    found = {}
    for (site, layer), table in field.tables.items():
        asking = field.sources if site == "encoder" else field.streams
        queries = asking[layer + 1]
        keys = field.sources[-1] if site == "cross" else asking[layer]
        for head in range(HEADS):
            for row, query in enumerate(queries):
                pairs = zip(table.index[head, row].tolist(), table.bias[head, row].tolist(), strict=True)
                opened = [(keys[key], bias) for key, bias in pairs if bias > -math.inf]
                assert len(opened) == len(dict(opened)), "a key counts once"
                found[site, layer, head, query] = dict(opened)
    assert found == own.opened
    strings = strings_of(layout)
    for (segment, token), (string, number) in zip(field.tokens, field.leaves, strict=True):
        assert token | {"name": segment} == getattr(strings, string)[number]
    segment, token = field.predicted
    assert token | {"name": segment} == strings.target[field.query]
    return own


@settings(max_examples=60)
@given(windows())
def test_receptive_fields_are_those_of_nested_loops(made: tuple[str, Window]) -> None:
    name, window = made
    task, shape = LAYOUTS[name]
    layout = task.layout(shape)
    fields = ReceptiveFields(window, layout)
    forms: dict[Any, Any] = {}
    for query in range(len(layout.target)):
        field = fields.at(query)
        own = check(window, layout, field)
        assert field.added == (b"",) * len(field.leaves)
        form = repr(own.form())
        assert forms.setdefault(field.kind, form) == form, "one kind is two functions"
    assert len(set(forms.values())) == len(forms), "one function is two kinds"


def test_kinds_are_functions_of_leaves_over_several_layouts() -> None:
    """Far apart or close, in a long problem or a short one: only the open keys count."""
    task, draw = Addition(padding="none"), random.Random(5)
    for _ in range(6):
        rules = [
            Rule(
                draw.choice(("cross", "decoder")),
                draw.randrange(2),
                draw.randrange(HEADS),
                draw.choice(("operand 1", "operand 2", "answer", None)),
                (
                    Condition(
                        draw.choice(("place", "index")), draw.choice((0, 1)), draw.choice(("place", "place", None))
                    ),
                ),
                fallback=draw.random() < 0.3,
            )
            for _ in range(5)
        ]
        window = Window("", 0, 2, HEADS, tuple(rules), {})
        forms: dict[Any, str] = {}
        for shape in ((1, 1), (1, 4), (3, 3), (4, 2), (6, 6)):
            layout = task.layout(shape)
            fields = ReceptiveFields(window, layout)
            for query in range(len(layout.target)):
                form = repr(expected(window, layout, query).form())
                assert forms.setdefault(fields.at(query).kind, form) == form
        assert len(set(forms.values())) == len(forms)


def test_kinds_tell_which_streams_go_on() -> None:
    """Two predictions with the same open keys by number, in which another stream is read in the second layer."""
    fifth, third, fourth = Condition("raw", 4), Condition("index", 2), Condition("index", 3)
    rules = (
        Rule("decoder", 1, 0, None, (fifth,), query_segment="end"),
        Rule("decoder", 0, 0, "answer", (fourth,)),
        Rule("decoder", 0, 1, "answer", (third,), query_segment="end"),
    )
    window = Window("", 0, 2, HEADS, rules, {})
    kinds = []
    for width in (5, 6):
        layout = Addition().layout((width, width))
        field = ReceptiveFields(window, layout).at(width + 1)
        check(window, layout, field)
        kinds.append((field, expected(window, layout, width + 1).form()))
    (one, form), (other, other_form) = kinds
    assert one.streams == ((3, 4, 6), (4, 6), (6,))
    assert other.streams == ((4, 5, 7), (4, 7), (7,))
    assert form[0] != other_form[0] or form[1:] != other_form[1:]
    assert one.kind != other.kind


# What positions add.


def wave(method: Cyclic, token: dict[str, Any], dim: int) -> list[float]:
    """What cyclic positions add to a token, channel by channel, in Python's own numbers."""
    total = [0.0] * dim
    for k, name in enumerate(method.coordinates):
        own = [0.0] * dim
        for channel in range(dim):
            angle = (token[name] % method.period) * math.exp(-math.log(method.base) * (channel - channel % 2) / dim)
            own[channel] = math.cos(angle) if channel % 2 else math.sin(angle)
        shift = dim * k // len(method.coordinates)
        for channel in range(dim):
            total[(channel + shift) % dim] += own[channel]
    return total if method.channels == "interleaved" else total[0::2] + total[1::2]


@pytest.mark.parametrize(
    "methods",
    [
        [Cyclic(("place",), base=100.0, period=3)],
        [Cyclic(("index", "raw"), base=10.0, period=4, channels="concatenated")],
        [Cyclic(("row",), base=100.0, period=2), Cyclic(("raw_from_end", "segment", "column"), base=7.0, period=5)],
    ],
    ids=["one", "two coordinates", "composed"],
)
def test_vectors_are_those_of_the_built_positions(methods: list[Cyclic]) -> None:
    dim = 20
    inner = methods[0] if len(methods) == 1 else Compose((*methods, NoPE()))
    positioning = inner.build(ModelSizes(dim, HEADS, 0, 1))
    # Such that most predictions differ in what is added alone.
    own = Condition("place", 0, "place"), Condition("raw", 0, "raw")
    rules = [Rule("cross", 0, 0, "operand 1", own[:1]), Rule("decoder", 0, 0, None, own[1:])]
    window = Window("", 0, 1, HEADS, tuple(rules), {})
    for name in ("unpadded", "long multiplication"):
        task, shape = LAYOUTS[name]
        layout = task.layout(shape)
        strings, fields = strings_of(layout), ReceptiveFields(window, layout, positioning)
        bare = ReceptiveFields(window, layout)
        groups: dict[Any, Any] = {}
        for query in range(len(layout.target)):
            field = fields.at(query)
            assert len(field.added) == len(field.leaves)
            vectors = []
            for added, (string, number) in zip(field.added, field.leaves, strict=True):
                # A token of the prefix is embedded with the coordinates of the token that it predicts.
                token = (strings.source if string == "source" else strings.target)[number]
                wanted = [sum(parts) for parts in zip(*(wave(method, token, dim) for method in methods), strict=True)]
                found = memoryview(added).cast("f").tolist() if added else [0.0] * dim
                assert found == pytest.approx(wanted, abs=1e-5)
                vectors.append(tuple(round(value, 3) + 0.0 for value in wanted))
            form = repr((bare.at(query).kind, vectors))
            assert groups.setdefault(field.kind, form) == form
        assert len(set(groups.values())) == len(groups)
