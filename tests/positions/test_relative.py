import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from abc_toolkit.errors import UserError
from abc_toolkit.layout import Positions, digit_layout
from abc_toolkit.positions import SITES, AttentionPosition, ModelSizes, PositionMethod
from abc_toolkit.positions.relative import ShawRelative, TransformerXLBias
from abc_toolkit.testing.position_contract import LAYOUTS, LONG, SIZES, PositionCase, PositionContract, pairs
from tests.grids import covering

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "relative.npz")
Pair = tuple[Tensor, np.ndarray, float]


class TestRelative(PositionContract):
    cases = {  # noqa: RUF012
        "Shaw": PositionCase(ShawRelative(), learns=True, shifts=True),
        "Shaw with a narrow window": PositionCase(ShawRelative(2), learns=True, shifts=True),
        "Shaw without a window": PositionCase(ShawRelative(0), learns=True, shifts=True),
        "Shaw as released, across": PositionCase(
            ShawRelative(3, scaled=False, coordinate="place", cross=True), learns=True
        ),
        "Transformer-XL": PositionCase(TransformerXLBias(), learns=True, shifts=True),
        "Transformer-XL across": PositionCase(
            TransformerXLBias(base=100.0, coordinate="raw_from_end", cross=True), learns=True
        ),
    }


def line(length: int) -> Positions:
    return digit_layout((("operand 1", length),), 1).source


def golden(name: str) -> Tensor:
    return torch.from_numpy(GOLDEN[name])


def logits(hook: AttentionPosition, q: Tensor, k: Tensor, q_positions: Positions, k_positions: Positions) -> Tensor:
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return hook.transform(scores, q, k, q_positions, k_positions).detach()


def shaw() -> list[Pair]:
    hook = ShawRelative(5, scaled=False).at("encoder", 0, 4, 16)
    hook.vectors.data = golden("shaw_dist_embedding")
    return [(logits(hook, golden("shaw_q"), golden("shaw_k"), line(16), line(24)), GOLDEN["shaw_logits"], 1.5e-5)]


def transformer_xl() -> list[Pair]:
    model = TransformerXLBias().build(ModelSizes(96, 6, 1, 1))
    model.u.data, model.v.data = golden("xl_r_w_bias"), golden("xl_r_r_bias")
    model.w["decoder_0"].data = golden("xl_r_net_weight")
    ours = logits(model.at("decoder", 0), golden("xl_q"), golden("xl_k"), line(16), line(16))
    return [(ours.tril(), np.tril(GOLDEN["xl_logits"]), 4e-6)]


GOLDEN_CASES: dict[str, tuple[str, Callable[[], list[Pair]]]] = {
    "Shaw, second term unscaled": ("ShawRelative", shaw),
    "Transformer-XL, keys up to the query": ("TransformerXLBias", transformer_xl),
}


@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_golden(name: str) -> None:
    for ours, theirs, atol in GOLDEN_CASES[name][1]():
        np.testing.assert_allclose(ours, theirs, atol=atol, rtol=0)


@pytest.mark.parametrize(
    ("site", "window", "scaled", "coordinate"), covering(SITES, [0, 1, 3, 20], [True, False], ["raw", "index"])
)
def test_shaw_is_the_formula(site: str, window: int, scaled: bool, coordinate: str) -> None:
    torch.manual_seed(0)
    hook = ShawRelative(window, scaled, coordinate, cross=True).at(site, 0, 2, 4).double()
    q_positions, k_positions = pairs(LAYOUTS[1])[site]
    q, k = (torch.randn(2, 2, len(p), 4, dtype=torch.float64) for p in (q_positions, k_positions))
    ours = logits(hook, q, k, q_positions, k_positions)
    assert ours.dtype == torch.float64
    for i, at_query in enumerate(q_positions.coordinates[coordinate].tolist()):
        for j, at_key in enumerate(k_positions.coordinates[coordinate].tolist()):
            vector = hook.vectors[window + max(-window, min(window, at_query - at_key))]
            expected = (q[:, :, i] * (k[:, :, j] / 2 + vector / (2 if scaled else 1))).sum(-1)
            torch.testing.assert_close(ours[:, :, i, j], expected)


@pytest.mark.parametrize("sizes", [ModelSizes(8, 2, 1, 2), ModelSizes(9, 3, 1, 2)], ids=["even", "odd"])
@pytest.mark.parametrize("method", [TransformerXLBias(), TransformerXLBias(100.0, "place", cross=True)])
@pytest.mark.parametrize("site", SITES)
def test_transformer_xl_is_the_formula(site: str, method: TransformerXLBias, sizes: ModelSizes) -> None:
    if site == "cross" and not method.cross:
        return
    torch.manual_seed(0)
    model = method.build(sizes).double()
    for parameter in model.parameters():
        parameter.data.normal_()
    q_positions, k_positions = pairs(LAYOUTS[1])[site]
    dim, heads, width = sizes.model_dim, sizes.num_heads, sizes.head_dim
    q, k = (torch.randn(2, heads, len(p), width, dtype=torch.float64) for p in (q_positions, k_positions))
    layer = sizes.layers(site) - 1
    ours = logits(model.at(site, layer), q, k, q_positions, k_positions)
    assert ours.dtype == torch.float64
    waves = [method.base ** (-2 * m / dim) for m in range((dim + 1) // 2)]
    for i, at_query in enumerate(q_positions.coordinates[method.coordinate].tolist()):
        for j, at_key in enumerate(k_positions.coordinates[method.coordinate].tolist()):
            angles = [(at_query - at_key) * wave for wave in waves]
            r = torch.tensor([*map(math.sin, angles), *map(math.cos, angles)][:dim], dtype=torch.float64)
            asked = (model.w[f"{site}_{layer}"] @ r).view(heads, width)
            expected = ((q[:, :, i] + model.u) * k[:, :, j]).sum(-1) + ((q[:, :, i] + model.v) * asked).sum(-1)
            torch.testing.assert_close(ours[:, :, i, j], expected / width**0.5)


def test_far_out() -> None:
    """Beyond the window Shaw's distances are all one; of Transformer-XL's none repeats."""
    source = LONG.source
    q, k = torch.ones(1, 2, 1, 4), torch.ones(1, 2, len(source), 4)
    torch.manual_seed(0)
    xl = TransformerXLBias().build(SIZES)
    for hook, number in ((ShawRelative(5).at("encoder", 0, 2, 4), 6), (xl.at("encoder", 0), len(source))):
        values = logits(hook, q, k, source[-1:], source)
        assert values.isfinite().all()
        assert len(values[0, 0, 0].unique()) == pytest.approx(number, rel=0.01)


@pytest.mark.parametrize("method", [ShawRelative(3), TransformerXLBias()])
def test_differences_are_exact_far_out(method: PositionMethod) -> None:
    torch.manual_seed(0)
    hook = method.build(SIZES).at("encoder", 0)
    q, k = torch.randn(2, 2, 8, 4), torch.randn(2, 2, 8, 4)
    near = line(8)
    far = Positions(near.names, {"raw": near.coordinates["raw"] + 10**6, "segment": near.segment})
    torch.testing.assert_close(logits(hook, q, k, far, far), logits(hook, q, k, near, near), atol=1e-6, rtol=0)


def test_transformer_xl_in_half_precision() -> None:
    """Only what goes in and what comes out is rounded."""
    torch.manual_seed(0)
    model = TransformerXLBias().build(SIZES)
    for parameter in model.parameters():
        parameter.data.normal_()
    q, k = torch.randn(2, 2, 2, 8, 4).bfloat16().unbind()
    scores = torch.zeros(2, 2, 8, 8)
    half, exact = (
        model.to(dtype).at("encoder", 0).transform(scores.to(dtype), q.to(dtype), k.to(dtype), line(8), line(8))
        for dtype in (torch.bfloat16, torch.float64)
    )
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), exact, rtol=2**-8, atol=1e-5)


def test_what_layers_share() -> None:
    sizes = ModelSizes(8, 2, 1, 2)
    for method, others in ((TransformerXLBias(), []), (TransformerXLBias(cross=True), ["w.cross_0", "w.cross_1"])):
        model = method.build(sizes)
        parameters = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        matrices = ["w.encoder_0", "w.decoder_0", "w.decoder_1", *others]
        assert parameters == {"u": (2, 4), "v": (2, 4)} | dict.fromkeys(matrices, (8, 8))
        for site in SITES:
            assert not isinstance(model.at(site, 0), torch.nn.Module)
    hooks = [ShawRelative(3).build(sizes).at("decoder", layer) for layer in (0, 0)]
    assert [tuple(p.shape) for hook in hooks for p in hook.parameters()] == [(7, 4), (7, 4)]
    assert not torch.equal(hooks[0].vectors, hooks[1].vectors)


def test_initial_values() -> None:
    torch.manual_seed(0)
    vectors = ShawRelative(200).at("encoder", 0, 4, 64).vectors
    assert (vectors.mean().item(), vectors.std().item()) == pytest.approx((0, 1), abs=0.02)
    for parameter in TransformerXLBias().build(ModelSizes(256, 2, 0, 1)).parameters():
        assert parameter.mean().item() == pytest.approx(0, abs=0.005)
        assert parameter.std().item() == pytest.approx(0.02, abs=0.002)


@pytest.mark.parametrize("method", [ShawRelative(), TransformerXLBias()])
def test_cross_attention_is_left_alone(method: PositionMethod) -> None:
    assert type(method.build(SIZES).at("cross", 0)) is AttentionPosition


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ShawRelative(-1), "model.position.window -1: give at least 0"),
        (lambda: ShawRelative(coordinate="a rank"), "ShawRelative: coordinate cannot be 'a rank': give the name"),  # type: ignore[arg-type]
        (lambda: TransformerXLBias(0.5), "model.position.base 0.5: give at least 1"),
        (lambda: TransformerXLBias(coordinate="a rank"), "TransformerXLBias: coordinate cannot be 'a rank'"),  # type: ignore[arg-type]
    ],
)
def test_bad_settings(make: Callable[[], PositionMethod], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
