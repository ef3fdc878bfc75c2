"""Methods that add a vector to the token embeddings, or nothing."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from abc_toolkit.errors import check_numbers
from abc_toolkit.layout import Positions
from abc_toolkit.positions.base import PositionMethod

Coordinate = Literal["place", "index", "raw", "raw_from_end", "segment"]


@dataclass(frozen=True)
class NoPE(PositionMethod):
    """No position information but the causal mask and a window, if there is one.

    Source: Kazemnejad et al. 2023 (arXiv 2305.19466). Any length; every site; pointwise; no parameters.
    """

    @property
    def repeats_after(self) -> int | None:
        return 1


@dataclass(frozen=True)
class Sinusoidal(PositionMethod):
    """Sinusoids of the layout's coordinates, added to the embeddings of both streams.

    For a coordinate `p` and model dimension `d`, channels `2m` and `2m + 1` receive `sin(p w_m)` and `cos(p w_m)`
    with `w_m = base^(-2m/d)`. Source: Vaswani et al. 2017, section 3.5, whose only coordinate is the raw index.
    Of several coordinates, each has its own table, the k-th of K turned by `d k/K` channels, and the tables are
    added. Defined at any length, though a model sees values beyond training that it never met. Every site; no
    parameters.

    Attributes:
        coordinates: Which coordinates of the layout; the decoder's tokens use those of the token they predict.
        base: Slowest wavelength over 2 pi.
    """

    coordinates: tuple[Coordinate, ...] = ("raw",)
    base: float = 10000.0

    def __post_init__(self) -> None:
        check_numbers(self, "model.position", ("base",), at_least=1)

    def embed(self, x: Tensor, positions: Positions) -> Tensor:
        return x + self.table(positions, x.shape[-1]).to(x.dtype)

    def values(self, positions: Positions, coordinate: Coordinate) -> Tensor:
        """The numbers that the sinusoids of one coordinate are taken of, `[length]`."""
        return positions.coordinates[coordinate]

    def table(self, positions: Positions, dim: int) -> Tensor:
        """The vectors that are added, `[length, dim]`."""
        device = positions.segment.device
        channels = torch.arange(0, dim, 2, device=device, dtype=torch.float32)
        frequencies = torch.exp(-math.log(self.base) * channels / dim)
        table = torch.zeros(len(positions), dim, device=device)
        for k, coordinate in enumerate(self.coordinates):
            angles = self.values(positions, coordinate).to(torch.float32)[:, None] * frequencies
            waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :dim]
            table = table + waves.roll(dim * k // len(self.coordinates), dims=1)
        return table


@dataclass(frozen=True)
class Cyclic(Sinusoidal):
    """Sinusoids of coordinates modulo a period: `p mod T` in place of `p`.

    Source: cyclic position indexing, arXiv 2310.11984, appendix A.4, whose coordinate is the raw index and whose
    T is 3. No value beyond training ever occurs. Every site; no parameters.

    Attributes:
        period: T.
    """

    period: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "model.position", ("period",), at_least=1)

    @property
    def repeats_after(self) -> int | None:
        return self.period

    def values(self, positions: Positions, coordinate: Coordinate) -> Tensor:
        return super().values(positions, coordinate) % self.period
