"""Whose code may run: what a run names and what the current folder holds are data until the user trusts them.

A run may come from anyone, and its record names classes. Reading a record imports modules of the toolkit, and modules
that the user trusts by name. From other modules it takes subclasses of the toolkit's contracts, and only if the module
is loaded already: then the user loaded it.
"""

import importlib
import os
import sys
from argparse import Action
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import is_dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from inspect import currentframe
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from abc_toolkit.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]
# The module of jsonargparse that imports class paths of the command line, of a file of settings or of the environment.
_IMPORTS_WHAT_THE_USER_NAMES = "jsonargparse._util"
_trusted: ContextVar[frozenset[str]] = ContextVar("trusted", default=frozenset())


class OtherKindError(UserError):
    """A value of a description has the wrong type."""


@contextmanager
def trusting(*names: str) -> Generator[None, None, None]:
    """Trusts modules in the block: runs that are read may name their classes.

    Args:
        names: Modules, or packages with all that is in them; several in one text are separated by commas.

    Raises:
        UserError: If a name is not that of a module.
    """
    given = [name.strip() for text in names for name in text.split(",") if text]
    for name in given:
        if not _is_dotted(name):
            raise UserError(f"--trust {name!r}: give the name of a module or a package, such as my_task")
    token = _trusted.set(_trusted.get() | set(given))
    try:
        yield
    finally:
        _trusted.reset(token)


class TrustOption(Action):
    """The option `--trust`: names separated by commas, which add to those given before."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        before = getattr(namespace, self.dest, None)
        setattr(namespace, self.dest, f"{before},{values}" if before else values)


def comma_list(names: Any) -> str:
    """The names of `--trust` as one text, of a text or, in a file of settings, a list."""
    return ",".join(map(str, cast(list[Any], names))) if isinstance(names, list) else str(names)


def find_class(class_path: Any, kind: type, source: str) -> type:
    """The dataclass that a description names.

    Args:
        class_path: `module.Class`, from the description.
        kind: The class itself, or a base class of it.
        source: Name of the description in messages, such as its file.

    Raises:
        OtherKindError: If it is not a dataclass of the kind.
        UserError: If the path is malformed, or its module is not trusted or cannot be imported.
    """
    if not isinstance(class_path, str) or "." not in class_path or not _is_dotted(class_path):
        raise UserError(f"{source} names the class {class_path!r}, which is no module.Class")
    module_name, _, name = class_path.rpartition(".")
    module_name = _moved_to(module_name, name)
    may_import = _is_trusted(module_name)
    module = _imported(module_name, f"{source} names {class_path}") if may_import else sys.modules.get(module_name)
    # The module and its content are looked at in ways that run none of their code.
    found: Any = None if module is None else vars(module).get(name)
    of_kind = issubclass(type(found), type) and kind in found.__mro__ and is_dataclass(found)
    known = found is kind or _is_the_toolkits(kind.__module__) or (of_kind and _is_trusted(found.__module__))
    if module is None or (of_kind and not known):
        raise UserError(
            f"{source} names {class_path}, a class that is not the toolkit's: if you trust its code, add "
            f"--trust {module_name} (in Python: with abc_toolkit.trusting({module_name!r}))"
        )
    if not of_kind:
        raise OtherKindError(f"{source} names {class_path}, which is no {kind.__name__}")
    return cast(type, found)


def _moved_to(module: str, name: str) -> str:
    """The module of a class now: its package, if the module is one of an earlier version of the toolkit."""
    package = module.rpartition(".")[0]
    if _is_the_toolkits(module) or not _is_the_toolkits(package) or package == PACKAGE.name:
        return module
    return package if name in vars(importlib.import_module(package)) else module


def _is_dotted(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _is_trusted(module: str) -> bool:
    """Whether a module may be imported because a run names it."""
    parts = module.split(".")
    packages = {".".join(parts[: i + 1]) for i in range(len(parts))}
    return _is_the_toolkits(module) or not packages.isdisjoint(_trusted.get())


def _is_the_toolkits(module: str) -> bool:
    """Whether a module belongs to the toolkit: by its name, and by a file in its folder."""
    top, *parts = module.split(".")
    path = PACKAGE.joinpath(*parts)
    return top == PACKAGE.name and (path.with_suffix(".py").is_file() or (path / "__init__.py").is_file())


def _imported(module: str, what: str) -> ModuleType:
    """The module, imported if it is not yet."""
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a module may raise anything, or end the program
        missing = isinstance(error, ModuleNotFoundError)
        where = ", nor in the current folder; name its folder in PYTHONPATH" if missing else ""
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"{what}, whose module cannot be imported ({reason}){where}") from None


class CurrentFolder(MetaPathFinder):
    """Finds modules in the current folder that the user names, and those that they import; nothing else.

    Installed packages import optional ones if they find them. With the folder on `sys.path`, a file with the name of
    such a package would run.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.found: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if path is not None:  # inside a package, which has a folder of its own
            return None
        importer = _importer()
        if importer not in (_IMPORTS_WHAT_THE_USER_NAMES, __name__) and importer.partition(".")[0] not in self.found:
            return None
        spec = PathFinder.find_spec(fullname, [self.folder], target)
        if spec is not None:
            self.found.add(fullname)
        return spec


def _importer() -> str:
    """Name of the module that is importing another."""
    frame: Any = currentframe()
    frame = frame.f_back.f_back  # past this function and the finder
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name.partition(".")[0] not in _IMPORT_SYSTEM:
            return name
        frame = frame.f_back
    return ""


_IMPORT_SYSTEM = ("importlib", "_frozen_importlib", "_frozen_importlib_external")


@contextmanager
def searching_current_folder() -> Generator[None, None, None]:
    """Finds classes that the user names in the current folder too, after all other places, while in the block."""
    try:
        finder = CurrentFolder(os.getcwd())
    except OSError:  # the folder was removed
        yield
        return
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


@contextmanager
def in_the_packages_folder() -> Generator[None, None, None]:
    """Changes to the package's folder in the block, if the current one holds a file that Matplotlib would obey.

    A `matplotlibrc` chooses programs to call (TeX), and versions before 3.11 evaluate a part of it as Python.
    """
    if not os.path.lexists("matplotlibrc"):
        yield
        return
    here = os.getcwd()
    os.chdir(PACKAGE)
    try:
        yield
    finally:
        os.chdir(here)
