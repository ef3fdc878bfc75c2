"""A hash of integers."""

from torch import Tensor


def scatter(x: Tensor) -> Tensor:
    """Scatters int64 values over the non-negative ones, as the finaliser of splitmix64 does, with logical shifts."""
    x = (x ^ ((x >> 31) & 0x1FFFFFFFF)) * 7046029254386353131
    x = (x ^ ((x >> 29) & 0x7FFFFFFFF)) * -7335166018064393911
    return (x ^ ((x >> 32) & 0xFFFFFFFF)) & 0x7FFFFFFFFFFFFFFF
