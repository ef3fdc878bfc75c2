"""Methods that turn pairs of channels of queries and keys by angles in proportion to their positions."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from abc_toolkit.errors import UserError, check_numbers
from abc_toolkit.layout import Positions
from abc_toolkit.positions.base import AttentionPosition, PositionMethod, Site, check_coordinates


@dataclass(frozen=True)
class RoPE(PositionMethod):
    """Rotary positions: pairs of channels of queries and keys are turned, so that a logit knows differences alone.

    Of `d` channels that turn, the pair `m` turns by `p w_m` at the coordinate `p`, with `w_m = base^(-2m/d)`:
    `(a, b)` becomes `(a cos - b sin, b cos + a sin)`. The pair is the channels `m` and `m + d/2`, or, interleaved,
    `2m` and `2m + 1`; these are the same model but for the order of its weights. Source: Su et al. 2021 (arXiv
    2104.09864), whose pairs are interleaved; the halves are those of GPT-NeoX and Llama, and the default.

    Defined at any length, though slow pairs meet angles beyond training that they never turned by. It acts in
    self-attention; in cross-attention it does nothing unless `cross` is set, and then it takes the same coordinate of
    both strings, each counted from its own start. Pointwise; the same in every layer; no parameters.

    Attributes:
        coordinate: Which coordinate of the layout, of queries and keys.
        base: Slowest wavelength over 2 pi.
        fraction: Part of a head's channels that turn, the first ones; the others know no positions.
        interleaved: Whether neighbours make a pair.
        cross: Whether it acts in cross-attention.
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
                f"{type(self).__name__} needs an even number of channels to turn and has {width} of the head width "
                f"{head_dim}: change model_dim, num_heads or fraction"
            )
        return AttentionPosition() if site == "cross" and not self.cross else RotaryAttention(self, width)

    def spectrum(
        self, width: int, dtype: torch.dtype, q_positions: Positions, k_positions: Positions
    ) -> tuple[Tensor, Tensor]:
        """What turns the queries and keys of one attention.

        Args:
            width: Channels that turn.
            dtype: Type of the numbers.
            q_positions: Positions of the queries.
            k_positions: Positions of the keys.

        Returns:
            The angle from one position to the next of each pair, `[width / 2]`, and the number that the turned
            channels are multiplied by.
        """
        device = q_positions.segment.device
        channels = torch.arange(0, width, 2, device=device, dtype=dtype)
        return self.base ** (-channels / width), torch.ones((), device=device, dtype=dtype)


@dataclass(frozen=True)
class YaRN(RoPE):
    """RoPE for longer strings than those of training: slow pairs are slowed further, fast ones are left alone.

    A pair that turns `r` times within the original length stands at `m(r) = d ln(original_length / (2 pi r)) /
    (2 ln base)`. With `low = max(floor m(beta_fast), 0)` and `high = min(ceil m(beta_slow), d - 1)`, pair `m` has the
    frequency `w_m (1 - ramp + ramp / factor)` with `ramp = (m - low) / (high - low)` cut to 0 .. 1, a difference of
    less than 0.001 taken as 0.001; the turned channels of queries and keys are multiplied by
    `1 + mscale ln(factor)`, a temperature of the softmax. Source: Peng et al. 2023 (arXiv 2309.00071), section 3, with
    its bounds as released code cuts them.

    It holds at every length, in training too: it is a choice for weights that are trained further at the factor, or
    trained with it. Past `factor` times the original length slow pairs leave the angles of training, as in RoPE. Sites,
    sharing and parameters are those of RoPE; pointwise.

    Attributes:
        coordinate: Which coordinate of the layout, of queries and keys.
        base: Slowest wavelength over 2 pi, before it is stretched.
        fraction: Part of a head's channels that turn, the first ones.
        interleaved: Whether neighbours make a pair.
        cross: Whether it acts in cross-attention.
        factor: How many times longer strings are to be.
        original_length: Tokens of the longest string that the frequencies `w_m` are for.
        beta_fast: Pairs that turn more often than this within the original length keep their frequency.
        beta_slow: Those that turn less often are slowed by the whole factor.
        mscale: What the logarithm of the factor is multiplied by in the temperature; 0 for none.
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
        """How many times longer than the original the strings of one attention are taken to be, from 1."""
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
        """The pair that turns so many times within the original length; not a whole number."""
        return width * math.log(self.original_length / (2 * math.pi * turns)) / (2 * math.log(self.base))


@dataclass(frozen=True)
class DynamicYaRN(YaRN):
    """YaRN whose factor follows the string: RoPE up to a length, and past it stretched as far as needed.

    For a string of `n` tokens the factor is `max(1, n / (factor original_length))`; all else is YaRN's, the bounds
    from `original_length`. Source: Peng et al. 2023 (arXiv 2309.00071), section 3.3, whose `factor` is 1; in released
    code it moves the length at which stretching starts, and so it does here.

    `n` is the length of the whole string that a token belongs to, known from the layout and whatever the coordinate,
    so that a step of decoding sees what the whole sees; in cross-attention the longer string counts. A released module
    keeps the factor of the longest string that it met; here each string has its own. Defined at any length: slow pairs
    never leave the angles of the first `factor original_length` positions. Sites, sharing and parameters are those of
    RoPE; pointwise.

    Attributes:
        coordinate: Which coordinate of the layout, of queries and keys.
        base: Slowest wavelength over 2 pi, before it is stretched.
        fraction: Part of a head's channels that turn, the first ones.
        interleaved: Whether neighbours make a pair.
        cross: Whether it acts in cross-attention.
        factor: Times the original length up to which nothing is stretched.
        original_length: Tokens of the longest string that the frequencies `w_m` are for.
        beta_fast: Pairs that turn more often than this within the original length keep their frequency.
        beta_slow: Those that turn less often are slowed by the whole factor.
        mscale: What the logarithm of the factor is multiplied by in the temperature; 0 for none.
    """

    factor: float = 1.0

    def stretch(self, dtype: torch.dtype, q_positions: Positions, k_positions: Positions) -> Tensor:
        lengths = [(p.coordinates["raw"] + p.coordinates["raw_from_end"]).max() + 1 for p in (q_positions, k_positions)]
        return (torch.maximum(*lengths).to(dtype) / (self.factor * self.original_length)).clamp(min=1)


class RotaryAttention(AttentionPosition):
    """A rotary method in one attention.

    Args:
        method: The method.
        width: Channels of a head that turn.
    """

    def __init__(self, method: RoPE, width: int) -> None:
        self.method = method
        self.width = width

    def rotate(self, q: Tensor, k: Tensor, q_positions: Positions, k_positions: Positions) -> tuple[Tensor, Tensor]:
        # Half precision cannot hold the angles of more than a few hundred positions.
        dtype = torch.promote_types(q.dtype, torch.float32)
        frequencies, size = self.method.spectrum(self.width, dtype, q_positions, k_positions)
        return self._turned(q, q_positions, frequencies, size), self._turned(k, k_positions, frequencies, size)

    def _turned(self, x: Tensor, positions: Positions, frequencies: Tensor, size: Tensor) -> Tensor:
        angles = positions.coordinate(self.method.coordinate)[..., None] * frequencies
        cos, sin = (size * angles.cos()).to(x.dtype), (size * angles.sin()).to(x.dtype)
        pair = -1 if self.method.interleaved else -2  # the dimension of the two in a pair, once they have one
        turning, rest = x[..., : self.width], x[..., self.width :]
        first, second = turning.unflatten(-1, (-1, 2) if self.method.interleaved else (2, -1)).unbind(pair)
        turned = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=pair)
        return torch.cat([turned.flatten(-2), rest], dim=-1)
