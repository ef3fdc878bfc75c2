"""The contract tests of a task whose answer is a number, inherited: `pytest` in this folder runs them."""

from doubling import Doubling

from abc_toolkit.testing import Example, NumberContract, TaskCase


class TestDoubling(NumberContract):
    """A small `Doubling`, and what to hold it to."""

    cases = {  # noqa: RUF012
        "it": TaskCase(
            Doubling(max_length=4),
            oracle=lambda source: 2 * int(source),
            grammar="[0-9]+",
            examples=(Example("65", (2,), "65", "031", "130"), Example("0", (1,), "0", "00", "0")),
            wrong={"6+5": "'+'"},
        )
    }
