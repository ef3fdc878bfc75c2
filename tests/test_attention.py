import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from abc_toolkit.attention import Attention
from abc_toolkit.layout import Positions, digit_layout
from abc_toolkit.positions import AttentionPosition

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

    def transform(self, scores: Tensor, q: Tensor, k: Tensor, q_positions: Positions, k_positions: Positions) -> Tensor:
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
        return self.module(self.x, keys_values, q_positions, k_positions, self.mask, need_weights)

    def reference(self) -> tuple[np.ndarray, np.ndarray]:
        """Output and weights by the formula, a number at a time."""
        m, position = self.module, self.module.position
        change = getattr(position, "change", None) or (lambda score: score)
        turn = getattr(position, "turn", (1, 1))
        heads, dim = m.num_heads, self.x.shape[-1] // m.num_heads
        q, kv = (linear(t).detach().numpy() for linear, t in ((m.query, self.x), (m.key_value, self.memory)))
        k, v = kv[..., : heads * dim], kv[..., heads * dim :]
        bias = position.bias(None, None)  # type: ignore[arg-type]
        batch, queries, keys = q.shape[0], q.shape[1], k.shape[1]
        weights = np.zeros((batch, heads, queries, keys))
        attended = np.zeros_like(q)
        for b, h, i in np.ndindex(batch, heads, queries):
            own = range(h * dim, (h + 1) * dim)
            logits = []
            for j in range(keys):
                score = sum(turn[0] * q[b, i, d] * turn[1] * k[b, j, d] for d in own) / math.sqrt(dim)
                logit = float(change(torch.tensor(score)))
                if bias is not None:
                    logit += float(bias[h % len(bias), i, j])
                logits.append(-INF if self.mask is not None and not self.mask[i, j] else logit)
            if max(logits) > -INF:
                powers = [math.exp(logit - max(logits)) for logit in logits]
                weights[b, h, i] = [power / sum(powers) for power in powers]
            for d in own:
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
