"""A bit string reversed, and twice."""

from dataclasses import dataclass

from abc_toolkit.tasks.digits.copying import Repeat, Reverse


@dataclass(frozen=True)
class ReverseString(Reverse):
    """Writes a bit string from its end: `0010` has the target `0100`, which is the benchmark's output.

    A shape is the string's length.

    Attributes:
        max_length: Longest training length, in bits.
        base: Number of symbols; 2 in the benchmark.
    """

    base: int = 2


@dataclass(frozen=True)
class DuplicateString(Repeat):
    """Writes a bit string twice: `101` has the target `101101`, which is the benchmark's output.

    A shape is the string's length.

    Attributes:
        max_length: Longest training length, in bits.
        base: Number of symbols; 2 in the benchmark.
        times: How many times; 2 in the benchmark.
    """

    base: int = 2
