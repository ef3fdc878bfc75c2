"""What a user got wrong."""

import math
from collections.abc import Iterable
from typing import Any, get_args


class UserError(ValueError):
    """Ends a command with exit status 2 and its message: one line that names the thing and the remedy."""


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
        if not (at_least <= value <= at_most and value < below):
            limit = f" and at most {at_most:g}" if at_most < math.inf else ""
            limit += f" and less than {below:g}" if below < math.inf else ""
            raise UserError(f"--{group}.{name} {value:g}: give at least {at_least:g}{limit}")


def check_choice(settings: object, name: str, choices: Any) -> None:
    """Checks a setting that is one of several.

    Args:
        settings: The settings.
        name: The one that is checked.
        choices: The literal type that lists them.

    Raises:
        UserError: If it is none of them.
    """
    value = getattr(settings, name)
    if value not in get_args(choices):
        known = ", ".join(get_args(choices))
        raise UserError(f"{type(settings).__name__}: there is no {name} {value!r}: give one of {known}")
