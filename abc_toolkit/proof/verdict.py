"""The verdict: a proof that a model inside a window is right at every length, or a problem on which it fails.

The proof takes these steps. A step that fails ends it with a `CannotDecideError`, which names what is to blame.

1. `basis`: the model is an encoder-decoder or decoder-only, inside a window, and the task has a local rule.
2. `bound`: every prediction of a larger layout is of a kind that occurs up to the bound.
3. `meaning`: the local rule keeps its identities, and agrees with the task's oracle.
4. `receptive_field`, `enumeration`: all kinds up to the bound, with all their assignments.
5. `rounding`: in each assignment the required token's logit leads by more than its rounding error.
6. Here: deviations of the model as it is used are measured, and lie within the bound of step 5.

By induction over the target, a model that passes writes what the local rule writes: after a right prefix the next
prediction has one of the assignments. If a margin is not positive, a whole problem is sought on which the model fails.
"""

import copy
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, product
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from abc_toolkit.layout import Layout
from abc_toolkit.models.base import Model, predict, prefix_of
from abc_toolkit.models.decoding import solve_problems
from abc_toolkit.models.transformer import TransformerModel
from abc_toolkit.proof.basis import Basis, basis_of
from abc_toolkit.proof.bound import Bound, Case, bound_of, layout_cases, size_symbols
from abc_toolkit.proof.certificate import Certificate, Part
from abc_toolkit.proof.enumeration import Enumeration, Kind, Prediction, Reading, kinds_of
from abc_toolkit.proof.forward import receptive_field_logits
from abc_toolkit.proof.meaning import meaning_of
from abc_toolkit.proof.receptive_field import CannotDecideError, ReceptiveFields
from abc_toolkit.proof.rounding import BoundedModel, Margins
from abc_toolkit.tasks import Certifiable, ProblemError, Problems, Shape, Task
from abc_toolkit.tasks.base import UNIFORM
from abc_toolkit.tasks.digits.base import DigitTask
from abc_toolkit.windows.conflict import Conflict

T = TypeVar("T")
Occurrence = tuple[Kind, Tensor]  # an assignment, with its kind

MOST_PREDICTIONS = 50_000  # of all layouts; each takes some milliseconds
_EXAMPLES = 5  # assignments beyond the training shapes that a certificate shows
_TRIED = 64  # wrong assignments of a kind that are turned into problems, to find one that the model fails on
_MEASURED = 128  # tokens of the longest target on which deviations are measured
_EXACT = 1e-6  # relative difference of float64 logits that is allowed: sines and cosines are in float32
_PIECES = 256  # tokens of a piece in which long problems are decoded


class Progress(Protocol):
    """Wraps a long loop, so that a phase can show how far it is."""

    def __call__(self, items: Sequence[T], title: str, /) -> Iterable[T]:
        """The items, one by one.

        Args:
            items: The items of the loop.
            title: What the loop does.
        """
        ...


@dataclass(frozen=True, eq=False)
class Sized:
    """A layout up to the bound.

    Attributes:
        sizes: Its sizes.
        shape: A shape of problems with these sizes, if there is one.
        layout: The layout.
    """

    sizes: Shape
    shape: Shape | None
    layout: Layout


def silent(items: Sequence[T], _title: str) -> Iterable[T]:
    """Progress that is not shown."""
    return items


def certify(task: Task, model: Model, progress: Progress = silent) -> Certificate:
    """Proves that a model solves every problem of its task, of any length, or finds one that it does not solve.

    Args:
        task: The task.
        model: The model, on the CPU.
        progress: Shows the progress of long loops.

    Returns:
        The verdict, with all that it rests on.
    """
    try:
        return _certified(basis_of(task, model.eval()), model, progress)  # type: ignore[arg-type]
    except CannotDecideError as error:
        return Certificate("undecided", str(error))


def _certified(basis: Basis, model: TransformerModel, progress: Progress) -> Certificate:
    task, rule = basis.task, basis.rule
    bounded = BoundedModel(model, basis.cyclic)
    bound = bound_of(task, rule, basis.window, basis.period)
    layouts = _layouts(task, bound)
    readings = [Reading(rule, sized.layout) for sized in layouts]
    meaning = meaning_of(task, rule, readings)
    kinds = kinds_of(task, _predictions(basis, model, layouts, readings, progress))
    found = _findings(task, bounded, kinds, progress)
    if found.wrong:
        return _refuted(task, model, kinds, found.wrong)
    if found.thin is not None:
        raise CannotDecideError(found.thin)
    thinnest = min(found.parts, key=lambda part: part.smallest_margin)
    measured = _measured_shape(task, layouts)
    certificate = Certificate(
        "correct",
        bound=bound.sizes,
        longest=max(bound.sizes.values()),
        layouts=len(layouts),
        tokens=sum(len(sized.layout.source) + len(sized.layout.target) for sized in layouts),
        parts=tuple(found.parts),
        kinds=len(found.parts),
        assignments=sum(part.assignments for part in found.parts),
        beyond_training=found.beyond_training,
        examples=tuple(found.examples),
        smallest_margin=thinnest.smallest_margin,
        narrowest=thinnest.narrowest,
        largest_rounding=max(part.largest_rounding for part in found.parts),
        smallest_slack=min(part.smallest_slack for part in found.parts),
        meaning=meaning,
        deviations=_deviations(basis, model, bounded, measured),
        outside=_outside(basis, model, measured),
    )
    _check_measurements(certificate)
    return certificate


def predictions_up_to_bound(basis: Basis, model: TransformerModel, progress: Progress = silent) -> Iterator[Prediction]:
    """Every prediction of every layout up to the bound.

    Args:
        basis: The basis of the proof of the model.
        model: The model.
        progress: Shows the progress of long loops.
    """
    layouts = _layouts(basis.task, bound_of(basis.task, basis.rule, basis.window, basis.period))
    yield from _predictions(basis, model, layouts, [Reading(basis.rule, own.layout) for own in layouts], progress)


def _check_measurements(certificate: Certificate) -> None:
    """Compares what was measured with the bound of rounding.

    Raises:
        CannotDecideError: If a measured deviation exceeds the bound, so that the proof is about another computation.
    """
    if not certificate.largest_deviation <= certificate.largest_rounding:
        raise CannotDecideError(
            f"a logit deviates by {certificate.largest_deviation:.2g} from one path to another, more than the bound of "
            f"rounding, {certificate.largest_rounding:.2g}: the model computes other sums than this proof is of"
        )
    if not certificate.outside <= 2 * certificate.largest_rounding:
        raise CannotDecideError(
            f"tokens outside of what a prediction depends on changed a logit by {certificate.outside:.2g}"
        )


@dataclass
class _Findings:
    """The outcome of running a model on all assignments of all kinds.

    Attributes:
        parts: A row of the certificate for each kind that has assignments.
        beyond_training: Number of assignments that occur in no training shape.
        examples: A few of these, in words.
        wrong: A sample of the assignments in which the model is wrong, each with its kind.
        thin: The first assignment whose margin the error may exceed, in words.
    """

    parts: list[Part] = field(default_factory=list[Part])
    beyond_training: int = 0
    examples: list[str] = field(default_factory=list[str])
    wrong: list[Occurrence] = field(default_factory=list[Occurrence])
    thin: str | None = None


def _findings(task: DigitTask, bounded: BoundedModel, kinds: Sequence[Kind], progress: Progress) -> _Findings:
    """Runs a model on all assignments of all kinds."""
    found = _Findings()
    trained = {task.sizes(shape) for shape in task.training_shapes()}
    for kind in progress(kinds, "running the model on assignments"):
        if not len(kind.assignments):
            continue
        margins = bounded.margins(kind)
        found.parts.append(_part(kind, margins))
        beyond = _beyond_training(trained, kind)
        found.beyond_training += len(beyond)
        few = beyond[: _EXAMPLES - len(found.examples)]
        found.examples += [kind.predictions_with(assignment)[0].describe(assignment) for assignment in few]
        failed = kind.assignments[~(margins.margin > 0)]
        found.wrong += [(kind, assignment) for assignment in failed[:: math.ceil(len(failed) / _TRIED) or 1]]
        thinnest = int(margins.slack.argmin())
        if not margins.slack[thinnest] > 0 and found.thin is None:
            assignment = kind.assignments[thinnest]
            found.thin = (
                f"rounding can make {float(margins.rounding[thinnest]):.2g} of a difference of logits, and the margin "
                f"is {float(margins.margin[thinnest]):.2g} {kind.predictions_with(assignment)[0].describe(assignment)}"
            )
    return found


def _measured_shape(task: DigitTask, layouts: Sequence[Sized]) -> Shape:
    """The shape on which deviations are measured: the largest whose target is not too long."""
    shapes = [sized.shape for sized in layouts if sized.shape is not None]
    short = [shape for shape in shapes if task.num_tokens(shape)[1] <= _MEASURED]
    return max(short or shapes[:1], key=task.num_tokens)


def _layouts(task: Certifiable, bound: Bound) -> list[Sized]:
    """Every layout up to a bound, each once.

    Raises:
        CannotDecideError: If they hold more than `MOST_PREDICTIONS` predictions.
    """
    names, all_cases = size_symbols(task), layout_cases(task)
    tokens = sum(_estimate(case, bound) for case in all_cases)
    if tokens > MOST_PREDICTIONS:
        raise CannotDecideError(
            f"layouts would have to be gone through up to sizes of {', '.join(map(str, bound.sizes.values()))}, with "
            f"some {tokens:,} predictions, more than {MOST_PREDICTIONS:,}: the farthest line of the window is "
            f"'{bound.culprit}', the rule settles within {bound.settling} places, and positions repeat after "
            f"{bound.period}"
        )
    found: dict[str, Sized] = {}
    trained = {task.sizes(shape): shape for shape in reversed(task.training_shapes())}
    for case in all_cases:
        for sizes in _sizes(case, names, task.least_sizes, bound):
            description = task.describe_layout(sizes)
            key = json.dumps(description.plain())
            if key not in found or sizes in trained:
                shape = trained.get(sizes) or task.shape_of(sizes)
                found[key] = Sized(sizes, shape, description.layout())
    return list(found.values())


def _estimate(case: Case, bound: Bound) -> int:
    """An estimate of the predictions in the layouts of a case, up to a bound."""
    largest = dict(bound.sizes)
    count = math.prod(largest[name] for name in case.description.symbols)
    if count > MOST_PREDICTIONS:
        return count
    length = case.description.target_length(largest)
    return count * length // 2 ** len(case.description.symbols)


def _sizes(case: Case, names: Sequence[str], least: Shape, bound: Bound) -> Iterator[Shape]:
    """Sizes, up to a bound, of every layout of a case; a size that the layout does not depend on has any value."""
    fixed = [name for name in names if name in case.description.symbols]
    others = [name for name in names if name not in fixed]
    lowest = dict(zip(names, least, strict=True))

    def values(name: str) -> range:
        return range(lowest[name], bound.sizes[name] + 1)

    for chosen in product(*map(values, fixed)):
        known = dict(zip(fixed, chosen, strict=True))
        alike = tuple(max([*chosen, lowest[name]]) for name in others)
        for rest in chain([alike], product(*map(values, others))):
            sizes = known | dict(zip(others, rest, strict=True))
            if all(expression.at(sizes) >= 0 for expression in case.where):
                yield tuple(sizes[name] for name in names)
                break


def _predictions(
    basis: Basis, model: TransformerModel, layouts: Sequence[Sized], readings: Sequence[Reading], progress: Progress
) -> Iterator[Prediction]:
    """Every prediction of the layouts."""
    for sized, reading in progress(list(zip(layouts, readings, strict=True)), "finding receptive fields"):
        fields = ReceptiveFields(basis.window, sized.layout, model.positioning if basis.cyclic else None)
        for query in range(len(sized.layout.target)):
            yield reading, sized.sizes, sized.shape, fields.at(query)


def _part(kind: Kind, found: Margins) -> Part:
    """A kind's row of the certificate."""
    least = int(found.margin.argmin())
    assignment = kind.assignments[least]
    return Part(
        kind.enumeration.describe(),
        len(kind.parts),
        len(kind.assignments),
        float(found.margin[least]),
        kind.predictions_with(assignment)[0].describe(assignment),
        float(found.rounding.max()),
        float(found.slack.min()),
    )


def _beyond_training(trained: set[Shape], kind: Kind) -> Tensor:
    """The assignments of a kind that occur in no training shape, `[assignment]`."""
    inside = {id(part): part for enumeration, part in kind.parts if enumeration.sizes in trained}.values()
    if not inside:
        return kind.assignments
    return kind.assignments[~torch.isin(kind.assignments, torch.cat(list(inside)))]


def indistinguishable(
    model: TransformerModel, kinds: Sequence[Kind]
) -> tuple[tuple[Enumeration, Tensor], tuple[Enumeration, Tensor]] | None:
    """Two assignments that require different tokens and that the window does not tell apart; `None` if there are none.

    A model with random weights gives two assignments equal logits only if every model inside the window does, up to
    coincidences of probability 0.

    Args:
        model: A model inside the window; its weights do not matter.
        kinds: The kinds and their assignments.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh = type(model)(model.interface, model.architecture, model.position).double().eval()
    logits: list[Tensor] = []
    required: list[Tensor] = []
    locations: list[Tensor] = []
    for number, kind in enumerate(kinds):
        for part in kind.assignments.split(2**15):
            tokens, needed = kind.enumeration.tokens(part)
            logits.append(receptive_field_logits(fresh, kind.enumeration.field, tokens))
            required.append(needed)
            locations.append(torch.stack([torch.full_like(part, number), part], dim=1))
    logit, token, location = torch.cat(logits), torch.cat(required), torch.cat(locations)
    order = logit[:, 0].argsort()
    logit, token, location = logit[order], token[order], location[order]
    same = ((logit[1:] - logit[:-1]).abs().amax(dim=1) < 1e-10) & (token[1:] != token[:-1])
    if not same.any():
        return None
    row = int(same.nonzero()[0])
    first, second = ((kinds[int(number)], assignment) for number, assignment in location[row : row + 2])
    return (first[0].predictions_with(first[1])[0], first[1]), (second[0].predictions_with(second[1])[0], second[1])


def _refuted(
    task: DigitTask, model: TransformerModel, kinds: Sequence[Kind], wrong: Sequence[Occurrence]
) -> Certificate:
    """The verdict on a model that is wrong in some assignments, with a whole problem on which it fails.

    Args:
        task: The task.
        model: The model.
        kinds: All kinds.
        wrong: Assignments in which the model is wrong.

    Raises:
        CannotDecideError: If no such problem is found.
    """
    # A wrong token may leave the answer right, such as an end in place of a leading zero: try longer problems too.
    found = [
        (own, assignment) for kind, assignment in wrong for own in _first_and_last(kind.predictions_with(assignment))
    ]
    written = [(own, assignment, _text(task, own, assignment)) for own, assignment in found]
    found = [(own, assignment) for own, assignment, text in written if text is not None]
    texts = [text for _, _, text in written if text is not None]
    if not texts:
        raise CannotDecideError(
            f"the model is wrong in {len(wrong)} assignments, and no problem was found in which one of them occurs, "
            f"such as {written[0][0].describe(written[0][1])}"
        )
    parsed = [task.parse(text) for text in texts]
    answers = solve_problems(model, task, parsed)
    right = [task.answer(task.solve(source)) for _, source in parsed]
    number = next((i for i in range(len(found)) if answers[i] != right[i]), None)
    if number is None:
        raise CannotDecideError(
            f"the model is wrong in {len(wrong)} assignments, but its answers are right, as to {texts[0]}: "
            f"{found[0][0].describe(found[0][1])}"
        )
    where = found[number][0].describe(found[number][1])
    reason = f"{texts[number]} makes {right[number]}, and the model says {answers[number]}: {where}"
    pair = indistinguishable(model, kinds)
    if pair is not None:
        sources = [_text(task, own, assignment) or own.describe(assignment) for own, assignment in pair]
        needs = [task.vocabulary.decode(own.tokens(assignment[None])[1]) or "the end" for own, assignment in pair]
        queries = [own.field.query for own, _ in pair]
        conflict = Conflict((sources[0], sources[1]), (queries[0], queries[1]), (needs[0], needs[1]))
        reason += f"; the window is not sufficient: {conflict.describe()}"
    return Certificate("wrong", reason, texts[number])


def _first_and_last(met: Sequence[Enumeration]) -> list[Enumeration]:
    """The first and the last of the predictions in which an assignment occurs: the shortest and the longest problem."""
    return [met[0], met[-1]] if len(met) > 1 else [met[0]]


def _text(task: DigitTask, own: Enumeration, assignment: Tensor) -> str | None:
    """A problem in which an assignment occurs; `None` if none is found."""
    with suppress(CannotDecideError):
        return task.vocabulary.decode(own.problem(assignment).source[0])
    return None


@torch.no_grad()
def _deviations(basis: Basis, model: TransformerModel, bounded: BoundedModel, shape: Shape) -> dict[str, float]:
    """The largest difference from float64 of each way to compute logits: paths, pieces, batches, orders.

    Raises:
        CannotDecideError: If the model in float64 computes other logits than the proof.
    """
    task, exact_model = basis.task, copy.deepcopy(model).double()
    problems = task.sample(torch.Generator().manual_seed(0), 64, shape)
    long = _long_problems(task)
    exact = {id(own): predict(exact_model, own, task.layout(own.shape)) for own in (problems, long) if own is not None}
    ways = _ways(task, model, problems, long)
    path = model.path
    found: dict[str, float] = {}
    for own in ("dense", "gathered"):
        model.attend(own)
        for name, (which, compute) in ways.items():
            found[f"{own}, {name}"] = float((compute() - exact[id(which)]).abs().max())
    model.attend(path)
    alone = _receptive_field_deviation(basis, model, bounded, problems, exact[id(problems)])
    return found | {"gathered, the receptive field alone": alone}


def _ways(
    task: DigitTask, model: TransformerModel, problems: Problems, long: Problems | None
) -> dict[str, tuple[Problems, Callable[[], Tensor]]]:
    """The ways to compute logits, by name: the problems, and a function that computes their logits."""
    layout = task.layout(problems.shape)

    def in_pieces(problems: Problems, size: int) -> Tensor:
        own = task.layout(problems.shape)
        state = model.decoder_state(problems.source, model.plan(own, len(problems), size))
        pieces = prefix_of(problems.target).split(size, dim=1)
        return torch.cat([model.advance(piece, state) for piece in pieces], dim=1)

    def shuffled() -> Tensor:
        order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
        return predict(model, problems[order], layout)[order.argsort()]

    def alone() -> Tensor:
        return torch.cat([predict(model, problems[row : row + 1], layout) for row in range(len(problems))])

    ways: dict[str, tuple[Problems, Callable[[], Tensor]]] = {
        "one batch": (problems, lambda: predict(model, problems, layout)),
        "the batch shuffled": (problems, shuffled),
        "batches of one": (problems, alone),
        "cached, a token at a time": (problems, lambda: in_pieces(problems, 1)),
        "cached, in pieces of 5 tokens": (problems, lambda: in_pieces(problems, 5)),
    }
    if long is not None:
        ways["long problems, one batch"] = long, lambda: predict(model, long, task.layout(long.shape))
        ways[f"long problems, in pieces of {_PIECES} tokens"] = long, lambda: in_pieces(long, _PIECES)
    return ways


def _receptive_field_deviation(
    basis: Basis, model: TransformerModel, bounded: BoundedModel, problems: Problems, exact: Tensor
) -> float:
    """The largest difference from float64 of logits that are computed from receptive fields alone.

    Args:
        basis: The basis of the proof.
        model: The model.
        bounded: The model as the proof computes it.
        problems: Some problems.
        exact: Their logits in float64.

    Raises:
        CannotDecideError: If the logits of the proof differ from those of the model in float64.
    """
    layout, prefix = basis.task.layout(problems.shape), prefix_of(problems.target)
    every = ReceptiveFields(basis.window, layout, model.positioning)
    fields = [every.at(query) for query in range(len(layout.target))]
    strings = {"source": problems.source, "prefix": prefix}
    leaves = [torch.stack([strings[string][:, i] for string, i in field.leaves], dim=1) for field in fields]
    proved = torch.stack([bounded.logits(f, tokens) for f, tokens in zip(fields, leaves, strict=True)], dim=1)
    off = float((proved - exact).abs().max())
    if not off <= _EXACT * (1 + float(proved.abs().max())):
        raise CannotDecideError(f"the model computes other logits than this proof is of: they differ by {off:.2g}")
    logits = [receptive_field_logits(model, field, tokens) for field, tokens in zip(fields, leaves, strict=True)]
    return float((torch.stack(logits, dim=1) - exact).abs().max())


def _long_problems(task: DigitTask) -> Problems | None:
    """A few problems whose targets are longer than one piece; where targets are short, whose sources are so."""
    generator, length = torch.Generator().manual_seed(0), task.max_length
    with suppress(ProblemError):
        while True:
            (shape, *_) = task.evaluation_shapes(length, UNIFORM, generator)
            read, tokens = task.num_tokens(shape)
            if tokens > _PIECES or read > 4 * _PIECES:
                return task.sample(generator, 2, shape)
            length = length + 1 if len(shape) > 1 and tokens > length + 2 else 2 * length
    return None


@torch.no_grad()
def _outside(basis: Basis, model: TransformerModel, shape: Shape) -> float:
    """The largest change of a logit when all tokens outside its receptive field are replaced."""
    task = basis.task
    layout = task.layout(shape)
    generator = torch.Generator().manual_seed(1)
    one, other = (task.sample(generator, 64, shape) for _ in range(2))
    fields, most = ReceptiveFields(basis.window, layout), 0.0
    for query in range(len(layout.target)):
        field = fields.at(query)
        mixed = Problems(shape, other.source.clone(), other.target.clone())
        read = [number for string, number in field.leaves if string == "source"]
        mixed.source[:, read] = one.source[:, read]
        held = [number - 1 for string, number in field.leaves if string == "prefix" and number]  # the token before one
        mixed.target[:, held] = one.target[:, held]
        logits = (predict(model, problems, layout)[:, query] for problems in (one, mixed))
        most = max(most, float((next(logits) - next(logits)).abs().max()))
    return most
