import gc
import operator
import weakref
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Generator

from abc_toolkit.errors import UserError
from abc_toolkit.tasks import Addition, Multiplication, Parity, ProblemError, Problems, Successor, Task
from abc_toolkit.tasks.base import UNIFORM, quoted
from abc_toolkit.tasks.digits.base import CARRY, SETS, exact_result
from abc_toolkit.tasks.digits.sampling import (
    carried,
    choose_rows,
    digits_below,
    keep_places,
    pad,
    pick_rows,
    random_run,
    uniform_digits,
    with_zeros,
)

# Sums of two digits and products of two, what is just about to carry and what carries twice, alone and in long runs.
COLUMN = st.integers(0, 9) | st.sampled_from([9, 10, 18, 19, 81, 99, 100]) | st.integers(0, 10**12)
RUNS = st.lists(st.tuples(COLUMN, st.integers(1, 25)), min_size=1, max_size=8)


def places_of(number: int, width: int) -> list[int]:
    """A number's lowest digits, and what is left above them."""
    return [number // 10**place % 10 for place in range(width)] + [number // 10**width]


@st.composite
def batches_of_columns(draw: st.DrawFn) -> list[list[int]]:
    rows = [[column for column, count in runs for _ in range(count)] for runs in draw(st.lists(RUNS, min_size=1))]
    width = draw(st.sampled_from([len(row) for row in rows]))
    return [(row + [9] * width)[:width] for row in rows]


@given(batches_of_columns())
@example([[0]])
@example([[9]])
@example([[18]])
@example([[81]])
@example([[10] + [9] * 70, [9] * 71, [9] * 70 + [10], [10] + [9] * 30 + [8] + [9] * 39])
@example([[99] + [81] * 40, [18] * 41, [19] * 41])
def test_carried(rows: list[list[int]]) -> None:
    columns = torch.tensor(rows)
    expected = [places_of(sum(c * 10**place for place, c in enumerate(row)), len(row)) for row in rows]
    assert carried(columns).tolist() == expected
    assert columns.tolist() == rows


@pytest.mark.parametrize("operation", [operator.add, operator.mul])
@given(
    first=st.text("0123456789", min_size=1, max_size=600),
    second=st.text("0123456789", min_size=1, max_size=30),
    num_digits=st.integers(0, 700),
)
@example(first="0", second="000", num_digits=2)
@example(first="1" + "0" * 400, second="10", num_digits=1)
@example(first="0" * 400 + "1", second="9" * 30, num_digits=401)
def test_exact_result(operation: Callable[[Any, Any], Any], first: str, second: str, num_digits: int) -> None:
    expected = f"{operation(int(first), int(second)):0{num_digits}d}"[::-1]
    assert exact_result(operation, first, second, num_digits) == expected


def test_exact_result_is_exact_or_refused() -> None:
    with pytest.raises(ArithmeticError):
        exact_result(lambda a, b: a.scaleb(-1).quantize(b), "15", "1", 1)  # rounds 1.5
    with pytest.raises(ArithmeticError):
        exact_result(operator.add, "1x", "2", 1)
    # What others compute stays as it was.
    assert len(str(Decimal(1) / Decimal(7))) == 30


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "''"),
        ("1x", "'1x'"),
        ("1" * 40, repr("1" * 40)),
        ("1" * 20 + "0" + "2" * 20, f"'{'1' * 20}...{'2' * 17}' (41 characters)"),
        ("12" * 30_000 + "\n", f"'{'12' * 10}...{'12' * 8}\\n' (60001 characters)"),
    ],
    ids=["empty", "short", "just short", "just long", "long"],
)
def test_quoted(text: str, expected: str) -> None:
    assert quoted(text) == expected


def test_pad() -> None:
    digits = torch.tensor([[1, 2]])
    assert pad(digits, 4).tolist() == [[1, 2, 0, 0]]
    assert pad(digits, 2).tolist() == [[1, 2]]


def test_uniform_digits(generator: Generator) -> None:
    digits = uniform_digits(generator, 2000, 3)
    assert set(digits[:, :2].unique().tolist()) == set(range(10))
    assert set(digits[:, 2].unique().tolist()) == set(range(1, 10))
    assert set(uniform_digits(generator, 2000, 1).unique().tolist()) == set(range(10))


def test_digits_below(generator: Generator) -> None:
    digits = digits_below(generator, 2000, 123, 70)  # more places than an integer of 64 bits has
    assert (digits[:, :3] @ torch.tensor([1, 10, 100])).unique().tolist() == list(range(123))
    assert not digits[:, 3:].any()
    assert set(digits_below(generator, 2000, 10**18, 19)[:, 17].tolist()) == set(range(10))


def test_keep_places() -> None:
    digits = torch.tensor([[1, 2, 3]] * 4)
    assert keep_places(digits, torch.arange(4)).tolist() == [[0, 0, 0], [1, 0, 0], [1, 2, 0], [1, 2, 3]]


def test_random_run(generator: Generator) -> None:
    runs = {tuple(row) for row in random_run(generator, 2000, 4).int().tolist()}
    every = {tuple(int(start <= i < end) for i in range(4)) for start in range(5) for end in range(start, 5)}
    assert runs == every


def test_choose_rows(generator: Generator) -> None:
    versions = [torch.arange(300)[:, None] * 10 + i for i in range(3)]
    chosen = choose_rows(generator, *versions)[:, 0]
    assert (chosen // 10).tolist() == list(range(300))
    assert min((chosen % 10).bincount().tolist()) > 60


def test_pick_rows() -> None:
    versions = [torch.tensor([[1, 2], [3, 4], [5, 6]]) * 10**i for i in range(3)]
    assert pick_rows(torch.tensor([2, 0, 1]), versions).tolist() == [[100, 200], [3, 4], [50, 60]]
    assert pick_rows(torch.tensor([0, 0, 0]), versions[:1]).tolist() == versions[0].tolist()


def test_with_zeros_takes_digits_away_and_adds_none(generator: Generator) -> None:
    digits = torch.arange(1, 6).expand(3000, 5)
    rows = with_zeros(generator, digits)
    assert ((rows == 0) | (rows == digits)).all()
    kinds = {"".join(map(str, row)) for row in rows.tolist()}
    assert {"00000", "12345", "10000", "12340", "02345", "00005", "00300"} < kinds


def test_problems_can_be_cut_and_moved() -> None:
    problems = Problems((2,), torch.arange(6).view(3, 2), torch.arange(9).view(3, 3))
    assert len(problems) == 3
    for rows in (slice(1, 3), torch.tensor([1, 2]), torch.tensor([False, True, True])):
        cut = problems[rows]
        assert cut.shape == (2,)
        assert cut.source.tolist() == [[2, 3], [4, 5]]
        assert cut.target.tolist() == [[3, 4, 5], [6, 7, 8]]
    assert problems.to(torch.device("meta")).target.device.type == "meta"


def test_problem_error_is_a_value_error() -> None:
    assert issubclass(ProblemError, ValueError)


@pytest.mark.parametrize("cls", [Addition, Successor])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 0}, "max_length 0: give at least 1"),
        ({"padding": "both"}, "padding cannot be 'both': give one of longest, none, fixed"),
        ({"numbers_below": 0}, "numbers_below 0: give a number from 1 to 1000000, or a larger max_length"),
        ({"numbers_below": 10**6 + 1}, "numbers_below 1000001: give a number from 1 to 1000000,"),
        ({"numbers_below": 10**18 + 1, "max_length": 30}, f"give a number from 1 to {10**18},"),
    ],
)
def test_settings_that_make_no_task_are_refused(cls: type[Task], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        cls(**settings)
    assert message in str(error.value)
    cls(max_length=6, numbers_below=10**6)


@pytest.mark.parametrize(
    "task", [Addition(padding="none"), Successor(), Multiplication()], ids=lambda t: type(t).__name__
)
def test_half_of_the_training_mixture_is_uniform_over_all_strings(task: Task, generator: Generator) -> None:
    class Marked(type(task)):
        """Draws the set's number in every place."""

        def draw(self, generator: Generator, batch: int, shape: tuple[int, ...], set_name: str) -> list[torch.Tensor]:
            drawn = super().draw(generator, batch, shape, "uniform")
            return [torch.full_like(operand, 1 + SETS.index(set_name)) for operand in drawn]

    problems = Marked().sample(generator, 8000, Marked().training_shapes()[-1])
    digits = problems.source[problems.source < 12].view(8000, -1) - 2  # without the operator
    # A row comes from one kind as a whole.
    alike = (digits == digits[:, :1]).all(dim=1)
    share = (digits[:, 0] * alike).bincount(minlength=10)[:5] / 8000
    assert share[0].item() == pytest.approx(0.5, abs=0.02)
    assert share[1:].tolist() == pytest.approx([0.125] * 4, abs=0.02)
    others = digits[~alike].flatten().bincount() / digits[~alike].numel()
    assert others.tolist() == pytest.approx([0.1] * 10, rel=0.1)


@pytest.mark.parametrize(
    ("task", "text", "answer"),
    [
        (Addition(), f"{'9' * 10**6}+1", f"1{'0' * 10**6}"),
        (Successor(), "9" * 10**6, f"1{'0' * 10**6}"),
        (Multiplication(), f"{'9' * 10**6}*8", f"7{'9' * (10**6 - 1)}2"),
        (Addition(interleaved=True), f"{'9' * 10**6}+1", f"1{'0' * 10**6}"),
        (Multiplication(interleaved=True), f"{'9' * 10**6}*8", f"7{'9' * (10**6 - 1)}2"),
        (Parity(), "1" * (10**6 - 1) + "0", "1"),
    ],
    ids=["addition", "successor", "multiplication", "addition in turn", "multiplication in turn", "parity"],
)
def test_oracle_at_a_million_digits(task: Task, text: str, answer: str) -> None:
    assert task.answer(task.solve(task.parse(text)[1])) == answer


@pytest.mark.parametrize("set_name", [UNIFORM, CARRY])
@pytest.mark.parametrize(
    "task",
    [
        Addition(),
        Addition(padding="none"),
        Addition(interleaved=True),
        Successor(),
        Multiplication(),
        Multiplication(interleaved=True),
        Parity(),
        Parity(form="label"),
    ],
    ids=str,
)
def test_problems_of_200000_digits(task: Task, set_name: str, generator: Generator) -> None:
    (shape,) = task.evaluation_shapes(200_000, set_name, generator)
    problems = task.sample(generator, 2, shape, set_name)
    assert (problems.source.shape[1], problems.target.shape[1]) == task.num_tokens(shape)
    for source, target in zip(problems.source, problems.target, strict=True):
        source, target = task.vocabulary.decode(source), task.vocabulary.decode(target)
        # Compared by themselves: pytest would take minutes to show how strings of this length differ.
        solved, parsed = task.solve(source) == target, task.parse(source) == (shape, source)
        assert solved
        assert parsed


@pytest.mark.parametrize("task", [Addition(), Addition(interleaved=True)], ids=["plain", "in turn"])
@pytest.mark.parametrize(("length", "kept"), [(500, True), (20_000, False)])
def test_long_layouts_are_not_kept(length: int, kept: bool, task: Addition) -> None:
    layout = task.layout((length, length))
    assert (task.layout((length, length)) is layout) == kept
    watched = weakref.ref(layout)
    del layout
    gc.collect()
    assert (watched() is not None) == kept


def test_layouts_can_be_trained_with_wherever_they_were_made() -> None:
    with torch.inference_mode():
        layout = Successor().layout((17,))
    table = torch.nn.Embedding(17, 2)  # a learned position method's
    table(layout.source.coordinates["raw"]).sum().backward()
