"""Lines of places in attention maps: the candidates, the attention along each, and the choice of those to keep."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

import torch
from torch import Tensor

from abc_toolkit.calibration.capture import AttentionMaps
from abc_toolkit.calibration.method import CalibrationMethod, Line, heads_of
from abc_toolkit.errors import check_literals, check_numbers
from abc_toolkit.layout import Layout, Positions
from abc_toolkit.positions import SITES, Site
from abc_toolkit.tasks import Shape
from abc_toolkit.windows.lowering import site_positions
from abc_toolkit.windows.rules import Condition, Rule, String

ANCHORS = ("place", "index")
TABLE = ("row", "column")


@dataclass(frozen=True)
class Places(CalibrationMethod):
    """Calibration by lines of places: a few lines a head, each of which means the same at every length.

    A candidate line is a key segment and a condition: the key's place (or index) is the query's minus an offset, or it
    is a fixed number. In a layout that is a table the same is tried for rows and columns, and for a row and a column
    together (the row above, one column on). The strength of a line is the mean attention along it. The lines of
    arXiv 2310.11984, section 5, are those of the raw matrix instead (see `Paper`).

    Attributes:
        lines_per_segment: Lines that a head may keep in each key segment. With two neighbouring lines in one head, a
            model without positions cannot tell which key is which.
        min_attention: Mean attention that a line needs, between 0 and 1.
        min_support: Share of the longest possible line that a line's cells need, in every shape with room for it,
            between 0 and 1. Lines of one or two cells in a corner can have any mean.
        max_offset: Largest offset, and largest fixed place or index, that is tried.
        layers: `each` finds the lines of each layer; `last` gives the lines of the last layer to every layer, as the
            paper does.
        empty_heads: A head without a line is `closed`, or `transparent`: open everywhere, as in the paper.
        closed_rows: A query without an open key yields `zero`, or attends to the `first` token of its keys.
        bias: `zero` on every line, or the `difference` between its mean and the head's largest, as in the paper.
        complete: Whether to add lines until the window is sufficient: no two training problems for which it shows
            the same need different tokens.
        narrow: Whether to close lines, or to make them fallbacks, if the receptive fields then shrink and the window
            stays sufficient.
        spread: Whether lines that share a head move to heads of their own, if heads can be spared.

    Raises:
        UserError: If a setting is none of its choices or outside its range.
    """

    lines_per_segment: int = 1
    min_attention: float = 0.2
    min_support: float = 0.6
    max_offset: int = 2
    layers: Literal["each", "last"] = "each"
    empty_heads: Literal["closed", "transparent"] = "closed"
    closed_rows: Literal["zero", "first"] = "zero"
    bias: Literal["zero", "difference"] = "zero"
    complete: bool = True
    narrow: bool = True
    spread: bool = True

    def __post_init__(self) -> None:
        check_literals(self)
        check_numbers(self, "method", ("lines_per_segment",), at_least=1)
        check_numbers(self, "method", ("max_offset",))
        check_numbers(self, "method", ("min_attention", "min_support"), at_most=1)

    def lines(self, maps: AttentionMaps, layouts: Mapping[Shape, Layout]) -> list[Line]:
        """Every candidate line with enough support, in every site, layer and head, strongest first."""
        found = []
        sites = list(heads_of(maps))
        present: dict[Site, None] = dict.fromkeys(site for site, _ in sites)
        for site in present:
            relations = self._relations(site, [layouts[shape] for shape in maps.maps])
            layers = [layer for own, layer in sites if own == site]
            for layer in layers:
                weights = [maps.maps[shape][f"{site}.{layer}"] for shape in maps.maps]
                for relation, cells, support in relations:
                    if relation.of_source and layer == layers[-1]:
                        continue  # nothing reads what the source's own queries find in the last layer
                    sums = [(w * c).sum(dim=(1, 2)) for w, c in zip(weights, cells, strict=True)]
                    means = torch.stack(sums).sum(dim=0) / sum(int(c.sum()) for c in cells)
                    for head, mean in enumerate(means.tolist()):
                        found.append(Line(replace(relation, layer=layer, head=head), mean, support))
        return sorted(found, key=lambda line: -line.attention)

    def _relations(self, site: Site, layouts: Sequence[Layout]) -> list[tuple[Rule, list[Tensor], float]]:
        """The candidates of a site: the rule of layer 0 and head 0, its cells `[query, key]` by layout, its support."""
        relations: dict[bytes, tuple[Rule, list[Tensor], float]] = {}
        pairs = [site_positions(site, layout) for layout in layouts]
        q, k = pairs[-1]
        asking = _asking(site, q)
        for key_segment in (name for name in k.names if k.within(name).any()):
            for query_string, query_segment in asking:
                for conditions in self._conditions(_tabled(key_segment, pairs)):
                    rule = Rule(
                        site, 0, 0, key_segment, conditions, query_segment=query_segment, query_string=query_string
                    )
                    cells = [rule.holds(*pair) for pair in pairs]
                    if site == "decoder":
                        cells = [line.tril() for line in cells]
                    support = (_table_support if len(conditions) > 1 else _support)(rule, cells, pairs)
                    if support < self.min_support or not any(line.any() for line in cells):
                        continue
                    # Of two candidates with the same cells in every shape the first stays: places are tried first.
                    signature = b"".join(line.numpy().tobytes() for line in cells)
                    relations.setdefault(signature, (rule, cells, support))
        return list(relations.values())

    def _conditions(self, tabled: tuple[str, ...]) -> list[tuple[Condition, ...]]:
        """Conditions to try in a key segment.

        Args:
            tabled: The coordinates of a table in which the tokens of the segment differ.
        """
        offsets = sorted(range(-self.max_offset, self.max_offset + 1), key=abs)
        if len(tabled) > 1:  # a condition on one of them would open a whole row or column
            row, column = tabled
            return [(Condition(row, i, row), Condition(column, j, column)) for i in offsets for j in offsets]
        conditions: list[tuple[Condition, ...]] = []
        for anchor in (*ANCHORS, *tabled):
            conditions += [(Condition(anchor, offset, anchor),) for offset in offsets]
            conditions += [(Condition(anchor, value),) for value in range(self.max_offset + 1)]
        return conditions

    def select(self, lines: Sequence[Line]) -> list[Line]:
        """The strongest lines of each head and key segment.

        Args:
            lines: All lines, as `lines` returns them.
        """
        if self.layers == "last":
            last = {
                site: max((line.rule.layer for line in lines if line.rule.site == site), default=0) for site in SITES
            }
            lines = [line for line in lines if line.rule.layer == last[line.rule.site]]
            lines = [
                replace(line, rule=replace(line.rule, layer=layer))
                for line in lines
                for layer in range(last[line.rule.site] + 1)
            ]
        kept: dict[Rule, list[Line]] = {}
        for line in lines:
            group = kept.setdefault(replace(line.rule, conditions=(), bias=0.0), [])
            if line.attention >= self.min_attention and len(group) < self.lines_per_segment:
                group.append(line)
        return list(chain.from_iterable(kept.values()))

    def rules(self, maps: AttentionMaps, layouts: Mapping[Shape, Layout]) -> list[Rule]:
        kept = self.select(self.lines(maps, layouts))
        rules = []
        for (site, layer), num_heads in heads_of(maps).items():
            for head in range(num_heads):
                where = (site, layer, head)
                own = [line for line in kept if (line.rule.site, line.rule.layer, line.rule.head) == where]
                own.sort(key=lambda line: -line.attention)
                for line in own:
                    bias = line.attention - own[0].attention if self.bias == "difference" else 0.0
                    rules.append(replace(line.rule, bias=bias))
                if not own and self.empty_heads == "transparent":
                    rules.append(Rule(site, layer, head))
                elif own and self.closed_rows == "first":
                    rules.append(Rule(site, layer, head, None, (Condition("raw", 0),), fallback=True))
        return rules


def _asking(site: Site, queries: Positions) -> list[tuple[String | None, str | None]]:
    """The kinds of queries that have lines of their own: a string, where there are two, and a segment.

    The target's queries are of one kind. In the source, each segment attends in its own way.
    """
    if site == "encoder":
        return [(None, name) for name in queries.names if queries.within(name).any()]
    if "string" not in queries.coordinates:
        return [(None, None)]
    source = queries.segment[queries.coordinates["string"] == 0].unique().tolist()
    return [("target", None), *(("source", queries.names[number]) for number in source)]


def _tabled(segment: str, pairs: Sequence[tuple[Positions, Positions]]) -> tuple[str, ...]:
    """Coordinates of a table in which the tokens of a key segment differ; none if every token is in row 0."""
    if not any(bool(positions.coordinates["row"].any()) for pair in pairs for positions in pair):
        return ()
    values = {name: [keys.coordinates[name][keys.within(segment)] for _, keys in pairs] for name in TABLE}
    return tuple(name for name, parts in values.items() if any(len(part.unique()) > 1 for part in parts))


def _support(rule: Rule, cells: Sequence[Tensor], pairs: Sequence[tuple[Positions, Positions]]) -> float:
    """The number of a line's cells over that of the longest possible line, in the shape where it is least.

    Shapes in which another segment is longer than the key segment count only if there are no other shapes: in them, a
    line through all of a short operand looks like a line in a corner.
    """
    shares: dict[bool, list[float]] = {False: [], True: []}
    for line, (q_positions, k_positions) in zip(cells, pairs, strict=True):
        num_queries = int(rule.asked_by(q_positions).sum())
        lengths = {name: int(k_positions.within(name).sum()) for name in k_positions.names}
        longest = max(lengths.values())
        shares[lengths[rule.key_segment or ""] == longest].append(int(line.sum()) / min(num_queries, longest))
    return min(1.0, *(shares[True] or shares[False]))


def _table_support(rule: Rule, cells: Sequence[Tensor], pairs: Sequence[tuple[Positions, Positions]]) -> float:
    """The number of a line's cells over the number that its row has room for, in all shapes together.

    In a table each kind of token attends in its own way. In small tables one kind has so few tokens that the share of
    its line would be that of a line in a corner, so the shape where the share is least would say nothing.
    """
    own, room = 0, 0
    in_row = replace(rule, conditions=rule.conditions[:1])  # not every query has a row above
    for line, (q_positions, k_positions) in zip(cells, pairs, strict=True):
        queries = int(in_row.holds(q_positions, k_positions).any(dim=1).sum())
        own += int(line.sum())
        room += min(queries, int(k_positions.within(rule.key_segment or "").sum()))
    return own / max(room, 1)
