"""The training that `fit` and `retrain` share: Lightning's Trainer, and what runs beside it."""

import logging
import os
import pickle
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from torch.utils.data import DataLoader

from abc_toolkit import report
from abc_toolkit.data import Data, TrainingBatches, seeded, validation_problems
from abc_toolkit.errors import UserError
from abc_toolkit.files import save_json
from abc_toolkit.module import Optimizer, TrainingModule
from abc_toolkit.run import PROGRESS
from abc_toolkit.tasks import Task
from abc_toolkit.transformer import Transformer

HISTORY = "training.json"


@dataclass(frozen=True)
class TrainerSettings:
    """What Lightning's Trainer is told.

    Attributes:
        max_steps: Steps after which training ends, interpolating or not.
        validate_every: Steps between validations; progress is saved as often.
        accelerator: `cpu`, `gpu`, `auto` or another of Lightning's.
        devices: Number of devices, or which.
        num_nodes: Number of machines.
        strategy: How several devices share the work, such as `ddp`.
        precision: Such as `32-true`, `bf16-mixed`.
        gradient_clip: Largest norm of the gradient; 0 for no limit.
        logger: A logger by class path, such as `lightning.pytorch.loggers.CSVLogger`; `false` for none.
        log_every: Steps between the losses that are logged and drawn.
        threads: CPU threads; 0 leaves it to PyTorch. Models as small as the default gain little from a second one.
        progress_bar: Whether to show one.
    """

    max_steps: int = 6000
    validate_every: int = 100
    accelerator: str = "auto"
    devices: int | str | list[int] = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    gradient_clip: float = 1.0
    logger: Logger | bool = False
    log_every: int = 10
    threads: int = 1
    progress_bar: bool = True


@dataclass(frozen=True)
class Stopping:
    """When training has reached its end, by validation on training lengths alone.

    Attributes:
        exact_match: Exact match on held-out problems that must be reached, between 0 and 1.
        loss: Mean cross-entropy of a token of held-out problems that must be reached as well.
        decay_steps: Once both are reached, steps over which the learning rate falls to zero before training ends; 0
            ends it at once.
    """

    exact_match: float = 0.999
    loss: float = 1.0
    decay_steps: int = 0


@dataclass(frozen=True)
class Trained:
    """How a training ended.

    Attributes:
        steps: Steps that were taken.
        exact_match: Exact match on held-out problems at the end.
        loss: Mean cross-entropy of a token of held-out problems at the end.
        validated_on: Number of held-out problems.
        reached: Whether the stopping rule was met.
        step_seconds: Wall time of the steps alone, since the last start, with validation and saving left out.
        seconds: Wall time of the training since the last start.
    """

    steps: int
    exact_match: float
    loss: float
    validated_on: int
    reached: bool
    step_seconds: float
    seconds: float


class Watch(Callback):
    """Stops by validation, keeps the history, saves progress and seeds every epoch.

    Each epoch, from one validation to the next, starts from a seed of its own, so that a training that is resumed
    at its last saved epoch takes the same steps as one that was not interrupted.

    Args:
        stopping: The stopping rule.
        folder: Receives the progress.
        log_every: Steps between recorded losses.
        seed: The run's seed.
        bar: Shows the progress.
    """

    def __init__(self, stopping: Stopping, folder: Path, log_every: int, seed: int, bar: report.TrainingBar) -> None:
        self.stopping = stopping
        self.folder = folder
        self.log_every = log_every
        self.seed = seed
        self.bar = bar
        self.reached = False
        self.step_seconds = 0.0
        self._steps_began = 0.0
        self.train: list[dict[str, float]] = []
        self.validation: list[dict[str, float]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: lightning.LightningModule) -> None:
        torch.manual_seed(seeded(self.seed, trainer.global_step, trainer.global_rank).initial_seed())
        self._steps_began = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: lightning.LightningModule) -> None:
        self.step_seconds += time.perf_counter() - self._steps_began

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        step = trainer.global_step
        if step % self.log_every == 0:
            loss = pl_module.last_loss.item()
            self.train.append({"step": step, "loss": loss})
            self.bar.update(step, loss=loss)
            if trainer.logger is not None:
                trainer.logger.log_metrics({"loss": loss}, step)
        if pl_module.decay_from is not None and step >= pl_module.decay_from + self.stopping.decay_steps:
            trainer.should_stop = True

    def on_validation_end(self, trainer: Trainer, pl_module: lightning.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        if trainer.sanity_checking:
            return
        exact_match = float(trainer.callback_metrics["exact_match"])
        loss = float(trainer.callback_metrics["validation_loss"])
        self.validation.append({"step": trainer.global_step, "exact_match": exact_match, "loss": loss})
        self.bar.update(trainer.global_step, exact_match=exact_match)
        met = exact_match >= self.stopping.exact_match and loss <= self.stopping.loss
        if met and pl_module.decay_from is None:
            pl_module.decay_from = trainer.global_step
            trainer.should_stop = trainer.should_stop or self.stopping.decay_steps == 0
        self.reached = met

    def on_train_epoch_end(self, trainer: Trainer, pl_module: lightning.LightningModule) -> None:
        # Lightning validates before it ends an epoch, so what is saved holds this epoch's validation.
        temporary = self.folder / f".{PROGRESS}.tmp"
        trainer.save_checkpoint(temporary)
        if trainer.is_global_zero:
            os.replace(temporary, self.folder / PROGRESS)

    def state_dict(self) -> dict[str, Any]:
        return {"train": self.train, "validation": self.validation, "reached": self.reached}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.train, self.validation = list(state_dict["train"]), list(state_dict["validation"])
        self.reached = bool(state_dict["reached"])


def train(
    task: Task,
    model: Transformer,
    *,
    data: Data,
    optimizer: Optimizer,
    trainer: TrainerSettings,
    stopping: Stopping,
    seed: int,
    folder: Path,
    resume: bool,
    title: str,
) -> Trained:
    """Trains a model in place until the stopping rule is met; the averaged weights become its weights.

    Args:
        task: What it learns.
        model: The model, fresh.
        data: Batches and validation.
        optimizer: Optimiser.
        trainer: Lightning's settings.
        stopping: The stopping rule.
        seed: Everything random follows from it.
        folder: Receives the progress and the history (`training.json`).
        resume: Whether to go on from the progress in the folder.
        title: Heads the progress bar.

    Raises:
        UserError: If the loss is not finite, or the progress cannot be loaded.
    """
    start = time.perf_counter()
    held_out = validation_problems(task, seed, data.validation_problems)
    module = TrainingModule(task, model, optimizer, stopping.decay_steps, seed)
    with report.training_bar(title, trainer.max_steps, trainer.progress_bar) as bar, _quiet():
        watch = Watch(stopping, folder, trainer.log_every, seed, bar)
        lightning_trainer = _lightning_trainer(trainer, watch)
        batches = TrainingBatches(
            task, data, seed, lightning_trainer.global_rank, lambda: lightning_trainer.global_step
        )
        try:
            lightning_trainer.fit(
                module,
                DataLoader(batches, batch_size=None),
                DataLoader(held_out, batch_size=None),  # type: ignore[arg-type]
                ckpt_path=str(folder / PROGRESS) if resume else None,
                weights_only=True,
            )
        except SystemExit:  # Lightning's answer to Ctrl-C, which it ignores from then on
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from None
        except (RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
            if resume and not watch.train:
                reason = str(error).splitlines()[0]
                raise UserError(
                    f"{folder / PROGRESS} cannot be resumed ({reason}): start afresh with --overwrite"
                ) from error
            raise
    model.load_state_dict(module.averaged.state_dict())
    model.cpu().eval()
    last = watch.validation[-1]
    history = {"train": watch.train, "validation": watch.validation, "threshold": stopping.exact_match}
    if lightning_trainer.is_global_zero:
        save_json(folder / HISTORY, history)
    return Trained(
        steps=lightning_trainer.global_step,
        exact_match=last["exact_match"],
        loss=last["loss"],
        validated_on=sum(len(problems) for problems in held_out),
        reached=watch.reached,
        step_seconds=watch.step_seconds,
        seconds=time.perf_counter() - start,
    )


def _lightning_trainer(settings: TrainerSettings, watch: Watch) -> Trainer:
    if settings.threads:
        torch.set_num_threads(settings.threads)
    try:
        return Trainer(
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.num_nodes,
            strategy=settings.strategy,
            precision=settings.precision,  # type: ignore[arg-type]
            gradient_clip_val=settings.gradient_clip or None,
            logger=settings.logger,
            max_steps=settings.max_steps,
            max_epochs=-1,
            limit_train_batches=settings.validate_every,
            num_sanity_val_steps=0,
            log_every_n_steps=settings.log_every,
            callbacks=[watch],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise UserError(f"the trainer cannot be set up: {' '.join(str(error).split())}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Lightning's remarks on hardware and loaders, which a user of this toolkit cannot act on, off the screen."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*GPU available but not used.*")
            warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
