"""Position methods that add a bias to the logits, a function of the distance between a query and a key.

`i` is the coordinate of a query and `j` that of a key, both counted from the start of their string.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from abc_toolkit.errors import UserError, check_literals, check_numbers
from abc_toolkit.layout import Positions
from abc_toolkit.positions.base import (
    SITES,
    AttentionPosition,
    ModelPosition,
    ModelSizes,
    PositionMethod,
    Site,
    check_coordinates,
)

SlopeRule = Literal["press", "geometric"]
Activation = Literal["relu", "leaky_relu"]
_TINY = 1e-6  # keeps FIRE's quotient finite


def distances(q_positions: Positions, k_positions: Positions, coordinate: str) -> Tensor:
    """The distances `i - j`, `[query, key]`, or `[head, query, slot]` of gathered keys."""
    return q_positions.coordinate(coordinate)[:, None] - k_positions.coordinate(coordinate)


def _wide(number: Tensor) -> Tensor:
    """A number in single precision at least, which logarithms of positions need."""
    return number.to(torch.promote_types(number.dtype, torch.float32))


def bucket_bounds(num_buckets: int, max_distance: int) -> tuple[int, ...]:
    """The first distance of each of T5's buckets of one direction, without bucket 0.

    Half of the buckets, `e` of them, hold one distance each. The other `r` grow evenly in the logarithm up to
    `max_distance`: the k-th of them, from 0, starts at the smallest `n` with `r ln(n / e) / ln(max_distance / e) >= k`.
    That is `n^r >= e^(r - k) max_distance^k`, which integers decide exactly; a logarithm in single precision may miss
    a bound by one.

    Args:
        num_buckets: Buckets of the direction.
        max_distance: The first distance of those that all share the last bucket.
    """
    exact = num_buckets // 2
    wide = num_buckets - exact
    bounds = list(range(1, exact + 1))
    for k in range(1, wide):
        power = exact ** (wide - k) * max_distance**k
        low, high = exact, max_distance
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if middle**wide >= power else (middle + 1, high)
        bounds.append(low)
    return tuple(bounds)


def t5_buckets(distance: Tensor, bounds: tuple[int, ...], bidirectional: bool) -> Tensor:
    """T5's bucket of each distance `i - j`.

    Args:
        distance: The distances, integers of any shape.
        bounds: The bounds, as `bucket_bounds` returns them.
        bidirectional: Whether keys after the query have as many buckets of their own; if not, they are in bucket 0.
    """
    length = distance.abs() if bidirectional else distance.clamp(min=0)
    starts = torch.tensor(bounds, dtype=torch.long, device=distance.device)
    bucket = torch.bucketize(length.contiguous(), starts, right=True)  # it warns of gathered keys otherwise
    return bucket + (len(bounds) + 1) * (distance < 0) if bidirectional else bucket


@dataclass(frozen=True)
class T5RelativeBias(PositionMethod):
    """A learned number for each head and each bucket of distances, added to the logits.

    `bias[h, i, j] = W[bucket(i - j), h]`. Half of the buckets hold one distance each, the others grow evenly in the
    logarithm up to `max_distance`, and the last bucket holds all larger distances. If the bias is bidirectional, each
    direction has half of the buckets; if not, every key after the query is in bucket 0. Source: T5, arXiv 1910.10683,
    section 2.1. T5 does not divide logits by the root of the head width; our models do. The bounds of the buckets and
    the initial values are those of DAPE's code (github.com/chuanyang-Zheng/DAPE), which computes the bounds in single
    precision; here they are exact. No bucket is new past the training length if training reaches `max_distance`. It
    acts in self-attention; with `cross` it acts in cross-attention too, bidirectionally, on the same coordinate of both
    strings, each counted from its own start. Pointwise.

    Parameters: a table `[num_buckets, heads]` for each site of the model (encoder, decoder and, with `cross`,
    cross-attention), which all layers share, as in T5; initialised Xavier-normal.

    Attributes:
        num_buckets: Buckets in all; an even number.
        max_distance: The first distance of those that all share the last bucket of a direction.
        bidirectional: Whether keys after the query have buckets of their own; if not given, everywhere except in the
            decoder.
        scaled: Whether the table is multiplied by the root of the head width, as in DAPE's code but not in T5.
        coordinate: Coordinate of the layout.
        cross: Whether it acts in cross-attention too.
    """

    num_buckets: int = 32
    max_distance: int = 128
    bidirectional: bool | None = None
    scaled: bool = False
    coordinate: str = "raw"
    cross: bool = False

    def __post_init__(self) -> None:
        check_numbers(self, "model.position", ("num_buckets",), at_least=2)
        check_numbers(self, "model.position", ("max_distance",), at_least=1)
        check_coordinates(self, "coordinate")
        if self.num_buckets % 2:
            raise UserError(
                f"T5RelativeBias has {self.num_buckets} buckets, half of them for each direction: give an even number"
            )
        exact = self.num_buckets // (4 if self.bidirectional else 2)
        if self.max_distance <= exact:
            raise UserError(
                f"T5RelativeBias has {exact} buckets of one distance each, which reach a max_distance of"
                f" {self.max_distance} alone: give more than {exact}"
            )

    def build(self, sizes: ModelSizes) -> ModelPosition:
        return _T5Model(self, sizes)


class _T5Model(ModelPosition):
    """`T5RelativeBias` in one model, with its tables."""

    method: T5RelativeBias

    def __init__(self, method: T5RelativeBias, sizes: ModelSizes) -> None:
        super().__init__(method, sizes)
        self.tables = nn.ParameterDict()
        for site in SITES:
            if sizes.layers(site) and (site != "cross" or method.cross):
                self.tables[site] = nn.Parameter(torch.empty(method.num_buckets, sizes.num_heads))
                nn.init.xavier_normal_(self.tables[site])

    def at(self, site: Site, layer: int) -> AttentionPosition:
        return _T5Attention(self, site) if site in self.tables else AttentionPosition()


class _T5Attention(AttentionPosition):
    """`T5RelativeBias` in one site; it reads the model's table and is not a module, so the table is stored once."""

    def __init__(self, model: _T5Model, site: Site) -> None:
        self.model = model
        self.site: Site = site
        settings = model.method
        self.bidirectional = site != "decoder" if settings.bidirectional is None else settings.bidirectional
        self.bounds = bucket_bounds(settings.num_buckets // (2 if self.bidirectional else 1), settings.max_distance)

    def bias(self, q_positions: Positions, k_positions: Positions) -> Tensor:
        settings, table = self.model.method, self.model.tables[self.site]
        bucket = t5_buckets(distances(q_positions, k_positions, settings.coordinate), self.bounds, self.bidirectional)
        bias = table[bucket, torch.arange(table.shape[1], device=table.device)[:, None, None]]
        return bias * math.sqrt(self.model.sizes.head_dim) if settings.scaled else bias


def alibi_slopes(num_heads: int, rule: SlopeRule = "press") -> tuple[float, ...]:
    """ALiBi's slope of each head.

    If the number of heads is a power of two, both rules give `2^(-8 t / heads)`, `t = 1 .. heads`.

    Args:
        num_heads: Number of heads.
        rule: For any other number of heads, `press` takes the slopes of the next smaller power of two, and then every
            other slope of the next larger one, as the paper's authors do; `geometric` keeps to the formula.
    """
    if rule == "geometric":
        return tuple(2 ** (-8 * t / num_heads) for t in range(1, num_heads + 1))
    power = 2 ** int(math.log2(num_heads))
    between = alibi_slopes(2 * power, "geometric")[::2]
    return alibi_slopes(power, "geometric") + between[: num_heads - power]


@dataclass(frozen=True)
class ALiBi(PositionMethod):
    """Logits fall linearly with the distance; each head has its own slope.

    `bias[h, i, j] = -m_h |i - j|`; `alibi_slopes` gives `m`. Source: arXiv 2108.12409, where attention is causal and
    `|i - j| = i - j`; in our encoder both directions count alike. Defined at any length; far keys fade. It acts in
    self-attention; with `cross` it acts in cross-attention too, on the same coordinate of both strings, each counted
    from its own start. Pointwise; the same in every layer; no parameters.

    Attributes:
        slopes: The rule for a number of heads that is not a power of two: `press`, the paper's authors', or
            `geometric`, that of github.com/jaketae/alibi.
        symmetric: Whether keys after the query fade too; if not, their bias is `-m_h (i - j)`, as in jaketae's code.
        coordinate: Coordinate of the layout.
        cross: Whether it acts in cross-attention too.
    """

    slopes: SlopeRule = "press"
    symmetric: bool = True
    coordinate: str = "raw"
    cross: bool = False

    def __post_init__(self) -> None:
        check_literals(self)
        check_coordinates(self, "coordinate")

    def at(self, site: Site, layer: int, num_heads: int, head_dim: int) -> AttentionPosition:
        return AttentionPosition() if site == "cross" and not self.cross else ALiBiAttention(self, num_heads)


class ALiBiAttention(AttentionPosition):
    """`ALiBi` in any site and layer."""

    def __init__(self, method: ALiBi, num_heads: int) -> None:
        self.method = method
        self.slopes = alibi_slopes(num_heads, method.slopes)

    def bias(self, q_positions: Positions, k_positions: Positions) -> Tensor:
        distance = distances(q_positions, k_positions, self.method.coordinate)
        slopes = torch.tensor(self.slopes, dtype=torch.float32, device=distance.device)
        return -slopes[:, None, None] * (distance.abs() if self.method.symmetric else distance)


@dataclass(frozen=True)
class KerpleLog(PositionMethod):
    """Logits fall with the logarithm of the distance, at a rate and on a scale that each head learns.

    `bias[h, i, j] = -p_h ln(1 + a_h |i - j|)`. Source: KERPLE, arXiv 2205.09921, its logarithmic variant. The initial
    values and the smallest value, `epsilon`, are those of DAPE's code (github.com/chuanyang-Zheng/DAPE). That code
    writes `epsilon` into a parameter that falls below it. Here the parameter keeps its value; it is read as `epsilon`,
    and its gradient is that of `epsilon`. Defined at any length. It acts in self-attention; with `cross` it acts in
    cross-attention too, on the same coordinate of both strings, each counted from its own start. Pointwise.

    Parameters of each layer: `p`, `[heads]`, drawn evenly from 0 .. 2, and `a`, `[heads]`, drawn evenly from 0 .. 1.

    Attributes:
        epsilon: The smallest value of `p` and `a`.
        edits_parameters: Whether a parameter below `epsilon` is set to it when it is read, as in DAPE's code.
        coordinate: Coordinate of the layout.
        cross: Whether it acts in cross-attention too.
    """

    epsilon: float = 0.01
    edits_parameters: bool = False
    coordinate: str = "raw"
    cross: bool = False

    def __post_init__(self) -> None:
        check_numbers(self, "model.position", ("epsilon",))
        check_coordinates(self, "coordinate")

    def at(self, site: Site, layer: int, num_heads: int, head_dim: int) -> AttentionPosition:
        return AttentionPosition() if site == "cross" and not self.cross else KerpleLogAttention(self, num_heads)


class KerpleLogAttention(nn.Module, AttentionPosition):
    """`KerpleLog` in one site and layer."""

    def __init__(self, method: KerpleLog, num_heads: int) -> None:
        super().__init__()
        self.method = method
        self.p = nn.Parameter(2 * torch.rand(num_heads))
        self.a = nn.Parameter(torch.rand(num_heads))

    def bias(self, q_positions: Positions, k_positions: Positions) -> Tensor:
        p, a = (self._at_least(parameter)[:, None, None] for parameter in (self.p, self.a))
        return -p * torch.log1p(a * distances(q_positions, k_positions, self.method.coordinate).abs())

    def _at_least(self, parameter: Tensor) -> Tensor:
        """A parameter, or `epsilon` if it is smaller; unlike with `clamp`, the gradient passes in both cases."""
        if self.method.edits_parameters:
            parameter.data.clamp_(min=self.method.epsilon)
        number = _wide(parameter)
        return number + (number.clamp(min=self.method.epsilon) - number).detach()


@dataclass(frozen=True)
class FIRE(PositionMethod):
    """A small network gives each head's bias from the distance as a share of the query's position.

    `bias[h, i, j] = MLP(x)_h` with `x = f(|i - j|) / (f(max(i, |u L|)) + 1e-6)` and `f(n) = ln(1 + |c n|)`; the MLP has
    one hidden layer. Source: FIRE, arXiv 2310.04418, where attention is causal and `|i - j| = i - j`; in our encoder
    both directions count alike, as in the code of github.com/IKMLab/length-generalization-with-icl. In causal attention
    `x` is between 0 and 1 at any length. It acts in self-attention; with `cross` it acts in cross-attention too, on the
    same coordinate of both strings, each counted from its own start. Pointwise. Released codes have other settings:
    DAPE's (github.com/chuanyang-Zheng/DAPE) has a threshold of half a configured length, 64; IKMLab's has a width of
    102.

    Parameters of each layer: the number `c`, initialised to 0.1; the number `u`, initialised to 1; the two linear
    layers of the MLP, `[width, 1]` and `[heads, width]` with biases, initialised as PyTorch does.

    Attributes:
        threshold: L: with the initial `u`, distances are on one scale for queries up to this position.
        width: Width of the hidden layer.
        activation: Activation of the hidden layer: `relu` as in FIRE, or `leaky_relu` (slope 0.01) as in DAPE.
        coordinate: Coordinate of the layout.
        cross: Whether it acts in cross-attention too.
    """

    threshold: float = 512.0
    width: int = 32
    activation: Activation = "relu"
    coordinate: str = "raw"
    cross: bool = False

    def __post_init__(self) -> None:
        check_numbers(self, "model.position", ("threshold", "width"), at_least=1)
        check_literals(self)
        check_coordinates(self, "coordinate")

    def at(self, site: Site, layer: int, num_heads: int, head_dim: int) -> AttentionPosition:
        return AttentionPosition() if site == "cross" and not self.cross else FIREAttention(self, num_heads)


class FIREAttention(nn.Module, AttentionPosition):
    """`FIRE` in one site and layer."""

    def __init__(self, method: FIRE, num_heads: int) -> None:
        super().__init__()
        self.method = method
        self.c = nn.Parameter(torch.tensor(0.1))
        self.u = nn.Parameter(torch.tensor(1.0))
        self.hidden = nn.Linear(1, method.width)
        self.output = nn.Linear(method.width, num_heads)

    def bias(self, q_positions: Positions, k_positions: Positions) -> Tensor:
        distance = distances(q_positions, k_positions, self.method.coordinate).abs()
        query = q_positions.coordinate(self.method.coordinate)[:, None]
        c, limit = _wide(self.c), (_wide(self.u) * self.method.threshold).abs()
        scale = torch.log1p((c * torch.maximum(query.to(limit.dtype), limit)).abs())
        x = torch.log1p((c * distance).abs()) / (scale + _TINY)
        activation = functional.relu if self.method.activation == "relu" else functional.leaky_relu
        hidden = activation(functional.linear(x[..., None], _wide(self.hidden.weight), _wide(self.hidden.bias)))
        # With gathered keys each head has its own, `[head, query, slot, width]`, and needs its own bias alone.
        bias = torch.einsum("qkw,hw->hqk" if x.dim() == 2 else "hqkw,hw->hqk", hidden, _wide(self.output.weight))
        return bias + _wide(self.output.bias)[:, None, None]
