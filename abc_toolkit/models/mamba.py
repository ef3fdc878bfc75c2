"""The attention-free baseline: a stack of selective state spaces, and a language model of it.

Streams are `[length, batch, dim]` within, so that the recurrence reads each token's numbers in one run; `inner` is the
width of a mixer, `expansion * model_dim`.
"""

import math
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from abc_toolkit.errors import UserError, check_numbers
from abc_toolkit.layout import Layout
from abc_toolkit.models.base import DecoderState, DecodingModel, DecodingPlan, Maps, answering
from abc_toolkit.models.dropout import Dropout

_CELLS = 2**19  # hidden numbers of a batch that a scan holds at once: with many more it leaves a processor's cache
_TOKENS = 2**15  # of a batch that go through the stack at once, where a string is read before decoding
_DT_RANGE = 0.001, 0.1  # of the step sizes to start with


@dataclass
class LayerState:
    """The state of one layer.

    Attributes:
        recent: The last inputs of its convolution, `[conv_dim - 1, batch, inner]`; zeros before the first token.
        hidden: What its recurrence holds, `[batch, state_dim, inner]`; in single precision at least.
    """

    recent: Tensor
    hidden: Tensor


@dataclass
class MambaState:
    """The state of a stack for a batch of strings. Its size does not depend on their length.

    Attributes:
        layers: Where each layer stands.
        step: Tokens seen so far.
    """

    layers: list[LayerState]
    step: int = 0


class SelectiveScan(torch.autograd.Function):
    """`h_t = exp(dt_t a) h_(t-1) + dt_t b_t u_t` and `y_t = c_t h_t`, from a given `h`, with all that came of it last.

    Of the hidden states, only those at the start of each piece of the string are kept, and the others computed once
    more on the way back, as by Gu & Dao 2023 (section 3.3.2). Without that, memory would grow with `length * batch *
    state * inner`; and as pieces stay in a processor's cache, it takes less time too.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the recurrence.

        Args:
            ctx: Keeps what the way back needs.
            u: Inputs, `[length, batch, inner]`.
            dt: Step sizes, the same.
            a: Rates of decay, `[state, inner]`, below 0.
            b: What the state takes of an input, `[length, batch, state]`.
            c: What the output takes of the state, the same.
            h: The state to start from, `[batch, state, inner]`.

        Returns:
            The outputs, `[length, batch, inner]`, and the state after the last token.
        """
        ctx.size = max(1, _CELLS // max(1, h.numel()))
        outputs, starts = [], []
        for u_, dt_, b_, c_ in _pieces(ctx.size, u, dt, b, c):
            starts.append(h)
            _, states = _states(u_, dt_, a, b_, h)
            outputs.append((c_[:, :, None] @ states)[:, :, 0])
            h = states[-1].clone()
        ctx.save_for_backward(u, dt, a, b, c, *starts)
        return torch.cat(outputs), h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        grad_y, grad_h = grads
        u, dt, a, b, c, *starts = ctx.saved_tensors
        grad_a = torch.zeros_like(a)
        found = []
        # Outside forward, autocast would round the products.
        with torch.autocast(u.device.type, enabled=False):
            for (u_, dt_, b_, c_, g), h in reversed(
                [*zip(_pieces(ctx.size, u, dt, b, c, grad_y), starts, strict=True)]
            ):
                decays, states = _states(u_, dt_, a, b_, h)
                grad_states = c_[..., None] * g[:, :, None]
                grad_states[-1] += grad_h
                for t in range(len(g) - 1, 0, -1):
                    grad_states[t - 1].addcmul_(decays[t], grad_states[t])
                grad_c = (states @ g[..., None])[..., 0]
                grad_b = (grad_states @ (dt_ * u_)[..., None])[..., 0]
                grad_input = (b_[:, :, None] @ grad_states)[:, :, 0]  # of `dt u`
                grad_before = grad_states.mul_(decays)  # of the state before each token
                grad_h = grad_before[0]
                grad_exponent = grad_before * torch.cat([h[None], states[:-1]])  # of `dt a`
                grad_a += (grad_exponent * dt_[:, :, None]).sum((0, 1))
                grad_dt = (grad_exponent * a).sum(2).addcmul_(grad_input, u_)
                found.append((grad_input * dt_, grad_dt, grad_b, grad_c))
        grad_u, grad_dt, grad_b, grad_c = (torch.cat(pieces[::-1]) for pieces in zip(*found, strict=True))
        return grad_u, grad_dt, grad_a, grad_b, grad_c, grad_h


def _pieces(size: int, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Tensors of one length, cut at every so many tokens."""
    return [*zip(*(tensor.split(size) for tensor in tensors), strict=True)]


def _states(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Decays and hidden states of every token of a piece, `[length, batch, state, inner]`; see `SelectiveScan`."""
    decays = (dt[:, :, None] * a).exp_()
    states = (dt * u)[:, :, None] * b[..., None]
    # One operation a token. Scans in log(length) steps do several times the work and, on a processor, take longer;
    # quotients of products of decays would save that work and underflow.
    for decay, state in zip(decays, states, strict=True):
        h = state.addcmul_(decay, h)
    return decays, states


class Mixer(nn.Module):
    """What mixes tokens in a block: a short convolution and a selective scan, gated.

    With `u` and `z` of `W_in x`, and `u` then `silu(conv(u))`: `out = W_out (y silu(z))`, `y = scan(u) + D u`. Of each
    `u` come its step size `dt = softplus(W_dt dt_low + bias)`, `b` and `c`, with `dt_low, b, c = W_x u`.

    Args:
        model_dim: Width of the stream.
        state_dim: Hidden numbers for each inner channel.
        conv_dim: Tokens that the convolution reads: each and those before it.
        inner: Width of `u` and `z`.
    """

    def __init__(self, model_dim: int, state_dim: int, conv_dim: int, inner: int) -> None:
        super().__init__()
        rank = math.ceil(model_dim / 16)
        self.parts = rank, state_dim, state_dim
        self.in_proj = nn.Linear(model_dim, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, conv_dim, groups=inner)
        self.x_proj = nn.Linear(inner, sum(self.parts), bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, state_dim + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, model_dim, bias=False)
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        with torch.no_grad():
            low, high = map(math.log, _DT_RANGE)
            dt = self.dt_proj.bias.uniform_(low, high).exp_()
            dt.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus of the bias is the step size

    def forward(self, x: Tensor, state: LayerState) -> Tensor:
        """Mixes tokens.

        Args:
            x: `[length, batch, model_dim]`.
            state: Where the layer stands; it is moved on.

        Returns:
            `[length, batch, model_dim]`.
        """
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u = torch.cat([state.recent, u])
        state.recent = u[len(x) :].clone()  # a view would keep the whole piece
        u = functional.silu(self._convolved(u, len(x)))
        dt, b, c = self.x_proj(u).split(self.parts, dim=-1)
        precise = state.hidden.dtype
        # The bias apart: half precision would round the step sizes, which add up over the string.
        dt = functional.softplus(functional.linear(dt, self.dt_proj.weight).to(precise) + self.dt_proj.bias)
        a = -self.A_log.to(precise).exp().T.contiguous()
        with torch.autocast(x.device.type, enabled=False):
            u, b, c = (part.to(precise) for part in (u, b, c))
            y, state.hidden = SelectiveScan.apply(u, dt, a, b, c, state.hidden)  # type: ignore[misc]
        y = torch.addcmul(y, self.D, u).to(z.dtype)
        return self.out_proj(y * functional.silu(z))

    def _convolved(self, u: Tensor, length: int) -> Tensor:
        """The convolution at the last tokens; several times faster on a processor than the module's own."""
        out = self.conv1d.bias
        assert out is not None
        for i, weight in enumerate(self.conv1d.weight[:, 0].unbind(1)):
            out = torch.addcmul(out, u[i : i + length], weight)
        return out


class Block(nn.Module):
    """`x + dropout(mixer(norm(x)))`.

    Args:
        mixer: What mixes tokens.
        model_dim: Width of the stream.
        dropout: Probability of dropping a number of what is added while training.
    """

    def __init__(self, mixer: Mixer, model_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(model_dim, eps=1e-5)
        self.mixer = mixer
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, state: LayerState) -> Tensor:
        return x + self.dropout(self.mixer(self.norm(x), state))


class Mamba(nn.Module):
    """A stack of Mamba blocks: maps `[batch, length, model_dim]` to the same.

    Each inner channel has a state of `state_dim` numbers, `h_t = exp(dt_t A) h_(t-1) + dt_t B_t u_t`, that is read as
    `y_t = C_t h_t + D u_t`; the step size `dt_t`, `B_t` and `C_t` are made of the token (see `Mixer`), so that a token
    chooses what is kept and for how long. Nothing else mixes tokens, but for a convolution over the last `conv_dim`.
    It is causal, knows of order without any position method, and at any length costs the same for each token.

    Source: Gu & Dao 2023 (arXiv 2312.00752), with what their released code adds: blocks with an RMS norm before and
    one after the last, `dt B` for the zero-order hold of equation 4, and its initial values: `A = -1 .. -state_dim`,
    `D = 1`, step sizes log-uniform in 0.001 .. 0.1, and outward projections less by `sqrt(num_layers)`. Parameters bear
    the names that they have there. Dropout is not in the source.

    Args:
        model_dim: Width of the stream.
        num_layers: Blocks.
        state_dim: Hidden numbers for each inner channel.
        conv_dim: Tokens that a convolution reads: each and those before it.
        expansion: Inner channels for each of the stream's.
        dropout: Probability of dropping a number of what a block adds while training.
    """

    def __init__(
        self,
        model_dim: int = 256,
        num_layers: int = 4,
        *,
        state_dim: int = 16,
        conv_dim: int = 4,
        expansion: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.model_dim = model_dim
        self.num_layers = num_layers
        self.state_dim = state_dim
        self.conv_dim = conv_dim
        self.expansion = expansion
        self.dropout = dropout
        check_numbers(self, "model", ("model_dim", "num_layers", "state_dim", "conv_dim", "expansion"), at_least=1)
        check_numbers(self, "model", ("dropout",), below=1)
        self.layers = nn.ModuleList(
            Block(Mixer(model_dim, state_dim, conv_dim, expansion * model_dim), model_dim, dropout)
            for _ in range(num_layers)
        )
        self.norm_f = nn.RMSNorm(model_dim, eps=1e-5)
        for name, parameter in self.named_parameters():
            if name.endswith("out_proj.weight"):  # as many updates add up in the stream as there are layers
                parameter.data /= math.sqrt(num_layers)

    def start(self, batch: int) -> MambaState:
        """Where the stack stands before the first token of so many strings."""
        like = self.norm_f.weight
        inner = self.expansion * self.model_dim
        precise = torch.promote_types(like.dtype, torch.float32)
        layers = [
            LayerState(
                like.new_zeros(self.conv_dim - 1, batch, inner),
                like.new_zeros(batch, self.state_dim, inner, dtype=precise),
            )
            for _ in self.layers
        ]
        return MambaState(layers)

    def forward(self, x: Tensor, state: MambaState | None = None) -> Tensor:
        """Runs the stack.

        Args:
            x: Stream, `[batch, length, model_dim]`.
            state: Where the stack stands: `x` goes on from there, and the state is moved on. A new one if not given.

        Returns:
            The stream after the stack, `[batch, length, model_dim]`.
        """
        state = self.start(len(x)) if state is None else state
        x = x.transpose(0, 1).contiguous()
        for layer, layer_state in zip(self.layers, state.layers, strict=True):
            x = layer(x, layer_state)
        state.step += len(x)
        return self.norm_f(x).transpose(0, 1)


@dataclass(frozen=True, eq=False)
class MambaPlan(DecodingPlan):
    """How a model of Mamba blocks decodes problems of one layout piece by piece.

    Attributes:
        read: The layout as the model reads it.
    """

    read: Layout


@dataclass
class MambaDecoding(DecoderState):
    """The state of decoding a batch of problems.

    Attributes:
        plan: How it is decoded.
        stack: Where the stack stands in source and target.
    """

    plan: MambaPlan
    stack: MambaState

    @property
    def step(self) -> int:
        """Tokens decoded so far."""
        return self.stack.step - len(self.plan.layout.source)

    def go_back(self, step: int) -> None:
        assert step == self.step  # only where keys are gathered does decoding guess, so that there is more to forget

    def choose(self, rows: Tensor) -> None:
        self.stack.layers = [LayerState(layer.recent[:, rows], layer.hidden[rows]) for layer in self.stack.layers]

    def copies(self, count: int) -> "MambaDecoding":
        found = MambaDecoding(self.plan, copy(self.stack))
        found.choose(torch.arange(self.stack.layers[0].hidden.shape[0]).repeat_interleave(count))
        return found


class MambaLanguageModel(DecodingModel):
    """A causal language model of source and target as one string, of Mamba blocks; only the target is predicted.

    Position methods that add to embeddings go with it; there is no attention for others to act in.
    """

    def add_layers(self) -> None:
        sizes = self.architecture
        hooks = [self.positioning.at("decoder", layer) for layer in range(sizes.num_decoder_layers)]
        if any(not hook.does_nothing for hook in hooks):
            raise UserError(
                f"--model.backbone mamba has no attention for {type(self.position).__name__} to act in: leave it out, "
                "or choose a method that adds to embeddings, such as Sinusoidal"
            )
        self.decoder = Mamba(sizes.model_dim, sizes.num_decoder_layers, dropout=sizes.dropout)

    def forward(self, inputs: Tensor, prefix: Tensor | None, layout: Layout, maps: Maps | None = None) -> Tensor:
        string = self.positioning.prepare(layout.string)
        x = self.embed(inputs if prefix is None else torch.cat([inputs, prefix], dim=1), string.target)
        return self.read_out(answering(self.decoder(x), inputs.shape[1], self.interface))

    def plan(self, layout: Layout, batch: int = 1, ahead: int = 1) -> MambaPlan:
        return MambaPlan(layout, ahead, self.positioning.prepare(layout.string))

    def decoder_state(self, source: Tensor, plan: DecodingPlan) -> MambaDecoding:
        assert isinstance(plan, MambaPlan)
        state = MambaDecoding(plan, self.decoder.start(len(source)))
        for piece in source.split(max(1, _TOKENS // len(source)), dim=1):
            self._advance(piece, state)
        return state

    def advance(self, tokens: Tensor, state: DecoderState) -> Tensor:
        assert isinstance(state, MambaDecoding)
        state.plan.check_room(state.step + tokens.shape[1])
        return self.read_out(self._advance(tokens, state))

    def _advance(self, tokens: Tensor, state: MambaDecoding) -> Tensor:
        """The stream `[batch, new, model_dim]` at new tokens `[batch, new]`."""
        positions = state.plan.read.target[state.stack.step : state.stack.step + tokens.shape[1]]
        return self.decoder(self.embed(tokens, positions), state.stack)
