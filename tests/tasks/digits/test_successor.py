import re
from collections import Counter

import pytest

from abc_toolkit.tasks import Successor
from abc_toolkit.tasks.base import UNIFORM
from abc_toolkit.tasks.digits.base import CARRY, UNEQUAL, ZEROS
from abc_toolkit.testing.digit_contract import Example, NumberContract, TaskCase, evaluation_strings, training_strings

PLAIN = Successor(max_length=3)
FIXED = Successor(max_length=3, padding="fixed", width=12)
WRONG = {"12+1": "holds '+'", "-1": "the number '-1' holds '-'"}


class TestSuccessor(NumberContract):
    cases = {  # noqa: RUF012
        "longest": TaskCase(
            PLAIN,
            lambda source: int(source) + 1,
            r"[0-9]+",
            (
                Example("1299", (4,), "1299", "00310", "1300"),
                Example("999", (3,), "999", "0001", "1000"),
                Example("0", (1,), "0", "10", "1"),
                Example("0099", (4,), "0099", "00100", "100"),
            ),
            WRONG,
        ),
        "none": TaskCase(
            Successor(max_length=3, padding="none"),
            lambda source: int(source) + 1,
            r"[0-9]+",
            (Example("9", (1,), "9", "01", "10"),),
            WRONG,
        ),
        "fixed": TaskCase(
            FIXED,
            lambda source: int(source) + 1,
            r"[0-9]{1,12}",
            (Example("99", (2,), "000000000099", "0010000000000", "100"),),
            WRONG | {"1234567890123": "13 digits does not fit the fixed width of 12"},
        ),
    }


@pytest.mark.parametrize("task", [PLAIN, FIXED], ids=["longest", "fixed"])
def test_sets_hold_what_they_say(task: Successor) -> None:
    def strings(set_name: str) -> list[str]:
        return [source[-7:] for source in evaluation_strings(task, 7, set_name, 400)]

    assert all(re.fullmatch(r"[1-9]\d{6}", source) for source in strings(UNIFORM))
    carry = strings(CARRY)
    assert carry.count("9999999") > 100
    nines = Counter(len(source) - len(source.rstrip("9")) for source in carry)
    assert set(nines) == set(range(8))
    assert sum(nines[n] for n in range(3, 7)) > 0.1 * len(carry)
    assert any(re.search(r"[0-8]9{3,}[0-8]", source) for source in carry)  # nines that no carry reaches
    zeros = strings(ZEROS)
    assert "0000000" in zeros
    for pattern in (r"0{3,}[1-9]\d*", r"[1-9]\d*0{3,}", r"\d*[1-9]00+[1-9]\d*"):
        assert any(re.fullmatch(pattern, source) for source in zeros)
    assert len({len(source.lstrip("0")) for source in evaluation_strings(task, 7, UNEQUAL)}) > 3


def test_training_holds_every_kind() -> None:
    sources = training_strings(PLAIN, (3,))
    assert {"000", "999", "099", "100"} < set(sources)
    assert sources.count("999") > 0.03 * len(sources)
    assert sum(source[0] == "0" for source in sources) > 0.08 * len(sources)


@pytest.mark.parametrize(("padding", "width"), [("longest", 5), ("fixed", 30)])
def test_training_on_the_numbers_below_a_limit(padding: str, width: int) -> None:
    task = Successor(max_length=5, padding=padding, width=30, numbers_below=1050)
    assert task.training_shapes() == ((5,),)
    sources = training_strings(task, (5,), 20_000)
    assert {len(source) for source in sources} == {width}
    assert set(map(int, sources)) == set(range(1050))
