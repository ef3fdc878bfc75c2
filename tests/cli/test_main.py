import hashlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from abc_toolkit.cli.parser import options
from abc_toolkit.proof.certificate import Certificate, Part
from abc_toolkit.runs.folder import PHASES, PIPELINE, Run
from abc_toolkit.tasks import Parity
from abc_toolkit.tasks.digits.base import DigitTask
from abc_toolkit.training.loop import ProgressFile
from tests.small_runs import resealed

Abc = Callable[..., tuple[int, str, str]]
COMMANDS = ("run", *PHASES, "solve", "export")
CONFIGS = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))
PARITY = ("--task", "Parity", "--task.max_length", "3")
TINY = (
    *PARITY,
    *("--trainer.max_steps", "20", "--trainer.validate_every", "10", "--data.validation_problems", "8"),
    *("--model.model_dim", "16", "--model.feedforward_dim", "16", "--stopping.loss", "0"),
)


def _contents(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _refused(result: tuple[int, str, str], text: str) -> None:
    status, out, err = result
    assert status == 2
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert re.search(text, err), err


def test_four_commands_in_an_empty_folder_with_no_argument(
    abc: Abc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {
        "ABC_FIT__TASK": "{class_path: Parity, init_args: {max_length: 3}}",
        "ABC_FIT__TRAINER__MAX_STEPS": "60",
        "ABC_RETRAIN__TRAINER__MAX_STEPS": "60",
        "ABC_CALIBRATE__FORCE": "true",
        "ABC_EVALUATE__SAMPLES": "8",
        "ABC_FIT__SEED": "3",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for command, words in [("fit", ()), ("calibrate", ()), ("retrain", ()), ("evaluate", ("--length", "10x"))]:
        status, out, err = abc(command, *words)
        assert status == 0, err
        assert f"Files: {Path('runs', 'parity', command)}" in err
        assert "Next:  abc " in err
        assert bool(out) == (command in ("calibrate", "evaluate"))
    rows = json.loads(Path("runs/parity/evaluate/results.json").read_text())
    keys = "task suite length tokens samples metric value low high weights seed decode shape"
    assert all(set(row) == set(keys.split()) for row in rows)
    assert {row["length"] for row in rows} == {30}
    assert {row["weights"] for row in rows} == {"fit", "retrain"}
    for phase in PIPELINE:
        record = json.loads(Path("runs/parity", phase, "record.json").read_text())
        assert record["seed"] == (0 if phase == "evaluate" else 3)
        assert set(record["versions"]) == {"abc_toolkit", "torch", "lightning", "python"}
        assert re.fullmatch(r"[0-9a-f]{40}\+?", record["commit"] or "0" * 40)
        assert Path("runs/parity", phase, "config.yaml").is_file()
        assert list(Path("runs/parity", phase).glob("*.png"))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_worded_for_a_user(command: str, abc: Abc) -> None:
    status, out, err = abc(command, "--help")
    assert status == 0
    assert err == ""
    for noise in (
        "<class",
        "typing.",
        "Path to a configuration file",
        "Lightning Trainer",
        "ENV:",
        "null",
        "known sub",
    ):
        assert noise not in out
    assert len(out.splitlines()) < 160
    assert ("--resume" in out) == (command in ("run", "fit", "retrain"))
    assert ("--overwrite" in out) == (command != "solve")
    assert ("--trainer.max_steps" in out) == (command in ("fit", "retrain"))
    assert "--run RUN" in out


def test_help_names_every_command(abc: Abc) -> None:
    status, out, _ = abc("--help")
    assert status == 0
    assert "ABC_FIT__SEED" in out
    assert all(re.search(rf"^ +{command} ", out, re.MULTILINE) for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_printed_settings_are_a_configuration(command: str, abc: Abc, tmp_path: Path) -> None:
    changes = {
        "run": ("--fit.trainer.max_steps", "9", "--retrain.model.dropout", "0.5", "--evaluate.length", "7"),
        "fit": (*TINY, "--seed", "4", "--model.position", "Cyclic", "--model.position.period", "5"),
        "calibrate": ("--method", "Paper", "--method.kappa_self", "2.0", "--problems", "7"),
        "retrain": ("--seed", "4", "--model.num_heads", "8", "--stopping.loss", "0.5"),
        "evaluate": ("--sets", "uniform,carry", "--decode", "steps"),
        "solve": ("--weights", "fit"),
        "certify": ("--run", "somewhere"),
        "explain": ("--run", "somewhere"),
        "export": ("--weights", "fit", "--license", "mit"),
    }
    status, first, err = abc(command, *changes[command], "--print_config")
    assert status == 0, err
    assert first != abc(command, "--print_config")[1]
    (tmp_path / "all.yaml").write_text(first)
    assert abc(command, "--config", str(tmp_path / "all.yaml"), "--print_config") == (0, first, "")


def test_each_command_takes_its_own_section_and_later_files_win(abc: Abc, tmp_path: Path) -> None:
    (tmp_path / "experiment.yaml").write_text(
        yaml.safe_dump(
            {
                "task": {"class_path": "Parity", "init_args": {"max_length": 4}},
                "seed": 5,
                "run": "somewhere",
                "fit": {"trainer": {"max_steps": 9, "validate_every": 3}},
                "calibrate": {"problems": 6},
                "retrain": {"trainer": {"max_steps": 7}},
                "evaluate": {"length": "8"},
            }
        )
    )
    (tmp_path / "later.yaml").write_text(yaml.safe_dump({"seed": 6, "fit": {"trainer": {"max_steps": 12}}}))
    files = [word for name in ("experiment.yaml", "later.yaml") for word in ("--config", str(tmp_path / name))]

    def settings(command: str) -> dict[str, Any]:
        status, out, err = abc(command, *files, "--print_config")
        assert status == 0, err
        return yaml.safe_load(out)

    fit, whole = settings("fit"), settings("run")
    assert fit["task"]["init_args"] == {"max_length": 4, "form": "scratchpad"}
    assert (fit["seed"], fit["run"]) == (6, "somewhere")
    assert (fit["trainer"]["max_steps"], fit["trainer"]["validate_every"]) == (12, 3)
    assert settings("calibrate")["problems"] == 6
    assert settings("retrain")["trainer"]["max_steps"] == 7
    assert settings("evaluate")["length"] == "8"
    assert settings("solve")["run"] == "somewhere"
    assert whole["fit"]["trainer"] == fit["trainer"]
    assert (whole["seed"], whole["calibrate"]["problems"]) == (6, 6)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_are_read_by_every_command(path: Path, abc: Abc) -> None:
    for command in COMMANDS:
        status, _, err = abc(command, "--config", str(path), "--print_config")
        assert status == 0, err


def test_what_a_run_recorded_does_it_again(abc: Abc, pipeline: Path) -> None:
    before = {phase: (pipeline / phase / "weights.safetensors").read_bytes() for phase in ("fit", "retrain")}
    results = (pipeline / "evaluate" / "results.json").read_text()
    window = (pipeline / "calibrate" / "window.json").read_text()
    for phase in PIPELINE:
        words = (phase, "--run", str(pipeline), "--config", str(pipeline / phase / "config.yaml"), "--overwrite")
        status, _, err = abc(*words)
        assert status == 0, err
    assert before == {phase: (pipeline / phase / "weights.safetensors").read_bytes() for phase in before}
    assert (pipeline / "evaluate" / "results.json").read_text() == results
    assert (pipeline / "calibrate" / "window.json").read_text() == window


# Every option of each phase, with another value than the one that it has by itself, where there is another.
TRAINING = {
    "data": {"batch_size": 32, "longer": 0.25, "validation_problems": 16},
    "optimizer": {"learning_rate": 0.01, "beta1": 0.8, "beta2": 0.97, "epsilon": 1e-7, "weight_decay": 0.1}
    | {"warmup_steps": 3, "averaging": 0.5, "schedule": "linear", "last_rate": 0.25, "muon_rate": 0.01},
    "stopping": {"exact_match": 0.9, "loss": 0.3, "decay_steps": 3},
    "trainer": {"max_steps": 9, "validate_every": 4, "accelerator": "cpu", "devices": "1", "num_nodes": 1}
    | {"strategy": "auto", "precision": "bf16-mixed", "gradient_clip": 0.5, "log_every": 2, "threads": 2}
    | {
        "progress_bar": False,
        "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "1e3", "version": "007"}},
    },
}
SIZES = {"num_encoder_layers": 0, "num_decoder_layers": 1, "num_heads": 2, "backbone": "encoder-decoder"}
CYCLIC = {"class_path": "Cyclic", "init_args": {"period": 5, "base": 7.0, "coordinates": ["raw", "place"]}}
EVERY_OPTION: dict[str, dict[str, Any]] = {
    "fit": {
        "task": {"class_path": "Parity", "init_args": {"max_length": 3, "form": "label"}},
        "seed": 4,
        "model": SIZES
        | {"model_dim": 16, "feedforward_dim": 24, "norm": "pre", "dropout": 0.1, "position": CYCLIC}
        | {"block": "llama", "init_std": 0.05},
        **TRAINING,
    },
    "calibrate": {
        "method": {"class_path": "Places", "init_args": {"min_attention": 0.02, "max_offset": 1, "narrow": False}},
        "problems": 40,
        "force": True,
        "export": "12",
        "size": "2x3",
        "accelerator": "auto",
    },
    "retrain": {
        "seed": 5,
        "window": "0x1f",
        "model": SIZES
        | {"model_dim": 16, "feedforward_dim": 24, "norm": "post", "dropout": 0.1, "position": CYCLIC}
        | {"savings": ["thresholds"]},
        "until": "validated",
        **TRAINING,
    },
    "evaluate": {
        "length": "2:3",
        "samples": 5,
        "sets": "carry, zeros",
        "decode": "steps",
        "weights": "fit",
        "attention": "dense",
        "seed": 3,
        "accelerator": "auto",
    },
}


def _leaves(settings: dict[str, Any], below: str = "") -> dict[str, Any]:
    """Settings by the names of their options."""
    found = {}
    for name, value in settings.items():
        if isinstance(value, dict) and "class_path" not in value:
            found |= _leaves(value, f"{below}{name}.")
        else:
            found[below + name] = value
    return found


@pytest.mark.parametrize("by", ["words", "file"])
@pytest.mark.parametrize("phase", PIPELINE)
def test_a_saved_configuration_repeats_every_option_of_a_phase(
    phase: str, by: str, abc: Abc, pipeline: Path, tmp_path: Path
) -> None:
    shutil.copy(pipeline / "calibrate" / "window.json", "0x1f")
    settings = _leaves(EVERY_OPTION[phase])
    own = {name for name in options()[phase] if not name.startswith("curriculum")}  # of other tasks alone
    own -= {"task", "maps"} if phase == "calibrate" else set()  # with which a run begins that has no fit
    own -= {"model.savings"} if phase == "fit" else set()  # Llama's blocks take none
    missing = {name for name in own if not any(other.startswith(f"{name}.") for other in own)}
    assert settings.keys() == missing - {"run", "resume", "overwrite", "trust", "config"}
    assert abc(phase, "--print_config")[0] == 0
    by_itself = _leaves(yaml.safe_load(abc(phase, "--print_config")[1]))
    alike = {name for name, value in settings.items() if str(by_itself[name]) == str(value)}
    other = {"model.norm"} if phase == "fit" else set()  # Llama's blocks have but one
    other |= {"trainer.devices", "trainer.num_nodes", "trainer.strategy"}
    assert alike <= {f"model.{name}" for name in SIZES} | other
    words: list[str] = []
    if by == "file":
        Path("settings.yaml").write_text(yaml.safe_dump(settings if phase == "evaluate" else EVERY_OPTION[phase]))
        words = ["--config", "settings.yaml"]
    else:
        for name, value in settings.items():
            words += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    place = pipeline if phase != "fit" else Path("new")
    status, _, err = abc(phase, "--run", str(place), "--overwrite", *words)
    assert status == 0, err
    kept = {name: (place / phase / name).read_bytes() for name in os.listdir(place / phase)}
    config = _leaves(yaml.safe_load(kept["config.yaml"]))
    assert config.keys() == settings.keys()
    plain = {"trainer.devices": 1}
    for name, value in settings.items():
        if not isinstance(value, dict):
            assert config[name] == plain.get(name, value), name
        else:
            assert config[name]["init_args"].items() >= value["init_args"].items() or name == "trainer.logger"
    shutil.move(place / phase / "config.yaml", "again.yaml")
    logged = Path("1e3")
    if logged.exists():
        shutil.rmtree(logged)
    shutil.rmtree(place / phase)
    exported = load_file("12") if Path("12").exists() else {}
    Path("12").unlink(missing_ok=True)
    status, _, err = abc(phase, "--run", str(place), "--config", "again.yaml")
    assert status == 0, err
    again = load_file("12") if Path("12").exists() else {}
    assert again.keys() == exported.keys()
    assert all(torch.equal(exported[name], matrix) for name, matrix in again.items())
    assert logged.exists() == ("trainer.logger" in settings)
    redone = {name: (place / phase / name).read_bytes() for name in os.listdir(place / phase)}
    assert redone.keys() == kept.keys()
    records = [json.loads(files.pop("record.json")) for files in (kept, redone)]
    for key in ("arguments", "seed", "inputs"):
        assert records[0][key] == records[1][key]
    for files in (kept, redone):
        files.pop("progress.ckpt", None)  # holds times
    assert kept == redone


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("nosuch", "no command 'nosuch'; choose from run, fit"),
        ("fit --task Additon", "--task Additon does not exist.*Parity.*did you mean Addition"),
        ("fit --task addition", "did you mean Addition"),
        ("fit --task abc_toolkit.tasks.Nosuch", "--task abc_toolkit.tasks.Nosuch does not exist"),
        ("fit --task os.path", "--task: os.path: it is no class of settings, but runs code"),
        ("fit --task.max_length 3", "--task.max_length needs --task before it: choose from"),
        ("fit --nosuch 3", "--nosuch"),
        ("fit --trainer.nosuch 3", "--trainer.nosuch"),
        ("fit --task Parity --task.nosuch 3", "nosuch"),
        ("fit --seed ten", "--seed: Expected a whole number"),
        ("fit --seed 1.5", "--seed: Expected a whole number"),
        ("fit --model.norm mid", "--model.norm: Expected one of 'pre', 'post'"),
        ("fit --trainer.precision 8", "--trainer.precision: Expected one of"),
        ("fit --model.position Nosuch", "--model.position Nosuch does not exist: choose from ALiBi, Abacus"),
        ("fit --model.position rope", "YaRN; did you mean RoPE?"),
        ("fit --model.position Cyclic --model.position.period 0", "--model.position.period 0: give at least 1"),
        ("fit --trainer.logger Nosuch", "--trainer.logger Nosuch does not exist"),
        ("fit --run new --trainer.num_nodes 3", "--trainer.num_nodes 3: on each machine set MASTER_ADDR, MASTER_PORT"),
        ("run --run new --retrain.trainer.num_nodes 3", "--trainer.num_nodes 3: on each machine set MASTER_ADDR"),
        ("fit --trainer.max_steps 0", "--trainer.max_steps 0: give at least 1"),
        ("fit --data.batch_size=-3", "--data.batch_size -3: give at least 1"),
        ("fit --model.num_heads 3", "--model.num_heads 3 does not divide --model.model_dim 64"),
        ("fit --task Parity --task.max_length 0", "max_length 0: give at least 1"),
        ("fit --overwrite perhaps", "--overwrite: Expected a true or false"),
        ("run --fit.trainer.max_steps 0", "--trainer.max_steps 0"),
        ("run --evaluate.length 0x", "'0x'"),
        ("run --evaluate.sets nosuch", "'nosuch' names no evaluation set"),
        ("run --evaluate.samples 0", "--samples 0: give at least 1"),
        ("run --calibrate.accelerator nosuch", "choose cpu, gpu or auto"),
        ("run --calibrate.size 3x3", "give --export FILE"),
        ("run --calibrate.export nowhere/x", "there is no folder"),
        ("run --retrain.trainer.accelerator nosuch", "the trainer cannot be set up"),
        ("run --retrain.window nosuch.json", "there is no window at nosuch.json"),
        ("fit --task Addition --task.max_length 1000000000 --run new", "would take about 3e.12 GiB and there are"),
        ("fit --model.num_decoder_layers 1000000 --run new", "at most 1,024 layers, and this has 1,000,000"),
        ("run --retrain.model.model_dim 1000000 --run new", "the model .--model. would take about"),
        (
            "calibrate --overwrite --export m.safetensors --size 99999x99999",
            "matrices of --size 99999x99999 would take",
        ),
        ("calibrate --overwrite --problems 1000000000000", "1,000,000,000,000 held-out problems .* would take about"),
        ("fit --config nosuch.yaml", "there is no file nosuch.yaml"),
        ("fit --config broken.yaml", "broken.yaml is no YAML"),
        ("fit --config unknown.yaml", "nosuch"),
        ("run --config unknown.yaml", "nosuch"),
        ("fit --run runs/parity", "is a run of parity: name another folder"),
        ("fit --run runs/parity --task Parity", "parity with other settings"),
        ("fit --run runs/parity --task Parity --task.max_length 3", "is there already: add --overwrite"),
        ("fit --run runs/parity --resume --task Parity --task.max_length 3", "nothing to resume"),
        ("run --run runs/parity --task Parity --task.max_length 3", "holds fit, calibrate, retrain, evaluate already"),
        (
            "run --run runs/parity --task Parity --task.max_length 3 --resume",
            "'fit' .* other settings: model",
        ),
        ("calibrate", "is there already: add --overwrite"),
        ("calibrate --overwrite --problems 0", "--problems 0: give at least 1"),
        ("calibrate --overwrite --method Nosuch", "--method Nosuch does not exist: choose from Paper, Places"),
        ("calibrate --overwrite --method Paper --method.target_limit=-1", "target_limit"),
        ("calibrate --overwrite --method.min_attention 5", "--method.min_attention 5: give at least 0 and at most 1"),
        ("calibrate --overwrite --size 3x3", "give --export FILE"),
        ("calibrate --overwrite --export m.safetensors --size 0x3", "--size '0x3'"),
        ("calibrate --overwrite --export nowhere/m.safetensors", "nowhere/m.safetensors cannot be written"),
        ("calibrate --overwrite --export /dev/full", "/dev/full is no file"),
        ("retrain", "is there already"),
        ("retrain --overwrite --window nosuch.json", "there is no file nosuch.json"),
        ("retrain --overwrite --model.num_heads 8", "the window is for 2 heads and the model has 8"),
        ("retrain --overwrite --model.num_encoder_layers 2", "0 encoder layers and the model has 2"),
        ("retrain --overwrite --model.num_decoder_layers 3", "1 decoder layers and the model has 3"),
        ("evaluate", "is there already"),
        *((f"evaluate --overwrite --length {length}", f"{length!r}") for length in ("0x", "-3", "ten", "0", "1,,2")),
        ("evaluate --overwrite --length=", "--length ''"),
        ("evaluate --overwrite --length 6:3", "runs backwards; write 3:6"),
        ("evaluate --overwrite --length 999999999x", "at most"),
        ("evaluate --overwrite --length 1:100000", "1:100000 names 100000 lengths; write fewer"),
        ("evaluate --overwrite --attention gathered", "--attention gathered: .* it has no window.* --weights retrain"),
        ("evaluate --overwrite --attention nosuch", "--attention: Expected one of 'auto', 'dense', 'gathered'"),
        ("evaluate --overwrite --weights nosuch", "--weights: Expected one of 'all', 'fit', 'retrain'"),
        ("evaluate --overwrite --samples 0", "--samples 0: give at least 1"),
        ("evaluate --overwrite --samples -4", "--samples -4: give at least 1"),
        ("evaluate --overwrite --sets uniform,nosuch", "'nosuch' names no evaluation set"),
        ("evaluate --overwrite --decode nosuch", "--decode: Expected one of 'parallel', 'steps'"),
        ("evaluate --overwrite --accelerator nosuch", "choose cpu, gpu or auto"),
        ("evaluate --run nowhere", "no run at nowhere"),
        ("solve 10a", "'a'"),
        ("solve 101 1+1", "problem 2 .*[+]"),
        ("solve --file nowhere", "--file nowhere cannot be read"),
        ("solve --weights nosuch 101", "--weights: Expected one of 'retrain', 'fit'"),
        ("solve --attention nosuch 101", "--attention: Expected one of 'auto', 'dense', 'gathered'"),
        ("solve --weights fit --attention gathered 101", "it has no window.* --weights retrain"),
        ("solve --model nowhere 101", "no export at nowhere"),
        ("solve --model runs/parity 101", "holds no config.json"),
        ("export", "name one .RUN. DIR: abc export"),
        ("export runs/parity", "runs/parity is there already"),
        ("export runs/parity --overwrite", "runs/parity is not replaced, as it is no export"),
        ("export nowhere new", "no run at nowhere"),
        ("export runs/parity new --run runs/parity", "name the same: give one"),
        ("export nowhere/new", "there is no folder .*nowhere to export into"),
        ("export a b c", "name one .RUN. DIR, not 3"),
        ("export new --license MIT!", "--license 'MIT!': give an identifier"),
        ("export new --weights nosuch", "--weights: Expected one of 'retrain', 'fit'"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_changes_nothing(
    words: str, text: str, abc: Abc, pipeline: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.yaml").write_text("a: [1,\nb: {")
    (tmp_path / "unknown.yaml").write_text("nosuch: 3\nfit: {nosuch: 3}\n")
    before = _contents(tmp_path)
    _refused(abc(*words.split()), text)
    assert _contents(tmp_path) == before
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "broken.yaml", "unknown.yaml"}


@pytest.mark.parametrize(
    ("task", "problem", "text"),
    [
        ("Addition", "12", "operator|[+]"),
        ("Addition", "+12", "empty"),
        ("Addition", "12+", "empty"),
        ("Addition", "1*2", r"\*"),
        ("Addition", "1+2+3", r"\+"),
        ("Addition", "1-2", "-"),
        ("Multiplication", "12*34", "one digit"),
        ("Multiplication", "12*", "empty|one digit"),
        ("Multiplication", "12+3", r"\+"),
        ("Successor", "1x", "x"),
        ("Successor", "", "empty"),
        ("Parity", "102", "2"),
        ("Parity", "", "empty"),
    ],
)
def test_problems_of_another_kind_are_refused(
    task: str, problem: str, text: str, abc: Abc, pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from abc_toolkit import tasks

    monkeypatch.setattr(Run, "task", lambda *_: getattr(tasks, task)())
    _refused(abc("solve", problem), f"problem 1 .*({text})")


@pytest.mark.parametrize("task", ["Addition", "Multiplication", "Successor", "Parity"])
def test_a_long_problem_is_refused_in_a_short_line(
    task: str, abc: Abc, pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from abc_toolkit import tasks

    monkeypatch.setattr(Run, "task", lambda *_: getattr(tasks, task)())
    number = "1" * 20_000
    for problem in (number + "a" * 20_000, f"{number}+", f"{number}*{number}+{number}", f"+{number}"):
        Path("problems").write_text(f"{problem}\n")
        status, out, err = abc("solve", "--file", "problems")
        assert (status, out, len(err.splitlines())) == (2, "\n", 1)
        assert "line 1 of problems cannot be solved by this run" in err
        assert len(err) < 250


@pytest.mark.parametrize("phase", ["fit", "calibrate", "retrain"])
def test_commands_out_of_order_name_the_one_that_is_missing(
    phase: str, abc: Abc, pipeline: Path, tmp_path: Path
) -> None:
    command = COMMANDS[COMMANDS.index(phase) + 1] if phase != "retrain" else "solve"
    words = (command, "101") if command == "solve" else (command, "--overwrite")
    (pipeline / phase).rename(tmp_path / "away")
    before = _contents(tmp_path)
    _refused(abc(*words), f"holds no finished '{phase}': do 'abc {phase} ")
    assert _contents(tmp_path) == before


def test_a_model_that_is_not_there_is_not_evaluated(abc: Abc, pipeline: Path, tmp_path: Path) -> None:
    (pipeline / "retrain").rename(tmp_path / "away")
    before = _contents(tmp_path)
    _refused(abc("evaluate", "--overwrite", "--weights", "retrain"), "holds no finished 'retrain': do 'abc retrain ")
    result = abc("evaluate", "--overwrite", "--attention", "gathered")
    assert result[0] == 2
    assert "--weights retrain" not in result[2]  # there is no other model to name
    assert _contents(tmp_path) == before
    status, _, err = abc("evaluate", "--overwrite", "--length", "1x", "--samples", "4")
    assert status == 0
    assert "holds no finished 'retrain': only the vanilla model is evaluated" in err
    rows = json.loads((pipeline / "evaluate" / "results.json").read_text())
    assert {row["weights"] for row in rows} == {"fit"}


@pytest.mark.parametrize(
    ("weights", "expected"), [("all", {"fit", "retrain"}), ("fit", {"fit"}), ("retrain", {"retrain"})]
)
def test_the_models_that_are_asked_for_are_evaluated(
    weights: str, expected: set[str], abc: Abc, pipeline: Path
) -> None:
    words = ("evaluate", "--overwrite", "--length", "1x", "--samples", "4", "--weights", weights)
    resealed(pipeline / "calibrate", lambda record: record["inputs"].update({"fit: weights": "0" * 64}))
    status, out, err = abc(*words)
    assert status == 0, err
    rows = json.loads((pipeline / "evaluate" / "results.json").read_text())
    assert {row["weights"] for row in rows} == expected
    assert ("vanilla" in out, "retrained" in out) == ("fit" in expected, "retrain" in expected)
    assert ("'retrain' in runs/parity is stale" in err) == ("retrain" in expected)
    record = yaml.safe_load((pipeline / "evaluate" / "config.yaml").read_text())
    assert (record["weights"], record["attention"]) == (weights, "auto")


@pytest.mark.parametrize(
    "words", [("evaluate", "--overwrite", "--length", "1x,100000", "--samples", "1"), ("solve", "101", "1" * 100_000)]
)
def test_a_length_beyond_memory_is_refused_beforehand(
    words: tuple[str, ...], abc: Abc, pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _contents(tmp_path)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2**25, resource.RLIM_INFINITY))
    _refused(abc(*words), r"length 100,000: one problem takes about 1 GiB and there are 0\.0 GiB; choose a shorter one")
    assert _contents(tmp_path) == before


def test_with_no_run_every_command_says_how_to_start(abc: Abc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (("calibrate",), ("retrain",), ("evaluate",), ("solve", "1+1")):
        _refused(abc(*words), "there is no run in runs/: start with 'abc fit'")
    assert os.listdir(tmp_path) == []


def test_solve_takes_problems_from_arguments_a_file_and_standard_input(
    abc: Abc, pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems = ["101", "11", "0", "1", "110", "111", "10"]
    expected = "0\n0\n0\n1\n0\n1\n1\n"
    assert abc("solve", *problems) == (0, expected, "")
    (tmp_path / "problems").write_text("\n".join(problems) + "\n\n")
    assert abc("solve", "--file", "problems") == (0, expected, "")
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(problems)))
    assert abc("solve") == (0, expected, "")
    monkeypatch.setattr(sys, "stdin", io.StringIO("101"))
    assert abc("solve", "--file", "-", "11") == (0, "0\n0\n", "")
    _, out, _ = abc("solve", "--check", *problems)
    assert out == "".join(f"{answer}\tright\n" for answer in expected.split())
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    _refused(abc("solve"), "there is no problem to solve")


def test_either_attention_gives_the_same_answers(abc: Abc, pipeline: Path) -> None:
    problems = [format(7919 * number, "b") for number in (0, 1, 3, 50, 1234, 99_999)] + ["10" * 100]
    for weights, paths in (("retrain", ("dense", "gathered", "auto")), ("fit", ("dense", "auto"))):
        printed = {abc("solve", "--check", "--weights", weights, "--attention", path, *problems) for path in paths}
        assert len(printed) == 1
        ((status, out, err),) = printed
        assert (status, err, len(out.splitlines())) == (0, "", len(problems))
        assert ("wrong" in out) == (weights == "fit")


def test_a_problem_of_thousands_of_digits_is_solved(abc: Abc, pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = random.Random(0)
    long, shorter = (format(draws.getrandbits(bits) | 1 << bits - 1, "b") for bits in (2000, 700))
    Path("problems").write_text(long)
    expected = (0, f"{long.count('1') % 2}\tright\n", "")
    assert abc("solve", "--check", "--file", "problems") == expected
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{shorter}\n"))
    assert abc("solve", "--check") == (0, f"{shorter.count('1') % 2}\tright\n", "")


def test_solve_cannot_reach_the_oracle(abc: Abc, pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def oracle(*_: Any) -> None:
        raise AssertionError("the oracle was asked")

    expected = abc("solve", "101", "111", "10")
    with monkeypatch.context() as patch:
        for kind in (DigitTask, Parity):
            for name in ("solve", "compute"):
                patch.setattr(kind, name, oracle, raising=False)
        assert abc("solve", "101", "111", "10") == expected
        with pytest.raises(AssertionError, match="the oracle was asked"):
            abc("solve", "101", "--check")
    path = pipeline / "retrain" / "weights.safetensors"
    weights = load_file(path)
    save_file(weights | {name: torch.zeros_like(weights[name]) for name in ("output.weight", "output.bias")}, path)
    resealed(path.parent)
    status, out, _ = abc("solve", "--check", "101", "111", "10", "1")
    assert status == 0
    assert out.count("wrong") == 4


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize(
    ("words", "target", "resumable"),
    [
        (("fit", *TINY, "--run", "new"), "training.train", True),
        (("retrain", "--overwrite"), "training.train", True),
        (("calibrate", "--overwrite"), "calibrate.capture", False),
        (("evaluate", "--overwrite"), "evaluate.evaluate_models", False),
        (("run", *PARITY, "--run", "new"), "training.train", True),
        (("solve", "101"), "solve.solve_problems", False),
    ],
)
def test_an_interrupted_command_says_how_to_go_on(
    words: tuple[str, ...],
    target: str,
    resumable: bool,
    begun: bool,
    abc: Abc,
    pipeline: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_: Any, **keywords: Any) -> None:
        if begun and resumable:
            (keywords["folder"] / "progress.ckpt").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(f"abc_toolkit.phases.{target}", interrupt)
    before = _contents(Path())
    status, out, err = abc(*words)
    assert (status, out, len(err.splitlines())) == (130, "", 1), err
    assert (f"abc {words[0]} --resume" in err) == (begun and resumable)
    assert (f"Nothing was changed: start again with 'abc {words[0]}'" in err) != (begun and resumable)
    after = _contents(Path())
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + (begun and resumable)


def _start(*words: str, folder: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "abc_toolkit.cli.main", *words]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("sent", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_a_training_that_was_stopped_from_outside_is_resumed(sent: signal.Signals, abc: Abc, tmp_path: Path) -> None:
    words = [*TINY, "--trainer.max_steps", "3000", "--model.dropout", "0.1"]
    process = _start("fit", *words, "--run", "stopped", folder=tmp_path)
    until = time.monotonic() + 60
    while not (tmp_path / "stopped" / ".fit.partial" / "progress.ckpt").exists():
        assert time.monotonic() < until
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(sent)
    out, err = process.communicate(timeout=60)
    if sent == signal.SIGINT:
        assert (process.returncode, out, len(err.splitlines())) == (130, "", 1), err
        assert "abc fit --resume" in err
    progress = ProgressFile().load_checkpoint(tmp_path / "stopped" / ".fit.partial" / "progress.ckpt")
    words += ["--trainer.max_steps", str(progress["global_step"] + 10)]
    _refused(abc("fit", *words, "--run", str(tmp_path / "stopped")), "was interrupted: go on with --resume")
    for run, resume in [("stopped", ("--resume",)), ("whole", ())]:
        status, _, err = abc("fit", *words, "--run", str(tmp_path / run), *resume)
        assert status == 0, err
    weights = [(tmp_path / run / "fit" / "weights.safetensors").read_bytes() for run in ("stopped", "whole")]
    assert weights[0] == weights[1]


def test_output_that_nobody_reads_or_that_does_not_fit(pipeline: Path) -> None:
    problems = ["101"] * 50_000
    Path("problems").write_text("\n".join(problems[:3]))
    with _start("solve", "--file", "problems", folder=Path()) as process:
        assert process.stdout is not None
        process.stdout.close()  # before anything is written
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait(60) == 1
    command = [sys.executable, "-m", "abc_toolkit.cli.main", "solve", "101"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "No space left" in done.stderr


def test_a_certificate_is_made_and_verified(abc: Abc, pipeline: Path) -> None:
    status, out, err = abc("certify")
    path = pipeline / "certify" / "certificate.json"
    certificate = json.loads(path.read_text())
    # Three bits show it too little to be right at every length, or just enough: the verdict and the status agree.
    assert status == {"correct": 0, "wrong": 1}[certificate["verdict"]], err
    assert str(path) in err
    assert ("correct at every length" in out) == (status == 0)
    assert (certificate["schema"], certificate["argument"]) == (3, 1)
    retrained = pipeline / "retrain"
    for name, file in (("weights", "weights.safetensors"), ("window", "window.json")):
        assert certificate["hashes"][name] == hashlib.sha256((retrained / file).read_bytes()).hexdigest()
    for name in ("architecture", "task", "tokens", "positions", "layout", "rule", "identities"):
        text = json.dumps(certificate[name], sort_keys=True, separators=(",", ":"))
        assert certificate["hashes"][name] == hashlib.sha256(text.encode()).hexdigest()
    assert set(certificate["versions"]) > {"torch"}
    assert certificate["task"]["class_path"].endswith(".Parity")
    assert certificate["task"]["init_args"] == {"max_length": 3, "form": "scratchpad"}
    record = json.loads((path.parent / "record.json").read_text())
    assert (record["phase"], record["results"]["verdict"]) == ("certify", certificate["verdict"])
    figures = {field.name for field in fields(Certificate)} - {"verdict", "reason", "problem", "tokens"}
    assert (figures < set(certificate)) == (status == 0)
    if not status:
        assert certificate["assignments"] == sum(part["assignments"] for part in certificate["parts"])
        assert f"{certificate['assignments']:,} of {certificate['kinds']} kinds" in out
        assert all(set(part) == {field.name for field in fields(Part)} for part in certificate["parts"])
        assert certificate["smallest_slack"] > 0
        assert certificate["largest_rounding"] > max(certificate["deviations"].values())
        assert certificate["meaning"]["held_to"] >= 10_000
    else:
        assert abc("solve", "--check", certificate["problem"])[1].endswith("\twrong\n")
    before = path.read_bytes()
    _refused(abc("certify"), "certificate.json is there already.*--overwrite.*--verify")
    assert abc("certify", "--verify", str(path))[0] == status
    assert path.read_bytes() == before
    assert abc("certify", "--overwrite")[0] == status
    assert path.read_bytes() == before


@pytest.fixture
def certified(abc: Abc, pipeline: Path) -> dict[str, Any]:
    """The certificate of a run's model."""
    assert abc("certify", "--run", str(pipeline))[0] in (0, 1)
    return json.loads((pipeline / "certify" / "certificate.json").read_text())


def _forgeries(certificate: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Other certificates, with what is said of them."""
    hashes, verdict = certificate["hashes"], certificate["verdict"]
    changes: dict[str, tuple[dict[str, Any], str]] = {
        "the schema before": ({"schema": 2}, "cannot be checked: it is of schema 2, and this version reads schema 3"),
        "one to come": ({"schema": 4}, "cannot be checked: it is of schema 4"),
        "another argument": ({"argument": 0}, "is not of this run: its argument is version 0, and this is version 1"),
        "other weights": (
            {"hashes": hashes | {"weights": "ab"}},
            "is not of this run: the hash of its weights differs",
        ),
        "another window": (
            {"hashes": hashes | {"window": "ab"}},
            "is not of this run: the hash of its window differs",
        ),
        "another rule": ({"hashes": hashes | {"rule": "ab"}}, "does not hold: the hash of its rule differs"),
        "another version": (
            {"versions": certificate["versions"] | {"torch": "0.1"}},
            "is not of this run: it was made with torch 0.1",
        ),
        "another task": ({"task": {}}, "does not hold: task is {}"),
        "another reason": ({"reason": "none"}, 'does not hold: reason is "none"'),
        "fewer assumptions": ({"assumptions": []}, r"does not hold: assumptions is \[\]"),
        "a field that nobody knows": ({"more": 1}, 'cannot be checked: it has a field "more"'),
        "a verdict that is none": ({"verdict": "right"}, "cannot be checked: its verdict is .right., which is unknown"),
        "a table of another rule": ({"rule": certificate["rule"] | {"ends": [True, False]}}, "does not hold: rule is"),
    }
    if verdict == "correct":
        for name in ("longest", "assignments", "smallest_margin", "largest_rounding", "smallest_slack", "layouts"):
            changes[f"more {name}"] = ({name: 2 * certificate[name]}, f"does not hold: {name} is ")
        far = {"one batch": 2 * certificate["largest_rounding"]}
        changes |= {
            "no margin": ({"smallest_margin": None}, "cannot be checked: its field smallest_margin is null"),
            "a margin in words": ({"smallest_margin": "9"}, "cannot be checked: its field smallest_margin is"),
            "no deviations": ({"deviations": {}}, "does not hold: deviations are not within the bound of rounding"),
            "a large deviation": (
                {"deviations": certificate["deviations"] | far},
                "does not hold: deviations are not within the bound of rounding",
            ),
            "another bound": ({"bound": {"sizes": {"s0": 10**9}}}, "does not hold: bound is"),
        }
    found = {name: (json.dumps(certificate | change), reason) for name, (change, reason) in changes.items()}
    without = {name: value for name, value in certificate.items() if name != "identities"}
    found["a field that is missing"] = (json.dumps(without), "cannot be checked: its field identities is missing")
    found["not a number"] = (
        json.dumps(certificate | {"argument": float("nan")}),
        "cannot be checked: it holds NaN, which is not a number",
    )
    found["half of it"] = (json.dumps(certificate)[:1000], r"cannot be checked: it is not JSON \(")
    found["nothing in it"] = ("{}", "cannot be checked: it is not a certificate: it states no verdict")
    found["a list"] = ("[]", "cannot be checked: it is not a certificate: it states no verdict")
    return found


def test_other_certificates_are_refused_in_one_line(abc: Abc, pipeline: Path, certified: dict[str, Any]) -> None:
    for name, (text, reason) in _forgeries(certified).items():
        Path("other.json").write_text(text)
        refused = abc("certify", "--verify", "other.json")
        assert refused[0] == 2, name
        _refused(refused, f"--verify other.json {reason}.*; certify the run anew")
    Path("other.json").write_bytes(b"\xff\xfe")
    _refused(abc("certify", "--verify", "other.json"), "--verify other.json cannot be checked: ")
    _refused(abc("certify", "--verify", "."), "--verify . cannot be checked: . is no file")
    _refused(abc("certify", "--verify", "nowhere.json"), "nowhere.json")


def test_a_certificate_of_what_a_run_no_longer_holds_is_stale(
    abc: Abc, pipeline: Path, certified: dict[str, Any]
) -> None:
    path, retrained = pipeline / "certify" / "certificate.json", pipeline / "retrain"
    window = json.loads((retrained / "window.json").read_text())
    (retrained / "window.json").write_text(json.dumps(window, indent=3))
    resealed(retrained)
    _refused(abc("certify"), "certificate.json is stale: .*another window.*; replace it with --overwrite")
    _refused(abc("certify", "--verify", str(path)), "is not of this run: the hash of its window differs")
    assert abc("certify", "--overwrite")[0] in (0, 1)
    assert json.loads(path.read_text())["verdict"] == certified["verdict"]
    weights = load_file(retrained / "weights.safetensors")
    weights["output.bias"] += 0.5
    save_file(weights, retrained / "weights.safetensors")
    resealed(retrained)
    _refused(abc("certify"), "certificate.json is stale")
    _refused(abc("certify", "--verify", str(path)), "is not of this run: the hash of its weights differs")
    shutil.rmtree(retrained)
    _refused(abc("certify", "--overwrite"), "no finished 'retrain'")
    assert path.exists()
