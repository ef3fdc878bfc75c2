"""The training that `fit` and `retrain` share: Lightning's Trainer, and what runs beside it."""

import copy
import logging
import os
import signal
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from torch.utils.data import DataLoader

from abc_toolkit import report
from abc_toolkit.coverage import Coverage
from abc_toolkit.data import Data, TrainingBatches, seeded, validation_problems
from abc_toolkit.description import describe
from abc_toolkit.errors import UserError, check_numbers
from abc_toolkit.files import cannot_write, save_json
from abc_toolkit.model import Architecture, Model
from abc_toolkit.module import Optimizer, TrainingModule
from abc_toolkit.run import PROGRESS
from abc_toolkit.tasks import Problems, Task
from abc_toolkit.transformer import EncoderDecoder

HISTORY = "training.json"
# The share of the learning rate that is left to mend the last assignments; at the whole rate mending one costs others.
LAST_RATE = 0.05
_COVERAGE = 3  # what its seeds are drawn for; those of data.py are 0 to 2


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
        precision: Of the arithmetic; weights are kept in 32 bits.
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
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    gradient_clip: float = 1.0
    logger: Logger | bool = False
    log_every: int = 10
    threads: int = 1
    progress_bar: bool = True

    def __post_init__(self) -> None:
        counts = ("max_steps", "validate_every", "num_nodes", "log_every")
        check_numbers(self, "trainer", counts, at_least=1)
        check_numbers(self, "trainer", ("gradient_clip", "threads"))


@dataclass(frozen=True)
class Stopping:
    """When training has reached its end, by validation on training lengths alone.

    Attributes:
        exact_match: Exact match on held-out problems that must be reached, between 0 and 1.
        loss: Cross-entropy of a token, averaged over a problem and then over held-out problems, that must be reached
            as well.
        decay_steps: Once both are reached, steps over which the learning rate falls to zero before training ends; 0
            ends it at once.
    """

    exact_match: float = 0.999
    loss: float = 1.0
    decay_steps: int = 0

    def __post_init__(self) -> None:
        check_numbers(self, "stopping", ("exact_match",), at_most=1)
        check_numbers(self, "stopping", ("loss", "decay_steps"))


@dataclass(frozen=True)
class Trained:
    """How a training ended.

    Attributes:
        steps: Steps that were taken.
        exact_match: Exact match on held-out problems at the end.
        loss: Cross-entropy of a token, averaged over a problem and then over held-out problems, at the end.
        validated_on: Number of held-out problems.
        weak: Assignments in which the model is wrong or leads by little, of those that were tried; `None` if none were.
        smallest_margin: Least lead of a required token's logit over the next best in the assignments that were tried.
        reached: Whether the stopping rule was met.
        step_seconds: Wall time of the steps alone, since the last start, with validation and saving left out.
        seconds: Wall time of the training since the last start.
    """

    steps: int
    exact_match: float
    loss: float
    validated_on: int
    weak: int | None
    smallest_margin: float | None
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
        settings: What the weights follow from besides the code; a training is resumed under the same alone.
        bar: Shows the progress.
        coverage: Tries the model on all assignments, which it must pass in place of the rule's loss and decay.

    Attributes:
        batches: What is trained on; is given hard examples, of the assignments in which the model is weak.
    """

    batches: TrainingBatches

    def __init__(
        self,
        stopping: Stopping,
        folder: Path,
        log_every: int,
        seed: int,
        settings: Mapping[str, Any],
        bar: report.TrainingBar,
        coverage: Coverage | None,
    ) -> None:
        self.stopping = stopping
        self.folder = folder
        self.log_every = log_every
        self.seed = seed
        self.settings = settings
        self.bar = bar
        self.coverage = coverage
        self.began = False
        self.ended = False
        self.reached = False
        self.step_seconds = 0.0
        self._steps_began = time.perf_counter()
        self.train: list[dict[str, float]] = []
        self.validation: list[dict[str, float]] = []

    def on_train_start(self, trainer: Trainer, pl_module: lightning.LightningModule) -> None:
        self.began = True
        trainer.should_stop = self.ended  # it had only to be written down when it was interrupted

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
        decay_from = pl_module.decay_from if self.coverage is None else None
        if decay_from is not None and step >= decay_from + self.stopping.decay_steps:
            trainer.should_stop = True

    def on_validation_end(self, trainer: Trainer, pl_module: lightning.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        exact_match = float(trainer.callback_metrics["exact_match"])
        loss = float(trainer.callback_metrics["validation_loss"])
        self.validation.append({"step": trainer.global_step, "exact_match": exact_match, "loss": loss})
        self.bar.update(trainer.global_step, exact_match=exact_match)
        met = exact_match >= self.stopping.exact_match
        validated = met and (self.coverage is not None or loss <= self.stopping.loss)
        self.reached = validated
        if self.coverage is not None:
            self.reached = False
            if met or pl_module.decay_from is not None:  # before that it is weak in many, and needs no hard examples
                self.reached = self._passes(self.coverage, pl_module.averaged, trainer.global_step) and met
        if validated and pl_module.decay_from is None:
            pl_module.decay_from = trainer.global_step
        at_once = self.coverage is not None or self.stopping.decay_steps == 0
        trainer.should_stop = trainer.should_stop or (self.reached and at_once)

    def _passes(self, coverage: Coverage, model: Model, step: int) -> bool:
        """Whether the model is weak in no assignment; of those in which it is, hard examples are made."""
        assert isinstance(model, EncoderDecoder)  # as everything inside a window is
        covered = coverage.of(copy.deepcopy(model).cpu().eval(), seeded(self.seed, _COVERAGE, step))
        self.batches.hard_examples = covered.hard_examples
        self.validation[-1] |= {"weak": covered.weak, "smallest_margin": covered.smallest_margin}
        self.bar.update(step, weak=covered.weak)
        return not covered.weak

    def on_train_epoch_end(self, trainer: Trainer, pl_module: lightning.LightningModule) -> None:
        # Lightning validates before it ends an epoch, so what is saved holds this epoch's validation.
        self.ended = trainer.should_stop
        temporary = self.folder / f".{PROGRESS}.tmp"
        try:
            trainer.save_checkpoint(temporary)
            if trainer.is_global_zero:
                os.replace(temporary, self.folder / PROGRESS)
        except (OSError, RuntimeError) as error:  # PyTorch's own writer raises the latter
            temporary.unlink(missing_ok=True)
            raise cannot_write(self.folder / PROGRESS, error) from error

    def state_dict(self) -> dict[str, Any]:
        return {
            "train": self.train,
            "validation": self.validation,
            "reached": self.reached,
            "ended": self.ended,
            "settings": self.settings,
            "hard_examples": [(list(part.shape), part.source, part.target) for part in self.batches.hard_examples],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.train, self.validation = list(state_dict["train"]), list(state_dict["validation"])
        self.reached, self.ended = bool(state_dict["reached"]), bool(state_dict["ended"])
        hard = [Problems(tuple(shape), source, target) for shape, source, target in state_dict["hard_examples"]]
        self.batches.hard_examples = tuple(hard)
        changed = [name for name, value in self.settings.items() if state_dict["settings"].get(name) != value]
        if changed:
            raise UserError(
                f"the interrupted training had another {' and '.join(changed)}: give the same to resume it, or start "
                "afresh with --overwrite"
            )


def train(
    task: Task,
    network: Model,
    *,
    model: Architecture,
    data: Data,
    optimizer: Optimizer,
    trainer: TrainerSettings,
    stopping: Stopping,
    coverage: Coverage | None = None,
    seed: int,
    draws: int,
    folder: Path,
    resume: bool,
    title: str,
) -> Trained:
    """Trains a model in place until the stopping rule is met; the averaged weights become its weights.

    Args:
        task: What it learns.
        network: The model, fresh.
        model: What it was built from.
        data: Batches and validation.
        optimizer: Optimiser.
        trainer: Lightning's settings.
        stopping: The stopping rule.
        coverage: Assignments in all of which the model must do well, in place of the rule's loss and decay.
        seed: The run's seed, which messages name.
        draws: The phase's own seed, from which everything random follows.
        folder: Receives the progress and the history (`training.json`).
        resume: Whether to go on from the progress in the folder.
        title: Heads the progress bar.

    Raises:
        UserError: If the loss is not finite, or the progress cannot be loaded.
    """
    start = time.perf_counter()
    held_out = validation_problems(task, draws, data.validation_problems)
    decay_to = 0.0 if coverage is None else LAST_RATE
    module = TrainingModule(task, network, optimizer, stopping.decay_steps, decay_to, seed)
    with report.training_bar(title, trainer.max_steps, trainer.progress_bar) as bar, _quiet():
        settings = {"seed": seed, "task": task, "data": data, "optimizer": optimizer, "stopping": stopping}
        settings |= {"model": model, "window": network.position, "until": "certified" if coverage else "validated"}
        watch = Watch(stopping, folder, trainer.log_every, draws, describe(settings), bar, coverage)
        lightning_trainer = _lightning_trainer(trainer, watch)
        batches = TrainingBatches(
            task, data, draws, lightning_trainer.global_rank, lambda: lightning_trainer.global_step
        )
        watch.batches = batches
        try:
            lightning_trainer.fit(
                module,
                DataLoader(batches, batch_size=None),
                DataLoader(held_out, batch_size=None),  # type: ignore[arg-type]
                ckpt_path=str(folder / PROGRESS) if resume else None,
                weights_only=True,
            )
            if not watch.validation or watch.validation[-1]["step"] != lightning_trainer.global_step:
                # The last steps were too few for a validation of their own.
                lightning_trainer.validate(module, DataLoader(held_out, batch_size=None), verbose=False)  # type: ignore[arg-type]
        except SystemExit:  # Lightning's answer to Ctrl-C, which it ignores from then on
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from None
        except UserError:
            raise
        except Exception as error:  # a broken file makes the loader raise almost anything
            if not resume or watch.began:
                raise
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(
                f"{folder / PROGRESS} cannot be resumed ({reason}): start afresh with --overwrite"
            ) from error
    network.load_state_dict(module.averaged.state_dict())
    network.cpu().eval()
    last = watch.validation[-1]
    history = {"train": watch.train, "validation": watch.validation, "threshold": stopping.exact_match}
    if lightning_trainer.is_global_zero:
        save_json(folder / HISTORY, history)
    return Trained(
        steps=lightning_trainer.global_step,
        exact_match=last["exact_match"],
        loss=last["loss"],
        validated_on=sum(len(problems) for problems in held_out),
        weak=int(last["weak"]) if "weak" in last else None,
        smallest_margin=last.get("smallest_margin"),
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
            precision=settings.precision,
            gradient_clip_val=settings.gradient_clip or None,
            logger=settings.logger,
            max_steps=settings.max_steps,
            max_epochs=-1,
            limit_train_batches=settings.validate_every,
            num_sanity_val_steps=0,
            log_every_n_steps=min(settings.log_every, settings.validate_every),  # more than that makes it warn
            callbacks=[watch],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
    except (TypeError, ValueError, RuntimeError, MisconfigurationException) as error:
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
