"""The command line: the commands of `cli.commands`, each loaded when it is named. No logic of its own."""

import os  # is loaded already, wherever a file of this name lies
import sys

# `python -m` looks for all modules in the current folder first: for those below too. PYTHONPATH may name it once more.
if (
    __name__ == "__main__"
    and not getattr(sys.flags, "safe_path", sys.flags.isolated)
    and sys.path[0] != os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
):
    del sys.path[0]

import signal
from contextlib import suppress
from typing import Any

# Ctrl-C while libraries load ends the program at once, without their tracebacks.
with suppress(ValueError):  # outside the main thread it does not come here
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from abc_toolkit.cli.commands import COMMANDS, DOCTOR, PIPELINE, VERDICTS, format_help
from abc_toolkit.errors import UserError, lacks_memory

# Threads that spin while they wait make tiny operations many times slower on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _on_interrupt(handler: Any) -> None:
    """Says what Ctrl-C does from now on."""
    with suppress(ValueError):
        signal.signal(signal.SIGINT, handler)


_on_interrupt(signal.default_int_handler)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    try:
        return _answer(sys.argv[1:] if arguments is None else list(arguments))
    except UserError as error:
        _remark(f"abc: error: {error}")
        return 2
    except KeyboardInterrupt:
        _remark("Interrupted.")
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
            _remark(f"abc: error: {error}")
        with suppress(OSError):  # or Python would try to flush the output once more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1 if isinstance(error, BrokenPipeError) else 2


def _remark(text: str) -> None:
    """Tells the user something in one line on standard error."""
    from abc_toolkit.report import console

    console.remark(console.line(text))


def _answer(words: list[str]) -> int:
    """Does what the words of the command line ask for; returns the exit status."""
    command = words[0] if words else ""
    if command in COMMANDS:
        return _run(command, words[1:])
    if {"-h", "--help"} & set(words):
        print(format_help(), end="")
        return 0
    if command == "--version":
        from abc_toolkit import __version__

        print(__version__)
        return 0
    if command == "--print-completion":
        from abc_toolkit.cli.completion import completion

        print(completion(words[1] if len(words) > 1 else ""), end="")
        return 0
    if command == "doctor":
        from abc_toolkit.cli.doctor import doctor

        if {"-h", "--help"} & set(words):
            print(f"usage: abc doctor\n\n{DOCTOR}")
            return 0
        if len(words) > 1:
            raise UserError(f"'abc doctor' takes no options: leave out {' '.join(words[1:])}")
        return doctor()
    names = ", ".join([*COMMANDS, "doctor"])
    if not words:
        raise UserError(f"a command is missing: choose from {names} (see abc --help)")
    if command.startswith("-"):
        raise UserError(f"unknown options or arguments: {command} (see abc --help)")
    raise UserError(f"there is no command {command!r}; choose from {names} (see abc --help)")


def _run(command: str, words: list[str]) -> int:
    """Runs a command; returns the exit status."""
    _on_interrupt(signal.SIG_DFL)  # until what is to be loaded is
    from abc_toolkit.runs.trust import searching_current_folder

    with searching_current_folder():
        if COMMANDS[command].trains:
            from abc_toolkit.cli.lightning import CommandLine

            _on_interrupt(signal.default_int_handler)
            status: list[int] = []
            CommandLine(command, words, lambda arguments: status.append(_called(command, arguments)))
            return status[0] if status else 0
        from abc_toolkit.cli.parser import add_options, parse, parser_of, told

        parser = parser_of(command)
        _on_interrupt(signal.default_int_handler)
        try:
            add_options(parser, command)
            arguments = parser.instantiate(parse(parser, parser, command, words, [])).as_dict()
            arguments |= parser.operands(arguments)
        except UserError:
            raise
        except Exception as error:  # a class of the user's, and a module that is imported for it, may raise anything
            raise UserError(told(error)) from error
        return _called(command, arguments)


def _called(command: str, arguments: dict[str, Any]) -> int:
    """Calls the function of a command; returns the exit status."""
    from abc_toolkit.runs.trust import trusting

    arguments.pop("config", None)
    trusted = arguments.pop("trust")
    with suppress(ValueError):
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    if command == "run":
        arguments |= {f"{phase}_settings": arguments.pop(phase) for phase in PIPELINE}
    try:
        with trusting(trusted or ""):
            if command == "solve":
                from abc_toolkit.phases.solve import answer_all

                return answer_all(**arguments)
            made = COMMANDS[command].load()(**arguments)
            if command == "certify":
                return VERDICTS[made.verdict]
            if command == "sweep":
                return 1 if made.failed else 0
            return VERDICTS["wrong"] if command == "run" and made.verdict == "wrong" else 0
    except KeyboardInterrupt as interrupt:
        _remark(f"Interrupted. {_how_to_go_on(command, getattr(interrupt, 'resumable', False))}")
        raise SystemExit(130) from None


def _how_to_go_on(command: str, resumable: bool) -> str:
    if command == "sweep":
        return "Finished runs are kept: the same command does the others."
    if resumable:
        return f"Go on where it was with 'abc {command} --resume', the other options as before."
    return f"Nothing was changed: start again with 'abc {command}', the options as before."


if __name__ == "__main__":
    raise SystemExit(main())
