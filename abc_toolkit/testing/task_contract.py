"""What every task must do, of whatever kind. A test case inherits all of it by giving `cases`.

class TestMyTask(TaskContract):
    cases = {"small": MyTask(max_length=3)}
"""

import contextlib
import copy
import dataclasses
import pickle
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from abc_toolkit.errors import UserError
from abc_toolkit.models.base import Architecture, predict
from abc_toolkit.runs.description import describe, rebuild
from abc_toolkit.runs.folder import build_model
from abc_toolkit.tasks.base import TRAINING, Batch, HeldOut, Listed, ProblemError, Problems, Solvable, Task
from abc_toolkit.tasks.lengths import Shape
from abc_toolkit.tasks.objective import LogisticLoss


def generator(seed: int = 0) -> torch.Generator:
    """A generator of a seed."""
    return torch.Generator().manual_seed(seed)


def small_model(task: Task) -> Any:
    """A small model of a task, of the backbone that the task has unless one is named."""
    torch.manual_seed(0)
    sizes = Architecture(model_dim=16, num_heads=2, feedforward_dim=16).for_task(task.interface.decoded)
    return build_model(task, sizes, None)


def perfect(task: Task, batch: Batch) -> Tensor:
    """Outputs that agree with a batch's targets."""
    if isinstance(task.objective, LogisticLoss):
        return 50.0 * batch.targets
    if task.interface.num_outputs == 1:
        return batch.targets.clone()
    return 50.0 * torch.nn.functional.one_hot(batch.targets, task.interface.num_outputs)


def opposite(task: Task, right: Tensor) -> Tensor:
    """Outputs that disagree with every target, made of those that agree."""
    if isinstance(task.objective, LogisticLoss):
        return -right
    return right.roll(1, dims=-1) if task.interface.num_outputs > 1 else right + 1


def shapes_of(task: Task, length: int, suite: str, seed: int = 0) -> tuple[Shape, ...]:
    """Shapes of a suite; none, if the suite has no problems of such a length.

    The first suite has problems of every length, unless there is but one.
    """
    shapes, refused = (), None
    try:
        shapes = task.evaluation_shapes(length, suite, generator(seed))
    except UserError as error:
        refused = error
    if refused is None:
        assert shapes
    else:
        assert suite != task.suites[0] or (task.one_length and length != task.max_length), refused
        assert len(str(refused).splitlines()) == 1
    return shapes


class TaskContract:
    """Checks of a task; `cases` holds tasks by name."""

    cases: ClassVar[dict[str, Any]]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """One test for each case."""
        if "case" in metafunc.fixturenames:
            metafunc.parametrize("case", [pytest.param(case, id=name) for name, case in self.cases.items()])

    @pytest.fixture
    def task(self, case: Any) -> Task:
        """The task of a case, which is the case itself unless it holds more."""
        return case if isinstance(case, Task) else case.task

    def batches(self, task: Task) -> list[Batch]:
        """A batch of every suite at some lengths, and of every training shape."""
        g = generator()
        shapes: list[tuple[Shape, str]] = [(shape, TRAINING) for shape in task.training_shapes()]
        for length in (task.shortest, task.max_length, 2 * task.max_length):
            for suite in task.suites:
                shapes += [(shape, suite) for shape in shapes_of(task, length, suite)[:2]]
        batches = []
        for shape, suite in dict.fromkeys(shapes):
            with contextlib.suppress(ProblemError):  # beyond a width that the task fixes
                batches.append(task.sample(g, 5, shape, suite))
        return batches

    def test_it_is_an_immutable_value(self, task: Task) -> None:
        assert rebuild(describe(task), Task, whole=True) == task == pickle.loads(pickle.dumps(task)) == copy.copy(task)
        assert hash(task) == hash(copy.deepcopy(task))
        with pytest.raises(dataclasses.FrozenInstanceError):
            task.max_length = 1

    def test_training_shapes_are_distinct_and_within_the_longest(self, task: Task) -> None:
        shapes = task.training_shapes()
        assert len(set(shapes)) == len(shapes)
        assert [max(shape) for shape in shapes] == sorted(max(shape) for shape in shapes)
        assert max(map(max, shapes)) == task.max_length

    def test_suites_have_shapes_of_the_length(self, task: Task) -> None:
        assert len(set(task.suites)) == len(task.suites)
        assert set(task.default_suites) <= set(task.suites)
        lengths = [task.shortest, task.max_length, 3 * task.max_length]
        if task.one_length:
            lengths = [1, 3 * task.max_length, task.max_length]
            assert task.lengths("1x") == [task.max_length]
        else:
            assert task.lengths("2x,1") == [1, 2 * task.max_length]
        for suite in task.suites:
            shapes: tuple[Shape, ...] = ()
            for length in lengths:
                shapes = shapes_of(task, length, suite)
                assert all(min(shape) >= 1 and max(shape) <= length for shape in shapes)
                assert shapes == shapes_of(task, length, suite)
            assert shapes, suite  # of a length that every suite fits into

    def test_the_generator_is_the_only_source_of_randomness(self, task: Task) -> None:
        for suite in (TRAINING, *task.suites):
            shape = task.training_shapes()[-1]
            if suite != TRAINING and not shapes_of(task, max(shape), suite):
                (shape, *_) = shapes_of(task, 3 * task.max_length, suite)
            torch.manual_seed(1)
            first = task.sample(generator(5), 32, shape, suite)
            torch.manual_seed(2)
            again, other = (task.sample(generator(seed), 32, shape, suite) for seed in (5, 6))
            assert torch.equal(first.inputs, again.inputs)
            assert torch.equal(first.targets, again.targets)
            assert not torch.equal(first.inputs, other.inputs)

    def test_batches_are_of_the_interface(self, task: Task) -> None:
        interface = task.interface
        assert (interface.num_tokens > 0) != (interface.input_dim > 0)
        for batch in self.batches(task):
            inputs, target = task.num_tokens(batch.shape)
            assert len(batch) == 5
            # Problems of a layout of their own may be shorter, and padded to the longest of them.
            longest = batch.layout is None or not batch.layout.differ
            assert len(batch.inputs) == 5
            assert batch.inputs.shape[1] == inputs if longest else 1 <= batch.inputs.shape[1] <= inputs
            if interface.num_tokens:
                assert batch.inputs.dtype == torch.long
                assert 0 <= int(batch.inputs.min()) <= int(batch.inputs.max()) < interface.num_tokens
            else:
                assert batch.inputs.shape[2:] == (interface.input_dim,)
                assert batch.inputs.is_floating_point()
            outputs = target if interface.decoded else 1 if interface.pooled else batch.inputs.shape[1]
            assert len(batch.targets) == 5
            assert batch.targets.shape[1] == outputs if longest else 1 <= batch.targets.shape[1] <= outputs
            assert interface.decoded == isinstance(batch, Problems)
            if interface.num_outputs > 1:
                assert 0 <= int(batch.targets.min()) <= int(batch.targets.max()) < interface.num_outputs
            if batch.counted is not None:
                assert batch.counted.shape == batch.targets.shape
                assert batch.counted.any(dim=1).all()

    def test_layouts_are_of_the_batches(self, task: Task) -> None:
        for batch in self.batches(task):
            layout = batch.layout or task.layout(batch.shape)
            lengths = (batch.inputs.shape[1], batch.targets.shape[1] if task.interface.decoded else 0)
            assert (len(layout.source), len(layout.target)) == lengths
            assert len(layout.prefix) == len(layout.target)
            for positions in (layout.source, layout.target, layout.prefix):
                assert positions.coordinates["raw"].tolist() == list(range(len(positions)))
                assert {"raw", "segment"}.isdisjoint(positions.own)
                for name, coordinate in positions.coordinates.items():
                    own = (len(batch),) if name in positions.own else ()
                    assert coordinate.shape[: 1 + len(own)] == (*own, len(positions)), name
                    assert not coordinate.is_floating_point()
                if positions.present is not None:  # padding is at the end, and does not count
                    assert positions.present.shape == (len(batch), len(positions))
                    assert positions.present[:, 0].all()
                    assert (positions.present.long().diff(dim=1) <= 0).all()
            outputs = layout.target if task.interface.decoded else layout.source
            if outputs.present is not None and not task.interface.pooled:
                assert batch.counted is not None
                assert not (batch.counted & ~outputs.present).any()
        assert task.layout(task.training_shapes()[0]) is task.layout(task.training_shapes()[0])

    def test_the_objective_likes_what_is_right(self, task: Task) -> None:
        objective = task.objective
        for batch in self.batches(task):
            right = perfect(task, batch)
            wrong = opposite(task, right)
            losses = [objective.loss(outputs.float(), batch) for outputs in (right, wrong)]
            assert losses[0].shape == ()
            assert losses[0] < 1e-6 < losses[1]
            for outputs, best in ((right, True), (wrong, False)):
                measured = objective.measured(outputs.float(), batch)
                assert list(measured) == [metric.name for metric in objective.metrics]
                for metric in objective.metrics:
                    values = measured[metric.name].double()
                    assert values.shape == (len(batch),)
                    good = (values - float(metric.higher_is_better)).abs() < 1e-6
                    assert bool(good.all()) == best, metric.name

    def test_a_model_learns_from_it(self, task: Task) -> None:
        model = small_model(task)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        batch = task.sample(generator(), 8, task.training_shapes()[-1])
        losses = []
        for _ in range(8):
            outputs = predict(model, batch, task.layout(batch.shape))
            assert outputs.shape[:2] == batch.targets.shape
            loss = task.objective.loss(outputs, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]

    def test_keys_are_those_of_problems(self, task: Task) -> None:
        if not isinstance(task, HeldOut):
            return
        for batch in self.batches(task):
            assert isinstance(batch, Problems)
            keys = task.keys(batch)
            assert keys.shape == (len(batch),)
            assert (keys >= -1).all()
            assert torch.equal(keys.flip(0), task.keys(batch[torch.arange(len(batch)).flip(0)]))
            assert task.num_problems(batch.shape) >= 1

    def test_listed_problems_are_distinct(self, task: Task) -> None:
        if not isinstance(task, Listed):
            return
        (shape, *_), suite = task.training_shapes(), task.suites[0]
        number = task.num_listed(shape, suite)
        assert sorted(task.choose(generator(), number, shape, suite).tolist()) == list(range(number))
        some = task.choose(generator(), 3, shape, suite)
        (larger, *_) = shapes_of(task, task.max_length * (1 if task.one_length else 2), suite)
        assert 3 <= task.num_listed(larger, suite) <= number
        assert set(task.choose(generator(), 3, larger, suite).tolist()) == set(some.tolist())
        rest = task.listed(some, shape, suite)[1:].trimmed()
        assert torch.equal(rest.inputs, task.listed(some[1:], shape, suite).inputs)
        with pytest.raises(UserError, match="choose at most"):
            task.choose(generator(), number + 1, shape, suite)

    def test_the_oracle_agrees_with_the_targets(self, task: Task) -> None:
        if not isinstance(task, Solvable):
            return
        for batch in self.batches(task):
            assert isinstance(batch, Problems)
            for source, target in zip(batch.source, batch.target, strict=True):
                assert task.solve(task.vocabulary.decode(source)) == task.vocabulary.decode(target)
