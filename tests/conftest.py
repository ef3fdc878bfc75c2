import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

# Before torch: on a busy machine spinning threads make tiny kernels a hundred times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("abc_toolkit.testing")
torch.set_num_threads(1)

# A contract's tests run in many classes, which is what `differing_executors` warns of.
settings.register_profile(
    "abc", deadline=None, derandomize=True, max_examples=30, suppress_health_check=[HealthCheck.differing_executors]
)
settings.load_profile("abc")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    # `torch.manual_seed` also queues seeds for accelerators, with a stack trace each: half a minute in all.
    torch.default_generator.manual_seed(0)


@pytest.fixture
def abc(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command line in this process: exit status, standard output, standard error."""
    from abc_toolkit.cli.main import main

    monkeypatch.setattr(sys, "argv", ["abc"])

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = main(list(words))
        except SystemExit as end:
            status = int(end.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def _pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import abc_toolkit
    from abc_toolkit.models.base import Architecture
    from abc_toolkit.tasks import Parity
    from abc_toolkit.tasks.objective import Stopping
    from abc_toolkit.training.data import Data
    from abc_toolkit.training.loop import TrainerSettings
    from abc_toolkit.training.module import Optimizer

    path = tmp_path_factory.mktemp("pipeline")
    training = {
        "data": Data(validation_problems=64),
        "optimizer": Optimizer(warmup_steps=10, averaging=0.9),
        "trainer": TrainerSettings(max_steps=800, validate_every=20, accelerator="cpu"),
    }
    sizes = Architecture(model_dim=32, feedforward_dim=64, num_heads=2)
    abc_toolkit.fit(
        Parity(max_length=3), run=path, model=sizes, stopping=Stopping(exact_match=1.0, loss=0.02), **training
    )
    abc_toolkit.calibrate(run=path, problems=64)
    abc_toolkit.retrain(run=path, stopping=Stopping(exact_match=1.0, loss=0.05), **training)
    abc_toolkit.evaluate(run=path, length="1x,2x", samples=16)
    return path


@pytest.fixture
def pipeline(_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a small finished run of parity, `runs/parity` of the folder that the test is in."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(_pipeline, Path("runs", "parity")))
