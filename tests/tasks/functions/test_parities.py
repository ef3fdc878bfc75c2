from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abc_toolkit.errors import UserError
from abc_toolkit.tasks import Parity, ParityFunction, SparseParity
from abc_toolkit.testing.task_contract import TaskContract, generator
from tests.tasks.functions.laws import assert_labels_follow, assert_mean, assert_share, label_shares

CLASSES = (ParityFunction, SparseParity)


class TestParities(TaskContract):
    cases = {  # noqa: RUF012
        "parity": ParityFunction(max_length=7, dim=3),
        "parity, one channel": ParityFunction(max_length=2, dim=1),
        "sparse parity": SparseParity(max_length=4, dim=2),
    }


def odd(subset: list[float], point: list[float]) -> float:
    number = 0
    for member, x in zip(subset, point, strict=True):
        if member and x == 1:
            number += 1
    return 1.0 if number in range(1, 100, 2) else -1.0


@pytest.mark.parametrize("kind", CLASSES)
def test_labels_are_of_the_one_function(kind: type[ParityFunction], monkeypatch: pytest.MonkeyPatch) -> None:
    assert_labels_follow(kind(max_length=12, dim=5), odd, monkeypatch)


@pytest.mark.parametrize("dim", [10, 16, 20])
def test_half_of_the_labels_are_one(dim: int) -> None:
    """All but those of the empty subset, whose labels are -1: at 10 channels its share is a thousandth."""
    assert_mean(label_shares(SparseParity(max_length=20, dim=dim), 6000), 1 / 2)
    assert_mean(label_shares(ParityFunction(max_length=20, dim=dim), 6000), (1 - 2.0**-dim) / 2)


def test_every_subset_is_as_likely() -> None:
    subsets = ParityFunction(dim=3).draw_function(generator(), 8000)
    for subset in product((0.0, 1.0), repeat=3):
        assert_share(int((subsets == torch.tensor(subset)).all(dim=1).sum()), 8000, 1 / 8)


def test_every_pair_is_as_likely() -> None:
    pairs = SparseParity(dim=4).draw_function(generator(), 6000)
    assert (pairs.sum(dim=1) == 2).all()
    for first in range(4):
        for second in range(first):
            assert_share(int((pairs[:, first] * pairs[:, second]).sum()), 6000, 1 / 6)


def test_many_channels_are_no_obstacle() -> None:
    """There are 2^50 subsets: none is listed."""
    batch = ParityFunction(max_length=4, dim=50).sample(generator(), 6, (4,))
    assert set(batch.targets.unique().tolist()) == {-1, 1}


@given(dim=st.integers(1, 6), data=st.data())
def test_every_subset_on_every_point(dim: int, data: st.DataObject) -> None:
    subset = data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=dim, max_size=dim))
    points = [list(map(float, point)) for point in product((-1, 1), repeat=dim)]
    labels = ParityFunction(dim=dim).labels(torch.tensor([subset]), torch.tensor([points]))
    assert labels.tolist() == [[odd(subset, point) for point in points]]


@given(dim=st.integers(2, 8), length=st.integers(1, 9), seed=st.integers(0, 99), kind=st.sampled_from(CLASSES))
def test_points_and_labels_are_signs(dim: int, length: int, seed: int, kind: type[ParityFunction]) -> None:
    task = kind(max_length=length, dim=dim)
    batch = task.sample(generator(seed), 3, (length,))
    assert batch.inputs.shape == (3, 2 * length - 1, dim)
    assert set(batch.inputs[:, 0::2].unique().tolist()) <= {-1, 1}
    assert set(batch.targets.unique().tolist()) <= {-1, 1}
    torch.manual_seed(seed + 1)
    assert torch.equal(batch.inputs, task.sample(generator(seed), 3, (length,)).inputs)


def test_too_few_channels_are_refused() -> None:
    for dim in (0, 1):
        with pytest.raises(UserError, match=f"dim {dim}: SparseParity needs at least 2"):
            SparseParity(dim=dim)
    with pytest.raises(UserError, match="dim 0: ParityFunction needs at least 1"):
        ParityFunction(dim=0)


def test_it_is_no_task_on_strings() -> None:
    assert ParityFunction().name != Parity().name
    for kind in CLASSES:
        assert list(kind().predictors()) == ["3 nearest", "averaging", "always -1"]
