from operator import add, mul

import pytest

from abc_toolkit.tasks import BinaryAddition, BinaryMultiplication
from abc_toolkit.tasks.base import UNIFORM
from abc_toolkit.testing.digit_contract import Example, TaskCase, evaluation_strings
from tests.tasks.chomsky.contract import ChomskyContract

WRONG = {
    "1": "'1' is not two numbers",
    "121201": "'121201' is not two numbers",
    "0021": "'0021' is not two numbers",
    "21": "is not two numbers",
    "1+1": "holds '+'",
}
GRAMMAR = r"0*1[01]*20*1[01]*"


def output(text: str, operation, length: int) -> str:
    """The benchmark's output, bit by bit from powers of two."""
    numbers = [sum(2**place for place, bit in enumerate(bits) if bit == "1") for bits in text.split("2")]
    result = operation(*numbers)
    bits = []
    while result:
        bits.append("01"[result % 2])
        result //= 2
    return "".join(bits) + "2" + "0" * (length - len(bits) - 1)


class TestBinaryAddition(ChomskyContract):
    cases = {  # noqa: RUF012
        "small": TaskCase(
            BinaryAddition(max_length=6),
            lambda text: output(text, add, len(text) + 1),
            GRAMMAR,
            (
                Example("001201101", (9, 3), "001201101", "010110000", "0101120000"),
                Example("10012000001", (11, 4), "10012000001", "10010100000", "100101200000"),
                Example("121", (3, 1), "121", "010", "0120"),
            ),
            WRONG,
        ),
    }


class TestBinaryMultiplication(ChomskyContract):
    cases = {  # noqa: RUF012
        "small": TaskCase(
            BinaryMultiplication(max_length=6),
            lambda text: output(text, mul, len(text)),
            GRAMMAR,
            (
                Example("0120101", (7, 2), "0120101", "00000,00100,10000,00100,", "0010120"),
                Example("001201101", (9, 3), "001201101", "0000000,0000100,0010100,1010000,1000100,", "000110120"),
                Example("121", (3, 1), "121", "100,", "120"),
            ),
            WRONG,
        ),
    }


@pytest.mark.parametrize("task", [BinaryAddition(), BinaryMultiplication()], ids=lambda task: task.name)
def test_numbers_are_split_at_any_place_and_are_not_zero(task) -> None:
    strings = evaluation_strings(task, 12, UNIFORM, 400)
    assert {len(source) for source in strings} == {12}
    assert len({source.index("2") for source in strings}) > 3
    assert all("1" in number for source in strings for number in source.split("2"))
    assert any(source.endswith("00") for source in strings)


def test_targets_that_are_no_result_are_not_read() -> None:
    for target in ("", ",", "0", "000,0,", "000,0", "x00,", "00,"):
        assert BinaryMultiplication().answer(target) == target
    assert BinaryAddition().answer("01x") == "01x"
