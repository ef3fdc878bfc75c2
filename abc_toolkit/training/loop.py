"""The training loop of `fit` and `retrain`, driven by Lightning's Trainer."""

import hashlib
import io
import logging
import time
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from torch.utils.data import DataLoader

from abc_toolkit.errors import UserError, check_numbers
from abc_toolkit.models.base import Architecture, Model
from abc_toolkit.runs.description import describe, differences
from abc_toolkit.runs.files import canonical_hash, read_bytes, replacing, save_json
from abc_toolkit.runs.folder import PROGRESS
from abc_toolkit.seeds import Stream, seeded
from abc_toolkit.tasks import Batch, Task
from abc_toolkit.tasks.objective import Stopping
from abc_toolkit.training import processes
from abc_toolkit.training.callbacks import (
    EpochSeeds,
    HardExamples,
    History,
    Progress,
    SaveProgress,
    Signals,
    Silent,
    Stages,
    StepClock,
    StopByCoverage,
    StopByValidation,
    Threads,
)
from abc_toolkit.training.coverage import Coverage
from abc_toolkit.training.curriculum import Curriculum
from abc_toolkit.training.data import Data, TrainingBatches, validation_problems
from abc_toolkit.training.module import Optimizer, TrainingModule
from abc_toolkit.windows.attention import Windowed

HISTORY = "training.json"
# The rate falls to this share of itself while the last weak assignments are learnt; at the full rate learning one
# unlearns others.
LAST_RATE = 0.05
# Settings on which the weights at a step do not depend: they may differ when a training is resumed.
MAY_DIFFER = ("trainer.max_steps", "trainer.log_every", "trainer.logger", "trainer.progress_bar")
HEADER = b"abc progress 1\n"  # before the hash of the rest


@dataclass(frozen=True)
class TrainerSettings:
    """Settings of Lightning's Trainer.

    Attributes:
        max_steps: Largest number of steps, whether the model interpolates by then or not.
        validate_every: Steps between validations; progress is saved at each.
        accelerator: `cpu`, `gpu`, `auto` or another of Lightning's.
        devices: Number of devices, or which; they share each batch.
        num_nodes: Number of machines.
        strategy: How several devices share the work, such as `ddp`.
        precision: Precision of the arithmetic; weights are kept in 32 bits.
        gradient_clip: Largest norm of the gradient; 0 sets no limit.
        logger: A logger of Lightning's by class path, with settings such as `logger.save_dir`, or `false` for none.
        log_every: Steps between the losses that are logged and drawn.
        threads: CPU threads; 0 leaves it to PyTorch.
        progress_bar: Show a progress bar.
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
class Trained:
    """How a training ended.

    Attributes:
        steps: Steps that were taken.
        metrics: Each of the objective's metrics on held-out problems at the end.
        loss: Cross-entropy of a token, averaged over a problem and then over held-out problems, at the end.
        validated_on: Number of held-out problems.
        weak: Number of assignments in which the model is wrong or its margin small; `None` if none were tried.
        smallest_margin: Least margin in the assignments tried: the required token's logit minus the next best.
        reached: Whether the stopping rule was met.
        step_seconds: Wall time of the steps since the last start, without validation and saving.
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


class ProgressFile(CheckpointIO):
    """Checkpoints of Lightning as files that are written whole or not at all, and loaded only if no bit has changed.

    A file is a header, the SHA-256 of the rest, and an archive of `torch.save`, from which tensors and plain data alone
    are loaded.
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
        except Exception as error:  # the reader may raise anything on a file of foreign origin
            raise UserError(
                f"{path} is no progress of this version ({_first_line(error)}): start afresh with --overwrite"
            ) from None

    def remove_checkpoint(self, path: Path | str) -> None:
        Path(path).unlink(missing_ok=True)


def check_resumable(path: Path, settings: Mapping[str, Any], max_steps: int) -> None:
    """Refuses to resume a training under other settings, or one that has no further step to take.

    Args:
        path: The progress file.
        settings: Settings of the training now, as `SaveProgress` saves them.
        max_steps: Largest number of steps now.

    Raises:
        UserError: With every difference; or if the file is damaged.
    """
    progress = ProgressFile().load_checkpoint(path)
    try:
        steps, state = int(progress["global_step"]), progress["callbacks"][SaveProgress.__qualname__]
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


@dataclass(frozen=True)
class Training:
    """A training: what is learned, and how.

    Attributes:
        phase: The phase that trains.
        task: The task.
        architecture: The model's architecture.
        data: Batches and held-out problems.
        optimizer: Optimiser.
        stopping: The stopping rule.
        trainer: Lightning's settings.
        seed: The run's seed, which messages name.
        curriculum: Stages of the task, if it does not begin in full.
    """

    phase: Literal["fit", "retrain"]
    task: Task
    architecture: Architecture
    data: Data
    optimizer: Optimizer
    stopping: Stopping
    trainer: TrainerSettings
    seed: int
    curriculum: Curriculum | None = None

    @property
    def stream(self) -> int:
        """The seed of the phase, from which all its random draws follow."""
        return seeded(self.seed, Stream[self.phase.upper()]).initial_seed()

    def described(self, network: Model, runner: Trainer, certified: bool) -> dict[str, Any]:
        """The settings that determine the weights, as plain data. A training is resumed under the same ones only."""
        settings = {"seed": self.seed, "task": self.task, "model": self.architecture, "data": self.data}
        settings |= {"optimizer": self.optimizer, "stopping": self.stopping, "trainer": self.trainer}
        settings |= {"processes": runner.world_size, "device": runner.strategy.root_device.type}
        settings |= {"until": "certified" if certified else "validated"}
        if self.task.data_files():
            settings |= {"data_files": self.task.data_files()}
        if self.curriculum is not None:
            settings |= {"curriculum": self.curriculum}
        if self.optimizer.schedule != "constant":
            settings |= {"steps of the schedule": self.trainer.max_steps}
        described = describe(settings)
        if isinstance(network.position, Windowed):  # the window itself is too long for a message
            described |= {"window": canonical_hash(describe(network.position.window))[:16]}
        return described


def train(
    training: Training,
    network: Model,
    *,
    folder: Path,
    runner: Trainer,
    coverage: Coverage | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Trained:
    """Trains a model in place until the stopping rule is met; the averaged weights become its weights.

    Args:
        training: What is asked for.
        network: The model, with fresh weights.
        folder: Receives the progress file and the history (`training.json`).
        runner: Lightning's trainer with these settings.
        coverage: Assignments in none of which the model may be weak, in place of the rule's loss and decay.
        resume: Whether to resume from the progress file in the folder.
        progress: Shows steps, losses and metrics; silent if not given.

    Raises:
        UserError: If the loss is not finite, the progress cannot be loaded or has other settings, or a batch has fewer
            problems than there are processes.
    """
    start = time.perf_counter()
    rank, size = runner.global_rank, runner.world_size
    task, data, stopping = training.task, training.data, training.stopping
    if data.batch_size < size:
        raise UserError(f"--data.batch_size {data.batch_size}: give at least 1 for each of {size} processes")
    described = training.described(network, runner, coverage is not None)
    if resume:
        check_resumable(folder / PROGRESS, described, training.trainer.max_steps)
    held_out = validation_problems(task, training.stream, data.validation_problems)
    decay_to = 0.0 if coverage is None else LAST_RATE
    most = training.trainer.max_steps
    module = TrainingModule(
        task, network, training.optimizer, stopping.decay_steps, decay_to, most, training.seed, rank, size
    )
    batches = TrainingBatches(task, data, training.stream, lambda: runner.global_step, training.curriculum)
    history = History(task.objective, training.trainer.log_every, progress or Silent())
    clock, saving = StepClock(), SaveProgress(folder / PROGRESS, training.trainer.validate_every, described)
    if coverage is None:
        stop: StopByValidation | StopByCoverage = StopByValidation(stopping, history)
    else:
        stop = StopByCoverage(stopping, coverage, training.stream, history, batches)
    beside: list[Callback] = [Threads(training.trainer.threads), Signals(), EpochSeeds(training.stream), clock, history]
    if training.curriculum is not None:
        beside.append(Stages(training.curriculum, history))
    runner.callbacks += [*beside, HardExamples(batches), stop, saving]  # type: ignore[attr-defined]
    with _quiet(), processes.together(runner, training.phase, resume):
        _run(runner, module, batches, held_out, history, saving, resume)
    network.load_state_dict(module.averaged.state_dict())
    network.cpu().eval()
    if not rank:
        shown = {"threshold": stopping.exact_match, "metric": task.objective.metrics[0].name}
        stages = {"stages": history.stages} if history.stages else {}
        save_json(folder / HISTORY, {"train": history.train, "validation": history.validation} | stages | shown)
    last = history.validation[-1]
    return Trained(
        steps=runner.global_step,
        metrics={metric.name: last[metric.name] for metric in task.objective.metrics},
        loss=last["loss"],
        validated_on=sum(len(problems) for problems in held_out),
        weak=int(last["weak"]) if "weak" in last else None,
        smallest_margin=last.get("smallest_margin"),
        reached=stop.reached,
        step_seconds=clock.seconds,
        seconds=time.perf_counter() - start,
    )


def _run(
    runner: Trainer,
    module: TrainingModule,
    batches: TrainingBatches,
    held_out: Sequence[Batch],
    history: History,
    saving: SaveProgress,
    resume: bool,
) -> None:
    """Takes the steps, and validates after the last one."""
    validating = DataLoader(held_out, batch_size=None)  # type: ignore[arg-type]
    progress = saving.path
    try:
        runner.fit(
            module,
            DataLoader(batches, batch_size=None),
            validating,
            ckpt_path=str(progress) if resume else None,
            weights_only=True,
        )
        processes.mark_started(runner)
        if not history.validation or history.validation[-1]["step"] != runner.global_step:
            # The last steps were too few for a validation of their own.
            runner.validate(module, validating, verbose=False)
    except SystemExit:  # Lightning's answer to Ctrl-C
        raise KeyboardInterrupt from None
    except UserError:
        raise
    except Exception as error:  # the loader may raise anything on a file of foreign origin
        if not resume or saving.began:
            raise
        raise UserError(
            f"{progress} cannot be resumed ({_first_line(error)}): start afresh with --overwrite"
        ) from error


def lightning_trainer(settings: TrainerSettings) -> Trainer:
    """Lightning's trainer; its `global_rank` is the rank of this process, 0 if there is one process.

    Raises:
        UserError: If Lightning refuses the settings.
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
    launcher = trainer.strategy.launcher
    # Launchers that fork are those that a notebook can do with; in a notebook Lightning chooses one by itself.
    forks = launcher is not None and launcher.is_interactive_compatible
    if forks or "spawn" in settings.strategy:
        raise UserError(
            f"--trainer.strategy {settings.strategy} trains copies that this process gets nothing back from: take ddp, "
            "or --trainer.devices 1 in a notebook"
        )
    processes.set_rank(trainer.global_rank)
    return trainer


@contextmanager
def _quiet() -> Generator[None, None, None]:
    """Silences Lightning's remarks on hardware and loaders: a user of this toolkit cannot act on them."""
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
