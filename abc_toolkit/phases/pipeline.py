"""`run`: all phases, one after the other."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

from abc_toolkit.errors import Interrupted, UserError
from abc_toolkit.models.base import Architecture
from abc_toolkit.phases.base import check_backbone, check_task, next_command
from abc_toolkit.phases.calibrate import calibrate, check_calibrating
from abc_toolkit.phases.certify import certify as prove
from abc_toolkit.phases.evaluate import RESULTS, EvaluationResult, check_evaluating, evaluate
from abc_toolkit.phases.measure import read_rows
from abc_toolkit.phases.training import fit, retrain
from abc_toolkit.proof import CannotDecideError, Certificate
from abc_toolkit.proof.basis import basis_of
from abc_toolkit.report import console, terminal
from abc_toolkit.runs.description import describe, differences
from abc_toolkit.runs.folder import PIPELINE, Phase, Run
from abc_toolkit.tasks import Addition, Calibratable, Certifiable, Task
from abc_toolkit.tasks.base import require
from abc_toolkit.training.costs import check_training_memory
from abc_toolkit.training.loop import MAY_DIFFER, TrainerSettings, lightning_trainer
from abc_toolkit.training.processes import starts_processes, undisturbed, wanted_help
from abc_toolkit.windows import Window


@dataclass(frozen=True)
class PipelineResult(EvaluationResult):
    """What `run_all` returns.

    Attributes:
        certificate: The certificate, if one was made.
    """

    certificate: Certificate | None = None


def run_all(
    task: Task | None = None,
    *,
    run: Path | None = None,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    fit_settings: Mapping[str, Any] | None = None,
    calibrate_settings: Mapping[str, Any] | None = None,
    retrain_settings: Mapping[str, Any] | None = None,
    evaluate_settings: Mapping[str, Any] | None = None,
    certify: bool = True,
) -> PipelineResult:
    """Does all phases: fit, calibrate, retrain, evaluate, certify. Takes every option of the first four as
    --PHASE.OPTION.

    Args:
        task: What to learn; Addition if not given.
        run: Run folder; runs/TASK if not given.
        seed: Everything random follows from it.
        resume: Go on with an interrupted run; finished phases are kept. A finished run stays as it is.
        overwrite: Replace what is there.
        fit_settings: Arguments of `fit` by name.
        calibrate_settings: Arguments of `calibrate` by name.
        retrain_settings: Arguments of `retrain` by name.
        evaluate_settings: Arguments of `evaluate` by name.
        certify: Prove the model right at every length at the end, where a proof can be tried; exit status 1 if it is
            wrong.

    Returns:
        The evaluation, and the certificate.

    Raises:
        UserError: As the phases.
    """
    task = Addition() if task is None else task
    require(task, Calibratable, "abc run")
    place = Run.of(run, task)
    check_task(place, task, overwrite)
    fitted = (fit_settings or {}).get("model", Architecture()).for_task(task.interface.decoded)
    settings: dict[Phase, dict[str, Any]] = {
        "fit": {"task": task, "seed": seed} | dict(fit_settings or {}) | {"model": fitted},
        "calibrate": dict(calibrate_settings or {}),
        "retrain": {"seed": seed} | dict(retrain_settings or {}),
        "evaluate": {"seed": seed} | dict(evaluate_settings or {}),
    }
    check_backbone(fitted, place)
    helped = wanted_help()
    if helped is not None:  # this process was started for one training, and ends with it
        own: dict[str, Any] = {"run": place.path, "resume": helped.resume, "overwrite": not helped.resume}
        return COMMANDS[helped.phase](**(settings[helped.phase] | own))
    _check_asked(task, settings)
    for phase in ("fit", "retrain"):
        trainer = settings[phase].get("trainer", TrainerSettings())
        if not starts_processes(trainer.devices, trainer.num_nodes):
            raise UserError(
                f"'abc run' starts the processes of {phase} itself, on this machine: where torchrun, srun or several "
                "machines start them, do the phases one by one, with 'abc fit' and so on"
            )
    with place.locked():
        there = [phase for phase in PIPELINE if place.has(phase) or place.interrupted(phase)]
        if there and not resume and not overwrite:
            raise UserError(
                f"{place.path} holds {', '.join(there)} already: go on with --resume, replace it with --overwrite, "
                "or name another --run"
            )
        kept = _kept(place, settings) if resume else []
        if len(kept) == len(PIPELINE):
            return _certified(_finished_before(place), certify, overwrite)
        for phase in kept:
            console.remark(f"{phase}: finished before, kept.")
        result = None
        for phase in PIPELINE[len(kept) :]:
            go_on = resume and (place.interrupted(phase) or _is_extended(place, phase, settings[phase]))
            arguments: dict[str, Any] = {"run": place.path, "overwrite": not go_on if resume else overwrite}
            if phase in ("fit", "retrain"):
                arguments["resume"] = go_on
            try:
                result = COMMANDS[phase](**(settings[phase] | arguments))
            except KeyboardInterrupt:
                raise Interrupted(phase != PIPELINE[0] or place.interrupted(phase)) from None
        assert isinstance(result, EvaluationResult)
        return _certified(result, certify, overwrite)


def _certified(result: EvaluationResult, asked: bool, overwrite: bool) -> PipelineResult:
    """The result with a certificate, where one is asked for and a proof can be tried."""
    place = result.run
    certificate = None
    task = place.task("retrain") if asked else None
    if isinstance(task, Certifiable):
        try:
            basis_of(task, place.load_model("retrain"))
        except CannotDecideError as error:
            console.remark(f"Not certified: {error}.")
        else:
            if not place.up_to_date("certify"):
                certificate = prove(run=place.path, overwrite=overwrite or place.has("certify"))
    return PipelineResult(place, result.rows, certificate)


def _finished_before(place: Run) -> EvaluationResult:
    """Shows the results of a run of which nothing is left to do."""
    path = place.folder("evaluate") / RESULTS
    rows = read_rows(path)
    terminal.print_results([row.plain() for row in rows], place.task("fit").objective.metrics)
    terminal.done(f"{place.path} was finished before.", path.parent, next_command(place, "solve", " PROBLEM ..."))
    return EvaluationResult(place, rows)


def _check_asked(task: Task, settings: Mapping[Phase, Mapping[str, Any]]) -> None:
    """Refuses settings of phases to come now rather than after a training."""

    def asked(phase: Phase) -> dict[str, Any]:
        defaults = {name: parameter.default for name, parameter in signature(COMMANDS[phase]).parameters.items()}
        return defaults | dict(settings[phase])

    fitted, retrained = asked("fit"), asked("retrain")
    sizes = retrained["model"].of(fitted["model"])
    for model, phase in ((fitted["model"], fitted), (sizes, retrained)):
        check_training_memory(task, model, phase["data"], phase["trainer"].accelerator)
    with undisturbed():
        lightning_trainer(replace(retrained["trainer"], logger=False))
    if retrained["window"] is not None:
        Window.load(retrained["window"])
    names = ("problems", "export", "size", "accelerator")
    check_calibrating(task, fitted["model"], *(asked("calibrate")[name] for name in names))
    check_evaluating(task, *(asked("evaluate")[name] for name in ("length", "sets", "samples", "accelerator")))


def _kept(place: Run, settings: Mapping[Phase, Mapping[str, Any]]) -> list[Phase]:
    """The first phases of a run that are finished and up to date, in all files and under the settings asked for.

    Raises:
        UserError: If a file of one of them is missing or was changed, or a setting that counts is another.
    """
    kept: list[Phase] = []
    for phase in PIPELINE:
        if not place.up_to_date(phase) or _is_extended(place, phase, settings[phase]):
            break
        place.check(phase)
        different = _differences(place, phase, settings[phase])
        if different:
            raise UserError(
                f"'{phase}' in {place.path} was done under other settings: {'; '.join(different)}; give the same to "
                "resume the run, or start afresh with --overwrite"
            )
        kept.append(phase)
    return kept


def _is_extended(place: Run, phase: Phase, settings: Mapping[str, Any]) -> bool:
    """Whether a finished training that ended with its steps is asked to take more."""
    if not place.has(phase) or not place.extensible(phase) or "trainer" not in settings:
        return False
    return settings["trainer"].max_steps > place.record(phase)["arguments"]["trainer"]["max_steps"]


def _differences(place: Run, phase: Phase, settings: Mapping[str, Any]) -> list[str]:
    """Which settings of a finished phase are others than those asked for, each with both values."""
    record = place.record(phase)
    before = record["arguments"] | ({"seed": record["seed"]} if "seed" in record["arguments"] else {})
    defaults = {name: parameter.default for name, parameter in signature(COMMANDS[phase]).parameters.items()}
    asked = {name: describe(settings.get(name, defaults.get(name))) for name in before}
    return list(differences(before, json.loads(json.dumps(asked)), (*MAY_DIFFER, "export", "size")))


COMMANDS: Mapping[Phase, Callable[..., Any]] = {
    "fit": fit,
    "calibrate": calibrate,
    "retrain": retrain,
    "evaluate": evaluate,
}
