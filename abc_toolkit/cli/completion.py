"""Completion for shells: a script that knows the commands and their options, and starts nothing when Tab is pressed."""

from abc_toolkit.cli.commands import COMMANDS
from abc_toolkit.errors import UserError

_BASH = """\
# Completion of abc for bash: source it, or put it into ~/.local/share/bash-completion/completions/abc
_abc() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" options
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{first}" -- "$word"))
        return
    fi
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
    case "$word" in
        -*) COMPREPLY=($(compgen -W "$options" -- "$word")) ;;
        *) COMPREPLY=($(compgen -f -- "$word")) ;;
    esac
}}
complete -o filenames -F _abc abc
"""
_ZSH = "#compdef abc\n# Completion of abc for zsh: source it.\nautoload -U +X bashcompinit && bashcompinit\n"


def completion(shell: str) -> str:
    """The completion script of a shell.

    Args:
        shell: `bash` or `zsh`.

    Raises:
        UserError: If it is another.
    """
    if shell not in ("bash", "zsh"):
        raise UserError(f"--print-completion {shell or 'without a shell'}: choose bash or zsh")
    from abc_toolkit.cli.parser import options

    own = {name: ["--help", *(f"--{option}" for option in sorted(found))] for name, found in options().items()}
    cases = "\n".join(f'        {name}) options="{" ".join(words)}" ;;' for name, words in own.items())
    first = " ".join([*COMMANDS, "doctor", "--help", "--version", "--print-completion"])
    return ("" if shell == "bash" else _ZSH) + _BASH.format(first=first, cases=cases)
