"""Pairs of lines from two aligned files, as subwords."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from abc_toolkit.errors import UserError
from abc_toolkit.tasks.base import quoted
from abc_toolkit.tasks.text.corpus import LARGEST, File, content_of, load_subwords, share_of, stamped, stamped_subwords

Lines = Sequence[str]


@dataclass(frozen=True, eq=False)
class Strings:
    """Strings of subwords.

    Attributes:
        subwords: All of them, one string after the other, `[subword]`.
        starts: Where each string begins, and where the last one ends, `[string + 1]`.
    """

    subwords: Tensor
    starts: Sequence[int]

    @classmethod
    def joined(cls, strings: Sequence[Sequence[int]]) -> "Strings":
        """Strings given one by one."""
        subwords = torch.tensor([subword for string in strings for subword in string], dtype=torch.int32)
        return cls(subwords, [0, *accumulate(map(len, strings))])

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, number: int) -> list[int]:
        return self.subwords[self.starts[number] : self.starts[number + 1]].tolist()


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of strings.

    Attributes:
        sources: Their sources.
        targets: Their targets.
        too_long: Number of pairs that were left out, as one side is too long.
    """

    sources: Strings
    targets: Strings
    too_long: int

    def __len__(self) -> int:
        return len(self.sources)


@dataclass(frozen=True, eq=False)
class ParallelText:
    """A text in two languages.

    Attributes:
        training: Pairs to train on.
        held_out: Pairs to evaluate on. None has the source line of a training pair.
        hashes: SHA-256 of each file.
        decode: Text of some subwords.
    """

    training: Pairs
    held_out: Pairs
    hashes: Mapping[str, str]
    decode: Callable[[list[int]], str]


def load_pairs(
    paths: tuple[Path, Path],
    held_out_paths: tuple[Path, Path] | None,
    held_out_share: float,
    vocabulary: Path,
    max_length: int,
) -> ParallelText:
    """Pairs from aligned files, read anew only if one of the files was changed.

    White space around a line is left out, and so are pairs of empty lines. A pair is held out if the hash of its source
    line falls into the share. If there are files of held-out pairs, these and no others are held out, and a training
    pair with the source line of one of them is left out.

    Args:
        paths: The files of sources and of targets.
        held_out_paths: Those of held-out pairs, if there are any.
        held_out_share: Share of the pairs that is held out otherwise.
        vocabulary: A subword file for both sides.
        max_length: Most subwords of each side; longer pairs are left out.

    Raises:
        UserError: If a file is missing, empty or not UTF-8, or too large; if lines do not align; if the subword file is
            of another format, or changes a held-out target; or if no pair is left for training or to be held out.
    """
    sides = ("source", "target")
    files = [_stamped(path, f"--task.{side}_path") for path, side in zip(paths, sides, strict=True)]
    held_out: list[File] = []
    if held_out_paths is not None:
        pairs = zip(held_out_paths, sides, strict=True)
        held_out = [_stamped(path, f"--task.held_out_{side}_path") for path, side in pairs]
    words = stamped_subwords(vocabulary)
    return _loaded((*files, *held_out), held_out_share, words, max_length)


def _stamped(path: Path, option: str) -> File:
    such = "a file of text, a sentence a line, such as experiments/translation/prepare.py writes"
    file = stamped(path, f"there is no file {path}: give {option} {such}")
    if file.size > LARGEST:
        raise UserError(f"{path} holds more than {LARGEST // 2**30} GiB of text: give a part of it")
    return file


@lru_cache(maxsize=2)
def _loaded(files: tuple[File, ...], share: float, vocabulary: File, max_length: int) -> ParallelText:
    contents = [content_of(file) for file in files]
    read = list(zip(files, contents, strict=True))
    hashes = {str(file.path): hashlib.sha256(content).hexdigest() for file, content in read}
    lines = [_lines(file, content) for file, content in read]
    parts = [_aligned(files[i : i + 2], lines[i : i + 2]) for i in range(0, len(files), 2)]
    if len(parts) == 2:
        training, held_out = parts
        kept_back = {source for source, _ in held_out}
        training = [pair for pair in training if pair[0] not in kept_back]
    else:
        training = [pair for pair in parts[0] if share_of(pair[0]) >= share]
        held_out = [pair for pair in parts[0] if share_of(pair[0]) < share]
    tokenizer, _, hashes[str(vocabulary.path)] = load_subwords(vocabulary)

    def encode(lines: Lines) -> list[list[int]]:
        return [one.ids for one in tokenizer.encode_batch_fast(list(lines), add_special_tokens=False)]

    def pairs_of(pairs: Sequence[tuple[str, str]], file: File, what: str) -> Pairs:
        sources, targets = (encode([pair[side] for pair in pairs]) for side in (0, 1))
        both = list(zip(sources, targets, strict=True))
        short = [pair for pair in both if max(map(len, pair)) <= max_length]
        if not short:
            reason = f": all {len(both):,} pairs are longer than --task.max_length {max_length}" if both else ""
            raise UserError(
                f"no pair of {file.path} is {what}{reason}: give more pairs, another --task.max_length or "
                "another --task.held_out_share"
            )
        left_out = len(both) - len(short)
        return Pairs(Strings.joined([a for a, _ in short]), Strings.joined([b for _, b in short]), left_out)

    found = ParallelText(
        pairs_of(training, files[0], "trained on"), pairs_of(held_out, files[-2], "held out"), hashes, tokenizer.decode
    )
    targets = [target for _, target in held_out]
    for target, given_back in zip(targets, tokenizer.decode_batch(encode(targets)), strict=True):
        if target != given_back:
            raise UserError(
                f"{vocabulary.path} does not give {quoted(target)} back, and a translation could not be scored: give a "
                "subword file of bytes, as experiments/translation/prepare.py makes it"
            )
    return found


def _lines(file: File, content: bytes) -> list[str]:
    try:
        lines = content.decode().split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{file.path} is no UTF-8 text (byte {error.start + 1}): convert it") from None
    if not lines[-1]:
        lines.pop()
    if not any(map(str.strip, lines)):
        raise UserError(f"{file.path} holds no text: give a file of text, a sentence a line")
    return [line.strip() for line in lines]


def _aligned(files: Sequence[File], lines: Sequence[Lines]) -> list[tuple[str, str]]:
    """The pairs of two files that are not empty."""
    (source, target), (sources, targets) = (file.path for file in files), lines
    if len(sources) != len(targets):
        raise UserError(
            f"pairs that do not align: {source} has {len(sources):,} lines, {target} {len(targets):,}: give files "
            "of which each line translates that of the other"
        )
    for number, (one, other) in enumerate(zip(sources, targets, strict=True), 1):
        if bool(one) != bool(other):
            empty, full = (target, source) if one else (source, target)
            raise UserError(
                f"pairs that do not align: line {number:,} of {empty} is empty, and that of {full} is not: leave it "
                "out of both"
            )
    return [pair for pair in zip(sources, targets, strict=True) if pair[0]]
