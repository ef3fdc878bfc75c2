"""What is computed: one file a task."""

from abc_toolkit.tasks.base import (
    Batch,
    Calibratable,
    Certifiable,
    Decodable,
    HeldOut,
    Interface,
    Listed,
    Observed,
    ProblemError,
    Problems,
    Solvable,
    Staged,
    Task,
)
from abc_toolkit.tasks.chomsky.binary import BinaryAddition, BinaryMultiplication
from abc_toolkit.tasks.chomsky.bucket_sort import BucketSort
from abc_toolkit.tasks.chomsky.cycle_navigation import CycleNavigation
from abc_toolkit.tasks.chomsky.even_pairs import EvenPairs, ParityCheck
from abc_toolkit.tasks.chomsky.expressions import ModularArithmeticBrackets, SolveEquation
from abc_toolkit.tasks.chomsky.missing_duplicate import MissingDuplicate
from abc_toolkit.tasks.chomsky.modular_arithmetic import ModularArithmetic
from abc_toolkit.tasks.chomsky.odds_first import OddsFirst
from abc_toolkit.tasks.chomsky.square_root import SquareRoot
from abc_toolkit.tasks.chomsky.stack_manipulation import StackManipulation
from abc_toolkit.tasks.chomsky.strings import DuplicateString, ReverseString
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
from abc_toolkit.tasks.functions.formulas import CNF, DNF, Conjunction, Disjunction, SparseDisjunction
from abc_toolkit.tasks.functions.linear import LinearRegression, SparseLinearRegression
from abc_toolkit.tasks.functions.parities import ParityFunction, SparseParity
from abc_toolkit.tasks.functions.thresholds import IntHalfspace, Majority, SparseThreshold
from abc_toolkit.tasks.lengths import Shape
from abc_toolkit.tasks.structures.images import ImageClassification
from abc_toolkit.tasks.structures.sequences import SequenceCopy, SequenceRepeat, SequenceReverse
from abc_toolkit.tasks.structures.trees import TreeC3, TreeCopy, TreeOperations, TreeRotate
from abc_toolkit.tasks.text.language_model import LanguageModel
from abc_toolkit.tasks.text.translation import Translation

__all__ = [
    "CNF",
    "DNF",
    "Addition",
    "Batch",
    "BinaryAddition",
    "BinaryMultiplication",
    "BucketSort",
    "Calibratable",
    "Certifiable",
    "Comparison",
    "Conjunction",
    "Copy",
    "CycleNavigation",
    "Decodable",
    "Disjunction",
    "Division",
    "DuplicateString",
    "EvenPairs",
    "HeldOut",
    "ImageClassification",
    "IntHalfspace",
    "Interface",
    "LanguageModel",
    "LinearRegression",
    "Listed",
    "LongMultiplication",
    "Majority",
    "MissingDuplicate",
    "ModularArithmetic",
    "ModularArithmeticBrackets",
    "MultiOperandAddition",
    "Multiplication",
    "Observed",
    "OddsFirst",
    "Parity",
    "ParityCheck",
    "ParityFunction",
    "ProblemError",
    "Problems",
    "Repeat",
    "Reverse",
    "ReverseString",
    "SequenceCopy",
    "SequenceRepeat",
    "SequenceReverse",
    "Shape",
    "Solvable",
    "SolveEquation",
    "SparseDisjunction",
    "SparseLinearRegression",
    "SparseParity",
    "SparseThreshold",
    "SquareRoot",
    "StackManipulation",
    "Staged",
    "Subtraction",
    "Successor",
    "Task",
    "Translation",
    "TreeC3",
    "TreeCopy",
    "TreeOperations",
    "TreeRotate",
]
