"""Hooks on batches whose problems have coordinates of their own.

Hooks are written for coordinates that all problems share. Called here, they see only these; if they ask for another,
they are called again, problem by problem, and what they return is put together. Hooks that take coordinates of a whole
batch say so (`takes_batches`) and are called once.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from abc_toolkit.layout import DiffersError, Positions
from abc_toolkit.positions.base import AttentionPosition, ModelPosition

T = TypeVar("T")


def embed(model: ModelPosition, x: Tensor, positions: Positions) -> Tensor:
    """`ModelPosition.embed` of a stream `[batch, length, dim]`."""

    def call(rows: slice, positions: Positions) -> Tensor:
        return model.embed(x[rows], positions)

    return _called(call, model.takes_batches, positions, together=torch.cat)


def rotate(
    hooks: AttentionPosition, q: Tensor, k: Tensor, q_positions: Positions, k_positions: Positions
) -> tuple[Tensor, Tensor]:
    """`AttentionPosition.rotate`."""

    def call(rows: slice, q_positions: Positions, k_positions: Positions) -> tuple[Tensor, Tensor]:
        return hooks.rotate(q[rows], k[rows], q_positions, k_positions)

    def together(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        queries, keys = zip(*parts, strict=True)
        return torch.cat(queries), torch.cat(keys)

    return _called(call, hooks.takes_batches, q_positions, k_positions, together=together)


def bias(hooks: AttentionPosition, q_positions: Positions, k_positions: Positions) -> Tensor | None:
    """`AttentionPosition.bias`: `[head, query, key]`, or `[batch, head, query, key]` where problems differ in it."""

    def call(rows: slice, q_positions: Positions, k_positions: Positions) -> Tensor | None:
        return hooks.bias(q_positions, k_positions)

    def together(parts: list[Tensor | None]) -> Tensor | None:
        present = [part for part in parts if part is not None]
        return torch.stack(present) if present else None

    return _called(call, hooks.takes_batches, q_positions, k_positions, together=together)


def transform(
    hooks: AttentionPosition,
    scores: Tensor,
    q: Tensor,
    k: Tensor,
    q_positions: Positions,
    k_positions: Positions,
    mask: Tensor | None,
) -> Tensor:
    """`AttentionPosition.transform`, with a mask `[head or 1, query, key]` or `[batch, head or 1, query, key]`."""

    def call(rows: slice, q_positions: Positions, k_positions: Positions) -> Tensor:
        own = mask[rows] if mask is not None and mask.dim() == 4 else mask
        return hooks.transform(scores[rows], q[rows], k[rows], q_positions, k_positions, own)

    return _called(call, hooks.takes_batches, q_positions, k_positions, together=torch.cat)


def _called(call: Callable[..., T], takes_batches: bool, *positions: Positions, together: Callable[[list[T]], T]) -> T:
    """What `call` returns of some rows of a batch and their positions: of all at once where that can be."""
    everything = slice(None)
    if takes_batches or not any(each.own for each in positions):
        return call(everything, *positions)
    try:
        return call(everything, *(each.shared for each in positions))
    except DiffersError:
        (batch, *_) = (len(each.coordinates[name]) for each in positions for name in each.own)
        rows = range(batch)
        return together([call(slice(row, row + 1), *(each.problem(row) for each in positions)) for row in rows])
