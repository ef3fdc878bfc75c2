"""A run: a folder that holds each phase's artifacts, and where each phase finds its input.

A phase is written in `.PHASE.partial` and takes its name, `PHASE`, when it is whole: a folder of that name is a
finished phase, always.
"""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file

from abc_toolkit.calibration.window import Window, Windowed
from abc_toolkit.description import describe, rebuild
from abc_toolkit.errors import UserError
from abc_toolkit.files import cannot_write, load_json, process_rank, save_json, save_tensors, save_text, sha256
from abc_toolkit.mamba import MambaLanguageModel
from abc_toolkit.model import Architecture, Backbone, Model
from abc_toolkit.tasks import Task
from abc_toolkit.transformer import DecoderOnly, EncoderDecoder

Phase = Literal["fit", "calibrate", "retrain", "evaluate", "certify"]
PHASES: tuple[Phase, ...] = get_args(Phase)
PIPELINE = PHASES[:4]  # what `abc run` does
CERTIFICATE = "certificate.json"
SCHEMA = 1
WEIGHTS = "weights.safetensors"
WINDOW = "window.json"
RECORD = "record.json"
CONFIG = "config.yaml"
PROGRESS = "progress.ckpt"
RUNS = Path("runs")
BACKBONES: Mapping[Backbone, type[Model]] = {
    "encoder-decoder": EncoderDecoder,
    "decoder-only": DecoderOnly,
    "mamba": MambaLanguageModel,
}


@dataclass(frozen=True)
class Run:
    """A run's folder.

    Attributes:
        path: The folder.
    """

    path: Path

    def __post_init__(self) -> None:
        for phase in PHASES:  # one that was killed while it took the place of an older one
            old = self._old(phase)
            if old.exists() and not self.folder(phase).exists():
                os.replace(old, self.folder(phase))

    @classmethod
    def of(cls, path: Path | str | None, task: Task) -> "Run":
        """The named run, or `runs/TASK`."""
        return cls(Path(path) if path is not None else RUNS / task.name)

    @classmethod
    def newest(cls, path: Path | str | None, needed: Phase) -> "Run":
        """The named run, or the newest in `runs/`, which must have finished a phase.

        Raises:
            UserError: If there is none.
        """
        if path is not None:
            run = cls(Path(path))
            if not run.path.is_dir():
                raise UserError(f"there is no run at {path}: name one with --run, or start one with 'abc fit'")
        else:
            runs = [cls(folder) for folder in (RUNS.iterdir() if RUNS.is_dir() else ()) if folder.is_dir()]
            interrupted = [run for run in runs if (run.partial("fit") / PROGRESS).exists()]
            runs = [run for run in runs if any(run.has(phase) for phase in PHASES)]
            if not runs and interrupted:
                raise UserError(f"{interrupted[0].path} holds an interrupted fit: finish it with 'abc fit --resume'")
            if not runs:
                raise UserError(f"there is no run in {RUNS}/: start with 'abc fit', or name a run with --run")
            run = max(runs, key=cls._changed)
        if not run.has(needed):
            if (run.partial(needed) / PROGRESS).exists():
                raise UserError(f"'abc {needed}' was interrupted in {run.path}: finish it with 'abc {needed} --resume'")
            raise UserError(f"{run.path} holds no finished '{needed}': do 'abc {needed} --run {run.path}' first")
        return run

    def _changed(self) -> float:
        return max(self.folder(phase).stat().st_mtime for phase in PHASES if self.has(phase))

    def folder(self, phase: Phase) -> Path:
        """A finished phase's folder."""
        return self.path / phase

    def partial(self, phase: Phase) -> Path:
        """The folder of a phase that is under way or was interrupted."""
        return self.path / f".{phase}.partial"

    def _old(self, phase: Phase) -> Path:
        return self.path / f".{phase}.old"

    def has(self, phase: Phase) -> bool:
        """Whether a phase is finished."""
        return (self.folder(phase) / RECORD).is_file()

    def up_to_date(self, phase: Phase) -> bool:
        """Whether a phase is finished, none before it was finished later, and it is not being replaced."""
        if not self.has(phase) or (self.partial(phase) / PROGRESS).exists():
            return False
        before = [self.folder(other) / RECORD for other in PIPELINE[: PHASES.index(phase)] if self.has(other)]
        own = (self.folder(phase) / RECORD).stat().st_mtime_ns
        return all(record.stat().st_mtime_ns <= own for record in before)

    @contextmanager
    def writing(self, phase: Phase, resume: bool = False, overwrite: bool = False) -> Iterator[Path]:
        """The folder to write a phase in; when the block ends it becomes the finished phase.

        With a block that fails, what was written stays for `--resume` if it holds a training's progress, and is
        removed if it does not.

        Raises:
            UserError: If the phase is there and is not to be overwritten, if there is nothing to resume, or if the
                folder cannot be written.
        """
        partial, folder = self.partial(phase), self.folder(phase)
        if process_rank():  # another process of the same command; the first one has made the folder
            yield partial
            return
        self._prepare(phase, resume, overwrite)
        try:
            yield partial
            old = self._old(phase)
            shutil.rmtree(old, ignore_errors=True)
            if folder.exists():
                os.replace(folder, old)
            os.replace(partial, folder)
            shutil.rmtree(old, ignore_errors=True)
            (folder / PROGRESS).unlink(missing_ok=True)  # needed until the folder has its name
        except OSError as error:
            raise cannot_write(partial, error) from error
        finally:
            if partial.exists() and not (partial / PROGRESS).exists():
                shutil.rmtree(partial, ignore_errors=True)
            with suppress(OSError):  # what else was made on the way and stayed empty
                self.path.rmdir()
                RUNS.rmdir()

    def _prepare(self, phase: Phase, resume: bool, overwrite: bool) -> None:
        partial, folder = self.partial(phase), self.folder(phase)
        if resume and overwrite:
            raise UserError("--resume and --overwrite exclude each other: give one")
        if resume and not (partial / PROGRESS).exists():
            state = "is finished" if self.has(phase) else "was not begun, or had not yet saved any progress"
            raise UserError(f"'{phase}' in {self.path} {state}: there is nothing to resume; leave out --resume")
        if not resume and not overwrite:
            if (partial / PROGRESS).exists():
                raise UserError(
                    f"'{phase}' in {self.path} was interrupted: go on with --resume, or start afresh with --overwrite"
                )
            if folder.exists():
                raise UserError(f"{folder} is there already: add --overwrite to replace it, or name another --run")
        try:
            if not resume:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            (partial / "writable").touch()
            (partial / "writable").unlink()
        except OSError as error:
            raise cannot_write(partial, error) from error

    def record(self, phase: Phase) -> dict[str, Any]:
        """What a finished phase recorded.

        Raises:
            UserError: If the file is not whole or of another version.
        """
        path = self.folder(phase) / RECORD
        record = load_json(path)
        if not isinstance(record, dict) or record.get("schema") != SCHEMA or record.get("phase") != phase:
            raise UserError(f"{path} is not a record of '{phase}' of this version: do 'abc {phase} --overwrite' again")
        return record

    def task(self, phase: Phase) -> Task:
        """The task of a finished phase."""
        return self._rebuilt(phase, "task", Task)

    def architecture(self, phase: Phase) -> Architecture:
        """The architecture of a finished training."""
        return self._rebuilt(phase, "model", Architecture)

    def _rebuilt(self, phase: Phase, key: str, kind: type) -> Any:
        try:
            value = rebuild(self.record(phase)[key], kind)
        except (KeyError, TypeError, AttributeError, ImportError) as error:
            raise UserError(f"{self.folder(phase) / RECORD} names no usable {key} ({error})") from None
        return value

    def window(self) -> Window:
        """The window of a finished calibration."""
        return Window.load(self.folder("calibrate") / WINDOW)

    def load_model(self, phase: Phase) -> Model:
        """A finished training's model, in evaluation mode.

        Raises:
            UserError: If its weights are truncated, foreign, or not those of its architecture.
        """
        task, architecture = self.task(phase), self.architecture(phase)
        folder = self.folder(phase)
        window = Window.load(folder / WINDOW) if (folder / WINDOW).exists() else None
        model = build_model(task, architecture, window)
        path = folder / WEIGHTS
        try:
            model.load_state_dict(load_file(path))
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{path} does not hold this model's weights ({reason}): do 'abc {phase} --overwrite'"
            ) from None
        return model.eval()

    def certificate_is_stale(self) -> bool:
        """Whether there is a certificate, and it is of other weights or another window than the run holds."""
        if not self.has("certify"):
            return False
        try:
            hashes = load_json(self.folder("certify") / CERTIFICATE)["hashes"]
            return any(hashes[name] != value for name, value in self.certified_hashes().items())
        except (UserError, KeyError, TypeError, OSError):
            return True

    def certified_hashes(self) -> dict[str, str]:
        """SHA-256 of the files that a certificate is of."""
        folder = self.folder("retrain")
        return {"weights": sha256(folder / WEIGHTS), "window": sha256(folder / WINDOW)}

    def weights_hash(self, phase: Phase) -> str:
        """SHA-256 of a finished training's weights file."""
        return sha256(self.folder(phase) / WEIGHTS)


def build_model(task: Task, architecture: Architecture, window: Window | None) -> Model:
    """A fresh model, inside a window if there is one.

    Raises:
        UserError: If the window, or the position method, does not fit the architecture.
    """
    position = architecture.positions
    if window is not None:
        window.check_fits(architecture.num_encoder_layers, architecture.num_decoder_layers, architecture.num_heads)
        position = Windowed(window, position)
    return BACKBONES[architecture.backbone](len(task.vocabulary), architecture, position)


def save_weights(folder: Path, model: Model) -> None:
    """Writes a model's weights."""
    tensors = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    save_tensors(folder / WEIGHTS, tensors, {"format": "pt"})


def save_record(
    folder: Path,
    phase: Phase,
    seed: int,
    settings: Mapping[str, Any],
    results: Mapping[str, Any],
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Writes what a phase was and did: settings twice, as a configuration that can be given to `--config` again.

    Args:
        folder: The phase's folder.
        phase: Its name.
        seed: Its seed.
        settings: Its arguments by name.
        results: What it measured.
        facts: What else belongs into the record and is no argument.
    """
    described = {name: describe(value) for name, value in settings.items()}
    save_text(folder / CONFIG, yaml.safe_dump(described, sort_keys=False))
    record = {"schema": SCHEMA, "phase": phase, "seed": seed} | described | {"results": dict(results)}
    record |= {name: describe(value) for name, value in (facts or {}).items()}
    record["versions"] = versions()
    record["commit"] = _commit()
    record["finished"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    save_json(folder / RECORD, record)


def versions() -> dict[str, str]:
    """Versions of what a result follows from."""
    packages = {name: version(name) for name in ("abc_toolkit", "torch", "lightning")}
    return packages | {"python": platform.python_version()}


def _commit() -> str | None:
    """The commit of the toolkit's own checkout, with `+` where files differ from it; `None` outside one."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def device_for(accelerator: str) -> torch.device:
    """The device that a command runs a model on: `cpu`, `gpu` or `auto`.

    Raises:
        UserError: If a GPU is asked for and there is none.
    """
    if accelerator not in ("cpu", "gpu", "auto"):
        raise UserError(f"--accelerator {accelerator}: choose cpu, gpu or auto")
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("there is no GPU here: use --accelerator cpu")
    return torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")
