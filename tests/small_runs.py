"""Runs whose phases are small files, and records whose hashes are made right again after a change."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from abc_toolkit.runs.files import canonical_hash, sha256
from abc_toolkit.runs.folder import PROGRESS, RECORD, WEIGHTS, WINDOW, Phase, Run, save_record

CONTENT: Mapping[str, str] = {
    "fit": WEIGHTS,
    "calibrate": WINDOW,
    "retrain": WEIGHTS,
    "evaluate": "results.json",
    "explain": "transducer.json",
}
READS: Mapping[str, tuple[Phase, ...]] = {
    "fit": (),
    "calibrate": ("fit",),
    "retrain": ("calibrate",),
    "evaluate": ("fit", "retrain"),
    "certify": ("retrain",),
    "explain": ("retrain", "certify"),
}


def inputs_of(run: Run, phase: Phase) -> dict[str, str]:
    """What a phase reads of those before it, as they are now."""
    return {name: value for source in READS[phase] for name, value in run.produced(source).items()}


def fill(run: Run, phase: Phase, folder: Path, text: str = "new", **results: Any) -> None:
    """Writes a phase's files and its record."""
    (folder / CONTENT.get(phase, "certificate.json")).write_text(text)
    facts = {"task": text, "model": "small"} if phase in ("fit", "retrain") else {}
    save_record(folder, phase, 0, {"seed": 0}, results, inputs=inputs_of(run, phase), facts=facts)


def finish(run: Run, phase: Phase = "fit", text: str = "new", **options: bool) -> None:
    """Does a phase."""
    with run.writing(phase, **options) as folder:
        fill(run, phase, folder, text)


def text_of(run: Run, phase: Phase = "fit") -> str:
    """What a phase wrote."""
    return run.read(phase, CONTENT[phase]).decode()


def resealed(folder: Path, change: Callable[[dict[str, Any]], None] = lambda record: None) -> None:
    """Changes a record and makes its hashes right for the files that there are."""
    record = json.loads((folder / RECORD).read_text())
    del record["hash"]
    change(record)
    names = sorted(path.name for path in folder.iterdir() if path.name not in (RECORD, PROGRESS))
    record["files"] = {name: sha256(folder / name) for name in names}
    (folder / RECORD).write_text(json.dumps(record | {"hash": canonical_hash(record)}))
