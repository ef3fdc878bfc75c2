"""Seeds: everything random in a run is drawn from one seed, for one purpose at a time."""

import contextlib
from collections.abc import Iterator
from enum import IntEnum

import torch
from torch import Generator


class Stream(IntEnum):
    """What random numbers are drawn for. Two streams of one seed are unrelated.

    The numbers are part of what a seed means: another number gives other weights.
    """

    VALIDATION = 0
    SHAPES = 1
    TRAINING = 2
    COVERAGE = 3
    EVALUATION = 10
    POSITIONS = 11
    BOOTSTRAP = 12
    FIT = 100
    CALIBRATE = 101
    RETRAIN = 102


def seeded(seed: int, *purpose: int) -> Generator:
    """A generator for one purpose of a run: equal numbers give equal draws, others unrelated ones.

    Args:
        seed: The seed.
        purpose: A stream, and numbers within it, such as the step.
    """
    state = seed
    for number in purpose:
        state = (state * 6364136223846793005 + number + 1442695040888963407) % 2**63
    return torch.Generator().manual_seed(state % 2**63)


@contextlib.contextmanager
def drawing(seed: int, *purpose: int) -> Iterator[None]:
    """Draws positions in the block from a seed and a purpose; draws after the block are as if there had been none."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seeded(seed, *purpose).initial_seed())  # no device draws positions
        yield
