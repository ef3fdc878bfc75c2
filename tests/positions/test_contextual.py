import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from abc_toolkit.errors import UserError
from abc_toolkit.layout import Positions, digit_layout
from abc_toolkit.positions import SITES, AttentionPosition, ModelSizes, PositionMethod, Sinusoidal
from abc_toolkit.positions.biases import FIRE, ALiBi, KerpleLog, T5RelativeBias
from abc_toolkit.positions.contextual import DAPE, CoPE, DAPEv2
from abc_toolkit.positions.rotary import RoPE
from abc_toolkit.testing.position_contract import LAYOUTS, SIZES, PositionCase, PositionContract, pairs
from tests.grids import covering

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "contextual.npz")
Pair = tuple[Tensor, np.ndarray, float]


class TestContextual(PositionContract):
    cases = {  # noqa: RUF012
        "CoPE": PositionCase(CoPE(), learns=True, shifts=True),
        "CoPE of few positions, across": PositionCase(CoPE(3, cross=True), learns=True, shifts=True),
        "CoPE of one position": PositionCase(CoPE(1), learns=True, shifts=True),
        "DAPE": PositionCase(DAPE(), learns=True, shifts=True),
        "DAPE over RoPE": PositionCase(DAPE(RoPE(), width=5), learns=True, shifts=True),
        "DAPE over ALiBi": PositionCase(DAPE(ALiBi()), learns=True, shifts=True),
        "DAPE over KerpleLog, across": PositionCase(DAPE(KerpleLog(cross=True), cross=True), learns=True, shifts=True),
        "DAPE over FIRE": PositionCase(DAPE(FIRE(activation="leaky_relu")), learns=True),
        "DAPE over T5's bias": PositionCase(DAPE(T5RelativeBias()), learns=True, shifts=True),
        "DAPE over CoPE": PositionCase(DAPE(CoPE()), learns=True, shifts=True),
        "DAPE over sinusoids": PositionCase(DAPE(Sinusoidal()), learns=True, shifts=True),
        "DAPEv2": PositionCase(DAPEv2(), learns=True, shifts=True),
        "DAPEv2 over ALiBi": PositionCase(DAPEv2(ALiBi()), learns=True, shifts=True),
        "DAPEv2 over KerpleLog": PositionCase(DAPEv2(KerpleLog()), learns=True, shifts=True),
        "DAPEv2 over FIRE, across": PositionCase(
            DAPEv2(FIRE(activation="leaky_relu"), cross=True, kernel=5), learns=True
        ),
        "DAPEv2 of one key": PositionCase(DAPEv2(RoPE(), kernel=1), learns=True, shifts=True),
    }


def line(length: int) -> Positions:
    return digit_layout((("operand 1", length),), 1).source


def golden(name: str) -> Tensor:
    return torch.from_numpy(GOLDEN[name])


def transformed(hook: AttentionPosition, scores: Tensor, q: Tensor, q_positions: Positions, mask: Tensor) -> Tensor:
    return hook.transform(scores, q, q, q_positions, line(scores.shape[-1]), mask).detach()


def triangle(length: int) -> Tensor:
    return torch.ones(1, length, length, dtype=torch.bool).tril()


def cope() -> list[Pair]:
    found = []
    for npos in (64, 8):
        hook = CoPE(npos).at("decoder", 0, 4, 16)
        hook.embeddings.data = golden(f"cope_npos{npos}_pos_emb")[0]
        ours = transformed(hook, golden("cope_L24_scores"), golden("cope_L24_q"), line(24), triangle(24))
        found.append((ours, GOLDEN[f"cope_L24_npos{npos}_out"], 5e-5))
    return found


def dape(version: str, base: str) -> Callable[[], list[Pair]]:
    """The released module, its parameters given to ours, up to each query; without the cell that we mean to differ."""

    def compare() -> list[Pair]:
        name = f"{version}_{base}"
        fire = FIRE(64, 32, "leaky_relu")
        below = {"alibi": ALiBi(), "kerple": KerpleLog(), "fire": fire, "nope": None}[base]
        method = DAPE(below) if version == "dape" else DAPEv2(below)
        hook = method.build(ModelSizes(96, 6, 0, 1)).at("decoder", 0)
        give(hook.network.first, f"{name}_mlp2_0")
        give(hook.network.second, f"{name}_mlp2_2")
        if base == "kerple":
            hook.base.p.data, hook.base.a.data = (golden(f"{name}_bias_{end}")[:, 0, 0] for end in "pa")
        if base == "fire":
            assert GOLDEN[f"{name}_init_L"] == fire.threshold
            hook.base.c.data, hook.base.u.data = golden(f"{name}_c"), golden(f"{name}_L_multiplier")
            give(hook.base.hidden, f"{name}_mlp_0")
            give(hook.base.output, f"{name}_mlp_2")
        q = torch.zeros(2, 6, 16, 16)
        ours = transformed(hook, golden(f"{name}_L16_scores"), q, line(16), triangle(16))
        compared = torch.ones(16, 16).tril()
        if version == "dapev2":
            compared[-1, -1] = 0
        found = [(ours * compared, GOLDEN[f"{name}_L16_out"] * compared.numpy(), 5e-6)]
        if f"{name}_q1k24_out" in GOLDEN:
            ours = transformed(hook, golden(f"{name}_q1k24_scores"), q[:, :, :1], line(24)[-1:], triangle(24)[:, -1:])
            found.append((ours, GOLDEN[f"{name}_q1k24_out"], 5e-6))
        return found

    return compare


def give(layer: torch.nn.Module, name: str) -> None:
    layer.load_state_dict({end: golden(f"{name}_{end}") for end in ("weight", "bias")})


GOLDEN_CASES: dict[str, tuple[str, Callable[[], list[Pair]]]] = {
    "CoPE, 64 and 8 positions": ("CoPE", cope),
    **{f"DAPE over {base}": ("DAPE", dape("dape", base)) for base in ("nope", "alibi", "kerple", "fire")},
    **{f"DAPEv2 over {base}": ("DAPEv2", dape("dapev2", base)) for base in ("alibi", "kerple", "fire")},
}


@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_golden(name: str) -> None:
    for ours, theirs, atol in GOLDEN_CASES[name][1]():
        np.testing.assert_allclose(ours, theirs, atol=atol, rtol=0)


def some_open(kind: str, queries: int, keys: int) -> Tensor | None:
    """A mask: none, one for all heads, one of each of two heads."""
    if kind == "all":
        return None
    mask = torch.rand(1 if kind == "shared" else 2, queries, keys) < 0.6
    mask[:, :2, 0] = False  # a gap before the first open key
    mask[:, -1] = False  # a query that may look nowhere
    return mask


def may_look(mask: Tensor | None, head: int, i: int, j: int) -> bool:
    return mask is None or bool(mask[head % len(mask), i, j])


@pytest.mark.parametrize("npos", [1, 2, 3, 64])
@pytest.mark.parametrize("kind", ["all", "shared", "of each head"])
def test_cope_is_the_formula(kind: str, npos: int) -> None:
    torch.manual_seed(0)
    hook = CoPE(npos).at("encoder", 0, 2, 4).double()
    hook.embeddings.data.normal_()
    scores, q = torch.randn(2, 2, 5, 7, dtype=torch.float64), torch.randn(2, 2, 5, 4, dtype=torch.float64)
    mask = some_open(kind, 5, 7)
    ours = hook.transform(scores, q, q, line(5), line(7), mask)
    assert ours.dtype == torch.float64
    for b, h, i, j in np.ndindex(*scores.shape):
        gates = [1 / (1 + math.exp(-scores[b, h, i, t])) for t in range(j, 7) if may_look(mask, h, i, t)]
        p = min(sum(gates), npos - 1)
        at = [float(q[b, h, i] @ hook.embeddings[:, n].detach()) for n in (math.floor(p), math.ceil(p))]
        expected = scores[b, h, i, j] + (p - math.floor(p)) * at[1] + (1 - p + math.floor(p)) * at[0]
        torch.testing.assert_close(ours[b, h, i, j], expected)


@pytest.mark.parametrize(
    ("kind", "kernel", "base"),
    covering(["all", "shared", "of each head"], [None, 1, 3, 5], [None, RoPE(), ALiBi(), FIRE()]),
)
def test_dape_is_the_formula(kind: str, kernel: int | None, base: PositionMethod | None) -> None:
    torch.manual_seed(0)
    method = DAPE(base, 3) if kernel is None else DAPEv2(base, 3, kernel=kernel)
    hook = method.build(SIZES).at("encoder", 0).double()
    scores = torch.randn(2, 2, 5, 7, dtype=torch.float64)
    mask = some_open(kind, 5, 7)
    q = torch.zeros(2, 2, 5, 4)
    ours = hook.transform(scores, q, q, line(5), line(7), mask)
    assert ours.dtype == torch.float64
    bias = hook.base.bias(line(5), line(7))
    side = 0 if kernel is None else kernel // 2
    weights = [layer.weight.reshape(*layer.weight.shape[:2], -1) for layer in hook.network.children()]
    channels = torch.zeros(2, 2 if bias is None else 4, 5, 7 + 3 * side, dtype=torch.float64)  # `side` are to the left
    for b, h, i, j in np.ndindex(*scores.shape):
        if kernel is None or may_look(mask, h, i, j):
            channels[b, h, i, side + j] = scores[b, h, i, j]
            if bias is not None:
                channels[b, 2 + h, i, side + j] = bias[h, i, j]
    for b, i in np.ndindex(2, 5):
        hidden = torch.zeros(3, 7 + 2 * side, dtype=torch.float64)
        for j in range(7 + side):  # nothing before the first key, closed keys after the last
            seen = channels[b, :, i, j : j + 2 * side + 1]
            value = (weights[0] * seen).sum((1, 2)) + hook.network.first.bias
            hidden[:, side + j] = torch.where(value > 0, value, 0.01 * value)
        for j in range(7):
            expected = scores[b, :, i, j] + (weights[1] * hidden[:, j : j + 2 * side + 1]).sum((1, 2))
            expected = expected + hook.network.second.bias + (0 if bias is None else bias[:, i, j])
            torch.testing.assert_close(ours[b, :, i, j], expected)


@pytest.mark.parametrize("method", [CoPE(3), DAPEv2(), DAPEv2(ALiBi(), kernel=5)])
def test_what_is_closed_is_never_seen(method: PositionMethod) -> None:
    torch.manual_seed(0)
    hook = method.build(SIZES).at("encoder", 0)
    for parameter in hook.parameters():  # type: ignore[attr-defined]
        parameter.data.normal_()
    scores, q = torch.randn(2, 2, 5, 7), torch.randn(2, 2, 5, 4)
    for kind in ("shared", "of each head"):
        mask = some_open(kind, 5, 7)
        others = scores + 10 * torch.randn_like(scores) * ~mask
        ours, again = (hook.transform(s, q, q, line(5), line(7), mask) for s in (scores, others))
        torch.testing.assert_close(ours.masked_fill(~mask, 0.0), again.masked_fill(~mask, 0.0))
        assert not torch.allclose(ours, hook.transform(scores, q, q, line(5), line(7)))


def test_cope_counts_in_half_precision() -> None:
    """Half of each of 1001 keys is 500.5, between an even position and an odd one."""
    hook = CoPE(600).at("encoder", 0, 1, 1).bfloat16()
    hook.embeddings.data = (torch.arange(600)[None] % 2).bfloat16()
    scores = torch.zeros(1, 1, 1, 1001, dtype=torch.bfloat16)
    ours = hook.transform(scores, torch.ones(1, 1, 1, 1).bfloat16(), scores, line(1), line(1001))
    assert ours.dtype == torch.bfloat16
    assert ours[0, 0, 0, 0].item() == 0.5


def test_cope_starts_as_nothing() -> None:
    hook = CoPE(5).at("decoder", 0, 2, 4)
    assert [(name, tuple(p.shape)) for name, p in hook.named_parameters()] == [("embeddings", (4, 5))]
    scores, q = torch.randn(2, 2, 5, 5), torch.randn(2, 2, 5, 4)
    assert torch.equal(hook.transform(scores, q, q, line(5), line(5), triangle(5)), scores)


def test_what_dape_keeps_of_its_base() -> None:
    positions = LAYOUTS[1].source
    x, q, k = torch.randn(1, len(positions), 8), *torch.randn(2, 1, 2, len(positions), 4)
    sinusoidal = Sinusoidal(("place",))
    assert torch.equal(DAPE(sinusoidal).build(SIZES).embed(x, positions), sinusoidal.embed(x, positions))
    turned = DAPE(RoPE()).build(SIZES).at("encoder", 0).rotate(q, k, positions, positions)
    for ours, theirs in zip(turned, RoPE().at("encoder", 0, 2, 4).rotate(q, k, positions, positions), strict=True):
        assert torch.equal(ours, theirs)
        assert not torch.equal(ours, q)
        assert not torch.equal(ours, k)
    built = DAPE().build(SIZES)
    built.base.prepare = {LAYOUTS[0]: LAYOUTS[1]}.__getitem__
    assert built.prepare(LAYOUTS[0]) is LAYOUTS[1]


def test_dape_below_may_transform() -> None:
    """Transformations come first, and the network sees what they make."""
    torch.manual_seed(0)
    hook = DAPE(CoPE()).build(SIZES).at("decoder", 0)
    hook.base.embeddings.data.normal_()
    scores, q = torch.randn(2, 2, 5, 5), torch.randn(2, 2, 5, 4)
    inner = hook.base.transform(scores, q, q, line(5), line(5), triangle(5))
    expected = inner + hook.network(inner, None)
    torch.testing.assert_close(hook.transform(scores, q, q, line(5), line(5), triangle(5)), expected)


def test_cross_attention() -> None:
    for method in (CoPE(), DAPE(), DAPE(ALiBi()), DAPEv2(KerpleLog())):
        assert type(method.build(SIZES).at("cross", 0)) is AttentionPosition
    assert CoPE(cross=True).build(SIZES).at("cross", 0).transforms
    below = DAPE(ALiBi(cross=True)).build(SIZES).at("cross", 0)
    assert not below.transforms
    assert below.bias(*pairs(LAYOUTS[0])["cross"]) is not None
    for base, channels in ((ALiBi(cross=True), 4), (ALiBi(), 2)):
        for method in (DAPE(base, cross=True), DAPEv2(base, cross=True)):
            hook = method.build(SIZES).at("cross", 0)
            assert hook.transforms
            assert hook.network.first.weight.shape[1] == channels


def test_layers_and_sites_have_their_own() -> None:
    for method in (CoPE(), DAPE(FIRE()), DAPEv2(FIRE())):
        built = method.build(SIZES)
        hooks = [built.at(site, layer) for site in SITES[:2] for layer in (0, 1)]
        parameters = [parameter for hook in hooks for parameter in hook.parameters()]
        assert len(set(map(id, parameters))) == len(parameters) > 3
        assert not any(hook.pointwise for hook in hooks)
    shapes = {name: tuple(p.shape) for name, p in DAPEv2(ALiBi(), 5).build(SIZES).at("decoder", 0).named_parameters()}
    assert shapes == {
        "network.first.weight": (5, 4, 1, 3),
        "network.first.bias": (5,),
        "network.second.weight": (2, 5, 1, 3),
        "network.second.bias": (2,),
    }


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CoPE(0), "model.position.npos 0: give at least 1"),
        (lambda: DAPE(width=0), "model.position.width 0: give at least 1"),
        (lambda: DAPEv2(width=0), "model.position.width 0: give at least 1"),
        (lambda: DAPEv2(kernel=0), "model.position.kernel 0: give at least 1"),
        (lambda: DAPEv2(kernel=4), "model.position.kernel 4: give an odd number"),
    ],
)
def test_bad_settings(make: Callable[[], PositionMethod], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
