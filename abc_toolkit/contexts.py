"""What a prediction inside a window depends on, everything that this can be, and the model on all of it.

A prediction depends on a handful of tokens, its *cone*. What these tokens can be is a *context*. Where a rule of the
task says from place to place what the next token is, all contexts are enumerated, and the model is a function that can
be tried on each.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import torch
from torch import Generator, Tensor

from abc_toolkit.attention import Gather, Scope
from abc_toolkit.calibration.window import Window, Windowed, site_positions
from abc_toolkit.layout import Layout, Positions
from abc_toolkit.model import prefix_of
from abc_toolkit.positions import SITES, AttentionPosition, ModelSizes, NoPE, OpenKeys, PositionMethod, Site
from abc_toolkit.tasks import Problems, Shape, Task
from abc_toolkit.tasks.base import UNIFORM, DigitTask, LocalRule, shape_name
from abc_toolkit.transformer import Block, EncoderDecoder
from abc_toolkit.vocabulary import NUM_SPECIAL

Token = tuple[str, int]  # "source" or "prefix", and its number in that string
MOST_CONTEXTS = 2 * 10**7
_AT_ONCE = 2**15
_CHANNELS = 16


class CannotDecideError(Exception):
    """It cannot be said what a model does at every length; the message is one line that says what is to blame."""


@dataclass(frozen=True)
class Cone:
    """What one prediction of a layout depends on, layer by layer.

    Attributes:
        layout: The layout.
        query: Which target token is predicted.
        streams: Tokens whose decoder stream is needed, before each layer and after the last, `[query]` at the end.
        sources: The same of the encoder; the last are the keys of cross-attention.
        tables: Open keys of the tokens needed after each layer, by site and layer, numbered within those before it.
        added: What positions add to the embedding of each leaf, in its first channels.
    """

    layout: Layout
    query: int
    streams: tuple[tuple[int, ...], ...]
    sources: tuple[tuple[int, ...], ...]
    tables: Mapping[tuple[Site, int], OpenKeys]
    added: tuple[tuple[float, ...], ...]

    @cached_property
    def leaves(self) -> tuple[Token, ...]:
        """The tokens of the cone."""
        return (*(("source", i) for i in self.sources[0]), *(("prefix", i) for i in self.streams[0]))

    @cached_property
    def tokens(self) -> list[tuple[str, dict[str, int]]]:
        """Segment and coordinates of each."""
        strings = {"source": self.layout.source, "prefix": self.layout.prefix}
        return [_token(strings[string], number) for string, number in self.leaves]

    @cached_property
    def asked(self) -> tuple[str, dict[str, int]]:
        """Segment and coordinates of the token that is predicted."""
        return _token(self.layout.target, self.query)

    @cached_property
    def form(self) -> tuple:
        """What the model sees of the cone beside the values of its tokens; of equal ones it is the same function."""
        tables = tuple(
            (key, repr(table.index.tolist()), repr(table.bias.tolist())) for key, table in sorted(self.tables.items())
        )
        inner = tuple(
            tuple(part[i].index(token) for token in part[i + 1])
            for part in (self.streams, self.sources)
            for i in range(len(part) - 1)
        )
        return tables, inner, self.added, len(self.sources[0]), len(self.streams[0])


def _token(positions: Positions, number: int) -> tuple[str, dict[str, int]]:
    coordinates = {name: int(values[number]) for name, values in positions.coordinates.items()}
    return positions.names[coordinates["segment"]], coordinates


@dataclass(frozen=True)
class Asked:
    """A prediction as a local rule knows it.

    Attributes:
        rule: The rule.
        segment: By which name it knows the token that is predicted, if it writes it.
        place: At which place.
        widths: Digits of each operand.
        lengths: Digits of each operand and tokens of each answer, by name.
        coordinates: The token's own.
    """

    rule: LocalRule
    segment: str
    place: int
    widths: tuple[int, ...]
    lengths: Mapping[str, int]
    coordinates: Mapping[str, int]

    @classmethod
    def of(cls, rule: LocalRule, cone: Cone) -> "Asked":
        """Of a cone's prediction."""
        segment, asked = cone.asked
        widths = tuple(rule.widths(cone.layout, asked))
        lengths = dict(zip(rule.operands, widths, strict=True))
        for name in rule.answers:
            places = cone.layout.target.coordinates[rule.along][cone.layout.target.within(name)]
            lengths[name] = int(places.max()) + 1
        name, place = rule.at(segment, asked, asked) or (segment, asked[rule.along])
        return cls(rule, name, place, widths, lengths, asked)

    def at(self, segment: str, token: Mapping[str, int]) -> tuple[str, int]:
        """Name and place of a token that the prediction depends on.

        Raises:
            CannotDecideError: If the rule does not know it.
        """
        known = self.rule.at(segment, token, self.coordinates)
        if known is None:
            raise CannotDecideError(
                f"a prediction depends on a token of {segment} that the local rule does not know of"
            )
        return known

    @property
    def is_written(self) -> bool:
        """Whether the rule writes the token; others, such as `EOS`, are where they are."""
        return self.segment in self.rule.answers


class Cones:
    """Cones of a window's predictions, shape by shape.

    Args:
        window: The window.
        layout: The shape's layout.
        inner: Position method beside the window; one that repeats.
    """

    def __init__(self, window: Window, layout: Layout, inner: PositionMethod = NoPE()) -> None:  # noqa: B008
        self.window = window
        self.layout = layout
        self.added = [
            list(map(tuple, inner.embed(torch.zeros(1, len(positions), _CHANNELS), positions)[0].tolist()))
            for positions in (layout.source, layout.target)
        ]
        self.tables: dict[tuple[Site, int], OpenKeys] = {}
        for site in SITES:
            for layer in range(window.layers(site)):
                table = window.open_keys(site, layer, *site_positions(site, layout))
                assert table is not None
                self.tables[site, layer] = table

    def _keys(self, site: Site, layer: int, queries: Sequence[int]) -> set[int]:
        table = self.tables[site, layer]
        rows = list(queries)
        return set(table.index[:, rows][table.bias[:, rows] > -torch.inf].tolist())

    def of(self, query: int) -> Cone:
        """The cone of one prediction."""
        streams: list[tuple[int, ...]] = [(query,)]
        read: set[int] = set()
        for layer in reversed(range(self.window.num_decoder_layers)):
            read |= self._keys("cross", layer, streams[0])
            streams.insert(0, tuple(sorted({*streams[0], *self._keys("decoder", layer, streams[0])})))
        sources = [tuple(sorted(read))]
        for layer in reversed(range(self.window.num_encoder_layers)):
            sources.insert(0, tuple(sorted({*sources[0], *self._keys("encoder", layer, sources[0])})))
        tables: dict[tuple[Site, int], OpenKeys] = {}
        for layer in range(self.window.num_encoder_layers):
            tables["encoder", layer] = self._within("encoder", layer, sources[layer + 1], sources[layer])
        for layer in range(self.window.num_decoder_layers):
            tables["decoder", layer] = self._within("decoder", layer, streams[layer + 1], streams[layer])
            tables["cross", layer] = self._within("cross", layer, streams[layer + 1], sources[-1])
        added = (*(self.added[0][i] for i in sources[0]), *(self.added[1][i] for i in streams[0]))
        return Cone(self.layout, query, tuple(streams), tuple(sources), tables, added)

    def _within(self, site: Site, layer: int, queries: Sequence[int], keys: Sequence[int]) -> OpenKeys:
        """The rows of some queries, with keys numbered among some."""
        table = self.tables[site, layer]
        number = torch.zeros(int(table.index.max()) + 1 + max(keys, default=0), dtype=torch.long)
        number[list(keys)] = torch.arange(len(keys))
        bias = table.bias[:, list(queries)]
        return OpenKeys(number[table.index[:, list(queries)]] * (bias > -torch.inf), bias)


@dataclass(frozen=True, eq=False)
class _Stream:
    """The stream of one token of a cone, computed once for all contexts that agree on what it depends on.

    Attributes:
        columns: Leaves that it depends on.
        values: Its values, `[distinct, ...]`.
        which: The value in each context, `[context]`.
    """

    columns: frozenset[int]
    values: Tensor
    which: Tensor

    def of(self, contexts: Tensor) -> Tensor:
        """Its values in some contexts."""
        return self.values[self.which[contexts]]


@torch.no_grad()
def cone_logits(model: EncoderDecoder, cone: Cone, tokens: Tensor) -> Tensor:
    """Logits `[context, num_tokens]` of a cone's prediction.

    Args:
        model: The model, inside the window that the cone is of.
        cone: The cone.
        tokens: Token ids of its leaves, `[context, leaf]`.
    """
    layout = cone.layout

    def distinct(columns: frozenset[int]) -> tuple[Tensor, Tensor]:
        """A context for each way in which some leaves differ, and for each context that which is like it."""
        everything = torch.arange(len(tokens))
        if len(columns) == tokens.shape[1]:
            return everything, everything
        code = torch.zeros_like(everything)
        for column in sorted(columns):
            code = code * len(model.embedding.weight) + tokens[:, column]
        found, which = code.unique(return_inverse=True)
        return torch.zeros_like(found).scatter_reduce(0, which, everything, "amin", include_self=False), which

    def embedded(positions: Positions, numbers: Sequence[int], start: int) -> list[_Stream]:
        streams = []
        for column, number in enumerate(numbers, start):
            first, which = distinct(frozenset({column}))
            x = model.embed(tokens[first, column][:, None], positions[torch.tensor([number])])
            streams.append(_Stream(frozenset({column}), x, which))
        return streams

    def through(
        blocks: Sequence[Block],
        side: Site,
        streams: list[_Stream],
        needed: Sequence[Sequence[int]],
        encoded: Sequence[_Stream] = (),
    ) -> list[_Stream]:
        queries, keys = site_positions(side, layout)
        sources = layout.source[torch.tensor(cone.sources[-1], dtype=torch.long)]
        for layer, block in enumerate(blocks):
            reads = {side: (cone.tables[side, layer], [_mapped(s, block.keys_values) for s in streams])}
            if encoded:
                read = block.cross_attention.keys_values
                reads["cross"] = (cone.tables["cross", layer], [_mapped(s, read) for s in encoded])
            after = []
            for row, token in enumerate(needed[layer + 1]):
                own = streams[needed[layer].index(token)]
                tables = {
                    site: OpenKeys(t.index[:, row : row + 1], t.bias[:, row : row + 1])
                    for site, (t, _) in reads.items()
                }
                is_open = {site: set(t.index[t.bias > -torch.inf].tolist()) for site, t in tables.items()}
                columns = own.columns.union(*(reads[site][1][k].columns for site in reads for k in is_open[site]))
                first, which = distinct(columns)
                fetched = {site: torch.cat([s.of(first) for s in parts], dim=1) for site, (_, parts) in reads.items()}
                scope = Scope(keys[torch.tensor(needed[layer])], gather=Gather.of(tables[side]))
                memory = None
                if encoded:
                    memory = (fetched["cross"], Scope(sources, gather=Gather.of(tables["cross"])))
                x = block(own.of(first), queries[torch.tensor([token])], scope, memory, whole=fetched[side])
                after.append(_Stream(columns, x, which))
            streams = after
        return streams

    encoded = through(list(model.encoder), "encoder", embedded(layout.source, cone.sources[0], 0), cone.sources)
    encoded = [_mapped(stream, model.encoder_norm) for stream in encoded]
    if not encoded:  # so that there is something to point at
        nothing = torch.zeros(1, 1, model.architecture.model_dim, dtype=model.embedding.weight.dtype)
        encoded = [_Stream(frozenset(), nothing, torch.zeros(len(tokens), dtype=torch.long))]
    streams = embedded(layout.target, cone.streams[0], len(cone.sources[0]))
    (last,) = through(list(model.decoder), "decoder", streams, cone.streams, encoded)
    return model.output(model.decoder_norm(last.values[:, 0]))[last.which]


def _mapped(stream: _Stream, function: Callable[[Tensor], Tensor]) -> _Stream:
    return _Stream(stream.columns, function(stream.values), stream.which)


class Enumeration:
    """Everything that can occur in a cone, place by place from the least significant, and what is to be predicted.

    A context is one number: its leaves and then the required token, a digit each in a base that has room for them.

    Args:
        task: The task.
        rule: Its local rule.
        shape: The shape.
        cone: The cone.
        known: Contexts that were enumerated before, for cones that are alike; more are added.
        most: Most contexts.
    """

    def __init__(
        self,
        task: DigitTask,
        rule: LocalRule,
        shape: Shape,
        cone: Cone,
        known: dict[Hashable, Tensor] | None = None,
        most: int = MOST_CONTEXTS,
    ) -> None:
        self.task, self.rule, self.shape, self.cone = task, rule, shape, cone
        self.known = {} if known is None else known
        self.most = most
        asked = Asked.of(rule, cone)
        self.widths = asked.widths
        self.length = max(asked.lengths.values())
        self.asked = (asked.segment, asked.place) if asked.is_written else None
        self.columns: dict[tuple[str, int], int] = {}  # name and place to leaf
        self.fixed: dict[int, int] = {}
        example = task.sample(Generator(), 1, shape)
        strings = {"source": example.source[0], "prefix": prefix_of(example.target)[0]}
        self.required = int(example.target[0, cone.query])  # where it is written whatever the digits
        for column, ((string, number), (segment, token)) in enumerate(zip(cone.leaves, cone.tokens, strict=True)):
            name, place = asked.at(segment, token)
            if name in (*rule.operands, *rule.constants, *rule.answers):
                self.columns[name, place] = column
            else:  # an operator, the start
                self.fixed[column] = int(strings[string][number])

    def contexts(self) -> Tensor:
        """The contexts, `[context]`; cones that are alike share the tensor.

        Raises:
            CannotDecideError: If they are too many.
        """
        rule = self.rule
        places = [place for segment, place in self.columns if segment not in rule.constants]
        places += [] if self.asked is None else [self.asked[1]]
        first, last = min(places, default=0), max(places, default=-1)
        *constants, state = all_of([*self._constants, len(rule.starts)]).unbind(1)
        held: dict[Hashable, Tensor] = {
            f"constant {i}": column + rule.least_constant for i, column in enumerate(constants)
        }
        held["state"] = torch.tensor(rule.starts)[state]
        for place in range(first):
            held = self._after(place, held)
        # All that the rest depends on.
        start = tuple((name, tuple(values.tolist())) for name, values in held.items())
        columns = tuple(
            (segment, place - first * (segment not in rule.constants), column)
            for (segment, place), column in self.columns.items()
        )
        present = tuple(self._present(place) for place in range(first, last + 1))
        asked = self.required if self.asked is None else (self.asked[0], self.asked[1] - first)
        ends = None if _ends_anyhow(rule) else tuple(self._present(place) for place in range(last + 1, self.length))
        key = (start, columns, tuple(self.fixed.items()), present, asked, ends)
        if key not in self.known:
            for place in range(first, last + 1):
                held = self._after(place, held)
            held = self._ending(last + 1, held)
            every = torch.ones_like(held["state"])
            for (segment, _), column in self.columns.items():
                if segment in rule.constants:
                    held[column] = held[f"constant {rule.constants.index(segment)}"] + NUM_SPECIAL
            leaves = [
                held[column] if column in held else self.fixed[column] * every
                for column in range(len(self.cone.leaves))
            ]
            self.known[key] = self._packed([*leaves, held.get("required", self.required * every)]).unique()
        return self.known[key]

    @property
    def _constants(self) -> list[int]:
        """How many values each constant has."""
        return [self.task.base - self.rule.least_constant] * len(self.rule.constants)

    def _present(self, place: int) -> tuple[bool, ...]:
        """Which operands have a digit at a place."""
        return tuple(place < width for width in self.widths)

    def _ending(self, place: int, held: dict[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        """Of what is held of the places below one, that from which the rule can end well."""
        if _ends_anyhow(self.rule):
            return held
        names = [f"constant {i}" for i in range(len(self.rule.constants))]
        kept = torch.zeros_like(held["state"], dtype=torch.bool)
        for constants in set(zip(*(held[name].tolist() for name in names), strict=True)) or {()}:
            able = self.rule.ends_well(torch.arange(self.rule.num_states))
            for later in reversed(range(place, self.length)):
                able = leads(self.task.base, self.rule, self._present(later), constants)[:, able].any(dim=1)
            like = torch.ones_like(kept)
            for name, value in zip(names, constants, strict=True):
                like &= held[name] == value
            kept |= like & able[held["state"]]
        return {name: values[kept] for name, values in held.items()}

    def _after(self, place: int, held: dict[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        """What is held of the places up to one: constants, state, tokens that the cone shows or the query needs."""
        rule, base = self.rule, self.task.base
        digits = all_of([base if there else 1 for there in self._present(place)])
        # What can happen here follows from constants and state, so it is told apart once for all that share them.
        names = ["state", *(f"constant {i}" for i in range(len(rule.constants)))]
        before, which = self._packed([held[name] for name in names]).unique(return_inverse=True)
        number = torch.arange(len(before)).repeat_interleave(len(digits))
        drawn = digits.repeat(len(before), 1).unbind(1)
        state, *constants = (part[number] for part in self._unpacked(before, len(names)))
        after, written = rule.step(state, drawn, constants)
        here: dict[Hashable, Tensor] = {"state": after}
        for name, value in zip((*rule.operands, *rule.answers), (*drawn, *written), strict=True):
            if (name, place) in self.columns:
                here[self.columns[name, place]] = value + NUM_SPECIAL
            if (name, place) == self.asked:
                here["required"] = value + NUM_SPECIAL
        number, *values = self._unpacked(self._packed([number, *here.values()]).unique(), 1 + len(here))
        ways = number.bincount(minlength=len(before))
        total = int(ways[which].sum())
        if total > self.most:
            raise CannotDecideError(
                f"there are more than {self.most:,} contexts: a prediction depends on {self.describe()}"
            )
        row = torch.arange(len(which)).repeat_interleave(ways[which])
        first = ways.cumsum(0) - ways  # of each that came before, its first way on
        way = first[which[row]] + torch.arange(total) - (ways[which].cumsum(0) - ways[which])[row]
        held = {name: part[row] for name, part in held.items()}
        held.update((name, part[way]) for name, part in zip(here, values, strict=True))
        code = self._packed(list(held.values())).unique()
        return dict(zip(held, self._unpacked(code, len(held)), strict=True))

    def tokens(self, contexts: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids of the leaves `[context, leaf]`, and the required tokens `[context]`."""
        *leaves, required = self._unpacked(contexts, len(self.cone.leaves) + 1)
        return torch.stack(leaves, dim=1), required

    @property
    def _radix(self) -> int:
        return max(len(self.task.vocabulary), self.rule.num_states)

    def _packed(self, parts: Sequence[Tensor]) -> Tensor:
        """One number for some below the radix each, but for the first, which may be any."""
        first = max(self._radix, int(parts[0].max()) + 1) if len(parts[0]) else self._radix
        if first * self._radix ** (len(parts) - 1) > 2**63:
            raise CannotDecideError(f"a prediction depends on too many tokens: {self.describe()}")
        code = torch.zeros_like(parts[0])
        for part in parts:
            code = code * self._radix + part
        return code

    def _unpacked(self, code: Tensor, count: int) -> list[Tensor]:
        parts = []
        for _ in range(count - 1):
            parts.append(code % self._radix)
            code = code // self._radix
        return [code, *reversed(parts)]

    def problem(self, context: Tensor, generator: Generator | None = None) -> Problems:
        """A problem in which a context occurs.

        Args:
            context: The context.
            generator: Draws what the context leaves open; if not given, it is as small as can be.
        """
        if self.rule.rows:
            return self._tried(context, generator)
        rule, base = self.rule, self.task.base
        (leaves,), (required,) = (part.tolist() for part in self.tokens(context[None]))
        shown = {key: leaves[column] - NUM_SPECIAL for key, column in self.columns.items()}
        if self.asked is not None:
            shown[self.asked] = required - NUM_SPECIAL

        def shuffled(rows: Tensor) -> Tensor:
            return rows if generator is None else rows[torch.randperm(len(rows), generator=generator)]

        given = {name: value for (name, _), value in shown.items() if name in rule.constants}
        for constants in (shuffled(all_of(self._constants)) + rule.least_constant).tolist():
            if any(given.get(name, value) != value for name, value in zip(rule.constants, constants, strict=True)):
                continue
            ways: dict[int, list[tuple[int, ...]]] = {start: [] for start in rule.starts}
            for place in range(self.length):
                digits = all_of([base if there else 1 for there in self._present(place)])
                before, ways = ways, {}
                for state, way in before.items():
                    every = torch.full_like(digits[:, 0], state)
                    after, written = rule.step(every, digits.unbind(1), [torch.full_like(every, c) for c in constants])
                    fits = torch.ones_like(every, dtype=torch.bool)
                    for name, value in zip((*rule.operands, *rule.answers), (*digits.unbind(1), *written), strict=True):
                        fits &= value == shown.get((name, place), value)
                    for row in shuffled(fits.nonzero()[:, 0]).tolist():
                        ways.setdefault(int(after[row]), [*way, tuple(digits[row].tolist())])
            for state, way in ways.items():
                if not rule.ends_well(torch.tensor(state)):
                    continue
                parts = [list(part)[:width] for part, width in zip(zip(*way, strict=True), self.widths, strict=True)]
                operands = [torch.tensor([part if rule.along == "place" else part[::-1]]) for part in parts]
                return self.task.problems(self.shape, operands + [torch.tensor([[value]]) for value in constants])
        raise AssertionError("every context that is enumerated occurs in a problem")

    def _tried(self, context: Tensor, generator: Generator | None, batches: int = 8) -> Problems:
        """A problem in which a context occurs, found by trying problems that have its digits of the operands.

        Raises:
            CannotDecideError: If none is found.
        """
        generator = Generator().manual_seed(0) if generator is None else generator
        (leaves,), (required,) = (part.tolist() for part in self.tokens(context[None]))
        where = [(string, number, token) for (string, number), token in zip(self.cone.leaves, leaves, strict=True)]
        for _ in range(batches):
            problems = self.task.sample(generator, 4096, self.shape, UNIFORM)
            for string, number, token in where:
                if string == "source":
                    problems.source[:, number] = token
            problems = self.task.problems(self.shape, self.task.numbers(problems))
            fits, prefix = problems.target[:, self.cone.query] == required, prefix_of(problems.target)
            for string, number, token in where:
                fits &= (problems.source if string == "source" else prefix)[:, number] == token
            for row in fits.nonzero()[:, 0].tolist():
                text = self.task.vocabulary.decode(problems.source[row])
                if self.task.parse(text) == (self.shape, text):  # some operands are too large for their width
                    return problems[row : row + 1]
        raise CannotDecideError(f"no problem was found in which this occurs: {self.describe(context)}")

    def describe(self, context: Tensor | None = None) -> str:
        """The cone in words, with the tokens of a context."""
        tokens = [""] * len(self.cone.leaves)
        if context is not None:
            leaves = self.tokens(context[None])[0][0]
            tokens = [f" = {self.task.vocabulary.decode(token[None])}" for token in leaves]
        along = self.rule.along
        places = zip(self.cone.tokens, tokens, strict=True)
        words = ", ".join(f"{segment} {along} {own[along]}{token}" for (segment, own), token in places)
        return f"{self.where()}, from {words}"

    def where(self) -> str:
        """Which prediction it is, in words."""
        along = self.rule.along
        segment, token = self.cone.asked
        place = token[along]
        which = f"{along} {place}" if len(self.rule.answers) == 1 else f"{segment} {along} {place}"
        return f"at {which} of {shape_name(self.shape)}"


def all_of(sizes: Sequence[int]) -> Tensor:
    """All tuples of numbers below the sizes, `[tuple, size]`."""
    return torch.tensor(list(product(*map(range, sizes))), dtype=torch.long).reshape(math.prod(sizes), len(sizes))


def leads(base: int, rule: LocalRule, present: Sequence[bool], constants: Sequence[int]) -> Tensor:
    """Which states of a rule lead to which at a place, boolean `[state, next state]`.

    Args:
        base: Number of digits.
        rule: The rule.
        present: Which operands have a digit at the place.
        constants: The digits that the rule reads at every place.
    """
    digits = all_of([base if there else 1 for there in present])
    state = torch.arange(rule.num_states).repeat_interleave(len(digits))
    drawn = digits.repeat(rule.num_states, 1).unbind(1)
    after, _ = rule.step(state, drawn, [torch.full_like(state, value) for value in constants])
    found = torch.zeros(rule.num_states, rule.num_states, dtype=torch.bool)
    found[state, after] = True
    return found


def _ends_anyhow(rule: LocalRule) -> bool:
    return type(rule).ends_well is LocalRule.ends_well


class Function:
    """Predictions for which the model is one function of the tokens in their cones.

    Attributes:
        parts: Each prediction, and the contexts that occur in it.
    """

    def __init__(self) -> None:
        self.parts: list[tuple[Enumeration, Tensor]] = []

    @property
    def enumeration(self) -> Enumeration:
        """One that stands for all."""
        return self.parts[0][0]

    @cached_property
    def contexts(self) -> Tensor:
        """All contexts, each once, `[context]`."""
        return torch.cat(list({id(part): part for _, part in self.parts}.values())).unique()

    def met(self, context: Tensor) -> list[Enumeration]:
        """The predictions in which a context occurs."""
        holds = {id(part): bool((part == context).any()) for _, part in {id(p): (e, p) for e, p in self.parts}.values()}
        return [enumeration for enumeration, part in self.parts if holds[id(part)]]


def gaps(model: EncoderDecoder, function: "Function", contexts: Tensor) -> Tensor:
    """By how much the required token's logit leads over the next best in each context, `[context]`.

    Not above zero where it does not lead.

    Args:
        model: The model.
        function: The function.
        contexts: Some of its contexts.
    """
    found = []
    for part in contexts.split(_AT_ONCE):
        tokens, required = function.enumeration.tokens(part)
        logits = cone_logits(model, function.enumeration.cone, tokens)
        own = logits.gather(1, required[:, None])[:, 0]
        found.append(own - logits.scatter(1, required[:, None], -torch.inf).amax(dim=1))
    return torch.cat(found).nan_to_num(nan=-torch.inf)


def functions_of(
    task: DigitTask, rule: LocalRule, predictions: Iterable[tuple[Shape, Cone]], most: int = MOST_CONTEXTS
) -> list[Function]:
    """The functions that a model computes for some predictions, with all contexts of each.

    Args:
        task: The task.
        rule: Its local rule.
        predictions: Shapes and cones.
        most: Most contexts, all together.

    Raises:
        CannotDecideError: If there are more.
    """
    functions: dict[tuple, Function] = {}
    known: dict[Hashable, Tensor] = {}
    for shape, cone in predictions:
        enumeration = Enumeration(task, rule, shape, cone, known, most)
        functions.setdefault(cone.form, Function()).parts.append((enumeration, enumeration.contexts()))
    count = sum(len(function.contexts) for function in functions.values())
    if count > most:
        raise CannotDecideError(f"there are {count:,} contexts, more than {most:,}")
    return list(functions.values())


def decidable(task: Task, position: PositionMethod) -> tuple[DigitTask, LocalRule, Window, PositionMethod]:
    """What a proof needs: a task of digits, its local rule, a window, and positions beside it that repeat.

    Raises:
        CannotDecideError: If one of them is missing, or a line of the window opens ever more keys.
    """
    rule = task.local_rule()
    if rule is None or not isinstance(task, DigitTask):
        raise CannotDecideError(f"{task.name} has no local rule: nothing says from place to place what comes next")
    if not isinstance(position, Windowed):
        raise CannotDecideError("the model has no window: a prediction depends on every token before it")
    window, inner = position.window, position.inner
    if inner.repeats_after is None or not _only_embeds(inner, window):
        raise CannotDecideError(
            f"{type(inner).__name__} positions tell places apart without end: a proof needs none beside the "
            "window, or such as repeat"
        )
    shapes = replace(task, max_length=task.max_length + 1).training_shapes()
    short, long = (task.layout(shape) for shape in (shapes[0], shapes[-1]))
    for own in window.rules:
        where = f"the line '{own.describe()}' ({own.site} layer {own.layer} head {own.head})"
        anchors = {name for c in own.conditions for name in (c.key, c.query)} - {None, "segment"}
        if anchors & {"raw", "raw_from_end"} and own.site != "decoder":
            raise CannotDecideError(f"{where} counts whole strings")
        lengths = {int(site_positions(own.site, x)[1].within(own.key_segment or "").sum()) for x in (short, long)}
        if not anchors and (own.key_segment is None or len(lengths) > 1):
            raise CannotDecideError(f"{where} is open to more tokens, the longer the problem")
    return task, rule, window, inner


def _only_embeds(inner: PositionMethod, window: Window) -> bool:
    """Whether a method does nothing inside attention: what it says of itself may be inherited by one that does."""
    built = inner.build(
        ModelSizes(8 * window.num_heads, window.num_heads, window.num_encoder_layers, window.num_decoder_layers)
    )
    return all(
        type(built.at(site, layer)) is AttentionPosition for site in SITES for layer in range(window.layers(site))
    )
