"""What is computed: one file a task."""

from abc_toolkit.tasks.base import (
    Batch,
    Calibratable,
    Certifiable,
    HeldOut,
    Interface,
    ProblemError,
    Problems,
    Solvable,
    Task,
)
from abc_toolkit.tasks.digits.addition import Addition
from abc_toolkit.tasks.digits.comparison import Comparison
from abc_toolkit.tasks.digits.copying import Copy, Repeat, Reverse
from abc_toolkit.tasks.digits.division import Division
from abc_toolkit.tasks.digits.long_multiplication import LongMultiplication
from abc_toolkit.tasks.digits.multi_operand_addition import MultiOperandAddition
from abc_toolkit.tasks.digits.multiplication import Multiplication
from abc_toolkit.tasks.digits.parity import Parity
from abc_toolkit.tasks.digits.subtraction import Subtraction
from abc_toolkit.tasks.digits.successor import Successor
from abc_toolkit.tasks.functions.linear_regression import LinearRegression
from abc_toolkit.tasks.lengths import Shape

__all__ = [
    "Addition",
    "Batch",
    "Calibratable",
    "Certifiable",
    "Comparison",
    "Copy",
    "Division",
    "HeldOut",
    "Interface",
    "LinearRegression",
    "LongMultiplication",
    "MultiOperandAddition",
    "Multiplication",
    "Parity",
    "ProblemError",
    "Problems",
    "Repeat",
    "Reverse",
    "Shape",
    "Solvable",
    "Subtraction",
    "Successor",
    "Task",
]
