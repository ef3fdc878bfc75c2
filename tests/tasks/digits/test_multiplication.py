import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abc_toolkit.tasks import Multiplication, ProblemError
from abc_toolkit.tasks.base import TRAINING, UNIFORM
from abc_toolkit.tasks.digits.base import CARRY, SETS, UNEQUAL, ZEROS
from abc_toolkit.testing.digit_contract import (
    Example,
    NumberContract,
    TaskCase,
    evaluation_strings,
    generator,
    training_strings,
)

PLAIN = Multiplication(max_length=3)
FIXED = Multiplication(max_length=3, padding="fixed", width=12)
PAIRS = Multiplication(max_length=3, interleaved=True)
FIXED_PAIRS = Multiplication(max_length=9, padding="fixed", width=9, interleaved=True)
WRONG = {
    "12": "'12' is not a multiplication",
    "1*2*3": "one digit",
    "*3": "operand 1 of '*3' is empty",
    "3*": "operand 2 of '3*' is empty",
    "12+3": "'12+3' is not a multiplication",
    "12*34": "operand 2 of '12*34' has 2 digits",
    "1*x": "operand 2 of '1*x' holds 'x'",
}


def apart(text: str) -> str:
    """A product as a person writes it, of one whose digits may be in turn."""
    return re.sub(r"(\d)\d", r"\1", text[1:]) + "*" + text[-1] if text.startswith("*") else text


def grammar(count: str) -> str:
    """Regular expression of a number and a digit, or of pairs with the one digit behind each of them."""
    return "|".join([rf"[0-9]{count}\*[0-9]", *(rf"\*([0-9]{digit}){count}" for digit in range(10))])


def product(text: str) -> int:
    first, second = apart(text).split("*")
    return int(first) * int(second)


def product_in(base: int) -> Callable[[str], str]:
    """The product in another base, by NumPy's way to write it."""

    def product(text: str) -> str:
        first, second = text.split("*")
        return np.base_repr(int(first, base) * int(second, base), base).lower()

    return product


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
        "interleaved": TaskCase(
            PAIRS,
            product,
            grammar("+"),
            (
                Example("123*4", (3,), "*142434", "2940", "492"),
                Example("*142434", (3,), "*142434", "2940", "492"),
                Example("007*8", (3,), "*080878", "6500", "56"),
                Example("*50", (1,), "*50", "00", "0"),
            ),
            WRONG
            | {
                "*3": "operand 2 of '*3' is empty",
                "*123": "'*123' has an odd number of digits",
                "*1425": "operand 2 of '*1425' has 2 digits",
                "12*33": "operand 2 of '12*33' has 2 digits",
                "*14x4": "operand 1 of '*14x4' holds 'x'",
            },
        ),
        "interleaved, fixed": TaskCase(
            FIXED_PAIRS,
            product,
            grammar("{1,9}"),
            (Example("99*9", (2,), f"*{'09' * 7}9999", "1980000000", "891"),),
            WRONG | {"*3": "is empty", f"*{'12' * 10}": "10 digits does not fit"},
        ),
        "base 2": TaskCase(
            Multiplication(max_length=3, base=2),
            product_in(2),
            r"[01]+\*[01]",
            (Example("101*1", (3,), "101*1", "1010", "101"), Example("11*0", (2,), "11*0", "000", "0")),
            {"101*2": "operand 2 of '101*2' holds '2', which is not one of the digits 01", "1*10": "has 2 digits"},
        ),
        "base 16": TaskCase(
            Multiplication(max_length=3, base=16),
            product_in(16),
            r"[0-9a-f]+\*[0-9a-f]",
            (Example("ff*f", (2,), "ff*f", "1fe", "ef1"), Example("0a*3", (2,), "0a*3", "e10", "1e")),
            {"g*1": "operand 1 of 'g*1' holds 'g'", "1*F": "operand 2 of '1*F' holds 'F'", "1*ab": "has 2 digits"},
        ),
        "base 36": TaskCase(
            Multiplication(max_length=2, base=36),
            product_in(36),
            r"[0-9a-z]+\*[0-9a-z]",
            (Example("zz*z", (2,), "zz*z", "1zy", "yz1"), Example("i*2", (1,), "i*2", "01", "10")),
            {"1*Z": "operand 2 of '1*Z' holds 'Z'", "z+1": "'z+1' is not a multiplication"},
        ),
    }


def test_layout_of_pairs() -> None:
    source = PAIRS.layout((3,)).source
    assert source.names[:3] == ("operator", "operand 1", "operand 2")
    assert source.segment.tolist() == [0, 1, 2, 1, 2, 1, 2]
    assert source.coordinates["place"].tolist() == [0, 2, 2, 1, 1, 0, 0]


@pytest.mark.parametrize("task", [PAIRS, FIXED_PAIRS], ids=["longest", "fixed"])
@pytest.mark.parametrize("set_name", [TRAINING, *SETS])
@given(length=st.integers(1, 9), seed=st.integers(0, 2**30))
def test_pairs_are_the_same_problems_in_another_form(
    task: Multiplication, set_name: str, length: int, seed: int
) -> None:
    plain = replace(task, interleaved=False)
    ours, theirs = (t.sample(generator(seed), 5, (length,), set_name) for t in (task, plain))
    assert torch.equal(ours.target, theirs.target)
    for source, other in zip(ours.source, theirs.source, strict=True):
        source, other = task.vocabulary.decode(source), task.vocabulary.decode(other)
        assert set(source[2::2]) == {other[-1]}
        assert apart(source) == other
        assert task.parse(other) == task.parse(source)
        assert task.solve(source) == plain.solve(other)


def test_digits_beside_that_differ_have_no_answer() -> None:
    with pytest.raises(ProblemError, match="multiplies by one digit"):
        PAIRS.solve("*1425")


def test_no_proof_takes_repeated_digits_for_one() -> None:
    assert PLAIN.local_rule() is not None
    assert PAIRS.local_rule() is None


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


@pytest.mark.parametrize("base", [2, 16, 36])
def test_sets_in_other_bases(base: int) -> None:
    task = Multiplication(max_length=3, base=base)
    highest = task.symbols[base - 1]
    carry = evaluation_strings(task, 7, CARRY, 4000)
    assert {source[-1] for source in carry if source.startswith(highest * 7)} == set(
        task.symbols[min(2, base - 1) : base]
    )
    uniform = evaluation_strings(task, 7, UNIFORM, 4000)
    assert {source[-1] for source in uniform} == set(task.symbols[:base])
    assert {source[0] for source in uniform} == set(task.symbols[1:base])
