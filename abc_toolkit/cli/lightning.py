"""LightningCLI drives the commands that train: `fit`, `retrain` and `run`."""

from collections.abc import Callable
from typing import Any

from abc_toolkit.runs.trust import in_the_packages_folder

with in_the_packages_folder():
    import matplotlib  # noqa: F401

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger

from abc_toolkit.cli.commands import COMMANDS, DESCRIPTION
from abc_toolkit.cli.parser import Parser, add_options, parse, parser_of, told
from abc_toolkit.errors import UserError
from abc_toolkit.runs.description import remember


class TrainingParser(Parser, LightningArgumentParser):
    """The parser of a command that trains."""

    def add_subcommands(self, required: bool = True, dest: str = "subcommand", **kwargs: Any) -> Any:
        return super().add_subcommands(required, dest, title="commands", description=None, metavar="COMMAND", **kwargs)


class Functions:
    """What can be done, as LightningCLI looks it up."""


class CommandLine(LightningCLI):
    """One command: its function's typed arguments are the flags, its docstring the help.

    Args:
        command: The command.
        words: The words behind it.
        call: Calls its function with the arguments.
    """

    def __init__(self, command: str, words: list[str], call: Callable[[dict[str, Any]], None]) -> None:
        self._command, self._words, self._call = command, words, call
        functions = type("Functions", (Functions,), {command: staticmethod(COMMANDS[command].load())})
        super().__init__(
            trainer_class=functions,  # type: ignore[arg-type]
            save_config_callback=None,
            parser_class=TrainingParser,
            parser_kwargs={"description": DESCRIPTION, "usage": "abc COMMAND [options]"},
            args=[command, *words],
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        return {self._command: set()}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        return TrainingParser(**kwargs)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = parser_of(subcommand, TrainingParser, **kwargs)
        self._subcommand_method_arguments[subcommand] = add_options(parser, subcommand)
        assert isinstance(parser, TrainingParser)
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        own: Any = self._subcommand_parsers[self._command]
        try:
            self.config: Namespace = parse(parser, own, self._command, self._words, [self._command])
        except UserError:
            raise
        except Exception as error:  # a module that is imported for a class of the user's may raise anything
            raise UserError(told(error)) from error

    def _set_seed(self) -> None:
        """Every phase draws from generators of its own; nothing global is seeded here."""

    def instantiate_classes(self) -> None:
        try:
            self.config_init = self.parser.instantiate(self.config, instantiators=INSTANTIATORS)
        except UserError:
            raise
        except Exception as error:  # a class of the user's may raise anything
            raise UserError(told(error)) from error

    def _run_subcommand(self, subcommand: str) -> None:
        self._call(self.config_init[subcommand].as_dict())


def _made_and_remembered(class_type: type, *args: Any, **kwargs: Any) -> Any:
    """A logger, which by itself would not tell its settings to the record."""
    made = class_type(*args, **kwargs)
    remember(made, kwargs)
    return made


INSTANTIATORS = [(_made_and_remembered, Logger, True)]
