"""What a user got wrong."""

import dataclasses
import math
import re
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin


class UserError(ValueError):
    """Ends a command with exit status 2 and its message: one line that names the thing and the remedy."""


_NO_MEMORY = re.compile("(can't|cannot) allocate memory|out of memory|not enough memory|failed to map", re.IGNORECASE)


def lacks_memory(error: BaseException | None) -> bool:
    """Whether an error comes of too little memory; PyTorch and the loader of libraries say so in words alone."""
    while error is not None:
        if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def check_numbers(
    settings: object,
    group: str,
    names: Iterable[str],
    at_least: float = 0,
    at_most: float = math.inf,
    below: float = math.inf,
) -> None:
    """Checks numbers among settings as they are made.

    Args:
        settings: The settings.
        group: The prefix of their options, such as `trainer`.
        names: Those that are checked.
        at_least: The least that makes sense.
        at_most: The most that makes sense.
        below: What each must be below.

    Raises:
        UserError: If one is outside, or not a number at all.
    """
    for name in names:
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"--{group}.{name} {value!r}: give a number")
        if not (at_least <= value <= at_most and value < below):
            limit = f" and at most {at_most:g}" if at_most < math.inf else ""
            limit += f" and less than {below:g}" if below < math.inf else ""
            raise UserError(f"--{group}.{name} {value:g}: give at least {at_least:g}{limit}")


def check_literals(settings: Any) -> None:
    """Checks the fields of a dataclass that are annotated with a literal type.

    Args:
        settings: An instance of the dataclass.

    Raises:
        UserError: If the value of such a field is not one of those that the type lists.
    """
    for field in dataclasses.fields(settings):
        choices = get_args(field.type) if get_origin(field.type) is Literal else ()
        value = getattr(settings, field.name)
        if choices and value not in choices:
            kind = type(settings).__name__
            raise UserError(f"{kind}: {field.name} cannot be {value!r}: give one of {', '.join(map(str, choices))}")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, or a signal to end.

    Args:
        resumable: Whether there is something that the command can go on from.
    """

    def __init__(self, resumable: bool) -> None:
        super().__init__()
        self.resumable = resumable
