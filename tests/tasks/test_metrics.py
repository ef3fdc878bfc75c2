import math

import pytest
import torch
from torch import Tensor
from torchmetrics import Metric

from abc_toolkit.tasks.metrics import DigitAccuracy, ExactMatch, wilson_interval

PLACES = 4


def batches(generator: torch.Generator, *sizes: int) -> list[tuple[Tensor, Tensor]]:
    """Predictions and targets of two kinds of tokens, so that many a row is right."""
    draws = [torch.randint(0, 2, (2, size, PLACES + 1), generator=generator) for size in sizes]
    return [(predicted, target) for predicted, target in draws]


def plain(data: list[tuple[Tensor, Tensor]]) -> tuple[float, list[float]]:
    """Exact match and accuracy by place, by counting."""
    rows = [(p, t) for batch in data for p, t in zip(batch[0].tolist(), batch[1].tolist(), strict=True)]
    exact = sum(p == t for p, t in rows) / len(rows)
    return exact, [sum(p[i] == t[i] for p, t in rows) / len(rows) for i in range(PLACES)]


def fed(metric: Metric, data: list[tuple[Tensor, Tensor]]) -> Metric:
    for predicted, target in data:
        metric.update(predicted, target)
    return metric


def check(exact: Metric, digits: Metric, data: list[tuple[Tensor, Tensor]]) -> None:
    share, by_place = plain(data)
    assert 0 < share < 1
    assert exact.compute().item() == pytest.approx(share)
    assert digits.compute().tolist() == pytest.approx(by_place)


def test_metrics_count(generator: torch.Generator) -> None:
    exact, digits = ExactMatch(), DigitAccuracy(PLACES)
    for sizes in ((90,), (64, 1, 33)):
        data = batches(generator, *sizes)
        check(fed(exact, data), fed(digits, data), data)
        exact.reset()
        digits.reset()


def test_two_processes_count_as_one(generator: torch.Generator) -> None:
    data = batches(generator, 40, 7, 90)
    merged = []
    for make in (ExactMatch, lambda: DigitAccuracy(PLACES)):
        first, second = fed(make(), data[:1]), fed(make(), data[1:])
        for name, reduce in first._reductions.items():
            setattr(first, name, reduce(torch.stack([getattr(first, name), getattr(second, name)])))
        merged.append(first)
    check(*merged, data)


@pytest.mark.parametrize("make", [ExactMatch, lambda: DigitAccuracy(PLACES)])
def test_counts_are_whole_numbers(make: type[ExactMatch], generator: torch.Generator) -> None:
    # A float32 sum stops counting at 2^24.
    metric = fed(make(), batches(generator, 9))
    metric.right += 2**24
    before = metric.right.clone()
    row = torch.zeros(1, PLACES + 1, dtype=torch.long)
    metric.update(row, row)
    assert torch.equal(metric.right, before + 1)


@pytest.mark.parametrize(("right", "total"), [(0, 1), (1, 1), (0, 50), (50, 50), (1, 1000), (37, 200), (999, 1000)])
def test_wilson_interval_solves_its_equation(right: int, total: int) -> None:
    # Its ends are the shares p whose standard score of the observation is z, |right/total - p| = z sqrt(p (1-p) / n).
    for z in (1.0, 1.959963984540054, 3.0):
        a = 1 + z * z / total
        b = -(2 * right / total + z * z / total)
        c = (right / total) ** 2
        root = math.sqrt(max(0.0, b * b - 4 * a * c))
        low, high = wilson_interval(right, total, z)
        assert low == pytest.approx((-b - root) / (2 * a), abs=1e-12)
        assert high == pytest.approx((-b + root) / (2 * a), abs=1e-12)
        assert 0 <= low <= right / total <= high <= 1
        for p in (low, high):
            score = abs(right / total - p)
            assert score == pytest.approx(z * math.sqrt(p * (1 - p) / total), abs=1e-9)
    assert wilson_interval(right, total) == wilson_interval(right, total, 1.959963984540054)


def test_wilson_interval_known_values() -> None:
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3.
    known = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (right, total), expected in known.items():
        assert wilson_interval(right, total) == pytest.approx(expected, abs=5e-5)
    assert wilson_interval(0, 1000)[0] == 0.0
    assert wilson_interval(1000, 1000) == (pytest.approx(0.99617, abs=5e-6), 1.0)
