"""Translation: a line of one language into a line of another, from aligned files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from abc_toolkit.errors import UserError, check_numbers
from abc_toolkit.layout import Layout, Positions
from abc_toolkit.tasks.base import TRAINING, Decodable, Interface, OneLength, Problems
from abc_toolkit.tasks.lengths import Shape
from abc_toolkit.tasks.objective import Metric, Objective, SequencePerplexity
from abc_toolkit.tasks.structures.base import padded_problems
from abc_toolkit.tasks.text.corpus import num_subwords
from abc_toolkit.tasks.text.pairs import Pairs, ParallelText, load_pairs
from abc_toolkit.vocabulary import BOS, EOS, NUM_SPECIAL

HELD_OUT = "held_out"
BLEU = Metric("bleu", higher_is_better=True, digits=3, is_acronym=True)
_ORDERS = 4  # of n-grams that BLEU counts
_FROM_THE_END = ("index", "raw_from_end")  # coordinates that would say how long a target is


@dataclass(frozen=True)
class Translation(OneLength, Decodable):
    """Translates the lines of a file into those of another one.

    A source is the subwords of a line and `EOS`, and so is a target. Pairs differ in length and are padded. A target
    has no coordinates that count from its end, as the end is unknown while decoding.

    Attributes:
        source_path: A file of UTF-8 text, a sentence a line.
        target_path: A file of as many lines, which translate those of `source_path` one by one.
        vocabulary: A subword file of the library `tokenizers`, for both languages.
        held_out_source_path: A file of sources that are held out; if not given, a share of the pairs is.
        held_out_target_path: The file of their targets.
        max_length: Most subwords of a side; longer pairs are left out of training and evaluation.
        held_out_share: Share of the pairs that is held out, by a hash of their sources.
    """

    source_path: Path
    target_path: Path
    vocabulary: Path
    held_out_source_path: Path | None = None
    held_out_target_path: Path | None = None
    max_length: int = 48
    held_out_share: float = 0.1

    suites: ClassVar[tuple[str, ...]] = (HELD_OUT,)

    def __post_init__(self) -> None:
        check_numbers(self, "task", ("max_length",), at_least=1)
        if not 0 < self.held_out_share < 1:
            raise UserError(f"held_out_share {self.held_out_share:g}: give a share between 0 and 1")
        if (self.held_out_source_path is None) != (self.held_out_target_path is None):
            given, other = ("source", "target") if self.held_out_target_path is None else ("target", "source")
            raise UserError(f"held_out_{given}_path: give held_out_{other}_path with it")

    @cached_property
    def text(self) -> ParallelText:
        """The pairs, which are read when they are first asked for."""
        held_out = None
        if self.held_out_source_path is not None and self.held_out_target_path is not None:
            held_out = (self.held_out_source_path, self.held_out_target_path)
        paths = (self.source_path, self.target_path)
        return load_pairs(paths, held_out, self.held_out_share, self.vocabulary, self.max_length)

    @cached_property
    def interface(self) -> Interface:  # type: ignore[override]
        return Interface.token_streams(NUM_SPECIAL + num_subwords(self.vocabulary))

    @property
    def objective(self) -> Objective:
        return SequencePerplexity()

    @property
    def num_samples(self) -> int:  # type: ignore[override]
        """All held-out pairs."""
        return len(self.text.held_out)

    def data_files(self) -> Mapping[str, str]:
        return self.text.hashes

    def remarks(self) -> Sequence[str]:
        parts = ((self.text.training, "to train on"), (self.text.held_out, "held out"))
        return [
            f"Of {part.too_long + len(part):,} pairs {what}, {part.too_long:,} have a side of more than "
            f"{self.max_length} subwords and are left out."
            for part, what in parts
            if part.too_long
        ]

    def only_length(self) -> str:
        return f"pairs have at most {self.max_length} subwords"

    def sample(self, generator: Generator, batch: int, shape: Shape, suite: str = TRAINING) -> Problems:
        """Draws pairs: to train on with replacement, of the suite without.

        Raises:
            UserError: If the suite has fewer pairs.
        """
        if suite != TRAINING:
            return self.listed(self.choose(generator, batch, shape, suite), shape, suite)
        part = self.text.training
        return _problems(part, torch.randint(len(part), (batch,), generator=generator), shape)

    def num_listed(self, shape: Shape, suite: str) -> int:
        return len(self.text.held_out)

    def listed(self, numbers: Tensor, shape: Shape, suite: str) -> Problems:
        return _problems(self.text.held_out, numbers, shape)

    def num_tokens(self, shape: Shape) -> tuple[int, int]:
        return shape[0] + 1, shape[0] + 1

    def layout(self, shape: Shape) -> Layout:
        """That of the longest pair, as each batch has its own."""
        return _layout(*self.num_tokens(shape))

    @property
    def decoded_metric(self) -> Metric:
        _sacrebleu()
        return BLEU

    def decoding_layout(self, source_length: int) -> Layout:
        """A target of at most twice as many tokens as the source has, and ten."""
        return _layout(source_length, 2 * source_length + 10)

    def line(self, tokens: Tensor) -> str:
        """The text of tokens `[length]` up to the first `EOS`, on one line."""
        subwords: list[int] = []
        for token in tokens.tolist():
            if token == EOS:
                break
            if token != BOS:
                subwords.append(token - NUM_SPECIAL)
        return " ".join(self.text.decode(subwords).split())

    def statistics(self, decoded: Tensor, problems: Problems) -> Tensor:
        """N-grams found and made of each order, then words made and words of the target, `[batch, 10]`."""
        bleu = _sacrebleu().BLEU()  # its tokens are those of 13a
        rows: list[list[int]] = []
        for tokens, target in zip(decoded, problems.target, strict=True):
            score = bleu.corpus_score([self.line(tokens)], [[self.line(target)]])
            rows.append([*score.counts, *score.totals, score.sys_len, score.ref_len])
        return torch.tensor(rows)

    def score(self, statistics: Tensor) -> float:
        """BLEU of a corpus, between 0 and 100."""
        numbers: list[int] = statistics.long().tolist()
        found, made, lengths = numbers[:_ORDERS], numbers[_ORDERS : 2 * _ORDERS], numbers[2 * _ORDERS :]
        return float(_sacrebleu().BLEU.compute_bleu(found, made, *lengths, smooth_method="exp").score)


def _sacrebleu() -> Any:
    try:
        import sacrebleu  # an extra
    except ModuleNotFoundError:
        raise UserError("BLEU needs a library: pip install 'abc_toolkit[text]'") from None
    return sacrebleu


def _problems(pairs: Pairs, numbers: Tensor, shape: Shape) -> Problems:
    """Pairs by their numbers."""

    def tokens(subwords: Sequence[int]) -> list[int]:
        return [*(NUM_SPECIAL + subword for subword in subwords), EOS]

    sources, targets = ([tokens(side[i]) for i in numbers.tolist()] for side in (pairs.sources, pairs.targets))
    problems = padded_problems(shape, sources, targets)
    assert problems.layout is not None
    return replace(problems, layout=_without_end(problems.layout))


def _without_end(layout: Layout) -> Layout:
    """A layout whose target does not say how long it is."""
    return Layout(layout.source, _from_the_start(layout.target), _from_the_start(layout.prefix))


def _from_the_start(positions: Positions) -> Positions:
    coordinates = {name: found for name, found in positions.coordinates.items() if name not in _FROM_THE_END}
    return replace(positions, coordinates=coordinates, own=positions.own.difference(_FROM_THE_END))


@lru_cache(maxsize=256)
def _layout(source_length: int, target_length: int) -> Layout:
    """The layout of problems that are not padded."""
    with torch.inference_mode(False):  # a layout that evaluation makes may be trained on later
        made = padded_problems((1,), [[EOS] * source_length], [[EOS] * target_length]).layout
        assert made is not None
        made = _without_end(made)
        parts = (replace(part.problem(0), present=None) for part in (made.source, made.target, made.prefix))
        return Layout(*parts)
