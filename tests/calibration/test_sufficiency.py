import itertools
from collections import Counter
from collections.abc import Hashable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from abc_toolkit.calibration import sufficiency
from abc_toolkit.calibration.sufficiency import Evidence, _Viewer, receptive_fields, solved, views
from abc_toolkit.layout import Layout
from abc_toolkit.models.base import Architecture, predict
from abc_toolkit.models.transformer import EncoderDecoder
from abc_toolkit.positions import NoPE, Site
from abc_toolkit.tasks import Addition, Multiplication, Parity, Problems, Successor, Task
from abc_toolkit.vocabulary import BOS
from abc_toolkit.windows.attention import Windowed
from abc_toolkit.windows.conflict import Conflict
from abc_toolkit.windows.lowering import site_positions
from abc_toolkit.windows.rules import Condition, Rule, Window

OWN, BELOW = ((Condition("place", offset, "place"),) for offset in (0, 1))
FIRST = (Condition("place", 0),)


def window(*rules: Rule, encoder: int = 0, decoder: int = 1, heads: int = 4) -> Window:
    return Window("any", encoder, decoder, heads, rules, {})


def problems_of(task: Task, texts: list[str]) -> list[Problems]:
    """Problems as a person writes them, a batch a shape."""
    by_shape: dict[tuple[int, ...], list[torch.Tensor]] = {}
    for text in texts:
        shape, source = task.parse(text)
        by_shape.setdefault(shape, []).append(task.vocabulary.encode(source))
    return [solved(task, shape, torch.stack(sources)) for shape, sources in by_shape.items()]


# What a window shows, by its definition.


class Shown:
    """What a window shows to a prediction: nested collections, each of which gets a number."""

    def __init__(self, own: Window) -> None:
        self.window = own
        self.numbers: dict[Hashable, int] = {}

    def number(self, what: Hashable) -> int:
        return self.numbers.setdefault(what, len(self.numbers))

    def open_keys(self, site: Site, layer: int, layout: Layout) -> list[list[dict[int, float]]]:
        """For every head and query the open keys and their biases."""
        q, k = site_positions(site, layout)

        def holds(rule: Rule, i: int, j: int) -> bool:
            return (
                (site != "decoder" or j <= i)
                and rule.query_segment in (None, q.names[int(q.segment[i])])
                and rule.key_segment in (None, k.names[int(k.segment[j])])
                and all(
                    (0 if c.query is None else int(q.coordinates[c.query][i]))
                    == c.equals * (-1 if c.query is None else 1) + int(k.coordinates[c.key][j])
                    for c in rule.conditions
                )
            )

        heads: list[list[dict[int, float]]] = [[{} for _ in range(len(q))] for _ in range(self.window.num_heads)]
        for head, i in itertools.product(range(self.window.num_heads), range(len(q))):
            rules = [r for r in self.window.rules if (r.site, r.layer, r.head) == (site, layer, head)]
            for fallback in (False, True):
                if fallback and heads[head][i]:
                    continue
                found: dict[int, float] = {}
                for rule, j in itertools.product([r for r in rules if r.fallback == fallback], range(len(k))):
                    if holds(rule, i, j):
                        found[j] = max(found.get(j, rule.bias), rule.bias)
                heads[head][i] |= found
        return heads

    def attended(self, open_keys: list[list[dict[int, float]]], stream: list[int], keys: list[int]) -> list[int]:
        result = []
        for i, own in enumerate(stream):
            heads: list[Hashable] = []
            for head in open_keys:
                biases = head[i]
                # A softmax knows of its keys their proportions, and of biases their differences.
                count = Counter((keys[j], biases[j] - max(biases.values())) for j in biases)
                heads.append(frozenset((what, Fraction(n, len(biases))) for what, n in count.items()))
            result.append(self.number((own, *heads)))
        return result

    def __call__(self, problems: Problems, layout: Layout) -> list[list[int]]:
        opened = {
            (site, layer): self.open_keys(site, layer, layout)
            for site in ("encoder", "decoder", "cross")
            for layer in range(self.window.layers(site))
        }
        shown = []
        for source, target in zip(problems.source.tolist(), problems.target.tolist(), strict=True):
            memory = [self.number(token) for token in source]
            for layer in range(self.window.num_encoder_layers):
                memory = self.attended(opened["encoder", layer], memory, memory)
            stream = [self.number(token) for token in [BOS, *target[:-1]]]
            for layer in range(self.window.num_decoder_layers):
                stream = self.attended(opened["decoder", layer], stream, stream)
                stream = self.attended(opened["cross", layer], stream, memory)
            shown.append(stream)
        return shown


TASK = Addition(max_length=2, padding="none")
NUMBERS = ("4", "5", "45", "55")
BATCHES = problems_of(TASK, [f"{a}+{b}" for a in NUMBERS for b in NUMBERS if len(a) >= len(b)])
SEGMENTS = ("operand 1", "operator", "operand 2", "start", "answer", "end")


@st.composite
def windows(draw: st.DrawFn) -> Window:
    encoder, decoder, heads = draw(st.integers(0, 1)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    conditions = st.one_of(
        st.builds(Condition, st.just("place"), st.integers(-1, 1), st.sampled_from(["place", None])),
        st.builds(Condition, st.sampled_from(["raw", "index"]), st.integers(0, 1), st.sampled_from(["raw", None])),
    )
    rules = []
    for _ in range(draw(st.integers(0, 8))):
        site, layer = draw(
            st.sampled_from(
                [("encoder", 0)] * encoder + [(s, layer) for s in ("decoder", "cross") for layer in range(decoder)]
            )
        )
        rules.append(
            Rule(
                site,  # type: ignore[arg-type]
                layer,
                draw(st.integers(0, heads - 1)),
                draw(st.none() | st.sampled_from(SEGMENTS)),
                tuple(draw(st.lists(conditions, max_size=1))),
                draw(st.sampled_from([0.0, 0.0, -0.5, 0.75])),
                draw(st.none() | st.sampled_from(SEGMENTS)),
                draw(st.sampled_from([False, False, True])),
            )
        )
    return window(*rules, encoder=encoder, decoder=decoder, heads=heads)


def all_views(own: Window) -> list[int]:
    return [view for batch in BATCHES for view in views(own, batch, TASK.layout(batch.shape)).flatten().tolist()]


@settings(max_examples=120)
@given(windows())
def test_views_are_equal_where_all_that_is_shown_is(own: Window) -> None:
    shown = Shown(own)
    expected = [number for batch in BATCHES for row in shown(batch, TASK.layout(batch.shape)) for number in row]
    found = all_views(own)
    assert len(found) == len(expected)
    assert len(set(found)) == len(set(expected)) == len(set(zip(found, expected, strict=True)))


@settings(max_examples=40)
@given(windows(), windows(), st.sampled_from([1, 3, 64]))
def test_what_a_viewer_keeps_changes_no_view(own: Window, other: Window, kept: int) -> None:
    batch = BATCHES[-1]
    wider = replace(own, num_heads=own.num_heads + 1)
    deeper = replace(own, num_encoder_layers=own.num_encoder_layers + 1)
    fewer = [own.with_rules([rule for rule in own.rules if rule is not left_out]) for left_out in own.rules]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sufficiency, "_MOST_HEADS", kept)
        viewer = _Viewer(batch, TASK.layout(batch.shape))
        for tried in [own, *fewer, other, wider, deeper, own]:
            assert torch.equal(viewer.views(tried), views(tried, batch, TASK.layout(batch.shape)))


@settings(max_examples=60)
@given(windows())
@torch.no_grad()
def test_views_are_equal_where_logits_are(own: Window) -> None:
    architecture = Architecture(own.num_encoder_layers, own.num_decoder_layers, 8, own.num_heads, 16)
    model = EncoderDecoder(len(TASK.vocabulary), architecture, Windowed(own, NoPE())).double().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.6, generator=generator)
    logits = torch.cat([predict(model, batch, TASK.layout(batch.shape)).flatten(0, 1) for batch in BATCHES])
    found = torch.tensor(all_views(own))
    apart = (logits[:, None] - logits[None]).abs().amax(dim=-1)
    alike = found[:, None] == found[None]
    assert (apart[alike] < 1e-11).all()
    # Keys of equal content and unequal biases are one key to a softmax, and two to a view.
    if len({rule.bias for rule in own.rules}) <= 1:
        assert (apart[~alike] > 1e-9).all()


@pytest.mark.parametrize(
    ("rules", "texts", "alike"),
    [
        # Two keys alike are as good as one, two pairs as one pair; but not a pair as one of its halves.
        ([Rule("cross", 0, 0, "operand 1")], ("4+4", "44+4"), True),
        ([Rule("cross", 0, 0, "operand 1")], ("45+4", "54+4"), True),
        ([Rule("cross", 0, 0, "operand 1")], ("45+4", "55+4"), False),
        ([Rule("cross", 0, 0, "operand 1"), Rule("cross", 0, 0, "operand 2")], ("4+5", "45+45"), True),
        ([Rule("cross", 0, 0, "operand 1"), Rule("cross", 0, 1, "operand 2")], ("4+5", "5+4"), False),
        ([Rule("cross", 0, 0, "operand 1"), Rule("cross", 0, 0, "operand 2", (), -0.5)], ("4+5", "5+4"), False),
        # A bias on all keys of a row is none.
        ([Rule("cross", 0, 0, "operand 1", OWN, -0.5), Rule("cross", 0, 0, "operand 2", BELOW)], ("4+5", "4+6"), True),
        ([], ("4+5", "76+9"), True),
        # A closed row is not one that looks at something.
        ([Rule("cross", 0, 0, "operator", (Condition("place", 2, "raw_from_end"),))], ("4+5", "44+55"), False),
    ],
)
def test_first_predictions(rules: list[Rule], texts: tuple[str, str], alike: bool) -> None:
    one, other = (
        int(views(window(*rules), batch, TASK.layout(batch.shape))[0, 0])
        for batch in (problems_of(TASK, [text])[0] for text in texts)
    )
    assert (one == other) == alike


# Later tokens see other digits, and no line brings those back.
@example(window(Rule("cross", 0, 0, "operand 1", OWN), Rule("decoder", 1, 0), decoder=2))
@given(windows())
def test_receptive_field_is_what_a_prediction_can_depend_on(own: Window) -> None:
    # A token that is like no other changes the views of just those in whose receptive field it is, under one prefix.
    batch = next(batch for batch in BATCHES if batch.shape == (2, 1))
    layout = TASK.layout(batch.shape)
    (field, _), before = receptive_fields(own, layout), views(own, batch, layout)
    for position in range(len(layout.source)):
        source = batch.source.clone()
        source[:, position] = 4
        changed = views(own, Problems(batch.shape, source, batch.target), layout) != before
        assert torch.equal(changed, field[:, position].expand_as(changed))


# Windows that are known to be sufficient, and not.


def cross(head: int, segment: str, conditions: tuple[Condition, ...] = OWN, layer: int = 0) -> Rule:
    return Rule("cross", layer, head, segment, conditions)


# A prediction knows the token just written without any line: its own stream begins with it.
ENOUGH: dict[str, tuple[Task, list[Rule]]] = {
    "successor": (Successor(max_length=4), [cross(0, "operand 1"), cross(1, "operand 1", BELOW)]),
    "addition": (
        Addition(max_length=3),
        [cross(0, "operand 1"), cross(1, "operand 1", BELOW), cross(2, "operand 2"), cross(3, "operand 2", BELOW)],
    ),
    "multiplication": (
        Multiplication(max_length=3),
        [cross(0, "operand 1"), cross(1, "operand 1", BELOW), cross(2, "operand 2", FIRST)],
    ),
    "parity": (Parity(max_length=6), [cross(0, "operand 1")]),
}
WRITTEN = Rule("decoder", 0, 0, "answer", BELOW)
ALL = pytest.mark.parametrize("name", ENOUGH)


def evidence(task: Task, seed: int = 0) -> Evidence:
    return Evidence(task, torch.Generator().manual_seed(seed), num_problems=256, num_pairs=64)


def check(task: Task, own: Window, conflict: Conflict) -> None:
    """The two problems look alike where they are predicted, and need the tokens that are named."""
    shown = Shown(own)
    seen = []
    for source, place, token in zip(conflict.sources, conflict.places, conflict.tokens, strict=True):
        (batch,) = problems_of(task, [source])
        assert task.vocabulary.decode(batch.source[0]) == source
        assert batch.shape in task.training_shapes()
        seen.append(shown(batch, task.layout(batch.shape))[0][place])
        target = task.solve(source)
        assert token == (target[place] if place < len(target) else "the end")
        assert f"{source} needs {token} at place {place}" in conflict.describe()
    assert seen[0] == seen[1]
    assert conflict.tokens[0] != conflict.tokens[1]
    assert len(conflict.describe().splitlines()) == 1


@ALL
def test_sufficient_windows_have_no_conflict(name: str) -> None:
    task, rules = ENOUGH[name]
    assert not evidence(task).conflicts(window(*rules))
    # Nor with all of it in a second layer, or with lines to spare.
    second = [Rule(r.site, 1, r.head, r.key_segment, r.conditions) for r in rules]
    assert not evidence(task).conflicts(window(*second, decoder=2))
    assert not evidence(task).conflicts(window(*rules, WRITTEN, cross(4, "operand 1", FIRST), heads=5))


@ALL
def test_without_a_line_there_is_a_conflict(name: str) -> None:
    task, rules = ENOUGH[name]
    own_evidence = evidence(task)
    for missing in rules:
        own = window(*(rule for rule in rules if rule is not missing))
        clashes = own_evidence.conflicts(own)
        assert clashes, f"{missing} is needed"
        for clash in clashes[:: max(1, len(clashes) // 5)]:
            check(task, own, own_evidence.describe(clash))


@pytest.mark.parametrize(
    ("task", "rules", "ends"),
    [
        (Successor(max_length=3), [cross(0, "operand 1")], True),
        (Addition(max_length=2), [cross(0, "operand 1"), cross(1, "operand 2")], True),
        # In one head the digits of the two places can change sides.
        (Successor(max_length=3), [cross(0, "operand 1"), cross(0, "operand 1", BELOW), WRITTEN], False),
        (Parity(max_length=5, form="label"), [cross(0, "operand 1")], False),
        (Parity(max_length=5), [], True),
    ],
)
def test_known_conflicts(task: Task, rules: list[Rule], ends: bool) -> None:
    own = window(*rules)
    own_evidence = evidence(task)
    conflicts = [own_evidence.describe(clash) for clash in own_evidence.conflicts(own)]
    assert conflicts
    for conflict in conflicts[:: max(1, len(conflicts) // 8)]:
        check(task, own, conflict)
    assert any("the end" in conflict.tokens for conflict in conflicts) == ends


def test_evidence_is_the_training_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Addition(max_length=3, padding="none")
    own = evidence(task)
    assert [viewer.problems.shape for viewer in own._batches] == list(task.training_shapes())
    assert {len(viewer.problems) for viewer in own._batches} == {256}
    again = evidence(task)
    rules = window(cross(0, "operand 1"))
    assert len(own.conflicts(rules)) == len(again.conflicts(rules)) > 0
    # Problems that are altered outside the receptive field give rare assignments another to be compared with.
    few = Evidence(Successor(max_length=12), torch.Generator().manual_seed(0), num_problems=2, num_pairs=128)
    rules = window(*(cross(n, "operand 1", (Condition("place", 2 * n, "place"),)) for n in range(4)))
    found = len(few.conflicts(rules))
    monkeypatch.setattr(few, "_altered", lambda _: [few._base, few._viewer(few._others)])
    assert found > 2 * len(few.conflicts(rules))


def test_a_conflict_reads_well() -> None:
    conflict = Conflict(("12+34", "19+34"), (1, 2), ("4", "the end"))
    expected = "12+34 needs 4 at place 1 and 19+34 needs the end at place 2, but all that the window shows is the same"
    assert conflict.describe() == expected


def test_solved_problems_are_the_tasks() -> None:
    for task in (Successor(), Addition(padding="none"), Multiplication(), Parity(form="label")):
        shape: Any = task.training_shapes()[-1]
        problems = task.sample(torch.Generator().manual_seed(0), 20, shape)
        assert torch.equal(solved(task, shape, problems.source).target, problems.target)


def test_what_is_no_problem_is_left_out() -> None:
    task = Multiplication(interleaved=True)
    sources = torch.stack([task.vocabulary.encode(text) for text in ("*1727", "*1728", "*0999")])
    problems = solved(task, (2,), sources)
    assert [task.vocabulary.decode(row) for row in problems.source] == ["*1727", "*0999"]
    assert [task.vocabulary.decode(row) for row in problems.target] == ["480", "180"]
    assert len(solved(task, (2,), sources[1:2])) == 0
