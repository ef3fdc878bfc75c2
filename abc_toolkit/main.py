"""The command line: LightningCLI over the functions in `commands`. No logic of its own."""

import os
import sys
from argparse import SUPPRESS

# Threads that spin while they wait make tiny operations many times slower on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ActionParser, Namespace
from jsonargparse._actions import ActionConfigFile
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

import abc_toolkit.commands as commands
from abc_toolkit import report
from abc_toolkit.errors import UserError
from abc_toolkit.run import PHASES

SHARED = ("task", "run", "seed", "resume", "overwrite")


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
    if not isinstance(content, dict) or parser.command in (None, "run") or not set(content) & set(PHASES):
        return value
    own = {key: content[key] for key in SHARED if key in content and key in parser.shared}
    return yaml.safe_dump(own | (content.get(parser.command) or {}))


class Parser(LightningArgumentParser):
    """LightningCLI's parser, whose errors are one line."""

    command: str | None = None
    shared: tuple[str, ...] = ()

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Ends the program with exit status 2."""
        text = " ".join(str(ex if isinstance(ex, UserError) else message).split())
        command = f"abc {self.command}" if self.command else "abc"
        report.remark(f"{command}: error: {text} (see {command} --help)")
        raise SystemExit(2)

    def format_help(self, *arguments: Any, **keywords: Any) -> str:
        """Help without the name of every option's environment variable, which follows from the option's."""
        self._default_env, kept = False, self._default_env
        try:
            return super().format_help(*arguments, **keywords)
        finally:
            self._default_env = kept


class Commands:
    """What can be done, as LightningCLI looks it up."""

    run = staticmethod(commands.run_all)
    fit = staticmethod(commands.fit)
    calibrate = staticmethod(commands.calibrate)
    retrain = staticmethod(commands.retrain)
    evaluate = staticmethod(commands.evaluate)
    solve = staticmethod(commands.solve)


class CommandLine(LightningCLI):
    """One subcommand a function; its typed arguments are the flags, its docstring the help."""

    def __init__(self, arguments: list[str] | None = None) -> None:
        environment = {"default_env": True, "env_prefix": "ABC"}
        super().__init__(
            trainer_class=Commands,  # type: ignore[arg-type]
            save_config_callback=None,
            parser_class=Parser,
            parser_kwargs={"description": DESCRIPTION} | environment | {name: dict(environment) for name in COMMANDS},
            args=arguments,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {name: set() for name in COMMANDS}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = Parser(**kwargs)
        parser.add_argument("-c", "--config", action=ConfigFile, help="YAML file of settings; later ones win.")
        return parser

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = self.init_parser(**kwargs)
        assert isinstance(parser, Parser)
        parser.command = subcommand
        if subcommand == "solve":
            parser.add_argument("problems", nargs="*", type=str, help="Problems, such as 123+989.")
            parser.add_argument("--file", type=str, help="File with a problem on each line; - for standard input.")
            parser.add_argument("--check", action="store_true", help="Add whether each answer is right.")
        skip: set[str | int] = {"problems"} if subcommand == "solve" else {f"{phase}_settings" for phase in PHASES}
        added = parser.add_function_arguments(getattr(klass, subcommand), as_group=False, skip=skip)
        parser.shared = tuple(name for name in SHARED if name in added)
        if subcommand == "run":
            for phase in PHASES:
                settings = Parser()
                settings.add_function_arguments(getattr(klass, phase), as_group=False, skip={*SHARED})
                for action in settings._actions:
                    action.help = SUPPRESS
                parser.add_argument(f"--{phase}", action=ActionParser(settings))
        for action in parser._actions:
            if getattr(action, "_typehint", None) is bool:  # a flag alone means true
                action.nargs, action.const = "?", True
        self._subcommand_method_arguments[subcommand] = added
        return parser

    def _set_seed(self) -> None:
        """Every phase draws from generators of its own; nothing global is seeded here."""

    def instantiate_classes(self) -> None:
        self.config_init = self.parser.instantiate_classes(self.config)

    def _run_subcommand(self, subcommand: str) -> None:
        arguments = self.config_init[subcommand].as_dict()
        arguments.pop("config", None)
        if subcommand == "solve":
            _solve(arguments)
            return
        if subcommand == "run":
            arguments |= {f"{phase}_settings": arguments.pop(phase) for phase in PHASES}
        getattr(Commands, subcommand)(**arguments)


def _solve(arguments: Mapping[str, Any]) -> None:
    problems = list(arguments["problems"])
    source = arguments["file"] or ("-" if not problems and not sys.stdin.isatty() else None)
    if source is not None:
        try:
            text = sys.stdin.read() if source == "-" else Path(source).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--file {source} cannot be read: {error}") from None
        problems += [line.strip() for line in text.splitlines() if line.strip()]
    answers = commands.solve(problems, run=arguments["run"], weights=arguments["weights"])
    if not arguments["check"]:
        print("\n".join(answers))
        return
    verdicts = commands.check_answers(problems, answers, run=arguments["run"])
    for answer, right in zip(answers, verdicts, strict=True):
        print(f"{answer}\t{'right' if right else 'wrong'}")


COMMANDS = tuple(name for name in vars(Commands) if not name.startswith("_"))
DESCRIPTION = (
    "Attention Bias Calibration: train a transformer on short arithmetic, read a window off its attention, retrain "
    "inside the window, and use it at any length. 'abc run' does all of it; "
    "'abc COMMAND --help' tells what a command takes."
)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    try:
        CommandLine(arguments)
    except UserError as error:
        report.remark(f"abc: error: {error}")
        return 2
    except KeyboardInterrupt:
        report.remark("Interrupted. Nothing is lost: give the same command with --resume to go on where it was.")
        return 130
    except BrokenPipeError:  # the reader of the output has gone
        sys.stderr.close()
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
