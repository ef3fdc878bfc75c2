import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from abc_toolkit.calibration.capture import AttentionMaps, capture
from abc_toolkit.layout import Layout
from abc_toolkit.models.base import Architecture, predict
from abc_toolkit.models.transformer import EncoderDecoder
from abc_toolkit.positions import Sinusoidal
from abc_toolkit.tasks import Parity, Problems
from abc_toolkit.tasks.lengths import shape_name
from abc_toolkit.windows.rules import WindowError

TASK = Parity(max_length=3)


@pytest.fixture(scope="module")
def model() -> EncoderDecoder:
    """A model that is right at times."""
    torch.manual_seed(0)
    model = EncoderDecoder(len(TASK.vocabulary), Architecture(1, 2, 16, 2, 32, position=Sinusoidal())).double()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for step in range(46):
        problems = TASK.sample(torch.Generator().manual_seed(step), 32, (2 + step % 2,))
        logits = predict(model, problems, TASK.layout(problems.shape))
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits.flatten(0, 1), problems.target.flatten()).backward()
        optimizer.step()
    return model.eval()


def batch(seed: int, shape: int, size: int = 20) -> tuple[Problems, Layout]:
    return TASK.sample(torch.Generator().manual_seed(seed), size, (shape,)), TASK.layout((shape,))


@torch.no_grad()
def test_maps_are_averages_over_solved_problems(model: EncoderDecoder) -> None:
    batches = [batch(0, 2), batch(1, 3), batch(2, 2, 7), batch(3, 3, 33)]
    found = capture(model, batches)
    sums: dict[tuple[int, ...], dict[str, list[list[list[float]]]]] = {}
    solved: dict[tuple[int, ...], int] = {}
    for problems, layout in batches:
        for row in range(len(problems)):
            own: dict[tuple[str, int], Tensor] = {}
            logits = predict(model, problems[row : row + 1], layout, own)
            if logits[0].argmax(-1).tolist() != problems.target[row].tolist():
                continue
            solved[problems.shape] = solved.get(problems.shape, 0) + 1
            shape_sums = sums.setdefault(problems.shape, {})
            for (site, layer), weights in own.items():
                total = shape_sums.setdefault(f"{site}.{layer}", torch.zeros_like(weights[0]).tolist())
                for head, rows in enumerate(weights[0].tolist()):
                    for query, keys in enumerate(rows):
                        for key, weight in enumerate(keys):
                            total[head][query][key] += weight
    assert found.solved == solved
    assert set(solved) == {(2,), (3,)}
    assert sum(solved.values()) < sum(len(problems) for problems, _ in batches)
    assert {shape: set(maps) for shape, maps in found.maps.items()} == {
        shape: {"encoder.0", "decoder.0", "decoder.1", "cross.0", "cross.1"} for shape in solved
    }
    for shape, maps in found.maps.items():
        for name, weights in maps.items():
            assert weights.dtype == torch.float32
            expected = torch.tensor(sums[shape][name]) / solved[shape]
            torch.testing.assert_close(weights, expected, atol=1e-6, rtol=0)


def test_shapes_of_which_nothing_is_solved_are_left_out(model: EncoderDecoder) -> None:
    problems, layout = batch(0, 2)
    wrong = Problems(problems.shape, problems.source, torch.full_like(problems.target, 0))
    assert capture(model, [(wrong, layout)]) == AttentionMaps({}, {})
    assert set(capture(model, [(wrong, layout), batch(0, 3)]).maps) == {(3,)}


def maps(*sizes: tuple[tuple[int, ...], int, tuple[int, int]]) -> AttentionMaps:
    """Maps of given shapes, problems solved, and cells."""
    own = {shape: {"cross.0": torch.rand(2, *cells), "decoder.0": torch.rand(2, 2, 2)} for shape, _, cells in sizes}
    return AttentionMaps(own, {shape: solved for shape, solved, _ in sizes})


def test_raw_weighs_every_problem_alike() -> None:
    # Padded to a fixed width, all but the first have the cells of the longest.
    own = maps(((1, 1), 7, (3, 4)), ((2, 2), 10, (5, 6)), ((3, 3), 30, (5, 6)), ((2, 9), 60, (5, 6)))
    assert own.longest == (3, 3)
    second, third, last = (own.maps[shape]["cross.0"] for shape in ((2, 2), (3, 3), (2, 9)))
    torch.testing.assert_close(own.raw("cross.0"), 0.1 * second + 0.3 * third + 0.6 * last)
    everything = sum(own.maps[shape]["decoder.0"] * (own.solved[shape] / 107) for shape in own.maps)
    torch.testing.assert_close(own.raw("decoder.0"), everything)


def test_a_file_holds_all_of_it(tmp_path: Path) -> None:
    own = maps(((2,), 3, (2, 3)), ((12, 1), 40, (5, 6)))
    own.save(tmp_path / "maps.safetensors")
    read = AttentionMaps.load(tmp_path / "maps.safetensors")
    assert read.solved == own.solved
    assert read.longest == own.longest
    assert {shape: set(m) for shape, m in read.maps.items()} == {shape: set(m) for shape, m in own.maps.items()}
    for shape, named in own.maps.items():
        for name, weights in named.items():
            assert torch.equal(read.maps[shape][name], weights)
    assert shape_name((12, 1)) == "12x1"
    assert [path.name for path in tmp_path.iterdir()] == ["maps.safetensors"]


TENSORS = {"2x2/cross.0": torch.ones(1, 2, 2)}
FOREIGN = {
    "no counts": (TENSORS, None),
    "no numbers": (TENSORS, "solved?"),
    "a list": (TENSORS, "[3]"),
    "a null": (TENSORS, "null"),
    "no count": (TENSORS, '{"2x2": null}'),
    "no shape": (TENSORS, '{"small": 3}'),
    "another shape": (TENSORS, '{"2x2": 3, "3x3": 1}'),
    "a shape without a count": (TENSORS | {"3x3/cross.0": torch.ones(1, 2, 2)}, '{"2x2": 3}'),
    "other names": ({"output.weight": torch.ones(2)}, "{}"),
    "names too deep": ({"2x2/cross/0": torch.ones(2)}, '{"2x2": 3}'),
    "nothing": ({}, "{}"),
}


@pytest.mark.parametrize("case", [*FOREIGN, "truncated", "cut to nothing", "text", "missing", "a folder"])
def test_other_files_are_refused_in_one_line(case: str, tmp_path: Path) -> None:
    path = tmp_path / "maps.safetensors"
    if case in FOREIGN:
        tensors, solved = FOREIGN[case]
        save_file(tensors, path, None if solved is None else {"solved": solved})
    elif case == "text":
        path.write_text(json.dumps({"solved": {"2x2": 3}}) * 9)
    elif case == "a folder":
        path.mkdir()
    elif case != "missing":
        maps(((2, 2), 3, (2, 3))).save(path)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2 if case == "truncated" else 0])
    with pytest.raises(WindowError) as error:
        AttentionMaps.load(path)
    message = str(error.value)
    assert message.splitlines() == [message]
    assert str(path) in message
