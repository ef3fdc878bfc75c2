"""Checks a certificate anew: `python -m abc_toolkit.checker CERTIFICATE [--weights FILE] [--window FILE]`.

It needs NumPy and the standard library, imports nothing of the toolkit, and is slow rather than clever. The sections of
this file are its steps:

1. It reads the three files, and refuses what is not well formed.
2. It derives the *bound of sizes*: larger problems bring no new prediction.
3. It builds each layout up to the bound token by token, and finds the *receptive field* of each prediction: its
   *leaves*, the tokens that it depends on, and how it depends on them. Predictions that are the same function of their
   leaves are of one *kind*.
4. It runs the rule, a transducer over places, to find every *assignment* of a kind: the tokens that the leaves can hold
   in some problem, and the token that is then required.
5. It computes the logits of every assignment in float64, with a bound of their float32 error.
6. It checks the identities that say what the rule computes, on the rule's table.
7. It compares all results with the certificate.

It trusts that the certificate's layout and rule are those of the task: compare them by eye. The exit status is 0 where
everything agrees, 1 where something does not, 2 for bad input, and 3 where it cannot decide.
"""

import argparse
import functools
import hashlib
import itertools
import json
import math
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MOST_PREDICTIONS = 3_000_000  # sizes and tokens of all layouts
MOST_ROWS = 30_000_000  # assignments of one kind
TOO_MANY = f"a kind has more than {MOST_ROWS} assignments, which exceeds the budget"
BATCH = 1024  # assignments that go through the model at once
CARTESIAN = ("place", "index", "row", "column")
COORDINATES = (*CARTESIAN, "raw", "raw_from_end", "segment")
# Of each backbone, the sites of the attentions in a layer, and the name of each in the weights. A decoder-only model
# reads source and prefix as one string.
ATTENTIONS: dict[str, dict[str, dict[str, str]]] = {
    "encoder-decoder": {"encoder": {"encoder": "self"}, "decoder": {"decoder": "self", "cross": "cross"}},
    "decoder-only": {"encoder": {}, "decoder": {"decoder": "self"}},
}
# Parameters that a model does without; `Model._fill` says what stands in their place.
SAVINGS = ("biases", "thresholds", "output", "arc", "scores", "values", "feedforward")
HASHED = ("architecture", "task", "tokens", "positions", "layout", "rule", "identities")
COMPARED = ("assignments", "smallest_margin", "largest_rounding", "smallest_slack")
U = 2.0**-24  # rounding of float32
EXP = 32 * 2.0**-23  # error of its exponential function
SAFELY = 1 + 1e-6  # norms of matrices are rounded themselves
HUGE = 1e18  # below this, squares do not overflow in float32
TINY = 2.0**-100  # more than underflow takes from a vector


class Outcome(Exception):  # noqa: N818
    """Ends the check, with a line to say and the exit status."""


def require(good: bool, line: str, remedy: str = "write the certificate anew") -> None:
    """Refuses input that is not good."""
    if not good:
        raise Outcome(f"{line}: {remedy}", 2)


def decide(can: bool, line: str) -> None:
    """Ends the check where the argument does not cover the certificate."""
    if not can:
        raise Outcome(f"cannot decide: {line}", 3)


def agree(does: bool, line: str) -> None:
    """Ends the check where the certificate is wrong."""
    if not does:
        raise Outcome(f"does NOT agree: {line}", 1)


# 1. Files ------------------------------------------------------------------------------------------------------------

# Patterns of JSON: a dict is an object with at least these fields, a list is a list of any length with one pattern, a
# type or a tuple is a value of that type or of one of these types, a set or a range is one of these values.
NUMBER, TEXT, COUNT, WHOLE = (int, float), (str, type(None)), range(2**15), range(1, 2**15)
CERTIFICATE: Any = {
    "schema": int, "argument": int, "verdict": str, "task": dict,
    "architecture": {
        "num_encoder_layers": COUNT, "num_decoder_layers": COUNT, "model_dim": WHOLE, "num_heads": WHOLE,
        "feedforward_dim": WHOLE, "norm": {"pre", "post", "none"}, "backbone": str, "position": dict,
    },
    "tokens": {"count": range(3, 2**15), "bos": {0}, "eos": {1}, "first_symbol": {2}, "symbols": str},
    "positions": [
        {"coordinates": [{*COORDINATES}], "base": NUMBER, "period": range(1, 10**6),
         "channels": {"interleaved", "concatenated"}},
    ],
    "layout": {"segments": [str], "least": [COUNT],
               "cases": [{"where": [(int, dict)], "start": dict, "source": [dict], "target": [dict]}]},
    "rule": {
        "along": {"place", "index"}, "base": WHOLE, "num_states": WHOLE, "starts": [COUNT], "ends": [bool],
        "least_constant": COUNT, "table": list,
        "reads": [{"name": str, "role": {"operand", "constant", "answer"}, "segment": str, "row": (int, type(None)),
                   "shift": int}],
    },
    "identities": [{"kind": str, "statement": str}],
    "hashes": dict.fromkeys(("weights", "window", *HASHED), str), "bound": {"sizes": dict},
    "kinds": int, "assignments": int, "smallest_margin": NUMBER, "largest_rounding": NUMBER, "smallest_slack": NUMBER,
}  # fmt: skip
WINDOW: Any = {
    "num_encoder_layers": int, "num_decoder_layers": int, "num_heads": int,
    "rules": [
        {"site": {"encoder", "decoder", "cross"}, "layer": COUNT, "head": COUNT, "key_segment": TEXT,
         "query_segment": TEXT, "bias": NUMBER, "fallback": bool,
         "conditions": [{"key": {*COORDINATES}, "equals": int, "query": {*COORDINATES, None}}]},
    ],
}  # fmt: skip
REPEAT: Any = {"repeat": (int, dict), "variable": str, "items": [dict]}
TENSOR: Any = {"dtype": str, "shape": [range(2**31)], "data_offsets": [int]}


def fits(value: Any, pattern: Any, name: str, remedy: str = "write the certificate anew") -> None:
    """Refuses JSON that does not match a pattern."""
    if isinstance(pattern, dict):
        fits(value, dict, name, remedy)
        for key, inside in pattern.items():
            require(key in value, f"{name} has no field {key!r}", remedy)
            fits(value[key], inside, f"{name}, {key}", remedy)
    elif isinstance(pattern, list):
        fits(value, list, name, remedy)
        for number, inside in enumerate(value):
            fits(inside, pattern[0], f"{name} {number}", remedy)
    elif isinstance(pattern, (set, range)):
        fits(value, tuple({type(each) for each in pattern}) if isinstance(pattern, set) else int, name, remedy)
        require(value in pattern, f"{name} is {repr(value)[:40]}, which is not allowed", remedy)
    else:  # `type`, as `true` is no number
        good = type(value) in (pattern if isinstance(pattern, tuple) else (pattern,))
        require(good, f"{name} is {repr(value)[:40]}, of the wrong type", remedy)


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
        raise Outcome(f"{name} is not JSON with finite numbers ({reason}): write it anew", 2) from error


def read_tensors(data: bytes, name: str) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file, in float64; the file must hold finite float32 numbers only."""
    size = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else len(data)
    require(size <= len(data) - 8, f"{name} is not a complete safetensors file", "copy it anew")
    header, raw = read_json(data[8 : 8 + size], name), data[8 + size :]
    fits(header, dict, f"the header of {name}", "copy it anew")
    tensors = {}
    for tensor, entry in header.items():
        if tensor != "__metadata__":
            where = f"{name}, tensor {tensor}"
            fits(entry, TENSOR, where, "copy it anew")
            require(entry["dtype"] == "F32", f"{where} is of type {entry['dtype']}", "only float32 (F32) is checked")
            first, last = entry["data_offsets"] if len(entry["data_offsets"]) == 2 else (0, -1)
            whole = 0 <= first <= last <= len(raw) and last - first == 4 * math.prod(entry["shape"])
            require(whole, f"{where} does not fit the file", "copy it anew")
            numbers = np.frombuffer(raw[first:last], "<f4").reshape(entry["shape"]).astype(np.float64)
            good = bool(np.isfinite(numbers).all())
            require(good, f"{where} holds numbers that are not finite", "such a model computes nothing; retrain it")
            tensors[tensor] = numbers
    return tensors


@dataclass(frozen=True)
class Expr:
    """A linear expression: pairs of a symbol and its factor, sorted and none 0; the symbol "" stands for 1."""

    terms: tuple[tuple[str, int], ...] = ()

    @classmethod
    def from_value(cls, value: int | str | dict[str, int]) -> "Expr":
        """The expression of a number, of a symbol, or of the factors of symbols."""
        factors = value if isinstance(value, dict) else {value: 1} if isinstance(value, str) else {"": value}
        return cls(tuple(sorted((symbol, factor) for symbol, factor in factors.items() if factor)))

    def __add__(self, other: "Expr | int") -> "Expr":
        more = other if isinstance(other, Expr) else Expr.from_value(other)
        return Expr.from_value(
            {symbol: self.factor(symbol) + more.factor(symbol) for symbol, _ in self.terms + more.terms}
        )

    def __mul__(self, times: int) -> "Expr":
        return Expr.from_value({symbol: times * factor for symbol, factor in self.terms})

    def __sub__(self, other: "Expr | int") -> "Expr":
        return self + other * -1

    def put(self, values: "dict[str, Expr]") -> "Expr":
        """The expression with its symbols replaced by expressions."""
        return sum((values.get(symbol, Expr.from_value(symbol)) * factor for symbol, factor in self.terms), Expr())

    def at(self, values: dict[str, int]) -> int:
        """The value of the expression."""
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
    """One token of a layout's description: a token for each round of the repeats around it."""

    string: str  # "source" or "target"
    segment: str
    coordinates: dict[str, Any]  # `None` where not linear; "held raw": what a token has as a key of the decoder
    values: tuple[int, ...]  # token ids that it can hold
    loops: Loops  # the repeats around it
    address: tuple[int, ...]  # its indices in the nested lists of the case's string


@dataclass(frozen=True, eq=False)
class Repeat:
    """Items that are repeated."""

    count: Expr
    variable: str
    nodes: "Nodes"


Nodes = list[Item | Repeat]


class Case(NamedTuple):
    """A case of the family of layouts: it holds for sizes that make all expressions of `where` >= 0."""

    where: list[Expr]
    source: Nodes
    start: Item
    target: Nodes

    @property
    def string(self) -> Nodes:
        """Source, start token and target, one after the other."""
        return [*self.source, self.start, *self.target]


def flat(nodes: Nodes) -> Iterator[Item]:
    """All items, in order."""
    for node in nodes:
        yield from [node] if isinstance(node, Item) else flat(node.nodes)


class Family:
    """The family of layouts, read from the certificate.

    Where the model reads source and prefix as one string, `raw` and `raw_from_end` count through that string.
    """

    def __init__(self, data: Any, num_tokens: int, one_string: bool = False) -> None:
        self.segments, self.least = data["segments"], data["least"]
        self.sizes = [f"s{i}" for i in range(len(self.least))]
        self.item = {
            "segment": {*self.segments},
            "values": [range(num_tokens)],
            **dict.fromkeys(CARTESIAN, (int, dict)),
        }
        self.cases: list[Case] = []
        for number, case in enumerate(data["cases"]):
            name = f"layout, case {number}"
            source = self._nodes(case["source"], "source", name)
            start, *target = self._nodes([case["start"], *case["target"]], "target", name, first=len(source))
            last = target[-1] if target else start
            good = isinstance(start, Item) and start.segment == "start" and start.values == (0,)
            if "end" in self.segments:
                good = good and isinstance(last, Item) and last.values == (1,)
            require(good, f"{name}: the target does not begin with token 0 of 'start' and end in token 1")
            strings = [[*source, start, *target]] if one_string else [source, [start, *target]]
            for string in strings:
                whole = count_through(string, Expr())
                for item in flat(string):
                    # A query of the target holds the token before the one that it predicts, and none holds the last.
                    ahead, not_held = int(item.string == "target"), int(string is not source)
                    if (at := item.coordinates["held raw"]) is not None:
                        item.coordinates["raw"] = at - ahead
                    if at is not None and whole is not None:
                        item.coordinates["held raw_from_end"] = whole - not_held - at - 1
                        item.coordinates["raw_from_end"] = item.coordinates["held raw_from_end"] + ahead
            where = [self._expr(expr, (), name) for expr in case["where"]]
            self.cases.append(Case(where, source, next(flat([start])), target))

    def _expr(self, data: Any, loops: Loops, name: str) -> Expr:
        terms = data if isinstance(data, dict) else {"": data}
        known = {"", *self.sizes, *(variable for variable, _ in loops)}
        good = all(type(factor) is int and abs(factor) <= 2**36 for factor in terms.values()) and set(terms) <= known
        require(good, f"{name}: {str(data)[:60]} is no linear expression of the sizes and the variables around it")
        return Expr.from_value(terms)

    def _nodes(
        self, data: Any, string: str, name: str, loops: Loops = (), address: tuple[int, ...] = (), first: int = 0
    ) -> Nodes:
        nodes: Nodes = []
        for number, node in enumerate(data, first):
            here = *address, number
            if "repeat" in node:
                fits(node, REPEAT, name)
                variable, count = node["variable"], self._expr(node["repeat"], loops, name)
                new = variable not in {"", *self.sizes, *(other for other, _ in loops)} and variable[0] != "?"
                good = len(loops) < 2 and new and bool(node["items"])
                require(good, f"{name}: the repeat over {variable!r} is nested three deep, is empty, or reuses a name")
                inside = self._nodes(node["items"], string, name, (*loops, (variable, count)), here)
                nodes.append(Repeat(count, variable, inside))
            else:
                fits(node, self.item, name)
                require(bool(node["values"]), f"{name}: a token has no values")
                coordinates: dict[str, Any] = dict.fromkeys((*COORDINATES, "held raw", "held raw_from_end"))
                coordinates |= {key: self._expr(node[key], loops, name) for key in CARTESIAN}
                coordinates["segment"] = Expr.from_value(self.segments.index(node["segment"]))
                nodes.append(Item(string, node["segment"], coordinates, tuple(node["values"]), loops, here))
        return nodes

    def case_of(self, sizes: dict[str, int]) -> Case | None:
        """The case of some sizes, if there is one."""
        return next((case for case in self.cases if all(expr.at(sizes) >= 0 for expr in case.where)), None)


def count_through(nodes: Nodes, before: Expr | None) -> Expr | None:
    """Sets the number of tokens before each item, and returns the number of all tokens; `None` if it is not linear."""
    for node in nodes:
        if isinstance(node, Item):
            node.coordinates["held raw"] = before
            before = None if before is None else before + 1
        else:
            once = count_through(node.nodes, Expr())
            if before is None or once is None or once.symbols:
                before = count_through(node.nodes, None)
            else:
                count_through(node.nodes, before + Expr.from_value(node.variable) * once.factor(""))
                before = before + node.count * once.factor("")
    return before


def unique_rows(rows: np.ndarray) -> np.ndarray:
    """Distinct rows, sorted."""
    if not rows.size:
        return rows[:1]
    rows = rows[np.lexsort(rows.T[::-1])]
    return rows[np.append(True, (rows[1:] != rows[:-1]).any(axis=1))]


class Rule:
    """The transducer, read from the certificate."""

    def __init__(self, data: Any, num_tokens: int) -> None:
        self.along, self.base, self.num_states = data["along"], data["base"], data["num_states"]
        self.starts, self.ends, self.reads = data["starts"], np.array(data["ends"]), data["reads"]
        self.least_constant = data["least_constant"]
        self.operands, self.constants, self.answers = (
            [i for i, read in enumerate(self.reads) if read["role"] == role]
            for role in ("operand", "constant", "answer")
        )
        good = self.least_constant < self.base <= num_tokens - 2 and len(self.ends) == self.num_states
        require(
            good and max(self.starts, default=0) < self.num_states,
            "rule: its base, least constant, states and ends do not fit together",
        )
        shape = (self.num_states, *[self.base] * len(self.operands))
        shape += (*[self.base - self.least_constant] * len(self.constants), 1 + len(self.answers))
        try:
            self.table = np.array(data["table"])
        except ValueError:
            self.table = np.zeros(0)
        good = self.table.shape == shape and self.table.dtype.kind == "i"
        require(good, f"rule: its table is not an array of integers of the shape {shape}")
        most = [self.num_states - 1] + [num_tokens - 3] * len(self.answers)
        good = bool((self.table >= 0).all() and (self.table <= most).all())
        require(good, "rule: its table holds an unknown state or symbol")
        self.digits = [range(self.base)] * len(self.operands)  # that each operand can have
        for number, read in enumerate(self.reads[i] for i in self.operands):
            if "values" in read:
                fits(read["values"], [range(self.base)], f"rule: the values of {read['name']}")
                self.digits[number] = read["values"]
        self.held = [self.reads[i].get("values", range(self.base)) for i in self.constants]
        for number, values in enumerate(self.held):
            fits(list(values), [range(self.base)], f"rule: the values of {self.reads[self.constants[number]]['name']}")
        values = range(self.least_constant, self.base)
        self.constant_values = list(itertools.product(values, repeat=len(self.constants)))
        cycles = [self.cycle(present) for present in itertools.product((False, True), repeat=len(self.operands))]
        self.first, self.period = max(first for first, _ in cycles), math.lcm(*(period for _, period in cycles))
        self.ended: dict[tuple[int, ...], set[int]] = {}  # last states of the runs so far, by the constants
        self.gaps: set[int] = set()  # answers without a token at some place of the layouts so far

    def check_values(self, family: Family) -> None:
        """Refuses values of an operand or a constant that its tokens, or its segment's answers, do not keep to."""
        symbols = {i: set(self.table[..., 1 + number].flat) for number, i in enumerate(self.answers)}
        for i, digits in zip(self.operands + self.constants, [*self.digits, *self.held], strict=True):
            read, held = self.reads[i], {digit + 2 for digit in digits}
            if "values" not in read:
                continue
            for item in (item for case in family.cases for item in flat(case.source)):
                good = item.segment != read["segment"] or held.issuperset(item.values)
                require(good, f"rule: {read['name']} has values that not all tokens of {item.segment!r} keep to")
            for answer in (answer for answer in self.answers if self.reads[answer]["segment"] == read["segment"]):
                good = symbols[answer].issubset(digits)
                require(good, f"rule: {read['name']} has values that {self.reads[answer]['name']} does not keep to")

    def step(self, state: int, digits: Sequence[int], constants: Sequence[int]) -> tuple[int, dict[int, int]]:
        """The next state, and the symbols of operands and answers by the number of their read."""
        then, *written = self.table[(state, *digits, *(value - self.least_constant for value in constants))].tolist()
        return then, dict(zip(self.operands + self.answers, [*digits, *written], strict=True))

    def cycle(self, present: tuple[bool, ...]) -> tuple[int, int]:
        """The first power from which on the relation of states is periodic, and its period, for all constants."""
        first, period = 0, 1
        for constants in self.constant_values:
            matrix = np.zeros((self.num_states, self.num_states), bool)
            matrix[tuple(ways(self, present, (), constants).T)] = True
            power, seen = np.eye(self.num_states, dtype=bool), {}
            while power.tobytes() not in seen:
                seen[power.tobytes()] = len(seen)
                power = power @ matrix
            first = max(first, seen[power.tobytes()])
            period = math.lcm(period, len(seen) - seen[power.tobytes()])
        return first, period


@functools.cache
def ways(rule: Rule, present: tuple[bool, ...], wanted: tuple[int, ...], constants: tuple[int, ...]) -> np.ndarray:
    """All steps at a place, a row each: the state, the symbols of the wanted reads, and the next state.

    Operands that are not present have no digit at the place, and read 0.
    """
    rows, digits = [], [own if there else [0] for own, there in zip(rule.digits, present, strict=True)]
    for state, *read in itertools.product(range(rule.num_states), *digits):
        then, symbols = rule.step(state, read, constants)
        rows.append((state, *(symbols[i] for i in wanted), then))
    return unique_rows(np.array(rows, np.int16))


class Window:
    """The window: the rules of each site, layer and head."""

    def __init__(self, data: Any, architecture: dict[str, Any]) -> None:
        remedy = "give this model's window"
        fits(data, WINDOW, "window", remedy)
        data = {"backbone": "encoder-decoder"} | data
        for key in ("backbone", "num_encoder_layers", "num_decoder_layers", "num_heads"):
            good = data[key] == architecture[key]
            require(good, f"window: {key} is {str(data[key])[:40]}, but {architecture[key]} in the certificate", remedy)
        self.rules = [{"query_string": None, **rule} for rule in data["rules"]]
        sides, strings = ATTENTIONS[data["backbone"]], (None, "source", "target")
        layers = {site: data[f"num_{side}_layers"] for side, sites in sides.items() for site in sites}
        for number, rule in enumerate(self.rules):
            rule["name"] = f"window, rule {number}"
            good = rule["layer"] < layers.get(rule["site"], 0) and rule["head"] < data["num_heads"]
            require(good, f"{rule['name']}: there is no such site, layer or head", remedy)
            good = rule["query_string"] in (strings if data["backbone"] == "decoder-only" else (None,))
            string = repr(rule["query_string"])[:40]
            require(good, f"{rule['name']}: query_string is {string}, which no query of this backbone has", remedy)

    def at(self, site: str, layer: int) -> list[Any]:
        """The rules of all heads of a layer."""
        return [rule for rule in self.rules if (rule["site"], rule["layer"]) == (site, layer)]


# 2. The bound of sizes -----------------------------------------------------------------------------------------------

Known = frozenset[Expr]  # expressions that are >= 0 wherever a token is in a receptive field


class Token(NamedTuple):
    """A token of a family of layouts: an item, with the value of the variable of each repeat around it."""

    item: Item
    values: tuple[Expr, ...]

    @classmethod
    def any_of(cls, item: Item, name: str) -> "Token":
        """All tokens of an item as one: each variable is a symbol of its own."""
        once = Expr.from_value(1)  # the variable of a repeat of one round is 0
        return cls(
            item, tuple(Expr() if c == once else Expr.from_value(f"?{name} {n}") for n, (_, c) in enumerate(item.loops))
        )

    @property
    def bound(self) -> dict[str, Expr]:
        return {variable: value for (variable, _), value in zip(self.item.loops, self.values, strict=True)}

    def coordinate(self, name: str) -> Any:
        expr = self.item.coordinates[name]
        return None if expr is None else expr.put(self.bound)

    def left(self, number: int) -> Expr:
        """The number of rounds that a repeat around it has left after its own round."""
        return self.item.loops[number][1].put(self.bound) - 1 - self.values[number]

    def ranges(self) -> list[Expr]:
        """Expressions that are all >= 0 if the token exists."""
        return [*self.values, *(self.left(number) for number in range(len(self.values)))]


# A token or none, expressions that are then >= 0, and the facts that decide it.
Way = tuple[Token | None, list[Expr], list[Expr]]


def possible(known: Iterable[Expr]) -> bool:
    """Whether integers >= 0 for the symbols can make all expressions >= 0 (Bellman-Ford).

    Expressions that are no differences are ignored.
    """
    edges: set[tuple[str, str, int]] = set()
    for expr in known:
        if expr.is_difference:
            plus, minus = (next((s for s in expr.symbols if expr.factor(s) == sign), "") for sign in (1, -1))
            edges |= {(plus, minus, expr.factor(""))}  # minus <= plus + constant
            edges |= {(symbol, "", 0) for symbol in expr.symbols}
    highest = {symbol: 0 for edge in edges for symbol in edge[:2]}
    for _ in range(len(highest) + 1):
        before = dict(highest)
        for plus, minus, most in edges:
            highest[minus] = min(highest[minus], highest[plus] + most)
        if highest == before:
            return True
    return False


def zero(*exprs: Expr) -> list[Expr]:
    """Expressions that are all >= 0 if and only if the given ones are 0."""
    return [*exprs, *(expr * -1 for expr in exprs)]


def unknown(*exprs: Expr) -> bool:
    """Whether expressions hold a variable of a key that is not determined yet."""
    return any(symbol.startswith("?key") for expr in exprs for symbol in expr.symbols)


def solved(token: Token, equations: list[Expr]) -> tuple[Token, list[Expr]]:
    """Determines the unknown variables of a token by equations (each = 0); returns it and the equations left over."""
    values, rest = list(token.values), equations
    for symbol in (f"?key {n}" for n in range(len(values))):
        equation = next((each for each in rest if abs(each.factor(symbol)) == 1), Expr())
        # The factor is 1 or -1, so factor * (factor * unknown + others) = 0 gives the unknown.
        value = Expr.from_value(symbol) - equation * equation.factor(symbol)
        values, rest = ([expr.put({symbol: value}) for expr in exprs] for exprs in (values, rest))
    rest = [equation for equation in rest if equation.terms]
    decide(not unknown(*rest), f"conditions on {token.item.segment!r} do not determine its variables as integers")
    return Token(token.item, tuple(values)), rest


def visible(key: Token, query: Token) -> Iterator[tuple[list[Expr], list[Expr]]]:
    """The ways in which a query of the decoder may see a token: expressions that are then >= 0, and the facts.

    A query of the target sees the tokens before the one that it predicts. A query of the source sees itself too.
    """
    equals: list[Expr] = []
    facts: list[Expr] = []
    for n, (a, b) in enumerate(zip(key.item.address, query.item.address, strict=False)):
        same = a == b and n == len(query.values)
        if a < b or (same and query.item.string == "source"):
            yield equals, facts
        if a != b or same:
            return
        apart = query.values[n] - key.values[n]  # of a repeat that is around both
        facts = [*facts, apart]
        yield [*equals, apart - 1], facts
        equals = [*equals, *zero(apart)]


def in_turn(parts: Iterable[Iterable[Way]]) -> Iterator[Way]:
    """The ways in which some parts of a string have a first token."""
    conditions: list[Expr] = []
    facts: list[Expr] = []
    for part in parts:
        empty = None
        for token, more, noted in part:
            if token is None:
                empty = conditions + more, facts + noted
            else:
                yield token, conditions + more, facts + noted
        if empty is None:
            return
        conditions, facts = empty
    yield None, conditions, facts


class Prediction:
    """The facts that decide the kind and the assignments of a prediction, for an item of the target in a case."""

    def __init__(self, family: Family, number: int, item: Item, model: "Model", window: Window, rule: Rule) -> None:
        self.case, self.family, self.window, self.rule = family.cases[number], family, window, rule
        self.facts: set[Expr] = set()
        self.run_facts: set[Expr] = set()
        query = Token.any_of(item, "query")
        given = [*self.case.where, *query.ranges()]
        given += [Expr.from_value(size) - least for size, least in zip(family.sizes, family.least, strict=True)]
        self.ever = possible(given)
        if self.ever:
            self.note([expr for case in family.cases[:number] for expr in case.where])  # these must not hold anew
            self.note(given)
            self.leaves: set[tuple[Token, Known]] = set()
            self.follow(query, frozenset(given), model)
            self.compare_leaves()
            self.follow_run(query, frozenset(given))

    def note(self, facts: Iterable[Expr], of_run: bool = False) -> None:
        """Collects facts."""
        for fact in facts:
            decide(fact.is_difference, f"the comparison of {fact} with 0 is not one of two sizes or numbers of rounds")
            (self.run_facts if of_run else self.facts).add(fact)

    def follow(self, query: Token, given: Known, model: "Model") -> None:
        """Follows the receptive field down to the leaves, and notes the facts on the way."""
        held, source = [self.case.start, *flat(self.case.target)], list(flat(self.case.source))
        if not held[-1].loops:  # the last token of a repeat is left out by causal attention alone
            held.pop()
        read = [*source, *held] if model.one_string else held  # by the decoder's self-attention
        reached: set[tuple[Token, Known]] = set()  # streams of the source
        streams = {(query, given)}  # those of the target, by the token that each predicts
        self.leaves |= set(self.beside(query, -1, given))
        for layer in range(model.num_layers["decoder"])[::-1]:
            for token, known in list(streams | reached if model.one_string else streams):
                for rule in self.window.at("cross", layer):
                    reached |= self.opened(rule, token, known, source)
                for rule in self.window.at("decoder", layer):
                    for key, more in self.opened(rule, token, known, read):
                        if key.item.string == "source":
                            reached.add((key, more))
                            continue
                        self.leaves.add((key, more))
                        if layer or model.positions:
                            streams |= set(self.beside(key, 1, more))
        for layer in range(model.num_layers["encoder"])[::-1]:
            for token, known in list(reached):
                for rule in self.window.at("encoder", layer):
                    reached |= self.opened(rule, token, known, source)
        self.leaves |= reached
        used = {name for position in model.positions for name in position["coordinates"]}
        for token, _ in streams | reached:
            linear = all(token.coordinate(name) is not None for name in used)
            decide(linear, f"a position table takes a coordinate of {token.item.segment!r} that is not linear")

    def opened(self, rule: Any, query: Token, known: Known, items: list[Item]) -> set[tuple[Token, Known]]:
        """The keys that a rule of the window may open to a query, each with expressions that are then >= 0."""
        found, causal = set(), rule["site"] == "decoder"
        asked = rule["query_segment"] in (None, query.item.segment)
        if not asked or rule["query_string"] not in (None, query.item.string):
            return found
        for item in (item for item in items if rule["key_segment"] in (None, item.segment)):
            key, equations = Token.any_of(item, "key"), []
            for each in rule["conditions"]:
                name = f"held {each['key']}" if causal and each["key"].startswith("raw") else each["key"]
                compared = [query.coordinate(each["query"])] if each["query"] else []
                compared.append(key.coordinate(name))
                linear = None not in compared
                decide(linear, f"{rule['name']} compares a coordinate of {item.segment!r} that is not linear")
                equations.append((compared[0] - compared[1] if each["query"] else compared[0]) - each["equals"])
            if not possible([*known, *key.ranges(), *zero(*equations)]):
                continue
            key, rest = solved(key, equations)
            fixed = not unknown(*key.values)
            decide(fixed, f"{rule['name']} opens the more keys of {item.segment!r}, the longer the problem")
            for conditions, facts in visible(key, query) if causal else [([], [])]:
                now = known.union(key.ranges(), zero(*rest), conditions)
                if possible(now):
                    self.note([*key.ranges(), *rest, *facts])
                    found.add((key, now))
        return found

    def beside(self, token: Token, step: int, known: Known) -> list[tuple[Token, Known]]:
        """The tokens that may stand after (`step` 1) or before (-1) a token of the target: it depends on the sizes."""

        def first(nodes: Nodes, values: dict[str, Expr]) -> Iterator[Way]:
            return in_turn(first_of(node, values) for node in nodes[::step])

        def first_of(node: Item | Repeat, values: dict[str, Expr]) -> Iterator[Way]:
            if isinstance(node, Item):
                yield Token(node, tuple(values[symbol] for symbol, _ in node.loops)), [], []
            else:
                count = node.count.put(values)
                yield from round_of(node, values, Expr() if step == 1 else count - 1, count, count - 1)

        def round_of(node: Repeat, values: dict[str, Expr], number: Expr, left: Expr, fact: Expr) -> Iterator[Way]:
            """The first token of a round of a repeat, if a round is left, which the fact decides."""
            for token, more, noted in first(node.nodes, values | {node.variable: number}):
                empty = token is None and possible(known.union(more, [left - 1]))
                decide(not empty, "a round of a repeat may be empty")
                if token is not None:
                    yield token, [left - 1, *more], [fact, *noted]
            yield None, [left * -1], [fact]

        def beyond(nodes: Nodes, address: Sequence[int], values: dict[str, Expr]) -> Iterator[Way]:
            """The token after an address: in the same round, in the next round, or outside the repeat."""
            node, parts = nodes[address[0]], []
            if isinstance(node, Repeat):
                mine = token.bound[node.variable]
                left = node.count.put(values) - 1 - mine if step == 1 else mine
                parts.append(beyond(node.nodes, address[1:], values | {node.variable: mine}))
                parts.append(round_of(node, values, mine + step, left, left))
            return in_turn([*parts, first(nodes[address[0] + 1 :] if step == 1 else nodes[: address[0]], values)])

        found = []
        for other, conditions, facts in beyond(self.case.string, token.item.address, {}):
            if other is not None and possible(known.union(conditions)):
                found.append((other, known.union(conditions)))
                self.note(facts)
        return found

    def compare_leaves(self) -> None:
        """Notes the facts that decide the order of the leaves."""
        for (a, known), (b, more) in itertools.combinations(self.leaves, 2):
            both = known | more
            for n, (x, y) in enumerate(zip(a.values, b.values, strict=False)):
                if a.item.address[: n + 1] != b.item.address[: n + 1] or not possible(both):
                    break
                self.note([x - y])
                both = both.union(zero(x - y))

    def follow_run(self, query: Token, given: Known) -> None:
        """Notes the facts that decide the rule's run: which leaves it names, and the distances of its events."""
        events: set[tuple[Expr, Known]] = set()
        row = query.coordinate("row")
        for read in self.rule.reads:
            for token, known in [*self.leaves, (query, given)] if read["role"] == "answer" else self.leaves:
                fit = Expr() if read["row"] is None else row - token.coordinate("row") - read["row"]
                if read["segment"] == token.item.segment and possible(known.union(zero(fit))):
                    self.note([fit])
                    if read["role"] != "constant":
                        self.note([self.place(token, read)])
                        events.add((self.place(token, read), known.union(zero(fit))))
            for item in [*flat(self.case.source), *flat(self.case.target)]:
                if item.segment == read["segment"]:
                    ends = self.range_events(read, item, row, given)
                    events |= ends if read["role"] != "constant" else set()  # of it only counts whether it is there
        for (a, known), (b, more) in itertools.combinations(events, 2):
            if possible(known | more):
                self.note([a - b], True)
        self.note([event for event, _ in events], True)

    def place(self, token: Token, read: Any) -> Expr:
        """The place at which the rule reads a token."""
        return token.coordinate(self.rule.along) - read["shift"]

    def range_events(self, read: Any, item: Item, row: Expr, given: Known) -> set[tuple[Expr, Known]]:
        """The first and the last place at which the rule reads tokens of an item, in rows that fit."""
        token = Token.any_of(item, "key")
        fit = [] if read["row"] is None else [row - token.coordinate("row") - read["row"]]
        if not possible([*given, *token.ranges(), *zero(*fit)]):
            return set()
        token, rest = solved(token, fit)
        place, loops = self.place(token, read), range(len(token.values))
        free = [n for n in loops if token.values[n] == Expr.from_value(f"?key {n}")]
        then = [expr for n in loops if n not in free for expr in (token.values[n], token.left(n))]
        last = {f"?key {n}": token.left(n) + token.values[n] for n in free}
        moving = [symbol for symbol in last if place.factor(symbol)]
        one = len(moving) < 2 and all(abs(place.factor(key)) == 1 for key in moving)
        good = one and not unknown(*then, *last.values())
        decide(good, f"the places of {item.segment!r} are not a range of one variable")
        self.note([*rest, *then, *last.values()])
        ends = (dict.fromkeys(moving, Expr()), {symbol: last[symbol] for symbol in moving})
        return {(place.put(end), given.union(then, zero(*rest))) for end in ends}

    def bounds(self, period: int, first: int) -> dict[str, int]:
        """The bound of each size by the lemma: K (G + P) of the group of symbols that it is in."""
        component: dict[str, set[str]] = {}
        for fact in self.facts | self.run_facts:
            joined = set(fact.symbols).union(*(component.get(symbol, set()) for symbol in fact.symbols))
            component |= dict.fromkeys(joined, joined)
        bounds = {}
        for size in self.family.sizes:
            symbols = component[size]
            largest = max(abs(e.factor("")) for e in self.facts | self.run_facts if symbols.intersection(e.symbols))
            run = any(symbols.intersection(fact.symbols) for fact in self.run_facts)
            bounds[size] = len(symbols) * (2 * largest + 1 + (first if run else 0) + period)
        return bounds


def bound_of_sizes(family: Family, model: "Model", window: Window, rule: Rule) -> dict[str, int]:
    """The bound of each size."""
    period = math.lcm(rule.period, *(position["period"] for position in model.positions))
    bounds = dict(zip(family.sizes, family.least, strict=True))
    for number, case in enumerate(family.cases):
        for item in flat(case.target):
            prediction = Prediction(family, number, item, model, window, rule)
            if prediction.ever:
                found = prediction.bounds(period, rule.first)
                bounds = {size: max(bounds[size], found[size]) for size in bounds}
    return bounds


# 3. Layouts and receptive fields -------------------------------------------------------------------------------------

Placed = dict[str, Any]  # a token of a layout: its coordinates, and its item under "item"


class Form(NamedTuple):
    """How a prediction is computed from its leaves; predictions of a kind share it.

    A stream has the number of its leaf. A layer lists the streams that are needed after it. Each comes with the open
    streams and their biases, for every head of self-attention and of cross-attention.
    """

    encoder: tuple[Any, ...]
    decoder: tuple[Any, ...]
    residues: tuple[tuple[int, ...], ...]  # rows of the position tables at each leaf
    num_sources: int  # leaves of the source in an encoder-decoder; the decoder's follow, numbered from 0 again
    read: int  # the stream that is read out


def written(nodes: Nodes, values: dict[str, int]) -> Iterator[Placed]:
    """The tokens of a string, without `raw` and `raw_from_end`."""
    for node in nodes:
        if isinstance(node, Item):
            yield {"item": node, **{name: node.coordinates[name].at(values) for name in (*CARTESIAN, "segment")}}
        else:
            for number in range(node.count.at(values)):
                yield from written(node.nodes, values | {node.variable: number})


class Layout:
    """The layout of all problems of some sizes, with the keys that the window opens."""

    def __init__(self, case: Case, sizes: dict[str, int], model: "Model", window: Window, rule: Rule) -> None:
        self.sizes, self.model, self.rule = sizes, model, rule
        self.source, self.target = list(written(case.source, sizes)), list(written(case.target, sizes))
        prefix = [*written([case.start], sizes), *(dict(token) for token in self.target[:-1])]
        # The decoder's string, as queries and as keys.
        before = self.source if model.one_string else []
        self.first, self.asking, self.held = len(before), [*before, *self.target], [*before, *prefix]
        for string in (self.source, self.asking, self.held):
            for number, token in enumerate(string):
                token["raw"], token["raw_from_end"] = number, len(string) - 1 - number
        self.open: dict[tuple[str, int], list[Any]] = {}  # by query and head, the open keys and their biases
        for side, sites in model.attentions.items():
            for site, layer in itertools.product(sites, range(model.num_layers[side])):
                queries = self.source if side == "encoder" else self.asking
                keys = self.held if site == "decoder" else self.source
                rules = [[r for r in window.at(site, layer) if r["head"] == head] for head in range(model.num_heads)]
                heads = [open_keys(rules_of_head, queries, keys, site == "decoder") for rules_of_head in rules]
                self.open[site, layer] = list(zip(*heads, strict=True))

    def receptive_field(self, query: int) -> tuple[list[Placed], Form]:
        """The leaves and the form of the prediction of a target token."""

        def read(site: str, layer: int, queries: set[int]) -> set[int]:
            return {key for n in queries for head in self.open[site, layer][n] for key, _ in head}

        predicting = self.first + query
        needed, reached = {predicting}, set()
        passed: list[tuple[str, int, list[int]]] = []  # layers, from the last on, and the streams that each must give
        for layer in range(self.model.num_layers["decoder"])[::-1]:
            passed.append(("decoder", layer, sorted(needed)))
            if not self.model.one_string:
                reached |= read("cross", layer, needed)
            needed |= read("decoder", layer, needed)
        for layer in range(self.model.num_layers["encoder"])[::-1]:
            passed.append(("encoder", layer, sorted(reached)))
            reached |= read("encoder", layer, reached)
        source, own = ({n: leaf for leaf, n in enumerate(sorted(numbers))} for numbers in (reached, needed))
        leaf_of = {"encoder": source, "decoder": own, "cross": source}
        layers: dict[str, list[Any]] = {"encoder": [], "decoder": []}
        for side, layer, streams in passed[::-1]:
            layers[side].append([])
            for n in streams:
                opens = [(leaf_of[site], self.open[site, layer][n]) for site in self.model.attentions[side]]
                heads = [tuple(tuple((leaf[key], b) for key, b in head) for head in open_) for leaf, open_ in opens]
                layers[side][-1].append((leaf_of[side][n], *heads))
        residues = tuple(self.model.residues(self.source[n]) for n in source)
        residues += tuple(self.model.residues(self.asking[n]) for n in own)  # of the predicted token, if there is one
        encoder, decoder = (tuple(map(tuple, passes)) for passes in layers.values())
        form = Form(encoder, decoder, residues, len(source), own[predicting])
        return [self.source[n] for n in source] + [self.held[n] for n in own], form

    def places(self, row: int) -> tuple[list[set[int]], int]:
        """The places at which each operand has a digit, and the last place of the rule's run, for a predicted row."""
        there: list[set[int]] = [set() for _ in self.rule.reads]
        for places, read in zip(there, self.rule.reads, strict=True):
            for token in self.target if read["role"] == "answer" else self.source + self.target:
                place = 0 if read["role"] == "constant" else token[self.rule.along] - read["shift"]
                if place >= 0 and may_be(read, token, row):
                    new = place not in places
                    decide(new, f"two tokens are {read['name']!r} at place {place} ({named(self.sizes)})")
                    places.add(place)
        last = max((place for i in self.rule.operands + self.rule.answers for place in there[i]), default=-1)
        self.rule.gaps |= {i for i in self.rule.answers if there[i] and len(there[i]) <= last}
        return [there[i] for i in self.rule.operands], last


def may_be(read: Any, token: Placed, row: int) -> bool:
    """Whether the rule reads a token when it predicts a row."""
    return read["segment"] == token["item"].segment and read["row"] in (None, row - token["row"])


def open_keys(rules: list[Any], queries: list[Placed], keys: list[Placed], causal: bool) -> list[Any]:
    """The open keys of each query and their biases, in one head."""
    q, k = ({name: np.array([t[name] for t in tokens], int) for name in COORDINATES} for tokens in (queries, keys))
    biases = np.full((len(queries), len(keys)), -math.inf)
    for fallback in (False, True):
        asks = np.isinf(biases).all(axis=1, keepdims=True) | (not fallback)  # a fallback is for queries with none open
        for rule in (rule for rule in rules if rule["fallback"] == fallback):
            opens = asks & (np.tri(*biases.shape, dtype=bool) if causal else np.full(biases.shape, True))
            opens &= [[rule["query_segment"] in (None, token["item"].segment)] for token in queries]
            opens &= [[rule["query_string"] in (None, token["item"].string)] for token in queries]
            opens &= np.array([rule["key_segment"] in (None, token["item"].segment) for token in keys], bool)
            for each in rule["conditions"]:
                key, query = k[each["key"]], each["query"]
                opens &= (key if query is None else q[query][:, None] - key) == each["equals"]
            biases = np.where(opens, np.maximum(biases, rule["bias"]), biases)
    return [tuple((n, float(row[n])) for n in np.flatnonzero(row > -math.inf).tolist()) for row in biases]


# 4. Assignments ------------------------------------------------------------------------------------------------------


class Plan(NamedTuple):
    """Everything that the assignments of a prediction are computed from."""

    # The places from 0 on: which operands have a digit, which reads are shown by leaves, and the number of such places.
    steps: tuple[tuple[tuple[bool, ...], tuple[int, ...], int], ...]
    leaves: tuple[tuple[str, Any], ...]  # number of the told symbol, or of the constant, or the ids that it can hold
    required: tuple[str, Any]  # of the required token
    lacking: tuple[int, ...] = ()  # numbers of the constants that have no token; the rule reads the least value


def plan_of(layout: Layout, query: int, leaves: list[Placed], rule: Rule) -> Plan:
    """The plan of the prediction of a target token."""
    predicted = layout.target[query]
    told: set[tuple[int, int]] = set()  # places and reads

    def tells(token: Placed, reads: Iterable[int]) -> tuple[str, Any]:
        for i in reads:
            if may_be(rule.reads[i], token, predicted["row"]):
                if i in rule.constants:
                    return "constant", rule.constants.index(i)
                if (place := token[rule.along] - rule.reads[i]["shift"]) >= 0:
                    told.add((place, i))
                    return "told", (place, i)
        return "id", token["item"].values

    sources = [tells(token, range(len(rule.reads))) for token in leaves] + [tells(predicted, rule.answers)]
    if sources[-1][0] == "id":
        segment = predicted["item"].segment
        none = not any(may_be(rule.reads[i], predicted, predicted["row"]) for i in rule.answers)
        decide(none, f"the rule has no place for a token of {segment!r} ({named(layout.sizes)})")
        decide(len(sources[-1][1]) == 1, f"nothing says which token of {segment!r} is required")
    present, last = layout.places(predicted["row"])
    places = (
        (tuple(place in digits for digits in present), tuple(i for x, i in sorted(told) if x == place))
        for place in range(last + 1)
    )
    steps = []
    for (there, wanted), alike in itertools.groupby(places):
        times = len(list(alike))
        if not wanted and times > rule.first:  # powers of a relation repeat themselves
            times = rule.first + (times - rule.first) % rule.period
        steps.append((there, wanted, times))
    columns = {place_and_read: column for column, place_and_read in enumerate(sorted(told))}
    sources = [(how, columns[what] if how == "told" else what) for how, what in sources]
    tokens = layout.source + layout.target
    lacking = tuple(
        number
        for number, i in enumerate(rule.constants)
        if not any(may_be(rule.reads[i], token, predicted["row"]) for token in tokens)
    )
    return Plan(tuple(steps), tuple(sources[:-1]), sources[-1], lacking)


def joined(runs: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Runs (symbols so far, state) followed by all steps (state, symbols, next state) that fit."""
    parts = [np.zeros((0, runs.shape[1] + steps.shape[1] - 2), runs.dtype)]
    for state in np.unique(runs[:, -1]):
        mine, then = runs[runs[:, -1] == state, :-1], steps[steps[:, 0] == state, 1:]
        decide(len(mine) * len(then) <= MOST_ROWS, TOO_MANY)
        parts.append(np.hstack([np.repeat(mine, len(then), axis=0), np.tile(then, (len(mine), 1))]))
    return unique_rows(np.concatenate(parts))


def assignments(plan: Plan, rule: Rule) -> np.ndarray:
    """All assignments of a plan, a row each: the ids of the leaves, then that of the required token.

    If the required token is an answer, the last states of the runs are added to `rule.ended`.
    """
    sources = [*plan.leaves, plan.required]
    found = []
    for constants in rule.constant_values:
        if not all(
            value == rule.least_constant if number in plan.lacking else value in rule.held[number]
            for number, value in enumerate(constants)
        ):
            continue
        runs = np.array(rule.starts, np.int16)[:, None]
        for there, wanted, times in plan.steps:
            for _ in range(times):
                runs = joined(runs, ways(rule, there, wanted, constants))
        runs = runs[rule.ends[runs[:, -1]]]
        if plan.required[0] == "told":
            rule.ended.setdefault(constants, set()).update(np.unique(runs[:, -1]).tolist())
        ids = [what if how == "id" else (constants[what] + 2,) if how == "constant" else (0,) for how, what in sources]
        decide(len(runs) * math.prod(map(len, ids)) <= MOST_ROWS, TOO_MANY)
        for chosen in itertools.product(*ids):  # each run with all ids that the other leaves can hold
            rows = np.full((len(runs), len(sources)), chosen, np.int16)
            for column, (how, what) in enumerate(sources):
                if how == "told":
                    rows[:, column] = runs[:, what] + 2
            found.append(unique_rows(rows))
    return unique_rows(np.concatenate(found))


# 5. The model --------------------------------------------------------------------------------------------------------


def gamma(n: int) -> float:
    """The relative error of a sum of n products, in any order."""
    return n * U / (1 - n * U)


def norm(x: np.ndarray) -> np.ndarray:
    """The 2-norm of each row."""
    return np.sqrt(np.einsum("...i,...i", x, x))


class Bounded(NamedTuple):
    """Vectors, a row each, and bounds of the norm of their error in float32."""

    value: np.ndarray
    error: np.ndarray

    @property
    def size(self) -> np.ndarray:
        """A bound of the norm, error included."""
        return norm(self.value) + self.error

    def part(self, columns: slice) -> "Bounded":
        return Bounded(self.value[:, columns], self.error)


Streams = dict[int, Bounded]  # by number


class Model:
    """The model in float64, with bounds of its float32 errors."""

    def __init__(self, data: Any, positions: list[Any], num_tokens: int, tensors: dict[str, np.ndarray]) -> None:
        self.num_layers = {"encoder": data["num_encoder_layers"], "decoder": data["num_decoder_layers"]}
        self.dim, self.num_heads = data["model_dim"], data["num_heads"]
        self.pre, self.has_norms = data["norm"] != "post", data["norm"] != "none"
        self.positions, self.weights = positions, dict(tensors)
        self.savings = data.get("savings", [])
        fits(self.savings, [str], "architecture, savings")
        unknown_saving = next((saving for saving in self.savings if saving not in SAVINGS), None)
        decide(unknown_saving is None, f"nothing is known of the saving {unknown_saving!r}")
        good = "values" in self.savings or self.dim % self.num_heads == 0
        require(good, "architecture: model_dim is not a multiple of num_heads")
        good = "values" not in self.savings or "scores" in self.savings
        require(good, "architecture: heads that share their values have no scores")
        backbone = data["backbone"]
        decide(backbone in ATTENTIONS, f"the backbone {backbone!r} is another model than {' and '.join(ATTENTIONS)}")
        self.attentions, self.one_string = ATTENTIONS[backbone], backbone == "decoder-only"
        layers = self.num_layers["encoder"]
        good = not (self.one_string and layers)
        require(good, f"architecture: num_encoder_layers is {layers}, and a decoder-only model has none")
        methods = list(position_methods(data["position"]))
        for n, (name, settings) in enumerate(methods):
            known = name == "Cyclic" and n < len(positions)
            decide(known, f"the position method {name} has no periodic table")
            same = all(positions[n][key] == value for key, value in settings.items() if key in positions[n])
            require(same, "positions: a table differs from the architecture")
        require(len(methods) == len(positions), "positions: the architecture has fewer tables")
        for table in positions:
            require(bool(table["coordinates"]) and table["base"] >= 1, "positions: a table has no coordinate or base")
        self._check_shapes(num_tokens, data["feedforward_dim"])
        self._fill(num_tokens)
        for name in [name for name in tensors if ".key_value." in name]:
            for part, half in zip(("key", "value"), np.split(tensors[name], 2), strict=True):
                self.weights[name.replace("key_value", part)] = half
        matrices = {name.removesuffix(".weight"): x for name, x in self.weights.items() if x.ndim == 2}
        self.stretch = {name: float(np.linalg.norm(matrix, 2)) * SAFELY for name, matrix in matrices.items()}
        self.entries = {name: float(np.linalg.norm(abs(matrix), 2)) * SAFELY for name, matrix in matrices.items()}
        output = self.weights["output.weight"]
        self.apart = norm(output[:, None] - output) * SAFELY  # of the rows of each pair of tokens

    def _check_shapes(self, num_tokens: int, hidden: int) -> None:
        """Refuses tensors that are not this model's."""
        remedy, dim, saves = "give the weights of this model", self.dim, self.savings
        linear = {"output": (num_tokens, dim)}
        others: dict[str, tuple[int, ...]] = {"embedding.weight": (num_tokens, dim)}
        if "arc" in saves:
            others = {"embedding.arc": (3,)}
        norms = ["encoder_norm"] * (self.pre and self.num_layers["encoder"] > 0) + ["decoder_norm"] * self.pre
        for side, attentions in self.attentions.items():
            for layer in (f"{side}.{n}" for n in range(self.num_layers[side])):
                norms += [f"{layer}.{part}_norm" for part in (*attentions.values(), "feedforward")]
                linear |= {f"{layer}.feedforward.0": (hidden, dim), f"{layer}.feedforward.3": (dim, hidden)}
                if "feedforward" in saves:
                    others[f"{layer}.feedforward.3.scales"] = (hidden,)
                for part in (f"{layer}.{part}_attention" for part in attentions.values()):
                    if "scores" in saves:
                        linear[f"{part}.value"] = dim, dim
                    else:
                        linear |= {f"{part}.query": (dim, dim), f"{part}.key_value": (2 * dim, dim)}
                    if "values" in saves:
                        others[f"{part}.scales"] = (self.num_heads - 1,)
                    else:
                        linear[f"{part}.output"] = dim, dim
        own = [name for name in linear if not self._tied(name)]
        shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": linear[name] for name in own} | others
        self.biases = {f"{name}.bias": shape[0] for name, shape in linear.items()}
        self.biases |= {f"{name}.bias": dim for name in norms if self.has_norms}
        kept = [name for name in self.biases if not self._without_bias(name)]
        shapes |= {name: (self.biases[name],) for name in kept}
        shapes |= {f"{name}.weight": (dim,) for name in norms if self.has_norms}
        for name, shape in shapes.items():
            require(name in self.weights, f"the weights have no tensor {name}", remedy)
            found = self.weights[name].shape
            require(found == shape, f"the tensor {name} has the shape {found}, not {shape}", remedy)
        more = min(set(self.weights) - set(shapes), default="")
        require(not more, f"the weights hold {more}, which is not a tensor of this model", remedy)

    def _tied(self, name: str) -> bool:
        """Whether the matrix of a linear layer is another's."""
        by = "output" if name == "output" else "feedforward" if name.endswith(".feedforward.3") else ""
        return by in self.savings

    def _without_bias(self, name: str) -> bool:
        """Whether a bias is left out."""
        return ("thresholds" if name.endswith(".feedforward.0.bias") else "biases") in self.savings

    def _fill(self, num_tokens: int) -> None:
        """Adds to the weights what stands in the place of parameters that are saved.

        Biases are 0. Token t is embedded at the angle first + t step of a circle in the first two dimensions. The
        output's matrix is the embedding's; the second matrix of a feed-forward block is the first's, transposed, with a
        scale for each unit. What has no query and key gives all open keys the same logit. Heads that share their values
        are added, each but the first times a scale.
        """
        weights = self.weights
        for name, size in self.biases.items():
            weights.setdefault(name, np.zeros(size))
        if "arc" in self.savings:
            radius, first, step = weights["embedding.arc"]
            angles = first + step * np.arange(num_tokens)
            weights["embedding.weight"] = np.zeros((num_tokens, self.dim))
            require(self.dim >= 2, "architecture: an arc needs two dimensions")
            weights["embedding.weight"][:, :2] = radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        if "output" in self.savings:
            weights["output.weight"] = weights["embedding.weight"]
        for name in [name for name in weights if name.endswith(".feedforward.3.scales")]:
            layer = name.removesuffix(".3.scales")
            weights[f"{layer}.3.weight"] = weights[f"{layer}.0.weight"].T * weights[name]

    def check_overflow(self, window: Window) -> None:
        """Ends the check if a number might overflow in float32, for any tokens, read or not.

        An overflow at a closed key would make the query's stream NaN, as 0 times infinity is. Each number on the way is
        at most the 2-norm of a vector, which is bounded here in exact arithmetic; float32 at most doubles it.
        """
        root, sizes = math.sqrt(self.dim), [abs(rule["bias"]) for rule in window.rules]

        def linear(name: str, size: float) -> float:
            sizes.append(self.entries[name] * size + float(norm(self.weights[f"{name}.bias"])))
            return sizes[-1]

        def normed(name: str, size: float) -> float:
            if not self.has_norms:
                return size
            # Of a vector that is nearly constant, float32 may leave nothing but rounding errors.
            left = root + 4 * gamma(self.dim + 8) * size / math.sqrt(1e-5)
            sizes.append(float(abs(self.weights[f"{name}.weight"]).max() * left + norm(self.weights[f"{name}.bias"])))
            return sizes[-1]

        waves = sum(len(table["coordinates"]) for table in self.positions)
        embedded = encoded = root * float(norm(self.weights["embedding.weight"]).max() + waves)
        for side, attentions in self.attentions.items():
            stream = embedded
            for name in (f"{side}.{n}" for n in range(self.num_layers[side])):
                for part in (*attentions.values(), "feedforward"):
                    inside = normed(f"{name}.{part}_norm", stream) if self.pre else stream
                    if part == "feedforward":
                        update = linear(f"{name}.feedforward.3", linear(f"{name}.feedforward.0", inside))
                    else:
                        attention, read = f"{name}.{part}_attention", encoded if part == "cross" else inside
                        logit, value = 0.0, linear(f"{attention}.value", read)
                        if "scores" not in self.savings:
                            logit = linear(f"{attention}.query", inside) * linear(f"{attention}.key", read)
                        if "values" in self.savings:
                            update = mixed = float(abs(self.scales(attention)).sum()) * value
                        else:
                            mixed = math.sqrt(self.num_heads) * value
                            update = linear(f"{attention}.output", mixed)
                        sizes += [logit, mixed]
                    sizes += [stream, stream + update]
                    stream = stream + update if self.pre else normed(f"{name}.{part}_norm", stream + update)
            encoded = normed(f"{side}_norm", stream) if f"{side}_norm.weight" in self.weights else stream
        sizes += [embedded, linear("output", encoded)]  # the decoder's own by now
        safe = all(2 * size <= HUGE for size in sizes)
        decide(safe, f"float32 may overflow, as the weights or biases allow numbers up to {max(sizes):.3g}")

    def residues(self, token: Placed) -> tuple[int, ...]:
        """The rows of the position tables for a token."""
        return tuple(token[name] % table["period"] for table in self.positions for name in table["coordinates"])

    def embed(self, residues: tuple[int, ...], ids: np.ndarray) -> Bounded:
        """The embeddings of some tokens at a leaf, with its position vectors."""
        x = self.weights["embedding.weight"][ids] * math.sqrt(self.dim)
        left, error = list(residues), 0.0
        for table in self.positions:
            frequencies = np.exp(-math.log(table["base"]) * np.arange(0, self.dim, 2) / self.dim)
            added, count = np.zeros(self.dim), len(table["coordinates"])
            for k in range(count):
                angles = left.pop(0) * frequencies
                waves = np.stack([np.sin(angles), np.cos(angles)], axis=1).ravel()[: self.dim]
                added += np.roll(waves, self.dim * k // count)
            x = x + (np.concatenate([added[0::2], added[1::2]]) if table["channels"] == "concatenated" else added)
            error += U * math.sqrt(self.dim) * (8 + 4 * table["period"]) * count
        return Bounded(x, 4 * U * norm(x) + error + TINY)

    def linear(self, name: str, x: Bounded) -> Bounded:
        """A linear layer."""
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        rounding = gamma(weight.shape[1] + 2) * (self.entries[name] * x.size + norm(bias))
        return Bounded(x.value @ weight.T + bias, self.stretch[name] * x.error + rounding + TINY)

    def layer_norm(self, name: str, x: Bounded) -> Bounded:
        """Layer normalisation, where there is one."""
        if not self.has_norms:
            return x
        weight, bias, d = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], self.dim
        n, _, least = normalised(x)
        drift = 4 * gamma(d + 8) * x.size**2 / d / least**2  # of the variance
        off = x.error / least + (drift + 8 * U + gamma(d + 4) + 4 * U) * x.size / least
        largest = abs(weight).max()
        error = largest * off + 3 * U * (largest * (norm(n) + off) + norm(bias)) + TINY
        # For a large error of the variance, the error of the quotient is not bounded by it.
        return Bounded(n * weight + bias, np.where(drift <= 0.25, error, math.inf))

    def attention(self, name: str, x: Bounded, streams: Streams, heads: Any) -> Bounded:
        """Attention of the stream `x` to the open streams of each head, with their biases."""
        shared, scored = "values" in self.savings, "scores" not in self.savings
        width = self.dim if shared else self.dim // self.num_heads
        read = {n for open_ in heads for n, _ in open_}
        v = {n: self.linear(f"{name}.value", streams[n]) for n in read}
        nothing = Bounded(np.zeros_like(x.value), np.zeros_like(x.error))
        q = self.linear(f"{name}.query", x) if scored else nothing
        k = {n: self.linear(f"{name}.key", streams[n]) if scored else nothing for n in read}
        found = []
        for head, open_ in enumerate(heads):
            if not open_:
                found.append(Bounded(np.zeros((len(x.value), width)), np.zeros(len(x.value))))
                continue
            block, count = slice(None) if shared else slice(head * width, (head + 1) * width), len(open_)
            own, size, logits, errors = q.part(block), q.part(block).size, [], []
            for n, bias in open_:
                key = k[n].part(block)
                logits.append((own.value * key.value).sum(axis=1) * width**-0.5 + bias)
                product = size * key.error + key.size * (own.error + gamma(width + 4) * size)
                errors.append(product * width**-0.5 + 4 * U * (abs(logits[-1]) + abs(bias)) + TINY)
            highest, error = np.max(logits, axis=0), np.max(errors, axis=0)
            weights = np.exp(logits - highest)
            weights /= weights.sum(axis=0)
            spread = highest - np.min(logits, axis=0) + 2 * error
            off = error + (count + 2) * (EXP + 2 * U * (spread + 2)) + 3 * gamma(count + 3) if count > 1 else 4 * U
            values = [v[n].part(block) for n, _ in open_]
            error = (off + gamma(count + 2)) * np.max([value.size for value in values], axis=0)
            mixed = np.zeros((len(x.value), width))
            for weight, value in zip(weights, values, strict=True):
                mixed += weight[:, None] * value.value
                error = error + weight * value.error
            found.append(Bounded(mixed, error))
        if shared:
            scales, off = self.scales(name), gamma(self.num_heads + 1)
            total = sum(scale * head.value for scale, head in zip(scales, found, strict=True))
            errors = (abs(scale) * (head.error + off * head.size) for scale, head in zip(scales, found, strict=True))
            return Bounded(np.asarray(total), np.asarray(sum(errors)) + TINY)
        squares = np.sum([head.error**2 for head in found], axis=0)
        return self.linear(f"{name}.output", Bounded(np.hstack([head.value for head in found]), np.sqrt(squares)))

    def scales(self, name: str) -> np.ndarray:
        """The scale of each head of an attention whose heads share their values."""
        return np.append(1.0, self.weights[f"{name}.scales"])

    def add(self, x: Bounded, update: Bounded, name: str) -> Bounded:
        """The residual connection: normalised after it in post-norm."""
        value, error = x.value + update.value, x.error + update.error
        total = Bounded(value, error + U * (norm(value) + error) + TINY)
        return total if self.pre else self.layer_norm(name, total)

    def normed(self, name: str, x: Bounded) -> Bounded:
        """The input of a part of a layer: normalised before it in pre-norm."""
        return self.layer_norm(name, x) if self.pre else x

    def layer(self, name: str, streams: Streams, memory: Streams, needed: Any) -> tuple[Streams, Streams]:
        """The streams that are needed after a layer, before and after its feed-forward block."""
        inside = {n: self.normed(f"{name}.self_norm", x) for n, x in streams.items()}
        before, after = {}, {}
        for n, *opens in needed:
            x = streams[n]
            for part, heads in zip(self.attentions[name.split(".")[0]].values(), opens, strict=True):
                asking, read = self.normed(f"{name}.{part}_norm", x), inside if part == "self" else memory
                update = self.attention(f"{name}.{part}_attention", asking, read, heads)
                x = self.add(x, update, f"{name}.{part}_norm")
            hidden = self.linear(f"{name}.feedforward.0", self.normed(f"{name}.feedforward_norm", x))
            update = self.linear(f"{name}.feedforward.3", Bounded(np.maximum(hidden.value, 0), hidden.error))
            before[n], after[n] = x, self.add(x, update, f"{name}.feedforward_norm")
        return before, after

    def slope(self, name: str, x: Bounded, outer: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The transposed derivative of a layer normalisation at `x`, times vectors `outer`.

        Two bounds on the segment from `x` to its float32 value come with it: the change of that product for vectors of
        length 1, and the Lipschitz constant of the layer.
        """
        if not self.has_norms:
            return outer, np.zeros(len(outer)), np.ones(len(outer))
        weight = self.weights[f"{name}.weight"]
        (n, s, least), u, largest = normalised(x), weight * outer, abs(weight).max()
        back = (u - n * (n * u).mean(axis=1, keepdims=True)) / s
        back -= back.mean(axis=1, keepdims=True)
        return back, 2 / math.sqrt(3) * largest * x.error / (math.sqrt(self.dim) * least**2), largest / least

    def refined(self, x: Bounded, required: np.ndarray, other: np.ndarray) -> np.ndarray:
        """A finer bound of the float32 error of a difference of logits, by its gradient.

        The derivative is taken at the exact vectors, from the stream `x` before the last feed-forward block on. Its
        change on the way to the rounded vectors is bounded: that of the normalisations by their second derivative, that
        of the rectifier by the units that may switch on or off.
        """
        name = f"decoder.{self.num_layers['decoder'] - 1}.feedforward"
        first, last = self.weights[f"{name}.0.weight"], self.weights[f"{name}.3.weight"]
        stretch_first, stretch_last = self.stretch[f"{name}.0"], self.stretch[f"{name}.3"]
        h = self.layer_norm(f"{name}_norm", x)
        p = self.linear(f"{name}.0", h)
        f = self.linear(f"{name}.3", Bounded(np.maximum(p.value, 0), p.error))
        y = self.add(x, f, "")
        z = self.layer_norm("decoder_norm", y)
        v = self.weights["output.weight"][required] - self.weights["output.weight"][other]
        g, turn_y, spread_y = self.slope("decoder_norm", y, v)
        turned = turn_y * norm(v)
        q, rows, bias = g @ last, norm(first), self.weights[f"{name}.0.bias"]
        each = rows * h.error[:, None] + gamma(self.dim + 2) * (rows * h.size[:, None] + abs(bias))
        c = q * (p.value > 0)
        turned_hidden = stretch_last * turned + norm(q * (abs(p.value) <= each))
        k = c @ first
        back, turn_x, spread_x = self.slope(f"{name}_norm", x, k)
        turned_whole = turned + spread_x * stretch_first * turned_hidden + turn_x * norm(k)
        return (
            (norm(g + back) + turned_whole) * x.error
            + (norm(k) + stretch_first * turned_hidden) * (h.error - spread_x * x.error)
            + (norm(c) + turned_hidden) * (p.error - stretch_first * h.error)
            + (norm(g) + turned) * (f.error - stretch_last * p.error + U * (norm(y.value) + x.error + f.error))
            + norm(v) * (z.error - spread_y * y.error)
        )

    @np.errstate(all="ignore")  # margins that are not finite are refused later
    def margins(self, form: Form, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The lead of the required token over each other one, and its float32 error.

        Both are arrays `[assignment, token]`; for the required token itself they hold infinity and 0.
        """
        leaves = [self.embed(residues, ids[:, n]) for n, residues in enumerate(form.residues)]
        memory, streams = dict(enumerate(leaves[: form.num_sources])), dict(enumerate(leaves[form.num_sources :]))
        before = streams
        for number, needed in enumerate(form.encoder):
            _, memory = self.layer(f"encoder.{number}", memory, {}, needed)
        if form.encoder:
            memory = {n: self.normed("encoder_norm", x) for n, x in memory.items()}
        for number, needed in enumerate(form.decoder):
            before, streams = self.layer(f"decoder.{number}", streams, memory, needed)
        h = self.normed("decoder_norm", streams[form.read])
        weight, bias = self.weights["output.weight"], self.weights["output.bias"]
        logits, required, rows = h.value @ weight.T + bias, ids[:, -1], np.arange(len(ids))
        margins = logits[rows, required][:, None] - logits
        pairs = (norm(weight)[required][:, None] + norm(weight)) * h.size[:, None]
        # An embedding on an arc is rounded itself, and with it an output that is tied to it.
        rounding = gamma(self.dim + 3 + ({"arc", "output"} <= {*self.savings})) * (
            pairs + abs(bias[required])[:, None] + abs(bias)
        )
        bounds = self.apart[required] * h.error[:, None] + rounding + TINY
        margins[rows, required], bounds[rows, required] = math.inf, 0
        row, other = np.nonzero(margins <= 2 * bounds)
        if self.pre and form.decoder and len(row):
            x = before[form.read]
            finer = self.refined(Bounded(x.value[row], x.error[row]), required[row], other) + rounding[row, other]
            bounds[row, other] = np.fmin(bounds[row, other], finer)
        return margins, bounds


def position_methods(part: Any) -> Iterator[tuple[str, Any]]:
    """The name and the settings of each position method in a description."""
    if isinstance(part, dict) and "class_path" in part:
        name, settings = str(part["class_path"]).rpartition(".")[2], part.get("init_args", {})
        if name == "Compose":
            yield from position_methods(settings)
        elif name != "NoPE":
            fits(settings, dict, "architecture, position")
            yield name, settings
    elif isinstance(part, (dict, list)):
        for each in part.values() if isinstance(part, dict) else part:
            yield from position_methods(each)


def normalised(x: Bounded) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows minus their mean over their deviation, the deviation, and its least value within the float32 error."""
    c, d = x.value - x.value.mean(axis=1, keepdims=True), x.value.shape[1]
    s = np.sqrt((c * c).sum(axis=1, keepdims=True) / d + 1e-5)
    return c / s, s, np.sqrt(np.maximum(norm(c) - x.error, 0) ** 2 / d + 1e-5)


# 6. Identities -------------------------------------------------------------------------------------------------------

TERMS: Any = [{"name": str, "per_state": [int], "times_constant": bool}]
IDENTITIES: Any = {
    "linear": {"takes": TERMS, "gives": TERMS, "carry": [int]},
    "remainder": {"carry": [int], "bound": (int, str), "answer": TEXT},
    "running": {"answer": str, "operand": str, "carry": [int], "modulus": range(1, 2**31)},
    "order": {"operands": [str], "order": [int], "answer": TEXT, "symbols": [int]},
    "copy": {"operand": str, "answer": str},
}


def identity_fails(identity: Any, rule: Rule) -> str | None:
    """A place where an identity does not hold on the rule's table, in words; `None` if it holds everywhere."""
    kind, up, said = identity["kind"], rule.along == "place", f"identity {identity['statement']!r}"
    decide(kind in IDENTITIES, f"nothing is known of identities of the kind {kind!r}")
    offset = identity.get("offset", 0)
    fits(offset, int, f"{said}: offset")
    identity = {"answer": None} | {key: value for key, value in identity.items() if key in IDENTITIES[kind]}
    fits(identity, IDENTITIES[kind], said)
    takes, gives, answer = identity.get("takes", []), identity.get("gives", []), identity["answer"]
    carry = identity.get("order" if kind == "order" else "carry", [0] * rule.num_states)
    operands = identity["operands"] if kind == "order" else [identity["operand"]] if "operand" in identity else []
    names = {rule.reads[i]["name"]: i for i in rule.operands + rule.answers}
    used = {*operands, *(term["name"] for term in takes + gives), *([] if answer is None else [answer])}
    of_constant = identity.get("bound") == "constant" or any(term["times_constant"] for term in takes + gives)
    good = used <= set(names) and (len(rule.constants) == 1 or not of_constant)
    good &= {len(carry), *(len(term["per_state"]) for term in takes + gives)} == {rule.num_states}
    require(good, f"{said}: the rule lacks its reads or its constant, or has another number of states")
    good = isinstance(identity.get("bound", 0), int) or of_constant
    good &= kind != "order" or (len(operands), len(identity["symbols"])) == (2, 3)
    require(good, f"{said}: its bound is unknown, or it does not have two operands and three symbols")

    def holds(state: int, then: int, symbols: dict[int, int], constants: tuple[int, ...]) -> bool:
        def total(terms: list[Any]) -> int:
            factors = [term["per_state"][state] * (constants[0] if term["times_constant"] else 1) for term in terms]
            return sum(factor * symbols[names[term["name"]]] for factor, term in zip(factors, terms, strict=True))

        read, written = [symbols[names[name]] for name in operands], answer and symbols[names[answer]]
        if kind == "linear":  # the carry of the higher place counts `base` times: upwards that of the next state
            owed = rule.base * carry[then] - carry[state] if up else carry[then] - rule.base * carry[state]
            digits = all(symbols[names[term["name"]]] < rule.base for term in gives)
            same = all(term["per_state"][state] == term["per_state"][then] for term in takes + gives)
            return total(takes) == total(gives) + owed and digits and same
        if kind == "remainder":
            bound = constants[0] if of_constant else identity["bound"]
            return 0 <= carry[then] < bound and (answer is None or written == carry[then])
        if kind == "running":
            return written == carry[then] == (carry[state] + read[0] + offset) % identity["modulus"]
        if kind == "order":
            sign = (read[0] > read[1]) - (read[0] < read[1])
            right = carry[then] == ((sign or carry[state]) if up else (carry[state] or sign))
            return right and (answer is None or written == identity["symbols"][carry[then] + 1])
        return written == read[0]

    if any(names[name] in rule.gaps for name in ([answer] if kind == "copy" else [term["name"] for term in gives])):
        return "a place without a token"
    if (kind in ("order", "running") or (kind == "linear" and not up)) and any(carry[state] for state in rule.starts):
        return "a start of the run"
    for constants in rule.constant_values:
        if kind == "linear" and up and any(carry[state] for state in rule.ended.get(constants, ())):
            return "the end of a run"
        todo = list(dict.fromkeys(rule.starts))
        for state in todo:  # grows by the states that are reached
            for digits in itertools.product(*({0, *own} for own in rule.digits)):
                then, symbols = rule.step(state, digits, constants)
                if not holds(state, then, symbols, constants):
                    return f"state {state}, digits {list(digits)}, constants {list(constants)}"
                if then not in todo:
                    todo.append(then)
    return None


# 7. The check --------------------------------------------------------------------------------------------------------


def named(sizes: dict[str, int]) -> str:
    """Sizes in words."""
    return ", ".join(f"{size} = {value}" for size, value in sizes.items())


def shapes_of(family: Family, bound: dict[str, int], say: Callable[[str, str], None]) -> list[tuple[Case, Any]]:
    """All sizes up to the bound for which there are problems, each with its case; says how much work they are."""
    ranges = [range(least, bound[size] + 1) for size, least in zip(family.sizes, family.least, strict=True)]
    shapes, cost = [], math.prod(values.stop - values.start for values in ranges)
    beyond = f"there are more than {MOST_PREDICTIONS} sizes and tokens to try, which exceeds the budget"
    decide(cost <= MOST_PREDICTIONS, beyond)
    for values in itertools.product(*ranges):
        sizes = dict(zip(family.sizes, values, strict=True))
        if (case := family.case_of(sizes)) is not None:
            shapes.append((case, sizes))
            tokens = itertools.chain(written(case.source, sizes), written(case.target, sizes))
            cost += sum(1 for _ in itertools.islice(tokens, MOST_PREDICTIONS))
            decide(cost <= MOST_PREDICTIONS, beyond)
    say("layouts", f"{len(shapes)}, with {cost} sizes and tokens to try")
    return shapes


def describe(ids: np.ndarray, margins: np.ndarray, lead: float, plans: dict[Plan, Any], rule: Rule, text: str) -> str:
    """An assignment in which the model is wrong, in words."""
    words = {0: "start", 1: "end", **{n + 2: repr(symbol) for n, symbol in enumerate(text)}}
    token = [words.get(number, f"token {number}") for number in [*ids.tolist(), int(margins.argmin())]]
    sizes, query, leaves = next(plans[plan] for plan in plans if (assignments(plan, rule) == ids).all(axis=1).any())
    held = ", ".join(
        f"{name} as {leaf['item'].segment} (row {leaf['row']}, place {leaf['place']})"
        for leaf, name in zip(leaves, token[:-2], strict=True)
    )
    return (
        f"token {query} of the target for {named(sizes)} must be {token[-2]} where the model reads {held}; it leads "
        f"{token[-1]} by {margins.min():.4g}, and by {lead:.4g} less the rounding"
    )


def check(path: Path, weights_path: Path, window_path: Path, say: Callable[[str, str], None]) -> None:
    """Checks a certificate.

    Args:
        path: The certificate.
        weights_path: The model's weights.
        window_path: Its window.
        say: Reports a result, given a heading and a text.

    Raises:
        Outcome: If anything does not agree, cannot be decided, or is bad input.
    """
    data = read_json(path.read_bytes(), str(path))
    for key, known, remedy in (
        ("schema", 3, "certify the model anew"),
        ("argument", 1, "take that version's checker"),
        ("verdict", "correct", "give one that says 'correct'"),
    ):
        fits(data, {key: type(known)}, str(path))
        require(data[key] == known, f"{path} has {key} {data[key]!r}, and this checks {key} {known!r}", remedy)
    fits(data, CERTIFICATE, str(path))
    count, bound = data["tokens"]["count"], data["bound"]["sizes"]
    weights, window_bytes = weights_path.read_bytes(), window_path.read_bytes()
    model = Model(data["architecture"], data["positions"], count, read_tensors(weights, str(weights_path)))
    family, rule = Family(data["layout"], count, model.one_string), Rule(data["rule"], count)
    rule.check_values(family)
    fits(bound, dict.fromkeys(family.sizes, int), "bound, sizes")
    window = Window(read_json(window_bytes, str(window_path)), data["architecture"])

    files = {key: json.dumps(data[key], sort_keys=True, separators=(",", ":")).encode() for key in HASHED}
    files |= {"weights": weights, "window": window_bytes}
    for key, value in ((key, hashlib.sha256(file).hexdigest()) for key, file in files.items()):
        stated = data["hashes"][key]
        agree(value == stated, f"the hash of {key} is {value[:12]}..., but {stated[:12]}... in the certificate")
    say("hashes", f"{len(files)} agree")

    model.check_overflow(window)
    needed = bound_of_sizes(family, model, window, rule)
    say("bound of sizes", f"{named(bound)}; the lemma asks for {named(needed)}")
    for size, least in needed.items():
        agree(bound[size] >= least, f"the bound of {size} is {bound[size]}, and the lemma asks for {least}")

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
                agree(False, describe(ids[worst], margins[worst], leads[worst], plans, rule, data["tokens"]["symbols"]))
            found["smallest_margin"] = min(found["smallest_margin"], float(margins.min()))
            found["largest_rounding"] = max(found["largest_rounding"], float(rounding.max()))
            found["smallest_slack"] = min(found["smallest_slack"], float(leads[worst]))
    for key in COMPARED:
        say(key.replace("_", " "), f"{found[key]:.10g}; {data[key]:.10g} in the certificate")
    for identity in data["identities"]:
        fails = identity_fails(identity, rule)
        say("identity", f"{identity['statement']}: {'does not hold' if fails else 'holds'}")
        agree(not fails, f"the identity {identity['statement']!r} does not hold at {fails}")
    for key in COMPARED:
        close = math.isclose(found[key], data[key], rel_tol=0 if key == "assignments" else 1e-6)
        agree(close, f"{key} is {found[key]!r}, but {data[key]!r} in the certificate")


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
    except OSError as error:
        line, status = f"{error.filename} cannot be read ({error.strerror}): give the path of another file", 2
    except RecursionError:
        line, status = "a file is nested too deep: write it anew", 2
    except Outcome as outcome:
        line, status = outcome.args
    else:
        line, status = "agrees", 0
    print(line, file=sys.stderr if status == 2 else sys.stdout)
    return status


if __name__ == "__main__":
    sys.exit(main())
