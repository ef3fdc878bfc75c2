import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from abc_toolkit.models.attention import _with_dropout
from abc_toolkit.models.dropout import Dropout, dropout

SHAPES = st.lists(st.integers(0, 5), min_size=0, max_size=4)


@settings(max_examples=60)
@given(SHAPES, st.floats(0, 0.99), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_a_number_is_dropped_or_scaled_and_so_is_its_gradient(shape: list[int], p: float, dtype: torch.dtype) -> None:
    x = torch.rand(shape, dtype=dtype).add(0.5).requires_grad_()
    y = dropout(x, p)
    assert (y.shape, y.dtype) == (x.shape, dtype)
    y.sum().backward()
    expected = torch.where(y == 0, 0.0, torch.ones_like(y) / (1 - p))
    torch.testing.assert_close(y.detach(), x.detach() * expected)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize("p", [0.001, 0.1, 0.3, 0.5, 0.9])
def test_as_many_are_dropped_as_the_probability_says(p: float) -> None:
    torch.manual_seed(1)
    count = 400_000
    dropped = dropout(torch.ones(count), p) == 0
    # Neighbours are drawn as the two halves of one number: each half, and both together, are held to the law.
    for found, law in (
        (dropped, binom(count, p)),
        (dropped[::2], binom(count // 2, p)),
        (dropped[1::2], binom(count // 2, p)),
        (dropped[::2] & dropped[1::2], binom(count // 2, p * p)),
        (dropped[1:-1:2] & dropped[2::2], binom(count // 2 - 1, p * p)),
    ):
        assert law.ppf(1e-6) <= int(found.sum()) <= law.ppf(1 - 1e-6)


def test_one_seed_draws_the_same() -> None:
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(dropout(torch.ones(999), 0.5))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_dropout_acts_in_training_alone() -> None:
    module, x = Dropout(0.5), torch.ones(100)
    assert (module(x) == 0).any()
    assert torch.equal(module.eval()(x), x)
    assert dropout(x, 0.0) is x


@pytest.mark.parametrize("cells", [1, 100, 2**22])
@pytest.mark.parametrize("by_problem", [False, True])
def test_attention_in_parts_is_attention(cells: int, by_problem: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("abc_toolkit.models.attention._CACHED_CELLS", cells)
    monkeypatch.setattr("abc_toolkit.models.attention.dropout", lambda weights, _: weights)
    q, k, v = (torch.randn(7, 2, n, 4, dtype=torch.float64, requires_grad=True) for n in (3, 5, 5))
    bias = torch.randn(*([7] if by_problem else []), 2, 3, 5, dtype=torch.float64)
    found = _with_dropout(q * 0.5, k, v, bias, 0.1)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, bias if by_problem else bias[None], scale=0.5)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(
        torch.autograd.grad(found.square().sum(), (q, k, v)),
        torch.autograd.grad(expected.square().sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
