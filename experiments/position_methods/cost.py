"""Makes `cost.json` and `cost.md`: what each position method costs in time and memory, as ratios to no positions.

    python -m experiments.position_methods.cost --repeats 30

The methods are those of `configs/positions/*.yaml`, with the settings there, all for addition in one model: an encoder
and a decoder layer, a width of 64, 4 heads, the other sizes as they come. Two things are measured:

* a training step (forward, loss, backward, AdamW) on the longest training shape, 6 digits and 6, in batches of 64;
* a forward pass in evaluation mode, without gradients and by the dense path, at 16 times that length, in batches of 4.

Time: in rounds, each of which does every method once, in an order drawn for the round, so that noise falls on all
alike; within a round a method's time is that of a few calls. The ratio is the median over the rounds of the method's
time over that of NoPE in the same round. NoPE takes part a second time: how far its ratio is from 1 says what
differences mean nothing.

Memory: the most bytes that are held at one time of what is allocated during the step or pass, a buffer that a kernel
frees before it returns included. It is the running sum of the allocations and frees that PyTorch's profiler sees of its
CPU allocator. What is there before does not count (parameters, the optimiser's state, the batch and its layout), nor
what libraries below allocate past PyTorch.
"""

import argparse
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler reports each time that it starts

import torch
import yaml
from rich import box
from rich.console import Console
from rich.table import Table
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from abc_toolkit.errors import UserError
from abc_toolkit.models.base import Architecture, predict
from abc_toolkit.positions import NoPE, PositionMethod
from abc_toolkit.runs.description import rebuild
from abc_toolkit.runs.files import save_json, save_text
from abc_toolkit.runs.folder import build_model
from abc_toolkit.seeds import seeded
from abc_toolkit.tasks import Addition

CONFIGS = Path(__file__).parents[2] / "configs" / "positions"
TRAINED, LONGER = 6, 16  # digits, and times as many
BATCHES = {"step": 64, "pass": 4}
CALLS = {"step": 4, "pass": 2}  # that are timed as one
WARM_UP = 3
BASE, AGAIN = "NoPE", "NoPE, again"
COLUMNS = ("step time", "step memory", f"{LONGER}x time", f"{LONGER}x memory")

Actions = dict[str, Callable[[], object]]


def methods(wanted: list[str] | None) -> dict[str, PositionMethod]:
    """The methods of the configurations by the names of their classes, with the file's where two have one class."""
    files = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(CONFIGS.glob("*.yaml"))}
    files.pop("sinusoidal_2d")  # which needs a grid, and addition has none
    if unknown := set(wanted or ()) - set(files):
        raise UserError(f"--methods: there is no {', '.join(sorted(unknown))} among {', '.join(files)}")
    positions = {
        stem: rebuild(content["fit"]["model"]["position"], PositionMethod)
        for stem, content in files.items()
        if not wanted or stem in wanted
    }
    classes = [type(position).__name__ for position in positions.values()]
    named = {}
    for stem, position in positions.items():
        name = type(position).__name__
        named[name if classes.count(name) == 1 else f"{name} ({stem})"] = position
    named.pop(BASE, None)
    return {BASE: NoPE(), AGAIN: NoPE()} | named


def actions(position: PositionMethod, seed: int) -> Actions:
    """A training step and a long forward pass of a fresh model.

    Raises:
        UserError: If the method does not go with the task, the sizes or the length.
    """
    task = Addition(max_length=TRAINED)
    torch.manual_seed(seed)
    model = build_model(task, Architecture(num_encoder_layers=1, position=position), None)
    model.attend("dense")
    optimizer = torch.optim.AdamW(model.parameters())
    shapes = {"step": (TRAINED, TRAINED), "pass": (LONGER * TRAINED, LONGER * TRAINED)}
    problems = {what: task.sample(seeded(seed), BATCHES[what], shape) for what, shape in shapes.items()}
    layouts = {what: task.layout(shape) for what, shape in shapes.items()}

    def step() -> None:
        optimizer.zero_grad()
        logits = predict(model, problems["step"], layouts["step"])
        functional.cross_entropy(logits.flatten(0, 1), problems["step"].target.flatten()).backward()
        optimizer.step()

    @torch.no_grad()
    def long_pass() -> None:
        model.eval()
        predict(model, problems["pass"], layouts["pass"])
        model.train()

    both: Actions = {"step": step, "pass": long_pass}
    for _ in range(WARM_UP):
        for action in both.values():
            action()
    optimizer.zero_grad()  # or the first thing that a step does is to free the gradients of the last
    return both


def actions_or_why_not(position: PositionMethod, seed: int) -> Actions | str:
    """What `actions` returns, or why it cannot."""
    try:
        return actions(position, seed)
    except UserError as error:
        return str(error)


def peak(action: Callable[[], object]) -> int:
    """The most bytes held at one time of those that an action allocates."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        action()
    assert profiled.profiler is not None
    assert profiled.profiler.kineto_results is not None
    events = profiled.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = most = 0
    for _, change in changes:
        held += change
        most = max(most, held)
    return most


def seconds(action: Callable[[], object], calls: int) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    for _ in range(calls):
        action()
    return (time.perf_counter() - start) / calls


@dataclass(frozen=True)
class Cost:
    """What a method costs.

    Attributes:
        seconds: Of each round, of a step and of a pass.
        peaks: Bytes.
    """

    seconds: Mapping[str, list[float]]
    peaks: Mapping[str, int]

    def ratios(self, to: "Cost") -> list[float]:
        """In the order of `COLUMNS`."""
        found = []
        for what in CALLS:
            each = [ours / theirs for ours, theirs in zip(self.seconds[what], to.seconds[what], strict=True)]
            found += [statistics.median(each), self.peaks[what] / to.peaks[what]]
        return found

    def plain(self, to: "Cost") -> dict[str, Any]:
        """As plain data."""
        quartiles = {what: statistics.quantiles(values, n=4) for what, values in self.seconds.items()}
        named = dict(zip(COLUMNS, self.ratios(to), strict=True))
        return {"ratios": named, "seconds_quartiles": quartiles, "peak_bytes": dict(self.peaks)}


def measure(positions: Mapping[str, PositionMethod], repeats: int, seed: int) -> dict[str, Cost | str]:
    """The cost of each method, or why it cannot be measured."""
    made = {name: actions_or_why_not(position, seed) for name, position in positions.items()}
    ready = {name: both for name, both in made.items() if not isinstance(both, str)}
    refused = {name: why for name, why in made.items() if isinstance(why, str)}
    peaks = {name: {what: peak(action) for what, action in both.items()} for name, both in ready.items()}
    times: dict[str, dict[str, list[float]]] = {name: {what: [] for what in CALLS} for name in ready}
    order = random.Random(seed)
    for _ in range(repeats):
        for name in order.sample(sorted(ready), len(ready)):
            for what, action in ready[name].items():
                times[name][what].append(seconds(action, CALLS[what]))
    return {name: refused[name] if name in refused else Cost(times[name], peaks[name]) for name in positions}


def circumstances(settings: argparse.Namespace) -> dict[str, Any]:
    """What the numbers were measured with and on."""
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "command": f"python -m experiments.position_methods.cost {' '.join(sys.argv[1:])}".strip(),
        "machine": f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} thread",
        "torch": torch.__version__,
        "repetitions": settings.repeats,
        "day": datetime.now(timezone.utc).date().isoformat(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="files of configs/positions, without .yaml; all")
    parser.add_argument("--repeats", type=int, default=30, help="rounds, at least 2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of cost.json and cost.md")
    settings = parser.parse_args()
    if settings.repeats < 2:
        parser.error("--repeats: give at least 2")
    torch.set_num_threads(1)
    try:
        costs = measure(methods(settings.methods), settings.repeats, settings.seed)
    except UserError as error:
        parser.error(str(error))
    base = costs[BASE]
    assert isinstance(base, Cost)

    measured = circumstances(settings)
    lines = ["Time and memory of each position method over those of NoPE; `cost.py` beside this file says how."]
    lines += [
        f"{name.capitalize()}: {f'`{value}`' if name == 'command' else value}." for name, value in measured.items()
    ]
    units = ("step", 1e3, "ms"), ("pass", 1e3, "ms")
    medians = (f"a {what} {factor * statistics.median(base.seconds[what]):.1f} {unit}" for what, factor, unit in units)
    megabytes = (f"{base.peaks[what] / 2**20:.1f} MiB" for what in CALLS)
    absolute = " and ".join(f"{taken} and {held}" for taken, held in zip(medians, megabytes, strict=True))
    lines += [f"NoPE itself takes {absolute}.", ""]
    lines = ["  \n".join(lines[:-1]), ""]
    lines += ["| " + " | ".join(("method", *COLUMNS)) + " |", "|---" * (1 + len(COLUMNS)) + "|"]
    shown = Table(title="Position methods, as ratios to NoPE", box=box.SIMPLE_HEAD, title_justify="left")
    for place, column in enumerate(("method", *COLUMNS)):
        shown.add_column(column, justify="right" if place else "left", no_wrap=True)
    plain: dict[str, Any] = {}
    for name, cost in costs.items():
        if isinstance(cost, str):
            cells = [f"not measured: {cost}"] + [""] * (len(COLUMNS) - 1)
            plain[name] = {"refused": cost}
        else:
            cells = [f"{ratio:.2f}" for ratio in cost.ratios(base)]
            plain[name] = cost.plain(base)
        lines.append("| " + " | ".join((name, *cells)) + " |")
        shown.add_row(name, *cells)
    save_json(settings.out / "cost.json", measured | {"methods": plain})
    save_text(settings.out / "cost.md", "\n".join(lines) + "\n")
    Console().print(shown)


if __name__ == "__main__":
    main()
