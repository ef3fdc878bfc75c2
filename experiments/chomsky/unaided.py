"""The benchmark's own protocol as a task: no steps and no window, the answer read at blank tokens behind the input."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Generator, Tensor

from abc_toolkit import tasks
from abc_toolkit.layout import Layout, stream_layout
from abc_toolkit.tasks.base import TRAINING, UNIFORM, Batch, Interface, Task
from abc_toolkit.tasks.chomsky.base import ChomskyTask
from abc_toolkit.tasks.digits.base import DigitTask
from abc_toolkit.tasks.lengths import Shape
from abc_toolkit.tasks.objective import Objective, TokenCrossEntropy

POOL = 1000  # problems of each training length, which come again


def benchmark_task(name: str, max_length: int) -> DigitTask:
    """A task of the benchmark by its class name."""
    task = getattr(tasks, name)(max_length=max_length)
    assert isinstance(task, DigitTask)
    return task


@lru_cache
def pool(name: str, max_length: int, shape: Shape, suite: str, count: int) -> tuple[Tensor, Tensor]:
    """Sources and answers of problems of a shape: token ids `[problem, source]` and `[problem, answer]`."""
    task = benchmark_task(name, max_length)
    problems = task.sample(Generator().manual_seed(shape[0]), count, shape, suite)
    vocabulary = task.vocabulary
    answers = [task.answer(vocabulary.decode(row)) for row in problems.target]
    return problems.source, torch.stack([vocabulary.encode(answer) for answer in answers])


@dataclass(frozen=True)
class Unaided(Task):
    """A task of the benchmark whose answer is read at blank tokens behind the input, all at once.

    Attributes:
        benchmark: Class name of the task.
        max_length: Longest training length, in tokens of the input.
    """

    benchmark: str = "ReverseString"
    max_length: int = 40

    @property
    def name(self) -> str:
        return f"unaided_{self.benchmark.lower()}"

    @property
    def own(self) -> DigitTask:
        """The task of the benchmark."""
        return benchmark_task(self.benchmark, self.max_length)

    @property
    def interface(self) -> Interface:
        count = len(self.own.vocabulary)
        return Interface(num_outputs=count, num_tokens=count + 1)  # the last one is the blank

    @property
    def objective(self) -> Objective:
        return TokenCrossEntropy()

    def training_shapes(self) -> tuple[Shape, ...]:
        return self.own.training_shapes()

    def evaluation_shapes(self, length: int, suite: str, generator: Generator) -> tuple[Shape, ...]:
        return self.own.evaluation_shapes(length, suite, generator)

    def sample(self, generator: Generator, batch: int, shape: Shape, suite: str = TRAINING) -> Batch:
        source, answer = pool(self.benchmark, self.max_length, shape, UNIFORM, POOL)
        rows = torch.randint(len(source), (batch,), generator=generator)
        return self.batch(shape, source[rows], answer[rows])

    def batch(self, shape: Shape, source: Tensor, answer: Tensor) -> Batch:
        """Problems as a model reads them."""
        blank = len(self.own.vocabulary)
        inputs = torch.cat([source, torch.full_like(answer, blank)], dim=1)
        targets = torch.cat([torch.zeros_like(source), answer], dim=1)
        counted = torch.cat([torch.zeros_like(source, dtype=torch.bool), torch.ones_like(answer, dtype=torch.bool)], 1)
        return Batch(shape, inputs, targets, counted)

    def num_tokens(self, shape: Shape) -> tuple[int, int]:
        source, answer = pool(self.benchmark, self.max_length, shape, UNIFORM, 1)
        return source.shape[1] + answer.shape[1], 0

    def layout(self, shape: Shape) -> Layout:
        source, answer = pool(self.benchmark, self.max_length, shape, UNIFORM, 1)
        numbers = [torch.arange(part.shape[1]) for part in (source, answer)]
        segment = torch.cat([torch.full_like(part, number) for number, part in enumerate(numbers)])
        place = torch.cat(numbers)
        ends = torch.cat([part.flip(0) for part in numbers])
        coordinates: Mapping[str, Any] = {"place": place, "index": ends}
        return stream_layout(("input", "blank"), segment, coordinates)


def length_of(task: DigitTask, length: int) -> Shape:
    """The shape of the benchmark's problems of a length, or of the length before it where it takes odd ones alone."""
    if isinstance(task, ChomskyTask):
        return task.evaluation_shapes(length, UNIFORM, Generator().manual_seed(length))[0]
    return (length,)
