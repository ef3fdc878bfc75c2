"""Threshold functions of Boolean points in context.

Source: Bhattamishra et al. 2024 (arXiv 2310.03016), with the numbers of the study of `functions/base.py`.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from abc_toolkit.tasks.functions.base import BooleanTask, drawn_weights, signs


@dataclass(frozen=True)
class Majority(BooleanTask):
    """More than half of some coordinates are 1; each coordinate is one of them with probability 0.3.

    Attributes:
        max_length: Points of a training prompt.
        dim: Width of a point.
        marked: Whether two more channels say which tokens are points and which labels.
    """

    num_neighbours: ClassVar[int] = 1

    def draw_function(self, generator: Generator, batch: int) -> Tensor:
        return drawn_weights(generator, (batch, self.dim), {0: 0.7, 1: 0.3})

    def labels(self, function: Tensor, points: Tensor) -> Tensor:
        return signs((points @ function[..., None])[..., 0] - 0.5)


@dataclass(frozen=True)
class IntHalfspace(Majority):
    """`w x > 1/2` with each weight uniform in -3 .. 3.

    Attributes:
        max_length: Points of a training prompt.
        dim: Width of a point.
        marked: Whether two more channels say which tokens are points and which labels.
    """

    num_neighbours: ClassVar[int] = 3

    def draw_function(self, generator: Generator, batch: int) -> Tensor:
        return torch.randint(-3, 4, (batch, self.dim), generator=generator).float()


@dataclass(frozen=True)
class SparseThreshold(BooleanTask):
    """`w x > t` with `t` uniform in -2.5, -1.5 .. 2.5 and weights 0, 1, -1 of probability 0.7, 0.15, 0.15.

    Functions are the weights, then the threshold, `[batch, dim + 1]`.

    Attributes:
        max_length: Points of a training prompt.
        dim: Width of a point.
        marked: Whether two more channels say which tokens are points and which labels.
    """

    def draw_function(self, generator: Generator, batch: int) -> Tensor:
        weights = drawn_weights(generator, (batch, self.dim), {0: 0.7, 1: 0.15, -1: 0.15})
        return torch.cat([weights, torch.randint(-3, 3, (batch, 1), generator=generator) + 0.5], dim=1)

    def labels(self, function: Tensor, points: Tensor) -> Tensor:
        return signs((points @ function[:, :-1, None])[..., 0] - function[:, -1:])
