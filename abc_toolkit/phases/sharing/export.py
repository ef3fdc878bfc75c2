"""`export`: one model of a run as a folder of its own, with its certificate and a card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from abc_toolkit.errors import UserError
from abc_toolkit.phases.evaluate import RESULTS
from abc_toolkit.phases.sharing import format as folders
from abc_toolkit.phases.sharing.card import check_license, write_card
from abc_toolkit.phases.sharing.format import CARD, WEIGHTS
from abc_toolkit.phases.sharing.pretrained import certificate_of
from abc_toolkit.report import console, terminal
from abc_toolkit.runs.files import parse_json, sha256
from abc_toolkit.runs.folder import CERTIFICATE, WINDOW, Phase, Run
from abc_toolkit.runs.folder import WEIGHTS as RUN_WEIGHTS
from abc_toolkit.windows.rules import Window

Weights = Literal["retrain", "fit"]
# What every row of an evaluation has.
_KEYS = (("weights", str), ("suite", str), ("metric", str), ("decode", str), ("length", int), ("samples", int))
# Settings that name places on the machine of the run, or what is shown there.
_LOCAL = ("logger", "progress_bar", "export", "size", "maps")


def export(
    folder: Path,
    *,
    run: Path | None = None,
    weights: Weights = "retrain",
    license: str | None = None,  # noqa: A002 - as cards call it
    overwrite: bool = False,
) -> Path:
    """Writes a model of a run into a folder of its own, in the layout of the Hugging Face Hub.

    The folder holds the weights, what they are weights of, the window, a certificate that holds, and a card.

    Args:
        folder: The folder to make.
        run: Run folder; the newest in runs/ if not given.
        weights: retrain, or fit for the vanilla model.
        license: Identifier of the license that the card names, such as mit.
        overwrite: Replace a folder that is an export and nothing else.

    Returns:
        The folder.

    Raises:
        UserError: If the phase is not finished or was changed, the task reads files, or something else is at the
            folder's place.
    """
    folder = Path(folder)
    if license is not None:
        check_license(license)
    folders.check_free(folder, overwrite)
    source = Run.newest(run, weights)
    task = source.task(weights)
    if folders.names_files(task) or task.data_files():
        raise UserError(f"{task.name} reads files, which no export holds: share the run folder and these files instead")
    source.check(weights)
    source.load_model(weights)  # so that what is written can be loaded
    record = source.record(weights)
    names = {WEIGHTS: RUN_WEIGHTS} | ({WINDOW: WINDOW} if weights == "retrain" else {})
    files = {name: source.read(weights, own) for name, own in names.items()}
    if any(sha256(files[name]) != record["files"][own] for name, own in names.items()):
        raise UserError(f"'{weights}' in {source.path} was replaced while 'export' read it: start again")
    config: dict[str, Any] = {
        "phase": weights,
        "task": record["task"],
        "architecture": record["model"],
        "window": Window.from_json(files[WINDOW].decode()).calibration if WINDOW in files else None,
        "training": _training(source, weights, record),
        "versions": record.get("versions", {}),
    }
    unproved = _add_certificate(source, weights, config, files)
    certificate, _ = certificate_of(config, files)
    rows = _rows(source, weights)
    files[CARD] = write_card(task, config, rows, certificate, unproved, license).encode()
    for warning in source.warnings(weights, "evaluate"):
        console.remark(warning)
    folders.write(folder, folders.sealed(config, files), files, overwrite)
    without = "" if certificate is not None or weights == "fit" else f" It is without a certificate: {unproved}."
    terminal.done(f"The model of '{weights}' is exported.{without}", folder, f"abc solve --model {folder} PROBLEM ...")
    return folder


def _training(source: Run, weights: Weights, record: Mapping[str, Any]) -> dict[str, Any]:
    """How the model came about: settings of the phases, seed, outcome."""
    phases: tuple[Phase, ...] = (weights,)
    if weights == "retrain" and source.first == "fit" and source.stale("retrain") is None:
        phases = tuple(phase for phase in ("fit", "calibrate", "retrain") if source.has(phase))
    settings = {phase: _portable(source.record(phase)["arguments"]) for phase in phases}
    if settings[weights].get("window") is not None:
        settings[weights]["window"] = WINDOW
    kept = {name: record.get(name) for name in ("seed", "results", "commit", "finished")}
    return kept | {"settings": settings}


def _portable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a phase without those of one machine."""
    return {
        name: _portable(cast(dict[str, Any], value)) if isinstance(value, dict) and name == "trainer" else value
        for name, value in settings.items()
        if name not in (*_LOCAL, "task")
    }


def _add_certificate(source: Run, weights: Weights, config: Mapping[str, Any], files: dict[str, bytes]) -> str:
    """Adds a certificate that holds to the files; returns why there is none, in words."""
    if weights == "fit":
        return "windows make models certifiable, and the vanilla model has none"
    if not source.has("certify"):
        return "no proof was tried"
    content = source.read("certify", CERTIFICATE)
    _, reason = certificate_of(config, {**files, CERTIFICATE: content})
    if reason is not None:
        return f"that of the run does not hold, as {reason}"
    files[CERTIFICATE] = content
    return ""


def _rows(source: Run, weights: Weights) -> list[dict[str, Any]]:
    """The rows of the run's evaluation that are about the model; none of a stale evaluation.

    Raises:
        UserError: If the evaluation was changed, or holds something else.
    """
    if not source.has("evaluate") or source.stale("evaluate") is not None:
        return []
    path = source.folder("evaluate") / RESULTS
    found: Any = parse_json(source.read("evaluate", RESULTS).decode(errors="replace"), str(path))
    if not isinstance(found, list) or not all(map(_is_row, cast(list[Any], found))):
        raise UserError(f"{path} holds no rows of an evaluation: do 'abc evaluate --overwrite' again")
    return [row for row in cast(list[dict[str, Any]], found) if row["weights"] == weights]


def _is_row(row: Any) -> bool:
    return isinstance(row, dict) and all(type(cast(Any, row).get(name)) is kind for name, kind in _KEYS)
