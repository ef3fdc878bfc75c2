import json
import math
import statistics
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from abc_toolkit.calibration.paper import DIRECTIONS, Direction, Paper, StraightLine, Variant, find_lines, to_rules
from abc_toolkit.layout import Positions
from abc_toolkit.positions import Site
from abc_toolkit.windows.lowering import dense_bias
from abc_toolkit.windows.rules import Rule, Window

GOLDEN = Path(__file__).parents[1] / "golden" / "abc_bias.npz"
NAMED: dict[str, tuple[Direction, ...]] = {
    "diag": ("diagonal",),
    "anti": ("anti-diagonal",),
    "vert": ("vertical",),
    "all": DIRECTIONS,
}
# Stands for no drop-off: every line lies above the mean minus this many deviations.
NO_DROP_OFF = -1e9
CLOSED = np.float32(-1e6)  # as the released code writes it


@cache
def golden(name: str) -> np.ndarray:
    with np.load(GOLDEN) as arrays:
        return arrays[name]


def golden_names() -> list[str]:
    with np.load(GOLDEN) as arrays:
        return arrays.files


def positions(length: int) -> Positions:
    raw = torch.arange(length)
    from_end = length - 1 - raw
    coordinates = {"place": from_end, "index": raw, "raw": raw, "raw_from_end": from_end, "segment": raw * 0}
    return Positions(("digits",), coordinates)


def matrix(rules: Sequence[Rule], site: Site, num_heads: int, num_queries: int, num_keys: int) -> np.ndarray:
    window = Window("", 0, 1, num_heads, tuple(rules), {})
    return dense_bias(window, site, 0, positions(num_queries), positions(num_keys)).numpy()


def assert_matches(ours: np.ndarray, expected: np.ndarray) -> None:
    # The paper's arrays are float64 and a window's bias is float32: values below 1 are rounded by at most 3e-8.
    np.testing.assert_allclose(ours, expected, rtol=0, atol=6e-8)


def rules_of(method: Paper, maps: np.ndarray, site: Site) -> list[Rule]:
    rules = method.decoder_rules(torch.from_numpy(maps), torch.from_numpy(maps), 1)
    return [rule for rule in rules if rule.site == site]


def both_sites(kappa: float, directions: tuple[Direction, ...], **options: object) -> Paper:
    """A method that treats both sites alike."""
    return Paper(
        kappa_cross=kappa,
        kappa_self=kappa,
        cross_directions=directions,
        self_directions=directions,
        **options,  # pyright: ignore[reportArgumentType]
    )


# --- against the reference arrays ---


@pytest.mark.parametrize("site", ["cross", "decoder"])
@pytest.mark.parametrize("kappa", ["4.5", "2.0", "0.87"])
@pytest.mark.parametrize("directions", NAMED)
def test_paper_windows_match(directions: str, kappa: str, site: Site) -> None:
    rules = rules_of(both_sites(float(kappa), NAMED[directions]), golden("attn"), site)
    lines = [rule for rule in rules if rule.conditions]
    # Of one direction alone the arrays hold the lines; transparency follows the merge.
    before = f"paper_{directions}_kappa{kappa}" + ("_before_transparency" if directions == "all" else "")
    assert_matches(matrix(lines, site, 8, 61, 123), golden(before))
    if directions == "all":
        expected = golden(f"paper_all_kappa{kappa}")
        assert_matches(matrix(rules, site, 8, 61, 123), expected)


@pytest.mark.parametrize("directions", ["diag", "anti", "vert"])
def test_paper_line_means_match(directions: str) -> None:
    rules = rules_of(both_sites(NO_DROP_OFF, NAMED[directions]), golden("attn"), "cross")
    means = golden(f"paper_{directions}_line_means")
    # The window holds the means minus the largest of the head.
    expected = means - means.max(axis=(1, 2), keepdims=True)
    assert_matches(matrix(rules, "cross", 8, 61, 123), expected)


def test_paper_windows_match_at_the_released_sizes() -> None:
    cross = rules_of(both_sites(4.5, NAMED["anti"]), golden("attn_big"), "cross")
    own = rules_of(both_sites(0.87, NAMED["diag"]), golden("attn_big_self"), "decoder")
    lines = [rule for rule in cross + own if rule.conditions]
    expected = golden("paper_big_anti_kappa4.5_M62_N125")
    assert_matches(matrix(lines, "cross", 4, 62, 125), expected)
    expected = golden("paper_big_self_diag_kappa0.87_M62_N62")
    assert_matches(matrix(lines, "decoder", 4, 62, 62), expected)


SMALL_RELEASED = [name for name in golden_names() if name.startswith("released") and "big" not in name]


@pytest.mark.parametrize("name", SMALL_RELEASED)
def test_released_windows_match(name: str) -> None:
    _, site_name, along, *options = name.split("_")
    site: Site = "cross" if site_name == "cross" else "decoder"
    kappa = NO_DROP_OFF if "rawsums" in options else float(options[-1].removeprefix("kappa"))
    directions = NAMED[along][::-1] if "reversed" in options else NAMED[along]
    # The map has 7 queries and 13 keys, so limits of 7 and 12 take all of it.
    target_limit, source_limit = (6, 6) if "maskTgt6" in options else (7, 12)
    method = both_sites(kappa, directions, variant="released", target_limit=target_limit, source_limit=source_limit)
    ours = matrix(rules_of(method, golden("attn"), site), site, 8, 61, 123)
    expected = golden(name)
    # Without a drop-off the reference holds 0 where there is no line.
    ours = np.maximum(ours, 0 if "rawsums" in options else CLOSED)
    if site == "cross":
        # The released code writes 0 into this cell; a line through it keeps its value in a window.
        assert (expected[:, 0, -1] == 0).all()
        through = np.zeros(8, np.float32)
        for short, key in (("anti", -2), ("vert", -1)):
            if NAMED[short][0] in directions:
                through = np.maximum(through, golden(name.replace(f"_{along}_", f"_{short}_"))[:, 1, key])
        expected = expected.copy()
        expected[:, 0, -1] = through
    np.testing.assert_array_equal(ours, expected)


def test_an_open_line_through_the_forced_cell_keeps_its_value() -> None:
    # The one difference that the test above allows for does occur, and is a line's sum.
    name = "released_cross_anti_kappa2.0"
    method = both_sites(2.0, NAMED["anti"], variant="released")
    ours = matrix(rules_of(method, golden("attn"), "cross"), "cross", 8, 61, 123)
    differs = np.argwhere(np.maximum(ours, CLOSED) != golden(name)).tolist()
    assert differs
    assert {(query, key) for _, query, key in differs} == {(0, 122)}
    assert all(ours[head, 0, 122] == ours[head, 1, 121] > 0 for head, _, _ in differs)


def test_released_windows_match_at_the_released_sizes() -> None:
    method = Paper(
        variant="released",
        cross_directions=("anti-diagonal",),
        self_directions=("diagonal",),
        target_limit=6,
        source_limit=6,
    )
    rules = method.decoder_rules(torch.from_numpy(golden("attn_big")), torch.from_numpy(golden("attn_big_self")), 1)
    cross = np.maximum(matrix(rules, "cross", 4, 62, 125), CLOSED)
    np.testing.assert_array_equal(cross, golden("released_cross_big_anti_kappa4.5_mask6_6_M62_N125"))
    own = np.maximum(matrix(rules, "decoder", 4, 62, 62), CLOSED)
    np.testing.assert_array_equal(own, golden("released_self_big_diag_kappa0.87_mask6_6_M62_N62"))


# --- against a nested-loop oracle ---

Cells = list[tuple[int, int]]

# Sixteenths are exact in float32, tie often and sum to 0 often.
weights = st.integers(0, 16).map(lambda k: k / 16)


@st.composite
def drawn_maps(draw: st.DrawFn, cell: st.SearchStrategy[float] = weights) -> Tensor:
    num_heads, num_queries, num_keys = draw(st.integers(1, 2)), draw(st.integers(1, 6)), draw(st.integers(1, 6))
    cells = draw(st.lists(cell, min_size=(size := num_heads * num_queries * num_keys), max_size=size))
    return torch.tensor(cells, dtype=torch.float32).reshape(num_heads, num_queries, num_keys)


def oracle_cells(num_queries: int, num_keys: int, direction: Direction) -> dict[int, Cells]:
    """Cells of each line, by the number that its cells share."""
    lines: dict[int, Cells] = {}
    for i in range(num_queries):
        for j in range(num_keys):
            shared = j - i if direction == "diagonal" else i + j if direction == "anti-diagonal" else j
            lines.setdefault(shared, []).append((i, j))
    return lines


def found_cells(line: StraightLine, num_queries: int, num_keys: int) -> Cells:
    open_cells = Rule("cross", 0, line.head, conditions=(line.condition,)).holds(
        positions(num_queries), positions(num_keys)
    )
    return [(i, j) for i, j in open_cells.nonzero().tolist()]


@settings(deadline=None, max_examples=200)
@given(drawn_maps(), st.sampled_from([0.3, 0.87, 1.6]), st.sampled_from(DIRECTIONS))
def test_paper_lines_match_loops(maps: Tensor, kappa: float, direction: Direction) -> None:
    num_heads, num_queries, num_keys = maps.shape
    expected = []
    for head in range(num_heads):
        cells = list(oracle_cells(num_queries, num_keys, direction).values())
        means = [math.fsum(maps[head, i, j].item() for i, j in line) / len(line) for line in cells]
        threshold = statistics.fmean(means) + kappa * statistics.pstdev(means)
        # A mean at the threshold to the last bits is on either side of it by rounding alone.
        assume(all(abs(mean - threshold) > 1e-12 for mean in means))
        expected += [(head, c, m - max(means)) for c, m in zip(cells, means, strict=True) if m > threshold]
    found = find_lines(maps, (direction,), kappa)
    ours = [(line.head, found_cells(line, num_queries, num_keys), line.value) for line in found]
    assert [line[:2] for line in sorted(ours)] == [line[:2] for line in sorted(expected)]
    np.testing.assert_allclose([v for *_, v in sorted(ours)], [v for *_, v in sorted(expected)], rtol=0, atol=1e-14)


@settings(deadline=None, max_examples=200)
@given(
    drawn_maps(st.floats(0, 1, width=32)) | drawn_maps(),
    st.sampled_from([0.3, 0.87, 1.6]),
    st.sampled_from(DIRECTIONS),
    st.integers(1, 7) | st.none(),
    st.integers(1, 7) | st.none(),
)
def test_released_lines_match_loops(
    maps: Tensor, kappa: float, direction: Direction, target_limit: int | None, source_limit: int | None
) -> None:
    num_heads, num_queries, num_keys = maps.shape
    expected = []
    for head in range(num_heads):
        lines = []
        for cells in oracle_cells(num_queries, num_keys, direction).values():
            read = [(i, j) for i, j in cells if target_limit is None or i < target_limit]
            if direction == "vertical" and source_limit is not None:
                read = [(i, j) for i, j in read if j >= num_keys - source_limit - 1]
            total = np.float32(0)
            for i, j in read:
                total = np.float32(total + np.float32(maps[head, i, j].item()))
            if read:
                lines.append((cells, float(total)))
        distinct = {total for _, total in lines if total != 0}
        if distinct:
            threshold = statistics.fmean(distinct) + kappa * statistics.pstdev(distinct)
            # Float32 sums are compared in float32, where a lone sum is its own threshold and stays open.
            assume(len(distinct) == 1 or all(abs(total / threshold - 1) > 1e-6 for _, total in lines))
            expected += [(head, cells, total) for cells, total in lines if total >= np.float32(threshold)]
    found = find_lines(maps, (direction,), kappa, "released", target_limit, source_limit)
    ours = [(line.head, found_cells(line, num_queries, num_keys), line.value) for line in found]
    assert sorted(ours) == sorted(expected)


# --- what the variants say of edge cases ---


def test_the_paper_drops_a_line_at_the_threshold_and_the_released_code_keeps_it() -> None:
    maps = torch.tensor([[[0.25, 0.75]]])  # mean 0.5, deviation 0.25
    assert find_lines(maps, ("vertical",), 1.0, "paper") == []
    (line,) = find_lines(maps, ("vertical",), 1.0, "released")
    assert line.value == 0.75
    assert line.condition.describe() == "raw_from_end 0"


def test_the_released_code_compares_in_float32() -> None:
    # The threshold is 0.75 and less than half a float32 step more, so it is 0.75 there.
    maps = torch.tensor([[[0.25, 0.75]]])
    assert len(find_lines(maps, ("vertical",), 1 + 1e-8, "released")) == 1
    assert find_lines(maps, ("vertical",), 1 + 1e-6, "released") == []


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_an_even_map_has_no_line(direction: Direction) -> None:
    maps = torch.full((1, 7, 13), 1 / 13)
    assert find_lines(maps, (direction,), 0.87) == []


@pytest.mark.parametrize(("num_lines", "opens"), [(21, False), (22, True)])
def test_the_paper_s_kappa_needs_22_lines(num_lines: int, opens: bool) -> None:
    maps = torch.zeros(1, 3, num_lines)
    maps[:, :, 4] = 1.0
    rules = Paper(cross_directions=("vertical",)).decoder_rules(maps, maps, 1)
    assert any(rule.conditions for rule in rules if rule.site == "cross") == opens


def test_a_head_without_a_line_is_transparent_in_the_paper() -> None:
    maps = torch.full((2, 7, 13), 1 / 13)
    maps[1] = torch.eye(7, 13)
    rules = Paper(kappa_cross=2.0).decoder_rules(maps, maps, 1)
    assert [rule for rule in rules if rule.site == "cross" and not rule.conditions] == [Rule("cross", 0, 0)]


@pytest.mark.parametrize("directions", [("diagonal", "vertical"), ("vertical", "diagonal")])
def test_the_first_direction_decides_transparency_in_the_released_code(directions: tuple[Direction, ...]) -> None:
    # A column among faint ones stands out; the same cells make five diagonals of nearly one sum, and none does.
    maps = torch.zeros(1, 7, 13)
    maps[:, 0] = torch.arange(1, 14) / 100
    maps[:, :, 4] = 1.0
    lines = find_lines(maps, directions, 2.0, "released")
    assert {line.direction for line in lines} == {"vertical"}
    rules = to_rules(lines, "decoder", 0, 1, directions, "released")
    assert (Rule("decoder", 0, 0) in rules) == (directions[0] == "diagonal")


def test_a_head_without_weights_has_no_line_in_the_released_code() -> None:
    assert find_lines(torch.zeros(1, 4, 5), DIRECTIONS, 0.87, "released") == []


# --- rules ---


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_every_decoder_layer_gets_the_same_rules(variant: Variant) -> None:
    cross = torch.from_numpy(golden("attn"))
    own = cross[:, :, :7]
    rules = Paper(variant, kappa_cross=2.0).decoder_rules(cross, own, 3)
    assert {rule.site for rule in rules} == {"cross", "decoder"}
    by_layer = [{(r.site, r.head, r.conditions, r.bias) for r in rules if r.layer == layer} for layer in range(3)]
    assert by_layer[0] == by_layer[1] == by_layer[2]
    assert 3 * len(by_layer[0]) == len(rules)


def test_each_site_has_its_own_directions_and_drop_off() -> None:
    maps = torch.from_numpy(golden("attn"))
    method = Paper(kappa_cross=2.0, cross_directions=("anti-diagonal",), self_directions=("vertical",))
    rules = method.decoder_rules(maps, maps, 1)
    cross, own = ([r for r in rules if r.site == site] for site in ("cross", "decoder"))
    assert cross == to_rules(find_lines(maps, ("anti-diagonal",), 2.0), "cross", 0, 8, ("anti-diagonal",))
    assert own == to_rules(find_lines(maps, ("vertical",), 0.87), "decoder", 0, 8, ("vertical",))


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_rules_survive_their_file(variant: Variant) -> None:
    maps = torch.from_numpy(golden("attn"))
    window = Window("", 0, 2, 8, tuple(Paper(variant, kappa_cross=2.0).decoder_rules(maps, maps, 2)), {})
    assert json.loads(window.to_json())["rules"]
    assert Window.from_json(window.to_json()) == window


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cross_directions": ()}, "cross_directions is empty"),
        ({"self_directions": ()}, "self_directions is empty"),
        ({"target_limit": 6}, "target_limit is for the released variant"),
        ({"variant": "released", "source_limit": 0}, "source_limit is 0"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Paper(**options)  # pyright: ignore[reportArgumentType]
