"""Values as plain data, and back: how settings stand in records and configuration files."""

import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def describe(value: Any) -> Any:
    """A value as plain data, as it stands in a configuration file; an immutable value by its class and fields."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: describe(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init}
        if type(value).__mro__[1] is object:  # settings of one kind only
            return fields
        return {"class_path": f"{type(value).__module__}.{type(value).__qualname__}", "init_args": fields}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, Mapping):
        return {key: describe(item) for key, item in value.items()}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Path):
        return str(value)
    return {"class_path": f"{type(value).__module__}.{type(value).__qualname__}"}


def rebuild(described: Any, kind: type) -> Any:
    """The value that `describe` made plain.

    Args:
        described: The plain data.
        kind: The class that it must be of.

    Raises:
        TypeError: If it is of another class.
    """
    if isinstance(described, list):
        return tuple(rebuild(item, object) for item in described)
    if not isinstance(described, dict):
        return described
    chosen = kind
    arguments = described
    if "class_path" in described:
        module, _, name = described["class_path"].rpartition(".")
        chosen = getattr(importlib.import_module(module), name)
        arguments = described.get("init_args", {})
        if not (isinstance(chosen, type) and issubclass(chosen, kind) and dataclasses.is_dataclass(chosen)):
            raise TypeError(f"{described['class_path']} is no {kind.__name__}")
    return chosen(**{name: rebuild(value, object) for name, value in arguments.items()})
