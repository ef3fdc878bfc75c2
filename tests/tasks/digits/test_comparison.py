import itertools
from collections import Counter

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from abc_toolkit.calibration.sufficiency import Evidence
from abc_toolkit.errors import UserError
from abc_toolkit.tasks import Comparison
from abc_toolkit.tasks.base import UNIFORM
from abc_toolkit.tasks.digits.base import CARRY, SETS, UNEQUAL, ZEROS
from abc_toolkit.testing.digit_contract import (
    DigitTaskContract,
    Example,
    TaskCase,
    evaluation_strings,
    generator,
    refuse,
    significant,
    training_strings,
)
from abc_toolkit.windows.rules import Condition, Rule, Window

LONGEST = Comparison(max_length=3)
FIXED = Comparison(max_length=3, padding="fixed", width=12)
NUMBERS = st.text("0123456789", min_size=1, max_size=40)


def verdict(first: int, second: int) -> str:
    return "<" if first < second else ">" if first > second else "="


def compared(base: int, text: str) -> str:
    return verdict(*(int(part, base) for part in text.split("?")))


def decimal(text: str) -> str:
    return compared(10, text)


def split(source: str) -> tuple[str, str]:
    first, second = source.split("?")
    return first, second


def prefix(first: str, second: str) -> int:
    """How many leading digits two numbers share."""
    return next((n for n in range(len(first)) if first[n] != second[n]), len(first))


WRONG = {
    "12": "'12' is not a comparison",
    "1?2?3": "one '?'",
    "?3": "operand 1 of '?3' is empty",
    "3?": "operand 2 of '3?' is empty",
    "?": "is empty",
    "12>3": "'12>3' is not a comparison",
    "1x?2": "operand 1 of '1x?2' holds 'x'",
    "1?2x": "operand 2 of '1?2x' holds 'x'",
    "1?<2": "operand 2 of '1?<2' holds '<'",
}


class TestComparison(DigitTaskContract):
    cases = {  # noqa: RUF012
        "longest": TaskCase(
            LONGEST,
            decimal,
            r"[0-9]+\?[0-9]+",
            (
                Example("12345?12407", (5,), "12345?12407", "==<<<", "<"),
                Example("123?45", (3,), "123?045", ">>>", ">"),
                Example("99?100", (3,), "099?100", "<<<", "<"),
                Example("120?119", (3,), "120?119", "=>>", ">"),
                Example("7?7", (1,), "7?7", "=", "="),
                Example("0?00", (2,), "00?00", "==", "="),
            ),
            WRONG,
        ),
        "fixed": TaskCase(
            FIXED,
            decimal,
            r"[0-9]{1,12}\?[0-9]{1,12}",
            (Example("99?1", (2,), "000000000099?000000000001", "==========>>", ">"),),
            WRONG | {"1?1234567890123": "13 digits does not fit the fixed width of 12"},
        ),
        "base 16": TaskCase(
            Comparison(max_length=2, base=16),
            lambda text: compared(16, text),
            r"[0-9a-f]+\?[0-9a-f]+",
            (Example("a?9", (1,), "a?9", ">", ">"), Example("f?10", (2,), "0f?10", "<<", "<")),
        ),
    }


@given(first=NUMBERS, second=NUMBERS)
@example(first="0", second="000")
@example(first="10", second="9")
@example(first="1" + "0" * 30, second="9" * 30)
def test_every_token_is_the_verdict_on_the_digits_so_far(first: str, second: str) -> None:
    task = Comparison()
    source = task.parse(f"{first}?{second}")[1]
    a, b = split(source)
    target = task.solve(source)
    assert target == "".join(verdict(int(a[:n]), int(b[:n])) for n in range(1, len(a) + 1))
    digits = [torch.tensor([[int(digit) for digit in reversed(part)]]) for part in (a, b)]
    assert task.vocabulary.decode(task.problems((len(a),), digits).target[0]) == target
    turned = task.solve(f"{b}?{a}")
    assert turned == target.translate(str.maketrans("<>", "><"))


@pytest.mark.parametrize("base", [2, 3, 36])
def test_in_any_base(base: int) -> None:
    task = Comparison(base=base)
    for set_name in SETS:
        problems = task.sample(generator(), 500, (6,), set_name)
        for source, target in zip(problems.source, problems.target, strict=True):
            text = task.vocabulary.decode(source)
            assert task.vocabulary.decode(target) == task.solve(text)
            assert task.answer(task.solve(text)) == compared(base, text)
    beyond = "0123456789abcdefghijklmnopqrstuvwxyz."[base]
    assert f"operand 2 of '10?{beyond}' holds {beyond!r}" in refuse(task, f"10?{beyond}")


@pytest.mark.parametrize("task", [LONGEST, FIXED], ids=["longest", "fixed"])
def test_sets_hold_what_they_say(task: Comparison) -> None:
    def pairs(set_name: str) -> list[tuple[str, str]]:
        found = [split(source) for source in evaluation_strings(task, 12, set_name, 1000)]
        assert {verdict(int(a), int(b)) for a, b in found} >= {"<", ">"}
        return found

    assert all(significant(a) == significant(b) == 12 for a, b in pairs(UNIFORM))
    unequal = pairs(UNEQUAL)
    assert all({significant(a), significant(b)} >= {12} for a, b in unequal)
    assert len({significant(a) - significant(b) for a, b in unequal}) > 15  # either is the shorter one
    carry = pairs(CARRY)
    assert sum(a == b for a, b in carry) > 100
    places = Counter(tuple(i for i in range(12) if a[i] != b[i]) for a, b in carry)
    assert places[11,] > 100
    assert all(places[i,] > 5 for i in range(12))
    prefixes = Counter(prefix(a, b) for a, b in carry)
    assert set(prefixes) == set(range(13))
    assert any(a[:4] == b[:4] and a[4] > b[4] and a[5:] == "0" * 7 and b[5:] == "9" * 7 for a, b in carry)
    assert any(a[:4] == b[:4] and a[4] < b[4] and a[5:] == "9" * 7 and b[5:] == "0" * 7 for a, b in carry)
    zeros = pairs(ZEROS)
    assert any(int(a) == int(b) == 0 for a, b in zeros)
    assert any(int(a) == 0 < int(b) for a, b in zeros)
    assert any(int(b) == 0 < int(a) for a, b in zeros)
    assert any(a == b and int(a) for a, b in zeros)
    assert any(a[:2] == b[:2] == "00" and int(a) > int(b) > 0 for a, b in zeros)


def test_training_holds_every_kind() -> None:
    pairs = [split(source) for source in training_strings(Comparison(), (6,))]
    assert sum(a == b for a, b in pairs) > 0.02 * len(pairs)
    assert sum(a != b and a[:5] == b[:5] for a, b in pairs) > 0.03 * len(pairs)
    assert sum(significant(a) != significant(b) for a, b in pairs) > 0.1 * len(pairs)
    assert any(int(a) == int(b) == 0 for a, b in pairs)
    # What the place that decides can hold, while all before it are alike.
    first = {(a[n], b[n]) for a, b in pairs for n in [prefix(a, b)] if n not in (0, 6)}
    assert first == set(itertools.permutations("0123456789", 2))


def test_a_window_has_to_show_both_digits() -> None:
    """Each operand at the own place, and no more: the token just written is what the query holds."""
    evidence = Evidence(LONGEST, generator())
    window = Window("", 0, 1, 2, (), {})
    own = [Rule("cross", 0, i, f"operand {i + 1}", (Condition("place", 0, "place"),)) for i in range(2)]
    assert not evidence.conflicts(window.with_rules(own))
    for missing in own:
        assert evidence.conflicts(window.with_rules([rule for rule in own if rule != missing]))


def test_one_sign_between_them() -> None:
    assert refuse(LONGEST, "1?2?3").endswith("write two numbers with one '?' between them, as in 123?45")


def test_bad_settings_are_refused() -> None:
    with pytest.raises(UserError, match="base 37: give at least 2 and at most 36"):
        Comparison(base=37)
    with pytest.raises(UserError, match="padding cannot be 'none': give one of longest, fixed"):
        Comparison(padding="none")  # type: ignore[arg-type]
