"""Checks a certificate anew: `python -m abc_toolkit.checker CERTIFICATE [--weights FILE] [--window FILE]`.

It needs NumPy and the standard library, imports nothing of the toolkit, and is slow rather than clever. In the order of
this file, it

1. reads the three files, and refuses what is not well formed;
2. derives the *bound of sizes*: up to which sizes problems are gone through so that all others repeat what was seen;
3. builds each layout up to the bound token by token, and finds the *receptive field* of each prediction: the tokens
   that it depends on, its leaves, and how. Predictions that are the same function of their leaves are of one *kind*;
4. runs the rule, a transducer, through the places for every *assignment* of a kind: the tokens that the leaves can hold
   in some problem, and the token that is then required;
5. computes the logits of every assignment in float64, and how far float32 may be from them;
6. checks the identities that say what the rule computes, on its table;
7. compares all that with the certificate.

It trusts that the certificate's layout and rule are those of the task: compare them by eye. The exit status is 0 where
everything agrees, 1 where something does not, 2 for bad input, and 3 where it cannot decide.
"""

import argparse
import hashlib
import itertools
import json
import math
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

MOST_PREDICTIONS = 3_000_000  # that layouts are built for
MOST_ROWS = 30_000_000  # assignments of one kind
BATCH = 8192  # assignments that go through the model at once
CARTESIAN = ("place", "index", "row", "column")
COORDINATES = (*CARTESIAN, "raw", "raw_from_end", "segment")
HASHED = ("architecture", "task", "tokens", "positions", "layout", "rule", "identities")
COMPARED = ("assignments", "smallest_margin", "largest_rounding", "smallest_slack")
U = 2.0**-24  # rounding of float32
EXP = 32 * 2.0**-23  # error of its exponential function
SAFELY = 1 + 1e-6  # norms of matrices are rounded themselves
HUGE = 2.0**120  # below this nothing overflows in float32
TINY = 2.0**-100  # above what underflow takes away from a vector


class Outcome(Exception):  # noqa: N818
    """Ends the check: a line to say, and the exit status."""

    def __init__(self, line: str, status: int) -> None:
        super().__init__(line)
        self.line, self.status = line, status


def refuse(line: str, remedy: str = "write the certificate anew") -> NoReturn:
    """Ends the check, as the input is bad."""
    raise Outcome(f"{line}: {remedy}", 2)


def disagree(line: str) -> NoReturn:
    """Ends the check, as the certificate is wrong."""
    raise Outcome(f"does NOT agree: {line}", 1)


def undecided(line: str) -> NoReturn:
    """Ends the check, as the argument does not cover this certificate."""
    raise Outcome(f"cannot decide: {line}", 3)


# 1. Files ------------------------------------------------------------------------------------------------------------

# What JSON must look like: an object with at least these fields, a list of things alike, or a value of these types.
NUMBER, TEXT = (int, float), (str, type(None))
CERTIFICATE: Any = {
    "schema": int,
    "argument": int,
    "verdict": str,
    "task": dict,
    "architecture": {
        **dict.fromkeys(("num_encoder_layers", "num_decoder_layers", "model_dim", "num_heads", "feedforward_dim"), int),
        "norm": str,
        "backbone": str,
        "position": dict,
    },
    "tokens": {"count": int, "bos": int, "eos": int, "first_symbol": int, "symbols": str},
    "positions": [{"coordinates": [str], "base": NUMBER, "period": int, "channels": str}],
    "layout": {
        "segments": [str],
        "least": [int],
        "cases": [{"where": [(int, dict)], "source": [dict], "target": [dict]}],
    },
    "rule": {
        **dict.fromkeys(("base", "num_states", "least_constant"), int),
        "along": str,
        "starts": [int],
        "ends": [bool],
        "reads": [{"name": str, "role": str, "segment": str, "row": (int, type(None)), "shift": int}],
        "table": list,
    },
    "identities": [{"kind": str, "statement": str}],
    "hashes": dict.fromkeys(("weights", "window", *HASHED), str),
    "bound": {"sizes": dict},
    "kinds": int,
    "assignments": int,
    **dict.fromkeys(COMPARED[1:], NUMBER),
}
WINDOW: Any = {
    **dict.fromkeys(("num_encoder_layers", "num_decoder_layers", "num_heads"), int),
    "rules": [
        {
            "site": str,
            "layer": int,
            "head": int,
            "key_segment": TEXT,
            "query_segment": TEXT,
            "bias": NUMBER,
            "fallback": bool,
            "conditions": [{"key": str, "equals": int, "query": TEXT}],
        }
    ],
}
ITEM: Any = {"segment": str, **dict.fromkeys(CARTESIAN, (int, dict)), "values": [int]}
REPEAT: Any = {"repeat": (int, dict), "variable": str, "items": [dict]}
TENSOR: Any = {"dtype": str, "shape": [int], "data_offsets": [int]}


def fits(value: Any, pattern: Any, name: str, remedy: str = "write the certificate anew") -> None:
    """Refuses JSON that does not look as it must."""
    if isinstance(pattern, dict):
        fits(value, dict, name, remedy)
        for key, inside in pattern.items():
            if key not in value:
                refuse(f"{name} has no field {key!r}", remedy)
            fits(value[key], inside, f"{name}, {key}", remedy)
    elif isinstance(pattern, list):
        fits(value, list, name, remedy)
        for number, inside in enumerate(value):
            fits(inside, pattern[0], f"{name} {number}", remedy)
    elif type(value) not in (pattern if isinstance(pattern, tuple) else (pattern,)):  # `true` is no number
        refuse(f"{name} is {repr(value)[:40]}, of the wrong type", remedy)


def read_bytes(path: Path) -> bytes:
    """What a file holds."""
    try:
        return path.read_bytes()
    except OSError as error:
        refuse(f"{path} cannot be read ({error.strerror or error})", "give the path of another file")


def read_json(data: bytes, name: str) -> Any:
    """JSON whose numbers are all finite."""

    def finite(text: str) -> float:
        if not math.isfinite(float(text)):
            raise ValueError(f"it holds {text}")
        return float(text)

    try:
        return json.loads(data.decode("utf-8"), parse_float=finite, parse_constant=finite)
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error).split("\n")[0]
        refuse(f"{name} is no JSON of finite numbers ({reason})", "write it anew")


def read_tensors(data: bytes, name: str) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file, which are all of finite float32 numbers, in float64."""
    size = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else len(data)
    if size > len(data) - 8:
        refuse(f"{name} is no whole safetensors file", "copy it anew")
    header, raw = read_json(data[8 : 8 + size], name), data[8 + size :]
    fits(header, dict, f"the header of {name}", "copy it anew")
    tensors = {}
    for tensor, entry in header.items():
        if tensor == "__metadata__":
            continue
        where = f"{name}, tensor {tensor}"
        fits(entry, TENSOR, where, "copy it anew")
        shape, span = entry["shape"], entry["data_offsets"]
        if entry["dtype"] != "F32":
            refuse(f"{where} is of type {entry['dtype']}", "only float32 (F32) is checked")
        whole = min(shape, default=0) >= 0 and len(span) == 2 and 0 <= span[0] <= span[1] <= len(raw)
        if not whole or span[1] - span[0] != 4 * math.prod(shape):
            refuse(f"{where} does not fit the file", "copy it anew")
        tensors[tensor] = np.frombuffer(raw[span[0] : span[1]], "<f4").reshape(shape).astype(np.float64)
        if not np.isfinite(tensors[tensor]).all():
            refuse(f"{where} holds numbers that are not finite", "such a model computes nothing; retrain it")
    return tensors


@dataclass(frozen=True)
class Expr:
    """A linear expression: pairs of a symbol and its factor, sorted and none 0; the symbol "" stands for 1."""

    terms: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, value: int | str | dict[str, int]) -> "Expr":
        """The expression of a number, of a symbol, or of factors."""
        terms = value if isinstance(value, dict) else {value: 1} if isinstance(value, str) else {"": value}
        return cls(tuple(sorted((symbol, factor) for symbol, factor in terms.items() if factor)))

    def plus(self, other: "Expr | int", times: int = 1) -> "Expr":
        """The sum with another, taken some times."""
        terms = dict(self.terms)
        for symbol, factor in other.terms if isinstance(other, Expr) else (("", other),):
            terms[symbol] = terms.get(symbol, 0) + times * factor
        return Expr.of(terms)

    def minus(self, other: "Expr | int") -> "Expr":
        return self.plus(other, -1)

    def put(self, values: "dict[str, Expr]") -> "Expr":
        """With expressions in place of symbols."""
        result = Expr()
        for symbol, factor in self.terms:
            result = result.plus(values.get(symbol, Expr.of(symbol)), factor)
        return result

    def at(self, values: dict[str, int]) -> int:
        """Its value."""
        return sum(factor * (values[symbol] if symbol else 1) for symbol, factor in self.terms)

    def factor(self, symbol: str) -> int:
        return dict(self.terms).get(symbol, 0)

    @property
    def symbols(self) -> list[str]:
        return [symbol for symbol, _ in self.terms if symbol]

    @property
    def is_difference(self) -> bool:
        """Whether it is x - y + c, x + c, -x + c or c."""
        return sorted(factor for symbol, factor in self.terms if symbol) in ([], [1], [-1], [-1, 1])

    def __str__(self) -> str:
        return " + ".join(f"{factor}{symbol and ' ' + symbol}" for symbol, factor in self.terms) or "0"


Loops = tuple[tuple[str, Expr], ...]  # variable and number of rounds of each repeat around something, outer one first


@dataclass(frozen=True, eq=False)
class Item:
    """Tokens of a layout that are written alike: one, or one for each round of the repeats around it.

    Attributes:
        segment: Segment.
        coordinates: Each coordinate; `None` where it is not linear. `held raw` and `held raw_from_end` are those that a
            token of the target has in the decoder's prefix.
        values: Token ids that it can hold.
        loops: The repeats around it.
        address: Where it stands in the nested lists.
    """

    segment: str
    coordinates: dict[str, Any]
    values: tuple[int, ...]
    loops: Loops
    address: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Repeat:
    """Items that are written some times over."""

    count: Expr
    variable: str
    nodes: "Nodes"


Nodes = list[Item | Repeat]


@dataclass(frozen=True)
class Case:
    """A case of the family of layouts."""

    where: list[Expr]
    start: Item
    source: Nodes
    target: Nodes


def flat(nodes: Nodes) -> Iterator[Item]:
    """All items, in order."""
    for node in nodes:
        yield from [node] if isinstance(node, Item) else flat(node.nodes)


class Family:
    """The family of layouts, read from the certificate."""

    def __init__(self, data: Any, num_tokens: int) -> None:
        self.num_tokens, self.segments, self.least = num_tokens, data["segments"], data["least"]
        self.sizes = [f"s{i}" for i in range(len(self.least))]
        if min(self.least, default=0) < 0:
            refuse("layout: a least size is negative")
        self.cases: list[Case] = []
        for number, case in enumerate(data["cases"]):
            name = f"layout, case {number}"
            source, target = (self._nodes(case[side], (), (), f"{name}, {side}") for side in ("source", "target"))
            start = self._item(case.get("start", data.get("start")), (), (-1,), f"{name}, start")
            last = target[-1] if target else start
            if not isinstance(last, Item) or last.values != (1,) or start.segment != "start" or start.values != (0,):
                refuse(f"{name}: the target does not begin with token 0 of 'start' and end in token 1")
            count_through(source)
            count_through(target)
            start.coordinates.update({"held raw": Expr(), "held raw_from_end": last.coordinates["raw"]})
            where = [self._expr(expr, (), name) for expr in case["where"]]
            self.cases.append(Case(where, start, source, target))

    def _expr(self, data: Any, loops: Loops, name: str) -> Expr:
        terms = data if isinstance(data, dict) else {"": data}
        known = {"", *self.sizes, *(variable for variable, _ in loops)}
        if any(type(factor) is not int or abs(factor) > 2**40 for factor in terms.values()) or not set(terms) <= known:
            refuse(f"{name}: {str(data)[:60]} is no linear expression of the sizes and the variables around it")
        return Expr.of(terms)

    def _item(self, data: Any, loops: Loops, address: tuple[int, ...], name: str) -> Item:
        fits(data, ITEM, name)
        if (segment := data["segment"]) not in self.segments:
            refuse(f"{name}: the segment {segment!r} is not among the layout's")
        if not data["values"] or not all(0 <= value < self.num_tokens for value in data["values"]):
            refuse(f"{name}: there is no token of these values")
        coordinates: dict[str, Any] = {key: self._expr(data[key], loops, name) for key in CARTESIAN}
        coordinates["segment"] = Expr.of(self.segments.index(segment))
        return Item(segment, coordinates, tuple(data["values"]), loops, address)

    def _nodes(self, data: Any, loops: Loops, address: tuple[int, ...], name: str) -> Nodes:
        nodes: Nodes = []
        for number, node in enumerate(data):
            here = *address, number
            if "repeat" not in node:
                nodes.append(self._item(node, loops, here, name))
                continue
            fits(node, REPEAT, name)
            variable, count = node["variable"], self._expr(node["repeat"], loops, name)
            taken = {"", *self.sizes, *(other for other, _ in loops)}
            if len(loops) == 2 or variable in taken or variable.startswith("?") or not node["items"]:
                refuse(
                    f"{name}: the repeat over {variable!r} is the third inside another, is empty, or has no new name"
                )
            nodes.append(Repeat(count, variable, self._nodes(node["items"], (*loops, (variable, count)), here, name)))
        return nodes

    def case_of(self, sizes: dict[str, int]) -> Case | None:
        """The case of some sizes, if there is one."""
        return next((case for case in self.cases if all(expr.at(sizes) >= 0 for expr in case.where)), None)


def length(nodes: Nodes) -> Expr | None:
    """Number of tokens, `None` where it is not linear."""
    total = Expr()
    for node in nodes:
        inside = Expr.of(1) if isinstance(node, Item) else length(node.nodes)
        if inside is None or inside.symbols:
            return None
        total = total.plus(1 if isinstance(node, Item) else node.count, inside.factor(""))
    return total


def count_through(string: Nodes) -> None:
    """Gives every item of a string its coordinates `raw` and `raw_from_end`."""
    whole = length(string)

    def through(nodes: Nodes, before: Expr | None) -> None:
        for number, node in enumerate(nodes):
            ahead = length(nodes[:number])
            raw = None if before is None or ahead is None else before.plus(ahead)
            if isinstance(node, Repeat):
                inside = length(node.nodes)
                if raw is not None and inside is not None:
                    raw = None if inside.symbols else raw.plus(Expr.of(node.variable), inside.factor(""))
                through(node.nodes, raw if inside is not None else None)
                continue
            end = None if raw is None or whole is None else whole.minus(raw).minus(1)
            held = {"held raw": raw and raw.plus(1), "held raw_from_end": end and end.minus(1)}
            node.coordinates.update({"raw": raw, "raw_from_end": end, **held})

    through(string, Expr())


def unique_rows(rows: np.ndarray) -> np.ndarray:
    """Distinct rows of numbers >= 0, sorted. Each row becomes one number, where there is room for it."""
    if not rows.size:
        return rows[:1]
    spans = [int(column.max()) + 1 for column in rows.T]
    if math.prod(spans) >= 2**62:
        return np.unique(rows, axis=0)
    keys = np.zeros(len(rows), np.int64)
    for column, span in zip(rows.T, spans, strict=True):
        keys = keys * span + column
    keys.sort()
    keys = keys[np.append(True, keys[1:] != keys[:-1])]
    result = np.empty((len(keys), rows.shape[1]), rows.dtype)
    for n in range(len(spans))[::-1]:
        keys, result[:, n] = np.divmod(keys, spans[n])
    return result


@dataclass(frozen=True)
class Read:
    """What the rule reads or writes: digits of an operand, a constant, or symbols of an answer."""

    name: str
    role: str
    segment: str
    row: int | None
    shift: int

    def may_be(self, segment: str, rows_apart: int) -> bool:
        """Whether tokens of a segment are what is read, so many rows above the prediction."""
        return segment == self.segment and self.row in (None, rows_apart)


class Rule:
    """The transducer, read from the certificate."""

    def __init__(self, data: Any, num_tokens: int) -> None:
        self.along, self.base, self.num_states = data["along"], data["base"], data["num_states"]
        self.starts, self.ends, self.least_constant = data["starts"], np.array(data["ends"]), data["least_constant"]
        self.reads = [Read(**{key: read[key] for key in Read.__dataclass_fields__}) for read in data["reads"]]
        self.operands, self.constants, self.answers = (
            [i for i, read in enumerate(self.reads) if read.role == role] for role in ("operand", "constant", "answer")
        )
        if len(self.operands + self.constants + self.answers) < len(self.reads) or self.along not in ("place", "index"):
            refuse("rule: it goes along no place or index, or a read is no operand, constant or answer")
        good = 1 <= self.base <= num_tokens - 2 and 0 < self.num_states < 2**15 and len(self.ends) == self.num_states
        if (
            not good
            or not all(0 <= s < self.num_states for s in self.starts)
            or not 0 <= self.least_constant < self.base
        ):
            refuse("rule: its numbers do not go together")
        shape = (self.num_states, *[self.base] * len(self.operands))
        shape += (*[self.base - self.least_constant] * len(self.constants), 1 + len(self.answers))
        try:
            self.table = np.array(data["table"])
        except ValueError:
            self.table = np.zeros(0)
        if self.table.shape != shape or self.table.dtype.kind != "i":
            refuse(f"rule: its table is no table of integers of the shape {shape}")
        if (self.table < 0).any() or (self.table > [self.num_states - 1] + [num_tokens - 3] * len(self.answers)).any():
            refuse("rule: its table holds a state or a symbol that there is not")
        values = range(self.least_constant, self.base)
        self.constant_values = list(itertools.product(values, repeat=len(self.constants)))
        self.ended: dict[tuple[int, ...], set[int]] = {}  # filled as runs are gone through
        self.gaps: set[int] = set()  # answers that are not written at every place, filled as layouts are gone through
        self._ways: dict[Any, np.ndarray] = {}
        self._cycles: dict[tuple[bool, ...], tuple[int, int]] = {}

    def step(self, state: int, digits: Sequence[int], constants: Sequence[int]) -> tuple[int, dict[int, int]]:
        """The next state, and what each operand and answer is by the number of its read."""
        then, *written = self.table[(state, *digits, *(value - self.least_constant for value in constants))].tolist()
        return then, dict(zip(self.operands + self.answers, [*digits, *written], strict=True))

    def ways(self, present: tuple[bool, ...], wanted: tuple[int, ...], constants: tuple[int, ...]) -> np.ndarray:
        """All steps at a place: rows of a state, the symbols of the wanted reads, and the next state.

        Args:
            present: Which operands have a digit there; the others read 0.
            wanted: Numbers of the reads whose symbols are told.
            constants: Value of each constant.
        """
        if (key := (present, wanted, constants)) not in self._ways:
            rows = []
            digits = [range(self.base if there else 1) for there in present]
            for state, *read in itertools.product(range(self.num_states), *digits):
                then, symbols = self.step(state, read, constants)
                rows.append((state, *(symbols[i] for i in wanted), then))
            self._ways[key] = unique_rows(np.array(rows, np.int16))
        return self._ways[key]

    def cycle(self, present: tuple[bool, ...]) -> tuple[int, int]:
        """From which power on the relation of states repeats itself, and after how many, for all constants at once."""
        if present not in self._cycles:
            first, period = 0, 1
            for constants in self.constant_values:
                matrix = np.zeros((self.num_states, self.num_states), bool)
                matrix[tuple(self.ways(present, (), constants).T)] = True
                power, seen = np.eye(self.num_states, dtype=bool), {}
                while power.tobytes() not in seen:
                    seen[power.tobytes()] = len(seen)
                    power = power @ matrix
                first = max(first, seen[power.tobytes()])
                period = math.lcm(period, len(seen) - seen[power.tobytes()])
            self._cycles[present] = first, period
        return self._cycles[present]


@dataclass(frozen=True)
class WindowRule:
    """Keys that are open; conditions are triples of the key's coordinate, the constant, and the query's or `None`."""

    name: str
    key_segment: str | None
    query_segment: str | None
    conditions: list[tuple[str, int, str | None]]
    bias: float
    fallback: bool


class Window:
    """The window: the rules of each site, layer and head."""

    def __init__(self, data: Any, architecture: dict[str, Any]) -> None:
        remedy = "give this model's window"
        fits(data, WINDOW, "window", remedy)
        for key in ("num_encoder_layers", "num_decoder_layers", "num_heads"):
            if data[key] != architecture[key]:
                refuse(f"window: {key} is {data[key]}, but {architecture[key]} in the certificate", remedy)
        self.rules: dict[tuple[str, int, int], list[WindowRule]] = {}
        for number, rule in enumerate(data["rules"]):
            name, (site, layer, head) = f"window, rule {number}", (rule[key] for key in ("site", "layer", "head"))
            layers = data["num_encoder_layers" if site == "encoder" else "num_decoder_layers"]
            good = site in ("encoder", "decoder", "cross") and 0 <= layer < layers and 0 <= head < data["num_heads"]
            conditions = [(each["key"], each["equals"], each["query"]) for each in rule["conditions"]]
            if not good or not all(c in (None, *COORDINATES) for key, _, query in conditions for c in (key, query)):
                refuse(f"{name}: there is no such site, layer, head or coordinate", remedy)
            segments = rule["key_segment"], rule["query_segment"]
            read = WindowRule(name, *segments, conditions, float(rule["bias"]), rule["fallback"])
            self.rules.setdefault((site, layer, head), []).append(read)

    def at(self, site: str, layer: int) -> list[WindowRule]:
        """The rules of all heads of a layer."""
        return [rule for (s, n, _), rules in self.rules.items() if (s, n) == (site, layer) for rule in rules]


# 2. The bound of sizes -----------------------------------------------------------------------------------------------

Known = frozenset[Expr]  # what holds wherever a token is in a receptive field: each of these is >= 0


@dataclass(frozen=True)
class Token:
    """A token of a family of layouts: an item, and what the variable of each repeat around it is."""

    item: Item
    values: tuple[Expr, ...]

    @classmethod
    def any_of(cls, item: Item, name: str) -> "Token":
        """Any token of an item: each variable is a symbol of its own."""
        once = Expr.of(1)  # the variable of a repeat that is gone through once is 0
        return cls(item, tuple(Expr() if c == once else Expr.of(f"?{name} {n}") for n, (_, c) in enumerate(item.loops)))

    @property
    def bound(self) -> dict[str, Expr]:
        return {variable: value for (variable, _), value in zip(self.item.loops, self.values, strict=True)}

    def coordinate(self, name: str) -> Any:
        expr = self.item.coordinates[name]
        return None if expr is None else expr.put(self.bound)

    def ranges(self) -> list[Expr]:
        """What is >= 0 if there is such a token."""
        left = [count.put(self.bound).minus(1).minus(self.bound[variable]) for variable, count in self.item.loops]
        return [*self.values, *left]


def possible(known: Iterable[Expr]) -> bool:
    """Whether integers >= 0 for the symbols can make all expressions >= 0 (Bellman-Ford); differences alone count."""
    edges: set[tuple[str, str, int]] = set()
    for expr in known:
        if expr.is_difference:
            plus = next((s for s in expr.symbols if expr.factor(s) == 1), "")
            minus = next((s for s in expr.symbols if expr.factor(s) == -1), "")
            if plus == minus and expr.factor("") < 0:
                return False
            edges.add((plus, minus, expr.factor("")))  # minus <= plus + constant
            edges |= {(symbol, "", 0) for symbol in expr.symbols}
    highest = {symbol: 0 for edge in edges for symbol in edge[:2]}
    for _ in range(len(highest) + 1):
        changed = False
        for plus, minus, most in edges:
            if highest[plus] + most < highest[minus]:
                highest[minus], changed = highest[plus] + most, True
        if not changed:
            return True
    return False


def zero(*exprs: Expr) -> list[Expr]:
    """That expressions are 0, as expressions that are >= 0."""
    return [*exprs, *(Expr().minus(expr) for expr in exprs)]


def unknown(*exprs: Expr) -> bool:
    """Whether there are variables left of a key that is looked for."""
    return any(symbol.startswith("?key") for expr in exprs for symbol in expr.symbols)


class Prediction:
    """The facts that one prediction's kind and assignments rest on, for a case of layouts and an item of its target."""

    def __init__(self, family: Family, number: int, item: Item, model: "Model", window: Window, rule: Rule) -> None:
        self.case, self.family, self.window, self.rule = family.cases[number], family, window, rule
        self.facts: set[Expr] = set()
        self.run_facts: set[Expr] = set()
        query = Token.any_of(item, "query")
        known = [e for case in family.cases[: number + 1] for e in case.where]  # an earlier case must not hold anew
        given = list(self.case.where) + query.ranges()
        given += [Expr.of(size).minus(least) for size, least in zip(family.sizes, family.least, strict=True)]
        self.ever = possible(given)
        if self.ever:
            self.note([*known, *given])
            self.leaves: set[tuple[str, Token, Known]] = set()
            self.follow(query, frozenset(given), model)
            self.compare_leaves()
            self.follow_run(query, frozenset(given))

    def note(self, facts: Iterable[Expr], of_run: bool = False) -> None:
        """Takes down facts."""
        for fact in facts:
            if not fact.is_difference:
                undecided(f"{fact} against 0 is no comparison of two sizes or numbers of rounds")
            (self.run_facts if of_run else self.facts).add(fact)

    def follow(self, query: Token, given: Known, model: "Model") -> None:
        """Follows the receptive field down to the leaves; the facts on the way are noted."""
        target, source = [self.case.start, *flat(self.case.target)][:-1], list(flat(self.case.source))
        reached: set[tuple[Token, Known]] = set()
        streams = {(query, given)}  # by the token that each predicts
        for held, known in self.beside(query, -1, given):
            self.leaves.add(("target", held, known))
        for layer in range(model.num_decoder_layers)[::-1]:
            for token, known in list(streams):
                for rule in self.window.at("cross", layer):
                    reached |= self.opened(rule, token, known, source, False)
                for rule in self.window.at("decoder", layer):
                    for held, more in self.opened(rule, token, known, target, True):
                        self.leaves.add(("target", held, more))
                        if layer or model.positions:
                            streams |= set(self.beside(held, 1, more))
        for layer in range(model.num_encoder_layers)[::-1]:
            for token, known in list(reached):
                for rule in self.window.at("encoder", layer):
                    reached |= self.opened(rule, token, known, source, False)
        self.leaves |= {("source", token, known) for token, known in reached}
        used = {name for position in model.positions for name in position["coordinates"]}
        for token in [token for token, _ in streams | reached]:
            if any(token.coordinate(name) is None for name in used):
                undecided(f"a position table takes a coordinate of {token.item.segment!r} that is not linear")

    def opened(self, rule: WindowRule, query: Token, known: Known, items: list[Item], causal: bool) -> set[Any]:
        """The keys that a rule may open to a query, each with what then holds."""
        found = set()
        if rule.query_segment not in (None, query.item.segment):
            return found
        for item in items:
            if rule.key_segment not in (None, item.segment):
                continue
            key = Token.any_of(item, "key")
            equations = []
            for name, equals, of_query in rule.conditions:
                mine = key.coordinate(f"held {name}" if causal and name.startswith("raw") else name)
                other = Expr.of(equals)
                if of_query is not None:
                    asked = query.coordinate(of_query)
                    other = None if asked is None else asked.minus(equals)
                if mine is None or other is None:
                    undecided(f"{rule.name} compares a coordinate of {item.segment!r} that is not linear")
                equations.append(mine.minus(other))
            if not possible([*known, *key.ranges(), *zero(*equations)]):
                continue
            key, rest = solved(key, equations)
            if unknown(*key.values):
                undecided(f"{rule.name} opens ever more keys of {item.segment!r}, as its conditions leave them free")
            then = [*key.ranges(), *zero(*rest)]
            for order in self.earlier(key, query) if causal else [([], [])]:
                now = known.union(then, order[0])
                if possible(now):
                    self.note([*key.ranges(), *rest, *order[1]])
                    found.add((key, now))
        return found

    def earlier(self, key: Token, query: Token) -> Iterator[tuple[list[Expr], list[Expr]]]:
        """The ways in which a token stands before another in their string: what is then >= 0, and the facts."""
        a, b = key.item.address, query.item.address
        same = 0  # repeats that are around both
        while same < min(len(a), len(b)) - 1 and a[same] == b[same]:
            same += 1
        equals: list[Expr] = []
        facts: list[Expr] = []
        for n in range(same + 1):
            if a[n] != b[n]:
                if a[n] < b[n]:
                    yield equals, facts
                return
            if n < same:
                apart = query.values[n].minus(key.values[n])
                facts = [*facts, apart]
                yield [*equals, apart.minus(1)], facts
                equals = [*equals, *zero(apart)]

    def beside(self, token: Token, step: int, known: Known) -> list[tuple[Token, Known]]:
        """The token after (1) or before (-1) one of the target; there may be several for several sizes."""
        string: Nodes = [self.case.start, *self.case.target]
        address = token.item.address[0] + 1, *token.item.address[1:]  # as the start is ahead of the others here
        found = []
        conditions: list[Expr] = []
        facts: list[Expr] = []
        for depth in range(len(address))[::-1]:
            nodes = string
            for number in address[:depth]:
                node = nodes[number]
                assert isinstance(node, Repeat)
                nodes = node.nodes
            values = dict(itertools.islice(token.bound.items(), depth))
            here = address[depth]
            beyond = nodes[here + 1 :] if step == 1 else nodes[:here]
            nothing = None
            for end in self.end(beyond, values, step):
                if end[0] is None:
                    nothing = end
                elif possible(known.union(conditions, end[1])):
                    found.append((end[0], known.union(conditions, end[1])))
                    self.note([*facts, *end[2]])
            if nothing is None:
                return found
            conditions, facts = conditions + nothing[1], facts + nothing[2]
            if depth and possible(known.union(conditions)):  # the next round of the repeat, or out of it
                symbol, count = token.item.loops[depth - 1]
                mine = token.bound[symbol]
                left = count.put(token.bound).minus(1).minus(mine) if step == 1 else mine
                then, rounds = known.union(conditions, [left.minus(1)]), values | {symbol: mine.plus(step)}
                for end in self.end(nodes, rounds, step):
                    if possible(then.union(end[1])):
                        if end[0] is None:
                            undecided("a round of a repeat may be empty")
                        found.append((end[0], then.union(end[1])))
                        self.note([*facts, left, *end[2]])
                conditions, facts = [*conditions, Expr().minus(left)], [*facts, left]
        return found

    def end(self, nodes: Nodes, values: dict[str, Expr], step: int) -> Iterator[tuple[Any, list[Expr], list[Expr]]]:
        """The first (1) or last (-1) token of some nodes, `None` if there is none: under what, and the facts."""
        conditions: list[Expr] = []
        facts: list[Expr] = []
        for node in nodes[::step]:
            if isinstance(node, Item):
                yield Token(node, tuple(values[symbol] for symbol, _ in node.loops)), conditions, facts
                return
            count = node.count.put(values)
            inside = values | {node.variable: Expr() if step == 1 else count.minus(1)}
            for token, more, noted in self.end(node.nodes, inside, step):
                yield token, [*conditions, count.minus(1), *more], [*facts, count.minus(1), *noted]
            conditions, facts = [*conditions, Expr().minus(count)], [*facts, count.minus(1)]
        yield None, conditions, facts

    def compare_leaves(self) -> None:
        """Notes the order of the leaves, where the sizes tell it."""
        for (side, a, known), (other, b, more) in itertools.combinations(self.leaves, 2):
            if side == other and a.values and b.values and a.item.address[0] == b.item.address[0]:
                both = known | more
                if possible(both):
                    apart = a.values[0].minus(b.values[0])
                    self.note([apart])
                    inner = len(a.values) == len(b.values) == 2 and a.item.address[1] == b.item.address[1]
                    if inner and possible(both.union(zero(apart))):
                        self.note([a.values[1].minus(b.values[1])])

    def follow_run(self, query: Token, given: Known) -> None:
        """Notes what the rule's run depends on: which leaves it names, and how its events lie to each other."""
        events: set[tuple[Expr, Known]] = set()
        row = query.coordinate("row")
        for read in self.rule.reads:
            if read.role == "answer" and read.segment == query.item.segment and read.row in (None, 0):
                events.add((self.along(query, read), given))
            for _, token, known in self.leaves:
                if read.segment == token.item.segment:
                    fit = Expr() if read.row is None else row.minus(token.coordinate("row")).minus(read.row)
                    fitting = known.union(zero(fit))
                    if possible(fitting):
                        self.note([fit])
                        if read.role != "constant":
                            self.note([self.along(token, read)])
                            events.add((self.along(token, read), fitting))
            if read.role != "constant":
                for item in [*flat(self.case.source), *flat(self.case.target)]:
                    if item.segment == read.segment:
                        events |= self.range_events(read, item, row, given)
        for (a, known), (b, more) in itertools.combinations(events, 2):
            if possible(known | more):
                self.note([a.minus(b)], True)
        self.note([event for event, _ in events], True)

    def along(self, token: Token, read: Read) -> Expr:
        """The place at which the rule reads a token."""
        return token.coordinate(self.rule.along).minus(read.shift)

    def range_events(self, read: Read, item: Item, row: Expr, given: Known) -> set[tuple[Expr, Known]]:
        """The first and the last place that an item gives a read of the rule, in rows that fit."""
        token = Token.any_of(item, "key")
        fit = [] if read.row is None else [row.minus(token.coordinate("row")).minus(read.row)]
        if not possible([*given, *token.ranges(), *zero(*fit)]):
            return set()
        token, rest = solved(token, fit)
        place, ranges, loops = self.along(token, read), token.ranges(), range(len(item.loops))
        free = [n for n in loops if token.values[n] == Expr.of(f"?key {n}")]
        then = [expr for n in loops if n not in free for expr in (ranges[n], ranges[n + len(loops)])]
        last = {n: item.loops[n][1].put(token.bound).minus(1) for n in free}
        moving = [n for n in free if place.factor(f"?key {n}")]
        if unknown(*then, *last.values()) or len(moving) > 1 or any(abs(place.factor(f"?key {n}")) > 1 for n in moving):
            undecided(f"the places of {item.segment!r} are no range that one variable goes through")
        self.note([*rest, *then, *last.values()])
        ends = ({f"?key {n}": end for n in moving} for end in (Expr(), *(last[n] for n in moving)))
        return {(place.put(end), given.union(then, zero(*rest))) for end in ends}

    def bounds(self, period: int, first: int) -> dict[str, int]:
        """The bound of each size by the lemma: K (G + P) of the component that it is in."""
        component: dict[str, set[str]] = {}
        for fact in self.facts | self.run_facts:
            joined = set(fact.symbols).union(*(component.get(symbol, set()) for symbol in fact.symbols))
            for symbol in joined:
                component[symbol] = joined
        bounds = {}
        for size in self.family.sizes:
            symbols = component[size]
            touching = [fact for fact in self.facts | self.run_facts if symbols.intersection(fact.symbols)]
            largest = max(abs(fact.factor("")) for fact in touching)
            run = any(symbols.intersection(fact.symbols) for fact in self.run_facts)
            bounds[size] = len(symbols) * (2 * largest + 1 + (first if run else 0) + period)
        return bounds


def solved(token: Token, equations: list[Expr]) -> tuple[Token, list[Expr]]:
    """A token with its unknown variables as equations (each = 0) determine them, and the equations left over."""
    values, rest = list(token.values), list(equations)
    for n in range(len(values)):
        for equation in rest:
            if abs(factor := equation.factor(f"?key {n}")) == 1:
                value = equation.plus(Expr.of(f"?key {n}"), -factor)  # factor * unknown + value = 0
                known = {f"?key {n}": value if factor == -1 else Expr().minus(value)}
                values, rest = [v.put(known) for v in values], [e.put(known) for e in rest]
                break
    rest = [equation for equation in rest if equation.terms]
    if unknown(*rest):
        undecided(f"conditions on {token.item.segment!r} do not determine its variables as whole numbers")
    return Token(token.item, tuple(values)), rest


def bound_of_sizes(family: Family, model: "Model", window: Window, rule: Rule) -> dict[str, int]:
    """Up to which value each size must be gone through."""
    cycles = [rule.cycle(present) for present in itertools.product((False, True), repeat=len(rule.operands))]
    first = max(cycle[0] for cycle in cycles)
    period = math.lcm(*(cycle[1] for cycle in cycles), *(position["period"] for position in model.positions))
    bounds = dict(zip(family.sizes, family.least, strict=True))
    for number, case in enumerate(family.cases):
        for item in flat(case.target):
            prediction = Prediction(family, number, item, model, window, rule)
            if prediction.ever:
                found = prediction.bounds(period, first)
                bounds = {size: max(bounds[size], found[size]) for size in bounds}
    return bounds


# 3. Layouts and receptive fields -------------------------------------------------------------------------------------

Placed = dict[str, Any]  # a token of a layout: its coordinates, and its item under "item"


@dataclass(frozen=True)
class Form:
    """How a prediction is computed from its leaves, the same for all predictions of a kind.

    A stream has the number of its leaf. A layer lists the streams that are needed after it, each with the open streams
    and their biases for every head of self- and of cross-attention.

    Attributes:
        encoder: Layers of the encoder.
        decoder: Layers of the decoder.
        source_residues: What the position tables take at each leaf of the source.
        prefix_residues: The same of the prefix.
        read: Number of the stream that is read out.
    """

    encoder: tuple[Any, ...]
    decoder: tuple[Any, ...]
    source_residues: tuple[tuple[int, ...], ...]
    prefix_residues: tuple[tuple[int, ...], ...]
    read: int


def written(nodes: Nodes, values: dict[str, int]) -> Iterator[Placed]:
    """The tokens of a string, without `raw` and `raw_from_end`."""
    for node in nodes:
        if isinstance(node, Item):
            coordinates = {name: node.coordinates[name].at(values) for name in (*CARTESIAN, "segment")}
            yield {**coordinates, "item": node}
        else:
            for number in range(node.count.at(values)):
                yield from written(node.nodes, values | {node.variable: number})


def count_tokens(nodes: Nodes, values: dict[str, int]) -> int:
    """Number of tokens of a string."""
    total = 0
    for node in nodes:
        if isinstance(node, Item):
            total += 1
            continue
        rounds = node.count.at(values)
        for number in range(min(rounds, MOST_PREDICTIONS + 1)):
            total += count_tokens(node.nodes, values | {node.variable: number})
            if total > MOST_PREDICTIONS:
                undecided(f"a problem has more than {MOST_PREDICTIONS} tokens, which is beyond the budget")
    return total


class Layout:
    """The tokens of all problems of some sizes, and the keys that the window opens.

    Attributes:
        source: Tokens of the source.
        target: Tokens that the decoder predicts.
        prefix: Tokens that it holds meanwhile.
        open: For each site and layer, by query and head, the open keys and their biases.
    """

    def __init__(self, case: Case, sizes: dict[str, int], model: "Model", window: Window, rule: Rule) -> None:
        self.sizes, self.model, self.rule = sizes, model, rule
        self.source, self.target = list(written(case.source, sizes)), list(written(case.target, sizes))
        self.prefix = [*written([case.start], sizes), *(dict(token) for token in self.target[:-1])]
        for string in (self.source, self.target, self.prefix):
            for number, token in enumerate(string):
                token["raw"], token["raw_from_end"] = number, len(string) - 1 - number
        self.open: dict[tuple[str, int], list[Any]] = {}
        for site, queries, keys in (
            ("encoder", self.source, self.source),
            ("decoder", self.target, self.prefix),
            ("cross", self.target, self.source),
        ):
            for layer in range(model.num_encoder_layers if site == "encoder" else model.num_decoder_layers):
                rules = [window.rules.get((site, layer, head), []) for head in range(model.num_heads)]
                heads = [open_keys(of_head, queries, keys, site == "decoder") for of_head in rules]
                self.open[site, layer] = list(zip(*heads, strict=True))
        self._places: dict[int, tuple[list[set[int]], int]] = {}

    def receptive_field(self, query: int) -> tuple[list[Placed], Form]:
        """The leaves and the form of the prediction of a target token."""
        needed, reached = {query}, set()
        decoder, encoder = [], []
        for layer in range(self.model.num_decoder_layers)[::-1]:
            own, cross = self.open["decoder", layer], self.open["cross", layer]
            decoder.insert(0, [(n, own[n], cross[n]) for n in sorted(needed)])
            reached |= {key for n in needed for head in cross[n] for key, _ in head}
            needed |= {key for n in needed for head in own[n] for key, _ in head}
        for layer in range(self.model.num_encoder_layers)[::-1]:
            own = self.open["encoder", layer]
            encoder.insert(0, [(n, own[n], ()) for n in sorted(reached)])
            reached |= {key for n in reached for head in own[n] for key, _ in head}
        source = {number: leaf for leaf, number in enumerate(sorted(reached))}
        prefix = {number: leaf for leaf, number in enumerate(sorted(needed))}

        def renumbered(layers: list[Any], own: dict[int, int]) -> tuple[Any, ...]:
            def heads(open_: Any, numbers: dict[int, int]) -> tuple[Any, ...]:
                return tuple(tuple((numbers[key], bias) for key, bias in head) for head in open_)

            return tuple(tuple((own[n], heads(a, own), heads(b, source)) for n, a, b in layer) for layer in layers)

        source_residues = tuple(self.model.residues(self.source[n]) for n in source)
        prefix_residues = tuple(self.model.residues(self.target[n]) for n in prefix)  # of the token that is predicted
        layers = renumbered(encoder, source), renumbered(decoder, prefix)
        form = Form(*layers, source_residues, prefix_residues, prefix[query])
        return [self.source[n] for n in source] + [self.prefix[n] for n in prefix], form

    def places(self, row: int) -> tuple[list[set[int]], int]:
        """Places at which each operand has a digit, seen from a row, and the last place of the rule's run."""
        if row not in self._places:
            there: list[set[int]] = [set() for _ in self.rule.reads]
            for places, read in zip(there, self.rule.reads, strict=True):
                for token in self.target if read.role == "answer" else self.source + self.target:
                    place = 0 if read.role == "constant" else token[self.rule.along] - read.shift
                    if place >= 0 and read.may_be(token["item"].segment, row - token["row"]):
                        if place in places:
                            undecided(f"two tokens are {read.name!r} at place {place} ({named(self.sizes)})")
                        places.add(place)
            last = max((place for i in self.rule.operands + self.rule.answers for place in there[i]), default=-1)
            self.rule.gaps |= {i for i in self.rule.answers if there[i] and len(there[i]) <= last}
            self._places[row] = [there[i] for i in self.rule.operands], last
        return self._places[row]


def open_keys(rules: list[WindowRule], queries: list[Placed], keys: list[Placed], causal: bool) -> list[Any]:
    """The open keys of each query and their biases, in one head."""
    found: list[dict[int, float]] = [{} for _ in queries]
    for fallback in (False, True):
        asks = [not (fallback and open_) for open_ in found]  # a fallback is for queries with nothing open
        for rule in (rule for rule in rules if rule.fallback == fallback):
            relative = [(name, equals, asked) for name, equals, asked in rule.conditions if asked is not None]
            fixed = [(name, equals) for name, equals, asked in rule.conditions if asked is None]
            table: dict[tuple[int, ...], list[int]] = {}  # keys by what the relative conditions compare
            for number, key in enumerate(keys):
                if rule.key_segment in (None, key["item"].segment) and all(
                    key[name] == equals for name, equals in fixed
                ):
                    table.setdefault(tuple(key[name] for name, _, _ in relative), []).append(number)
            for number, query in enumerate(queries):
                if asks[number] and rule.query_segment in (None, query["item"].segment):
                    for key in table.get(tuple(query[name] - equals for _, equals, name in relative), ()):
                        if not causal or key <= number:
                            found[number][key] = max(rule.bias, found[number].get(key, -math.inf))
    return [tuple(sorted(open_.items())) for open_ in found]


# 4. Assignments ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What the assignments of a prediction are computed from.

    Attributes:
        steps: The places from 0 on: which operands have a digit, which reads are told, and how many such places follow.
        leaves: What tells each leaf: the step and the read, or a constant's number, or the ids that it can hold.
        required: The step and the read that tell the required token, or its id.
    """

    steps: tuple[tuple[tuple[bool, ...], tuple[int, ...], int], ...]
    leaves: tuple[tuple[str, Any], ...]
    required: tuple[str, Any]


def plan_of(layout: Layout, query: int, leaves: list[Placed], rule: Rule) -> Plan:
    """The plan of the prediction of a target token."""
    predicted = layout.target[query]
    item = predicted["item"]
    told: dict[int, set[int]] = {}  # reads whose symbols are told, by place

    def tells(token: Placed) -> tuple[str, Any]:
        for i, read in enumerate(rule.reads):
            if read.may_be(token["item"].segment, predicted["row"] - token["row"]):
                if read.role == "constant":
                    return "constant", rule.constants.index(i)
                if (place := token[rule.along] - read.shift) >= 0:
                    told.setdefault(place, set()).add(i)
                    return "told", (place, i)
        return "id", token["item"].values

    sources = [tells(token) for token in leaves]
    answer = next((i for i in rule.answers if rule.reads[i].may_be(item.segment, 0)), None)
    if answer is not None:
        place = predicted[rule.along] - rule.reads[answer].shift
        if place < 0:
            undecided(f"the rule has no place for a token of {item.segment!r} ({named(layout.sizes)})")
        told.setdefault(place, set()).add(answer)
        sources.append(("told", (place, answer)))
    elif len(item.values) == 1:
        sources.append(("id", item.values))
    else:
        undecided(f"nothing says which token of {item.segment!r} is required")
    present, last = layout.places(predicted["row"])
    steps: list[tuple[tuple[bool, ...], tuple[int, ...], int]] = []
    number = {}
    for place in range(last + 1):
        there, wanted = tuple(place in places for places in present), tuple(sorted(told.get(place, ())))
        if steps and not wanted and steps[-1][:2] == (there, ()):
            steps[-1] = there, (), steps[-1][2] + 1
        else:
            steps.append((there, wanted, 1))
        number[place] = len(steps) - 1
    for n, (there, wanted, times) in enumerate(steps):  # powers of a relation repeat themselves
        first, period = rule.cycle(there)
        if not wanted and times > first:
            steps[n] = there, wanted, first + (times - first) % period
    sources = [(how, (number[what[0]], what[1]) if how == "told" else what) for how, what in sources]
    return Plan(tuple(steps), tuple(sources[:-1]), sources[-1])


def joined(runs: np.ndarray, ways: np.ndarray) -> np.ndarray:
    """Runs (symbols so far, then the state) that take a step (state, symbols, next state) in all ways."""
    parts = [np.zeros((0, runs.shape[1] + ways.shape[1] - 2), runs.dtype)]
    for state in np.unique(runs[:, -1]):
        mine, then = runs[runs[:, -1] == state, :-1], ways[ways[:, 0] == state, 1:]
        within_budget(len(mine) * len(then))
        parts.append(np.hstack([np.repeat(mine, len(then), axis=0), np.tile(then, (len(mine), 1))]))
    return unique_rows(np.concatenate(parts))


def within_budget(rows: int) -> None:
    """Ends the check where there are too many assignments."""
    if rows > MOST_ROWS:
        undecided(f"a kind has more than {MOST_ROWS} assignments, which is beyond the budget")


def assignments(plan: Plan, rule: Rule) -> np.ndarray:
    """All assignments of a plan: rows of the ids of the leaves, then of the required token.

    The rule takes down the states in which runs end, by the constants, where the required token is an answer.
    """
    columns = [(n, read) for n, (_, wanted, _) in enumerate(plan.steps) for read in wanted]
    found = []
    for constants in rule.constant_values:
        runs = np.array(rule.starts, np.int16)[:, None]
        for there, wanted, times in plan.steps:
            for _ in range(times):
                runs = joined(runs, rule.ways(there, wanted, constants))
        runs = runs[rule.ends[runs[:, -1]]]
        if plan.required[0] == "told":
            rule.ended.setdefault(constants, set()).update(np.unique(runs[:, -1]).tolist())
        symbols = runs[:, :-1] + 2
        rows = symbols[:, :0]
        for how, what in (*plan.leaves, plan.required):
            if how == "told":
                column = symbols[:, columns.index(what)]
            elif how == "constant":
                column = np.full(len(rows), constants[what] + 2)
            else:  # any of some ids: each row is taken with each
                within_budget(len(rows) * len(what))
                column = np.tile(what, len(rows))
                rows, symbols = np.repeat(rows, len(what), axis=0), np.repeat(symbols, len(what), axis=0)
            rows = np.column_stack([rows, column.astype(np.int16)])
        found.append(unique_rows(rows))
    return unique_rows(np.concatenate(found))


# 5. The model --------------------------------------------------------------------------------------------------------

Bounded = tuple[np.ndarray, np.ndarray]  # vectors, a row each, and bounds of the norm of their error in float32


def gamma(n: int) -> float:
    """The relative error of a sum of n products, in any order."""
    return n * U / (1 - n * U)


def norm(x: np.ndarray) -> np.ndarray:
    """The 2-norm of each row."""
    return np.sqrt((x * x).sum(axis=-1))


def rounded(error: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """An error with that of underflow; infinite where a number on the way, at most `largest`, may overflow."""
    return np.where(largest < HUGE, error + TINY, math.inf)


@dataclass(frozen=True)
class Stream:
    """The vectors of one token of the problems, each distinct one once.

    Attributes:
        distinct: Vectors.
        rows: Which of them each assignment has.
    """

    distinct: Bounded
    rows: Any = ...

    def all(self, function: Callable[[Bounded], Bounded] = lambda x: x) -> Bounded:
        """What a function makes of the vector of each assignment."""
        value, error = function(self.distinct)
        return value[self.rows], error[self.rows]


Streams = dict[int, Stream]  # by number


class Model:
    """The model in float64, and how far float32 may be from it."""

    def __init__(self, data: Any, positions: list[Any], num_tokens: int, tensors: dict[str, np.ndarray]) -> None:
        self.num_encoder_layers, self.num_decoder_layers = data["num_encoder_layers"], data["num_decoder_layers"]
        self.dim, self.num_heads, self.pre = data["model_dim"], data["num_heads"], data["norm"] == "pre"
        sizes = self.num_encoder_layers, self.num_decoder_layers, self.dim - 1, self.num_heads - 1
        if min(*sizes, data["feedforward_dim"]) < 0 or self.dim % self.num_heads or data["norm"] not in ("pre", "post"):
            refuse("architecture: its sizes do not go together")
        if data["backbone"] != "encoder-decoder":
            undecided(f"the backbone {data['backbone']!r} is another model than the encoder-decoder")
        for table in positions:
            good = table["coordinates"] and set(table["coordinates"]) <= set(COORDINATES) and table["base"] >= 1
            if not good or not 0 < table["period"] < 10**6 or table["channels"] not in ("interleaved", "concatenated"):
                refuse("positions: a table has no coordinate, base, period or order of channels that is known")
        self._check_positions(data["position"], positions)
        self.positions, self.weights = positions, tensors
        self._check_shapes(num_tokens, data["feedforward_dim"])
        self._norms: dict[str, tuple[float, float, float]] = {}
        output = tensors["output.weight"]
        self.apart = norm(output[:, None] - output) * SAFELY  # of the rows of each pair of tokens

    def _check_positions(self, method: Any, positions: list[Any]) -> None:
        """Whether the model's position method comes to the tables, and nothing else."""
        tables, todo = list(positions), [method]
        while todo:
            part = todo.pop(0)
            if isinstance(part, list):
                todo = [*part, *todo]
            elif isinstance(part, dict):
                name, settings = str(part.get("class_path", "")).rpartition(".")[2], part.get("init_args", {})
                if name == "Cyclic" and tables and isinstance(settings, dict):
                    table = tables.pop(0)
                    if any(table[key] != value for key, value in settings.items() if key in table):
                        refuse("positions: a table is not what the architecture says")
                elif name not in ("NoPE", "Compose", ""):
                    undecided(f"the position method {name} comes to no table that repeats itself")
                todo = [*(part.values() if not name else [settings] if name == "Compose" else []), *todo]
        if tables:
            refuse("positions: the architecture has not so many tables")

    def _check_shapes(self, num_tokens: int, hidden: int) -> None:
        remedy, dim = "give the weights of this model", self.dim
        linear = {"output": (num_tokens, dim)}
        norms = ["encoder_norm"] * (self.pre and self.num_encoder_layers > 0) + ["decoder_norm"] * self.pre
        for side, layers, attentions in (
            ("encoder", self.num_encoder_layers, ["self"]),
            ("decoder", self.num_decoder_layers, ["self", "cross"]),
        ):
            for layer in (f"{side}.{n}" for n in range(layers)):
                norms += [f"{layer}.{part}_norm" for part in (*attentions, "feedforward")]
                linear |= {f"{layer}.feedforward.0": (hidden, dim), f"{layer}.feedforward.3": (dim, hidden)}
                for part in (f"{layer}.{part}_attention" for part in attentions):
                    linear |= {f"{part}.query": (dim, dim), f"{part}.key_value": (2 * dim, dim)}
                    linear[f"{part}.output"] = (dim, dim)
        shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (num_tokens, dim)}
        for name, shape in linear.items():
            shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
        for name in norms:
            shapes |= {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}
        for name, shape in shapes.items():
            if name not in self.weights:
                refuse(f"the weights have no tensor {name}", remedy)
            if self.weights[name].shape != shape:
                refuse(f"the tensor {name} has the shape {self.weights[name].shape}, not {shape}", remedy)
        if more := set(self.weights) - set(shapes):
            refuse(f"the weights hold {min(more)}, which this model has not", remedy)

    def residues(self, token: Placed) -> tuple[int, ...]:
        """What the position tables take of a token's coordinates."""
        return tuple(token[name] % table["period"] for table in self.positions for name in table["coordinates"])

    def embed(self, residues: tuple[int, ...]) -> Bounded:
        """The embeddings of all tokens, with the position vectors of a leaf."""
        x = self.weights["embedding.weight"] * math.sqrt(self.dim)
        left, error = list(residues), 0.0
        for table in self.positions:
            frequencies = np.exp(-math.log(table["base"]) * np.arange(0, self.dim, 2) / self.dim)
            added, count = np.zeros(self.dim), len(table["coordinates"])
            for k in range(count):
                angles = left.pop(0) * frequencies
                waves = np.stack([np.sin(angles), np.cos(angles)], axis=1).ravel()[: self.dim]
                added += np.roll(waves, self.dim * k // count)
            if table["channels"] == "concatenated":
                added = np.concatenate([added[0::2], added[1::2]])
            x = x + added
            error += U * math.sqrt(self.dim) * (8 + 4 * table["period"]) * count
        return x, rounded(4 * U * norm(x) + error, norm(x))

    def linear(self, name: str, x: Bounded, rows: slice = slice(None)) -> Bounded:
        """A linear layer, or some rows of it."""
        weight, bias = self.weights[f"{name}.weight"][rows], self.weights[f"{name}.bias"][rows]
        if (key := f"{name}{rows}") not in self._norms:
            stretch, entries = (float(np.linalg.norm(matrix, 2)) * SAFELY for matrix in (weight, abs(weight)))
            self._norms[key] = stretch, entries, float(norm(bias))
        stretch, entries, moved = self._norms[key]
        value, e = x
        largest = entries * (norm(value) + e) + moved
        return value @ weight.T + bias, rounded(stretch * e + gamma(weight.shape[1] + 2) * largest, largest)

    def layer_norm(self, name: str, x: Bounded) -> Bounded:
        """Layer normalisation."""
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        (value, e), d, eps = x, self.dim, 1e-5
        c = value - value.mean(axis=1, keepdims=True)
        n = c / np.sqrt((c * c).sum(axis=1, keepdims=True) / d + eps)
        least = np.sqrt(np.maximum(norm(c) - e, 0) ** 2 / d + eps)
        size = norm(value) + e
        drift = 4 * gamma(d + 8) * size**2 / d / least**2  # of the variance
        rho = drift + 8 * U
        off = e / least + (rho + gamma(d + 4) + 4 * U) * size / least
        largest = abs(weight).max()
        error = largest * off + 3 * U * (largest * (norm(n) + off) + norm(bias))
        # A large error of the variance is no longer one of the quotient of the same size.
        return n * weight + bias, rounded(error, np.where(drift <= 0.25, size**2, math.inf))

    def attention(self, name: str, x: Bounded, streams: Streams, heads: Any) -> Bounded:
        """Attention of one stream.

        Args:
            name: Name of the attention.
            x: The stream that asks.
            streams: The streams that are read.
            heads: For each head, its open streams and their biases.
        """
        q, e_q = self.linear(f"{name}.query", x)
        read = {stream for open_ in heads for stream, _ in open_}
        k = {n: streams[n].all(lambda y: self.linear(f"{name}.key_value", y, slice(0, self.dim))) for n in read}
        v = {n: streams[n].all(lambda y: self.linear(f"{name}.key_value", y, slice(self.dim, None))) for n in read}
        width = self.dim // self.num_heads
        result, squares = np.zeros_like(q), np.zeros(len(q))
        for block, open_ in zip((slice(n, n + width) for n in range(0, self.dim, width)), heads, strict=True):
            if not open_:
                continue
            count, logits, errors = len(open_), [], []
            for n, bias in open_:
                logits.append((q[:, block] * k[n][0][:, block]).sum(axis=1) * width**-0.5 + bias)
                size_q, size_k, e_k = norm(q[:, block]) + e_q, norm(k[n][0][:, block]) + k[n][1], k[n][1]
                product = size_q * e_k + size_k * e_q + gamma(width + 4) * size_q * size_k
                product = product * width**-0.5 + 4 * U * (abs(logits[-1]) + abs(bias))
                errors.append(rounded(product, size_q * size_k + abs(bias)))
            highest, error = np.max(logits, axis=0), np.max(errors, axis=0)
            weights = np.exp(logits - highest)
            weights /= weights.sum(axis=0)
            spread = highest - np.min(logits, axis=0) + 2 * error
            off = error + (count + 2) * (EXP + 2 * U * (spread + 2)) + 3 * gamma(count + 3)
            if count == 1:
                off = np.where(error < math.inf, 4 * U, math.inf)
            largest = np.max([norm(v[n][0][:, block]) + v[n][1] for n, _ in open_], axis=0)
            error = (off + gamma(count + 2)) * largest
            for weight, (n, _) in zip(weights, open_, strict=True):
                result[:, block] += weight[:, None] * v[n][0][:, block]
                error = error + weight * v[n][1]
            squares += error**2
        return self.linear(f"{name}.output", (result, np.sqrt(squares)))

    def add(self, x: Bounded, update: Bounded, name: str) -> Bounded:
        """The residual sum, normalised afterwards in post-norm."""
        value, before = x[0] + update[0], x[1] + update[1]
        result = value, rounded(before + U * (norm(value) + before), norm(value) + before)
        return result if self.pre else self.layer_norm(name, result)

    def normed(self, name: str, part: str, x: Bounded) -> Bounded:
        """What a part of a layer reads."""
        return self.layer_norm(f"{name}.{part}_norm", x) if self.pre else x

    def layer(self, name: str, streams: Streams, memory: Streams, needed: Any) -> Streams:
        """The streams that are needed after a layer, by number."""
        attended = self.attended(name, streams, memory, needed)
        return {n: Stream(self.feedforward(name, stream.all())) for n, stream in attended.items()}

    def feedforward(self, name: str, x: Bounded) -> Bounded:
        """The stream after a layer's feed-forward block."""
        value, error = self.linear(f"{name}.feedforward.0", self.normed(name, "feedforward", x))
        update = self.linear(f"{name}.feedforward.3", (np.maximum(value, 0), error))
        return self.add(x, update, f"{name}.feedforward_norm")

    def attended(self, name: str, streams: Streams, memory: Streams, needed: Any) -> Streams:
        """The streams that are needed after a layer, before its feed-forward block."""
        inside = {n: Stream(self.normed(name, "self", stream.distinct), stream.rows) for n, stream in streams.items()}
        after = {}
        for n, own, cross in needed:
            update = self.attention(f"{name}.self_attention", inside[n].all(), inside, own)
            x = self.add(streams[n].all(), update, f"{name}.self_norm")
            if name.startswith("decoder"):
                update = self.attention(f"{name}.cross_attention", self.normed(name, "cross", x), memory, cross)
                x = self.add(x, update, f"{name}.cross_norm")
            after[n] = Stream(x)
        return after

    def slope(self, name: str, x: Bounded, outer: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The derivative of a layer normalisation.

        Returns:
            The transposed derivative at `x` times vectors; by how much that can turn, per length of these, up to what
            float32 makes of `x`; and by how much the layer moves vectors apart on the way there.
        """
        weight, (value, e), d = self.weights[f"{name}.weight"], x, self.dim
        c = value - value.mean(axis=1, keepdims=True)
        s = np.sqrt((c * c).sum(axis=1, keepdims=True) / d + 1e-5)
        least = np.sqrt(np.maximum(norm(c) - e, 0) ** 2 / d + 1e-5)
        u, n, largest = weight * outer, c / s, abs(weight).max()
        back = (u - n * (n * u).mean(axis=1, keepdims=True)) / s
        back -= back.mean(axis=1, keepdims=True)
        return back, 2 / math.sqrt(3) * largest * e / (math.sqrt(d) * least**2), largest / least

    def refined(self, x: Bounded, required: np.ndarray, other: np.ndarray) -> np.ndarray:
        """A finer bound of how far float32 may be from a difference of logits, along its gradient.

        The derivative is taken at the exact vectors. How far it turns on the way to the rounded ones is bounded: of the
        normalisations by their second derivative, of the rectifier by the units that may open or close.

        Args:
            x: The stream before the last feed-forward block, a row for each pair.
            required: One token of each pair.
            other: The other.
        """
        name = f"decoder.{self.num_decoder_layers - 1}"
        norms = f"{name}.feedforward_norm", "decoder_norm"
        first, last = (self.weights[f"{name}.feedforward.{n}.weight"] for n in (0, 3))
        bias, output = self.weights[f"{name}.feedforward.0.bias"], self.weights["output.weight"]
        h = self.layer_norm(norms[0], x)
        p = self.linear(f"{name}.feedforward.0", h)
        a = np.maximum(p[0], 0), p[1]
        f = self.linear(f"{name}.feedforward.3", a)
        y = self.add(x, f, norms[0])
        z = self.layer_norm(norms[1], y)
        stretch = [self._norms[f"{name}.feedforward.{n}{slice(None)}"][0] for n in (0, 3)]
        v = output[required] - output[other]
        g, turn_y, spread_y = self.slope(norms[1], y, v)
        turned = turn_y * norm(v)
        q = g @ last
        rows = norm(first)
        each = rows * h[1][:, None] + gamma(self.dim + 2) * (rows * (norm(h[0]) + h[1])[:, None] + abs(bias))
        c = q * (p[0] > 0)
        turned_hidden = stretch[1] * turned + norm(q * (abs(p[0]) <= each))
        k = c @ first
        back, turn_x, spread_x = self.slope(norms[0], x, k)
        turned_whole = turned + spread_x * stretch[0] * turned_hidden + turn_x * norm(k)
        return (
            (norm(g + back) + turned_whole) * x[1]
            + (norm(k) + stretch[0] * turned_hidden) * (h[1] - spread_x * x[1])
            + (norm(c) + turned_hidden) * (p[1] - stretch[0] * h[1])
            + (norm(g) + turned) * (f[1] - stretch[1] * a[1] + U * (norm(y[0]) + x[1] + f[1]))
            + norm(v) * (z[1] - spread_y * y[1])
        )

    @np.errstate(all="ignore")  # what overflows leads nothing
    def margins(self, form: Form, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """By how much the required token leads each other one, and how far float32 may be from that.

        Args:
            form: How the logits are computed.
            ids: Assignments.

        Returns:
            Two arrays `[assignment, token]`; infinity and 0 for the required token.
        """
        leaves = [
            Stream(self.embed(residues), ids[:, n])
            for n, residues in enumerate(form.source_residues + form.prefix_residues)
        ]
        source = dict(enumerate(leaves[: len(form.source_residues)]))
        prefix = dict(enumerate(leaves[len(form.source_residues) :]))
        for number, needed in enumerate(form.encoder):
            source = self.layer(f"encoder.{number}", source, {}, needed)
        if self.pre and self.num_encoder_layers:
            source = {n: Stream(self.layer_norm("encoder_norm", stream.all())) for n, stream in source.items()}
        before = prefix
        for number, needed in enumerate(form.decoder):
            before = self.attended(f"decoder.{number}", prefix, source, needed)
            prefix = {n: Stream(self.feedforward(f"decoder.{number}", x.all())) for n, x in before.items()}
        h, e = prefix[form.read].all(lambda x: self.layer_norm("decoder_norm", x) if self.pre else x)
        weight, bias = self.weights["output.weight"], self.weights["output.bias"]
        logits, required, rows = h @ weight.T + bias, ids[:, -1], np.arange(len(ids))
        margins = logits[rows, required][:, None] - logits
        sizes, biases = norm(weight), abs(bias)
        pairs = (sizes[required][:, None] + sizes) * (norm(h) + e)[:, None] + biases[required][:, None] + biases
        bounds = rounded(self.apart[required] * e[:, None] + gamma(self.dim + 3) * pairs, pairs)
        margins[rows, required], bounds[rows, required] = math.inf, 0
        row, other = np.nonzero(margins <= 2 * bounds)
        if self.pre and self.num_decoder_layers and len(row):
            value, error = before[form.read].all()
            finer = self.refined((value[row], error[row]), required[row], other)
            finer = finer + gamma(self.dim + 3) * pairs[row, other]
            bounds[row, other] = np.fmin(bounds[row, other], finer)
        return margins, bounds


# 6. Identities -------------------------------------------------------------------------------------------------------

TERMS: Any = [{"name": str, "per_state": [int], "times_constant": bool}]
IDENTITIES: Any = {
    "linear": {"takes": TERMS, "gives": TERMS, "carry": [int]},
    "remainder": {"carry": [int], "bound": (int, str)},
    "running": {"answer": str, "operand": str, "carry": [int], "modulus": int},
    "order": {"operands": [str], "order": [int], "answer": TEXT, "symbols": [int]},
    "copy": {"operand": str, "answer": str},
}


def identity_fails(identity: Any, rule: Rule) -> str | None:
    """Where an identity does not hold on the rule's table, `None` if it does."""
    kind, up = identity["kind"], rule.along == "place"
    if kind not in IDENTITIES:
        undecided(f"nothing is known of identities of the kind {kind!r}")
    fits({"answer": None} | identity, {"answer": TEXT} | IDENTITIES[kind], f"identity {identity['statement']!r}")
    terms = [*identity.get("takes", ()), *identity.get("gives", ())]
    carry = identity.get("order" if kind == "order" else "carry", [0] * rule.num_states)
    names = {rule.reads[i].name: i for i in rule.operands + rule.answers}
    used = [*identity.get("operands", ()), identity.get("operand"), identity.get("answer")]
    used = [name for name in [*used, *(term["name"] for term in terms)] if name is not None]
    scales = (kind == "remainder" and identity["bound"] == "constant") or any(term["times_constant"] for term in terms)
    lengths = {len(each) for each in (carry, *(term["per_state"] for term in terms))}
    if not set(used) <= set(names) or (scales and len(rule.constants) != 1) or lengths != {rule.num_states}:
        refuse(f"identity {identity['statement']!r}: the rule has not such reads, one constant, or so many states")

    def total(terms: list[Any], state: int, symbols: dict[int, int], constants: tuple[int, ...]) -> int:
        factors = [t["per_state"][state] * (constants[0] if t["times_constant"] else 1) for t in terms]
        return sum(factor * symbols[names[t["name"]]] for factor, t in zip(factors, terms, strict=True))

    def holds(state: int, then: int, symbols: dict[int, int], constants: tuple[int, ...]) -> bool:
        if kind == "linear":
            left, right = (total(identity[side], state, symbols, constants) for side in ("takes", "gives"))
            low, high = (state, then) if up else (then, state)
            balanced = left + (1 if up else -1) * carry[low] == right + (1 if up else -1) * rule.base * carry[high]
            digits = all(symbols[names[term["name"]]] < rule.base for term in identity["gives"])
            return balanced and digits and all(t["per_state"][state] == t["per_state"][then] for t in terms)
        if kind == "remainder":
            bound = constants[0] if identity["bound"] == "constant" else identity["bound"]
            answer = identity.get("answer")  # where one is named, it is the remainder
            return 0 <= carry[then] < bound and (answer is None or symbols[names[answer]] == carry[then])
        if kind == "running":
            after = (carry[state] + symbols[names[identity["operand"]]]) % identity["modulus"]
            return symbols[names[identity["answer"]]] == carry[then] == after
        if kind == "order":
            a, b = (symbols[names[name]] for name in identity["operands"])
            sign = (a > b) - (a < b)
            right = carry[then] == ((sign or carry[state]) if up else (carry[state] or sign))
            answer = identity["answer"]
            return right and (answer is None or symbols[names[answer]] == identity["symbols"][carry[then] + 1])
        return symbols[names[identity["answer"]]] == symbols[names[identity["operand"]]]

    if (kind == "running" and identity["modulus"] < 1) or (isinstance(identity.get("bound"), str) and not scales):
        refuse(f"identity {identity['statement']!r}: it has no modulus or bound")
    if kind == "order" and (len(identity["operands"]), len(identity["symbols"])) != (2, 3):
        refuse(f"identity {identity['statement']!r}: an order is of two operands and has three symbols")
    if kind in ("linear", "copy"):
        written = [term["name"] for term in identity["gives"]] if kind == "linear" else [identity["answer"]]
        if any(names[name] in rule.gaps for name in written):
            return "a place at which nothing is written"
    if (kind in ("order", "running") or (kind == "linear" and not up)) and any(carry[state] for state in rule.starts):
        return "a start of the run"
    for constants in rule.constant_values:
        if kind == "linear" and up and any(carry[state] for state in rule.ended.get(constants, ())):
            return "the end of a run"
        reached, todo = set(rule.starts), list(rule.starts)
        while todo:
            state = todo.pop()
            for digits in itertools.product(range(rule.base), repeat=len(rule.operands)):
                then, symbols = rule.step(state, digits, constants)
                if not holds(state, then, symbols, constants):
                    return f"state {state}, digits {list(digits)}, constants {list(constants)}"
                if then not in reached:
                    reached.add(then)
                    todo.append(then)
    return None


# 7. The check --------------------------------------------------------------------------------------------------------


def named(sizes: dict[str, int]) -> str:
    """Sizes in words."""
    return ", ".join(f"{size} = {value}" for size, value in sizes.items())


def describe(ids: np.ndarray, margins: np.ndarray, lead: float, kind: dict[Plan, Any], rule: Rule, symbols: str) -> str:
    """An assignment for which the model is wrong, in words."""

    def token(number: int) -> str:
        if number < 2:
            return ("start", "end")[number]
        return repr(symbols[number - 2]) if number - 2 < len(symbols) else f"token {number}"

    sizes, query, leaves = next(kind[plan] for plan in kind if (assignments(plan, rule) == ids).all(axis=1).any())
    held = [
        f"{token(int(number))} as {leaf['item'].segment} (row {leaf['row']}, place {leaf['place']})"
        for leaf, number in zip(leaves, ids[:-1], strict=True)
    ]
    rival, margin = token(int(margins.argmin())), float(margins.min())
    return (
        f"token {query} of the target for {named(sizes)} must be {token(int(ids[-1]))} where the model reads "
        f"{', '.join(held)}; it leads {rival} by {margin:.4g}, and by {lead:.4g} less the rounding"
    )


def shapes_of(
    family: Family, bound: dict[str, int], say: Callable[[str, str], None]
) -> list[tuple[Case, dict[str, int]]]:
    """All sizes up to the bound that there are problems of, each with its case; says what they will cost."""
    ranges = [range(least, bound[size] + 1) for size, least in zip(family.sizes, family.least, strict=True)]
    shapes, cost = [], math.prod(len(values) for values in ranges)
    for values in itertools.product(*ranges) if cost <= MOST_PREDICTIONS else ():
        sizes = dict(zip(family.sizes, values, strict=True))
        if (case := family.case_of(sizes)) is not None:
            shapes.append((case, sizes))
            cost += count_tokens(case.source, sizes) + count_tokens(case.target, sizes)
            if cost > MOST_PREDICTIONS:
                break
    if cost > MOST_PREDICTIONS:
        undecided(f"there are more than {MOST_PREDICTIONS} sizes and tokens to go through, which is beyond the budget")
    say("layouts", f"{len(shapes)}, with {cost} sizes and tokens to go through")
    return shapes


def check(path: Path, weights_path: Path, window_path: Path, say: Callable[[str, str], None]) -> None:
    """Checks a certificate.

    Args:
        path: The certificate.
        weights_path: The model's weights.
        window_path: Its window.
        say: Takes what was done: a heading and what to say of it.

    Raises:
        Outcome: If anything does not agree, cannot be decided, or is bad input.
    """
    data = read_json(read_bytes(path), str(path))
    fits(data, {"schema": int}, str(path))
    if data["schema"] != 3:
        refuse(f"{path} has schema {data['schema']}, and this checks schema 3", "certify the model anew")
    fits(data, {"argument": int, "verdict": str}, str(path))
    if data["argument"] != 1:
        refuse(f"{path} follows argument {data['argument']}, and this checks argument 1", "take that version's checker")
    if data["verdict"] != "correct":
        refuse(f"{path} says {data['verdict']!r}, so there is nothing to check", "give one that says 'correct'")
    fits(data, CERTIFICATE, str(path))
    tokens, bound = data["tokens"], data["bound"]["sizes"]
    if [tokens[key] for key in ("bos", "eos", "first_symbol")] != [0, 1, 2] or not 3 <= tokens["count"] < 2**15:
        refuse("tokens: they are 0 (start), 1 (end) and symbols from 2 on, less than 32768")
    family, rule = Family(data["layout"], tokens["count"]), Rule(data["rule"], tokens["count"])
    fits(bound, dict.fromkeys(family.sizes, int), "bound, sizes")
    weights, window_bytes = read_bytes(weights_path), read_bytes(window_path)
    model = Model(data["architecture"], data["positions"], tokens["count"], read_tensors(weights, str(weights_path)))
    window = Window(read_json(window_bytes, str(window_path)), data["architecture"])

    hashes = {"weights": hashlib.sha256(weights).hexdigest(), "window": hashlib.sha256(window_bytes).hexdigest()}
    for key in HASHED:
        text = json.dumps(data[key], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        hashes[key] = hashlib.sha256(text.encode()).hexdigest()
    for key, value in hashes.items():
        if data["hashes"][key] != value:
            disagree(f"the hash of {key} is {value[:12]}..., but {data['hashes'][key][:12]}... in the certificate")
    say("hashes", f"{len(hashes)} agree")

    needed = bound_of_sizes(family, model, window, rule)
    say("bound of sizes", f"{named(bound)}; the lemma asks for {named(needed)}")
    for size, least in needed.items():
        if bound[size] < least:
            disagree(f"the bound of {size} is {bound[size]}, and the lemma asks for {least}")

    kinds: dict[Form, dict[Plan, tuple[dict[str, int], int, list[Placed]]]] = {}
    for case, sizes in shapes_of(family, bound, say):
        layout = Layout(case, sizes, model, window, rule)
        for query in range(len(layout.target)):
            leaves, form = layout.receptive_field(query)
            plan = plan_of(layout, query, leaves, rule)
            kinds.setdefault(form, {}).setdefault(plan, (sizes, query, leaves))
    say("kinds", f"{len(kinds)}; {data['kinds']} in the certificate, which may split them")

    found = {"assignments": 0, "smallest_margin": math.inf, "largest_rounding": 0.0, "smallest_slack": math.inf}
    for form, plans in kinds.items():
        every = unique_rows(np.concatenate([assignments(plan, rule) for plan in plans]))
        found["assignments"] += len(every)
        for ids in (every[start : start + BATCH] for start in range(0, len(every), BATCH)):
            margins, rounding = model.margins(form, ids)
            leads = (margins - rounding).min(axis=1)
            worst = int(leads.argmin())
            if not leads[worst] > 0:
                disagree(describe(ids[worst], margins[worst], leads[worst], plans, rule, tokens["symbols"]))
            found["smallest_margin"] = min(found["smallest_margin"], float(margins.min()))
            found["largest_rounding"] = max(found["largest_rounding"], float(rounding.max()))
            found["smallest_slack"] = min(found["smallest_slack"], float(leads[worst]))
    for key in COMPARED:
        say(key.replace("_", " "), f"{found[key]:.10g}; {data[key]:.10g} in the certificate")
    for identity in data["identities"]:
        fails = identity_fails(identity, rule)
        say("identity", f"{identity['statement']}: {'does not hold' if fails else 'holds'}")
        if fails:
            disagree(f"the identity {identity['statement']!r} does not hold at {fails}")
    for key in COMPARED:
        if not math.isclose(found[key], data[key], rel_tol=0 if key == "assignments" else 1e-6):
            disagree(f"{key} is {found[key]!r}, but {data[key]!r} in the certificate")


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks the certificate that the command line names; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m abc_toolkit.checker", description="Checks a certificate anew.")
    parser.add_argument("certificate", type=Path, help="certificate.json")
    parser.add_argument("--weights", type=Path, help="default: ../retrain/weights.safetensors beside its folder")
    parser.add_argument("--window", type=Path, help="default: ../retrain/window.json beside its folder")
    chosen = parser.parse_args(arguments)
    beside = chosen.certificate.absolute().parent.parent / "retrain"
    weights, window = chosen.weights or beside / "weights.safetensors", chosen.window or beside / "window.json"
    try:
        check(chosen.certificate, weights, window, lambda heading, text: print(f"{heading:<17} {text}", flush=True))
    except (Outcome, RecursionError) as error:
        outcome = error if isinstance(error, Outcome) else Outcome("a file is nested too deep: write it anew", 2)
        print(outcome.line, file=sys.stderr if outcome.status == 2 else sys.stdout)
        return outcome.status
    print("agrees")
    return 0


if __name__ == "__main__":
    sys.exit(main())
