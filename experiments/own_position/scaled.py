"""A position method with a learned number for each head of each layer."""

from dataclasses import dataclass

import torch
from torch import nn

from abc_toolkit.positions import AttentionPosition, PositionMethod


@dataclass(frozen=True)
class Scaled(PositionMethod):
    """Subtracts from each logit a learned multiple of the distance between query and key. Source: this folder."""

    start: float = 0.1

    def at(self, site, layer, num_heads, head_dim):
        return ScaledAttention(self.start, num_heads)


class ScaledAttention(nn.Module, AttentionPosition):
    """`Scaled` in one site and layer."""

    def __init__(self, start, num_heads):
        super().__init__()
        self.slope = nn.Parameter(torch.full((num_heads, 1, 1), start))

    def bias(self, q_positions, k_positions):
        distance = q_positions.coordinates["raw"][:, None] - k_positions.coordinates["raw"]
        return -self.slope * distance.abs()
