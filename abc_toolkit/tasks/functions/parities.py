"""Parities of Boolean points in context.

Source: Bhattamishra et al. 2024 (arXiv 2310.03016), with the numbers of the study of `functions/base.py`.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from abc_toolkit.tasks.functions.base import BooleanTask, drawn_subsets


@dataclass(frozen=True)
class ParityFunction(BooleanTask):
    """An odd number of some coordinates are 1; each coordinate is one of them with probability 1/2.

    The task `Parity` is on strings of bits, this one in context.

    Attributes:
        max_length: Points of a training prompt.
        dim: Width of a point.
        marked: Whether two more channels say which tokens are points and which labels.
    """

    def draw_function(self, generator: Generator, batch: int) -> Tensor:
        return torch.randint(2, (batch, self.dim), generator=generator).float()

    def labels(self, function: Tensor, points: Tensor) -> Tensor:
        ones = ((points > 0).float() @ function[..., None])[..., 0]
        return 2 * (ones % 2) - 1


@dataclass(frozen=True)
class SparseParity(ParityFunction):
    """One of two coordinates is 1, and not the other; which two is drawn at random.

    Attributes:
        max_length: Points of a training prompt.
        dim: Width of a point, at least 2.
        marked: Whether two more channels say which tokens are points and which labels.
    """

    subset_size: ClassVar[int] = 2
    least_dim: ClassVar[int] = subset_size

    def draw_function(self, generator: Generator, batch: int) -> Tensor:
        return drawn_subsets(generator, batch, self.dim, self.subset_size)
