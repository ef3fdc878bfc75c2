from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from abc_toolkit.errors import UserError
from abc_toolkit.layout import Layout, Positions, digit_layout
from abc_toolkit.models.base import Architecture
from abc_toolkit.models.decoding import solve_problems
from abc_toolkit.models.transformer import EncoderDecoder
from abc_toolkit.phases.measure import evaluate_models
from abc_toolkit.positions import AttentionPosition, Compose, ModelSizes, NoPE, PositionMethod, Sinusoidal, Site, random
from abc_toolkit.positions.absolute import Abacus, Learned
from abc_toolkit.positions.random import RandomizedPositions
from abc_toolkit.runs.folder import build_model
from abc_toolkit.tasks import Parity
from abc_toolkit.testing.position_contract import LAYOUTS, PositionCase, PositionContract, pairs
from abc_toolkit.windows.attention import Windowed
from abc_toolkit.windows.rules import Condition, Rule, Window

SIZES = ModelSizes(8, 2, 2, 2)
SUM = digit_layout((("operand 1", 3), ("operator", 1), ("operand 2", 2)), 4)


@dataclass(frozen=True)
class Everything(PositionMethod):
    """Turns, adds and multiplies by `raw`, with a parameter in each layer, all by formulas easy to repeat."""

    pointwise: bool = True

    def at(self, site: Site, layer: int, num_heads: int, head_dim: int) -> AttentionPosition:
        return EverythingAttention(self.pointwise)


class EverythingAttention(nn.Module, AttentionPosition):
    transforms = True

    def __init__(self, pointwise: bool) -> None:
        super().__init__()
        self.pointwise = pointwise
        self.slope = nn.Parameter(torch.ones(()))

    def rotate(self, q: Tensor, k: Tensor, q_positions: Positions, k_positions: Positions) -> tuple[Tensor, Tensor]:
        return tuple(
            x * (1 + 1e-3 * p.coordinates["raw"])[..., None].to(x.dtype)
            for x, p in ((q, q_positions), (k, k_positions))
        )

    def bias(self, q_positions: Positions, k_positions: Positions) -> Tensor:
        distance = q_positions.coordinates["raw"][:, None] - k_positions.coordinates["raw"]
        distance = distance.view(-1, *distance.shape[-2:])
        return -1e-2 * self.slope * distance.abs()

    def transform(
        self,
        scores: Tensor,
        q: Tensor,
        k: Tensor,
        q_positions: Positions,
        k_positions: Positions,
        mask: Tensor | None = None,
    ) -> Tensor:
        left = q_positions.coordinates["raw_from_end"][:, None] - k_positions.coordinates["raw_from_end"]
        scores = scores * (1 + 1e-3 * left).to(scores.dtype)
        return scores if mask is None else scores.masked_fill(~mask, -1.0)


class TestRandomized(PositionContract):
    cases = {  # noqa: RUF012
        "of sinusoids": PositionCase(RandomizedPositions(Sinusoidal()), whole=True),
        "of nothing": PositionCase(RandomizedPositions(NoPE(), capacity=1351)),
        "of learned": PositionCase(RandomizedPositions(Learned(capacity=2048)), learns=True, whole=True),
        "of abacus": PositionCase(RandomizedPositions(Abacus()), learns=True),
        "with every hook": PositionCase(RandomizedPositions(Everything()), learns=True, whole=True),
        "with a capacity": PositionCase(RandomizedPositions(Sinusoidal(), capacity=20), capacity=20),
    }


def drawn(layout: Layout, capacity: int = 50, training: bool = True) -> tuple[list[int], list[int], list[int]]:
    """The numbers that the hooks of a method are told."""
    seen: list[Positions] = []

    @dataclass(frozen=True)
    class Seeing(PositionMethod):
        def embed(self, x: Tensor, positions: Positions) -> Tensor:
            seen.append(positions)
            return x

    built = RandomizedPositions(Seeing(), capacity).build(SIZES).train(training)
    prepared = built.prepare(layout)
    for positions in (prepared.source, prepared.target, prepared.prefix):
        built.embed(torch.zeros(1, len(positions), 8), positions)
    for own, inner in zip((layout.source, layout.target, layout.prefix), seen, strict=True):
        raw = inner.coordinates["raw"]
        assert torch.equal(inner.coordinates["raw_from_end"], raw[-1] - raw)
        assert inner.names == own.names
        assert set(own.coordinates) < set(inner.coordinates)
        assert all(
            torch.equal(inner.coordinates[name], own.coordinates[name]) for name in ("place", "index", "segment")
        )
    source, target, prefix = (positions.coordinates["raw"].tolist() for positions in seen)
    return source, target, prefix


@pytest.mark.parametrize("training", [True, False])
def test_numbers_are_an_increasing_choice_drawn_anew(training: bool) -> None:
    torch.manual_seed(0)
    draws = [drawn(SUM, training=training) for _ in range(200)]
    for source, target, prefix in draws:
        assert (len(source), len(target)) == (6, 5)
        assert prefix == target
        for numbers in (source, target):
            assert numbers == sorted(set(numbers))
            assert 0 <= numbers[0] <= numbers[-1] < 50
    assert len({tuple(source) for source, _, _ in draws}) == 200
    assert not any(set(target) < set(source) for source, target, _ in draws)
    # Every number as often as any other: 200 draws of 6 of 50 have each 24 times or so.
    times = torch.tensor([source for source, _, _ in draws]).flatten().bincount(minlength=50)
    assert (times.min() > 8, times.max() < 50) == (True, True)
    assert {0, 49} < {number for _, target, _ in draws for number in target}


def test_a_capacity_that_is_full_leaves_the_numbers_as_they_are() -> None:
    assert drawn(SUM, capacity=6)[0] == [0, 1, 2, 3, 4, 5]
    with pytest.raises(UserError, match="RandomizedPositions: position 5 is beyond the capacity of 5: raise capacity"):
        drawn(SUM, capacity=5)
    target_longer = digit_layout((("operand 1", 2),), 4)
    with pytest.raises(UserError, match="RandomizedPositions: position 4 is beyond the capacity of 4: raise capacity"):
        drawn(target_longer, capacity=4)


def test_draws_come_from_the_global_generator() -> None:
    torch.manual_seed(4)
    first = drawn(SUM)
    torch.manual_seed(4)
    assert drawn(SUM) == first


def test_hooks_are_the_inner_methods_at_drawn_numbers() -> None:
    built = RandomizedPositions(Everything(), capacity=40).build(SIZES)
    plain = Everything().build(SIZES)
    torch.manual_seed(2)
    prepared = built.prepare(LAYOUTS[1])
    torch.manual_seed(2)
    raws = [torch.randperm(40)[: len(string)].sort().values for string in (LAYOUTS[1].source, LAYOUTS[1].target)]
    source, target, prefix = (
        Positions(p.names, dict(p.coordinates) | {"raw": raw, "raw_from_end": raw[-1] - raw})
        for p, raw in zip(
            (LAYOUTS[1].source, LAYOUTS[1].target, LAYOUTS[1].prefix), (raws[0], raws[1], raws[1]), strict=True
        )
    )
    for site, (q_positions, k_positions) in pairs(Layout(source, target, prefix)).items():
        hook, expected = built.at(site, 0), plain.at(site, 0)
        ours = pairs(prepared)[site]
        q, k, scores = PositionContract.tensors(q_positions, k_positions)
        for a, b in zip(hook.rotate(q, k, *ours), expected.rotate(q, k, q_positions, k_positions), strict=True):
            assert torch.equal(a, b)
        bias, expected_bias = hook.bias(*ours), expected.bias(q_positions, k_positions)
        assert bias is not None
        assert torch.equal(bias, expected_bias)  # type: ignore[arg-type]
        for mask in (None, torch.rand(1, len(q_positions), len(k_positions)) < 0.5):
            transformed = hook.transform(scores, q, k, *ours, mask)
            assert torch.equal(transformed, expected.transform(scores, q, k, q_positions, k_positions, mask))
    x = torch.randn(2, len(target), 8)
    sinusoids = RandomizedPositions(Sinusoidal(), capacity=40).build(SIZES)
    assert torch.equal(sinusoids.embed(x, prepared.target), Sinusoidal().embed(x, target))


def test_masks_and_windows_count_as_the_layout_does() -> None:
    prepared = RandomizedPositions(Sinusoidal()).build(SIZES).prepare(SUM)
    for ours, own in zip(
        (prepared.source, prepared.target, prepared.prefix), (SUM.source, SUM.target, SUM.prefix), strict=True
    ):
        assert all(torch.equal(ours.coordinates[name], coordinate) for name, coordinate in own.coordinates.items())


RULES = (
    Rule("encoder", 0, 0, None, (Condition("raw", 1, "raw"),)),
    Rule("decoder", 0, 0, None, (Condition("raw", 0, "raw"),)),
    Rule("decoder", 0, 1, None, (Condition("raw", 1, "raw"),)),
    Rule("cross", 0, 0, "operand 1"),
    Rule("cross", 0, 1, None, (Condition("raw_from_end", 0, "raw"),)),
)


def test_inside_a_window() -> None:
    """The window opens what it opens without; dense and gathered attention agree on the rest."""
    window = Window("addition", 1, 1, 2, RULES, {})
    plain = Windowed(window, NoPE()).build(SIZES)
    built = Windowed(window, RandomizedPositions(Everything())).build(SIZES)
    prepared = built.prepare(SUM)
    for site, (q_positions, k_positions) in pairs(prepared).items():
        own = plain.at(site, 0).bias(*pairs(SUM)[site])
        bias = built.at(site, 0).bias(q_positions, k_positions)
        assert own is not None
        assert bias is not None
        assert torch.equal(bias > -torch.inf, own > -torch.inf)
        assert (bias > -torch.inf).any()

    model = EncoderDecoder(12, Architecture(1, 1, 8, 2, 16), Windowed(window, RandomizedPositions(Everything()))).eval()
    source, prefix = (torch.randint(12, (2, len(p))) for p in (SUM.source, SUM.target))
    outputs = []
    for path in ("dense", "gathered"):
        model.attend(path)
        torch.manual_seed(0)
        outputs.append(model(source, prefix, SUM))
    torch.testing.assert_close(outputs[0], outputs[1])
    assert not torch.allclose(model(source, prefix, SUM), outputs[0])


def test_what_the_inner_method_says_of_itself() -> None:
    for pointwise in (True, False):
        hook = RandomizedPositions(Everything(pointwise)).build(SIZES).at("decoder", 0)
        assert (hook.pointwise, hook.transforms) == (pointwise, True)
    assert type(RandomizedPositions(Sinusoidal()).build(SIZES).at("decoder", 0)) is AttentionPosition


def test_inner_parameters_stand_once() -> None:
    model = EncoderDecoder(12, Architecture(1, 2, 8, 2, 16, position=RandomizedPositions(Everything())))
    assert sum("slope" in name for name in model.state_dict()) == 1 + 2 * 2
    model = EncoderDecoder(12, Architecture(1, 1, 8, 2, 16, position=RandomizedPositions(Learned(), capacity=1024)))
    assert [name for name in model.state_dict() if "position" in name] == ["positioning.inner.table"]


def test_inner_methods_draw_and_refuse_too() -> None:
    built = RandomizedPositions(Abacus(capacity=8, max_offset=5)).build(SIZES).train()
    torch.manual_seed(0)
    rows = {tuple(built.prepare(SUM).source.coordinates["abacus"].tolist()) for _ in range(60)}
    assert rows == {(2 + b, 1 + b, b, -1, 1 + b, b) for b in range(5)}
    with pytest.raises(UserError, match="draws from 6 numbers and Learned has a capacity of 5: raise the capacity"):
        RandomizedPositions(Compose((NoPE(), Learned(capacity=5))), capacity=6).build(SIZES)
    RandomizedPositions(Learned("place", capacity=5), capacity=6).build(SIZES)


def test_wrong_settings() -> None:
    with pytest.raises(UserError, match="capacity 0: give at least 1"):
        RandomizedPositions(Sinusoidal(), capacity=0)


def evaluated(model: Any, decode: Any = "parallel", lengths: tuple[int, ...] = (3, 4), seed: int = 0) -> dict[int, int]:
    """Problems of each length that a model solves."""
    rows = evaluate_models(
        Parity(max_length=3), {"fit": model}, lengths, ("uniform",), 70, decode, seed, torch.device("cpu")
    ).rows
    return {row.length: round(row.samples * row.value) for row in rows}


def test_an_evaluation_follows_from_its_seed_and_draws_many_times(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = Architecture(1, 1, 8, 2, 16, position=RandomizedPositions(Everything(), capacity=300))
    model = build_model(Parity(max_length=3), sizes, None).eval()
    draws: list[tuple[int, ...]] = []
    drawing = random._RandomizedModel._draw

    def draw(self: Any, length: int) -> Tensor:
        numbers = drawing(self, length)
        draws.append(tuple(numbers.tolist()))
        return numbers

    monkeypatch.setattr(random._RandomizedModel, "_draw", draw)

    def drawn_by(*arguments: Any, **settings: Any) -> list[tuple[int, ...]]:
        draws.clear()
        state = torch.get_rng_state()
        evaluated(model, *arguments, **settings)
        assert torch.equal(torch.get_rng_state(), state)
        return list(draws)

    first = drawn_by()
    assert len(set(first)) == len(first) == 2 * 2 * 5  # of source and target, at two lengths, for 16 problems each
    torch.manual_seed(5)
    assert drawn_by() == drawn_by("steps") == first
    assert drawn_by(lengths=(4,)) == first[10:]  # whatever else is evaluated
    assert not set(drawn_by(seed=1)) & set(first)
    assert evaluated(model) == evaluated(model, "steps")


def test_an_answer_does_not_depend_on_the_problems_beside_it() -> None:
    task = Parity(max_length=3)
    sizes = Architecture(1, 1, 8, 2, 16, position=RandomizedPositions(Everything(), capacity=300))
    model = build_model(task, sizes, None).eval()
    problems = [task.parse(text) for text in ("101", "1101", "011", "1111")]
    together = solve_problems(model, task, problems)
    assert [solve_problems(model, task, [problem])[0] for problem in problems] == together
    assert solve_problems(model, task, problems[::-1]) == together[::-1]
