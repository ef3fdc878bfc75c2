"""The contract tests of position methods, inherited: `pytest` in this folder runs them."""

from fading import Fading
from scaled import Scaled

from abc_toolkit.testing import PositionCase, PositionContract


class TestFading(PositionContract):
    """It has no parameters, and knows distances alone."""

    cases = {"fading": PositionCase(Fading(capacity=8), shifts=True)}  # noqa: RUF012


class TestScaled(PositionContract):
    """It has parameters, and knows distances alone."""

    cases = {"scaled": PositionCase(Scaled(), learns=True, shifts=True)}  # noqa: RUF012
