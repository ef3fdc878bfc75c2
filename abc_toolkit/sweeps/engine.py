"""`sweep`: the runs of a sweep file, done by Ray on this machine or on a cluster.

Ray places the runs, and each is `abc run --resume` in a worker process of its own. Which runs have ended is kept in
`sweep.json`, replaced as a whole each time that one ends, so that a sweep which was killed goes on where it was.
"""

import contextlib
import csv
import io
import logging
import os
import sys
import time
import traceback
from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from abc_toolkit.errors import UserError
from abc_toolkit.phases.evaluate import RESULTS
from abc_toolkit.report import console
from abc_toolkit.runs.description import rebuild
from abc_toolkit.runs.files import cannot_write, load_json, save_json, save_text
from abc_toolkit.runs.folder import PIPELINE, RUNS, Run
from abc_toolkit.sweeps.specification import LOGS, ROWS, STATE, Sweep, SweepRun, read_sweep

_SHOWN = 8  # runs of each state in the live table


@dataclass
class Outcome:
    """How a run ended.

    Attributes:
        settings: The label of its value on each axis.
        words: The words behind `abc run`.
        state: finished or failed.
        reason: Why it failed.
        attempts: How often it was begun.
        seconds: How long the attempts took together.
        verdict: That of its certificate, if it has one.
    """

    settings: dict[str, str]
    words: list[str]
    state: Literal["finished", "failed"]
    reason: str = ""
    attempts: int = 0
    seconds: float = 0.0
    verdict: str | None = None


@dataclass(frozen=True)
class State:
    """What `sweep.json` says.

    Attributes:
        runs: How each run ended, by the name of its folder.
    """

    runs: dict[str, Outcome]


@dataclass(frozen=True)
class SweepResult:
    """What `sweep` returns.

    Attributes:
        folder: Where the run folders are.
        outcomes: How each run ended, by the name of its folder.
    """

    folder: Path
    outcomes: Mapping[str, Outcome]

    @property
    def failed(self) -> list[str]:
        """The runs that failed."""
        return [name for name, outcome in self.outcomes.items() if outcome.state == "failed"]


def sweep(
    file: Path | str, *, runs: Path | None = None, processes: int | None = None, address: str | None = None
) -> SweepResult:
    """Does 'abc run' for every combination of a grid, several at a time.

    The same command again does what is missing. Exit status 0: every run finished; 1: some failed.

    Args:
        file: The sweep file, a YAML file.
        runs: Folder for the run folders; runs/NAME, after the file's name, if not given.
        processes: Runs side by side on this machine; as many as it has cores for if not given.
        address: Address of a Ray cluster whose machines have this toolkit installed and share the folder of the runs;
            this machine if not given.

    Returns:
        How each run ended.

    Raises:
        UserError: If the sweep file makes no sense, another sweep writes to the folder, or Ray is not installed.
    """
    said = read_sweep(Path(file))
    folder = RUNS / Path(file).stem if runs is None else runs
    if processes is not None and processes < 1:
        raise UserError(f"--processes {processes}: give at least 1")
    if processes is not None and address is not None:
        raise UserError("--processes is of this machine, and --address names a cluster: give one")
    with _locked(folder):
        before = read_state(folder)
        outcomes = {run.name: before[run.name] for run in said.runs if _is_done(before, folder, run, said)}
        waiting = [run for run in said.runs if run.name not in outcomes]
        if outcomes:
            console.remark(f"{len(outcomes)} of {len(said.runs)} runs were finished before.")
        if waiting:
            _check_words(said)
            with _ray(processes, said, address) as ray, _table(said, outcomes, folder) as show:
                for name, outcome in _attempts(ray, said, waiting, folder):
                    outcomes[name] = outcome
                    _save_state(folder, outcomes)
                    show(f"{name}: {outcome.verdict or outcome.state}{_because(outcome)}, {outcome.seconds:.0f} s")
        outcomes = {run.name: outcomes[run.name] for run in said.runs}
        _save_state(folder, outcomes)
    result = SweepResult(folder, outcomes)
    _tell(result, Path(file))
    return result


def _check_words(said: Sweep) -> None:
    """Refuses options that `abc run` would refuse: those of a run with each value of the grid."""
    from abc_toolkit.cli.lightning import CommandLine

    seen: set[tuple[str, str]] = set()
    for run in said.runs:
        if not seen.issuperset(run.settings.items()):
            seen |= set(run.settings.items())
            CommandLine("run", list(run.words), lambda _: None)


def _attempts(ray: Any, said: Sweep, runs: list[SweepRun], folder: Path) -> Iterator[tuple[str, Outcome]]:
    """Does runs, and tries those that fail again; yields each as it ends."""
    remote = ray.remote(max_retries=0, max_calls=1, num_cpus=said.cpus, num_gpus=said.gpus)(attempt)
    (folder / LOGS).mkdir(parents=True, exist_ok=True)
    outcomes = {run.name: Outcome(dict(run.settings), list(run.words), "failed") for run in runs}
    by_name = {run.name: run for run in runs}

    def begin(name: str) -> Any:
        log = folder.absolute() / LOGS / f"{name}.log"
        log.unlink(missing_ok=True)  # its presence shows that the run has begun
        words = [*by_name[name].words, "--run", str(folder.absolute() / name), "--resume"]
        return remote.remote(words, str(log))

    pending = {begin(run.name): run.name for run in runs}
    while pending:
        ended, _ = ray.wait(list(pending), num_returns=1)
        name = pending.pop(ended[0])
        outcome = outcomes[name]
        outcome.attempts += 1
        try:
            status, seconds = ray.get(ended[0])
            outcome.seconds += seconds
            outcome.reason = "" if status in (0, 1) else _last_line(folder / LOGS / f"{name}.log", status)
        except ray.exceptions.RayError as error:  # the worker was killed, for want of memory or by someone
            outcome.reason = f"the worker died ({type(error).__name__})"
        run = Run(folder / name)
        if not outcome.reason and not _has_all(run, said):
            outcome.reason = _last_line(folder / LOGS / f"{name}.log", 1)
        if outcome.reason and outcome.attempts <= said.retries:
            pending[begin(name)] = name
            continue
        if not outcome.reason:
            outcome.state, outcome.verdict = "finished", run.verdict
        yield name, outcome


def attempt(words: list[str], log: str) -> tuple[int, float]:
    """Does a run in this process, which a worker of Ray is; its output goes to a file.

    Args:
        words: The words behind `abc run`.
        log: The file.

    Returns:
        The exit status, and the seconds that it took.
    """
    start = time.perf_counter()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(number, "w", closefd=False), "utf-8") for number in (1, 2))
    from abc_toolkit.cli.main import main

    try:
        status = main(["run", *words])
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except Exception:
        traceback.print_exc()
        status = 70  # of software that failed, by convention
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return status, time.perf_counter() - start


def _last_line(log: Path, status: int) -> str:
    """The last line that a run wrote, which is its error."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return console.line(lines[-1]) if lines else f"exit status {status}"


def _is_done(before: Mapping[str, Outcome], folder: Path, run: SweepRun, said: Sweep) -> bool:
    """Whether a run finished before, under the same command line, and its folder is still there."""
    own = before.get(run.name)
    if own is None or own.state != "finished" or own.words != list(run.words):
        return False
    return _has_all(Run(folder / run.name), said)


def _has_all(run: Run, said: Sweep) -> bool:
    """Whether a run has the phases that were asked for, but for a certificate, which not every model can have."""
    return all(run.has(phase) for phase in PIPELINE if phase in said.phases)


@contextlib.contextmanager
def _locked(folder: Path) -> Generator[None, None, None]:
    """Keeps other sweeps from the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".sweep.lock", timeout=0.2)
        with lock:
            yield
    except Timeout:
        raise UserError(
            f"another sweep is running in {folder}: wait for it, or name another folder with --runs"
        ) from None
    except OSError as error:
        raise cannot_write(folder, error) from error


def read_state(folder: Path) -> dict[str, Outcome]:
    """How the runs of a sweep ended, by the names of their folders; empty if there was no sweep in the folder.

    Raises:
        UserError: If the file is damaged.
    """
    path = folder / STATE
    if not path.exists():
        return {}
    try:
        return rebuild(load_json(path), State, path, whole=True).runs
    except UserError:
        raise UserError(f"{path} is damaged: remove it; finished runs are kept") from None


def _save_state(folder: Path, outcomes: Mapping[str, Outcome]) -> None:
    """Writes how runs ended, and the rows of all evaluations with the labels of their runs."""
    save_json(folder / STATE, asdict(State(dict(outcomes))))
    rows: list[dict[str, Any]] = []
    for name, outcome in outcomes.items():
        path = Run(folder / name).folder("evaluate") / RESULTS
        if outcome.state == "finished" and path.exists():
            own = {"run": name, **outcome.settings, "verdict": outcome.verdict}
            rows += [own | {key: value for key, value in row.items() if key not in own} for row in load_json(path)]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    save_text(folder / ROWS, text.getvalue())


@contextlib.contextmanager
def _ray(processes: int | None, said: Sweep, address: str | None) -> Generator[Any, None, None]:
    """Ray, started on this machine or joined."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or it reports to its makers
    os.environ.setdefault("RAY_worker_niceness", "0")  # as 'abc run' by itself; Ray's workers give way to all else
    try:
        import ray
    except ImportError:
        raise UserError("sweeps need Ray: pip install 'abc_toolkit[sweep]'") from None
    quiet = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    try:
        if address is None:
            cores = None if processes is None else processes * said.cpus
            ray.init(num_cpus=cores, include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = "on this machine" if address is None else f"at {address}"
        raise UserError(f"Ray does not start {where}: {' '.join(str(error).split())}") from None
    try:
        have = ray.cluster_resources()
        for name, wanted in (("CPU", said.cpus), ("GPU", said.gpus)):
            if wanted > have.get(name, 0):
                raise UserError(f"a run is to have {wanted} {name}s, and there are {have.get(name, 0):g}: take fewer")
        yield ray
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _table(said: Sweep, outcomes: Mapping[str, Outcome], folder: Path) -> Generator[Any, None, None]:
    """A live table on a terminal; elsewhere a line for each run that ends. Gives what to call when one ends."""
    screen = Console(stderr=True)
    start = time.time()

    def table() -> Table:
        done = [name for name in outcomes if outcomes[name].state == "finished"]
        failed = [name for name in outcomes if outcomes[name].state == "failed"]
        running = [
            run.name for run in said.runs if run.name not in outcomes and (folder / LOGS / f"{run.name}.log").exists()
        ]
        made = Table(
            title=f"{len(outcomes)} of {len(said.runs)} runs, {time.time() - start:.0f} s", title_justify="left"
        )
        for heading in ("state", "runs", "which"):
            made.add_column(heading, justify="right" if heading == "runs" else "left", overflow="fold")
        for state, names in (("running", running), ("finished", done), ("failed", failed)):
            shown = ", ".join(names[-_SHOWN:]) + (", ..." if len(names) > _SHOWN else "")
            made.add_row(state, str(len(names)), Text(console.escaped(shown)))
        return made

    if not screen.is_terminal:
        yield console.remark
        return
    with Live(get_renderable=table, console=screen, refresh_per_second=1, transient=True) as live:
        yield lambda _: live.refresh()


def _because(outcome: Outcome) -> str:
    return f" ({outcome.reason})" if outcome.reason else ""


def _tell(result: SweepResult, file: Path) -> None:
    failed = result.failed
    lines = [f"{len(result.outcomes) - len(failed)} of {len(result.outcomes)} runs finished."]
    if failed:
        reasons = "; ".join(f"{name} ({result.outcomes[name].reason})" for name in failed)
        lines = [f"{lines[0]} Failed: {reasons}. 'abc sweep {file}' tries them again."]
    console.remark("\n".join([*lines, f"Files: {result.folder}", f"Next:  abc summarize {result.folder}"]))
