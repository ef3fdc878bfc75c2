import itertools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from abc_toolkit.errors import UserError
from abc_toolkit.layout import Positions, digit_layout, raw_layout
from abc_toolkit.models.base import Architecture
from abc_toolkit.models.transformer import EncoderDecoder
from abc_toolkit.positions import AttentionPosition, Cyclic
from abc_toolkit.positions.compose import Compose
from abc_toolkit.positions.windowed import WindowedBias
from abc_toolkit.tasks import Addition, Multiplication, Task
from abc_toolkit.testing.position_contract import LONG, PositionCase, PositionContract, pairs
from tests.grids import covering

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "windowed_bias.npz")
Compared = list[tuple[Any, Any, float]]


class TestWindowedBias(PositionContract):
    cases = {  # noqa: RUF012
        "one operand": PositionCase(WindowedBias(), shifts=True),
        "pairs": PositionCase(WindowedBias(2, step=2), shifts=True),
        "no width": PositionCase(WindowedBias(0), shifts=True),
        "released": PositionCase(WindowedBias(released=True), shifts=True),
        "released without width": PositionCase(WindowedBias(0, released=True), shifts=True),
    }


def shown(hook: AttentionPosition, q_positions: Positions, k_positions: Positions) -> np.ndarray:
    """Where the bias is open; it is 0 there and minus infinity elsewhere."""
    bias = hook.bias(q_positions, k_positions)
    assert bias is not None
    assert set(bias.unique().tolist()) <= {0.0, -math.inf}
    assert bias.shape[0] == 1
    return (bias[0] == 0).numpy()


def with_start_and_end(source: int) -> Positions:
    """A source whose first and last tokens are those of the paper that ours lacks: the last digit is 0, the end -1."""
    positions = raw_layout(1, source).source
    return Positions(
        positions.names,
        dict(positions.coordinates) | {"raw_from_end": positions.coordinates["raw_from_end"] - 1},
    )


def windows(form: str, step: Any = 1) -> Compared:
    compared: Compared = []
    for name in GOLDEN.files:
        found = re.fullmatch(rf"(?:(self)|cross)_{form}(?:_S(\d+))?_L(\d+)_w(\d+)", name)
        if found is None:
            continue
        source, target, width = (int(number or 1) for number in found.groups()[1:])
        method = WindowedBias(width, step, released=form == "released")
        own = raw_layout(target, 1)
        if found[1]:
            ours = shown(method.at("decoder", 0, 2, 4), own.target, own.prefix)
        else:
            ours = shown(method.at("cross", 0, 2, 4), own.target, with_start_and_end(source))
        compared.append((ours.astype(np.float32), GOLDEN[name].astype(np.float32), 0.0))
    return compared


GOLDEN_CASES: dict[str, tuple[str, Callable[[], Compared]]] = {
    "windowed, paper, self": ("WindowedBias", lambda: windows("paper")),
    "windowed, paper, cross, unary": ("WindowedBias", lambda: windows("paper_unary")),
    "windowed, paper, cross, binary": ("WindowedBias", lambda: windows("paper_binary", step=2)),
    "windowed, released": ("WindowedBias", lambda: windows("released")),
}


@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_golden(name: str) -> None:
    compared = GOLDEN_CASES[name][1]()
    assert len(compared) >= 6
    for ours, theirs, _ in compared:
        np.testing.assert_array_equal(ours, theirs)


def test_every_golden_array_is_compared() -> None:
    assert sum(len(compare()) for _, compare in GOLDEN_CASES.values()) == len(GOLDEN.files)


def formula(method: WindowedBias, site: str, i: int, key: int, source: int) -> bool:
    """Whether target token `i` may read a key, by number."""
    if site == "decoder":
        return 0 <= i - key <= method.width
    last_read = source - 1 - key
    if method.released:
        return i - 1 <= last_read <= i - 1 + method.width
    return method.step * i - method.width <= last_read <= method.step * i + method.step - 1 + method.width


@pytest.mark.parametrize(
    ("widths", "reads", "width"), covering([(5, 5), (2, 9), (12, 1)], [(1, False), (2, False), (1, True)], [0, 1, 3])
)
def test_what_is_open(widths: tuple[int, int], reads: tuple[Any, bool], width: int) -> None:
    """In the toolkit's own layouts, densely and among gathered keys; rows of nothing stay closed."""
    step, released = reads
    method = WindowedBias(width, step, released)
    layout = digit_layout((("operand 1", widths[0]),), widths[1])
    for site, (q_positions, k_positions) in pairs(layout).items():
        hook = method.at(site, 0, 2, 4)
        if site == "encoder":
            assert type(hook) is AttentionPosition
            continue
        expected = np.zeros((len(q_positions), len(k_positions)), dtype=bool)
        for i, key in itertools.product(range(len(q_positions)), range(len(k_positions))):
            expected[i, key] = formula(method, site, i, key, widths[0])
        np.testing.assert_array_equal(shown(hook, q_positions, k_positions), expected)
        assert type(hook.among_open_keys()) is AttentionPosition
        chosen = torch.randint(len(k_positions), (2, len(q_positions), 3))
        gathered = hook.bias(q_positions, k_positions[chosen])
        assert gathered is not None
        assert torch.equal(gathered == 0, torch.from_numpy(expected).expand(2, -1, -1).gather(2, chosen))
        table = hook.open_keys(q_positions, k_positions, math.inf)
        assert table is not None
        slots = width + 1 if site == "decoder" or released else 2 * width + step
        assert table.index.shape == table.bias.shape == (2, len(q_positions), slots)
        assert hook.open_keys(q_positions, k_positions, slots) is not None
        assert hook.open_keys(q_positions, k_positions, slots - 1) is None
        for head in range(2):
            found = np.zeros_like(expected)
            for i, slot in (table.bias[head] == 0).nonzero().tolist():
                found[i, table.index[head, i, slot]] = True
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("method", [WindowedBias(), WindowedBias(2, step=2), Compose((Cyclic(), WindowedBias()))])
def test_a_model_says_the_same_with_gathered_keys(method: Any) -> None:
    torch.manual_seed(0)
    model = EncoderDecoder(12, Architecture(0, 2, 8, 2, 16, position=method)).eval()
    layout = digit_layout((("operand 1", 5),), 9)  # longer than the source: its last rows have nothing open
    source, prefix = torch.randint(12, (3, 5)), torch.randint(12, (3, 10))
    outputs: dict[str, Tensor] = {}
    with torch.no_grad():
        for path in ("dense", "gathered"):
            model.attend(path)  # type: ignore[arg-type]
            outputs[path] = model(source, prefix, layout)
    assert outputs["dense"].isfinite().all()
    torch.testing.assert_close(outputs["gathered"], outputs["dense"])
    model.attend("auto")
    assert model.plan(LONG).gathers


@pytest.mark.parametrize(
    ("task", "text", "pairs"),
    [
        (Addition(interleaved=True), "1234+5678", ["48", "37", "26", "15"]),
        (Multiplication(interleaved=True), "1234*9", ["49", "39", "29", "19"]),
    ],
    ids=["addition", "multiplication"],
)
def test_the_pair_of_a_place_is_open(task: Task, text: str, pairs: list[str]) -> None:
    shape, source = task.parse(text)
    layout = task.layout(shape)
    rows = shown(WindowedBias(0, step=2).at("cross", 0, 2, 4), layout.target, layout.source)
    opened = ["".join(itertools.compress(source, row)) for row in rows]
    # Beyond the pairs there is the operator, and for the end nothing.
    assert opened == [*pairs, source[0], ""]
    for place, row in enumerate(torch.from_numpy(rows[: len(pairs)])):
        for name in ("operand 1", "operand 2"):
            assert layout.source.coordinates["place"][row & layout.source.within(name)].tolist() == [place]


def test_a_query_with_nothing_open_reads_nothing() -> None:
    layout = digit_layout((("operand 1", 3),), 9)
    bias = WindowedBias().at("cross", 0, 2, 4).bias(layout.target, layout.source)
    assert bias is not None
    assert (bias > -math.inf).any(-1)[0].tolist() == [True] * 4 + [False] * 6


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"width": -1}, "width -1"),
        ({"step": 0}, "step 0"),
        ({"step": 3}, "step 3"),
        ({"step": 2, "released": True}, "leave out step"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as raised:
        WindowedBias(**settings)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
