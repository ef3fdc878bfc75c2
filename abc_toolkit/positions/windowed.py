"""A window that is given by hand and is the same in every head and layer."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from abc_toolkit.errors import UserError, check_numbers
from abc_toolkit.layout import Positions
from abc_toolkit.positions.base import AttentionPosition, OpenKeys, PositionMethod, Site


@dataclass(frozen=True)
class WindowedBias(PositionMethod):
    """Windowed attention biasing: open are the tokens that a digit-by-digit algorithm needs, and a few around them.

    Write `w` for `width` and `i` for the predicted target token, where 0 is the least significant digit. The decoder's
    self-attention opens the tokens `i - w .. i` of those written so far; token `i` is the last one. Cross-attention
    counts the source from its last token, 0. With `step` 1 it opens `i - w .. i + w`: the digit of the same place and
    `w` tokens on each side. With `step` 2 it opens `2i - w .. 2i + 1 + w`: the pair of digits of the same place, in a
    source that is written in pairs. The bias of an open key is 0; a query without an open key attends to nothing.

    Source: arXiv 2310.11984, appendix A.4 and figure 11. There the window is a scaffold that calibration makes
    unnecessary, and it is used together with cyclic positions. The paper's source has a start and an end token, and
    ours has neither; counted from the last digit they are the same. The encoder has no window, as in the released code.
    Any length; pointwise; no parameters.

    Attributes:
        width: w.
        step: Source tokens for each target token: 1 for one operand, 2 for two in turn.
        released: Whether cross-attention opens `i - 1 .. i - 1 + w` instead, as the code of
            github.com/shaoxiongduan/AttentionBiasCalibration does; for `step` 1 only. Query 0 there reads the end
            token after the last digit, which our source does not have.
    """

    width: int = 1
    step: Literal[1, 2] = 1
    released: bool = False

    def __post_init__(self) -> None:
        check_numbers(self, "model.position", ("width",))
        check_numbers(self, "model.position", ("step",), at_least=1, at_most=2)
        if self.released and self.step != 1:
            raise UserError("WindowedBias: the released window has one source token a target token: leave out step")

    def at(self, site: Site, layer: int, num_heads: int, head_dim: int) -> AttentionPosition:
        if site == "encoder":
            return AttentionPosition()
        if site == "decoder":
            return WindowedBiasAttention("raw", 1, -self.width, 0, num_heads)
        first, last = (-1, self.width - 1) if self.released else (-self.width, self.step - 1 + self.width)
        return WindowedBiasAttention("raw_from_end", self.step, first, last, num_heads)


class WindowedBiasAttention(AttentionPosition):
    """The hooks of `WindowedBias`: open are the keys whose coordinate is `step * raw + n`, with `raw` of the query.

    Args:
        coordinate: Coordinate of the keys.
        step: The step.
        first: The smallest n.
        last: The largest n.
        num_heads: Number of heads; all have the same window.
    """

    def __init__(self, coordinate: str, step: int, first: int, last: int, num_heads: int) -> None:
        self.coordinate = coordinate
        self.step = step
        self.first = first
        self.last = last
        self.num_heads = num_heads

    def bias(self, q_positions: Positions, k_positions: Positions) -> Tensor:
        keys = k_positions.coordinates[self.coordinate]
        offset = keys - self.step * q_positions.coordinates["raw"][:, None]
        closed = (offset < self.first) | (offset > self.last)
        bias = torch.zeros(closed.shape, device=closed.device).masked_fill(closed, -torch.inf)
        return bias[None] if keys.dim() == 1 else bias

    def open_keys(self, q_positions: Positions, k_positions: Positions, most: float) -> OpenKeys | None:
        if self.last - self.first + 1 > most:
            return None
        known, order = k_positions.coordinates[self.coordinate].sort()
        offsets = torch.arange(self.first, self.last + 1, device=known.device)
        wanted = self.step * q_positions.coordinates["raw"][:, None] + offsets
        found = torch.searchsorted(known, wanted).clamp(max=len(known) - 1)
        bias = torch.zeros(wanted.shape, device=known.device).masked_fill(known[found] != wanted, -torch.inf)
        return OpenKeys(order[found].expand(self.num_heads, -1, -1), bias.expand(self.num_heads, -1, -1))

    def among_open_keys(self) -> AttentionPosition:
        return AttentionPosition()

    def why_not_gathered(self) -> str | None:
        return None
