"""Some command lines and files of settings that make no sense; experiments/reliability/command_lines.py has more."""

import random
import shutil
from pathlib import Path

import pytest

from abc_toolkit.cli.commands import COMMANDS
from abc_toolkit.cli.parser import options
from tests.reliability.command_lines import Bench, Case, command_line, furnished, settings_file, snapshot


@pytest.fixture(scope="module")
def bench(_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    path = tmp_path_factory.mktemp("command_lines")
    shutil.copytree(_pipeline, path / "template" / "runs" / "parity")
    return Bench(furnished(path / "template"), path / "case")


@pytest.mark.parametrize("chunk", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 3))])
def test_what_makes_no_sense_is_refused_in_one_line_and_changes_nothing(chunk: int, bench: Bench) -> None:
    kinds = []
    for number in range(28):
        draws = random.Random(f"test {chunk} {number}")
        case = settings_file(draws) if number % 4 == 0 else command_line(draws)
        outcome = bench.outcome(case)
        assert not outcome.is_fault, (case, outcome)
        kinds.append(outcome.kind)
    assert kinds.count("refused") > 14


def test_every_option_of_every_command_is_drawn() -> None:
    drawn: dict[str, set[str]] = {command: set() for command in COMMANDS}
    for number in range(6000):
        words = command_line(random.Random(number)).words
        command = next((word for word in words if word in COMMANDS), "")
        if command:
            drawn[command] |= {word[2:].partition("=")[0] for word in words if word.startswith("--")}
    for command, names in drawn.items():
        assert options()[command].keys() <= names


def test_a_command_that_changes_something_is_seen(bench: Bench) -> None:
    """The bench is no bench if it sees nothing."""
    fit = ("fit", "--task", "Parity", "--run", "new", "--trainer.max_steps", "1", "--data.validation_problems", "8")
    before = snapshot(bench.template)
    assert bench.outcome(Case(fit)).kind == "done"
    assert bench.changed
    assert bench.outcome(Case((*fit, "--seed", "x"))).kind == "refused"
    assert not bench.changed
    assert snapshot(bench.template) == before
