"""The LightningModule: loss, validation, averaging of weights, optimiser."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import ModuleDict
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchmetrics import MeanMetric

from abc_toolkit.errors import UserError, check_literals, check_numbers
from abc_toolkit.layout import Layout
from abc_toolkit.models.base import Model, predict
from abc_toolkit.tasks.base import Batch, Task
from abc_toolkit.tasks.lengths import Shape
from abc_toolkit.training.metrics import MeanOverProblems
from abc_toolkit.training.optimizers import with_muon


@dataclass(frozen=True)
class Optimizer:
    """AdamW or Muon, with a warm-up, a schedule of the rate, and a linear decay once validation is passed.

    Attributes:
        learning_rate: The rate after the warm-up.
        beta1: Decay of the gradient's running mean.
        beta2: Decay of its running square.
        epsilon: Added to the root of that square.
        weight_decay: Decoupled weight decay.
        warmup_steps: Steps of a linear rise of the rate.
        schedule: How the rate falls until `trainer.max_steps`, if it does.
        last_rate: Share of the rate that is left then.
        muon_rate: Rate of Muon on layers' matrices, or 0.
        averaging: Decay of the average of the weights, which is validated, saved and evaluated.
    """

    learning_rate: float = 3e-3
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    warmup_steps: int = 100
    averaging: float = 0.98
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    last_rate: float = 0.0
    muon_rate: float = 0.0

    def __post_init__(self) -> None:
        check_literals(self)
        check_numbers(self, "optimizer", ("last_rate",), at_most=1)
        check_numbers(self, "optimizer", ("learning_rate", "epsilon", "weight_decay", "warmup_steps", "muon_rate"))
        check_numbers(self, "optimizer", ("beta1", "beta2", "averaging"), below=1)


class TrainingModule(lightning.LightningModule):
    """Trains a model on a task by teacher forcing.

    Several processes get the same batches. Each takes its own rows; together they compute what one process would.

    Args:
        task: The task.
        model: The model.
        optimizer: Its optimiser.
        decay_steps: Steps over which the rate falls from `decay_from` on, towards zero.
        decay_to: Share of the rate below which it does not fall.
        max_steps: Largest number of steps, at which the optimiser's schedule ends.
        seed: The run's seed, for messages.
        rank: Which of several processes this is.
        processes: Their number.
    """

    def __init__(
        self,
        task: Task,
        model: Model,
        optimizer: Optimizer,
        decay_steps: int,
        decay_to: float,
        max_steps: int,
        seed: int,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        super().__init__()
        self.task = task
        self.model = model
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(optimizer.averaging))
        # Several processes wait for the gradient of every parameter that asks for one.
        self.average.requires_grad_(False)
        self.settings = optimizer
        self.decay_steps = decay_steps
        self.decay_to = decay_to
        self.max_steps = max_steps
        self.decay_from: int | None = None
        self.seed = seed
        self.rank = rank
        self.processes = processes
        self.objective = task.objective
        self.means = ModuleDict({metric.name: MeanOverProblems(metric) for metric in self.objective.metrics})
        self.validation_loss = MeanMetric()
        self.last_loss = torch.tensor(float("nan"))
        self._layouts: dict[Shape, Layout] = {}

    @property
    def averaged(self) -> Model:
        """The model with averaged weights."""
        assert isinstance(self.average.module, Model)
        return self.average.module

    def mean(self, name: str) -> MeanOverProblems:
        """The mean of a metric over the held-out problems so far."""
        mean = self.means[name]
        assert isinstance(mean, MeanOverProblems)
        return mean

    def layout(self, shape: Shape) -> Layout:
        """The layout of a shape on the module's device, made once."""
        if shape not in self._layouts:
            self._layouts[shape] = self.task.layout(shape).to(self.device)
        return self._layouts[shape]

    def _own(self, batch: Batch) -> Batch:
        """The rows of a batch that belong to this process; there may be none."""
        return batch[self.rank :: self.processes]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        own = self._own(batch)
        loss = self.objective.loss(predict(self.model, own, self.layout(own.shape)), own)
        if self.processes > 1:
            # Gradients are averaged over processes, of which some may have a row more than others.
            loss = loss * (len(own) * self.processes / len(batch))
        self.last_loss = loss.detach()
        if self.processes > 1:
            self.last_loss = self.last_loss / self.processes
            torch.distributed.all_reduce(self.last_loss)
        if not torch.isfinite(self.last_loss):
            raise UserError(
                f"the loss is {self.last_loss.item()} at step {self.global_step} (seed {self.seed}): "
                "lower --optimizer.learning_rate, or use --trainer.precision 32-true"
            )
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.average.update_parameters(self.model)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        own = self._own(batch)
        if not len(own):
            return
        outputs = predict(self.averaged, own, self.layout(own.shape))
        for name, values in self.objective.measured(outputs, own).items():
            self.mean(name).update(values)
        self.validation_loss.update(self.objective.loss(outputs, own), len(own))

    def on_validation_epoch_end(self) -> None:
        for name in self.means:  # to loggers, `History` gives them with the step that they are of
            self.log(name, self.mean(name), logger=False)
        self.log("validation_loss", self.validation_loss, logger=False)

    def rate_factor(self, step: int) -> float:
        """The learning rate of a step over the constant one."""
        settings = self.settings
        factor = min(1.0, (step + 1) / max(1, settings.warmup_steps))
        if settings.schedule != "constant":
            done = (step - settings.warmup_steps) / max(1, self.max_steps - settings.warmup_steps)
            done = min(1.0, max(0.0, done))
            left = 1 - done if settings.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
            factor *= settings.last_rate + (1 - settings.last_rate) * left
        if self.decay_from is not None:
            factor *= max(self.decay_to, 1.0 - (step - self.decay_from) / max(1, self.decay_steps))
        return factor

    def configure_optimizers(self) -> OptimizerLRScheduler:
        settings = self.settings
        adamw = partial(
            torch.optim.AdamW,
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
            # Gradients that are unscaled inside a fused step cannot be clipped before it.
            fused=not isinstance(self.trainer.precision_plugin, MixedPrecision),
        )
        if settings.muon_rate:
            optimizer = with_muon(self.model, settings.muon_rate, settings.weight_decay, adamw)
        else:
            optimizer = adamw(self.model.parameters())
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["decay_from"] = self.decay_from

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.decay_from = checkpoint["decay_from"]
