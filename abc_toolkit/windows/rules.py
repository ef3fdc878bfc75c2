"""Windows: the rules that say which keys stay open, their file, and what they lower to.

A rule speaks of segments and coordinates, never of a matrix cell, so that it means the same at every length.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from abc_toolkit.errors import UserError
from abc_toolkit.layout import COORDINATES, Layout, Positions
from abc_toolkit.positions import (
    SITES,
    OpenKeys,
    Site,
)

SCHEMA = 1
_LARGEST_OFFSET = 10**18  # has room in 64 bits, with a coordinate beside it
_LARGEST_BIAS = float(torch.finfo(torch.float32).max)


class WindowError(UserError):
    """A window does not fit, or its file is not one; the message is one line that says why."""


@dataclass(frozen=True)
class Condition:
    """`query coordinate - key coordinate = equals`, or, without a query coordinate, `key coordinate = equals`.

    Attributes:
        key: Coordinate of the key.
        equals: The constant.
        query: Coordinate of the query, or `None`.
    """

    key: str
    equals: int
    query: str | None = None

    def __post_init__(self) -> None:
        for coordinate in (self.key, *(() if self.query is None else (self.query,))):
            if coordinate not in COORDINATES:
                raise WindowError(
                    f"a condition names the coordinate {coordinate!r}; there are {', '.join(COORDINATES)}"
                )
        if type(self.equals) is not int or abs(self.equals) > _LARGEST_OFFSET:
            raise WindowError(
                f"a condition compares a coordinate with {self.equals!r}, which is no integer of up to 18 digits"
            )

    def holds(self, q_positions: Positions, k_positions: Positions) -> Tensor:
        """Where it holds, boolean `[query, key]`."""
        keys = k_positions.coordinates[self.key][None, :]
        if self.query is None:
            return (keys == self.equals).expand(len(q_positions), -1)
        return q_positions.coordinates[self.query][:, None] - keys == self.equals

    def describe(self) -> str:
        """The condition in words."""
        if self.query == self.key == "place":
            if self.equals == 0:
                return "own place"
            return f"own place {'-' if self.equals > 0 else '+'} {abs(self.equals)}"
        if self.query is None:
            return f"{self.key} {self.equals}"
        offset = "" if self.equals == 0 else f" {'-' if self.equals > 0 else '+'} {abs(self.equals)}"
        return f"{self.key} = query's {self.query}{offset}"


@dataclass(frozen=True)
class Rule:
    """One line that stays open in one head.

    Attributes:
        site: Which attention.
        layer: Which layer, from 0 at the input.
        head: Which head.
        key_segment: Segment that the key must belong to; `None` for any.
        conditions: What must hold together of the coordinates; with none, the whole segment is open.
        bias: Added to the logits on the line.
        query_segment: Segment that the query must belong to; `None` for any.
        fallback: Whether the line opens only in rows where no other line of the head opens a key.
    """

    site: Site
    layer: int
    head: int
    key_segment: str | None = None
    conditions: tuple[Condition, ...] = ()
    bias: float = 0.0
    query_segment: str | None = None
    fallback: bool = False

    def __post_init__(self) -> None:
        where = f"a rule of layer {self.layer!r} and head {self.head!r}"
        if self.site not in SITES:
            raise WindowError(f"{where} names the site {self.site!r}; there are {', '.join(SITES)}")
        if type(self.layer) is not int or type(self.head) is not int or min(self.layer, self.head) < 0:
            raise WindowError(f"{where}: both must be integers from 0")
        if type(self.bias) not in (int, float) or not abs(self.bias) <= _LARGEST_BIAS:
            raise WindowError(f"{where} has the bias {self.bias!r}, which is no finite number in single precision")
        for segment in (self.key_segment, self.query_segment):
            if segment is not None and not isinstance(segment, str):
                raise WindowError(f"{where} names the segment {segment!r}, which is no name")
        if type(self.fallback) is not bool:
            raise WindowError(f"{where} has fallback {self.fallback!r}, which is neither true nor false")

    def holds(self, q_positions: Positions, k_positions: Positions) -> Tensor:
        """The cells of the line, boolean `[query, key]`."""
        cells = torch.ones(len(q_positions), len(k_positions), dtype=torch.bool, device=q_positions.segment.device)
        if self.query_segment is not None:
            cells &= q_positions.within(self.query_segment)[:, None]
        if self.key_segment is not None:
            cells &= k_positions.within(self.key_segment)[None, :]
        for condition in self.conditions:
            cells &= condition.holds(q_positions, k_positions)
        return cells

    def describe(self) -> str:
        """The line in words, without its site, layer and head."""
        words = [self.key_segment or "any token", *(condition.describe() for condition in self.conditions)]
        if not self.conditions:
            words.append("all of it")
        text = ", ".join(words)
        if self.query_segment is not None:
            text += f" (asked by {self.query_segment})"
        return f"{text} (where nothing else is open)" if self.fallback else text


@dataclass(frozen=True)
class Window:
    """The lines that stay open in a model; everything else is closed.

    Attributes:
        task: Class name of the task that it was calibrated on.
        num_encoder_layers: Encoder layers of the model it fits.
        num_decoder_layers: Decoder layers of the model it fits.
        num_heads: Heads a layer of the model it fits.
        rules: The lines. Where two of a head overlap, the larger bias holds.
        calibration: How it was calibrated: the method and its settings.
        weights: SHA-256 of the weights it was calibrated from.
    """

    task: str
    num_encoder_layers: int
    num_decoder_layers: int
    num_heads: int
    rules: tuple[Rule, ...]
    calibration: dict[str, Any] = field(hash=False)
    weights: str = ""

    def __post_init__(self) -> None:
        for name, least in (("num_encoder_layers", 0), ("num_decoder_layers", 1), ("num_heads", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise WindowError(f"its {name} is {value!r}; it must be an integer from {least}")
        if (
            not isinstance(self.task, str)
            or not isinstance(self.weights, str)
            or not isinstance(self.calibration, dict)
        ):
            raise WindowError("its task and weights must be strings and its calibration an object")
        for rule in self.rules:
            where = f"a rule of {rule.site} layer {rule.layer} head {rule.head}"
            if rule.layer >= self.layers(rule.site) or rule.head >= self.num_heads:
                raise WindowError(
                    f"{where} is outside the window's {self.layers(rule.site)} layers of {self.num_heads} heads"
                )

    def of(self, site: Site, layer: int) -> tuple[Rule, ...]:
        """The rules of one site and layer."""
        return tuple(rule for rule in self.rules if rule.site == site and rule.layer == layer)

    def layers(self, site: Site) -> int:
        """Layers that have this site."""
        return self.num_encoder_layers if site == "encoder" else self.num_decoder_layers

    def with_rules(self, rules: Sequence[Rule]) -> "Window":
        """The same window with other rules."""
        return replace(self, rules=tuple(rules))

    def bias(self, site: Site, layer: int, q_positions: Positions, k_positions: Positions) -> Tensor:
        """Dense bias `[head, query, key]` of one site and layer: minus infinity where closed."""
        shape = (self.num_heads, len(q_positions), len(k_positions))
        bias = torch.full(shape, -torch.inf, device=q_positions.segment.device)
        rules = self.of(site, layer)
        for rule in (rule for rule in rules if not rule.fallback):
            _open(bias[rule.head], rule.holds(q_positions, k_positions), rule.bias)
        is_open = bias > -torch.inf
        if site == "decoder":  # a key that the causal mask closes does not count
            is_open &= k_positions.coordinates["raw"] <= q_positions.coordinates["raw"][:, None]
        empty_rows = ~is_open.any(dim=-1, keepdim=True)
        for rule in (rule for rule in rules if rule.fallback):
            _open(bias[rule.head], rule.holds(q_positions, k_positions) & empty_rows[rule.head], rule.bias)
        return bias

    def open_keys(
        self, site: Site, layer: int, q_positions: Positions, k_positions: Positions, most: float = math.inf
    ) -> OpenKeys | None:
        """What `bias` says as a table of the open keys alone, in time and memory in proportion to its slots.

        In the decoder, keys after the query are left out.

        Args:
            site: Which attention.
            layer: Which layer.
            q_positions: Positions of the queries.
            k_positions: Positions of the keys.
            most: Most slots a query that are wanted.

        Returns:
            The table, each head's lines one after the other; `None` if it has more slots.
        """
        rules = self.of(site, layer)
        lookup = _Lookup(q_positions, k_positions, causal=site == "decoder")
        heads = [[rule for rule in rules if rule.head == head] for head in range(self.num_heads)]
        num_slots = max(1, *(sum(lookup.most(rule) for rule in head) for head in heads))
        if num_slots > most:
            return None
        device = q_positions.segment.device
        index = torch.zeros(len(q_positions), self.num_heads, num_slots, dtype=torch.long, device=device)
        bias = torch.full(index.shape, -torch.inf, device=device)
        for number, head in enumerate(heads):
            start, empty_rows = 0, None
            for rule in sorted(head, key=lambda rule: rule.fallback):
                if rule.fallback and empty_rows is None:
                    empty_rows = (bias[:, number] == -torch.inf).all(dim=-1, keepdim=True)
                keys, is_open = lookup.keys(rule)
                slots = slice(start, start + keys.shape[1])
                start = slots.stop
                index[:, number, slots] = keys
                if rule.fallback and empty_rows is not None:
                    is_open = is_open & empty_rows
                bias[:, number, slots].masked_fill_(is_open, rule.bias)
            if _may_overlap(head):
                index[:, number], bias[:, number] = _merged(index[:, number], bias[:, number])
        # Memory goes by the query, so that the rows of some queries lie together.
        return OpenKeys(index.transpose(0, 1), bias.transpose(0, 1))

    def site_bias(self, site: Site, layer: int, layout: Layout) -> Tensor:
        """Dense bias `[head, query, key]` of one site and layer for every token of a layout."""
        return self.bias(site, layer, *site_positions(site, layout))

    def matrices(self, layout: Layout) -> dict[str, Tensor]:
        """The paper's M x N matrices for a layout: `site.layer` to `[head, query, key]`."""
        sites: list[tuple[Site, int]] = [(site, layer) for site in SITES for layer in range(self.layers(site))]
        return {f"{site}.{layer}": self.site_bias(site, layer, layout) for site, layer in sites}

    def check_fits(self, num_encoder_layers: int, num_decoder_layers: int, num_heads: int) -> None:
        """Raises:
        WindowError: If the window was calibrated for a model of other sizes.
        """
        sizes = {
            "encoder layers": (self.num_encoder_layers, num_encoder_layers),
            "decoder layers": (self.num_decoder_layers, num_decoder_layers),
            "heads": (self.num_heads, num_heads),
        }
        for what, (own, given) in sizes.items():
            if own != given:
                raise WindowError(
                    f"the window is for {own} {what} and the model has {given}: give both the same number"
                )

    def to_json(self) -> str:
        """The window as readable text, one rule a line."""
        data = {"schema": SCHEMA} | {name: value for name, value in asdict(self).items() if name != "rules"}
        rules = ",\n".join(f"    {json.dumps(asdict(rule))}" for rule in self.rules)
        return f'{json.dumps(data, indent=2)[:-2]},\n  "rules": [\n{rules}\n  ]\n}}\n'

    @classmethod
    def from_json(cls, text: str) -> "Window":
        """The window in a text that `to_json` made.

        Raises:
            WindowError: If the text is not a window of this schema, or a rule names what does not exist.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise WindowError(f"it is not JSON ({error})") from None
        if not isinstance(data, dict) or "schema" not in data:
            raise WindowError("it is not a window: it names no schema")
        if data.pop("schema") != SCHEMA:
            raise WindowError(f"its schema is not {SCHEMA}, the one that this version reads: calibrate again")
        try:
            rules = []
            for rule in data.pop("rules"):
                conditions = tuple(Condition(**condition) for condition in rule.pop("conditions"))
                rules.append(Rule(conditions=conditions, **rule))
            return cls(rules=tuple(rules), **data)
        except (TypeError, KeyError, AttributeError) as error:
            raise WindowError(f"it is not a whole window ({' '.join(str(error).split())})") from None

    @classmethod
    def load(cls, path: Path) -> "Window":
        """Reads a window's file.

        Raises:
            WindowError: As `from_json`, the path named; also if the file cannot be read.
        """
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise WindowError(f"there is no window at {path}") from None
        except (OSError, ValueError) as error:
            raise WindowError(f"{path} cannot be used: {error}") from None


def _open(bias: Tensor, cells: Tensor, value: float) -> None:
    """Opens cells of one head's bias `[query, key]` in place; where they are open already, the larger bias holds."""
    bias.copy_(torch.where(cells, bias.clamp(min=value), bias))


class _Lookup:
    """Finds the keys of lines by sorting keys instead of comparing each with each query."""

    def __init__(self, q_positions: Positions, k_positions: Positions, causal: bool) -> None:
        self._q, self._k, self._causal = q_positions, k_positions, causal
        self._ranked: dict[tuple[str | None, tuple[str, ...]], _Ranked] = {}
        self._found: dict[tuple[Any, ...], tuple[Tensor, Tensor, Tensor]] = {}

    def most(self, rule: Rule) -> int:
        """Most keys that a query has on a line, those after it counted."""
        return int(self._find(rule)[2].max())

    def keys(self, rule: Rule) -> tuple[Tensor, Tensor]:
        """Keys on a line, `[query, most]`, and which of them there are."""
        order, first, count = self._find(rule)
        slots = torch.arange(self.most(rule), device=order.device)
        keys = order[(first[:, None] + slots).clamp(max=len(order) - 1)]
        is_open = slots < count[:, None]
        if self._causal:
            is_open = is_open & (self._k.coordinates["raw"][keys] <= self._q.coordinates["raw"][:, None])
        return keys, is_open

    def _find(self, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
        """Keys in an order in which those that any query has on the line are neighbours; first and number of each's."""
        line = (rule.key_segment, rule.query_segment, rule.conditions)
        if line not in self._found:
            coordinates = (rule.key_segment, tuple(condition.key for condition in rule.conditions))
            if coordinates not in self._ranked:
                self._ranked[coordinates] = _Ranked.of(self._k, *coordinates)
            ranked = self._ranked[coordinates]
            wanted = [
                torch.full_like(self._q.segment, condition.equals)
                if condition.query is None
                else self._q.coordinates[condition.query] - condition.equals
                for condition in rule.conditions
            ]
            first, count = ranked.find(wanted, self._q.segment)
            if rule.query_segment is not None:
                count = count * self._q.within(rule.query_segment)
            self._found[line] = ranked.order, first, count
        return self._found[line]


@dataclass(frozen=True)
class _Ranked:
    """The keys of a segment, sorted by some of their coordinates.

    Attributes:
        order: Numbers of the keys, those with equal coordinates together.
        ranks: What they are sorted by.
        values: For each coordinate in turn, two sorted lists: the values that it takes, and the pairs that occur of the
            rank by the coordinates before and its own value's place, a pair as one number. A pair's place in the
            second list is the rank by all coordinates so far.
    """

    order: Tensor
    ranks: Tensor
    values: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def of(cls, positions: Positions, segment: str | None, coordinates: tuple[str, ...]) -> "_Ranked":
        inside = torch.ones_like(positions.segment, dtype=torch.bool) if segment is None else positions.within(segment)
        members = inside.nonzero()[:, 0]
        ranks, values = torch.zeros_like(members), []
        for name in coordinates:
            single, own = positions.coordinates[name][members].unique(return_inverse=True)
            pairs, ranks = (ranks * len(single) + own).unique(return_inverse=True)
            values.append((single, pairs))
        order = ranks.argsort(stable=True)
        if not len(members):  # so that an order can be looked up in; nothing is ever found there
            return cls(torch.zeros_like(positions.segment[:1]), ranks, tuple(values))
        return cls(members[order], ranks[order], tuple(values))

    def find(self, wanted: Sequence[Tensor], queries: Tensor) -> tuple[Tensor, Tensor]:
        """First and number of the keys that have the wanted coordinates `[query]`."""
        rank, found = torch.zeros_like(queries), torch.full_like(queries, len(self.ranks) > 0, dtype=torch.bool)
        for (single, pairs), value in zip(self.values, wanted, strict=True):
            own, has_value = _look_up(single, value)
            rank, has_pair = _look_up(pairs, rank * len(single) + own)
            found = found & has_value & has_pair
        first, last = (torch.searchsorted(self.ranks, rank, right=right) for right in (False, True))
        return first, (last - first) * found


def _look_up(known: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Where values stand among known ones, which are sorted, and which of them do at all."""
    if not len(known):
        return torch.zeros_like(values), torch.zeros_like(values, dtype=torch.bool)
    place = torch.searchsorted(known, values).clamp(max=len(known) - 1)
    return place, known[place] == values


def _may_overlap(rules: Sequence[Rule]) -> bool:
    """Whether two lines of a head could hold the same key: lines of different segments cannot."""
    segments = [rule.key_segment for rule in rules]
    return len(rules) > 1 and (None in segments or len(set(segments)) < len(segments))


def _merged(index: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Slots `[query, slot]` in which no key stands twice: its larger bias holds."""
    bias, order = bias.sort(dim=-1, descending=True)
    index, again = index.gather(-1, order).sort(dim=-1, stable=True)
    bias = bias.gather(-1, again)
    repeated = torch.nn.functional.pad(index[:, 1:] == index[:, :-1], (1, 0))
    return index, bias.masked_fill(repeated, -torch.inf)


def site_positions(site: Site, layout: Layout) -> tuple[Positions, Positions]:
    """Positions of the queries and of the keys of a site."""
    if site == "encoder":
        return layout.source, layout.source
    return layout.target, layout.prefix if site == "decoder" else layout.source
