"""What every task of the benchmark must do, whose operands are strings and whose shapes begin with a length."""

from dataclasses import replace

import pytest
import torch

from abc_toolkit.errors import UserError
from abc_toolkit.layout import COORDINATES
from abc_toolkit.tasks.base import TRAINING, UNIFORM
from abc_toolkit.tasks.digits.base import SETS
from abc_toolkit.testing.digit_contract import DigitTaskContract, TaskCase, generator, short_lengths


class ChomskyContract(DigitTaskContract):
    """Checks of a task of the benchmark."""

    def test_layout_tells_where_the_digits_are(self, case: TaskCase) -> None:
        """Segments hold their own characters, and a problem is that of the operands that the layout finds in it."""
        task = case.task
        for shape in task.training_shapes():
            problems, positions = task.sample(generator(), 8, shape), task.layout(shape).source
            assert set(positions.coordinates) == set(COORDINATES)
            for number, segment in enumerate(positions.segment.tolist()):
                name = positions.names[segment]
                assert name.startswith("operand ") or name in task.literals
                assert set(problems.source[:, number].tolist()) <= set(task.values(name))
            again = task.problems(shape, task.numbers(problems))
            assert torch.equal(problems.source, again.source)
            assert torch.equal(problems.target, again.target)

    def test_training_stays_within_max_length(self, case: TaskCase) -> None:
        lengths = [shape[0] for shape in case.task.training_shapes()]
        assert (min(lengths), max(lengths)) == (case.task.shortest, case.task.max_length)

    @pytest.mark.parametrize("suite", SETS)
    def test_evaluation_shapes_are_of_the_length(self, case: TaskCase, suite: str) -> None:
        """The benchmark makes an even length odd where it takes odd ones alone."""
        odd = all(length % 2 for length, *_ in case.task.training_shapes())
        for length in short_lengths(case.task):
            shapes = case.task.evaluation_shapes(length, suite, generator())
            assert shapes
            assert all(max(shape) == shape[0] <= length and min(shape) >= 1 for shape in shapes)
            assert suite != UNIFORM or {shape[0] for shape in shapes} == {length - (odd and length % 2 == 0)}

    def test_lengths_below_the_shortest_are_refused(self, case: TaskCase) -> None:
        for length in range(1, case.task.shortest):
            with pytest.raises(UserError, match=f"length {length}: the shortest problems of "):
                case.task.evaluation_shapes(length, UNIFORM, generator())
            with pytest.raises(UserError, match=f"max_length {length}: the shortest problems of "):
                replace(case.task, max_length=length)

    def test_a_shape_begins_with_the_length_of_the_input(self, case: TaskCase) -> None:
        for shape in case.task.training_shapes():
            assert case.task.sample(generator(), 1, shape, TRAINING).source.shape[1] == shape[0]

    def test_all_operands_are_all_problems(self, case: TaskCase) -> None:
        task = case.task
        for shape in task.training_shapes():
            if task.num_problems(shape) > 2000:
                continue
            every = task.problems(shape, task.all_operands(shape))
            texts = {task.vocabulary.decode(row) for row in every.source}
            assert len(texts) == len(every)
            assert len(texts) >= task.num_problems(shape)
            drawn = task.sample(generator(), 200, shape)
            assert {task.vocabulary.decode(row) for row in drawn.source} <= texts

    def test_a_shape_follows_from_its_sizes(self, case: TaskCase) -> None:
        for shape in case.task.training_shapes():
            assert case.task.shape_of(case.task.sizes(shape)) == shape
