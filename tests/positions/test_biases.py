import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from abc_toolkit.errors import UserError
from abc_toolkit.layout import Positions, digit_layout, raw_layout
from abc_toolkit.positions import SITES, AttentionPosition, ModelSizes, PositionMethod, Site
from abc_toolkit.positions.biases import (
    FIRE,
    ALiBi,
    KerpleLog,
    T5RelativeBias,
    alibi_slopes,
    bucket_bounds,
    t5_buckets,
)
from abc_toolkit.testing.position_contract import LAYOUTS, LONG, PositionCase, PositionContract, pairs
from tests.grids import covering

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "biases.npz")
SIZES = ModelSizes(18, 6, 1, 1)
Compared = list[tuple[Any, Any, float]]


class TestBiases(PositionContract):
    cases = {  # noqa: RUF012
        "T5": PositionCase(T5RelativeBias(), learns=True, shifts=True),
        "T5 with few buckets": PositionCase(
            T5RelativeBias(num_buckets=8, max_distance=12, scaled=True, cross=True), learns=True, shifts=True
        ),
        "T5 causal": PositionCase(
            T5RelativeBias(bidirectional=False, coordinate="index"), learns=True, shifts=True, whole=True
        ),
        "ALiBi": PositionCase(ALiBi(), shifts=True),
        "ALiBi across": PositionCase(ALiBi(coordinate="place", cross=True)),
        "ALiBi one way": PositionCase(ALiBi("geometric", symmetric=False), shifts=True),
        "KerpleLog": PositionCase(KerpleLog(), learns=True, shifts=True),
        "KerpleLog across": PositionCase(KerpleLog(coordinate="raw_from_end", cross=True), learns=True),
        "KerpleLog that edits": PositionCase(KerpleLog(epsilon=0.5, edits_parameters=True), learns=True, shifts=True),
        "FIRE": PositionCase(FIRE(), learns=True),
        "FIRE across": PositionCase(
            FIRE(4.0, width=5, activation="leaky_relu", coordinate="index", cross=True), learns=True, whole=True
        ),
    }


def run_of(length: int, start: int = 0) -> Positions:
    return raw_layout(1, start + length).source[start : start + length]


def bias_of(method: PositionMethod, heads: int, parameters: dict[str, Any], q: int, k: int, start: int = 0) -> Tensor:
    """The bias of a causal site with given parameters, of queries from `start` on over keys from 0."""
    hook = method.at("decoder", 0, heads, 16)
    if parameters:
        assert isinstance(hook, torch.nn.Module)
        hook.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in parameters.items()})
    bias = hook.bias(run_of(q, start), run_of(k))
    assert bias is not None
    return bias.detach()


def up_to_the_query(ours: Tensor, theirs: np.ndarray, atol: float) -> tuple[Any, Any, float]:
    """The released causal modules leave to the mask what stands after the query."""
    causal = np.tri(*theirs.shape[-2:], dtype=bool)
    return np.where(causal, ours, 0), np.where(causal, theirs, 0), atol


def t5(tag: str, heads: int, num_buckets: int, max_distance: int, two_ways: bool) -> Compared:
    method = T5RelativeBias(num_buckets, max_distance, bidirectional=two_ways, scaled=True)
    built = method.build(ModelSizes(heads * 16, heads, 0, 1))
    weight = GOLDEN[f"t5_h{heads}_{tag}_weight"]
    built.load_state_dict({"tables.decoder": torch.from_numpy(weight)})
    compared: Compared = []
    for q, k in ((16, 24), (24, 24)):
        name = f"t5_h{heads}_{tag}_q{q}k{k}_bias"
        if name in GOLDEN:
            bias = built.at("decoder", 0).bias(run_of(q), run_of(k))
            assert bias is not None
            compared.append((bias.detach(), GOLDEN[name], 0.0))
    distance = torch.arange(200)[:, None] - torch.arange(200)
    buckets = t5_buckets(distance, bucket_bounds(num_buckets // (2 if two_ways else 1), max_distance), two_ways)
    return [*compared, (buckets, GOLDEN[f"t5_{tag}_q200k200_bucket"], 0.0)]


def slopes(code: str, rule: Any) -> Compared:
    ours = [slope for heads in GOLDEN["alibi_slopes_heads"].tolist() for slope in alibi_slopes(heads, rule)]
    return [(np.array(ours), GOLDEN[f"alibi_slopes_{code}"], 1e-7)]


def alibi_with_a_step_more() -> Compared:
    """The paper's own repository counts the query itself too, and closes what comes after."""
    theirs = GOLDEN["alibi_abcrepo_causal_h6_L24"]
    closed = np.triu(np.full((24, 24), -np.inf), 1)
    ours = bias_of(ALiBi(), 6, {}, 24, 24) - torch.tensor(alibi_slopes(6))[:, None, None]
    return [(ours + torch.from_numpy(closed), theirs, 2e-6)]


def kerple(method: KerpleLog) -> Compared:
    compared: Compared = []
    for heads, length in ((4, 16), (6, 24)):
        parameters = {name: GOLDEN[f"kerple_h{heads}_{name}"] for name in ("p", "a")}
        ours = bias_of(method, heads, parameters, length, length)
        compared.append(up_to_the_query(ours, GOLDEN[f"kerple_h{heads}_L{length}"], 1.5e-6))
    last = bias_of(method, 6, parameters, 1, 24, start=23)
    scores = GOLDEN["kerple_h6_q1k24_scores"]
    return [*compared, (last + torch.from_numpy(scores), GOLDEN["kerple_h6_q1k24_out"], 2.5e-6)]


def fire(name: str, heads: int, width: int = 32) -> Compared:
    names = ("c", "u", "hidden.weight", "hidden.bias", "output.weight", "output.bias")
    parameters = {parameter: GOLDEN[f"fire_{name}_{parameter}"] for parameter in names}
    method = FIRE(float(GOLDEN[f"fire_{name}_L"]), width)
    ours, theirs = bias_of(method, heads, parameters, 24, 24), GOLDEN[f"fire_{name}_L24"]
    return [(ours, theirs, 7e-7) if name == "icl" else up_to_the_query(ours, theirs, 5e-7)]


GOLDEN_CASES: dict[str, tuple[str, Callable[[], Compared]]] = {
    "t5_relative_bias 8 to 12, causal": ("T5RelativeBias", lambda: t5("b8d12_causal", 4, 8, 12, False)),
    "t5_relative_bias 8 to 12, two ways": ("T5RelativeBias", lambda: t5("b8d12_bidir", 4, 8, 12, True)),
    "t5_relative_bias 32 to 128, causal": ("T5RelativeBias", lambda: t5("b32d128_causal", 6, 32, 128, False)),
    "t5_relative_bias 32 to 128, two ways": ("T5RelativeBias", lambda: t5("b32d128_bidir", 6, 32, 128, True)),
    "alibi_slopes neox": ("ALiBi", lambda: slopes("neox", "press")),
    "alibi_slopes abcrepo": ("ALiBi", lambda: slopes("abcrepo", "press")),
    "alibi_slopes icl": ("ALiBi", lambda: slopes("icl", "press")),
    "alibi_slopes jaketae": ("ALiBi", lambda: slopes("jaketae", "geometric")),
    "alibi_dape_repo": (
        "ALiBi",
        lambda: [up_to_the_query(bias_of(ALiBi(), 6, {}, 24, 24), GOLDEN["alibi_dape_h6_L24"], 1e-6)],
    ),
    "alibi abcrepo": ("ALiBi", alibi_with_a_step_more),
    "alibi jaketae, both ways": (
        "ALiBi",
        lambda: [
            (
                bias_of(ALiBi("geometric", symmetric=False), 6, {}, 24, 24),
                GOLDEN["alibi_jaketae_premask_h6_L24"],
                5e-6,
            )
        ],
    ),
    "icl_llama_alibi, last query": (
        "ALiBi",
        lambda: [(bias_of(ALiBi(), 6, {}, 1, 24, start=23), GOLDEN["alibi_icl_llama_h6_L24"], 1e-6)],
    ),
    "kerple_log": ("KerpleLog", lambda: kerple(KerpleLog())),
    "kerple_log, edited": ("KerpleLog", lambda: kerple(KerpleLog(edits_parameters=True))),
    "fire_default": ("FIRE", lambda: fire("default", 6)),
    "fire_trained": ("FIRE", lambda: fire("trained", 6)),
    "fire_standalone_DAPEpy": ("FIRE", lambda: fire("standalone", 4)),
    "icl_llama_fire": ("FIRE", lambda: fire("icl", 6, width=102)),
}


@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_golden(name: str) -> None:
    compared = GOLDEN_CASES[name][1]()
    assert compared
    for ours, theirs, atol in compared:
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=atol, rtol=0)


def hooks_of(method: PositionMethod) -> dict[Site, AttentionPosition]:
    """The hooks of every site, parameters at random."""
    torch.manual_seed(3)
    built = method.build(SIZES)
    hooks: dict[Site, AttentionPosition] = {site: built.at(site, 0) for site in SITES}
    for module in (built, *hooks.values()):
        for parameter in module.parameters() if isinstance(module, torch.nn.Module) else ():
            parameter.data += 0.3 * torch.randn_like(parameter)
    return hooks


def t5_formula(method: T5RelativeBias, hook: Any, site: Site, i: int, j: int, head: int) -> float:
    two_ways = site != "decoder" if method.bidirectional is None else method.bidirectional
    buckets = method.num_buckets // 2 if two_ways else method.num_buckets
    n = abs(i - j) if two_ways else max(i - j, 0)
    exact = buckets // 2
    if not exact:
        n = 0
    elif n >= exact:
        share = math.log(n / exact) / math.log(method.max_distance / exact)
        n = min(exact + int(share * (buckets - exact) + 1e-9), buckets - 1)
    bucket = n + (buckets if two_ways and j > i else 0)
    table = hook.model.tables[site]
    return float(table[bucket, head]) * (math.sqrt(SIZES.head_dim) if method.scaled else 1.0)


def alibi_formula(method: ALiBi, hook: Any, site: Site, i: int, j: int, head: int) -> float:
    six = (1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8)
    slope = six[head] if method.slopes == "press" else 2 ** (-8 * (head + 1) / 6)
    return -slope * (abs(i - j) if method.symmetric else i - j)


def kerple_formula(method: KerpleLog, hook: Any, site: Site, i: int, j: int, head: int) -> float:
    p, a = (max(float(number[head]), method.epsilon) for number in (hook.p, hook.a))
    return -p * math.log(1 + a * abs(i - j))


def fire_formula(method: FIRE, hook: Any, site: Site, i: int, j: int, head: int) -> float:
    c = float(hook.c)
    limit = max(i, abs(float(hook.u) * method.threshold))
    x = math.log(1 + abs(c * (i - j))) / (math.log(1 + abs(c * limit)) + 1e-6)
    bias = float(hook.output.bias[head])
    for unit in range(method.width):
        hidden = float(hook.hidden.weight[unit, 0]) * x + float(hook.hidden.bias[unit])
        hidden = max(hidden, 0.0) if method.activation == "relu" else max(hidden, 0.01 * hidden)
        bias += float(hook.output.weight[head, unit]) * hidden
    return bias


FORMULAS: list[tuple[Any, Any]] = [
    (T5RelativeBias, t5_formula),
    (lambda **given: T5RelativeBias(4, 5, scaled=True, **given), t5_formula),
    (lambda **given: T5RelativeBias(2, 3, **given), t5_formula),
    (lambda **given: T5RelativeBias(10, 7, bidirectional=True, **given), t5_formula),
    (lambda **given: T5RelativeBias(6, 7, bidirectional=False, **given), t5_formula),
    (ALiBi, alibi_formula),
    (lambda **given: ALiBi("geometric", symmetric=False, **given), alibi_formula),
    (KerpleLog, kerple_formula),
    (lambda **given: KerpleLog(epsilon=0.6, **given), kerple_formula),
    (lambda **given: FIRE(width=7, **given), fire_formula),
    (lambda **given: FIRE(3.0, width=4, activation="leaky_relu", **given), fire_formula),
]


@pytest.mark.parametrize(
    ("compared", "cross", "coordinate"), covering(FORMULAS, [True, False], ["raw", "index", "raw_from_end"])
)
def test_biases_are_the_formula(compared: tuple[Any, Any], cross: bool, coordinate: Any) -> None:
    method, formula = compared
    method = method(cross=cross, coordinate=coordinate)
    hooks = hooks_of(method)
    with torch.no_grad():
        for site, (q_positions, k_positions) in pairs(digit_layout((("operand 1", 11),), 8)).items():
            bias = hooks[site].bias(q_positions, k_positions)
            if site == "cross" and not cross:
                assert type(hooks[site]) is AttentionPosition
                continue
            assert bias is not None
            queries, keys = (p.coordinates[coordinate].tolist() for p in (q_positions, k_positions))
            expected = np.zeros((SIZES.num_heads, len(queries), len(keys)))
            for head, (m, i), (n, j) in itertools.product(range(6), enumerate(queries), enumerate(keys)):
                expected[head, m, n] = formula(method, hooks[site], site, i, j, head)
            np.testing.assert_allclose(bias, expected, atol=3e-6, rtol=0)


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(1, 5), (2, 3), (3, 7), (16, 128), (32, 128), (64, 1000)])
def test_bounds_are_where_buckets_begin(num_buckets: int, max_distance: int) -> None:
    """No logarithm: what a bucket begins with is found by trying."""
    exact, wide = num_buckets // 2, num_buckets - num_buckets // 2
    expected = [
        *range(1, exact + 1),
        *(
            next(n for n in itertools.count() if n**wide >= exact ** (wide - k) * max_distance**k)
            for k in range(1, wide)
        ),
    ]
    assert list(bucket_bounds(num_buckets, max_distance)) == expected
    assert all(type(bound) is int for bound in expected)


def test_bounds_that_single_precision_misses() -> None:
    """With 16 wide buckets from 16 to 2^20, the k-th begins at 16 2^k; the same in float32 puts two of them later."""
    bounds = bucket_bounds(32, 2**20)
    assert bounds == (*range(1, 17), *(16 * 2**k for k in range(1, 16)))
    first = torch.tensor(bounds[15:])
    assert torch.equal(t5_buckets(first, bounds, bidirectional=False), torch.arange(16, 32))
    assert torch.equal(t5_buckets(first - 1, bounds, bidirectional=False), torch.arange(15, 31))
    single = 16 + (torch.log(first.float() / 16) / math.log(2**16) * 16).long()
    assert (single < torch.arange(16, 32)).sum() == 2


def test_tables_are_for_the_sites_there_are() -> None:
    def names(method: PositionMethod, *layers: int) -> dict[str, tuple[int, ...]]:
        built = method.build(ModelSizes(18, 6, *layers))
        return {name: tuple(tensor.shape) for name, tensor in built.state_dict().items()}

    assert names(T5RelativeBias(8, 12), 0, 2) == {"tables.decoder": (8, 6)}
    assert names(T5RelativeBias(cross=True), 0, 2) == {"tables.decoder": (32, 6), "tables.cross": (32, 6)}
    assert names(T5RelativeBias(), 3, 2) == {"tables.encoder": (32, 6), "tables.decoder": (32, 6)}


def test_layers_share_t5s_table_and_no_other() -> None:
    positions = LAYOUTS[1].source
    for method, shared in ((T5RelativeBias(), True), (KerpleLog(), False), (FIRE(), False)):
        built = method.build(ModelSizes(18, 6, 2, 2))
        first, second = (built.at("encoder", layer).bias(positions, positions) for layer in (0, 1))
        assert first is not None
        assert second is not None
        assert torch.equal(first, second) == shared


def test_parameters_at_first() -> None:
    torch.manual_seed(0)
    table = T5RelativeBias(1000, 5000).build(ModelSizes(18, 6, 0, 1)).state_dict()["tables.decoder"]
    assert float(table.std()) == pytest.approx(math.sqrt(2 / 1006), rel=0.05)
    drawn = KerpleLog().at("decoder", 0, 5000, 4).state_dict()  # type: ignore[attr-defined]
    for name, most in (("p", 2.0), ("a", 1.0)):
        assert 0 <= float(drawn[name].min()) < 0.01 < 0.99 * most < float(drawn[name].max()) < most
        assert float(drawn[name].mean()) == pytest.approx(most / 2, rel=0.05)
    drawn = FIRE().at("decoder", 0, 500, 4).state_dict()  # type: ignore[attr-defined]
    assert (float(drawn["c"]), float(drawn["u"])) == (pytest.approx(0.1), 1.0)
    for layer, fan_in in (("hidden", 1), ("output", 32)):
        for name in ("weight", "bias"):
            assert float(drawn[f"{layer}.{name}"].abs().max()) == pytest.approx(fan_in**-0.5, rel=0.1)


@pytest.mark.parametrize("edits", [False, True])
def test_kerples_parameters_come_back(edits: bool) -> None:
    """One below the least value is read as that, stays unless it is to be edited, and learns."""
    hook = KerpleLog(epsilon=0.05, edits_parameters=edits).at("decoder", 0, 2, 4)
    assert isinstance(hook, torch.nn.Module)
    start = {"p": torch.tensor([-0.5, 0.01]), "a": torch.tensor([0.02, 0.7])}
    hook.load_state_dict(start)
    bias = hook.bias(run_of(1, 9), run_of(1))
    torch.testing.assert_close(bias.flatten(), torch.tensor([-0.05 * math.log(1.45), -0.05 * math.log(7.3)]))
    gradients = {}
    for sign in (1, -1):
        hook.zero_grad()
        (sign * hook.bias(run_of(1, 9), run_of(1))).sum().backward()
        gradients[sign] = hook.p.grad.clone()
    torch.testing.assert_close(gradients[1], -torch.log(torch.tensor([1.45, 7.3])))
    assert torch.equal(gradients[1], -gradients[-1])
    for name, kept in start.items():
        assert torch.equal(hook.state_dict()[name], kept.clamp(min=0.05) if edits else kept)


@pytest.mark.parametrize("method", [KerpleLog(), FIRE()])
@pytest.mark.parametrize(("given", "atol"), [(torch.float64, 1e-15), (torch.bfloat16, 1e-6)])
def test_numbers_are_at_least_in_single_precision(method: Any, given: torch.dtype, atol: float) -> None:
    hook = method.at("decoder", 0, 2, 4).to(given)
    bias = hook.bias(run_of(9), run_of(9)).detach()
    assert bias.dtype == torch.promote_types(given, torch.float32)
    formula = kerple_formula if isinstance(method, KerpleLog) else fire_formula
    expected = formula(method, hook.requires_grad_(False), "decoder", 8, 1, 1)
    assert float(bias[1, 8, 1]) == pytest.approx(expected, abs=atol, rel=0)


def test_alibi_falls_both_ways_and_by_its_slopes() -> None:
    bias = ALiBi().at("encoder", 0, 8, 4).bias(run_of(5), run_of(5))
    assert bias is not None
    assert torch.equal(bias, bias.transpose(1, 2))
    assert bias[:, 4, 0].tolist() == [-4 * 2.0**-n for n in range(1, 9)]
    assert alibi_slopes(1) == (2**-8,)
    assert alibi_slopes(3) == (2**-4, 2**-8, 2**-2)


def test_fire_stays_within_what_it_knows() -> None:
    """Past every length, the oldest key of a query is at most at distance 1."""
    hook = FIRE(4.0).at("decoder", 0, 2, 4)
    first = LONG.source[:1]
    far = [hook.bias(LONG.source[i : i + 1], first) for i in (5, 50, 1000)]
    torch.testing.assert_close(far[0], far[2], atol=1e-5, rtol=0)
    torch.testing.assert_close(far[1], far[2], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        (T5RelativeBias, {"num_buckets": 0}, "num_buckets 0"),
        (T5RelativeBias, {"num_buckets": 7}, "7 buckets"),
        (T5RelativeBias, {"max_distance": 16}, "more than 16"),
        (T5RelativeBias, {"max_distance": 8, "bidirectional": True}, "more than 8"),
        (T5RelativeBias, {"coordinate": "a place"}, "coordinate cannot be 'a place'"),
        (ALiBi, {"slopes": "flat"}, "slopes cannot be 'flat': give one of press, geometric"),
        (ALiBi, {"coordinate": "a place"}, "coordinate cannot be 'a place'"),
        (KerpleLog, {"epsilon": -1}, "epsilon -1"),
        (KerpleLog, {"coordinate": "a place"}, "coordinate cannot be 'a place'"),
        (FIRE, {"threshold": 0}, "threshold 0"),
        (FIRE, {"width": 0}, "width 0"),
        (FIRE, {"activation": "gelu"}, "relu, leaky_relu"),
        (FIRE, {"coordinate": "a place"}, "coordinate cannot be 'a place'"),
    ],
)
def test_settings_that_make_no_sense(method: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as raised:
        method(**settings)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_settings_at_the_edge() -> None:
    T5RelativeBias(2, 2)
    T5RelativeBias(32, 17)
    T5RelativeBias(32, 9, bidirectional=True)
    KerpleLog(epsilon=0)
    FIRE(1.0, width=1)
