"""`run`: the phases, one after the other."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

from abc_toolkit.errors import Interrupted, UserError
from abc_toolkit.models.base import Architecture
from abc_toolkit.models.memory import check_training_memory
from abc_toolkit.phases.base import check_backbone, check_task, next_command
from abc_toolkit.phases.calibrate import calibrate, check_calibrating
from abc_toolkit.phases.certify import certify as prove
from abc_toolkit.phases.evaluate import RESULTS, EvaluationResult, check_evaluating, evaluate
from abc_toolkit.phases.measure import read_rows
from abc_toolkit.phases.training import fit, retrain
from abc_toolkit.proof import CannotDecideError
from abc_toolkit.proof.basis import basis_of
from abc_toolkit.report import console, terminal
from abc_toolkit.runs.description import describe, differences
from abc_toolkit.runs.folder import PIPELINE, Phase, Run
from abc_toolkit.tasks import Addition, Calibratable, Certifiable, Task
from abc_toolkit.tasks.base import require
from abc_toolkit.training.loop import MAY_DIFFER, TrainerSettings, lightning_trainer
from abc_toolkit.training.processes import starts_processes, undisturbed, wanted_help
from abc_toolkit.windows import Window

DONE_BY_RUN: tuple[Phase, ...] = (*PIPELINE, "certify")


@dataclass(frozen=True)
class PipelineResult(EvaluationResult):
    """What `run_all` returns.

    Attributes:
        verdict: The verdict of the run's certificate: `correct`, `wrong` or `undecided`; `None` if it has none.
    """

    verdict: str | None = None


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
    phases: Sequence[str] | str = DONE_BY_RUN,
) -> PipelineResult:
    """Does all phases: fit, calibrate, retrain, evaluate, certify. Takes every option of the first four as
    --PHASE.OPTION.

    Exit status 0, or 1 if the retrained model is proved wrong.

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
        phases: Which phases, such as fit,evaluate; certify is left out where no proof can be tried.

    Returns:
        The evaluation, and the verdict of the certificate.

    Raises:
        UserError: As the phases; or if a phase is left out that another one needs.
    """
    task = Addition() if task is None else task
    wanted = chosen_phases(phases, window=(retrain_settings or {}).get("window") is not None)
    target = Run.named(run, task)
    architecture = (fit_settings or {}).get("model", Architecture()).for_task(task.interface.decoded)
    if "calibrate" in wanted or "retrain" in wanted:
        require(task, Calibratable, "abc run")
        check_backbone(architecture, target)
    check_task(target, task, overwrite)
    pipeline: list[Phase] = [phase for phase in PIPELINE if phase in wanted]
    settings: dict[Phase, dict[str, Any]] = {
        "fit": {"task": task, "seed": seed} | dict(fit_settings or {}) | {"model": architecture},
        "calibrate": dict(calibrate_settings or {}),
        "retrain": {"seed": seed} | dict(retrain_settings or {}),
        "evaluate": {"seed": seed} | dict(evaluate_settings or {}),
    }
    helped = wanted_help()
    if helped is not None:  # this process was started for one training, and ends with it
        own: dict[str, Any] = {"run": target.path, "resume": helped.resume, "overwrite": not helped.resume}
        return PHASES[helped.phase](**(settings[helped.phase] | own))
    settings = {phase: settings[phase] for phase in pipeline}
    _check_asked(task, settings)
    _check_starts_processes(settings)
    with target.locked():
        _check_free(target, pipeline, resume, overwrite)
        kept = _kept(target, settings) if resume else []
        if len(kept) == len(pipeline):
            result = _finished_before(target, "evaluate" in wanted)
            return _certified(result, "certify" in wanted, overwrite)
        for phase in kept:
            console.remark(f"{phase}: finished before, kept.")
        result = EvaluationResult(target, ())
        for phase in pipeline[len(kept) :]:
            done = _done(target, phase, settings[phase], phase == pipeline[0], resume, overwrite)
            result = done if isinstance(done, EvaluationResult) else result
        return _certified(result, "certify" in wanted, overwrite)


def chosen_phases(phases: Sequence[str] | str, window: bool) -> list[Phase]:
    """The phases that are asked for, in their order.

    Args:
        phases: Their names.
        window: Whether a file gives the window.

    Raises:
        UserError: If a name is unknown, or a phase is left out that another one needs.
    """
    names = phases.split(",") if isinstance(phases, str) else list(phases)
    unknown = [name for name in names if name not in DONE_BY_RUN]
    if unknown or not names:
        raise UserError(f"--phases {','.join(names)}: choose of {','.join(DONE_BY_RUN)}")
    needed: dict[Phase, tuple[Phase, ...]] = {
        "fit": (),
        "calibrate": ("fit",),
        "retrain": ("fit",) if window else ("fit", "calibrate"),
        "evaluate": ("fit",),
        "certify": ("retrain",),
    }
    wanted: list[Phase] = [phase for phase in DONE_BY_RUN if phase in names]
    for phase in wanted:
        for before in needed[phase]:
            if before not in wanted:
                raise UserError(
                    f"--phases {','.join(names)}: {phase} needs {before}; add it, or do 'abc {phase}' alone"
                )
    return wanted


def _check_starts_processes(settings: Mapping[Phase, Mapping[str, Any]]) -> None:
    """Refuses trainings whose processes are started from outside: they would start `abc run` several times."""
    trainings: tuple[Phase, ...] = ("fit", "retrain")
    for phase in trainings:
        trainer = settings.get(phase, {}).get("trainer", TrainerSettings())
        if not starts_processes(trainer.devices, trainer.num_nodes):
            raise UserError(
                f"'abc run' starts the processes of {phase} itself, on this machine: where torchrun, srun or several "
                "machines start them, do the phases one by one, with 'abc fit' and so on"
            )


def _check_free(run: Run, phases: Sequence[Phase], resume: bool, overwrite: bool) -> None:
    """Refuses a run that holds phases which nobody asked to resume or to replace."""
    there = [phase for phase in phases if run.has(phase) or run.interrupted(phase)]
    if there and not resume and not overwrite:
        raise UserError(
            f"{run.path} holds {', '.join(there)} already: go on with --resume, replace it with --overwrite, "
            "or name another --run"
        )


def _done(run: Run, phase: Phase, settings: Mapping[str, Any], first: bool, resume: bool, overwrite: bool) -> Any:
    """What a phase returns; of a resumed run, an interrupted or extended training goes on and the others begin anew."""
    go_on = resume and (run.interrupted(phase) or _is_extended(run, phase, settings))
    arguments: dict[str, Any] = {"run": run.path, "overwrite": not go_on if resume else overwrite}
    if phase in ("fit", "retrain"):
        arguments["resume"] = go_on
    try:
        return PHASES[phase](**(dict(settings) | arguments))
    except KeyboardInterrupt:
        raise Interrupted(not first or run.interrupted(phase)) from None


def _certified(result: EvaluationResult, asked: bool, overwrite: bool) -> PipelineResult:
    """The result with the verdict of a certificate, where one is asked for and a proof can be tried."""
    run = result.run
    task = run.task("retrain") if asked else None
    if not isinstance(task, Certifiable):
        return PipelineResult(run, result.rows)
    if run.up_to_date("certify"):
        return PipelineResult(run, result.rows, run.verdict)
    try:
        basis_of(task, run.load_model("retrain"))
    except CannotDecideError as error:
        console.remark(f"Not certified: {error}.")
        return PipelineResult(run, result.rows)
    certificate = prove(run=run.path, overwrite=overwrite or run.has("certify"))
    return PipelineResult(run, result.rows, certificate.verdict)


def _finished_before(run: Run, evaluated: bool) -> EvaluationResult:
    """Shows the results of a run of which nothing is left to do."""
    if not evaluated:
        terminal.done(f"{run.path} was finished before.", run.path, next_command(run, "evaluate"))
        return EvaluationResult(run, ())
    path = run.folder("evaluate") / RESULTS
    rows = read_rows(path)
    terminal.print_results([row.plain() for row in rows], run.task("fit").objective.metrics)
    terminal.done(f"{run.path} was finished before.", path.parent, next_command(run, "solve", " PROBLEM ..."))
    return EvaluationResult(run, rows)


def _check_asked(task: Task, settings: Mapping[Phase, Mapping[str, Any]]) -> None:
    """Refuses settings of phases to come now rather than after a training."""

    def asked(phase: Phase) -> dict[str, Any]:
        defaults = {name: parameter.default for name, parameter in signature(PHASES[phase]).parameters.items()}
        return defaults | dict(settings[phase])

    architecture = settings["fit"]["model"]
    for phase in settings:
        given = asked(phase)
        if phase == "retrain":
            architecture = given["model"].applied_to(architecture)
            if given["window"] is not None:
                Window.load(given["window"])
        if phase in ("fit", "retrain"):
            data, trainer = given["data"], given["trainer"]
            check_training_memory(task, architecture, data.batch_size, data.validation_problems, trainer.accelerator)
            with undisturbed():
                lightning_trainer(replace(trainer, logger=False))
        if phase == "calibrate":
            names = ("problems", "export", "size", "accelerator")
            check_calibrating(require(task, Calibratable, "abc run"), architecture, *(given[name] for name in names))
        if phase == "evaluate":
            check_evaluating(task, *(given[name] for name in ("length", "sets", "samples", "decode", "accelerator")))


def _kept(run: Run, settings: Mapping[Phase, Mapping[str, Any]]) -> list[Phase]:
    """The first phases of a run that are finished and up to date, in all files and under the settings asked for.

    Raises:
        UserError: If a file of one of them is missing or was changed, or a setting that counts is another.
    """
    kept: list[Phase] = []
    for phase in settings:
        if not run.up_to_date(phase) or _is_extended(run, phase, settings[phase]):
            break
        run.check(phase)
        different = _differences(run, phase, settings[phase])
        if different:
            raise UserError(
                f"'{phase}' in {run.path} was done under other settings: {'; '.join(different)}; give the same to "
                "resume the run, or start afresh with --overwrite"
            )
        kept.append(phase)
    return kept


def _is_extended(run: Run, phase: Phase, settings: Mapping[str, Any]) -> bool:
    """Whether a finished training that ended with its steps is asked to take more."""
    if not run.has(phase) or not run.extensible(phase) or "trainer" not in settings:
        return False
    return settings["trainer"].max_steps > run.record(phase)["arguments"]["trainer"]["max_steps"]


def _differences(run: Run, phase: Phase, settings: Mapping[str, Any]) -> list[str]:
    """Which settings of a finished phase are others than those asked for, each with both values."""
    record = run.record(phase)
    before = record["arguments"] | ({"seed": record["seed"]} if "seed" in record["arguments"] else {})
    defaults = {name: parameter.default for name, parameter in signature(PHASES[phase]).parameters.items()}
    asked = {name: describe(settings.get(name, defaults.get(name))) for name in before}
    return list(differences(before, json.loads(json.dumps(asked)), (*MAY_DIFFER, "export", "size")))


PHASES: Mapping[Phase, Callable[..., Any]] = {
    "fit": fit,
    "calibrate": calibrate,
    "retrain": retrain,
    "evaluate": evaluate,
}
