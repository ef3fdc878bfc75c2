"""Processes beside one another, and what they and signals leave behind."""

import importlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from abc_toolkit.errors import UserError
from abc_toolkit.models.base import Architecture
from abc_toolkit.phases.training import fit
from abc_toolkit.runs.folder import Run
from abc_toolkit.tasks import Parity
from abc_toolkit.tasks.objective import Stopping
from abc_toolkit.training import processes
from abc_toolkit.training.data import Data
from abc_toolkit.training.loop import ProgressFile, TrainerSettings, lightning_trainer
from abc_toolkit.training.module import Optimizer, TrainingModule

Abc = Callable[..., tuple[int, str, str]]
SMALL = {
    "task": "Parity",
    "task.max_length": 3,
    "fit.model.model_dim": 32,
    "fit.model.feedforward_dim": 64,
    "fit.model.num_heads": 2,
    "fit.model.dropout": 0,
    "fit.stopping.exact_match": 0.0,
    "fit.stopping.loss": 100,
    "fit.stopping.decay_steps": 85,
    "fit.optimizer.learning_rate": 0.01,
    "fit.optimizer.warmup_steps": 5,
    "fit.optimizer.averaging": 0.9,
    "fit.data.batch_size": 33,
    "retrain.data.batch_size": 33,
    "retrain.until": "certified",
    "retrain.stopping.exact_match": 0.0,
    "calibrate.force": "true",
    "evaluate.length": "1x",
    "evaluate.samples": 4,
}
STEPS = {"fit": 105, "retrain": 40}  # the former by its rule, the latter at most
SETTINGS: dict[str, Any] = {
    "model": Architecture(num_encoder_layers=1, model_dim=16, num_heads=2, feedforward_dim=32, dropout=0.1),
    "data": Data(batch_size=8, validation_problems=8),
    "stopping": Stopping(exact_match=1.0, loss=0.0),
    "trainer": TrainerSettings(max_steps=12, validate_every=5, accelerator="cpu"),
}


def words(settings: dict[str, Any]) -> list[str]:
    return [f"--{name}={value}" for name, value in settings.items()]


def start(*arguments: str, folder: Path, **environment: str) -> subprocess.Popen[str]:
    """The command line in a process of its own."""
    command = [sys.executable, "-m", "abc_toolkit.cli.main", *arguments]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=os.environ | environment, **pipes)


def run_settings(devices: int) -> dict[str, Any]:
    trainer: dict[str, Any] = {"validate_every": 20, "log_every": 5, "accelerator": "cpu"}
    if devices > 1:
        trainer |= {"devices": devices, "strategy": "ddp"}
    own = {f"{phase}.trainer.{name}": value for phase in STEPS for name, value in trainer.items()}
    phases = "fit,calibrate,retrain,evaluate"
    steps = {"fit.trainer.max_steps": 200, "retrain.trainer.max_steps": 40}
    return SMALL | own | steps | {"run": str(devices), "phases": phases}


@pytest.mark.slow
def test_two_processes_do_what_one_does_and_the_first_goes_on(
    abc: Abc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = abc("run", *words(run_settings(1)))
    assert status == 0, err
    two = start("run", *words(run_settings(2)), folder=tmp_path)
    out, err = two.communicate(timeout=240)
    assert two.returncode == 0, err
    for text in ("The vanilla model solves", "The model inside the window solves", "8 rows"):
        assert err.count(text) + out.count(text) == 1, err
    assert sorted(os.listdir("2")) == sorted(os.listdir("1"))
    for phase in STEPS:
        one, both = (json.loads(Path(run, phase, "training.json").read_text(encoding="utf-8")) for run in "12")
        for kind in ("train", "validation"):
            assert [point["step"] for point in one[kind]] == [point["step"] for point in both[kind]]
            for expected, found in zip(one[kind], both[kind], strict=True):
                assert found.keys() == expected.keys()
                assert found == pytest.approx(expected, rel=1e-4)
        results = [Run(Path(run)).record(phase)["results"] for run in "12"]
        assert results[0]["steps"] == results[1]["steps"] == STEPS[phase]


def test_a_batch_with_fewer_problems_than_processes_is_refused(tmp_path: Path) -> None:
    trainer = TrainerSettings(devices=2, strategy="ddp", accelerator="cpu")
    with pytest.raises(UserError, match=r"--data\.batch_size 1: give at least 1 for each of 2 processes"):
        fit(Parity(max_length=3), run=tmp_path / "run", **(SETTINGS | {"data": Data(1), "trainer": trainer}))
    assert os.listdir(tmp_path) == []
    with pytest.raises(UserError, match=r"--trainer\.strategy ddp_spawn trains copies .*: take ddp"):
        lightning_trainer(TrainerSettings(devices=2, strategy="ddp_spawn", accelerator="cpu"))


def test_a_notebook_on_several_devices_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """There Lightning chooses a strategy that forks."""
    monkeypatch.setattr("lightning.pytorch.trainer.connectors.accelerator_connector._IS_INTERACTIVE", True)
    with pytest.raises(UserError, match=r"--trainer\.strategy auto trains copies .*--trainer\.devices 1 in a notebook"):
        lightning_trainer(TrainerSettings(devices=2, accelerator="cpu"))
    assert lightning_trainer(TrainerSettings(accelerator="cpu")).world_size == 1


@pytest.mark.parametrize(
    "environment",
    [
        {
            "ATTENTION_BIAS_TRAINING": '{"phase": "retrain", "resume": false, "pid": 1234567}',
            "RANK": "3",
            "LOCAL_RANK": "1",
            "SLURM_PROCID": "2",
            "WORLD_SIZE": "4",
            "SLURM_NTASKS": "4",
            "NODE_RANK": "1",
        },
        pytest.param(
            {
                "RANK": "x",
                "LOCAL_RANK": "",
                "SLURM_PROCID": "1.5",
                "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            },
            marks=pytest.mark.slow,
        ),
    ],
    ids=["numbers", "words"],
)
def test_what_the_environment_says_of_others_means_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    settings = {"task": "Parity", "run": "run", "trainer.max_steps": 2, "data.validation_problems": 8}
    code = (
        "import sys; from abc_toolkit.cli.main import main\n"
        "sys.argv = ['abc']\n"
        f"status = main({['fit', *words(settings)]!r})\n"
        "status |= main(['evaluate', '--run', 'run', '--length', '1x', '--samples', '1'])\n"
        "sys.exit(status)"
    )
    command = [sys.executable, "-c", code]
    pipes: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 240, "check": False}
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | environment, **pipes)
    assert done.returncode == 0, done.stderr
    for phase, files in {"fit": ["training.png", "weights.safetensors"], "evaluate": ["accuracy.png"]}.items():
        assert {"record.json", *files} <= set(os.listdir(tmp_path / "run" / phase))
    assert "The vanilla model solves" in done.stderr
    assert "Exact match on parity" in done.stdout


def test_a_helper_is_known_by_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    for pid, rank, helps in ((os.getppid(), "1", True), (os.getppid(), "0", False), (os.getpid(), "1", False)):
        monkeypatch.setenv("ATTENTION_BIAS_TRAINING", json.dumps({"phase": "fit", "resume": True, "pid": pid}))
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert (processes.wanted_help() is not None) == helps
    for mark in ("", "1", "[]", "{}", '{"phase": 1}', "null"):
        monkeypatch.setenv("ATTENTION_BIAS_TRAINING", mark)
        assert processes.wanted_help() is None


# What a training leaves to whoever calls it.


def _state() -> list[Any]:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    drawn = [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]
    return [torch.get_num_threads(), handlers, drawn, dict(os.environ)]


@pytest.mark.parametrize("how", ["ends", "interrupted", "refused", "broken"])
def test_a_training_leaves_the_callers_state(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def handler(*_: Any) -> None:
        pass

    own = TrainingModule.training_step

    def step(self: TrainingModule, *arguments: Any) -> Any:
        if self.global_step == 7:
            if how == "interrupted":
                raise KeyboardInterrupt
            if how == "broken":
                raise RuntimeError("broken")
        return own(self, *arguments)

    monkeypatch.setattr(TrainingModule, "training_step", step)
    settings = SETTINGS | ({"optimizer": Optimizer(learning_rate=1e30, warmup_steps=0)} if how == "refused" else {})
    raised = {"ends": None, "interrupted": KeyboardInterrupt, "refused": UserError, "broken": RuntimeError}[how]
    kept = [signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGUSR1)]
    torch.set_num_threads(2)
    try:
        for seed in (7, 8):
            torch.manual_seed(seed)
            expected = torch.rand(3)
            torch.manual_seed(seed)
            before = _state()
            if raised is None:
                fit(Parity(max_length=3), run=tmp_path / str(seed), **settings)
            else:
                with pytest.raises(raised):
                    fit(Parity(max_length=3), run=tmp_path / str(seed), **settings)
            assert _state() == before
            assert torch.equal(torch.rand(3), expected)
    finally:
        torch.set_num_threads(1)
        for number, before in zip((signal.SIGTERM, signal.SIGUSR1), kept, strict=True):
            signal.signal(number, before)


# Signals.

FIT = {"task": "Parity", "task.max_length": 3, "run": "run", "trainer.max_steps": 60, "trainer.validate_every": 5}


def _signalling(own: Callable[..., Any], number: int, at: int = 1) -> Callable[..., Any]:
    """A function that sends this process a signal when it is called for the `at`-th time."""
    calls = []

    def called(*arguments: Any, **keywords: Any) -> Any:
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), number)
        return own(*arguments, **keywords)

    return called


@pytest.mark.parametrize(
    ("step", "number"), [(1, signal.SIGTERM), (5, signal.SIGINT), (6, signal.SIGTERM), (23, signal.SIGINT)]
)
def test_a_signal_ends_a_training_and_what_is_said_is_true(
    step: int, number: signal.Signals, abc: Abc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in ("fit", "run"):
        prefix = "fit." if command == "run" else ""
        own = {(prefix if name.startswith("trainer") else "") + name: value for name, value in FIT.items()}
        with monkeypatch.context() as patch:
            patch.setattr(TrainingModule, "training_step", _signalling(TrainingModule.training_step, number, step))
            status, _, err = abc(command, *words(own | {"run": command}))
            assert signal.getsignal(number) is signal.default_int_handler  # the command line's, not Lightning's
        assert status == 130
        left = (tmp_path / command / ".fit.partial" / "progress.ckpt").exists()
        assert left == (step > 5)
        resumable = f"Interrupted. Go on where it was with 'abc {command} --resume'"
        afresh = f"Interrupted. Nothing was changed: start again with 'abc {command}'"
        assert err.splitlines()[-1].startswith(resumable if left else afresh)
        assert left or not (tmp_path / command).exists()


@pytest.mark.parametrize(
    ("command", "function"),
    [
        ("calibrate", "calibrate.capture"),
        ("calibrate", "calibrate.save_record"),
        ("retrain", "training.train"),
        ("evaluate", "evaluate.evaluate_models"),
        ("certify", "certify.prove"),
    ],
)
def test_a_signal_ends_any_phase_and_leaves_it_as_it_was(
    command: str, function: str, abc: Abc, pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in sorted(pipeline.rglob("*")) if path.is_file()}
    module, _, name = function.partition(".")
    own = getattr(importlib.import_module(f"abc_toolkit.phases.{module}"), name)
    monkeypatch.setattr(f"abc_toolkit.phases.{function}", _signalling(own, signal.SIGTERM))
    status, _, err = abc(command, "--overwrite")
    assert status == 130
    assert "Interrupted. Nothing was changed: start again" in err
    assert {path: path.read_bytes() for path in sorted(pipeline.rglob("*")) if path.is_file()} == before


@pytest.mark.slow
def test_a_signal_to_the_first_of_two_processes_ends_both(tmp_path: Path) -> None:
    own = FIT | {"trainer.max_steps": 100_000, "trainer.devices": 2, "trainer.strategy": "ddp"}
    own |= {"trainer.accelerator": "cpu", "stopping.exact_match": 1.0, "stopping.loss": 0}
    started = start("fit", *words(own), folder=tmp_path)
    progress = tmp_path / "run" / ".fit.partial" / "progress.ckpt"
    for _ in range(600):
        if progress.exists() or started.poll() is not None:
            break
        try:
            started.wait(0.2)
        except subprocess.TimeoutExpired:
            continue
    helpers = psutil.Process(started.pid).children()
    assert len(helpers) == 1
    started.send_signal(signal.SIGTERM)
    _, err = started.communicate(timeout=60)
    assert started.returncode == 130, err
    assert err.splitlines()[-1].startswith("Interrupted. Go on where it was with 'abc fit --resume'"), err
    _, alive = psutil.wait_procs(helpers, timeout=20)
    assert not alive
    assert progress.exists()
    # One process does not go on with what two began.
    alone = FIT | {"stopping.exact_match": 1.0, "stopping.loss": 0, "resume": "true"}
    refused = start("fit", *words(alone), folder=tmp_path)
    _, err = refused.communicate(timeout=120)
    assert refused.returncode == 2
    assert "trainer.devices was 2 and is 1" in err
    assert "processes was 2 and is 1" in err
    # Two do.
    steps = ProgressFile().load_checkpoint(progress)["global_step"] + 7
    again = start("fit", *words(own | {"trainer.max_steps": steps, "resume": "true"}), folder=tmp_path)
    _, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert f"after {steps} steps" in err
    history = json.loads((tmp_path / "run" / "fit" / "training.json").read_text(encoding="utf-8"))
    assert [point["step"] for point in history["validation"]] == [*range(5, steps, 5), steps]
