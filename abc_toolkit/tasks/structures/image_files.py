"""Labelled images from files: the IDX files of MNIST and its kin, and the binary batches of CIFAR-10.

The files are parsed here, byte by byte: nothing in them is executed, and nothing is fetched.
"""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn, cast

import torch
from torch import Tensor

from abc_toolkit.errors import UserError

IDX = {"train": "train", "test": "t10k"}  # the beginning of the files' names, by part
IDX_IMAGES, IDX_LABELS = 0x00000803, 0x00000801  # unsigned bytes in three dimensions, and in one
CIFAR = {"train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test": ("test_batch.bin",)}
CIFAR_SHAPE = (3, 32, 32)
HOW_TO_GET = (
    "for Fashion-MNIST, 'apt-get install dataset-fashion-mnist' and give /usr/share/datasets/fashion-mnist; for "
    "CIFAR-10, unpack the binary version from https://www.cs.toronto.edu/~kriz/cifar.html and give its folder"
)
_MOST_BYTES = 2**31  # of a file's content


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images with their classes.

    Attributes:
        pixels: `[image, channel, row, column]`, unsigned bytes.
        labels: `[image]`.
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def read_images(folder: Path, classes: int) -> tuple[LabelledImages, LabelledImages]:
    """The training part and the test part of a folder.

    Args:
        folder: A folder with IDX files, `{train,t10k}-{images-idx3,labels-idx1}-ubyte` with or without `.gz`, or with
            CIFAR-10's `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`.
        classes: Number of classes; labels are below it.

    Raises:
        UserError: If the folder or a file is missing, or a file is damaged, of another format, or holds a label that is
            no class.
    """
    if not folder.is_dir():
        raise UserError(f"--task.path {folder}: there is no such folder; {HOW_TO_GET}")
    has_idx = any(_idx_file(folder, name) for start in IDX.values() for name in _idx_names(start))
    has_cifar = any((folder / name).exists() for names in CIFAR.values() for name in names)
    if has_idx and has_cifar:
        raise UserError(f"--task.path {folder} holds both IDX files and CIFAR-10's batches: give a folder for each")
    if has_idx:
        train, test = (_idx_part(folder, start) for start in IDX.values())
    elif has_cifar:
        train, test = (_cifar_part(folder, names) for names in CIFAR.values())
    elif (folder / "data_batch_1").exists():
        raise UserError(
            f"--task.path {folder} holds CIFAR-10's version for Python, whose files could execute code: take the "
            "binary version"
        )
    else:
        raise UserError(f"--task.path {folder} holds no images that can be read; {HOW_TO_GET}")
    if train.pixels.shape[1:] != test.pixels.shape[1:]:
        sizes = " and ".join("x".join(map(str, part.pixels.shape[2:])) for part in (train, test))
        raise UserError(f"--task.path {folder}: training and test images have different sizes, {sizes} pixels")
    for part in (train, test):
        if int(part.labels.max()) >= classes:
            raise UserError(
                f"--task.path {folder}: there is a label {int(part.labels.max())}, and classes are numbered from 0 to "
                f"{classes - 1}: raise --task.classes, or take a whole file"
            )
    return train, test


def _idx_names(start: str) -> tuple[str, str]:
    return f"{start}-images-idx3-ubyte", f"{start}-labels-idx1-ubyte"


def _idx_file(folder: Path, name: str) -> Path | None:
    """The file of a name, compressed or not."""
    return next((folder / own for own in (name, f"{name}.gz") if (folder / own).exists()), None)


def _idx_part(folder: Path, start: str) -> LabelledImages:
    images, labels = (
        _read_idx(folder, name, magic) for name, magic in zip(_idx_names(start), (IDX_IMAGES, IDX_LABELS), strict=True)
    )
    if len(images) != len(labels):
        raise UserError(
            f"--task.path {folder}: the files {start}-* hold {len(images)} images and {len(labels)} labels: take both "
            "from one source"
        )
    return LabelledImages(images[:, None], labels.long())


def _read_idx(folder: Path, name: str, magic: int) -> Tensor:
    """The bytes of an IDX file, `[image, row, column]` or `[image]`."""
    path = _idx_file(folder, name)
    if path is None:
        raise UserError(f"--task.path {folder} lacks {name}, or {name}.gz; {HOW_TO_GET}")
    content = _content(path)
    dimensions = magic & 0xFF
    header = 4 * (1 + dimensions)
    found, *shape = (int.from_bytes(content[start : start + 4], "big") for start in range(0, header, 4))
    if len(content) >= 4 and found != magic:
        raise UserError(f"{path} is not such an IDX file: it begins with {found:#010x} in place of {magic:#010x}")
    count = 1
    for size in shape:
        count *= size
    if len(content) != header + count or not count:
        _refuse_length(path, len(content), header + count)
    return torch.frombuffer(bytearray(content[header:]), dtype=torch.uint8).view(shape)


def _cifar_part(folder: Path, names: tuple[str, ...]) -> LabelledImages:
    channels, rows, columns = CIFAR_SHAPE
    record = 1 + channels * rows * columns
    pixels, labels = [], []
    for name in names:
        path = folder / name
        if not path.exists():
            raise UserError(f"--task.path {folder} lacks {name}; {HOW_TO_GET}")
        content = _content(path)
        if len(content) % record or not content:
            _refuse_length(path, len(content), record * max(1, -(-len(content) // record)))
        records = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, record)
        labels.append(records[:, 0].long())
        pixels.append(records[:, 1:].reshape(-1, *CIFAR_SHAPE))
    return LabelledImages(torch.cat(pixels), torch.cat(labels))


def _content(path: Path) -> bytes:
    """The content of a file, decompressed if its name says so.

    Raises:
        UserError: If it cannot be read.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file; {HOW_TO_GET}")
    try:
        with cast("IO[bytes]", gzip.open(path) if path.suffix == ".gz" else path.open("rb")) as file:
            content = file.read(_MOST_BYTES + 1)
    except EOFError:
        raise UserError(f"{path} is truncated: get the file again") from None
    except (OSError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"{path} cannot be read ({reason}): get the file again") from None
    if len(content) > _MOST_BYTES:
        raise UserError(f"{path} holds more than {_MOST_BYTES // 2**30} GiB: take a smaller file")
    return content


def _refuse_length(path: Path, found: int, expected: int) -> NoReturn:
    """Refuses a file whose length is not that of its content."""
    if not found:
        raise UserError(f"{path} is empty: get the file again")
    if found < expected:
        raise UserError(f"{path} is truncated, {found:,} of {expected:,} bytes: get the file again")
    if found == expected:
        raise UserError(f"{path} holds no images: get the file again")
    raise UserError(f"{path} is too long, {found:,} bytes in place of {expected:,}: get the file again")
