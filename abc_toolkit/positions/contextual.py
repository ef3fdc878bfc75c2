"""Position methods that read the logits: positions counted by content, and biases that adapt to content."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from abc_toolkit.errors import UserError, check_numbers
from abc_toolkit.layout import Layout, Positions
from abc_toolkit.positions.absolute import NoPE
from abc_toolkit.positions.base import (
    AttentionPosition,
    ModelPosition,
    ModelSizes,
    PositionMethod,
    Site,
    check_methods,
)


@dataclass(frozen=True)
class CoPE(PositionMethod):
    """Contextual position encoding: the position of a key is the sum of the query's gates over the keys from it on.

    With scaled logits `s`, the gate of query `i` and an open key `j` is `g_ij = sigmoid(s_ij)`. The position is
    `p_ij = min(sum of g_it over open keys t >= j, npos - 1)`. The new logit is `s_ij + q_i e[p_ij]` with unscaled
    `q_i`; `e` is interpolated between its columns at the whole numbers around `p_ij`. Source: Golovneva et al. 2024
    (arXiv 2405.18719), with a causal mask, under which the keys `j` to `i` count. In the encoder the keys `j` to the
    end of the string count; closed keys never do. The method reads the order of the keys and no coordinate. It acts in
    self-attention; with `cross` it acts in cross-attention too and counts from each key to the end of the source. Any
    length, as positions end at `npos - 1`. Not pointwise. Parameters: `e`, `[head width, npos]`, initialised to zero;
    each layer has its own, which its heads share.

    Attributes:
        npos: Number of positions; larger ones count as the last.
        cross: Whether it acts in cross-attention too.
    """

    npos: int = 64
    cross: bool = False

    def __post_init__(self) -> None:
        check_numbers(self, "model.position", ("npos",), at_least=1)

    def at(self, site: Site, layer: int, num_heads: int, head_dim: int) -> AttentionPosition:
        return CoPEAttention(self.npos, head_dim) if site != "cross" or self.cross else AttentionPosition()


class CoPEAttention(nn.Module, AttentionPosition):
    """`CoPE` in one site and layer."""

    pointwise = False
    transforms = True

    def __init__(self, npos: int, head_dim: int) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(torch.zeros(head_dim, npos))

    def transform(
        self,
        scores: Tensor,
        q: Tensor,
        k: Tensor,
        q_positions: Positions,
        k_positions: Positions,
        mask: Tensor | None = None,
    ) -> Tensor:
        # Half precision would soon lose count.
        gates = scores.to(torch.promote_types(scores.dtype, torch.float32)).sigmoid()
        if mask is not None:
            gates = gates.masked_fill(~mask, 0.0)
        positions = gates.flip(-1).cumsum(-1).flip(-1).clamp(max=self.embeddings.shape[-1] - 1)
        below, above = positions.floor(), positions.ceil()
        at_whole = q @ self.embeddings.to(q.dtype)
        at_below, at_above = (at_whole.gather(-1, whole.long()) for whole in (below, above))
        added = torch.lerp(at_below.to(gates.dtype), at_above.to(gates.dtype), positions - below)
        return scores + added.to(scores.dtype)


@dataclass(frozen=True)
class DAPE(PositionMethod):
    """Data-adaptive positional encoding: a small network corrects each logit, given the logits and biases of all heads.

    With scaled logits `s` and biases `b` of the method `base`, the new logits are `s + b + f([s; b])`. The network `f`
    is applied to each pair of a query and a key: `2 heads` channels to `width`, leaky ReLU of slope 0.01, `width` to
    `heads`. If `base` has no bias (NoPE, RoPE), they are `s + f(s)`. Source: Zheng et al. 2024 (arXiv 2405.14722) and
    its released code, in which FIRE as `base` has a leaky ReLU too. Rotations, embeddings and drawn positions of `base`
    stay. It acts in self-attention; with `cross` it acts in cross-attention too, given the biases of `base` there. Any
    length that `base` allows. Not pointwise: a logit depends on those of the other heads for the same key, and gathered
    keys differ between heads. Parameters: those of `base`, and in each layer two linear layers with biases, initialised
    as PyTorch does.

    Attributes:
        base: The position method whose biases the network reads; NoPE, if not given. Its biases must be finite.
        width: Hidden channels of `f`.
        cross: Whether it acts in cross-attention too.
    """

    base: PositionMethod | None = None
    width: int = 32
    cross: bool = False

    def __post_init__(self) -> None:
        check_methods(self, [] if self.base is None else [self.base])
        check_numbers(self, "model.position", ("width",), at_least=1)

    def build(self, sizes: ModelSizes) -> ModelPosition:
        return _DAPEModel(self, sizes)

    def network(self, channels: int, num_heads: int) -> nn.Module:
        """The network `f` of one layer."""
        return _Network(channels, self.width, num_heads)


@dataclass(frozen=True)
class DAPEv2(DAPE):
    """DAPE with convolutions along the keys in place of linear layers, so that the network reads neighbouring keys too.

    As `DAPE`, with an `f` that is applied to each query. First `s` and `b` are set to 0 at closed keys. Then come a
    convolution over `kernel` keys from `2 heads` channels (`heads` channels, if `base` has no bias) to `width`, a leaky
    ReLU of slope 0.01, and a convolution over `kernel` keys to `heads`. Source: Zheng et al. 2024 (arXiv 2410.04798)
    and its released code. In that code the second convolution reads padding after the last key of a string, and hidden
    channels of closed keys after any other key, so logits would depend on the length of the string. Here it reads
    hidden channels after the last key too. So a step of decoding gives the logits of the whole string, and only the
    logits of the last `kernel // 2` keys of a causal string differ from those of the released code. Not pointwise.
    Parameters: as in `DAPE`, with convolutions.

    Attributes:
        kernel: Keys that a convolution spans; an odd number.
    """

    kernel: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "model.position", ("kernel",), at_least=1)
        if self.kernel % 2 == 0:
            raise UserError(f"--model.position.kernel {self.kernel}: give an odd number, so that it has a middle")

    def network(self, channels: int, num_heads: int) -> nn.Module:
        return _Convolutions(channels, self.width, num_heads, self.kernel)


class _DAPEModel(ModelPosition):
    """`DAPE` in one model."""

    method: DAPE

    def __init__(self, method: DAPE, sizes: ModelSizes) -> None:
        super().__init__(method, sizes)
        self.base = (NoPE() if method.base is None else method.base).build(sizes)

    def prepare(self, layout: Layout) -> Layout:
        return self.base.prepare(layout)

    def embed(self, x: Tensor, positions: Positions) -> Tensor:
        return self.base.embed(x, positions)

    def at(self, site: Site, layer: int) -> AttentionPosition:
        base = self.base.at(site, layer)
        if site == "cross" and not self.method.cross:
            return base
        if base.why_not_gathered() is None:
            raise UserError(
                f"{type(self.method).__name__}: {type(self.method.base).__name__} closes keys, and the network cannot "
                "read infinite biases: put it beside this method in a Compose"
            )
        # Hooks that override `bias` have one at all positions.
        has_bias = type(base).bias is not AttentionPosition.bias
        heads = self.sizes.num_heads
        network = self.method.network(2 * heads if has_bias else heads, heads)
        return DAPEAttention(base, network, self.method.width)


class DAPEAttention(nn.Module, AttentionPosition):
    """`DAPE` in one site and layer; `transform` adds the bias of `base`, since the network reads it."""

    pointwise = False
    transforms = True

    def __init__(self, base: AttentionPosition, network: nn.Module, width: int) -> None:
        super().__init__()
        self.base = base
        self.network = network
        self.numbers_a_pair = width

    @property
    def rotates(self) -> bool:
        return self.base.rotates

    def rotate(self, q: Tensor, k: Tensor, q_positions: Positions, k_positions: Positions) -> tuple[Tensor, Tensor]:
        return self.base.rotate(q, k, q_positions, k_positions)

    def transform(
        self,
        scores: Tensor,
        q: Tensor,
        k: Tensor,
        q_positions: Positions,
        k_positions: Positions,
        mask: Tensor | None = None,
    ) -> Tensor:
        scores = seen = self.base.transform(scores, q, k, q_positions, k_positions, mask)
        bias = self.base.bias(q_positions, k_positions)
        if bias is not None:
            bias = bias.to(scores.dtype).expand_as(scores)
            scores, seen = scores + bias, torch.cat([scores, bias], dim=1)
        return scores + self.network(seen, mask).to(scores.dtype)


class _Network(nn.Module):
    """The network of `DAPE`, applied to each pair of a query and a key."""

    def __init__(self, channels: int, width: int, num_heads: int) -> None:
        super().__init__()
        self.first = nn.Linear(channels, width)
        self.second = nn.Linear(width, num_heads)

    def forward(self, seen: Tensor, mask: Tensor | None) -> Tensor:
        """Corrections `[batch, head, query, key]` by channels `[batch, channel, query, key]`."""
        return self.second(functional.leaky_relu(self.first(seen.movedim(1, -1)), inplace=True)).movedim(-1, 1)


class _Convolutions(nn.Module):
    """The network of `DAPEv2`, applied to each query."""

    def __init__(self, channels: int, width: int, num_heads: int, kernel: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.side = kernel // 2
        self.first = nn.Conv2d(channels, width, (1, kernel))
        self.second = nn.Conv2d(width, num_heads, (1, kernel), padding=(0, self.side))

    def forward(self, seen: Tensor, mask: Tensor | None) -> Tensor:
        """Corrections `[batch, head, query, key]` by channels `[batch, channel, query, key]`."""
        if mask is not None:
            seen = seen.unflatten(1, (-1, self.num_heads)).masked_fill(~mask.unsqueeze(-4), 0.0).flatten(1, 2)
        # The second convolution reads `side` keys after the last key, and the first as many after those. The zeros that
        # the second pads with count only before the first key: its outputs after the last key are cut off.
        hidden = functional.leaky_relu(self.first(functional.pad(seen, (self.side, 2 * self.side))), inplace=True)
        return self.second(hidden)[..., : seen.shape[-1]]
