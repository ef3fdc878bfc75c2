"""The read-in of images: a convolution and a pooling of which every token holds its own patch."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from abc_toolkit.tasks.structures.grid import KERNEL, PATCH


class PatchConvolution(nn.Module):
    """Convolution 3x3 without bias, ReLU, and the maximum over 3x3 places, inside each patch of 5x5 pixels.

    A token is a place of the grid that convolution (no padding), ReLU and max-pooling (stride 3) make of an image. It
    depends on the 5x5 pixels of its patch alone, so that patches with a stride of 3 give the same numbers.

    Args:
        channels: Channels of the image.
        dim: Width of the stream.
    """

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.channels = channels
        self.weight = nn.Parameter(torch.empty(dim, channels, KERNEL, KERNEL))
        nn.init.xavier_uniform_(self.weight.view(dim, -1))

    def forward(self, patches: Tensor) -> Tensor:
        """The stream of patches.

        Args:
            patches: `[batch, length, channels * 25]`, channel by channel, row by row.

        Returns:
            `[batch, length, dim]`.
        """
        pixels = patches.unflatten(-1, (self.channels, PATCH, PATCH))
        # A matrix product over all places takes as long as a convolution of the whole image.
        windows = pixels.unfold(-2, KERNEL, 1).unfold(-2, KERNEL, 1)  # [batch, length, channel, place, place, 3, 3]
        places = windows.permute(0, 1, 3, 4, 2, 5, 6).flatten(4).flatten(2, 3)
        return functional.linear(places, self.weight.flatten(1)).amax(dim=2).relu()
