"""Where every token of a problem stands: its segment and its coordinates.

A *segment* is the tokens with one role (operand 1, operator, answer ...): a run, unless operands are written in turn.
Each token has integer coordinates:

* `place`: place value inside its segment, 0 = least significant;
* `index`: position inside its segment counted from the other end, 0 = most significant;
* `row`, `column`: where it stands in a table, whose rows the target holds one after the other: `column` is the place
  inside the row, and an operand's digit has that of the row or the column that it belongs to; without a table every
  `row` is 0 and `column` is `place`;
* `raw`: position in its string (source or target), from the start;
* `raw_from_end`: tokens that follow it in its string;
* `segment`: the number of its segment.

One convention holds throughout: *a query carries the coordinates of the token it predicts, a key those of the
token it holds.*
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

START = "start"
ANSWER = "answer"
END = "end"
Coordinate = Literal["place", "index", "row", "column", "raw", "raw_from_end", "segment"]
COORDINATES: tuple[Coordinate, ...] = get_args(Coordinate)


class _Chosen(Mapping[str, Tensor]):
    """Coordinates of some tokens, looked up when they are first asked for: most hooks ask for none."""

    def __init__(self, coordinates: Mapping[str, Tensor], item: slice | Tensor) -> None:
        self._all = coordinates
        self._item = item
        self._known: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._known:
            self._known[name] = self._all[name][self._item]
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)


@dataclass(frozen=True, eq=False)
class Positions:
    """Segments and coordinates of tokens: of a run of them, `[length]`, or of keys gathered from one.

    Attributes:
        names: Names of the segments that the coordinate `segment` counts.
        coordinates: Each named coordinate of each token, `[length]`; of gathered keys `[head, query, slot]`.
    """

    names: tuple[str, ...]
    coordinates: Mapping[str, Tensor]

    @property
    def segment(self) -> Tensor:
        """Segment of each token as an index into `names`."""
        return self.coordinates["segment"]

    def __len__(self) -> int:
        return len(self.segment)

    def __getitem__(self, item: slice | Tensor) -> "Positions":
        return Positions(self.names, _Chosen(self.coordinates, item))

    def to(self, device: torch.device) -> "Positions":
        """The same positions on a device."""
        if self.segment.device == device:
            return self
        return Positions(self.names, {name: coordinate.to(device) for name, coordinate in self.coordinates.items()})

    def within(self, name: str) -> Tensor:
        """Which tokens belong to the segment `name`, boolean `[length]`."""
        if name not in self.names:
            return torch.zeros_like(self.segment, dtype=torch.bool)
        return self.segment == self.names.index(name)


@dataclass(frozen=True, eq=False)
class Layout:
    """Positions of every token of the problems of one shape.

    Attributes:
        source: The source's tokens, `[source_length]`: queries and keys of the encoder, keys of cross-attention.
        target: The tokens that the decoder predicts, `EOS` last, `[target_length]`: its queries.
        prefix: The tokens that the decoder holds when it predicts them, `BOS` first, `[target_length]`: the keys
            of its self-attention.
    """

    source: Positions
    target: Positions
    prefix: Positions

    @cached_property
    def string(self) -> "Layout":
        """The layout of source and target as one string, as a model without an encoder reads them.

        `prefix` are its tokens as keys, `target` the same as queries: those of the source carry their own coordinates,
        as nothing is predicted from them, the others those of the token that they predict. `raw` and `raw_from_end`
        count through the string, and are a query's those of the token that it holds. `source` is left as it is.
        """
        with torch.inference_mode(False):  # it is kept, and may be trained on later
            return Layout(self.source, _in_line(self.source, self.target), _in_line(self.source, self.prefix))

    def to(self, device: torch.device) -> "Layout":
        """The same layout on a device."""
        return Layout(self.source.to(device), self.target.to(device), self.prefix.to(device))


def digit_layout(
    source: Sequence[tuple[str, int]],
    target: int | Sequence[tuple[str, int]],
    in_turn: bool = False,
    answers_in_turn: bool = False,
    downwards: bool = False,
) -> Layout:
    """Layout of a source whose segments are written most significant digit first, and of what answers it.

    `EOS` as a query goes on counting from the last segment of the target (place `length`, index -1; `downwards` the
    other way round), so that a line such as *the token just written* holds for it too.

    Args:
        source: Name and length of each segment of the source, in order.
        target: The same of the target; a number stands for an answer of so many digits.
        in_turn: Whether the source's segments are written in turn, one token of each, in place of one after the other.
        answers_in_turn: The same of the target's.
        downwards: Whether the target's segments are written most significant digit first too, not last.
    """
    answers = [(ANSWER, target)] if isinstance(target, int) else target
    names = (*(name for name, _ in source), START, *(name for name, _ in answers), END)
    source_positions = positions_of(names, *_written(source, 0, True, in_turn))
    segment, place, index = _written(answers, len(source) + 1, downwards, answers_in_turn)
    length = answers[-1][1]
    end_place, end_index = (-1, length) if downwards else (length, -1)
    ended = zip((segment, place, index), (len(names) - 1, end_place, end_index), strict=True)
    begun = zip((segment, place, index), (len(source), 0, 0), strict=True)
    return Layout(
        source_positions,
        positions_of(names, *(functional.pad(part, (0, 1), value=value) for part, value in ended)),
        positions_of(names, *(functional.pad(part, (1, 0), value=value) for part, value in begun)),
    )


def table_layout(source: Positions, segment: Tensor, column: Tensor, rows: int) -> Layout:
    """Layout of a source and of a target that is a table of rows alike, a comma at the end of each.

    `EOS` as a query begins a row more, for which there is nothing.

    Args:
        source: Positions of the source; their names are those of all segments, `START` and `END` among them.
        segment: Segment of each token of a row, `[length]`.
        column: Its column and place, `[length]`; the comma's is one above the highest.
        rows: Number of rows.
    """
    names = source.names

    def positions(segment: Tensor, row: Tensor, column: Tensor) -> Positions:
        return positions_of(names, segment, column, length - 1 - column, row, column)

    length = int(column[-1])
    written = segment.repeat(rows), torch.arange(rows).repeat_interleave(len(segment)), column.repeat(rows)
    ended = zip(written, (names.index(END), rows, 0), strict=True)
    begun = zip(written, (names.index(START), 0, 0), strict=True)
    return Layout(
        source,
        positions(*(functional.pad(part, (0, 1), value=value) for part, value in ended)),
        positions(*(functional.pad(part, (1, 0), value=value) for part, value in begun)),
    )


def _written(
    segments: Sequence[tuple[str, int]], first: int, downwards: bool, in_turn: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Segment, counted from `first`, place and index of the tokens of some segments as they are written."""
    lengths = [length for _, length in segments]
    number = torch.cat([torch.full((length,), first + i, dtype=torch.long) for i, length in enumerate(lengths)])
    ahead = torch.cat([torch.arange(length) for length in lengths])
    left = torch.cat([torch.arange(length - 1, -1, -1) for length in lengths])
    if in_turn:
        order = ahead.argsort(stable=True)  # equal ones stay in the order of the segments
        number, ahead, left = number[order], ahead[order], left[order]
    return (number, left, ahead) if downwards else (number, ahead, left)


def raw_layout(target_length: int, source_length: int) -> Layout:
    """Layout of strings of which nothing is known but their lengths: one segment each, as the paper sees them."""
    return digit_layout([("source", source_length)], target_length - 1)


def _in_line(source: Positions, target: Positions) -> Positions:
    """Positions of two runs of tokens, the one after the other."""
    shared = [name for name in source.coordinates if name in target.coordinates]
    coordinates = {name: torch.cat([source.coordinates[name], target.coordinates[name]]) for name in shared}
    raw = torch.arange(len(source) + len(target), device=source.segment.device)
    return Positions(target.names, coordinates | {"raw": raw, "raw_from_end": len(raw) - 1 - raw})


def positions_of(
    names: tuple[str, ...],
    segment: Tensor,
    place: Tensor,
    index: Tensor,
    row: Tensor | None = None,
    column: Tensor | None = None,
) -> Positions:
    """Positions of a string's tokens.

    Args:
        names: Names of the segments.
        segment: Segment of each token, `[length]`, as all that follow.
        place: Place.
        index: Index.
        row: Row, if there is a table.
        column: Column.
    """
    raw = torch.arange(len(segment))
    coordinates = {
        "place": place,
        "index": index,
        "row": torch.zeros_like(place) if row is None else row,
        "column": place if column is None else column,
        "raw": raw,
        "raw_from_end": len(segment) - 1 - raw,
        "segment": segment,
    }
    return Positions(names, coordinates)
