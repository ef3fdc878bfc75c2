"""Certifies finished runs anew, has each certificate checked without the toolkit, and keeps what came of it.

Each run is `abc certify --overwrite` and `python -m abc_toolkit.checker`, each timed as a whole process. A run whose
weights are in the results already is skipped, so that an interrupted sweep goes on where it was.

    python experiments/certify/recertify.py runs/pipeline/*
"""

import argparse
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

from abc_toolkit.runs.files import save_json

HERE = Path(__file__).parent
KEPT = (
    "verdict", "reason", "bound", "layouts", "kinds", "assignments", "beyond_training", "smallest_margin",
    "largest_rounding", "smallest_slack", "deviations", "outside", "meaning",
)  # fmt: skip


def timed(*command: object) -> tuple[int, str, float]:
    """One command: its exit status, the last line that it printed, and how long it took."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return done.returncode, lines[-1] if lines else "", time.perf_counter() - start


def recertified(run: Path) -> dict:
    """What certifier and checker say of one run."""
    command = "import sys; from abc_toolkit.cli.main import main; sys.exit(main())"
    status, _, seconds = timed("-c", command, "certify", "--run", run, "--overwrite")
    path = run / "certify" / "certificate.json"
    certificate = json.loads(path.read_text())
    checked, said, checking = timed("-m", "abc_toolkit.checker", path)
    found = {"run": run.name, "status": status, "seconds": seconds, "checker": checked, "checker_says": said}
    found |= {"checker_seconds": checking, "weights": certificate["hashes"]["weights"]}
    return found | {name: certificate.get(name) for name in KEPT}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--results", type=Path, default=HERE / "certificates.json")
    settings = parser.parse_args()
    results = json.loads(settings.results.read_text()) if settings.results.exists() else []
    for run in settings.runs:
        weights = run / "retrain" / "weights.safetensors"
        if not weights.exists():
            continue
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        if any((own["run"], own["weights"]) == (run.name, digest) for own in results):
            continue
        results = [own for own in results if own["run"] != run.name]
        own = recertified(run)
        results.append(own)
        save_json(settings.results, sorted(results, key=lambda result: result["run"]))
        print(
            f"{run.name}: {own['verdict']} in {own['seconds']:.0f} s; checker: {own['checker_says']} in "
            f"{own['checker_seconds']:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
