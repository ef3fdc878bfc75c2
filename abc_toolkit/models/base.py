"""What every model is and does, whatever its backbone: sizes, logits under a prefix, decoding piece by piece.

Dimensions are `batch, query, model_dim` for streams; `T` tokens of target, `S` of source.
"""

import abc
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from abc_toolkit.errors import UserError, check_numbers
from abc_toolkit.layout import Layout, Positions
from abc_toolkit.models.attention import AttentionPath, linear
from abc_toolkit.positions import ModelSizes, NoPE, PositionMethod, Sinusoidal
from abc_toolkit.tasks import Problems
from abc_toolkit.vocabulary import BOS

Backbone = Literal["encoder-decoder", "decoder-only", "mamba"]
Maps = dict[tuple[str, int], Tensor]


@dataclass(frozen=True)
class Architecture:
    """What a model is made of: its backbone, its sizes, and how it knows of positions.

    Attributes:
        num_encoder_layers: Encoder depth; with 0, cross-attention reads the source's embeddings.
        num_decoder_layers: Decoder depth; of a model without an encoder, its depth.
        model_dim: Width of the streams.
        num_heads: Attention heads a layer; divides `model_dim`.
        feedforward_dim: Width of the hidden layer of each feed-forward block; `mamba` has none.
        norm: Layer normalisation before (`pre`) or after (`post`) each block; `mamba` has the former.
        dropout: Probability of dropping an activation or an attention weight while training.
        position: Position method; if not given, sinusoids of place and segment with base 100, and none for `mamba`.
        backbone: `encoder-decoder`; `decoder-only`, a causal transformer that reads source and target as one string;
            or `mamba`, the same without attention.
    """

    num_encoder_layers: int = 0
    num_decoder_layers: int = 1
    model_dim: int = 64
    num_heads: int = 4
    feedforward_dim: int = 256
    norm: Literal["pre", "post"] = "pre"
    dropout: float = 0.0
    position: PositionMethod | None = None
    backbone: Backbone = "encoder-decoder"

    @property
    def positions(self) -> PositionMethod:
        """The position method, given or not."""
        if self.position is not None:
            return self.position
        # No default instance: on the command line its settings would be passed on to another method's class.
        return NoPE() if self.backbone == "mamba" else Sinusoidal(("place", "segment"), base=100.0)

    def __post_init__(self) -> None:
        sizes = ("num_decoder_layers", "model_dim", "num_heads", "feedforward_dim")
        check_numbers(self, "model", sizes, at_least=1)
        check_numbers(self, "model", ("num_encoder_layers",))
        check_numbers(self, "model", ("dropout",), below=1)
        if self.model_dim % self.num_heads:
            raise UserError(f"--model.num_heads {self.num_heads} does not divide --model.model_dim {self.model_dim}")
        if self.backbone != "encoder-decoder" and self.num_encoder_layers:
            raise UserError(
                f"--model.backbone {self.backbone} has no encoder: leave out --model.num_encoder_layers "
                f"{self.num_encoder_layers}; its depth is --model.num_decoder_layers"
            )
        if self.backbone == "mamba" and self.norm == "post":
            raise UserError("--model.backbone mamba normalises before each block: leave out --model.norm post")


@dataclass(frozen=True, eq=False)
class DecodingPlan:
    """How a model decodes problems of one layout piece by piece.

    Attributes:
        layout: The layout.
        ahead: Most tokens of a piece.
    """

    layout: Layout
    ahead: int

    @property
    def gathers(self) -> bool:
        """Whether every attention gathers its keys."""
        return False

    def check_room(self, tokens: int) -> None:
        """Raises:
        ValueError: If the target has no room for so many tokens.
        """
        room = len(self.layout.target)
        if tokens > room:
            raise ValueError(f"the layout has {room} target tokens; no further one can be decoded")


class DecoderState(abc.ABC):
    """Where decoding a batch of problems stands."""

    @abc.abstractmethod
    def go_back(self, step: int) -> None:
        """Forgets the target's tokens from a step on, which must be one of the last piece: it is decoded again."""


class Model(nn.Module, abc.ABC):
    """A model over token ids: what is trained, calibrated, evaluated.

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
        self.add_layers()
        self.output = linear(dim, num_tokens)
        nn.init.normal_(self.embedding.weight, std=1 / self.embedding_scale)

    @abc.abstractmethod
    def add_layers(self) -> None:
        """Makes what stands between embeddings and logits."""

    def embed(self, tokens: Tensor, positions: Positions) -> Tensor:
        """Embeddings `[batch, length, model_dim]` of token ids `[batch, length]`."""
        x = self.embedding(tokens) * self.embedding_scale
        return self.dropout(self.positioning.embed(x, positions))

    @property
    @abc.abstractmethod
    def path(self) -> AttentionPath:
        """The path of every attention."""

    @abc.abstractmethod
    def attend(self, path: AttentionPath) -> None:
        """Chooses the path of every attention.

        Raises:
            UserError: If it is `gathered` and there is an attention that cannot gather its keys; with the reason.
        """

    @abc.abstractmethod
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

    @abc.abstractmethod
    def plan(self, layout: Layout, batch: int = 1, ahead: int = 1) -> DecodingPlan:
        """What decoding piece by piece needs to know of a layout; good for any number of batches.

        Args:
            layout: The problems' layout.
            batch: Most problems of a batch.
            ahead: Most tokens of a piece; they are fewer where dense attention would take too much memory.
        """

    @abc.abstractmethod
    def num_slots(self, layout: Layout) -> list[int]:
        """Slots a query, in all heads, of each decoder attention were its keys gathered; 0 where they cannot be."""

    @abc.abstractmethod
    def decoder_state(self, source: Tensor, plan: DecodingPlan) -> DecoderState:
        """The start of decoding a batch of problems.

        Args:
            source: Token ids `[batch, S]`.
            plan: This model's plan for their layout, on the same device.
        """

    @abc.abstractmethod
    def advance(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """Logits `[batch, new, num_tokens]` of the next tokens, each under the token before it; the state moves on.

        Args:
            tokens: The tokens before them, `[batch, new]`: `BOS`, then those of the target.
            state: Where decoding stands.

        Raises:
            ValueError: If they are more than the layout has room for.
        """

    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """Logits `[batch, num_tokens]` of the next token after `tokens` `[batch]`; the state moves on by one."""
        return self.advance(tokens[:, None], state)[:, 0]


def teacher_forced(model: Model, problems: Problems, layout: Layout, maps: Maps | None = None) -> Tensor:
    """Logits `[batch, T, num_tokens]` of every target token under the true tokens before it."""
    return model(problems.source, prefix_of(problems.target), layout, maps)


def prefix_of(target: Tensor) -> Tensor:
    """The tokens under which those of a target `[batch, T]` are predicted: `BOS`, then each before the last."""
    return torch.cat([torch.full_like(target[:, :1], BOS), target[:, :-1]], dim=1)
