"""Coverage: a model in training is tried on all assignments of the training lengths.

Sampled problems seldom contain rare cases. Inside a window each prediction depends on a few tokens, its receptive
field. All values that these tokens take in the training shapes are the *assignments*: few enough to try each of them.
The assignments in which the model is weak are turned into *hard examples*: training problems that contain them. No
length beyond training is used.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from abc_toolkit.models.base import Model
from abc_toolkit.models.transformer import TransformerModel
from abc_toolkit.proof.basis import basis_of
from abc_toolkit.proof.bound import bound_of
from abc_toolkit.proof.enumeration import Kind, Reading, kinds_of
from abc_toolkit.proof.forward import margins
from abc_toolkit.proof.receptive_field import CannotDecideError, ReceptiveFields
from abc_toolkit.tasks import Problems, Shape, Task
from abc_toolkit.training.data import held_out

THIN = 1.0
MOST_COVERED = 10**6
_SAMPLE = 4096
_HARD_EXAMPLES = 256


@dataclass(frozen=True)
class Covered:
    """The result of a coverage check.

    Attributes:
        assignments: Number of assignments tried: a sample of each kind if many of the sample were weak, else all.
        weak: Number of them with a margin below `THIN`, or below 0, where the prediction is wrong.
        smallest_margin: Least margin: the required token's logit minus the next best.
        hard_examples: Training problems that contain the weakest assignments, shape by shape.
    """

    assignments: int
    weak: int
    smallest_margin: float
    hard_examples: tuple[Problems, ...]


class Coverage:
    """All assignments of the training shapes.

    Args:
        task: The task.
        model: A model with the window and the positions of those to be tried; its weights do not count.
        most: Largest number of assignments.

    Raises:
        CannotDecideError: If the assignments cannot be enumerated, or are more than `most`.
    """

    def __init__(self, task: Task, model: Model, most: int = MOST_COVERED) -> None:
        basis = basis_of(task, model)
        bound_of(basis.task, basis.rule, basis.window, basis.period)  # raises where no proof could follow
        self.task = basis.task
        positioning = model.positioning if basis.cyclic else None
        predictions = []
        for shape in task.training_shapes():
            layout = task.layout(shape)
            reading, fields = Reading(basis.rule, layout), ReceptiveFields(basis.window, layout, positioning)
            sizes = basis.task.sizes(shape)
            predictions += [(reading, sizes, shape, fields.at(query)) for query in range(len(layout.target))]
        self.kinds = kinds_of(basis.task, predictions, most)

    def examine(self, model: TransformerModel, generator: Generator) -> Covered:
        """Tries a model on a sample of the assignments and, if it is weak in only a few of them, on all.

        Args:
            model: The model, inside the window.
            generator: Draws the sample, and the other tokens of the hard examples.
        """
        samples = [_sample(kind.assignments, generator) for kind in self.kinds]
        for tried in (samples, [kind.assignments for kind in self.kinds]):
            found = [margins(model, kind, part) for kind, part in zip(self.kinds, tried, strict=True)]
            margin, assignment = torch.cat(found), torch.cat(tried)
            weak = int((margin < THIN).sum())
            if weak >= _HARD_EXAMPLES:
                break
        number = torch.cat([torch.full_like(part, which) for which, part in enumerate(tried)])
        rows = margin.argsort()[: min(weak, _HARD_EXAMPLES)].tolist()
        problems = []
        for row in rows:
            with suppress(CannotDecideError):  # the assignment may occur in longer problems only
                problems.append(self._problem(self.kinds[int(number[row])], assignment[row], generator))
        return Covered(len(assignment), weak, float(margin.min()), self._hard_examples(problems))

    def _problem(self, kind: Kind, assignment: Tensor, generator: Generator) -> Problems:
        """A training problem that contains an assignment."""
        met = kind.predictions_with(assignment)
        return met[int(torch.randint(len(met), (), generator=generator))].problem(assignment, generator)

    def _hard_examples(self, problems: Sequence[Problems]) -> tuple[Problems, ...]:
        """Hard examples, shape by shape. Held-out problems are left out."""
        by_shape: dict[Shape, list[Problems]] = {}
        for problem in problems:
            if not held_out(self.task, problem).any():
                by_shape.setdefault(problem.shape, []).append(problem)
        return tuple(
            Problems(shape, torch.cat([p.source for p in own]), torch.cat([p.target for p in own]))
            for shape, own in by_shape.items()
        )


def _sample(assignments: Tensor, generator: Generator) -> Tensor:
    few = len(assignments) <= _SAMPLE
    return assignments if few else assignments[torch.randint(len(assignments), (_SAMPLE,), generator=generator)]
