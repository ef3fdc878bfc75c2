"""Trying a model, while it is trained, on everything that it can meet at the training lengths.

Sampled problems say little of what is rare among them. Where a window makes every prediction depend on a handful of
tokens, all that these can be within the training shapes, the *contexts*, can be tried; and of those in which the model
is weak problems can be made to train on. Nothing here looks at a length beyond training.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from abc_toolkit.contexts import CannotDecideError, Cones, Function, decidable, functions_of, gaps
from abc_toolkit.data import held_out
from abc_toolkit.positions import PositionMethod
from abc_toolkit.tasks import Problems, Shape, Task
from abc_toolkit.transformer import EncoderDecoder

THIN = 1.0
MOST_EXAMINED = 10**6
_SAMPLE = 4096
_LESSONS = 256


@dataclass(frozen=True)
class Examined:
    """What an examination found.

    Attributes:
        contexts: Contexts that were tried: a sample of each function's if many of those were weak, else all.
        weak: How many of them are wrong, or lead by less than `THIN`.
        smallest_gap: Least lead of a required token's logit over the next best.
        problems: Training problems in which the weakest occur, shape by shape.
    """

    contexts: int
    weak: int
    smallest_gap: float
    problems: tuple[Problems, ...]


class Examination:
    """Every context of the training shapes.

    Args:
        task: The task.
        position: The model's position method.
        most: Most contexts.

    Raises:
        CannotDecideError: If they cannot be enumerated, or are more.
    """

    def __init__(self, task: Task, position: PositionMethod, most: int = MOST_EXAMINED) -> None:
        self.task, rule, window, inner = decidable(task, position)
        cones = [(shape, Cones(window, task.layout(shape), inner)) for shape in task.training_shapes()]
        predictions = [(shape, own.of(query)) for shape, own in cones for query in range(len(own.layout.target))]
        self.functions = functions_of(self.task, rule, predictions, most)

    def of(self, model: EncoderDecoder, generator: Generator) -> Examined:
        """Tries a model on a sample of the contexts, and on all of them if there it is weak in too few for lessons.

        Args:
            model: The model, inside the window.
            generator: Draws the sample, and what else is in the problems.
        """
        samples = [_sample(function.contexts, generator) for function in self.functions]
        for tried in (samples, [function.contexts for function in self.functions]):
            found = [gaps(model, function, part) for function, part in zip(self.functions, tried, strict=True)]
            gap, context = torch.cat(found), torch.cat(tried)
            weak = int((gap < THIN).sum())
            if weak >= _LESSONS:
                break
        number = torch.cat([torch.full_like(part, which) for which, part in enumerate(tried)])
        rows = gap.argsort()[: min(weak, _LESSONS)].tolist()
        problems = []
        for row in rows:
            with suppress(CannotDecideError):  # it may occur in longer problems alone
                problems.append(self._problem(self.functions[int(number[row])], context[row], generator))
        return Examined(len(context), weak, float(gap.min()), self._lessons(problems))

    def _problem(self, function: Function, context: Tensor, generator: Generator) -> Problems:
        met = function.met(context)
        return met[int(torch.randint(len(met), (), generator=generator))].problem(context, generator)

    def _lessons(self, problems: Sequence[Problems]) -> tuple[Problems, ...]:
        """Problems shape by shape, without those that are held out."""
        by_shape: dict[Shape, list[Problems]] = {}
        for problem in problems:
            if not held_out(self.task, problem).any():
                by_shape.setdefault(problem.shape, []).append(problem)
        return tuple(
            Problems(shape, torch.cat([p.source for p in own]), torch.cat([p.target for p in own]))
            for shape, own in by_shape.items()
        )


def _sample(contexts: Tensor, generator: Generator) -> Tensor:
    few = len(contexts) <= _SAMPLE
    return contexts if few else contexts[torch.randint(len(contexts), (_SAMPLE,), generator=generator)]
