"""The encoder-decoder, whole in one file.

Dimensions are `batch, query, model_dim` for streams; `T` tokens of target, `S` of source.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from abc_toolkit.attention import Attention, linear
from abc_toolkit.errors import UserError, check_numbers
from abc_toolkit.layout import Layout, Positions
from abc_toolkit.positions import PositionMethod, Sinusoidal
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
    num_decoder_layers: int = 2
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
        position: Position method of the attentions.
        side: `encoder` or `decoder`.
        layer: Counted from 0 at the input.
    """

    def __init__(
        self, architecture: Architecture, position: PositionMethod, side: Literal["encoder", "decoder"], layer: int
    ) -> None:
        super().__init__()
        dim, heads = architecture.model_dim, architecture.num_heads
        self.side = side
        self.layer = layer
        self.pre = architecture.norm == "pre"

        def attention(site: Literal["encoder", "decoder", "cross"]) -> Attention:
            return Attention(dim, heads, architecture.dropout, position.at(site, layer, heads, dim // heads))

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

    def forward(
        self,
        x: Tensor,
        q_positions: Positions,
        k_positions: Positions,
        mask: Tensor | None,
        memory: tuple[Tensor, Tensor] | None = None,
        memory_positions: Positions | None = None,
        cache: "LayerCache | None" = None,
        maps: Maps | None = None,
    ) -> Tensor:
        """Runs the layer.

        Args:
            x: Stream, `[batch, query, model_dim]`.
            q_positions: Positions of its queries.
            k_positions: Positions of its keys (all of them, with a cache).
            mask: True where a query may look, `[query, key]`.
            memory: Cross-attention's keys and values.
            memory_positions: Positions of the source.
            cache: Keys and values of the steps before; the new ones are appended.
            maps: Receives the attention weights by site and layer.

        Returns:
            The stream after the layer, `[batch, query, model_dim]`.
        """
        h = self.normed(x, self.self_norm)
        keys_values = self.self_attention.keys_values(h)
        if cache is not None:
            keys_values = cache.append(*keys_values)
        update, weights = self.self_attention(h, keys_values, q_positions, k_positions, mask, maps is not None)
        if maps is not None and weights is not None:
            maps[self.side, self.layer] = weights
        x = self.add(x, self.self_norm, update)
        if self.side == "decoder":
            assert memory is not None
            assert memory_positions is not None
            h = self.normed(x, self.cross_norm)
            update, weights = self.cross_attention(h, memory, q_positions, memory_positions, None, maps is not None)
            if maps is not None and weights is not None:
                maps["cross", self.layer] = weights
            x = self.add(x, self.cross_norm, update)
        update = self.feedforward(self.normed(x, self.feedforward_norm))
        return self.add(x, self.feedforward_norm, update)


class Stack(nn.ModuleList):
    """The layers of one side, first at the input."""

    def __iter__(self) -> Iterator[Block]:
        return super().__iter__()  # type: ignore[return-value]


class LayerCache:
    """Keys and values of one decoder layer, grown by a token a step.

    Args:
        length: Most tokens that will be held.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self.held = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keeps keys and values `[batch, head, new, dim]`; returns all that are held.

        Raises:
            ValueError: If they are more than the layout has room for.
        """
        if self.held + k.shape[2] > self.length:
            raise ValueError(f"the layout has {self.length} target tokens; no further one can be decoded")
        if self._keys is None or self._values is None:
            shape = (k.shape[0], k.shape[1], self.length, k.shape[3])
            self._keys, self._values = k.new_empty(shape), v.new_empty(shape)
        start, self.held = self.held, self.held + k.shape[2]
        self._keys[:, :, start : self.held] = k
        self._values[:, :, start : self.held] = v
        return self._keys[:, :, : self.held], self._values[:, :, : self.held]


class Transformer(nn.Module):
    """Encoder-decoder over token ids.

    Args:
        num_tokens: Size of the vocabulary.
        architecture: Sizes.
        position: Position method, in place of the architecture's own (retraining adds a window to it).
    """

    def __init__(self, num_tokens: int, architecture: Architecture, position: PositionMethod | None = None) -> None:
        super().__init__()
        self.position = architecture.positions if position is None else position
        dim = architecture.model_dim
        self.embedding = nn.Embedding(num_tokens, dim)
        self.embedding_scale = dim**0.5
        self.dropout = nn.Dropout(architecture.dropout)
        self.encoder = Stack(
            Block(architecture, self.position, "encoder", layer) for layer in range(architecture.num_encoder_layers)
        )
        self.decoder = Stack(
            Block(architecture, self.position, "decoder", layer) for layer in range(architecture.num_decoder_layers)
        )
        final_norm = architecture.norm == "pre"
        self.encoder_norm = nn.LayerNorm(dim) if final_norm and self.encoder else nn.Identity()
        self.decoder_norm = nn.LayerNorm(dim) if final_norm else nn.Identity()
        self.output = linear(dim, num_tokens)
        nn.init.normal_(self.embedding.weight, std=1 / self.embedding_scale)

    def embed(self, tokens: Tensor, positions: Positions) -> Tensor:
        """Embeddings `[batch, length, model_dim]` of token ids `[batch, length]`."""
        x = self.embedding(tokens) * self.embedding_scale
        return self.dropout(self.position.embed(x, positions))

    def encode(self, source: Tensor, positions: Positions, maps: Maps | None = None) -> Tensor:
        """The source as cross-attention reads it, `[batch, S, model_dim]`, of token ids `[batch, S]`."""
        x = self.embed(source, positions)
        for block in self.encoder:
            x = block(x, positions, positions, None, maps=maps)
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
        memory = self.encode(source, layout.source, maps)
        x = self.embed(prefix, layout.target)
        length = prefix.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=prefix.device).tril()
        for block in self.decoder:
            keys_values = block.cross_attention.keys_values(memory)
            x = block(x, layout.target, layout.prefix, causal, keys_values, layout.source, maps=maps)
        return self.output(self.decoder_norm(x))

    def decoder_state(self, source: Tensor, layout: Layout) -> "DecoderState":
        """What step-by-step decoding keeps for a batch of sources `[batch, S]`."""
        memory = self.encode(source, layout.source)
        cross = [block.cross_attention.keys_values(memory) for block in self.decoder]
        caches = [LayerCache(len(layout.target)) for _ in self.decoder]
        return DecoderState(layout, cross, caches)

    def step(self, tokens: Tensor, state: "DecoderState") -> Tensor:
        """Logits `[batch, num_tokens]` of the next token after `tokens` `[batch]`; the state moves on by one."""
        step = state.step
        query = state.layout.target[step : step + 1]
        keys = state.layout.prefix[: step + 1]
        x = self.embed(tokens[:, None], query)
        for block, cross, cache in zip(self.decoder, state.cross, state.caches, strict=True):
            x = block(x, query, keys, None, cross, state.layout.source, cache)
        return self.output(self.decoder_norm(x[:, 0]))


@dataclass
class DecoderState:
    """Keys and values that step-by-step decoding keeps.

    Attributes:
        layout: The problems' layout.
        cross: Cross-attention's keys and values, a pair a layer.
        caches: Self-attention's, a layer each.
    """

    layout: Layout
    cross: list[tuple[Tensor, Tensor]]
    caches: list[LayerCache]

    @property
    def step(self) -> int:
        """Tokens decoded so far."""
        return self.caches[0].held


def teacher_forced(model: Transformer, problems: Problems, layout: Layout, maps: Maps | None = None) -> Tensor:
    """Logits `[batch, T, num_tokens]` of every target token under the true tokens before it."""
    start = torch.full_like(problems.target[:, :1], BOS)
    return model(problems.source, torch.cat([start, problems.target[:, :-1]], dim=1), layout, maps)
