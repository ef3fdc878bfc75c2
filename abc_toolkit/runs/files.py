"""Files are written whole or not at all, and read whole or refused."""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import psutil
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from abc_toolkit.errors import UserError

# Bytes, more than any file of a run or of settings has; a larger file is another's, or endless.
LARGEST_FILE = 2**33
LARGEST_TEXT = 2**28
_DEPTH = 64


@contextlib.contextmanager
def replacing(path: Path) -> Generator[Path, None, None]:
    """A temporary path beside `path`. It is renamed to `path` when the block ends, and removed when the block fails.

    The name holds this process's number. Temporary files of killed processes are removed.

    Raises:
        UserError: If the file cannot be written.
    """
    if path.exists() and not path.is_file():  # renaming would replace a device by a file
        raise UserError(f"{path} is no file: name a file to write")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _remove_left_behind(path)
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    except (OSError, SafetensorError) as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _remove_left_behind(path: Path) -> None:
    """Removes the temporary files of processes that have ended."""
    for other in path.parent.glob(f".{_escaped(path.name)}.*.tmp"):
        number = re.fullmatch(r"\.([0-9]{1,18})\.tmp", other.name[len(path.name) + 1 :])
        if number and not psutil.pid_exists(int(number[1])):
            other.unlink(missing_ok=True)


def _escaped(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def flush(path: Path) -> None:
    """Waits until the content of a file or a folder is on the disk, where the system supports it."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cannot_write(path: Path, error: Exception) -> UserError:
    """The error of a file or folder that cannot be written."""
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    return UserError(f"{path} cannot be written ({reason}): free the disk or name another folder")


def save_text(path: Path, text: str) -> None:
    """Writes a text."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def save_json(path: Path, data: Any) -> None:
    """Writes plain data as readable JSON."""
    save_text(path, json.dumps(data, indent=1) + "\n")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes named tensors as safetensors."""
    with replacing(path) as temporary:
        temporary.write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}, dict(metadata)))


def read_bytes(path: Path, most: int = LARGEST_FILE) -> bytes:
    """A file's content.

    Args:
        path: The file.
        most: Largest size, in bytes.

    Raises:
        UserError: If it is missing, not a file, too large, or unreadable.
    """
    try:
        if not path.exists():
            raise UserError(f"there is no file {path}")
        if not path.is_file():
            raise UserError(f"{path} is no file")
        size = path.stat().st_size
        if size > most:
            raise UserError(f"{path} holds {size:,} bytes, more than the {most:,} that such a file may have")
        return path.read_bytes()
    except (OSError, ValueError, MemoryError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from None


def read_text(path: Path) -> str:
    """A file's text, UTF-8 with or without a byte-order mark.

    Raises:
        UserError: If it is missing, not a file, too large, or not UTF-8.
    """
    try:
        return read_bytes(path, LARGEST_TEXT).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text (byte {error.start})") from None


def sha256(content: bytes | Path) -> str:
    """Hash of bytes, or of a file's bytes, in hexadecimal.

    Raises:
        UserError: If the file cannot be read.
    """
    return hashlib.sha256(content if isinstance(content, bytes) else read_bytes(content)).hexdigest()


def canonical_hash(value: Any) -> str:
    """SHA-256 of a value's JSON with sorted keys and without spaces, in hexadecimal."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def parse_json(text: str, name: str) -> Any:
    """The value of a JSON text.

    Args:
        text: The text.
        name: Its name in messages.

    Raises:
        UserError: If it is not JSON, is nested deeper than any file of a run, or has a key twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key appears twice")
        return found

    try:
        _check_depth(text)
        return json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is not a whole JSON file ({error}): make it again") from None


def _check_depth(text: str) -> None:
    """Refuses brackets that are nested too deep; a parser's stack could overflow, so they are counted without one."""
    depth, inside = 0, False
    for token in re.finditer(r'\\.|["\[\]{}]', text):
        character = token[0]
        if character == '"':
            inside = not inside
        elif not inside and character in "[]{}":
            depth += 1 if character in "[{" else -1
            if depth > _DEPTH:
                raise ValueError(f"its brackets are nested more than {_DEPTH} deep")


def load_json(path: Path) -> Any:
    """Reads plain data.

    Raises:
        UserError: If the file is missing or not whole JSON.
    """
    return parse_json(read_text(path), str(path))
