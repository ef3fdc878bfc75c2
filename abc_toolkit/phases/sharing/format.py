"""An export: a folder that holds one model, in the layout of the Hugging Face Hub.

`config.json` names the SHA-256 of every other file and of itself. A folder is written beside its place and renamed, so
that it is there whole or not at all. What is read may come from anyone: nothing is believed that was not compared, and
nothing is read outside the folder.
"""

import contextlib
import dataclasses
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import psutil

from abc_toolkit.errors import UserError
from abc_toolkit.runs.files import cannot_write, canonical_hash, flush, load_json, read_bytes, save_json, sha256
from abc_toolkit.runs.folder import CERTIFICATE, WINDOW
from abc_toolkit.tasks import Task

LIBRARY = "abc_toolkit"
FORMAT = 1
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
NAMES = (CONFIG, WEIGHTS, WINDOW, CERTIFICATE, CARD)
# Each part of the configuration, and its kind.
_PARTS: Mapping[str, tuple[type, ...]] = {
    "phase": (str,),
    "task": (dict,),
    "architecture": (dict,),
    "window": (dict, type(None)),
    "training": (dict,),
    "versions": (dict,),
    "files": (dict,),
}


@dataclass(frozen=True)
class Export:
    """What an exported folder holds.

    Attributes:
        path: The folder, or the name that it was fetched by.
        config: The content of `config.json`, without its hash.
        files: The other files' content, by name.
        edited: Whether the card is not the one that was exported.
    """

    path: Path
    config: Mapping[str, Any]
    files: Mapping[str, bytes]
    edited: bool = False


def names_files(task: Task) -> bool:
    """Whether a task reads files that its settings name, which an export would not hold."""
    return any(isinstance(getattr(task, field.name), Path) for field in dataclasses.fields(cast(Any, task)))


def sealed(config: Mapping[str, Any], files: Mapping[str, bytes]) -> dict[str, Any]:
    """A configuration with the hashes of the files and its own."""
    head = {"library_name": LIBRARY, "format": FORMAT}
    content = head | dict(config) | {"files": {name: sha256(files[name]) for name in sorted(files)}}
    return content | {"hash": canonical_hash(content)}


def write(folder: Path, config: Mapping[str, Any], files: Mapping[str, bytes], overwrite: bool = False) -> None:
    """Writes an export, whole or not at all.

    Args:
        folder: The folder to make.
        config: The configuration, as `sealed` returns it.
        files: The other files, by name.
        overwrite: Whether to replace a folder that is an export and nothing else.

    Raises:
        UserError: If something else is there, the folder that is to hold it is missing, or it cannot be written.
    """
    check_free(folder, overwrite)
    folder = Path(os.path.abspath(folder))  # whose name is its own, where `.` was given
    partial, old = (_beside(folder, end, os.getpid()) for end in ("partial", "old"))
    try:
        partial.mkdir()
        for name, content in files.items():
            (partial / name).write_bytes(content)
        save_json(partial / CONFIG, dict(config))
        for path in (*partial.iterdir(), partial):
            flush(path)
        if os.path.lexists(folder):
            os.replace(folder, old)
        try:
            os.replace(partial, folder)
        except OSError:
            if old.exists():
                os.replace(old, folder)
            raise
        flush(folder.parent)
    except OSError as error:
        raise cannot_write(folder, error) from error
    finally:
        for left in (partial, old):
            if folder.exists() or left == partial:  # else the old folder is all that there is
                shutil.rmtree(left, ignore_errors=True)


def check_free(folder: Path, overwrite: bool) -> None:
    """Refuses a place where an export cannot be written; first repairs what a killed process left there.

    Raises:
        UserError: If something is there that is not to be replaced, or the folder that is to hold it is missing.
    """
    parent = folder.absolute().parent
    if not parent.is_dir():
        raise UserError(f"there is no folder {parent} to export into: make it, or name another folder")
    try:
        _repair(Path(os.path.abspath(folder)))
    except OSError as error:
        raise cannot_write(folder, error) from error
    if not os.path.lexists(folder):
        return
    if not overwrite:
        raise UserError(f"{folder} is there already: name another folder, or replace an export with --overwrite")
    other = _other_than_an_export(folder)
    if other is not None:
        raise UserError(f"{folder} is not replaced, as {other}: name another folder")


def _other_than_an_export(folder: Path) -> str | None:
    """Why a folder is something else than an export, in words; `None` if it is one and nothing else."""
    try:
        if folder.is_symlink() or not folder.is_dir():
            return "it is no folder"
        names = sorted(os.listdir(folder))
        config = load_json(folder / CONFIG) if CONFIG in names else None
    except (OSError, UserError) as error:
        return f"it is no export that can be read ({error})"
    if not isinstance(config, dict) or cast(dict[str, Any], config).get("library_name") != LIBRARY:
        return "it is no export"
    others = [name for name in names if name not in NAMES or not (folder / name).is_file()]
    return f"it also holds {others[0]}" if others else None


def _beside(folder: Path, end: str, process: int) -> Path:
    return folder.with_name(f".{folder.name}.{process}.{end}")


def _repair(folder: Path) -> None:
    """Removes what killed processes left beside an export; a folder that was being replaced comes back."""
    for left in sorted(folder.parent.iterdir()):
        found = re.fullmatch(rf"\.{re.escape(folder.name)}\.([0-9]{{1,18}})\.(partial|old)", left.name)
        if found is None or psutil.pid_exists(int(found[1])) or left.is_symlink():
            continue
        if found[2] == "old" and not os.path.lexists(folder):
            os.replace(left, folder)
        else:
            shutil.rmtree(left, ignore_errors=True)


def read(folder: Path, within: Path | None = None) -> Export:
    """Reads an export, each file of which is compared with its hash.

    Args:
        folder: The folder.
        within: The folder that links may not leave; the export itself if not given.

    Raises:
        UserError: If it is no export, is of another version, lacks a file, or was changed.
    """
    if not folder.is_dir():
        raise UserError(f"there is no export at {folder}: name a folder that 'abc export' wrote")
    config = _config(folder, within or folder)
    files: dict[str, bytes] = {}
    for name, expected in config["files"].items():
        if name != CARD:
            files[name] = read_bytes(_inside(folder, name, within or folder))
            if sha256(files[name]) != expected:
                raise UserError(f"{folder / name} was changed after the export, as its hash is another: export it anew")
    with contextlib.suppress(UserError):  # a text for people, which they may edit
        files[CARD] = read_bytes(_inside(folder, CARD, within or folder))
    edited = CARD not in files or sha256(files[CARD]) != config["files"][CARD]
    return Export(folder, config, files, edited)


def _config(folder: Path, within: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not os.path.lexists(path):
        raise UserError(f"{folder} holds no {CONFIG}, so that it is no export: name a folder that 'abc export' wrote")
    found = load_json(_inside(folder, CONFIG, within))
    config = cast(dict[str, Any], found) if isinstance(found, dict) else {}
    if config.get("library_name") != LIBRARY or "format" not in config:
        raise UserError(f"{path} is not of this toolkit: name a folder that 'abc export' wrote")
    if type(config["format"]) is not int or config["format"] != FORMAT:
        named = str(config["format"])[:40]
        raise UserError(f"{path} is of format {named}, and this version reads format {FORMAT}: export the run anew")
    try:
        intact = config.pop("hash", None) == canonical_hash(config)
    except ValueError:  # such as half of a surrogate pair
        intact = False
    if not intact:
        raise UserError(f"{path} was changed after the export, as its hash is another: export it anew")
    if not _has_its_parts(config):
        raise UserError(f"{path} lacks parts that an export has, or has others: export it anew")
    return config


def _has_its_parts(config: Mapping[str, Any]) -> bool:
    """Whether a configuration has what is read of it. A right hash does not show that: a sender can compute it."""
    if set(config) != {"library_name", "format", *_PARTS}:
        return False
    if any(not isinstance(config[name], kinds) for name, kinds in _PARTS.items()):
        return False
    files = config["files"]
    inside = config["window"] is not None
    return (
        config["phase"] == ("retrain" if inside else "fit")
        and {WEIGHTS, CARD} | ({WINDOW} if inside else set()) <= set(files)
        and set(files) <= {WEIGHTS, CARD} | ({WINDOW, CERTIFICATE} if inside else set())
        and all(isinstance(value, str) for value in files.values())
    )


def _inside(folder: Path, name: str, within: Path) -> Path:
    """The path of a file of a folder.

    Raises:
        UserError: If it is a link that leads out of the folder.
    """
    path = folder / name
    try:
        leaves = not path.resolve().is_relative_to(within.resolve())
    except (OSError, RuntimeError):  # links that lead to each other
        leaves = True
    if leaves:
        raise UserError(f"{path} is a link that leads out of the folder: put the file itself there")
    return path
