"""Classification of images, whose tokens lie on a grid.

Source of the study: Kogkalidis et al. 2024 (arXiv 2312.16045), which classifies CIFAR-10.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch
from torch import Generator, Tensor

from abc_toolkit.errors import UserError, check_numbers
from abc_toolkit.hashing import scatter
from abc_toolkit.layout import Layout, stream_layout
from abc_toolkit.tasks.base import TRAINING, Batch, Interface, OneLength
from abc_toolkit.tasks.lengths import Shape
from abc_toolkit.tasks.objective import ClassCrossEntropy, Objective
from abc_toolkit.tasks.structures.grid import PATCH, grid_of, patches_of
from abc_toolkit.tasks.structures.image_files import LabelledImages, read_images

TEST, VALIDATION = "test", "validation"
_AT_ONCE = 1000  # images that are summed at once


@dataclass(frozen=True)
class ImageClassification(OneLength):
    """The class of an image, read from a folder of files.

    A token is a place of a grid, 8x8 of an image of 28x28 pixels and 10x10 of one of 32x32. It holds a patch of 5x5
    pixels, through which the model reads the image as convolution, ReLU and max-pooling would (`PatchConvolution`). Its
    coordinates are `x`, its row, and `y`, its column; `place`, `index`, `raw` and `raw_from_end` count row by row. The
    unit of length is a token along the longer side of the grid, and images have no other length.

    Pixels are standardised, channel by channel, by their mean and standard deviation over the images trained on. The
    suite `test` are the test files, the suite `validation` training images that are never trained on.

    Attributes:
        path: A folder with IDX files (MNIST, Fashion-MNIST) or CIFAR-10's binary batches; the content decides which.
        classes: Number of classes.
        held_out: Training images that are kept for validation, chosen by a hash of their numbers.
        crop_padding: Black pixels around a training image, out of which a crop of its size is drawn; 0 for no crops.
        flip: Whether a training image is mirrored, left to right, with probability 1/2.
        label_smoothing: Share of the target's probability that is spread evenly over all classes.
    """

    path: Path
    classes: int = 10
    held_out: int = 5000
    crop_padding: int = 0
    flip: bool = False
    label_smoothing: float = 0.0

    suites: ClassVar[tuple[str, ...]] = (TEST, VALIDATION)
    validation_suite: ClassVar[str | None] = VALIDATION

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))
        check_numbers(self, "task", ("classes",), at_least=2)
        check_numbers(self, "task", ("held_out",), at_least=1)
        check_numbers(self, "task", ("crop_padding",), at_most=100)
        check_numbers(self, "task", ("label_smoothing",), below=1)

    @property
    def max_length(self) -> int:  # type: ignore[override]
        """Tokens along the longer side of the grid."""
        return max(self.grid)

    @property
    def default_suites(self) -> tuple[str, ...]:
        return (TEST,)

    @property
    def num_samples(self) -> int:  # type: ignore[override]
        """All test images."""
        return len(self._store.parts[TEST])

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the grid of tokens.

        Raises:
            UserError: If the images cannot be read; so with everything else that follows from them.
        """
        return grid_of(*self._store.shape[1:])

    @property
    def interface(self) -> Interface:
        channels = self._store.shape[0]
        return Interface(self.classes, input_dim=channels * PATCH**2, pooled=True, patch_channels=channels)

    @property
    def objective(self) -> Objective:
        return ClassCrossEntropy(self.label_smoothing)

    @property
    def _store(self) -> "_Store":
        return _store(self.path, self.classes, self.held_out)

    def only_length(self) -> str:
        rows, columns = self.grid
        return f"the images in {self.path} are {rows}x{columns} tokens, and there are no others"

    def sample(self, generator: Generator, batch: int, shape: Shape, suite: str = TRAINING) -> Batch:
        """Draws images: of the training part with replacement, of a suite without.

        Raises:
            UserError: If a suite has fewer images.
        """
        if suite != TRAINING:
            return self.listed(self.choose(generator, batch, shape, suite), shape, suite)
        part = self._store.parts[TRAINING]
        rows = torch.randint(len(part), (batch,), generator=generator)
        return self._batch(self._augmented(part.pixels[rows], generator), part.labels[rows], shape)

    def num_listed(self, shape: Shape, suite: str) -> int:
        return len(self._store.parts[suite])

    def listed(self, numbers: Tensor, shape: Shape, suite: str) -> Batch:
        part = self._store.parts[suite]
        return self._batch(part.pixels[numbers], part.labels[numbers], shape)

    def data_files(self) -> Mapping[str, str]:
        return {str(self.path): self._store.hash}

    def _batch(self, pixels: Tensor, labels: Tensor, shape: Shape) -> Batch:
        standard = (pixels - self._store.mean) / self._store.deviation
        return Batch(shape, patches_of(standard), labels[:, None])

    def _augmented(self, pixels: Tensor, generator: Generator) -> Tensor:
        """Images `[batch, channel, row, column]`, cropped and mirrored at random."""
        batch, _, height, width = pixels.shape
        if self.crop_padding:
            padded = torch.nn.functional.pad(pixels, (self.crop_padding,) * 4)
            down, right = torch.randint(2 * self.crop_padding + 1, (2, batch, 1), generator=generator)
            rows, columns = down + torch.arange(height), right + torch.arange(width)
            image = torch.arange(batch)[:, None, None]
            # Indices around a slice bring its dimension to the end.
            pixels = padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        if self.flip:
            mirrored = torch.rand(batch, 1, 1, 1, generator=generator) < 0.5
            pixels = torch.where(mirrored, pixels.flip(-1), pixels)
        return pixels

    def num_tokens(self, shape: Shape) -> tuple[int, int]:
        rows, columns = self.grid
        return rows * columns, 0

    def layout(self, shape: Shape) -> Layout:
        """One segment, `image`, with the coordinates `x` and `y`."""
        return _layout(*self.grid)


class _Store:
    """The images of a folder.

    Args:
        path: The folder.
        classes: Number of classes.
        held_out: Training images that are kept for validation.

    Attributes:
        parts: The images trained on, those held out, and the test images, by suite.
        shape: Channels, rows and columns of an image.
        mean: Mean of each channel over the images trained on, `[channel, 1, 1]`.
        deviation: Its standard deviation.
        hash: SHA-256 of all images and labels.
    """

    def __init__(self, path: Path, classes: int, held_out: int) -> None:
        train, test = read_images(path, classes)
        hashed = hashlib.sha256()
        for tensor in (train.pixels, train.labels, test.pixels, test.labels):
            hashed.update(tensor.numpy().tobytes())
        self.hash = hashed.hexdigest()
        channels, height, width = train.pixels.shape[1:]
        self.shape = (channels, height, width)
        if not all(grid_of(height, width)):
            raise UserError(
                f"--task.path {path}: images of {height}x{width} pixels are too small: give at least {PATCH}x{PATCH}"
            )
        if held_out >= len(train):
            raise UserError(
                f"--task.held_out {held_out}: {path} has {len(train):,} training images: hold out fewer of them"
            )
        order = scatter(torch.arange(len(train))).argsort(stable=True)
        held, trained = order[:held_out].sort().values, order[held_out:].sort().values
        self.parts = {
            part: LabelledImages(train.pixels[rows], train.labels[rows])
            for part, rows in ((TRAINING, trained), (VALIDATION, held))
        } | {TEST: test}
        sums = torch.zeros(2, channels, dtype=torch.float64)
        for pixels in self.parts[TRAINING].pixels.split(_AT_ONCE):
            sums += torch.stack([(pixels.double() ** power).sum(dim=(0, 2, 3)) for power in (1, 2)])
        mean, square = sums / (len(trained) * height * width)
        deviation = (square - mean**2).clamp(min=0).sqrt()
        deviation = torch.where(deviation > 0, deviation, 1.0)  # of a channel that is the same everywhere
        self.mean, self.deviation = (x.float()[:, None, None] for x in (mean, deviation))


@lru_cache(maxsize=2)
def _store(path: Path, classes: int, held_out: int) -> _Store:
    with torch.inference_mode(False):  # images that an evaluation reads may be trained on later
        return _Store(path, classes, held_out)


@lru_cache(maxsize=8)
def _layout(rows: int, columns: int) -> Layout:
    with torch.inference_mode(False):  # a layout that evaluation makes may be trained on later
        number = torch.arange(rows * columns)
        coordinates = {"x": number // columns, "y": number % columns, "place": number, "index": number.flip(0)}
        return stream_layout(("image",), torch.zeros_like(number), coordinates)
