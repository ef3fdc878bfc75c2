import json
from itertools import product
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from abc_toolkit.errors import UserError
from abc_toolkit.sweeps.specification import read_sweep


def _read(tmp_path: Path, text: str) -> list[tuple[str, ...]]:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    return [run.words for run in read_sweep(path).runs]


def test_a_grid_is_all_combinations_as_command_lines(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        """
        config: addition
        phases: [fit, evaluate]
        options: {fit: {trainer: {max_steps: 7}}, evaluate.samples: 5}
        grid:
          fit.model.position: [RoPE, {class_path: AlgebraicPE, init_args: {decay: 0.98}}]
          size:
            small: {fit.model.model_dim: 16}
            as it is:
          seed: [0, 1]
        retries: 3
        """
    )
    found = read_sweep(path)
    assert (found.phases, found.retries, found.cpus, found.gpus, len(found.runs)) == (("fit", "evaluate"), 3, 1, 0, 8)
    first, last = found.runs[0], found.runs[-1]
    shared = ("--config", "addition", "--phases", "fit,evaluate")
    shared += ("--fit.trainer.max_steps", "7", "--evaluate.samples", "5")
    position = json.dumps({"class_path": "AlgebraicPE", "init_args": {"decay": "0.98"}})
    assert first.words == (*shared, "--fit.model.position", "RoPE", "--fit.model.model_dim", "16", "--seed", "0")
    assert last.words == (*shared, "--fit.model.position", position, "--seed", "1")
    assert (first.name, last.name) == ("RoPE-small-0", "AlgebraicPE(decay=0.98)-as_it_is-1")
    assert last.settings == {"fit.model.position": "AlgebraicPE(decay=0.98)", "size": "as it is", "seed": "1"}


def test_a_configuration_of_the_grid_comes_before_all_that_replaces_it(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text("seed: 3\n")
    words = _read(tmp_path, f"options: {{seed: 1}}\ngrid: {{config: [parity, {own}]}}\n")
    assert [line[:2] for line in words] == [("--config", "parity"), ("--config", str(own))]


def test_an_axis_may_choose_configurations_and_what_replaces_their_settings(tmp_path: Path) -> None:
    words = _read(tmp_path, "grid: {which: {base 2: {task.base: 2, config: addition_base}, plain: {config: addition}}}")
    phases = ("--phases", "fit,calibrate,retrain,evaluate,certify")
    assert words == [("--config", "addition_base", *phases, "--task.base", "2"), ("--config", "addition", *phases)]


@given(st.dictionaries(st.sampled_from(["seed", "evaluate.samples", "fit.trainer.max_steps", "task"]),
                       st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True), min_size=1))  # fmt: skip
def test_every_combination_is_there_once(tmp_path_factory: pytest.TempPathFactory, grid: dict[str, list[int]]) -> None:
    path = tmp_path_factory.mktemp("sweep") / "own.yaml"
    path.write_text(yaml.safe_dump({"grid": grid}, sort_keys=False))
    runs = read_sweep(path).runs
    assert len({run.name for run in runs}) == len(runs)
    expected = [dict(zip(grid, map(str, values), strict=True)) for values in product(*grid.values())]
    assert [run.settings for run in runs] == expected
    for run in runs:
        given_words = dict(zip(run.words[::2], run.words[1::2], strict=True))
        assert {name: given_words[f"--{name}"] for name in grid} == run.settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no grid"),
        ("grid:", "has no grid"),
        ("grid: {}", "has no grid"),
        ("grid: [1]", "has no grid"),
        ("grid: {seed: []}", "seed is empty"),
        ("grid: {seed: }", "seed is empty"),
        ("grid: {seed: [0, 0]}", "the axis seed has 0 twice"),
        ("grid: {seed: {a: 0, a: 1}}", "names 'a' twice"),
        ("grid: {name: {'a b': {seed: 0}, a_b: {seed: 1}}}", "two runs would have the folder a_b"),
        (f"grid: {{task: [{'x' * 200}]}}", "too long for a folder's name"),
        ("grid: {which: {Logs: {seed: 0}}}", "a run would have the folder Logs, which the sweep needs"),
        ("grid: {length: {a: {seed: 0}}}", "results have a column length already"),
        ("gird: {seed: [0]}", "unknown key 'gird', did you mean grid"),
        ("grid: {sed: [0]}", "no option 'sed', did you mean seed"),
        ("grid: {which: {a: {fit.modle.model_dim: 3}}}", "no option 'fit.modle.model_dim', did you mean fit.model"),
        ("grid: {which: {a: 3}}", "which: a holds no options"),
        ("grid: {run: [a, b]}", "gives run to each run"),
        ("grid: {resume: [true]}", "gives resume to each run"),
        ("options: 3\ngrid: {seed: [0]}", "options holds no options"),
        ("options: {nothing: 3}\ngrid: {seed: [0]}", "no option 'nothing'"),
        ("phases: [fit, certify]\ngrid: {seed: [0]}", "certify needs retrain"),
        ("phases: [fti]\ngrid: {seed: [0]}", "--phases fti: choose of"),
        ("config: additoin\ngrid: {seed: [0]}", "did you mean addition"),
        ("retries: -1\ngrid: {seed: [0]}", "retries '-1': give a number of at least 0"),
        ("cpus: 0\ngrid: {seed: [0]}", "cpus '0': give a number of at least 1"),
        ("gpus: many\ngrid: {seed: [0]}", "gpus 'many': give a number"),
        ("grid: {seed: [0]", "is no YAML"),
    ],
)
def test_a_sweep_file_that_makes_no_sense_is_told_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as told:
        _read(tmp_path, text)
    assert "\n" not in str(told.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*nowhere\.yaml"):
        read_sweep(tmp_path / "nowhere.yaml")
