"""Dropout that is fast on a processor, where drawing the numbers is most of its cost."""

import torch
from torch import Tensor, nn
from torch.nn import functional

_BITS = 32


def dropout(x: Tensor, probability: float) -> Tensor:
    """Zeroes each number with a probability and scales the others so that the mean stays.

    On a processor an integer of 32 bits is drawn for each number, two at a time, which takes a sixth of the time that
    PyTorch's Bernoulli numbers take. The probability is rounded to a multiple of 2^-32.

    Args:
        x: Numbers of any shape.
        probability: That of a number to be zeroed, at least 0 and below 1.
    """
    if not probability:
        return x
    if x.device.type != "cpu":
        return functional.dropout(x, probability)
    dropped = max(1, round(probability * 2**_BITS))
    drawn = torch.empty(-(-x.numel() // 2), dtype=torch.int64).random_(-(2**63), None)
    kept = drawn.view(torch.int32)[: x.numel()].view(x.shape) >= dropped - 2 ** (_BITS - 1)
    return x * kept.to(x.dtype).mul_(1 / (1 - dropped / 2**_BITS))


class Dropout(nn.Module):
    """`dropout` in training, and nothing otherwise.

    Args:
        probability: That of a number to be zeroed.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.probability) if self.training else x

    def extra_repr(self) -> str:
        return f"probability={self.probability}"
