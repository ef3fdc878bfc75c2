import os
from pathlib import Path

import pytest
import torch

from abc_toolkit.errors import UserError
from abc_toolkit.runs import files


def _full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def _write_json(path: Path) -> None:
    files.save_json(path, {"new": 1})


def _write_tensors(path: Path) -> None:
    files.save_tensors(path, {"new": torch.zeros(2).expand(3, 2)}, {"a": "b"})


@pytest.mark.parametrize("write", [_write_json, _write_tensors])
def test_a_file_is_replaced_whole_or_not_at_all(write: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert callable(write)
    path = tmp_path / "file"
    path.write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", _full)
        with pytest.raises(UserError, match=r"file cannot be written \(No space left on device\)"):
            write(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]
    write(path)
    assert path.read_bytes() != b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("write", [_write_json, _write_tensors])
def test_what_cannot_be_written_is_named(write: object, tmp_path: Path) -> None:
    assert callable(write)
    with pytest.raises(UserError, match="nowhere/file cannot be written"):
        write(tmp_path / "nowhere" / "file")


@pytest.mark.parametrize("write", [_write_json, _write_tensors])
def test_a_device_or_folder_is_never_replaced(write: object, tmp_path: Path) -> None:
    assert callable(write)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(UserError, match="is no file"):
            write(path)
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("text", ["", "{", '{"a": 1', "\x00"])
def test_broken_json_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json is not a whole JSON file"):
        files.load_json(tmp_path / "a.json")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*a\.json"):
        files.load_json(tmp_path / "a.json")
