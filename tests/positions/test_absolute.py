import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from abc_toolkit.errors import UserError
from abc_toolkit.layout import Layout, Positions, digit_layout
from abc_toolkit.models.base import Architecture
from abc_toolkit.models.transformer import EncoderDecoder
from abc_toolkit.positions import AttentionPosition, Cyclic, ModelPosition, ModelSizes, NoPE, PositionMethod, Sinusoidal
from abc_toolkit.positions.absolute import Abacus, Learned, PositionCoupling, Sinusoidal2D
from abc_toolkit.tasks import Addition, Multiplication, Parity, Successor
from abc_toolkit.testing.position_contract import LAYOUTS, LONG, PositionCase, PositionContract
from tests.grids import covering

GOLDEN = {
    name: np.load(Path(__file__).parent.parent / "golden" / f"{name}.npz")
    for name in ("sinusoidal_cpi_abc_repo", "sinusoidal_neox_concat", "sinusoidal_ape_repo")
}
SIZES = ModelSizes(8, 2, 1, 1)
TWO = ("place", "raw_from_end")
THREE = ("index", "place", "segment")


class TestAbsolute(PositionContract):
    cases = {  # noqa: RUF012
        "NoPE": PositionCase(NoPE()),
        "sinusoidal": PositionCase(Sinusoidal()),
        "sinusoidal of two": PositionCase(Sinusoidal(("place", "segment"), base=100.0)),
        "sinusoidal, concatenated": PositionCase(Sinusoidal(channels="concatenated")),
        "sinusoidal 2-D": PositionCase(Sinusoidal2D(("place", "segment"))),
        "cyclic": PositionCase(Cyclic()),
        "cyclic of two": PositionCase(Cyclic(TWO, period=5), whole=True),
        "cyclic, concatenated": PositionCase(Cyclic(channels="concatenated")),
        "learned": PositionCase(Learned(capacity=20), learns=True, capacity=20),
        "learned for any length there is": PositionCase(
            Learned("raw_from_end", capacity=1351), learns=True, whole=True
        ),
        "abacus": PositionCase(Abacus(capacity=20, max_offset=5), learns=True, capacity=20),
        "abacus for any length there is": PositionCase(Abacus(capacity=701), learns=True),
        "position coupling": PositionCase(PositionCoupling(capacity=20), learns=True, capacity=20),
        "position coupling for any length there is": PositionCase(PositionCoupling(capacity=703), learns=True),
    }


def formula(method: Sinusoidal, positions: Positions, dim: int, period: int | None = None) -> np.ndarray:
    """The table by its formula, a number at a time in float64."""
    table = np.zeros((len(positions), dim))
    order = [*range(0, dim, 2), *range(1, dim, 2)] if method.channels == "concatenated" else [*range(dim)]
    for k, coordinate in enumerate(method.coordinates):
        for i, p in enumerate(positions.coordinates[coordinate].tolist()):
            p = p if period is None else p - period * math.floor(p / period)
            for channel in range(dim):
                angle = p * method.base ** (-2 * (channel // 2) / dim)
                wave = math.cos(angle) if channel % 2 else math.sin(angle)
                table[i, order.index((channel + dim * k // len(method.coordinates)) % dim)] += wave
    return table


@pytest.mark.parametrize(
    ("channels", "coordinates", "base", "dim", "period"),
    covering(
        ["interleaved", "concatenated"],
        [("raw",), ("index",), TWO, THREE],
        [10000.0, 100.0],
        [1, 7, 8],
        [None, 1, 3, 4],
    ),
)
def test_tables_are_the_formula(channels: str, coordinates: tuple, base: float, dim: int, period: int | None) -> None:
    settings = {"coordinates": coordinates, "base": base, "channels": channels}
    method = Sinusoidal(**settings) if period is None else Cyclic(**settings, period=period)
    for layout in LAYOUTS:
        for positions in (layout.source, layout.target):  # EOS has index -1
            table = method.embed(torch.zeros(1, len(positions), dim, dtype=torch.float64), positions)[0]
            np.testing.assert_allclose(table, formula(method, positions, dim, period), atol=2e-6)


def test_the_formula_far_out() -> None:
    np.testing.assert_allclose(Sinusoidal().table(LONG.source, 16), formula(Sinusoidal(), LONG.source, 16), atol=5e-4)


def twenty_four(method: PositionMethod, golden: str, array: str) -> Callable[[], list]:
    """A table of 24 positions beside a reference."""

    def pairs() -> list:
        theirs = GOLDEN[golden][array].reshape(24, -1)
        x = torch.zeros(1, 24, theirs.shape[1], dtype=torch.float64)
        positions = digit_layout((("operand 1", 24),), 1).source
        return [(method.embed(x, positions)[0].numpy(), theirs, 2.5e-6)]

    return pairs


def an_input_with_it() -> list:
    reference = GOLDEN["sinusoidal_cpi_abc_repo"]
    x, theirs = (
        torch.tensor(reference[name]).transpose(0, 1) for name in ("x_seq_batch_dim", "x_plus_pe_Sin_periodical")
    )
    return [(Cyclic().embed(x, digit_layout((("operand 1", 24),), 1).source).numpy(), theirs.numpy(), 2.5e-6)]


ABC, NEOX, APE = GOLDEN
GOLDEN_CASES: dict[str, tuple[str, Callable[[], list]]] = {
    "NoPE, ABC": ("NoPE", twenty_four(NoPE(), ABC, "pe_NoPE_D32_L24")),
    "sinusoidal, ABC": ("Sinusoidal", twenty_four(Sinusoidal(), ABC, "pe_Sinusoidal_D32_L24")),
    "sinusoidal flat, APE": ("Sinusoidal", twenty_four(Sinusoidal(), APE, "flat_D32_L24")),
    "sinusoidal grid, APE": ("Sinusoidal", twenty_four(Sinusoidal(), APE, "grid_D32_L24")),
    "sinusoidal concatenated of 16, DAPE": (
        "Sinusoidal",
        twenty_four(Sinusoidal(channels="concatenated"), NEOX, "pe_D16_L24"),
    ),
    "sinusoidal concatenated of 32, DAPE": (
        "Sinusoidal",
        twenty_four(Sinusoidal(channels="concatenated"), NEOX, "pe_D32_L24"),
    ),
    "cyclic, ABC": ("Cyclic", twenty_four(Cyclic(), ABC, "pe_Sin_periodical_D32_L24")),
    "cyclic added, ABC": ("Cyclic", an_input_with_it),
} | {
    f"cyclic of {period}, paper": (
        "Cyclic",
        twenty_four(Cyclic(period=period), ABC, f"cpi_paper_T{period}_D32_L24_float64"),
    )
    for period in (2, 3, 5, 7)
}


@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_golden(name: str) -> None:
    _, pairs = GOLDEN_CASES[name]
    for ours, theirs, atol in pairs():
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=atol, rtol=0)


def test_cyclic_repeats_and_sinusoidal_does_not() -> None:
    positions = digit_layout((("operand 1", 30),), 30).source
    for period in (1, 2, 3, 7):
        table = Cyclic(period=period).table(positions, 16)
        assert torch.equal(table[period:], table[:-period])
        assert len(table.unique(dim=0)) == period
    assert len(Sinusoidal().table(positions, 16).unique(dim=0)) == 30


def test_rolled_tables_tell_the_coordinates_apart() -> None:
    positions = digit_layout((("operand 1", 9), ("operand 2", 9)), 1).source
    for channels in ("interleaved", "concatenated"):
        table = Sinusoidal(("place", "segment"), channels=channels).table(positions, 32)
        assert len(table.unique(dim=0)) == 18
    assert len(Sinusoidal(("place",)).table(positions, 32).unique(dim=0)) == 9


@pytest.mark.parametrize("dim", [4, 12, 32])
def test_two_coordinates_have_halves_of_their_own(dim: int) -> None:
    for positions in (layout.source for layout in LAYOUTS):
        table = Sinusoidal2D(("index", "segment"), base=100.0).embed(torch.zeros(1, len(positions), dim), positions)[0]
        half = dim // 2
        for channels, coordinate in ((slice(half), "index"), (slice(half, dim), "segment")):
            expected = formula(Sinusoidal((coordinate,), base=100.0), positions, half)
            np.testing.assert_allclose(table[:, channels], expected, atol=2e-6)


@pytest.mark.parametrize("dim", [2, 6, 13])
def test_halves_that_lack_a_pair_are_refused(dim: int) -> None:
    with pytest.raises(UserError, match=f"Sinusoidal2D needs a multiple of 4 channels and has {dim}: change"):
        Sinusoidal2D().build(ModelSizes(dim, 1, 1, 1))


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


def rows(built: ModelPosition, layout: Layout) -> tuple[list[int], list[int]]:
    """Which row of the table the tokens of source and target receive; -1 for none, found in what is embedded."""
    table = next(built.parameters())
    layout = built.prepare(layout)

    def of(positions: Positions) -> list[int]:
        added = built.embed(torch.zeros(1, len(positions), table.shape[1], dtype=table.dtype), positions)[0]
        nothing = torch.zeros_like(table[:1])
        same = (added[:, None] == torch.cat([nothing, table])).all(dim=-1)
        assert (same.sum(dim=1) == 1).all()
        return (same.int().argmax(dim=1) - 1).tolist()

    return of(layout.source), of(layout.target)


SUM = digit_layout((("operand 1", 3), ("operator", 1), ("operand 2", 2)), 4)


def test_learned_rows_are_positions() -> None:
    built = Learned(capacity=6).build(SIZES)
    assert rows(built, SUM) == ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4])
    assert rows(Learned("place", 6).build(SIZES), SUM) == ([2, 1, 0, 0, 1, 0], [0, 1, 2, 3, 4])
    assert rows(built.train(), SUM) == ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4])


def test_abacus_rows_are_places() -> None:
    built = Abacus(capacity=8, max_offset=5).build(SIZES).eval()
    assert rows(built, SUM) == ([2, 1, 0, -1, 1, 0], [0, 1, 2, 3, -1])


def test_abacus_is_moved_in_training_alone() -> None:
    built = Abacus(capacity=8, max_offset=5).build(SIZES).train()
    torch.manual_seed(0)
    offsets = set()
    for _ in range(60):
        source, target = rows(built, SUM)
        offset = target[0]  # the place of the first digit of the answer is 0
        assert source == [2 + offset, 1 + offset, offset, -1, 1 + offset, offset]
        assert target == [offset, 1 + offset, 2 + offset, 3 + offset, -1]
        offsets.add(offset)
    assert offsets == {0, 1, 2, 3, 4}
    torch.manual_seed(3)
    first = [rows(built, SUM) for _ in range(5)]
    torch.manual_seed(3)
    assert [rows(built, SUM) for _ in range(5)] == first


def test_one_offset_is_none() -> None:
    built = Abacus(capacity=4, max_offset=1).build(SIZES).train()
    assert rows(built, SUM) == ([2, 1, 0, -1, 1, 0], [0, 1, 2, 3, -1])


def test_coupled_ids() -> None:
    """653+49: the operator has the start 1, digits of one place share an id, EOS has 0."""
    built = PositionCoupling(capacity=9).build(SIZES).eval()
    assert rows(built, SUM) == ([4, 3, 2, 1, 3, 2], [2, 3, 4, 5, 0])


def test_coupled_ids_of_one_string() -> None:
    """653+49=2070: the same in a row; after the last token of the source comes the answer's start."""
    built = PositionCoupling(capacity=9).build(SIZES).eval()
    assert rows(built, SUM.string)[1] == [4, 3, 2, 1, 3, 2, 2, 3, 4, 5, 0]
    assert rows(Abacus(capacity=4, max_offset=1).build(SIZES).eval(), SUM.string)[1] == [
        2,
        1,
        0,
        -1,
        1,
        0,
        0,
        1,
        2,
        3,
        -1,
    ]


def test_coupled_ids_start_anywhere_in_training() -> None:
    built = PositionCoupling(capacity=9).build(SIZES).train()
    torch.manual_seed(0)
    starts = set()
    for _ in range(60):
        source, target = rows(built, SUM)
        start = source[3]
        assert source == [start + 3, start + 2, start + 1, start, start + 2, start + 1]
        assert target == [start + 1, start + 2, start + 3, start + 4, 0]
        starts.add(start)
    assert starts == {1, 2, 3, 4}  # the greatest id is then 8
    assert rows(PositionCoupling(capacity=6).build(SIZES).train(), SUM) == ([4, 3, 2, 1, 3, 2], [2, 3, 4, 5, 0])


@pytest.mark.parametrize(
    ("task", "shape", "source", "target"),
    [
        (Addition(), (2, 2), [1, 0, -1, 1, 0], [0, 1, 2, -1]),
        (Successor(), (2,), [1, 0], [0, 1, 2, -1]),
        (Multiplication(), (2,), [1, 0, -1, 0], [0, 1, 2, -1]),
        (Parity(), (3,), [2, 1, 0], [0, 1, 2, -1]),
    ],
)
def test_digits_of_every_task(task, shape: tuple, source: list, target: list) -> None:
    assert rows(Abacus().build(SIZES).eval(), task.layout(shape)) == (source, target)


def test_tables_are_drawn_from_the_global_generator_with_variance_one() -> None:
    for method in (Learned(capacity=500), Abacus(capacity=500), PositionCoupling(capacity=500)):
        torch.manual_seed(5)
        (table,) = method.build(SIZES).parameters()
        assert table.shape == (500, 8)
        assert abs(table.mean()) < 0.05
        assert abs(table.std() - 1) < 0.05
        torch.manual_seed(5)
        assert torch.equal(next(method.build(SIZES).parameters()), table)


def test_what_fits_and_what_does_not() -> None:
    rows(Learned(capacity=6).build(SIZES), SUM)
    with pytest.raises(UserError, match="Learned: position 5 is beyond the capacity of 5: raise capacity"):
        rows(Learned(capacity=5).build(SIZES), SUM)
    with pytest.raises(UserError, match="Learned: position 4 is beyond the capacity of 4: raise capacity"):
        rows(Learned("place", capacity=4).build(SIZES), SUM)  # the longest place is that of EOS, in the target
    with pytest.raises(UserError, match="Learned: the coordinate index has the value -1: choose another one"):
        rows(Learned("index", capacity=50).build(SIZES), SUM)
    abacus = Abacus(capacity=5, max_offset=3).build(SIZES)
    rows(abacus.eval(), SUM)
    for _ in range(10):  # whatever is drawn
        with pytest.raises(UserError, match=r"Abacus: position 5 is beyond .* 5: raise capacity or lower max_offset"):
            rows(abacus.train(), SUM)
    rows(Abacus(capacity=5, max_offset=2).build(SIZES).train(), SUM)
    with pytest.raises(UserError, match="Abacus: position 3 is beyond the capacity of 3: raise capacity"):
        rows(Abacus(capacity=3, max_offset=1).build(SIZES).eval(), SUM)
    wide = digit_layout((("operand 1", 7),), 1)  # the source is the longer one
    with pytest.raises(UserError, match="Abacus: position 6 is beyond the capacity of 6"):
        rows(Abacus(capacity=6, max_offset=1).build(SIZES).eval(), wide)
    for training in (True, False):
        with pytest.raises(UserError, match="PositionCoupling: position 5 is beyond the capacity of 5: raise capacity"):
            rows(PositionCoupling(capacity=5).build(SIZES).train(training), SUM)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sinusoidal(base=0.5), "--model.position.base 0.5: give at least 1"),
        (lambda: Sinusoidal(channels="mixed"), "Sinusoidal: channels cannot be 'mixed': give one of interleaved, conc"),  # type: ignore[arg-type]
        (lambda: Sinusoidal(("raw", "a corner")), "coordinates cannot be .*'a corner'.*: give a tuple of"),  # type: ignore[arg-type]
        (lambda: Sinusoidal2D(base=0.5), "--model.position.base 0.5: give at least 1"),
        (lambda: Sinusoidal2D(("raw",)), r"Sinusoidal2D: coordinates cannot be \('raw',\): give two of them"),
        (lambda: Sinusoidal2D(("raw", "a corner")), "coordinates cannot be .*'a corner'.*: give a tuple of"),
        (lambda: Cyclic(period=0), "--model.position.period 0: give at least 1"),
        (lambda: Cyclic(channels="mixed"), "Cyclic: channels cannot be 'mixed'"),  # type: ignore[arg-type]
        (lambda: Learned(capacity=0), "--model.position.capacity 0: give at least 1"),
        (lambda: Learned("a corner"), "Learned: coordinate cannot be 'a corner': give the name of a coordinate"),  # type: ignore[arg-type]
        (lambda: Abacus(capacity=0), "--model.position.capacity 0: give at least 1"),
        (lambda: Abacus(max_offset=0), "--model.position.max_offset 0: give at least 1"),
        (lambda: Abacus(10, 11), "--model.position.max_offset 11: give at least 1 and at most 10"),
        (lambda: PositionCoupling(2), "--model.position.capacity 2: give at least 3"),
    ],
)
def test_wrong_settings(make: Callable[[], PositionMethod], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("method", [Learned(capacity=16), Abacus(16, 4), PositionCoupling(16)])
def test_source_and_target_share_one_table(method: PositionMethod) -> None:
    """It stands once in the state dict and learns from either string."""
    model = EncoderDecoder(12, Architecture(1, 1, 8, 2, 16, position=method)).eval()
    assert [name for name in model.state_dict() if "position" in name] == ["positioning.table"]
    prepared = model.positioning.prepare(SUM)
    for positions in (prepared.source, prepared.target):
        model.zero_grad()
        model.embed(torch.zeros(1, len(positions), dtype=torch.long), positions).sum().backward()
        grad = model.positioning.table.grad
        assert isinstance(grad, torch.Tensor)
        assert grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_stream_keeps_its_type(dtype: torch.dtype) -> None:
    for method in (Sinusoidal(), Learned(), Abacus(), PositionCoupling()):
        built = method.build(SIZES)
        positions = built.prepare(SUM).source
        assert built.embed(torch.zeros(1, len(positions), 8, dtype=dtype), positions).dtype == dtype


@pytest.mark.parametrize("method", [Abacus(16, 4), PositionCoupling(16)])
def test_rows_are_told_beside_the_coordinates(method: PositionMethod) -> None:
    """What masks and windows read stays as it was."""
    prepared = method.build(SIZES).train().prepare(SUM)
    for ours, own in ((prepared.source, SUM.source), (prepared.target, SUM.target)):
        assert ours.names == own.names
        assert len(ours.coordinates) == len(own.coordinates) + 1
        assert all(ours.coordinates[name] is coordinate for name, coordinate in own.coordinates.items())
    assert prepared.prefix is SUM.prefix
