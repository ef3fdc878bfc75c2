"""Linear regression in context: each label of a prompt is predicted from the points and labels before it.

Source: Garg et al. 2022 (arXiv 2208.01066), section 3.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Generator, Tensor

from abc_toolkit.errors import UserError
from abc_toolkit.layout import Layout, stream_layout
from abc_toolkit.tasks.base import TRAINING, Batch, Interface, Task
from abc_toolkit.tasks.lengths import Shape
from abc_toolkit.tasks.objective import Objective, SquaredError


@dataclass(frozen=True)
class LinearRegression(Task):
    """Predicts `y_i = w x_i` from `x_1, y_1, ..., x_(i-1), y_(i-1), x_i`, with weights `w` that differ by problem.

    A prompt is `x_1, y_1, ..., x_n`, each token a vector of width `dim + 1`: `(x, 0)` for a point, `(0, y)` for a
    label. The output at a point predicts its label. Points and weights are standard normal. Errors are divided by
    `dim`, the variance of a label: predicting 0 has an expected error of 1. A shape is the number of points.

    Attributes:
        max_length: Points of a training prompt.
        dim: Width of a point.
        noise: Standard deviation of the noise on labels.
    """

    max_length: int = 11
    dim: int = 5
    noise: float = 0.0

    def __post_init__(self) -> None:
        for name in ("max_length", "dim"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)}: give at least 1")
        if not 0 <= self.noise < float("inf"):
            raise UserError(f"noise {self.noise}: give a number of at least 0")

    @property
    def interface(self) -> Interface:
        return Interface(num_outputs=1, input_dim=self.dim + 1)

    @property
    def objective(self) -> Objective:
        return SquaredError(scale=float(self.dim))

    def training_shapes(self) -> tuple[Shape, ...]:
        """The longest alone: a prompt is a problem of every number of examples up to its own."""
        return ((self.max_length,),)

    def evaluation_shapes(self, length: int, suite: str, generator: Generator) -> tuple[Shape, ...]:
        return ((length,),)

    def sample(self, generator: Generator, batch: int, shape: Shape, suite: str = TRAINING) -> Batch:
        (length,) = shape
        points = torch.randn(batch, length, self.dim, generator=generator)
        weights = torch.randn(batch, self.dim, 1, generator=generator)
        labels = (points @ weights)[..., 0]
        if self.noise:
            labels = labels + self.noise * torch.randn(batch, length, generator=generator)
        inputs = torch.zeros(batch, 2 * length, self.dim + 1)
        inputs[:, 0::2, :-1] = points
        inputs[:, 1::2, -1] = labels
        targets = labels.repeat_interleave(2, dim=1)
        counted = torch.zeros(batch, 2 * length, dtype=torch.bool)
        counted[:, 0::2] = True
        return Batch(shape, inputs[:, :-1], targets[:, :-1], counted[:, :-1])

    def num_tokens(self, shape: Shape) -> tuple[int, int]:
        return 2 * shape[0] - 1, 0

    def layout(self, shape: Shape) -> Layout:
        """Segments `point` and `label`; `place` and the coordinate `point` count pairs, `index` those that follow."""
        return _layout(shape[0])

    def baselines(self) -> Mapping[str, Callable[[Batch], Tensor]]:
        """Least squares, of least norm where there are fewer points than dimensions: the best without noise."""
        return {"least squares": self._least_squares}

    def _least_squares(self, batch: Batch) -> Tensor:
        points = batch.inputs[:, 0::2, :-1].double()
        labels = batch.targets[:, 0::2].double()
        found = torch.zeros_like(batch.targets)
        for number in range(1, points.shape[1]):
            weights = torch.linalg.pinv(points[:, :number]) @ labels[:, :number, None]
            found[:, 2 * number] = (points[:, number, None] @ weights)[:, 0, 0].float()
        return found


@lru_cache(maxsize=64)
def _layout(num_points: int) -> Layout:
    with torch.inference_mode(False):  # a layout that evaluation makes may be trained on later
        number = torch.arange(2 * num_points - 1)
        pair = number // 2
        coordinates = {"point": pair, "place": pair, "index": num_points - 1 - pair}
        return stream_layout(("point", "label"), number % 2, coordinates)
