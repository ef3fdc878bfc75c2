"""Windows: the rules that say which keys stay open, and the file that holds them.

A rule names segments and coordinates, never cells of a matrix, so it means the same at every length.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from abc_toolkit.errors import UserError
from abc_toolkit.layout import Layout, Positions
from abc_toolkit.positions import SITES, Site

String = Literal["source", "target"]
WindowBackbone = Literal["encoder-decoder", "decoder-only"]

SCHEMA = 1
STRINGS: tuple[String, ...] = get_args(String)
_LARGEST_OFFSET = 10**18  # 64 bits hold its sum with any coordinate
_LARGEST_BIAS = float(torch.finfo(torch.float32).max)


class WindowError(UserError):
    """A window is not valid, or does not fit a model or a task."""


def coordinate_of(positions: Positions, name: str) -> Tensor:
    """A coordinate that a rule names, `[length]`.

    Raises:
        WindowError: If the positions lack it, or if it is more than one number a token.
    """
    try:
        values = positions.coordinate(name)
    except UserError as error:
        raise WindowError(f"a rule of the window does not fit this task: {error}") from None
    if values.dim() != 1:
        raise WindowError(f"a rule of the window names the coordinate {name!r}, which is not one number a token")
    return values


@dataclass(frozen=True)
class Condition:
    """`query coordinate - key coordinate = equals`, or, without a query coordinate, `key coordinate = equals`.

    Attributes:
        key: Coordinate of the key.
        equals: The constant.
        query: Coordinate of the query, or `None`.

    Raises:
        WindowError: If a coordinate is not a name, or the constant is not an integer of up to 18 digits.
    """

    key: str
    equals: int
    query: str | None = None

    def __post_init__(self) -> None:
        for coordinate in (self.key, *(() if self.query is None else (self.query,))):
            if not isinstance(coordinate, str) or not coordinate.isidentifier():
                raise WindowError(
                    f"a condition names the coordinate {coordinate!r}: give a name of letters, digits and underscores"
                )
        if type(self.equals) is not int or abs(self.equals) > _LARGEST_OFFSET:
            raise WindowError(
                f"a condition compares a coordinate with {self.equals!r}: give an integer of up to 18 digits"
            )

    def holds(self, q_positions: Positions, k_positions: Positions) -> Tensor:
        """Where it holds, boolean `[query, key]`.

        Raises:
            WindowError: If the positions lack a coordinate.
        """
        keys = coordinate_of(k_positions, self.key)[None, :]
        if self.query is None:
            return (keys == self.equals).expand(len(q_positions), -1)
        return coordinate_of(q_positions, self.query)[:, None] - keys == self.equals

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
    """One line: keys that stay open in one head.

    Attributes:
        site: Which attention.
        layer: Which layer; the layer at the input is 0.
        head: Which head.
        key_segment: The key's segment; `None` for any.
        conditions: Conditions on the coordinates, all of which must hold; without any, the whole segment is open.
        bias: Added to the logits on the line.
        query_segment: The query's segment; `None` for any.
        fallback: Whether the line opens only for queries for which no other line of the head opens a key.
        query_string: The string that the query is in, of a model that reads source and target as one; `None` for both.

    Raises:
        WindowError: If a field is not of its kind.
    """

    site: Site
    layer: int
    head: int
    key_segment: str | None = None
    conditions: tuple[Condition, ...] = ()
    bias: float = 0.0
    query_segment: str | None = None
    fallback: bool = False
    query_string: String | None = None

    def __post_init__(self) -> None:
        where = f"a rule of layer {self.layer!r} and head {self.head!r}"
        if self.site not in SITES:
            raise WindowError(f"{where} names the site {self.site!r}: give one of {', '.join(SITES)}")
        if type(self.layer) is not int or type(self.head) is not int or min(self.layer, self.head) < 0:
            raise WindowError(f"{where}: give integers of at least 0")
        if type(self.bias) not in (int, float) or not abs(self.bias) <= _LARGEST_BIAS:
            raise WindowError(f"{where} has the bias {self.bias!r}: give a finite number in single precision")
        for segment in (self.key_segment, self.query_segment):
            if segment is not None and not isinstance(segment, str):
                raise WindowError(f"{where} names the segment {segment!r}: give a string")
        if type(self.fallback) is not bool:
            raise WindowError(f"{where} has fallback {self.fallback!r}: give true or false")
        if self.query_string not in (None, *STRINGS):
            raise WindowError(f"{where} has the query_string {self.query_string!r}: give source, target or null")

    def holds(self, q_positions: Positions, k_positions: Positions) -> Tensor:
        """The cells of the line, boolean `[query, key]`.

        Raises:
            WindowError: If the positions lack a coordinate that a condition names.
        """
        cells = self.asked_by(q_positions)[:, None].repeat(1, len(k_positions))
        if self.key_segment is not None:
            cells &= k_positions.within(self.key_segment)[None, :]
        for condition in self.conditions:
            cells &= condition.holds(q_positions, k_positions)
        return cells

    def asked_by(self, q_positions: Positions) -> Tensor:
        """The queries that the line is of, boolean `[query]`.

        Raises:
            WindowError: If it is of one string's queries, and the positions do not tell the strings apart.
        """
        asking = torch.ones_like(q_positions.segment, dtype=torch.bool)
        if self.query_segment is not None:
            asking &= q_positions.within(self.query_segment)
        if self.query_string is not None:
            asking &= coordinate_of(q_positions, "string") == STRINGS.index(self.query_string)
        return asking

    @property
    def of_source(self) -> bool:
        """Whether its queries are the source's own, in a model that reads source and target as one string."""
        return self.query_string == "source"

    def plain(self) -> dict[str, Any]:
        """The rule as JSON. The string of the query is left out where there is but one."""
        found = asdict(self)
        if self.query_string is None:
            del found["query_string"]
        return found

    def describe(self) -> str:
        """The line in words, without its site, layer and head."""
        words = [self.key_segment or "any token", *(condition.describe() for condition in self.conditions)]
        if not self.conditions:
            words.append("all of it")
        text = ", ".join(words)
        if self.query_segment is not None:
            text += f" (asked by {self.query_segment})"
        elif self.of_source:
            text += " (asked by the source)"
        return f"{text} (where nothing else is open)" if self.fallback else text


@dataclass(frozen=True)
class Window:
    """The lines that stay open in a model; every other key is closed.

    Attributes:
        task: Class name of the task that the window was calibrated on.
        num_encoder_layers: Encoder layers of a model that the window fits.
        num_decoder_layers: Decoder layers of such a model.
        num_heads: Heads a layer of such a model.
        rules: The lines. Where two lines of a head overlap, the larger bias holds.
        calibration: The calibration method and its settings.
        weights: SHA-256 of the weights that the window was calibrated from.
        backbone: Backbone of such a model. A decoder-only model has one site, `decoder`, in which source and target are
            one string.

    Raises:
        WindowError: If a field is not of its kind, or a rule names a layer or a head that the model does not have.
    """

    task: str
    num_encoder_layers: int
    num_decoder_layers: int
    num_heads: int
    rules: tuple[Rule, ...]
    calibration: dict[str, Any] = field(hash=False)
    weights: str = ""
    backbone: WindowBackbone = "encoder-decoder"

    def __post_init__(self) -> None:
        if self.backbone not in get_args(WindowBackbone):
            backbones = " or ".join(get_args(WindowBackbone))
            raise WindowError(f"its backbone is {self.backbone!r}: windows are of {backbones} models")
        for name, least in (("num_encoder_layers", 0), ("num_decoder_layers", 1), ("num_heads", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise WindowError(f"its {name} is {value!r}: give an integer of at least {least}")
        if (
            not isinstance(self.task, str)
            or not isinstance(self.weights, str)
            or not isinstance(self.calibration, dict)
        ):
            raise WindowError("its task and weights must be strings and its calibration an object")
        if self.reads_one_string and self.num_encoder_layers:
            raise WindowError("it is of a decoder-only model and has encoder layers: give 0 of these")
        for rule in self.rules:
            where = f"a rule of {rule.site} layer {rule.layer} head {rule.head}"
            if rule.query_string is not None and not self.reads_one_string:
                raise WindowError(f"{where} names a query_string, which is for windows of decoder-only models")
            if rule.layer >= self.layers(rule.site) or rule.head >= self.num_heads:
                raise WindowError(
                    f"{where} is outside the window's {self.layers(rule.site)} layers of {self.num_heads} heads"
                )

    def rules_at(self, site: Site, layer: int) -> tuple[Rule, ...]:
        """The rules of one site and layer."""
        return tuple(rule for rule in self.rules if rule.site == site and rule.layer == layer)

    @property
    def reads_one_string(self) -> bool:
        """Whether a model that it fits reads source and target as one string."""
        return self.backbone == "decoder-only"

    def read(self, layout: Layout) -> Layout:
        """A layout as a model that it fits reads it: what its sites have as queries and keys."""
        return layout.string if self.reads_one_string else layout

    def layers(self, site: Site) -> int:
        """Number of layers that have a site."""
        if self.reads_one_string:
            return self.num_decoder_layers if site == "decoder" else 0
        return self.num_encoder_layers if site == "encoder" else self.num_decoder_layers

    def with_rules(self, rules: Sequence[Rule]) -> "Window":
        """The same window with other rules."""
        return replace(self, rules=tuple(rules))

    def check_fits(
        self, num_encoder_layers: int, num_decoder_layers: int, num_heads: int, backbone: str = "encoder-decoder"
    ) -> None:
        """Checks that the window fits a model.

        Raises:
            WindowError: If the window is for another backbone, or another number of layers or heads.
        """
        if self.backbone != backbone:
            raise WindowError(
                f"the window is for {self.backbone} models and the model is {backbone}: calibrate one of that backbone"
            )
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
        """The window as JSON, one rule a line."""
        data = {"schema": SCHEMA} | {name: value for name, value in asdict(self).items() if name != "rules"}
        if not self.reads_one_string:
            del data["backbone"]
        rules = ",\n".join(f"    {json.dumps(rule.plain())}" for rule in self.rules)
        return f'{json.dumps(data, indent=2)[:-2]},\n  "rules": [\n{rules}\n  ]\n}}\n'

    @classmethod
    def from_json(cls, text: str) -> "Window":
        """The window in a text that `to_json` wrote.

        Raises:
            WindowError: If the text is not a window of this schema, or the window is not valid.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise WindowError(f"it is not JSON ({error})") from None
        if not isinstance(data, dict) or "schema" not in data:
            raise WindowError("it is not a window: it names no schema")
        if data.pop("schema") != SCHEMA:
            raise WindowError(f"its schema is not {SCHEMA}, the only one that this version reads: calibrate again")
        try:
            rules = []
            for rule in data.pop("rules"):
                conditions = tuple(Condition(**condition) for condition in rule.pop("conditions"))
                rules.append(Rule(conditions=conditions, **rule))
            return cls(rules=tuple(rules), **data)
        except (TypeError, KeyError, AttributeError) as error:
            raise WindowError(
                f"a field of the window is missing, unknown or of the wrong kind ({' '.join(str(error).split())})"
            ) from None

    @classmethod
    def load(cls, path: Path) -> "Window":
        """Reads a window's file.

        Raises:
            WindowError: If the file cannot be read, or does not hold a window.
        """
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise WindowError(f"there is no window at {path}") from None
        except (OSError, ValueError) as error:
            raise WindowError(f"{path} cannot be used: {error}") from None
