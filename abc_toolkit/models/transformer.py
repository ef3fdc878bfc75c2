"""Models of attention, whole in one file: the encoder-decoder, the decoder-only model, and the plain stack.

Dimensions are `batch, query, model_dim` for streams; `T` tokens of target, `S` of source.
"""

import abc
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from abc_toolkit.errors import UserError
from abc_toolkit.layout import Layout, Positions, raw_layout
from abc_toolkit.models.attention import Attention, AttentionPath, Gather, Scope, dense_scope, linear
from abc_toolkit.models.base import (
    Architecture,
    BlockKind,
    DecoderState,
    DecodingModel,
    DecodingPlan,
    Maps,
    Model,
    answering,
)
from abc_toolkit.models.dropout import Dropout
from abc_toolkit.models.savings import TiedLinear
from abc_toolkit.positions import ModelPosition, ModelSizes, OpenKeys, PositionMethod, Sinusoidal, Site

Side = Literal["encoder", "decoder"]
_LLAMA_EPSILON = 1e-6  # of the normalisation, as in Llama


class FeedForward(nn.Sequential):
    """`W2 relu(W1 x + b1) + b2`, with dropout on the hidden layer."""

    def __init__(self, architecture: Architecture) -> None:
        dim, hidden, savings = architecture.model_dim, architecture.feedforward_dim, architecture.savings
        first = linear(dim, hidden, bias="thresholds" not in savings)
        bias = "biases" not in savings
        last = TiedLinear(first, bias) if "feedforward" in savings else linear(hidden, dim, bias=bias)
        super().__init__(first, nn.ReLU(), Dropout(architecture.dropout), last)

    @property
    def first(self) -> nn.Linear:
        """The linear layer before the rectifier."""
        return self[0]  # type: ignore[return-value]

    @property
    def last(self) -> nn.Linear | TiedLinear:
        """The linear layer after it."""
        return self[3]  # type: ignore[return-value]


class SwiGLU(nn.Module):
    """`W2 (silu(W1 x) * W3 x)` without biases, with dropout on the hidden layer; `W1` and `W3` are one parameter.

    Source: Shazeer 2020 (arXiv 2002.05202), as in Llama (arXiv 2302.13971).
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        dim, hidden = architecture.model_dim, architecture.feedforward_dim
        self.gate_up = linear(dim, hidden, parts=2, bias=False)
        self.dropout = Dropout(architecture.dropout)
        self.down = linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # Each on its own: halves of one product would be copied together again on the way back.
        gate, up = (functional.linear(x, weight) for weight in self.gate_up.weight.chunk(2))
        hidden = _Gated.apply(gate, up)
        assert isinstance(hidden, Tensor)
        return self.down(self.dropout(hidden))


class _Gated(torch.autograd.Function):
    """`silu(gate) * up`; its way back makes one tensor fewer than that of single operations."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:  # type: ignore[override]
        opened = functional.silu(gate)
        ctx.save_for_backward(gate, up, opened)
        return opened * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        gate, up, opened = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradient, gate).mul_(up), gradient * opened


class RMSNorm(nn.RMSNorm):
    """`w x / sqrt(mean(x^2) + eps)`: PyTorch's module, which on a processor takes twice as long in training."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.eps is not None
        # Under mixed precision the stream may be in half precision, and PyTorch's module warns of two types.
        x = x.to(torch.promote_types(x.dtype, self.weight.dtype))
        if x.device.type != "cpu" or self.weight.dtype not in (torch.float32, torch.float64):
            return super().forward(x)
        normed = _RMSNorm.apply(x, self.weight, self.eps)
        assert isinstance(normed, Tensor)
        return normed


class _RMSNorm(torch.autograd.Function):
    """`RMSNorm` of `[..., dim]`; its way back takes half as many passes as that of single operations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:  # type: ignore[override]
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = (size.square() / x.shape[-1] + eps).rsqrt()
        normed = x * inverse
        ctx.save_for_backward(normed, inverse, weight)
        return normed * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        # With n = x r and g the gradient of n: that of x is r (g - n mean(g n)).
        normed, inverse, weight = ctx.saved_tensors
        products = gradient * normed
        mean = (products @ weight)[..., None] / normed.shape[-1]
        of_x = (gradient * weight).addcmul_(normed, mean, value=-1).mul_(inverse)
        return of_x, products.reshape(-1, products.shape[-1]).sum(0), None


def normalisation(architecture: Architecture) -> nn.Module:
    """The normalisation of a model's streams: by mean and variance, or in Llama's blocks by the root mean square."""
    dim = architecture.model_dim
    if architecture.norm == "none":
        return nn.Identity()
    if architecture.block == "llama":
        return RMSNorm(dim, eps=_LLAMA_EPSILON)
    return nn.LayerNorm(dim, bias="biases" not in architecture.savings)


class Block(nn.Module):
    """One layer: self-attention, cross-attention where there is another stream to read, feed-forward.

    Args:
        architecture: Sizes.
        position: What the model knows of positions.
        side: `encoder` or `decoder`.
        layer: Counted from 0 at the input.
        cross: Whether it has cross-attention.
    """

    def __init__(
        self, architecture: Architecture, position: ModelPosition, side: Side, layer: int, cross: bool
    ) -> None:
        super().__init__()
        dim, heads = architecture.model_dim, architecture.num_heads
        self.side = side
        self.layer = layer
        self.cross = cross
        self.pre = architecture.norm != "post"
        llama, savings = architecture.block == "llama", architecture.savings

        def attention(site: Site) -> Attention:
            return Attention(
                dim,
                heads,
                architecture.dropout,
                position.at(site, layer),
                bias=not llama and "biases" not in savings,
                scored="scores" not in savings,
                shared="values" in savings,
            )

        self.self_attention = attention(side)
        self.self_norm = normalisation(architecture)
        if cross:
            self.cross_attention = attention("cross")
            self.cross_norm = normalisation(architecture)
        self.feedforward = SwiGLU(architecture) if llama else FeedForward(architecture)
        self.feedforward_norm = normalisation(architecture)
        self.dropout = Dropout(architecture.dropout)

    def add(self, x: Tensor, norm: nn.Module, update: Tensor) -> Tensor:
        """The residual connection: normalised afterwards in post-norm."""
        x = x + self.dropout(update)
        return x if self.pre else norm(x)

    def normed(self, x: Tensor, norm: nn.Module) -> Tensor:
        """What a block reads: normalised beforehand in pre-norm."""
        return norm(x) if self.pre else x

    def keys_values(self, x: Tensor) -> Tensor:
        """Keys and values that self-attention reads of a stream, `[batch, key, 2, head, dim]`."""
        return self.self_attention.keys_values(self.normed(x, self.self_norm))

    def forward(
        self,
        x: Tensor,
        positions: Positions,
        scope: Scope,
        memory: tuple[Tensor, Scope] | None = None,
        cache: "LayerCache | None" = None,
        whole: Tensor | None = None,
        maps: Maps | None = None,
    ) -> Tensor:
        """Runs the layer.

        Args:
            x: Stream, `[batch, query, model_dim]`.
            positions: Positions of its queries.
            scope: What they may read of the stream, of the cache or of `whole`.
            memory: Cross-attention's keys and values, and what queries may read of them.
            cache: Keys and values of the steps before; the new ones are added.
            whole: What `keys_values` returned for the whole stream, where `x` is a piece of it.
            maps: Receives the attention weights by site and layer.

        Returns:
            The stream after the layer, `[batch, query, model_dim]`.
        """
        h = self.normed(x, self.self_norm)
        keys_values = self.self_attention.keys_values(h) if whole is None else whole
        if cache is not None:
            keys_values = cache.append(keys_values)
        update, weights = self.self_attention(h, keys_values, positions, scope, maps is not None)
        if maps is not None and weights is not None:
            maps[self.side, self.layer] = weights
        x = self.add(x, self.self_norm, update)
        if memory is not None:
            h = self.normed(x, self.cross_norm)
            update, weights = self.cross_attention(h, memory[0], positions, memory[1], maps is not None)
            if maps is not None and weights is not None:
                maps["cross", self.layer] = weights
            x = self.add(x, self.cross_norm, update)
        update = self.feedforward(self.normed(x, self.feedforward_norm))
        return self.add(x, self.feedforward_norm, update)


class Stack(nn.ModuleList):
    """The layers of one side, first at the input.

    Args:
        architecture: Sizes.
        position: What the model knows of positions.
        side: An `encoder` looks both ways, a `decoder` at what is before alone.
        cross: Whether the layers have cross-attention.
    """

    def __init__(self, architecture: Architecture, position: ModelPosition, side: Side, cross: bool = False) -> None:
        layers = architecture.num_encoder_layers if side == "encoder" else architecture.num_decoder_layers
        super().__init__(Block(architecture, position, side, layer, cross) for layer in range(layers))
        self.side = side

    def __iter__(self) -> Iterator[Block]:
        return super().__iter__()  # type: ignore[return-value]

    def __getitem__(self, layer: int) -> Block:  # type: ignore[override]
        return super().__getitem__(layer)  # type: ignore[return-value]

    def forward(
        self,
        x: Tensor,
        q_positions: Positions,
        k_positions: Positions,
        memory: tuple[Tensor, Positions] | None = None,
        maps: Maps | None = None,
    ) -> Tensor:
        """Runs the layers on a whole stream.

        Args:
            x: The stream, `[batch, length, model_dim]`.
            q_positions: Positions of its tokens as queries.
            k_positions: Positions of its tokens as keys.
            memory: The stream that cross-attention reads, `[batch, S, model_dim]`, and its positions.
            maps: Receives the attention weights by site and layer.
        """
        dense = maps is not None
        for block in self:
            scope = block.self_attention.scope(q_positions, k_positions, causal=self.side == "decoder", dense=dense)
            read = None
            if memory is not None:
                read_scope = block.cross_attention.scope(q_positions, memory[1], dense=dense)
                read = (block.cross_attention.keys_values(memory[0]), read_scope)
            x = block(x, q_positions, scope, read, maps=maps)
        return x

    def in_pieces(self, x: Tensor, positions: Positions) -> Tensor:
        """What `forward` returns of an encoder, computed so that memory stays in proportion to the length."""
        for block in self:
            attention = block.self_attention
            scope, whole = attention.scope(positions, positions), block.keys_values(x)
            size = attention.queries_at_once(len(x), scope)
            pieces = [slice(start, start + size) for start in range(0, len(positions), size)]
            x = torch.cat([block(x[:, p], positions[p], scope[p], whole=whole) for p in pieces], dim=1)
        return x


def initialise_llama(module: nn.Module, architecture: Architecture) -> None:
    """Draws the weights of Llama's blocks anew, from normal distributions around 0.

    The standard deviation is `init_std` or, if that is not given, the root of one over the inputs; what a block adds to
    the stream is then divided by the root of twice the depth, so that the stream does not grow with it.

    Args:
        module: What holds the blocks. Position methods in them keep their own initial values.
        architecture: Sizes and `init_std`.
    """
    blocks = [part for part in module.modules() if isinstance(part, Block)]
    given = architecture.init_std
    for block in blocks:
        attentions = [part for part in (block.self_attention, getattr(block, "cross_attention", None)) if part]
        assert isinstance(block.feedforward, SwiGLU)
        inward = [block.feedforward.gate_up, *(layer for part in attentions for layer in (part.query, part.key_value))]
        outward = [block.feedforward.down, *(part.output for part in attentions)]
        for layer in (*inward, *outward):
            depth = (2 * len(blocks)) ** 0.5 if layer in outward else 1.0
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5 / depth if given is None else given)


class Transformer(nn.Module):
    """A plain stack of self-attention layers: maps a stream `[batch, length, model_dim]` to another.

    Args:
        model_dim: Width of the stream.
        num_layers: Depth.
        num_heads: Attention heads a layer; divides `model_dim`.
        feedforward_dim: Width of the hidden layer of each feed-forward block.
        causal: Whether tokens look only at those before them and at themselves (a decoder without a source) or at
            all (an encoder).
        norm: Layer normalisation before (`pre`) or after (`post`) each block.
        dropout: Probability of dropping an activation or an attention weight while training.
        position: Position method; sinusoids of the raw index if not given.
        block: `standard`, or `llama`: RMS normalisation, SwiGLU, no biases.

    Raises:
        UserError: If the sizes, or the position method and they, do not go together.
    """

    def __init__(
        self,
        model_dim: int = 256,
        num_layers: int = 4,
        num_heads: int = 8,
        feedforward_dim: int = 1024,
        *,
        causal: bool = True,
        norm: Literal["pre", "post"] = "pre",
        dropout: float = 0.0,
        position: PositionMethod | None = None,
        block: BlockKind = "standard",
    ) -> None:
        super().__init__()
        self.causal = causal
        # An architecture has a decoder in any case; without `causal` it is not built.
        layers = (0, num_layers) if causal else (num_layers, 1)
        sizes = Architecture(*layers, model_dim, num_heads, feedforward_dim, norm, dropout, block=block)
        method = Sinusoidal() if position is None else position
        self.positioning = method.build(ModelSizes(model_dim, num_heads, *layers))
        self.layers = Stack(sizes, self.positioning, "decoder" if causal else "encoder")
        self.norm = normalisation(sizes) if norm == "pre" else nn.Identity()
        if block == "llama":
            initialise_llama(self.layers, sizes)

    def forward(self, x: Tensor, positions: Positions | None = None, maps: Maps | None = None) -> Tensor:
        """Runs the stack.

        Args:
            x: The stream, `[batch, length, model_dim]`.
            positions: Positions of its tokens, on its device; their raw index alone if not given.
            maps: Receives the attention weights `[batch, head, query, key]` by site and layer, where given.

        Returns:
            The stream after the last layer, `[batch, length, model_dim]`.
        """
        if positions is None:
            positions = raw_layout(1, x.shape[1]).source.to(x.device)
        layout = self.positioning.prepare(Layout(positions, positions, positions))
        queries, keys = (layout.target, layout.prefix) if self.causal else (layout.source, layout.source)
        return self.norm(self.layers(self.positioning.embed(x, queries), queries, keys, maps=maps))


@dataclass(frozen=True, eq=False)
class Storage:
    """Where the cache of one decoder layer keeps the keys and values that a token to come may read.

    Attributes:
        num_rows: Rows that it needs.
        rows: Row of each key, `[key]`; keys that nobody will read share one. Each has its own, if not given.
        gather: The open keys as they are stored, if they are to be gathered.
    """

    num_rows: int
    rows: Tensor | None = None
    gather: Gather | None = None

    @classmethod
    def for_table(cls, open_keys: OpenKeys, num_keys: int, ahead: int) -> "Storage":
        """The storage with the fewest rows that a table of open keys allows.

        A row is free for key `w` once nobody from query `w - ahead + 1` on reads the key in it. Rows are taken in the
        order in which they become free: of `m` rows, the i-th key takes that of the (i - m)-th key to be given up.

        Args:
            open_keys: The table for all queries.
            num_keys: Number of keys.
            ahead: Most tokens that are decoded at once.
        """
        is_open = (open_keys.bias > -torch.inf).nonzero(as_tuple=True)
        queries = is_open[1]
        last_query = queries.new_full((num_keys,), -1)
        last_query = last_query.scatter_reduce(0, open_keys.index[is_open], queries, "amax")
        kept = (last_query >= 0).nonzero()[:, 0]
        given_up, order = (last_query[kept] + ahead).sort(stable=True)
        number = torch.arange(len(kept), device=kept.device)
        in_use = number + 1 - torch.searchsorted(given_up, kept, right=True)
        most = int(in_use.max()) if len(kept) else 0
        row = torch.where(number < most, number, order[(number - most).clamp(min=0)])
        while not torch.equal(row, row[row]):  # each leads to an earlier key, at last to one of the first
            row = row[row]
        rows = queries.new_full((num_keys,), most)
        rows[kept] = row
        return cls(most + 1, rows, Gather.from_table(open_keys, rows))


class LayerCache:
    """Keys and values of the tokens decoded so far, in one layer.

    Args:
        storage: Where they are kept.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.held = 0
        self._kept: Tensor | None = None

    def append(self, keys_values: Tensor) -> Tensor:
        """Keeps the keys and values of new tokens, `[batch, new, 2, head, dim]`.

        Returns:
            Those that are kept, `[batch, row, 2, head, dim]`: of all tokens so far in their order, or as `storage`
            says.
        """
        start, self.held = self.held, self.held + keys_values.shape[1]
        if self._kept is None:
            self._kept = keys_values.new_zeros(len(keys_values), self.storage.num_rows, *keys_values.shape[2:])
        if self.storage.rows is None:
            self._kept[:, start : self.held] = keys_values
            return self._kept[:, : self.held]
        return self._kept.index_copy_(1, self.storage.rows[start : self.held], keys_values)

    def choose(self, rows: Tensor) -> None:
        """Keeps some rows of the batch, `[row]`, each of which may be named several times."""
        if self._kept is not None:
            self._kept = self._kept[rows]

    def copies(self, count: int) -> "LayerCache":
        """Another cache, in which each row of the batch stands `count` times, one after the other."""
        found = LayerCache(self.storage)
        found.held = self.held
        found._kept = None if self._kept is None else self._kept.repeat_interleave(count, dim=0)
        return found


@dataclass(frozen=True, eq=False)
class TransformerPlan(DecodingPlan):
    """How a model of attention decodes problems of one layout piece by piece.

    Attributes:
        read: The layout as the model reads it.
        at_once: Most tokens that dense attention has memory for.
        own: Where the cache of each decoder layer keeps what.
        cross: What all target tokens may read of the source, in each decoder layer; `None` where it reads none.
    """

    read: Layout
    at_once: int
    own: tuple[Storage, ...]
    cross: tuple[Scope | None, ...]

    @property
    def gathers(self) -> bool:
        return all(part is None or part.gather is not None for part in (*self.own, *self.cross))


@dataclass
class TransformerState(DecoderState):
    """The state of decoding a batch of problems.

    Attributes:
        plan: How it is decoded.
        memory: Cross-attention's keys and values, a layer each; `None` where there are none.
        caches: Self-attention's, a layer each.
        before: Tokens in the caches that are not the target's.
    """

    plan: TransformerPlan
    memory: Sequence[Tensor | None]
    caches: Sequence[LayerCache]
    before: int = 0

    @property
    def step(self) -> int:
        """Tokens decoded so far."""
        return self.caches[0].held - self.before

    def go_back(self, step: int) -> None:
        for cache in self.caches:
            cache.held = self.before + step

    def choose(self, rows: Tensor) -> None:
        self.memory = [None if memory is None else memory[rows] for memory in self.memory]
        for cache in self.caches:
            cache.choose(rows)

    def copies(self, count: int) -> "TransformerState":
        memory = [None if own is None else _repeated(own, count) for own in self.memory]
        return TransformerState(self.plan, memory, [cache.copies(count) for cache in self.caches], self.before)


def _repeated(rows: Tensor, count: int) -> Tensor:
    """Each row several times, one after the other; a single one is not copied in memory."""
    return rows.expand(count, *rows.shape[1:]) if len(rows) == 1 else rows.repeat_interleave(count, dim=0)


class AttentionModel(Model):
    """A model of attention."""

    def initialise(self) -> None:
        """The initial weights of Llama's blocks, and of what stands before and after them.

        If no `init_std` is given, outputs are small to begin with: a tenth of what the width makes them.
        """
        if self.architecture.block != "llama":
            return
        initialise_llama(self, self.architecture)
        given = self.architecture.init_std
        if isinstance(self.embedding, nn.Linear):
            std = self.embedding.in_features**-0.5 if given is None else given
            nn.init.normal_(self.embedding.weight, std=std)
        elif given is not None:
            nn.init.normal_(self.embedding.get_parameter("weight"), std=given)
        assert isinstance(self.output, nn.Linear)  # nothing is saved in Llama's blocks
        nn.init.normal_(self.output.weight, std=0.1 * self.output.in_features**-0.5 if given is None else given)

    @property
    def attentions(self) -> list[Attention]:
        """Every attention of the model."""
        return [module for module in self.modules() if isinstance(module, Attention)]

    @property
    def numbers_a_pair(self) -> int:
        return super().numbers_a_pair + max((part.position.numbers_a_pair for part in self.attentions), default=0)

    @property
    def path(self) -> AttentionPath:
        """The path of every attention."""
        return self.attentions[0].path

    def attend(self, path: AttentionPath) -> None:
        """Chooses the path of every attention.

        Raises:
            UserError: If it is `gathered` and there is an attention that cannot gather its keys; with the reason.
        """
        attentions = self.attentions
        reasons = (attention.position.why_not_gathered() for attention in attentions)
        reason = next(filter(None, reasons), None)
        if path == "gathered" and reason is not None:
            raise UserError(f"this model's attention cannot be gathered: {reason}")
        for attention in attentions:
            attention.path = path


class TransformerModel(AttentionModel, DecodingModel):
    """What models with a causal stack share: over the target or, in front of it, the source as well."""

    decoder: Stack
    decoder_norm: nn.Module

    @abc.abstractmethod
    def read(self, layout: Layout) -> Layout:
        """A layout as the model reads it: `target` and `prefix` are the queries and keys of its decoder."""

    @property
    def encoder_blocks(self) -> list[Block]:
        """The layers of its encoder; none, if it has no encoder."""
        return []

    def plan(self, layout: Layout, batch: int = 1, ahead: int = 1) -> TransformerPlan:
        read = self.positioning.prepare(self.read(layout))
        target, prefix, source = read.target, read.prefix, read.source
        own = [block.self_attention.open_keys(target, prefix) for block in self.decoder]
        cross = [block.cross_attention.scope(target, source) if block.cross else None for block in self.decoder]
        own_scopes = [Scope(prefix, gather=None if table is None else Gather.from_table(table)) for table in own]
        scopes = [scope for scope in (*cross, *own_scopes) if scope is not None]
        at_once = min(self.decoder[0].self_attention.queries_at_once(batch, scope) for scope in scopes)
        ahead = min(ahead, at_once)
        storage = (
            Storage(len(prefix)) if open_keys is None else Storage.for_table(open_keys, len(prefix), ahead)
            for open_keys in own
        )
        return TransformerPlan(layout, ahead, read, at_once, tuple(storage), tuple(cross))

    def num_slots(self, layout: Layout) -> list[int]:
        """Slots a query, in all heads, of each decoder attention were its keys gathered; 0 where they cannot be."""
        read, numbers = self.read(layout), []
        for block in self.decoder:
            sites = [(block.self_attention, read.prefix)]
            sites += [(block.cross_attention, read.source)] if block.cross else []
            for attention, keys in sites:
                open_keys = attention.position.open_keys(read.target, keys, math.inf)
                can = open_keys is not None and attention.path != "dense" and attention.position.pointwise
                numbers.append(open_keys.index.shape[0] * open_keys.index.shape[2] if open_keys and can else 0)
        return numbers

    def advance(self, tokens: Tensor, state: DecoderState) -> Tensor:
        assert isinstance(state, TransformerState)
        state.plan.check_room(state.step + tokens.shape[1])
        return self.read_out(self.decoder_norm(self._advance(tokens, state)))

    def _advance(self, tokens: Tensor, state: TransformerState) -> Tensor:
        """The decoder's stream `[batch, new, model_dim]` at new tokens `[batch, new]`, which the caches keep."""
        read, held = state.plan.read, state.caches[0].held
        piece = slice(held, held + tokens.shape[1])
        positions = read.target[piece]
        x = self.embed(tokens, positions)
        for block, cross, memory, cache in zip(self.decoder, state.plan.cross, state.memory, state.caches, strict=True):
            if cache.storage.gather is None:
                own = dense_scope(positions, read.prefix[: piece.stop], causal=tokens.shape[1] > 1)
            else:
                own = Scope(read.prefix, gather=cache.storage.gather[piece])
            seen = None if memory is None or cross is None else (memory, cross[piece])
            x = block(x, positions, own, seen, cache)
        return x


class EncoderDecoder(TransformerModel):
    """An encoder over the source, and a decoder over the target that reads it through cross-attention."""

    def add_layers(self) -> None:
        if not self.interface.decoded:
            raise UserError(
                "--model.backbone encoder-decoder needs a target to decode, which the task has not: "
                "choose decoder-only, encoder-only or mamba"
            )
        sizes = self.architecture
        self.encoder = Stack(sizes, self.positioning, "encoder")
        self.decoder = Stack(sizes, self.positioning, "decoder", cross=True)
        final_norm = sizes.norm == "pre"
        self.encoder_norm = normalisation(sizes) if final_norm and self.encoder else nn.Identity()
        self.decoder_norm = normalisation(sizes) if final_norm else nn.Identity()

    def read(self, layout: Layout) -> Layout:
        return layout

    @property
    def encoder_blocks(self) -> list[Block]:
        return list(self.encoder)

    def encode(self, source: Tensor, positions: Positions, maps: Maps | None = None) -> Tensor:
        """The source as cross-attention reads it, `[batch, S, model_dim]`, of token ids `[batch, S]`."""
        return self.encoder_norm(self.encoder(self.embed(source, positions), positions, positions, maps=maps))

    def encode_in_pieces(self, source: Tensor, positions: Positions) -> Tensor:
        """What `encode` returns, computed so that memory stays in proportion to the length."""
        return self.encoder_norm(self.encoder.in_pieces(self.embed(source, positions), positions))

    def forward(self, inputs: Tensor, prefix: Tensor | None, layout: Layout, maps: Maps | None = None) -> Tensor:
        assert prefix is not None
        layout = self.positioning.prepare(layout)
        memory = (self.encode(inputs, layout.source, maps), layout.source)
        x = self.embed(prefix, layout.target)
        x = self.decoder(x, layout.target, layout.prefix, memory, maps)
        return self.read_out(self.decoder_norm(x))

    def decoder_state(self, source: Tensor, plan: DecodingPlan) -> TransformerState:
        assert isinstance(plan, TransformerPlan)
        encoded = self.encode_in_pieces(source, plan.read.source)
        memory = [block.cross_attention.keys_values(encoded) for block in self.decoder]
        return TransformerState(plan, memory, [LayerCache(storage) for storage in plan.own])


class DecoderOnly(TransformerModel):
    """A causal language model of source and target as one string; only the target's tokens are predicted.

    Without a target there is an output at every input, computed from the inputs up to it.
    """

    def add_layers(self) -> None:
        sizes = self.architecture
        self.decoder = Stack(sizes, self.positioning, "decoder")
        self.decoder_norm = normalisation(sizes) if sizes.norm == "pre" else nn.Identity()

    def read(self, layout: Layout) -> Layout:
        return layout.string

    def forward(self, inputs: Tensor, prefix: Tensor | None, layout: Layout, maps: Maps | None = None) -> Tensor:
        string = self.positioning.prepare(layout.string)
        x = self.embed(inputs if prefix is None else torch.cat([inputs, prefix], dim=1), string.target)
        x = self.decoder(x, string.target, string.prefix, maps=maps)
        return self.read_out(self.decoder_norm(answering(x, inputs.shape[1], self.interface)))

    def decoder_state(self, source: Tensor, plan: DecodingPlan) -> TransformerState:
        assert isinstance(plan, TransformerPlan)
        caches = [LayerCache(storage) for storage in plan.own]
        state = TransformerState(plan, [None] * len(caches), caches, before=source.shape[1])
        # A cache that gives rows up holds what a piece of `ahead` tokens needs, no more.
        size = plan.ahead if any(cache.storage.gather is not None for cache in caches) else plan.at_once
        for start in range(0, source.shape[1], size):
            self._advance(source[:, start : start + size], state)
        return state


class EncoderOnly(AttentionModel):
    """A stack that looks both ways: outputs at every input or, pooled, one of a weighted mean of the stream.

    The weights of the mean are the softmax over tokens of `gate . x`, with a learned vector `gate` that starts at zero,
    so that the weights start equal. Source: Kogkalidis et al. 2024 (arXiv 2312.16045), for images.
    """

    def add_layers(self) -> None:
        if self.interface.decoded:
            raise UserError(
                "--model.backbone encoder-only decodes no target, which the task has: choose encoder-decoder, "
                "decoder-only or mamba"
            )
        self.encoder = Stack(self.architecture, self.positioning, "encoder")
        pre = self.architecture.norm == "pre"
        self.encoder_norm = normalisation(self.architecture) if pre else nn.Identity()
        if self.interface.pooled:
            # A parameter, not a linear layer: it is a vector, and Muon is for matrices.
            self.gate = nn.Parameter(torch.zeros(self.architecture.model_dim))

    def forward(self, inputs: Tensor, prefix: Tensor | None, layout: Layout, maps: Maps | None = None) -> Tensor:
        positions = self.positioning.prepare(layout).source
        x = self.encoder_norm(self.encoder(self.embed(inputs, positions), positions, positions, maps=maps))
        return self.read_out(self.pool(x) if self.interface.pooled else x)

    def pool(self, x: Tensor) -> Tensor:
        """The weighted mean `[batch, 1, model_dim]` of a stream `[batch, length, model_dim]`."""
        weights = (x @ self.gate).softmax(dim=1)
        return weights[:, None] @ x
