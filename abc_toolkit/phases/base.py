"""What the phases share."""

from abc_toolkit.errors import UserError
from abc_toolkit.models.base import Architecture
from abc_toolkit.runs.folder import (
    Run,
)
from abc_toolkit.tasks import Task


def check_task(place: Run, task: Task, overwrite: bool) -> None:
    """Refuses a run folder of another task; one whose record cannot be read may be overwritten."""
    if place.has("fit"):
        try:
            own = place.task("fit")
        except UserError:
            if not overwrite:
                raise
            return
        if own != task:
            difference = own.name if type(own) is not type(task) else f"{own.name} with other settings ({own})"
            raise UserError(f"{place.path} is a run of {difference}: name another folder with --run")


def check_backbone(sizes: Architecture, place: Run) -> None:
    """Refuses a model that no window can be read off."""
    if sizes.backbone != "encoder-decoder":
        raise UserError(
            f"windows are of encoder-decoders, and the model of {place.path} is {sizes.backbone}: 'abc fit' and "
            "'abc evaluate' are what there is for it"
        )


def next_command(place: Run, command: str, options: str = "") -> str:
    """The command that comes next for a run, as one types it."""
    return f"abc {command} --run {place.path}{options}"
