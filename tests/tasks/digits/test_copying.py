import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abc_toolkit.calibration.sufficiency import Evidence
from abc_toolkit.errors import UserError
from abc_toolkit.tasks import Copy, Repeat, Reverse, Task
from abc_toolkit.tasks.base import UNIFORM
from abc_toolkit.tasks.digits.base import CARRY, SETS, UNEQUAL, ZEROS
from abc_toolkit.testing.digit_contract import (
    DigitTaskContract,
    Example,
    TaskCase,
    evaluation_strings,
    generator,
    refuse,
    training_strings,
)
from abc_toolkit.windows.rules import Condition, Rule, Window

WRONG = {"12+1": "the string '12+1' holds '+'", "-1": "the string '-1' holds '-'"}
DIGITS, BASE_16 = r"[0-9]+", r"[0-9a-f]+"
ALL = pytest.mark.parametrize("task", [Copy(), Reverse(), Repeat()], ids=["copy", "reverse", "repeat"])


class TestCopy(DigitTaskContract):
    cases = {  # noqa: RUF012
        "decimal": TaskCase(
            Copy(max_length=3),
            str,
            DIGITS,
            (
                Example("0042", (4,), "0042", "0042", "0042"),
                Example("7", (1,), "7", "7", "7"),
                Example("000", (3,), "000", "000", "000"),
            ),
            WRONG,
        ),
        "base 16": TaskCase(
            Copy(max_length=3, base=16), str, BASE_16, (Example("0af9", (4,), "0af9", "0af9", "0af9"),)
        ),
    }


class TestReverse(DigitTaskContract):
    cases = {  # noqa: RUF012
        "decimal": TaskCase(
            Reverse(max_length=3),
            lambda source: "".join(reversed(source)),
            DIGITS,
            (Example("0042", (4,), "0042", "2400", "2400"), Example("7", (1,), "7", "7", "7")),
            WRONG,
        ),
    }


class TestRepeat(DigitTaskContract):
    cases = {  # noqa: RUF012
        "twice": TaskCase(
            Repeat(max_length=3),
            lambda source: source + source,
            DIGITS,
            (Example("042", (3,), "042", "042042", "042042"), Example("7", (1,), "7", "77", "77")),
            WRONG,
        ),
        "three times": TaskCase(
            Repeat(max_length=3, times=3),
            lambda source: source + source + source,
            DIGITS,
            (Example("10", (2,), "10", "101010", "101010"),),
        ),
        "once": TaskCase(Repeat(max_length=3, times=1), str, DIGITS, (Example("10", (2,), "10", "10", "10"),)),
    }


@ALL
def test_sets_hold_what_they_say(task: Task) -> None:
    uniform = evaluation_strings(task, 12, UNIFORM, 400)
    assert {len(source) for source in uniform} == {12}
    assert all({source[i] for source in uniform} == set("0123456789") for i in range(12))
    carry = evaluation_strings(task, 12, CARRY, 400)
    assert sum(len(set(source)) == 1 for source in carry) > 100
    for period in range(2, 7):
        assert any(len(set(s)) > 1 and s == (s[:period] * 12)[:12] for s in carry)
    assert any(re.fullmatch(r"\d*?(?!(\d)\1)\d(\d)\2{4,}(?!\2)\d\d*", source) for source in carry)  # a run within
    zeros = evaluation_strings(task, 12, ZEROS, 400)
    assert "0" * 12 in zeros
    assert {source[0] == "0" for source in zeros} == {source[-1] == "0" for source in zeros} == {True, False}
    assert len({len(source) for source in evaluation_strings(task, 12, UNEQUAL)}) > 3


@ALL
def test_training_holds_every_kind(task: Task) -> None:
    sources = training_strings(task, (4,))
    assert sum(len(set(source)) == 1 for source in sources) > 0.03 * len(sources)
    assert sum(source[:2] == source[2:] for source in sources) > 0.05 * len(sources)
    assert sources.count("0000") > 0.01 * len(sources)
    assert len(set(sources)) > 1500


@given(source=st.text("0123456789", min_size=1, max_size=200), times=st.integers(1, 4))
def test_answers_belong_together(source: str, times: int) -> None:
    """No token is left out or added, and leading zeros stay."""
    copied, turned = Copy().solve(source), Reverse().solve(source)
    assert copied == source
    assert Reverse().solve(turned) == source
    assert all(turned[i] == source[-1 - i] for i in range(len(source)))
    assert Repeat(times=times).solve(source) == copied * times


@pytest.mark.parametrize(
    ("task", "segments", "places"),
    [
        (Copy(), ["answer"] * 3, [2, 1, 0]),
        (Reverse(), ["answer"] * 3, [0, 1, 2]),
        (Repeat(), ["copy 1"] * 3 + ["copy 2"] * 3, [2, 1, 0] * 2),
    ],
    ids=["copy", "reverse", "repeat"],
)
def test_a_prediction_has_the_place_of_the_digit_it_copies(task: Task, segments: list[str], places: list[int]) -> None:
    target = task.layout((3,)).target
    assert [target.names[i] for i in target.segment[:-1]] == segments
    assert target.coordinates["place"][:-1].tolist() == places
    assert target.coordinates["place"][-1] == (3 if places[0] == 0 else -1)
    source = task.vocabulary.decode(task.problems((3,), [torch.tensor([[5, 6, 7]])]).source[0])
    assert source == "765"
    assert task.solve(source) == "".join(source[2 - place] for place in places)


@ALL
def test_own_place_is_all_that_is_needed(task: Task) -> None:
    """With it no two problems conflict, at the end of a copy neither; with its neighbour or nothing, some do."""
    empty = Window("", 0, 1, 1, (), {})
    evidence = Evidence(task, generator(), 64, 16)
    own, below = (Rule("cross", 0, 0, "operand 1", (Condition("place", n, "place"),)) for n in (0, 1))
    assert not evidence.conflicts(empty.with_rules([own]))
    assert evidence.conflicts(empty.with_rules([below]))
    assert evidence.conflicts(empty)


@pytest.mark.parametrize("base", [2, 3, 36])
@pytest.mark.parametrize("make", [Copy, Reverse, Repeat])
def test_in_any_base(make: type[Task], base: int) -> None:
    task = make(base=base)
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"[:base]
    for set_name in SETS:
        problems = task.sample(generator(), 500, (8,), set_name)
        for source, target in zip(problems.source, problems.target, strict=True):
            assert task.vocabulary.decode(target) == task.solve(task.vocabulary.decode(source))
        assert set("".join(evaluation_strings(task, 8, set_name))) == set(digits)
    beyond = "0123456789abcdefghijklmnopqrstuvwxyz."[base]
    assert f"holds {beyond!r}" in refuse(task, f"01{beyond}")


@pytest.mark.parametrize("times", [0, -1])
def test_a_string_is_repeated_once_at_least(times: int) -> None:
    with pytest.raises(UserError, match=f"times {times}: give at least 1"):
        Repeat(times=times)
