"""What is read of a folder or a file, and how it is split."""

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from abc_toolkit.errors import UserError
from abc_toolkit.tasks.text.corpus import Corpus, load_corpus, num_subwords
from tests.tasks.text.conftest import subword_file, written


def said(tokens: Tensor) -> bytes:
    return bytes(tokens.tolist())


def load(path: Path, held_out: Path | None = None, share: float = 0.3, vocabulary: Path | None = None) -> Corpus:
    return load_corpus(path, held_out, share, vocabulary)


def test_files_of_a_folder_are_split_whole(text: Path) -> None:
    (text / "picture.png").write_bytes(b"\x89PNG\xff\xfe")
    (text / "empty.txt").touch()
    (text / "link.txt").symlink_to(text / "0.txt")
    os.mkfifo(text / "pipe")
    (text / "round").symlink_to(text)
    corpus = load(text)
    parts = [said(corpus.training), said(corpus.held_out)]
    names = sorted(text.rglob("*.txt"), key=lambda file: file.relative_to(text).as_posix())
    at = [0, 0]
    sides = {}
    for file in names:
        content = file.read_bytes()
        if not content or file.is_symlink():
            continue
        side = int(parts[1].startswith(content, at[1]))
        assert parts[side].startswith(content, at[side]), file
        at[side] += len(content)
        sides[file.name] = side
    assert {0, 1} == set(sides.values())
    rest = [part[start:] for part, start in zip(parts, at, strict=True)]
    # The link is a second name of one file, and its content is on one side alone.
    linked = (text / "0.txt").read_bytes()
    assert sorted(rest) in ([b"", linked], [b"", b""])
    assert not (linked in parts[0] and linked in parts[1])


def test_the_split_depends_on_names_alone(text: Path, tmp_path: Path) -> None:
    before = load(text)
    moved = tmp_path / "elsewhere"
    shutil.copytree(text, moved)
    after = load(moved)
    assert torch.equal(before.training, after.training)
    assert torch.equal(before.held_out, after.held_out)
    assert list(before.hashes.values()) == list(after.hashes.values())
    written(moved / "more", seed=5)
    more = load(moved)
    assert said(before.held_out) in said(more.held_out) or len(more.held_out) > len(before.held_out)
    assert list(more.hashes.values()) != list(after.hashes.values())


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_of_a_single_file_the_end_is_held_out(share: float, tmp_path: Path) -> None:
    file = tmp_path / "one.txt"
    content = "木 ü tree " * 97
    file.write_text(content, encoding="utf-8")
    corpus = load(file, share=share)
    assert said(corpus.training) + said(corpus.held_out) == content.encode()
    assert abs(len(corpus.held_out) / len(content.encode()) - share) < 0.01
    assert (said(corpus.training).decode() + said(corpus.held_out).decode()) == content  # cut between characters
    # Bytes may be anything.
    file.write_bytes(bytes(range(256)) * 4)
    assert said(load(file).training).startswith(bytes(range(200)))


def test_held_out_text_of_its_own_is_never_trained_on(text: Path, tmp_path: Path) -> None:
    other = written(tmp_path / "other", files=2, seed=9)
    corpus = load(text, other)
    assert said(corpus.held_out) == b"".join((other / name).read_bytes() for name in ("0.txt", "inside/1.txt"))
    assert len(corpus.hashes) == 2
    whole = len(load(text, other).training)
    # A copy of a held-out file, and a held-out folder inside the text.
    shutil.copy(other / "0.txt", text / "copy.txt")
    assert len(load(text, other).training) == whole
    inside = load(text, text / "inside")
    assert said(inside.held_out)[:50] not in said(inside.training)
    with pytest.raises(UserError, match="of which nothing is trained on"):
        load(text, text)


def test_a_changed_file_is_read_anew(text: Path) -> None:
    before = load(text)
    assert load(text) is before
    file = text / "0.txt"
    file.write_text("b" + file.read_text()[1:])
    os.utime(file, ns=(1, 1))
    after = load(text)
    assert after.hashes != before.hashes


def test_subwords_say_the_same_text(text: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    vocabulary = subword_file(tmp_path / "subwords.json", text)
    size = num_subwords(vocabulary)
    plain, corpus = load(text), load(text, vocabulary=vocabulary)
    for ours, theirs in ((corpus.training, plain.training), (corpus.held_out, plain.held_out)):
        assert ours.dtype == torch.int32
        assert 256 <= size <= 376
        assert 0 <= int(ours.min()) <= int(ours.max()) < size
        assert len(ours) < len(theirs)
        assert Tokenizer.from_file(str(vocabulary)).decode(ours.tolist()).encode() == said(theirs)
    assert set(corpus.hashes) == {str(text), str(vocabulary)}


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "there is no text at .*/it: .*apt-get install python3.11-doc"),
        (lambda path: path.touch(), "holds no text: .*apt-get install"),
        (lambda path: path.mkdir(), "holds no text"),
        (os.mkfifo, "holds no text"),
        (lambda path: path.symlink_to(path), "no text at|cannot be read"),
        (lambda path: written(path, files=1), "holds 1 text, of which nothing is held out: .*held_out_path"),
        (lambda path: [path.mkdir(), (path / "a").write_bytes(b"\xff")], "holds no file of UTF-8 text"),
        (lambda path: path.write_bytes(b"x"), "of which nothing is"),
    ],
)
def test_what_is_no_text_is_refused(make: object, reason: str, tmp_path: Path) -> None:
    make(tmp_path / "it")  # type: ignore[operator]
    with pytest.raises(UserError, match=reason) as refused:
        load(tmp_path / "it", share=0.01)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["\0", "x" * 5000])
def test_a_name_that_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"cannot be read|there is no text"):
        load(Path(name))


def test_bad_subword_files_are_refused(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = tmp_path / "subwords.json"
    with pytest.raises(UserError, match=r"there is no subword file .*subwords.json"):
        num_subwords(vocabulary)
    for content in (b"", b"{}", b"[1, 2]", b"\xff", b'{"version": "9.0", "model": {"type": "Unheard"}}'):
        vocabulary.write_bytes(content)
        with pytest.raises(UserError, match=r"is no subword file of this version of 'tokenizers'") as refused:
            num_subwords(vocabulary)
        assert "\n" not in str(refused.value)
    subword_file(vocabulary, text)
    one = tmp_path / "latin.txt"
    one.write_bytes("über".encode("latin-1") * 50)
    with pytest.raises(UserError, match=r"latin.txt is no UTF-8 text \(byte 1\).*leave out --task.vocabulary"):
        load(one, vocabulary=vocabulary)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    os.utime(vocabulary, ns=(5, 5))  # as if never read before
    with pytest.raises(UserError, match=r"pip install 'abc_toolkit\[text\]'"):
        num_subwords(vocabulary)
