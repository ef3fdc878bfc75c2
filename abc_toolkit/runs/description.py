"""Values as plain data, and back: how settings stand in records and configuration files."""

import collections.abc
import contextlib
import dataclasses
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin
from weakref import WeakKeyDictionary

from abc_toolkit.errors import UserError
from abc_toolkit.runs.trust import OtherKindError, find_class

_SEQUENCES = (tuple, list, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
_MAPPINGS = (dict, collections.abc.Mapping)
_made_with: WeakKeyDictionary[Any, Mapping[str, Any]] = WeakKeyDictionary()


def describe(value: Any) -> Any:
    """A value as plain data, as a configuration file holds it; an instance of a dataclass by its class and fields.

    Fields with `later` in their metadata came later than the first records of their class. They are left out where they
    have their defaults, so that descriptions stay what they were.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = (field for field in dataclasses.fields(value) if field.init)
        fields = {
            field.name: describe(getattr(value, field.name))
            for field in own
            if not (field.metadata.get("later") and getattr(value, field.name) == field.default)
        }
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
    named = {"class_path": f"{type(value).__module__}.{type(value).__qualname__}"}
    with contextlib.suppress(TypeError):  # a value without weak references cannot have been remembered
        if value in _made_with:
            return named | {"init_args": describe(_made_with[value])}
    return named


def remember(value: Any, arguments: Mapping[str, Any]) -> None:
    """Keeps the arguments that a value was made with, for `describe`: a logger, say, does not keep them itself."""
    _made_with[value] = arguments


def differences(before: Any, now: Any, may_differ: Collection[str] = (), name: str = "") -> Iterator[str]:
    """The settings in which two values differ, each by its name with both values.

    Args:
        before: The earlier value.
        now: The present value.
        may_differ: Names of settings that are left out.
        name: Name of the values, with which the names of their settings begin.
    """
    if isinstance(before, Mapping) and isinstance(now, Mapping) and before.get("class_path") == now.get("class_path"):
        for key in {**before, **now}:
            own = name if key == "init_args" else f"{name}.{key}".lstrip(".")
            if own not in may_differ:
                yield from differences(before.get(key), now.get(key), may_differ, own)
    elif before != now:
        yield f"{name} was {_shown(before)} and is {_shown(now)}"


def _shown(value: Any) -> str:
    """A value as a message shows it: a class by its name and settings."""
    if not isinstance(value, Mapping) or "class_path" not in value:
        return str(value)
    own = ", ".join(f"{name}={_shown(setting)}" for name, setting in value.get("init_args", {}).items())
    return f"{value['class_path'].rpartition('.')[2]}({own})"


def rebuild(described: Any, kind: type, source: str | Path = "the description", whole: bool = False) -> Any:
    """The value that a description stands for. Descriptions are not trusted: `trust` says which classes they may name.

    Args:
        described: The plain data.
        kind: The class of the value.
        source: Name of the description in messages, such as its file.
        whole: Whether every setting must be given, as `describe` does, so that no default replaces one.

    Raises:
        UserError: If the value is of another class, the class is not trusted, or the class refuses the settings.
    """
    return _Rebuilder(str(source), whole).value(described, kind, kind.__name__)


@dataclass(frozen=True)
class _Rebuilder:
    """Makes values from plain data, guided by the annotations of the fields."""

    source: str
    whole: bool

    def value(self, described: Any, hint: Any, name: str) -> Any:
        """The value of a field; the name is for messages."""
        origin = get_origin(hint) or hint
        if origin in (Union, types.UnionType):
            return self._one_of(described, get_args(hint), name)
        if origin is Literal:
            fits = any(type(described) is type(choice) and described == choice for choice in get_args(hint))
        elif origin in _SEQUENCES:
            return self._sequence(described, hint, name)
        elif origin in _MAPPINGS:
            items = self._expected(described, dict, name).items()
            of = (*get_args(hint), Any, Any)[1] if get_args(hint) else Any
            return {key: self.value(item, of, f"{name}.{key}") for key, item in items}
        elif origin is Path:
            return Path(self._expected(described, str, name))
        elif origin in (str, bool, int, float, types.NoneType):
            # True and False are integers to Python, and whole numbers are good real ones.
            fits = type(described) is origin or (origin is float and type(described) is int)
        elif isinstance(origin, type) and origin not in (object, Any):
            return self._instance(self._expected(described, dict, name), origin, name)
        else:
            return self._any(described, name)
        if not fits:
            raise self._other_kind(described, name)
        return described

    def _one_of(self, described: Any, hints: tuple[Any, ...], name: str) -> Any:
        others = [hint for hint in hints if hint is not types.NoneType]
        if len(others) == 1 and described is not None:  # its error says more
            return self.value(described, others[0], name)
        for hint in hints:
            with contextlib.suppress(OtherKindError):
                return self.value(described, hint, name)
        raise self._other_kind(described, name)

    def _sequence(self, described: Any, hint: Any, name: str) -> Any:
        items, of = self._expected(described, list, name), get_args(hint) or (Any, ...)
        if get_origin(hint) is tuple and of[-1] is not ...:
            if len(items) != len(of):
                raise self._other_kind(described, name)
        else:
            of = of[:1] * len(items)
        made = [self.value(item, one, f"{name}[{i}]") for i, (item, one) in enumerate(zip(items, of, strict=True))]
        return made if (get_origin(hint) or hint) is list else tuple(made)

    def _any(self, described: Any, name: str) -> Any:
        """The value of a field without an annotation."""
        if isinstance(described, list):
            return tuple(self._any(item, name) for item in described)
        if isinstance(described, dict):
            if "class_path" in described:
                return self._instance(described, object, name)
            return {key: self._any(item, f"{name}.{key}") for key, item in described.items()}
        return described

    def _instance(self, described: dict[str, Any], kind: type, name: str) -> Any:
        """An instance of a class, by its settings."""
        settings = described
        if "class_path" in described:
            kind = find_class(described["class_path"], kind, self.source)
            settings = self._expected(described.get("init_args", {}), dict, f"init_args of {name}")
            described = {key: value for key, value in described.items() if key not in ("class_path", "init_args")}
            if described:
                raise UserError(f"{self.source} has {', '.join(map(repr, described))} beside the class of {name}")
        if not dataclasses.is_dataclass(kind):
            raise OtherKindError(f"{self.source} does not name the class of {name}, which must be a {kind.__name__}")
        fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
        for key in settings:
            if key not in fields:
                raise UserError(f"{self.source} names the setting {key!r}, which {kind.__name__} does not have")
        for key, field in fields.items():
            default = field.default is not MISSING or field.default_factory is not MISSING
            if key not in settings and not (default and (not self.whole or field.metadata.get("later"))):
                raise UserError(f"{self.source} lacks the setting {key!r} of {kind.__name__}")
        hints = _hints(kind)
        arguments = {
            key: None
            if value is None and fields[key].default is None  # whatever the annotation says
            else self.value(value, hints.get(key, Any), f"{kind.__name__}.{key}")
            for key, value in settings.items()
        }
        try:
            return kind(**arguments)
        except Exception as error:  # a user's class may raise anything
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{self.source} has settings that {kind.__name__} refuses: {reason}") from None

    def _expected(self, described: Any, kind: type, name: str) -> Any:
        if not isinstance(described, kind):
            raise self._other_kind(described, name)
        return described

    def _other_kind(self, described: Any, name: str) -> OtherKindError:
        text = repr(described)
        return OtherKindError(f"{self.source}: {name} cannot be {text if len(text) < 60 else text[:56] + ' ...'}")


def _hints(kind: type) -> Mapping[str, Any]:
    """Type annotations of a class's fields; none if they cannot be resolved."""
    try:
        return typing.get_type_hints(kind)
    except Exception:  # names may be imported for a type checker alone
        return {}
