import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from abc_toolkit.errors import UserError
from abc_toolkit.layout import Layout, Positions
from abc_toolkit.models.base import Architecture
from abc_toolkit.models.transformer import EncoderDecoder
from abc_toolkit.positions import ModelSizes
from abc_toolkit.positions.trees import TreePE
from abc_toolkit.testing import position_contract
from abc_toolkit.testing.position_contract import PositionCase, PositionContract

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "treepe_shiv_quirk.npz")


def heap_path(node: int, branching: int = 2) -> list[int]:
    """Branches from the root to a node, counted row by row from 1 at the root."""
    path: list[int] = []
    while node > 1:
        path.append((node - 2) % branching)
        node = (node - 2) // branching + 1
    return path[::-1]


def padded(paths: list[list[int]]) -> Tensor:
    longest = max(map(len, paths))
    return torch.tensor([path + [-1] * (longest - len(path)) for path in paths], dtype=torch.long)


def tree(positions: Positions, branching: int = 2) -> Positions:
    """The tokens of a string as the nodes of a heap."""
    path = padded([heap_path(node, branching) for node in range(1, len(positions) + 1)])
    return Positions(positions.names, dict(positions.coordinates) | {"path": path})


def with_trees(layout: Layout, branching: int = 2) -> Layout:
    return Layout(*(tree(positions, branching) for positions in (layout.source, layout.target, layout.prefix)))


SUM = with_trees(position_contract.LAYOUTS[1])


class TestTrees(PositionContract):
    cases = {  # noqa: RUF012
        "two branches": PositionCase(TreePE(depth=4), learns=True),
        "a path cut short": PositionCase(TreePE(depth=2), learns=True),
        "more branches than there are": PositionCase(TreePE(depth=2, branching=3), learns=True),
        "released": PositionCase(TreePE(depth=4, released=True), learns=True),
    }

    @pytest.fixture(autouse=True)
    def _tokens_are_nodes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(position_contract, "LAYOUTS", list(map(with_trees, position_contract.LAYOUTS)))
        monkeypatch.setattr(position_contract, "ALIKE", list(map(with_trees, position_contract.ALIKE)))
        monkeypatch.setattr(position_contract, "LONG", with_trees(position_contract.LONG))


def table(method: TreePE, paths: Tensor, weights: Tensor, model_dim: int) -> np.ndarray:
    """What is added to the embeddings of nodes."""
    built = method.build(ModelSizes(model_dim, 1, 1, 1)).to(weights.dtype)
    with torch.no_grad():
        built.weight.copy_(weights)
    positions = Positions((), {"segment": torch.zeros(len(paths)), "path": paths})
    return built.embed(torch.zeros(1, len(paths), model_dim, dtype=weights.dtype), positions)[0].detach().numpy()


def formula(method: TreePE, paths: list[list[int]], weights: list[float], model_dim: int) -> np.ndarray:
    """The same a number at a time, in float64."""
    added = np.zeros((len(paths), model_dim))
    for node, path in enumerate(paths):
        for s, b in enumerate(path[::-1][: method.depth]):
            for i, w in enumerate(weights):
                t = math.tanh(w)
                power = (2 * s + b) % method.depth if method.released else s
                width = len(weights) if method.released else model_dim
                channel = (s * method.branching + b) * len(weights) + i
                added[node, channel] = t**power * math.sqrt((1 - t * t) * width / 2)
    return added


def released() -> list:
    paths = padded([heap_path(node) for node in GOLDEN["positions"][0].tolist()])
    weights = torch.tensor(GOLDEN["__param__weight"])
    return [(table(TreePE(depth=4, released=True), paths, weights, 32), GOLDEN["out"][0], 1e-6)]


GOLDEN_CASES: dict[str, tuple[str, Callable[[], list]]] = {"TreePE released, APE": ("TreePE", released)}


@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_golden(name: str) -> None:
    _, pairs = GOLDEN_CASES[name]
    for ours, theirs, atol in pairs():
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=atol, rtol=0)


@pytest.mark.parametrize(
    ("method", "model_dim"),
    [
        (TreePE(depth=4), 16),
        (TreePE(depth=3), 21),
        (TreePE(depth=2, branching=3), 8),
        (TreePE(depth=1, branching=4), 13),
        (TreePE(depth=4, released=True), 19),
        (TreePE(depth=3, released=True), 6),
    ],
)
def test_tables_are_the_formula(method: TreePE, model_dim: int) -> None:
    paths = [heap_path(node, method.branching) for node in range(1, 60)]
    torch.manual_seed(0)
    weights = torch.randn(model_dim // (method.depth * method.branching), dtype=torch.float64)
    ours = table(method, padded(paths), weights, model_dim)
    np.testing.assert_allclose(ours, formula(method, paths, weights.tolist(), model_dim), atol=1e-12)


def test_a_tree_of_its_root_alone() -> None:
    assert not table(TreePE(depth=2), torch.empty(3, 0, dtype=torch.long), torch.ones(2), 8).any()
    built = TreePE(depth=2).build(ModelSizes(8, 1, 1, 1))
    positions = Positions((), {"segment": torch.zeros(1), "path": torch.empty(1, 0, dtype=torch.long)})
    layout = Layout(positions, positions, positions)
    assert built.prepare(layout) is layout


def test_nodes_are_told_apart_down_to_the_depth() -> None:
    paths = padded([heap_path(node) for node in range(1, 32)])
    assert len(np.unique(table(TreePE(depth=4), paths, torch.ones(2), 16), axis=0)) == 31
    # Of four steps the three nearest the node are told: its two lowest rows look alike but for the first step.
    assert len(np.unique(table(TreePE(depth=3), paths, torch.ones(2), 12), axis=0)) == 15


def test_more_padding_changes_nothing() -> None:
    paths = padded([heap_path(node) for node in range(1, 16)])
    more = torch.nn.functional.pad(paths, (0, 3), value=-1)
    for method in (TreePE(depth=4), TreePE(depth=2)):
        weights = torch.ones(16 // (2 * method.depth))
        assert np.array_equal(table(method, paths, weights, 16), table(method, more, weights, 16))


def test_weights_are_drawn_from_the_global_generator() -> None:
    torch.manual_seed(1)
    (weight,) = TreePE(depth=2).build(ModelSizes(4003, 1, 1, 1)).parameters()
    assert weight.shape == (1000,)
    assert 0.7 <= weight.min() < 0.71
    assert 0.99 < weight.max() <= 0.999
    torch.manual_seed(1)
    assert torch.equal(next(TreePE(depth=2).build(ModelSizes(4003, 1, 1, 1)).parameters()), weight)


def test_single_precision_at_least() -> None:
    """In half precision only the sum is rounded, not the powers."""
    paths = padded([heap_path(node) for node in range(1, 60)])
    weights = torch.tensor([0.75, 0.875, 1.5, 3.0])  # exact in half precision
    method = TreePE(depth=5)
    built = method.build(ModelSizes(40, 1, 1, 1)).to(torch.bfloat16)
    with torch.no_grad():
        built.weight.copy_(weights)
    positions = Positions((), {"segment": torch.zeros(len(paths)), "path": paths})
    ours = built.embed(torch.zeros(1, len(paths), 40, dtype=torch.bfloat16), positions)[0]
    assert torch.equal(ours, torch.tensor(table(method, paths, weights, 40)).bfloat16())


def test_source_and_target_share_the_weights() -> None:
    model = EncoderDecoder(12, Architecture(1, 1, 8, 2, 16, position=TreePE(depth=2)))
    assert [name for name in model.state_dict() if "position" in name] == ["positioning.weight"]


@pytest.mark.parametrize("missing", ["source", "target"])
def test_a_layout_without_paths_is_refused(missing: str) -> None:
    plain = position_contract.LAYOUTS[1]
    strings = {name: getattr(plain if name == missing else SUM, name) for name in ("source", "target", "prefix")}
    model = EncoderDecoder(12, Architecture(1, 1, 8, 2, 16, position=TreePE(depth=2)))
    source, prefix = (torch.zeros(1, len(p), dtype=torch.long) for p in (plain.source, plain.target))
    assert model(source, prefix, SUM).isfinite().all()
    with pytest.raises(
        UserError, match="TreePE needs the coordinate 'path', which the layout of this task does not have"
    ) as raised:
        model(source, prefix, Layout(**strings))
    assert "\n" not in str(raised.value)


def test_too_many_branches_are_refused() -> None:
    layout = with_trees(position_contract.LAYOUTS[1], branching=3)
    TreePE(depth=1, branching=3).build(ModelSizes(8, 1, 1, 1)).prepare(layout)
    for source, target in itertools.permutations((layout, SUM)):
        with pytest.raises(UserError, match="TreePE: branch 2 is beyond branching 2: raise branching"):
            TreePE(depth=1).build(ModelSizes(8, 1, 1, 1)).prepare(Layout(source.source, target.target, SUM.prefix))


def test_wrong_settings() -> None:
    for name in ("depth", "branching"):
        with pytest.raises(UserError, match=f"--model.position.{name} 0: give at least 1"):
            TreePE(**{name: 0})
    with pytest.raises(UserError, match="branching 3: the released code has 2, set released false"):
        TreePE(branching=3, released=True)
    TreePE(depth=2, branching=4).build(ModelSizes(8, 2, 1, 1))
    with pytest.raises(
        UserError, match="TreePE needs a model_dim of depth times branching, 9, at least and has 8: raise"
    ):
        TreePE(depth=3, branching=3).build(ModelSizes(8, 2, 1, 1))
