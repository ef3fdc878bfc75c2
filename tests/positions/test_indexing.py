import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from abc_toolkit.layout import COORDINATES, Positions, digit_layout

LAYOUT = digit_layout((("operand 1", 4), ("operator", 1), ("operand 2", 3)), 5)
ALL = {"source": LAYOUT.source, "target": LAYOUT.target, "prefix": LAYOUT.prefix}


def listed(positions: Positions) -> dict[str, list]:
    return {name: coordinate.tolist() for name, coordinate in positions.coordinates.items()}


def test_three_dimensions_by_hand() -> None:
    index = torch.tensor([[[0, 7], [4, 4]], [[5, 1], [2, 6]]])
    chosen = LAYOUT.source[index]
    assert chosen.names == LAYOUT.source.names
    assert listed(chosen) == {
        "place": [[[3, 0], [0, 0]], [[2, 2], [1, 1]]],
        "index": [[[0, 2], [0, 0]], [[0, 1], [2, 1]]],
        "row": [[[0, 0], [0, 0]], [[0, 0], [0, 0]]],
        "column": [[[3, 0], [0, 0]], [[2, 2], [1, 1]]],
        "raw": [[[0, 7], [4, 4]], [[5, 1], [2, 6]]],
        "raw_from_end": [[[7, 0], [3, 3]], [[2, 6], [5, 1]]],
        "segment": [[[0, 2], [1, 1]], [[2, 0], [0, 2]]],
    }
    assert chosen.segment.tolist() == [[[0, 2], [1, 1]], [[2, 0], [0, 2]]]
    assert chosen.within("operand 1").tolist() == [[[True, False], [False, False]], [[False, True], [True, False]]]


ends = st.none() | st.integers(-10, 10)


@pytest.mark.parametrize("positions", ALL.values(), ids=ALL)
@given(st.lists(st.builds(slice, ends, ends, st.none() | st.integers(1, 3)), min_size=1, max_size=3))
def test_slices_of_slices(positions: Positions, slices: list[slice]) -> None:
    expected = listed(positions)
    for piece in slices:
        positions = positions[piece]
        expected = {name: values[piece] for name, values in expected.items()}
    assert len(positions) == len(expected["raw"])
    assert tuple(positions.coordinates) == COORDINATES
    assert len(positions.coordinates) == len(COORDINATES)
    assert listed(positions) == expected


def nested(index: list, values: list[int]) -> list:
    return [nested(inner, values) for inner in index] if isinstance(index, list) else values[index]


@pytest.mark.parametrize("positions", ALL.values(), ids=ALL)
@given(st.data())
def test_keys_chosen_from_a_choice(positions: Positions, data: st.DataObject) -> None:
    def drawn(length: int, dimensions: int) -> Tensor:
        shape = data.draw(st.lists(st.integers(1, 3), min_size=dimensions, max_size=dimensions))
        numbers = st.lists(st.integers(0, length - 1), min_size=(n := torch.Size(shape).numel()), max_size=n)
        return torch.tensor(data.draw(numbers)).view(shape)

    first, second = slice(data.draw(st.integers(0, 3)), None), drawn(3, 1)
    index = drawn(len(second), data.draw(st.integers(1, 3)))
    chosen = positions[first][second][index]
    for name, values in listed(positions).items():
        assert chosen.coordinates[name].tolist() == nested(index.tolist(), nested(second.tolist(), values[first]))
    assert len(chosen) == len(index)


def test_coordinates_are_looked_up_once_and_only_if_asked_for() -> None:
    class Counting(dict[str, Tensor]):
        def __getitem__(self, name: str) -> Tensor:
            asked.append(name)
            return super().__getitem__(name)

    asked: list[str] = []
    chosen = Positions(LAYOUT.source.names, Counting(LAYOUT.source.coordinates))[2:7][torch.tensor([[0, 1]])]
    assert asked == []
    assert chosen.coordinates["place"] is chosen.coordinates["place"]
    assert asked == ["place"]
    with pytest.raises(KeyError):
        chosen.coordinates["nothing"]


def test_a_choice_moves_between_devices() -> None:
    chosen = LAYOUT.source[torch.tensor([[1, 2], [3, 0]])]
    moved = chosen.to(torch.device("meta"))
    assert {coordinate.device.type for coordinate in moved.coordinates.values()} == {"meta"}
    assert {tuple(coordinate.shape) for coordinate in moved.coordinates.values()} == {(2, 2)}
    assert chosen.to(torch.device("cpu")) is chosen
