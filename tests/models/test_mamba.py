import math
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from abc_toolkit.errors import UserError
from abc_toolkit.models import mamba
from abc_toolkit.models.base import Architecture, predict, prefix_of
from abc_toolkit.models.mamba import Mamba, MambaLanguageModel, SelectiveScan
from abc_toolkit.models.transformer import AttentionModel
from abc_toolkit.positions import ALiBi, Compose, PositionMethod, RoPE, Sinusoidal
from abc_toolkit.tasks import Addition

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "mamba.npz")
# Sizes that differ from each other, so that none can stand in for another.
SIZES = {"model_dim": 17, "num_layers": 2, "state_dim": 5, "conv_dim": 3, "expansion": 2}
LENGTH = 14


def make(**sizes: int) -> Mamba:
    """A model in double precision, no parameter as it starts: zeros and ones would hide one left out."""
    torch.manual_seed(1)
    model = Mamba(**(SIZES | sizes)).double().eval()
    for parameter in model.parameters():
        parameter.data += 0.5 * torch.randn_like(parameter)
    return model


def stream(model: Mamba, batch: int = 3, length: int = LENGTH) -> Tensor:
    return torch.randn(batch, length, model.model_dim, dtype=model.norm_f.weight.dtype)


def oracle(model: Mamba, x: Tensor) -> Tensor:
    """The paper's equations 2a and 2b, a number at a time where tokens meet, `[length, dim]` to the same."""
    p = {name: value.detach().numpy() for name, value in model.named_parameters()}
    out = x.numpy()

    def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight

    def silu(x: np.ndarray) -> np.ndarray:
        return x / (1 + np.exp(-x))

    for i in range(model.num_layers):
        layer = f"layers.{i}."
        of = layer + "mixer."
        kernel, decay = p[of + "conv1d.weight"], -np.exp(p[of + "A_log"])
        inner, state_dim = decay.shape
        rank = math.ceil(model.model_dim / 16)
        streams = norm(out, p[layer + "norm.weight"]) @ p[of + "in_proj.weight"].T
        h = np.zeros((inner, state_dim))
        updates = []
        for t in range(len(x)):
            u = p[of + "conv1d.bias"].copy()
            for back in range(model.conv_dim):
                if back <= t:
                    u += kernel[:, 0, model.conv_dim - 1 - back] * streams[t - back, :inner]
            u = silu(u)
            made = p[of + "x_proj.weight"] @ u
            dt = np.log1p(np.exp(p[of + "dt_proj.weight"] @ made[:rank] + p[of + "dt_proj.bias"]))
            b, c = made[rank : rank + state_dim], made[rank + state_dim :]
            for channel in range(inner):
                for n in range(state_dim):
                    kept = math.exp(dt[channel] * decay[channel, n]) * h[channel, n]
                    h[channel, n] = kept + dt[channel] * b[n] * u[channel]
            y = h @ c + p[of + "D"] * u
            updates.append(p[of + "out_proj.weight"] @ (y * silu(streams[t, inner:])))
        out = out + np.stack(updates)
    return torch.from_numpy(norm(out, p["norm_f.weight"]))


def test_default() -> None:
    with torch.no_grad():
        assert Mamba()(torch.randn(8, 100, 256)).shape == (8, 100, 256)


def test_starts_as_released() -> None:
    model = Mamba(64, 4, state_dim=6)
    mixer = model.layers[0].mixer
    assert torch.equal(mixer.A_log, torch.arange(1.0, 7).log().expand(128, -1))
    assert torch.equal(mixer.D, torch.ones(128))
    assert mixer.dt_proj.weight.shape == (128, 4)
    assert 0.4 < mixer.dt_proj.weight.abs().max() <= 4**-0.5
    dt = nn.functional.softplus(mixer.dt_proj.bias)
    assert 0.00099 < dt.min() < 0.002
    assert 0.05 < dt.max() < 0.1001
    assert 0.007 < dt.log().mean().exp() < 0.014  # log-uniform: the geometric mean of the ends
    assert 0.9 < mixer.out_proj.weight.abs().max() * math.sqrt(4 * 128) <= 1


@pytest.mark.parametrize("conv_dim", [1, 3])
def test_is_the_recurrence(conv_dim: int) -> None:
    model = make(conv_dim=conv_dim)
    x = stream(model)
    for ours, one in zip(model(x).detach(), x, strict=True):
        torch.testing.assert_close(ours, oracle(model, one), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("of", "dtype", "limit"), [("transformers", torch.float32, 5e-6), ("mambapy", torch.float64, 1e-12)]
)
def test_golden(of: str, dtype: torch.dtype, limit: float) -> None:
    model = Mamba(20, 2, state_dim=5).to(dtype)
    model.load_state_dict({name: torch.from_numpy(GOLDEN[f"weight/{name}"]) for name, _ in model.named_parameters()})
    x = torch.from_numpy(GOLDEN["x"]).to(dtype).requires_grad_()
    out = model(x)
    out.backward(torch.from_numpy(GOLDEN["cotangent"]).to(dtype))
    found = {"out": out, "grad/x": x.grad} | {f"grad/{name}": value.grad for name, value in model.named_parameters()}
    for name, ours in found.items():
        theirs = torch.from_numpy(GOLDEN[f"{of}/{name}"])
        assert ours is not None
        assert theirs.dtype == ours.dtype
        assert (ours - theirs).abs().max() <= limit * theirs.abs().max(), name


def scan_inputs(length: int = 7, batch: int = 2, inner: int = 6, state: int = 5) -> list[Tensor]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64)

    u, dt = draw(length, batch, inner), draw(length, batch, inner).exp()
    a, b, c = -draw(state, inner).exp(), draw(length, batch, state), draw(length, batch, state)
    return [part.requires_grad_() for part in (u, dt, a, b, c, draw(batch, state, inner))]


@pytest.mark.parametrize("cells", [1, 200, 2**19])
def test_gradients_whatever_the_pieces(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mamba, "_CELLS", cells)  # 60 numbers a token
    assert torch.autograd.gradcheck(SelectiveScan.apply, scan_inputs())


def test_the_way_back_is_not_rounded_under_autocast() -> None:
    inputs = [part.detach().float().requires_grad_() for part in scan_inputs()]
    y, _ = SelectiveScan.apply(*inputs)  # type: ignore[misc]
    outside = torch.autograd.grad(y.sum(), inputs, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        inside = torch.autograd.grad(y.sum(), inputs)
    torch.testing.assert_close(inside, outside, rtol=0, atol=0)


@given(cuts=st.sets(st.integers(1, LENGTH - 1)), conv_dim=st.sampled_from([1, 2, 4]))
def test_pieces_make_the_whole(cuts: set[int], conv_dim: int) -> None:
    model = make(conv_dim=conv_dim)
    x = stream(model)
    state = model.start(len(x))
    pieces = []
    for start, end in pairwise([0, *sorted(cuts), LENGTH]):
        assert state.step == start
        pieces.append(model(x[:, start:end], state))
    assert state.step == LENGTH
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(x), rtol=1e-10, atol=1e-10)


def test_step_by_step_is_the_whole() -> None:
    model = make()
    x = stream(model)
    state = model.start(len(x))
    with torch.no_grad():
        steps = [model(token[:, None], state) for token in x.unbind(1)]
    torch.testing.assert_close(torch.cat(steps, dim=1), model(x).detach(), rtol=1e-10, atol=1e-10)


def test_gradients_go_back_through_a_state() -> None:
    model = make()
    x = stream(model)
    weights = torch.randn_like(x)
    whole = torch.autograd.grad((model(x) * weights).sum(), [*model.parameters()])
    state = model.start(len(x))
    pieces = torch.cat([model(piece, state) for piece in x.split(4, dim=1)], dim=1)
    for ours, theirs in zip(torch.autograd.grad((pieces * weights).sum(), [*model.parameters()]), whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_a_state_keeps_no_more_than_it_needs() -> None:
    model = make()
    state = model.start(2)
    with torch.no_grad():
        model(stream(model, 2, 50), state)
    held = sum(part.untyped_storage().nbytes() for layer in state.layers for part in (layer.recent, layer.hidden))
    assert held == 8 * 2 * 2 * 34 * (2 + 5)  # bytes, layers, batch, inner, recent and hidden


def test_causal() -> None:
    model = make()
    x = stream(model)
    for t in (1, 8, LENGTH - 1):
        other = x.clone()
        other[:, t:] = torch.randn_like(other[:, t:])
        difference = (model(x) - model(other)).detach().abs().amax((0, 2))
        assert (difference[:t] < 1e-12).all()
        assert (difference[t:] > 1e-6).all()  # and everything that follows depends on it


def test_strings_of_a_batch_do_not_meet() -> None:
    model = make()
    x = stream(model)
    together = model(x)
    for i in range(len(x)):
        torch.testing.assert_close(model(x[i : i + 1]), together[i : i + 1], rtol=1e-10, atol=1e-10)


def test_gradients_reach_every_parameter() -> None:
    model = Mamba(**SIZES)
    x = stream(model).requires_grad_()
    model(x).square().sum().backward()
    for name, parameter in [("x", x), *model.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_dropout_acts_in_training_alone() -> None:
    model = Mamba(**SIZES, dropout=0.5)
    x = stream(model)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("inside", [False, True])
def test_autocast(inside: bool) -> None:
    """Half precision, with the way back inside of it or not: near single precision, and the state never halved."""
    model = Mamba(**SIZES)
    x = stream(model)
    whole = model(x)
    whole.square().mean().backward()
    grads = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    state = model.start(len(x))
    with torch.autocast("cpu", torch.bfloat16):
        half = torch.cat([model(piece, state) for piece in x.split(5, dim=1)], dim=1)
        loss = half.float().square().mean()
        if inside:
            loss.backward()
    if not inside:
        loss.backward()
    assert {layer.hidden.dtype for layer in state.layers} == {torch.float32}
    assert (half - whole).abs().max() < 0.05
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        assert grad is not None
        assert parameter.grad is not None
        assert (parameter.grad - grad).norm() < 0.05 * grad.norm() + 1e-6


def test_half_precision_throughout() -> None:
    model = Mamba(**SIZES)
    x = stream(model)
    whole = model(x)
    half = model.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half - whole).abs().max() < 0.1


def test_long_strings_stay_finite() -> None:
    model = Mamba(8, 1, state_dim=4)
    x = (10 * torch.randn(1, 10_000, 8)).requires_grad_()
    out = model(x)
    out.square().mean().backward()
    assert out.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("name", [*SIZES])
def test_sizes_below_one(name: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"--model.{name} 0: give at least 1")):
        Mamba(**(SIZES | {name: 0}))


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_impossible_dropout(dropout: float) -> None:
    with pytest.raises(UserError, match=r"--model\.dropout"):
        Mamba(**SIZES, dropout=dropout)


# A language model of it.

TASK = Addition(padding="none")


def language_model(position: PositionMethod | None = None) -> MambaLanguageModel:
    torch.manual_seed(0)
    architecture = Architecture(num_decoder_layers=2, model_dim=8, position=position, backbone="mamba")
    model = MambaLanguageModel(len(TASK.vocabulary), architecture).double().eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("position", [None, Sinusoidal(("place", "segment"), base=100.0)])
@torch.no_grad()
def test_a_string_is_read_by_the_stack(position: PositionMethod | None, generator: torch.Generator) -> None:
    problems, layout = TASK.sample(generator, 3, (3, 2)), TASK.layout((3, 2))
    model = language_model(position)
    tokens = torch.cat([problems.source, prefix_of(problems.target)], dim=1)
    x = model.embedding(tokens) * math.sqrt(8)
    x = x if position is None else position.embed(x, layout.string.target)
    expected = model.output(model.decoder(x))[:, problems.source.shape[1] :]
    torch.testing.assert_close(predict(model, problems, layout), expected)


@pytest.mark.parametrize("tokens_at_once", [1, 7, 2**15])
@torch.no_grad()
def test_decoding_in_pieces_is_the_whole(
    tokens_at_once: int, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mamba, "_TOKENS", tokens_at_once)
    problems, layout = TASK.sample(generator, 3, (3, 2)), TASK.layout((3, 2))
    model = language_model(Sinusoidal(("place",)))
    whole = predict(model, problems, layout)
    for size in (1, 2, 5):
        plan = model.plan(layout, 3, size)
        assert (plan.ahead, plan.gathers) == (size, False)
        state = model.decoder_state(problems.source, plan)
        pieces = [model.advance(piece, state) for piece in prefix_of(problems.target).split(size, dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), whole)
        with pytest.raises(ValueError, match="the layout has 5 target tokens"):
            model.step(problems.target[:, -1], state)


def test_there_is_no_attention_to_act_in() -> None:
    for position in (RoPE(), ALiBi(), Compose((Sinusoidal(), RoPE()))):
        message = f"mamba has no attention for {type(position).__name__} to act in: leave it out, or choose a method"
        with pytest.raises(UserError, match=message):
            language_model(position)
    assert not isinstance(language_model(), AttentionModel)
