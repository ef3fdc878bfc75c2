"""What is computed: one file a task."""

from abc_toolkit.tasks.addition import Addition
from abc_toolkit.tasks.base import ProblemError, Problems, Shape, Task
from abc_toolkit.tasks.comparison import Comparison
from abc_toolkit.tasks.copying import Copy, Repeat, Reverse
from abc_toolkit.tasks.division import Division
from abc_toolkit.tasks.long_multiplication import LongMultiplication
from abc_toolkit.tasks.multi_operand_addition import MultiOperandAddition
from abc_toolkit.tasks.multiplication import Multiplication
from abc_toolkit.tasks.parity import Parity
from abc_toolkit.tasks.subtraction import Subtraction
from abc_toolkit.tasks.successor import Successor

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
