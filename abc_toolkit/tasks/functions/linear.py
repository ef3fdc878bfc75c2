"""Linear regression in context, dense and sparse.

Source: Garg et al. 2022 (arXiv 2208.01066), section 3; dimensions and baselines as in the study of `functions/base.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from abc_toolkit.tasks.functions import baselines
from abc_toolkit.tasks.functions.base import Predictor, RegressionTask, drawn_subsets


@dataclass(frozen=True)
class LinearRegression(RegressionTask):
    """`y = w x` with `w` standard normal. Without noise, least squares is right after `dim` points.

    Attributes:
        max_length: Points of a training prompt.
        dim: Width of a point.
        used_dim: Channels of a point that are drawn, where a curriculum says so.
        marked: Whether two more channels say which tokens are points and which labels.
    """

    def draw_function(self, generator: Generator, batch: int) -> Tensor:
        return torch.randn(batch, self.dim, generator=generator)

    def labels(self, function: Tensor, points: Tensor) -> Tensor:
        return (points @ function[..., None])[..., 0]


@dataclass(frozen=True)
class SparseLinearRegression(LinearRegression):
    """`y = w x` with three standard normal weights, at coordinates drawn at random; the others are 0.

    Attributes:
        max_length: Points of a training prompt.
        dim: Width of a point, at least 3.
        used_dim: Channels of a point that are drawn, where a curriculum says so.
        marked: Whether two more channels say which tokens are points and which labels.
    """

    num_weights: ClassVar[int] = 3
    least_dim: ClassVar[int] = num_weights

    @property
    def variance(self) -> float:
        return float(self.num_weights)

    def draw_function(self, generator: Generator, batch: int) -> Tensor:
        return super().draw_function(generator, batch) * drawn_subsets(generator, batch, self.dim, self.num_weights)

    def predictors(self) -> Mapping[str, Predictor]:
        return {"lasso": baselines.lasso} | dict(super().predictors())
