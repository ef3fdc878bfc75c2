"""The command line: LightningCLI over the functions in `commands`. No logic of its own."""

import os  # is loaded already, wherever a file of this name lies
import sys

# `python -m` looks for all modules in the current folder first: for those below too. PYTHONPATH may name it once more.
if (
    __name__ == "__main__"
    and not getattr(sys.flags, "safe_path", sys.flags.isolated)
    and sys.path[0] != os.path.dirname(os.path.dirname(__file__))
):
    del sys.path[0]

import re
import signal
from argparse import SUPPRESS, Action
from contextlib import contextmanager, suppress

# Ctrl-C while the libraries load ends the program at once, without their tracebacks.
with suppress(ValueError):  # outside the main thread it does not come here
    signal.signal(signal.SIGINT, signal.SIG_DFL)

# Threads that spin while they wait make tiny operations many times slower on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from abc_toolkit.trust import TrustOption, comma_list, in_the_packages_folder, searching_current_folder, trusting

with in_the_packages_folder():
    import matplotlib  # noqa: F401

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from inspect import isabstract
from pathlib import Path
from typing import Any, NoReturn, get_args

import yaml
from jsonargparse import ActionParser, DefaultHelpFormatter, Namespace
from jsonargparse._actions import (
    ActionConfigFile,
    _ActionConfigLoad,
    _ActionHelpClassPath,
    _ActionPrintConfig,
    remove_actions,
)
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

import abc_toolkit.commands as commands
from abc_toolkit import report, solving
from abc_toolkit.errors import UserError
from abc_toolkit.run import PIPELINE

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
    # Of an optional class, what was wrong with the class.
    (r"(?s)Does not validate against any of the Union subtypes.*?Errors:\s+- (.*?)\s+- Expected a NoneType.*", r"\1"),
    (r"(?s)\s*Subclass types expect one of:.*", ""),
    (r"Problem with given class_path '([^']+)':", r"\1:"),
    (r"(No module named '[^']+')", r"\1 where Python looks: there is none here, nor in a folder of PYTHONPATH"),
    (r"Option '(\w+)' is not accepted", r"there is no setting \1"),
    (r"the following arguments are required:", "missing:"),
)


class ConfigFile(ActionConfigFile):
    """A configuration file, which may hold settings of every phase: a command takes its own section of it."""

    @staticmethod
    def apply_config(parser: Any, cfg: Namespace, dest: str, value: str) -> None:
        ActionConfigFile.apply_config(parser, cfg, dest, _own_section(parser, value))


def _own_section(parser: "Parser", value: str) -> str:
    """The part of an experiment's file that a command honours; other files as they are."""
    path = Path(value)
    try:
        content = yaml.safe_load(path.read_text()) if path.is_file() else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--config {value} cannot be read: {' '.join(str(error).split())}") from None
    if not path.is_file() and path.suffix in (".yaml", ".yml", ".json"):
        raise UserError(f"--config {value}: there is no such file")
    if not isinstance(content, dict) or parser.command in (None, "run") or not set(content) & {*PIPELINE, *SHARED}:
        return value
    own = {key: content[key] for key in SHARED if key in content and key in parser.shared}
    rest = {key: part for key, part in content.items() if key not in (*PIPELINE, *SHARED)}
    return yaml.safe_dump(own | rest | (content.get(parser.command) or {}))


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
    shared: tuple[str, ...] = ()
    settings_of: str | None = None

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
        command = f"abc {self.command}" if self.command else "abc"
        report.remark(f"{command}: error: {' '.join(text.split())} (see {command} --help)")
        raise SystemExit(2)

    def _reworded(self, message: str) -> str:
        key = re.match(r'Parser key "([\w.]+)":', message)
        names = _class_names(next((action for action in self._actions if key and action.dest == key[1]), None))
        choose = f"choose from {', '.join(names)}" if names else "name a class by its import path"
        unknown = re.search(r"path string: (\S+)", message)
        if names and not unknown:
            own = r"given class_path '(abc_toolkit\.[\w.]+)':\s+(?:No )?module"
            unknown = re.search(r"value: ([\w.]+)\Z", message) or re.search(own, message)
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
        """Takes problems that stand behind options, which argparse leaves over."""
        if self.command == "solve":
            problems = [word for word in unk if not re.match("--?[^0-9-]", word)]
            cfg.problems = [*cfg.problems, *(word for word in problems if word != "--")]
            unk = [word for word in unk if word not in problems]
        return super()._positional_optionals(cfg, unk)

    def format_help(self, *arguments: Any, **keywords: Any) -> str:
        with self._shown_to_users():
            return super().format_help(*arguments, **keywords)

    @contextmanager
    def _shown_to_users(self) -> Iterator[None]:
        """Leaves out of the help what follows from the rest: variables of the environment, groups given as files.

        Only while it is printed: what is hidden for good is also missing from `--print_config`.
        """
        phases = tuple(f"{phase}." for phase in PIPELINE)
        hidden = [a for a in self._actions if isinstance(a, _ActionConfigLoad) and a.dest not in PIPELINE]
        hidden += [a for a in self._actions if a.dest.startswith(phases)]
        kept, kept_env = [action.help for action in hidden], self._default_env
        self._default_env = False
        for action in hidden:
            action.help = SUPPRESS
        try:
            yield
        finally:
            self._default_env = kept_env
            for action, text in zip(hidden, kept, strict=True):
                action.help = text


class Commands:
    """What can be done, as LightningCLI looks it up."""

    run = staticmethod(commands.run_all)
    fit = staticmethod(commands.fit)
    calibrate = staticmethod(commands.calibrate)
    retrain = staticmethod(commands.retrain)
    evaluate = staticmethod(commands.evaluate)
    solve = staticmethod(solving.solve)
    certify = staticmethod(commands.certify)


class CommandLine(LightningCLI):
    """One subcommand a function; its typed arguments are the flags, its docstring the help."""

    status = 0

    def __init__(self, arguments: list[str] | None = None) -> None:
        words = sys.argv[1:] if arguments is None else arguments
        named = [word for word in words if word in COMMANDS][:1]
        # Options are listed for the command that is named alone: listing all takes as long as loading PyTorch.
        self._wanted = named or ([] if {"-h", "--help"} & set(words) else COMMANDS)
        environment = {"default_env": True, "env_prefix": "ABC"}
        own = {"description": DESCRIPTION, "usage": "abc COMMAND [options]"} | environment
        super().__init__(
            trainer_class=Commands,  # type: ignore[arg-type]
            save_config_callback=None,
            parser_class=Parser,
            parser_kwargs=own | {name: dict(environment) for name in COMMANDS},
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
        operands = " [PROBLEM ...]" if subcommand == "solve" else ""
        parser = Parser(usage=f"abc {subcommand} [options]{operands}", **kwargs)
        parser.command = subcommand
        if subcommand not in self._wanted:
            return parser
        parser.add_argument("-c", "--config", action=ConfigFile, help="YAML file of settings; later ones win.")
        if subcommand == "solve":
            parser.add_argument("problems", nargs="*", type=str, metavar="PROBLEM", help="Problems, such as 123+989.")
            parser.add_argument("--file", type=str, help="File with a problem on each line; - for standard input.")
            parser.add_argument("--check", action="store_true", help="Add whether each answer is right.")
        skip: set[str | int] = {"problems"} if subcommand == "solve" else {f"{phase}_settings" for phase in PIPELINE}
        added = parser.add_function_arguments(getattr(klass, subcommand), as_group=False, skip=skip)
        trust = {"metavar": "NAME", "type": comma_list, "action": TrustOption}
        parser.add_argument("--trust", **trust, help="Module or package whose classes the run may name; repeatable.")
        parser.shared = tuple(name for name in SHARED if name in (*added, "trust"))
        if subcommand == "run":
            for phase in PIPELINE:
                settings = Parser(description="")
                settings.add_function_arguments(getattr(klass, phase), as_group=False, skip={*SHARED})
                remove_actions(settings, _ActionHelpClassPath)
                parser.add_argument(f"--{phase}", action=ActionParser(settings))
        for action in parser._actions:
            if getattr(action, "_typehint", None) is bool:  # a flag alone means true
                action.nargs, action.const = "?", True
            elif isinstance(action, _ActionPrintConfig):
                action.help = "Print all settings as they would be used, as YAML for --config, and exit."
            elif isinstance(action, _ActionConfigLoad) and action.dest in PIPELINE:
                action.help = f"File of settings of {action.dest}; --{action.dest}.OPTION gives one of them."
        self._subcommand_method_arguments[subcommand] = added
        return parser

    def _set_seed(self) -> None:
        """Every phase draws from generators of its own; nothing global is seeded here."""

    def instantiate_classes(self) -> None:
        try:
            self.config_init = self.parser.instantiate(self.config)
        except UserError:
            raise
        except (TypeError, ValueError) as error:  # for optional settings, what failed and what it is not
            reason = re.search(r"Errors:\s+- (.*)", str(error))
            raise UserError(reason[1] if reason else " ".join(str(error).split())) from error

    def _run_subcommand(self, subcommand: str) -> None:
        arguments = self.config_init[subcommand].as_dict()
        arguments.pop("config", None)
        trusted = arguments.pop("trust")
        if subcommand == "run":
            arguments |= {f"{phase}_settings": arguments.pop(phase) for phase in PIPELINE}
        try:
            with trusting(trusted or ""):
                if subcommand == "solve":
                    self.status = solving.answer_all(**arguments)
                elif subcommand == "certify":
                    self.status = VERDICTS[commands.certify(**arguments).verdict]
                else:
                    getattr(Commands, subcommand)(**arguments)
        except KeyboardInterrupt as interrupt:
            report.remark(f"Interrupted. {_how_to_go_on(subcommand, getattr(interrupt, 'resumable', False))}")
            raise SystemExit(130) from None


def _how_to_go_on(command: str, resumable: bool) -> str:
    if resumable:
        return f"Go on where it was with 'abc {command} --resume', the other options as before."
    return f"Nothing was changed: start again with 'abc {command}', the options as before."


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
        report.remark(f"abc: error: {error}")
        return 2
    except KeyboardInterrupt:
        report.remark("Interrupted.")
        return 130
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # with that, the reader of the output has gone and wants no more
            report.remark(f"abc: error: {error}")
        with suppress(OSError):  # or Python would try to flush the output once more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1 if isinstance(error, BrokenPipeError) else 2


if __name__ == "__main__":
    raise SystemExit(main())
