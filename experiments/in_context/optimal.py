"""The best accuracy there is on conjunctions and disjunctions: of a predictor that knows how prompts are drawn.

It weighs all 3^8 sets of literals by their probability given the points and labels so far. That includes the points by
themselves, as overwritten ones tell of the literals. The last label of prompts of the trained length is predicted.

    python experiments/in_context/optimal.py --prompts 6000
"""

import argparse
import itertools
import math

import torch
from torch import Tensor

from abc_toolkit.phases.measure import evaluation_problems
from abc_toolkit.tasks import Conjunction, Disjunction


def chances(points: Tensor, labels: Tensor, sign: int, overwriting: float) -> Tensor:
    """The probability that the last label is 1.

    Args:
        points: `[point, dim]`.
        labels: `[point]`; the last is not read.
        sign: 1 for a conjunction, -1 for a disjunction, which is one of the negated literals, negated.
        overwriting: Probability that a point was made to have the rare label.
    """
    dim = points.shape[1]
    weights = torch.tensor(list(itertools.product((0.0, 1.0, -1.0), repeat=dim)))
    literals = weights.abs().sum(dim=1)
    prior = (dim - literals) * math.log(0.7) + literals * math.log(0.15)
    rare = (sign * (points @ weights.T) == literals).float()
    drawn = ((1 - overwriting) * 2.0**-dim + rare * overwriting * 2.0 ** (literals - dim)).log().sum(dim=0)
    predicted = sign * (2 * rare - 1)
    agrees = (predicted[:-1] == labels[:-1, None]).all(dim=0)
    posterior = torch.softmax((prior + drawn).masked_fill(~agrees, -torch.inf), dim=0)
    return posterior[predicted[-1] > 0].sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args()
    for task, sign in ((Conjunction(), 1), (Disjunction(), -1)):
        right = 0
        for batch in evaluation_problems(task, task.max_length, "ood", settings.prompts, settings.seed):
            for points, labels in zip(batch.inputs[:, 0::2, : task.dim], batch.targets[:, 0::2], strict=True):
                likely = chances(points, labels, sign, task.overwriting) > 0.5
                right += int(likely == (labels[-1] > 0))
        print(f"{task.name}: {100 * right / settings.prompts:.2f} % of {settings.prompts:,} prompts")


if __name__ == "__main__":
    main()
