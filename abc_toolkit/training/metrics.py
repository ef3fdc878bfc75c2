"""Means over problems, whose state is sums, so that they agree over any number of processes."""

import torch
import torchmetrics
from torch import Tensor

from abc_toolkit.tasks.objective import Metric


class MeanOverProblems(torchmetrics.Metric):
    """What is reported of a number that each problem has: its mean or, of logarithms, the exponential of that.

    Args:
        metric: Of a share, each problem has 0 or 1: sums are of integers then, and exact.
    """

    total: Tensor
    count: Tensor

    def __init__(self, metric: Metric) -> None:
        super().__init__()
        self.of_logarithms = metric.of_logarithms
        self.add_state("total", torch.tensor(0 if metric.is_share else 0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, values: Tensor) -> None:
        """Counts a batch.

        Args:
            values: The numbers, `[batch]`.
        """
        self.total += values.sum().to(self.total.dtype)  # of a share's values 0 and 1 the sum is exact
        self.count += len(values)

    def compute(self) -> Tensor:
        mean = self.total / self.count
        return mean.exp() if self.of_logarithms else mean
