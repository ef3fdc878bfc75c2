"""The encoder-decoder, whole in one file.

Dimensions are `batch, query, model_dim` for streams; `T` tokens of target, `S` of source.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from abc_toolkit.attention import Attention, AttentionPath, Gather, Scope, dense_scope, linear
from abc_toolkit.errors import UserError, check_numbers
from abc_toolkit.layout import Layout, Positions
from abc_toolkit.positions import ModelPosition, ModelSizes, OpenKeys, PositionMethod, Sinusoidal
from abc_toolkit.tasks import Problems
from abc_toolkit.vocabulary import BOS

Maps = dict[tuple[str, int], Tensor]


@dataclass(frozen=True)
class Architecture:
    """Sizes of an encoder-decoder and how it knows of positions.

    Attributes:
        num_encoder_layers: Encoder depth; with 0, cross-attention reads the source's embeddings.
        num_decoder_layers: Decoder depth.
        model_dim: Width of the streams.
        num_heads: Attention heads a layer; divides `model_dim`.
        feedforward_dim: Width of the hidden layer of each feed-forward block.
        norm: Layer normalisation before (`pre`) or after (`post`) each block.
        dropout: Probability of dropping an activation or an attention weight while training.
        position: Position method; sinusoids of place and segment with base 100 if not given.
    """

    num_encoder_layers: int = 0
    num_decoder_layers: int = 1
    model_dim: int = 64
    num_heads: int = 4
    feedforward_dim: int = 256
    norm: Literal["pre", "post"] = "pre"
    dropout: float = 0.0
    position: PositionMethod | None = None

    @property
    def positions(self) -> PositionMethod:
        """The position method, given or not."""
        # No default instance: on the command line its settings would be passed on to another method's class.
        return Sinusoidal(("place", "segment"), base=100.0) if self.position is None else self.position

    def __post_init__(self) -> None:
        sizes = ("num_decoder_layers", "model_dim", "num_heads", "feedforward_dim")
        check_numbers(self, "model", sizes, at_least=1)
        check_numbers(self, "model", ("num_encoder_layers",))
        check_numbers(self, "model", ("dropout",), below=1)
        if self.model_dim % self.num_heads:
            raise UserError(f"--model.num_heads {self.num_heads} does not divide --model.model_dim {self.model_dim}")


class FeedForward(nn.Sequential):
    """`W2 relu(W1 x)`, with dropout on the hidden layer."""

    def __init__(self, architecture: Architecture) -> None:
        dim, hidden = architecture.model_dim, architecture.feedforward_dim
        super().__init__(linear(dim, hidden), nn.ReLU(), nn.Dropout(architecture.dropout), linear(hidden, dim))


class Block(nn.Module):
    """One layer of either side: self-attention, cross-attention in the decoder, feed-forward.

    Args:
        architecture: Sizes.
        position: What the model knows of positions.
        side: `encoder` or `decoder`.
        layer: Counted from 0 at the input.
    """

    def __init__(
        self, architecture: Architecture, position: ModelPosition, side: Literal["encoder", "decoder"], layer: int
    ) -> None:
        super().__init__()
        dim, heads = architecture.model_dim, architecture.num_heads
        self.side = side
        self.layer = layer
        self.pre = architecture.norm == "pre"

        def attention(site: Literal["encoder", "decoder", "cross"]) -> Attention:
            return Attention(dim, heads, architecture.dropout, position.at(site, layer))

        self.self_attention = attention(side)
        self.self_norm = nn.LayerNorm(dim)
        if side == "decoder":
            self.cross_attention = attention("cross")
            self.cross_norm = nn.LayerNorm(dim)
        self.feedforward = FeedForward(architecture)
        self.feedforward_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(architecture.dropout)

    def add(self, x: Tensor, norm: nn.LayerNorm, update: Tensor) -> Tensor:
        """The residual connection: normalised afterwards in post-norm."""
        x = x + self.dropout(update)
        return x if self.pre else norm(x)

    def normed(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
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
        if self.side == "decoder":
            assert memory is not None
            h = self.normed(x, self.cross_norm)
            update, weights = self.cross_attention(h, memory[0], positions, memory[1], maps is not None)
            if maps is not None and weights is not None:
                maps["cross", self.layer] = weights
            x = self.add(x, self.cross_norm, update)
        update = self.feedforward(self.normed(x, self.feedforward_norm))
        return self.add(x, self.feedforward_norm, update)


class Stack(nn.ModuleList):
    """The layers of one side, first at the input."""

    def __iter__(self) -> Iterator[Block]:
        return super().__iter__()  # type: ignore[return-value]

    def __getitem__(self, layer: int) -> Block:  # type: ignore[override]
        return super().__getitem__(layer)  # type: ignore[return-value]


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
    def of(cls, open_keys: OpenKeys, num_keys: int, ahead: int) -> "Storage":
        """As few rows as a table of open keys allows.

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
        return cls(most + 1, rows, Gather.of(open_keys, rows))


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


@dataclass(frozen=True, eq=False)
class DecodingPlan:
    """How a model decodes problems of one layout piece by piece.

    Attributes:
        layout: The layout.
        ahead: Most tokens of a piece.
        own: Where the cache of each decoder layer keeps what.
        cross: What all target tokens may read of the source, in each decoder layer.
    """

    layout: Layout
    ahead: int
    own: tuple[Storage, ...]
    cross: tuple[Scope, ...]

    @property
    def gathers(self) -> bool:
        """Whether every attention gathers its keys."""
        return all(part.gather is not None for part in (*self.own, *self.cross))


@dataclass
class DecoderState:
    """Where decoding a batch of problems stands.

    Attributes:
        plan: How it is decoded.
        memory: Cross-attention's keys and values, a layer each.
        caches: Self-attention's, a layer each.
    """

    plan: DecodingPlan
    memory: list[Tensor]
    caches: list[LayerCache]

    @property
    def step(self) -> int:
        """Tokens decoded so far."""
        return self.caches[0].held

    def go_back(self, step: int) -> None:
        """Forgets the tokens from a step on, which must be one of the last piece: it is decoded again."""
        for cache in self.caches:
            cache.held = step


class Transformer(nn.Module):
    """Encoder-decoder over token ids.

    Args:
        num_tokens: Size of the vocabulary.
        architecture: Sizes.
        position: Position method, in place of the architecture's own (retraining adds a window to it).
    """

    def __init__(self, num_tokens: int, architecture: Architecture, position: PositionMethod | None = None) -> None:
        super().__init__()
        self.architecture = architecture
        self.position = architecture.positions if position is None else position
        dim = architecture.model_dim
        self.positioning = self.position.build(
            ModelSizes(dim, architecture.num_heads, architecture.num_encoder_layers, architecture.num_decoder_layers)
        )
        self.embedding = nn.Embedding(num_tokens, dim)
        self.embedding_scale = dim**0.5
        self.dropout = nn.Dropout(architecture.dropout)
        self.encoder = Stack(
            Block(architecture, self.positioning, "encoder", layer) for layer in range(architecture.num_encoder_layers)
        )
        self.decoder = Stack(
            Block(architecture, self.positioning, "decoder", layer) for layer in range(architecture.num_decoder_layers)
        )
        final_norm = architecture.norm == "pre"
        self.encoder_norm = nn.LayerNorm(dim) if final_norm and self.encoder else nn.Identity()
        self.decoder_norm = nn.LayerNorm(dim) if final_norm else nn.Identity()
        self.output = linear(dim, num_tokens)
        nn.init.normal_(self.embedding.weight, std=1 / self.embedding_scale)

    def embed(self, tokens: Tensor, positions: Positions) -> Tensor:
        """Embeddings `[batch, length, model_dim]` of token ids `[batch, length]`."""
        x = self.embedding(tokens) * self.embedding_scale
        return self.dropout(self.positioning.embed(x, positions))

    @property
    def path(self) -> AttentionPath:
        """The path of every attention."""
        return self.decoder[0].cross_attention.path

    def attend(self, path: AttentionPath) -> None:
        """Chooses the path of every attention.

        Raises:
            UserError: If it is `gathered` and there is an attention that cannot gather its keys; with the reason.
        """
        attentions = [module for module in self.modules() if isinstance(module, Attention)]
        reasons = (attention.position.why_not_gathered() for attention in attentions)
        reason = next(filter(None, reasons), None)
        if path == "gathered" and reason is not None:
            raise UserError(f"this model's attention cannot be gathered: {reason}")
        for attention in attentions:
            attention.path = path

    def encode(self, source: Tensor, positions: Positions, maps: Maps | None = None) -> Tensor:
        """The source as cross-attention reads it, `[batch, S, model_dim]`, of token ids `[batch, S]`."""
        x = self.embed(source, positions)
        for block in self.encoder:
            scope = block.self_attention.scope(positions, positions, dense=maps is not None)
            x = block(x, positions, scope, maps=maps)
        return self.encoder_norm(x)

    def encode_in_pieces(self, source: Tensor, positions: Positions) -> Tensor:
        """What `encode` returns, computed so that memory stays in proportion to the length."""
        x = self.embed(source, positions)
        for block in self.encoder:
            attention = block.self_attention
            scope, whole = attention.scope(positions, positions), block.keys_values(x)
            size = attention.queries_at_once(len(source), scope)
            pieces = [slice(start, start + size) for start in range(0, len(positions), size)]
            x = torch.cat([block(x[:, p], positions[p], scope[p], whole=whole) for p in pieces], dim=1)
        return self.encoder_norm(x)

    def forward(self, source: Tensor, prefix: Tensor, layout: Layout, maps: Maps | None = None) -> Tensor:
        """Logits of every target token under a given prefix.

        Args:
            source: Token ids `[batch, S]`.
            prefix: `BOS` and the target without `EOS`, `[batch, T]`.
            layout: The problems' layout, on the same device.
            maps: Receives the attention weights `[batch, head, query, key]` by site and layer, where given.

        Returns:
            Logits `[batch, T, num_tokens]`.
        """
        dense = maps is not None
        layout = self.positioning.prepare(layout)
        memory = self.encode(source, layout.source, maps)
        x = self.embed(prefix, layout.target)
        for block in self.decoder:
            scope = block.self_attention.scope(layout.target, layout.prefix, causal=True, dense=dense)
            cross_scope = block.cross_attention.scope(layout.target, layout.source, dense=dense)
            keys_values = block.cross_attention.keys_values(memory)
            x = block(x, layout.target, scope, (keys_values, cross_scope), maps=maps)
        return self.output(self.decoder_norm(x))

    def plan(self, layout: Layout, batch: int = 1, ahead: int = 1) -> DecodingPlan:
        """What decoding piece by piece needs to know of a layout; good for any number of batches.

        Args:
            layout: The problems' layout.
            batch: Most problems of a batch.
            ahead: Most tokens of a piece; they are fewer where dense attention would take too much memory.
        """
        layout = self.positioning.prepare(layout)
        target, prefix, source = layout.target, layout.prefix, layout.source
        own = [block.self_attention.open_keys(target, prefix) for block in self.decoder]
        cross = [block.cross_attention.scope(target, source) for block in self.decoder]
        own_scopes = (Scope(prefix, gather=None if table is None else Gather.of(table)) for table in own)
        at_once = min(self.decoder[0].cross_attention.queries_at_once(batch, scope) for scope in (*cross, *own_scopes))
        ahead = min(ahead, at_once)
        storage = (
            Storage(len(prefix)) if open_keys is None else Storage.of(open_keys, len(prefix), ahead)
            for open_keys in own
        )
        return DecodingPlan(layout, ahead, tuple(storage), tuple(cross))

    def num_slots(self, layout: Layout) -> list[int]:
        """Slots a query, in all heads, of each decoder attention were its keys gathered; 0 where they cannot be."""
        numbers = []
        for block in self.decoder:
            for attention, keys in ((block.self_attention, layout.prefix), (block.cross_attention, layout.source)):
                open_keys = attention.position.open_keys(layout.target, keys, math.inf)
                can = open_keys is not None and attention.path != "dense" and attention.position.pointwise
                numbers.append(open_keys.index.shape[0] * open_keys.index.shape[2] if open_keys and can else 0)
        return numbers

    def decoder_state(self, source: Tensor, plan: DecodingPlan) -> DecoderState:
        """The start of decoding a batch of problems.

        Args:
            source: Token ids `[batch, S]`.
            plan: The plan for their layout, on the same device.
        """
        encoded = self.encode_in_pieces(source, plan.layout.source)
        memory = [block.cross_attention.keys_values(encoded) for block in self.decoder]
        return DecoderState(plan, memory, [LayerCache(storage) for storage in plan.own])

    def advance(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """Logits `[batch, new, num_tokens]` of the next tokens, each under the token before it; the state moves on.

        Args:
            tokens: The tokens before them, `[batch, new]`: `BOS`, then those of the target.
            state: Where decoding stands.

        Raises:
            ValueError: If they are more than the layout has room for.
        """
        layout = state.plan.layout
        piece = slice(state.step, state.step + tokens.shape[1])
        if piece.stop > len(layout.target):
            raise ValueError(f"the layout has {len(layout.target)} target tokens; no further one can be decoded")
        positions = layout.target[piece]
        x = self.embed(tokens, positions)
        for block, cross, memory, cache in zip(self.decoder, state.plan.cross, state.memory, state.caches, strict=True):
            if cache.storage.gather is None:
                own = dense_scope(positions, layout.prefix[: piece.stop], causal=tokens.shape[1] > 1)
            else:
                own = Scope(layout.prefix, gather=cache.storage.gather[piece])
            x = block(x, positions, own, (memory, cross[piece]), cache)
        return self.output(self.decoder_norm(x))

    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """Logits `[batch, num_tokens]` of the next token after `tokens` `[batch]`; the state moves on by one."""
        return self.advance(tokens[:, None], state)[:, 0]


def teacher_forced(model: Transformer, problems: Problems, layout: Layout, maps: Maps | None = None) -> Tensor:
    """Logits `[batch, T, num_tokens]` of every target token under the true tokens before it."""
    return model(problems.source, prefix_of(problems.target), layout, maps)


def prefix_of(target: Tensor) -> Tensor:
    """The tokens under which those of a target `[batch, T]` are predicted: `BOS`, then each before the last."""
    return torch.cat([torch.full_like(target[:, :1], BOS), target[:, :-1]], dim=1)
