"""Layouts: the segment and the coordinates of every token of a problem.

A *segment* is the tokens with one role (operand 1, operator, answer ...). They are contiguous, unless operands are
written in turn. Each token has integer coordinates:

* `place`: place value inside its segment, 0 = least significant;
* `index`: position inside its segment counted from the other end, 0 = most significant;
* `row`, `column`: row and column in a table, whose rows the target holds one after the other. `column` is the place
  inside the row; a digit of an operand has the number of the row or of the column that it belongs to. Without a table
  every `row` is 0, and `column` is `place`;
* `raw`: position in its string (source or target), from the start;
* `raw_from_end`: number of tokens that follow it in its string;
* `segment`: the number of its segment.

One convention holds throughout: *a query carries the coordinates of the token it predicts, a key those of the
token it holds.*
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from abc_toolkit.errors import UserError
from abc_toolkit.linear import Linear, symbol

START = "start"
ANSWER = "answer"
END = "end"
COORDINATES = ("place", "index", "row", "column", "raw", "raw_from_end", "segment")  # of every task of digits


class _Chosen(Mapping[str, Tensor]):
    """Coordinates of some tokens. Each is selected when it is first asked for, as most hooks ask for none."""

    def __init__(self, coordinates: Mapping[str, Tensor], item: slice | Tensor, own: frozenset[str]) -> None:
        self._all = coordinates
        self._item = item
        self._own = own
        self._known: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._known:
            found = self._all[name]
            self._known[name] = found[:, self._item] if name in self._own else found[self._item]
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)


class DiffersError(Exception):
    """A coordinate was asked for that differs from problem to problem."""


class _Shared(Mapping[str, Tensor]):
    """Coordinates that all problems share; asking for another raises `DiffersError`."""

    def __init__(self, coordinates: Mapping[str, Tensor], own: frozenset[str]) -> None:
        self._all = coordinates
        self._own = own

    def __getitem__(self, name: str) -> Tensor:
        if name in self._own:
            raise DiffersError(name)
        return self._all[name]

    def __contains__(self, name: object) -> bool:
        return name in self._all

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)


@dataclass(frozen=True, eq=False)
class Positions:
    """Segments and coordinates of tokens: of one problem, of all problems of a shape, or of each of a batch.

    Attributes:
        names: Names of the segments; the coordinate `segment` is an index into them.
        coordinates: Coordinates by name, `[length]`, or `[head, query, slot]` of gathered keys. Those of `own` have the
            batch first, `[batch, length]`. A coordinate may have more dimensions after these.
        own: Names of the coordinates that differ from problem to problem; `raw` and `segment` never do.
        present: Which tokens there are, boolean `[batch, length]`; the others are padding, at the end of the shorter
            problems. All, if not given.
    """

    names: tuple[str, ...]
    coordinates: Mapping[str, Tensor]
    own: frozenset[str] = frozenset()
    present: Tensor | None = None

    @property
    def segment(self) -> Tensor:
        """Segment of each token as an index into `names`."""
        return self.coordinates["segment"]

    @property
    def differ(self) -> bool:
        """Whether anything differs from problem to problem."""
        return bool(self.own) or self.present is not None

    @cached_property
    def shared(self) -> "Positions":
        """What all problems share. Asking for a coordinate that differs raises `DiffersError`."""
        return Positions(self.names, _Shared(self.coordinates, self.own)) if self.own else self

    def coordinate(self, name: str) -> Tensor:
        """The coordinate `name` of each token.

        Raises:
            UserError: If the layout has no such coordinate.
        """
        try:
            return self.coordinates[name]
        except KeyError:
            names = ", ".join(sorted(known for known in self.coordinates if known.isidentifier()))
            raise UserError(f"the layout has no coordinate {name!r}: choose one of {names}") from None

    def values(self, name: str) -> Tensor:
        """What the coordinate `name` is at the tokens that there are, `[token]`.

        Raises:
            UserError: If the layout has no such coordinate.
        """
        found = self.coordinate(name)
        return found[self.present] if self.present is not None and name in self.own else found.flatten()

    def __len__(self) -> int:
        return len(self.segment)

    def __getitem__(self, item: slice | Tensor) -> "Positions":
        chosen = _Chosen(self.coordinates, item, self.own)
        return Positions(self.names, chosen, self.own, None if self.present is None else self.present[:, item])

    def problems(self, item: slice | Tensor) -> "Positions":
        """The positions of some problems of a batch."""
        own = {name: self.coordinates[name][item] for name in self.own}
        present = None if self.present is None else self.present[item]
        return Positions(self.names, dict(self.coordinates) | own, self.own, present)

    def problem(self, number: int) -> "Positions":
        """The positions of one problem of a batch, padding included."""
        own = {name: self.coordinates[name][number] for name in self.own}
        return Positions(self.names, dict(self.coordinates) | own) if own else self.shared

    def trimmed(self) -> "Positions":
        """The same positions without the padding that no problem needs."""
        if self.present is None:
            return self
        return self[: int(self.present.sum(dim=1).max())]

    def beside(self, coordinates: Mapping[str, Tensor], own: bool = False) -> "Positions":
        """The same positions with more coordinates, or others.

        Args:
            coordinates: The coordinates.
            own: Whether they differ from problem to problem.
        """
        together = dict(self.coordinates) | dict(coordinates)
        differing = self.own.union(coordinates) if own else self.own.difference(coordinates)
        return Positions(self.names, together, differing, self.present)

    def to(self, device: torch.device) -> "Positions":
        """The same positions on a device."""
        if self.segment.device == device:
            return self
        coordinates = {name: coordinate.to(device) for name, coordinate in self.coordinates.items()}
        return Positions(self.names, coordinates, self.own, None if self.present is None else self.present.to(device))

    def within(self, name: str) -> Tensor:
        """Which tokens belong to the segment `name`, boolean `[length]`."""
        if name not in self.names:
            return torch.zeros_like(self.segment, dtype=torch.bool)
        return self.segment == self.names.index(name)


@dataclass(frozen=True, eq=False)
class Layout:
    """Positions of every token of the problems of one shape, or of a batch.

    Attributes:
        source: The source's tokens, `[source_length]`: queries and keys of the encoder, keys of cross-attention.
        target: The tokens that the decoder predicts, `[target_length]`: its queries. `EOS` is the last one, unless the
            layout says where the target ends.
        prefix: The tokens that the decoder holds when it predicts them, `BOS` first, `[target_length]`: the keys
            of its self-attention.
    """

    source: Positions
    target: Positions
    prefix: Positions

    @cached_property
    def string(self) -> "Layout":
        """The layout of source and target as one string, as a model without an encoder reads them.

        `prefix` holds the tokens of the string as keys, and `target` the same tokens as queries. A query of the source
        carries its own coordinates, as nothing is predicted from it; a query of the target carries those of the token
        that it predicts. `raw` and `raw_from_end` count through the whole string; a query's are those of the token that
        it holds. The coordinate `string` is 0 at tokens of the source and 1 at those of the target. `source` is
        unchanged.

        Raises:
            UserError: If sources are padded, so that a target would not follow its source.
        """
        if self.source.present is not None:
            raise UserError(
                "the problems of a batch differ in length, and a model that reads source and target as one string "
                "takes equal ones alone: choose --model.backbone encoder-decoder"
            )
        with torch.inference_mode(False):  # the layout is cached, and may be trained on later
            return Layout(self.source, _in_line(self.source, self.target), _in_line(self.source, self.prefix))

    @property
    def differ(self) -> bool:
        """Whether anything differs from problem to problem."""
        return self.source.differ or self.target.differ

    def problems(self, item: slice | Tensor) -> "Layout":
        """The layout of some problems of a batch."""
        return Layout(self.source.problems(item), self.target.problems(item), self.prefix.problems(item))

    def trimmed(self) -> "Layout":
        """The same layout without the padding that no problem needs."""
        return Layout(self.source.trimmed(), self.target.trimmed(), self.prefix.trimmed())

    def to(self, device: torch.device) -> "Layout":
        """The same layout on a device."""
        return Layout(self.source.to(device), self.target.to(device), self.prefix.to(device))


@dataclass(frozen=True)
class Token:
    """One token of a described string.

    Attributes:
        segment: Its segment.
        place: Its place: an integer, or a linear expression of sizes and of variables of repeats, as all coordinates.
        index: Its index.
        row: Its row.
        column: Its column; its place if not given.
    """

    segment: str
    place: int | Linear
    index: int | Linear
    row: int | Linear = 0
    column: int | Linear | None = None

    @property
    def coordinates(self) -> dict[str, Linear]:
        """Its coordinates by name, but for those that count whole strings."""
        column = self.place if self.column is None else self.column
        found = {"place": self.place, "index": self.index, "row": self.row, "column": column}
        return {name: Linear.from_value(value) for name, value in found.items()}


@dataclass(frozen=True)
class Repeat:
    """Items that are written several times, in rounds.

    Attributes:
        count: Number of rounds: an integer, or a linear expression of sizes.
        variable: The symbol that counts the rounds from 0, for use in the coordinates of the tokens.
        items: The items of a round.
    """

    count: int | Linear
    variable: str
    items: tuple["Token | Repeat", ...]


Item = Token | Repeat


@dataclass(frozen=True)
class LayoutDescription:
    """A description of a layout: of one shape if its expressions are integers, of all shapes if they hold symbols.

    Attributes:
        names: Names of the segments.
        source: Tokens of the source, in order.
        start: The token that the decoder holds at the beginning.
        target: Tokens of the target; `EOS` last, unless the layout says where the target ends.
    """

    names: tuple[str, ...]
    source: tuple[Item, ...]
    start: Token
    target: tuple[Item, ...]

    @property
    def symbols(self) -> set[str]:
        """The symbols in its expressions, without the variables of its repeats."""
        variables: set[str] = set()
        found: set[str] = set()

        def look(item: Item) -> None:
            if isinstance(item, Token):
                found.update(name for own in item.coordinates.values() for name in own.terms)
                return
            variables.add(item.variable)
            found.update(Linear.from_value(item.count).terms)
            for part in item.items:
                look(part)

        for item in (*self.source, self.start, *self.target):
            look(item)
        return found - variables

    def target_length(self, sizes: Mapping[str, int]) -> int:
        """Number of tokens of the target, with `EOS` where it has one, for some values of the symbols."""

        def length(items: Sequence[Item]) -> int:
            return sum(
                1 if isinstance(item, Token) else max(0, Linear.from_value(item.count).at(sizes)) * length(item.items)
                for item in items
            )

        return length(self.target)

    def plain(self) -> dict[str, Any]:
        """The description as JSON."""

        def of(item: Item) -> dict[str, Any]:
            if isinstance(item, Token):
                return {"segment": item.segment} | {name: own.plain() for name, own in item.coordinates.items()}
            count = Linear.from_value(item.count).plain()
            return {"repeat": count, "variable": item.variable, "items": [of(part) for part in item.items]}

        return {
            "segments": list(self.names),
            "source": [of(item) for item in self.source],
            "start": of(self.start),
            "target": [of(item) for item in self.target],
        }

    def layout(self) -> Layout:
        """The layout; all expressions must be integers."""
        target = _laid_out(self.target, self.names)
        prefix = torch.cat([_laid_out((self.start,), self.names), target[:, :-1]], dim=1)
        source = _laid_out(self.source, self.names)
        return Layout(*(positions_of(self.names, *part.unbind(0)) for part in (source, target, prefix)))


def _laid_out(items: Sequence[Item], names: Sequence[str]) -> Tensor:
    """Segment, place, index, row and column `[5, length]` of described tokens."""

    def rows(items: Sequence[Item], variables: Mapping[str, Tensor], counts: tuple[int, ...]) -> Tensor:
        parts = [torch.empty(5, *counts, 0, dtype=torch.long)]
        for item in items:
            if isinstance(item, Token):
                values = [names.index(item.segment), *(own.at(variables) for own in item.coordinates.values())]
                columns = [torch.as_tensor(value, dtype=torch.long).expand(counts) for value in values]
                parts.append(torch.stack(columns).unsqueeze(-1))
            else:
                count = int(item.count)
                own = {name: value.unsqueeze(-1) for name, value in variables.items()}
                own[item.variable] = torch.arange(count)
                parts.append(rows(item.items, own, (*counts, count)).flatten(-2))
        return torch.cat(parts, dim=-1)

    return rows(items, {}, ())


Segments = Sequence[tuple[str, int | Linear]]


def digit_description(
    source: Segments,
    target: int | Segments,
    in_turn: bool = False,
    answers_in_turn: bool = False,
    downwards: bool = False,
    ends: bool = True,
) -> LayoutDescription:
    """Description of a source whose segments are written most significant digit first, and of what answers it.

    `EOS` as a query continues the last segment of the target (place `length`, index -1; with `downwards` place -1 and
    index `length`), so that a line such as *the token just written* holds for it too.

    Args:
        source: Name and length of each segment of the source, in order.
        target: Name and length of each segment of the target; a number is the length of a single answer.
        in_turn: Whether the source's segments are written in turn, a token of each, instead of one after the other.
        answers_in_turn: Whether the target's segments are written in turn.
        downwards: Whether the target's segments are written most significant digit first too, instead of last.
        ends: Whether the target ends with `EOS`.
    """
    answers = target if isinstance(target, Sequence) else [(ANSWER, target)]
    length = answers[-1][1]
    end = Token(END, -1, length) if downwards else Token(END, length, -1)
    return LayoutDescription(
        (*(name for name, _ in source), START, *(name for name, _ in answers), *([END] if ends else [])),
        _written(source, True, in_turn),
        Token(START, 0, 0),
        (*_written(answers, downwards, answers_in_turn), *([end] if ends else [])),
    )


def digit_layout(
    source: Segments,
    target: int | Segments,
    in_turn: bool = False,
    answers_in_turn: bool = False,
    downwards: bool = False,
) -> Layout:
    """The layout that `digit_description` describes."""
    return digit_description(source, target, in_turn, answers_in_turn, downwards).layout()


def _written(segments: Segments, downwards: bool, in_turn: bool) -> tuple[Item, ...]:
    """The tokens of some segments as they are written."""

    def token(name: str, length: int | Linear, ahead: Linear) -> Token:
        left = length - 1 - ahead
        return Token(name, left, ahead) if downwards else Token(name, ahead, left)

    number = symbol("i")
    if not in_turn:
        return tuple(Repeat(length, "i", (token(name, length, number),)) for name, length in segments)
    items: list[Item] = []
    done: int | Linear = 0
    left: list[tuple[str, int | Linear]] = list(segments)
    while left:  # one repeat for each segment that ends: all segments that are left take turns up to its end
        shortest = min(length for _, length in left)
        turn = tuple(token(name, length, done + number) for name, length in left)
        items.append(Repeat(shortest - done, "i", turn))
        done, left = shortest, [(name, length) for name, length in left if length > shortest]
    return tuple(items)


def raw_layout(target_length: int, source_length: int) -> Layout:
    """Layout of strings of which only the lengths are known: one segment each, as in the paper."""
    return digit_layout([("source", source_length)], target_length - 1)


def stream_layout(
    names: Sequence[str],
    segment: Tensor,
    coordinates: Mapping[str, Tensor],
    own: Mapping[str, Tensor] | None = None,
    present: Tensor | None = None,
) -> Layout:
    """Layout of a stream of inputs without a target: what is asked of a model are outputs at its own tokens.

    Args:
        names: Names of the segments.
        segment: Segment of each token, `[length]`, by its number.
        coordinates: Coordinates by name, `[length]`; `raw`, `raw_from_end` and `segment` are added.
        own: Coordinates that differ from problem to problem, `[batch, length]`.
        present: Which tokens there are, `[batch, length]`; all, if not given.
    """
    positions = stream_positions(names, segment, coordinates, own, present)
    return Layout(positions, positions[:0], positions[:0])


def stream_positions(
    names: Sequence[str],
    segment: Tensor,
    coordinates: Mapping[str, Tensor],
    own: Mapping[str, Tensor] | None = None,
    present: Tensor | None = None,
) -> Positions:
    """Positions of a string's tokens by their coordinates; the arguments are those of `stream_layout`."""
    raw = torch.arange(len(segment), device=segment.device)
    own = dict(own or {})
    shared = {**coordinates, "raw": raw, "segment": segment}
    if present is None:
        shared["raw_from_end"] = len(segment) - 1 - raw
    else:
        own["raw_from_end"] = present.sum(dim=1, keepdim=True) - 1 - raw
    return Positions(tuple(names), {**shared, **own}, frozenset(own), present)


def _in_line(source: Positions, target: Positions) -> Positions:
    """Positions of the tokens of two strings, one after the other."""
    names = [name for name in source.coordinates if name in target.coordinates and name not in ("raw", "raw_from_end")]
    own = frozenset(name for name in names if name in source.own | target.own)
    batch = max((len(p.coordinates[name]) for p in (source, target) for name in p.own), default=1)

    def column(positions: Positions, name: str) -> Tensor:
        found = positions.coordinates[name]
        return found.expand(batch, *found.shape) if name in own and name not in positions.own else found

    coordinates = {
        name: torch.cat([column(source, name), column(target, name)], dim=int(name in own)) for name in names
    }
    present = None
    if target.present is not None:
        present = torch.cat([target.present.new_ones(len(target.present), len(source)), target.present], dim=1)
    segment = coordinates.pop("segment")
    differing = {name: coordinates.pop(name) for name in own}
    coordinates["string"] = (torch.arange(len(segment), device=segment.device) >= len(source)).long()
    return stream_positions(target.names, segment, coordinates, differing, present)


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
