"""What a window lowers to for the tokens of one problem: dense biases, or tables of the open keys."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from abc_toolkit.layout import Layout, Positions
from abc_toolkit.positions import SITES, OpenKeys, Site
from abc_toolkit.windows.rules import Condition, Rule, Window, coordinate_of


def site_positions(site: Site, layout: Layout) -> tuple[Positions, Positions]:
    """Positions of the queries and of the keys of a site, in a layout as a model reads it (`Window.read`)."""
    if site == "encoder":
        return layout.source, layout.source
    return layout.target, layout.prefix if site == "decoder" else layout.source


def dense_bias(window: Window, site: Site, layer: int, q_positions: Positions, k_positions: Positions) -> Tensor:
    """The bias of one site and layer, `[head, query, key]`: minus infinity where a key is closed.

    Args:
        window: The window.
        site: Which attention.
        layer: Which layer.
        q_positions: Positions of the queries.
        k_positions: Positions of the keys.

    Raises:
        WindowError: If the positions lack a coordinate that a rule names.
    """
    shape = (window.num_heads, len(q_positions), len(k_positions))
    bias = torch.full(shape, -torch.inf, device=q_positions.segment.device)
    rules = window.rules_at(site, layer)
    for rule in (rule for rule in rules if not rule.fallback):
        _open_cells(bias[rule.head], rule.holds(q_positions, k_positions), rule.bias)
    is_open = bias > -torch.inf
    if site == "decoder":  # a key that the causal mask closes does not count
        is_open &= k_positions.coordinates["raw"] <= q_positions.coordinates["raw"][:, None]
    empty_rows = ~is_open.any(dim=-1, keepdim=True)
    for rule in (rule for rule in rules if rule.fallback):
        _open_cells(bias[rule.head], rule.holds(q_positions, k_positions) & empty_rows[rule.head], rule.bias)
    return bias


def matrices(window: Window, layout: Layout) -> dict[str, Tensor]:
    """The paper's M x N matrices for a layout: each `site.layer` with its dense bias `[head, query, key]`.

    Raises:
        WindowError: If the layout lacks a coordinate that a rule names.
    """
    read = window.read(layout)
    return {
        f"{site}.{layer}": dense_bias(window, site, layer, *site_positions(site, read))
        for site in SITES
        for layer in range(window.layers(site))
    }


def open_keys(
    window: Window,
    site: Site,
    layer: int,
    q_positions: Positions,
    k_positions: Positions,
    most: float = math.inf,
) -> OpenKeys | None:
    """What `dense_bias` says, as a table of the open keys alone.

    Time and memory are in proportion to the slots of the table. In the decoder, keys after the query are left out.

    Args:
        window: The window.
        site: Which attention.
        layer: Which layer.
        q_positions: Positions of the queries.
        k_positions: Positions of the keys.
        most: The most slots a query that are wanted.

    Returns:
        The table, in which the lines of a head follow one another; `None` if it would have more slots.

    Raises:
        WindowError: If the positions lack a coordinate that a rule names.
    """
    rules = window.rules_at(site, layer)
    lookup = _Lookup(q_positions, k_positions, causal=site == "decoder")
    heads = [[rule for rule in rules if rule.head == head] for head in range(window.num_heads)]
    num_slots = max(1, *(sum(lookup.most(rule) for rule in head) for head in heads))
    if num_slots > most:
        return None
    device = q_positions.segment.device
    index = torch.zeros(len(q_positions), window.num_heads, num_slots, dtype=torch.long, device=device)
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
    # The query is the first dimension in memory, so that the rows of neighbouring queries lie together.
    return OpenKeys(index.transpose(0, 1), bias.transpose(0, 1))


def _open_cells(bias: Tensor, cells: Tensor, value: float) -> None:
    """Opens cells of one head's bias `[query, key]` in place; where a cell is open already, the larger bias holds."""
    bias.copy_(torch.where(cells, bias.clamp(min=value), bias))


Line = tuple[str | None, str | None, str | None, tuple[Condition, ...]]


class _Lookup:
    """Finds the keys on lines by sorting the keys, so that no query is compared with every key."""

    def __init__(self, q_positions: Positions, k_positions: Positions, causal: bool) -> None:
        self._q_positions, self._k_positions, self._causal = q_positions, k_positions, causal
        self._sorted: dict[tuple[str | None, tuple[str, ...]], _SortedKeys] = {}
        self._found: dict[Line, tuple[Tensor, Tensor, Tensor]] = {}

    def most(self, rule: Rule) -> int:
        """The most keys that a query has on a line, keys after the query included."""
        return int(self._find(rule)[2].max())

    def keys(self, rule: Rule) -> tuple[Tensor, Tensor]:
        """Each query's keys on a line, `[query, slot]`, and whether a slot holds an open key."""
        order, start, count = self._find(rule)
        slots = torch.arange(self.most(rule), device=order.device)
        keys = order[(start[:, None] + slots).clamp(max=len(order) - 1)]
        is_open = slots < count[:, None]
        if self._causal:
            is_open = is_open & (
                self._k_positions.coordinates["raw"][keys] <= self._q_positions.coordinates["raw"][:, None]
            )
        return keys, is_open

    def _find(self, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
        """Sorted keys, with each query's start and count."""
        line = (rule.key_segment, rule.query_segment, rule.query_string, rule.conditions)
        if line not in self._found:
            names = (rule.key_segment, tuple(condition.key for condition in rule.conditions))
            if names not in self._sorted:
                self._sorted[names] = _SortedKeys.sort(self._k_positions, *names)
            keys = self._sorted[names]
            wanted = [
                torch.full_like(self._q_positions.segment, condition.equals)
                if condition.query is None
                else coordinate_of(self._q_positions, condition.query) - condition.equals
                for condition in rule.conditions
            ]
            start, count = keys.find(wanted, self._q_positions.segment)
            if rule.query_segment is not None or rule.query_string is not None:
                count = count * rule.asked_by(self._q_positions)
            self._found[line] = keys.order, start, count
        return self._found[line]


@dataclass(frozen=True)
class _SortedKeys:
    """The keys of a segment, sorted by some of their coordinates.

    Keys are ranked by one coordinate after the other. The rank by the coordinates so far and the number of the next
    coordinate's value make a pair, written as one integer; the number of that pair among all pairs that occur is the
    rank by one coordinate more.

    Attributes:
        order: Numbers of the keys, those with equal coordinates together, `[key]`.
        ranks: The rank of each, `[key]`.
        values: For each coordinate two sorted lists: the values that occur, and the pairs that occur.
    """

    order: Tensor
    ranks: Tensor
    values: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def sort(cls, positions: Positions, segment: str | None, coordinates: tuple[str, ...]) -> "_SortedKeys":
        """The keys of one segment, or of all, sorted."""
        inside = torch.ones_like(positions.segment, dtype=torch.bool) if segment is None else positions.within(segment)
        members = inside.nonzero()[:, 0]
        ranks = torch.zeros_like(members)
        values: list[tuple[Tensor, Tensor]] = []
        for name in coordinates:
            single, own = coordinate_of(positions, name)[members].unique(return_inverse=True)
            pairs, ranks = (ranks * len(single) + own).unique(return_inverse=True)
            values.append((single, pairs))
        order = ranks.argsort(stable=True)
        if not len(members):  # `keys` indexes the order, which must not be empty; no query finds a key in it
            return cls(torch.zeros_like(positions.segment[:1]), ranks, tuple(values))
        return cls(members[order], ranks[order], tuple(values))

    def find(self, wanted: Sequence[Tensor], queries: Tensor) -> tuple[Tensor, Tensor]:
        """Start and count of each query's keys in the order.

        Args:
            wanted: Each query's value of each coordinate, `[query]`.
            queries: Any tensor `[query]`.
        """
        rank, found = torch.zeros_like(queries), torch.full_like(queries, len(self.ranks) > 0, dtype=torch.bool)
        for (single, pairs), value in zip(self.values, wanted, strict=True):
            own, has_value = _search(single, value)
            rank, has_pair = _search(pairs, rank * len(single) + own)
            found = found & has_value & has_pair
        start, end = (torch.searchsorted(self.ranks, rank, right=right) for right in (False, True))
        return start, (end - start) * found


def _search(known: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The index of each value in a sorted list, and whether the list has it."""
    if not len(known):
        return torch.zeros_like(values), torch.zeros_like(values, dtype=torch.bool)
    index = torch.searchsorted(known, values).clamp(max=len(known) - 1)
    return index, known[index] == values


def _may_overlap(rules: Sequence[Rule]) -> bool:
    """Whether two lines of a head could hold the same key: lines of different segments cannot."""
    segments = [rule.key_segment for rule in rules]
    return len(rules) > 1 and (None in segments or len(set(segments)) < len(segments))


def _merged(index: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Slots `[query, slot]` in which each key is open once, with its larger bias."""
    bias, order = bias.sort(dim=-1, descending=True)
    index, again = index.gather(-1, order).sort(dim=-1, stable=True)
    bias = bias.gather(-1, again)
    repeated = torch.nn.functional.pad(index[:, 1:] == index[:, :-1], (1, 0))
    return index, bias.masked_fill(repeated, -torch.inf)
