import math
from pathlib import Path

import numpy as np
import pytest
import torch

from abc_toolkit.layout import Positions, digit_layout
from abc_toolkit.positions import AttentionPosition, Cyclic, ModelSizes, NoPE, Sinusoidal
from tests.contracts.position_contract import LAYOUTS, LONG, PositionCase, PositionContract

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "sinusoidal_cpi_abc_repo.npz")
TWO = ("place", "raw_from_end")
THREE = ("index", "place", "segment")


class TestAbsolute(PositionContract):
    cases = {  # noqa: RUF012
        "NoPE": PositionCase(NoPE()),
        "sinusoidal": PositionCase(Sinusoidal()),
        "sinusoidal of two": PositionCase(Sinusoidal(("place", "segment"), base=100.0)),
        "cyclic": PositionCase(Cyclic()),
        "cyclic of two": PositionCase(Cyclic(TWO, period=5)),
    }


def formula(method: Sinusoidal, positions: Positions, dim: int, period: int | None = None) -> np.ndarray:
    """The table by its formula, a number at a time in float64."""
    table = np.zeros((len(positions), dim))
    for k, coordinate in enumerate(method.coordinates):
        for i, p in enumerate(positions.coordinates[coordinate].tolist()):
            p = p if period is None else p - period * math.floor(p / period)
            for channel in range(dim):
                angle = p * method.base ** (-2 * (channel // 2) / dim)
                wave = math.cos(angle) if channel % 2 else math.sin(angle)
                table[i, (channel + dim * k // len(method.coordinates)) % dim] += wave
    return table


@pytest.mark.parametrize("dim", [1, 7, 8])
@pytest.mark.parametrize("base", [10000.0, 100.0])
@pytest.mark.parametrize("coordinates", [("raw",), ("index",), TWO, THREE], ids="-".join)
@pytest.mark.parametrize("period", [None, 1, 3, 4])
def test_tables_are_the_formula(coordinates: tuple, base: float, dim: int, period: int | None) -> None:
    method = Sinusoidal(coordinates, base) if period is None else Cyclic(coordinates, base, period)
    for layout in LAYOUTS:
        for positions in (layout.source, layout.target):  # EOS has index -1
            table = method.embed(torch.zeros(1, len(positions), dim, dtype=torch.float64), positions)[0]
            np.testing.assert_allclose(table, formula(method, positions, dim, period), atol=2e-6)


def test_the_formula_far_out() -> None:
    np.testing.assert_allclose(Sinusoidal().table(LONG.source, 16), formula(Sinusoidal(), LONG.source, 16), atol=5e-4)


@pytest.mark.parametrize(
    ("method", "golden"),
    [
        (Sinusoidal(), "pe_Sinusoidal_D32_L24"),
        (Cyclic(), "pe_Sin_periodical_D32_L24"),
        *((Cyclic(period=period), f"cpi_paper_T{period}_D32_L24_float64") for period in (2, 3, 5, 7)),
    ],
)
def test_against_the_released_code(method: Sinusoidal, golden: str) -> None:
    positions = digit_layout((("operand 1", 24),), 1).source
    np.testing.assert_allclose(method.table(positions, 32), GOLDEN[golden], atol=2.5e-6)


def test_cyclic_repeats_and_sinusoidal_does_not() -> None:
    positions = digit_layout((("operand 1", 30),), 30).source
    for period in (1, 2, 3, 7):
        table = Cyclic(period=period).table(positions, 16)
        assert torch.equal(table[period:], table[:-period])
        assert len(table.unique(dim=0)) == period
    assert len(Sinusoidal().table(positions, 16).unique(dim=0)) == 30


def test_rolled_tables_tell_the_coordinates_apart() -> None:
    positions = digit_layout((("operand 1", 9), ("operand 2", 9)), 1).source
    assert len(Sinusoidal(("place", "segment")).table(positions, 32).unique(dim=0)) == 18
    assert len(Sinusoidal(("place",)).table(positions, 32).unique(dim=0)) == 9


def test_nope_does_nothing() -> None:
    positions = LAYOUTS[1].source
    x = torch.randn(2, len(positions), 8)
    assert NoPE().embed(x, positions) is x
    hook = NoPE().build(ModelSizes(8, 2, 2, 2)).at("cross", 0)
    assert type(hook) is AttentionPosition
    assert hook.bias(positions, positions) is None
    assert (hook.pointwise, hook.transforms) == (True, False)
    q, k, scores = PositionContract.tensors(positions, positions)
    assert hook.rotate(q, k, positions, positions) == (q, k)
    assert hook.transform(scores, q, k, positions, positions) is scores
