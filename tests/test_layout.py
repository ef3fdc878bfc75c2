import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abc_toolkit.layout import ANSWER, COORDINATES, END, START, Layout, Positions, digit_layout

SOURCE = (("operand 1", 3), ("operator", 1), ("operand 2", 2))


@pytest.fixture
def layout() -> Layout:
    """That of 123+45 and an answer of four digits."""
    return digit_layout(SOURCE, 4)


def listed(positions: Positions) -> dict[str, list[int]]:
    return {name: coordinate.tolist() for name, coordinate in positions.coordinates.items()}


def test_by_hand(layout: Layout) -> None:
    assert layout.source.names == ("operand 1", "operator", "operand 2", START, ANSWER, END)
    assert layout.source.names == layout.target.names == layout.prefix.names
    assert listed(layout.source) == {
        "place": [2, 1, 0, 0, 1, 0],
        "index": [0, 1, 2, 0, 0, 1],
        "row": [0, 0, 0, 0, 0, 0],
        "column": [2, 1, 0, 0, 1, 0],
        "raw": [0, 1, 2, 3, 4, 5],
        "raw_from_end": [5, 4, 3, 2, 1, 0],
        "segment": [0, 0, 0, 1, 2, 2],
    }
    # EOS goes on counting from the answer.
    assert listed(layout.target) == {
        "place": [0, 1, 2, 3, 4],
        "index": [3, 2, 1, 0, -1],
        "row": [0, 0, 0, 0, 0],
        "column": [0, 1, 2, 3, 4],
        "raw": [0, 1, 2, 3, 4],
        "raw_from_end": [4, 3, 2, 1, 0],
        "segment": [4, 4, 4, 4, 5],
    }
    # BOS, then the digits.
    assert listed(layout.prefix) == {
        "place": [0, 0, 1, 2, 3],
        "index": [0, 3, 2, 1, 0],
        "row": [0, 0, 0, 0, 0],
        "column": [0, 0, 1, 2, 3],
        "raw": [0, 1, 2, 3, 4],
        "raw_from_end": [4, 3, 2, 1, 0],
        "segment": [3, 4, 4, 4, 4],
    }


def test_a_query_has_the_place_that_it_predicts(layout: Layout) -> None:
    query, key = layout.target.coordinates["place"], layout.prefix.coordinates["place"]
    written_last = (query[:, None] - key == 1) & layout.prefix.within(ANSWER)
    assert written_last.nonzero().tolist() == [[1, 1], [2, 2], [3, 3], [4, 4]]
    own_place = (query[:, None] == layout.source.coordinates["place"]) & layout.source.within("operand 2")
    assert own_place.nonzero().tolist() == [[0, 5], [1, 4]]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 6))
def test_every_segment_is_counted_from_both_ends(lengths: list[int], answer_length: int) -> None:
    layout = digit_layout([(f"segment {i}", length) for i, length in enumerate(lengths)], answer_length)
    where = [(i, j, n) for i, n in enumerate(lengths) for j in range(n)]
    assert listed(layout.source) == {
        "place": [n - 1 - j for _, j, n in where],
        "index": [j for _, j, _ in where],
        "row": [0] * len(where),
        "column": [n - 1 - j for _, j, n in where],
        "raw": list(range(len(where))),
        "raw_from_end": list(range(len(where)))[::-1],
        "segment": [i for i, _, _ in where],
    }
    for positions in (layout.source, layout.target, layout.prefix):
        assert tuple(positions.coordinates) == COORDINATES
        assert torch.equal(positions.coordinates["segment"], positions.segment)
        assert {c.dtype for c in positions.coordinates.values()} == {torch.int64}
    # Digit i is query i and key i + 1.
    for name in ("place", "index", "segment"):
        query, key = layout.target.coordinates[name], layout.prefix.coordinates[name]
        assert torch.equal(query[:-1], key[1:])
    assert len(layout.target) == len(layout.prefix) == answer_length + 1


def test_in_turn_by_hand() -> None:
    """That of *142434: an operator, then a pair for every place."""
    layout = digit_layout([("operator", 1), ("operand 1", 3), ("operand 2", 3)], 4, in_turn=True)
    assert layout.source.names == layout.target.names == ("operator", "operand 1", "operand 2", START, ANSWER, END)
    assert listed(layout.source) == {
        "place": [0, 2, 2, 1, 1, 0, 0],
        "index": [0, 0, 0, 1, 1, 2, 2],
        "row": [0, 0, 0, 0, 0, 0, 0],
        "column": [0, 2, 2, 1, 1, 0, 0],
        "raw": [0, 1, 2, 3, 4, 5, 6],
        "raw_from_end": [6, 5, 4, 3, 2, 1, 0],
        "segment": [0, 1, 2, 1, 2, 1, 2],
    }


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 6))
def test_in_turn_the_same_tokens_stand_in_another_order(lengths: list[int], answer_length: int) -> None:
    segments = [(f"segment {i}", length) for i, length in enumerate(lengths)]
    plain, layout = (digit_layout(segments, answer_length, in_turn) for in_turn in (False, True))
    for name, length in segments:
        own = layout.source.within(name)
        assert layout.source.coordinates["index"][own].tolist() == list(range(length))
        assert layout.source.coordinates["place"][own].tolist() == list(range(length))[::-1]
    # One token of each segment, then the next of each that is left.
    turns = [(j, i) for j in range(max(lengths)) for i, length in enumerate(lengths) if j < length]
    coordinates = layout.source.coordinates
    assert list(zip(coordinates["index"].tolist(), coordinates["segment"].tolist(), strict=True)) == turns
    for name in ("raw", "raw_from_end"):
        assert torch.equal(coordinates[name], plain.source.coordinates[name])
    for part in ("target", "prefix"):
        assert listed(getattr(layout, part)) == listed(getattr(plain, part))


def test_within(layout: Layout) -> None:
    assert layout.source.within("operand 2").tolist() == [False] * 4 + [True] * 2
    assert not layout.source.within(ANSWER).any()
    assert layout.prefix.within(START).tolist() == [True, False, False, False, False]
    unknown = layout.source.within("operand 7")
    assert (unknown.dtype, unknown.shape, unknown.any().item()) == (torch.bool, (6,), False)


def test_slices(layout: Layout) -> None:
    cut = layout.target[2:4]
    assert len(cut) == 2
    assert cut.names == layout.target.names
    assert listed(cut) == {name: values[2:4] for name, values in listed(layout.target).items()}
    assert cut.segment.tolist() == [4, 4]


def test_moves_between_devices(layout: Layout) -> None:
    moved = layout.to(torch.device("meta"))
    for positions in (moved.source, moved.target, moved.prefix):
        assert {t.device.type for t in (positions.segment, *positions.coordinates.values())} == {"meta"}
    # What is there already stays the same object: windows keep biases by it.
    assert layout.to(torch.device("cpu")).source is layout.source


def test_each_is_a_key_of_its_own(layout: Layout) -> None:
    assert len({layout.source, layout.target, layout.prefix, layout.source}) == 3
    assert layout.source != digit_layout(SOURCE, 4).source


def test_one_string_by_hand() -> None:
    string = digit_layout((("operand 1", 2), ("operator", 1)), 1).string
    expected = {
        "target": {"place": [1, 0, 0, 0, 1], "segment": [0, 0, 1, 3, 4]},
        "prefix": {"place": [1, 0, 0, 0, 0], "segment": [0, 0, 1, 2, 3]},
    }
    for name, coordinates in expected.items():
        positions = getattr(string, name)
        assert positions.names == ("operand 1", "operator", "start", "answer", "end")
        for coordinate, values in (coordinates | {"raw": [0, 1, 2, 3, 4], "raw_from_end": [4, 3, 2, 1, 0]}).items():
            assert positions.coordinates[coordinate].tolist() == values
    assert string.source.coordinates["raw"].tolist() == [0, 1, 2]


def test_one_string_is_made_once(layout: Layout) -> None:
    with torch.inference_mode():
        string = layout.string
    assert layout.string is string
    assert not string.target.segment.is_inference()
