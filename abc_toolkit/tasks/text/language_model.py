"""Language modelling: the next token of a text, trained at one length and evaluated at longer ones.

Sources of the setting: *DAPE: Data-Adaptive Positional Encoding for Length Extrapolation* (arXiv 2405.14722) and
*DAPE V2* (arXiv 2410.04798), which score the last 256 tokens of each window.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import ClassVar

import torch
from torch import Generator, Tensor

from abc_toolkit.errors import UserError
from abc_toolkit.layout import Layout, stream_layout
from abc_toolkit.tasks.base import TRAINING, Batch, Interface, Listed
from abc_toolkit.tasks.lengths import Shape
from abc_toolkit.tasks.objective import Objective, Perplexity
from abc_toolkit.tasks.text.corpus import NUM_BYTES, Corpus, load_corpus, num_subwords

HELD_OUT = "held_out"
_PAIRED = 64  # times the training length up to which every length scores the same blocks
_SAMPLES = 1000


@dataclass(frozen=True)
class LanguageModel(Listed):
    """Predicts each token of a text from those before it.

    A problem of length `L` is a window of `L + 1` tokens: the model reads the first `L` and predicts the last `L`.
    Training draws windows of `max_length` anywhere in the training text, and all their outputs count. Windows cross the
    bounds of files, which are joined as they are.

    Evaluation scores *blocks* of `scored` tokens, which partition the end of the held-out text. The text before the
    first block is context alone: 64 times `max_length` tokens, or half of the held-out text if that is less. A block at
    length `L` is scored under the `L` tokens of context that end with its last but one. So up to 64 times the training
    length the blocks are the same at every length, and each of their tokens has at least `L - scored + 1` tokens before
    it. A longer window may begin before the held-out text does; the blocks of such windows are left out, and the others
    keep their numbers. A window shorter than a block scores the last `L` tokens of it.

    Attributes:
        path: A file of text, or a folder, which is read recursively.
        held_out_path: A file or a folder that is held out; if not given, a share of `path` is.
        max_length: Tokens of a training window.
        vocabulary: A subword file of the library `tokenizers`; if not given, tokens are bytes.
        scored: Tokens scored at the end of each window in evaluation; a quarter of `max_length`, if not given.
        held_out_share: Share of the files, by a hash of their names, or of the end of a single file, that is held out.
    """

    path: Path
    held_out_path: Path | None = None
    max_length: int = 128
    vocabulary: Path | None = None
    scored: int | None = None
    held_out_share: float = 0.1

    suites: ClassVar[tuple[str, ...]] = (HELD_OUT,)

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise UserError(f"max_length {self.max_length}: give at least 1")
        if self.scored is not None and not 1 <= self.scored <= self.max_length:
            raise UserError(f"scored {self.scored}: give at least 1 and at most the max_length, {self.max_length}")
        if not 0 < self.held_out_share < 1:
            raise UserError(f"held_out_share {self.held_out_share:g}: give a share between 0 and 1")

    @cached_property
    def corpus(self) -> Corpus:
        """The text, which is read when it is first asked for."""
        return load_corpus(self.path, self.held_out_path, self.held_out_share, self.vocabulary)

    @cached_property
    def interface(self) -> Interface:  # type: ignore[override]
        size = NUM_BYTES if self.vocabulary is None else num_subwords(self.vocabulary)
        return Interface(num_outputs=size, num_tokens=size)

    @property
    def objective(self) -> Objective:
        return Perplexity()

    @property
    def block(self) -> int:
        """Tokens that are scored at the end of a window in evaluation."""
        return max(1, self.max_length // 4) if self.scored is None else self.scored

    @property
    def num_samples(self) -> int:  # type: ignore[override]
        """1000, or the number of blocks if there are fewer."""
        return min(_SAMPLES, self.num_listed((self.max_length,), HELD_OUT))

    def data_files(self) -> Mapping[str, str]:
        return self.corpus.hashes

    def training_shapes(self) -> tuple[Shape, ...]:
        return ((self.max_length,),)

    def evaluation_shapes(self, length: int, suite: str, generator: Generator) -> tuple[Shape, ...]:
        """The length itself.

        Raises:
            UserError: If the held-out text holds no window of such a length.
        """
        self._check_room((length,))
        return ((length,),)

    def num_tokens(self, shape: Shape) -> tuple[int, int]:
        return shape[0], 0

    def layout(self, shape: Shape) -> Layout:
        """One segment `text`, whose `place` counts tokens from the first one, and whose `index` those that follow."""
        return _layout(shape[0])

    def sample(self, generator: Generator, batch: int, shape: Shape, suite: str = TRAINING) -> Batch:
        """Windows anywhere in the training text, or distinct blocks of the held-out text.

        Raises:
            UserError: If the training text is shorter than a window, or the held-out text holds fewer blocks.
        """
        if suite != TRAINING:
            return self.listed(self.choose(generator, batch, shape, suite), shape, suite)
        text, (length,) = self.corpus.training, shape
        if len(text) <= length:
            raise UserError(
                f"{self.path} holds {len(text):,} tokens to train on, and a window of length {length:,} takes "
                f"{length + 1:,}: lower --task.max_length, or give more text"
            )
        return _windows(text, torch.randint(len(text) - length, (batch,), generator=generator), shape)

    def num_listed(self, shape: Shape, suite: str) -> int:
        """Number of blocks of the held-out text that a window of the length ends with.

        Raises:
            UserError: If there is none.
        """
        self._check_room(shape)
        before_first = self._before_first()
        blocks = (len(self.corpus.held_out) - before_first) // self.block
        left_out = max(0, shape[0] + 1 - self.block - before_first)  # tokens from the first block on
        return blocks - -(-left_out // self.block)

    def listed(self, numbers: Tensor, shape: Shape, suite: str) -> Batch:
        """The windows that end with blocks of the held-out text, which are counted from its end."""
        (length,), text = shape, self.corpus.held_out
        end = self._before_first() + (len(text) - self._before_first()) // self.block * self.block
        windows = _windows(text, end - self.block * numbers - length - 1, shape)
        counts = torch.arange(length) >= length - self.block
        return Batch(shape, windows.inputs, windows.targets, counts.expand(len(numbers), -1))

    def _before_first(self) -> int:
        """Tokens of the held-out text before the first block."""
        return min(_PAIRED * self.max_length, len(self.corpus.held_out) // 2)

    def _check_room(self, shape: Shape) -> None:
        """Refuses a length of which the held-out text has no window that ends with a block."""
        tokens = len(self.corpus.held_out)
        before_first = self._before_first()
        most = before_first + (tokens - before_first) // self.block * self.block - 1
        if most < max(1, before_first) or shape[0] > most:
            source = self.path if self.held_out_path is None else self.held_out_path
            such = f"choose a length of at most {most:,}" if most > 0 else "give more text"
            raise UserError(f"length {shape[0]:,}: the text held out of {source} holds {tokens:,} tokens: {such}")


def _windows(text: Tensor, starts: Tensor, shape: Shape) -> Batch:
    """Inputs and targets of the windows of a text that begin at some tokens."""
    tokens = text[starts[:, None] + torch.arange(shape[0] + 1)].long()
    return Batch(shape, tokens[:, :-1], tokens[:, 1:])


@lru_cache(maxsize=64)
def _layout(length: int) -> Layout:
    with torch.inference_mode(False):  # a layout that evaluation makes may be trained on later
        raw = torch.arange(length)
        coordinates = {"place": raw, "index": length - 1 - raw}
        return stream_layout(("text",), torch.zeros(length, dtype=torch.long), coordinates)
