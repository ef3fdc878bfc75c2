"""A run: a folder with the artifacts of each phase.

One process at a time writes to a run: it holds the lock. A phase is written in `.PHASE.partial`, which is renamed to
`PHASE` when it is complete, so a folder `PHASE` is always a finished phase. Its record holds the hash of each of its
files, and hashes of what it read from earlier phases. Every read compares hashes, and no read changes anything.
"""

import filecmp
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from socket import gethostname
from typing import Any, Literal, TypeVar, cast, get_args

import torch
import yaml
from filelock import FileLock, Timeout

from abc_toolkit.errors import UserError
from abc_toolkit.models.base import Architecture, Backbone, Model
from abc_toolkit.models.mamba import MambaLanguageModel
from abc_toolkit.models.transformer import DecoderOnly, EncoderDecoder, EncoderOnly
from abc_toolkit.runs import weights
from abc_toolkit.runs.description import describe, rebuild
from abc_toolkit.runs.files import (
    cannot_write,
    canonical_hash,
    flush,
    load_json,
    read_bytes,
    save_json,
    save_tensors,
    save_text,
    sha256,
)
from abc_toolkit.runs.trust import PACKAGE
from abc_toolkit.tasks import Task
from abc_toolkit.windows.attention import Windowed
from abc_toolkit.windows.rules import Window, WindowError

T = TypeVar("T")
Phase = Literal["fit", "calibrate", "retrain", "evaluate", "certify", "explain"]
PHASES: tuple[Phase, ...] = get_args(Phase)
PIPELINE = PHASES[:4]  # what `abc run` does
CERTIFICATE = "certificate.json"
SCHEMA = 2
WEIGHTS = "weights.safetensors"
WINDOW = "window.json"
RECORD = "record.json"
CONFIG = "config.yaml"
PROGRESS = "progress.ckpt"
RUNS = Path("runs")
BACKBONES: Mapping[Backbone, type[Model]] = {
    "encoder-decoder": EncoderDecoder,
    "decoder-only": DecoderOnly,
    "encoder-only": EncoderOnly,
    "mamba": MambaLanguageModel,
}
_LOCK, _WRITER = ".lock", ".writer.json"


@dataclass(frozen=True)
class Run:
    """A run's folder.

    Attributes:
        path: The folder.
    """

    path: Path

    @classmethod
    def named(cls, path: Path | str | None, task: Task) -> "Run":
        """The named run, or `runs/TASK`."""
        return cls(Path(path) if path is not None else RUNS / task.name)

    @classmethod
    def newest(cls, path: Path | str | None, needed: Phase | None = None) -> "Run":
        """The named run, or the run in `runs/` that finished a phase last.

        Args:
            path: Folder of the run.
            needed: A phase that the run must have finished; the one that it began with if not given.

        Raises:
            UserError: If there is no such run.
        """
        if path is not None:
            run = cls(Path(path))
            if not run.path.is_dir():
                raise UserError(f"there is no run at {path}: name one with --run, or start one with 'abc fit'")
        else:
            runs = [cls(folder) for folder in sorted(RUNS.iterdir() if RUNS.is_dir() else ()) if folder.is_dir()]
            interrupted = [run for run in runs if run.interrupted("fit")]
            runs = [run for run in runs if any(run.has(phase) for phase in PHASES)]
            if not runs and interrupted:
                raise UserError(f"{interrupted[0].path} holds an interrupted fit: finish it with 'abc fit --resume'")
            if not runs:
                raise UserError(f"there is no run in {RUNS}/: start with 'abc fit', or name a run with --run")
            try:
                run = max(runs, key=cls._finished)
            except UserError as error:
                raise UserError(f"{error}, or name another run with --run") from None
        run.check_has(run.first if needed is None else needed)
        return run

    def check_has(self, needed: Phase) -> None:
        """Refuses a run that has not finished a phase.

        Raises:
            UserError: With the command that finishes it.
        """
        if self.has(needed):
            return
        if self.interrupted(needed):
            raise UserError(f"'abc {needed}' was interrupted in {self.path}: finish it with 'abc {needed} --resume'")
        raise UserError(f"{self.path} holds no finished '{needed}': do 'abc {needed} --run {self.path}' first")

    def _finished(self) -> str:
        """When the last phase finished, by the records."""
        return max(str(self.record(phase)["finished"]) for phase in PHASES if self.has(phase))

    def folder(self, phase: Phase) -> Path:
        """The folder of a finished phase; the old one while a writer replaces it."""
        own, old = self._named(phase), self._old(phase)
        return old if not own.exists() and old.exists() else own

    def _named(self, phase: Phase) -> Path:
        return self.path / phase

    def _old(self, phase: Phase) -> Path:
        return self.path / f".{phase}.old"

    def partial(self, phase: Phase) -> Path:
        """The folder of a phase that is being written or was interrupted."""
        return self.path / f".{phase}.partial"

    def has(self, phase: Phase) -> bool:
        """Whether a phase is finished."""
        return os.path.lexists(self.folder(phase) / RECORD)  # a broken link counts, and is reported as damage

    def interrupted(self, phase: Phase) -> bool:
        """Whether a phase was interrupted and can be resumed."""
        return os.path.lexists(self.partial(phase) / PROGRESS)

    # Writing.

    @contextmanager
    def locked(self) -> Generator[None, None, None]:
        """Keeps other processes from writing to the run; first repairs what a killed writer left behind.

        The system releases the lock when the process ends, however it ends. Blocks may be nested.

        Raises:
            UserError: If another process is writing to the run, or the folder cannot be written.
        """
        lock = FileLock(self.path.absolute() / _LOCK, timeout=0.2, poll_interval=0.02, is_singleton=True)
        if lock.is_locked:
            yield
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()  # pyright: ignore[reportUnknownMemberType]
        except Timeout:
            raise UserError(
                f"{self.path} is being written by {self._writer()}: wait for it, or name another --run"
            ) from None
        except (OSError, NotImplementedError) as error:
            raise cannot_write(self.path, error) from error
        try:
            command = " ".join(["abc", *sys.argv[1:2]])
            since = datetime.now(timezone.utc).isoformat(timespec="seconds")
            own = {"pid": os.getpid(), "host": gethostname(), "command": command, "since": since}
            save_json(self.path / _WRITER, own)
            try:
                self._repair()
            except OSError as error:
                raise cannot_write(self.path, error) from error
            yield
        finally:
            for name in (_WRITER, _LOCK):  # the holder may remove the lock's file: a waiting process makes another
                with suppress(OSError):
                    (self.path / name).unlink(missing_ok=True)
            lock.release()
            with suppress(OSError):  # folders that were made here and are empty
                self.path.rmdir()
                RUNS.rmdir()

    def _writer(self) -> str:
        """The process that holds the lock, as it describes itself."""
        try:
            told = load_json(self.path / _WRITER)
            return f"process {told['pid']} on {told['host']} ('{told['command']}', since {told['since']})"
        except (UserError, KeyError, TypeError):
            return "another process"

    def _repair(self) -> None:
        """Finishes or undoes what a killed writer had begun."""
        for phase in PHASES:
            own, old, partial = self._named(phase), self._old(phase), self.partial(phase)
            if old.exists() and not own.exists():
                os.replace(old, own)
            _remove(old)
            if not self.interrupted(phase):
                _remove(partial)
            for folder in (self.path, partial):
                for left in folder.glob(".*.tmp"):
                    left.unlink(missing_ok=True)
            with suppress(UserError):  # a damaged record says nothing: the progress is kept
                if (own / PROGRESS).is_file() and self.record(phase) and not self.extensible(phase):
                    (own / PROGRESS).unlink()

    @contextmanager
    def writing(
        self,
        phase: Phase,
        resume: bool = False,
        overwrite: bool = False,
        *,
        inputs: Mapping[str, str] | None = None,
        rank: int = 0,
    ) -> Generator[Path, None, None]:
        """The folder to write a phase in; it becomes the finished phase when the block ends.

        If the block fails, the folder is kept for `--resume` if it holds the progress of a training, else removed.

        Args:
            phase: The phase.
            resume: Whether to resume the phase, if it was interrupted or ended at its largest number of steps.
            overwrite: Whether to replace the phase, if it is finished.
            inputs: Hashes of what was read from other phases, as `produced` names them; they must still hold.
            rank: Rank of this process among those of the command; the first, 0, makes and renames the folder.

        Raises:
            UserError: If the phase is finished and not to be overwritten, if there is nothing to resume, if an input
                has changed, if another process is writing to the run, or if the folder cannot be written.
        """
        partial = self.partial(phase)
        if rank:
            yield partial
            return
        with self.locked():
            self._check_inputs(phase, inputs or {})
            try:
                self._prepare(phase, resume, overwrite)
                yield partial
                self._finish(phase)
            except OSError as error:
                raise cannot_write(partial, error) from error
            finally:
                if not self.interrupted(phase) or self._as_finished(phase):
                    _remove(partial)

    def _prepare(self, phase: Phase, resume: bool, overwrite: bool) -> None:
        partial, folder = self.partial(phase), self._named(phase)
        for path in (partial, folder):
            if path.is_symlink():
                raise UserError(f"{path} is a link, which is not replaced: name the run that it leads to with --run")
        if resume and overwrite:
            raise UserError("--resume and --overwrite exclude each other: give one")
        if resume and not self.interrupted(phase) and not (self.has(phase) and self.extensible(phase)):
            state = "is finished" if self.has(phase) else "was not begun, or had not yet saved any progress"
            raise UserError(f"'{phase}' in {self.path} {state}: there is nothing to resume; leave out --resume")
        if not resume and not overwrite:
            if self.interrupted(phase):
                raise UserError(
                    f"'{phase}' in {self.path} was interrupted: go on with --resume, or start afresh with --overwrite"
                )
            if folder.exists():
                raise UserError(f"{folder} is there already: add --overwrite to replace it, or name another --run")
        try:
            if not resume:
                _remove(partial)
            if not self.interrupted(phase):
                partial.mkdir()
                if resume:
                    copy = partial / f".{PROGRESS}.tmp"
                    shutil.copyfile(folder / PROGRESS, copy)
                    os.replace(copy, partial / PROGRESS)
            (partial / "writable").touch()
            (partial / "writable").unlink()
        except OSError as error:
            raise cannot_write(partial, error) from error

    def _check_inputs(self, phase: Phase, inputs: Mapping[str, str]) -> None:
        changed = self._changed_input(inputs)
        if changed is not None:
            source, what = changed
            raise UserError(f"the {what} of '{source}' in {self.path} was replaced while '{phase}' began: start again")

    def _changed_input(self, inputs: Mapping[str, str]) -> tuple[Phase, str] | None:
        """The first input that has changed: the phase that it is of, and its name; `None` if all are as they were."""
        for name, value in inputs.items():
            source, _, what = name.partition(": ")
            for phase in PHASES:
                if phase == source and self.has(phase) and self.produced(phase).get(name) != value:
                    return phase, what
        return None

    def _finish(self, phase: Phase) -> None:
        """Renames a finished phase from its temporary name to its own."""
        partial, own, old = self.partial(phase), self._named(phase), self._old(phase)
        for file in (*partial.rglob("*"), partial):
            flush(file)
        if own.exists():
            os.replace(own, old)
        os.replace(partial, own)
        flush(self.path)
        _remove(old)
        if not self.extensible(phase):  # not before: until the renaming the training could be resumed
            (own / PROGRESS).unlink(missing_ok=True)

    def _as_finished(self, phase: Phase) -> bool:
        """Whether a training that was to be extended has taken no further step."""
        return (self._named(phase) / PROGRESS).is_file() and filecmp.cmp(
            self._named(phase) / PROGRESS, self.partial(phase) / PROGRESS, shallow=False
        )

    def extensible(self, phase: Phase) -> bool:
        """Whether a finished training ended at its largest number of steps, so that more steps may follow."""
        try:
            return (self._named(phase) / PROGRESS).is_file() and self.record(phase)["results"]["reached"] is False
        except (UserError, KeyError, TypeError):
            return False

    # Reading.

    def record(self, phase: Phase) -> dict[str, Any]:
        """The record of a finished phase.

        Raises:
            UserError: If the file is incomplete, of another version, or was changed.
        """
        return self._reread(phase, lambda: self._record(phase))

    def _record(self, phase: Phase) -> dict[str, Any]:
        path = self.folder(phase) / RECORD
        found = load_json(path)
        record = cast(dict[str, Any], found) if isinstance(found, dict) else {}
        again = f"do 'abc {phase} --overwrite' again"
        if record.get("schema") != SCHEMA or record.get("phase") != phase:
            raise UserError(f"{path} is not a record of '{phase}' of this version: {again}")
        if record.pop("hash", None) != canonical_hash(record):
            raise UserError(f"{path} was changed after '{phase}' wrote it, as its hash is another: {again}")
        if not _has_its_parts(record, phase):
            raise UserError(f"{path} lacks parts that a record of '{phase}' has: {again}")
        return record

    def _reread(self, phase: Phase, read: Callable[[], T]) -> T:
        """The result of reading a phase; it is read again if a writer replaced the phase meanwhile."""
        for pause in (0.0, 0.01, 0.1, 0.5):
            before = self._state(phase)
            try:
                return read()
            except UserError:
                if self._state(phase) == before:
                    raise
                time.sleep(pause)
        return read()

    def _state(self, phase: Phase) -> tuple[Path, int, int] | None:
        path = self.folder(phase) / RECORD
        try:
            return path, path.stat().st_ino, path.stat().st_mtime_ns
        except OSError:
            return None

    def _read(self, record: Mapping[str, Any], name: str) -> bytes:
        """A file of the phase, given the phase's record.

        Raises:
            UserError: If it is missing or was changed.
        """
        phase = record["phase"]
        path = self.folder(phase) / name
        if name not in record["files"]:
            raise UserError(f"'{phase}' in {self.path} wrote no {name}: do 'abc {phase} --overwrite' again")
        content = read_bytes(path)
        if sha256(content) != record["files"][name]:
            other = "give an edited window with 'abc retrain --window FILE', or " if name == WINDOW else ""
            raise UserError(
                f"{path} was changed after '{phase}' wrote it, as its hash is another: {other}do 'abc {phase} "
                "--overwrite' again"
            )
        return content

    def read(self, phase: Phase, name: str) -> bytes:
        """A file of a finished phase.

        Raises:
            UserError: If it is missing or was changed.
        """
        return self._reread(phase, lambda: self._read(self._record(phase), name))

    def check(self, phase: Phase) -> None:
        """Checks that all files of a finished phase are as it wrote them.

        Raises:
            UserError: If one is missing or was changed.
        """

        def read() -> None:
            record = self._record(phase)
            for name in record["files"]:
                self._read(record, name)

        self._reread(phase, read)

    def produced(self, phase: Phase) -> dict[str, str]:
        """Hashes of the parts of a finished phase that later phases read."""
        record = self.record(phase)
        names = {"weights": WEIGHTS, "window": WINDOW, "certificate": CERTIFICATE}
        files = {name: record["files"].get(file) for name, file in names.items()}
        found = {name: value for name, value in files.items() if value is not None}
        if "model" in record:
            found |= {name: canonical_hash(record[name]) for name in ("task", "model")}
        return {f"{phase}: {name}": value for name, value in found.items()}

    def stale(self, phase: Phase) -> str | None:
        """Why a finished phase is stale, in words: one of its inputs has changed since. `None` if none has."""
        inputs = self.record(phase)["inputs"]
        changed = self._changed_input(inputs)
        if changed is not None:
            return f"it was made of another {changed[1]} than '{changed[0]}' holds now"
        for source in PHASES[: PHASES.index(phase)]:
            if any(name.startswith(f"{source}: ") for name in inputs) and self.has(source):
                reason = self.stale(source)
                if reason is not None:
                    return f"'{source}', which it was made of, is stale: {reason}"
        return None

    def warnings(self, *phases: Phase) -> list[str]:
        """A warning for each phase that is stale, or whose damaged record leaves that open."""
        found: list[str] = []
        for phase in phases:
            what = "the certificate" if phase == "certify" else f"'{phase}'"
            try:
                reason = self.stale(phase) if self.has(phase) else None
            except UserError as error:
                found.append(f"Warning: whether {what} in {self.path} is stale cannot be said: {error}.")
            else:
                found += [f"Warning: {what} in {self.path} is stale: {reason}."] if reason is not None else []
        return found

    def up_to_date(self, phase: Phase) -> bool:
        """Whether a phase is finished, not stale, and not being replaced."""
        return self.has(phase) and not self.interrupted(phase) and self.stale(phase) is None

    def task(self, phase: Phase) -> Task:
        """The task of a finished phase.

        Raises:
            UserError: Also if a file that the task reads is missing, or is not what a training read.
        """
        record = self.record(phase)
        task = self._rebuilt(record, "task", Task)
        if phase in ("fit", "retrain"):
            recorded = record.get("data_files", {})
            for path, value in task.data_files().items():
                if not isinstance(recorded, dict) or cast(dict[str, Any], recorded).get(path) != value:
                    raise UserError(
                        f"the content of {path} is not what '{phase}' in {self.path} was trained on, as its hash is "
                        f"another: restore it, or do 'abc {phase} --overwrite' again"
                    )
        return task

    @property
    def first(self) -> Phase:
        """The phase that the run began with: `fit`, or `calibrate` of maps from elsewhere."""
        return "calibrate" if self.has("calibrate") and not self.has("fit") else "fit"

    @property
    def verdict(self) -> str | None:
        """The verdict of the run's certificate; `None` if it has none."""
        return str(self.record("certify")["results"].get("verdict")) if self.has("certify") else None

    def architecture(self, phase: Phase) -> Architecture:
        """The architecture of a finished training, or of the model whose maps from elsewhere were calibrated."""
        return self._rebuilt(self.record(phase), "model", Architecture)

    def _rebuilt(self, record: Mapping[str, Any], key: str, kind: type[T]) -> T:
        path = self.folder(record["phase"]) / RECORD
        if key not in record:
            raise UserError(f"{path} names no {key}: do 'abc {record['phase']} --overwrite' again")
        return rebuild(record[key], kind, path, whole=True)

    def window(self) -> Window:
        """The window of a finished calibration."""
        return self._reread("calibrate", lambda: self._window(self._record("calibrate")))

    def _window(self, record: Mapping[str, Any]) -> Window:
        content = self._read(record, WINDOW)
        try:
            return Window.from_json(content.decode())
        except (WindowError, UnicodeDecodeError) as error:
            raise UserError(f"{self.folder(record['phase']) / WINDOW} cannot be used: {error}") from None

    def load_model(self, phase: Phase) -> Model:
        """A finished training's model, in evaluation mode.

        Raises:
            UserError: If its weights are missing, changed, or not those of its architecture.
        """
        return self._reread(phase, lambda: self._model(self._record(phase)))

    def _model(self, record: Mapping[str, Any]) -> Model:
        task, architecture = self._rebuilt(record, "task", Task), self._rebuilt(record, "model", Architecture)
        window = self._window(record) if record["phase"] == "retrain" else None
        model = build_model(task, architecture, window)
        content = self._read(record, WEIGHTS)
        try:
            weights.fill(model, weights.parse(content))
        except (ValueError, RuntimeError) as error:
            phase, reason = record["phase"], " ".join(str(error).split())
            raise UserError(
                f"{self.folder(phase) / WEIGHTS} does not hold this model's weights ({reason}): do 'abc {phase} "
                "--overwrite' again"
            ) from None
        return model.eval()

    def certified_hashes(self) -> dict[str, str]:
        """SHA-256 of the files that a certificate is about."""
        return {name: sha256(self.read("retrain", file)) for name, file in (("weights", WEIGHTS), ("window", WINDOW))}


def _has_its_parts(record: Mapping[str, Any], phase: Phase) -> bool:
    """Whether a record has the parts that are read of it. A right hash does not show that: a sender can compute it."""
    kinds = {"seed": int, "arguments": dict, "results": dict, "inputs": dict, "files": dict, "finished": str}
    if any(type(record.get(name)) is not kind for name, kind in kinds.items()):
        return False
    hashes = (*record["files"].values(), *record["inputs"].values())
    return (
        all(isinstance(value, str) for value in hashes)
        and all(name == Path(name).name for name in record["files"])
        and (phase not in ("fit", "retrain") or {"task", "model"} <= set(record))
    )


def _remove(folder: Path) -> None:
    """Removes a folder and its content, if it is there and not a link."""
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)


def build_model(task: Task, architecture: Architecture, window: Window | None) -> Model:
    """A model with fresh weights, inside a window if one is given.

    Raises:
        UserError: If the window, or the position method, does not fit the architecture, or its weights could not be
            saved.
    """
    position = architecture.positions
    if window is not None:
        sizes = (architecture.num_encoder_layers, architecture.num_decoder_layers, architecture.num_heads)
        window.check_fits(*sizes, architecture.kind)
        position = Windowed(window, position)
    model = BACKBONES[architecture.kind](task.interface, architecture, position)
    weights.check_savable(model)  # before it is trained
    return model


def save_weights(folder: Path, model: Model) -> None:
    """Writes a model's weights."""
    save_tensors(folder / WEIGHTS, weights.tensors_of(model), {"format": "pt"})


def save_record(
    folder: Path,
    phase: Phase,
    seed: int,
    arguments: Mapping[str, Any],
    results: Mapping[str, Any],
    *,
    inputs: Mapping[str, str],
    facts: Mapping[str, Any],
) -> None:
    """Writes the record of a phase: what it was asked, what it did, and the hashes of its files.

    Args:
        folder: The folder of the phase.
        phase: The phase.
        seed: The seed that it used.
        arguments: Its arguments by name, as given; they are also written as a file for `--config`.
        results: What it measured.
        inputs: Hashes of what it read, as `Run.produced` names them.
        facts: Further values that later phases read, such as the task.
    """
    described = {name: describe(value) for name, value in arguments.items()}
    save_text(folder / CONFIG, yaml.safe_dump(described, sort_keys=False, allow_unicode=True))
    names = sorted(path.name for path in folder.iterdir() if path.name != PROGRESS)
    record = {
        "schema": SCHEMA,
        "phase": phase,
        "seed": seed,
        **{name: describe(value) for name, value in facts.items()},
        "arguments": described,
        "results": dict(results),
        "inputs": dict(inputs),
        "files": {name: sha256(folder / name) for name in names if name != RECORD},
        "versions": versions(),
        "commit": _commit(),
        "finished": datetime.now(timezone.utc).isoformat(timespec="microseconds"),
    }
    save_json(folder / RECORD, record | {"hash": canonical_hash(record)})


def versions() -> dict[str, str]:
    """Versions of the packages that a result depends on."""
    packages = {name: version(name) for name in ("abc_toolkit", "torch", "lightning")}
    return packages | {"python": platform.python_version()}


def _commit() -> str | None:
    """The commit of the toolkit's own checkout, with `+` if files differ from it; `None` outside a checkout.

    A repository that the package was installed or copied into does not count, nor does one that the environment names.
    """
    package = PACKAGE
    root = package.parent
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*arguments: str) -> str:
        program = shutil.which("git")
        if program is None or Path(program).resolve().parent == Path.cwd():  # Windows searches the current folder first
            raise FileNotFoundError("git")
        # This starts no monitor that the repository configures, and does not write the repository's index.
        command = [program, "--no-optional-locks", "-c", "core.fsmonitor=false", "-C", str(root), *arguments]
        done = subprocess.run(
            command, check=True, timeout=10, capture_output=True, text=True, encoding="utf-8", env=environment
        )
        return done.stdout.strip()

    try:
        if f'name = "{package.name}"' not in (root / "pyproject.toml").read_text(encoding="utf-8"):
            return None
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None
        git("ls-files", "--error-unmatch", "--", package.name)
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", package.name) else "")
    except (OSError, ValueError, subprocess.SubprocessError):
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
