"""Proof that a model inside a window is right at every length, or a problem on which it fails.

A prediction inside a window depends on a handful of tokens, its *cone*. Where a rule of the task says from place to
place what the next token is, all that a cone can hold is enumerated, and the model is run on all of it.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from abc_toolkit import report
from abc_toolkit.attention import Gather, Scope
from abc_toolkit.calibration.window import Window, Windowed, site_positions
from abc_toolkit.evaluation import solve_problems
from abc_toolkit.layout import ANSWER, START, Layout
from abc_toolkit.positions import SITES, NoPE, OpenKeys, Site
from abc_toolkit.tasks import Problems, Shape, Task
from abc_toolkit.tasks.base import DigitTask, LocalRule
from abc_toolkit.transformer import Block, Transformer, prefix_of, teacher_forced
from abc_toolkit.vocabulary import BOS, EOS, NUM_SPECIAL

Token = tuple[str, int]  # "source" or "prefix", and its number in that string
MOST_CONTEXTS = 2 * 10**7
GIVEN = "The layout: the window is told where each number begins and ends, that is, the place of every digit."
ARGUMENT = (
    "Lines reach a fixed number of places from the query or from an end of a segment, so beyond a length no new "
    "pattern of open keys appears; every pattern up to it was gone through. By induction over the answer's tokens: "
    "under a right prefix a prediction is one of the contexts that were enumerated, in each of which the token that "
    "the local rule asks for leads; so every token is right, and the end comes at its place and not before."
)
_AT_ONCE = 2**14


class CannotDecideError(Exception):
    """The certifier can neither prove nor refute; the message is one line that says what is to blame."""


@dataclass(frozen=True)
class Cone:
    """What one prediction of a layout depends on, layer by layer.

    Attributes:
        layout: The layout.
        query: Which target token is predicted.
        streams: Tokens whose decoder stream is needed, before each layer and after the last, `[query]` at the end.
        sources: The same of the encoder; the last are the keys of cross-attention.
        tables: Open keys of the tokens needed after each layer, by site and layer, numbered within those before it.
    """

    layout: Layout
    query: int
    streams: tuple[tuple[int, ...], ...]
    sources: tuple[tuple[int, ...], ...]
    tables: Mapping[tuple[Site, int], OpenKeys]

    @cached_property
    def leaves(self) -> tuple[Token, ...]:
        """The tokens of the cone."""
        return (*(("source", i) for i in self.sources[0]), *(("prefix", i) for i in self.streams[0]))

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
        return tables, inner, len(self.sources[0]), len(self.streams[0])


class Cones:
    """Cones of a window's predictions, shape by shape."""

    def __init__(self, window: Window, layout: Layout) -> None:
        self.window = window
        self.layout = layout
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
        return Cone(self.layout, query, tuple(streams), tuple(sources), tables)

    def _within(self, site: Site, layer: int, queries: Sequence[int], keys: Sequence[int]) -> OpenKeys:
        """The rows of some queries, with keys numbered among some."""
        table = self.tables[site, layer]
        number = torch.zeros(int(table.index.max()) + 1 + max(keys, default=0), dtype=torch.long)
        number[list(keys)] = torch.arange(len(keys))
        bias = table.bias[:, list(queries)]
        return OpenKeys(number[table.index[:, list(queries)]] * (bias > -torch.inf), bias)


@torch.no_grad()
def cone_logits(model: Transformer, cone: Cone, tokens: Tensor) -> Tensor:
    """Logits `[context, num_tokens]` of a cone's prediction.

    Args:
        model: The model, inside the window that the cone is of.
        cone: The cone.
        tokens: Token ids of its leaves, `[context, leaf]`.
    """
    layout = cone.layout
    source, prefix = tokens.split([len(cone.sources[0]), len(cone.streams[0])], dim=1)

    def through(
        blocks: Sequence[Block], side: Site, x: Tensor, needed: Sequence[Sequence[int]], **memory: Tensor
    ) -> Tensor:
        queries, keys = site_positions(side, layout)
        for layer, block in enumerate(blocks):
            place = [needed[layer].index(token) for token in needed[layer + 1]]
            rows = torch.tensor(needed[layer + 1])
            scope = Scope(keys[torch.tensor(needed[layer])], gather=Gather.of(cone.tables[side, layer]))
            cross = None
            if memory:
                k = layout.source[torch.tensor(cone.sources[-1], dtype=torch.long)]
                read = block.cross_attention.keys_values(memory["encoded"])
                cross = (read, Scope(k, gather=Gather.of(cone.tables["cross", layer])))
            x = block(x[:, place], queries[rows], scope, cross, whole=block.keys_values(x))
        return x

    encoded = model.embed(source, layout.source[torch.tensor(cone.sources[0], dtype=torch.long)])
    encoded = model.encoder_norm(through(list(model.encoder), "encoder", encoded, cone.sources))
    if not encoded.shape[1]:  # so that there is something to point at
        encoded = encoded.new_zeros(len(encoded), 1, encoded.shape[2])
    x = model.embed(prefix, layout.target[torch.tensor(cone.streams[0])])
    x = through(list(model.decoder), "decoder", x, cone.streams, encoded=encoded)
    return model.output(model.decoder_norm(x[:, 0]))


class Enumeration:
    """Everything that can occur in a cone, place by place from the least significant, and what is to be predicted.

    A context is one number: its leaves and then the required token, a digit each in base `len(vocabulary)`.

    Args:
        task: The task.
        rule: Its local rule.
        shape: The shape.
        cone: The cone.
    """

    def __init__(self, task: DigitTask, rule: LocalRule, shape: Shape, cone: Cone) -> None:
        layout = cone.layout
        self.task, self.rule, self.shape, self.cone = task, rule, shape, cone
        self.answer_length = len(layout.target) - 1
        self.widths = [int(layout.source.within(name).sum()) for name in rule.operands]
        self.columns: dict[tuple[str, int], int] = {}  # segment and place to leaf
        self.fixed: dict[int, int] = {}
        written = task.sample(torch.Generator(), 1, shape).source[0]
        for column, (string, number) in enumerate(cone.leaves):
            positions = layout.source if string == "source" else layout.prefix
            segment, place = (
                positions.names[int(positions.segment[number])],
                int(positions.coordinates["place"][number]),
            )
            if segment == START:
                self.fixed[column] = BOS
            elif segment in (*rule.operands, *rule.constants, ANSWER):
                self.columns[segment, place] = column
            else:  # an operator
                self.fixed[column] = int(written[number])

    def contexts(self) -> Tensor:
        """The contexts, `[context]`.

        Raises:
            CannotDecideError: If they are too many.
        """
        rule, base, query = self.rule, self.task.base, self.cone.query
        answers = query < self.answer_length
        constants = _all_of([base] * len(rule.constants))
        parts = {
            column: constants[:, rule.constants.index(segment)]
            for (segment, _), column in self.columns.items()
            if segment in rule.constants
        }
        state = torch.full((len(constants),), rule.start)
        required = torch.full_like(state, EOS - NUM_SPECIAL)
        last = max(
            [place for segment, place in self.columns if segment not in rule.constants] + [query] * answers, default=-1
        )
        for place in range(last + 1):
            digits = _all_of([base if place < width else 1 for width in self.widths])
            if len(state) * len(digits) > MOST_CONTEXTS:
                raise CannotDecideError(
                    f"there are more than {MOST_CONTEXTS:,} contexts: a prediction depends on {self.describe()}"
                )
            row = torch.arange(len(state)).repeat_interleave(len(digits))
            drawn = digits.repeat(len(state), 1).unbind(1)
            constants, required, parts = (
                constants[row],
                required[row],
                {column: part[row] for column, part in parts.items()},
            )
            state, written = rule.step(state[row], drawn, constants.unbind(1))
            for name, value in (*zip(rule.operands, drawn, strict=True), (ANSWER, written)):
                if (name, place) in self.columns:
                    parts[self.columns[name, place]] = value
            if place == query and answers:
                required = written
            kept = [*constants.unbind(1), *parts.values(), state, required + NUM_SPECIAL]
            kept = self._unpacked(self._packed(kept).unique(), len(kept))
            count = constants.shape[1]
            constants = torch.stack(kept[:count], dim=1) if count else constants.new_zeros(len(kept[-1]), 0)
            parts = dict(zip(parts, kept[constants.shape[1] : -2], strict=True))
            state, required = kept[-2], kept[-1] - NUM_SPECIAL
        columns = [
            parts[column] + NUM_SPECIAL if column in parts else torch.full_like(state, self.fixed[column])
            for column in range(len(self.cone.leaves))
        ]
        return self._packed([*columns, required + NUM_SPECIAL]).unique()

    def tokens(self, contexts: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids of the leaves `[context, leaf]`, and the required tokens `[context]`."""
        *leaves, required = self._unpacked(contexts, len(self.cone.leaves) + 1)
        return torch.stack(leaves, dim=1), required

    def _packed(self, parts: Sequence[Tensor]) -> Tensor:
        base = len(self.task.vocabulary)
        if base ** len(parts) > 2**63:
            raise CannotDecideError(f"a prediction depends on too many tokens: {self.describe()}")
        code = torch.zeros_like(parts[0])
        for part in parts:
            code = code * base + part
        return code

    def _unpacked(self, code: Tensor, count: int) -> list[Tensor]:
        base = len(self.task.vocabulary)
        parts = []
        for _ in range(count):
            parts.append(code % base)
            code = code // base
        return parts[::-1]

    def problem(self, context: Tensor) -> str:
        """A problem, as a person writes it, in which a context occurs."""
        rule, base = self.rule, self.task.base
        (leaves,), (required,) = (part.tolist() for part in self.tokens(context[None]))
        known = {key: leaves[column] - NUM_SPECIAL for key, column in self.columns.items()}
        if self.cone.query < self.answer_length:
            known[ANSWER, self.cone.query] = required - NUM_SPECIAL
        for constants in product(range(base), repeat=len(rule.constants)):
            if any(known.get((name, 0), value) != value for name, value in zip(rule.constants, constants, strict=True)):
                continue
            ways: dict[int, list[tuple[int, ...]]] = {rule.start: []}
            for place in range(self.answer_length):
                digits = _all_of([base if place < width else 1 for width in self.widths])
                before, ways = ways, {}
                for state, way in before.items():
                    every = torch.full_like(digits[:, 0], state)
                    fixed = [torch.full_like(every, value) for value in constants]
                    after, written = rule.step(every, digits.unbind(1), fixed)
                    fits = torch.ones_like(every, dtype=torch.bool)
                    for name, value in (*zip(rule.operands, digits.unbind(1), strict=True), (ANSWER, written)):
                        if (name, place) in known:
                            fits &= value == known[name, place]
                    for row in fits.nonzero()[:, 0].tolist():
                        ways.setdefault(int(after[row]), [*way, tuple(digits[row].tolist())])
            for way in ways.values():
                operands = [
                    torch.tensor([list(part)[:width]])
                    for part, width in zip(zip(*way, strict=True), self.widths, strict=True)
                ]
                operands += [torch.tensor([[value]]) for value in constants]
                return self.task.vocabulary.decode(self.task.problems(self.shape, operands).source[0])
        raise AssertionError("every context that is enumerated occurs in a problem")

    def describe(self, context: Tensor | None = None) -> str:
        """The cone in words, with the tokens of a context."""
        words = []
        tokens = [""] * len(self.cone.leaves) if context is None else self._texts(context)
        for (string, number), token in zip(self.cone.leaves, tokens, strict=True):
            positions = self.cone.layout.source if string == "source" else self.cone.layout.prefix
            place = int(positions.coordinates["place"][number])
            words.append(f"{positions.names[int(positions.segment[number])]} place {place}{token}")
        return f"at place {self.cone.query} of {'x'.join(map(str, self.shape))}, from {', '.join(words)}"

    def _texts(self, context: Tensor) -> list[str]:
        leaves = self.tokens(context[None])[0][0]
        return [f" = {self.task.vocabulary.decode(token[None])}" for token in leaves]


def _all_of(sizes: Sequence[int]) -> Tensor:
    """All tuples of numbers below the sizes, `[tuple, size]`."""
    return torch.tensor(list(product(*map(range, sizes))), dtype=torch.long).reshape(math.prod(sizes), len(sizes))


@dataclass(frozen=True)
class Certificate:
    """What the certifier says of a model.

    Attributes:
        verdict: `correct` at every length, `wrong`, or `undecided`.
        reason: Why it is not `correct`: the problem that it fails on and how, or what is to blame.
        problem: A problem that `abc solve` fails on.
        longest: Shapes up to this length were gone through one by one.
        predictions: Kinds of predictions: what they depend on, and where the ends of the segments are.
        functions: Functions of their tokens that the model computes for them.
        contexts: Values of these tokens that it was run on.
        smallest_gap: Least lead of a right token's logit over the next best.
        narrowest: Where that is.
        largest_deviation: Largest difference of a logit between the ways of computing it, float64 among them.
        outside: Largest difference of a logit that changing all tokens outside a cone made.
        rule_checked: Problems on which the local rule was held against integers.
    """

    verdict: Literal["correct", "wrong", "undecided"]
    reason: str = ""
    problem: str | None = None
    longest: int = 0
    predictions: int = 0
    functions: int = 0
    contexts: int = 0
    smallest_gap: float = math.nan
    narrowest: str = ""
    largest_deviation: float = math.nan
    outside: float = math.nan
    rule_checked: int = 0


def certify(task: Task, model: Transformer) -> Certificate:
    """Proves that a model solves every problem of its task, of any length, or finds one that it does not solve.

    What is enumerated: for every shape up to a length beyond which no new pattern of open keys appears, every value
    that the tokens can have on which a prediction depends. What is argued: that longer shapes bring no new pattern, as
    a window's lines reach no further than a fixed number of places from the query or from an end; and, token by token,
    that a right prefix is followed by a right token up to `EOS`. What is measured: how far logits depend on the way in
    which they are computed. Given is the layout: the model is told where numbers begin and end.

    Args:
        task: The task.
        model: The model, on the CPU.
    """
    try:
        return _certified(task, model.eval())
    except CannotDecideError as error:
        return Certificate("undecided", str(error))


def _certified(task: Task, model: Transformer) -> Certificate:
    window, rule = _window(model), task.local_rule()
    if rule is None or not isinstance(task, DigitTask):
        raise CannotDecideError(f"{task.name} has no local rule: nothing says from place to place what comes next")
    checked = _checked_rule(task, rule)
    longest = 2 * _stretch(window) + 6
    functions: dict[tuple, list[tuple[Enumeration, Tensor]]] = {}
    kinds = list(_predictions(task, window, longest))
    for shape, cone in report.track(kinds, "finding contexts"):
        enumeration = Enumeration(task, rule, shape, cone)
        functions.setdefault(cone.form, []).append((enumeration, enumeration.contexts()))
    smallest, narrowest, count = math.inf, "", 0
    for parts in report.track(list(functions.values()), "running the model on them"):
        contexts = torch.cat([part for _, part in parts]).unique()
        count += len(contexts)
        gaps = _gaps(model, parts[0][0], contexts)
        least = int(gaps.argmin())
        met = next(enumeration for enumeration, part in parts if (part == contexts[least]).any())
        if not gaps[least] > 0:
            return _refuted(task, model, met, contexts[least])
        if gaps[least] < smallest:
            smallest, narrowest = float(gaps[least]), met.describe(contexts[least])
    deviation = _deviation(task, model, longest)
    if not smallest > 2 * deviation:
        raise CannotDecideError(
            f"the smallest gap between logits, {smallest:.2g} ({narrowest}), is within what the way of computing them "
            f"makes of a difference, {deviation:.2g}"
        )
    outside = _outside(task, model, window, longest)
    if outside > deviation + 1e-4:
        raise CannotDecideError(f"tokens outside of what a prediction depends on changed a logit by {outside:.2g}")
    return Certificate(
        "correct",
        "",
        None,
        longest,
        len(kinds),
        len(functions),
        count,
        smallest,
        narrowest,
        deviation,
        outside,
        checked,
    )


def _window(model: Transformer) -> Window:
    """The window of a model of which nothing else tells order."""
    position = model.position
    if not isinstance(position, Windowed):
        raise CannotDecideError("the model has no window: a prediction depends on every token before it")
    if type(position.inner) is not NoPE:
        raise CannotDecideError(
            f"{type(position.inner).__name__} positions tell places apart without end: a proof needs NoPE in the window"
        )
    for rule in position.window.rules:
        coordinates = {name for c in rule.conditions for name in (c.key, c.query)} - {None, "place", "index", "segment"}
        if coordinates and rule.site != "decoder":
            raise CannotDecideError(
                f"the line '{rule.describe()}' ({rule.site} layer {rule.layer}) counts whole strings"
            )
    return position.window


def _stretch(window: Window) -> int:
    """Places that a cone can stretch from its query, or from the end that a line is fixed to."""
    layers = [window.of(site, layer) for site in SITES for layer in range(window.layers(site))]
    return 2 + sum(1 + max((abs(c.equals) for rule in rules for c in rule.conditions), default=0) for rules in layers)


def _predictions(task: Task, window: Window, longest: int) -> Iterator[tuple[Shape, Cone]]:
    """One prediction of each kind, in all shapes up to a length.

    Raises:
        CannotDecideError: If a cone holds a token near neither its query nor an end, or kinds do not come to an end.
    """
    stretch = _stretch(window)
    seen = set()
    for shape in replace(task, max_length=longest).training_shapes():  # type: ignore[type-var]
        cones = Cones(window, task.layout(shape))
        for query in range(len(cones.layout.target)):
            cone = cones.of(query)
            kind = cone.form, _ends(cone, stretch)
            if kind in seen:
                continue
            if max(shape) > longest - 2:
                raise CannotDecideError("longer problems go on bringing new patterns of open keys")
            seen.add(kind)
            yield shape, cone


def _ends(cone: Cone, stretch: int) -> tuple:
    """Where a cone's tokens stand towards its query and the ends of their segments, as far as a cone can stretch."""

    def near(distance: int) -> int:
        return max(-stretch, min(stretch, distance))

    layout, query = cone.layout, cone.query
    found = []
    for string, number in cone.leaves:
        positions = layout.source if string == "source" else layout.prefix
        place, index = (int(positions.coordinates[name][number]) for name in ("place", "index"))
        if min(abs(query - place), place, index) >= stretch:
            segment = positions.names[int(positions.segment[number])]
            raise CannotDecideError(
                f"a prediction depends on a token of {segment} far from its own place and from any end"
            )
        found.append((string, int(positions.segment[number]), near(query - place), near(place), near(index)))
    widths = [int(layout.source.within(name).sum()) for name in layout.source.names]
    return tuple(found), near(query), tuple(near(width - query) for width in (*widths, len(layout.target)))


def _gaps(model: Transformer, enumeration: Enumeration, contexts: Tensor) -> Tensor:
    """By how much the required token leads in every context, or lags where it is not above zero."""
    gaps = []
    for part in contexts.split(_AT_ONCE):
        tokens, required = enumeration.tokens(part)
        logits = cone_logits(model, enumeration.cone, tokens)
        own = logits.gather(1, required[:, None])[:, 0]
        gaps.append(own - logits.scatter(1, required[:, None], -torch.inf).amax(dim=1))
    return torch.cat(gaps).nan_to_num(nan=-torch.inf)


def _refuted(task: DigitTask, model: Transformer, met: Enumeration, context: Tensor) -> Certificate:
    """The verdict on a model that is wrong in a context: with a whole problem on which it fails."""
    problem = met.problem(context)
    shape, source = task.parse(problem)
    answer, right = solve_problems(model, task, [(shape, source)])[0], task.answer(task.solve(source))
    if answer == right:
        raise CannotDecideError(f"in one context the model is wrong, but it solves {problem}: {met.describe(context)}")
    return Certificate(
        "wrong", f"{problem} makes {right}, and the model says {answer}: {met.describe(context)}", problem
    )


def _checked_rule(task: DigitTask, rule: LocalRule, most: int = 20_000) -> int:
    """Holds a local rule against the task's integers on all problems of short shapes; returns their number."""
    count = 0
    for shape in task.training_shapes():
        if task.num_problems(shape) > most:
            continue
        digits = [_all_of([task.base] * length) for length in task.operand_lengths(shape)]
        which = _all_of([len(part) for part in digits])
        problems = task.problems(shape, [part[which[:, k]] for k, part in enumerate(digits)])
        written = _by_rule(task, rule, problems)
        for source, target in zip(problems.source, written, strict=True):
            text = task.vocabulary.decode(source)
            if task.vocabulary.decode(target) != task.solve(text):
                raise CannotDecideError(f"the local rule of {task.name} does not say what integers say of {text}")
        count += len(problems)
    _check_settling(task, rule)
    return count


def _check_settling(task: Task, rule: LocalRule, steps: int = 5) -> None:
    """Checks that after some places it is all one how many they were: the same states can follow on the same.

    Between what a cone holds near an end and near its own place, longer problems have more places than were gone
    through, and those gone through have at least `steps`.

    Raises:
        CannotDecideError: If the rule does not settle.
    """
    states = torch.arange(rule.num_states)
    for constants in product(range(task.base), repeat=len(rule.constants)):
        for present in product((True, False), repeat=len(rule.operands)):
            digits = _all_of([task.base if there else 1 for there in present])
            row = states.repeat_interleave(len(digits))
            drawn = digits.repeat(rule.num_states, 1).unbind(1)
            after, _ = rule.step(row, drawn, [torch.full_like(row, value) for value in constants])
            leads = torch.zeros(rule.num_states, rule.num_states)
            leads[row, after] = 1
            reached = torch.linalg.matrix_power(leads, steps) > 0
            if not torch.equal(reached, reached.float() @ leads > 0):
                raise CannotDecideError(
                    f"the states of the local rule of {task.name} do not settle from place to place"
                )


def _by_rule(task: DigitTask, rule: LocalRule, problems: Problems) -> Tensor:
    """Targets that a local rule writes, without `EOS`."""
    layout = task.layout(problems.shape)

    def digits(name: str) -> Tensor:
        return problems.source[:, layout.source.within(name)].flip(1) - NUM_SPECIAL

    constants = [digits(name)[:, 0] for name in rule.constants]
    length = len(layout.target) - 1
    operands = [torch.nn.functional.pad(part, (0, length - part.shape[1])) for part in map(digits, rule.operands)]
    state, target = torch.full_like(problems.source[:, 0], rule.start), []
    for place in range(length):
        state, written = rule.step(state, [part[:, place] for part in operands], constants)
        target.append(written + NUM_SPECIAL)
    return torch.stack(target, dim=1)


@torch.no_grad()
def _deviation(task: Task, model: Transformer, longest: int) -> float:
    """Largest difference of a logit between the paths, pieces, batches and precisions that compute it."""
    shape = replace(task, max_length=longest).training_shapes()[-1]  # type: ignore[type-var]
    layout = task.layout(shape)
    problems = task.sample(torch.Generator().manual_seed(0), 64, shape)
    prefix = prefix_of(problems.target)
    path = model.path
    found = []
    for way in ("dense", "gathered"):
        model.attend(way)
        found += [teacher_forced(model, problems, layout), teacher_forced(model, problems[-1:], layout)]
        for ahead in (1, 5):
            state = model.decoder_state(problems.source, model.plan(layout, len(problems), ahead))
            found.append(torch.cat([model.advance(part, state) for part in prefix.split(ahead, dim=1)], dim=1))
    model.attend(path)
    exact = teacher_forced(copy.deepcopy(model).double(), problems, layout)
    cones = Cones(_window(model), layout)
    alone = []
    for query in range(len(layout.target)):
        cone = cones.of(query)
        leaves = torch.cat([problems.source[:, list(cone.sources[0])], prefix[:, list(cone.streams[0])]], dim=1)
        alone.append(cone_logits(model, cone, leaves))
    found.append(torch.stack(alone, dim=1))
    return max(float((logits - exact[-len(logits) :]).abs().max()) for logits in found)


@torch.no_grad()
def _outside(task: Task, model: Transformer, window: Window, longest: int) -> float:
    """Largest change of a logit where all tokens outside of what a prediction depends on are others."""
    shape = replace(task, max_length=longest).training_shapes()[-1]  # type: ignore[type-var]
    layout = task.layout(shape)
    generator = torch.Generator().manual_seed(1)
    one, other = (task.sample(generator, 64, shape) for _ in range(2))
    cones, most = Cones(window, layout), 0.0
    for query in range(len(layout.target)):
        cone = cones.of(query)
        mixed = Problems(shape, other.source.clone(), other.target.clone())
        mixed.source[:, list(cone.sources[0])] = one.source[:, list(cone.sources[0])]
        held = [number - 1 for number in cone.streams[0] if number]  # the token before a target token
        mixed.target[:, held] = one.target[:, held]
        logits = (teacher_forced(model, problems, layout)[:, query] for problems in (one, mixed))
        most = max(most, float((next(logits) - next(logits)).abs().max()))
    return most
