"""A sweep file: which runs a sweep consists of, as the command lines that make them."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from itertools import chain, product
from pathlib import Path
from typing import Any

from abc_toolkit.cli.configuration import find_settings, read_settings
from abc_toolkit.cli.parser import options
from abc_toolkit.errors import UserError
from abc_toolkit.phases.measure import Row
from abc_toolkit.phases.pipeline import DONE_BY_RUN, chosen_phases
from abc_toolkit.runs.folder import Phase

KEYS = ("config", "phases", "options", "grid", "retries", "cpus", "gpus")
Given = tuple[str, str]  # an option of the command line, and its value
STATE, ROWS, LOGS = "sweep.json", "results.csv", "logs"  # in the folder of a sweep
# Columns of results and summaries, besides the axes. Those that are options of `abc run`, such as `seed`, may be axes.
COLUMNS = (
    *(field.name for field in fields(Row)),
    *("run", "verdict", "runs", "pairs", "median", "least", "most", "mean"),
)
_LONGEST_NAME = 150  # characters of a folder's name, which systems limit to 255


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
        name: The name of its folder.
        settings: The label of its value on each axis of the grid.
        words: The words of the command line behind `abc run`, without those that name the folder.
    """

    name: str
    settings: Mapping[str, str]
    words: tuple[str, ...]


@dataclass(frozen=True)
class Sweep:
    """What a sweep file says.

    Attributes:
        runs: The runs, in the order of the grid: the last axis changes first.
        phases: The phases that each run does.
        retries: How often a run that failed is tried again.
        cpus: Processor cores that a run is given.
        gpus: GPUs that a run is given; a fraction shares one.
    """

    runs: tuple[SweepRun, ...]
    phases: tuple[Phase, ...]
    retries: int
    cpus: int
    gpus: float


def read_sweep(path: Path) -> Sweep:
    """Reads a sweep file.

    Its keys: `config`, a configuration for all runs; `phases`, of `abc run`, all if not given; `options`, further ones
    of `abc run`; `grid`, a mapping of axes; `retries`, 1 if not given; `cpus` and `gpus` of a run, 1 and 0.

    An axis is named after an option of `abc run` and lists its values, or maps labels to them. Any other axis maps
    labels to options. The runs are all combinations.

    Args:
        path: A YAML file.

    Raises:
        UserError: If it cannot be read, or a key, an option or a value in it makes no sense.
    """
    content = read_settings(path)
    for key in content:
        if key not in KEYS:
            raise UserError(f"{path} has the unknown key {key!r}{_near(key, KEYS)}: a sweep file has {', '.join(KEYS)}")
    phases = chosen_phases(_listed(content.get("phases", list(DONE_BY_RUN)), path, "phases"), window=False)
    grid = content.get("grid")
    if not isinstance(grid, dict) or not grid:
        raise UserError(f"{path} has no grid: write 'grid:' and below it an axis, such as 'seed: [0, 1, 2]'")
    shared = _given(path, "config", content["config"]) if "config" in content else []
    shared += [("--phases", ",".join(phases)), *_all_given(path, "options", content.get("options", {}))]
    axes = [_axis(path, name, values) for name, values in grid.items()]
    runs: dict[str, SweepRun] = {}
    for chosen in product(*(axis.items() for axis in axes)):
        settings = {name: label for name, (label, _) in zip(grid, chosen, strict=True)}
        name = "-".join(_as_file_name(label) for label in settings.values())
        if len(name) > _LONGEST_NAME:
            raise UserError(f"{path}: the labels of a run are too long for a folder's name: map shorter ones to values")
        if name.lower() in (STATE, ROWS, LOGS):
            raise UserError(f"{path}: a run would have the folder {name}, which the sweep needs: take another label")
        if name in runs:
            raise UserError(f"{path}: two runs would have the folder {name}: map other labels to their values")
        own = list(chain.from_iterable(given for _, given in chosen))
        configurations = [given for given in own if given[0] == "--config"]
        others = [given for given in own if given[0] != "--config"]
        # Configurations come first: later words replace what they set.
        runs[name] = SweepRun(name, settings, tuple(chain(*configurations, *shared, *others)))
    return Sweep(
        tuple(runs.values()),
        tuple(phases),
        _number(path, content, "retries", 1, int),
        _number(path, content, "cpus", 1, int),
        _number(path, content, "gpus", 0, float),
    )


def _axis(path: Path, name: str, values: Any) -> dict[str, list[Given]]:
    """The values of an axis: options and their values, by their labels."""
    is_option = name == "config" or _is_option(name)
    if not is_option and name in COLUMNS:
        raise UserError(f"{path}: results have a column {name} already: give the axis another name")
    if isinstance(values, dict) and values and "class_path" not in values:
        if is_option:
            return {label: _given(path, name, value) for label, value in values.items()}
        return {label: _all_given(path, f"{name}: {label}", value) for label, value in values.items()}
    if not is_option:
        raise UserError(
            f"{path}: 'abc run' has no option {name!r}{_near(name, options()['run'])}; an axis of another name maps "
            "labels to options"
        )
    listed = _listed(values, path, name)
    labels = [label(value) for value in listed]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise UserError(f"{path}: the axis {name} has {twice} twice: leave one out, or map labels to the values")
    return {label: _given(path, name, value) for label, value in zip(labels, listed, strict=True)}


def _listed(values: Any, path: Path, name: str) -> list[Any]:
    if isinstance(values, str) and values != "null":
        values = values.split(",")
    if not isinstance(values, list) or not values:
        raise UserError(f"{path}: {name} is empty: list values, such as '{name}: [A, B]'")
    return values


def _all_given(path: Path, where: str, settings: Any) -> list[Given]:
    """Several options, which may be nested."""
    if settings in ("null", ""):
        return []
    if not isinstance(settings, dict):
        raise UserError(f"{path}: {where} holds no options: write '{where}: {{OPTION: VALUE}}'")
    return [given for name, value in settings.items() for given in _given(path, name, value)]


def _given(path: Path, name: str, value: Any) -> list[Given]:
    """One option, or those of a group."""
    if isinstance(value, dict) and "class_path" not in value and "init_args" not in value:
        return [given for below, inner in value.items() for given in _given(path, f"{name}.{below}", inner)]
    if name == "config":
        file = find_settings(str(value))
        return [("--config", str(file.absolute()) if Path(str(value)) == file else str(value))]
    if not _is_option(name):
        raise UserError(f"{path}: 'abc run' has no option {name!r}{_near(name, options()['run'])}")
    if name in ("run", "resume", "overwrite", "phases"):
        raise UserError(f"{path}: the sweep itself gives {name} to each run: leave it out")
    return [(f"--{name}", value if isinstance(value, str) else json.dumps(value))]


def _is_option(name: str) -> bool:
    own = options()["run"]
    if name in own:
        return True
    parts = name.split(".")
    return any(own.get(".".join(parts[:count]), False) for count in range(1, len(parts)))  # a setting of a class


def label(value: Any) -> str:
    """A value in a few characters."""
    if isinstance(value, dict):
        name = str(value.get("class_path", "")).rpartition(".")[2]
        arguments = value.get("init_args", {})
        inner = ", ".join(f"{key}={label(item)}" for key, item in arguments.items()) if arguments else ""
        return f"{name}({inner})" if inner else name
    return ",".join(map(label, value)) if isinstance(value, list) else str(value).rpartition("abc_toolkit.")[2]


def _as_file_name(label: str) -> str:
    return re.sub(r"[^\w.+=,()]+", "_", label).strip("_.") or "_"


def _number(path: Path, content: Mapping[str, Any], key: str, default: float, kind: type) -> Any:
    try:
        value = kind(content.get(key, default))
    except (TypeError, ValueError):
        value = -1
    least = 1 if key == "cpus" else 0
    if not least <= value < 2**20:
        raise UserError(f"{path}: {key} {content[key]!r}: give a number of at least {least}")
    return value


def _near(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    found = get_close_matches(name, list(known), n=1)
    return f", did you mean {found[0]}?" if found else ""
