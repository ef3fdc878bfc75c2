"""Tasks on structures: token streams whose problems differ in length, judged by perplexity and exact match.

Source of the study: Kogkalidis et al. 2024, *Algebraic Positional Encodings* (arXiv 2312.16045).
"""

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Generator, Tensor

from abc_toolkit.errors import UserError
from abc_toolkit.layout import START, Layout, Positions, stream_positions
from abc_toolkit.tasks.base import TRAINING, Interface, Problems, Task
from abc_toolkit.tasks.lengths import Shape
from abc_toolkit.tasks.objective import Objective, SequencePerplexity
from abc_toolkit.vocabulary import EOS

Rows = Sequence[Sequence[int]]
TARGET = "target"
_SEGMENTS = ("source", START, TARGET)


@dataclass(frozen=True)
class StructureTask(Task):
    """A task whose batches hold problems of several lengths, padded at the end.

    A shape is one number, from which the sizes of problems are drawn. Problems are fresh in every batch, where the
    study has 6,000 that come again and again.

    Attributes:
        max_length: The number of the training shape.
    """

    num_samples: ClassVar[int] = 2000

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise UserError(f"max_length {self.max_length}: {type(self).__name__} needs at least 1")

    @property
    @abc.abstractmethod
    def vocabulary_size(self) -> int:
        """Number of tokens, `BOS` and `EOS` among them."""

    @property
    def interface(self) -> Interface:
        return Interface.token_streams(self.vocabulary_size)

    @property
    def objective(self) -> Objective:
        return SequencePerplexity()

    def training_shapes(self) -> tuple[Shape, ...]:
        return ((self.max_length,),)

    def evaluation_shapes(self, length: int, suite: str, generator: Generator) -> tuple[Shape, ...]:
        return ((length,),)

    @abc.abstractmethod
    def sample(self, generator: Generator, batch: int, shape: Shape, suite: str = TRAINING) -> Problems: ...

    def layout(self, shape: Shape) -> Layout:
        """That of one problem, as each batch has its own."""
        return _layout(self, shape)


@lru_cache(maxsize=64)
def _layout(task: StructureTask, shape: Shape) -> Layout:
    with torch.inference_mode(False):  # a layout that evaluation makes may be trained on later
        layout = task.sample(torch.Generator().manual_seed(0), 1, shape).layout
    assert layout is not None
    return layout


def padded_problems(
    shape: Shape, sources: Rows, targets: Rows, paths: tuple[Tensor, Tensor] | None = None, num_given: int = 0
) -> Problems:
    """Problems of several lengths in one batch.

    Their layouts have the segments `source`, `start` and `target`; `place` counts tokens from the start of a string,
    `index` those that follow.

    Args:
        shape: Their shape.
        sources: Token ids of each source.
        targets: Token ids of each target.
        paths: The coordinate `path` of the sources, `[batch, S, depth]`, and of the prefixes, `[batch, T, depth]`. A
            query of the target has that of the token that it holds, not of the one that it predicts.
        num_given: First tokens of a target that do not count.
    """
    source_path, target_path = (None, None) if paths is None else paths
    inputs, source_present = _padded(sources)
    tokens, target_present = _padded(targets)
    counted = target_present.clone()
    counted[:, :num_given] = False
    segment = torch.full((tokens.shape[1],), _SEGMENTS.index(TARGET))
    before = segment.clone()
    before[0] = _SEGMENTS.index(START)
    layout = Layout(
        _positions(torch.zeros(inputs.shape[1], dtype=torch.long), source_present, source_path),
        _positions(segment, target_present, target_path),
        _positions(before, target_present, target_path),
    )
    return Problems(shape, inputs, tokens, counted, layout)


def _padded(rows: Rows) -> tuple[Tensor, Tensor]:
    """Rows as one tensor `[batch, length]`, and which of its tokens are there."""
    lengths = [len(row) for row in rows]
    longest = max(lengths)
    tokens = torch.tensor([[*row, *[EOS] * (longest - len(row))] for row in rows])
    return tokens, torch.arange(longest) < torch.tensor(lengths)[:, None]


def _positions(segment: Tensor, present: Tensor, path: Tensor | None) -> Positions:
    place = torch.arange(len(segment))
    own = {"index": present.sum(dim=1, keepdim=True) - 1 - place} | ({} if path is None else {"path": path})
    return stream_positions(_SEGMENTS, segment, {"place": place}, own, present)
