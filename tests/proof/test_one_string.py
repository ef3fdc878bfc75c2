"""Windows of models that read source and target as one string, against nested loops and the model itself."""

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from abc_toolkit.calibration.sufficiency import reach, views
from abc_toolkit.layout import Layout, Positions
from abc_toolkit.models.base import Architecture, predict, prefix_of
from abc_toolkit.models.transformer import DecoderOnly
from abc_toolkit.positions import Compose, Cyclic, NoPE
from abc_toolkit.proof.forward import receptive_field_logits
from abc_toolkit.proof.receptive_field import ReceptiveField, ReceptiveFields
from abc_toolkit.proof.rounding import BoundedModel
from abc_toolkit.tasks import Addition, Division, LongMultiplication, MultiOperandAddition, Parity, Subtraction
from abc_toolkit.tasks.digits.base import DigitTask
from abc_toolkit.windows.attention import Windowed
from abc_toolkit.windows.lowering import dense_bias, open_keys, site_positions
from abc_toolkit.windows.rules import Condition, Rule, Window

HEADS, LAYERS = 2, 2
CASES: tuple[tuple[DigitTask, tuple[int, ...]], ...] = (
    (Addition(max_length=3), (3, 2)),
    (Addition(max_length=3, padding="none"), (2, 3)),
    (Subtraction(max_length=3), (2, 2)),
    (Division(max_length=3), (3,)),
    (LongMultiplication(max_length=2), (2, 2)),
    (MultiOperandAddition(max_length=2), (2, 2)),
    (Parity(max_length=3), (3,)),
)
COORDINATES = ("place", "index", "row", "column", "raw", "raw_from_end")
SEEDS = range(12)


@dataclass
class Token:
    """A token of the string as a query and as a key: segments, and coordinates."""

    asks: str
    query: dict[str, int]
    holds: str
    key: dict[str, int]
    of_source: bool


def string_of(layout: Layout) -> list[Token]:
    """Source and prefix as one string, token by token."""

    def of(positions: Positions, number: int, place: int, length: int) -> tuple[str, dict[str, int]]:
        values = {name: int(positions.coordinates[name][number]) for name in COORDINATES[:4]}
        values |= {"raw": place, "raw_from_end": length - 1 - place}
        return positions.names[int(positions.segment[number])], values

    ahead, length = len(layout.source), len(layout.source) + len(layout.target)
    tokens = []
    for place in range(length):
        if place < ahead:
            own = of(layout.source, place, place, length)
            tokens.append(Token(*own, *own, True))
        else:
            query, key = (of(part, place - ahead, place, length) for part in (layout.target, layout.prefix))
            tokens.append(Token(*query, *key, False))
    return tokens


def opened(window: Window, tokens: list[Token], layer: int, head: int, query: int) -> dict[int, float]:
    """The open keys of a query with their biases, by brute force."""
    found: dict[int, float] = {}
    own = tokens[query]
    for fallback in (False, True):
        if fallback and found:
            break
        for rule in window.rules:
            if (rule.layer, rule.head, rule.fallback) != (layer, head, fallback):
                continue
            if rule.query_string is not None and (rule.query_string == "source") != own.of_source:
                continue
            if rule.query_segment not in (None, own.asks):
                continue
            for number, key in enumerate(tokens[: query + 1]):
                if rule.key_segment not in (None, key.holds):
                    continue
                values = [(0 if c.query is None else own.query[c.query], key.key[c.key], c) for c in rule.conditions]
                if all((k if c.query is None else q - k) == c.equals for q, k, c in values):
                    found[number] = max(found.get(number, -math.inf), rule.bias)
    return found


def drawn(seed: int) -> tuple[DigitTask, Layout, Window]:
    """A task, a layout and a window, of lines that mostly open something."""
    draw = random.Random(seed)
    task, shape = draw.choice(CASES)
    layout = task.layout(shape)
    names = [None, *layout.source.names]
    rules = []
    for _ in range(draw.randint(2, 7)):
        conditions = []
        for _ in range(draw.choice((0, 1, 1, 1, 2))):
            name = draw.choice(COORDINATES)
            far = draw.randint(-1, 2)
            conditions.append(Condition(name, far, name) if draw.random() < 0.8 else Condition(name, abs(far)))
        rules.append(
            Rule(
                "decoder",
                draw.randrange(LAYERS),
                draw.randrange(HEADS),
                draw.choice(names),
                tuple(conditions),
                draw.choice((0.0, 0.0, 0.5, -1.5)),
                draw.choice(names) if draw.random() < 0.2 else None,
                draw.random() < 0.2,
                draw.choice((None, "source", "target", "target")),
            )
        )
    return task, layout, Window(type(task).__name__, 0, LAYERS, HEADS, tuple(rules), {}, backbone="decoder-only")


def model_of(task: DigitTask, window: Window, inner: Any = None, seed: int = 0) -> DecoderOnly:
    torch.manual_seed(seed)
    sizes = Architecture(0, LAYERS, 16, HEADS, 16, backbone="decoder-only")
    return DecoderOnly(len(task.vocabulary), sizes, Windowed(window, inner or NoPE())).eval()


def fields_of(window: Window, layout: Layout, model: DecoderOnly | None = None) -> Iterator[ReceptiveField]:
    fields = ReceptiveFields(window, layout, None if model is None else model.positioning)
    return (fields.at(query) for query in range(len(layout.target)))


@pytest.mark.parametrize("seed", range(60))
def test_open_keys_and_receptive_fields_are_those_of_nested_loops(seed: int) -> None:
    _, layout, window = drawn(seed)
    tokens, ahead = string_of(layout), len(layout.source)
    pair = site_positions("decoder", window.read(layout))
    expected = [
        [[opened(window, tokens, layer, head, q) for q in range(len(tokens))] for head in range(HEADS)]
        for layer in range(LAYERS)
    ]
    for layer in range(LAYERS):
        bias = dense_bias(window, "decoder", layer, *pair)
        bias = bias.masked_fill(~torch.ones_like(bias[0], dtype=torch.bool).tril(), -torch.inf)
        table = open_keys(window, "decoder", layer, *pair)
        assert table is not None
        for head, query in itertools.product(range(HEADS), range(len(tokens))):
            dense = {k: b for k, b in enumerate(bias[head, query].tolist()) if b > -math.inf}
            slots = zip(table.index[head, query].tolist(), table.bias[head, query].tolist(), strict=True)
            assert dense == dict(slot for slot in slots if slot[1] > -math.inf) == expected[layer][head][query]

    def before(layer: int, query: int) -> set[int]:
        """Tokens on which the stream of a query after some layers can depend."""
        if layer == 0:
            return {query}
        keys = {key for head in range(HEADS) for key in expected[layer - 1][head][query]}
        return set().union(*(before(layer - 1, token) for token in {query, *keys}))

    for field in fields_of(window, layout):
        leaves = before(LAYERS, ahead + field.query)
        strings = [("source", token) if token < ahead else ("prefix", token - ahead) for token in sorted(leaves)]
        assert list(field.leaves) == strings
        described = [(tokens[token].holds, tokens[token].key["place"]) for token in sorted(leaves)]
        assert [(segment, own["place"]) for segment, own in field.tokens] == described
        assert field.predicted[0] == tokens[ahead + field.query].asks
        reached = reach(window, layout)[ahead + field.query]
        assert set(reached.nonzero()[:, 0].tolist()) == leaves


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("cyclic", [False, True])
def test_the_proof_computes_the_models_logits(seed: int, cyclic: bool) -> None:
    task, layout, window = drawn(seed)
    inner = Compose((Cyclic(("place", "raw"), base=100.0, period=3), NoPE())) if cyclic else NoPE()
    model = model_of(task, window, inner, seed)
    shape = next(shape for task_, shape in CASES if task_ == task)
    problems = task.sample(torch.Generator().manual_seed(seed), 5, shape)
    strings = {"source": problems.source, "prefix": prefix_of(problems.target)}
    found = {}
    with torch.no_grad():
        for path in ("dense", "gathered"):
            model.attend(path)
            found[path] = predict(model, problems, layout)
        state = model.decoder_state(problems.source, model.plan(layout, 5, 2))
        pieces = prefix_of(problems.target).split(2, dim=1)
        found["in pieces"] = torch.cat([model.advance(piece, state) for piece in pieces], dim=1)
    bounded = BoundedModel(model, [method for method in getattr(inner, "methods", ()) if isinstance(method, Cyclic)])
    for field in fields_of(window, layout, model):
        leaves = torch.stack([strings[string][:, number] for string, number in field.leaves], dim=1)
        for own in (receptive_field_logits(model, field, leaves), bounded.logits(field, leaves).float()):
            for logits in found.values():
                assert torch.allclose(logits[:, field.query], own, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("seed", SEEDS)
def test_equal_views_are_equal_logits(seed: int) -> None:
    """What a window shows is all that a model inside it can tell: predictions with equal views have equal logits."""
    task, layout, window = drawn(seed)
    model = model_of(task, window, seed=seed).double()
    shape = next(shape for task_, shape in CASES if task_ == task)
    problems = task.sample(torch.Generator().manual_seed(seed), 64, shape)
    seen = views(window, problems, layout).flatten()
    with torch.no_grad():
        logits = predict(model, problems, layout).flatten(0, 1)
    first = {view: number for number, view in reversed(list(enumerate(seen.tolist())))}
    same = torch.tensor([first[view] for view in seen.tolist()])
    assert (same != torch.arange(len(same))).any()
    assert torch.allclose(logits, logits[same], atol=1e-10)


def test_a_window_of_one_string_is_a_file_and_others_stay_as_they_were() -> None:
    _, _, window = drawn(1)
    assert Window.from_json(window.to_json()) == window
    assert '"backbone": "decoder-only"' in window.to_json()
    other = Window("", 1, 1, 2, (Rule("cross", 0, 0),), {})
    assert "backbone" not in other.to_json()
    assert "query_string" not in other.to_json()
    assert replace(window, rules=()).layers("cross") == replace(window, rules=()).layers("encoder") == 0
