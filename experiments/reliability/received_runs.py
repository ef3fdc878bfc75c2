"""Runs and current folders as a stranger might send them: does any command that reads them run what they bring along?

Each probe of `tests/reliability/received.py` is put into a folder with a copy of one finished run, and commands are
started there as processes of their own. Code that runs leaves a mark.

The processes that read files are copies of one that has loaded the toolkit; those of probes that concern loading load
it themselves.

    python -m experiments.reliability.received_runs
    python -m experiments.reliability.received_runs --package /path/to/another/version --only record
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from abc_toolkit.runs.files import save_json
from tests.reliability.received import BASE, COMMANDS, FOLDERS, NAMED, PROBES, Probe, sent

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SCRIPT = "import sys\nfrom abc_toolkit.cli.main import main\nsys.exit(main())\n"  # as it is installed
# Loads the toolkit once, outside all that was sent, and starts commands as processes that are copies of itself.
SERVER = """
import json, os, sys
from abc_toolkit.cli.main import main
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if not child:
        os.chdir(asked["folder"])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for descriptor, name in ((1, "out"), (2, "err")):
            path = os.path.join(asked["streams"], name)
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), descriptor)
        sys.argv = ["abc", *asked["words"]]
        sys.exit(main())
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Abc:
    """Starts commands as processes of their own, with nothing in their environment that they do not need.

    Args:
        work: A folder for the program and a home, beside those in which commands are started.
        package: The folder that holds the package.
    """

    def __init__(self, work: Path, package: Path) -> None:
        self.streams = work / "streams"
        for name in ("home", "bin", "streams"):
            (work / name).mkdir()
        self.script, server = work / "bin" / "abc", work / "bin" / "server"
        self.script.write_text(SCRIPT)
        server.write_text(SERVER)
        self.environment = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        self.environment |= {"HOME": str(work / "home"), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        self.environment["PYTHONPATH"] = str(package)
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        command = [sys.executable, str(server)]
        self.server = subprocess.Popen(command, cwd=work / "home", env=self.environment, **pipes)

    def start(self, folder: Path, words: tuple[str, ...], module: bool) -> tuple[int, str]:
        """One command by a process that loads everything in the folder: exit status and standard error."""
        how = ["-m", "abc_toolkit.cli.main"] if module else [str(self.script)]
        options: dict[str, Any] = {"cwd": folder, "env": self.environment, "capture_output": True, "text": True}
        done = subprocess.run([sys.executable, *how, *words], **options, timeout=300, stdin=subprocess.DEVNULL)
        return done.returncode, done.stderr

    def fork(self, folder: Path, words: tuple[str, ...]) -> tuple[int, str]:
        """One command by a copy of a process that has loaded the toolkit."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        asked = {"folder": str(folder), "words": words, "streams": str(self.streams)}
        print(json.dumps(asked), file=self.server.stdin, flush=True)
        return int(self.server.stdout.readline()), (self.streams / "err").read_text()


def tried(probe: Probe, base: Path, folder: Path, abc: Abc, lines: Sequence[tuple[str, ...]]) -> dict[str, Any]:
    """What happened with a probe, by command."""
    commands = []
    for words in lines:
        made = sent(probe, base, folder)
        made.mark.unlink(missing_ok=True)
        starts = probe in FOLDERS or probe in NAMED
        status, text = abc.start(folder, words, probe.module) if starts else abc.fork(folder, words)
        lines = text.splitlines()
        command = {"command": " ".join(words), "status": status, "ran": made.mark.exists()}
        said = lines[-1].replace(str(folder), ".") if lines else ""
        commands.append(command | {"said": said, "traceback": "Traceback" in text})
    return {"probe": probe.name, "ran": any(command["ran"] for command in commands), "commands": commands}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--package", type=Path, default=ROOT, help="folder that holds the package to be probed")
    parser.add_argument("--only", default="", help="probes whose names hold this")
    parser.add_argument("--commands", type=int, default=len(COMMANDS), help="most commands a probe")
    parser.add_argument("--results", type=Path, default=HERE / "received_runs.json")
    options = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        abc = Abc(work, options.package)
        for words in (BASE, ("certify", "--run", "run")):
            status, text = abc.fork(work, words)
            assert status in (0, 1, 3), text
        results: dict[str, list[dict[str, Any]]] = {}
        for group, probes in (("sent", PROBES), ("named by the user", NAMED)):
            results[group] = []
            for number, probe in enumerate(probe for probe in probes if options.only in probe.name):
                lines = list(probe.lines())
                most = min(len(lines), options.commands)
                lines = [lines[(number + i) % len(lines)] for i in range(most)]  # in turn, if not all
                result = tried(probe, work / "run", work / f"{group[:4]}{number}", abc, lines)
                results[group].append(result)
                print("RAN " if result["ran"] else "    ", probe.name, flush=True)
    sent_commands = [command for result in results["sent"] for command in result["commands"]]
    summary = {
        "probes": len(results["sent"]),
        "commands": len(sent_commands),
        "probes that ran code": sum(result["ran"] for result in results["sent"]),
        "commands that ran code": sum(command["ran"] for command in sent_commands),
        "tracebacks": sum(command["traceback"] for command in sent_commands),
        "statuses": {
            str(status): count for status, count in sorted(Counter(c["status"] for c in sent_commands).items())
        },
        "named by the user, and run": f"{sum(r['ran'] for r in results['named by the user'])} of {len(NAMED)}",
        "seconds": round(time.perf_counter() - start),
    }
    save_json(options.results, {"summary": summary} | results)
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
