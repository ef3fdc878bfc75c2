"""The command line: LightningCLI over the functions in `phases`. No logic of its own."""

import os  # is loaded already, wherever a file of this name lies
import sys

# `python -m` looks for all modules in the current folder first: for those below too. PYTHONPATH may name it once more.
if (
    __name__ == "__main__"
    and not getattr(sys.flags, "safe_path", sys.flags.isolated)
    and sys.path[0] != os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
):
    del sys.path[0]

import math
import re
import signal
from argparse import SUPPRESS, Action
from contextlib import contextmanager, suppress

# Ctrl-C while the libraries load ends the program at once, without their tracebacks.
with suppress(ValueError):  # outside the main thread it does not come here
    signal.signal(signal.SIGINT, signal.SIG_DFL)

# Threads that spin while they wait make tiny operations many times slower on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from abc_toolkit.runs.trust import TrustOption, comma_list, in_the_packages_folder, searching_current_folder, trusting

with in_the_packages_folder():
    import matplotlib  # noqa: F401

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from inspect import isabstract
from pathlib import Path
from typing import Any, NoReturn, get_args

import yaml
from jsonargparse import ActionParser, DefaultHelpFormatter, Namespace, set_parsing_settings
from jsonargparse._actions import (
    ActionConfigFile,
    _ActionConfigLoad,
    _ActionHelpClassPath,
    _ActionPrintConfig,
    remove_actions,
)
from jsonargparse._loaders_dumpers import get_yaml_default_loader
from jsonargparse._util import import_object
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger

from abc_toolkit.cli.configuration import (
    NOTHING,
    SettingsError,
    check_class_has,
    check_words,
    option_names,
    own_settings,
    read_settings,
    variables,
    words_of,
)
from abc_toolkit.errors import UserError, lacks_memory
from abc_toolkit.phases import solve as solving
from abc_toolkit.phases.calibrate import calibrate
from abc_toolkit.phases.certify import certify
from abc_toolkit.phases.evaluate import evaluate
from abc_toolkit.phases.pipeline import run_all
from abc_toolkit.phases.training import fit, retrain
from abc_toolkit.report import terminal
from abc_toolkit.runs.description import remember
from abc_toolkit.runs.folder import PIPELINE

with suppress(ValueError):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)

SHARED = ("task", "run", "seed", "resume", "overwrite", "trust")
# What a user reads in place of what jsonargparse says.
WORDING = (
    (r'Parser key "([^"]+)":', r"--\1:"),
    (r"<class 'int'>", "whole number"),
    (r"<class 'float'>", "number"),
    (r"<class 'bool'>", "true or false"),
    (r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1"),
    (r"(?:an?|Expected a) typing\.Literal\[(.*?)\]", r"Expected one of \1"),
    (r"argument COMMAND: invalid choice: (\S+) \(choose from (.*)\)", r"there is no command \1; choose from \2"),
    (r'expected "subcommand" to be one of .*', "a command is missing: run, fit, calibrate, retrain, evaluate or solve"),
    (r"unrecognized arguments:", "unknown options or arguments:"),
    # Of a class in whose place nothing, or true or false, may stand: what was wrong with the class.
    (r"(?s)Does not validate against any .*?Errors:\s+- (.*?)\s+- Expected a (?:NoneType|true or false).*", r"\1"),
    (r"(?s)\s*Subclass types expect one of:.*", ""),
    (r"Problem with given class_path '([^']+)':", r"\1:"),
    (r"Importing '([^']+)' is not allowed, denied by .*? to allow it\.", r"it is no class of settings, but runs code"),
    (r"(No module named '[^']+')", r"\1 where Python looks: there is none here, nor in a folder of PYTHONPATH"),
    (r"Option '([\w.]+)' is not accepted", r"there is no setting \1"),
    (r"(?s)Unable to load config '(.*?)'.*", r"\1 is neither a file nor settings such as '{NAME: VALUE}'"),
    (r"Got value: None", "It is given no value"),
    (r"the following arguments are required:", "missing:"),
)


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
            own = own_settings(read_settings(Path(value)), parser.command, options(), SHARED, PIPELINE)
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


class Parser(LightningArgumentParser):
    """LightningCLI's parser, whose help and errors are worded for a user."""

    command: str | None = None
    settings_of: str | None = None
    reading = ""  # the file of settings that is read at the moment, as messages begin with it
    variables: Mapping[str, str] = {}  # of the environment, by the options that they set
    problems: Sequence[str] = ()  # that stand on the command line

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, formatter_class=Formatter, **keywords)

    def add_class_arguments(self, theclass: type, *arguments: Any, **keywords: Any) -> list[str]:
        self.settings_of = theclass.__name__
        return super().add_class_arguments(theclass, *arguments, **keywords)

    def add_subcommands(self, required: bool = True, dest: str = "subcommand", **kwargs: Any) -> Any:
        return super().add_subcommands(required, dest, title="commands", description=None, metavar="COMMAND", **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Ends the program with exit status 2 and one line."""
        text = str(ex) if isinstance(ex, UserError) else self._reworded(message)
        if self.settings_of is not None and not self.command:  # the parser of a class that another parser chose
            text = f"{self.settings_of}: {text}"
        for option, variable in self.variables.items():
            text = re.sub(rf"--{re.escape(option)}(?![\w.])", variable, text)
        command = f"abc {self.command}" if self.command else "abc"
        terminal.remark(f"{command}: error: {self.reading}{' '.join(text.split())} (see {command} --help)")
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
        for pattern, words in WORDING:
            message = re.sub(pattern, words, message)
        return message

    def _positional_optionals(self, cfg: Namespace, unk: list[str]) -> tuple[Namespace, list[str]]:
        """Takes problems, wherever they stand: argparse leaves over what is neither an option nor its value."""
        if self.command == "solve":
            words = [word for word in unk if not re.match("--?[^0-9-]", word)]
            self.problems = [word for word in words if word != "--"]
            unk = [word for word in unk if word not in words]
        return super()._positional_optionals(cfg, unk)

    def format_help(self, *arguments: Any, **keywords: Any) -> str:
        with self._shown_to_users():
            return super().format_help(*arguments, **keywords)

    @contextmanager
    def _shown_to_users(self) -> Iterator[None]:
        """Leaves out of the help what follows from the rest: groups given as files.

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


class Commands:
    """What can be done, as LightningCLI looks it up."""

    run = staticmethod(run_all)
    fit = staticmethod(fit)
    calibrate = staticmethod(calibrate)
    retrain = staticmethod(retrain)
    evaluate = staticmethod(evaluate)
    solve = staticmethod(solving.solve)
    certify = staticmethod(certify)


class CommandLine(LightningCLI):
    """One subcommand a function; its typed arguments are the flags, its docstring the help."""

    status = 0

    def __init__(self, arguments: list[str] | None = None) -> None:
        words = sys.argv[1:] if arguments is None else arguments
        named = [word for word in words if word in COMMANDS][:1]
        # Options are listed for the command that is named alone: listing all takes as long as loading PyTorch.
        self._wanted = named or ([] if {"-h", "--help"} & set(words) else COMMANDS)
        super().__init__(
            trainer_class=Commands,  # type: ignore[arg-type]
            save_config_callback=None,
            parser_class=Parser,
            parser_kwargs={"description": DESCRIPTION, "usage": "abc COMMAND [options]"},
            args=arguments,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {name: set() for name in COMMANDS}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        return Parser(**kwargs)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        operands = ""
        if subcommand == "solve":
            operands = " [PROBLEM ...]"
            kwargs["description"] += "\nProblems are written as in 123+989."
        parser = Parser(usage=f"abc {subcommand} [options]{operands}", **kwargs)
        parser.command = subcommand
        if subcommand not in self._wanted:
            return parser
        parser.add_argument("-c", "--config", action=ConfigFile, help="YAML file of settings; later ones win.")
        if subcommand == "solve":
            parser.add_argument("--file", type=str | None, help="File with a problem a line; - for standard input.")
            parser.add_argument("--check", type=bool, default=False, help="Add whether each answer is right.")
        skip: set[str | int] = {"problems"} if subcommand == "solve" else {f"{phase}_settings" for phase in PIPELINE}
        added = parser.add_function_arguments(getattr(klass, subcommand), as_group=False, skip=skip)
        trust = {"metavar": "NAME", "type": _trusted, "action": TrustOption}
        parser.add_argument("--trust", **trust, help="Module or package whose classes the run may name; repeatable.")
        if subcommand == "run":
            for phase in PIPELINE:
                settings = Parser(description="")
                settings.add_function_arguments(getattr(klass, phase), as_group=False, skip={*SHARED})
                remove_actions(settings, _ActionHelpClassPath)
                parser.add_argument(f"--{phase}", action=ActionParser(settings))
        for action in parser._actions:
            if isinstance(action, _ActionConfigLoad):
                action.__class__ = SettingsFile
            if getattr(action, "_typehint", None) is bool:  # a flag alone means true
                action.nargs, action.const = "?", True
            elif isinstance(action, _ActionPrintConfig):
                action.help = "Print all settings as they would be used, as YAML for --config, and exit."
            elif isinstance(action, _ActionConfigLoad) and action.dest in PIPELINE:
                action.help = f"File of settings of {action.dest}; --{action.dest}.OPTION gives one of them."
        self._subcommand_method_arguments[subcommand] = added
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses the words of the command line, after those that the environment stands for."""
        words = sys.argv[1:] if args is None else list(args)
        try:
            self._parse(parser, words)
        except UserError:
            raise
        except Exception as error:  # a module that is imported for a class of the user's may raise anything
            raise UserError(_told(error)) from error

    def _parse(self, parser: LightningArgumentParser, words: list[str]) -> None:
        check_words(words)
        command = next((word for word in words if word in COMMANDS), None)
        if command is None or {"-h", "--help"} & set(words):
            self.config = parser.parse_args(words)
            return
        start = words.index(command) + 1
        before, own = words[:start], words[start:]
        if command == "solve":  # a word behind it would be its value
            own = ["--check=true" if word == "--check" else word for word in own]
        found = variables(os.environ, command, options())
        self._subcommand_parsers[command].variables = {v.option: v.name for v in found}  # type: ignore[attr-defined]
        before += words_of(variable for variable in found if variable.chooser is None)
        of_classes = [variable for variable in found if variable.chooser is not None]
        if of_classes:  # which only the class can judge that everything else chooses
            chosen = parser.parse_args([*before, *(word for word in own if not word.startswith("--print_config"))])
            for variable in of_classes:
                value = chosen[command].get(variable.chooser)
                path = value.get("class_path") if isinstance(value, Namespace) else None
                kind: Any = None if path is None else import_object(path)
                check_class_has(variable, kind)
                before.append(f"--{variable.chooser}={path}")
        self.config = parser.parse_args([*before, *words_of(of_classes), *own])

    def _set_seed(self) -> None:
        """Every phase draws from generators of its own; nothing global is seeded here."""

    def instantiate_classes(self) -> None:
        try:
            self.config_init = self.parser.instantiate(self.config, instantiators=INSTANTIATORS)
        except UserError:
            raise
        except Exception as error:  # a class of the user's may raise anything
            raise UserError(_told(error)) from error

    def _run_subcommand(self, subcommand: str) -> None:
        arguments = self.config_init[subcommand].as_dict()
        arguments.pop("config", None)
        trusted = arguments.pop("trust")
        if subcommand == "run":
            arguments |= {f"{phase}_settings": arguments.pop(phase) for phase in PIPELINE}
        try:
            with trusting(trusted or ""):
                if subcommand == "solve":
                    own: Any = self._subcommand_parsers[subcommand]
                    self.status = solving.answer_all(own.problems, **arguments)
                elif subcommand == "certify":
                    self.status = VERDICTS[certify(**arguments).verdict]
                else:
                    getattr(Commands, subcommand)(**arguments)
        except KeyboardInterrupt as interrupt:
            terminal.remark(f"Interrupted. {_how_to_go_on(subcommand, getattr(interrupt, 'resumable', False))}")
            raise SystemExit(130) from None


def _trusted(names: Any) -> str | None:
    return None if names == NOTHING else comma_list(names)


def _told(error: Exception) -> str:
    """What is told of an error that may be of any kind."""
    text = " ".join(str(error).split())
    reason = re.search(r"Errors: - (.*?)(?: - Expected a | Given value type:|$)", text)
    kind = "" if isinstance(error, TypeError | ValueError | ImportError) else f"{type(error).__name__}: "
    return f"{kind}{reason[1] if reason else text}"


def _made_and_remembered(class_type: type, *args: Any, **kwargs: Any) -> Any:
    """A logger, which by itself would not tell its settings to the record."""
    made = class_type(*args, **kwargs)
    remember(made, kwargs)
    return made


def _how_to_go_on(command: str, resumable: bool) -> str:
    if resumable:
        return f"Go on where it was with 'abc {command} --resume', the other options as before."
    return f"Nothing was changed: start again with 'abc {command}', the options as before."


@lru_cache
def options() -> Mapping[str, Mapping[str, bool]]:
    """The options of every command, and whether each names a class, whose settings are options too."""
    found = {name: {"trust": False, **option_names(getattr(Commands, name))} for name in COMMANDS}
    found["solve"] = {"file": False, "check": False} | found["solve"]
    del found["solve"]["problems"]
    for phase in PIPELINE:
        del found["run"][f"{phase}_settings"]
        own = {name: is_open for name, is_open in found[phase].items() if name not in SHARED}
        found["run"] |= {phase: False} | {f"{phase}.{name}": is_open for name, is_open in own.items()}
    return {name: {"config": False} | own for name, own in found.items()}


INSTANTIATORS = [(_made_and_remembered, Logger, True)]
COMMANDS = tuple(name for name in vars(Commands) if not name.startswith("_"))
VERDICTS = {"correct": 0, "wrong": 1, "undecided": 3}  # exit statuses
DESCRIPTION = (
    "Attention Bias Calibration: train a transformer on short arithmetic, read a window off its attention, retrain "
    "inside the window, and use it at any length. 'abc run' does all of it; 'abc COMMAND --help' tells what a command "
    "takes. Every option can also be set in the environment: ABC_FIT__SEED=3 is 'abc fit --seed 3', "
    "ABC_FIT__TRAINER__MAX_STEPS=100 is 'abc fit --trainer.max_steps 100'."
)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    try:
        with searching_current_folder():
            return CommandLine(arguments).status
    except UserError as error:
        terminal.remark(f"abc: error: {terminal.line(error)}")
        return 2
    except KeyboardInterrupt:
        terminal.remark("Interrupted.")
        return 130
    except (MemoryError, RuntimeError, ImportError) as error:
        if not lacks_memory(error):
            raise
        error.__traceback__ = None  # it keeps all that was in memory
        # Nothing that would have to be loaded first.
        print("abc: error: there is too little memory: free some, or take fewer or smaller problems", file=sys.stderr)
        return 2
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # with that, the reader of the output has gone and wants no more
            terminal.remark(f"abc: error: {terminal.line(error)}")
        with suppress(OSError):  # or Python would try to flush the output once more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1 if isinstance(error, BrokenPipeError) else 2


if __name__ == "__main__":
    raise SystemExit(main())
