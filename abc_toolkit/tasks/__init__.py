"""What is computed: one file a task."""

from abc_toolkit.tasks.base import ProblemError, Problems, Shape, Task
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

__all__ = [
    "Addition",
    "Comparison",
    "Copy",
    "Division",
    "LongMultiplication",
    "MultiOperandAddition",
    "Multiplication",
    "Parity",
    "ProblemError",
    "Problems",
    "Repeat",
    "Reverse",
    "Shape",
    "Subtraction",
    "Successor",
    "Task",
]
