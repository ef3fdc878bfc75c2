import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from abc_toolkit.errors import UserError
from abc_toolkit.layout import Positions, digit_layout
from abc_toolkit.models.attention import Attention
from abc_toolkit.positions import AttentionPosition, rotary
from abc_toolkit.positions.rotary import DynamicYaRN, RoPE, YaRN
from abc_toolkit.testing.position_contract import LAYOUTS, PositionCase, PositionContract, pairs

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "rotary.npz")
Compared = list[tuple[np.ndarray, np.ndarray, float]]


class TestRotary(PositionContract):
    cases = {  # noqa: RUF012
        "RoPE": PositionCase(RoPE(), shifts=True),
        "RoPE of places": PositionCase(RoPE("place", base=100.0)),
        "RoPE of half the channels": PositionCase(RoPE(fraction=0.5), shifts=True),
        "RoPE interleaved": PositionCase(RoPE(interleaved=True), shifts=True),
        "RoPE across": PositionCase(RoPE(cross=True), shifts=True),
        "YaRN": PositionCase(YaRN(), shifts=True),
        "YaRN across": PositionCase(YaRN("index", factor=2.0, original_length=8, cross=True), whole=True),
        "DynamicYaRN": PositionCase(DynamicYaRN(original_length=3), whole=True),
        "DynamicYaRN not stretched": PositionCase(DynamicYaRN(original_length=64), shifts=True),
        "DynamicYaRN across": PositionCase(DynamicYaRN("place", original_length=2, cross=True), whole=True),
    }


def run_of(length: int) -> Positions:
    """Positions of one string."""
    return digit_layout((("operand 1", length),), 1).source


def rotated(method: RoPE, q: np.ndarray, k: np.ndarray, first_query: int = 0) -> list[Tensor]:
    """Queries and keys turned by a method, the keys from 0 on, and their scaled logits."""
    positions = run_of(k.shape[2])
    hook = method.at("decoder", 0, q.shape[1], q.shape[3])
    queries = positions[first_query : first_query + q.shape[2]]
    turned_q, turned_k = hook.rotate(torch.from_numpy(q), torch.from_numpy(k), queries, positions)
    return [turned_q, turned_k, turned_q @ turned_k.transpose(-1, -2) / math.sqrt(q.shape[3])]


def waves(method: RoPE, width: int, length: int) -> tuple[Tensor, Tensor]:
    """The cosines and sines of a string's positions `[length, width]`, read off unit vectors."""
    positions = run_of(length)
    # A unit vector of a pair's first channel turns into its cosine there and its sine in the second channel.
    x = torch.cat([torch.ones(1, 1, length, width // 2), torch.zeros(1, 1, length, width // 2)], dim=-1)
    cos, sin = method.at("encoder", 0, 1, width).rotate(x, x, positions, positions)[0][0, 0].chunk(2, dim=-1)
    return cos.repeat(1, 2), sin.repeat(1, 2)


def neox(tag: str, first_query: int) -> Compared:
    q, k = GOLDEN[f"neox_{tag}_q"], GOLDEN[f"neox_{tag}_k"]
    names = ("q_rot", "k_rot", "logits")
    ours = rotated(RoPE(), q, k, first_query)
    return [(x.numpy(), GOLDEN[f"neox_{tag}_{name}"], 5e-6) for x, name in zip(ours, names, strict=True)]


def llama(method: RoPE, tag: str) -> Compared:
    hidden = torch.from_numpy(GOLDEN["llama_hidden_L24"])
    q, k, v, o = (torch.from_numpy(GOLDEN[f"llama_{name}_proj_weight"]) for name in "qkvo")
    attention = Attention(64, 4, 0.0, method.at("decoder", 0, 4, 16))
    weights = {"query.weight": q, "key_value.weight": torch.cat([k, v]), "output.weight": o}
    attention.load_state_dict(weights, strict=False)  # the biases are zero from the start
    positions = run_of(24)
    with torch.no_grad():
        keys_values, scope = attention.keys_values(hidden), attention.scope(positions, positions, causal=True)
        output, probs = attention(hidden, keys_values, positions, scope, need_weights=True)
    atol = 1.5e-5 if tag == "rope" else 2.5e-5
    theirs = (GOLDEN[f"llama_{tag}_L24_output"], GOLDEN[f"llama_{tag}_L24_probs"])
    return [(x.numpy(), y, atol) for x, y in zip((output, probs), theirs, strict=True)]


def frequencies(method: YaRN, width: int, length: int) -> tuple[Tensor, Tensor]:
    """The frequencies, and the number that turned channels are multiplied by, for a string."""
    return method.spectrum(width, torch.float32, run_of(length), run_of(length))


def static(tag: str) -> Compared:
    width, length, factor, base, fast, slow = GOLDEN[f"static_{tag}_config"]
    method = YaRN(base=base, factor=factor, original_length=int(length), beta_fast=fast, beta_slow=slow)
    ours, size = frequencies(method, int(width), 24)
    compared = [(ours.numpy(), GOLDEN[f"static_{tag}_inv_freq"], 5e-7)]
    compared.append((size.numpy(), GOLDEN[f"static_{tag}_mscale"], 5e-7))
    for which, tokens in (("L24", 24), ("L200_last8", 200)):
        both = zip(waves(method, int(width), tokens), ("cos", "sin"), strict=True)
        theirs = [(wave, GOLDEN[f"static_{tag}_{which}_{name}"]) for wave, name in both]
        compared += [(wave[-len(array) :].numpy(), array, 5e-5) for wave, array in theirs]
    return compared


def dynamic(tag: str) -> Compared:
    width, length, factor, base, fast, slow = GOLDEN[f"dynamic_{tag}_config"]
    method = DynamicYaRN(base=base, factor=factor, original_length=int(length), beta_fast=fast, beta_slow=slow)
    compared = []
    for call, tokens in enumerate((16, 24, 40, 200, 1000)):  # longer and longer: what it keeps never shows
        ours, size = frequencies(method, int(width), tokens)
        compared.append((ours.numpy(), GOLDEN[f"dynamic_{tag}_call{call}_L{tokens}_inv_freq"], 5e-7))
        compared.append((size.numpy(), GOLDEN[f"dynamic_{tag}_call{call}_L{tokens}_mscale"], 5e-7))
        both = zip(waves(method, int(width), tokens), ("cos", "sin"), strict=True)
        theirs = [(wave, GOLDEN[f"dynamic_{tag}_call{call}_L{tokens}_{name}_last8"]) for wave, name in both]
        compared += [(wave[-len(array) :].numpy(), array, 2.5e-4) for wave, array in theirs]
    return compared


GOLDEN_CASES: dict[str, tuple[str, Callable[[], Compared]]] = {
    "rope_rotate_half_neox 16": ("RoPE", lambda: neox("h6_L16", 0)),
    "rope_rotate_half_neox 16 of 24": ("RoPE", lambda: neox("h4_q16off8_k24", 8)),
    "icl_llama_rope": ("RoPE", lambda: llama(RoPE(), "rope")),
    "icl_llama_yarn_attn": ("YaRN", lambda: llama(YaRN(factor=2.0, original_length=16), "yarn")),
    "icl_llama_dynamic_yarn_attn": ("DynamicYaRN", lambda: llama(DynamicYaRN(original_length=16), "dynamic_yarn")),
    "yarn_static d16 16 x 2": ("YaRN", lambda: static("d16_mp16_f2")),
    "yarn_static d16 102 x 8": ("YaRN", lambda: static("d16_mp102_f8")),
    "yarn_static d32 102 x 2.03": ("YaRN", lambda: static("d32_mp102_f2.03")),
    "yarn_static d32 102 x 8": ("YaRN", lambda: static("d32_mp102_f8")),
    "yarn_static d64 2048 x 16": ("YaRN", lambda: static("d64_mp2048_f16")),
    "yarn_dynamic d16 16 x 1": ("DynamicYaRN", lambda: dynamic("d16_mp16_f1")),
    "yarn_dynamic d16 16 x 2": ("DynamicYaRN", lambda: dynamic("d16_mp16_f2")),
    "yarn_dynamic d32 102 x 2.03": ("DynamicYaRN", lambda: dynamic("d32_mp102_f2.03")),
    "yarn_dynamic d32 102 x 8": ("DynamicYaRN", lambda: dynamic("d32_mp102_f8")),
}


@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_golden(name: str) -> None:
    compared = GOLDEN_CASES[name][1]()
    assert compared
    for ours, theirs, atol in compared:
        np.testing.assert_allclose(ours, theirs, atol=atol, rtol=0)


def formula(method: RoPE, x: Tensor, positions: Positions, stretch: float | None) -> np.ndarray:
    """Vectors `[batch, head, length, dim]` turned by the formula, a number at a time."""
    turned = x.numpy().copy()
    width = round(method.fraction * x.shape[-1])
    size = 1.0
    if isinstance(method, YaRN) and stretch is not None:
        size = 1 + method.mscale * math.log(stretch)
    for m in range(width // 2):
        frequency = method.base ** (-2 * m / width)
        if isinstance(method, YaRN) and stretch is not None:
            ends = [
                width * math.log(method.original_length / (2 * math.pi * beta)) / (2 * math.log(method.base))
                for beta in (method.beta_fast, method.beta_slow)
            ]
            low, high = max(math.floor(ends[0]), 0), min(math.ceil(ends[1]), width - 1)
            ramp = min(max((m - low) / max(high - low, 0.001), 0), 1)
            frequency = frequency * (1 - ramp) + frequency / stretch * ramp
        first, second = (2 * m, 2 * m + 1) if method.interleaved else (m, m + width // 2)
        for i, p in enumerate(positions.coordinates[method.coordinate].tolist()):
            cos, sin = math.cos(p * frequency), math.sin(p * frequency)
            a, b = x[:, :, i, first].numpy(), x[:, :, i, second].numpy()
            turned[:, :, i, first] = size * (a * cos - b * sin)
            turned[:, :, i, second] = size * (b * cos + a * sin)
    return turned


METHODS: list[tuple[RoPE, dict[str, float | None]]] = [
    (RoPE(), {}),
    (RoPE("index", base=50.0), {}),
    (RoPE(fraction=0.5), {}),
    (RoPE(fraction=0.7), {}),  # 5.6 channels of 8: 6
    (RoPE(interleaved=True), {}),
    (RoPE(interleaved=True, fraction=0.25), {}),
    (RoPE("raw_from_end", cross=True), {}),
    (YaRN(factor=4.0, cross=True), dict.fromkeys(("encoder", "decoder", "cross"), 4.0)),
    (YaRN("place", 200.0, 0.75, True, False, 3.0, 100, 4.0, 0.5, 0.3), {"encoder": 3.0, "decoder": 3.0}),
    (YaRN(original_length=1), {"encoder": 8.0, "decoder": 8.0}),
    (YaRN(base=10.0, original_length=1), {"encoder": 8.0, "decoder": 8.0}),  # the bounds are the wrong way round
    (YaRN(original_length=100_000), {"encoder": 8.0, "decoder": 8.0}),  # the upper bound is beyond the last pair
    (YaRN(base=100.0, original_length=100_000, beta_fast=1e5), {"encoder": 8.0, "decoder": 8.0}),  # and here it is cut
    (YaRN(mscale=0.0), {"encoder": 8.0, "decoder": 8.0}),
    # Sources of 12 and targets of 9 tokens: the longer counts where both are asked.
    (DynamicYaRN(original_length=4, cross=True), {"encoder": 3.0, "decoder": 2.25, "cross": 3.0}),
    (DynamicYaRN(original_length=5, factor=2.0, cross=True), {"encoder": 1.2, "decoder": 1.0, "cross": 1.2}),
]


@pytest.mark.parametrize(("method", "stretch"), METHODS, ids=lambda value: str(value)[:60])
@pytest.mark.parametrize("site", ["encoder", "decoder", "cross"])
def test_turns_are_the_formula(site: str, method: RoPE, stretch: dict[str, float | None]) -> None:
    layout = digit_layout((("operand 1", 6), ("operator", 1), ("operand 2", 5)), 8)
    q_positions, k_positions = pairs(layout)[site]  # type: ignore[index]
    q, k = (torch.randn(2, 3, len(p), 8, dtype=torch.float64) for p in (q_positions, k_positions))
    hook = method.at(site, 1, 3, 8)  # type: ignore[arg-type]
    if site == "cross" and not method.cross:
        assert type(hook) is AttentionPosition
        return
    for x, p, turned in zip(
        (q, k), (q_positions, k_positions), hook.rotate(q, k, q_positions, k_positions), strict=True
    ):
        np.testing.assert_allclose(turned, formula(method, x, p, stretch.get(site)), atol=1e-12)
    single = hook.rotate(q.float(), k.float(), q_positions, k_positions)
    for x, p, turned in zip((q, k), (q_positions, k_positions), single, strict=True):
        assert turned.dtype == torch.float32
        np.testing.assert_allclose(turned, formula(method, x, p, stretch.get(site)), atol=1e-5)


@pytest.mark.parametrize("interleaved", [False, True])
def test_channels_that_do_not_turn_are_left(interleaved: bool) -> None:
    positions = LAYOUTS[1].source
    q, k = (torch.randn(2, 2, len(positions), 8) for _ in range(2))
    turned = RoPE(fraction=0.5, interleaved=interleaved).at("encoder", 0, 2, 8).rotate(q, k, positions, positions)
    for x, other in zip((q, k), turned, strict=True):
        assert torch.equal(x[..., 4:], other[..., 4:])
        assert not torch.isclose(x[:, :, 1:, :4], other[:, :, 1:, :4]).all(dim=2).any()


def test_half_precision_turns_by_the_angles_of_single() -> None:
    positions = run_of(1000)[990:]
    q = torch.randn(1, 2, 10, 16)
    hook = RoPE().at("encoder", 0, 2, 16)
    half = hook.rotate(q.bfloat16(), q.bfloat16(), positions, positions)[0]
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), hook.rotate(q, q, positions, positions)[0], atol=0.03, rtol=0.02)


def test_a_long_string_leaves_no_trace() -> None:
    method = DynamicYaRN(original_length=16)
    before = waves(method, 16, 16)
    assert not torch.equal(waves(method, 16, 200)[0][:16], before[0])
    assert all(map(torch.equal, waves(method, 16, 16), before))
    assert all(map(torch.equal, waves(RoPE(), 16, 16), before))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (lambda: RoPE(base=0.5), "base 0.5: give at least 1"),
        (lambda: RoPE(fraction=1.5), "fraction 1.5: give at least 0 and at most 1"),
        (lambda: RoPE(fraction=-0.5), "fraction -0.5"),
        (lambda: YaRN(base=0.5), "base 0.5"),
        (lambda: YaRN(base=1.0), "YaRN has base 1, .*: give a base above 1"),
        (lambda: YaRN(factor=0.5), "factor 0.5"),
        (lambda: YaRN(original_length=0), "original_length 0"),
        (lambda: YaRN(mscale=-1.0), "mscale -1"),
        (lambda: YaRN(beta_fast=0.5), "beta_fast 0.5 and beta_slow 1"),
        (lambda: DynamicYaRN(beta_slow=0.0), "DynamicYaRN has .* beta_slow 0"),
        (
            lambda: RoPE().at("encoder", 0, 1, 5),
            "RoPE needs an even number of channels .* 5 of the head width 5: change",
        ),
        (lambda: RoPE().at("cross", 0, 1, 5), "even number"),
        (lambda: RoPE(fraction=0.5).at("decoder", 0, 1, 6), "has 3 of the head width 6"),
        (
            lambda: YaRN(fraction=0.0).at("decoder", 0, 1, 6),
            "YaRN needs an even number of channels to rotate and has 0",
        ),
    ],
)
def test_wrong_settings_are_refused(settings: Callable[[], object], words: str) -> None:
    with pytest.raises(UserError, match=words) as raised:
        settings()
    assert "\n" not in str(raised.value)


def by_formula(x: Tensor, positions: Positions, width: int, interleaved: bool) -> Tensor:
    """`RoPE` as its docstring has it, a pair at a time."""
    turned = x.clone()
    for m in range(width // 2):
        first, second = (2 * m, 2 * m + 1) if interleaved else (m, m + width // 2)
        angle = positions.coordinate("raw") * 10000.0 ** (-2 * m / width)
        a, b = x[..., first], x[..., second]
        turned[..., first], turned[..., second] = a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()
    return turned


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_each_pair_is_rotated_by_its_own_angle(interleaved: bool, fraction: float) -> None:
    positions = run_of(9)
    hooks = RoPE(fraction=fraction, interleaved=interleaved).at("decoder", 0, 2, 8)
    q, k = (torch.randn(3, 2, 9, 8, dtype=torch.float64) for _ in range(2))
    for own, x in zip(hooks.rotate(q, k, positions, positions), (q, k), strict=True):
        torch.testing.assert_close(own, by_formula(x, positions, round(8 * fraction), interleaved))


def test_rotations_that_are_kept_are_those_of_their_positions() -> None:
    q, long, short = torch.randn(1, 2, 9, 8), run_of(40), run_of(9)
    hooks = DynamicYaRN(original_length=6).at("decoder", 0, 2, 8)
    for keys in (long, short, long):  # the longer of the two strings decides on the rotation of both
        k = torch.randn(1, 2, len(keys), 8)
        fresh = hooks.rotate(q, k, short[:], keys[:])
        for _ in range(2):
            kept = hooks.rotate(q, k, short, keys)
            assert all(torch.equal(own, other) for own, other in zip(kept, fresh, strict=True))
    double = hooks.rotate(q.double(), q.double(), short, short)
    assert [x.dtype for x in double] == [torch.float64] * 2
    other = RoPE().at("decoder", 0, 2, 8).rotate(q, q, short, short)
    assert not torch.allclose(other[0].double(), double[0])


def test_rotations_of_an_evaluation_serve_a_training() -> None:
    positions, hooks = run_of(5), RoPE().at("decoder", 0, 1, 8)
    x = torch.randn(1, 1, 5, 8, requires_grad=True)
    with torch.inference_mode():
        expected = hooks.rotate(x, x, positions, positions)[0]
    turned = hooks.rotate(x, x, positions, positions)[0]
    turned.sum().backward()
    assert torch.equal(turned, expected)


def test_rotations_are_forgotten_with_their_positions() -> None:
    before = len(rotary._WAVES)
    positions = run_of(5)
    x = torch.randn(1, 1, 5, 8)
    RoPE().at("decoder", 0, 1, 8).rotate(x, x, positions, positions)
    assert len(rotary._WAVES) == before + 1
    del positions
    assert len(rotary._WAVES) == before
