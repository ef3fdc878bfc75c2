from abc_toolkit.tasks import EvenPairs, ParityCheck
from abc_toolkit.testing.digit_contract import DigitTaskContract, Example, TaskCase
from tests.tasks.chomsky.contract import ChomskyContract

WRONG = {"2": "the bit string '2' holds '2'", "10+1": "holds '+'"}


def unequal_neighbours(text: str) -> int:
    return (text.count("01") + text.count("10")) % 2


class TestEvenPairs(ChomskyContract):
    cases = {  # noqa: RUF012
        "small": TaskCase(
            EvenPairs(max_length=5),
            unequal_neighbours,
            r"[01]+",
            (
                Example("001110", (6,), "001110", "0", "0"),
                Example("0101001", (7,), "0101001", "1", "1"),
                Example("1", (1,), "1", "0", "0"),
            ),
            WRONG,
        ),
    }


class TestParityCheck(DigitTaskContract):
    cases = {  # noqa: RUF012
        "steps": TaskCase(
            ParityCheck(max_length=5),
            lambda text: len(text.replace("0", "")) % 2,
            r"[01]+",
            (
                Example("1010100", (7,), "1010100", "0011001", "1"),
                Example("01111", (5,), "01111", "10100", "0"),
            ),
            WRONG,
        ),
    }
