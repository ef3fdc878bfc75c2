"""Text from files as tokens, one part of it for training and another that is held out."""

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from abc_toolkit.errors import UserError

NUM_BYTES = 256
_EXAMPLE = "such as /usr/share/doc/python3.11/html/_sources, which 'apt-get install python3.11-doc' brings"
LARGEST = 2**31  # bytes of a text, all of whose tokens are held in memory


@dataclass(frozen=True)
class File:
    """A file as it is found on the disk.

    Attributes:
        name: Its path inside the folder, with slashes; of a single file its own name.
        path: Its path.
        size: Bytes.
        changed: When it was last changed, in nanoseconds.
    """

    name: str
    path: Path
    size: int
    changed: int


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text as tokens.

    Attributes:
        training: Tokens to train on, `[token]`, of type `uint8` (bytes) or `int32` (subwords).
        held_out: Tokens to evaluate on, of the same type.
        hashes: SHA-256 of what was read from each path.
    """

    training: Tensor
    held_out: Tensor
    hashes: Mapping[str, str]


def load_corpus(path: Path, held_out_path: Path | None, held_out_share: float, vocabulary: Path | None) -> Corpus:
    """A text from files, read anew only if one of them was changed.

    A folder is read recursively: its regular files, in the order of their names, as far as they are UTF-8. Files of a
    part are joined as they are. A file of a folder is held out if the hash of its name inside the folder falls into the
    share; of a single file the end is held out. If there is a second path, all of it is held out, and nothing else. A
    training file whose content is that of a held-out file is left out.

    Args:
        path: A file or a folder.
        held_out_path: A file or a folder that is held out whole.
        held_out_share: Share of the files, or of the single file, that is held out otherwise.
        vocabulary: A subword file; bytes are tokens if not given.

    Raises:
        UserError: If a path is missing, or holds no text; if a single file is not UTF-8 and subwords are asked for; or
            if no text is left for training or to be held out.
    """
    files = _files(path, "--task.path")
    held_out = None if held_out_path is None else _files(held_out_path, "--task.held_out_path")
    if sum(file.size for file in (*files, *(held_out or ()))) > LARGEST:
        raise UserError(f"{path} holds more than {LARGEST // 2**30} GiB of text: give a part of it")
    words = None if vocabulary is None else stamped_subwords(vocabulary)
    return _loaded(path, files, held_out_path, held_out, held_out_share, words)


def num_subwords(vocabulary: Path) -> int:
    """Size of the vocabulary of a subword file.

    Raises:
        UserError: If the file is missing or of another format, or the library is not installed.
    """
    return load_subwords(stamped_subwords(vocabulary))[1]


def _files(path: Path, option: str) -> tuple[File, ...]:
    """The regular files at a path that are not empty."""
    found: list[File] = []
    try:
        if not path.exists():
            raise UserError(f"there is no text at {path}: give {option} a file or a folder of text, {_EXAMPLE}")
        whole = path.is_dir()
        for file in _regular_files(path) if whole else [path]:
            known = file.stat()
            if stat.S_ISREG(known.st_mode) and known.st_size:
                name = file.relative_to(path).as_posix() if whole else file.name
                found.append(File(name, file, known.st_size, known.st_mtime_ns))
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"the text at {option} cannot be read ({' '.join(str(error).split())}): name another") from None
    if not found:
        raise UserError(f"{path} holds no text: give {option} a file or a folder of text, {_EXAMPLE}")
    return tuple(found)


def _regular_files(folder: Path) -> Iterator[Path]:
    """Files of a folder and the folders in it, but not behind links to folders, in the order of their names."""
    names: list[Path] = []
    for root, _, files in os.walk(folder):
        names += [Path(root, name) for name in files if Path(root, name).is_file()]
    return iter(sorted(names, key=lambda file: file.relative_to(folder).as_posix()))


def content_of(file: File) -> bytes:
    """The content of a file, as far as it may be large.

    Raises:
        UserError: If it cannot be read.
    """
    try:
        with file.path.open("rb") as opened:
            return opened.read(LARGEST)  # a file may have grown
    except OSError as error:
        raise UserError(f"{file.path} cannot be read ({error.strerror}): make it readable, or name another") from None


def stamped(path: Path, missing: str) -> File:
    """A single file, as it is found on the disk.

    Args:
        path: Its path.
        missing: What is said if there is no file.

    Raises:
        UserError: If there is none.
    """
    try:
        known = path.stat()
        if not stat.S_ISREG(known.st_mode):
            raise ValueError
    except (OSError, ValueError):
        raise UserError(missing) from None
    return File(path.name, path, known.st_size, known.st_mtime_ns)


def stamped_subwords(path: Path) -> File:
    """A subword file, as it is found on the disk.

    Raises:
        UserError: If there is none.
    """
    makers = "experiments/language_models/subwords.py and experiments/translation/prepare.py make"
    missing = f"there is no subword file {path}: give --task.vocabulary a file of 'tokenizers', such as {makers}"
    return stamped(path, missing)


@lru_cache(maxsize=2)
def _loaded(
    path: Path,
    files: tuple[File, ...],
    held_out_path: Path | None,
    held_out_files: tuple[File, ...] | None,
    share: float,
    vocabulary: File | None,
) -> Corpus:
    texts = _texts(path, files, vocabulary is not None)
    hashes = {str(path): _hash(texts)}
    if held_out_path is not None and held_out_files is not None:
        held_out = _texts(held_out_path, held_out_files, vocabulary is not None)
        hashes[str(held_out_path)] = _hash(held_out)
        training = texts
    elif path.is_dir():
        held_out = {name: text for name, text in texts.items() if share_of(name) < share}
        training = {name: text for name, text in texts.items() if name not in held_out}
    else:
        ((name, text),) = texts.items()
        end = _character_start(text, round(len(text) * (1 - share)))
        training, held_out = {name: text[:end]}, {name: text[end:]}
    contents = set(held_out.values())
    training = {name: text for name, text in training.items() if text not in contents}
    for part, what in ((training, "trained on"), (held_out, "held out")):
        if not any(part.values()):
            raise UserError(
                f"{path} holds {len(texts)} {'text' if len(texts) == 1 else 'texts'}, of which nothing is {what}: "
                "give another --task.held_out_share, or a text of its own as --task.held_out_path"
            )
    if vocabulary is None:
        tokens = [_bytes(list(part.values())) for part in (training, held_out)]
    else:
        tokenizer, _, hashes[str(vocabulary.path)] = load_subwords(vocabulary)
        tokens = [_encoded(tokenizer, list(part.values())) for part in (training, held_out)]
    return Corpus(tokens[0], tokens[1], hashes)


def _texts(path: Path, files: Sequence[File], decodes: bool) -> dict[str, bytes]:
    """Contents by name; those of a folder that are not UTF-8 are left out."""
    found: dict[str, bytes] = {}
    in_folder = path.is_dir()
    for file in files:
        content = content_of(file)
        if in_folder or decodes:
            try:
                content.decode()
            except UnicodeDecodeError as error:
                if in_folder:
                    continue
                raise UserError(
                    f"{path} is no UTF-8 text (byte {error.start + 1}), which --task.vocabulary needs: convert it, or "
                    "leave out --task.vocabulary to read bytes"
                ) from None
        found[file.name] = content
    if not found:
        raise UserError(f"{path} holds no file of UTF-8 text: give a file or a folder of text, {_EXAMPLE}")
    return found


def _hash(texts: Mapping[str, bytes]) -> str:
    """A hash of names and contents."""
    whole = hashlib.sha256()
    for name, text in texts.items():
        whole.update(hashlib.sha256(name.encode(errors="surrogateescape")).digest() + hashlib.sha256(text).digest())
    return whole.hexdigest()


def share_of(name: str) -> float:
    """A number between 0 and 1 that follows from a name."""
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:8], "big") / 2**64


def _character_start(text: bytes, at: int) -> int:
    """The first byte from `at` on that continues no UTF-8 character; at most three are passed over."""
    return next((i for i in range(at, min(at + 3, len(text))) if text[i] & 0xC0 != 0x80), min(at + 3, len(text)))


def _bytes(texts: Sequence[bytes]) -> Tensor:
    return torch.frombuffer(bytearray(b"".join(texts)), dtype=torch.uint8)


def _encoded(tokenizer: Any, texts: Sequence[bytes]) -> Tensor:
    encoded = tokenizer.encode_batch_fast([text.decode() for text in texts], add_special_tokens=False)
    return torch.cat([torch.tensor(one.ids, dtype=torch.int32) for one in encoded])


@lru_cache(maxsize=2)
def load_subwords(file: File) -> tuple[Any, int, str]:
    """The tokenizer in a subword file, the size of its vocabulary, and the hash of the file."""
    content = content_of(file)
    try:
        from tokenizers import Tokenizer  # an extra; reading a file of it runs no code of that file
    except ModuleNotFoundError:
        raise UserError("--task.vocabulary needs a library: pip install 'abc_toolkit[text]'") from None
    try:
        tokenizer: Any = Tokenizer.from_str(content.decode())
    except Exception as error:  # the library raises nothing more specific
        reason = " ".join(str(error).split())[:80]
        raise UserError(
            f"{file.path} is no subword file of this version of 'tokenizers' ({reason}): make one with "
            "experiments/language_models/subwords.py"
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    size = 1 + max(tokenizer.get_vocab().values(), default=-1)
    if size < 2:
        raise UserError(f"{file.path} holds {size} subwords: give a file with a vocabulary")
    return tokenizer, size, hashlib.sha256(content).hexdigest()
