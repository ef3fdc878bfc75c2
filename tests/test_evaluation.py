import itertools
import math
import re
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from abc_toolkit import evaluation
from abc_toolkit.calibration import Condition, Rule, Window, Windowed
from abc_toolkit.data import SMALL, held_out
from abc_toolkit.errors import UserError
from abc_toolkit.evaluation import (
    LONGEST,
    check_memory,
    check_sets,
    chunks,
    evaluate_models,
    evaluation_problems,
    greedy,
    parse_lengths,
    predict,
    solve_problems,
)
from abc_toolkit.layout import Layout
from abc_toolkit.metrics import wilson_interval
from abc_toolkit.positions import NoPE, Sinusoidal
from abc_toolkit.tasks import Addition, Multiplication, Parity, Successor, Task
from abc_toolkit.tasks.base import SETS, UNIFORM
from abc_toolkit.transformer import Architecture, Transformer, teacher_forced
from abc_toolkit.vocabulary import BOS, EOS

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


def make(task: Task, num_encoder_layers: int, norm: str, windowed: bool) -> Transformer:
    encoder = [Rule("encoder", 0, 1, "operand 1")] if num_encoder_layers else []
    window = Window("any", num_encoder_layers, 1, 2, (*RULES, *encoder), {})
    position = Windowed(window, NoPE()) if windowed else Sinusoidal(("place", "segment"), 100.0)
    architecture = Architecture(num_encoder_layers, 1, 16, 2, 32, norm)  # type: ignore[arg-type]
    return Transformer(len(task.vocabulary), architecture, position).double().eval()


def taught(task: Task, model: Transformer, steps: int) -> Transformer:
    """The model after a few steps of training: right at times."""
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        shape = task.training_shapes()[step % len(task.training_shapes())]
        problems = task.sample(generator, 48, shape)
        logits = teacher_forced(model, problems, task.layout(shape))
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), problems.target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def variants(task: Task, model: Transformer) -> Iterator[Transformer]:
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
def written(model: Transformer, source: Tensor, layout: Layout) -> Tensor:
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
    ],
)
def test_lengths(spec: str, expected: list[int]) -> None:
    assert parse_lengths(spec, 6) == expected


@pytest.mark.parametrize(
    "spec",
    [
        *["", " ", ",", "1x,", "0", "0x", "-1", "+5", "1.5", "1_0", "1e3", "x", "x10", "10 x", "10X", "ten", "\u0663"],
        *["1:2:3", ":", "1x:", ":6", "2x:1x", "7:1x", "0:5", "1x;2x", "1\n2"],
        *[f"{LONGEST + 1}", "999999x", "9" * 5000, "1:9999999"],
    ],
    ids=lambda spec: repr(spec[:9]),
)
def test_what_is_no_length(spec: str) -> None:
    with pytest.raises(UserError, match="--length") as error:
        parse_lengths(spec, 6)
    assert len(str(error.value).splitlines()) == 1


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
    assert check_sets(["zeros", "uniform", "zeros"]) == ("zeros", "uniform")
    for sets, named in ((["uniform", "hard"], "'hard'"), ([], "empty")):
        with pytest.raises(UserError, match=named) as error:
            check_sets(sets)
        assert all(name in str(error.value) for name in SETS)


def test_memory_is_checked() -> None:
    check_memory(Addition(), 1000)
    with pytest.raises(UserError, match=rf"length {LONGEST}: .* GiB"):
        check_memory(Addition(), LONGEST)


# The problems.


@ALL
@pytest.mark.parametrize("set_name", SETS)
def test_sets_have_the_size_asked_for(task: Task, set_name: str) -> None:
    for length, samples in itertools.product((1, 2, 9), (1, 3, 20)):
        batches = evaluation_problems(task, length, set_name, samples, 0)
        assert sum(map(len, batches)) == samples
        assert max(map(len, batches)) - min(map(len, batches)) <= 1
        for batch in batches:
            for source, target in zip(batch.source, batch.target, strict=True):
                assert task.vocabulary.decode(target) == task.solve(task.vocabulary.decode(source))
        again = evaluation_problems(task, length, set_name, samples, 0)
        assert all(torch.equal(a.source, b.source) for a, b in zip(batches, again, strict=True))
    first, other = (evaluation_problems(task, 40, set_name, 20, seed) for seed in (0, 1))
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


# Decoding.


@ALL
def test_parallel_and_stepwise_solve_the_same_problems(task: Task) -> None:
    solved = total = ended_early = 0
    shapes = task.training_shapes()[-2:]
    problems = [task.sample(torch.Generator().manual_seed(1), 40, shape) for shape in shapes]
    for num_encoder_layers, norm, windowed in itertools.product((0, 1), ("pre", "post"), (False, True)):
        model = taught(task, make(task, num_encoder_layers, norm, windowed), 25)
        for variant in variants(task, model):
            for batch in problems:
                layout = task.layout(batch.shape)
                parallel, steps = (predict(variant, batch, layout, decode) for decode in ("parallel", "steps"))
                right = (parallel == batch.target).all(dim=1)
                assert torch.equal(right, (steps == batch.target).all(dim=1))
                # Up to its first error the one is the other.
                differs = (parallel != batch.target).long().cumsum(dim=1) - (parallel != batch.target).long() == 0
                assert torch.equal(parallel[differs], steps[differs])
                assert torch.equal(steps[:3], written(variant, batch.source[:3], layout))
                solved += int(right.sum())
                total += len(batch)
                ended_early += int((steps[:, -2] == EOS).sum())
    assert 20 < solved < 0.9 * total
    assert 0 < ended_early < total


def test_a_row_that_has_ended_stays_so() -> None:
    task = TASKS["successor"]
    problems = task.sample(torch.Generator().manual_seed(0), 300, (2,))
    layout = task.layout((2,))
    model = make(task, 0, "pre", False)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.7)
    decoded = greedy(model, problems.source, layout)
    ended = (decoded == EOS).long()
    assert torch.equal(ended, ended.cummax(dim=1).values)
    assert len(decoded.unique(dim=0)) > 3


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


def models(task: Task) -> dict[str, Transformer]:
    return {"fit": make(task, 0, "pre", False), "retrain": taught(task, make(task, 0, "pre", True), 40)}


@ALL
def test_rows(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    own = models(task)
    lengths, samples = [1, 2, 3], 24
    rows, digits = evaluate_models(task, own, lengths, SETS, samples, "steps", 4, CPU)
    assert [(row.length, row.set, row.weights) for row in rows] == list(itertools.product(lengths, SETS, own))
    assert 0 < sum(row.exact_match for row in rows) < len(rows)
    expected_digits = []
    for row in rows:
        batches = evaluation_problems(task, row.length, row.set, samples, 4)
        model = own[row.weights]
        pairs = [
            (predicted.tolist(), target.tolist())
            for batch in batches
            for predicted, target in zip(
                greedy(model, batch.source, task.layout(batch.shape)), batch.target, strict=True
            )
        ]
        right = sum(predicted == target for predicted, target in pairs)
        low, high = wilson_interval(right, samples)
        assert row.plain() == {
            "task": task.name,
            "set": row.set,
            "length": row.length,
            "tokens": max(batch.source.shape[1] + batch.target.shape[1] for batch in batches),
            "samples": samples,
            "exact_match": right / samples,
            "low": low,
            "high": high,
            "decode": "steps",
            "seed": 4,
            "weights": row.weights,
        }
        if len(batches) == 1:
            for place in range(len(pairs[0][1]) - 1):
                accuracy = sum(p[place] == t[place] for p, t in pairs) / samples
                expected_digits.append((row.weights, row.set, row.length, place, pytest.approx(accuracy)))
    assert [tuple(d[k] for k in ("weights", "set", "length", "place", "accuracy")) for d in digits] == expected_digits
    # Decoded or judged in parallel, in one piece or in many.
    for decode, cells in (("parallel", 2**25), ("parallel", 2**11), ("steps", 1)):
        monkeypatch.setattr(evaluation, "_CELLS", cells)
        again, digits_again = evaluate_models(task, own, lengths, SETS, samples, decode, 4, CPU)  # type: ignore[arg-type]
        assert [r.plain() | {"decode": ""} for r in again] == [r.plain() | {"decode": ""} for r in rows]
        assert digits_again == (digits if decode == "steps" else [])


@pytest.mark.parametrize(("cells", "pieces"), [(1, 10), (4 * 4 * 9 * 4, 3), (2**25, 1)])
def test_chunks_are_the_batches(cells: int, pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "_CELLS", cells)
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
