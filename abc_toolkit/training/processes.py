"""Several processes that train together: how they start, which one this is, and how they end.

For each further device Lightning starts the command once more. Such a process is a *helper*: it takes part in the
training of its parent, writes no file, prints nothing, and ends with the training. `torchrun`, `srun` and the like
start all processes from outside; those after the first act as helpers. Ranks in the environment count in helpers and in
processes started from outside only: elsewhere they belong to another program.
"""

import json
import os
import random
import signal
import subprocess
import threading
import warnings
from collections.abc import Generator
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

_MARK = "ATTENTION_BIAS_TRAINING"  # an environment variable that describes the training to helpers
_PATIENCE = 60  # seconds in which helpers must end after a training
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]


@dataclass(frozen=True)
class Help:
    """The training that a helper was started for.

    Attributes:
        phase: The phase that trains.
        resume: Whether the training is resumed.
        pid: Id of the process that started the helper.
    """

    phase: Literal["fit", "retrain"]
    resume: bool
    pid: int


def wanted_help() -> Help | None:
    """The training that this process was started for by another; `None` if it was not."""
    try:
        found = Help(**json.loads(os.environ[_MARK]))
        local_rank = int(os.environ["LOCAL_RANK"])
        helps = local_rank > 0 and found.pid in {parent.pid for parent in psutil.Process().parents()}
    except (KeyError, ValueError, TypeError, psutil.Error):
        return None
    return found if helps else None


class _OwnProcesses(LightningEnvironment):
    """Processes that Lightning starts from the first one on this machine; other ranks in the environment do not count.

    Args:
        num_nodes: Number of machines. The user starts the command on each of several machines, with `NODE_RANK`,
            `MASTER_ADDR` and `MASTER_PORT` in the environment.

    Attributes:
        started: Whether the helpers were started.
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


# Variables that each of several machines needs if no launcher starts the processes.
_ADDRESSES = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")


def environment(devices: Any, num_nodes: int) -> ClusterEnvironment:
    """Who starts the processes of a training, in Lightning's terms.

    Args:
        devices: Number of devices, or which, as Lightning takes them.
        num_nodes: Number of machines.

    Raises:
        ValueError: If environment variables contradict one another, or lack the addresses of the other machines.
    """
    outside = None if num_nodes == 1 and _is_one(devices) else _outside()
    if outside is None:
        missing = [name for name in _ADDRESSES if name not in os.environ] if num_nodes > 1 else []
        if missing:  # Lightning would wait half an hour for the other machines
            raise ValueError(
                f"--trainer.num_nodes {num_nodes}: on each machine set {', '.join(missing)}, or start the processes "
                "with torchrun or srun"
            )
        return _OwnProcesses(num_nodes)
    # The user resumes the training of an interrupted SLURM job, with --resume.
    return SLURMEnvironment(auto_requeue=False) if outside is SLURMEnvironment else outside()


def _outside() -> type[ClusterEnvironment] | None:
    """The launcher that started this process with others, of those that Lightning knows; `None` if there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kinds = (TorchElasticEnvironment, SLURMEnvironment, LSFEnvironment, MPIEnvironment)
        return next((kind for kind in kinds if kind.detect()), None)


def starts_processes(devices: Any, num_nodes: int) -> bool:
    """Whether a command starts all processes of a training itself, so that it goes on alone after the training."""
    return num_nodes == 1 and (_is_one(devices) or _outside() is None)


def _is_one(devices: Any) -> bool:
    return devices in (1, "1") or (isinstance(devices, list) and len(devices) == 1)


@contextmanager
def together(trainer: Trainer, phase: Literal["fit", "retrain"], resume: bool) -> Generator[None, None, None]:
    """Keeps the processes of a training together: helpers learn which training it is, and end with it.

    Args:
        trainer: Lightning's trainer.
        phase: The phase that trains.
        resume: Whether the training is resumed.

    Raises:
        UserError: If a helper failed.
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
            torch.distributed.destroy_process_group()  # the next training starts other processes
        for helper in helpers:
            with suppress(subprocess.TimeoutExpired):
                if ended:
                    helper.wait(_PATIENCE)
            helper.kill()
            helper.wait()
        helpers.clear()  # else Lightning's watcher would end this process because helpers were killed
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def mark_started(trainer: Trainer) -> None:
    """Marks the other processes as started, so that Lightning does not start them again."""
    own = getattr(trainer.strategy, "cluster_environment", None)
    if isinstance(own, _OwnProcesses):
        own.started = True


def set_rank(rank: int) -> None:
    """Sets Lightning's rank of this process, in place of the one that it read from the environment."""
    rank_zero_only.rank = rank  # type: ignore[attr-defined]


@contextmanager
def undisturbed() -> Generator[None, None, None]:
    """Restores threads, random numbers, signal handlers and Lightning's rank when the block ends."""
    threads, rank = torch.get_num_threads(), getattr(rank_zero_only, "rank", 0)
    main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in _SIGNALS} if main else {}
    drawn, numbers = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        if not devices:  # PyTorch keeps the last seed for GPUs that are not in use yet
            torch.cuda.manual_seed_all(torch.initial_seed())
        random.setstate(drawn)
        np.random.set_state(numbers)
        torch.set_num_threads(threads)
        set_rank(rank)
        for number, handler in handlers.items():
            if handler is not None:  # `None`: set by other code than Python's, and not to be restored
                signal.signal(number, handler)
