"""Simple learners, beside which a model that learns in context is shown.

Each predicts the labels `[batch, length]` of points `[batch, length, dim]`, in double precision, every one from the
points and labels before it. Without any, it predicts 0.
"""

import torch
from torch import Tensor

LASSO_ALPHA = 0.01
_RANK = 1e-12  # singular values below this share of the largest count as 0
_CELLS = 2**22  # distances that are held at once


def least_squares(points: Tensor, labels: Tensor) -> Tensor:
    """Linear regression without intercept; of the weights that fit best, those of the least norm."""
    length, dim = points.shape[1:]
    found = torch.zeros_like(labels)
    equations = torch.cat([points, labels[..., None]], dim=-1)
    # A few equations have the solutions of all so far. They are made by rotations, as sums of products would lose
    # what few different points say among many equal ones.
    reduced = equations[:, :0]
    for number in range(1, length):
        reduced = torch.cat([reduced, equations[:, number - 1, None]], dim=1)
        if reduced.shape[1] > dim + 1:
            reduced = torch.linalg.qr(reduced, mode="r").R
        left, right = reduced[..., :dim], reduced[..., dim:]
        # The default driver, `gelsy`, finds wrong ranks in batches: it begins with the column order of the one before.
        weights = torch.linalg.lstsq(left, right, rcond=_RANK, driver="gelsd").solution
        found[:, number] = (points[:, number, None] @ weights)[:, 0, 0]
    return found


def averaging(points: Tensor, labels: Tensor) -> Tensor:
    """`w x` with `w` the mean of `y x` over the points so far."""
    counts = torch.arange(points.shape[1], dtype=points.dtype).clamp(min=1)[:, None]
    weights = _before(points * labels[..., None]) / counts
    return (weights * points).sum(-1)


def nearest(points: Tensor, labels: Tensor, number: int) -> Tensor:
    """The mean label of the nearest points by Euclidean distance; of points at one distance, the earlier ones."""
    length = points.shape[1]
    found = torch.zeros_like(labels)
    earlier = torch.ones(length, length, dtype=torch.bool).tril(-1)
    num_used = torch.arange(length).clamp(max=number)
    used = torch.arange(min(number, length)) < num_used[:, None]
    size = max(1, _CELLS // length**2)
    for start in range(0, len(points), size):
        piece, own = points[start : start + size], labels[start : start + size]
        # Sums of squares of differences are exact for points of -1 and 1, so that equal distances are equal.
        distances = torch.cdist(piece, piece, compute_mode="donot_use_mm_for_euclid_dist")
        order = distances.masked_fill(~earlier, torch.inf).argsort(dim=-1, stable=True)[..., :number]
        near = own[:, None].expand(-1, length, -1).gather(2, order)
        found[start : start + size] = (near * used).sum(-1) / num_used.clamp(min=1)
    return found


def lasso(points: Tensor, labels: Tensor) -> Tensor:
    """Lasso without intercept, with scikit-learn: squared error, halved, plus `LASSO_ALPHA` times the weights' sum."""
    from sklearn.linear_model import Lasso  # takes long to load

    found = torch.zeros_like(labels)
    model = Lasso(alpha=LASSO_ALPHA, fit_intercept=False, max_iter=100_000, copy_X=True)
    for row, (x, y) in enumerate(zip(points.numpy(), labels.numpy(), strict=True)):
        for number in range(1, len(x)):
            model.fit(x[:number], y[:number])
            found[row, number] = float(x[number] @ model.coef_)
    return found


def _before(values: Tensor) -> Tensor:
    """Sums over the points before each, along dimension 1."""
    return values.cumsum(dim=1) - values
