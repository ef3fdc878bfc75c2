"""Methods that add to the logits a function of how far apart a query and a key are.

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
    """`i - j`, `[query, key]`; of gathered keys `[head, query, slot]`."""
    return q_positions.coordinate(coordinate)[:, None] - k_positions.coordinate(coordinate)


def _wide(number: Tensor) -> Tensor:
    """At least single precision: logarithms of positions need it."""
    return number.to(torch.promote_types(number.dtype, torch.float32))


def bucket_bounds(num_buckets: int, max_distance: int) -> tuple[int, ...]:
    """The first distance of each of T5's buckets of one direction but bucket 0.

    Half of the buckets, `e`, hold one distance each; the other `r` grow evenly in the logarithm up to `max_distance`,
    the k-th, from 0, from the least `n` on with `r ln(n / e) / ln(max_distance / e) >= k`. That is `n^r >= e^(r - k)
    max_distance^k`, and is decided in integers: a logarithm in single precision may miss a bound by one.

    Args:
        num_buckets: Buckets of the direction.
        max_distance: From where on all share the last bucket.
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
        bounds: What `bucket_bounds` returned.
        bidirectional: Whether keys after the query have as many buckets again; else they are in bucket 0.
    """
    length = distance.abs() if bidirectional else distance.clamp(min=0)
    starts = torch.tensor(bounds, dtype=torch.long, device=distance.device)
    bucket = torch.bucketize(length.contiguous(), starts, right=True)  # it warns of what is not: gathered keys
    return bucket + (len(bounds) + 1) * (distance < 0) if bidirectional else bucket


@dataclass(frozen=True)
class T5RelativeBias(PositionMethod):
    """A learned number for each head and each bucket of distances, added to the logits.

    `bias[h, i, j] = W[bucket(i - j), h]`. Half of the buckets hold one distance each, the others grow evenly in the
    logarithm up to `max_distance`, and the last one holds all beyond. Two ways, each direction has half of the buckets;
    causally, every key after the query is in bucket 0. Source: T5, arXiv 1910.10683, section 2.1, which divides no
    logits by the root of the head width as ours are; the bounds of the buckets and the initial values are those of
    DAPE's code (github.com/chuanyang-Zheng/DAPE), which finds the bounds in single precision, and ours exactly. Past
    the training length nothing new occurs beyond `max_distance`. In cross-attention nothing, or, with `cross`, two
    ways over the same coordinate of both strings, each counted from its own start. Pointwise.

    Parameters: a table `[num_buckets, heads]` for each kind of site that the model has (encoder, decoder and, with
    `cross`, cross-attention), which all its layers share, as in T5; Xavier-normal at first.

    Attributes:
        num_buckets: Buckets in all; an even number.
        max_distance: From where on all distances of a direction share a bucket.
        bidirectional: Whether keys after the query have buckets of their own; if not given, everywhere but in the
            decoder.
        scaled: Whether the table is multiplied by the root of the head width, as DAPE's code does and T5 does not.
        coordinate: What is counted.
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
    """`T5RelativeBias` in one model: the tables."""

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
    """`T5RelativeBias` in one site: it reads the model's table, and is no module so that the table stands once."""

    def __init__(self, model: _T5Model, site: Site) -> None:
        self.model = model
        self.site: Site = site
        settings = model.method
        self.two_ways = site != "decoder" if settings.bidirectional is None else settings.bidirectional
        self.bounds = bucket_bounds(settings.num_buckets // (2 if self.two_ways else 1), settings.max_distance)

    def bias(self, q_positions: Positions, k_positions: Positions) -> Tensor:
        settings, table = self.model.method, self.model.tables[self.site]
        bucket = t5_buckets(distances(q_positions, k_positions, settings.coordinate), self.bounds, self.two_ways)
        bias = table[bucket, torch.arange(table.shape[1], device=table.device)[:, None, None]]
        return bias * math.sqrt(self.model.sizes.head_dim) if settings.scaled else bias


def alibi_slopes(num_heads: int, rule: SlopeRule = "press") -> tuple[float, ...]:
    """ALiBi's slope of each head.

    With a power of two of heads both rules give `2^(-8 t / heads)`, `t = 1 .. heads`.

    Args:
        num_heads: Number of heads.
        rule: For any other number of heads, `press` takes the slopes of the power of two below, and then every other
            one of those of the power above, as the paper's authors do; `geometric` keeps to the formula.
    """
    if rule == "geometric":
        return tuple(2 ** (-8 * t / num_heads) for t in range(1, num_heads + 1))
    power = 2 ** int(math.log2(num_heads))
    between = alibi_slopes(2 * power, "geometric")[::2]
    return alibi_slopes(power, "geometric") + between[: num_heads - power]


@dataclass(frozen=True)
class ALiBi(PositionMethod):
    """Logits fall evenly with the distance, in each head by its own slope.

    `bias[h, i, j] = -m_h |i - j|`; see `alibi_slopes` for `m`. Source: arXiv 2108.12409, where attention is causal and
    `|i - j| = i - j`; two ways, as in our encoder, we count both directions alike. Defined at any length; far keys
    fade. In cross-attention nothing, or, with `cross`, the same of both strings, each counted from its own start.
    Pointwise; no parameters; every layer has the same.

    Attributes:
        slopes: The rule for numbers of heads that are no power of two: `press`, the paper's authors', or `geometric`,
            that of github.com/jaketae/alibi.
        symmetric: Whether keys after the query fade too; else they gain, `-m_h (i - j)`, as in jaketae's code.
        coordinate: What is counted.
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

    `bias[h, i, j] = -p_h ln(1 + a_h |i - j|)`. Source: KERPLE, arXiv 2205.09921, its logarithmic variant, with the
    initial values and the least value, `epsilon`, of DAPE's code (github.com/chuanyang-Zheng/DAPE). That code writes
    `epsilon` into a parameter that has fallen below it; here the parameter stays, is read as `epsilon` and has the
    gradient of that. Defined at any length. In cross-attention nothing, or, with `cross`, the
    same of both strings, each counted from its own start. Pointwise.

    Parameters, of each layer's own: `p`, `[heads]`, at first even over 0 .. 2, and `a`, `[heads]`, over 0 .. 1.

    Attributes:
        epsilon: The least value of `p` and `a`.
        edits_parameters: Whether parameters below `epsilon` are set to it whenever they are read, as DAPE's code does.
        coordinate: What is counted.
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
        """A parameter, or `epsilon` if it is below; the gradient is passed on all the same, which `clamp` does not."""
        if self.method.edits_parameters:
            parameter.data.clamp_(min=self.method.epsilon)
        number = _wide(parameter)
        return number + (number.clamp(min=self.method.epsilon) - number).detach()


@dataclass(frozen=True)
class FIRE(PositionMethod):
    """A small network of the distance, as a share of the query's own position, gives each head's bias.

    `bias[h, i, j] = MLP(x)_h` with `x = f(|i - j|) / (f(max(i, |u L|)) + 1e-6)` and `f(n) = ln(1 + |c n|)`; the MLP has
    one hidden layer. Source: FIRE, arXiv 2310.04418, whose attention is causal and `|i - j| = i - j`; two ways we count
    both directions alike, as does the code of github.com/IKMLab/length-generalization-with-icl. At any length `x` stays
    between 0 and 1 in causal attention. In cross-attention nothing, or, with `cross`, the same of both strings, each
    counted from its own start. Pointwise. The released codes differ in settings: DAPE's
    (github.com/chuanyang-Zheng/DAPE) have a threshold of half a configured length, 64, and the one in ICL a width of
    102.

    Parameters, of each layer's own: `c`, a number, at first 0.1; `u`, a number, at first 1; the MLP's two linear layers
    `[width, 1]` and `[heads, width]` with biases, at first as PyTorch makes them.

    Attributes:
        threshold: L, the position up to which distances are measured on a common scale, to start with.
        width: Width of the hidden layer.
        activation: That of the hidden layer; `relu` in FIRE itself, `leaky_relu` (slope 0.01) inside DAPE.
        coordinate: What is counted.
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
        # Gathered keys are each head's own, `[head, query, slot, width]`, and only that head's bias is wanted.
        bias = torch.einsum("qkw,hw->hqk" if x.dim() == 2 else "hqkw,hw->hqk", hidden, _wide(self.output.weight))
        return bias + _wide(self.output.bias)[:, None, None]
