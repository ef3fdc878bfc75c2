import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from abc_toolkit.layout import Positions, digit_layout
from abc_toolkit.models import attention
from abc_toolkit.models.attention import KEYS_A_SLOT, Attention, Gather, Scope, dense_scope
from abc_toolkit.positions import AttentionPosition, ModelSizes, NoPE, OpenKeys, Site
from abc_toolkit.windows.attention import Windowed, WindowedAttention
from abc_toolkit.windows.lowering import site_positions
from abc_toolkit.windows.rules import Condition, Rule, Window
from tests.windows.test_rules import Case, cases, visible_oracle

BATCH, QUERIES, KEYS, DIM = 2, 4, 5, 6
INF = math.inf


class Given(AttentionPosition):
    """A position method that does what a test says."""

    def __init__(
        self, bias: Tensor | None = None, turn: tuple[float, float] = (1, 1), change: Callable | None = None
    ) -> None:
        self.given = bias
        self.turn = turn
        self.change = change
        self.transforms = change is not None

    def rotate(self, q: Tensor, k: Tensor, q_positions: Positions, k_positions: Positions) -> tuple[Tensor, Tensor]:
        assert (q.shape[2], k.shape[2]) == (len(q_positions), len(k_positions))
        return q * self.turn[0], k * self.turn[1]

    def bias(self, q_positions: Positions, k_positions: Positions) -> Tensor | None:
        return self.given

    def transform(
        self, scores: Tensor, q: Tensor, k: Tensor, q_positions: Positions, k_positions: Positions, mask: Any = None
    ) -> Tensor:
        return scores if self.change is None else self.change(scores)


@dataclass
class Run:
    """Attention from one stream to another, in float64 unless said otherwise."""

    module: Attention
    x: Tensor
    memory: Tensor
    mask: Tensor | None

    @classmethod
    def make(
        cls,
        position: AttentionPosition | None = None,
        mask: Tensor | None = None,
        num_heads: int = 2,
        sizes: tuple[int, int, int, int] = (BATCH, QUERIES, KEYS, DIM),
        dropout: float = 0.0,
        dtype: torch.dtype = torch.float64,
    ) -> "Run":
        batch, queries, keys, dim = sizes
        module = Attention(dim, num_heads, dropout, position or AttentionPosition()).to(dtype)
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter)
        x, memory = (torch.randn(batch, n, dim, dtype=dtype, requires_grad=True) for n in (queries, keys))
        return cls(module, x, memory, mask)

    def __call__(self, need_weights: bool) -> tuple[Tensor, Tensor | None]:
        positions = digit_layout((("operand 1", max(self.x.shape[1], self.memory.shape[1])),), 1).source
        q_positions, k_positions = positions[: self.x.shape[1]], positions[: self.memory.shape[1]]
        keys_values = self.module.keys_values(self.memory)
        return self.module(self.x, keys_values, q_positions, Scope(k_positions, self.mask), need_weights)

    def reference(self) -> tuple[np.ndarray, np.ndarray]:
        """Output and weights by the formula, a number at a time."""
        position = self.module.position
        assert isinstance(position, AttentionPosition)
        change = getattr(position, "change", None) or (lambda score: score)
        turn = getattr(position, "turn", (1, 1))
        bias = position.bias(None, None)  # type: ignore[arg-type]

        def logit(head: int, i: int, j: int, q: np.ndarray, k: np.ndarray) -> float:
            if self.mask is not None and not self.mask[i, j]:
                return -INF
            score = sum(turn[0] * a * turn[1] * b for a, b in zip(q, k, strict=True)) / math.sqrt(len(q))
            added = 0.0 if bias is None else float(bias[head % len(bias), i, j])
            return float(change(torch.tensor(score))) + added

        return formula(self.module, self.x, self.memory, logit)


Logit = Callable[[int, int, int, np.ndarray, np.ndarray], float]


def formula(m: Attention, x: Tensor, memory: Tensor, logit: Logit) -> tuple[np.ndarray, np.ndarray]:
    """Output and weights of attention, a number at a time, given the logit of a head's query and key."""
    heads, dim = m.num_heads, x.shape[-1] // m.num_heads
    q, kv = (linear(t).detach().numpy() for linear, t in ((m.query, x), (m.key_value, memory)))
    k, v = kv[..., : heads * dim], kv[..., heads * dim :]
    batch, queries, keys = q.shape[0], q.shape[1], k.shape[1]
    weights = np.zeros((batch, heads, queries, keys))
    attended = np.zeros_like(q)
    for b, h, i in np.ndindex(batch, heads, queries):
        own = slice(h * dim, (h + 1) * dim)
        logits = [logit(h, i, j, q[b, i, own], k[b, j, own]) for j in range(keys)]
        if max(logits) > -INF:
            powers = [math.exp(logit - max(logits)) for logit in logits]
            weights[b, h, i] = [power / sum(powers) for power in powers]
        for d in range(h * dim, (h + 1) * dim):
            attended[b, i, d] = sum(weights[b, h, i, j] * v[b, j, d] for j in range(keys))
    output = attended @ m.output.weight.detach().numpy().T + m.output.bias.detach().numpy()
    return output, weights


def bias_with_closed_rows(heads: int) -> Tensor:
    """Cells open and closed; row 0 is closed in every head, row 1 in the first."""
    bias = normal(heads)
    bias[torch.rand_like(bias) < 0.4] = -INF
    bias[:, :, 2] = 0.5
    bias[:, 0] = -INF
    bias[0, 1] = -INF
    return bias


CAUSAL = torch.ones(QUERIES, KEYS, dtype=torch.bool).tril()
CLOSED_ROW = CAUSAL.clone()
CLOSED_ROW[2] = False


def normal(heads: int) -> Tensor:
    return torch.randn(heads, QUERIES, KEYS, dtype=torch.float64)


MASKS = {"no mask": None, "causal": CAUSAL, "row masked": CLOSED_ROW}
POSITIONS: dict[str, Callable[[], Given]] = {
    "no bias": Given,
    "shared bias": lambda: Given(normal(1)),
    "bias a head": lambda: Given(normal(2)),
    "closed rows": lambda: Given(bias_with_closed_rows(2)),
    "shared closed rows": lambda: Given(bias_with_closed_rows(1)),
    "turned": lambda: Given(turn=(0.5, -3.0)),
    "transformed": lambda: Given(change=torch.tanh),
    "transformed, then biased": lambda: Given(normal(2), (2.0, 0.7), torch.tanh),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("position", POSITIONS.values(), ids=POSITIONS)
def test_both_paths_are_the_formula(position: Callable[[], Given], mask: Tensor | None) -> None:
    run = Run.make(position(), mask)
    expected, expected_weights = run.reference()
    written_out, weights = run(need_weights=True)
    fused, none = run(need_weights=False)
    assert none is None
    assert weights is not None
    np.testing.assert_allclose(weights.detach(), expected_weights, atol=1e-12)
    np.testing.assert_allclose(written_out.detach(), expected, atol=1e-11)
    np.testing.assert_allclose(fused.detach(), expected, atol=1e-11)
    totals = weights.sum(-1)
    torch.testing.assert_close(totals, (totals > 0.5).double(), atol=1e-12, rtol=0)

    # Both paths have the same finite gradients.
    gradients = []
    for output in (written_out, fused):
        inputs = [run.x, run.memory, *run.module.parameters()]
        gradients.append(torch.autograd.grad((output * torch.linspace(-1, 1, DIM)).sum(), inputs))
    for one, other in zip(*gradients, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(
    ("sizes", "num_heads"),
    [((1, 1, 1, 1), 1), ((3, 1, 4, 6), 3), ((1, 5, 1, 4), 4), ((2, 3, 7, 8), 1)],
    ids=lambda value: str(value),
)
def test_shapes(sizes: tuple[int, int, int, int], num_heads: int) -> None:
    run = Run.make(num_heads=num_heads, sizes=sizes)
    expected, expected_weights = run.reference()
    for need_weights in (False, True):
        output, weights = run(need_weights)
        np.testing.assert_allclose(output.detach(), expected, atol=1e-11)
        if weights is not None:
            np.testing.assert_allclose(weights.detach(), expected_weights, atol=1e-12)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_closed_row_yields_exactly_zero(dtype: torch.dtype, need_weights: bool) -> None:
    bias = torch.full((2, QUERIES, KEYS), -INF)
    bias[:, 3] = 1.0
    run = Run.make(Given(bias), dtype=dtype)
    # Scores far apart must not matter in rows that look nowhere.
    run.x.data *= 1e3
    output, weights = run(need_weights)
    closed = run.module.output.bias.expand(BATCH, 3, -1)
    assert torch.equal(output[:, :3], closed)
    assert not torch.equal(output[:, 3:], closed[:, :1])
    if weights is not None:
        assert (weights[:, :, :3] == 0).all()
    output.square().sum().backward()
    assert (run.x.grad[:, :3] == 0).all()
    for parameter in (run.x, run.memory, *run.module.parameters()):
        assert parameter.grad.isfinite().all()


def test_a_learnt_bias_gets_a_gradient() -> None:
    for need_weights in (False, True):
        bias = torch.zeros(2, QUERIES, KEYS, dtype=torch.float64, requires_grad=True)
        run = Run.make(Given(bias), CLOSED_ROW)
        run(need_weights)[0].square().sum().backward()
        assert (bias.grad[:, CLOSED_ROW].abs() > 0).any()
        assert (bias.grad[:, ~CLOSED_ROW] == 0).all()


def test_dropout_only_while_training() -> None:
    run = Run.make(dropout=0.5)
    run.module.eval()
    expected, expected_weights = run.reference()
    for need_weights in (False, True):
        np.testing.assert_allclose(run(need_weights)[0].detach(), expected, atol=1e-11)
    run.module.train()
    for need_weights in (False, True):
        first, second = run(need_weights)[0], run(need_weights)[0]
        assert not torch.allclose(first, second)
    # The weights that are returned are those before dropout.
    np.testing.assert_allclose(run(True)[1].detach(), expected_weights, atol=1e-12)


def test_heads_must_divide_the_dimension() -> None:
    with pytest.raises(ValueError, match="num_heads 3 does not divide model_dim 8"):
        Attention(8, 3, 0.0, AttentionPosition())


# The gathered path.


class Turning(AttentionPosition):
    """Turns pairs of channels by the raw position, so that a logit depends on the distance."""

    def rotate(self, q: Tensor, k: Tensor, q_positions: Positions, k_positions: Positions) -> tuple[Tensor, Tensor]:
        return self.turned(q, q_positions.coordinates["raw"]), self.turned(k, k_positions.coordinates["raw"])

    @staticmethod
    def turned(x: Tensor, coordinate: Tensor) -> Tensor:
        cos, sin = (wave.to(x.dtype)[..., None] for wave in (coordinate.cos(), coordinate.sin()))
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class Sloping(AttentionPosition, nn.Module):
    """Takes a learnt multiple of the distance off, and closes every second place."""

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.slopes = nn.Parameter(torch.linspace(0.3, 0.7, num_heads))

    def bias(self, q_positions: Positions, k_positions: Positions) -> Tensor:
        distance = q_positions.coordinates["place"][:, None] - k_positions.coordinates["place"]
        return torch.where(distance % 2 == 0, -self.slopes[:, None, None] * distance.abs(), -INF)


class Bending(AttentionPosition, nn.Module):
    """Bends scores, more so at a distance."""

    transforms = True

    def __init__(self) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(0.8))

    def transform(
        self, scores: Tensor, q: Tensor, k: Tensor, q_positions: Positions, k_positions: Positions, mask: Any = None
    ) -> Tensor:
        distance = q_positions.coordinates["raw"][:, None] - k_positions.coordinates["raw"]
        return torch.tanh(scores) * (1 + self.strength * distance)


@dataclass(frozen=True)
class Holding(NoPE):
    """A method of a given hook."""

    make: Callable[[int], AttentionPosition] = lambda heads: AttentionPosition()

    def at(self, site: Site, layer: int, num_heads: int, head_dim: int) -> AttentionPosition:
        return self.make(num_heads)


def score(q: np.ndarray, k: np.ndarray) -> float:
    return sum(a * b for a, b in zip(q, k, strict=True)) / math.sqrt(len(q))


def turned(q: np.ndarray, k: np.ndarray, head: int, q_at: dict[str, int], k_at: dict[str, int]) -> float:
    a, b = (vector[: len(vector) // 2] + 1j * vector[len(vector) // 2 :] for vector in (q, k))
    return float((a * b.conj() * np.exp(1j * (q_at["raw"] - k_at["raw"]))).real.sum()) / math.sqrt(len(q))


def sloping(q: np.ndarray, k: np.ndarray, head: int, q_at: dict[str, int], k_at: dict[str, int]) -> float:
    distance = q_at["place"] - k_at["place"]
    return score(q, k) - (0.3, 0.7)[head] * abs(distance) if distance % 2 == 0 else -INF


def bending(q: np.ndarray, k: np.ndarray, head: int, q_at: dict[str, int], k_at: dict[str, int]) -> float:
    return math.tanh(score(q, k)) * (1 + 0.8 * (q_at["raw"] - k_at["raw"]))


# What is inside the window, and the logit that it means.
INSIDE: dict[str, tuple[Callable[[int], AttentionPosition], Callable[..., float]]] = {
    "nothing": (lambda heads: AttentionPosition(), lambda q, k, *_: score(q, k)),
    "turning": (lambda heads: Turning(), turned),
    "sloping": (Sloping, sloping),
    "bending": (lambda heads: Bending(), bending),
}


@dataclass
class Pair:
    """One attention inside a window, by either path."""

    module: Attention
    site: Site
    x: Tensor
    memory: Tensor
    q_positions: Positions
    k_positions: Positions

    @classmethod
    def make(cls, case: Case, inside: str, dtype: torch.dtype = torch.float64, dropout: float = 0.0) -> "Pair":
        own, site, layer, q_positions, k_positions = case
        method = Windowed(own, Holding(INSIDE[inside][0]))
        module = Attention(8, own.num_heads, dropout, method.build(ModelSizes(8, own.num_heads, 2, 2)).at(site, layer))
        for name, parameter in module.named_parameters():
            if "position" not in name:
                nn.init.normal_(parameter, std=0.7)
        streams = (torch.randn(BATCH, len(positions), 8, dtype=dtype) for positions in (q_positions, k_positions))
        return cls(module.to(dtype), site, *(x.requires_grad_() for x in streams), q_positions, k_positions)

    def table(self) -> OpenKeys:
        table = self.module.position.open_keys(self.q_positions, self.k_positions, INF)
        assert table is not None
        return table

    def __call__(self, path: str, need_weights: bool = False) -> tuple[Tensor, Tensor | None]:
        self.module.path = path  # type: ignore[assignment]
        scope = self.module.scope(self.q_positions, self.k_positions, causal=self.site == "decoder")
        assert (scope.gather is not None) == (path == "gathered")
        keys_values = self.module.keys_values(self.memory)
        return self.module(self.x, keys_values, self.q_positions, scope, need_weights)

    def gradients(self, path: str) -> list[Tensor]:
        """Of the streams, the layers and the method."""
        output = self(path)[0]
        loss = (output * torch.linspace(-1, 2, output.numel()).view_as(output)).sum()
        inputs = [self.x, self.memory, *self.module.parameters()]
        return list(torch.autograd.grad(loss, inputs, materialize_grads=True))

    def spread(self, weights: Tensor) -> Tensor:
        """Weights `[batch, head, query, slot]` as `[batch, head, query, key]`."""
        index = self.table().index.expand_as(weights)
        return weights.new_zeros(*weights.shape[:3], len(self.k_positions)).scatter_add(-1, index, weights)


def at(positions: Positions, i: int) -> dict[str, int]:
    return {name: int(coordinate[i]) for name, coordinate in positions.coordinates.items()}


ROUNDING = {torch.float64: 1e-10, torch.float32: 5e-5}
SMALL = st.floats(-3, 3, width=32)
LAYOUT = digit_layout((("operand 1", 4), ("operator", 1)), 5)
OWN_RAW = (Condition("raw", 0, "raw"),)


def case_of(site: Site, *rules: Rule) -> Case:
    return Window("Addition", 1, 1, 2, rules, {}), site, 0, *site_positions(site, LAYOUT)


# A single slot in one head and closed rows in the other; closed rows alone; a single slot everywhere.
SINGLE = case_of("cross", Rule("cross", 0, 0, None, OWN_RAW), Rule("cross", 0, 1, "operand 1", OWN_RAW, 0.5))
CLOSED = case_of("decoder", Rule("decoder", 0, 0, None, (Condition("raw", 3),)))
FIRST = case_of("decoder", *(Rule("decoder", 0, head, None, (Condition("raw", 0),), 1.5) for head in (0, 1)))
LINES = case_of(
    "encoder",
    *(Rule("encoder", 0, head, None, (Condition("raw", i, "raw"),), i / 2) for head in (0, 1) for i in (-1, 0, 1, 2)),
)


def agree(one: Tensor, other: Tensor, dtype: torch.dtype) -> None:
    """Whether two results agree within rounding, relative to their scale."""
    scale = max(1.0, float(one.detach().abs().max()))
    torch.testing.assert_close(one, other, atol=ROUNDING[dtype] * scale, rtol=0)


@pytest.mark.parametrize("inside", INSIDE)
@settings(max_examples=40)
@example(SINGLE, 0)
@example(CLOSED, 0)
@example(FIRST, 0)
@example(LINES, 0)
@given(cases(SMALL), st.integers(0, 9))
def test_gathered_is_dense(inside: str, case: Case, seed: int) -> None:
    for dtype in ROUNDING:
        torch.manual_seed(seed)
        pair = Pair.make(case, inside, dtype)
        (dense, dense_weights), (gathered, weights) = (pair(path, True) for path in ("dense", "gathered"))
        assert dense_weights is not None
        assert weights is not None
        agree(dense, gathered, dtype)
        agree(dense_weights, pair.spread(weights), dtype)
        agree(dense, pair("dense")[0], dtype)
        without, none = pair("gathered")
        assert none is None
        assert torch.equal(without, gathered)
        for one, other in zip(pair.gradients("dense"), pair.gradients("gathered"), strict=True):
            assert other.isfinite().all()
            agree(one, other, dtype)


@pytest.mark.parametrize("inside", INSIDE)
@settings(max_examples=25)
@example(SINGLE)
@example(CLOSED)
@example(LINES)
@given(cases(SMALL))
def test_gathered_is_the_formula(inside: str, case: Case) -> None:
    torch.manual_seed(0)
    pair = Pair.make(case, inside)
    bias = visible_oracle(*case)
    queries, keys = ([at(p, i) for i in range(len(p))] for p in (pair.q_positions, pair.k_positions))

    def logit(head: int, i: int, j: int, q: np.ndarray, k: np.ndarray) -> float:
        return INSIDE[inside][1](q, k, head, queries[i], keys[j]) + bias[head][i][j]

    expected, expected_weights = formula(pair.module, pair.x, pair.memory, logit)
    output, weights = pair("gathered", need_weights=True)
    assert weights is not None
    # Waves, slopes and strengths are float32.
    np.testing.assert_allclose(pair.spread(weights).detach(), expected_weights, atol=2e-6)
    np.testing.assert_allclose(output.detach(), expected, atol=2e-5)


@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("case", [SINGLE, CLOSED, FIRST, LINES], ids=["single", "closed", "first", "lines"])
def test_gathered_in_half_precision(case: Case, inside: str) -> None:
    torch.manual_seed(0)
    exact = Pair.make(case, inside, torch.float32)
    for mixed in (False, True):
        torch.manual_seed(0)
        pair = Pair.make(case, inside, torch.float32 if mixed else torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            output = pair("gathered")[0]
            gradients = pair.gradients("gathered")
        assert output.dtype == torch.bfloat16
        torch.testing.assert_close(output.float(), exact("dense")[0], atol=0.2, rtol=0.05)
        for gradient, parameter in zip(gradients, (pair.x, pair.memory, *pair.module.parameters()), strict=True):
            assert gradient.dtype == parameter.dtype
            assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_closed_row_yields_exactly_zero_when_gathered(dtype: torch.dtype) -> None:
    pair = Pair.make(CLOSED, "nothing", dtype)
    pair.x.data *= 1e3
    output, weights = pair("gathered", need_weights=True)
    assert weights is not None
    assert (weights[:, :, :3] == 0).all()
    assert (weights[:, 0, 3:] == 1).all()
    assert torch.equal(output[:, :3], pair.module.output.bias.expand(BATCH, 3, -1))
    assert (pair.gradients("gathered")[0][:, :3] == 0).all()


def test_dropout_of_gathered_keys() -> None:
    pair = Pair.make(FIRST, "nothing", dropout=0.5)
    nn.init.eye_(pair.module.output.weight)
    nn.init.zeros_(pair.module.output.bias)
    value = pair.module.keys_values(pair.memory)[:, :1, 1]  # [batch, 1, head, dim]
    output, weights = pair("gathered", need_weights=True)
    kept = (output.unflatten(-1, (2, -1)) / value).detach()
    # A row's only weight is 1, and either dropped or doubled.
    torch.testing.assert_close(kept, kept.round(), atol=1e-12, rtol=0)
    torch.testing.assert_close(kept, kept[..., :1].expand_as(kept))
    assert set(kept.round().unique().tolist()) == {0.0, 2.0}
    assert weights is not None
    assert (weights == 1).all()
    pair.module.eval()
    agree(pair("gathered")[0], pair("dense")[0], torch.float64)


def test_a_slice_of_a_scope_is_the_scope_of_a_slice() -> None:
    for case in (SINGLE, CLOSED, LINES):
        pair = Pair.make(case, "turning")
        for path in ("dense", "gathered"):
            whole = pair(path)[0]
            scope = pair.module.scope(pair.q_positions, pair.k_positions, causal=pair.site == "decoder")
            keys_values = pair.module.keys_values(pair.memory)
            for piece in (slice(0, 2), slice(2, 3), slice(3, None)):
                part = pair.module(pair.x[:, piece], keys_values, pair.q_positions[piece], scope[piece])[0]
                agree(part, whole[:, piece], torch.float64)


def test_gathering_from_rows_in_another_order() -> None:
    pair = Pair.make(LINES, "bending")
    expected = pair("gathered")[0]
    order = torch.randperm(len(pair.k_positions))
    scope = Scope(pair.k_positions, gather=Gather.from_table(pair.table(), stored=order.argsort()))
    output = pair.module(pair.x, pair.module.keys_values(pair.memory)[:, order], pair.q_positions, scope)[0]
    agree(output, expected, torch.float64)


# Which path is taken.


def taken(monkeypatch: pytest.MonkeyPatch, module: Attention, length: int, site: Site, dense: bool = False) -> str:
    """The path that attention takes from a target to a source of a length, or to the target's own prefix."""
    calls = []
    for path in ("dense", "gathered"):
        own = getattr(Attention, f"_{path}")
        monkeypatch.setattr(Attention, f"_{path}", lambda *a, own=own, path=path: calls.append(path) or own(*a))
    q_positions, k_positions = site_positions(site, digit_layout((("operand 1", length),), length - 1))
    x, memory = (torch.randn(1, len(positions), 8) for positions in (q_positions, k_positions))
    scope = module.scope(q_positions, k_positions, causal=site == "decoder", dense=dense)
    module(x, module.keys_values(memory), q_positions, scope)
    monkeypatch.undo()
    assert len(calls) == 1
    return calls[0]


def attention_in(site: Site, *rules: Rule, inner: AttentionPosition | None = None) -> Attention:
    own = Window("Addition", 1, 1, 2, rules, {})
    return Attention(8, 2, 0.0, WindowedAttention(own, site, 0, inner or AttentionPosition()))


@pytest.mark.parametrize("site", ["encoder", "decoder", "cross"])
def test_auto_gathers_where_there_are_many_keys_for_each_slot(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [Rule(site, 0, head, None, (Condition("raw", i, "raw"),)) for head in (0, 1) for i in (0, 1, 2)]
    module = attention_in(site, *lines)
    for length, path in ((3, "dense"), (3 * KEYS_A_SLOT - 1, "dense"), (3 * KEYS_A_SLOT, "gathered")):
        assert taken(monkeypatch, module, length, site) == path
    assert taken(monkeypatch, module, 3 * KEYS_A_SLOT, site, dense=True) == "dense"
    module.path = "dense"
    assert taken(monkeypatch, module, 3 * KEYS_A_SLOT, site) == "dense"
    module.path = "gathered"
    assert taken(monkeypatch, module, 3, site) == "gathered"


@pytest.mark.parametrize("site", ["encoder", "decoder", "cross"])
def test_auto_stays_dense_where_a_segment_is_open_whole(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for rule in (Rule(site, 0, 0), Rule(site, 0, 1, "answer" if site == "decoder" else "operand 1", fallback=True)):
        module = attention_in(site, rule)
        for length in (5, 40, 400):
            assert taken(monkeypatch, module, length, site) == "dense"
        module.path = "gathered"
        assert taken(monkeypatch, module, 40, site) == "gathered"


def test_auto_stays_dense_without_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Attention(8, 2, 0.0, AttentionPosition())
    assert module.position.why_not_gathered() == "it has no window, so that every key is open to every query"
    for site in ("encoder", "decoder", "cross"):
        assert taken(monkeypatch, module, 200, site) == "dense"


def test_what_is_not_pointwise_is_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    class Whole(AttentionPosition):
        """Needs every score of a row."""

        pointwise = False
        transforms = True

        def transform(self, scores: Tensor, *_: Any) -> Tensor:
            return scores - scores.mean(-1, keepdim=True)

    module = attention_in("cross", Rule("cross", 0, 0, None, OWN_RAW), inner=Whole())
    assert taken(monkeypatch, module, 200, "cross") == "dense"


def test_queries_at_once_keep_to_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    module = attention_in("cross", Rule("cross", 0, 0, None, OWN_RAW), Rule("cross", 0, 1, None, OWN_RAW))
    q_positions, k_positions = site_positions("cross", LAYOUT)
    monkeypatch.setattr(attention, "_CELLS", 240)
    # Dense: 2 heads of 5 keys; gathered: a key and a value of 4 channels each in the 1 slot of each head.
    dense = dense_scope(q_positions, k_positions, causal=False)
    module.path = "gathered"
    gathered = module.scope(q_positions, k_positions)
    assert [module.queries_at_once(batch, dense) for batch in (1, 3, 1000)] == [24, 8, 1]
    assert [module.queries_at_once(batch, gathered) for batch in (1, 3, 1000)] == [15, 5, 1]
