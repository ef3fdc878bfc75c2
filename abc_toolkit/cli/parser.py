"""The parser of a command: options, configuration files, the environment, help and errors.

Private names of jsonargparse are used in this module alone: its actions for files of settings have no public ones.
"""

import inspect
import math
import os
import re
from argparse import SUPPRESS, Action
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import lru_cache
from inspect import isabstract
from pathlib import Path
from typing import Any, NoReturn, get_args

import yaml
from jsonargparse import ActionParser, ArgumentParser, DefaultHelpFormatter, Namespace, set_parsing_settings
from jsonargparse._actions import (
    ActionConfigFile,
    _ActionConfigLoad,
    _ActionHelpClassPath,
    _ActionPrintConfig,
    remove_actions,
)
from jsonargparse._loaders_dumpers import get_yaml_default_loader
from jsonargparse._util import import_object

from abc_toolkit.cli.commands import COMMANDS, PIPELINE
from abc_toolkit.cli.configuration import (
    NOTHING,
    SettingsError,
    check_class_has,
    check_words,
    find_settings,
    option_names,
    own_settings,
    read_settings,
    variables,
    words_of,
)
from abc_toolkit.cli.wording import reworded
from abc_toolkit.errors import UserError
from abc_toolkit.report.console import remark
from abc_toolkit.runs.trust import TrustOption, comma_list

CONFIG_HELP = "YAML file, or a shipped one's name; later ones win."
SHARED = ("task", "run", "seed", "resume", "overwrite", "trust")
ALONE = ("maps",)  # options of a phase that `run` does not take: its own fit makes the maps


def _read_numbers_only() -> None:
    """Lets jsonargparse read numbers as YAML 1.2 has them: `1:40` is no hundred seconds."""
    loader = get_yaml_default_loader()
    kinds = [f"tag:yaml.org,2002:{kind}" for kind in ("int", "float")]
    resolvers = loader.yaml_implicit_resolvers
    for letter in resolvers:
        resolvers[letter] = [(tag, pattern) for tag, pattern in resolvers[letter] if tag not in kinds]
    loader.add_implicit_resolver(kinds[0], re.compile("[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+)$"), [*"-+0123456789"])
    real = r"""[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+
        |\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"""
    loader.add_implicit_resolver(kinds[1], re.compile(real, re.VERBOSE), [*"-+0123456789."])


_read_numbers_only()
set_parsing_settings(
    config_read_mode_fsspec_enabled=False,  # which Lightning lets fetch files of settings from anywhere
    import_path_denylist=[],  # none besides its own list, of what runs commands and files, which it then holds to
)


class ConfigFile(ActionConfigFile):
    """A configuration file, which may hold settings of every phase: a command takes its own section of it."""

    @staticmethod
    def apply_config(parser: Any, cfg: Namespace, dest: str, value: str) -> None:
        if not value:
            raise UserError("--config: name a file")
        try:
            own = own_settings(read_settings(find_settings(value)), parser.command, options(), SHARED, PIPELINE)
        except SettingsError as error:
            raise UserError(f"--config: {value} {error}") from None
        except UserError as error:
            raise UserError(f"--config: {error}") from None
        parser.reading = f"--config {value}: "
        # Quoted, texts are read as texts.
        ActionConfigFile.apply_config(parser, cfg, dest, yaml.safe_dump(own, default_style='"', width=math.inf))
        parser.reading = ""


class SettingsFile(_ActionConfigLoad):
    """A group of settings, such as `--trainer`, that is given as a file."""

    def _load_config(self, value: Any, parser: Any) -> Any:
        try:
            if isinstance(value, str) and os.path.lexists(value):
                value = read_settings(Path(value))
        except (OSError, ValueError) as error:
            raise UserError(f"--{self.dest}: {error}") from None
        return super()._load_config(value, parser)


class Formatter(DefaultHelpFormatter):
    """Help in a user's words: what an option does, its choices, its default."""

    def _get_help_string(self, action: Action) -> str:
        if isinstance(action, _ActionHelpClassPath):
            return "Show the settings of a class, and exit; alike for each option that takes one."
        notes = []
        if names := _class_names(action):
            notes.append(", ".join(names))
        if default := _plain_default(action.default):
            notes.append(f"default: {default}")
        return (action.help or "") + (f" ({'; '.join(notes)})" if notes else "")

    def _format_action_invocation(self, action: Action) -> str:
        return re.sub(r", --\S+\+ .*", "", super()._format_action_invocation(action))  # the form that appends to a list


def _class_names(action: Action | None) -> list[str]:
    """The classes of this toolkit that an option chooses from, by name."""
    typehint = getattr(action, "_typehint", None)
    kind = next((kind for kind in get_args(typehint) or (typehint,) if isinstance(kind, type)), object)
    if not kind.__module__.startswith("abc_toolkit."):
        return []
    package = kind.__module__.rpartition(".")[0]

    def below(kind: type) -> Iterator[type]:
        for child in kind.__subclasses__():
            yield child
            yield from below(child)

    return sorted({c.__name__ for c in below(kind) if c.__module__.startswith(package) and not isabstract(c)})


def _plain_default(default: Any) -> str:
    if isinstance(default, Namespace | Mapping) and "class_path" in default:
        return default["class_path"].rpartition(".")[2]
    if isinstance(default, list | tuple):
        return ",".join(map(str, default))
    if default is None or default is False or default == SUPPRESS:
        return ""
    return "true" if default is True else str(default)


class Parser(ArgumentParser):
    """A parser whose help and errors are worded for a user."""

    command: str | None = None
    settings_of: str | None = None
    reading = ""  # the file of settings that is read at the moment, as messages begin with it
    variables: Mapping[str, str] = {}  # of the environment, by the options that they set
    words: Sequence[str] = ()  # of the command line, that belong to no option

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, formatter_class=Formatter, **keywords)

    def add_class_arguments(self, theclass: type, *arguments: Any, **keywords: Any) -> list[str]:
        self.settings_of = theclass.__name__
        return super().add_class_arguments(theclass, *arguments, **keywords)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Ends the program with exit status 2 and one line."""
        text = str(ex) if isinstance(ex, UserError) else self._reworded(message)
        if self.settings_of is not None and not self.command:  # the parser of a class that another parser chose
            text = f"{self.settings_of}: {text}"
        for option, variable in self.variables.items():
            text = re.sub(rf"--{re.escape(option)}(?![\w.])", variable, text)
        command = f"abc {self.command}" if self.command else "abc"
        remark(f"{command}: error: {self.reading}{' '.join(text.split())} (see {command} --help)")
        raise SystemExit(2)

    def _reworded(self, message: str) -> str:
        key = re.match(r'Parser key "([\w.]+)":', message)
        names = _class_names(next((action for action in self._actions if key and action.dest == key[1]), None))
        choose = f"choose from {', '.join(names)}" if names else "name a class by its import path"
        unknown = re.search(r"path string: (\S+)", message)
        if names and not unknown:
            own = r"given class_path '(abc_toolkit\.[\w.]+)':\s+(?:No )?module"
            unknown = re.search(r"value: ([\w.]+)\Z", message) or re.search(own, message)
        if key and unknown and (reason := re.search(r"(?s)Errors:\s+- (.*?)\s+- Expected a ", message)):
            if re.match(r"Problem with given class_path '(?!abc_toolkit\.)", reason[1]):
                unknown = None  # of another package; WORDING tells what is wrong with its class
            elif "." in unknown[1] and not re.match("Import path does not|Problem with", reason[1]):
                return f"--{key[1]} {unknown[1]} cannot be imported: {reason[1]}"
        if key and unknown:
            by_letters = {name.lower(): name for name in names}
            found = get_close_matches(unknown[1].rpartition(".")[2].lower(), by_letters, n=1)
            near = [f"; did you mean {by_letters[name]}?" for name in found]
            return f"--{key[1]} {unknown[1]} does not exist: {choose}{''.join(near)}"
        if key and (nested := re.search(r"NestedArg\(key='(\w+)'", message)):
            return f"--{key[1]}.{nested[1]} needs --{key[1]} before it: {choose}"
        return reworded(message)

    def _positional_optionals(self, cfg: Namespace, unk: list[str]) -> tuple[Namespace, list[str]]:
        """Takes operands, wherever they stand: argparse leaves over what is neither an option nor its value."""
        if self.command and COMMANDS[self.command].operands:
            words = [word for word in unk if not re.match("--?[^0-9-]", word)]
            self.words = [word for word in words if word != "--"]
            unk = [word for word in unk if word not in words]
        return super()._positional_optionals(cfg, unk)

    def operands(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The operands on the command line, by the argument that they are.

        Args:
            options: The values of the options.

        Raises:
            UserError: If there is not exactly one where one is needed, or it repeats an option.
        """
        own = COMMANDS[self.command].operands if self.command else None
        if own is None:
            return {}
        if not own.alone:
            return {own.argument: self.words}
        if len(self.words) == 2 and own.before is not None:
            if options[own.before] is not None:
                raise UserError(f"{self.words[0]} and --{own.before} {options[own.before]} name the same: give one")
            return {own.before: Path(self.words[0]), own.argument: self.words[1]}
        if len(self.words) != 1:
            given = f", not {len(self.words)}" if self.words else ""
            raise UserError(f"name one {own.usage}{given}: abc {self.command} {own.usage}")
        return {own.argument: self.words[0]}

    def format_help(self, *arguments: Any, **keywords: Any) -> str:
        with self._shown_to_users():
            return super().format_help(*arguments, **keywords)

    @contextmanager
    def _shown_to_users(self) -> Iterator[None]:
        """Leaves options out of the help that follow from others: groups that are given as files.

        Only while it is printed: what is hidden for good is also missing from `--print_config`.
        """
        phases = tuple(f"{phase}." for phase in PIPELINE)
        hidden = [a for a in self._actions if isinstance(a, _ActionConfigLoad) and a.dest not in PIPELINE]
        hidden += [a for a in self._actions if a.dest.startswith(phases)]
        kept = [action.help for action in hidden]
        for action in hidden:
            action.help = SUPPRESS
        try:
            yield
        finally:
            for action, text in zip(hidden, kept, strict=True):
                action.help = text


def add_options(parser: Parser, command: str) -> list[str]:
    """Adds the options of a command to its parser.

    Returns:
        The names of its function's arguments that became options.
    """
    function = COMMANDS[command].load()
    parser.command = command
    parser.add_argument("-c", "--config", action=ConfigFile, help=CONFIG_HELP)
    if command == "solve":
        parser.add_argument("--file", type=str | None, help="File with a problem a line; - for standard input.")
        parser.add_argument("--check", type=bool, default=False, help="Add whether each answer is right.")
    operands = COMMANDS[command].operands
    skip: set[str | int] = {operands.argument} if operands else {f"{phase}_settings" for phase in PIPELINE}
    added = parser.add_function_arguments(function, as_group=False, skip=skip)
    trust = {"metavar": "NAME", "type": _trusted, "action": TrustOption}
    parser.add_argument("--trust", **trust, help="Module or package whose classes the run may name; repeatable.")
    if command == "run":
        for phase in PIPELINE:
            settings = type(parser)(description="")
            settings.add_function_arguments(COMMANDS[phase].load(), as_group=False, skip={*SHARED, *ALONE})
            remove_actions(settings, _ActionHelpClassPath)
            parser.add_argument(f"--{phase}", action=ActionParser(settings))
    helps = [action for action in parser._actions if isinstance(action, _ActionHelpClassPath)]
    for action in helps[:1]:
        action.metavar = "NAME"
    for action in helps[1:]:  # the first tells of them
        action.help = SUPPRESS
    for action in parser._actions:
        if isinstance(action, _ActionConfigLoad):
            action.__class__ = SettingsFile
        if getattr(action, "_typehint", None) is bool:  # a flag alone means true
            action.nargs, action.const = "?", True
        elif isinstance(action, _ActionPrintConfig):
            action.help = "Print all settings as YAML for --config, and exit."
        elif isinstance(action, _ActionConfigLoad) and action.dest in PIPELINE:
            action.help = f"File of settings of {action.dest}; --{action.dest}.OPTION gives one of them."
    return added


def parser_of(command: str, kind: type[Parser] = Parser, **keywords: Any) -> Parser:
    """The parser of a command, without its options.

    Args:
        command: The command.
        kind: The class of the parser.
        keywords: What else the parser is made with.
    """
    description = inspect.cleandoc(COMMANDS[command].load().__doc__ or "").split("\n\n")[0]
    if command == "solve":
        description += "\nProblems are written as in 123+989."
    operands = COMMANDS[command].operands
    usage = f"abc {command} [options]" + (f" {operands.usage}" if operands else "")
    parser = kind(**(keywords | {"usage": usage, "description": description}))
    parser.command = command
    return parser


def parse(parser: ArgumentParser, own: Parser, command: str, words: Sequence[str], before: Sequence[str]) -> Namespace:
    """Parses the words of the command line, after those that variables of the environment stand for.

    Args:
        parser: Parses them.
        own: The command's own parser, which may be a part of it.
        command: The command.
        words: The words behind the command.
        before: The words that the parser needs before those.
    """
    check_words([*before, *words])
    if {"-h", "--help"} & set(words):
        return parser.parse_args([*before, *words])
    if command == "solve":  # a word behind it would be its value
        words = ["--check=true" if word == "--check" else word for word in words]
    # Only where there are such variables are the options of all commands asked for, which loads all that they need.
    ours = any(name.startswith("ABC_") for name in os.environ)
    found = variables(os.environ, command, options()) if ours else ()
    own.variables = {variable.option: variable.name for variable in found}
    before = [*before, *words_of(variable for variable in found if variable.chooser is None)]
    of_classes = [variable for variable in found if variable.chooser is not None]
    if of_classes:  # which only the class can judge that everything else chooses
        chosen = parser.parse_args([*before, *(word for word in words if not word.startswith("--print_config"))])
        chosen = chosen if parser is own else chosen[command]
        for variable in of_classes:
            value = chosen.get(str(variable.chooser))
            path = value.get("class_path") if isinstance(value, Namespace) else None
            kind: Any = None if path is None else import_object(path)
            check_class_has(variable, kind)
            before.append(f"--{variable.chooser}={path}")
    return parser.parse_args([*before, *words_of(of_classes), *words])


def _trusted(names: Any) -> str | None:
    return None if names == NOTHING else comma_list(names)


def told(error: Exception) -> str:
    """The message of an error of any class."""
    text = " ".join(str(error).split())
    reason = re.search(r"Errors: - (.*?)(?: - Expected a | Given value type:|$)", text)
    kind = "" if isinstance(error, TypeError | ValueError | ImportError) else f"{type(error).__name__}: "
    return f"{kind}{reason[1] if reason else text}"


@lru_cache
def options() -> Mapping[str, Mapping[str, bool]]:
    """The options of every command, and whether each names a class, whose settings are options too."""
    found = {name: {"trust": False, **option_names(command.load())} for name, command in COMMANDS.items()}
    found["solve"] = {"file": False, "check": False} | found["solve"]
    for name, command in COMMANDS.items():
        if command.operands:
            del found[name][command.operands.argument]
    for phase in PIPELINE:
        del found["run"][f"{phase}_settings"]
        own = {name: is_open for name, is_open in found[phase].items() if name not in (*SHARED, *ALONE)}
        found["run"] |= {phase: False} | {f"{phase}.{name}": is_open for name, is_open in own.items()}
    return {name: {"config": False} | own for name, own in found.items()}
