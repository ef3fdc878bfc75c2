"""Proof that a model inside a window is right at every length, or a problem on which it fails.

The model is run on every context of every prediction, in all shapes up to a length beyond which no new pattern of open
keys appears; induction over the answer's tokens does the rest.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from abc_toolkit import report
from abc_toolkit.calibration.sufficiency import Conflict
from abc_toolkit.calibration.window import Window
from abc_toolkit.contexts import (
    Asked,
    CannotDecideError,
    Cone,
    Cones,
    Enumeration,
    Function,
    all_of,
    cone_logits,
    decidable,
    functions_of,
    gaps,
    leads,
)
from abc_toolkit.evaluation import solve_problems
from abc_toolkit.model import Model, prefix_of, teacher_forced
from abc_toolkit.positions import SITES, PositionMethod
from abc_toolkit.tasks import Problems, Shape, Task
from abc_toolkit.tasks.base import DigitTask, LocalRule, ProblemError
from abc_toolkit.transformer import EncoderDecoder

GIVEN = "The layout: the window is told where each number begins and ends, that is, the place of every digit."
ARGUMENT = (
    "Lines reach a fixed number of places from the query or from an end of a segment, so beyond a length no new "
    "pattern of open keys appears; every pattern up to it was gone through. By induction over the answer's tokens: "
    "under a right prefix a prediction is one of the contexts that were enumerated, in each of which the token that "
    "the local rule asks for leads; so every token is right, and the end comes at its place and not before."
)
PATH = "gathered: the tokens of a prediction's cone alone, each with the keys that are open to it"
_EXAMPLES = 5
_TRIED = 64  # contexts of a function in which the model is wrong, of which a problem is made that it does not solve
_MEASURED = 128  # most tokens of the target of problems on which deviations are measured


@dataclass(frozen=True)
class Part:
    """One of the functions that the model is, on all that its tokens can be.

    Attributes:
        cone: A prediction that it makes, and the tokens that this depends on.
        patterns: Which predictions it makes, one for each place of the ends of the segments.
        contexts: Values of the tokens that it was run on.
        smallest_gap: Least lead of a right token's logit over the next best.
        narrowest: Where that is.
    """

    cone: str
    patterns: tuple[str, ...]
    contexts: int
    smallest_gap: float
    narrowest: str


@dataclass(frozen=True)
class Certificate:
    """What the certifier says of a model.

    Attributes:
        verdict: `correct` at every length, `wrong`, or `undecided`.
        reason: Why it is not `correct`: the problem that it fails on and how, or what is to blame.
        problem: A problem that `abc solve` fails on.
        longest: Shapes up to this length were gone through one by one.
        parts: The functions that the model is.
        contexts: Number of contexts that it was run on.
        beyond_training: How many of them occur in no training shape.
        examples: Some of these.
        smallest_gap: Least lead of a right token's logit over the next best.
        narrowest: Where that is.
        deviations: For each way of computing logits, the largest difference from float64.
        outside: Largest difference of a logit that changing all tokens outside a cone made.
        rule_checked: Problems on which the local rule was held against integers.
    """

    verdict: Literal["correct", "wrong", "undecided"]
    reason: str = ""
    problem: str | None = None
    longest: int = 0
    parts: tuple[Part, ...] = ()
    contexts: int = 0
    beyond_training: int = 0
    examples: tuple[str, ...] = ()
    smallest_gap: float = math.nan
    narrowest: str = ""
    deviations: Mapping[str, float] = field(default_factory=dict)
    outside: float = math.nan
    rule_checked: int = 0

    @property
    def largest_deviation(self) -> float:
        """Largest of the deviations."""
        return max(self.deviations.values(), default=math.nan)


def certify(task: Task, model: Model) -> Certificate:
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


def _certified(own_task: Task, model: Model) -> Certificate:
    task, rule, window, inner = decidable(own_task, model.position)
    assert isinstance(model, EncoderDecoder)  # as everything inside a window is
    checked = _checked_rule(task, rule)
    longest = 2 * _stretch(window) + 3 + 3 * (inner.repeats_after or 1)
    shapes = _shapes(task, longest)
    predictions = list(_predictions(task, window, inner, shapes, longest, rule))
    functions = functions_of(task, rule, report.track(predictions, "finding contexts"))
    parts, examples, wrong, num_beyond = [], [], [], 0
    for function in report.track(functions, "running the model on them"):
        found = gaps(model, function, function.contexts)
        worst = function.contexts[found.argmin()]
        patterns = tuple(enumeration.where() for enumeration, _ in function.parts)
        narrowest = function.met(worst)[0].describe(worst)
        cone = function.enumeration.describe()
        parts.append(Part(cone, patterns, len(function.contexts), float(found.min()), narrowest))
        beyond = _beyond_training(task, function)
        num_beyond += len(beyond)
        few = beyond[: _EXAMPLES - len(examples)]
        examples += [function.met(context)[0].describe(context) for context in few]
        failed = function.contexts[~(found > 0)]
        wrong += [(function, context) for context in failed[:: math.ceil(len(failed) / _TRIED) or 1]]
    if wrong:
        return _refuted(task, model, functions, wrong)
    thinnest = min(parts, key=lambda part: part.smallest_gap)
    measured = next(shape for shape in reversed(shapes) if task.num_tokens(shape)[1] <= _MEASURED)
    certificate = Certificate(
        "correct",
        longest=max(map(max, shapes)),
        parts=tuple(parts),
        contexts=sum(part.contexts for part in parts),
        beyond_training=num_beyond,
        examples=tuple(examples),
        smallest_gap=thinnest.smallest_gap,
        narrowest=thinnest.narrowest,
        deviations=_deviations(task, model, window, measured),
        outside=_outside(task, model, window, measured),
        rule_checked=checked,
    )
    deviation = certificate.largest_deviation
    if not certificate.smallest_gap > 2 * deviation:
        raise CannotDecideError(
            f"the smallest gap between logits, {certificate.smallest_gap:.2g} ({certificate.narrowest}), is within "
            f"what the way of computing them makes of a difference, {deviation:.2g}"
        )
    if certificate.outside > deviation + 1e-4:
        raise CannotDecideError(
            f"tokens outside of what a prediction depends on changed a logit by {certificate.outside:.2g}"
        )
    return certificate


def _stretch(window: Window) -> int:
    """Places that a cone can stretch from its query, or from the end that a line is fixed to."""
    layers = [window.of(site, layer) for site in SITES for layer in range(window.layers(site))]
    return 2 + sum(1 + max((abs(c.equals) for rule in rules for c in rule.conditions), default=0) for rules in layers)


def _shapes(task: Task, longest: int) -> list[Shape]:
    """Training shapes, then the others up to a length, or up to a width that operands are padded to."""
    found = list(task.training_shapes())
    for shape in replace(task, max_length=longest).training_shapes():  # type: ignore[type-var]
        if shape not in found:
            with suppress(ProblemError):
                task.layout(shape)
                found.append(shape)
    return found


def _predictions(
    task: Task, window: Window, inner: PositionMethod, shapes: Sequence[Shape], longest: int, rule: LocalRule
) -> Iterator[tuple[Shape, Cone]]:
    """One prediction of each kind, in all shapes up to a length.

    Raises:
        CannotDecideError: If a cone holds a token near neither its query nor an end, or kinds do not come to an end.
    """
    stretch = _stretch(window)
    seen = set()
    for shape in shapes:
        cones = Cones(window, task.layout(shape), inner)
        for query in range(len(cones.layout.target)):
            cone = cones.of(query)
            kind = cone.form, _ends(cone, stretch, rule)
            if kind in seen:
                continue
            if max(shape) > longest - 1 - (inner.repeats_after or 1):
                raise CannotDecideError("longer problems go on bringing new patterns of open keys")
            seen.add(kind)
            yield shape, cone


def _ends(cone: Cone, stretch: int, rule: LocalRule) -> tuple:
    """Where a cone's tokens stand towards its query and the ends of their segments, as far as a cone can stretch."""

    def near(distance: int) -> int:
        return max(-stretch, min(stretch, distance))

    asked = Asked.of(rule, cone)
    found = []
    for (string, _), (segment, token) in zip(cone.leaves, cone.tokens, strict=True):
        name, own = asked.at(segment, token)
        ends = own, asked.lengths.get(name, 1) - 1 - own
        if min(abs(asked.place - own), *ends) >= stretch:
            raise CannotDecideError(
                f"a prediction depends on a token of {segment} far from its own place and from any end"
            )
        found.append((string, name, near(asked.place - own), *map(near, ends)))
    lengths = tuple(near(length - asked.place) for length in asked.lengths.values())
    return tuple(found), asked.segment, near(asked.place), lengths


def _beyond_training(task: Task, function: Function) -> Tensor:
    """The contexts of a function that occur in no training shape, `[context]`."""
    shapes = set(task.training_shapes())
    trained = {id(part): part for enumeration, part in function.parts if enumeration.shape in shapes}.values()
    if not trained:
        return function.contexts
    return function.contexts[~torch.isin(function.contexts, torch.cat(list(trained)))]


def alike(
    model: EncoderDecoder, functions: Sequence[Function]
) -> tuple[tuple[Enumeration, Tensor], tuple[Enumeration, Tensor]] | None:
    """Two contexts that need different tokens and that no model inside the window can tell apart, if there are such.

    What a window does not tell apart gets equal logits whatever the weights, and from random ones nothing else does.

    Args:
        model: A model inside the window; its weights do not matter.
        functions: The functions and their contexts.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh = EncoderDecoder(len(model.embedding.weight), model.architecture, model.position).double().eval()
    logits, required, where = [], [], []
    for number, function in enumerate(functions):
        for part in function.contexts.split(2**15):
            tokens, needed = function.enumeration.tokens(part)
            logits.append(cone_logits(fresh, function.enumeration.cone, tokens))
            required.append(needed)
            where.append(torch.stack([torch.full_like(part, number), part], dim=1))
    logit, token, place = torch.cat(logits), torch.cat(required), torch.cat(where)
    order = logit[:, 0].argsort()
    logit, token, place = logit[order], token[order], place[order]
    same = ((logit[1:] - logit[:-1]).abs().amax(dim=1) < 1e-10) & (token[1:] != token[:-1])
    if not same.any():
        return None
    row = int(same.nonzero()[0])
    first, second = ((functions[int(number)], context) for number, context in place[row : row + 2])
    return (first[0].met(first[1])[0], first[1]), (second[0].met(second[1])[0], second[1])


def _refuted(
    task: DigitTask, model: EncoderDecoder, functions: Sequence[Function], wrong: Sequence[tuple[Function, Tensor]]
) -> Certificate:
    """The verdict on a model that is wrong in some contexts: with a whole problem on which it fails."""
    # A wrong token may leave the answer right, such as an end in place of a leading zero; not so in longer problems.
    found = [(own, context) for function, context in wrong for own in _ends_of(function.met(context))]
    texts = [_text(task, own, context) for own, context in found]
    parsed = [task.parse(text) for text in texts]
    answers = solve_problems(model, task, parsed)
    right = [task.answer(task.solve(source)) for _, source in parsed]
    number = next((i for i in range(len(found)) if answers[i] != right[i]), None)
    if number is None:
        raise CannotDecideError(
            f"the model is wrong in {len(wrong)} contexts, but its answers are right, as to {texts[0]}: "
            f"{found[0][0].describe(found[0][1])}"
        )
    where = found[number][0].describe(found[number][1])
    reason = f"{texts[number]} makes {right[number]}, and the model says {answers[number]}: {where}"
    pair = alike(model, functions)
    if pair is not None:
        sources = [_text(task, own, context) for own, context in pair]
        needs = [task.vocabulary.decode(own.tokens(context[None])[1]) or "the end" for own, context in pair]
        places = [own.cone.query for own, _ in pair]
        conflict = Conflict((sources[0], sources[1]), (places[0], places[1]), (needs[0], needs[1]))
        reason += f"; the window is not sufficient: {conflict.describe()}"
    return Certificate("wrong", reason, texts[number])


def _ends_of(met: Sequence[Enumeration]) -> list[Enumeration]:
    """The first and the last, the shortest and the longest of those in which a context occurs."""
    return [met[0], met[-1]] if len(met) > 1 else [met[0]]


def _text(task: DigitTask, own: Enumeration, context: Tensor) -> str:
    return task.vocabulary.decode(own.problem(context).source[0])


def _checked_rule(task: DigitTask, rule: LocalRule, most: int = 20_000) -> int:
    """Holds a local rule against the task's integers on all problems of short shapes; returns their number."""
    count = 0
    for shape in task.training_shapes():
        if task.num_problems(shape) > most:
            continue
        digits = []
        for number, length in enumerate(task.operand_lengths(shape), 1):
            least = rule.least_constant if f"operand {number}" in rule.constants else 0
            digits.append(all_of([task.base - least] * length) + least)
        which = all_of([len(part) for part in digits])
        problems = task.problems(shape, [part[which[:, k]] for k, part in enumerate(digits)])
        written = rule.written(task, problems)
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
    through, and those gone through have at least `steps`. All of them have digits of the same operands, and of which
    that can be, training shapes show.

    Raises:
        CannotDecideError: If the rule does not settle.
    """
    patterns: set[tuple[bool, ...]] = set()
    for layout in map(task.layout, task.training_shapes()):
        target = layout.target
        length = 1 + max(int(target.coordinates[rule.along][target.within(name)].max()) for name in rule.answers)
        for row in layout.target.coordinates["row"].unique().tolist():
            widths = rule.widths(layout, {"row": row})
            patterns |= {tuple(place < width for width in widths) for place in range(max(*widths, length))}
    values = range(rule.least_constant, task.base)
    for constants in product(values, repeat=len(rule.constants)):
        for present in patterns:
            step = leads(task.base, rule, present, constants).float()
            reached = torch.linalg.matrix_power(step, steps) > 0
            if not torch.equal(reached, reached.float() @ step > 0):
                raise CannotDecideError(
                    f"the states of the local rule of {task.name} do not settle from place to place"
                )


@torch.no_grad()
def _deviations(task: Task, model: EncoderDecoder, window: Window, shape: Shape) -> dict[str, float]:
    """For each way of computing logits the largest difference from float64: paths, pieces, batches, orders."""
    layout = task.layout(shape)
    problems = task.sample(torch.Generator().manual_seed(0), 64, shape)
    prefix = prefix_of(problems.target)

    def in_pieces(size: int) -> Tensor:
        state = model.decoder_state(problems.source, model.plan(layout, len(problems), size))
        return torch.cat([model.advance(part, state) for part in prefix.split(size, dim=1)], dim=1)

    def in_order(order: Tensor) -> Tensor:
        return teacher_forced(model, problems[order], layout)[order.argsort()]

    def alone() -> Tensor:
        return torch.cat([teacher_forced(model, problems[row : row + 1], layout) for row in range(len(problems))])

    ways: dict[str, Callable[[], Tensor]] = {
        "one batch": lambda: teacher_forced(model, problems, layout),
        "the batch shuffled": lambda: in_order(torch.randperm(64, generator=torch.Generator().manual_seed(1))),
        "batches of one": alone,
        "cached, a token at a time": lambda: in_pieces(1),
        "cached, in pieces of 5 tokens": lambda: in_pieces(5),
    }
    path = model.path
    found = {}
    for own in ("dense", "gathered"):
        model.attend(own)
        found |= {f"{own}, {name}": compute() for name, compute in ways.items()}
    model.attend(path)
    every = Cones(window, layout)
    cones = [every.of(query) for query in range(len(layout.target))]
    leaves = [torch.cat([problems.source[:, list(c.sources[0])], prefix[:, list(c.streams[0])]], dim=1) for c in cones]
    logits = [cone_logits(model, cone, tokens) for cone, tokens in zip(cones, leaves, strict=True)]
    found["gathered, the cone alone"] = torch.stack(logits, dim=1)
    exact = teacher_forced(copy.deepcopy(model).double(), problems, layout)
    return {name: float((logits - exact).abs().max()) for name, logits in found.items()}


@torch.no_grad()
def _outside(task: Task, model: EncoderDecoder, window: Window, shape: Shape) -> float:
    """Largest change of a logit where all tokens outside of what a prediction depends on are others."""
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
