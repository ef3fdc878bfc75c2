import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from abc_toolkit.errors import UserError
from abc_toolkit.layout import Layout, Positions, digit_layout
from abc_toolkit.models.base import Architecture
from abc_toolkit.models.transformer import EncoderDecoder
from abc_toolkit.positions import AttentionPosition, ModelPosition, ModelSizes
from abc_toolkit.positions.algebraic import AlgebraicModel, AlgebraicPE, tree_paths
from abc_toolkit.testing.position_contract import LAYOUTS, PositionCase, PositionContract, pairs

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "algebraic.npz")
Compared = list[tuple[np.ndarray, np.ndarray, float]]


def spread(positions: Positions) -> Positions:
    """Tokens with a grid's coordinates and a tree's: rows of 3, and nodes level by level."""
    raw = positions.coordinates["raw"]
    if "path" in positions.coordinates:
        return positions
    return positions.beside({"x": raw // 3, "y": raw % 3 - 1, "path": tree_paths(raw, branching=3)})


def spread_all(layout: Layout) -> Layout:
    return Layout(spread(layout.source), spread(layout.target), spread(layout.prefix))


@dataclass(frozen=True)
class Spread(AlgebraicPE):
    """The method where no layout has a grid's or a tree's coordinates. Source: `AlgebraicPE`."""

    def build(self, sizes: ModelSizes) -> ModelPosition:
        return _SpreadModel(self, sizes)


class _SpreadModel(AlgebraicModel):
    def prepare(self, layout: Layout) -> Layout:
        return super().prepare(spread_all(layout))


class TestAlgebraic(PositionContract):
    cases = {  # noqa: RUF012
        "sequence": PositionCase(AlgebraicPE(), learns=True, shifts=True),
        "sequence of indices": PositionCase(AlgebraicPE(coordinate="index"), learns=True, whole=True),
        "sequence that decays across": PositionCase(AlgebraicPE(decay=0.98, cross=True), learns=True, shifts=True),
        "grid": PositionCase(Spread("grid"), learns=True),
        "grid that decays": PositionCase(Spread("grid", decay=0.5, cross=True), learns=True),
        "tree": PositionCase(Spread("tree", branching=3), learns=True),
        "tree that decays": PositionCase(Spread("tree", branching=3, decay=0.9, cross=True), learns=True),
    }


def run_of(**coordinates: np.ndarray | Tensor) -> Positions:
    """Tokens with some coordinates."""
    tensors = {name: torch.as_tensor(value) for name, value in coordinates.items()}
    return Positions(
        ("source",), tensors | {"segment": torch.zeros(len(next(iter(tensors.values()))), dtype=torch.int)}
    )


def rotated(
    method: AlgebraicPE,
    primitives: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    q_positions: Positions,
    k_positions: Positions,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys turned with given parameters, and their scaled logits."""
    model = AlgebraicModel(method, ModelSizes(q.shape[1] * q.shape[3], q.shape[1], 1, 1))
    with torch.no_grad():
        model.primitives.copy_(torch.from_numpy(primitives))
        hook = model.at("decoder", 0)
        layout = model.prepare(Layout(k_positions, q_positions, k_positions))
        q_positions, k_positions = layout.target, layout.prefix
        turned_q, turned_k = hook.rotate(torch.from_numpy(q), torch.from_numpy(k), q_positions, k_positions)
        scores = turned_q @ turned_k.transpose(-1, -2) / math.sqrt(q.shape[3])
        return turned_q, turned_k, hook.transform(scores, turned_q, turned_k, q_positions, k_positions)


def maps(method: AlgebraicPE, primitives: np.ndarray, num_heads: int, dim: int, positions: Positions) -> Tensor:
    """The matrices of positions, `[length, head, dim, dim]`, read off unit vectors."""
    units = np.eye(dim, dtype=np.float32)[:, None, None].repeat(num_heads, 1).repeat(len(positions), 2)
    return rotated(method, primitives, units, units, positions, positions)[0].permute(2, 1, 3, 0)


def sequence(kind: str) -> Compared:
    q, k, primitives = GOLDEN["sequence_q"], GOLDEN["sequence_k"], GOLDEN[f"sequence_{kind}_primitives"]
    numbers = run_of(raw=torch.arange(24))
    ours = rotated(AlgebraicPE(), primitives, q, k, numbers[:16], numbers)
    decayed = rotated(AlgebraicPE(decay=0.98), primitives, q, k, numbers[:16], numbers)[2]
    names = ("q_rot", "k_rot", "logits", "logits_mediator098")
    arrays = zip((*ours, decayed), names, strict=True)
    compared = [(x.numpy(), GOLDEN[f"sequence_{kind}_{name}"], 2.5e-4) for x, name in arrays]
    if kind == "trained":
        powers = maps(AlgebraicPE(), primitives, 4, 16, run_of(raw=torch.tensor([1, 2, 24])))
        compared.append((powers.numpy(), GOLDEN["sequence_trained_maps_1_2_24"], 2.5e-4))
    return compared


def grid() -> Compared:
    positions = run_of(x=GOLDEN["grid_x_pos"], y=GOLDEN["grid_y_pos"])
    q, k, primitives = GOLDEN["grid_q"], GOLDEN["grid_k"], GOLDEN["grid_primitives"].reshape(2, 4, 8, 8)
    logits = [
        rotated(AlgebraicPE("grid", decay=decay), primitives, q, k, *[positions] * 2)[2] for decay in (None, 0.98)
    ]
    arrays = zip(logits, ("trained_logits", "trained_logits_mediator098"), strict=True)
    return [(x.numpy(), GOLDEN[f"grid_{name}"], 1.5e-5) for x, name in arrays]


def tree(kind: str) -> Compared:
    paths = tree_paths(torch.from_numpy(GOLDEN["tree_positions"]), released=kind == "released")
    primitives = GOLDEN["tree_primitives"][:, None]  # its heads share them
    q, k = GOLDEN["tree_q"], GOLDEN["tree_k"]
    positions = run_of(path=paths)
    logits = rotated(AlgebraicPE("tree"), primitives, q, k, positions, positions)[2]
    matrices = maps(AlgebraicPE("tree"), primitives, 1, 16, positions)[:, 0]
    stored = GOLDEN["tree_released_paths" if kind == "released" else "tree_intended_paths"]
    return [
        (paths.numpy(), stored, 0.0),
        (matrices.numpy(), GOLDEN[f"tree_{kind}_maps"], 3e-5),
        (logits.numpy(), GOLDEN[f"tree_{kind}_logits"], 3e-5),
    ]


def start() -> Compared:
    compared = []
    for dim in (8, 16):
        model = AlgebraicModel(AlgebraicPE(), ModelSizes(2 * dim, 2, 1, 1))
        skew = model.primitives - model.primitives.mT
        # What gradient descent leaves of its target is 1.3e-5 and 9.5e-5.
        for ours, name in ((skew, "hermitian"), (model.steps(), "primitive")):
            stored = np.broadcast_to(GOLDEN[f"init_ropelike_{name}_dim{dim}"], ours.shape)
            compared.append((ours.detach().numpy(), stored, 2e-5 if dim == 8 else 1.2e-4))
    return compared


GOLDEN_CASES: dict[str, tuple[str, Callable[[], Compared]]] = {
    "ape_sequence init": ("AlgebraicPE", lambda: sequence("init")),
    "ape_sequence trained": ("AlgebraicPE", lambda: sequence("trained")),
    "ape_grid": ("AlgebraicPE", grid),
    "ape_tree corrected": ("AlgebraicPE", lambda: tree("corrected")),
    "ape_tree released": ("AlgebraicPE", lambda: tree("released")),
    "ape_init": ("AlgebraicPE", start),
}


@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_golden(name: str) -> None:
    compared = GOLDEN_CASES[name][1]()
    assert compared
    for ours, theirs, atol in compared:
        np.testing.assert_allclose(ours, theirs, atol=atol, rtol=0)


def step(primitive: Tensor) -> np.ndarray:
    """The orthogonal matrix of a parameter, by the eigenvalues of its skew part."""
    primitive = primitive.detach().double()
    skew = (primitive - primitive.T).numpy()
    values, vectors = np.linalg.eigh(1j * skew)
    return (vectors * np.exp(-1j * values) @ vectors.conj().T).real


def formula(model: AlgebraicModel, positions: Positions, token: int, head: int) -> np.ndarray:
    """The matrix of one token and head by the formula."""
    steps = [step(primitive[head]) for primitive in model.primitives]
    at = {name: positions.coordinates[name][token].tolist() for name in model.method.coordinates}
    if model.method.structure == "tree":
        product = np.eye(len(steps[0]))
        for branch in at["path"]:
            product = product @ steps[branch].T if branch >= 0 else product
        return product
    powers = [np.linalg.matrix_power(w, p) for w, p in zip(steps, at.values(), strict=True)]
    blocks = np.zeros((sum(map(len, powers)),) * 2)
    for number, power in enumerate(powers):
        place = slice(number * len(power), (number + 1) * len(power))
        blocks[place, place] = power
    return blocks


def distance(structure: str, q: dict, k: dict) -> int:
    """Steps from one token to another."""
    if structure == "sequence":
        return abs(q["raw"] - k["raw"])
    if structure == "grid":
        return math.isqrt((q["x"] - k["x"]) ** 2 + (q["y"] - k["y"]) ** 2)
    a, b = ([branch for branch in path if branch >= 0] for path in (q["path"], k["path"]))
    common = 0
    while common < min(len(a), len(b)) and a[common] == b[common]:
        common += 1
    return len(a) + len(b) - 2 * common


def at(positions: Positions, token: int) -> dict:
    return {name: coordinate[token].tolist() for name, coordinate in positions.coordinates.items()}


@pytest.mark.parametrize("site", ["encoder", "decoder", "cross"])
@pytest.mark.parametrize("structure", ["sequence", "grid", "tree"])
def test_turns_and_decay_are_the_formula(structure: str, site: str) -> None:
    method = Spread(structure, branching=3, decay=0.7, cross=True)  # type: ignore[arg-type]
    torch.manual_seed(0)
    model = AlgebraicModel(method, ModelSizes(16, 2, 1, 1))
    with torch.no_grad():
        model.primitives.normal_(std=0.4)
    layout = spread_all(digit_layout((("a", 9), ("b", 20)), 9))
    hook = model.at(site, 0)  # type: ignore[arg-type]
    for dtype, atol in ((torch.float64, 1e-11), (torch.float32, 1e-5)):
        q_positions, k_positions = pairs(model.to(dtype).prepare(layout))[site]  # type: ignore[index]
        assert structure != "tree" or site != "cross" or q_positions.coordinates["path"].shape[1] == 2
        q, k = (torch.randn(2, 2, len(p), 8, dtype=dtype) for p in (q_positions, k_positions))
        with torch.no_grad():
            both = hook.rotate(q, k, q_positions, k_positions)
        for x, positions, turned in zip((q, k), (q_positions, k_positions), both, strict=True):
            assert turned.dtype == dtype
            for token in range(len(positions)):
                for head in range(2):
                    expected = x[:, head, token].numpy() @ formula(model, positions, token, head).T
                    np.testing.assert_allclose(turned[:, head, token], expected, atol=atol)
    ones = torch.ones(1, 2, len(q_positions), len(k_positions))
    decayed = hook.transform(2 * ones, q, k, q_positions, k_positions)
    for i in range(len(q_positions)):
        for j in range(len(k_positions)):
            steps = distance(structure, at(q_positions, i), at(k_positions, j))
            np.testing.assert_allclose(decayed[:, :, i, j], 2 * 0.7**steps, rtol=1e-6)


@pytest.mark.parametrize("length", [1, 2, 63, 64, 10_000])
def test_far_powers_are_orthogonal_and_exact(length: int) -> None:
    torch.manual_seed(0)
    model = AlgebraicModel(AlgebraicPE(coordinate="index"), ModelSizes(8, 1, 1, 1))
    with torch.no_grad():
        model.primitives.normal_()
        positions = run_of(index=torch.tensor([length, -length, length - 1, -1, 0]))
        units = torch.eye(8)[:, None, None].expand(-1, 1, 5, -1)
        far, back, before, inverse, still = (
            model.at("encoder", 0).rotate(units, units, positions, positions)[0][:, 0].unbind(1)
        )
    for matrix in (far, back, before, inverse):
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(8), atol=5e-6, rtol=0)
    torch.testing.assert_close(still, torch.eye(8))
    torch.testing.assert_close(far @ back, torch.eye(8), atol=5e-6, rtol=0)
    torch.testing.assert_close(far @ inverse, before, atol=5e-6, rtol=0)
    primitive = model.primitives[0, 0].detach().double()
    values, vectors = np.linalg.eigh(1j * (primitive - primitive.T).numpy())
    expected = (vectors * np.exp(-1j * values * length) @ vectors.conj().T).real
    np.testing.assert_allclose(far.T, expected, atol=5e-6)  # a row of `far` is what became of a unit vector


def test_half_precision_is_rounded_once() -> None:
    hook = AlgebraicPE().build(ModelSizes(16, 1, 1, 1)).at("encoder", 0)
    positions = run_of(raw=torch.arange(1000, 1024))
    q = torch.randn(1, 1, 24, 16).bfloat16()
    with torch.no_grad():
        half, single = (hook.rotate(x, x, positions, positions)[0] for x in (q, q.float()))
    assert torch.equal(half, single.bfloat16())


@pytest.mark.parametrize(
    ("structure", "shape"), [("sequence", (1, 2, 8, 8)), ("grid", (2, 2, 4, 4)), ("tree", (3, 2, 8, 8))]
)
def test_all_layers_and_sites_share_the_parameters(structure: str, shape: tuple[int, ...]) -> None:
    method = AlgebraicPE(structure, branching=3)  # type: ignore[arg-type]
    model = EncoderDecoder(12, Architecture(1, 3, 16, 2, 16, position=method))
    named = {name: p for name, p in model.state_dict().items() if "primitives" in name}
    assert [tuple(p.shape) for p in named.values()] == [shape]


def test_the_start_turns_planes_and_an_odd_last_channel_stays() -> None:
    matrix = AlgebraicModel(AlgebraicPE(), ModelSizes(10, 2, 1, 1)).steps()[0, 1].detach()
    expected = torch.eye(5, dtype=torch.float64)
    cos, sin = math.cos(1), math.sin(1)
    for j in (0, 2):
        expected[j : j + 2, j : j + 2] = torch.tensor([[cos, sin], [-sin, cos]])
    torch.testing.assert_close(matrix, expected, atol=1e-7, rtol=0)


def test_trees_know_the_way_between_nodes() -> None:
    """Two nodes below one branch are to each other as they are where that branch is the root."""
    torch.manual_seed(0)
    model = AlgebraicModel(AlgebraicPE("tree"), ModelSizes(8, 1, 1, 1))
    with torch.no_grad():
        model.primitives.normal_()
    q, k = torch.randn(2, 1, 1, 1, 8)
    logits: list[float] = []
    for beginning in ([], [1], [0, 1, 1]):
        paths = (torch.tensor([[*beginning, 0, 1, 0]]), torch.tensor([[*beginning, 1, -1]]))
        with torch.no_grad():
            layout = model.prepare(Layout(*(run_of(path=path) for path in (paths[0], *paths))))
            both = model.at("encoder", 0).rotate(q, k, layout.target, layout.prefix)
        logits.append(float((both[0] * both[1]).sum()))
    assert logits == pytest.approx([logits[0]] * 3, abs=1e-5)


@pytest.mark.parametrize("branching", [1, 2, 3])
def test_tree_paths_are_those_of_the_levels(branching: int) -> None:
    paths: list[list[int]] = [[], *([branch] for branch in range(branching))]
    while len(paths) < 30:  # the children of the first node whose children are not there yet
        parent = paths[(len(paths) - 1) // branching]
        paths += [[*parent, branch] for branch in range(branching)]
    for released in (False, True):
        found = tree_paths(torch.tensor([0, -1, *range(1, 30)]), branching, released)
        trimmed = [[branch for branch in path if branch >= 0] for path in found.tolist()]
        assert trimmed == [[], [], *(paths[1:30] if released else paths[:29])]
        assert all(-1 not in path[: len(kept)] for path, kept in zip(found.tolist(), trimmed, strict=True))
    assert tree_paths(torch.tensor([1, 0])).shape == (2, 0)


def test_cross_attention_is_left_alone_unless_asked() -> None:
    sizes = ModelSizes(8, 2, 1, 1)
    assert type(AlgebraicPE(decay=0.5).build(sizes).at("cross", 0)) is AttentionPosition
    assert AlgebraicPE(decay=0.5, cross=True).build(sizes).at("cross", 0).transforms
    assert not AlgebraicPE().build(sizes).at("encoder", 0).transforms


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (lambda: AlgebraicPE("ring"), "structure cannot be 'ring': give one of sequence, grid, tree"),  # type: ignore[arg-type]
        (lambda: AlgebraicPE(branching=0), "branching 0: give at least 1"),
        (lambda: AlgebraicPE(decay=1.5), "decay 1.5: give at least 0 and at most 1"),
        (lambda: AlgebraicPE(decay=-0.5), "decay -0.5"),
        (lambda: AlgebraicPE().build(ModelSizes(2, 2, 1, 1)), "sequence needs a head width of at least 2 and has 1"),
        (lambda: AlgebraicPE("grid").build(ModelSizes(10, 2, 1, 1)), "grid needs an even head width of .* 4 and has 5"),
        (lambda: AlgebraicPE("grid").build(ModelSizes(4, 2, 1, 1)), "and has 2: change model_dim or num_heads"),
    ],
)
def test_wrong_settings_are_refused(settings: Callable[[], object], words: str) -> None:
    with pytest.raises(UserError, match=words) as raised:
        settings()
    assert "\n" not in str(raised.value)


def test_the_smallest_sizes_are_taken() -> None:
    AlgebraicPE().build(ModelSizes(2, 1, 1, 1))
    AlgebraicPE("grid").build(ModelSizes(4, 1, 1, 1))


@pytest.mark.parametrize(("structure", "name"), [("grid", "x"), ("tree", "path")])
def test_layouts_without_the_coordinates_are_refused(structure: str, name: str) -> None:
    model = EncoderDecoder(12, Architecture(1, 1, 8, 2, 16, position=AlgebraicPE(structure)))  # type: ignore[arg-type]
    source, prefix = PositionContract.strings(LAYOUTS[0])
    with pytest.raises(
        UserError, match=f"of a {structure} needs the coordinate {name}, which the layout of this task does not have: "
    ):
        model(source, prefix, LAYOUTS[0])


@pytest.mark.parametrize("part", ["source", "target", "prefix"])
def test_branches_beyond_the_tree_are_refused(part: str) -> None:
    built = AlgebraicPE("tree", branching=3).build(ModelSizes(8, 1, 1, 1))
    inside, beyond = (run_of(path=torch.tensor([[0, 1], [branch, -1]])) for branch in (2, 3))
    layout = Layout(inside, inside, inside)
    prepared = built.prepare(layout)
    assert all(
        torch.equal(p.coordinates["path"], inside.coordinates["path"]) for p in (prepared.source, prepared.target)
    )
    words = "branch 3, counted from 0, and has a branching of 3: raise branching"
    with pytest.raises(UserError, match=words):
        built.prepare(replace(layout, **{part: beyond}))
