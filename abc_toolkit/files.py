"""Files that appear whole or not at all."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from abc_toolkit.errors import UserError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name when the block ends, and is removed when it fails.

    Raises:
        UserError: If the file cannot be written.
    """
    if path.exists() and not path.is_file():  # renaming would replace a device by a file
        raise UserError(f"{path} is no file: name a file to write")
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def cannot_write(path: Path, error: Exception) -> UserError:
    """What a user is told of a file or folder that cannot be written."""
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    return UserError(f"{path} cannot be written ({reason}): free the disk or name another folder")


def save_text(path: Path, text: str) -> None:
    """Writes a text."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def save_json(path: Path, data: Any) -> None:
    """Writes plain data as readable JSON."""
    save_text(path, json.dumps(data, indent=1) + "\n")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes named tensors as safetensors."""
    with replacing(path) as temporary:
        temporary.write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}, dict(metadata)))


def sha256(path: Path) -> str:
    """Hash of a file's bytes, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load_json(path: Path) -> Any:
    """Reads plain data.

    Raises:
        UserError: If the file is missing or not whole JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a whole JSON file ({error}): make it again") from None


def process_rank() -> int:
    """Which of several processes of one command this is; the first, 0, writes files and speaks."""
    return getattr(rank_zero_only, "rank", 0)
