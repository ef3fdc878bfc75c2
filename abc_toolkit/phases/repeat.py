"""The command lines that do a run again."""

import json
import shlex
from collections.abc import Iterator, Mapping
from inspect import signature
from typing import Any

from abc_toolkit.phases.calibrate import calibrate
from abc_toolkit.phases.evaluate import evaluate
from abc_toolkit.phases.training import fit, retrain
from abc_toolkit.runs.description import describe
from abc_toolkit.runs.folder import PHASES, Phase, Run

_FUNCTIONS = {"fit": fit, "calibrate": calibrate, "retrain": retrain, "evaluate": evaluate}
_LEFT_OUT = ("export", "size")  # what else was written with a calibration
_OWN = "abc_toolkit."


def command_lines(run: Run) -> list[str]:
    """The commands that do the finished phases of a run again, in another folder, each with the settings that it had.

    Settings that a command has by itself are left out.

    Raises:
        UserError: If a record is damaged.
    """
    return [_command_line(run, phase) for phase in PHASES if run.has(phase)]


def _command_line(run: Run, phase: Phase) -> str:
    words = ["abc", phase, "--run", f"{run.path}-again"]
    record = run.record(phase)
    if phase in _FUNCTIONS:
        parameters = signature(_FUNCTIONS[phase]).parameters
        defaults = {name: describe(parameters[name].default) for name in record["arguments"] if name in parameters}
        for name, value in record["arguments"].items():
            if name not in _LEFT_OUT:
                words += _option(name, value, defaults.get(name))
    foreign = _module_of(record.get("task"))
    if phase != "fit" and foreign is not None:
        words += ["--trust", foreign]
    return shlex.join(words)


def _option(name: str, value: Any, default: Any) -> Iterator[str]:
    """The words that give an option a value; none if it has the value by itself."""
    if value == default:
        return
    if isinstance(value, Mapping) and "class_path" not in value:
        for key, own in value.items():
            yield from _option(f"{name}.{key}", own, default.get(key) if isinstance(default, Mapping) else None)
    elif isinstance(value, Mapping) and str(value["class_path"]).startswith(_OWN):
        yield from (f"--{name}", value["class_path"].rpartition(".")[2])
        for key, own in value.get("init_args", {}).items():
            if own is not None:
                yield from (f"--{name}.{key}", _written(own))
    else:
        yield from (f"--{name}", _written(value))


def _written(value: Any) -> str:
    """A value as an option takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def _module_of(task: Any) -> str | None:
    """The module of a task that is not the toolkit's, which later phases have to be told to trust."""
    path = task.get("class_path") if isinstance(task, Mapping) else None
    return path.rpartition(".")[0] if isinstance(path, str) and not path.startswith(_OWN) else None
