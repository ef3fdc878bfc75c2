import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from abc_toolkit.cli.main import main
from abc_toolkit.errors import UserError
from abc_toolkit.layout import Layout, Positions
from abc_toolkit.models.base import Architecture
from abc_toolkit.models.transformer import EncoderDecoder
from abc_toolkit.positions import (
    SITES,
    AttentionPosition,
    Cyclic,
    ModelPosition,
    ModelSizes,
    NoPE,
    PositionMethod,
    Sinusoidal,
    Site,
)
from abc_toolkit.positions.biases import FIRE, ALiBi, KerpleLog, T5RelativeBias
from abc_toolkit.positions.compose import Compose
from abc_toolkit.positions.windowed import WindowedBias
from abc_toolkit.testing.position_contract import LAYOUTS, SIZES, PositionCase, PositionContract, pairs
from abc_toolkit.windows.attention import Windowed
from abc_toolkit.windows.rules import Condition, Rule, Window


class TestCompose(PositionContract):
    cases = {  # noqa: RUF012
        "one": PositionCase(Compose((T5RelativeBias(),)), learns=True, shifts=True),
        "sinusoidal and ALiBi": PositionCase(Compose((Sinusoidal(), ALiBi())), shifts=True),
        "T5 and KerpleLog": PositionCase(
            Compose((T5RelativeBias(cross=True), KerpleLog(cross=True))), learns=True, shifts=True
        ),
        "within": PositionCase(Compose((ALiBi(), Compose((NoPE(), FIRE(), KerpleLog())))), learns=True),
        "cyclic and window": PositionCase(Compose((Cyclic(), WindowedBias())), shifts=True),
        "window between": PositionCase(
            Compose((KerpleLog(), WindowedBias(), T5RelativeBias())), learns=True, shifts=True
        ),
        "two windows": PositionCase(Compose((WindowedBias(2), WindowedBias(released=True)))),
    }

    def test_open_keys_and_what_is_among_them_are_the_whole(self, case: PositionCase) -> None:
        with torch.no_grad():  # the contract reads learned biases a number at a time
            super().test_open_keys_and_what_is_among_them_are_the_whole(case)


@dataclass(frozen=True)
class Affine(PositionMethod):
    """Every hook multiplies what it is given and adds to it, so that an order shows."""

    factor: float
    rotates: bool = False
    pointwise: bool = True

    def build(self, sizes: ModelSizes) -> ModelPosition:
        return _AffineModel(self, sizes)

    def embed(self, x: Tensor, positions: Positions) -> Tensor:
        return self.factor * x + 1

    def at(self, site: Site, layer: int, num_heads: int, head_dim: int) -> AttentionPosition:
        return (_Rotating if self.rotates else _Affine)(self.factor, self.pointwise)


class _AffineModel(ModelPosition):
    def prepare(self, layout: Layout) -> Layout:
        source = layout.source
        raw = source.coordinates["raw"] * 2 + int(self.method.factor)  # type: ignore[attr-defined]
        return replace(layout, source=Positions(source.names, dict(source.coordinates) | {"raw": raw}))


class _Affine(AttentionPosition):
    transforms = True

    def __init__(self, factor: float, pointwise: bool) -> None:
        self.factor = factor
        self.pointwise = pointwise

    def bias(self, q_positions: Positions, k_positions: Positions) -> Tensor | None:
        return torch.full((1, len(q_positions), len(k_positions)), self.factor)

    def transform(self, scores: Any, q: Any, k: Any, q_positions: Any, k_positions: Any, mask: Any = None) -> Tensor:
        return self.factor * scores + mask + q.sum() + k.sum()


class _Rotating(_Affine):
    def rotate(self, q: Tensor, k: Tensor, q_positions: Positions, k_positions: Positions) -> tuple[Tensor, Tensor]:
        return self.factor * q + len(q_positions), k - self.factor * len(k_positions)


@dataclass(frozen=True)
class Around(PositionMethod):
    """A method whose hook hands rotating over to another."""

    around: PositionMethod
    name: str = "inner"

    def at(self, site: Site, layer: int, num_heads: int, head_dim: int) -> AttentionPosition:
        return _Around(self.around.at(site, layer, num_heads, head_dim), self.name)


class _Around(nn.Module, AttentionPosition):
    def __init__(self, around: AttentionPosition, name: str) -> None:
        super().__init__()
        setattr(self, name, around)
        self.name = name

    @property
    def rotates(self) -> bool:
        return getattr(self, self.name).rotates

    def rotate(self, q: Tensor, k: Tensor, q_positions: Positions, k_positions: Positions) -> tuple[Tensor, Tensor]:
        return getattr(self, self.name).rotate(q, k, q_positions, k_positions)


def test_each_does_its_part_in_order() -> None:
    built = Compose((Affine(2.0), Affine(3.0, rotates=True), NoPE())).build(SIZES)
    layout = LAYOUTS[0]
    raw = layout.source.coordinates["raw"]
    assert torch.equal(built.prepare(layout).source.coordinates["raw"], (raw * 2 + 2) * 2 + 3)
    q_positions, k_positions = pairs(layout)["cross"]
    x = torch.randn(2, len(q_positions), 8)
    torch.testing.assert_close(built.embed(x, q_positions), 3 * (2 * x + 1) + 1)
    hook = built.at("cross", 1)
    q, k, scores = PositionContract.tensors(q_positions, k_positions)
    turned_q, turned_k = hook.rotate(q, k, q_positions, k_positions)
    assert torch.equal(turned_q, 3 * q + len(q_positions))
    assert torch.equal(turned_k, k - 3 * len(k_positions))
    bias = hook.bias(q_positions, k_positions)
    assert bias is not None
    assert (bias == 5).all()
    mask = torch.rand_like(scores)
    more = mask + q.sum() + k.sum()
    transformed = hook.transform(scores, q, k, q_positions, k_positions, mask)
    torch.testing.assert_close(transformed, 3 * (2 * scores + more) + more)


def test_pointwise_if_all_are_and_transforms_if_any_does() -> None:
    def flags(*methods: PositionMethod) -> tuple[bool, bool]:
        hook = Compose(methods).build(SIZES).at("decoder", 0)
        return hook.pointwise, hook.transforms

    assert flags(ALiBi(), KerpleLog()) == (True, False)
    assert flags(ALiBi(), Affine(2.0)) == flags(Affine(2.0), ALiBi()) == (True, True)
    assert flags(ALiBi(), Affine(2.0, pointwise=False)) == (False, True)
    assert flags(Affine(2.0, pointwise=False), ALiBi(), FIRE()) == (False, True)


def test_what_does_nothing_costs_nothing() -> None:
    built = Compose((Sinusoidal(), NoPE())).build(SIZES)
    assert all(type(built.at(site, 0)) is AttentionPosition for site in SITES)
    alone = Compose((Sinusoidal(), ALiBi())).build(SIZES).at("decoder", 0)
    assert type(alone) is type(ALiBi().at("decoder", 0, 2, 4))


def test_parameters_are_those_of_the_methods() -> None:
    def shapes(method: PositionMethod) -> list[tuple[int, ...]]:
        model = EncoderDecoder(12, Architecture(1, 2, 8, 2, 16, position=method))
        plain = EncoderDecoder(12, Architecture(1, 2, 8, 2, 16, position=NoPE()))
        names = set(dict(plain.named_parameters()))
        return sorted(tuple(p.shape) for name, p in model.named_parameters() if name not in names)

    both = Compose((T5RelativeBias(8, 12), Sinusoidal(), KerpleLog(), FIRE(width=3)))
    # Tables for encoder and decoder, and of each of three self-attentions p, a, c, u and an MLP.
    layers = [(2,), (2,), (), (), (3, 1), (3,), (2, 3), (2,)] * 3
    assert shapes(both) == sorted([(8, 2), (8, 2), *layers])
    assert shapes(Compose((both,))) == shapes(both)


def test_a_window_leaves_the_others_among_its_keys() -> None:
    hook = Compose((KerpleLog(), WindowedBias(), NoPE())).build(SIZES).at("decoder", 0)
    among = hook.among_open_keys()
    assert type(among) is type(KerpleLog().at("decoder", 0, 2, 4))
    cross = Compose((KerpleLog(), WindowedBias(), NoPE())).build(SIZES).at("cross", 0)
    assert type(cross.among_open_keys()) is AttentionPosition
    three = Compose((KerpleLog(), ALiBi(), WindowedBias())).build(SIZES).at("decoder", 0).among_open_keys()
    q_positions, k_positions = pairs(LAYOUTS[1])["decoder"]
    bias = three.bias(q_positions, k_positions)
    assert bias is not None
    assert bias.isfinite().all()
    assert not isinstance(three, nn.Module)


def test_why_keys_cannot_be_gathered() -> None:
    def reason(*methods: PositionMethod) -> str:
        hook = Compose(methods).build(SIZES).at("decoder", 0)
        q_positions, k_positions = pairs(LAYOUTS[1])["decoder"]
        assert not hook.pointwise or hook.open_keys(q_positions, k_positions, math.inf) is None
        return hook.why_not_gathered() or ""

    assert "no window" in reason(ALiBi(), KerpleLog())
    assert "2 of its methods have a window" in reason(WindowedBias(), ALiBi(), WindowedBias(2))
    assert reason(WindowedBias(), Affine(2.0, pointwise=False)).startswith("_Affine is not pointwise")


def test_two_windows_open_what_both_do() -> None:
    q_positions, k_positions = pairs(LAYOUTS[1])["decoder"]
    both = Compose((WindowedBias(1), WindowedBias(2))).build(SIZES).at("decoder", 0)
    one = WindowedBias(1).at("decoder", 0, 2, 4)
    assert torch.equal(both.bias(q_positions, k_positions), one.bias(q_positions, k_positions))  # type: ignore[arg-type]


@pytest.mark.parametrize("inner", [(KerpleLog(), Sinusoidal()), (KerpleLog(), T5RelativeBias(cross=True))])
def test_inside_a_calibrated_window(inner: tuple[PositionMethod, ...]) -> None:
    """Dense and gathered attention agree."""
    sites: tuple[Site, ...] = ("decoder", "cross")
    rules = [
        Rule(site, layer, head, conditions=(Condition("raw", offset, "raw"),), bias=0.5 * offset)
        for site, layer, head, offset in itertools.product(sites, (0, 1), (0, 1), (0, 1))
    ]
    window = Window("Addition", 0, 2, 2, tuple(rules), {})
    torch.manual_seed(0)
    model = EncoderDecoder(12, Architecture(0, 2, 8, 2, 16), Windowed(window, Compose(inner))).eval()
    layout = LAYOUTS[1]
    source, prefix = PositionContract.strings(layout)
    outputs = []
    with torch.no_grad():
        for path in ("dense", "gathered"):
            model.attend(path)  # type: ignore[arg-type]
            outputs.append(model(source, prefix, layout))
    torch.testing.assert_close(outputs[0], outputs[1])


def test_two_that_rotate_are_refused() -> None:
    turning = Affine(2.0, rotates=True)
    for methods in (
        (turning, ALiBi(), turning),
        (turning, Compose((ALiBi(), turning))),
        (Around(turning), turning),
        (Around(turning, "base"), turning),
    ):
        with pytest.raises(UserError, match=r"^Compose: .+ and .+ both rotate queries and keys: keep one of them$"):
            Compose(methods).build(SIZES).at("decoder", 0)
    for methods in (
        (turning, Around(ALiBi())),
        (turning, Around(KerpleLog(), "base")),
        (Around(turning), Compose((ALiBi(), KerpleLog()))),
    ):
        Compose(methods).build(SIZES).at("decoder", 0)


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        ((), "at least one"),
        ([ALiBi()], "has no methods"),
        (ALiBi(), "has no methods"),
        ((ALiBi(), "ALiBi"), "'ALiBi' is not a position method"),
        ((ALiBi,), "is not a position method"),
    ],
)
def test_what_is_no_composition(methods: Any, words: str) -> None:
    with pytest.raises(UserError) as raised:
        Compose(methods)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_configuration_lists_methods(tmp_path: Any, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr("sys.argv", ["abc"])
    listed = {
        "class_path": "abc_toolkit.positions.compose.Compose",
        "init_args": {
            "methods": [
                {"class_path": "abc_toolkit.positions.Cyclic", "init_args": {"period": 4}},
                {"class_path": "abc_toolkit.positions.windowed.WindowedBias"},
            ]
        },
    }
    path = tmp_path / "composed.yaml"
    path.write_text(yaml.safe_dump({"fit": {"model": {"position": listed}}}))
    with pytest.raises(SystemExit):
        main(["run", "--config", str(path), "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)["fit"]["model"]["position"]
    methods = printed["init_args"]["methods"]
    assert [method["class_path"].rpartition(".")[2] for method in methods] == ["Cyclic", "WindowedBias"]
    assert methods[0]["init_args"]["period"] == 4
    assert methods[1]["init_args"] == {"width": 1, "step": 1, "released": False}
