"""Bounds of rounding against float32 arithmetic in many orders, in a forward pass that is the test's own."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from abc_toolkit.models.base import Architecture
from abc_toolkit.models.transformer import EncoderDecoder
from abc_toolkit.positions import Cyclic, NoPE
from abc_toolkit.proof.enumeration import Kind, Reading, kinds_of
from abc_toolkit.proof.forward import margins, receptive_field_logits
from abc_toolkit.proof.receptive_field import CannotDecideError, ReceptiveField, ReceptiveFields
from abc_toolkit.proof.rounding import UNIT, Bounded, BoundedLinear, BoundedModel, BoundedNorm, growth
from abc_toolkit.proof.table import TabledRule
from abc_toolkit.tasks import Addition
from abc_toolkit.windows.attention import Windowed
from abc_toolkit.windows.rules import Condition, Rule, Window
from tests.small_windows import RULES, make

TASK = Addition(max_length=2, base=2)
SHAPE = (2, 2)
HEADS = 2
Array = NDArray[Any]


# A forward pass, from the names of the weights alone.


@dataclass
class Arithmetic:
    """Sums in one precision, in a random order; exact sums are in their own order.

    Attributes:
        dtype: The precision.
        draw: Draws orders.
    """

    dtype: Any
    draw: np.random.Generator | None = None

    def total(self, parts: Array) -> Array:
        """The sum over the last axis."""
        if self.draw is None:
            return parts.sum(axis=-1)
        parts = parts[..., self.draw.permutation(parts.shape[-1])]
        way = self.draw.integers(3)
        if way == 0:  # one after the other
            return np.add.accumulate(parts, axis=-1)[..., -1]
        if way == 1:  # halves of halves
            return parts.sum(axis=-1, dtype=self.dtype)
        lanes = [np.add.accumulate(parts[..., k::3], axis=-1)[..., -1:] for k in range(min(3, parts.shape[-1]))]
        return np.add.accumulate(np.concatenate(lanes, axis=-1), axis=-1)[..., -1]

    def linear(self, x: Array, weight: Array, bias: Array) -> Array:
        products = x[..., None, :] * weight
        if self.draw is not None and self.draw.integers(2):
            return self.total(
                np.concatenate([products, np.broadcast_to(bias, products.shape[:-1])[..., None]], axis=-1)
            )
        return self.total(products) + bias

    def norm(self, x: Array, weight: Array, bias: Array) -> Array:
        size = self.dtype(x.shape[-1])
        mean = self.total(x)[..., None] / size
        way = 0 if self.draw is None else self.draw.integers(2)
        if way == 0:
            variance = self.total((x - mean) ** 2)[..., None] / size
        else:  # the mean of squares less the square of the mean
            variance = np.maximum(self.total(x * x)[..., None] / size - mean * mean, self.dtype(0))
        root = np.sqrt(variance + self.dtype(1e-5))
        if self.draw is not None and self.draw.integers(2):
            return (x - mean) * (self.dtype(1) / root) * weight + bias
        return (x - mean) / root * weight + bias

    def attended(self, logits: Array, values: Array) -> Array:
        """Softmax over keys `[key, row]` of values `[key, row, dim]`."""
        powers = np.exp(logits - logits.max(axis=0))
        whole = self.total(powers.T)
        if self.draw is not None and self.draw.integers(2):
            return self.total(np.moveaxis(powers[..., None] * values, 0, -1)) / whole[:, None]
        return self.total(np.moveaxis((powers / whole)[..., None] * values, 0, -1))


def logits_of(model: EncoderDecoder, field: ReceptiveField, tokens: Array, how: Arithmetic) -> Array:
    """Logits of a receptive field, `[row, token]`, from the state dictionary, as a certificate describes the model."""
    w = {name: value.detach().numpy().astype(how.dtype) for name, value in model.state_dict().items()}
    pre = model.architecture.norm == "pre"
    dim = model.architecture.model_dim
    own = dim // HEADS

    def norm(x: Array, name: str) -> Array:
        return how.norm(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def linear(x: Array, name: str) -> Array:
        return how.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def attention(name: str, x: Array, keys: Sequence[Array], opened: Any, row: int) -> Array:
        query, parts = linear(x, f"{name}.query"), []
        both = [linear(key, f"{name}.key_value") for key in keys]
        for head in range(HEADS):
            part = slice(head * own, (head + 1) * own)
            pairs = zip(opened.index[head, row].tolist(), opened.bias[head, row].tolist(), strict=True)
            open_keys = [(key, bias) for key, bias in pairs if bias > -math.inf]
            if not open_keys:
                parts.append(np.zeros((len(x), own), how.dtype))
                continue
            scale = how.dtype(own**-0.5)
            scores = [
                how.total(query[:, part] * both[key][:, part]) * scale + how.dtype(bias) for key, bias in open_keys
            ]
            values = [both[key][:, dim:][:, part] for key, _ in open_keys]
            parts.append(how.attended(np.stack(scores), np.stack(values)))
        return linear(np.concatenate(parts, axis=1), f"{name}.output")

    def added(x: Array, name: str, update: Callable[[Array], Array]) -> Array:
        return x + update(norm(x, name)) if pre else norm(x + update(x), name)

    def feedforward(x: Array, name: str) -> Array:
        return linear(np.maximum(linear(x, f"{name}.feedforward.0"), 0), f"{name}.feedforward.3")

    def layer_of(side: str, layer: int, x: Array, row: int, keys: list[Array], encoded: list[Array]) -> Array:
        at, table = f"{side}.{layer}", field.tables[side, layer]  # type: ignore[index]
        x = added(x, f"{at}.self_norm", lambda y: attention(f"{at}.self_attention", y, keys, table, row))
        if side == "decoder":
            cross = field.tables["cross", layer]
            x = added(x, f"{at}.cross_norm", lambda y: attention(f"{at}.cross_attention", y, encoded, cross, row))
        return added(x, f"{at}.feedforward_norm", lambda y: feedforward(y, at))

    def layers(side: str, streams: list[Array], needed: Sequence[Sequence[int]], encoded: list[Array]) -> list[Array]:
        for layer in range(len(needed) - 1):
            keys = [norm(x, f"{side}.{layer}.self_norm") if pre else x for x in streams]
            own = [streams[needed[layer].index(token)] for token in needed[layer + 1]]
            streams = [layer_of(side, layer, x, row, keys, encoded) for row, x in enumerate(own)]
        return streams

    leaves = []
    for column in range(tokens.shape[1]):
        x = w["embedding.weight"][tokens[:, column]] * how.dtype(math.sqrt(dim))
        if field.added[column]:
            x = x + np.frombuffer(field.added[column], np.float32).astype(how.dtype)
        leaves.append(x)
    count = len(field.sources[0])
    encoded = layers("encoder", leaves[:count], field.sources, [])
    if model.architecture.num_encoder_layers and pre:
        encoded = [norm(x, "encoder_norm") for x in encoded]
    (last,) = layers("decoder", leaves[count:], field.streams, encoded)
    return linear(norm(last, "decoder_norm") if pre else last, "output")


# Models.


def lines(encoder: int, decoder: int, open_keys: int) -> tuple[Rule, ...]:
    """Some keys open to each query, with biases."""
    rules = []
    for layer, offset in [(layer, offset) for layer in range(decoder) for offset in range(open_keys)]:
        own = (Condition("place", offset, "place"),)
        rules.append(Rule("cross", layer, layer % HEADS, "operand 1", own, 0.5 * offset))
        rules.append(Rule("cross", layer, 0, "operand 2", own, -0.25 * offset))
        rules.append(Rule("decoder", layer, 1, None, (Condition("raw", offset, "raw"),), 1.5 * offset))
    rules += [Rule("encoder", layer, 0, None, (Condition("raw", -1, "raw"),), 0.3) for layer in range(encoder)]
    rules += [Rule("encoder", layer, 0, None, (Condition("raw", 0, "raw"),)) for layer in range(encoder)]
    return tuple(rules)


@dataclass(frozen=True)
class Setting:
    """The shape of a model."""

    encoder: int = 0
    decoder: int = 1
    norm: str = "pre"
    open_keys: int = 2
    inner: Any = NoPE()  # noqa: RUF009
    dim: int = 16


def built(setting: Setting, seed: int = 0) -> tuple[EncoderDecoder, list[Kind]]:
    torch.manual_seed(seed)
    sizes = Architecture(
        num_encoder_layers=setting.encoder,
        num_decoder_layers=setting.decoder,
        model_dim=setting.dim,
        feedforward_dim=24,
        num_heads=HEADS,
        norm=setting.norm,  # type: ignore[arg-type]
    )
    window = Window(
        "", setting.encoder, setting.decoder, HEADS, lines(setting.encoder, setting.decoder, setting.open_keys), {}
    )
    model = EncoderDecoder(len(TASK.vocabulary), sizes, Windowed(window, setting.inner)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.3)
            elif "norm" in name:
                parameter.uniform_(0.5, 1.5)
    rule = TABLED
    layout = TASK.layout(SHAPE)
    reading = Reading(rule, layout)
    fields = ReceptiveFields(window, layout, None if type(setting.inner) is NoPE else model.positioning)
    predictions = [(reading, SHAPE, SHAPE, fields.at(query)) for query in range(len(layout.target))]
    return model, kinds_of(TASK, predictions)


_RULE = TASK.local_rule()
assert _RULE is not None
TABLED = TabledRule(TASK, _RULE)


def scaled(model: EncoderDecoder, name: str) -> None:
    """Weights that amplify rounding errors."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for own, parameter in model.named_parameters():
            if name == "sharp" and (own.endswith("query.weight") or "key_value.weight" in own):
                parameter *= 6
            if name == "large" and "feedforward" in own and own.endswith("weight") and "norm" not in own:
                parameter *= 20
            if name == "cancelling" and own.endswith("feedforward.0.weight"):
                # Large parts that cancel: the same direction of the input with both signs.
                signs = torch.ones(parameter.shape[1])
                signs[torch.randperm(len(signs), generator=generator)[::2]] = -1
                parameter += 50 * signs
            if name == "far from zero" and own == "embedding.weight":
                parameter += 30.0
            if name == "nearly constant" and own == "embedding.weight":
                parameter *= 1e-3
            if name == "small norms" and "norm" in own and own.endswith("weight"):
                parameter *= 1e-2


SETTINGS = {
    "one layer": Setting(),
    "two layers": Setting(decoder=2),
    "post": Setting(decoder=2, norm="post"),
    "encoder": Setting(encoder=1),
    "encoder, post": Setting(encoder=2, norm="post"),
    "many keys": Setting(open_keys=3),
    "positions": Setting(inner=Cyclic(("place", "raw"), base=100.0, period=3)),
}
WEIGHTS = ("as they are", "sharp", "large", "cancelling", "far from zero", "nearly constant", "small norms")


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", SETTINGS)
def test_no_order_of_summation_goes_beyond_the_bound(name: str, weights: str) -> None:
    setting = SETTINGS[name]
    model, kinds = built(setting)
    scaled(model, weights)
    bounded = BoundedModel(model, [setting.inner] if isinstance(setting.inner, Cyclic) else ())
    draw, shares = np.random.default_rng(0), []
    for kind in kinds[-3:]:
        found = bounded.margins(kind)
        rows = torch.arange(0, len(kind.assignments), max(1, len(kind.assignments) // 12))
        tokens, required = kind.enumeration.tokens(kind.assignments[rows])
        field = kind.enumeration.field
        exact = logits_of(model, field, tokens.numpy(), Arithmetic(np.float64))
        near = {"atol": 3e-5, "rtol": 1e-6} if isinstance(setting.inner, Cyclic) else {"atol": 1e-9, "rtol": 1e-9}
        np.testing.assert_allclose(bounded.logits(field, tokens).numpy(), exact, **near)
        np.testing.assert_allclose(found.margin[rows].numpy(), lead(exact, required), **near)
        assert (found.slack <= found.margin).all()
        assert (found.rounding > 0).all()
        for _ in range(4):
            rounded = logits_of(model, field, tokens.numpy(), Arithmetic(np.float32, draw)).astype(np.float64)
            apart = np.abs(between(rounded, required) - between(exact, required)).max(axis=1)
            assert (apart <= found.rounding[rows].numpy()).all()
            assert (lead(rounded, required) >= found.slack[rows].numpy()).all()
            shares.append(float((apart / found.rounding[rows].numpy()).max()))
    if weights == "as they are" and name in ("one layer", "many keys", "encoder"):
        assert max(shares) > 1e-5, "the bound says nothing"


def between(logits: Array, required: torch.Tensor) -> Array:
    """The lead of the required logit over each other one."""
    return np.take_along_axis(logits, required.numpy()[:, None], axis=1) - logits


def lead(logits: Array, required: torch.Tensor) -> Array:
    apart = between(logits, required)
    np.put_along_axis(apart, required.numpy()[:, None], np.inf, axis=1)
    return apart.min(axis=1)


@pytest.mark.parametrize("name", ["one layer", "two layers", "post", "encoder"])
@torch.no_grad()
def test_logits_are_the_models_own_in_double(name: str) -> None:
    model, kinds = built(SETTINGS[name], seed=5)
    bounded, exact = BoundedModel(model), built(SETTINGS[name], seed=5)[0].double()
    for kind in kinds:
        tokens, _ = kind.enumeration.tokens(kind.assignments)
        expected = receptive_field_logits(exact, kind.enumeration.field, tokens)
        torch.testing.assert_close(bounded.logits(kind.enumeration.field, tokens), expected, atol=1e-11, rtol=1e-11)
        torch.testing.assert_close(bounded.margins(kind).margin, margins(exact, kind, kind.assignments))
    assert next(model.parameters()).dtype == torch.float32, "the model itself stays as it is"


# Layers alone.


@pytest.mark.parametrize("size", [1, 2, 7, 64, 301])
def test_a_linear_layer_in_any_order(size: int) -> None:
    draw = np.random.default_rng(size)
    for scale in (1e-3, 1.0, 1e4):
        weight = (draw.standard_normal((5, size)) * scale).astype(np.float32)
        weight[0] = scale * np.resize([1, -1], size)  # which cancel
        bias = draw.standard_normal(5).astype(np.float32)
        layer = BoundedLinear(torch.tensor(weight).double(), torch.tensor(bias).double())
        x = draw.standard_normal((20, size)).astype(np.float32)
        x[0] = 1.0
        moved = x + (1e-5 * draw.standard_normal(x.shape)).astype(np.float32)
        error = np.linalg.norm(moved.astype(np.float64) - x, axis=1) * 1.0001
        found = layer(Bounded(torch.tensor(x).double(), torch.tensor(error)))
        np.testing.assert_allclose(found.value.numpy(), x.astype(np.float64) @ weight.T.astype(np.float64) + bias)
        for _ in range(5):
            rounded = Arithmetic(np.float32, draw).linear(moved, weight, bias)
            apart = np.linalg.norm(rounded - found.value.numpy(), axis=1)
            assert (apart <= found.error.numpy()).all()


@pytest.mark.parametrize("dim", [2, 8, 64])
@pytest.mark.parametrize("mean", [0.0, 3.0, 100.0])
@pytest.mark.parametrize("spread", [1e-4, 1e-2, 1.0, 100.0])
def test_a_normalisation_in_any_order(dim: int, mean: float, spread: float) -> None:
    draw = np.random.default_rng(dim)
    own = torch.nn.LayerNorm(dim).double()
    with torch.no_grad():
        own.weight.copy_(torch.tensor(draw.standard_normal(dim).astype(np.float32)))
        own.bias.copy_(torch.tensor(draw.standard_normal(dim).astype(np.float32)))
    x = (mean + spread * draw.standard_normal((40, dim))).astype(np.float32)
    moved = x + (0.2 * spread * draw.standard_normal(x.shape) * draw.choice([0, 1e-4, 1], (40, 1))).astype(np.float32)
    error = np.linalg.norm(moved.astype(np.float64) - x.astype(np.float64), axis=1)
    with torch.no_grad():
        found = BoundedNorm(own)(Bounded(torch.tensor(x).double(), torch.tensor(error) * 1.0001))
        np.testing.assert_allclose(found.value.numpy(), own(torch.tensor(x).double()).numpy(), atol=1e-9)
    weight, bias = (part.detach().numpy().astype(np.float32) for part in (own.weight, own.bias))
    for _ in range(8):
        rounded = Arithmetic(np.float32, draw).norm(moved, weight, bias).astype(np.float64)
        assert (np.linalg.norm(rounded - found.value.numpy(), axis=1) <= found.error.numpy()).all()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
@torch.no_grad()
def test_a_normalisation_of_what_is_far_off(share: float) -> None:
    """The vector turns as far as a relative error allows: the derivative grows on the way."""
    own = torch.nn.LayerNorm(4).double()
    x, across = (torch.tensor([parts]).double() for parts in ([1.0, -1, 0, 0], [0.0, 0, 1, -1]))
    turned = (1 - share**2) * x + share * (1 - share**2) ** 0.5 * across
    error = (turned - x).norm(dim=-1)
    torch.testing.assert_close(error, share * x.norm(dim=-1))
    assert float((own(turned) - own(x)).norm()) <= float(BoundedNorm(own)(Bounded(x, error)).error)


def test_a_bound_grows_with_the_terms_of_a_sum() -> None:
    assert [growth(n) for n in (1, 2, 100)] == pytest.approx([UNIT, 2 * UNIT, 100 * UNIT], rel=1e-4)
    assert all(growth(n) > n * UNIT for n in (1, 5, 1000))
    errors = []
    for size in (4, 16, 64, 256):
        layer = BoundedLinear(torch.ones(1, size).double(), torch.zeros(1).double())
        x = torch.ones(1, size).double()
        errors.append(float(layer(Bounded(x, torch.zeros(1).double())).error))
    assert errors == sorted(errors)
    assert errors[-1] > 60 * errors[0]
    bounds = [largest_rounding(Setting(dim=dim)) for dim in (8, 16, 32)]
    assert bounds == sorted(bounds)
    periods = [largest_rounding(Setting(inner=Cyclic(("segment",), period=period))) for period in (20, 200, 2000)]
    assert periods == sorted(set(periods))


def largest_rounding(setting: Setting) -> float:
    model, kinds = built(setting)
    bounded = BoundedModel(model, [setting.inner] if isinstance(setting.inner, Cyclic) else ())
    return max(float(bounded.margins(kind).rounding.max()) for kind in kinds)


# What is not bounded.


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["embedding.weight", "decoder.0.cross_attention.key_value.bias", "output.weight"])
def test_what_is_no_number_is_refused(name: str, value: float) -> None:
    model, _ = built(Setting())
    with torch.no_grad():
        dict(model.named_parameters())[name].flatten()[-1] = value
    with pytest.raises(CannotDecideError, match=rf"{name} are no finite numbers"):
        BoundedModel(model)


def test_another_precision_is_refused() -> None:
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        with pytest.raises(CannotDecideError, match="single precision"):
            BoundedModel(built(Setting())[0].to(dtype))


@pytest.mark.parametrize("largest", [1e6, 1e12, 1e19, 2e25, 3e38])
@pytest.mark.parametrize("norm", ["pre", "post"])
@torch.no_grad()
def test_weights_so_large_that_numbers_may_overflow(norm: str, largest: float) -> None:
    """For each parameter alone: no finite bound where float32 gives NaN."""
    setting = Setting(norm=norm, open_keys=1)
    for name, _ in built(setting)[0].named_parameters():
        model, kinds = built(setting)
        parameter = dict(model.named_parameters())[name]
        parameter.copy_((parameter.double() * (largest / float(parameter.abs().max()))).float())
        kind = kinds[-1]
        tokens, required = kind.enumeration.tokens(kind.assignments[:8])
        with np.errstate(all="ignore"):
            rounded = logits_of(model, kind.enumeration.field, tokens.numpy(), Arithmetic(np.float32))
        try:
            found = BoundedModel(model).margins(kind)
        except CannotDecideError as error:
            assert "overflow" in str(error)  # noqa: PT017
            continue
        finite = np.isfinite(rounded).all(axis=1)
        assert not found.slack[:8][torch.tensor(~finite)].isfinite().any(), name
        slack = found.slack[:8].numpy()
        assert (lead(rounded.astype(np.float64), required)[finite] >= slack[finite]).all(), name


@pytest.mark.parametrize(("strength", "margin"), [(1000.0, 5e-3), (100.0, 4e-4)])
@torch.no_grad()
def test_a_unit_that_acts_on_rounding_noise_leaves_no_slack(strength: float, margin: float) -> None:
    """A hidden unit whose input cancels to nothing in one assignment, and whose output is large."""
    setting = Setting(open_keys=0)
    model, kinds = built(setting)
    kind = kinds[-1]
    tokens, required = kind.enumeration.tokens(kind.assignments)
    field = kind.enumeration.field
    double = built(setting)[0].double()
    hidden: list[torch.Tensor] = []
    block = double.decoder[0]
    handle = block.feedforward[0].register_forward_hook(lambda _, inputs, __: hidden.append(inputs[0]))
    receptive_field_logits(double, field, tokens[:1])
    handle.remove()
    h = hidden[-1].flatten()
    generator = torch.Generator().manual_seed(1)
    weight = (30 * torch.randn(len(h), generator=generator)).float()
    exact = float((weight.double() * h).sum())
    own = int(required[0])
    first, last = model.decoder[0].feedforward[0], model.decoder[0].feedforward[3]
    first.bias.fill_(-100)  # nor do the others, so that nothing hides what this unit does
    first.weight[0] = weight
    first.bias[0] = float(np.nextafter(np.float32(-exact), np.float32(-np.inf)))  # exactly, it never acts
    last.weight[:, 0] = 0
    logits = logits_of(model, field, tokens[:1].numpy(), Arithmetic(np.float64))[0]
    model.output.bias[own] += float(max(np.delete(logits, own)) - logits[own]) + margin
    before = BoundedModel(model).margins(kind)
    assert float(before.margin[0]) > 0.9 * margin
    assert float(before.slack[0]) > 0
    against = (model.output.weight - model.output.weight[own]).sum(dim=0)
    last.weight[:, 0] = strength * against / against.norm()
    after = BoundedModel(model).margins(kind)
    assert float(after.margin[0]) > 0
    assert not float(after.slack[0]) > 0
    assert float(after.rounding[0]) > float(after.margin[0])
    # And it does act, in some order of summation.
    draw, leads = np.random.default_rng(0), []
    for _ in range(200):
        rounded = logits_of(model, field, tokens[:1].numpy(), Arithmetic(np.float32, draw)).astype(np.float64)
        leads.append(float(lead(rounded, required[:1])[0]))
    assert min(leads) < 0
    assert min(leads) >= float(after.slack[0])


@torch.no_grad()
def test_the_finer_bound_counts_units_that_open_on_the_way() -> None:
    """Hidden units that are just off, with large weights behind them, and that rounding may switch on."""
    task, rules = RULES["parity"]
    model = make(task, rules)
    last = model.decoder[-1]
    stream = 300 * torch.randn(1, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    first, second = last.feedforward[0], last.feedforward[3]
    assert isinstance(first, torch.nn.Linear)
    assert isinstance(second, torch.nn.Linear)
    first.bias.sub_(first(last.feedforward_norm(stream.float()))[0] + 1e-6)
    second.weight.mul_(3000)
    bounded = BoundedModel(model)
    block, error = bounded.decoder[-1], 0.1
    required, other = torch.tensor([2]), torch.tensor([3])

    def difference(x: Tensor) -> Tensor:
        none = torch.zeros(len(x), dtype=torch.float64)
        h = bounded.decoder_norm(block.finish(Bounded(x, none))).value
        return h @ (bounded.output.weight[2] - bounded.output.weight[3])

    # The way in which most of them open, as far as they count for the difference.
    exact = Bounded(stream, torch.zeros(1, dtype=torch.float64))
    after = block.finish(exact)
    outer = (bounded.output.weight[2] - bounded.output.weight[3])[None]
    counts = bounded.decoder_norm.back(after, outer) @ block.last.weight
    ways = [torch.relu(sign * counts) * sign @ block.first.weight for sign in (1, -1)]
    steps = torch.cat([block.feedforward_norm.back(exact, way) for way in (*ways, counts @ block.first.weight)])
    steps = error * torch.cat([steps, -steps]) / torch.cat([steps, steps]).norm(dim=1, keepdim=True)
    moved = float((difference(stream + steps) - difference(stream)).abs().max())
    finer = bounded._refined(Bounded(stream, torch.tensor([error], dtype=torch.float64)), required, other)
    assert 0 < moved <= float(finer)
    shut = Bounded(stream, torch.tensor([error], dtype=torch.float64))
    kept, block.first.local_each = block.first.local_each, lambda x: torch.zeros_like(block.first(x).value)
    try:  # without them it would be too small
        assert float(bounded._refined(shut, required, other)) < moved
    finally:
        block.first.local_each = kept


@pytest.mark.parametrize("size", [0.0, 1.0, 1e4, 1e8, 1e12, 1e17])
@torch.no_grad()
def test_a_normalised_vector_is_no_larger_than_is_said(size: float) -> None:
    """Nearly constant vectors too, which are nothing but rounding errors once they are centred."""
    layer = torch.nn.LayerNorm(24)
    layer.weight.copy_(torch.randn(24))
    layer.bias.copy_(torch.randn(24))
    bound = BoundedNorm(layer.double())
    constant = size / 24**0.5 * (torch.ones(500, 24) + 1e-7 * torch.randn(500, 24))
    vectors = torch.cat([constant, size * torch.nn.functional.normalize(torch.randn(500, 24))])
    found = layer.float()(vectors).double().norm(dim=1)
    assert found.max() <= 2 * bound.largest_of(float(vectors.double().norm(dim=1).max()))
