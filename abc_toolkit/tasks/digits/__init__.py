"""Tasks on digit strings, and what a task of one's own takes from them."""

from abc_toolkit.tasks.base import TRAINING, UNIFORM, quoted
from abc_toolkit.tasks.digits.base import CARRY, DIGITS, SETS, UNEQUAL, ZEROS, DigitTask, exact_result, fixed_width
from abc_toolkit.tasks.digits.rule import LocalRule, Read
from abc_toolkit.tasks.digits.sampling import (
    carried,
    choose_rows,
    keep_places,
    pad,
    pick_rows,
    random_run,
    uniform_digits,
    with_zeros,
)

__all__ = [
    "CARRY",
    "DIGITS",
    "SETS",
    "TRAINING",
    "UNEQUAL",
    "UNIFORM",
    "ZEROS",
    "DigitTask",
    "LocalRule",
    "Read",
    "carried",
    "choose_rows",
    "exact_result",
    "fixed_width",
    "keep_places",
    "pad",
    "pick_rows",
    "quoted",
    "random_run",
    "uniform_digits",
    "with_zeros",
]
