"""Runs and folders as a stranger might send them, each of which tries to have code of its own run.

Code that runs leaves a mark: a file beside the folder. No command that reads what was sent may leave any.
"""

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from abc_toolkit.runs.files import canonical_hash, sha256

PHASES = ("fit", "calibrate", "retrain", "evaluate", "certify")
# The run that everything is sent with: its fit ends with its steps, so that it can be resumed with more of them.
PARITY = ("--task", "Parity", "--task.max_length", "3")
FIT: Mapping[str, str] = {
    "model.model_dim": "32",
    "model.num_heads": "2",
    "model.feedforward_dim": "64",
    "data.validation_problems": "64",
    "stopping.loss": "0",
    "trainer.validate_every": "50",
}
STEPS = 300
BASE = (
    *("run", *PARITY, "--run", "run", "--fit.trainer.max_steps", str(STEPS), "--calibrate.force", "true"),
    *(word for name, value in FIT.items() for word in (f"--fit.{name}", value)),
    *("--retrain.trainer.max_steps", "40", "--retrain.trainer.validate_every", "20", "--calibrate.problems", "64"),
    *("--retrain.data.validation_problems", "64", "--evaluate.samples", "8", "--evaluate.length", "3"),
)
TINY = ("--trainer.max_steps", "4", "--trainer.validate_every", "2", "--data.validation_problems", "8")
MORE = (*(word for name, value in FIT.items() for word in (f"--{name}", value)), "--trainer.max_steps", str(STEPS + 50))
# Every command that reads a run, as somebody would call it who was sent one.
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "solve": ("solve", "101"),
    "evaluate": ("evaluate", "--overwrite", "--length", "3", "--samples", "4"),
    "calibrate": ("calibrate", "--overwrite", "--force", "--problems", "16"),
    "certify": ("certify", "--overwrite"),
    "retrain": ("retrain", "--overwrite", *TINY),
    "fit --resume": ("fit", "--resume", *PARITY, *MORE),
}
# Names of files that installed packages import if they find them, and of others that something obeys by its name.
OPTIONAL = (
    *(
        "pyarrow",
        "tensorboard",
        "numexpr",
        "bottleneck",
        "IPython",
        "sitecustomize",
        "usercustomize",
        "scipy",
        "xarray",
    ),
    *("dill", "omegaconf", "pydantic", "triton", "onnx", "opt_einsum", "tensorflow", "scienceplots", "ipywidgets"),
    *("argcomplete", "_jsonnet", "ruamel", "requests", "statsmodels", "sklearn", "torch_xla", "torchvision", "pytz"),
    *("matplotlib_inline", "colorama", "regex", "tabulate", "zstandard", "cuda", "gmpy2", "monkeytype", "toml"),
    *("lz4", "comet_ml", "wandb", "mlflow"),
)
INSTALLED = ("torch", "lightning", "json", "numpy", "pandas", "yaml", "os", "re", "jsonargparse", "signal", "argparse")


class Evil:
    """Runs a shell's command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@dataclass
class Sent:
    """A folder that was sent: the current one, with a run in it.

    Attributes:
        folder: The current folder.
        mark: The file that code leaves which runs.
    """

    folder: Path
    mark: Path

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def code(self) -> str:
        """Python that leaves the mark."""
        return f"__import__('pathlib').Path({str(self.mark)!r}).touch()"

    @property
    def shell(self) -> str:
        """A shell's command that leaves the mark."""
        return f"echo x >> {self.mark}"

    def module(self, path: str) -> None:
        """A module with classes of every kind that a run names, which leaves the mark when it is imported."""
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        kinds = {"Task": "tasks.Parity", "Position": "positions.NoPE", "Sizes": "model.Architecture"}
        text = f"{self.code}\nfrom dataclasses import dataclass\n"
        for name, kind in kinds.items():
            module, _, base = kind.rpartition(".")
            text += f"from abc_toolkit.{module} import {base}\n\n@dataclass(frozen=True)\nclass {name}({base}):\n"
            text += f"    def __post_init__(self):\n        {self.code}\n\n"
        file.write_text(text)

    def records(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Changes the record of every phase, whose hashes the sender makes right."""
        for phase in PHASES:
            path = self.run / phase / "record.json"
            if path.exists():
                record = json.loads(path.read_text())
                sealed = record.pop("hash", None) is not None
                change(record)
                if sealed:
                    self._seal(record, path.parent)
                path.write_text(json.dumps(record))

    def _seal(self, record: dict[str, Any], folder: Path) -> None:
        for name in record["files"]:
            if (folder / name).is_file():
                record["files"][name] = sha256(folder / name)
        record["hash"] = canonical_hash(record)

    def sealed(self) -> None:
        """Makes the hashes of all records those of the files that there are."""
        self.records(lambda record: None)

    def named(self, class_path: Any, /, **settings: Any) -> None:
        """All records name the class, as the task and as the position method."""

        def change(record: dict[str, Any]) -> None:
            for key in ("task", "model"):
                if key in record:
                    _name(record, key, class_path, settings)

        self.records(change)


def _name(record: dict[str, Any], key: str, class_path: Any, settings: Mapping[str, Any]) -> None:
    if key == "task":
        record["task"] = {"class_path": class_path, "init_args": dict(settings) or record["task"]["init_args"]}
    else:
        record["model"]["position"] = {"class_path": class_path, "init_args": dict(settings)}


@dataclass(frozen=True)
class Probe:
    """Something that was sent.

    Attributes:
        name: What it is, in words.
        prepare: Puts it into a folder with a run.
        commands: The commands that are tried, by their names in `COMMANDS`, or in full.
        run: The run, as it is named on the command line.
        module: Whether the toolkit is started as `python -m abc_toolkit.cli.main`.
    """

    name: str
    prepare: Callable[[Sent], None]
    commands: tuple[str | tuple[str, ...], ...] = tuple(COMMANDS)
    run: str = "run"
    module: bool = False

    def lines(self) -> Iterator[tuple[str, ...]]:
        """The command lines."""
        for command in self.commands:
            if isinstance(command, tuple):
                yield command
            else:
                words = COMMANDS[command]
                yield (words[0], "--run", self.run, *words[1:])


def _class(name: str, class_path: Any, file: str | None = None, /, **settings: Any) -> Probe:
    def prepare(sent: Sent) -> None:
        if file is not None:
            sent.module(file)
        texts = {"MARK": sent.shell, "CODE": sent.code}
        filled = {key: texts.get(value, value) if isinstance(value, str) else value for key, value in settings.items()}
        sent.named(class_path, **filled)

    return Probe(f"record: {name}", prepare)


def _only(name: str, change: Callable[[dict[str, Any]], None]) -> Probe:
    def prepare(sent: Sent) -> None:
        sent.module("evil.py")
        sent.records(change)

    return Probe(f"record: {name}", prepare)


def _position(record: dict[str, Any], described: Any) -> None:
    if "model" in record:
        record["model"]["position"] = described


def _arguments(record: dict[str, Any]) -> None:
    evil = {"class_path": "evil.Task", "init_args": {}}
    for part in ("arguments", "results", "inputs", "versions", "trainer", "stopping", "data", "optimizer"):
        if isinstance(record.get(part), dict):
            record[part] = dict.fromkeys(record[part], evil)


EVIL = {"class_path": "evil.Position", "init_args": {}}
COMPOSED_EVIL = {"class_path": "abc_toolkit.positions.compose.Compose", "init_args": {"methods": [EVIL]}}
RANDOM_EVIL = {
    "class_path": "abc_toolkit.positions.random.RandomizedPositions",
    "init_args": {"inner": COMPOSED_EVIL, "capacity": 64},
}


def _logger(record: dict[str, Any]) -> None:
    for part in (record, record.get("arguments", {})):
        if isinstance(part.get("trainer"), dict):
            part["trainer"] |= {name: {"class_path": "evil.Task"} for name in ("logger", "callbacks", "plugins")}


RECORDS = (
    _class("a module of the current folder", "evil.Task", "evil.py"),
    _class("a package of the current folder", "evil.inner.Task", "evil/__init__.py"),
    _class("a folder that is no package", "evil.inner.Task", "evil/inner.py"),
    _class("a module in the run", "run.fit.evil.Task", "run/fit/evil.py"),
    _class("a relative name", ".evil.Task", "evil.py"),
    _class("a name of the folder above", "..evil.Task", "evil.py"),
    _class("a path", "./evil.py:Task", "evil.py"),
    _class("a module beside the toolkit's own", "abc_toolkit.evil.Task", "abc_toolkit/evil.py"),
    _class("a module of the toolkit's name", "abc_toolkit.Task", "abc_toolkit.py"),
    _class("a module of an optional package's name", "pyarrow.Task", "pyarrow.py"),
    _class("an installed package that is not loaded", "antigravity.Task"),
    _class("exec", "builtins.exec", object="CODE"),
    _class("eval", "builtins.eval", source="CODE"),
    _class("a name without a module", "exec", object="CODE"),
    _class("a process", "subprocess.Popen", args="MARK", shell=True),
    _class("a function", "os.system", command="MARK"),
    _class("a function of a module in a module", "abc_toolkit.runs.folder.os.system", command="MARK"),
    _class("a process of a module in a module", "abc_toolkit.runs.folder.subprocess.Popen", args="MARK", shell=True),
    _class("a function that runs files", "runpy.run_path", "evil.py", path_name="evil.py"),
    _class("a function that imports", "importlib.import_module", "evil.py", name="evil"),
    _class("a function that times code", "timeit.timeit", stmt="CODE"),
    _class("a loader of hubs", "torch.hub.load", "hubconf.py", repo_or_dir=".", model="x", source="local"),
    _class("a loader of pickles", "torch.load", f="run/evil.pkl", weights_only=False),
    _class("a function of the toolkit", "abc_toolkit.phases.training.fit", run="."),
    _class("the command line", "abc_toolkit.cli.main.main", arguments=["solve", "--trust", "evil"]),
    _class("no text", ["evil", "Task"], "evil.py"),
    _class("full-width letters", "\uff45vil.Task", "evil.py"),
    _only("a position method in a list", lambda record: _position(record, COMPOSED_EVIL)),
    _only("a position method three deep", lambda record: _position(record, RANDOM_EVIL)),
    _only("a class in place of settings", lambda record: _position(record, {**COMPOSED_EVIL, "init_args": EVIL})),
    _only("sizes of another class", lambda record: record.update(model=EVIL | {"class_path": "evil.Sizes"})),
    _only("loggers, callbacks and plugins", _logger),
    _only("arguments, results and inputs", _arguments),
)


def _progress(make: Callable[[Sent, Path], None]) -> Callable[[Sent], None]:
    """A progress file in each place where one is looked for."""

    def prepare(sent: Sent) -> None:
        for phase in ("fit", "retrain"):
            partial = sent.run / f".{phase}.partial"
            partial.mkdir()
            for folder in (partial, sent.run / phase):
                (folder / "progress.ckpt").unlink(missing_ok=True)
                make(sent, folder / "progress.ckpt")

    return prepare


def _pickled(sent: Sent, path: Path) -> None:
    path.write_bytes(pickle.dumps(Evil(sent.shell)))


def _saved(sent: Sent, path: Path) -> None:
    torch.save({"state_dict": Evil(sent.shell)}, path)


def _saved_old(sent: Sent, path: Path) -> None:
    torch.save({"state_dict": Evil(sent.shell)}, path, _use_new_zipfile_serialization=False)


def _distributed(sent: Sent, path: Path) -> None:
    path.mkdir()
    for name in (".metadata", "meta.pt"):
        _pickled(sent, path / name)


def _weights(make: Callable[[Sent, Path], None], name: str = "weights.safetensors") -> Callable[[Sent], None]:
    def prepare(sent: Sent) -> None:
        for phase in PHASES:
            if (sent.run / phase / name).exists():
                make(sent, sent.run / phase / name)
        sent.sealed()

    return prepare


def _window(sent: Sent) -> None:
    sent.module("evil.py")
    for phase in ("calibrate", "retrain"):
        path = sent.run / phase / "window.json"
        window = json.loads(path.read_text())
        window["calibration"] = {"class_path": "evil.Task", "init_args": {}}
        path.write_text(json.dumps(window))
    sent.sealed()


def _yaml(file: str) -> Callable[[Sent], None]:
    def prepare(sent: Sent) -> None:
        tag = f"!!python/object/apply:os.system ['{sent.shell}']"
        for phase in PHASES:
            (sent.run / phase / file).write_text(f"seed: {tag}\ntask: {tag}\n")

    return prepare


def _config(text: str) -> Callable[[Sent], None]:
    def prepare(sent: Sent) -> None:
        sent.module("evil.py")
        (sent.run / "fit" / "config.yaml").write_text(text.replace("MARK", sent.shell).replace("CODE", sent.code))

    return prepare


def _certificate(sent: Sent) -> None:
    sent.module("evil.py")
    path = sent.run / "certify" / "certificate.json"
    certificate = json.loads(path.read_text())
    certificate["task"] = {"class_path": "evil.Task", "init_args": {}}
    certificate["architecture"]["position"] = EVIL
    path.write_text(json.dumps(certificate))
    sent.sealed()


def _linked_phase(sent: Sent) -> None:
    sent.module("evil.py")
    sent.named("evil.Task")
    shutil.move(sent.run, sent.folder / "elsewhere")
    sent.run.symlink_to("elsewhere")


def _linked_files(sent: Sent) -> None:
    _pickled(sent, sent.folder / "evil.pkl")
    for phase in ("fit", "retrain"):
        path = sent.run / phase / "weights.safetensors"
        path.unlink()
        path.symlink_to(sent.folder / "evil.pkl")
    sent.sealed()


def _linked_to_module(sent: Sent) -> None:
    sent.module("hidden")
    (sent.folder / "pyarrow.py").symlink_to("hidden")
    (sent.folder / "evil.py").symlink_to("hidden")
    sent.named("evil.Task")


def _files(*names: str) -> Callable[[Sent], None]:
    def prepare(sent: Sent) -> None:
        for name in names:
            (sent.folder / f"{name}.py").write_text(sent.code)

    return prepare


def _packages(sent: Sent) -> None:
    for name in OPTIONAL:
        (sent.folder / name).mkdir()
        (sent.folder / name / "__init__.py").write_text(sent.code)


def _in_the_run(sent: Sent) -> None:
    for name in ("evil", *OPTIONAL):
        (sent.run / f"{name}.py").write_text(sent.code)
    sent.named("evil.Task")


def _entry_points(sent: Sent) -> None:
    """As an installed package registers what Lightning loads, and what Python runs as it starts."""
    sent.module("evil.py")
    folder = sent.folder / "evil-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
    groups = (
        "lightning.pytorch.callbacks_factory",
        "lightning.fabric.strategies",
        "torch.backends",
        "matplotlib.backend",
    )
    (folder / "entry_points.txt").write_text("".join(f"[{group}]\nevil = evil:Task\n" for group in groups))
    (sent.folder / "evil.pth").write_text(f"import os; {sent.code}\n")


def _matplotlibrc(text: str) -> Callable[[Sent], None]:
    def prepare(sent: Sent) -> None:
        sent.module("evil.py")
        (sent.folder / "matplotlibrc").write_text(text.replace("COMMAND", sent.shell).replace("CODE", sent.code))
        for name in ("latex", "dvipng", "git"):
            program = sent.folder / name
            program.write_text(f"#!/bin/sh\n{sent.shell}\n")
            program.chmod(0o755)

    return prepare


def _programs(sent: Sent) -> None:
    for name in ("git", "latex", "lscpu", "nvidia-smi", "uname", "gcc", "ldconfig", "c++", "g++", "file"):
        program = sent.folder / name
        program.write_text(f"#!/bin/sh\n{sent.shell}\n")
        program.chmod(0o755)


def _repository(sent: Sent) -> None:
    for folder in (sent.folder, sent.run):
        (folder / ".git").mkdir()
        monitor = folder / "monitor"
        monitor.write_text(f"#!/bin/sh\n{sent.shell}\n")
        monitor.chmod(0o755)
        (folder / ".git" / "config").write_text(f"[core]\n\tfsmonitor = {monitor}\n\tpager = {monitor}\n")
        (folder / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
        for part in ("objects", "refs"):
            (folder / ".git" / part).mkdir()


# Versions of Matplotlib before 3.11 evaluate this without builtins; a generator's frame reaches those of the caller.
CYCLER = (
    "axes.prop_cycle: cycler('color', [[g := (g.gi_frame.f_back.f_back for _ in [1])], b := [*g][0].f_builtins, "
    'b["exec"]("CODE", {"__builtins__": b}), \'r\'][3:])\n'
)
# Commands that load everything there is.
DRAWING = ("evaluate", "retrain")
FOLDERS = (
    Probe("current folder: files of optional packages", _files(*OPTIONAL)),
    Probe("current folder: packages of optional names", _packages, DRAWING),
    Probe("current folder: files of installed packages", _files("abc_toolkit", "runpy", *INSTALLED), DRAWING),
    Probe("current folder: files of other names", _files("setup", "conftest", "hubconf", "__main__", ".env"), DRAWING),
    Probe("current folder: entry points and path files", _entry_points, DRAWING),
    Probe("current folder: a style with a backend of its own", _matplotlibrc("backend: module://evil\n"), DRAWING),
    Probe("current folder: a style that is evaluated", _matplotlibrc(CYCLER), DRAWING),
    Probe("current folder: a style that calls TeX", _matplotlibrc("text.usetex: True\n"), DRAWING),
    Probe("current folder: programs", _programs, DRAWING),
    Probe("current folder: a repository with a monitor", _repository, DRAWING),
    Probe("current folder is the run, with modules in it", _in_the_run, run="."),
    Probe("python -m, files of installed packages", _files(*INSTALLED), DRAWING, module=True),
    Probe("python -m, files of optional packages", _files(*OPTIONAL), DRAWING, module=True),
)
PROGRESS = ("fit --resume", ("retrain", "--run", "run", "--resume", *TINY))
CONFIG = ("--config", "run/fit/config.yaml", "--run")
FROM_CONFIG = (("fit", *CONFIG, "other"), ("calibrate", *CONFIG, "run"))
FILES = (
    Probe("progress: a pickle", _progress(_pickled), PROGRESS),
    Probe("progress: PyTorch's file with a class", _progress(_saved), PROGRESS),
    Probe("progress: PyTorch's old file with a class", _progress(_saved_old), PROGRESS),
    Probe("progress: a folder of several processes", _progress(_distributed), PROGRESS),
    Probe("weights: a pickle", _weights(_pickled)),
    Probe("weights: PyTorch's file with a class", _weights(_saved)),
    Probe("maps: a pickle", _weights(_pickled, "attention_maps.safetensors")),
    Probe("results: a pickle", _weights(_pickled, "results.json")),
    Probe("window: a method of the current folder", _window),
    Probe("record: tags of YAML", _yaml("record.json")),
    Probe("configuration of the run: tags of YAML", _yaml("config.yaml"), (*COMMANDS, *FROM_CONFIG)),
    Probe(
        "configuration of the run: a function",
        _config("task: {class_path: os.system, init_args: {command: 'MARK'}}\n"),
        FROM_CONFIG,
    ),
    Probe(
        "configuration of the run: a process as the logger",
        _config("trainer: {logger: {class_path: subprocess.Popen, init_args: {args: 'MARK', shell: true}}}\n"),
        FROM_CONFIG,
    ),
    Probe("configuration of the run: nobody gave it", _config("task: {class_path: evil.Task}\n")),
    Probe(
        "certificate: a task of the current folder",
        _certificate,
        (("certify", "--run", "run", "--verify", "run/certify/certificate.json"), "certify", "evaluate"),
    ),
    Probe("links: the run", _linked_phase),
    Probe("links: weights to a pickle", _linked_files),
    Probe("links: a module under another name", _linked_to_module),
)
PROBES = (*RECORDS, *FILES, *FOLDERS)
# The user names a class, if only by the configuration that he gives: its module is run, as he asked.
NAMED = (
    Probe(
        "configuration of the run, given by the user: a task",
        _config("task: {class_path: evil.Task}\ntrainer: {max_steps: 2, validate_every: 2}\n"),
        FROM_CONFIG[:1],
    ),
    Probe(
        "a class of the current folder on the command line",
        lambda sent: sent.module("evil.py"),
        (("fit", "--run", "other", "--task", "evil.Task", "--task.max_length", "3", *TINY),),
    ),
    Probe(
        "a module that --trust names",
        lambda sent: (sent.module("evil.py"), sent.named("evil.Task"))[1],
        (("solve", "--run", "run", "--trust", "evil", "101"),),
    ),
)


def sent(probe: Probe, base: Path, folder: Path) -> Sent:
    """A new folder with a copy of a run and what a probe puts there; the mark's place lies beside it."""
    made = Sent(folder, folder.with_name(f"{folder.name}.mark"))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copytree(base, made.run)
    probe.prepare(made)
    return made
