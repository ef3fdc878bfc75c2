"""What several modules share is saved once and shared again; what no file can hold is refused before it is trained."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import abc_toolkit
from abc_toolkit.errors import UserError
from abc_toolkit.models.base import Architecture
from abc_toolkit.phases.solve import solve
from abc_toolkit.phases.training import TrainingResult
from abc_toolkit.positions import AttentionPosition, PositionMethod
from abc_toolkit.positions.base import ModelPosition
from abc_toolkit.runs import weights
from abc_toolkit.runs.folder import WEIGHTS, Run, build_model
from abc_toolkit.tasks import Parity
from abc_toolkit.training.data import Data
from abc_toolkit.training.loop import TrainerSettings

SIZES = {"model_dim": 16, "num_heads": 2, "feedforward_dim": 16}


class Slope(nn.Module, AttentionPosition):
    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.full((1,), 0.1))

    def bias(self, q_positions: Any, k_positions: Any) -> Tensor:
        distance = q_positions.coordinates["raw"][:, None] - k_positions.coordinates["raw"]
        return -self.slope * distance.view(-1, *distance.shape[-2:]).abs()


class Sharing(ModelPosition):
    def __init__(self, method: PositionMethod, sizes: Any) -> None:
        super().__init__(method, sizes)
        self.shared = Slope()

    def at(self, site: Any, layer: int) -> AttentionPosition:
        return self.shared


@dataclass(frozen=True)
class SharedSlope(PositionMethod):
    """One module in all layers."""

    def build(self, sizes: Any) -> ModelPosition:
        return Sharing(self, sizes)


class Noted(AttentionPosition, nn.Module):
    def get_extra_state(self) -> Any:
        return {"not": "a tensor"}


@dataclass(frozen=True)
class Unsavable(PositionMethod):
    def at(self, site: Any, layer: int, num_heads: int, head_dim: int) -> AttentionPosition:
        return Noted()


def _fit(run: Path, position: PositionMethod) -> TrainingResult:
    return abc_toolkit.fit(
        Parity(max_length=3),
        run=run,
        model=Architecture(position=position, **SIZES),
        data=Data(validation_problems=8),
        trainer=TrainerSettings(max_steps=6, validate_every=3, accelerator="cpu"),
    )


def test_a_module_that_layers_share_is_saved_once(tmp_path: Path) -> None:
    trained = _fit(tmp_path / "run", SharedSlope()).model
    names = [name for name in trained.state_dict() if name.endswith("slope")]
    assert len(names) > 2
    saved = load_file(tmp_path / "run" / "fit" / WEIGHTS)
    assert [name for name in saved if name.endswith("slope")] == names[:1]
    assert saved[names[0]] != 0.1
    loaded = Run(tmp_path / "run").load_model("fit")
    state = loaded.state_dict(keep_vars=True)
    assert all(torch.equal(tensor, state[name]) for name, tensor in trained.state_dict().items())
    assert len({id(state[name]) for name in names}) == 1
    assert solve(["101"], run=tmp_path / "run", weights="fit")


def test_what_cannot_be_saved_is_refused_before_it_is_trained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="extra_state of the model is no dense tensor"):
        _fit(tmp_path / "run", Unsavable())
    assert list(tmp_path.iterdir()) == []


def _drop(tensors: dict[str, Tensor]) -> None:
    for name in list(tensors)[:5]:
        del tensors[name]


def _rename(tensors: dict[str, Tensor]) -> None:
    tensors["other"] = tensors.pop("output.weight")


def _alias(tensors: dict[str, Tensor]) -> None:
    shared = next(name for name in tensors if name.endswith("slope"))
    aliases = [name for name in build().state_dict() if name.endswith("slope") and name != shared]
    tensors[aliases[0]] = tensors[shared] + 1


def _reshape(tensors: dict[str, Tensor]) -> None:
    tensors["output.weight"] = tensors["output.weight"].T.contiguous()


def _cast(tensors: dict[str, Tensor]) -> None:
    tensors["output.weight"] = tensors["output.weight"].double()


def build() -> Any:
    return build_model(Parity(max_length=3), Architecture(position=SharedSlope(), **SIZES), None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_drop, r"it lacks '[\w.]+', '[\w.]+', '[\w.]+' and 2 more"),
        (_rename, "it lacks 'output.weight'; it has 'other', which the model has not"),
        (_alias, "slope', which the model has not"),
        (_reshape, r"output.weight is float32 \[16, \d\] and must be float32 \[\d, 16\]"),
        (_cast, r"output.weight is float64 .* must be float32"),
    ],
)
def test_other_weights_are_named_whole(change: Callable[[dict[str, Tensor]], None], words: str) -> None:
    model = build()
    tensors = weights.tensors_of(model)
    weights.fill(model, tensors)
    change(tensors)
    with pytest.raises(ValueError, match=words) as caught:
        weights.fill(model, tensors)
    assert "\n" not in str(caught.value)
