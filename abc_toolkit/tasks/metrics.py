"""Metrics with sums of integers as their state, so that they agree over any number of processes."""

import math

import torch
from torch import Tensor
from torchmetrics import Metric


class ExactMatch(Metric):
    """Share of problems whose every target token is right, `EOS` included."""

    right: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("right", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Counts a batch.

        Args:
            predicted: Token ids `[batch, length]`.
            target: Token ids `[batch, length]`.
        """
        self.right += (predicted == target).all(dim=1).sum()
        self.total += len(target)

    def compute(self) -> Tensor:
        return self.right / self.total


class DigitAccuracy(Metric):
    """Share of right digits at each place of the answer, in greedy output.

    Args:
        num_places: Tokens of the target without `EOS`.
    """

    right: Tensor
    total: Tensor

    def __init__(self, num_places: int) -> None:
        super().__init__()
        self.add_state("right", torch.zeros(num_places, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Counts a batch.

        Args:
            predicted: Token ids `[batch, places]` or more; what follows the places is ignored.
            target: Token ids `[batch, places]` or more.
        """
        places = len(self.right)
        self.right += (predicted[:, :places] == target[:, :places]).sum(dim=0)
        self.total += len(target)

    def compute(self) -> Tensor:
        return self.right / self.total


def wilson_interval(right: int, total: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval for a share (Wilson 1927), 95 % by default.

    Args:
        right: Successes.
        total: Trials, at least 1.
        z: Standard normal quantile of the interval's upper end.
    """
    share = right / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    # At either end the interval touches it exactly; rounding must not say otherwise.
    low = 0.0 if right == 0 else max(0.0, centre - half)
    high = 1.0 if right == total else min(1.0, centre + half)
    return low, high
