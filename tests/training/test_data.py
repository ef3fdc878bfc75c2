import itertools
import math
import random
from collections.abc import Sequence

import pytest
import torch

from abc_toolkit.errors import UserError
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
from abc_toolkit.training.data import (
    HELD_OUT_SHARE,
    SMALL,
    Data,
    TrainingBatches,
    draw,
    held_out,
    validation_problems,
)

DEFAULTS = [Successor(), Addition(), Multiplication(), Parity()]
TASKS = [
    *DEFAULTS,
    Successor(padding="fixed", width=9),
    Addition(padding="none"),
    Addition(padding="fixed", width=9),
    Addition(numbers_below=2000),
    Parity(form="label"),
    LongMultiplication(),
    MultiOperandAddition(),
]


def name(task: Task) -> str:
    return f"{task.name} {getattr(task, 'padding', getattr(task, 'form', ''))}"


def flags(task: Task, texts: Sequence[str]) -> list[bool]:
    """Which of some problems, as a person writes them, are held out."""
    held = []
    for text in texts:
        shape, source = task.parse(text)
        tokens = task.vocabulary.encode(source)[None]
        held.append(bool(held_out(task, Problems(shape, tokens, tokens[:, :0]))))
    return held


def texts(task: Task, problems: Problems) -> list[str]:
    return [task.vocabulary.decode(row) for row in problems.source]


def values(task: Task, problems: Problems) -> set[tuple[int, ...]]:
    """Problems without their padding."""
    return {tuple(map(int, text.replace("*", "+").split("+"))) for text in texts(task, problems)}


def batches(task: Task, seed: int = 0, step: int = 0, **settings: float) -> TrainingBatches:
    return TrainingBatches(task, Data(**settings), seed, lambda: step)  # type: ignore[arg-type]


def same(one: Problems, other: Problems) -> bool:
    return one.shape == other.shape and torch.equal(one.source, other.source) and torch.equal(one.target, other.target)


# Which problems are held out.


def test_padding_does_not_matter() -> None:
    numbers = random.Random(0)
    pairs = [(numbers.randrange(10**5), numbers.randrange(10 ** numbers.randrange(2, 6))) for _ in range(300)]
    expected = flags(Addition(), [f"{a}+{b}" for a, b in pairs])
    assert 5 < sum(expected) < 60
    for task in (Addition(), Addition(padding="none"), Addition(padding="fixed", width=20)):
        assert flags(task, [f"{a}+{b}" for a, b in pairs]) == expected
        assert flags(task, [f"{a:07d}+{b:010d}" for a, b in pairs]) == expected
    singles = [("{}", "{:012d}", Successor()), ("{}", "{:012d}", Successor(padding="fixed", width=20))]
    for plain, padded, task in [*singles, ("{}*7", "{:012d}*7", Multiplication()), ("{:b}", "{:030b}", Parity())]:
        problems = [numbers.randrange(10**5) for _ in range(300)]
        expected = flags(task, [plain.format(n) for n in problems])
        assert 3 < sum(expected) < 60
        assert flags(task, [padded.format(n) for n in problems]) == expected


def test_digits_in_turn_do_not_matter() -> None:
    """A digit that is repeated beside each of the first operand's counts once."""
    texts = [f"{n}*{n % 9 + 1}" for n in range(1000, 60_000, 97)]
    expected = flags(Multiplication(), texts)
    assert any(expected)
    for zeros in ("", "00"):
        assert flags(Multiplication(interleaved=True), [zeros + text for text in texts]) == expected


def test_every_operand_counts_as_itself() -> None:
    # Were the hash one of all digits in a row, or of their sum, these would go together.
    digits = ["".join(map(str, row)) for row in torch.randint(1, 10, (300, 5), generator=seeded(0)).tolist()]
    splits = [flags(Addition(), [f"{text[:i]}+{text[i:]}" for text in digits]) for i in range(1, 5)]
    swapped = flags(Addition(), [f"{text[2:]}+{text[:2]}" for text in digits])
    for one, other in itertools.combinations([*splits, swapped], 2):
        both = sum(a and b for a, b in zip(one, other, strict=True))
        assert both < 0.5 * min(sum(one), sum(other))


@pytest.mark.parametrize("task", TASKS, ids=name)
def test_one_in_sixteen_is_held_out(task: Task) -> None:
    shape = task.training_shapes()[-1]
    problems = task.sample(seeded(1), 60_000, shape)
    sources = problems.source.unique(dim=0)
    large = [i for i, n in enumerate(sizes(task, sources)) if task.base**n >= SMALL]
    sources = sources[large]
    held = held_out(task, Problems(shape, sources, sources[:, :0])).double()
    error = (HELD_OUT_SHARE * len(held)) ** -0.5
    assert len(held) > 5000
    assert held.mean().item() == pytest.approx(1 / HELD_OUT_SHARE, abs=4 * error)
    # Whatever the last digit is.
    for last in sources[:, -1].unique():
        own = held[sources[:, -1] == last]
        assert own.mean().item() == pytest.approx(1 / HELD_OUT_SHARE, abs=5 * (HELD_OUT_SHARE * len(own)) ** -0.5)


def sizes(task: Task, sources: torch.Tensor) -> list[int]:
    """Digits of both operands together without their leading zeros."""
    rows = (task.vocabulary.decode(row).replace("*", "+").split("+") for row in sources)
    return [sum(len(operand.lstrip("0")) for operand in row) for row in rows]


@pytest.mark.parametrize("task", TASKS, ids=name)
def test_small_problems_are_never_held_out(task: Task) -> None:
    for shape in task.training_shapes():
        problems = task.sample(seeded(2), 2000, shape)
        held = problems[held_out(task, problems)].source
        assert all(task.base**n >= SMALL for n in sizes(task, held))


@pytest.mark.parametrize(
    ("task", "digits", "count"),
    [
        (Successor(), 1, 10),
        (Successor(), 2, 100),
        (Successor(), 3, 1000),
        (Successor(padding="fixed", width=5), 3, 1000),
        (Addition(), 1, 100),
        (Addition(padding="none"), 1, 100),
        (Multiplication(), 2, 1000),
        (Parity(), 9, 512),
    ],
    ids=str,
)
def test_small_problems_are_all_trained_on(task: Task, digits: int, count: int) -> None:
    shape = next(shape for shape in task.training_shapes() if max(shape) == digits)
    assert task.num_problems(shape) == count
    assert len(values(task, draw(task, seeded(3), 20 * count, shape, for_validation=False))) == count
    with pytest.raises(UserError, match=r"too few problems .* held out"):
        draw(task, seeded(3), 1, shape, for_validation=True)


# Training against validation.


@pytest.mark.parametrize("task", TASKS, ids=name)
def test_training_and_validation_are_apart(task: Task) -> None:
    validation = validation_problems(task, 0, 2560)
    assert all(held_out(task, problems).all() for problems in validation)
    kept = set().union(*(values(task, problems) for problems in validation))
    trained = batches(task)
    for step in range(120):
        batch = trained.batch(step)
        assert len(batch) == Data().batch_size
        assert not held_out(task, batch).any()
        assert kept.isdisjoint(values(task, batch))
        for source, target in zip(batch.source[:2], batch.target[:2], strict=True):
            assert task.vocabulary.decode(target) == task.solve(task.vocabulary.decode(source))


@pytest.mark.parametrize("task", TASKS, ids=name)
def test_validation_problems(task: Task) -> None:
    validation = validation_problems(task, 5, 2560)
    again, other, fewer = (validation_problems(task, *args) for args in ((5, 2560), (6, 2560), (5, 64)))
    assert all(map(same, validation, again))
    assert not any(map(same, validation, other))
    assert [p.shape for p in validation] == [s for s in task.training_shapes() if task.num_problems(s) >= SMALL]
    assert [p.shape for p in fewer] == [p.shape for p in validation]
    assert 64 <= sum(map(len, fewer)) < 64 + len(fewer)
    for problems in validation:
        assert len(set(texts(task, problems))) == len(problems) == len(problems.target)
        assert len(problems) <= -(-2560 // len(validation))
        for source, target in zip(problems.source[:5], problems.target[:5], strict=True):
            assert task.vocabulary.decode(target) == task.solve(task.vocabulary.decode(source))
    if task in DEFAULTS:
        assert sum(map(len, validation)) >= 2000


@pytest.mark.parametrize("task", [Successor(max_length=3), Addition(max_length=1), Parity(max_length=5)], ids=name)
def test_a_small_task_is_validated_on_what_it_trains_on(task: Task) -> None:
    validation = validation_problems(task, 0, 2560)
    assert [problems.shape for problems in validation] == list(task.training_shapes())
    for problems in validation:
        count = len(problems)
        assert count == len(values(task, problems)) >= min(0.8 * task.num_problems(problems.shape), 512)


# Batches.


@pytest.mark.parametrize("task", TASKS, ids=name)
def test_a_batch_follows_from_seed_and_step(task: Task) -> None:
    numbered = [batches(task).batch(step) for step in range(8)]
    state = torch.get_rng_state()
    resumed = batches(task, step=3)
    for expected, batch in zip(numbered[3:], resumed, strict=False):
        assert same(expected, batch)
    assert torch.equal(torch.get_rng_state(), state)
    for one, other in itertools.combinations(numbered, 2):
        assert not same(one, other)
    for step, batch in enumerate(numbered):
        other_seed = batches(task, seed=1).batch(step)
        assert not same(other_seed, batch)


@pytest.mark.parametrize("batch_size", [1, 8, 10, 64])
def test_hard_examples_take_their_share_of_the_batches_of_their_shape(batch_size: int) -> None:
    task = Successor(max_length=3)
    hard = [task.problems((n,), [torch.tensor([[1] * n, [2] * n, [5] * n])]) for n in (1, 3)]
    plain, taught = batches(task, batch_size=batch_size), batches(task, batch_size=batch_size)
    assert plain.hard_examples == ()
    taught.hard_examples = tuple(hard)
    share = math.ceil(batch_size / 4)
    seen = set()
    for step in range(60):
        before, batch = plain.batch(step), taught.batch(step)
        assert batch.shape == before.shape
        assert len(batch.source) == len(batch.target) == batch_size
        count = 0 if batch.shape == (2,) else share
        assert torch.equal(batch.source[count:], before.source[count:])
        assert torch.equal(batch.target[count:], before.target[count:])
        for text, target in zip(texts(task, batch[:count]), batch.target, strict=False):
            assert set(text) in ({"1"}, {"2"}, {"5"})
            assert task.vocabulary.decode(target) == task.solve(text)
            seen.add(text)
    assert seen == {"1", "2", "5", "111", "222", "555"}


def test_a_batch_with_hard_examples_follows_from_seed_and_step_and_them() -> None:
    task = Successor(max_length=1)
    hard, other = (task.problems((1,), [torch.arange(first, first + 5)[:, None]]) for first in (0, 5))

    def taught(hard: Problems, seed: int = 0) -> TrainingBatches:
        served = batches(task, seed, step=3)
        served.hard_examples = (hard,)
        return served

    state = torch.get_rng_state()
    numbered = [taught(hard).batch(step) for step in range(3, 9)]
    assert all(map(same, numbered, taught(hard)))
    assert torch.equal(torch.get_rng_state(), state)
    kept = hard.source.clone()
    for step, batch in enumerate(numbered, 3):
        assert not same(batch, taught(other).batch(step))
        assert not same(batch, taught(hard, seed=1).batch(step))
    assert len({tuple(batch.source[:16, 0].tolist()) for batch in numbered}) == len(numbered)
    assert torch.equal(hard.source, kept)


def test_the_step_is_asked_for_when_an_epoch_starts() -> None:
    now = [0]
    served = TrainingBatches(Successor(), Data(), 0, lambda: now[0])
    first = list(itertools.islice(served, 3))
    now[0] = 2
    assert same(next(iter(served)), first[2])


@pytest.mark.parametrize("longer", [0.0, 0.5, 2.0])
def test_long_problems_are_favoured(longer: float) -> None:
    task = Successor(max_length=3)
    served = batches(task, batch_size=1, longer=longer)
    lengths = torch.tensor([served.batch(step).shape[0] for step in range(1500)])
    weights = torch.arange(1, 4.0) ** longer
    assert lengths.bincount()[1:].div(1500).tolist() == pytest.approx((weights / weights.sum()).tolist(), abs=0.04)


def test_training_batches_hold_every_kind() -> None:
    task = Addition()
    served = batches(task, longer=20)
    rows = [text.split("+") for step in range(20) for text in texts(task, served.batch(step)) if len(text) == 13]
    pairs = [(int(a), int(b)) for a, b in rows]
    assert len(pairs) > 1000
    unequal = sum(abs(len(str(a)) - len(str(b))) >= 3 for a, b in pairs)
    zeros = sum(0 in pair for pair in pairs)
    full_carries = sum(a + b == 10**6 for a, b in pairs)
    for count in (unequal, zeros, full_carries):
        assert count > 0.02 * len(pairs)
    assert {(0, 0), (999999, 1), (1, 999999)} <= set(pairs)


def test_seeds_do_not_collide() -> None:
    # torch's generator on the CPU looks at the lower 32 bits of its seed alone.
    numbers = [(seed, purpose, step) for seed in range(5) for purpose in range(3) for step in range(400)]
    numbers += [(seed, 2, step, rank) for seed in range(5) for step in range(400) for rank in range(4)]
    assert len({seeded(*own).initial_seed() % 2**32 for own in numbers}) == len(numbers)
    assert seeded(3, 1, 4).initial_seed() == seeded(3, 1, 4).initial_seed()
    firsts = torch.stack([torch.rand(1, generator=seeded(0, 2, step)) for step in range(2000)])
    assert firsts.mean().item() == pytest.approx(0.5, abs=0.03)
    assert (firsts[1:] > firsts[:-1]).double().mean().item() == pytest.approx(0.5, abs=0.05)
