"""Position methods that compare the query with a vector of its distance to the key."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from abc_toolkit.errors import check_numbers
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
from abc_toolkit.positions.biases import distances


@dataclass(frozen=True)
class ShawRelative(PositionMethod):
    """A learned vector for each distance up to a window, added to the key.

    For a query at `i`, a key at `j` and the head width `D`: `q_i (k_j + a[clip(i - j, -window, window)]) / sqrt(D)`.
    Source: Shaw et al. 2018 (arXiv 1803.02155), equation 4 and section 3.2, without the vectors that the paper adds to
    the values. A distance is the query's coordinate minus the key's; the paper has the opposite sign, which only
    numbers the vectors from the other end. It acts in self-attention; with `cross` it acts in cross-attention too, on
    distances between the coordinates of two strings, each counted from its own start. Any length: on each side all
    distances beyond the window share a vector. Pointwise. Parameters: `a`, `[2 window + 1, D]`, from the standard
    normal distribution as in the code named below; each layer has its own, which its heads share, as in the paper's
    large model.

    Attributes:
        window: The largest distance with a vector of its own.
        scaled: Whether `q_i a` is divided by `sqrt(D)` as `q_i k_j` is, as in the paper and unlike in the code released
            with algebraic positional encodings (arXiv 2312.16045).
        coordinate: Coordinate of the layout.
        cross: Whether it acts in cross-attention too.
    """

    window: int = 16
    scaled: bool = True
    coordinate: str = "raw"
    cross: bool = False

    def __post_init__(self) -> None:
        check_numbers(self, "model.position", ("window",))
        check_coordinates(self, "coordinate")

    def at(self, site: Site, layer: int, num_heads: int, head_dim: int) -> AttentionPosition:
        if site == "cross" and not self.cross:
            return AttentionPosition()
        return ShawAttention(self, head_dim)


class ShawAttention(nn.Module, AttentionPosition):
    """`ShawRelative` in one site and layer."""

    transforms = True

    def __init__(self, method: ShawRelative, head_dim: int) -> None:
        super().__init__()
        self.method = method
        self.vectors = nn.Parameter(torch.randn(2 * method.window + 1, head_dim))

    def transform(
        self,
        scores: Tensor,
        q: Tensor,
        k: Tensor,
        q_positions: Positions,
        k_positions: Positions,
        mask: Tensor | None = None,
    ) -> Tensor:
        window = self.method.window
        distance = distances(q_positions, k_positions, self.method.coordinate).clamp(-window, window)
        by_distance = q @ self.vectors.to(q.dtype).T
        if self.method.scaled:
            by_distance = by_distance * q.shape[-1] ** -0.5
        chosen = by_distance.gather(-1, (distance + window).expand(*by_distance.shape[:-1], -1))
        return scores + chosen.to(scores.dtype)


@dataclass(frozen=True)
class TransformerXLBias(PositionMethod):
    """Sinusoids of the distance, compared with the query, and a learned bias of queries.

    For a query at `i`, a key at `j` and the head width `D`: `((q_i + u) k_j + (q_i + v) W r_{i-j}) / sqrt(D)`, where
    `r_p` holds, for the model width `d` and `w_m = base^(-2m/d)`, all `sin(p w_m)` and then all `cos(p w_m)`. Source:
    Dai et al. 2019 (arXiv 1901.02860), section 3.3, for keys up to the query; in the encoder a key after it has a
    negative distance and the same sinusoids. It acts in self-attention; with `cross` it acts in cross-attention too, on
    distances between the coordinates of two strings, each counted from its own start. Defined at any length, but beyond
    the training length a model meets new distances. Pointwise. Parameters, all initialised from a normal distribution
    of deviation 0.02: `u` and `v`, `[heads, D]`, which all layers share as in the paper; `W`, `[d, d]`, of each layer.

    Attributes:
        base: Slowest wavelength over 2 pi.
        coordinate: Coordinate of the layout.
        cross: Whether it acts in cross-attention too.
    """

    base: float = 10000.0
    coordinate: str = "raw"
    cross: bool = False

    def __post_init__(self) -> None:
        check_numbers(self, "model.position", ("base",), at_least=1)
        check_coordinates(self, "coordinate")

    def build(self, sizes: ModelSizes) -> ModelPosition:
        return _TransformerXLModel(self, sizes)


class _TransformerXLModel(ModelPosition):
    """`TransformerXLBias` in one model."""

    method: TransformerXLBias

    def __init__(self, method: TransformerXLBias, sizes: ModelSizes) -> None:
        super().__init__(method, sizes)
        self.sites: list[Site] = [site for site in SITES if site != "cross" or method.cross]
        self.u, self.v = (nn.Parameter(0.02 * torch.randn(sizes.num_heads, sizes.head_dim)) for _ in range(2))
        dim = sizes.num_heads * sizes.head_dim
        self.w = nn.ParameterDict(
            {
                f"{site}_{layer}": nn.Parameter(0.02 * torch.randn(dim, dim))
                for site in self.sites
                for layer in range(sizes.layers(site))
            }
        )

    def at(self, site: Site, layer: int) -> AttentionPosition:
        return _TransformerXLAttention(self, f"{site}_{layer}") if site in self.sites else AttentionPosition()


class _TransformerXLAttention(AttentionPosition):
    """`TransformerXLBias` in one site and layer; it reads the model's parameters."""

    transforms = True

    def __init__(self, model: _TransformerXLModel, name: str) -> None:
        self.model = model
        self.name = name

    def transform(
        self,
        scores: Tensor,
        q: Tensor,
        k: Tensor,
        q_positions: Positions,
        k_positions: Positions,
        mask: Tensor | None = None,
    ) -> Tensor:
        method = self.model.method
        wide = torch.promote_types(q.dtype, torch.float32)
        u, v, w = (p.to(wide) for p in (self.model.u, self.model.v, self.model.w[self.name]))
        (q_sin, q_cos), (k_sin, k_cos) = (
            _waves(positions.coordinate(method.coordinate), len(w), method.base, wide)
            for positions in (q_positions, k_positions)
        )
        # `r_{i-j}` is `r_j` rotated by `i`. The vector with which the query compares it is rotated instead, once for
        # all keys, so there is no vector for each pair of a query and a key.
        asked = torch.einsum("bhqd,hdm->bhqm", q + v[:, None], w.unflatten(0, u.shape))
        sines, cosines = asked[..., : q_sin.shape[-1]], asked[..., q_sin.shape[-1] :]
        cosines = functional.pad(cosines, (0, len(w) % 2))
        turned = torch.cat([cosines * q_sin - sines * q_cos, sines * q_sin + cosines * q_cos], dim=-1)
        waves = torch.cat([k_sin, k_cos], dim=-1)
        if k.dim() == 5:  # gathered keys
            added = torch.einsum("bhqm,hqsm->bhqs", turned, waves) + torch.einsum("bhqsd,hd->bhqs", k.to(wide), u)
        else:
            added = turned @ waves.T + torch.einsum("bhkd,hd->bhk", k.to(wide), u).unsqueeze(-2)
        return scores + (added * q.shape[-1] ** -0.5).to(scores.dtype)


def _waves(p: Tensor, dim: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Sines and cosines of coordinates of any shape, for vectors of `dim` channels, `[..., wave]` each."""
    # Double precision keeps differences of large angles exact enough.
    channels = torch.arange(0, dim, 2, device=p.device, dtype=torch.float64)
    angles = p[..., None] * torch.exp(-math.log(base) * channels / dim)
    return angles.sin().to(dtype), angles.cos().to(dtype)
