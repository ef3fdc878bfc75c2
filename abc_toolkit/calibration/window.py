"""Windows: the rules that say which keys stay open, their file, and what they lower to.

A rule speaks of segments and coordinates, never of a matrix cell, so that it means the same at every length.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from abc_toolkit.errors import UserError
from abc_toolkit.layout import COORDINATES, Layout, Positions
from abc_toolkit.positions import SITES, AttentionPosition, PositionMethod, Site

SCHEMA = 1


class WindowError(UserError):
    """A window does not fit, or its file is not one; the message is one line that says why."""


@dataclass(frozen=True, order=True)
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
        sign = "-" if self.equals >= 0 else "+"
        return f"{self.key} = query's {self.query} {sign} {abs(self.equals)}"


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
    calibration: dict[str, Any]
    weights: str = ""

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
        past = k_positions.coordinates["raw"][None, :] <= q_positions.coordinates["raw"][:, None]
        for rule in sorted(self.of(site, layer), key=lambda rule: rule.fallback):
            cells = rule.holds(q_positions, k_positions)
            if rule.fallback:
                is_open = bias[rule.head] > -torch.inf
                if site == "decoder":  # a key that the causal mask closes does not count
                    is_open &= past
                cells = cells & ~is_open.any(dim=-1, keepdim=True)
            bias[rule.head] = torch.where(cells, bias[rule.head].clamp(min=rule.bias), bias[rule.head])
        return bias

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
        except json.JSONDecodeError as error:
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
            window = cls(rules=tuple(rules), **data)
        except (TypeError, KeyError, AttributeError) as error:
            raise WindowError(f"it is not a whole window ({error})") from None
        window._check()
        return window

    @classmethod
    def load(cls, path: Path) -> "Window":
        """Reads a window's file.

        Raises:
            WindowError: As `from_json`, the path named; also if the file cannot be read.
        """
        try:
            return cls.from_json(path.read_text())
        except FileNotFoundError:
            raise WindowError(f"there is no window at {path}") from None
        except (WindowError, UnicodeDecodeError) as error:
            raise WindowError(f"{path} cannot be used: {error}") from None

    def _check(self) -> None:
        for rule in self.rules:
            where = f"the rule {rule.site} layer {rule.layer} head {rule.head}"
            if rule.site not in SITES:
                raise WindowError(f"{where} names a site that does not exist; sites are {', '.join(SITES)}")
            if not isinstance(rule.layer, int) or not 0 <= rule.layer < self.layers(rule.site):
                raise WindowError(f"{where} names a layer that the window does not have")
            if not isinstance(rule.head, int) or not 0 <= rule.head < self.num_heads:
                raise WindowError(f"{where} names a head that the window does not have")
            if not isinstance(rule.bias, int | float):
                raise WindowError(f"{where} has a bias that is not a number")
            for condition in rule.conditions:
                for coordinate in (condition.key, condition.query):
                    if coordinate is not None and coordinate not in COORDINATES:
                        raise WindowError(f"{where} names the coordinate {coordinate!r}, which no layout has")
                if not isinstance(condition.equals, int):
                    raise WindowError(f"{where} compares a coordinate with {condition.equals!r}, not an integer")


def site_positions(site: Site, layout: Layout) -> tuple[Positions, Positions]:
    """Positions of the queries and of the keys of a site."""
    if site == "encoder":
        return layout.source, layout.source
    return layout.target, layout.prefix if site == "decoder" else layout.source


@dataclass(frozen=True)
class Windowed(PositionMethod):
    """A position method inside a window: its bias plus the window's, on top of closed keys.

    Source: attention bias calibration, arXiv 2310.11984, section 5. Any length; every site; pointwise if the inner
    method is.

    Attributes:
        window: The window.
        inner: What else tells attention about order.
    """

    window: Window
    inner: PositionMethod

    def embed(self, x: Tensor, positions: Positions) -> Tensor:
        return self.inner.embed(x, positions)

    def at(self, site: Site, layer: int, num_heads: int, head_dim: int) -> AttentionPosition:
        return WindowedAttention(self.window, site, layer, self.inner.at(site, layer, num_heads, head_dim))


class WindowedAttention(AttentionPosition):
    """`Windowed` in one site and layer."""

    def __init__(self, window: Window, site: Site, layer: int, inner: AttentionPosition) -> None:
        self.window = window
        self.site: Site = site
        self.layer = layer
        self.inner = inner
        self.pointwise = inner.pointwise
        self.transforms = inner.transforms
        # Layouts are made once a shape and live on; a bias is kept as long as the positions it is for.
        self._kept: WeakKeyDictionary[Positions, WeakKeyDictionary[Positions, Tensor]] = WeakKeyDictionary()

    def rotate(self, q: Tensor, k: Tensor, q_positions: Positions, k_positions: Positions) -> tuple[Tensor, Tensor]:
        return self.inner.rotate(q, k, q_positions, k_positions)

    def transform(self, scores: Tensor, q: Tensor, k: Tensor, q_positions: Positions, k_positions: Positions) -> Tensor:
        return self.inner.transform(scores, q, k, q_positions, k_positions)

    def bias(self, q_positions: Positions, k_positions: Positions) -> Tensor:
        by_key = self._kept.setdefault(q_positions, WeakKeyDictionary())
        if k_positions not in by_key:
            by_key[k_positions] = self.window.bias(self.site, self.layer, q_positions, k_positions)
        bias = by_key[k_positions]
        inner = self.inner.bias(q_positions, k_positions)
        return bias if inner is None else bias + inner
