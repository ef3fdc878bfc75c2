"""`abc doctor`: what the toolkit runs on, and whether it works there."""

import math
import os
import platform
import shutil
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from abc_toolkit.errors import UserError
from abc_toolkit.models.attention import AttentionPath
from abc_toolkit.models.base import Architecture, DecodingModel, predict
from abc_toolkit.models.decoding import greedy
from abc_toolkit.models.transformer import AttentionModel
from abc_toolkit.positions import Site
from abc_toolkit.runs.files import save_json
from abc_toolkit.runs.folder import RUNS, build_model
from abc_toolkit.tasks import Parity
from abc_toolkit.windows.rules import Condition, Rule, Window

_STEPS = 60


def doctor() -> int:
    """Shows versions, devices, threads and where runs are written, and tries the toolkit out.

    Returns:
        The exit status: 0 if everything worked, else 1.
    """
    table = Table(show_header=False, box=box.SIMPLE)
    for name, value in (*_versions(), *_devices(), *_threads(), *_runs()):
        table.add_row(name, value)
    status = 0
    tests = {"training": _training, "attention": _attention, "files": _files}
    for name, test in tests.items():
        start = time.perf_counter()
        try:
            found = test()
            table.add_row(f"self-test: {name}", f"{found} ({time.perf_counter() - start:.1f} s)")
        except Exception as error:  # whatever is wrong is what is asked for
            status = 1
            table.add_row(
                f"self-test: {name}", f"[bold red]failed[/]: {type(error).__name__}: {' '.join(str(error).split())}"
            )
    Console().print(table)
    return status


def _versions() -> list[tuple[str, str]]:
    names = ("abc_toolkit", "torch", "lightning", "torchmetrics", "jsonargparse", "numpy")
    system = f"{platform.python_version()} on {platform.platform()}"
    return [("python", system), *((name, version(name)) for name in names)]


def _devices() -> list[tuple[str, str]]:
    found = [f"cuda:{i}, {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    return [("devices", "; ".join(["cpu", *found]))]


def _threads() -> list[tuple[str, str]]:
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")
    told = [f"{torch.get_num_threads()} of PyTorch", f"{os.cpu_count()} processors"]
    return [("threads", ", ".join([*told, *(f"{name}={os.environ.get(name, 'not set')}" for name in names)]))]


def _runs() -> list[tuple[str, str]]:
    place = RUNS.absolute()
    there = place if place.exists() else place.parent
    free = shutil.disk_usage(there).free / 2**30
    writable = "writable" if os.access(there, os.W_OK) else "not writable: name another folder with --run"
    return [("runs", f"{place}, {writable}, {free:.1f} GiB free")]


def _training() -> str:
    """Trains a tiny model without anything beside PyTorch."""
    task = Parity(max_length=3)
    torch.manual_seed(0)
    model = build_model(task, _sizes(), None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for step in range(_STEPS):
        shape = task.training_shapes()[step % 3]
        batch = task.sample(torch.Generator().manual_seed(step), 32, shape)
        loss = task.objective.loss(predict(model, batch, task.layout(shape)), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if not all(map(math.isfinite, losses)) or losses[-1] >= losses[0]:
        raise UserError(f"the loss went from {losses[0]:.3g} to {losses[-1]:.3g} in {_STEPS} steps")
    return f"loss {losses[0]:.2f} to {losses[-1]:.2f} in {_STEPS} steps"


def _attention() -> str:
    """Decodes by both paths of attention, which must agree."""
    task = Parity(max_length=3)
    own = Condition("place", 0, query="place")
    sites: tuple[tuple[Site, str], ...] = (("cross", "operand 1"), ("decoder", "answer"))
    rules = tuple(Rule(site, 0, head, segment, (own,)) for site, segment in sites for head in range(2))
    window = Window("Parity", 0, 1, 2, rules, {}, "")
    torch.manual_seed(0)
    model = build_model(task, _sizes(), window).eval()
    problems = task.sample(torch.Generator().manual_seed(0), 8, (40,))
    answers = []
    paths: tuple[AttentionPath, ...] = ("dense", "gathered")
    for path in paths:
        assert isinstance(model, AttentionModel)
        assert isinstance(model, DecodingModel)
        model.attend(path)
        answers.append(greedy(model, problems.source, model.plan(task.layout((40,)), 8, 1)))
    if not torch.equal(*answers):
        raise UserError("dense and gathered attention decode different answers")
    return "dense and gathered attention agree on 8 problems of 40 bits"


def _files() -> str:
    with tempfile.TemporaryDirectory() as folder:
        save_json(Path(folder) / "test.json", {"it": "works"})
        return f"written and removed in {tempfile.gettempdir()}"


def _sizes() -> Architecture:
    return Architecture(model_dim=16, num_heads=2, feedforward_dim=32)
