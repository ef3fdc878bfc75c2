"""Lengths as a user writes them: multiples of the training length, numbers, ranges, shapes."""

import re
from collections.abc import Sequence

from abc_toolkit.errors import UserError

Shape = tuple[int, ...]
Size = int | Shape  # a length, whose shapes are up to the task, or one shape
LONGEST = 10**9
MOST_LENGTHS = 10**4


def shape_name(shape: Shape) -> str:
    """A shape as it stands in files, messages and tables, such as `6x6`."""
    return "x".join(map(str, shape))


def parse_sizes(spec: str, name: str, longest: int, known: Sequence[Shape]) -> list[Size]:
    """Lengths and shapes that a specification names, in this order.

    Args:
        spec: A list of what `parse_lengths` takes and of shapes such as `3x200`.
        name: The task's name.
        longest: The longest training length.
        known: The task's training shapes.

    Raises:
        UserError: As `parse_lengths`; also if the task has no problems of a shape.
    """
    parts = [part.strip() for part in spec.split(",")]
    shapes = [part for part in parts if re.fullmatch("[0-9]+(x[0-9]+)+", part)]
    lengths = [part for part in parts if part not in shapes]
    sizes: list[Size] = [*parse_lengths(",".join(lengths), longest)] if lengths else []
    for text in dict.fromkeys(shapes):
        shape = tuple(_length(number, spec, 1) for number in text.split("x"))
        # The shape of small lengths that stand to each other as these do.
        alike = tuple(1 + sorted(set(shape)).index(length) for length in shape)
        if alike not in known:
            such = ", ".join(map(shape_name, known[:3]))
            raise UserError(f"--length {spec}: {name} has no problems of shape {text}, but such as {such}")
        sizes.append(shape)
    return sizes


def parse_lengths(spec: str, longest: int) -> list[int]:
    """Lengths that a specification names.

    Args:
        spec: `60`; `10x`, times the longest training length; a list `1x,2x,60`; a range `1x:10x`, every multiple,
            or `6:60`, every length.
        longest: The longest training length.

    Raises:
        UserError: If it names no length, or one below 1 or above `LONGEST`.
    """
    lengths: list[int] = []
    for part in map(str.strip, spec.split(",")):
        if ":" in part:
            first, _, last = (text.strip() for text in part.partition(":"))
            start, end = _length(first, spec, longest), _length(last, spec, longest)
            if start > end:
                raise UserError(f"--length {spec}: the range {part} runs backwards; write {last}:{first}")
            step = longest if first.endswith("x") and last.endswith("x") else 1
            if (end - start) // step >= MOST_LENGTHS:
                raise UserError(f"--length {spec}: {part} names {(end - start) // step + 1} lengths; write fewer")
            lengths += range(start, end + 1, step)
        else:
            lengths.append(_length(part, spec, longest))
    return sorted(set(lengths))


def _length(text: str, spec: str, longest: int) -> int:
    match = re.fullmatch(r"([0-9]{1,10})(x?)", text)
    length = int(match[1]) * (longest if match[2] else 1) if match else 0
    if not 1 <= length <= LONGEST:
        what = repr(text) if spec != text else "it"
        raise UserError(
            f"--length {spec!r}: {what} is not a length of at least 1 and at most {LONGEST}; "
            "write 60, 10x, 1x,2x,10x or 1x:10x, or a shape such as 3x200"
        )
    return length
