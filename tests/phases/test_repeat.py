"""The commands that do a run again."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from abc_toolkit.phases.repeat import command_lines
from abc_toolkit.runs.folder import PIPELINE, Run
from tests.small_runs import resealed

Abc = Callable[..., tuple[int, str, str]]


def _settings(abc: Abc, line: str) -> dict[str, Any]:
    """What a command line asks for."""
    program, *words = shlex.split(line)
    assert program == "abc"
    status, out, err = abc(*words, "--print_config")
    assert status == 0, err
    return yaml.safe_load(out)


def _plain(value: Any) -> Any:
    """Settings in which a class has the name by which it is chosen."""
    if not isinstance(value, dict):
        return value
    plain = {name: _plain(own) for name, own in value.items() if own not in (None, [])}
    if "class_path" in plain:
        plain |= {"class_path": plain["class_path"].rpartition(".")[2], "init_args": plain.get("init_args", {})}
    return plain


def test_commands_ask_for_what_the_run_was_asked_for(abc: Abc, pipeline: Path) -> None:
    lines = command_lines(Run(pipeline))
    assert [line.split()[1] for line in lines] == list(PIPELINE)
    for phase, line in zip(PIPELINE, lines, strict=True):
        asked = _settings(abc, line)
        assert asked["run"] == f"{pipeline}-again"
        recorded = yaml.safe_load((pipeline / phase / "config.yaml").read_text())
        for name, value in recorded.items():
            assert _plain(asked[name]) == _plain(value), (phase, name)
    assert "--trainer.max_steps 800" in lines[0]
    assert "weight_decay" not in lines[0]  # as it is by itself


@pytest.mark.parametrize(
    ("phase", "name", "value"),
    [
        ("fit", "position", {"class_path": "abc_toolkit.positions.absolute.NoPE", "init_args": {}}),
        (
            "fit",
            "position",
            {
                "class_path": "abc_toolkit.positions.absolute.Cyclic",
                "init_args": {"period": 5, "base": 7.0, "coordinates": ["raw", "place"], "channels": "interleaved"},
            },
        ),
        ("retrain", "savings", ["thresholds", "biases"]),
    ],
)
def test_classes_and_lists_are_written_out(phase: Any, name: str, value: Any, abc: Abc, pipeline: Path) -> None:
    resealed(pipeline / phase, lambda record: record["arguments"]["model"].__setitem__(name, value))
    line = next(line for line in command_lines(Run(pipeline)) if line.startswith(f"abc {phase} "))
    assert _plain(_settings(abc, line)["model"][name]) == _plain(value)


def test_names_are_quoted_and_foreign_tasks_trusted(pipeline: Path) -> None:
    place = pipeline.rename(pipeline.with_name("a run; rm -rf x"))
    foreign = {"class_path": "theirs.tasks.Theirs", "init_args": {"max_length": 3}}
    for phase in PIPELINE:
        resealed(place / phase, lambda record: record.__setitem__("task", foreign))
    resealed(place / "fit", lambda record: record["arguments"].__setitem__("task", foreign))
    fit, calibrate, *_ = command_lines(Run(place))
    assert shlex.split(fit)[2:4] == ["--run", f"{place}-again"]
    assert json.loads(shlex.split(fit)[5]) == foreign
    assert "--trust" not in fit
    assert calibrate.endswith("--trust theirs.tasks")
