"""Lightning callbacks of a training, one job each.

Their order matters: `History` records a validation before the others read it, and `SaveProgress` comes last.
"""

import copy
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import lightning
import torch
from lightning.pytorch import Callback, Trainer

from abc_toolkit.models.transformer import TransformerModel
from abc_toolkit.seeds import Stream, seeded
from abc_toolkit.tasks import Problems
from abc_toolkit.tasks.objective import Objective, Stopping
from abc_toolkit.training.coverage import Coverage, Covered
from abc_toolkit.training.curriculum import Curriculum
from abc_toolkit.training.data import TrainingBatches
from abc_toolkit.training.module import TrainingModule


class Progress(Protocol):
    """Shows how a training goes on."""

    def update(self, step: int, loss: float | None = None, judged: str | None = None, weak: int | None = None) -> None:
        """Moves to a step, and shows what is given.

        Args:
            step: The step.
            loss: The training loss.
            judged: The first metric on held-out problems, in words.
            weak: Assignments in which the model is weak.
        """


class Silent:
    """Progress that is not shown."""

    def update(self, step: int, loss: float | None = None, judged: str | None = None, weak: int | None = None) -> None:
        """Shows nothing."""


class Threads(Callback):
    """Sets the number of CPU threads.

    Args:
        number: The number; 0 leaves it to PyTorch.
    """

    def __init__(self, number: int) -> None:
        self.number = number

    def setup(self, trainer: Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        if self.number:  # here, as Lightning sets them to its own liking when it starts several processes
            torch.set_num_threads(self.number)


class Signals(Callback):
    """Keeps the handler of SIGTERM that there was: Lightning's lets processes wait for one another within a step."""

    def __init__(self) -> None:
        self._terminated = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: Trainer, pl_module: lightning.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._terminated)


class EpochSeeds(Callback):
    """Starts each epoch, from one validation to the next, from a seed of its own.

    So a training that is resumed at its last saved epoch takes the same steps as one that was not interrupted.

    Args:
        seed: The training's seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: lightning.LightningModule) -> None:
        torch.manual_seed(seeded(self.seed, trainer.global_step, trainer.global_rank).initial_seed())


class StepClock(Callback):
    """Measures the wall time of the steps alone, since the last start.

    Attributes:
        seconds: The time so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: lightning.LightningModule) -> None:
        self._began = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: lightning.LightningModule) -> None:
        self.seconds += time.perf_counter() - self._began


class History(Callback):
    """Keeps and shows the training loss, and the loss and metrics on held-out problems.

    Args:
        objective: The task's objective.
        log_every: Steps between the training losses that are kept.
        progress: Shows them.

    Attributes:
        train: `step` and `loss`, one mapping each.
        validation: `step`, `loss`, and each metric by its name.
        stages: `step`, `dim` and `points` of each stage of a curriculum.
    """

    def __init__(self, objective: Objective, log_every: int, progress: Progress) -> None:
        self.objective = objective
        self.log_every = log_every
        self.progress = progress
        self.train: list[dict[str, float]] = []
        self.validation: list[dict[str, float]] = []
        self.stages: list[dict[str, int]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        step = trainer.global_step
        if step % self.log_every == 0:
            loss = pl_module.last_loss.item()
            self.train.append({"step": step, "loss": loss})
            self.progress.update(step, loss=loss)
            if trainer.logger is not None:
                trainer.logger.log_metrics({"loss": loss}, step)

    def on_validation_end(self, trainer: Trainer, pl_module: lightning.LightningModule) -> None:
        values = {metric.name: float(trainer.callback_metrics[metric.name]) for metric in self.objective.metrics}
        loss = float(trainer.callback_metrics["validation_loss"])
        self.validation.append({"step": trainer.global_step, **values, "loss": loss})
        if trainer.logger is not None:
            trainer.logger.log_metrics({**values, "validation_loss": loss}, trainer.global_step)
        judged = self.objective.metrics[0]
        self.progress.update(trainer.global_step, judged=judged.told(values[judged.name]))

    def add_covered(self, covered: Covered) -> None:
        """Adds the result of a coverage check to the last validation."""
        self.validation[-1] |= {"weak": covered.weak, "smallest_margin": covered.smallest_margin}
        self.progress.update(int(self.validation[-1]["step"]), weak=covered.weak)

    def state_dict(self) -> dict[str, Any]:
        return {"train": self.train, "validation": self.validation, "stages": self.stages}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.train, self.validation = list(state_dict["train"]), list(state_dict["validation"])
        self.stages = list(state_dict["stages"])


class Stages(Callback):
    """Keeps the stages of a curriculum in the history, each with the step at which it begins.

    The batches follow the curriculum themselves, so that the batch of a step is a function of the seed and the step.

    Args:
        curriculum: The curriculum.
        history: Receives the stages.
    """

    def __init__(self, curriculum: Curriculum, history: History) -> None:
        self.curriculum = curriculum
        self.history = history

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step - 1
        dim, points = self.curriculum.stage(step)
        if step == 0 or (dim, points) != self.curriculum.stage(step - 1):
            self.history.stages.append({"step": step, "dim": dim, "points": points})


class HardExamples(Callback):
    """Keeps the hard examples of the training batches in the progress.

    Args:
        batches: What is trained on.
    """

    def __init__(self, batches: TrainingBatches) -> None:
        self.batches = batches

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [(list(part.shape), part.source, part.target) for part in self.batches.hard_examples]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        parts = [Problems(tuple(shape), source, target) for shape, source, target in state_dict["parts"]]
        self.batches.hard_examples = tuple(parts)


class StopByValidation(Callback):
    """Stops a training that has reached what is asked for on held-out problems, once its rate has decayed.

    Args:
        stopping: What is asked for.
        history: The last validation.

    Attributes:
        reached: Whether the last validation reached it.
    """

    def __init__(self, stopping: Stopping, history: History) -> None:
        self.stopping = stopping
        self.history = history
        self.reached = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        decay_from = pl_module.decay_from
        if decay_from is not None and trainer.global_step >= decay_from + self.stopping.decay_steps:
            trainer.should_stop = True

    def on_validation_end(self, trainer: Trainer, pl_module: lightning.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        last = self.history.validation[-1]
        self.reached = self.history.objective.reached(last, last["loss"], self.stopping)
        if self.reached and pl_module.decay_from is None:
            pl_module.decay_from = trainer.global_step
        if self.reached and self.stopping.decay_steps == 0:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        return {"reached": self.reached}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.reached = bool(state_dict["reached"])


class StopByCoverage(Callback):
    """Stops a training whose model is weak in no assignment; those in which it is become hard examples.

    The model is tried from the first validation on that reaches the metric asked for: before that it is weak in many
    assignments, and needs no hard examples. The loss asked for does not count.

    Args:
        stopping: What is asked for on held-out problems.
        coverage: The assignments.
        seed: The training's seed.
        history: The last validation.
        batches: What is trained on; it is given the hard examples.

    Attributes:
        reached: Whether the last validation was such.
    """

    def __init__(
        self, stopping: Stopping, coverage: Coverage, seed: int, history: History, batches: TrainingBatches
    ) -> None:
        self.stopping = stopping
        self.coverage = coverage
        self.seed = seed
        self.history = history
        self.batches = batches
        self.reached = False

    def on_validation_end(self, trainer: Trainer, pl_module: lightning.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        met = self.history.objective.reached(self.history.validation[-1], 0.0, self.stopping)
        self.reached = False
        if met or pl_module.decay_from is not None:
            covered = self._examined(trainer, pl_module)
            self.batches.hard_examples = covered.hard_examples
            self.history.add_covered(covered)
            self.reached = met and not covered.weak
        if met and pl_module.decay_from is None:
            pl_module.decay_from = trainer.global_step
        if self.reached:
            trainer.should_stop = True

    def _examined(self, trainer: Trainer, module: TrainingModule) -> Covered:
        """The coverage of the averaged model. The first of several processes computes it."""
        model, covered = module.averaged, None
        assert isinstance(model, TransformerModel)  # as everything inside a window is
        if trainer.is_global_zero:
            generator = seeded(self.seed, Stream.COVERAGE, trainer.global_step)
            covered = self.coverage.examine(copy.deepcopy(model).cpu().eval(), generator)
        covered = trainer.strategy.broadcast(covered)
        assert covered is not None
        return covered

    def state_dict(self) -> dict[str, Any]:
        return {"reached": self.reached}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.reached = bool(state_dict["reached"])


class SaveProgress(Callback):
    """Saves the progress at the end of each epoch. It comes last, so that it saves what the others recorded.

    Args:
        path: The progress file.
        epoch_steps: Steps of an epoch.
        settings: The settings on which the weights depend; they must be the same when the training is resumed.

    Attributes:
        began: Whether the training began, and so the progress could be loaded.
    """

    def __init__(self, path: Path, epoch_steps: int, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.epoch_steps = epoch_steps
        self.settings = settings
        self.began = False
        self._ended = False

    def on_train_start(self, trainer: Trainer, pl_module: lightning.LightningModule) -> None:
        self.began = True
        trainer.should_stop = self._ended  # it had only to be written down when it was interrupted

    def on_train_epoch_end(self, trainer: Trainer, pl_module: lightning.LightningModule) -> None:
        # Lightning validates before it ends an epoch, so what is saved holds this epoch's validation.
        self._ended = trainer.should_stop
        # An epoch that was cut short by the number of steps is not saved: with more steps it is gone through anew.
        if self._ended or trainer.global_step % self.epoch_steps == 0:
            trainer.save_checkpoint(self.path)

    def state_dict(self) -> dict[str, Any]:
        return {"settings": self.settings, "ended": self._ended}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._ended = bool(state_dict["ended"])
