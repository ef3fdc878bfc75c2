"""The attention of all models: project, rotate, score, add the bias, mask, softmax.

Dimensions are `batch, head, query, key, dim` throughout. Two paths give the same numbers. The *dense* path compares
every query with every key and masks the closed keys; its cost grows with the square of the length. The *gathered* path
fetches the keys that a window leaves open to each query; its cost is in proportion to the length.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from abc_toolkit.errors import UserError
from abc_toolkit.layout import Positions
from abc_toolkit.models.dropout import dropout
from abc_toolkit.positions import AttentionPosition, OpenKeys, by_problem

AttentionPath = Literal["auto", "dense", "gathered"]
# Gathering is faster from this many keys a slot on, as measured with `experiments/benchmarks/any_length.py`.
KEYS_A_SLOT = 40
_CACHED_CELLS = 2**22  # numbers of attention that training with dropout goes through at once on a processor
_CELLS = 2**25  # numbers that attention may hold at once for the query-key pairs of a batch


def linear(in_dim: int, out_dim: int, parts: int = 1, bias: bool = True) -> nn.Linear:
    """A linear layer with Xavier-uniform weights and zero biases.

    Args:
        in_dim: Width of the input.
        out_dim: Width of each part of the output.
        parts: Number of layers that run as one; each is initialised on its own.
        bias: Whether it has biases.
    """
    layer = nn.Linear(in_dim, parts * out_dim, bias=bias)
    for weight in layer.weight.chunk(parts):
        nn.init.xavier_uniform_(weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


@dataclass(frozen=True, eq=False)
class Gather:
    """A table of open keys, made ready for fetching keys and values.

    Attributes:
        index: Number of the key in each slot, `[query, head, slot]`.
        rows: The row of each slot's key and value in a flattened `[key, 2, head]`, as `[query, head, 2, slot]`.
        bias: Added to the logits, `[query, head, slot]`; minus infinity in empty slots, but 0 if a query has no others.
        open_rows: Whether a query has an open key, 1 or 0, `[query, head, 1]`; `None` if every query has one.
    """

    index: Tensor
    rows: Tensor
    bias: Tensor
    open_rows: Tensor | None

    @classmethod
    def from_table(cls, open_keys: OpenKeys, stored: Tensor | None = None) -> "Gather":
        """A table of open keys made ready.

        Args:
            open_keys: The table.
            stored: The row in which each key is stored, `[key]`; `None` if keys are stored in their order.
        """
        index = open_keys.index.transpose(0, 1)
        bias, open_rows = _opened(open_keys.bias.transpose(0, 1))
        at = index if stored is None else stored[index]
        heads = torch.arange(index.shape[1], device=index.device)[:, None]
        keys = at * (2 * len(heads)) + heads
        open_rows = None if open_rows is None or open_rows.all() else open_rows
        return cls(index, torch.stack([keys, keys + len(heads)], dim=2), bias, open_rows)

    def __getitem__(self, queries: slice) -> "Gather":
        open_rows = None if self.open_rows is None else self.open_rows[queries]
        return Gather(self.index[queries], self.rows[queries], self.bias[queries], open_rows)


@dataclass(frozen=True, eq=False)
class Scope:
    """The keys that queries may attend to.

    Attributes:
        k_positions: Positions of the keys.
        mask: True where a query may attend, `[query, key]`, or `[batch, 1, query, key]` where problems are padded;
            `None` if it may everywhere.
        gather: The open keys, on the gathered path.
        causal: Whether the mask does no more than leave out the keys after each query, in a whole string.
    """

    k_positions: Positions
    mask: Tensor | None = None
    gather: Gather | None = None
    causal: bool = False

    def __getitem__(self, queries: slice) -> "Scope":
        mask = None if self.mask is None else self.mask[..., queries, :]
        return Scope(self.k_positions, mask, None if self.gather is None else self.gather[queries])


class Attention(nn.Module):
    """Multi-head attention for every site.

    A query without an open key yields exactly zero before the bias of the output projection.

    Args:
        model_dim: Width of the streams.
        num_heads: Number of heads; divides `model_dim`.
        dropout: Probability that an attention weight is dropped in training.
        position: The hooks of the position method in this site and layer.
        bias: Whether the projections have biases.
        scored: Whether there are queries and keys; if not, the open keys of a query are averaged.
        shared: Whether all heads share one map of values, as wide as the stream, so that there is no output projection:
            the output is the sum over heads of a learned scale times the averaged values. The first scale is 1.

    Attributes:
        path: `dense`, `gathered`, or `auto`, which chooses by the number of keys.
        head_dim: Width of a head.

    Raises:
        ValueError: If `num_heads` does not divide `model_dim`, and heads share no values.
        UserError: If the position method acts on queries and keys, and there are none.
    """

    def __init__(
        self,
        model_dim: int,
        num_heads: int,
        dropout: float,
        position: AttentionPosition,
        bias: bool = True,
        scored: bool = True,
        shared: bool = False,
    ) -> None:
        super().__init__()
        if model_dim % num_heads and not shared:
            raise ValueError(f"num_heads {num_heads} does not divide model_dim {model_dim}")
        if not scored and (position.rotates or position.transforms):
            raise UserError(
                "--model.savings scores: the position method acts on queries and keys, and there are none: choose "
                "another --model.position"
            )
        self.num_heads = num_heads
        self.head_dim = model_dim if shared else model_dim // num_heads
        self.scored = scored
        self.shared = shared
        self.dropout = dropout
        self.position = position
        self.path: AttentionPath = "auto"
        if scored:
            self.query = linear(model_dim, model_dim, bias=bias)
            self.key_value = linear(model_dim, model_dim, parts=2, bias=bias)
        else:
            self.value = linear(model_dim, model_dim, bias=bias)
        if shared:
            # Of the heads after the first. Drawn apart: heads of equal scales could change places.
            self.scales = nn.Parameter(torch.rand(num_heads - 1))
        else:
            self.output = linear(model_dim, model_dim, bias=bias)

    def keys_values(self, x: Tensor) -> Tensor:
        """Keys, not yet rotated, and values `[batch, key, 2, head, dim]` of a stream `[batch, key, model_dim]`."""
        if self.scored:
            return self.key_value(x).unflatten(-1, (2, self.num_heads, -1))
        values = self.value(x).unflatten(-1, (-1, self.head_dim)).expand(*x.shape[:-1], self.num_heads, self.head_dim)
        return torch.stack([torch.zeros_like(values), values], dim=-3)

    def open_keys(self, q_positions: Positions, k_positions: Positions) -> OpenKeys | None:
        """The table of open keys; `None` on the dense path."""
        if self.path == "dense" or not self.position.pointwise or q_positions.differ or k_positions.differ:
            return None
        most = math.inf if self.path == "gathered" else len(k_positions) // KEYS_A_SLOT
        return self.position.open_keys(q_positions, k_positions, most) if most else None

    def scope(self, q_positions: Positions, k_positions: Positions, causal: bool = False, dense: bool = False) -> Scope:
        """The keys that queries may attend to.

        Args:
            q_positions: Positions of the queries.
            k_positions: Positions of the keys.
            causal: Whether keys after a query are left out; queries and keys are then those of a whole string.
            dense: Whether to take the dense path whatever the number of keys.
        """
        open_keys = None if dense else self.open_keys(q_positions, k_positions)
        if open_keys is not None:
            return Scope(k_positions, gather=Gather.from_table(open_keys))
        scope = dense_scope(q_positions, k_positions, causal)
        return replace(scope, causal=causal and k_positions.present is None)

    def queries_at_once(self, batch: int, scope: Scope) -> int:
        """The number of queries that may attend at once without exceeding the limit of memory."""
        if scope.gather is None:
            return max(1, _CELLS // (batch * self.num_heads * len(scope.k_positions)))
        _, heads, both, slots = scope.gather.rows.shape
        return max(1, _CELLS // (batch * heads * both * slots * self.head_dim))

    def forward(
        self, x: Tensor, keys_values: Tensor, q_positions: Positions, scope: Scope, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Attends from a stream to keys and values.

        Args:
            x: The stream of the queries, `[batch, query, model_dim]`.
            keys_values: Keys and values, as the method `keys_values` returns them.
            q_positions: Positions of the queries.
            scope: The keys to which the queries may attend.
            need_weights: Whether to return the attention weights, which rules out the fused path.

        Returns:
            The attended stream `[batch, query, model_dim]`, and the weights if they are needed: `[batch, head, query,
            key]`, or `[batch, head, query, slot]` on the gathered path.
        """
        q = self.query(x).unflatten(-1, (self.num_heads, -1)) if self.scored else self._no_queries(x)
        if scope.gather is not None:
            attended, weights = self._gathered(q, keys_values, q_positions, scope.k_positions, scope.gather)
        else:
            attended, weights = self._dense(q, keys_values, q_positions, scope, need_weights)
        return self.joined(attended), weights if need_weights else None

    def _no_queries(self, x: Tensor) -> Tensor:
        """Queries of 0, `[batch, query, head, dim]`, whose products with all keys are equal."""
        return x.new_zeros(*x.shape[:-1], self.num_heads, self.head_dim)

    def joined(self, attended: Tensor) -> Tensor:
        """The output `[batch, query, model_dim]` of what the heads attended to, `[batch, query, head, dim]`."""
        if not self.shared:
            return self.output(attended.flatten(2))
        return attended[..., 0, :] + (self.scales[:, None] * attended[..., 1:, :]).sum(dim=-2)

    def _dense(
        self, q: Tensor, keys_values: Tensor, q_positions: Positions, scope: Scope, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        q = q.transpose(1, 2)
        k, v = (part.transpose(1, 2) for part in keys_values.unbind(2))
        q, k = by_problem.rotate(self.position, q, k, q_positions, scope.k_positions)
        bias = by_problem.bias(self.position, q_positions, scope.k_positions)
        dropped = self.dropout if self.training else 0.0
        scale = q.shape[-1] ** -0.5
        in_parts = dropped and q.device.type == "cpu"  # where PyTorch has no fused kernel with dropout
        if scope.causal and bias is None and not (need_weights or in_parts or self.position.transforms):
            # Without a mask in memory there is less to read, and on a GPU a faster kernel.
            attended = functional.scaled_dot_product_attention(q, k, v, None, dropped, is_causal=True, scale=scale)
            return attended.transpose(1, 2), None
        may_attend = _may_attend(bias, scope.mask) if self.position.transforms else None
        bias, open_rows = _masked(bias, scope.mask, q)
        weights = None
        if need_weights or self.position.transforms:
            scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * scale
            scores = by_problem.transform(self.position, scores, q, k, q_positions, scope.k_positions, may_attend)
            weights = functional.softmax(scores if bias is None else scores + bias, dim=-1)
            if open_rows is not None:
                weights = weights * open_rows
            attended = dropout(weights, dropped) @ v
        elif in_parts:
            attended = _with_dropout(q * scale, k, v, bias, dropped)
            if open_rows is not None:
                attended = attended * open_rows
        else:
            added = bias[None] if bias is not None and bias.dim() == 3 else bias  # the fused path takes two or four
            attended = functional.scaled_dot_product_attention(q, k, v, added, dropout_p=dropped, scale=scale)
            if open_rows is not None:
                attended = attended * open_rows
        return attended.transpose(1, 2), weights

    def _gathered(
        self, q: Tensor, keys_values: Tensor, q_positions: Positions, k_positions: Positions, gather: Gather
    ) -> tuple[Tensor, Tensor]:
        # The query comes first, as in the streams: `[batch, query, head, slot, dim]`.
        fetched = keys_values.flatten(1, 3).index_select(1, gather.rows.flatten())
        k, v = fetched.unflatten(1, gather.rows.shape).unbind(3)
        hooks, bias, open_rows = self.position.among_open_keys(), gather.bias, gather.open_rows
        scale = q.shape[-1] ** -0.5
        if hooks.does_nothing:  # calling hooks without an effect would slow down a single step of decoding
            scores = (k @ (q * scale).unsqueeze(-1)).squeeze(-1)
        else:
            k_positions = k_positions[gather.index.transpose(0, 1)]
            q, k = q.transpose(1, 2), k.transpose(1, 2)
            q, k = hooks.rotate(q, k, q_positions, k_positions)
            scores = (k @ (q * scale).unsqueeze(-1)).squeeze(-1)
            scores = hooks.transform(scores, q, k, q_positions, k_positions).transpose(1, 2)
            added = hooks.bias(q_positions, k_positions)
            if added is not None:
                bias, still_open = _opened(bias + added.transpose(0, 1))
                if still_open is not None:
                    open_rows = still_open if open_rows is None else open_rows * still_open
        weights = functional.softmax(scores + bias.to(scores.dtype), dim=-1)
        if open_rows is not None:
            weights = weights * open_rows.to(scores.dtype)
        kept = dropout(weights, self.dropout) if self.training else weights
        return (kept.unsqueeze(-1) * v).sum(-2), weights.transpose(1, 2)


def _with_dropout(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, probability: float) -> Tensor:
    """Attention with dropout, `[batch, head, query, dim]`, for a few problems at a time, as many as a cache holds."""
    batch, heads, queries, _ = q.shape
    rows = max(1, _CACHED_CELLS // (heads * queries * k.shape[2]))
    attended = []
    for part in (slice(start, start + rows) for start in range(0, batch, rows)):
        scores = q[part] @ k[part].transpose(-1, -2)
        if bias is not None:
            scores = scores + (bias[part] if bias.dim() == 4 and len(bias) > 1 else bias)
        attended.append(dropout(functional.softmax(scores, dim=-1), probability) @ v[part])
    return torch.cat(attended)


def dense_scope(q_positions: Positions, k_positions: Positions, causal: bool) -> Scope:
    """The scope of the dense path."""
    mask = k_positions.coordinates["raw"] <= q_positions.coordinates["raw"][:, None] if causal else None
    if k_positions.present is not None:
        present = k_positions.present[:, None, None].expand(-1, -1, len(q_positions), -1)
        mask = present if mask is None else present & mask
    return Scope(k_positions, mask)


def _masked(bias: Tensor | None, mask: Tensor | None, like: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The bias `[head or 1, query, key]`, closed outside the mask, and the queries with an open key (`None`: all).

    The bias has the batch first if the mask has, or if it had it before.
    """
    if mask is not None:
        closed = torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill(~mask, -torch.inf)
        alone = closed[None] if closed.dim() == 2 else closed
        bias = alone if bias is None else bias.to(like.dtype) + closed
    if bias is None:
        return None, None
    return _opened(bias.to(like.dtype))


def _may_attend(bias: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """Where queries may attend, `[head or 1, query, key]`, or with the batch first; `None` if everywhere."""
    if bias is None:
        return mask[None] if mask is not None and mask.dim() == 2 else mask
    is_open = bias > -torch.inf
    return is_open if mask is None else is_open & mask


def _opened(bias: Tensor) -> tuple[Tensor, Tensor | None]:
    """The bias, and which queries have an open key, 1 or 0 `[..., query, 1]`; `None` if all are known to.

    The keys of queries without an open key are opened, so that the softmax stays finite; the caller zeroes the result.
    """
    open_rows = (bias > -torch.inf).any(dim=-1, keepdim=True)
    # With `None` the caller is spared a product. On a GPU the question would wait for all that is queued.
    if bias.device.type == "cpu" and open_rows.all():
        return bias, None
    return bias.masked_fill(~open_rows, 0.0), open_rows.to(bias.dtype)
