import math
import statistics

import pytest
import torch

from abc_toolkit.tasks.base import Batch
from abc_toolkit.tasks.objective import (
    EXACT_MATCH,
    LogisticLoss,
    Metric,
    Perplexity,
    SequencePerplexity,
    SquaredError,
    Stopping,
    TokenCrossEntropy,
    solved,
    wilson_interval,
)
from abc_toolkit.training.metrics import MeanOverProblems

ERROR = Metric("error", higher_is_better=False)


def batch(targets: torch.Tensor, counted: torch.Tensor | None = None) -> Batch:
    return Batch((1,), torch.zeros_like(targets), targets, counted)


def test_the_summary_of_a_share_is_wilsons() -> None:
    assert EXACT_MATCH.summary(3.0, 3.0, 4) == (0.75, *wilson_interval(3, 4))
    assert EXACT_MATCH.summary(0.0, 0.0, 4)[:2] == (0.0, 0.0)


def test_the_summary_of_a_mean_is_that_of_its_sample() -> None:
    values = [0.5, 2.0, 4.0, 0.25, 1.0]
    mean, low, high = ERROR.summary(sum(values), sum(v * v for v in values), len(values))
    half = 1.959963984540054 * statistics.stdev(values) / math.sqrt(len(values))
    assert (mean, low, high) == pytest.approx((statistics.mean(values), mean - half, mean + half))
    assert ERROR.summary(2.0, 4.0, 1) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize(("right", "total"), [(0, 7), (7, 7), (3, 7), (999, 1000), (1, 1)])
def test_wilson_interval_solves_its_equation(right: int, total: int) -> None:
    """Its ends are the shares from which the observed one is `z` standard errors away."""
    z = 1.96
    low, high = wilson_interval(right, total, z)
    share = right / total
    assert 0 <= low <= share <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            assert abs(share - end) == pytest.approx(z * math.sqrt(end * (1 - end) / total))


def test_only_what_counts_is_judged(generator: torch.Generator) -> None:
    logits = torch.randn(6, 4, 5, generator=generator)
    targets = logits.argmax(-1)
    targets[:, 2] = (targets[:, 2] + 1) % 5  # wrong, and not counted
    counted = torch.tensor([True, True, False, True]).expand(6, -1)
    objective = TokenCrossEntropy()
    assert objective.measured(logits, batch(targets, counted))["exact_match"].all()
    assert not objective.measured(logits, batch(targets))["exact_match"].any()
    expected = [-logits[i, j].log_softmax(0)[targets[i, j]].item() for i in range(6) for j in (0, 1, 3)]
    assert objective.loss(logits, batch(targets, counted)).item() == pytest.approx(statistics.mean(expected), rel=1e-5)


def test_perplexities_by_hand(generator: torch.Generator) -> None:
    """The exponential of the mean cross-entropy of what counts, against loops over numbers."""
    logits = torch.randn(5, 4, 3, generator=generator)
    targets = torch.randint(3, (5, 4), generator=generator)
    counted = torch.rand(5, 4, generator=generator) < 0.6
    counted[:, 1] = True
    losses = [[-logits[i, j].log_softmax(0)[targets[i, j]].item() for j in range(4)] for i in range(5)]
    kept = [[loss for loss, keep in zip(*pair, strict=True) if keep] for pair in zip(losses, counted, strict=True)]
    objective = SequencePerplexity()
    measured = objective.measured(logits, batch(targets, counted))
    assert measured["perplexity"].tolist() == pytest.approx([statistics.mean(row) for row in kept])
    assert objective.loss(logits, batch(targets, counted)).item() == pytest.approx(
        statistics.mean([loss for row in kept for loss in row])
    )
    assert torch.equal(measured["exact_match"], solved(logits, batch(targets, counted)))
    values = measured["perplexity"].double()
    metric = objective.metrics[0]
    value, low, high = metric.summary(float(values.sum()), float((values**2).sum()), 5)
    assert value == pytest.approx(statistics.geometric_mean([math.exp(number) for number in values.tolist()]))
    assert low < value < high
    assert value / low == pytest.approx(high / value)
    total = MeanOverProblems(metric)
    total.update(measured["perplexity"])
    assert float(total.compute()) == pytest.approx(value)
    assert metric.reported(1e6) == math.inf
    assert list(Perplexity().measured(logits, batch(targets))) == ["perplexity"]


def test_squared_errors_by_hand() -> None:
    outputs = torch.tensor([[1.0, 9.0, 3.0], [0.0, 9.0, 9.0]])
    targets = torch.tensor([[0.0, 0.0, 1.0], [2.0, 0.0, 0.0]])
    counted = torch.tensor([[True, False, True], [True, False, False]])
    objective = SquaredError(scale=2.0)
    assert objective.loss(outputs, batch(targets, counted)).item() == pytest.approx((0.5 + 2 + 2) / 3)
    measured = objective.measured(outputs, batch(targets, counted))
    assert measured["squared_error"].tolist() == pytest.approx([1.25, 2.0])
    assert measured["last_squared_error"].tolist() == pytest.approx([2.0, 2.0])
    assert objective.measured(outputs, batch(targets))["last_squared_error"].tolist() == pytest.approx([2.0, 40.5])
    assert objective.loss(outputs, batch(targets)).item() == pytest.approx(((outputs - targets) ** 2).mean().item() / 2)


def test_logistic_losses_by_hand(generator: torch.Generator) -> None:
    """`log(1 + exp(-y o))`, and the sign as the prediction, against loops over numbers."""
    outputs = 3 * torch.randn(5, 7, generator=generator)
    targets = torch.where(torch.rand(5, 7, generator=generator) < 0.5, 1.0, -1.0)
    counted = torch.rand(5, 7, generator=generator) < 0.6
    counted[:, 2] = True
    counted[0] = torch.tensor([True, False, True, True, False, False, False])
    objective = LogisticLoss()
    for chosen in (counted, torch.ones_like(counted)):
        losses, means, lasts = [], [], []
        for row in range(5):
            numbers = [number for number in range(7) if chosen[row, number]]
            pairs = [(outputs[row, number].item(), targets[row, number].item()) for number in numbers]
            losses += [math.log(1 + math.exp(-y * o)) for o, y in pairs]
            right = [float((o > 0) == (y > 0)) for o, y in pairs]
            means.append(sum(right) / len(right))
            lasts.append(right[-1])
        judged = batch(targets, None if chosen.all() else chosen)
        assert objective.loss(outputs, judged).item() == pytest.approx(statistics.mean(losses), rel=1e-5)
        measured = objective.measured(outputs, judged)
        assert measured["accuracy"].tolist() == pytest.approx(means)
        assert measured["last_accuracy"].tolist() == lasts
    assert 0 < means[0] < 1


def test_logistic_losses_of_large_outputs_are_finite() -> None:
    outputs, targets = torch.tensor([[1e4, -1e4, 0.0]]), torch.tensor([[-1.0, -1.0, 1.0]])
    assert LogisticLoss().loss(outputs, batch(targets)).item() == pytest.approx((1e4 + 0 + math.log(2)) / 3)
    # An output of 0 predicts neither label.
    assert LogisticLoss().by_output(outputs, batch(targets)).tolist() == [[0.0, 1.0, 0.0]]


def test_each_accuracy_has_its_interval() -> None:
    """A problem's mean accuracy is no share of problems; the accuracy at its last point is."""
    mean, last = LogisticLoss.metrics
    assert (mean.name, mean.is_share, mean.in_percent) == ("accuracy", False, True)
    assert (last.name, last.is_share, last.in_percent) == ("last_accuracy", True, True)
    assert last.summary(3.0, 3.0, 4) == (0.75, *wilson_interval(3, 4))
    assert mean.summary(2.0, 1.5, 4) == pytest.approx(ERROR.summary(2.0, 1.5, 4))


def test_when_a_training_may_stop() -> None:
    tokens, numbers = TokenCrossEntropy(), SquaredError()
    for exact_match, loss, stopping, expected in (
        (0.99, 0.1, Stopping(0.99), True),
        (0.99, 1.1, Stopping(0.99), False),  # without one given, the loss may be 1
        (0.99, 1.1, Stopping(0.99, loss=2.0), True),
        (0.98, 0.1, Stopping(0.99), False),
    ):
        assert tokens.reached({"exact_match": exact_match}, loss, stopping) == expected
    assert not numbers.reached({"squared_error": 0.0}, 0.0, Stopping(0.0))
    assert numbers.reached({"squared_error": 0.5}, 0.5, Stopping(1.0, loss=0.5))
    assert not numbers.reached({"squared_error": 0.5}, 0.6, Stopping(1.0, loss=0.5))
    labels = LogisticLoss()
    assert not labels.reached({"accuracy": 1.0}, 0.0, Stopping(0.0))
    assert labels.reached({"accuracy": 0.9}, 0.3, Stopping(1.0, loss=0.3))
    assert not labels.reached({"accuracy": 0.9}, 0.31, Stopping(1.0, loss=0.3))
