"""Messages of jsonargparse, reworded for a user."""

import re

# What a user reads in place of what jsonargparse says.
WORDING = (
    (r'Parser key "([^"]+)":', r"--\1:"),
    (r"<class 'int'>", "whole number"),
    (r"<class 'float'>", "number"),
    (r"<class 'bool'>", "true or false"),
    (r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1"),
    (r"(?:an?|Expected a) typing\.Literal\[(.*?)\]", r"Expected one of \1"),
    (r"argument COMMAND: invalid choice: (\S+) \(choose from (.*)\)", r"there is no command \1; choose from \2"),
    (
        r'expected "subcommand" to be one of .*',
        "a command is missing: run, fit, calibrate, retrain, evaluate, solve or certify",
    ),
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


def reworded(message: str) -> str:
    """A message of jsonargparse in a user's words."""
    for pattern, words in WORDING:
        message = re.sub(pattern, words, message)
    return message
