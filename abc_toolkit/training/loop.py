"""The training that `fit` and `retrain` share: Lightning's Trainer, and what runs beside it."""

import copy
import hashlib
import io
import logging
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from torch.utils.data import DataLoader

from abc_toolkit.errors import UserError, check_numbers
from abc_toolkit.models.base import Architecture, Model
from abc_toolkit.models.transformer import EncoderDecoder
from abc_toolkit.report import terminal
from abc_toolkit.runs.description import describe, differences
from abc_toolkit.runs.files import canonical_hash, read_bytes, replacing, save_json
from abc_toolkit.runs.folder import PROGRESS
from abc_toolkit.seeds import Stream, seeded
from abc_toolkit.tasks import Problems, Task
from abc_toolkit.training import processes
from abc_toolkit.training.coverage import Coverage
from abc_toolkit.training.data import Data, TrainingBatches, validation_problems
from abc_toolkit.training.module import Optimizer, TrainingModule
from abc_toolkit.windows.attention import Windowed

HISTORY = "training.json"
# The share of the learning rate that is left to mend the last assignments; at the whole rate mending one costs others.
LAST_RATE = 0.05
# Settings that the weights at a step do not follow from: they may differ when a training is resumed.
MAY_DIFFER = ("trainer.max_steps", "trainer.log_every", "trainer.logger", "trainer.progress_bar")
HEADER = b"abc progress 1\n"  # before the hash of what follows


@dataclass(frozen=True)
class TrainerSettings:
    """What Lightning's Trainer is told.

    Attributes:
        max_steps: Steps after which training ends, interpolating or not.
        validate_every: Steps between validations; progress is saved as often.
        accelerator: `cpu`, `gpu`, `auto` or another of Lightning's.
        devices: Number of devices, or which. A batch is shared among them.
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
            as well; if not given, 1 for a task of tokens, and none for one of numbers.
        decay_steps: Once both are reached, steps over which the learning rate falls to zero before training ends, in
            which a model settles that reached them by chance; 0 ends it at once.
    """

    exact_match: float = 0.999
    loss: float | None = None
    decay_steps: int = 0

    def __post_init__(self) -> None:
        check_numbers(self, "stopping", ("exact_match",), at_most=1)
        check_numbers(self, "stopping", ("decay_steps",) if self.loss is None else ("loss", "decay_steps"))


@dataclass(frozen=True)
class Trained:
    """How a training ended.

    Attributes:
        steps: Steps that were taken.
        metrics: Each of the objective's metrics on held-out problems at the end.
        loss: Cross-entropy of a token, averaged over a problem and then over held-out problems, at the end.
        validated_on: Number of held-out problems.
        weak: Assignments in which the model is wrong or leads by little, of those that were tried; `None` if none were.
        smallest_margin: Least lead of a required token's logit over the next best in the assignments that were tried.
        reached: Whether the stopping rule was met.
        step_seconds: Wall time of the steps alone, since the last start, with validation and saving left out.
        seconds: Wall time of the training since the last start.
    """

    steps: int
    metrics: Mapping[str, float]
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
        trainer: Lightning's settings.
        seed: The run's seed.
        settings: What the weights follow from besides the code, for whoever resumes the training.
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
        trainer: TrainerSettings,
        seed: int,
        settings: Mapping[str, Any],
        bar: terminal.TrainingBar,
        coverage: Coverage | None,
    ) -> None:
        self.stopping = stopping
        self.folder = folder
        self.log_every = trainer.log_every
        self.epoch_steps = trainer.validate_every
        self.threads = trainer.threads
        self.seed = seed
        self.settings = settings
        self.bar = bar
        self.coverage = coverage
        self.began = False
        self.ended = False
        self.reached = False
        self.step_seconds = 0.0
        self._terminated = signal.getsignal(signal.SIGTERM)
        self._steps_began = time.perf_counter()
        self.train: list[dict[str, float]] = []
        self.validation: list[dict[str, float]] = []

    def setup(self, trainer: Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        if self.threads:  # here, as Lightning sets them to its own liking when it starts several processes
            torch.set_num_threads(self.threads)

    def on_train_start(self, trainer: Trainer, pl_module: lightning.LightningModule) -> None:
        self.began = True
        if threading.current_thread() is threading.main_thread():
            # In place of Lightning's, which lets processes wait for one another in the middle of a step.
            signal.signal(signal.SIGTERM, self._terminated)
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
        objective = pl_module.objective
        values = {metric.name: float(trainer.callback_metrics[metric.name]) for metric in objective.metrics}
        loss = float(trainer.callback_metrics["validation_loss"])
        self.validation.append({"step": trainer.global_step, **values, "loss": loss})
        judged = objective.metrics[0]
        self.bar.update(trainer.global_step, judged=judged.told(values[judged.name]))
        # What coverage asks for takes the place of a limit on the loss.
        met = objective.reached(values, loss if self.coverage is None else 0.0, self.stopping)
        validated = self.reached = met
        if self.coverage is not None:
            self.reached = False
            if met or pl_module.decay_from is not None:  # before that it is weak in many, and needs no hard examples
                self.reached = self._passes(self.coverage, pl_module.averaged, trainer) and met
        if validated and pl_module.decay_from is None:
            pl_module.decay_from = trainer.global_step
        at_once = self.coverage is not None or self.stopping.decay_steps == 0
        trainer.should_stop = trainer.should_stop or (self.reached and at_once)

    def _passes(self, coverage: Coverage, model: Model, trainer: Trainer) -> bool:
        """Whether the model is weak in no assignment; of those in which it is, hard examples are made."""
        assert isinstance(model, EncoderDecoder)  # as everything inside a window is
        covered = None
        if trainer.is_global_zero:
            covered = coverage.of(
                copy.deepcopy(model).cpu().eval(), seeded(self.seed, Stream.COVERAGE, trainer.global_step)
            )
        covered = trainer.strategy.broadcast(covered)
        assert covered is not None
        self.batches.hard_examples = covered.hard_examples
        self.validation[-1] |= {"weak": covered.weak, "smallest_margin": covered.smallest_margin}
        self.bar.update(trainer.global_step, weak=covered.weak)
        return not covered.weak

    def on_train_epoch_end(self, trainer: Trainer, pl_module: lightning.LightningModule) -> None:
        # Lightning validates before it ends an epoch, so what is saved holds this epoch's validation.
        self.ended = trainer.should_stop
        # An epoch that was cut short by the number of steps is not saved: with more steps it is gone through anew.
        if self.ended or trainer.global_step % self.epoch_steps == 0:
            trainer.save_checkpoint(self.folder / PROGRESS)

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


class ProgressFile(CheckpointIO):
    """Lightning's checkpoints as files that appear whole, and are loaded only if every bit is as it was written.

    A file is a header, the SHA-256 of the rest, and what `torch.save` writes, of which tensors and plain data are read.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Path | str, storage_options: Any = None) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)
        written = content.getvalue()
        with replacing(Path(path)) as temporary:
            temporary.write_bytes(HEADER + hashlib.sha256(written).digest() + written)

    def load_checkpoint(
        self, path: Path | str, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        found = read_bytes(Path(path))
        start = len(HEADER) + hashlib.sha256().digest_size
        content = found[start:]
        if found[:start] != HEADER + hashlib.sha256(content).digest():
            raise UserError(f"{path} is damaged: start afresh with --overwrite")
        try:
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:  # what its reader raises is not told, and nobody but a stranger wrote such a file
            raise UserError(
                f"{path} is no progress of this version ({_first_line(error)}): start afresh with --overwrite"
            ) from None

    def remove_checkpoint(self, path: Path | str) -> None:
        Path(path).unlink(missing_ok=True)


def check_resumable(path: Path, settings: Mapping[str, Any], max_steps: int) -> None:
    """Refuses to go on from a progress under other settings, or where no step is to follow.

    Args:
        path: The progress.
        settings: What the training is to go on under, as `Watch` saves it.
        max_steps: The steps that it may take.

    Raises:
        UserError: With every difference; or if the file is damaged.
    """
    progress = ProgressFile().load_checkpoint(path)
    try:
        steps, state = int(progress["global_step"]), progress["callbacks"][Watch.__qualname__]
        before, ended = state["settings"], bool(state["ended"])
        different = list(differences(before, settings, MAY_DIFFER))
        most = before["trainer"]["max_steps"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} is no progress of this version ({_first_line(error)}): start afresh with --overwrite"
        ) from None
    if different:
        raise UserError(
            f"the training in {path.parent} cannot be resumed under other settings: {'; '.join(different)}; give the "
            "same, or start afresh with --overwrite"
        )
    if max_steps < steps:
        raise UserError(f"{path} is of step {steps}: give at least as many --trainer.max_steps as that to resume it")
    if ended and max_steps > most:
        raise UserError(
            f"the training in {path.parent} ended at step {steps} by its stopping rule, and more steps change nothing: "
            "start afresh, with other settings, with --overwrite"
        )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


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
    title: Literal["fit", "retrain"],
    runner: Trainer,
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
        title: The phase's name, which heads the progress bar.
        runner: Lightning's trainer of these settings.

    Raises:
        UserError: If the loss is not finite, the progress cannot be loaded or is of other settings, or a batch has too
            few problems for all processes.
    """
    start = time.perf_counter()
    rank, size = runner.global_rank, runner.world_size
    if data.batch_size < size:
        raise UserError(f"--data.batch_size {data.batch_size}: give at least 1 for each of {size} processes")
    settings = {"seed": seed, "task": task, "model": model, "data": data, "optimizer": optimizer, "stopping": stopping}
    settings |= {"trainer": trainer, "processes": size, "device": runner.strategy.root_device.type}
    settings |= {"until": "certified" if coverage else "validated"}
    described = describe(settings)
    if isinstance(network.position, Windowed):  # too long to be shown
        described |= {"window": canonical_hash(describe(network.position.window))[:16]}
    if resume:
        check_resumable(folder / PROGRESS, described, trainer.max_steps)
    held_out = validation_problems(task, draws, data.validation_problems)
    decay_to = 0.0 if coverage is None else LAST_RATE
    module = TrainingModule(task, network, optimizer, stopping.decay_steps, decay_to, seed, rank, size)
    validating = DataLoader(held_out, batch_size=None)  # type: ignore[arg-type]
    with (
        terminal.training_bar(title, trainer.max_steps, trainer.progress_bar) as bar,
        _quiet(),
        processes.together(runner, title, resume),
    ):
        watch = Watch(stopping, folder, trainer, draws, described, bar, coverage)
        batches = TrainingBatches(task, data, draws, lambda: runner.global_step)
        watch.batches = batches
        runner.callbacks.append(watch)  # type: ignore[attr-defined]
        try:
            runner.fit(
                module,
                DataLoader(batches, batch_size=None),
                validating,
                ckpt_path=str(folder / PROGRESS) if resume else None,
                weights_only=True,
            )
            processes.started(runner)
            if not watch.validation or watch.validation[-1]["step"] != runner.global_step:
                # The last steps were too few for a validation of their own.
                runner.validate(module, validating, verbose=False)
        except SystemExit:  # Lightning's answer to Ctrl-C
            raise KeyboardInterrupt from None
        except UserError:
            raise
        except Exception as error:  # a file that nobody's training wrote makes the loader raise almost anything
            if not resume or watch.began:
                raise
            raise UserError(
                f"{folder / PROGRESS} cannot be resumed ({_first_line(error)}): start afresh with --overwrite"
            ) from error
    network.load_state_dict(module.averaged.state_dict())
    network.cpu().eval()
    last = watch.validation[-1]
    history = {"train": watch.train, "validation": watch.validation, "threshold": stopping.exact_match}
    history |= {"metric": task.objective.metrics[0].name}
    if not rank:
        save_json(folder / HISTORY, history)
    return Trained(
        steps=runner.global_step,
        metrics={metric.name: last[metric.name] for metric in task.objective.metrics},
        loss=last["loss"],
        validated_on=sum(len(problems) for problems in held_out),
        weak=int(last["weak"]) if "weak" in last else None,
        smallest_margin=last.get("smallest_margin"),
        reached=watch.reached,
        step_seconds=watch.step_seconds,
        seconds=time.perf_counter() - start,
    )


def lightning_trainer(settings: TrainerSettings) -> Trainer:
    """Lightning's trainer, which knows which of several processes this is: `global_rank`, 0 where there is one.

    Raises:
        UserError: If there is no such trainer.
    """
    try:
        with _quiet():
            trainer = Trainer(
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
                plugins=[ProgressFile(), processes.environment(settings.devices, settings.num_nodes)],
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
            )
    except (TypeError, ValueError, KeyError, RuntimeError, MisconfigurationException) as error:
        raise UserError(f"the trainer cannot be set up: {' '.join(str(error).split())}") from None
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise UserError(
            f"--trainer.strategy {settings.strategy} trains copies that this process gets nothing back from: take ddp"
        )
    processes.goes_by(trainer.global_rank)
    return trainer


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
