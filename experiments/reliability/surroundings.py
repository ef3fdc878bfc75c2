"""Every command on a full disk, in a read-only folder, without memory, home or terminal, and in folders of odd names.

    python -m experiments.reliability.surroundings

A command must end well and leave what it should, or be refused in one line with exit status 2 and leave the run as it
was. Full disks and read-only folders are mounted, which takes root on Linux; without it these cases are left out.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from abc_toolkit.runs.files import save_json
from experiments.reliability.processes import SETTINGS, content, done, emptied, listing, own_settings

HERE = Path(__file__).parent
COMMANDS = {
    "fit": ["fit", *own_settings("fit"), "--overwrite"],
    "calibrate": ["calibrate", *own_settings("calibrate"), "--overwrite"],
    "retrain": ["retrain", *own_settings("retrain"), "--overwrite"],
    "evaluate": ["evaluate", *own_settings("evaluate"), "--overwrite"],
    "certify": ["certify", "--overwrite"],
    "run": ["run", *SETTINGS, "--overwrite"],
    "solve": ["solve", "1011"],
}
FREE = (0, 4, 16, 40, 80, 150, 400)  # KiB
MEMORY = (5, 20, 60, 150, 400)  # MB more than what the process holds already
ODD_NAMES = ("with space", "ünïcödé", "-dash", "a\nline", "%s{0}$HOME", "[a]*?", "very" * 50, "\udcff\udcfe")


@contextmanager
def disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own, in memory."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path, free: int) -> None:
    """Leaves so many KiB free."""
    stat = os.statvfs(folder)
    excess = stat.f_bavail * stat.f_frsize - 1024 * free
    (folder / "filling").write_bytes(bytes(max(0, excess)))


def judged(run: Path, output: Path, status: int, before: tuple[Any, Any], finished: dict[str, bytes]) -> str:
    """What is wrong with how a command ended; nothing, if it ended as it should."""
    text = output.read_text(errors="replace")
    if "Traceback" in text or "Warning:" in text.replace("Warning: the certificate", "").replace(
        "Warning: 'retrain'", ""
    ):
        return f"{status}: {text[-600:]}"
    if status == 0:
        return "" if content(run) == finished else "other bytes than elsewhere"
    if status != 2:
        return f"ended with {status}: {text[-600:]}"
    if len([line for line in text.splitlines() if "error:" in line]) != 1:
        return f"not one line: {text[-600:]}"
    more = set(listing(run)) ^ set(before[0])
    begun = {name for name in more if name.startswith(".") and ".partial" in name}  # the next writer removes it
    kept = {name: data for name, data in content(run).items() if name not in begun}
    if more - begun or kept != before[1]:
        return f"the run was changed: {sorted(more)}"
    return ""


class Study:
    """Cases and what came of them.

    Args:
        work: Folder to work in.
        results: File to write.
    """

    def __init__(self, work: Path, results: Path) -> None:
        self.work, self.results = work, results
        self.cases: list[dict[str, Any]] = []
        whole = work / "whole"
        whole.mkdir()
        for words in (["run", *SETTINGS, "--run", "run"], ["certify", "--run", "run"]):
            assert done(words, whole, work / "output") == 0, (work / "output").read_text()
        self.finished = whole / "run"
        self.content = content(self.finished)

    def note(self, kind: str, command: str, status: int, fault: str) -> None:
        """Adds a case."""
        self.cases.append({"kind": kind, "command": command, "status": status, "fault": fault})
        counts = Counter(f"{own['kind'].split(':')[0]}: exit status {own['status']}" for own in self.cases)
        faults = [own for own in self.cases if own["fault"]]
        save_json(self.results, {"counts": dict(sorted(counts.items())), "faults": faults, "cases": len(self.cases)})
        print(f"{kind}, {command}: {status} {fault}", flush=True)

    def forked(self, kind: str, command: str, folder: Path, prepare: Callable[[], None] = lambda: None) -> None:
        """A case in a fork of this process, in a folder that holds `run`."""
        output = self.work / "output"
        output.write_text("")
        run = folder / "run"
        before = listing(run), content(run)
        status = done([*COMMANDS[command], "--run", "run"], folder, output, prepare)
        self.note(kind, command, status, judged(run, output, status, before, self.content))

    def started(self, kind: str, command: str, folder: Path, **changes: str | None) -> None:
        """A case in a process that starts from nothing, with other variables of the environment."""
        run, output = folder / "run", self.work / "output"
        environment = {name: value for name, value in {**os.environ, **changes}.items() if value is not None}
        before = listing(run), content(run)
        abc = [sys.executable, "-c", "from abc_toolkit.cli.main import main; raise SystemExit(main())"]
        with output.open("w") as file:
            process = subprocess.run(
                [*abc, *COMMANDS[command], "--run", "run"],
                cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            )  # fmt: skip
        self.note(kind, command, process.returncode, judged(run, output, process.returncode, before, self.content))

    def copied(self, name: str) -> Path:
        """A new folder with a copy of the finished run."""
        folder = emptied(self.work / "case") / name
        folder.mkdir()
        shutil.copytree(self.finished, folder / "run")
        return folder


def limited(more: int) -> Callable[[], None]:
    """Lets a process have so many MB more than it has."""

    def prepare() -> None:
        limit = psutil.Process().memory_info().vms + more * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    return prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "abc_surroundings")
    parser.add_argument("--results", type=Path, default=HERE / "surroundings.json")
    parser.add_argument("--kinds", default="disk,temporary,read-only,memory,environment,names")
    settings = parser.parse_args()
    kinds = settings.kinds.split(",")
    study = Study(emptied(settings.folder), settings.results)
    mounts = os.geteuid() == 0 and sys.platform == "linux"
    for command in COMMANDS:
        for free in FREE if mounts and "disk" in kinds else ():
            with disk(study.work / "disk", "4m") as folder:
                shutil.copytree(study.finished, folder / "run")
                fill(folder, free)
                study.forked(f"a full disk: {free} KiB free", command, folder)
        if mounts and "read-only" in kinds:
            with disk(study.work / "disk", "4m") as folder:
                shutil.copytree(study.finished, folder / "run")
                subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
                study.forked("a read-only folder", command, folder)
        for more in MEMORY if "memory" in kinds else ():
            study.forked(f"little memory: {more} MB more", command, study.copied("case"), limited(more))
        for name in ODD_NAMES if "names" in kinds else ():
            study.forked(f"an odd name: {name!r}", command, study.copied(name))
        if mounts and "temporary" in kinds:
            with disk(study.work / "disk", "64k") as folder:
                fill(folder, 0)
                study.started("a full folder for temporary files", command, study.copied("case"), TMPDIR=str(folder))
        if "environment" in kinds:
            study.started("no home", command, study.copied("case"), HOME=None, XDG_CONFIG_HOME=None)
            study.started("a home that is not there", command, study.copied("case"), HOME="/nonexistent")
            study.started("LANG=C", command, study.copied("case"), LANG="C", LC_ALL="C", PYTHONUTF8="0")
            study.started("40 columns", command, study.copied("case"), COLUMNS="40")
            study.started("a bare environment: no PATH, no TERM", command, study.copied("case"), PATH=None, TERM=None)
    print(f"{len(study.cases)} cases, {sum(bool(own['fault']) for own in study.cases)} faults")


if __name__ == "__main__":
    main()
