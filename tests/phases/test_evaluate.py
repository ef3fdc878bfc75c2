import itertools
import json
import math
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from abc_toolkit.calibration import capture
from abc_toolkit.calibration.capture import chunks
from abc_toolkit.errors import UserError
from abc_toolkit.layout import Layout
from abc_toolkit.models import decoding
from abc_toolkit.models.attention import AttentionPath
from abc_toolkit.models.base import Architecture, predict
from abc_toolkit.models.decoding import greedy, planned, solve_problems, solves
from abc_toolkit.models.memory import check_memory
from abc_toolkit.models.transformer import EncoderDecoder
from abc_toolkit.phases import measure
from abc_toolkit.phases.measure import Total, evaluate_models, evaluation_problems, read_rows
from abc_toolkit.positions import NoPE, Sinusoidal
from abc_toolkit.report import terminal
from abc_toolkit.seeds import seeded
from abc_toolkit.tasks import (
    Addition,
    LongMultiplication,
    MultiOperandAddition,
    Multiplication,
    Parity,
    Problems,
    Successor,
    Task,
)
from abc_toolkit.tasks.base import SMALL, UNIFORM, check_suites
from abc_toolkit.tasks.digits.base import SETS, UNEQUAL
from abc_toolkit.tasks.lengths import LONGEST, MOST_LENGTHS, parse_lengths
from abc_toolkit.tasks.objective import wilson_interval
from abc_toolkit.training.data import draw, held_out
from abc_toolkit.vocabulary import BOS, EOS
from abc_toolkit.windows import Condition, Rule, Window, Windowed
from tests.grids import covering

CPU = torch.device("cpu")
TASKS = {
    "successor": Successor(max_length=2),
    "addition": Addition(max_length=2),
    "addition unpadded": Addition(max_length=2, padding="none"),
    "multiplication": Multiplication(max_length=2),
    "parity": Parity(max_length=4),
    "parity label": Parity(max_length=4, form="label"),
}
ALL = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
OWN, BELOW = ((Condition("place", offset, "place"),) for offset in (0, 1))
RULES = (
    Rule("cross", 0, 0, "operand 1", OWN),
    Rule("cross", 0, 0, "operand 2", BELOW, -0.5),
    Rule("cross", 0, 1, "operand 2", OWN),
    Rule("cross", 0, 1, None, (Condition("raw", 0),), fallback=True),
    Rule("decoder", 0, 0, "answer", BELOW),
    Rule("decoder", 0, 1, "answer", (Condition("place", 1),)),
    Rule("decoder", 0, 1, "start", fallback=True),
)


def make(task: Task, num_encoder_layers: int, norm: str, windowed: bool) -> EncoderDecoder:
    encoder = [Rule("encoder", 0, 1, "operand 1")] if num_encoder_layers else []
    window = Window("any", num_encoder_layers, 1, 2, (*RULES, *encoder), {})
    position = Windowed(window, NoPE()) if windowed else Sinusoidal(("place", "segment"), 100.0)
    architecture = Architecture(num_encoder_layers, 1, 16, 2, 32, norm)  # type: ignore[arg-type]
    return EncoderDecoder(len(task.vocabulary), architecture, position).double().eval()


def taught(task: Task, model: EncoderDecoder, steps: int) -> EncoderDecoder:
    """The model after a few steps of training: right at times."""
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        shape = task.training_shapes()[step % len(task.training_shapes())]
        problems = task.sample(generator, 48, shape)
        logits = predict(model, problems, task.layout(shape))
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), problems.target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def variants(task: Task, model: EncoderDecoder) -> Iterator[EncoderDecoder]:
    """The model, and others whose `EOS` comes sooner or later, always or never."""
    yield model
    with torch.no_grad():
        for bias in (2.0, 50.0, -2.0, -50.0):
            own = model.output.bias[EOS].item()
            model.output.bias[EOS] += bias
            yield model
            model.output.bias[EOS] = own
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.1
    yield model


@torch.no_grad()
def written(model: EncoderDecoder, source: Tensor, layout: Layout) -> Tensor:
    """Greedy decoding without a cache: the whole prefix anew for every token, one problem at a time."""
    rows = []
    for row in source:
        tokens = torch.zeros(len(layout.target), dtype=torch.long)
        for i in range(len(tokens)):
            # The tokens to come are whatever they are: no logit sees them.
            prefix = torch.cat([torch.tensor([BOS]), tokens[:-1]])
            tokens[i] = model(row[None], prefix[None], layout)[0, i].argmax()
            if tokens[i] == EOS:
                tokens[i:] = EOS
                break
        rows.append(tokens)
    return torch.stack(rows)


# What lengths a user may ask for.


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("60", [60]),
        ("1", [1]),
        ("10x", [60]),
        ("1x,2x,60", [6, 12, 60]),
        ("60,2x,1x,12", [6, 12, 60]),
        ("1x:4x", [6, 12, 18, 24]),
        ("3x:3x", [18]),
        ("5:8", [5, 6, 7, 8]),
        ("1x:8", [6, 7, 8]),
        ("5:1x", [5, 6]),
        (" 1x , 7 : 9 , 2x : 3x ", [6, 7, 8, 9, 12, 18]),
        ("007", [7]),
        (str(LONGEST), [LONGEST]),
        (f"2:{MOST_LENGTHS + 1}", list(range(2, MOST_LENGTHS + 2))),
        (f"1x:{MOST_LENGTHS}x", [6 * n for n in range(1, MOST_LENGTHS + 1)]),
    ],
)
def test_lengths(spec: str, expected: list[int]) -> None:
    assert parse_lengths(spec, 6) == expected


@pytest.mark.parametrize(
    "spec",
    [
        *["", " ", ",", "1x,", "0", "0x", "-1", "+5", "1.5", "1_0", "1e3", "x", "x10", "10 x", "10X", "ten", "\u0663"],
        *["1:2:3", ":", "1x:", ":6", "2x:1x", "7:1x", "0:5", "1x;2x", "1\n2"],
        *[f"{LONGEST + 1}", "999999999x", "9" * 5000, "1:9999999", f"1:{MOST_LENGTHS + 1}", "1x:99999x", "9:999999x"],
    ],
    ids=lambda spec: repr(spec[:9]),
)
def test_what_is_no_length(spec: str) -> None:
    with pytest.raises(UserError, match="--length") as error:
        parse_lengths(spec, 6)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("spec", "task", "expected"),
    [
        ("3x200", LongMultiplication(), [(3, 200)]),
        ("20x20, 10x ,200x3,1x,20x20", LongMultiplication(), [5, 50, (20, 20), (200, 3)]),
        ("12x12", Addition(), [(12, 12)]),
        ("2x30", MultiOperandAddition(), [(2, 30)]),
        ("6,2x", Successor(), [6, 12]),
    ],
)
def test_sizes(spec: str, task: Task, expected: list) -> None:
    assert task.lengths(spec) == expected


@pytest.mark.parametrize(
    ("spec", "task", "message"),
    [
        ("3x200", Successor(), "successor has no problems of shape 3x200, but such as 1, 2, 3"),
        ("1x,3x4", Addition(), "addition has no problems of shape 3x4, but such as 1x1, 2x2, 3x3"),
        ("3x4x5", LongMultiplication(), "no problems of shape 3x4x5"),
        ("0x4", LongMultiplication(), "'0' is not a length"),
        (f"4x{10**10}", LongMultiplication(), "is not a length"),
        ("3x:3x4", LongMultiplication(), "'3x4' is not a length"),
    ],
)
def test_what_is_no_shape(spec: str, task: Task, message: str) -> None:
    with pytest.raises(UserError, match=f"--length.*{re.escape(message)}") as error:
        task.lengths(spec)
    assert len(str(error.value).splitlines()) == 1


def test_a_shape_is_evaluated_by_itself() -> None:
    """The rows of a shape are those of its problems alone, beside a length."""
    task = LongMultiplication(max_length=2)
    model = make(task, 0, "pre", False)
    found = evaluate_models(task, {"fit": model}, [2, (1, 2), (2, 1)], (UNIFORM, UNEQUAL), 10, "steps", 0, CPU)
    rows, digits = found.rows, found.digits
    sizes = [(row.length, row.shape, row.suite, row.tokens) for row in rows]
    tokens = {shape: sum(task.num_tokens(shape)) for shape in [(1, 2), (2, 1), (2, 2)]}
    assert sizes[0] == (2, None, UNIFORM, tokens[2, 2])
    assert sizes[2:] == [(2, shape, name, tokens[shape]) for shape in [(1, 2), (2, 1)] for name in (UNIFORM, UNEQUAL)]
    assert {row["suite"] for row in digits} <= {UNIFORM, UNEQUAL}
    assert all(batch.shape == (1, 2) for batch in evaluation_problems(task, (1, 2), UNEQUAL, 10, 0))


@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 40), st.booleans(), st.booleans())
def test_ranges(longest: int, start: int, more: int, first_x: bool, last_x: bool) -> None:
    first, last = start * (longest if first_x else 1), (start + more) * (longest if last_x else 1)
    spec = f"{start}{'x' * first_x}:{start + more}{'x' * last_x}"
    if first > last:
        with pytest.raises(UserError, match=re.escape(f"write {spec.split(':')[1]}:{spec.split(':')[0]}")):
            parse_lengths(spec, longest)
        return
    lengths = parse_lengths(spec, longest)
    assert lengths[0] == first
    assert lengths[-1] <= last < lengths[-1] + (longest if first_x and last_x else 1)
    assert {b - a for a, b in itertools.pairwise(lengths)} <= {longest if first_x and last_x else 1}


def test_sets_are_checked() -> None:
    assert check_suites(TASKS["addition"], ["zeros", "uniform", "zeros"]) == ("zeros", "uniform")
    for sets, named in ((["uniform", "hard"], "'hard'"), ([], "empty")):
        with pytest.raises(UserError, match=named) as error:
            check_suites(TASKS["addition"], sets)
        assert all(name in str(error.value) for name in SETS)


def _limited(monkeypatch: pytest.MonkeyPatch, what: str, limit: int) -> torch.device:
    """A device of which a process may take so many bytes."""
    if what == "gpu":
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (limit, 2**50))
        return torch.device("cuda")
    if what == "process":
        monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, resource.RLIM_INFINITY))
    if what == "container":
        monkeypatch.setattr(Path, "read_text", lambda path, **_: f"{limit}\n" if path.name == "memory.max" else "")
    if what == "machine":
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=limit))
    return CPU


@pytest.mark.parametrize("what", ["machine", "process", "container", "gpu"])
def test_a_problem_beyond_memory_is_refused(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Addition()
    for limit, largest, too_large in ((2**24, 100, 100_000), (2**33, 1_000_000, LONGEST)):
        device = _limited(monkeypatch, what, limit)
        for windowed, path in itertools.product((False, True), ("auto", "dense", "gathered")):
            model = make(task, 0, "pre", windowed)
            if windowed or path != "gathered":
                model.attend(path)  # type: ignore[arg-type]
            check_memory(task, model, (largest, largest), device)
            with pytest.raises(UserError, match=rf"length {too_large:,}: .* GiB .* {limit / 2**30:.1f} GiB"):
                check_memory(task, model, (too_large, 1), device)


def test_a_container_without_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("max\n", ""):
        monkeypatch.setattr(Path, "read_text", lambda _, encoding, text=text: text)
        check_memory(Addition(), make(Addition(), 0, "pre", True), (1000, 1000), CPU)

    def missing(_: Path, encoding: str) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    check_memory(Addition(), make(Addition(), 0, "pre", True), (1000, 1000), CPU)


# The problems.


@ALL
@pytest.mark.parametrize("set_name", SETS)
def test_sets_have_the_size_asked_for(task: Task, set_name: str) -> None:
    for length, samples in itertools.product((1, 2, 9), (1, 3, 20)):
        batches = list(evaluation_problems(task, length, set_name, samples, 0))
        assert sum(map(len, batches)) == samples
        assert max(map(len, batches)) - min(map(len, batches)) <= 1
        for batch in batches:
            for source, target in zip(batch.source, batch.target, strict=True):
                assert task.vocabulary.decode(target) == task.solve(task.vocabulary.decode(source))
        again = list(evaluation_problems(task, length, set_name, samples, 0))
        assert all(torch.equal(a.source, b.source) for a, b in zip(batches, again, strict=True))
    first, other = (list(evaluation_problems(task, 40, set_name, 20, seed)) for seed in (0, 1))
    assert not all(a.source.equal(b.source) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(
    "task",
    [
        Successor(),
        Addition(),
        Multiplication(),
        Parity(),
        Addition(padding="none"),
        Addition(padding="fixed", width=30),
    ],
    ids=lambda task: f"{task.name} {getattr(task, 'padding', '')}",
)
def test_uniform_problems_of_trained_lengths_are_held_out(task: Task) -> None:
    for length in (1, task.max_length // 2, task.max_length, task.max_length + 1):
        for batch in evaluation_problems(task, length, UNIFORM, 100, 0):
            small = task.num_problems(batch.shape) < SMALL
            share = held_out(task, batch).double().mean()
            assert share == 0 if small else share == 1 if length <= task.max_length else share < 0.3


@ALL
@pytest.mark.parametrize("set_name", SETS)
def test_problems_that_fit_one_piece_are_drawn_at_once(task: Task, set_name: str) -> None:
    for length, samples, seed in itertools.product((1, 4, 60), (5, 40), (0, 3)):
        generator = seeded(seed, 10, length, SETS.index(set_name))
        shapes = task.evaluation_shapes(length, set_name, generator)[:samples]
        pieces = list(evaluation_problems(task, length, set_name, samples, seed))
        assert [piece.shape for piece in pieces] == list(shapes)
        for number, (shape, piece) in enumerate(zip(shapes, pieces, strict=True)):
            share = samples // len(shapes) + (number < samples % len(shapes))
            if set_name == UNIFORM and length <= task.max_length and task.num_problems(shape) >= SMALL:
                expected = draw(task, generator, share, shape, for_validation=True, set_name=set_name)
            else:
                expected = task.sample(generator, share, shape, set_name)
            assert torch.equal(piece.source, expected.source)
            assert torch.equal(piece.target, expected.target)


@pytest.mark.parametrize(("name", "set_name", "tokens"), covering([*TASKS], SETS, [1, 97, 10**9]))
def test_problems_come_in_pieces_of_bounded_size(
    name: str, set_name: str, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = TASKS[name]
    monkeypatch.setattr(measure, "_TOKENS_DRAWN", tokens)
    for length, samples in itertools.product((1, 3, 20), (1, 11, 50)):
        pieces = list(evaluation_problems(task, length, set_name, samples, 0))
        assert sum(map(len, pieces)) == samples
        assert all(len(piece) == 1 or piece.source.numel() + piece.target.numel() <= tokens for piece in pieces)
        # The shapes follow one another, each with its part of the samples.
        shapes = task.evaluation_shapes(length, set_name, seeded(0, 10, length, SETS.index(set_name)))[:samples]
        parts = [samples // len(shapes) + (number < samples % len(shapes)) for number in range(len(shapes))]
        problems = [(piece.shape, row) for piece in pieces for row in zip(piece.source, piece.target, strict=True)]
        expected = [shape for shape, part in zip(shapes, parts, strict=True) for _ in range(part)]
        assert [shape for shape, _ in problems] == expected
        for _, (source, target) in problems:
            assert task.vocabulary.decode(target) == task.solve(task.vocabulary.decode(source))
        if length == 20 and samples == 50:
            assert len({task.vocabulary.decode(source) for _, (source, _) in problems}) > 3


def test_problems_of_trained_lengths_are_held_out_in_pieces_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_TOKENS_DRAWN", 200)
    task = Addition()
    pieces = list(evaluation_problems(task, task.max_length, UNIFORM, 60, 0))
    assert len(pieces) > 5
    assert all(held_out(task, piece).all() for piece in pieces)


@pytest.mark.parametrize("set_name", SETS)
def test_no_problem_is_made_before_it_is_due(set_name: str) -> None:
    pieces = evaluation_problems(Addition(), 6000, set_name, 10**9, 0)
    for piece in itertools.islice(pieces, 3):
        assert 0 < piece.source.numel() + piece.target.numel() <= 2**20


# Decoding.


@ALL
def test_parallel_and_stepwise_solve_the_same_problems(task: Task) -> None:
    solved = total = ended_early = 0
    shapes = task.training_shapes()[-2:]
    problems = [task.sample(torch.Generator().manual_seed(1), 40, shape) for shape in shapes]
    for num_encoder_layers, norm, windowed in covering((0, 1), ("pre", "post"), (False, True)):
        model = taught(task, make(task, num_encoder_layers, norm, windowed), 25)
        for number, variant in enumerate(variants(task, model)):
            for batch in problems:
                layout = task.layout(batch.shape)
                variant.attend("dense")
                parallel = predict(variant, batch, layout).argmax(-1)
                expected = written(variant, batch.source[:3], layout)
                right = (parallel == batch.target).all(dim=1)
                variant.attend("gathered" if windowed and number % 2 == 0 else "dense")
                plan = variant.plan(layout, len(batch), (1, 2, 64)[number % 3])
                assert plan.gathers == (windowed and number % 2 == 0)
                assert torch.equal(solves(variant, batch, plan), right)
                steps = greedy(variant, batch.source, plan)
                assert torch.equal(right, (steps == batch.target).all(dim=1))
                # Up to its first error the one is the other.
                wrong = (parallel != batch.target).long()
                differs = wrong.cumsum(dim=1) - wrong == 0
                assert torch.equal(parallel[differs], steps[differs])
                assert torch.equal(steps[:3], expected)
                solved += int(right.sum())
                total += len(batch)
                ended_early += int((steps[:, -2] == EOS).sum())
    assert 10 < solved < 0.9 * total
    assert 0 < ended_early < total


def test_a_row_that_has_ended_stays_so() -> None:
    task = TASKS["successor"]
    problems = task.sample(torch.Generator().manual_seed(0), 300, (2,))
    model = make(task, 0, "pre", False)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.7)
    decoded = greedy(model, problems.source, model.plan(task.layout((2,)), 300))
    ended = (decoded == EOS).long()
    assert torch.equal(ended, ended.cummax(dim=1).values)
    assert len(decoded.unique(dim=0)) > 3


def own_answers(task: Task, length: int, batch: int, path: AttentionPath) -> tuple[EncoderDecoder, Problems]:
    """A random model, and problems whose right answers are what it says."""
    model = make(task, 0, "pre", True)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        model.output.bias[EOS] = -1e9
    shape = task.evaluation_shapes(length, UNIFORM, torch.Generator())[0]
    source = task.sample(torch.Generator().manual_seed(length), batch, shape).source
    problems = Problems(shape, source, written(model, source, task.layout(shape)))
    model.attend(path)
    return model, problems


@pytest.mark.parametrize("path", ["dense", "gathered"])
@settings(max_examples=25)
@given(data=st.data())
def test_any_error_is_found_and_the_rest_is_left_out(path: AttentionPath, data: st.DataObject) -> None:
    task = TASKS[data.draw(st.sampled_from(["successor", "addition", "parity"]))]
    model, problems = own_answers(task, data.draw(st.integers(1, 9)), 3, path)
    length = problems.target.shape[1]
    # In each problem an error at one place, or none.
    errors = data.draw(st.lists(st.none() | st.integers(0, length - 1), min_size=3, max_size=3))
    for row, place in enumerate(errors):
        if place is not None:
            problems.target[row, place] = (problems.target[row, place] + 1) % len(task.vocabulary)
    ahead = data.draw(st.integers(1, length + 1))
    plan = model.plan(task.layout(problems.shape), 3, ahead)
    seen, advance = [], model.advance

    def spy(tokens: Tensor, state: Any) -> Tensor:
        seen.append(tokens.shape[1])
        return advance(tokens, state)

    model.advance = spy  # type: ignore[method-assign]
    assert solves(model, problems, plan).tolist() == [place is None for place in errors]
    # It stops after the piece with the last problem's first error, and never before a right problem's end.
    last = max(length - 1 if place is None else place for place in errors)
    assert sum(seen) == min(length, (last // ahead + 1) * ahead)
    assert all(size == ahead for size in seen[:-1])


@pytest.mark.parametrize("path", ["dense", "gathered"])
@pytest.mark.parametrize("task", ["successor", "addition unpadded", "parity"])
def test_guessing_ahead_changes_no_answer(task: str, path: AttentionPath) -> None:
    model, problems = own_answers(TASKS[task], 40, 3, path)
    assert len(problems.target.unique(dim=1).T) > 3  # so that guesses fail
    for ahead, batch in itertools.product((1, 2, 7, 256), (1, 3)):
        plan = model.plan(TASKS[task].layout(problems.shape), batch, ahead)
        assert torch.equal(greedy(model, problems.source[:batch], plan), problems.target[:batch])


@pytest.mark.parametrize("path", ["dense", "gathered"])
@pytest.mark.parametrize("held", [1, 200, 10**6])
def test_problems_are_done_in_batches_that_fit(path: AttentionPath, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_TOKENS_HELD", held)
    task = Addition()
    model = make(task, 0, "pre", True)
    model.attend(path)
    problems = task.sample(torch.Generator().manual_seed(0), 25, (3, 3))
    layout = task.layout((3, 3))
    tokens = len(layout.source) + len(layout.target)
    for decode in ("parallel", "steps"):
        batches = [batch for batch, _ in planned(model, problems, layout, decode)]  # type: ignore[arg-type]
        assert torch.equal(torch.cat([batch.source for batch in batches]), problems.source)
        assert torch.equal(torch.cat([batch.target for batch in batches]), problems.target)
        assert all(len(batch) * tokens <= max(held, tokens) for batch in batches)
        assert len(batches) == {1: 25, 200: math.ceil(25 / (200 // tokens)), 10**6: 1}[held]


@ALL
def test_answers_keep_the_order_of_the_problems(task: Task) -> None:
    model = taught(task, make(task, 0, "pre", True), 30)
    batches = [task.sample(torch.Generator().manual_seed(2), 300, shape) for shape in task.training_shapes()[-2:]]
    rows = [(batch.shape, row) for batch in batches for row in batch.source]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    problems = [(rows[i][0], task.vocabulary.decode(rows[i][1])) for i in order]
    answers = solve_problems(model, task, problems)
    assert len(answers) == len(problems)
    assert len(set(answers)) > 1
    for number in range(0, len(order), 29):
        shape, row = rows[order[number]]
        expected = written(model, row[None], task.layout(shape))[0]
        assert answers[number] == task.answer(task.vocabulary.decode(expected))
    assert solve_problems(model, task, []) == []


# Evaluation.


def models(task: Task) -> dict[str, EncoderDecoder]:
    return {"fit": make(task, 0, "pre", False), "retrain": taught(task, make(task, 0, "pre", True), 40)}


@ALL
def test_rows(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    own = models(task)
    lengths, samples = [1, 2, 3], 24
    found = evaluate_models(task, own, lengths, SETS, samples, "steps", 4, CPU)
    rows, digits = found.rows, found.digits
    assert [(row.length, row.suite, row.weights) for row in rows] == list(itertools.product(lengths, SETS, own))
    assert 0 < sum(row.value for row in rows) < len(rows)
    expected_digits = []
    for row in rows:
        batches = list(evaluation_problems(task, row.length, row.suite, samples, 4))
        model = own[row.weights]
        pairs = [
            (predicted.tolist(), target.tolist())
            for batch in batches
            for predicted, target in zip(
                greedy(model, batch.source, model.plan(task.layout(batch.shape), len(batch))), batch.target, strict=True
            )
        ]
        right = sum(predicted == target for predicted, target in pairs)
        low, high = wilson_interval(right, samples)
        assert row.plain() == {
            "task": task.name,
            "suite": row.suite,
            "length": row.length,
            "tokens": max(batch.source.shape[1] + batch.target.shape[1] for batch in batches),
            "samples": samples,
            "metric": "exact_match",
            "value": right / samples,
            "low": low,
            "high": high,
            "decode": "steps",
            "seed": 4,
            "weights": row.weights,
            "shape": None,
        }
        if len({batch.shape for batch in batches}) == 1:
            for place in range(len(pairs[0][1]) - 1):
                accuracy = sum(p[place] == t[place] for p, t in pairs) / samples
                expected_digits.append((row.weights, row.suite, row.length, place, pytest.approx(accuracy)))
    assert [tuple(d[k] for k in ("weights", "suite", "length", "place", "accuracy")) for d in digits] == expected_digits
    # Decoded or judged in parallel, in one piece or in many, by either path.
    for decode, path, sizes in (
        ("parallel", "dense", {}),
        ("parallel", "gathered", {"_TOKENS_HELD": 90, "_TOKENS_AHEAD": 7}),
        ("steps", "gathered", {"_TOKENS_HELD": 90, "_TOKENS_GUESSED": 100}),
    ):
        own["retrain"].attend(path)  # type: ignore[arg-type]
        with monkeypatch.context() as patch:
            for name, size in sizes.items():
                patch.setattr(decoding, name, size)
            repeated = evaluate_models(task, own, lengths, SETS, samples, decode, 4, CPU)  # type: ignore[arg-type]
            again, digits_again = repeated.rows, repeated.digits
        assert [r.plain() | {"decode": ""} for r in again] == [r.plain() | {"decode": ""} for r in rows]
        assert digits_again == (digits if decode == "steps" else [])


def test_places_are_counted_over_pieces_of_one_shape_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_TOKENS_DRAWN", 60)
    task = TASKS["addition"]
    model = taught(task, make(task, 0, "pre", True), 40)
    batches = list(evaluation_problems(task, 3, UNIFORM, 24, 0))
    assert len(batches) > 3
    total, right = Total(task), torch.zeros(batches[0].target.shape[1] - 1)
    for batch in batches:
        total.add(model, batch, task.layout(batch.shape), "steps")
        right += (written(model, batch.source, task.layout(batch.shape)) == batch.target)[:, :-1].sum(dim=0)
    assert total.samples == 24
    assert total.accuracies() == pytest.approx((right / 24).tolist())
    other = task.sample(torch.Generator().manual_seed(0), 5, (1, 1))
    total.add(model, other, task.layout(other.shape), "steps")
    assert total.accuracies() == []
    assert total.samples == 29
    # Nothing is said about places where nothing was decoded.
    judged = Total(task)
    judged.add(model, batches[0], task.layout(batches[0].shape), "parallel")
    assert judged.accuracies() == Total(task).accuracies() == []


class Bar:
    """Stands in for `terminal.counter`: what was counted, of how many, by bar."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts: list[tuple[str, int, list[int]]] = []

        @contextmanager
        def counter(_: str, total: int, unit: str) -> Iterator[Any]:
            counted: list[int] = []
            self.counts.append((unit, total, counted))
            yield counted.append

        monkeypatch.setattr(terminal, "counter", counter)


@pytest.mark.parametrize("decode", ["parallel", "steps"])
def test_evaluation_counts_every_problem(decode: decoding.Decode, monkeypatch: pytest.MonkeyPatch) -> None:
    bar = Bar(monkeypatch)
    monkeypatch.setattr(decoding, "_TOKENS_HELD", 1)
    task = TASKS["addition"]
    own = {"fit": make(task, 0, "pre", False), "retrain": make(task, 0, "pre", True)}
    evaluate_models(task, own, [1, 7], SETS[:3], 10, decode, 0, CPU)
    ((unit, total, counted),) = bar.counts
    assert (unit, total) == ("problems", 2 * 3 * 2 * 10)
    assert counted == [1] * total


@pytest.mark.parametrize("path", ["dense", "gathered"])
def test_solving_counts_every_token(path: AttentionPath) -> None:
    counted: list[int] = []
    task = TASKS["parity"]
    model = make(task, 0, "pre", True)
    model.output.bias.data[EOS] = -1e4  # it never ends
    model.attend(path)
    lengths = (1, 49, 50, 1, 210, 49)
    solve_problems(model, task, [((length,), "1" * length) for length in lengths], counted.append)
    assert sum(counted) == sum(length + 1 for length in lengths)
    # Often enough to be seen to move, seldom enough to cost nothing.
    assert len(counted) <= sum(1 + (length + 1) // 50 for length in lengths)
    assert max(counted) <= 2 * (50 + 256)
    assert sum(count >= 50 for count in counted) >= (4 if path == "dense" else 1)


@pytest.mark.parametrize("path", ["dense", "gathered"])
def test_decoding_stops_when_every_row_has_ended(path: AttentionPath, monkeypatch: pytest.MonkeyPatch) -> None:
    task = TASKS["parity"]
    model = make(task, 0, "pre", True)
    model.attend(path)
    problems = task.sample(torch.Generator().manual_seed(0), 3, (400,))
    calls = []
    advance = model.advance
    monkeypatch.setattr(model, "advance", lambda *words: calls.append(1) or advance(*words))
    plan = model.plan(task.layout((400,)), 3, 8)
    for bias, most in ((-1e4, 401), (1e4, 1)):
        model.output.bias.data[EOS] = bias
        calls.clear()
        decoded = greedy(model, problems.source, plan)
        assert decoded.shape == problems.target.shape
        assert (decoded == EOS).all() == (bias > 0)
        assert 401 // 8 <= len(calls) <= most if bias < 0 else len(calls) == most


@pytest.mark.parametrize(("cells", "pieces"), [(1, 10), (4 * 4 * 9 * 4, 3), (2**25, 1)])
def test_chunks_are_the_batches(cells: int, pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "_CELLS", cells)
    task = Addition()
    batches = [task.sample(torch.Generator().manual_seed(0), 10, (2, 2)), task.sample(torch.Generator(), 10, (1, 1))]
    served = list(chunks(task, batches, CPU))
    sizes = [len(problems) for problems, _ in served if problems.shape == (2, 2)]
    assert len(sizes) == pieces
    assert max(sizes) - min(sizes) <= math.ceil(10 / pieces)
    for batch in batches:
        own = [problems for problems, _ in served if problems.shape == batch.shape]
        assert torch.equal(torch.cat([problems.source for problems in own]), batch.source)
        assert torch.equal(torch.cat([problems.target for problems in own]), batch.target)
    assert all(len(layout.source) == problems.source.shape[1] for problems, layout in served)


def test_results_of_an_earlier_version_are_refused_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    old = '[{"task": "parity", "set": "uniform", "length": 3, "tokens": 7, "samples": 4, "exact_match": 1.0}]'
    path.write_text(old)
    with pytest.raises(UserError, match=r"has the rows of an earlier version: do 'abc evaluate --overwrite' again$"):
        read_rows(path)
    rows = evaluate_models(TASKS["addition"], models(TASKS["addition"]), [1], (UNIFORM,), 4, "parallel", 0, CPU).rows
    path.write_text(json.dumps([row.plain() for row in rows]))
    assert read_rows(path) == tuple(rows)
