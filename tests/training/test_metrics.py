import pytest
import torch

from abc_toolkit.tasks.objective import Metric
from abc_toolkit.training.metrics import MeanOverProblems


def test_two_processes_count_as_one(generator: torch.Generator) -> None:
    for is_share in (True, False):
        parts = [torch.rand(size, generator=generator) for size in (40, 7, 90)]
        parts = [part > 0.5 if is_share else part for part in parts]
        metric = Metric("m", higher_is_better=True, is_share=is_share)
        first, second = MeanOverProblems(metric), MeanOverProblems(metric)
        first.update(parts[0])
        for part in parts[1:]:
            second.update(part)
        for name, reduce in first._reductions.items():
            setattr(first, name, reduce(torch.stack([getattr(first, name), getattr(second, name)])))
        assert first.compute().item() == pytest.approx(torch.cat(parts).float().mean().item())
        assert first.total.is_floating_point() != is_share  # shares are counted exactly
