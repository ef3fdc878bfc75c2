"""The contract of a position method: anything that tells attention about order."""

from typing import Literal, get_args

from torch import Tensor

from abc_toolkit.layout import Positions

Site = Literal["encoder", "decoder", "cross"]
SITES: tuple[Site, ...] = get_args(Site)


class AttentionPosition:
    """What one attention module of one layer knows of positions. Overriding nothing is NoPE.

    A method with parameters is also an `nn.Module`.

    Attributes:
        pointwise: Whether a logit needs only its own query and key, so that keys may be gathered.
        transforms: Whether `transform` does anything; the fused path is for methods where it does not.
    """

    pointwise: bool = True
    transforms: bool = False

    def rotate(self, q: Tensor, k: Tensor, q_positions: Positions, k_positions: Positions) -> tuple[Tensor, Tensor]:
        """Queries and keys `[batch, head, length, dim]` turned by their positions."""
        return q, k

    def bias(self, q_positions: Positions, k_positions: Positions) -> Tensor | None:
        """Added to the logits, a function of positions alone: `[head, query, key]`, minus infinity where closed."""
        return None

    def transform(self, scores: Tensor, q: Tensor, k: Tensor, q_positions: Positions, k_positions: Positions) -> Tensor:
        """Scaled logits `[batch, head, query, key]` turned into others."""
        return scores


class PositionMethod:
    """Settings of a position method, and the maker of what the model runs. Overriding nothing is NoPE.

    A method is an immutable value (a frozen dataclass) that makes its hooks, rather than a module that holds them,
    so that a run folder records it by its fields and parameters exist only inside a model.
    """

    def embed(self, x: Tensor, positions: Positions) -> Tensor:
        """Adds to a stream of token embeddings `[batch, length, dim]`; queries' positions in the decoder."""
        return x

    def at(self, site: Site, layer: int, num_heads: int, head_dim: int) -> AttentionPosition:
        """What the attention of one site and layer runs; a method that shares returns the same object again."""
        return AttentionPosition()
