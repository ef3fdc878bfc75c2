"""The one attention: project, rotate, score, bias, mask, softmax.

Dimensions are `batch, head, query, key, dim` throughout.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from abc_toolkit.layout import Positions
from abc_toolkit.positions import AttentionPosition


def linear(in_dim: int, out_dim: int, parts: int = 1) -> nn.Linear:
    """A linear layer with Xavier-uniform weights and no bias to start with.

    Args:
        in_dim: Width of its input.
        out_dim: Width of each part of its output.
        parts: Layers that are run as one, each initialised by itself.
    """
    layer = nn.Linear(in_dim, parts * out_dim)
    for weight in layer.weight.chunk(parts):
        nn.init.xavier_uniform_(weight)
    nn.init.zeros_(layer.bias)
    return layer


class Attention(nn.Module):
    """Multi-head attention for every site.

    A query with no open key yields exactly zero, before the output projection's bias.

    Args:
        model_dim: Width of the streams.
        num_heads: Number of heads; divides `model_dim`.
        dropout: Probability that an attention weight is dropped while training.
        position: What this site and layer know of positions.

    Raises:
        ValueError: If `num_heads` does not divide `model_dim`.
    """

    def __init__(self, model_dim: int, num_heads: int, dropout: float, position: AttentionPosition) -> None:
        super().__init__()
        if model_dim % num_heads:
            raise ValueError(f"num_heads {num_heads} does not divide model_dim {model_dim}")
        self.num_heads = num_heads
        self.dropout = dropout
        self.position = position
        self.query = linear(model_dim, model_dim)
        self.key_value = linear(model_dim, model_dim, parts=2)
        self.output = linear(model_dim, model_dim)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Unrotated keys and values `[batch, head, key, dim]` of a stream `[batch, key, model_dim]`."""
        batch, length, _ = x.shape
        projected = self.key_value(x).view(batch, length, 2, self.num_heads, -1)
        k, v = projected.permute(2, 0, 3, 1, 4)
        return k, v

    def forward(
        self,
        x: Tensor,
        keys_values: tuple[Tensor, Tensor],
        q_positions: Positions,
        k_positions: Positions,
        mask: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attends from a stream to keys and values.

        Args:
            x: Stream that asks, `[batch, query, model_dim]`.
            keys_values: What `keys_values` returned for the stream that is asked.
            q_positions: Positions of the queries.
            k_positions: Positions of the keys.
            mask: True where a query may look, `[query, key]`.
            need_weights: Whether to return the attention weights, at the cost of the fused path.

        Returns:
            The attended stream `[batch, query, model_dim]`, and the weights `[batch, head, query, key]` if asked.
        """
        batch, length, model_dim = x.shape
        q = self.query(x).view(batch, length, self.num_heads, -1).transpose(1, 2)
        k, v = keys_values
        q, k = self.position.rotate(q, k, q_positions, k_positions)
        bias = self.position.bias(q_positions, k_positions)
        bias, open_rows = _masked(bias, mask, x)
        dropout = self.dropout if self.training else 0.0

        scale = q.shape[-1] ** -0.5
        weights = None
        if need_weights or self.position.transforms:
            scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * scale
            scores = self.position.transform(scores, q, k, q_positions, k_positions)
            weights = functional.softmax(scores if bias is None else scores + bias, dim=-1)
            if open_rows is not None:
                weights = weights * open_rows
            attended = functional.dropout(weights, dropout) @ v
        else:
            added = None if bias is None else bias[None]  # the fused path takes two or four dimensions
            attended = functional.scaled_dot_product_attention(q, k, v, added, dropout_p=dropout, scale=scale)
            if open_rows is not None:
                attended = attended * open_rows
        attended = attended.transpose(1, 2).reshape(batch, length, model_dim)
        return self.output(attended), weights if need_weights else None


def _masked(bias: Tensor | None, mask: Tensor | None, like: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Bias `[head or 1, query, key]` closed outside the mask, and which rows are open at all (`None`: every one).

    Rows without an open key are opened, so that the softmax stays finite, and are to be zeroed afterwards.
    """
    if mask is not None:
        closed = torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill(~mask, -torch.inf)
        bias = closed[None] if bias is None else bias.to(like.dtype) + closed
    if bias is None:
        return None, None
    bias = bias.to(like.dtype)
    open_rows = (bias > -torch.inf).any(dim=-1, keepdim=True)
    return bias.masked_fill(~open_rows, 0.0), open_rows.to(like.dtype)
