"""Muon beside AdamW: which parameters it moves, that it is PyTorch's, and that a training resumes with it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from abc_toolkit.errors import UserError
from abc_toolkit.models.base import Architecture, Model
from abc_toolkit.phases.training import fit
from abc_toolkit.positions import FIRE
from abc_toolkit.runs.folder import WEIGHTS, build_model
from abc_toolkit.tasks import Addition, LinearRegression
from abc_toolkit.tasks.objective import Stopping
from abc_toolkit.training.data import Data
from abc_toolkit.training.loop import TrainerSettings
from abc_toolkit.training.module import Optimizer, TrainingModule
from abc_toolkit.training.optimizers import Together, layer_matrices

muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon")
TASK = LinearRegression(max_length=4, dim=2)
SIZES = Architecture(0, 2, 8, 2, 8, position=FIRE(), backbone="decoder-only", block="llama")


def test_matrices_are_those_of_the_layers() -> None:
    def found(model: Model) -> set[str]:
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        return {names[id(matrix)] for matrix in layer_matrices(model)}

    attention = {f"self_attention.{name}.weight" for name in ("query", "key_value", "output")}
    feedforward = {"feedforward.gate_up.weight", "feedforward.down.weight"}
    layers = {f"decoder.{layer}.{name}" for layer in range(2) for name in attention | feedforward}
    assert found(build_model(TASK, SIZES, None)) == layers  # and none of FIRE's
    mamba = build_model(TASK, replace(SIZES, backbone="mamba", block="standard", position=None), None)
    projections = {f"mixer.{name}_proj.weight" for name in ("in", "x", "dt", "out")}
    assert found(mamba) == {f"decoder.layers.{layer}.{name}" for layer in range(2) for name in projections}
    one_and_one = build_model(Addition(max_length=2), Architecture(num_encoder_layers=1), None)
    assert len(found(one_and_one)) == (3 + 2) + (3 + 3 + 2)


@muon
def test_each_part_moves_its_own_parameters_as_pytorch_does() -> None:
    torch.manual_seed(0)
    first = [torch.nn.Parameter(torch.randn(4, 3)), torch.nn.Parameter(torch.randn(5))]
    second = [torch.nn.Parameter(parameter.detach().clone()) for parameter in first]
    both = Together(torch.optim.Muon(first[:1], lr=0.1), torch.optim.AdamW(first[1:], lr=0.2))
    alone = [torch.optim.Muon(second[:1], lr=0.1), torch.optim.AdamW(second[1:], lr=0.2)]
    schedule = torch.optim.lr_scheduler.LambdaLR(both, lambda step: 1 / (1 + step))
    for step in range(5):
        gradients = [torch.randn_like(parameter) for parameter in first]
        for parameters in (first, second):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
        for optimizer, rate in zip(alone, (0.1, 0.2), strict=True):
            optimizer.param_groups[0]["lr"] = rate / (1 + step)
            optimizer.step()
        both.step()
        schedule.step()
        if step == 2:  # a state that is loaded is the state
            both.load_state_dict(both.state_dict())
        assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@muon
def test_a_training_resumes_with_muon(tmp_path: Path) -> None:
    settings = {
        "model": SIZES,
        "data": Data(batch_size=4, validation_problems=8),
        "optimizer": Optimizer(warmup_steps=2, muon_rate=0.02),
        "stopping": Stopping(decay_steps=3),
    }
    trainer = TrainerSettings(max_steps=15, validate_every=5, accelerator="cpu", progress_bar=False)
    whole, parts, other = (tmp_path / name for name in ("whole", "parts", "other"))
    fit(TASK, run=whole, trainer=trainer, **settings)  # type: ignore[arg-type]
    fit(TASK, run=parts, trainer=replace(trainer, max_steps=5), **settings)  # type: ignore[arg-type]
    fit(TASK, run=parts, trainer=trainer, resume=True, **settings)  # type: ignore[arg-type]
    assert (whole / "fit" / WEIGHTS).read_bytes() == (parts / "fit" / WEIGHTS).read_bytes()
    fit(TASK, run=other, trainer=trainer, **settings | {"optimizer": Optimizer(warmup_steps=2)})  # type: ignore[arg-type]
    assert (whole / "fit" / WEIGHTS).read_bytes() != (other / "fit" / WEIGHTS).read_bytes()


def test_a_pytorch_without_muon_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    module = TrainingModule(TASK, build_model(TASK, SIZES, None), Optimizer(muon_rate=0.02), 0, 0, 10, seed=0)
    module._trainer = type("Trainer", (), {"precision_plugin": None})()  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"--optimizer\.muon_rate needs PyTorch 2\.9 or newer"):
        module.configure_optimizers()
