from abc_toolkit.tasks import DuplicateString, MissingDuplicate, OddsFirst, ReverseString
from abc_toolkit.testing.digit_contract import DigitTaskContract, Example, TaskCase
from tests.tasks.chomsky.contract import ChomskyContract

WRONG = {"012": "'012' holds '2'"}
HIDDEN_FIRST = r"([01]{0,9})2([01]{0,9})\1[01]\2"
HIDDEN_SECOND = r"([01]{0,9})[01]([01]{0,9})\3[2]\4"


class TestReverseString(DigitTaskContract):
    cases = {  # noqa: RUF012
        "bits": TaskCase(
            ReverseString(max_length=5),
            lambda text: text[::-1],
            r"[01]+",
            (Example("0010", (4,), "0010", "0100", "0100"), Example("011010", (6,), "011010", "010110", "010110")),
            WRONG,
        ),
    }


class TestDuplicateString(DigitTaskContract):
    cases = {  # noqa: RUF012
        "bits": TaskCase(
            DuplicateString(max_length=5),
            lambda text: text + text,
            r"[01]+",
            (Example("101", (3,), "101", "101101", "101101"),),
            WRONG,
        ),
    }


class TestOddsFirst(ChomskyContract):
    cases = {  # noqa: RUF012
        "small": TaskCase(
            OddsFirst(max_length=5),
            lambda text: "".join(c for i, c in sorted(enumerate(text), key=lambda pair: (1 - pair[0] % 2, pair[0]))),
            r"[01]+",
            (
                Example("00110101", (8,), "00110101", "01110100", "01110100"),
                Example("110", (3,), "110", "110", "110"),
                Example("100", (3,), "100", "010", "010"),
                Example("1", (1,), "1", "1", "1"),
            ),
            WRONG,
        ),
    }


def hidden(text: str) -> str:
    text = text.rstrip("3")
    halves = text[: len(text) // 2], text[len(text) // 2 :]
    (found,) = ({a, b} - {"2"} for a, b in zip(*halves, strict=True) if a != b)
    return found.pop()


class TestMissingDuplicate(ChomskyContract):
    cases = {  # noqa: RUF012
        "small": TaskCase(
            MissingDuplicate(max_length=7),
            hidden,
            rf"(?:{HIDDEN_FIRST}|{HIDDEN_SECOND})3?",
            (
                Example("01100210", (8,), "01100210", "2111", "1"),
                Example("1011213", (7,), "1011213", "200", "0"),
                Example("21", (2,), "21", "1", "1"),
                Example("023", (3,), "023", "0", "0"),
            ),
            {
                "2": "'2' is not a bit string written twice",
                "22": "with one bit hidden by '2'",
                "0112": "is not a bit string",
                "0101": "is not a bit string",
                "10211": "is not a bit string",
                "4": "holds '4'",
            },
        ),
    }
