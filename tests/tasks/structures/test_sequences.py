import statistics

import pytest
import torch

from abc_toolkit.errors import UserError
from abc_toolkit.tasks import SequenceCopy, SequenceRepeat, SequenceReverse
from abc_toolkit.tasks.structures.sequences import SequenceTask
from abc_toolkit.testing.task_contract import TaskContract
from abc_toolkit.vocabulary import BOS, EOS, NUM_SPECIAL

TASKS = (SequenceCopy, SequenceRepeat, SequenceReverse)


class TestSequences(TaskContract):
    cases = {  # noqa: RUF012
        "copy": SequenceCopy(max_length=6),
        "copy, one symbol more": SequenceCopy(max_length=3, num_symbols=2),
        "repeat": SequenceRepeat(max_length=5),
        "reverse": SequenceReverse(max_length=6),
    }


def strings(tokens: torch.Tensor, present: torch.Tensor | None) -> list[list[int]]:
    """The tokens that are there, row by row."""
    assert present is not None
    return [
        [token for token, there in zip(*row, strict=True) if there]
        for row in zip(tokens.tolist(), present, strict=True)
    ]


@pytest.mark.parametrize("length", [1, 4, 40])
@pytest.mark.parametrize("kind", TASKS)
def test_targets_follow_from_sources(kind: type[SequenceTask], length: int, generator: torch.Generator) -> None:
    task = kind()
    batch = task.sample(generator, 50, (length,))
    assert batch.layout is not None
    assert batch.counted is not None
    sources = strings(batch.source, batch.layout.source.present)
    targets = strings(batch.target, batch.layout.target.present)
    for source, target, counted in zip(sources, targets, batch.counted, strict=True):
        if kind is SequenceCopy:
            assert (source[0], source[-1], target[-1]) == (BOS, EOS, EOS)
            assert source[1:] == target
            assert counted[: len(target)].all()
            continue
        assert target == (source + source if kind is SequenceRepeat else list(reversed(source)))
        assert counted.tolist() == [0 < number < len(target) for number in range(len(counted))]
        assert all(NUM_SPECIAL <= token < NUM_SPECIAL + task.num_symbols for token in source)


def test_lengths_are_of_the_studys_law(generator: torch.Generator) -> None:
    """`floor(N(100, 10))` has the mean 99.5 and the variance 100 + 1 / 12, each to 4.5 standard errors."""
    lengths = SequenceRepeat().draw_lengths(generator, 40000, 100)
    variance = 100 + 1 / 12
    assert abs(statistics.mean(lengths) - 99.5) < 4.5 * (variance / 40000) ** 0.5
    assert abs(statistics.variance(lengths) - variance) < 4.5 * variance * (2 / 40000) ** 0.5
    assert min(SequenceReverse().draw_lengths(generator, 1000, 1)) == 2


def test_symbols_are_uniform(generator: torch.Generator) -> None:
    batch = SequenceCopy(num_symbols=4).sample(generator, 2000, (20,))
    tokens = batch.source[batch.source >= NUM_SPECIAL] - NUM_SPECIAL
    counts = tokens.bincount(minlength=4).double()
    expected = counts.sum() / 4
    assert ((counts - expected) ** 2 / expected).sum() < 25  # chi-square of 3 degrees: beyond in one of 60,000


@pytest.mark.parametrize(
    ("settings", "said"), [({"max_length": 0}, "max_length 0"), ({"num_symbols": 0}, "num_symbols")]
)
def test_settings_that_make_no_sense(settings: dict[str, int], said: str) -> None:
    with pytest.raises(UserError, match=said):
        SequenceRepeat(**settings)
