"""The contract of a model, for every backbone: architecture, outputs, decoding piece by piece.

Dimensions are `batch, query, model_dim` for streams; `T` tokens of target, `S` of source.
"""

import abc
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from abc_toolkit.errors import UserError, check_numbers
from abc_toolkit.layout import Layout, Positions
from abc_toolkit.models.attention import linear
from abc_toolkit.models.dropout import Dropout
from abc_toolkit.models.patches import PatchConvolution
from abc_toolkit.models.savings import SAVINGS, ArcEmbedding, Saving, TiedOutput
from abc_toolkit.positions import ModelSizes, NoPE, PositionMethod, Sinusoidal, by_problem
from abc_toolkit.tasks.base import Batch, Interface
from abc_toolkit.vocabulary import BOS

Backbone = Literal["encoder-decoder", "decoder-only", "encoder-only", "mamba"]
BlockKind = Literal["standard", "llama"]
Maps = dict[tuple[str, int], Tensor]
_GROUPS = 4  # of problems of a batch that go through a model one after the other, so that there is less padding
_GROUP_TOKENS = 256  # of padding that take as long as another group


@dataclass(frozen=True)
class Architecture:
    """The architecture of a model: its backbone, its sizes, its position method.

    Attributes:
        num_encoder_layers: Encoder depth; with 0, cross-attention reads the source's embeddings.
        num_decoder_layers: Decoder depth, or the only depth.
        model_dim: Width of the streams.
        num_heads: Heads a layer; divides `model_dim`.
        feedforward_dim: Width of the feed-forward hidden layer.
        norm: Layer normalisation before (`pre`) or after (`post`) each block, or `none`.
        dropout: Probability of dropping an activation or an attention weight while training.
        position: Position method; if not given, sinusoids of place and segment with base 100, and none for `mamba`.
        backbone: `encoder-decoder`, the default; `decoder-only`, the default where there is no target; `encoder-only`;
            `mamba`, which has no attention.
        block: `standard`, or `llama`: RMS normalisation, SwiGLU, no biases.
        init_std: Standard deviation of initial weights of `llama`; by the widths if not given.
        savings: Parameters to do without: biases, thresholds, output, arc, scores, values, feedforward.
    """

    num_encoder_layers: int = 0
    num_decoder_layers: int = 1
    model_dim: int = 64
    num_heads: int = 4
    feedforward_dim: int = 256
    norm: Literal["pre", "post", "none"] = "pre"
    dropout: float = 0.0
    position: PositionMethod | None = None
    backbone: Backbone | None = None
    block: BlockKind = "standard"
    init_std: float | None = None
    # * `biases`: none, but in the hidden layers of feed-forward blocks, whose biases are the `thresholds`.
    # * `output`: the output matrix is the token embedding's.
    # * `arc`: tokens are embedded on an arc, see `ArcEmbedding`.
    # * `scores`: attention has no queries and keys, so that the open keys of a query are averaged.
    # * `values`: the heads of an attention share one map of values, as wide as the stream, and have a scale each.
    # * `feedforward`: the second matrix of a feed-forward block is the transpose of the first, see `TiedLinear`.
    savings: tuple[Saving, ...] = field(default=(), metadata={"later": True})

    @property
    def kind(self) -> Backbone:
        """The backbone; `encoder-decoder`, if none is given."""
        return self.backbone or "encoder-decoder"

    def for_task(self, decoded: bool) -> "Architecture":
        """The architecture with its backbone settled.

        Args:
            decoded: Whether the task has a target to decode.
        """
        return replace(self, backbone=self.backbone or ("encoder-decoder" if decoded else "decoder-only"))

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
        self._check_savings()
        if self.model_dim % self.num_heads and "values" not in self.savings:
            raise UserError(f"--model.num_heads {self.num_heads} does not divide --model.model_dim {self.model_dim}")
        if self.backbone in ("decoder-only", "mamba") and self.num_encoder_layers:
            raise UserError(
                f"--model.backbone {self.backbone} has no encoder: leave out --model.num_encoder_layers "
                f"{self.num_encoder_layers}; its depth is --model.num_decoder_layers"
            )
        if self.backbone == "encoder-only" and not self.num_encoder_layers:
            raise UserError("--model.backbone encoder-only needs layers: give --model.num_encoder_layers at least 1")
        if self.backbone == "mamba" and self.norm != "pre":
            raise UserError(f"--model.backbone mamba normalises before each block: leave out --model.norm {self.norm}")
        if self.block == "llama" and self.backbone == "mamba":
            raise UserError("--model.backbone mamba has blocks of its own: leave out --model.block llama")
        if self.block == "llama" and self.norm != "pre":
            raise UserError(f"--model.block llama normalises before each block: leave out --model.norm {self.norm}")
        if self.init_std is not None:
            check_numbers(self, "model", ("init_std",))
            if not self.init_std:
                raise UserError("--model.init_std 0: give more than 0, or no weight has a gradient")
            if self.block != "llama":
                raise UserError(f"--model.init_std {self.init_std:g} needs --model.block llama: add that")

    def _check_savings(self) -> None:
        """Refuses savings that do not go with each other or with the architecture."""
        for saving in self.savings:
            if saving not in SAVINGS:
                raise UserError(f"--model.savings names {saving!r}: choose from {', '.join(SAVINGS)}")
        if not self.savings:
            return
        if self.backbone == "mamba" or self.block == "llama":
            other = "--model.backbone mamba" if self.backbone == "mamba" else "--model.block llama"
            raise UserError(f"{other} saves no parameters: leave out --model.savings")
        if "values" in self.savings and "scores" not in self.savings:
            raise UserError("--model.savings values: heads as wide as the stream have no scores: add scores")
        if "arc" in self.savings and self.model_dim < 2:
            raise UserError("--model.savings arc: an arc needs two dimensions: give --model.model_dim at least 2")


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
        """Goes back to a step of the last piece: the target's tokens from there on are decoded again."""

    @abc.abstractmethod
    def choose(self, rows: Tensor) -> None:
        """Goes on with some of the rows of the batch, `[row]`, each of which may be named several times."""

    @abc.abstractmethod
    def copies(self, count: int) -> "DecoderState":
        """Another state, in which each row of the batch stands `count` times, one after the other."""


class Model(nn.Module, abc.ABC):
    """A model: what is trained, calibrated, evaluated.

    Args:
        interface: What it reads and writes; a number stands for token streams of a vocabulary of that size.
        architecture: Its architecture.
        position: Position method, in place of the architecture's own (retraining adds a window to it).

    Raises:
        UserError: If the backbone and the interface do not go together.
    """

    def __init__(
        self, interface: Interface | int, architecture: Architecture, position: PositionMethod | None = None
    ) -> None:
        super().__init__()
        self.interface = Interface.token_streams(interface) if isinstance(interface, int) else interface
        self.architecture = architecture
        self.position = architecture.positions if position is None else position
        dim = architecture.model_dim
        self.positioning = self.position.build(
            ModelSizes(dim, architecture.num_heads, architecture.num_encoder_layers, architecture.num_decoder_layers)
        )
        bias = architecture.block != "llama" and "biases" not in architecture.savings
        self.embedding, self.embedding_scale = self._input_adapter(self.interface, dim, bias)
        if "arc" in architecture.savings:
            if not self.interface.num_tokens:
                raise UserError("--model.savings arc: the task's inputs are no tokens: leave it out")
            self.embedding = ArcEmbedding(self.interface.num_tokens, dim)
        self.dropout = Dropout(architecture.dropout)
        self.add_layers()
        self.output = self._output_adapter(bias)
        if isinstance(self.embedding, nn.Embedding):
            nn.init.normal_(self.embedding.weight, std=1 / self.embedding_scale)
        self.initialise()

    @staticmethod
    def _input_adapter(interface: Interface, dim: int, bias: bool) -> tuple[nn.Module, float]:
        """The module that turns inputs into a stream (token embedding, or read-in of vectors), and its scale."""
        if interface.num_tokens:
            return nn.Embedding(interface.num_tokens, dim), dim**0.5
        if interface.patch_channels:
            return PatchConvolution(interface.patch_channels, dim), 1.0
        return linear(interface.input_dim, dim, bias=bias), 1.0

    def _output_adapter(self, bias: bool) -> nn.Linear | TiedOutput:
        """The module that turns the stream into outputs."""
        if "output" not in self.architecture.savings:
            return linear(self.architecture.model_dim, self.interface.num_outputs, bias=bias)
        tokens = self.interface.num_tokens
        if not isinstance(self.embedding, nn.Embedding | ArcEmbedding) or self.interface.num_outputs != tokens:
            raise UserError("--model.savings output: the task's outputs are not the tokens of its inputs: leave it out")
        return TiedOutput(self.embedding, bias)

    def initialise(self) -> None:
        """Draws initial weights that are others than those of the modules by themselves. Called once, at the end."""

    @abc.abstractmethod
    def add_layers(self) -> None:
        """Makes what stands between the input and the output adapter."""

    @property
    def numbers_a_pair(self) -> int:
        """Numbers that attention holds at once for each pair of a query and a key."""
        return self.architecture.num_heads

    def embed(self, inputs: Tensor, positions: Positions) -> Tensor:
        """The stream `[batch, length, model_dim]` of token ids `[batch, length]` or vectors `[batch, length, dim]`."""
        x = self.embedding(inputs) * self.embedding_scale
        return self.dropout(by_problem.embed(self.positioning, x, positions))

    def read_out(self, x: Tensor) -> Tensor:
        """Outputs of a stream `[batch, length, model_dim]`: `[batch, length, num_outputs]`, or without the last one."""
        outputs = self.output(x)
        return outputs if self.interface.num_outputs > 1 else outputs[..., 0]

    @abc.abstractmethod
    def forward(self, inputs: Tensor, prefix: Tensor | None, layout: Layout, maps: Maps | None = None) -> Tensor:
        """Outputs: of every target token under a given prefix or, without a prefix, at the inputs themselves.

        Args:
            inputs: Token ids `[batch, S]` or vectors `[batch, S, input_dim]`.
            prefix: `BOS` and the target without `EOS`, `[batch, T]`, where the target is decoded.
            layout: The problems' layout, on the same device.
            maps: Receives the attention weights `[batch, head, query, key]` by site and layer, where given.

        Returns:
            `[batch, outputs, num_outputs]`, or `[batch, outputs]` where outputs are numbers. The outputs are `T` under
            a prefix, else `S`, or one for all where they are pooled.
        """


class DecodingModel(Model):
    """A model that decodes a target token by token."""

    @abc.abstractmethod
    def plan(self, layout: Layout, batch: int = 1, ahead: int = 1) -> DecodingPlan:
        """What decoding piece by piece needs to know of a layout; good for any number of batches.

        Args:
            layout: The problems' layout.
            batch: Most problems of a batch.
            ahead: Most tokens of a piece; they are fewer where dense attention would take too much memory.
        """

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


def predict(model: Model, batch: Batch, layout: Layout, maps: Maps | None = None) -> Tensor:
    """A model's outputs for a batch. Outputs of a decoded target are computed under the true tokens before them.

    Args:
        model: The model.
        batch: The problems.
        layout: The layout of their shape; where the batch has one of its own, that is taken.
        maps: Receives the attention weights, where given.
    """
    if batch.layout is None:
        return model(batch.inputs, _prefix(model, batch), layout, maps)
    groups = [] if maps is not None else groups_alike(batch.layout)
    if len(groups) < 2:
        return model(batch.inputs, _prefix(model, batch), batch.layout, maps)
    found = [predict(model, batch[rows].trimmed(), layout) for rows in groups]
    longest = batch.targets.shape[1]
    padding = [(0, 0) * (outputs.dim() - 2) + (0, longest - outputs.shape[1]) for outputs in found]
    padded = [functional.pad(outputs, pad) for outputs, pad in zip(found, padding, strict=True)]
    return torch.cat(padded)[torch.cat(groups).argsort()]


def _prefix(model: Model, batch: Batch) -> Tensor | None:
    return prefix_of(batch.targets) if model.interface.decoded else None


def groups_alike(layout: Layout) -> list[Tensor]:
    """Problems of about equal lengths, so that going through a model group by group takes less padding.

    Args:
        layout: The layout of a batch.

    Returns:
        The rows of each group, a partition of the batch; none, if problems are not padded.
    """
    present = [part.present for part in (layout.source, layout.target) if part.present is not None]
    if not present:
        return []
    lengths = torch.stack([part.sum(dim=1) for part in present])  # [string, problem]
    order = lengths.sum(dim=0).argsort()
    longest = lengths[:, order].cummax(dim=1).values.sum(dim=0).tolist()  # of the problems up to each
    groups, waiting = [], [(0, len(order), _GROUPS)]
    while waiting:
        start, end, most = waiting.pop()
        saved, cut = max(
            ((cut - start) * (longest[end - 1] - longest[cut - 1]), cut) for cut in range(start + 1, end + 1)
        )
        if most > 1 and saved > _GROUP_TOKENS:
            waiting += [(cut, end, most // 2), (start, cut, most - most // 2)]
        else:
            groups.append(order[start:end])
    return groups


def answering(x: Tensor, num_inputs: int, interface: Interface) -> Tensor:
    """The part of a causal model's stream, over inputs and prefix, from which outputs are read."""
    if interface.decoded:
        return x[:, num_inputs:]
    return x[:, -1:] if interface.pooled else x


def prefix_of(target: Tensor) -> Tensor:
    """The tokens under which those of a target `[batch, T]` are predicted: `BOS`, then each before the last."""
    return torch.cat([torch.full_like(target[:, :1], BOS), target[:, :-1]], dim=1)
