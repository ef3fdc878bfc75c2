import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from abc_toolkit.errors import UserError
from abc_toolkit.models.base import Architecture, predict
from abc_toolkit.models.transformer import EncoderDecoder
from abc_toolkit.positions import NoPE
from abc_toolkit.tasks import Problems, Successor
from abc_toolkit.training.module import Optimizer, TrainingModule

TASK = Successor(max_length=3)


def make(decay_steps: int = 10, decay_to: float = 0.0, max_steps: int = 100, **settings: Any) -> TrainingModule:
    model = EncoderDecoder(len(TASK.vocabulary), Architecture(0, 1, 8, 2, 16, position=NoPE()))
    module = TrainingModule(TASK, model, Optimizer(**settings), decay_steps, decay_to, max_steps, seed=42)
    module._trainer = SimpleNamespace(global_step=7, precision_plugin=None)  # type: ignore[assignment]
    return module


def problems(step: int = 0, batch: int = 6) -> Problems:
    return TASK.sample(torch.Generator().manual_seed(step), batch, (1 + step % 3,))


def cross_entropy(logits: Tensor, target: Tensor) -> float:
    """Mean over all tokens of minus the logarithm of the right one's share, written out."""
    losses = []
    for row, right in zip(logits.flatten(0, 1).tolist(), target.flatten().tolist(), strict=True):
        losses.append(math.log(sum(math.exp(x) for x in row)) - row[right])
    return sum(losses) / len(losses)


def steps(module: TrainingModule, count: int) -> list[dict[str, Tensor]]:
    """Trains as Lightning does; the weights after every step."""
    configured: Any = module.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    history = []
    for step in range(count):
        batch = problems(step)
        optimizer.zero_grad()
        module.training_step(batch, step).backward()
        optimizer.step()
        scheduler.step()
        module.on_train_batch_end(None, batch, step)
        history.append({name: w.detach().clone() for name, w in module.model.named_parameters()})
    return history


def test_loss_is_the_cross_entropy_of_every_token() -> None:
    module = make()
    for step in range(3):
        batch = problems(step)
        loss = module.training_step(batch, 0)
        assert loss.requires_grad
        expected = cross_entropy(predict(module.model, batch, TASK.layout(batch.shape)), batch.target)
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        assert module.last_loss.item() == loss.item()
        assert not module.last_loss.requires_grad


@pytest.mark.parametrize("averaging", [0.9, 0.5, 0.0])
def test_weights_are_averaged(averaging: float) -> None:
    module = make(averaging=averaging, learning_rate=0.01, warmup_steps=0)
    fresh = copy.deepcopy(module.model)
    history = steps(module, 6)
    expected = {name: w.double() for name, w in history[0].items()}
    for weights in history[1:]:
        expected = {name: averaging * w + (1 - averaging) * weights[name] for name, w in expected.items()}
    for name, w in module.averaged.named_parameters():
        torch.testing.assert_close(w.double(), expected[name], atol=1e-6, rtol=1e-5)
        assert averaging == 0 or not torch.allclose(w, history[-1][name])
    assert not torch.allclose(fresh.output.weight, history[0]["output.weight"])


@pytest.mark.parametrize("processes", [2, 3, 5])
@pytest.mark.parametrize("size", [5, 6, 7, 31])
def test_processes_together_do_what_one_does(size: int, processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[float] = []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda loss: told.append(loss.item()))
    torch.manual_seed(0)
    alone = make()
    batch, held_out = problems(2, size), [problems(step, few) for step, few in enumerate((1, 2, size))]
    alone.training_step(batch, 0).backward()
    expected = {name: w.grad for name, w in alone.model.named_parameters()}
    found = {name: torch.zeros_like(w) for name, w in alone.model.named_parameters()}
    loss = alone.last_loss.item()
    whole, parts = alone.eval(), []
    for rank in range(processes):
        own = make()
        own.load_state_dict(alone.state_dict())
        own.rank, own.processes = rank, processes
        own.training_step(batch, 0).backward()
        for name, w in own.model.named_parameters():
            assert w.grad is not None
            found[name] += w.grad / processes  # as DistributedDataParallel averages them
        parts.append(own.eval())
    assert sum(told) == pytest.approx(loss, rel=1e-5)
    for name, gradient in expected.items():
        assert gradient is not None
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4)
    for module in (whole, *parts):
        for own in held_out:
            with torch.no_grad():
                module.validation_step(own, 0)
    assert sum(int(part.mean("exact_match").count) for part in parts) == sum(map(len, held_out))
    assert sum(int(part.mean("exact_match").total) for part in parts) == int(whole.mean("exact_match").total)
    for state in ("mean_value", "weight"):
        together = sum(float(getattr(part.validation_loss, state)) for part in parts)
        assert together == pytest.approx(float(getattr(whole.validation_loss, state)), rel=1e-5)


def test_only_the_models_own_weights_are_trained() -> None:
    # Several processes wait for the gradient of every parameter that asks for one: the average's must not.
    module = make()
    trained = {id(p) for p in module.model.parameters()}
    assert {id(p) for p in module.parameters() if p.requires_grad} == trained
    optimizer = module.configure_optimizers()["optimizer"]  # type: ignore[index]
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == trained


def test_optimizer_settings_arrive() -> None:
    module = make(learning_rate=0.01, beta1=0.8, beta2=0.9, epsilon=1e-5, weight_decay=0.3, warmup_steps=0)
    group = module.configure_optimizers()["optimizer"].param_groups[0]  # type: ignore[index]
    found = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}
    assert found == {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-5, "weight_decay": 0.3}


@pytest.mark.parametrize(
    ("warmup", "decay_from", "decay_steps", "decay_to", "expected"),
    [
        (4, None, 10, 0.0, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        (0, None, 10, 0.5, [1, 1, 1]),
        (2, 3, 4, 0.0, [0.5, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0, 0]),
        (1, 2, 0, 0.0, [1, 1, 1, 0, 0]),  # training has ended by then
        (2, 3, 4, 0.4, [0.5, 1, 1, 1, 0.75, 0.5, 0.4, 0.4, 0.4]),
        (1, 2, 0, 0.05, [1, 1, 1, 0.05, 0.05]),
        (10, 2, 2, 0.5, [0.1, 0.2, 0.3, 0.4 * 0.5, 0.5 * 0.5, 0.6 * 0.5]),  # it falls while it still rises
    ],
)
def test_learning_rate(
    warmup: int, decay_from: int | None, decay_steps: int, decay_to: float, expected: list[float]
) -> None:
    module = make(decay_steps, decay_to, warmup_steps=warmup, learning_rate=0.1)
    configured: Any = module.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    assert configured["lr_scheduler"]["interval"] == "step"
    rates = []
    for step in range(len(expected)):
        if step == decay_from:
            module.decay_from = step  # as validation does, after the scheduler set this step's rate
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.1 * factor for factor in expected])


def test_decay_survives_a_checkpoint() -> None:
    for decay_from in (None, 0, 700):
        module, other = make(), make()
        module.decay_from, checkpoint = decay_from, {}
        other.decay_from = 5
        module.on_save_checkpoint(checkpoint)
        other.on_load_checkpoint(checkpoint)
        assert other.decay_from == decay_from


def test_averages_survive_a_checkpoint() -> None:
    module, other = make(averaging=0.9), make(averaging=0.9)
    steps(module, 4)
    other.load_state_dict(module.state_dict())
    for own in (module, other):  # the next step is averaged in, not copied
        own.average.update_parameters(own.model)
    for name, w in module.averaged.state_dict().items():
        assert torch.equal(w, other.averaged.state_dict()[name])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_training(value: float) -> None:
    module = make()
    with torch.no_grad():
        module.model.output.bias[3] = value
    with pytest.raises(UserError, match=r"nan at step 7 \(seed 42\).*learning_rate") as error:
        module.training_step(problems(), 0)
    assert len(str(error.value).splitlines()) == 1


def test_validation_judges_the_averaged_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    module = make(averaging=0.9, learning_rate=0.05, warmup_steps=0)
    steps(module, 8)
    batches = [problems(step, 40) for step in range(3)]
    module.eval()
    right, losses = 0, []
    for batch in batches:
        with torch.no_grad():
            logits = predict(module.averaged, batch, TASK.layout(batch.shape))
            own = predict(module.model, batch, TASK.layout(batch.shape))
        assert not torch.allclose(logits, own)
        right += sum(p == t for p, t in zip(logits.argmax(-1).tolist(), batch.target.tolist(), strict=True))
        losses.append(cross_entropy(logits, batch.target))
        with torch.no_grad():
            module.validation_step(batch, 0)
    logged: dict[str, Any] = {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: value.compute().item()}))
    module.on_validation_epoch_end()
    assert logged == {
        "exact_match": pytest.approx(right / 120),
        "validation_loss": pytest.approx(sum(losses) / 3, rel=1e-5),
    }


def test_training_learns() -> None:
    module = make(learning_rate=0.02, warmup_steps=5)
    before = module.training_step(problems(1, 200), 0).item()
    steps(module, 60)
    assert module.training_step(problems(1, 200), 0).item() < 0.7 * before


@pytest.mark.parametrize("last", [0.0, 0.01, 0.5])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_rate_follows_its_schedule(schedule: str, last: float) -> None:
    module = make(max_steps=110, warmup_steps=10, schedule=schedule, last_rate=last)
    for step in range(140):
        done = min(1.0, max(0.0, (step - 10) / 100))
        left = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 + 0.5 * math.cos(math.pi * done)}[schedule]
        share = 1.0 if schedule == "constant" else last + (1 - last) * left
        assert module.rate_factor(step) == pytest.approx(min(1.0, (step + 1) / 10) * share)


def test_a_schedule_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UserError, match="schedule cannot be 'square'"):
        Optimizer(schedule="square")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="last_rate 2"):
        Optimizer(last_rate=2)
