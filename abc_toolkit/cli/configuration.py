"""Settings from files and from the environment, in the form of the command line.

A file is YAML, but its plain scalars are texts, which the option that they are for reads as on the command line: `6:12`
is a range of lengths and no number of seconds. The environment becomes options of the command line.
"""

import os
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from inspect import isabstract, signature
from pathlib import Path
from typing import Any

import yaml

from abc_toolkit.errors import UserError
from abc_toolkit.runs.files import read_bytes
from abc_toolkit.runs.trust import PACKAGE
from abc_toolkit.tasks.base import quoted

LARGEST = 2**20  # bytes of a file of settings
NOTHING = "null"  # what is said where a value is left out; an option's type decides whether it may be
_DEPTH = 32
_VALUES = 10_000  # with those that aliases stand for
_STANDARD = "tag:yaml.org,2002:"
_MERGE, _NULL = f"{_STANDARD}merge", f"{_STANDARD}null"
_PREFIX = "ABC_"
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class SettingsError(UserError):
    """A text does not hold settings; the message continues after the name of the text."""


def check_words(words: Iterable[str]) -> None:
    """Refuses words of the command line that hold a NUL, or whose YAML is nested too deep or says too much.

    Raises:
        UserError: If there is one.
    """
    word = ""
    try:
        for word in words:
            if "\0" in word:  # from Python alone: no system passes on such words, or takes them as names of files
                raise SettingsError("holds a NUL character")
            if not word.isprintable() and re.search("[\\ud800-\\udfff]", word):
                raise SettingsError("is no UTF-8: give another name")
            check_limits(word)
    except SettingsError as error:
        raise UserError(f"{quoted(word)} {error}") from None


def check_limits(text: str) -> None:
    """Refuses a YAML text that is nested too deep or holds too many values, before it is built.

    Raises:
        SettingsError: If it is.
    """
    sizes: dict[str, int] = {}  # of what anchors name, all that is in it counted
    open_ones: list[tuple[int, str | None]] = []
    size = 0
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            if isinstance(event, yaml.AliasEvent):
                if event.anchor in sizes:
                    size += sizes[event.anchor]
                elif any(anchor == event.anchor for _, anchor in open_ones):
                    raise SettingsError(f"holds a part, &{event.anchor}, that contains itself")
            elif isinstance(event, yaml.ScalarEvent):
                size += 1
                if event.anchor:
                    sizes[event.anchor] = 1
            elif isinstance(event, yaml.CollectionStartEvent):
                open_ones.append((size, event.anchor))
                size = 1
            elif isinstance(event, yaml.CollectionEndEvent):
                outside, anchor = open_ones.pop()
                if anchor:
                    sizes[anchor] = size
                size += outside
            if len(open_ones) > _DEPTH:
                raise SettingsError(f"is nested more than {_DEPTH} deep")
            if size > _VALUES:
                raise SettingsError(f"holds more than {_VALUES:,} values, those counted that aliases stand for")
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, SettingsError):
            raise


def find_settings(name: str) -> Path:
    """The file that `--config` names: a file or, by its name alone, a configuration that is shipped.

    Raises:
        UserError: If it is neither; with the names that are near.
    """
    path = Path(name)
    if os.path.lexists(path) or path.suffix:
        return path
    folders = [PACKAGE / "configs", PACKAGE.parent / "configs"]  # in an installed package, and in a checkout
    shipped = {
        str(file.relative_to(folder).with_suffix("")): file for folder in folders for file in folder.rglob("*.yaml")
    }
    if name in shipped:
        return shipped[name]
    near = get_close_matches(name, shipped, n=3, cutoff=0.4)
    such = f"; did you mean {', '.join(near)}?" if near else ""
    raise UserError(f"{name} is neither a file nor a configuration that is shipped{such}")


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a file: texts, lists and mappings.

    Args:
        path: The file.

    Raises:
        UserError: If it cannot be read, is no YAML, too large, or holds something else than settings.
    """
    try:
        text = read_bytes(path, LARGEST).decode("utf-8-sig")
        return parse_settings(text)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text (byte {error.start + 1})") from None
    except SettingsError as error:
        raise UserError(f"{path} {error}") from None


def parse_settings(text: str) -> dict[str, Any]:
    """The settings in a text.

    Raises:
        SettingsError: If it is no YAML, too large, or holds something else than settings.
    """
    check_limits(text)
    try:
        node = yaml.compose(text, Loader=_LOADER)
    except (yaml.YAMLError, ValueError) as error:
        raise SettingsError(f"is no YAML ({' '.join(str(error).split())})") from None
    found = {} if node is None or node.tag == _NULL else _plain(node)
    if not isinstance(found, dict):
        raise SettingsError("holds no settings: write one on each line, such as 'seed: 3'")
    return found


def _plain(node: yaml.Node) -> Any:
    """The plain value of a node; scalars are texts."""
    if not node.tag.startswith(_STANDARD) or ":python/" in node.tag:
        raise SettingsError(f"holds the tag {node.tag} in line {_line(node)}: write a plain value")
    if isinstance(node, yaml.ScalarNode):
        if "\0" in node.value:
            raise SettingsError(f"holds a NUL character in line {_line(node)}")
        return NOTHING if node.tag == _NULL else node.value
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item) for item in node.value]
    found: dict[str, Any] = {}
    shared: list[dict[str, Any]] = []
    for key, value in node.value:
        if key.tag == _MERGE:
            shared += [_shared(part) for part in (value.value if isinstance(value, yaml.SequenceNode) else [value])]
            continue
        if not isinstance(key, yaml.ScalarNode):
            raise SettingsError(f"has a name that is none in line {_line(key)}: names are words")
        if key.value in found:
            raise SettingsError(f"names {key.value!r} twice, the second time in line {_line(key)}: give one")
        found[key.value] = _plain(value)
    for part in shared:
        found = part | found
    return found


def _shared(node: yaml.Node) -> dict[str, Any]:
    part = _plain(node)
    if not isinstance(part, dict):
        raise SettingsError(f"merges with '<<' in line {_line(node)} what has no names")
    return part


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def merged(below: Any, above: Any) -> Any:
    """Two values of a setting merged: the upper one wins where both set something.

    A class that is named anew takes nothing from the settings of another.
    """
    if isinstance(below, str) and isinstance(above, dict) and "init_args" in above and "class_path" not in above:
        below = {"class_path": below}  # `task: Parity` below, settings of it above
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    if "class_path" in above and above["class_path"] != below.get("class_path", above["class_path"]):
        return above
    return below | {name: merged(below[name], value) if name in below else value for name, value in above.items()}


def own_settings(
    content: Mapping[str, Any],
    command: str,
    options: Mapping[str, Mapping[str, bool]],
    shared: Sequence[str],
    phases: Sequence[str],
) -> dict[str, Any]:
    """The settings of an experiment that a command takes.

    What stands on top is for every command that has such an option, what stands in a command's section for it alone. To
    `run`, which does all phases, their sections are settings of its own.

    Args:
        content: The settings.
        command: The command.
        options: For each command the names of its options.
        shared: Names on top that a command without such an option passes over.
        phases: The phases that `run` does.

    Raises:
        SettingsError: If a section is none, or there is a name that no command knows.
    """
    content = _nested(content)
    if "config" in content:
        raise SettingsError("names other files in 'config': give each of them with --config")
    sections: dict[str, dict[str, Any]] = {}
    # `export` is a command and an option of `calibrate`: a section, if it has settings.
    also_options = {name for other, own in options.items() if other != "run" for name in own}
    for name in options.keys() & content.keys() - {"run"}:
        if name in also_options and not isinstance(content[name], dict):
            continue
        section = {} if content[name] == NOTHING else content[name]
        if not isinstance(section, dict):
            given = quoted(str(section))
            raise SettingsError(f"has no settings in {name!r}, only {given}: write '{name}: {{NAME: VALUE}}'")
        sections[name] = _known(_nested(section), options[name], f"{name}.")
    top = {name: value for name, value in content.items() if name not in sections}
    of_phases = {name for phase in phases for name in options[phase]}
    others = {*shared, *(of_phases if sections or command == "run" else ())} - options[command].keys()
    own = {name: value for name, value in top.items() if name not in others}
    own = _known(own, options[command])
    if command != "run":
        return merged(own, sections.get(command, {}))
    for phase in phases:
        for_all = {name: value for name, value in top.items() if name in options[phase] and name not in shared}
        section = merged(for_all, sections.get(phase, {}))
        if section:
            own |= _known({phase: section}, options[command])
    return own


def _known(
    settings: Mapping[str, Any], options: Mapping[str, bool], shown: str = "", below: str = ""
) -> dict[str, Any]:
    """Checks that a command has an option for each setting; groups in which nothing is set are left out.

    Raises:
        SettingsError: If there is another. Settings of a class only the class can judge.
    """
    known: dict[str, Any] = {}
    for name, value in settings.items():
        option = f"{below}{name}"
        if option not in options:
            others = [other[len(below) :] for other in options if other.startswith(below)]
            near = [f"; did you mean {shown}{other}?" for other in get_close_matches(name, others, n=1)]
            raise SettingsError(f"sets {shown}{name}, and there is no such option{''.join(near)}")
        is_group = any(other.startswith(f"{option}.") for other in options)
        if is_group and isinstance(value, dict) and "class_path" not in value:
            known[name] = _known(value, options, f"{shown}{name}.", f"{option}.")
        elif not is_group or value != NOTHING:
            known[name] = value
    return known


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings whose names with dots are settings of settings."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        first, dot, rest = name.partition(".")
        new = {first: _nested({rest: value}) if dot else value}
        found = merged(found, new)
    return found


def option_names(function: Callable[..., Any]) -> dict[str, bool]:
    """The options that a command's arguments make, such as `trainer.max_steps`.

    Returns:
        For each its name, and whether it names a class, whose own settings are options below it.
    """
    hints = typing.get_type_hints(function)
    return {
        name: is_open
        for parameter in signature(function).parameters
        for name, is_open in _names_below(parameter, hints[parameter])
    }


def _names_below(name: str, hint: Any) -> Iterator[tuple[str, bool]]:
    kinds = [kind for kind in (typing.get_args(hint) or (hint,)) if isinstance(kind, type)]
    groups = [kind for kind in kinds if is_dataclass(kind) and kind.__mro__[1] is object and not isabstract(kind)]
    yield name, not groups and any(kind.__module__ != "builtins" and not issubclass(kind, Path) for kind in kinds)
    for group in groups:
        for own, below in typing.get_type_hints(group).items():
            if own in {field.name for field in fields(group)}:
                yield from _names_below(f"{name}.{own}", below)


@dataclass(frozen=True)
class Variable:
    """A variable of the environment that sets an option.

    Attributes:
        name: Its name.
        option: The option, such as `trainer.max_steps`.
        value: Its value.
        chooser: The option that names the class which this option is a setting of, if it is.
    """

    name: str
    option: str
    value: str
    chooser: str | None


def variables(
    environment: Mapping[str, str], command: str, options: Mapping[str, Mapping[str, bool]]
) -> tuple[Variable, ...]:
    """The variables that set options of a command: `ABC_FIT__TRAINER__MAX_STEPS` is `--trainer.max_steps` of `fit`.

    Args:
        environment: All variables.
        command: The command.
        options: For each command its options, and whether each names a class.

    Raises:
        UserError: If a variable of the toolkit's names no option of any command.
    """
    found = []
    for name, value in sorted(environment.items()):
        if not name.startswith(_PREFIX):
            continue
        of, _, rest = name.removeprefix(_PREFIX).lower().partition("__")
        option = rest.replace("__", ".")
        known = options.get(of, {})
        chooser = next((other for other in known if known[other] and option.startswith(f"{other}.")), None)
        if option not in known and chooser is None:
            every = [f"{_PREFIX}{c}__{o.replace('.', '__')}".upper() for c, own in options.items() for o in own]
            near = [f"did you mean {other}?" for other in get_close_matches(name, every, n=1, cutoff=0.0)]
            raise UserError(f"{name} in the environment sets no option of any command: {near[0]} Else unset it")
        if of == command:
            found.append(Variable(name, option, value, None if option in known else chooser))
    return tuple(found)


def words_of(variables: Iterable[Variable]) -> list[str]:
    """What variables are on the command line, classes before their settings."""
    ordered = sorted(variables, key=lambda variable: variable.option.count("."))
    return [f"--{variable.option}={variable.value}" for variable in ordered]


def check_class_has(variable: Variable, chosen: type | None) -> None:
    """Refuses a variable for a setting that the chosen class has not.

    Raises:
        UserError: With the nearest one.
    """
    assert variable.chooser is not None
    if chosen is None:
        raise UserError(f"{variable.name} sets nothing: no class is chosen by --{variable.chooser}")
    name = variable.option.removeprefix(f"{variable.chooser}.").removeprefix("init_args.").partition(".")[0]
    parameters = signature(chosen).parameters
    if name in parameters or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    near = [f"; did you mean {other}?" for other in get_close_matches(name, list(parameters), n=1)]
    raise UserError(
        f"{variable.name} sets nothing: {chosen.__name__}, which --{variable.chooser} is, has no setting {name}"
        f"{''.join(near)}"
    )
