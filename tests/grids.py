"""Samples of the grids that tests are parametrised with."""

import itertools
from collections.abc import Sequence
from typing import Any


def covering(*axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Points of a grid in which any two values of different axes meet at least once.

    Most faults depend on one value or on two that meet; the whole grid is many times larger.

    Args:
        axes: The values of each axis, two axes or more.

    Returns:
        The points, the same in every call: each is the first of the grid with the most pairs that are still missing.
    """
    grid = list(itertools.product(*map(range, map(len, axes))))
    pairs = {point: set(itertools.combinations(enumerate(point), 2)) for point in grid}
    missing, points = set().union(*pairs.values()), []
    while missing:
        point = max(grid, key=lambda point: len(pairs[point] & missing))
        missing -= pairs[point]
        points.append(tuple(axis[index] for axis, index in zip(axes, point, strict=True)))
    return points
