"""The table of commands. Nothing is loaded for it, so that `abc --help` answers at once."""

import argparse
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

DESCRIPTION = (
    "Attention Bias Calibration: train a transformer on short arithmetic, read a window off its attention, retrain "
    "inside the window, and use it at any length. 'abc run' does all of it; 'abc COMMAND --help' tells what a command "
    "takes. Every option can also be set in the environment: ABC_FIT__SEED=3 is 'abc fit --seed 3', "
    "ABC_FIT__TRAINER__MAX_STEPS=100 is 'abc fit --trainer.max_steps 100'."
)


@dataclass(frozen=True)
class Operands:
    """The words of a command line that belong to no option.

    Attributes:
        argument: The function's argument that they are.
        usage: How the usage line shows them.
        alone: Whether there must be exactly one.
        before: The option whose value may stand before the one.
    """

    argument: str
    usage: str
    alone: bool = False
    before: str | None = None


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        summary: What it does, as the first line of its function's docstring says it.
        module: Where its function is.
        function: The function, whose arguments are the options.
        trains: Whether LightningCLI drives it; the others do without Lightning.
        operands: What it takes besides options.
    """

    summary: str
    module: str
    function: str
    trains: bool = False
    operands: Operands | None = None

    def load(self) -> Callable[..., Any]:
        """The function."""
        return getattr(importlib.import_module(f"abc_toolkit.{self.module}"), self.function)


COMMANDS: Mapping[str, Command] = {
    "run": Command(
        "Does all phases: fit, calibrate, retrain, evaluate, certify. Takes every option of the first four as "
        "--PHASE.OPTION.",
        "phases.pipeline",
        "run_all",
        trains=True,
    ),
    "fit": Command("Trains the vanilla model until it interpolates: phase 1.", "phases.training", "fit", trains=True),
    "calibrate": Command(
        "Turns the vanilla model's attention into a window: phase 2.", "phases.calibrate", "calibrate"
    ),
    "retrain": Command("Trains a fresh model inside the window: phase 3.", "phases.training", "retrain", trains=True),
    "evaluate": Command(
        "Measures the task's metrics at any length, vanilla against retrained: phase 4.", "phases.evaluate", "evaluate"
    ),
    "solve": Command(
        "Solves problems with the model's own answers, decoded step by step.",
        "phases.solve",
        "solve",
        operands=Operands("problems", "[PROBLEM ...]"),
    ),
    "certify": Command(
        "Proves that the retrained model is right at every length, or finds a problem that it fails on.",
        "phases.certify",
        "certify",
    ),
    "explain": Command(
        "Reads out of a certified model what it computes: the least transducer, its states and steps.",
        "phases.explain",
        "explain",
    ),
    "report": Command(
        "Writes a page of HTML about runs: results, attention, window, sample problems, certificate.",
        "phases.report",
        "report",
        operands=Operands("runs", "[RUN ...]"),
    ),
    "export": Command(
        "Writes a model of a run into a folder of its own, in the layout of the Hugging Face Hub.",
        "phases.sharing.export",
        "export",
        operands=Operands("folder", "[RUN] DIR", alone=True, before="run"),
    ),
    "sweep": Command(
        "Does 'abc run' for every combination of a grid, several at a time.",
        "sweeps.engine",
        "sweep",
        operands=Operands("file", "FILE", alone=True),
    ),
    "summarize": Command(
        "Summarizes the evaluations of many runs over their seeds.",
        "sweeps.summary",
        "summarize",
        operands=Operands("folder", "FOLDER", alone=True),
    ),
}
PIPELINE = ("fit", "calibrate", "retrain", "evaluate")  # the phases whose options `run` takes
VERDICTS = {"correct": 0, "wrong": 1, "undecided": 3}  # exit statuses


class _Formatter(argparse.HelpFormatter):
    """Lists the commands without their parsers' own heading."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=14)


DOCTOR = "Shows what the toolkit runs on, and tries it out in ten seconds."


def format_help() -> str:
    """The help of `abc` itself."""
    parser = argparse.ArgumentParser(
        "abc", usage="abc COMMAND [options]", description=DESCRIPTION, formatter_class=_Formatter, add_help=False
    )
    options = parser.add_argument_group("options")
    options.add_argument("-h", "--help", action="store_true", help="Show this help message and exit.")
    options.add_argument("--version", action="store_true", help="Show the version and exit.")
    options.add_argument(
        "--print-completion", metavar="SHELL", help="Print the completion script for bash or zsh and exit."
    )
    commands = parser.add_argument_group("commands")
    for name, command in COMMANDS.items():
        commands.add_argument(name, help=command.summary)
    commands.add_argument("doctor", help=DOCTOR)
    return parser.format_help()
