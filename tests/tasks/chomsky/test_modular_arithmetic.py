import pytest

from abc_toolkit.errors import UserError
from abc_toolkit.tasks import ModularArithmetic
from abc_toolkit.testing.digit_contract import Example, TaskCase
from tests.tasks.chomsky.contract import ChomskyContract


def value(text: str) -> int:
    """The sum of the terms, each of which is a product."""
    total = 0
    for term in text.replace("-", "+-").split("+"):
        product = -1 if term.startswith("-") else 1
        for number in term.lstrip("-").split("*"):
            product *= int(number)
        total += product
    return total % 5


class TestModularArithmetic(ChomskyContract):
    cases = {  # noqa: RUF012
        "small": TaskCase(
            ModularArithmetic(max_length=5),
            value,
            r"[0-4]([-+*][0-4])*",
            (
                Example("1+2*3", (5,), "1+2*3", "112312", "2"),
                Example("1-1-1", (5,), "1-1-1", "114044", "4"),
                Example("0*1+4*3-2", (9,), "0*1+4*3-2", "0000442230", "0"),
                Example("3", (1,), "3", "33", "3"),
            ),
            {
                "1+": "'1+' is not an expression",
                "1++2": "not an expression",
                "12": "not an expression",
                "5": "holds '5'",
            },
        ),
    }


def test_the_longest_length_is_odd() -> None:
    with pytest.raises(UserError, match="max_length 6: an expression has an odd number of tokens"):
        ModularArithmetic(max_length=6)


def test_long_expressions_agree_with_python() -> None:
    source = "4*3*2-1*4+3-2-2*3*3+1*0-4"
    assert int(ModularArithmetic().answer(ModularArithmetic().solve(source))) == eval(source) % 5
