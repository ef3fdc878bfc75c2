"""What a user got wrong."""

import math
from collections.abc import Iterable


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
