"""Remarks on standard error. Nothing but rich is loaded for them, and that when there is one."""

import re
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

_silent = ContextVar("silent", default=False)


@contextmanager
def silent() -> Generator[None, None, None]:
    """Says nothing: for all but the first of the processes that train together."""
    before = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(before)


def is_silent() -> bool:
    """Whether nothing is to be said."""
    return _silent.get()


# What moves the cursor, changes the terminal or the direction of writing, or cannot be written.
_CONTROLS = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u206f\\ufeff\\ud800-\\udfff]"
)


def escaped(text: str) -> str:
    """A text whose control characters, which may stand in names, are written as Python writes them."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def line(text: object) -> str:
    """A text as one line."""
    return escaped(str(text)).replace("\n", "\\n").replace("\t", "\\t")


def remark(text: str) -> None:
    """Tells the user something on standard error."""
    if _silent.get():
        return
    from rich.console import Console

    Console(stderr=True, highlight=False, soft_wrap=True).print(escaped(text), markup=False, emoji=False)
