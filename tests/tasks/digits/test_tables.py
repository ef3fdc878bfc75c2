import pytest
from torch import Generator

from abc_toolkit.tasks import LongMultiplication, MultiOperandAddition
from abc_toolkit.tasks.digits.base import SETS, UNEQUAL
from abc_toolkit.tasks.digits.tables import TableTask

TASKS = pytest.mark.parametrize("task", [LongMultiplication(), MultiOperandAddition()], ids=lambda task: task.name)


@TASKS
@pytest.mark.parametrize("target", ["", "80", "8040", "80400", "80400,x", ",", "80400,,", ",80400,", "80400,014,"])
def test_what_has_no_rows_is_not_read(task: TableTask, target: str) -> None:
    assert task.rows(target) == []
    assert task.answer(target) == target


def test_a_product_has_a_digit_and_a_carry_in_each_column_but_the_last() -> None:
    assert LongMultiplication().answer("8040,0140,") == "8040,0140,"


@TASKS
def test_rows_end_with_a_comma(task: TableTask) -> None:
    assert task.rows("80400,01400,") == ["80400", "01400"]


@TASKS
@pytest.mark.parametrize("set_name", SETS)
def test_both_lengths_grow(task: TableTask, set_name: str) -> None:
    """Sets are of tables that are square, but for `unequal`, where each length is the shorter one at times."""
    shapes = task.evaluation_shapes(50, set_name, Generator().manual_seed(0))
    assert all(max(shape) == 50 for shape in shapes)
    if set_name == UNEQUAL:
        assert {shape.index(min(shape)) for shape in shapes} == {0, 1}
    else:
        assert shapes == ((50, 50),)


@TASKS
def test_all_shapes_up_to_a_length_are_trained_on(task: TableTask) -> None:
    assert sorted(task.training_shapes()) == [(n, m) for n in range(1, 6) for m in range(1, 6)]
