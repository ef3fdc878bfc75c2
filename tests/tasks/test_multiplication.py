import re
from collections import Counter

import pytest

from abc_toolkit.tasks import Multiplication
from abc_toolkit.tasks.base import CARRY, UNEQUAL, UNIFORM, ZEROS
from tests.contracts.task_contract import Example, NumberContract, TaskCase, evaluation_strings, training_strings

PLAIN = Multiplication(max_length=3)
FIXED = Multiplication(max_length=3, padding="fixed", width=12)
WRONG = {
    "12": "'12' is not a multiplication",
    "1*2*3": "one digit",
    "*3": "operand 1 of '*3' is empty",
    "3*": "operand 2 of '3*' is empty",
    "12+3": "'12+3' is not a multiplication",
    "12*34": "operand 2 of '12*34' has 2 digits",
    "1*x": "operand 2 of '1*x' holds 'x'",
}


def product(text: str) -> int:
    first, second = text.split("*")
    return int(first) * int(second)


class TestMultiplication(NumberContract):
    cases = {  # noqa: RUF012
        "longest": TaskCase(
            PLAIN,
            product,
            r"[0-9]+\*[0-9]",
            (
                Example("123*4", (3,), "123*4", "2940", "492"),
                Example("999*9", (3,), "999*9", "1998", "8991"),
                Example("5*0", (1,), "5*0", "00", "0"),
                Example("007*8", (3,), "007*8", "6500", "56"),
            ),
            WRONG,
        ),
        "none": TaskCase(
            Multiplication(max_length=3, padding="none"),
            product,
            r"[0-9]+\*[0-9]",
            (Example("12*5", (2,), "12*5", "060", "60"),),
            WRONG,
        ),
        "fixed": TaskCase(
            FIXED,
            product,
            r"[0-9]{1,12}\*[0-9]",
            (Example("99*9", (2,), "000000000099*9", "1980000000000", "891"),),
            WRONG | {"1234567890123*1": "13 digits does not fit the fixed width of 12"},
        ),
    }


@pytest.mark.parametrize("task", [PLAIN, FIXED], ids=["longest", "fixed"])
def test_sets_hold_what_they_say(task: Multiplication) -> None:
    def pairs(set_name: str) -> list[tuple[str, str]]:
        return [(source[-9:-2], source[-1]) for source in evaluation_strings(task, 7, set_name, 600)]

    uniform = pairs(UNIFORM)
    assert all(re.fullmatch(r"[1-9]\d{6}", first) for first, _ in uniform)
    assert set(Counter(second for _, second in uniform)) == set("0123456789")
    carry = pairs(CARRY)
    assert {second for first, second in carry if first == "9999999"} == set("23456789")
    assert any(re.fullmatch(r"([1-8])\1{6}", first) for first, _ in carry)
    assert any(re.search(r"(\d)\1{4}", first) and len(set(first)) > 2 for first, _ in carry)
    zeros = pairs(ZEROS)
    assert ("0000000", "0") in zeros
    assert any(first == "0000000" and second != "0" for first, second in zeros)
    assert any(first != "0000000" and second == "0" for first, second in zeros)
    for pattern in (r"0{3,}[1-9]\d*", r"[1-9]\d*0{3,}", r"\d*[1-9]00+[1-9]\d*"):
        assert any(re.fullmatch(pattern, first) for first, _ in zeros)
    assert len({len(source[:-2].lstrip("0")) for source in evaluation_strings(task, 7, UNEQUAL)}) > 3


def test_training_holds_every_kind() -> None:
    sources = training_strings(PLAIN, (3,))
    assert {"000*0", "999*9"} < set(sources)
    assert sum(source.startswith("999") for source in sources) > 0.02 * len(sources)
    assert sum(source.startswith("000") for source in sources) > 0.02 * len(sources)
    assert sum(source[0] == "0" for source in sources) > 0.08 * len(sources)
    assert {source[-1] for source in sources} == set("0123456789")
