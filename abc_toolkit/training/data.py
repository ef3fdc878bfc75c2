"""Batches of problems: training problems made on the fly, validation problems held out by a hash."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.utils.data import IterableDataset

from abc_toolkit.errors import UserError, check_numbers
from abc_toolkit.seeds import Stream, seeded
from abc_toolkit.tasks import Problems, Shape, Task
from abc_toolkit.tasks.base import TRAINING

HELD_OUT_SHARE = 16
SMALL = 10_000
HARD_SHARE = 0.25


@dataclass(frozen=True)
class Data:
    """How training problems are served and how many are held out.

    Attributes:
        batch_size: Problems in a batch, which several devices share; all of a batch have one shape.
        longer: A batch has a shape with probability in proportion to its length to this power: 0 serves every
            length equally often, 1 favours the long ones.
        validation_problems: Held-out problems on which interpolation is measured, over all shapes together.
    """

    batch_size: int = 64
    longer: float = 0.5
    validation_problems: int = 2560

    def __post_init__(self) -> None:
        check_numbers(self, "data", ("batch_size", "validation_problems"), at_least=1)
        check_numbers(self, "data", ("longer",), at_least=-100, at_most=100)


def held_out(task: Task, problems: Problems) -> Tensor:
    """Which problems are for validation alone, boolean `[batch]`.

    One in `HELD_OUT_SHARE`, by a hash of the operands' values, so that a problem is held out or trained on
    whatever zeros it is padded with. Problems of which there are fewer than `SMALL` of their size are trained on
    in full.

    Args:
        task: The task.
        problems: Problems of any shape.
    """
    hashed = significant = torch.zeros(len(problems), dtype=torch.long)
    for number, digits in enumerate(task.numbers(problems)):
        places = torch.arange(digits.shape[1])
        hashed = hashed + (digits * _scatter(places * 64 + 2 * number + 1)).sum(dim=1)
        significant = significant + ((places + 1) * (digits > 0)).amax(dim=1)
    hashed = _scatter(hashed)
    enough = task.base ** significant.clamp(max=16).double() >= SMALL
    return enough & (hashed % HELD_OUT_SHARE == 0)


def _scatter(x: Tensor) -> Tensor:
    """Scatters int64 values over the non-negative ones."""
    x = (x ^ ((x >> 31) & 0x1FFFFFFFF)) * 7046029254386353131
    x = (x ^ ((x >> 29) & 0x7FFFFFFFF)) * -7335166018064393911
    return (x ^ ((x >> 32) & 0xFFFFFFFF)) & 0x7FFFFFFFFFFFFFFF


def draw(
    task: Task, generator: Generator, batch: int, shape: Shape, for_validation: bool, set_name: str = TRAINING
) -> Problems:
    """Problems of one shape and set, on one side of the hold-out.

    Raises:
        UserError: If the shape has too few problems on that side.
    """
    sources, targets, count = [], [], 0
    factor = 2 * HELD_OUT_SHARE if for_validation else 1
    for _ in range(64):
        problems = task.sample(generator, batch * factor + 8, shape, set_name)
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


def validation_problems(task: Task, seed: int, count: int) -> list[Problems]:
    """Distinct held-out problems of the training mixture, shape by shape.

    A task so small that no training shape holds `SMALL` problems is validated on problems that it trains on, as all
    of them are trained on in full.

    Args:
        task: The task.
        seed: The run's seed.
        count: Problems over all shapes together; short shapes may hold fewer than their part.
    """
    shapes = tuple(shape for shape in task.training_shapes() if task.num_problems(shape) >= SMALL)
    for_validation = bool(shapes)
    shapes = shapes or task.training_shapes()
    each = math.ceil(count / len(shapes))
    batches = []
    for number, shape in enumerate(shapes):
        problems = draw(task, seeded(seed, Stream.VALIDATION, number), 2 * each, shape, for_validation)
        _, first = torch.unique(problems.source, dim=0, return_inverse=True)
        order = torch.argsort(first, stable=True)
        new = torch.cat([torch.tensor([True]), first[order][1:] != first[order][:-1]])
        batches.append(problems[order[new].sort().values[:each]])
    return batches


class TrainingBatches(IterableDataset[Problems]):
    """Endless batches of training problems, each a function of the seed and the step alone.

    Several processes get the same batches, of which each takes its own rows.

    Args:
        task: The task.
        data: Batch size and the mixture of lengths.
        seed: The run's seed.
        step: Tells the step that the next batch is for, so that a resumed run goes on where it was.

    Attributes:
        hard_examples: Problems that are to come up more often: they take a share of every batch of their shape.
    """

    def __init__(self, task: Task, data: Data, seed: int, step: Callable[[], int]) -> None:
        super().__init__()
        self.task = task
        self.data = data
        self.seed = seed
        self.step = step
        self.shapes = task.training_shapes()
        self.weights = torch.tensor([float(max(shape)) ** data.longer for shape in self.shapes])
        self.hard_examples: tuple[Problems, ...] = ()

    def batch(self, step: int) -> Problems:
        """The batch of one step."""
        which = int(torch.multinomial(self.weights, 1, generator=seeded(self.seed, Stream.SHAPES, step)))
        generator = seeded(self.seed, Stream.TRAINING, step, 0)
        problems = draw(self.task, generator, self.data.batch_size, self.shapes[which], for_validation=False)
        for hard in self.hard_examples:
            if hard.shape == problems.shape:
                count = math.ceil(HARD_SHARE * len(problems))
                rows = torch.randint(len(hard), (count,), generator=generator)
                problems.source[:count], problems.target[:count] = hard.source[rows], hard.target[rows]
        return problems

    def __iter__(self) -> Iterator[Problems]:
        step = self.step()
        while True:
            yield self.batch(step)
            step += 1
