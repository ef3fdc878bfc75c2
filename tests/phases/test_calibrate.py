import pytest

from abc_toolkit.phases.calibrate import _MOST_DRAWN, _longer_shape
from abc_toolkit.tasks import Addition, BucketSort, LongMultiplication, Parity, SquareRoot, StackManipulation, Task


@pytest.mark.parametrize("task", [Addition(), Parity()], ids=lambda task: task.name)
def test_a_window_is_drawn_at_ten_times_the_length(task: Task) -> None:
    shape = _longer_shape(task)
    assert shape is not None
    assert max(shape) == 10 * task.max_length


@pytest.mark.parametrize(
    "task",
    [LongMultiplication(), SquareRoot(), SquareRoot(max_length=14), StackManipulation(), BucketSort(max_length=12)],
    ids=lambda task: f"{task.name}-{task.max_length}",
)
def test_the_window_of_a_table_is_drawn_where_it_can_be_read(task: Task) -> None:
    shape = _longer_shape(task)
    assert shape is not None
    assert max(shape) > task.max_length
    assert max(task.num_tokens(shape)) <= _MOST_DRAWN


def test_no_longer_picture_where_width_or_size_leaves_no_room() -> None:
    assert _longer_shape(Addition(max_length=7, padding="fixed", width=10)) is None
    assert _longer_shape(Parity(max_length=400)) is None
