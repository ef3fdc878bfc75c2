"""Sequences: copied, written twice, reversed.

Source: Kogkalidis et al. 2024 (arXiv 2312.16045), whose sequences have `floor(N(100, 10))` tokens and whose test
lengths are those of training. Tests at longer lengths are ours.
"""

import abc
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator

from abc_toolkit.errors import check_numbers
from abc_toolkit.tasks.base import TRAINING, Problems
from abc_toolkit.tasks.lengths import Shape
from abc_toolkit.tasks.structures.base import StructureTask, padded_problems
from abc_toolkit.vocabulary import BOS, EOS, NUM_SPECIAL

_SPREAD = 0.1  # standard deviation of a length, as a share of its mean
_FARTHEST = 6  # standard deviations from the mean at which lengths are cut off: one in 10^9 is beyond


@dataclass(frozen=True)
class SequenceTask(StructureTask):
    """A task on sequences of symbols, uniform and independent, whose number is `floor(N(n, n / 10))` of a shape `(n,)`.

    Attributes:
        max_length: Mean number of symbols of a training sequence.
        num_symbols: Size of the alphabet.
    """

    max_length: int = 30
    num_symbols: int = 19

    num_given: ClassVar[int] = 1  # the study never predicts the first token of a target
    framed: ClassVar[bool] = False
    fewest: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "task", ("num_symbols",), at_least=1)

    @property
    def vocabulary_size(self) -> int:
        return NUM_SPECIAL + self.num_symbols

    @abc.abstractmethod
    def answer(self, symbols: list[int]) -> list[int]:
        """What is made of the symbols of a sequence."""

    def draw_lengths(self, generator: Generator, batch: int, mean: int) -> list[int]:
        """Numbers of symbols, at least `fewest`."""
        steps = torch.randn(batch, generator=generator, dtype=torch.float64).clamp(-_FARTHEST, _FARTHEST)
        return (mean + _SPREAD * mean * steps).floor().long().clamp(min=self.fewest).tolist()

    def sample(self, generator: Generator, batch: int, shape: Shape, suite: str = TRAINING) -> Problems:
        lengths = self.draw_lengths(generator, batch, shape[0])
        drawn = torch.randint(self.num_symbols, (batch, max(lengths)), generator=generator) + NUM_SPECIAL
        sources = [row[:length] for row, length in zip(drawn.tolist(), lengths, strict=True)]
        targets = [self.answer(source) for source in sources]
        if self.framed:
            sources = [[BOS, *source, EOS] for source in sources]
            targets = [[*target, EOS] for target in targets]
        return padded_problems(shape, sources, targets, num_given=self.num_given)

    def num_tokens(self, shape: Shape) -> tuple[int, int]:
        longest = max(self.fewest, math.floor(shape[0] * (1 + _FARTHEST * _SPREAD)))
        return longest + 2 * self.framed, len(self.answer([0])) * longest + self.framed


@dataclass(frozen=True)
class SequenceCopy(SequenceTask):
    """Writes a sequence again. Source and target end with `EOS`, and the source begins with `BOS`, as in the study.

    Attributes:
        max_length: Mean number of symbols of a training sequence.
        num_symbols: Size of the alphabet.
    """

    num_symbols: int = 20

    num_given: ClassVar[int] = 0
    framed: ClassVar[bool] = True

    def answer(self, symbols: list[int]) -> list[int]:
        return symbols


@dataclass(frozen=True)
class SequenceRepeat(SequenceTask):
    """Writes a sequence twice. The first token of the target does not count.

    Attributes:
        max_length: Mean number of symbols of a training sequence.
        num_symbols: Size of the alphabet.
    """

    def answer(self, symbols: list[int]) -> list[int]:
        return 2 * symbols


@dataclass(frozen=True)
class SequenceReverse(SequenceTask):
    """Writes a sequence from its end. The first token of the target does not count.

    A sequence of one symbol leaves nothing to predict, so there are at least two.

    Attributes:
        max_length: Mean number of symbols of a training sequence.
        num_symbols: Size of the alphabet.
    """

    fewest: ClassVar[int] = 2

    def answer(self, symbols: list[int]) -> list[int]:
        return symbols[::-1]
