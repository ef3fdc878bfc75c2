"""Several processes that train together: who starts them, which one this is, and what they leave behind.

Lightning starts the command that trains once more for each further device. Such a process, a *helper*, does the
training that its parent is at and nothing else: it writes no file, says nothing, and ends. Under `torchrun`, `srun` and
the like the processes are started from outside, and those after the first do the same. What the environment says of
ranks counts for helpers and for processes started from outside alone: elsewhere such variables are another program's.
"""

import json
import os
import random
import signal
import subprocess
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import psutil
import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.lsf import LSFEnvironment
from lightning.fabric.plugins.environments.mpi import MPIEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Trainer

from abc_toolkit.errors import UserError

_MARK = "ATTENTION_BIAS_TRAINING"  # an environment variable: what the process that set it is training
_PATIENCE = 60  # seconds that helpers have to end after a training
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]


@dataclass(frozen=True)
class Help:
    """What a helper was started for.

    Attributes:
        phase: The training.
        resume: Whether it goes on from progress.
        pid: The process that started it.
    """

    phase: Literal["fit", "retrain"]
    resume: bool
    pid: int


def wanted_help() -> Help | None:
    """What this process was started to help with; `None` in a process that nobody's training started."""
    try:
        found = Help(**json.loads(os.environ[_MARK]))
        local_rank = int(os.environ["LOCAL_RANK"])
        helps = local_rank > 0 and found.pid in {parent.pid for parent in psutil.Process().parents()}
    except (KeyError, ValueError, TypeError, psutil.Error):
        return None
    return found if helps else None


class _OwnProcesses(LightningEnvironment):
    """Processes that Lightning starts from the first one on this machine, whatever else the environment says.

    Args:
        num_nodes: Number of machines; on each somebody starts the command, with `NODE_RANK`, `MASTER_ADDR` and
            `MASTER_PORT` in the environment.

    Attributes:
        started: Whether the other processes were started.
    """

    def __init__(self, num_nodes: int) -> None:
        super().__init__()
        self.started = False
        self._num_nodes = num_nodes
        self._local_rank = super().local_rank() if wanted_help() else 0

    @property
    def creates_processes_externally(self) -> bool:
        return self.started or self._local_rank > 0

    def local_rank(self) -> int:
        return self._local_rank

    def node_rank(self) -> int:
        return super().node_rank() if self._num_nodes > 1 else 0


# Each of several machines needs these variables if no launcher starts their processes.
_PLACES = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")


def environment(devices: Any, num_nodes: int) -> ClusterEnvironment:
    """Who starts the processes of a training on some devices, as Lightning wants to be told.

    Raises:
        ValueError: If variables of the environment contradict one another, or do not say where the other machines are.
    """
    outside = None if num_nodes == 1 and _is_one(devices) else _outside()
    if outside is None:
        missing = [name for name in _PLACES if name not in os.environ] if num_nodes > 1 else []
        if missing:  # it would wait for them for half an hour
            raise ValueError(
                f"--trainer.num_nodes {num_nodes}: on each machine set {', '.join(missing)}, or start the processes "
                "with torchrun or srun"
            )
        return _OwnProcesses(num_nodes)
    # The interrupted training of a job that SLURM ends is resumed by the user, with --resume.
    return SLURMEnvironment(auto_requeue=False) if outside is SLURMEnvironment else outside()


def _outside() -> type[ClusterEnvironment] | None:
    """What started this process together with others, if anything that Lightning knows did."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kinds = (TorchElasticEnvironment, SLURMEnvironment, LSFEnvironment, MPIEnvironment)
        return next((kind for kind in kinds if kind.detect()), None)


def starts_processes(devices: Any, num_nodes: int) -> bool:
    """Whether a command starts the processes of a training itself, and goes on alone when they have ended."""
    return num_nodes == 1 and (_is_one(devices) or _outside() is None)


def _is_one(devices: Any) -> bool:
    return devices in (1, "1") or (isinstance(devices, list) and len(devices) == 1)


@contextmanager
def together(trainer: Trainer, phase: Literal["fit", "retrain"], resume: bool) -> Iterator[None]:
    """Keeps the processes of a training together: they begin with what this one is at, and end with it.

    Raises:
        UserError: If another process ended before its time.
    """
    if trainer.world_size == 1:
        yield
        return
    helpers: list[Any] = getattr(trainer.strategy.launcher, "procs", [])
    before = dict(os.environ)
    os.environ[_MARK] = json.dumps(asdict(Help(phase, resume, os.getpid())))
    ended = False
    try:
        yield
        ended = True
    except Exception as error:
        died = [helper.poll() for helper in helpers if helper.poll() not in (None, 0)]
        if died and not isinstance(error, UserError):
            raise UserError(
                f"another process of the training ended, with exit status {died[0]}: start again"
            ) from error
        raise
    finally:
        if ended and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()  # a next training has other processes
        for helper in helpers:
            with suppress(subprocess.TimeoutExpired):
                if ended:
                    helper.wait(_PATIENCE)
            helper.kill()
            helper.wait()
        helpers.clear()  # or Lightning's watcher would end this process too, for those that were killed
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def started(trainer: Trainer) -> None:
    """Notes that the other processes of a training are there: Lightning is not to start them once more."""
    own = getattr(trainer.strategy, "cluster_environment", None)
    if isinstance(own, _OwnProcesses):
        own.started = True


def goes_by(rank: int) -> None:
    """Tells Lightning which process this is; it had read that from the environment."""
    rank_zero_only.rank = rank  # type: ignore[attr-defined]


@contextmanager
def undisturbed() -> Iterator[None]:
    """Leaves threads, random numbers, signal handlers and Lightning's rank to the caller as they were."""
    threads, rank = torch.get_num_threads(), getattr(rank_zero_only, "rank", 0)
    main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in _SIGNALS} if main else {}
    drawn, numbers = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        if not devices:  # seeds are kept for GPUs that are not in use yet: the caller's last one, and not ours
            torch.cuda.manual_seed_all(torch.initial_seed())
        random.setstate(drawn)
        np.random.set_state(numbers)
        torch.set_num_threads(threads)
        goes_by(rank)
        for number, handler in handlers.items():
            if handler is not None:  # else it is none of Python's
                signal.signal(number, handler)
