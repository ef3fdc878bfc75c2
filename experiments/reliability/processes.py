"""Commands as processes of their own, without the time that a start takes: forks of one that has loaded everything."""

import os
import random
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from abc_toolkit.cli.main import main
from abc_toolkit.runs.folder import CERTIFICATE, CONFIG, PROGRESS, RECORD

# A run of parity that takes seconds, and ends in a model that is right.
TRAINING = (
    "--{0}.data.validation_problems 64 --{0}.optimizer.warmup_steps 10 --{0}.optimizer.averaging 0.9 "
    "--{0}.trainer.max_steps 800 --{0}.trainer.validate_every 20 --{0}.trainer.accelerator cpu --{0}.stopping.loss 0.05"
)
SIZES = "--fit.model.model_dim 32 --fit.model.feedforward_dim 64 --fit.model.num_heads 2"
SETTINGS = (
    "--task Parity --task.max_length 3 "
    f"{TRAINING.format('fit')} {SIZES} --fit.stopping.exact_match 1 --fit.stopping.decay_steps 20 "
    f"--calibrate.problems 64 {TRAINING.format('retrain')} "
    "--evaluate.length 1x,2x --evaluate.samples 16"
).split()
# Files that say when they were written, or how long it took.
DATED = (RECORD, CERTIFICATE, PROGRESS, CONFIG)


def own_settings(phase: str) -> list[str]:
    """What one phase is told of the settings of a whole run."""
    pairs = zip(SETTINGS[::2], SETTINGS[1::2], strict=True)
    words = []
    for option, value in pairs:
        if option.startswith(f"--{phase}."):
            words += [option.replace(f"--{phase}.", "--"), value]
        elif (option.startswith("--task") and phase in ("fit", "run")) or phase == "run":
            words += [option, value]
    return words


def start(words: Sequence[str], folder: Path, output: Path, prepare: Callable[[], None] = lambda: None) -> int:
    """Starts a command in a folder; what it says is added to a file. Gives the process's number."""
    sys.stdout.flush()
    number = os.fork()
    if number:
        return number
    status = 1
    try:
        os.chdir(folder)
        descriptor = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv = ["abc", *words]
        random.seed()
        prepare()
        try:
            status = main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def status_of(number: int) -> int:
    """The exit status of a process, once it has ended; negative for the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def done(words: Sequence[str], folder: Path, output: Path, prepare: Callable[[], None] = lambda: None) -> int:
    """Does a command and waits for its end."""
    return status_of(start(words, folder, output, prepare))


def listing(folder: Path) -> list[str]:
    """All names below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def content(run: Path) -> dict[str, bytes]:
    """The files of a run that should be the same whenever and however it was done, by name."""
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.is_file() and path.name not in DATED and path.suffix != ".png"
    }


def emptied(folder: Path) -> Path:
    """The folder, new and empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
