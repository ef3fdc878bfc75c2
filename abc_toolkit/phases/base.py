"""What the phases share."""

from pathlib import Path
from typing import get_args

from abc_toolkit.errors import UserError
from abc_toolkit.models.base import Architecture
from abc_toolkit.runs.folder import Phase, Run
from abc_toolkit.tasks.base import Task, require
from abc_toolkit.windows.rules import WindowBackbone


def check_task(run: Run, task: Task, overwrite: bool) -> None:
    """Refuses a run folder of another task; one whose record cannot be read may be overwritten."""
    if run.has(run.first):
        try:
            own = run.task(run.first)
        except UserError:
            if not overwrite:
                raise
            return
        if own != task:
            difference = own.name if type(own) is not type(task) else f"{own.name} with other settings ({own})"
            raise UserError(f"{run.path} is a run of {difference}: name another folder with --run")


def run_with(run: Path | None, needed: Phase, capability: type, command: str) -> Run:
    """The run that a command is about: the phase needed is finished, and its task has a capability.

    Args:
        run: Run folder; the newest in runs/ if not given.
        needed: The phase.
        capability: `Calibratable`, `Solvable` or `Certifiable`.
        command: The command, as messages name it.

    Raises:
        UserError: If there is no such run; if its task lacks the capability, that is said before a phase is asked for.
    """
    try:
        found = Run.newest(run, needed)
    except UserError as reason:
        try:
            began = Run.newest(run)
            task = began.task(began.first)
        except UserError:
            raise reason from None
        require(task, capability, command)
        raise
    require(found.task("retrain" if needed == "retrain" else found.first), capability, command)
    return found


def check_backbone(architecture: Architecture, run: Run) -> None:
    """Refuses a model that no window can be read off."""
    if architecture.kind not in get_args(WindowBackbone):
        raise UserError(
            f"windows are of {' and '.join(get_args(WindowBackbone))} models, and the model of {run.path} is "
            f"{architecture.kind}: 'abc fit' and 'abc evaluate' are what there is for it"
        )


def next_command(run: Run, command: str, options: str = "") -> str:
    """The command that comes next for a run, as one types it."""
    return f"abc {command} --run {run.path}{options}"
