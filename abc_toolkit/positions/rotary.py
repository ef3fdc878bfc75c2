"""Position methods that rotate pairs of channels of queries and keys by angles in proportion to a coordinate."""

import math
import weakref
from dataclasses import dataclass

import torch
from torch import Tensor

from abc_toolkit.errors import UserError, check_numbers
from abc_toolkit.layout import Positions
from abc_toolkit.positions.base import AttentionPosition, PositionMethod, Site, check_coordinates

Key = tuple["RoPE", int, torch.dtype]
Waves = tuple[Tensor, ...]
# By the queries' positions: the positions of the keys that they were last computed with, and the waves of both.
_WAVES: "weakref.WeakKeyDictionary[Positions, dict[Key, tuple[weakref.ref[Positions], Waves]]]"
_WAVES = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class RoPE(PositionMethod):
    """Rotary positions: pairs of channels of queries and keys are rotated, so that logits depend on distances alone.

    Of `d` channels that rotate, the pair `m` rotates by `p w_m` at the coordinate `p`, with `w_m = base^(-2m/d)`:
    `(a, b)` becomes `(a cos - b sin, b cos + a sin)`. A pair is the channels `m` and `m + d/2`, or, interleaved, `2m`
    and `2m + 1`; the two models differ only in the order of their weights. Source: Su et al. 2021 (arXiv 2104.09864),
    where pairs are interleaved; halves, as in GPT-NeoX and Llama, are the default.

    Defined at any length, but beyond the training length slow pairs meet new angles. It acts in self-attention; with
    `cross` it acts in cross-attention too, on the same coordinate of both strings, each counted from its own start.
    Pointwise; the same in every layer; no parameters.

    Attributes:
        coordinate: Coordinate of the layout, for queries and keys.
        base: Slowest wavelength over 2 pi.
        fraction: Share of a head's channels that rotate, the first ones; the others carry no position.
        interleaved: Whether neighbouring channels are a pair.
        cross: Whether it acts in cross-attention too.
    """

    coordinate: str = "raw"
    base: float = 10000.0
    fraction: float = 1.0
    interleaved: bool = False
    cross: bool = False

    def __post_init__(self) -> None:
        check_coordinates(self, "coordinate")
        check_numbers(self, "model.position", ("base",), at_least=1)
        check_numbers(self, "model.position", ("fraction",), at_most=1)

    def at(self, site: Site, layer: int, num_heads: int, head_dim: int) -> AttentionPosition:
        width = round(self.fraction * head_dim)
        if width % 2 or not width:
            raise UserError(
                f"{type(self).__name__} needs an even number of channels to rotate and has {width} of the head width "
                f"{head_dim}: change model_dim, num_heads or fraction"
            )
        return AttentionPosition() if site == "cross" and not self.cross else RotaryAttention(self, width)

    def spectrum(
        self, width: int, dtype: torch.dtype, q_positions: Positions, k_positions: Positions
    ) -> tuple[Tensor, Tensor]:
        """The frequencies of the rotation of queries and keys in one attention.

        Args:
            width: Channels that rotate.
            dtype: Type of the numbers.
            q_positions: Positions of the queries.
            k_positions: Positions of the keys.

        Returns:
            The angle from one position to the next of each pair, `[width / 2]`, and the factor of the rotated channels.
        """
        device = q_positions.segment.device
        channels = torch.arange(0, width, 2, device=device, dtype=dtype)
        return self.base ** (-channels / width), torch.ones((), device=device, dtype=dtype)


@dataclass(frozen=True)
class YaRN(RoPE):
    """RoPE for strings longer than in training: slow pairs are slowed further, fast pairs keep their frequency.

    A pair that rotates `r` times within the original length is `m(r) = d ln(original_length / (2 pi r)) /
    (2 ln base)`. With `low = max(floor m(beta_fast), 0)` and `high = min(ceil m(beta_slow), d - 1)`, pair `m` has the
    frequency `w_m (1 - ramp + ramp / factor)` with `ramp = (m - low) / (high - low)` clipped to 0 .. 1; a difference
    `high - low` of less than 0.001 counts as 0.001. The rotated channels of queries and keys are multiplied by
    `1 + mscale ln(factor)`, a temperature of the softmax. Source: Peng et al. 2023 (arXiv 2309.00071), section 3, with
    the bounds rounded and clipped as in released code.

    The factor applies at every length and in training too, so it is for weights that are trained, or trained further,
    with it. Past `factor` times the original length slow pairs meet new angles, as in RoPE. Sites and parameters are
    those of RoPE; pointwise.

    Attributes:
        coordinate: Coordinate of the layout, for queries and keys.
        base: Slowest wavelength over 2 pi, before it is stretched.
        fraction: Share of a head's channels that rotate, the first ones.
        interleaved: Whether neighbouring channels are a pair.
        cross: Whether it acts in cross-attention too.
        factor: How many times longer strings are to be.
        original_length: Tokens of the longest string that the frequencies `w_m` are for.
        beta_fast: Pairs that rotate more often than this within the original length keep their frequency.
        beta_slow: Pairs that rotate less often are slowed by the whole factor.
        mscale: Weight of the logarithm of the factor in the temperature; 0 for no temperature.
    """

    factor: float = 8.0
    original_length: int = 32
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "model.position", ("factor", "original_length"), at_least=1)
        check_numbers(self, "model.position", ("mscale", "beta_fast", "beta_slow"))
        if not (self.base > 1 and self.beta_fast >= self.beta_slow > 0):
            raise UserError(
                f"{type(self).__name__} has base {self.base:g}, beta_fast {self.beta_fast:g} and beta_slow "
                f"{self.beta_slow:g}: give a base above 1, a beta_slow above 0 and a beta_fast of at least beta_slow"
            )

    def stretch(self, dtype: torch.dtype, q_positions: Positions, k_positions: Positions) -> Tensor:
        """The factor of one attention: how many times longer than the original its strings may be, at least 1."""
        return torch.tensor(self.factor, dtype=dtype, device=q_positions.segment.device)

    def spectrum(
        self, width: int, dtype: torch.dtype, q_positions: Positions, k_positions: Positions
    ) -> tuple[Tensor, Tensor]:
        frequencies, one = super().spectrum(width, dtype, q_positions, k_positions)
        low = max(math.floor(self._pair(self.beta_fast, width)), 0)
        high = min(math.ceil(self._pair(self.beta_slow, width)), width - 1)
        pairs = torch.arange(width // 2, device=frequencies.device, dtype=dtype)
        ramp = ((pairs - low) / max(high - low, 0.001)).clamp(0, 1)
        factor = self.stretch(dtype, q_positions, k_positions)
        return frequencies * (1 - ramp + ramp / factor), one + self.mscale * factor.log()

    def _pair(self, turns: float, width: int) -> float:
        """The pair that rotates so many times within the original length, as a fraction of a pair's number."""
        return width * math.log(self.original_length / (2 * math.pi * turns)) / (2 * math.log(self.base))


@dataclass(frozen=True)
class DynamicYaRN(YaRN):
    """YaRN with a factor that follows the length of the string: RoPE up to a length, and stretched beyond it.

    For a string of `n` tokens the factor is `max(1, n / (factor original_length))`. The rest is that of YaRN, with
    bounds from `original_length`. Source: Peng et al. 2023 (arXiv 2309.00071), section 3.3, where `factor` is 1; in
    released code `factor` moves the length at which stretching begins, and so it does here.

    `n` is the length of the token's whole string, which the layout gives for any coordinate. So a step of decoding
    gives the logits of the whole string. In cross-attention the longer string counts. A released module keeps the
    factor of the longest string that it met; here each string has its own. Defined at any length: slow pairs never meet
    angles beyond the first `factor original_length` positions. Sites and parameters are those of RoPE; pointwise.

    Attributes:
        coordinate: Coordinate of the layout, for queries and keys.
        base: Slowest wavelength over 2 pi, before it is stretched.
        fraction: Share of a head's channels that rotate, the first ones.
        interleaved: Whether neighbouring channels are a pair.
        cross: Whether it acts in cross-attention too.
        factor: Times the original length up to which nothing is stretched.
        original_length: Tokens of the longest string that the frequencies `w_m` are for.
        beta_fast: Pairs that rotate more often than this within the original length keep their frequency.
        beta_slow: Pairs that rotate less often are slowed by the whole factor.
        mscale: Weight of the logarithm of the factor in the temperature; 0 for no temperature.
    """

    factor: float = 1.0

    def stretch(self, dtype: torch.dtype, q_positions: Positions, k_positions: Positions) -> Tensor:
        lengths = [(p.coordinates["raw"] + p.coordinates["raw_from_end"]).max() + 1 for p in (q_positions, k_positions)]
        return (torch.maximum(*lengths).to(dtype) / (self.factor * self.original_length)).clamp(min=1)


class RotaryAttention(AttentionPosition):
    """A rotary method in one attention.

    Args:
        method: The position method.
        width: Channels of a head that rotate.
    """

    def __init__(self, method: RoPE, width: int) -> None:
        self.method = method
        self.width = width

    def rotate(self, q: Tensor, k: Tensor, q_positions: Positions, k_positions: Positions) -> tuple[Tensor, Tensor]:
        cos, sin, k_cos, k_sin = self._waves(q.dtype, q_positions, k_positions)
        return self._rotated(q, cos, sin), self._rotated(k, k_cos, k_sin)

    def _waves(self, dtype: torch.dtype, q_positions: Positions, k_positions: Positions) -> tuple[Tensor, ...]:
        """What queries and keys are multiplied by, `[length, width]` each: cosines, and sines that carry their signs.

        They are computed once for a pair of positions, as layers share them, and so do the steps of a training.
        """
        known = _WAVES.setdefault(q_positions, {})
        key = (self.method, self.width, dtype)
        keys, waves = known.get(key, (None, ()))
        if keys is not None and keys() is k_positions:
            return waves
        with torch.inference_mode(False):  # they may be needed in training later
            # Half precision cannot hold the angles of more than a few hundred positions.
            wide = torch.promote_types(dtype, torch.float32)
            frequencies, size = self.method.spectrum(self.width, wide, q_positions, k_positions)
            own = self._waves_at(q_positions, frequencies, size, dtype)
            same = k_positions is q_positions
            waves = (*own, *(own if same else self._waves_at(k_positions, frequencies, size, dtype)))
        if k_positions.segment.dim() == 1:  # gathered keys have positions of their own every time
            known[key] = (weakref.ref(k_positions), waves)
        return waves

    def _waves_at(
        self, positions: Positions, frequencies: Tensor, size: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines `[..., width]` of positions `[...]`."""
        angles = positions.coordinate(self.method.coordinate)[..., None] * frequencies
        cos, sin = (size * angles.cos()).to(dtype), (size * angles.sin()).to(dtype)
        if self.method.interleaved:
            return cos.repeat_interleave(2, dim=-1), torch.stack([-sin, sin], dim=-1).flatten(-2)
        return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)

    def _rotated(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        turning, rest = x[..., : self.width], x[..., self.width :]
        if self.method.interleaved:
            partners = torch.stack([turning[..., 1::2], turning[..., 0::2]], dim=-1).flatten(-2)
        else:
            partners = torch.cat(turning.chunk(2, dim=-1)[::-1], dim=-1)
        # The sum lies in memory as its first part does: contiguous, which decides on the last bit of attention weights.
        turned = partners * sin + turning * cos
        return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned
