"""A position method without parameters."""

from dataclasses import dataclass

from abc_toolkit.positions import AttentionPosition, PositionMethod


@dataclass(frozen=True)
class Fading(PositionMethod, AttentionPosition):
    """Subtracts from each logit the distance between query and key, divided by `capacity`. Source: this folder."""

    capacity: int = 64

    def at(self, site, layer, num_heads, head_dim):
        return self

    def bias(self, q_positions, k_positions):
        distance = q_positions.coordinates["raw"][:, None] - k_positions.coordinates["raw"]
        # `[1, query, key]`, the same for every head; of gathered keys `[head, query, slot]` already.
        return -distance.view(-1, *distance.shape[-2:]).abs() / self.capacity
