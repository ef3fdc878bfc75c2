"""The paper's calibration: straight lines through the cells of an averaged attention map, turned into rules.

Source: Attention Bias Calibration, arXiv 2310.11984, section 5 (equation 1 and Algorithm 1), and the code released
with it, github.com/shaoxiongduan/AttentionBiasCalibration at commit 1d3a21d, `src/calcBias.py`.

For query `i` and key `j`, both counted from 0, a map has three families of lines: diagonals (`j - i` is fixed),
anti-diagonals (`i + j` is fixed) and verticals (`j` is fixed). The paper carries a line of a small map over to a larger
one by its distance from a corner. Here a `Condition` does so without a size: diagonals keep their distance from the
top-left corner, anti-diagonals from the top-right corner.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from abc_toolkit.calibration.capture import AttentionMaps
from abc_toolkit.calibration.method import CalibrationMethod, heads_of
from abc_toolkit.errors import UserError, check_literals
from abc_toolkit.layout import Layout
from abc_toolkit.positions import Site
from abc_toolkit.tasks import Shape
from abc_toolkit.windows.rules import Condition, Rule

Direction = Literal["diagonal", "anti-diagonal", "vertical"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
Variant = Literal["paper", "released"]

# Query 0 and the last key: the cell that the released code always opens in cross-attention.
FIRST_QUERY_LAST_KEY = (Condition(query="raw", key="raw_from_end", equals=0), Condition(key="raw_from_end", equals=0))


@dataclass(frozen=True)
class StraightLine:
    """A straight line of a raw attention map that stays open.

    Attributes:
        head: The head in whose map the line was found.
        direction: Its direction.
        condition: Its cells in a map of any size, in raw coordinates.
        value: Its bias. In the paper's variant, the mean attention weight along it minus that of the best line of its
            head and direction, so at most 0. In the released variant, the sum of the attention weights along it.
    """

    head: int
    direction: Direction
    condition: Condition
    value: float


@dataclass(frozen=True)
class Paper(CalibrationMethod):
    """Calibration as in the paper or as in its released code: every layer gets the lines of the last decoder layer.

    Paper: a line stays open if the mean weight `d` along it is above `mu + kappa * sigma`. `mu` and `sigma` are the
    mean and the population deviation of `d` over all lines of the head and direction. (Equation 1 tests the value
    *after* the largest mean is subtracted. No line could pass that test, so it is read as a test of the mean.) Open
    lines of several directions are merged by the larger value. A head without an open line is *transparent*: it is
    open everywhere with bias 0.

    Released: what the code does instead.

    * The float32 sum of a line's weights takes the place of the mean, so long lines win. The bias is that sum.
    * Mean and deviation are over the set of distinct sums other than 0. A line at the threshold stays open.
    * Verticals keep their distance from the last key, not from the first.
    * In cross-attention no head is transparent. Query 0 sees the last key with bias 0 in every head.
    * In self-attention transparency is decided after the first direction: a head without an open line in it is open
      everywhere, whatever lines the later directions add.

    Known differences from the released code, which a `Window` cannot express or should not repeat:

    * The code writes 0 to the cell of query 0 and the last key *over* an open line through that cell. A rule can open a
      cell but not lower its bias, so the line keeps its own, larger value there.
    * The code closes cells with -1e6, not minus infinity. There a query without an open key attends evenly; here it
      yields zero.
    * The code trains with the self-attention bias in place of the causal mask, so a transparent head sees the future.
      Here the mask stays.

    With `L` lines in a direction, no line is more than `sqrt(L - 1)` deviations above the mean. So a kappa of 4.5 opens
    nothing in a direction with fewer than 22 lines.

    An encoder's self-attention stays open; the paper does not calibrate it. Maps of several sizes are never mixed: only
    maps as large as the longest shape's count, which are all maps if problems are padded to a fixed width, as in the
    paper.

    Attributes:
        variant: The paper's algorithm or the released code's.
        kappa_cross: Drop-off of cross-attention, in standard deviations above the mean.
        kappa_self: Drop-off of the decoder's self-attention, likewise.
        cross_directions: Directions searched in cross-attention. The released script searches only anti-diagonals.
        self_directions: Directions searched in the decoder's self-attention. The paper searches the same directions
            in both sites; the released script searches only diagonals here.
        target_limit: Released variant only (`maskTgtLen` there, 6 in its script): lines are summed over this many
            first queries; `None` for all.
        source_limit: Released variant only (`maskSrcLen` there, 6 in its script): verticals are searched among this
            many last keys and the key before them; `None` for all.

    Raises:
        UserError: If the variant is unknown, a site has no direction, or a limit is not positive or not for the
            variant.
    """

    variant: Variant = "paper"
    kappa_cross: float = 4.5
    kappa_self: float = 0.87
    cross_directions: tuple[Direction, ...] = DIRECTIONS
    self_directions: tuple[Direction, ...] = DIRECTIONS
    target_limit: int | None = None
    source_limit: int | None = None

    def __post_init__(self) -> None:
        check_literals(self)
        for name, directions in (("cross", self.cross_directions), ("self", self.self_directions)):
            if not directions:
                raise UserError(f"{name}_directions is empty: name one of {', '.join(DIRECTIONS)}")
        for name, limit in (("target_limit", self.target_limit), ("source_limit", self.source_limit)):
            if limit is None:
                continue
            if self.variant == "paper":
                raise UserError(f"{name} is for the released variant; the paper reads the whole map")
            if limit < 1:
                raise UserError(f"{name} is {limit}: give a positive number of tokens, or none")

    def rules(self, maps: AttentionMaps, layouts: Mapping[Shape, Layout]) -> list[Rule]:
        heads = heads_of(maps)
        if ("cross", 0) not in heads:
            raise UserError("the paper's lines are those of encoder-decoders: choose --method Places for this backbone")
        last = max(layer for site, layer in heads if site == "decoder")
        rules = [
            Rule(site, layer, head) for (site, layer), n in heads.items() for head in range(n) if site == "encoder"
        ]
        return rules + self.decoder_rules(maps.raw(f"cross.{last}"), maps.raw(f"decoder.{last}"), last + 1)

    def decoder_rules(self, cross: Tensor, self_attention: Tensor, num_decoder_layers: int) -> list[Rule]:
        """Rules of a window for every decoder layer.

        Args:
            cross: Averaged attention weights of the last layer's cross-attention, `[head, query, key]`.
            self_attention: Those of its self-attention, `[head, query, key]`.
            num_decoder_layers: Decoder layers that get the rules.
        """
        sites: tuple[tuple[Site, Tensor, tuple[Direction, ...], float], ...] = (
            ("decoder", self_attention, self.self_directions, self.kappa_self),
            ("cross", cross, self.cross_directions, self.kappa_cross),
        )
        rules: list[Rule] = []
        for site, maps, directions, kappa in sites:
            lines = find_lines(maps, directions, kappa, self.variant, self.target_limit, self.source_limit)
            for layer in range(num_decoder_layers):
                rules += to_rules(lines, site, layer, len(maps), directions, self.variant)
        return rules


def find_lines(
    maps: Tensor,
    directions: Sequence[Direction],
    kappa: float,
    variant: Variant = "paper",
    target_limit: int | None = None,
    source_limit: int | None = None,
) -> list[StraightLine]:
    """The lines above the drop-off, direction by direction; `Paper` describes the variants.

    Args:
        maps: Averaged attention weights `[head, query, key]`.
        directions: The directions to search.
        kappa: Drop-off, in standard deviations above the mean.
        variant: The paper's algorithm or the released code's.
        target_limit: Number of first queries to read; `None`, or a larger number than there are, for all.
        source_limit: Number of last keys, less one, in which verticals are searched; `None`, or a larger number than
            there are, for all.
    """
    maps = maps.detach().cpu()[:, :target_limit]
    lines: list[StraightLine] = []
    for direction in directions:
        cells = maps
        if direction == "vertical" and source_limit is not None:
            cells = maps[:, :, -(source_limit + 1) :]
        if variant == "paper":
            sums, lengths = (_sums(c.double(), direction) for c in (cells, torch.ones_like(cells)))
            means = sums / lengths
            kept = means > _threshold(means, torch.ones_like(means), kappa)
            values = means - means.amax(dim=1, keepdim=True)
        else:
            # Distinct means distinct to the last bit, so the sums have the released code's precision and order.
            values = _sums(cells.float(), direction)
            ordered = values.sort(dim=1).values
            distinct = ordered != 0
            distinct[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
            # A head without weights has no threshold (not a number), which no sum reaches.
            kept = values >= _threshold(ordered.double(), distinct.double(), kappa).float()
        num_queries, num_keys = cells.shape[1:]
        lines += [
            StraightLine(head, direction, _condition(direction, number, num_queries, num_keys, variant), value)
            for (head, number), value in zip(kept.nonzero().tolist(), values[kept].tolist(), strict=True)
        ]
    return lines


def to_rules(
    lines: Sequence[StraightLine],
    site: Site,
    layer: int,
    num_heads: int,
    directions: Sequence[Direction],
    variant: Variant = "paper",
) -> list[Rule]:
    """Rules of one site and layer: one for each line, and those that the variant adds.

    Args:
        lines: The lines, as `find_lines` returns them.
        site: The site in which they were found.
        layer: The layer of the rules.
        num_heads: Heads of the layer, with or without a line.
        directions: The directions searched, in order.
        variant: The paper's algorithm or the released code's.
    """
    rules = [Rule(site, layer, line.head, conditions=(line.condition,), bias=line.value) for line in lines]
    if variant == "released" and site == "cross":
        return rules + [Rule(site, layer, head, conditions=FIRST_QUERY_LAST_KEY) for head in range(num_heads)]
    deciding = directions[:1] if variant == "released" else directions
    opened = {line.head for line in lines if line.direction in deciding}
    return rules + [Rule(site, layer, head) for head in range(num_heads) if head not in opened]


def _sums(maps: Tensor, direction: Direction) -> Tensor:
    """Sum along each line, `[head, line]`, added from the first query on; `_condition` gives the line of a number."""
    num_heads, num_queries, num_keys = maps.shape
    num_lines = num_keys if direction == "vertical" else num_queries + num_keys - 1
    sums = maps.new_zeros(num_heads, num_lines)
    for query in range(num_queries):
        first = {"diagonal": num_queries - 1 - query, "anti-diagonal": query, "vertical": 0}[direction]
        sums[:, first : first + num_keys] += maps[:, query]
    return sums


def _threshold(values: Tensor, counted: Tensor, kappa: float) -> Tensor:
    """Mean plus kappa population deviations, `[head, 1]`, of the values `[head, line]` whose `counted` is 1, not 0."""
    count = counted.sum(dim=1, keepdim=True)
    mean = (values * counted).sum(dim=1, keepdim=True) / count
    variance = ((values - mean).square() * counted).sum(dim=1, keepdim=True) / count
    return mean + kappa * variance.sqrt()


def _condition(direction: Direction, number: int, num_queries: int, num_keys: int, variant: Variant) -> Condition:
    """The condition of a line, for maps of any size.

    Args:
        direction: Its direction.
        number: Its number among the lines of this direction.
        num_queries: Queries of the map in which it was found.
        num_keys: Keys of that map.
        variant: The paper's algorithm or the released code's.
    """
    if direction == "diagonal":
        return Condition(query="raw", key="raw", equals=num_queries - 1 - number)
    if direction == "anti-diagonal":
        return Condition(query="raw", key="raw_from_end", equals=number - (num_keys - 1))
    if variant == "released":
        return Condition(key="raw_from_end", equals=num_keys - 1 - number)
    return Condition(key="raw", equals=number)
