"""The bound: the sizes up to which a proof tries all layouts, because larger layouts bring no new prediction.

The bound follows from the lemma below. Nothing of it is measured.

**Terms.** Fix a case of the layout's description and a token of the target, the *query*. The *symbols* are the sizes
and the variables of the repeats around the query; all are integers from 0. A *fact* is a comparison that decides the
prediction: whether a key exists, whether it precedes the query, which of two tokens comes first, whether two tokens are
one, where an operand of the local rule ends. Each fact compares a *difference expression* with 0: `x - y + c`, `x + c`,
`-x + c` or `c`, of symbols `x`, `y` and a constant `c`. A window or a rule with a fact of another form is refused.

* `D` is the largest `|c|`.
* `R` is the relation of the local rule's states before and after one place, for given operands present and given
  constants. Its powers repeat: `R^(g + P) = R^g` for all `g >= S`, with one `S` and one `P` for all such `R`.
* `P` is also a multiple of the periods of the position methods.
* `G = 2D + 1 + S`.

**Lemma.** Sort the values of the symbols and 0. Replace each gap between neighbours above `G + P` by the number from
`G + 1` to `G + P` that is congruent to it modulo `P`. The kind of the prediction and its assignments stay as they were.

*Proof.* A difference of two symbols is a sum of gaps. If none of these gaps was replaced, the difference is unchanged.
Otherwise it exceeds `G` before and after, with the same sign, and the two are congruent modulo `P`. A fact `x - y + c
>= 0` or `= 0` therefore keeps its truth value, as `|c| <= D < G`: the same keys are open, in the same order. Call
*events* the places of the leaves, of the query, and of the ends of operands. Their pairwise differences are difference
expressions, so the order of the events is unchanged. Between two neighbouring events the same operands are present, and
the rule reads and writes nothing that the prediction depends on: the states change by `R^g`, where `g` is the number of
places between the events. If `g` changes, it is at least `G - D - 1 >= S` before and after, and congruent modulo `P`,
so `R^g` is unchanged. Coordinates keep their residues modulo `P`, so periodic position methods add the same. ∎

Each symbol therefore needs values only up to `K (G + P)`, where `K` is the number of symbols that are compared with
each other, directly or through others. Symbols that are never compared, such as the rows and the columns of a table,
have bounds of their own.

**Computation.** `bound_of` follows the window symbolically from each query. A line such as *the query's place - 1*
gives the place of its key as an expression, `q - 1`. The facts on the way are collected in `_Facts`, which holds `D`
and `K` of each group of symbols that are compared. `settles` computes `S` and `P` from the rule's table.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TypeVar

import torch

from abc_toolkit.layout import Item, LayoutDescription, Repeat, Token
from abc_toolkit.linear import Linear, NotLinearError, cases, symbol
from abc_toolkit.positions import Site
from abc_toolkit.proof.receptive_field import CannotDecideError
from abc_toolkit.proof.table import TabledRule
from abc_toolkit.tasks import Certifiable
from abc_toolkit.windows.rules import STRINGS, Rule, Window

_START = -1  # path of the token at the start of the prefix
_MOST_POWERS = 4096
_MOST_EXPANDED = 64  # values of a variable that a line leaves free

Identifier = tuple[object, ...]  # equal for equal expressions, tokens or streams


@dataclass(frozen=True)
class Case:
    """A case of a task's layouts: one description for all sizes that make some expressions at least 0.

    Attributes:
        where: The expressions.
        description: The layouts.
    """

    where: tuple[Linear, ...]
    description: LayoutDescription


def size_symbols(task: Certifiable) -> list[str]:
    """Names of the sizes of a task's layouts."""
    return [f"s{number}" for number in range(len(task.least_sizes))]


def layout_cases(task: Certifiable) -> list[Case]:
    """The layouts of all problems of a task, found by running `describe_layout` on symbols.

    Raises:
        CannotDecideError: If the lengths of its segments are not linear in its sizes.
    """
    names = size_symbols(task)
    ranges = [symbol(name) - least for name, least in zip(names, task.least_sizes, strict=True)]
    found: list[Case] = []
    try:
        for where, description in cases(lambda *sizes: task.describe_layout(sizes), [symbol(name) for name in names]):
            if isinstance(description, Exception) or not _satisfiable([*where, *ranges]):
                continue
            found.append(Case(tuple(where), description))
    except NotLinearError as error:
        raise CannotDecideError(f"the layout of {task.name} is not known for every length: {error}") from None
    return found


@dataclass(frozen=True)
class Bound:
    """The bound of a window, a task and a rule.

    Attributes:
        sizes: The largest value of each size.
        constants: `D`, the largest of all groups of symbols.
        settling: `S`.
        period: `P`.
        culprit: The line of the window with the largest constant, in words.
    """

    sizes: Mapping[str, int]
    constants: int
    settling: int
    period: int
    culprit: str


def bound_of(task: Certifiable, rule: TabledRule, window: Window, period: int) -> Bound:
    """The bound of the lemma.

    Args:
        task: The task.
        rule: Its local rule.
        window: The window.
        period: A common multiple of the periods of the position methods beside the window.

    Raises:
        CannotDecideError: If a fact does not compare a difference expression with 0, or the powers of the rule's
            relations do not repeat soon enough; the message names the line or the rule.
    """
    settling, cycle = settles(rule)
    period = math.lcm(period, cycle)
    least = dict(zip(size_symbols(task), task.least_sizes, strict=True))
    largest, constants = dict(least), 0
    for case in layout_cases(task):
        strings = _Strings(case.description, least, window.reads_one_string)
        for query in strings.queries:
            facts = _Facts(_ranges(case, least, query))
            leaves = _follow(strings, window, query, facts)
            _read(strings, rule, query, leaves, facts)
            constants = max(constants, *facts.constants().values(), 0)
            for name, value in facts.bounds(settling, period).items():
                if name in largest:
                    largest[name] = max(largest[name], value)
    lines = [(abs(condition.equals), line.describe()) for line in window.rules for condition in line.conditions]
    return Bound(largest, constants, settling, period, max(lines, default=(0, ""))[1])


def settles(rule: TabledRule) -> tuple[int, int]:
    """Numbers of places `S` and `P` such that `R^(g + P) = R^g` for all `g >= S`, for every relation `R` of the rule.

    Powers of a relation are taken until one repeats: from there on they are periodic.

    Args:
        rule: The rule.

    Raises:
        CannotDecideError: If no power repeats among the first `_MOST_POWERS`.
    """
    start, period = 0, 1
    for present in product((False, True), repeat=len(rule.operands)):
        for step in rule.leads(present).float():
            power = torch.eye(rule.num_states)
            known: dict[bytes, int] = {}
            for number in range(_MOST_POWERS):
                key = power.bool().numpy().tobytes()
                if key in known:
                    break
                known[key] = number
                power = (power @ step > 0).float()
            else:
                raise CannotDecideError(f"the states of the local rule do not repeat within {_MOST_POWERS:,} places")
            start, period = max(start, known[key]), math.lcm(period, len(known) - known[key])
    return start, period


@dataclass(frozen=True)
class _Template:
    """A token of a layout description, for all values of the variables of the repeats around it.

    Attributes:
        token: The token.
        loops: Variable and count of each repeat around it, the outer repeat first.
        path: The number of the item at each depth of the description; -1 for the token at the start of the prefix. In
            one string with the target, the source's items have the numbers below that.
        coordinates: Its coordinates; `raw` and `raw_from_end` only where they are linear.
    """

    token: Token
    loops: tuple[tuple[str, Linear], ...]
    path: tuple[int, ...]
    coordinates: Mapping[str, Linear]

    @property
    def of_source(self) -> bool:
        """Whether it is of the source, in one string with the target."""
        return self.path[0] < _START


@dataclass(frozen=True)
class _Symbolic:
    """A template at given values of its variables, which are expressions of the symbols.

    Attributes:
        template: The template.
        values: The value of each variable.
        where: The line that opens the token, in words.
    """

    template: _Template
    values: tuple[Linear, ...]
    where: str = "the query"

    def coordinate(self, name: str) -> Linear | None:
        """A coordinate as an expression of the symbols; `None` if it is not linear."""
        expression = self.template.coordinates.get(name)
        if expression is None:
            return None
        return Linear.from_value(
            expression.at({own: value for (own, _), value in zip(self.template.loops, self.values, strict=True)})
        )

    @property
    def ranges(self) -> list[Linear]:
        """Expressions that are all at least 0 if and only if the token exists."""
        pairs = zip(self.template.loops, self.values, strict=True)
        return [part for (_, count), value in pairs for part in (value, count - 1 - value)]

    @property
    def identifier(self) -> Identifier:
        """Equal for equal tokens."""
        return self.template.path, tuple(map(_identifier, self.values))


class _Strings:
    """The tokens of a layout's strings, as queries and as keys.

    Args:
        description: The layout.
        taken: Names of symbols that no variable of the description may bear.
        one_string: Whether the model reads source and target as one string, whose tokens are all keys of its decoder.
    """

    def __init__(self, description: LayoutDescription, taken: Iterable[str] = (), one_string: bool = False) -> None:
        for items in (description.source, description.target):
            _check_variables(items, set(taken))
        self.names = description.names
        self.source = list(self._templates(description.source, 0))
        target = list(self._templates(description.target, 0))
        self.queries = [
            _Symbolic(own, tuple(symbol(f"q{number}") for number in range(len(own.loops)))) for own in target
        ]
        held = list(self._templates(description.target, 1))
        start = _Template(description.start, (), (_START,), {**description.start.coordinates, "raw": Linear({})})
        # Without a token that ends it, the target is left whole: causal attention leaves out the last token by itself.
        self.prefix = [start, *(held[:-1] if isinstance(description.target[-1], Token) else held)]
        self.target = target
        if one_string:
            self._join(description)
        self._items = description.target
        self._by_path = {own.path: own for own in self.target}

    def _join(self, description: LayoutDescription) -> None:
        """Makes source and target one string: its tokens are counted through, and all are keys of the decoder."""
        ahead, behind = _length(description.source), _length(description.target)

        def moved(own: _Template, items: int, **by: Linear | None) -> _Template:
            coordinates = dict(own.coordinates)
            for name, distance in by.items():
                if distance is None:
                    coordinates.pop(name, None)
                elif name in coordinates:
                    coordinates[name] = coordinates[name] + distance
            return replace(own, path=(own.path[0] - items, *own.path[1:]), coordinates=coordinates)

        before_start = len(description.source) - _START
        self.source = [moved(own, before_start, raw_from_end=behind) for own in self.source]
        self.prefix = [*self.source, *(moved(own, 0, raw=ahead) for own in self.prefix)]
        self.target = [moved(own, 0, raw=ahead) for own in self.target]
        self.queries = [replace(query, template=own) for query, own in zip(self.queries, self.target, strict=True)]

    def keys(self, site: Site) -> list[_Template]:
        """The tokens that are keys at a site."""
        return self.prefix if site == "decoder" else self.source

    def before(self, query: _Symbolic, facts: "_Facts") -> list[_Symbolic]:
        """All tokens of the prefix that may be held where a token of the target is predicted."""
        found = list(self._beside(query, last=True, facts=facts))
        start = next(own for own in self.prefix if own.path == (_START,))
        return [token if token is not None else _Symbolic(start, ()) for token in found]

    def after(self, held: _Symbolic, facts: "_Facts") -> list[_Symbolic]:
        """All tokens of the target that may be predicted where a token of the prefix is held; of the source, itself."""
        if held.template.of_source:
            return [held]
        if held.template.path == (_START,):
            found = list(self._outermost(self._items, (), (), last=False, facts=facts))
        else:
            found = list(self._beside(held, last=False, facts=facts))
        return [token for token in found if token is not None]

    def _beside(self, token: _Symbolic, last: bool, facts: "_Facts") -> Iterator[_Symbolic | None]:
        """All tokens that may stand next to a token of the target; `None` if it may have no neighbour.

        Args:
            token: The token.
            last: Whether the neighbour before it is meant, not the one after it.
            facts: Collects the facts that decide which neighbour there is.
        """
        lists, path = [self._items], token.template.path
        for number in path[:-1]:
            repeat = lists[-1][number]
            assert isinstance(repeat, Repeat)
            lists.append(repeat.items)
        for depth in reversed(range(len(path))):
            items, number = lists[depth], path[depth]
            beside = items[:number] if last else items[number + 1 :]
            offset = 0 if last else number + 1
            ended = False
            for found in self._outermost(beside, path[:depth], token.values[:depth], last, facts, offset):
                if found is None:
                    ended = True
                else:
                    yield found
            if not ended:
                return
            if not depth:
                yield None
                return
            # The neighbour is in another round of the repeat, or outside the repeat.
            value, (_, count) = token.values[depth - 1], token.template.loops[depth - 1]
            other = value - 1 if last else value + 1
            if _satisfiable([*facts.ranges, *token.ranges, other, count - 1 - other]):
                facts.add(other if last else count - 1 - other, "the layout")
                values = (*token.values[: depth - 1], other)
                yield from (
                    found for found in self._outermost(items, path[:depth], values, last, facts) if found is not None
                )
            if not _satisfiable([*facts.ranges, *token.ranges, -value if last else value - count + 1]):
                return

    def _outermost(
        self,
        items: Sequence[Item],
        path: tuple[int, ...],
        values: tuple[Linear, ...],
        last: bool,
        facts: "_Facts",
        offset: int = 0,
    ) -> Iterator[_Symbolic | None]:
        """All tokens that may be the last (or the first) of some items; `None` if the items may hold no token.

        Args:
            items: The items.
            path: Path to the repeat whose items they are.
            values: Values of the variables around them.
            last: Whether the last token is meant, not the first.
            facts: Collects the facts that decide which token it is.
            offset: Number of the first item within the repeat.
        """
        numbered = list(enumerate(items, offset))
        for number, item in reversed(numbered) if last else numbered:
            if isinstance(item, Token):
                yield _Symbolic(self._by_path[(*path, number)], values)
                return
            count = Linear.from_value(item.count)
            if _satisfiable([*facts.ranges, count - 1]):
                facts.add(count - 1, "the layout")
                end = count - 1 if last else Linear({})
                yield from (
                    found
                    for found in self._outermost(item.items, (*path, number), (*values, end), last, facts)
                    if found is not None
                )
            if not _satisfiable([*facts.ranges, -count]):
                return
        yield None

    def _templates(self, items: Sequence[Item], first: int) -> Iterator[_Template]:
        """The tokens of a string.

        Args:
            items: The string.
            first: `raw` of the first token.
        """
        total = _length(items)
        offset: Linear | None = Linear.from_value(first)
        for number, item in enumerate(items):
            if isinstance(item, Token):
                yield self._template(item, (), (number,), offset, total)
                offset = None if offset is None else offset + 1
                continue
            tokens = all(isinstance(part, Token) for part in item.items)
            variable, count = symbol(item.variable), Linear.from_value(item.count)
            for place, part in enumerate(item.items):
                loop = (item.variable, count)
                if isinstance(part, Token):
                    raw = offset + variable * len(item.items) + place if tokens and offset is not None else None
                    yield self._template(part, (loop,), (number, place), raw, total)
                    continue
                inner = (part.variable, Linear.from_value(part.count))
                for deepest, token in enumerate(part.items):
                    if not isinstance(token, Token):
                        raise CannotDecideError("the layout has repeats within repeats within repeats")
                    yield self._template(token, (loop, inner), (number, place, deepest), None, total)
            length = _length([item])
            offset = None if offset is None or length is None else offset + length

    def _template(
        self,
        token: Token,
        loops: tuple[tuple[str, Linear], ...],
        path: tuple[int, ...],
        raw: Linear | None,
        total: Linear | None,
    ) -> _Template:
        coordinates = {**token.coordinates, "segment": Linear.from_value(self.names.index(token.segment))}
        if raw is not None:
            coordinates["raw"] = raw
            if total is not None:
                coordinates["raw_from_end"] = total - 1 - raw
        return _Template(token, loops, path, coordinates)


def _check_variables(items: Sequence[Item], taken: set[str]) -> None:
    """Refuses a repeat whose variable bears the name of another symbol.

    Raises:
        CannotDecideError: If there is one.
    """
    for item in items:
        if isinstance(item, Repeat):
            if item.variable in taken or not item.variable.isalpha() or item.variable.startswith("q"):
                raise CannotDecideError(f"the layout counts by {item.variable!r}, which stands for something else")
            _check_variables(item.items, taken | {item.variable})


def _length(items: Sequence[Item]) -> Linear | None:
    """Number of tokens of some items; `None` if it is not linear."""
    total: Linear = Linear({})
    for item in items:
        own = Linear.from_value(1)
        if isinstance(item, Repeat):
            inner = _length(item.items)
            if inner is None:
                return None
            try:
                own = inner * item.count
            except NotLinearError:
                return None
        total = total + own
    return total


@dataclass
class _Facts:
    """The facts that decide a prediction: expressions that are compared with 0.

    Symbols that occur in one fact are of one group, and so are symbols that are linked by several facts (union-find).

    Attributes:
        ranges: Expressions that are always at least 0: those of the case, of the sizes and of the query.
    """

    ranges: list[Linear]
    _joined: dict[str, str] = field(default_factory=dict[str, str])  # another symbol of the group; itself at the root
    _found: list[Linear] = field(default_factory=list[Linear])
    _of_rule: set[str] = field(default_factory=set[str])

    def __post_init__(self) -> None:
        for expression in self.ranges:
            self.add(expression, "the layout")

    def add(self, expression: Linear, where: str, of_rule: bool = False) -> None:
        """Adds a fact.

        Args:
            expression: The expression that is compared with 0.
            where: The line or the rule that the fact belongs to, in words.
            of_rule: Whether the expression is a distance between two events of the local rule.

        Raises:
            CannotDecideError: If it is no difference expression.
        """
        if not _is_difference(expression):
            raise CannotDecideError(
                f"{where} compares positions that move apart as the length grows: nothing bounds what longer problems "
                "bring"
            )
        symbols = list(expression.terms)
        if not symbols:
            return
        self._found.append(expression)
        for name in symbols:
            self._joined.setdefault(name, name)
        self._joined[self._root(symbols[0])] = self._root(symbols[-1])
        if of_rule:
            self._of_rule.update(symbols)

    def _root(self, name: str) -> str:
        while self._joined[name] != name:
            name = self._joined[name]
        return name

    def constants(self) -> dict[str, int]:
        """`D` of each group of symbols, by the root of the group."""
        largest: dict[str, int] = {}
        for expression in self._found:
            root = self._root(next(iter(expression.terms)))
            largest[root] = max(largest.get(root, 0), abs(expression.constant))
        return largest

    def bounds(self, settling: int, period: int) -> dict[str, int]:
        """The largest value of each symbol that a proof must look at.

        Args:
            settling: `S`.
            period: `P`.
        """
        constants = self.constants()
        settled = {self._root(name) for name in self._of_rule}
        found: dict[str, int] = {}
        for name in self._joined:
            root = self._root(name)
            members = sum(self._root(other) == root for other in self._joined)
            gap = 2 * constants[root] + 1 + settling * (root in settled)
            found[name] = members * (gap + period)
        return found


def _is_difference(expression: Linear) -> bool:
    return sorted(expression.terms.values()) in ([], [-1], [1], [-1, 1])


def _ranges(case: Case, least: Mapping[str, int], query: _Symbolic) -> list[Linear]:
    """Expressions that are at least 0 for all sizes of a case and all tokens of a query."""
    return [*case.where, *(symbol(name) - value for name, value in least.items()), *query.ranges]


def _satisfiable(expressions: Sequence[Linear]) -> bool:
    """Whether some values of the symbols make all expressions at least 0 (Bellman and Ford).

    Expressions that are no difference expressions are ignored, so the answer may be yes where it should be no.
    """
    edges: list[tuple[str, str, int]] = []
    names = {""}
    for expression in expressions:
        if not _is_difference(expression):
            continue
        if not expression.terms:
            if expression.constant < 0:
                return False
            continue
        above = next((name for name, factor in expression.terms.items() if factor == 1), "")
        below = next((name for name, factor in expression.terms.items() if factor == -1), "")
        edges.append((above, below, expression.constant))  # below <= above + constant
        names |= {above, below}
    edges += [(name, "", 0) for name in names if name]
    distance = dict.fromkeys(names, 0)
    for _ in names:
        changed = False
        for above, below, constant in edges:
            if distance[above] + constant < distance[below]:
                distance[below], changed = distance[above] + constant, True
        if not changed:
            return True
    return False


@dataclass(frozen=True)
class _Stream:
    """A stream of the decoder.

    Attributes:
        held: The token of the prefix that it holds.
        predicted: The token of the target that it predicts.
    """

    held: _Symbolic
    predicted: _Symbolic

    @property
    def identifier(self) -> Identifier:
        """Equal for equal streams."""
        return self.held.identifier, self.predicted.identifier


def _follow(strings: _Strings, window: Window, query: _Symbolic, facts: _Facts) -> list[_Symbolic]:
    """Adds the facts that decide the kind of a prediction, and returns the leaves of its receptive field."""
    streams = [_Stream(held, query) for held in strings.before(query, facts)]
    sources: list[_Symbolic] = []
    for layer in reversed(range(window.num_decoder_layers)):
        queries = [stream.predicted for stream in streams]
        sources = _distinct([*sources, *_opened(strings, window, "cross", layer, queries, facts)])
        keys = _opened(strings, window, "decoder", layer, queries, facts)
        more = [_Stream(held, predicted) for held in keys for predicted in strings.after(held, facts)]
        streams = _distinct([*streams, *more])
    for layer in reversed(range(window.num_encoder_layers)):
        sources = _distinct([*sources, *_opened(strings, window, "encoder", layer, sources, facts)])
    held = _distinct([stream.held for stream in streams])
    for tokens in (held, sources):
        for number, one in enumerate(tokens):
            for other in tokens[number + 1 :]:
                _add_order(one, other, facts)
    return [*sources, *held]


T = TypeVar("T", _Symbolic, _Stream)


def _distinct(tokens: Sequence[T]) -> list[T]:
    return list({token.identifier: token for token in tokens}.values())


def _opened(
    strings: _Strings, window: Window, site: Site, layer: int, queries: Sequence[_Symbolic], facts: _Facts
) -> list[_Symbolic]:
    """The keys that the lines of a site and layer may open to some queries; adds the facts that decide it."""
    found: list[_Symbolic] = []
    for rule, query, template in product(window.rules_at(site, layer), queries, strings.keys(site)):
        if rule.query_segment not in (None, query.template.token.segment):
            continue
        if rule.query_string not in (None, STRINGS[not query.template.of_source]):
            continue
        if rule.key_segment in (None, template.token.segment):
            found += _on_line(rule, query, template, site == "decoder", facts)
    return _distinct(found)


def _on_line(rule: Rule, query: _Symbolic, template: _Template, causal: bool, facts: _Facts) -> list[_Symbolic]:
    """The tokens of a template that a line opens to a query; adds the facts that decide which of them exist.

    Args:
        rule: The line.
        query: The query.
        template: The template of the keys.
        causal: Whether only keys up to the query are open.
        facts: Collects the facts.
    """
    where = f"the line '{rule.describe()}' ({rule.site} layer {rule.layer} head {rule.head})"
    equations: list[Linear] = []
    for condition in rule.conditions:
        own = template.coordinates.get(condition.key)
        asked = Linear({}) if condition.query is None else query.coordinate(condition.query)
        if own is None or asked is None:
            raise CannotDecideError(f"{where} counts whole strings, which in tables is no linear function of rows")
        # The key's variables get names of their own: the query's are symbols.
        mine = Linear.from_value(own.at({name: symbol(f"key {name}") for name, _ in template.loops}))
        wanted = asked - condition.equals if condition.query is not None else Linear.from_value(condition.equals)
        equations.append(wanted - mine)
    try:
        solved = _solved(equations, [f"key {name}" for name, _ in template.loops])
    except NotLinearError:
        raise CannotDecideError(
            f"{where} compares positions that move apart as the length grows: nothing bounds what longer problems bring"
        ) from None
    if solved is None:
        return []
    values, left_over = solved
    found: list[_Symbolic] = []
    for chosen in _expanded(template, values, where):
        rest = [Linear.from_value(part.at(chosen)) for part in left_over]
        token = _Symbolic(template, tuple(chosen[f"key {name}"] for name, _ in template.loops), where)
        needed = [*token.ranges, *rest, *(-part for part in rest), *(_before(token, query) if causal else [])]
        if not _satisfiable([*facts.ranges, *query.ranges, *needed]):
            continue  # there is no such key at any length
        for expression in (*token.ranges, *rest):
            facts.add(expression, where)
        found.append(token)
    return found


def _expanded(template: _Template, values: Mapping[str, Linear], where: str) -> Iterator[dict[str, Linear]]:
    """All values of a template's variables, given those that a line determines.

    Args:
        template: The template.
        values: Expressions of the variables that the line determines, of the symbols and of the other variables.
        where: The line, in words.

    Raises:
        CannotDecideError: If the line leaves a variable free whose number of values is not fixed.
    """
    ranges: dict[str, range] = {}
    for name, count in template.loops:
        if f"key {name}" not in values:
            if count.terms or count.constant > _MOST_EXPANDED:
                raise CannotDecideError(f"{where} is open to more tokens, the longer the problem")
            ranges[f"key {name}"] = range(count.constant)
    for numbers in product(*ranges.values()):
        chosen = {name: Linear.from_value(value) for name, value in zip(ranges, numbers, strict=True)}
        yield chosen | {name: Linear.from_value(value.at(chosen)) for name, value in values.items()}


def _solved(equations: Sequence[Linear], unknown: Sequence[str]) -> tuple[dict[str, Linear], list[Linear]] | None:
    """Solves equations `expression = 0` for unknowns in integers.

    Returns:
        Expressions of the unknowns that are determined, and expressions of the symbols that remain to be 0; `None` if
        the equations contradict each other.

    Raises:
        NotLinearError: If an unknown is no integer expression of the symbols, or an equation holds two unknowns.
    """
    values: dict[str, Linear] = {}
    left = list(equations)
    while True:
        left = [Linear.from_value(part.at(values)) for part in left]
        chosen = next((part for part in left if sum(name in part.terms for name in unknown) == 1), None)
        if chosen is None:
            break
        (name,) = (name for name in unknown if name in chosen.terms)
        factor = chosen.terms[name]
        rest = Linear({own: -value for own, value in chosen.terms.items() if own != name}, -chosen.constant)
        if any(value % factor for value in rest.terms.values()):
            raise NotLinearError("no integer expression")
        if rest.constant % factor:
            return None
        own = Linear({other: value // factor for other, value in rest.terms.items()}, rest.constant // factor)
        values = {other: Linear.from_value(value.at({name: own})) for other, value in values.items()} | {name: own}
        left = [part for part in left if part is not chosen]
    if any(name in part.terms for name in unknown for part in left):
        raise NotLinearError("two unknowns in one equation")
    if any(not part.terms and part.constant for part in left):
        return None
    return values, [part for part in left if part.terms]


def _before(key: _Symbolic, query: _Symbolic) -> list[Linear]:
    """Expressions that are all at least 0 if a key may precede a query, or be the token that a query holds.

    A query of the target is the token that it predicts, which no key holds yet. One of the source is the token that it
    holds.
    """
    mine, other = key.template.path, query.template.path
    itself = query.template.of_source
    if mine[0] != other[0]:
        return [Linear.from_value(other[0] - mine[0])]
    if not key.values:
        return [Linear.from_value(0 if itself else -1)]
    ahead = query.values[0] - key.values[0]
    in_order = mine[1:] < other[1:] or (itself and mine == other)
    same_round = len(mine) > 2 or len(other) > 2 or in_order  # the key may be in the query's own round
    return [ahead if same_round else ahead - 1]


def _add_order(one: _Symbolic, other: _Symbolic, facts: _Facts) -> None:
    """Adds the facts that decide the order of two tokens of a string, and whether they are one."""
    mine, theirs = one.template.path, other.template.path
    for depth, (value, against) in enumerate(zip(one.values, other.values, strict=False)):
        if mine[: depth + 1] != theirs[: depth + 1]:
            return
        difference = value - against
        facts.add(difference, one.where if one.where == other.where else f"{one.where} beside {other.where}")
        if not difference.terms and difference.constant:
            return


def _read(strings: _Strings, rule: TabledRule, query: _Symbolic, leaves: Sequence[_Symbolic], facts: _Facts) -> None:
    """Adds the facts that decide the assignments of a prediction: which tokens the rule reads, and its events."""
    where = "the local rule"
    row = query.coordinate("row")
    assert row is not None
    events: list[Linear] = []
    blamed: dict[Identifier, str] = {}
    for name in (*rule.operands, *rule.constants, *rule.answers):
        read = rule.read(name)
        for leaf in (*leaves, query):
            if leaf.template.token.segment != read.segment:
                continue
            own, place = leaf.coordinate("row"), leaf.coordinate(rule.along)
            assert own is not None
            assert place is not None
            if read.row is not None:
                facts.add(row - own - read.row, where)
                apart = row - own - read.row
                if not apart.terms and apart.constant:
                    continue
            if name not in rule.constants:
                events.append(place - read.shift)
                blamed[_identifier(place - read.shift)] = leaf.where
        for template in (*strings.source, *strings.target):
            if template.token.segment == read.segment:
                ends = _ends_of(template, rule.along, None if read.row is None else row - read.row, read.shift, facts)
                events += [] if name in rule.constants else ends  # of a constant it only counts whether it is there
    distinct = {_identifier(event): event for event in events}
    for number, event in enumerate(found := [Linear({}), *distinct.values()]):
        for other in found[number + 1 :]:
            facts.add(event - other, _blamed(blamed, event, other, where), of_rule=True)


def _identifier(expression: Linear) -> Identifier:
    """Equal for equal expressions."""
    return tuple(sorted(expression.plain().items()))


def _blamed(blamed: Mapping[Identifier, str], one: Linear, other: Linear, otherwise: str) -> str:
    """The line that opens the token at one of two events, in words; `otherwise` if there is none."""
    found = [blamed.get(_identifier(event), "the query") for event in (other, one)]
    return next((where for where in found if where != "the query"), otherwise)


def _ends_of(template: _Template, along: str, row: Linear | None, shift: int, facts: _Facts) -> list[Linear]:
    """The places of the first and the last token of a template; adds the facts that decide which tokens exist.

    Args:
        template: The template.
        along: The coordinate that the rule goes along.
        row: The row of the tokens; all rows, if not given.
        shift: The coordinate of the token that the rule reads at place 0.
        facts: Collects the facts.

    Raises:
        CannotDecideError: If the rule reads no fixed row, or the places of the tokens are not consecutive.
    """
    where = "the local rule"
    values: dict[str, Linear] = {}
    if row is not None:
        mine = Linear.from_value(
            template.coordinates["row"].at({name: symbol(f"key {name}") for name, _ in template.loops})
        )
        try:
            solved = _solved([row - mine], [f"key {name}" for name, _ in template.loops])
        except NotLinearError:
            raise CannotDecideError("the local rule reads rows that are no linear function of the row asked") from None
        if solved is None:
            return []
        values = solved[0]
        for expression in solved[1]:
            facts.add(expression, where)
    place = Linear.from_value(
        template.coordinates[along].at({name: symbol(f"key {name}") for name, _ in template.loops})
    )
    place = Linear.from_value(place.at(values))
    moving = [abs(place.terms.get(f"key {name}", 0)) for name, _ in template.loops]
    if sorted(moving)[:-1] != [0] * (len(moving) - 1) or max(moving, default=0) > 1:
        raise CannotDecideError(f"the digits of {template.token.segment} do not stand at one place after the other")
    ends = [place - shift]
    for name, count in template.loops:
        own = f"key {name}"
        if own in values:
            facts.add(values[own], where)
            facts.add(count - 1 - values[own], where)
            continue
        facts.add(count - 1, where)
        ends = [Linear.from_value(end.at({own: value})) for end in ends for value in (Linear({}), count - 1)]
    return ends
