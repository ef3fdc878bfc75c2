"""Formulas of propositional logic in context: conjunctions, disjunctions, and their normal forms.

A weight of 1 is a literal, -1 a negated one, 0 none. Source: Bhattamishra et al. 2024 (arXiv 2310.03016), with the
numbers of the study of `functions/base.py`.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from abc_toolkit.tasks.functions.base import BalancedTask, drawn_subsets, drawn_weights, signs


def all_satisfied(weights: Tensor, points: Tensor) -> Tensor:
    """1 where a point satisfies every literal of the weights, else -1; with no literals, 1.

    Args:
        weights: `[..., dim]`.
        points: `[..., length, dim]`.
    """
    return signs((points @ weights[..., None])[..., 0] - weights.abs().sum(-1, keepdim=True) + 1)


def any_satisfied(weights: Tensor, points: Tensor) -> Tensor:
    """1 where a point satisfies one literal of the weights or more, else -1; with no literals, -1."""
    return -all_satisfied(-weights, points)


@dataclass(frozen=True)
class Conjunction(BalancedTask):
    """All literals of a conjunction hold: a coordinate is one with probability 0.3, negated in half of the cases.

    Attributes:
        max_length: Points of a training prompt.
        dim: Width of a point.
        marked: Whether two more channels say which tokens are points and which labels.
        overwriting: Probability that a point is made to satisfy all literals.
    """

    num_neighbours: ClassVar[int] = 1

    def draw_function(self, generator: Generator, batch: int) -> Tensor:
        return drawn_weights(generator, (batch, self.dim), {0: 0.7, 1: 0.15, -1: 0.15})

    def labels(self, function: Tensor, points: Tensor) -> Tensor:
        return all_satisfied(function, points)

    def fixed(self, generator: Generator, function: Tensor) -> Tensor:
        return function


@dataclass(frozen=True)
class Disjunction(Conjunction):
    """One literal of a disjunction holds, or more; literals are drawn as those of a conjunction.

    Attributes:
        max_length: Points of a training prompt.
        dim: Width of a point.
        marked: Whether two more channels say which tokens are points and which labels.
        overwriting: Probability that a point is made to falsify all literals.
    """

    def labels(self, function: Tensor, points: Tensor) -> Tensor:
        return any_satisfied(function, points)

    def fixed(self, generator: Generator, function: Tensor) -> Tensor:
        return -function


@dataclass(frozen=True)
class SparseDisjunction(Disjunction):
    """A disjunction of four different coordinates, none of them negated.

    Attributes:
        max_length: Points of a training prompt.
        dim: Width of a point, at least 4.
        marked: Whether two more channels say which tokens are points and which labels.
        overwriting: Probability that a point is made to falsify all literals.
    """

    num_literals: ClassVar[int] = 4
    least_dim: ClassVar[int] = num_literals
    num_neighbours: ClassVar[int] = 3

    def draw_function(self, generator: Generator, batch: int) -> Tensor:
        return drawn_subsets(generator, batch, self.dim, self.num_literals)


@dataclass(frozen=True)
class DNF(BalancedTask):
    """One of three conjunctions holds, or more; in each a coordinate is a literal with probability 0.2.

    Functions are `[batch, clause, dim]`. Overwritten points satisfy one clause, the same in the whole prompt.

    Attributes:
        max_length: Points of a training prompt.
        dim: Width of a point.
        marked: Whether two more channels say which tokens are points and which labels.
        overwriting: Probability that a point is made to satisfy the prompt's clause.
    """

    overwriting: float = 0.35

    num_clauses: ClassVar[int] = 3

    def draw_function(self, generator: Generator, batch: int) -> Tensor:
        return drawn_weights(generator, (batch, self.num_clauses, self.dim), {0: 0.8, 1: 0.1, -1: 0.1})

    def labels(self, function: Tensor, points: Tensor) -> Tensor:
        return all_satisfied(function, points[:, None]).amax(dim=1)

    def fixed(self, generator: Generator, function: Tensor) -> Tensor:
        clause = torch.randint(self.num_clauses, (len(function),), generator=generator)
        return function[torch.arange(len(function)), clause]


@dataclass(frozen=True)
class CNF(DNF):
    """All of three disjunctions hold; literals are drawn as those of a DNF.

    Functions are `[batch, clause, dim]`. Overwritten points falsify one clause, the same in the whole prompt.

    Attributes:
        max_length: Points of a training prompt.
        dim: Width of a point.
        marked: Whether two more channels say which tokens are points and which labels.
        overwriting: Probability that a point is made to falsify the prompt's clause.
    """

    overwriting: float = 0.3

    def labels(self, function: Tensor, points: Tensor) -> Tensor:
        return any_satisfied(function, points[:, None]).amin(dim=1)

    def fixed(self, generator: Generator, function: Tensor) -> Tensor:
        return -super().fixed(generator, function)
