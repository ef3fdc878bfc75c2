from abc_toolkit.tasks import CycleNavigation
from abc_toolkit.testing.digit_contract import Example, TaskCase
from tests.tasks.chomsky.contract import ChomskyContract


def walked(text: str) -> int:
    around = [0, 1, 2, 3, 4]
    for step in text:
        if step == "2":
            around = around[1:] + around[:1]
        elif step == "0":
            around = around[-1:] + around[:-1]
    return around[0]


class TestCycleNavigation(ChomskyContract):
    cases = {  # noqa: RUF012
        "small": TaskCase(
            CycleNavigation(max_length=4),
            walked,
            r"[012]+",
            (
                Example("20100", (5,), "20100", "10043", "3"),
                Example("2220", (4,), "2220", "1232", "2"),
                Example("0", (1,), "0", "4", "4"),
            ),
            {"3": "the string of steps '3' holds '3', which is not one of 0 1 2"},
        ),
    }
