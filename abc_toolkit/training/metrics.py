"""Means over problems, whose state is sums, so that they agree over any number of processes."""

import torch
from torch import Tensor
from torchmetrics import Metric


class MeanOverProblems(Metric):
    """Mean of a number that each problem has.

    Args:
        is_share: Whether each problem has 0 or 1 of it: sums are of integers then, and exact.
    """

    total: Tensor
    count: Tensor

    def __init__(self, is_share: bool) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0 if is_share else 0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, values: Tensor) -> None:
        """Counts a batch.

        Args:
            values: The numbers, `[batch]`.
        """
        self.total += values.sum().to(self.total.dtype)  # of a share's values 0 and 1 the sum is exact
        self.count += len(values)

    def compute(self) -> Tensor:
        return self.total / self.count
