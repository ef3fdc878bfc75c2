from typing import Any

import pytest
import torch
from torch import Generator

from abc_toolkit.errors import UserError
from abc_toolkit.tasks import Addition, Multiplication, ProblemError, Problems, Successor, Task
from abc_toolkit.tasks.base import SETS, choose_rows, digits_below, keep_places, random_run, uniform_digits, with_zeros


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
        ({"padding": "both"}, "padding 'both': choose one of longest, none, fixed"),
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
        (Addition(), f"{'9' * 5000}+1", f"1{'0' * 5000}"),
        (Successor(), "9" * 5000, f"1{'0' * 5000}"),
        (Multiplication(), f"{'9' * 5000}*1", "9" * 5000),
    ],
    ids=["addition", "successor", "multiplication"],
)
def test_oracle_at_thousands_of_digits(task: Task, text: str, answer: str) -> None:
    assert task.answer(task.solve(task.parse(text)[1])) == answer


def test_layouts_can_be_trained_with_wherever_they_were_made() -> None:
    with torch.inference_mode():
        layout = Successor().layout((17,))
    table = torch.nn.Embedding(17, 2)  # a learned position method's
    table(layout.source.coordinates["raw"]).sum().backward()
