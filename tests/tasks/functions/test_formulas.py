from fractions import Fraction
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abc_toolkit.errors import UserError
from abc_toolkit.tasks import CNF, DNF, Conjunction, Disjunction, SparseDisjunction
from abc_toolkit.tasks.functions.base import BalancedTask
from abc_toolkit.testing.task_contract import TaskContract, generator
from tests.tasks.functions.laws import ERRORS, assert_labels_follow, assert_mean, assert_share, drawn, label_shares

Weights = list[float]


class TestFormulas(TaskContract):
    cases = {  # noqa: RUF012
        "conjunction": Conjunction(max_length=8, dim=4),
        "conjunction, one channel": Conjunction(max_length=2, dim=1, marked=True),
        "disjunction": Disjunction(max_length=7, dim=3),
        "sparse disjunction": SparseDisjunction(max_length=8, dim=4),
        "dnf": DNF(max_length=8, dim=4, overwriting=1.0),
        "cnf": CNF(max_length=6, dim=3, overwriting=0.0),
    }


def all_hold(weights: Weights, point: Weights) -> bool:
    return all(x == w for w, x in zip(weights, point, strict=True) if w != 0)


def one_holds(weights: Weights, point: Weights) -> bool:
    return any(x == w for w, x in zip(weights, point, strict=True) if w != 0)


def sign(truth: bool) -> float:
    return 1.0 if truth else -1.0


ORACLES = {
    Conjunction: lambda weights, point: sign(all_hold(weights, point)),
    Disjunction: lambda weights, point: sign(one_holds(weights, point)),
    SparseDisjunction: lambda weights, point: sign(one_holds(weights, point)),
    DNF: lambda clauses, point: sign(any(all_hold(clause, point) for clause in clauses)),
    CNF: lambda clauses, point: sign(all(one_holds(clause, point) for clause in clauses)),
}
RARE = {Conjunction: 1, Disjunction: -1, SparseDisjunction: -1, DNF: 1, CNF: -1}


def share_of_ones(kind: type[BalancedTask], dim: int) -> Fraction:
    """The probability that a label is 1.

    A uniform point satisfies a conjunction if each coordinate is no literal or a satisfied one; three clauses are
    independent given a point. An overwritten point has the rare label.
    """
    if kind is SparseDisjunction:
        return Fraction(7, 10) * (1 - Fraction(1, 2) ** 4)
    if kind in (Conjunction, Disjunction):
        rare = Fraction(3, 10) + Fraction(7, 10) * Fraction(85, 100) ** dim
    else:
        overwritten = Fraction(35, 100) if kind is DNF else Fraction(3, 10)
        rare = overwritten + (1 - overwritten) * (1 - (1 - Fraction(9, 10) ** dim) ** 3)
    return rare if RARE[kind] == 1 else 1 - rare


# Shares of labels that are 1 in training, at 10, 16 and 20 channels: measured with the released code of the study.
MEASURED = {
    Conjunction: (0.44, 0.35, 0.33),
    Disjunction: (0.56, 0.65, 0.67),
    SparseDisjunction: (0.65, 0.66, 0.66),
    DNF: (0.82, 0.64, 0.56),
    CNF: (0.19, 0.38, 0.47),
}


@pytest.mark.parametrize("dim", [10, 16, 20])
@pytest.mark.parametrize("kind", ORACLES)
def test_shares_of_labels(kind: type[BalancedTask], dim: int) -> None:
    """The exact share to 4.5 standard errors over prompts; the study's, itself a sample in two digits, to 0.01."""
    shares = label_shares(kind(max_length=20, dim=dim), 6000)
    exact = float(share_of_ones(kind, dim))
    assert_mean(shares, exact)
    assert exact == pytest.approx(MEASURED[kind][(10, 16, 20).index(dim)], abs=0.01)
    assert ERRORS * shares.std().item() / 6000**0.5 < 0.02  # fine enough to tell the classes apart


@pytest.mark.parametrize("kind", ORACLES)
def test_labels_are_of_the_one_function(kind: type[BalancedTask], monkeypatch: pytest.MonkeyPatch) -> None:
    for overwriting in (0.3, 0.0, 1.0):
        assert_labels_follow(kind(max_length=12, dim=5, overwriting=overwriting), ORACLES[kind], monkeypatch)


@pytest.mark.parametrize(
    ("kind", "shares"),
    [(Conjunction, (0.7, 0.15)), (Disjunction, (0.7, 0.15)), (DNF, (0.8, 0.1)), (CNF, (0.8, 0.1))],
)
def test_literals_are_drawn_one_by_one(kind: type[BalancedTask], shares: tuple[float, float]) -> None:
    weights = kind(dim=8).draw_function(generator(), 6000)
    assert weights.shape == ((6000, 8) if kind in (Conjunction, Disjunction) else (6000, 3, 8))
    for value, share in ((0, shares[0]), (1, shares[1]), (-1, shares[1])):
        assert_share(int((weights == value).sum()), weights.numel(), share)
    used = (weights != 0).flatten(1).double()
    for first, second in ((0, 1), (2, 7), (0, used.shape[1] - 1)):
        both = used[:, first] * used[:, second]
        assert_share(int(both.sum()), 6000, (1 - shares[0]) ** 2)


def test_four_literals_are_distinct_and_not_negated() -> None:
    weights = SparseDisjunction(dim=7).draw_function(generator(), 7000)
    assert weights.unique().tolist() == [0, 1]
    assert (weights.sum(dim=1) == 4).all()
    for number in range(7):
        assert_share(int(weights[:, number].sum()), 7000, 4 / 7)
    assert len(weights.unique(dim=0)) == 35  # every subset


@pytest.mark.parametrize("kind", ORACLES)
def test_overwritten_points_have_the_rare_label(kind: type[BalancedTask]) -> None:
    labels = kind(max_length=6, dim=9, overwriting=1.0).sample(generator(), 300, (6,)).targets
    assert (labels == RARE[kind]).all()


@pytest.mark.parametrize("kind", ORACLES)
def test_overwriting_sets_the_coordinates_of_literals_alone(
    kind: type[BalancedTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All others of an overwritten point stay uniform; of a normal form it is one clause in a whole prompt."""
    functions, points, _ = drawn(kind(max_length=8, dim=6, overwriting=1.0), monkeypatch, 400, 8)
    free: list[float] = []
    chosen = []
    for function, prompt in zip(functions, points, strict=True):
        clauses = function if kind in (DNF, CNF) else [function]
        wanted = [[RARE[kind] * w for w in clause] for clause in clauses]
        fulfilled = [number for number, clause in enumerate(wanted) if all(all_hold(clause, x) for x in prompt)]
        assert fulfilled
        if len(fulfilled) == 1:
            chosen.append(fulfilled[0])
            clause = wanted[fulfilled[0]]
            free += [x for point in prompt for w, x in zip(clause, point, strict=True) if w == 0]
    assert set(free) == {-1.0, 1.0}
    assert_share(free.count(1.0), len(free), 0.5)
    assert set(chosen) == set(range(len(wanted)))


@pytest.mark.parametrize("kind", ORACLES)
def test_points_are_overwritten_one_by_one(kind: type[BalancedTask], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the points that are not overwritten, a known share fulfils the clause by chance, by its number of literals."""
    task = kind(max_length=4, dim=12, overwriting=0.25)
    monkeypatch.setattr(kind, "draw_function", lambda self, g, batch: fixed_function(kind, batch))
    prompts = task.sample(generator(), 4000, (4,))
    monkeypatch.undo()
    rare = prompts.targets[:, 0::2] == RARE[kind]
    share = 0.25 + 0.75 * 2.0**-4
    assert_share(int(rare.sum()), rare.numel(), share)
    assert_share(int((rare[:, 0] & rare[:, 1]).sum()), 4000, share**2)


def fixed_function(kind: type[BalancedTask], batch: int) -> torch.Tensor:
    """Four literals, two negated but for sparse disjunctions; in each of three equal clauses for a normal form."""
    weights = torch.zeros(12)
    weights[:4] = 1
    if kind is not SparseDisjunction:
        weights[2:4] = -1
    return weights.expand(batch, 3, 12) if kind in (DNF, CNF) else weights.expand(batch, 12)


@given(dim=st.integers(1, 6), data=st.data())
def test_every_formula_on_every_point(dim: int, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from([Conjunction, Disjunction, DNF, CNF]))
    weights = st.lists(st.sampled_from([0.0, 1.0, -1.0]), min_size=dim, max_size=dim)
    function = data.draw(weights if kind in (Conjunction, Disjunction) else st.lists(weights, min_size=3, max_size=3))
    points = [list(map(float, point)) for point in product((-1, 1), repeat=dim)]
    labels = kind(dim=dim).labels(torch.tensor([function]), torch.tensor([points]))
    assert labels.tolist() == [[ORACLES[kind](function, point) for point in points]]


@given(dim=st.integers(1, 6))
def test_without_literals(dim: int) -> None:
    """An empty conjunction always holds and an empty disjunction never; so do clauses that are empty."""
    points = torch.tensor([list(product((-1.0, 1.0), repeat=dim))])
    for kind, label in ((Conjunction, 1), (Disjunction, -1)):
        assert (kind(dim=dim).labels(torch.zeros(1, dim), points) == label).all()
    full = torch.ones(1, 3, dim)
    full[:, 1] = 0
    for kind, label in ((DNF, 1), (CNF, -1)):
        assert (kind(dim=dim).labels(torch.zeros(1, 3, dim), points) == label).all()
        assert (kind(dim=dim).labels(full, points) == label).all()


@given(
    kind=st.sampled_from(list(ORACLES)),
    dim=st.integers(4, 8),
    length=st.integers(1, 9),
    overwriting=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_points_and_labels_are_signs(
    kind: type[BalancedTask], dim: int, length: int, overwriting: float, seed: int
) -> None:
    task = kind(max_length=length, dim=dim, overwriting=overwriting)
    batch = task.sample(generator(seed), 3, (length,))
    assert batch.inputs.shape == (3, 2 * length - 1, dim)
    assert set(batch.inputs[:, 0::2].unique().tolist()) <= {-1, 1}
    assert set(batch.targets.unique().tolist()) <= {-1, 1}
    torch.manual_seed(seed + 1)
    again = task.sample(generator(seed), 3, (length,))
    assert torch.equal(batch.inputs, again.inputs)
    assert torch.equal(batch.targets, again.targets)


@pytest.mark.parametrize("overwriting", [-0.1, 1.1, float("nan")])
def test_overwriting_is_a_probability(overwriting: float) -> None:
    with pytest.raises(UserError, match=f"overwriting {overwriting}: give a probability, between 0 and 1"):
        Conjunction(overwriting=overwriting)


def test_too_few_channels_are_refused() -> None:
    for dim in (0, 1, 2, 3):
        with pytest.raises(UserError, match=f"dim {dim}: SparseDisjunction needs at least 4"):
            SparseDisjunction(dim=dim)
    for kind in (Conjunction, Disjunction, CNF, DNF):
        with pytest.raises(UserError, match=f"dim 0: {kind.__name__} needs at least 1"):
            kind(dim=0)
        assert kind(dim=1).sample(generator(), 2, (3,)).inputs.shape == (2, 5, 1)


def test_baselines_are_those_of_the_study() -> None:
    for kind in (Conjunction, Disjunction):
        assert list(kind().predictors()) == ["1 nearest", "averaging", "always -1"]
    for kind in (SparseDisjunction, CNF, DNF):
        assert list(kind().predictors()) == ["3 nearest", "averaging", "always -1"]
