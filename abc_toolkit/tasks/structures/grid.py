"""The grid of patches that an image is read as."""

from torch import Tensor

KERNEL = 3  # pixels along each side of the convolution and of the pooling
PATCH = 2 * KERNEL - 1  # pixels along each side of what a pooled number depends on


def patches_of(images: Tensor) -> Tensor:
    """The patches `[batch, rows * columns, channels * 25]` of images `[batch, channel, row, column]`, row by row."""
    windows = images.unfold(2, PATCH, KERNEL).unfold(3, PATCH, KERNEL)
    return windows.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


def grid_of(rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns of the grid of tokens of an image of so many pixels; 0 if it is smaller than a patch."""
    return max(0, (rows - 2) // KERNEL), max(0, (columns - 2) // KERNEL)
