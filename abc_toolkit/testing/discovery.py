"""Which classes of the package a contract is for, and which of them have a test case."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Iterator
from typing import Any


def import_all(package: str) -> None:
    """Imports every module of a package, so that its classes are known."""
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        importlib.import_module(module.name)


def subclasses(base: type) -> Iterator[type]:
    """All subclasses of a class, at any depth."""
    for child in base.__subclasses__():
        yield child
        yield from subclasses(child)


def left_out(base: type, contract: type, package: str, given: str) -> set[str]:
    """Names of the concrete subclasses of `base` in `package` without a collected test case of a contract.

    Args:
        base: The class that the contract is for.
        contract: The contract; its cases are an instance each, or hold one as the attribute `given`.
        package: Where subclasses count.
        given: Attribute of a case.
    """
    classes = {c for c in subclasses(base) if not inspect.isabstract(c) and c.__module__.startswith(package)}
    return {c.__name__ for c in classes - covered(subclasses(contract), given)}


def covered(contracts: Iterable[Any], given: str) -> set[type]:
    """The classes of which collected contracts have a case."""
    # pytest collects classes by their name.
    collected = [contract for contract in contracts if contract.__name__.startswith("Test")]
    return {type(getattr(case, given, case)) for contract in collected for case in contract.cases.values()}
