"""Batches of problems: training problems made on the fly, validation problems held out by a hash."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.utils.data import IterableDataset

from abc_toolkit.errors import UserError, check_numbers
from abc_toolkit.seeds import Stream, seeded
from abc_toolkit.tasks.base import SMALL, TRAINING, Batch, HeldOut, Listed, Problems, Staged, Task
from abc_toolkit.tasks.lengths import Shape
from abc_toolkit.training.curriculum import Curriculum

HELD_OUT_SHARE = 16
HARD_SHARE = 0.25
_AT_ONCE = 512  # problems of a list that are validated at once


@dataclass(frozen=True)
class Data:
    """Batches of training problems, and the number of held-out problems.

    Attributes:
        batch_size: Problems in a batch, all of one shape; several devices share it.
        longer: Shapes are served in proportion to this power of their length.
        validation_problems: Number of held-out problems, over all shapes together.
    """

    batch_size: int = 64
    longer: float = 0.5
    validation_problems: int = 2560

    def __post_init__(self) -> None:
        check_numbers(self, "data", ("batch_size", "validation_problems"), at_least=1)
        check_numbers(self, "data", ("longer",), at_least=-100, at_most=100)


def held_out(task: HeldOut, problems: Problems) -> Tensor:
    """Which problems are for validation alone, boolean `[batch]`: one in `HELD_OUT_SHARE`, by their keys."""
    keys = task.keys(problems)
    return (keys >= 0) & (keys % HELD_OUT_SHARE == 0)


def draw(
    task: Task, generator: Generator, batch: int, shape: Shape, for_validation: bool, suite: str = TRAINING
) -> Batch:
    """Problems of one shape and suite, on one side of the hold-out where the task holds problems out.

    Raises:
        UserError: If the shape has too few problems on that side.
    """
    if not isinstance(task, HeldOut):
        return task.sample(generator, batch, shape, suite)
    sources, targets, count = [], [], 0
    factor = 2 * HELD_OUT_SHARE if for_validation else 1
    for _ in range(64):
        problems = task.sample(generator, batch * factor + 8, shape, suite)
        assert isinstance(problems, Problems)
        problems = problems[held_out(task, problems) == for_validation]
        sources.append(problems.source)
        targets.append(problems.target)
        count += len(problems)
        if count >= batch:
            return Problems(shape, torch.cat(sources)[:batch], torch.cat(targets)[:batch])
    raise UserError(
        f"{task} has too few problems of shape {shape} that are {'held out' if for_validation else 'trained on'}: "
        "give it larger lengths or limits"
    )


def validation_problems(task: Task, seed: int, count: int) -> list[Batch]:
    """Problems of the training mixture to validate on, shape by shape.

    Of a task that holds problems out they are distinct held-out problems. One so small that no training shape holds
    `SMALL` problems is validated on problems that it trains on, as all of them are trained on in full. A task with
    lists of problems is validated on one of them.

    Args:
        task: The task.
        seed: The run's seed.
        count: Problems over all shapes together; short shapes may hold fewer than their part.
    """
    shapes = task.training_shapes()
    if not isinstance(task, HeldOut):
        each = math.ceil(count / len(shapes))
        generators = (seeded(seed, Stream.VALIDATION, number) for number in range(len(shapes)))
        pairs = zip(generators, shapes, strict=True)
        if isinstance(task, Listed):
            suite = task.validation_suite or task.suites[0]
            drawn = [task.sample(g, min(each, task.num_listed(s, suite)), s, suite) for g, s in pairs]
            return [piece for problems in drawn for piece in problems.split(_AT_ONCE)]
        return [task.sample(generator, each, shape) for generator, shape in pairs]
    large = tuple(shape for shape in shapes if task.num_problems(shape) >= SMALL)
    for_validation = bool(large)
    shapes = large or shapes
    each = math.ceil(count / len(shapes))
    batches: list[Batch] = []
    for number, shape in enumerate(shapes):
        problems = draw(task, seeded(seed, Stream.VALIDATION, number), 2 * each, shape, for_validation)
        _, first = torch.unique(problems.inputs, dim=0, return_inverse=True)
        order = torch.argsort(first, stable=True)
        new = torch.cat([torch.tensor([True]), first[order][1:] != first[order][:-1]])
        batches.append(problems[order[new].sort().values[:each]])
    return batches


class TrainingBatches(IterableDataset[Batch]):
    """Endless batches of training problems, each a function of the seed and the step alone.

    Several processes get the same batches, of which each takes its own rows.

    Args:
        task: The task.
        data: Batch size and the mixture of lengths.
        seed: The run's seed.
        step: Tells the step that the next batch is for, so that a resumed run goes on where it was.
        curriculum: Stages of the task, if it does not begin in full; the task must be `Staged`.

    Attributes:
        hard_examples: Problems that are to come up more often: they take a share of every batch of their shape.
    """

    def __init__(
        self, task: Task, data: Data, seed: int, step: Callable[[], int], curriculum: Curriculum | None = None
    ) -> None:
        super().__init__()
        self.task = task
        self.data = data
        self.seed = seed
        self.step = step
        self.curriculum = curriculum
        self._stages: dict[tuple[int, int] | None, _Mixture] = {None: _Mixture(task, data)}
        self.hard_examples: tuple[Problems, ...] = ()

    def batch(self, step: int) -> Batch:
        """The batch of one step."""
        mixture = self._mixture(step)
        which = int(torch.multinomial(mixture.weights, 1, generator=seeded(self.seed, Stream.SHAPES, step)))
        generator = seeded(self.seed, Stream.TRAINING, step, 0)
        problems = draw(mixture.task, generator, self.data.batch_size, mixture.shapes[which], for_validation=False)
        for hard in self.hard_examples:
            if hard.shape == problems.shape:
                count = math.ceil(HARD_SHARE * len(problems))
                rows = torch.randint(len(hard), (count,), generator=generator)
                problems.inputs[:count], problems.targets[:count] = hard.source[rows], hard.target[rows]
        return problems

    def _mixture(self, step: int) -> "_Mixture":
        """What is trained on at a step."""
        stage = None if self.curriculum is None else self.curriculum.stage(step)
        if stage is not None and stage not in self._stages:
            assert isinstance(self.task, Staged)
            self._stages[stage] = _Mixture(self.task.stage(*stage), self.data)
        return self._stages[stage]

    def __iter__(self) -> Iterator[Batch]:
        step = self.step()
        while True:
            yield self.batch(step)
            step += 1


class _Mixture:
    """The training shapes of a task, and how often each is served.

    Args:
        task: The task.
        data: The mixture of lengths.
    """

    def __init__(self, task: Task, data: Data) -> None:
        self.task = task
        self.shapes = task.training_shapes()
        self.weights = torch.tensor([float(max(shape)) ** data.longer for shape in self.shapes])
