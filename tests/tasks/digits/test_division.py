import re
from collections import Counter

import numpy as np
import pytest

from abc_toolkit.calibration.sufficiency import Evidence
from abc_toolkit.errors import UserError
from abc_toolkit.proof.meaning import HELD_TO, compare_with_oracle
from abc_toolkit.tasks import Division
from abc_toolkit.tasks.base import TRAINING, UNIFORM
from abc_toolkit.tasks.digits.base import CARRY, UNEQUAL, ZEROS
from abc_toolkit.testing.digit_contract import (
    DigitTaskContract,
    Example,
    TaskCase,
    evaluation_strings,
    generator,
    training_strings,
)
from tests import small_windows

PLAIN = Division(max_length=3)


def divided(text: str) -> str:
    number, divisor = map(int, text.split("/"))
    return f"{number // divisor} r {number % divisor}"


def divided_in(base: int):
    """The same in another base, by NumPy's way to write numbers."""

    def divided(text: str) -> str:
        number, divisor = (int(part, base) for part in text.split("/"))
        return " r ".join(np.base_repr(part, base).lower() for part in divmod(number, divisor))

    return divided


class TestDivision(DigitTaskContract):
    cases = {  # noqa: RUF012
        "base 10": TaskCase(
            PLAIN,
            divided,
            r"[0-9]+/[1-9]",
            (
                Example("1234/7", (4,), "1234/7", "01157462", "176 r 2"),
                Example("999/9", (3,), "999/9", "101010", "111 r 0"),
                Example("100/7", (3,), "100/7", "011342", "14 r 2"),
                Example("5/8", (1,), "5/8", "05", "0 r 5"),
                Example("0/1", (1,), "0/1", "00", "0 r 0"),
                Example("007/2", (3,), "007/2", "000031", "3 r 1"),
            ),
            {
                "12": "'12' is not a division",
                "1/2/3": "'1/2/3' is not a division",
                "/3": "operand 1 of '/3' is empty",
                "3/": "operand 2 of '3/' is empty",
                "12/0": "'12/0' divides by 0: the divisor is a digit from 1",
                "12/34": "operand 2 of '12/34' has 2 digits: this task divides by one digit",
                "12*3": "'12*3' is not a division",
                "1/x": "operand 2 of '1/x' holds 'x'",
            },
        ),
        "base 2": TaskCase(
            Division(max_length=3, base=2),
            divided_in(2),
            r"[01]+/1",
            (Example("101/1", (3,), "101/1", "100010", "101 r 0"),),
            {"1/2": "operand 2 of '1/2' holds '2', which is not one of the digits 01", "1/0": "divides by 0"},
        ),
        "base 16": TaskCase(
            Division(max_length=3, base=16),
            divided_in(16),
            r"[0-9a-f]+/[1-9a-f]",
            (Example("abc/d", (3,), "abc/d", "0ad235", "d3 r 5"), Example("ff/f", (2,), "ff/f", "1010", "11 r 0")),
            {"1g/2": "operand 1 of '1g/2' holds 'g'", "1/A": "operand 2 of '1/A' holds 'A'"},
        ),
        "base 36": TaskCase(
            Division(max_length=2, base=36),
            divided_in(36),
            r"[0-9a-z]+/[1-9a-z]",
            (Example("zz/z", (2,), "zz/z", "1010", "11 r 0"), Example("y/z", (1,), "y/z", "0y", "0 r y")),
            {"z/0": "divides by 0"},
        ),
    }

    def test_malformed_targets_are_not_repaired(self, case: TaskCase) -> None:
        good = case.examples[0].target
        for target in ("", "^", good + "^", "^" + good, good[1:], good + "/", good + "^^"):
            assert case.task.answer(target) == target


@pytest.mark.parametrize("settings", [{"max_length": 0}, {"base": 1}, {"base": 37}])
def test_settings_that_make_no_task_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(UserError) as error:
        Division(**settings)
    (name, value) = next(iter(settings.items()))
    assert str(error.value).startswith(f"{name} {value}: give at least")


def test_layout_is_in_turn_from_the_most_significant_digit_down() -> None:
    target = PLAIN.layout((2,)).target
    assert [target.names[i] for i in target.segment] == ["quotient", "remainder"] * 2 + ["end"]
    assert target.coordinates["index"].tolist() == [0, 0, 1, 1, 2]
    assert target.coordinates["place"].tolist() == [1, 1, 0, 0, -1]


@pytest.mark.parametrize("base", [3, 36])
@pytest.mark.parametrize("set_name", [TRAINING, UNIFORM, UNEQUAL, CARRY, ZEROS])
def test_every_divisor_is_as_likely_and_none_is_zero(set_name: str, base: int) -> None:
    task = Division(base=base)
    sources = (
        training_strings(task, (6,), 20_000) if set_name == TRAINING else evaluation_strings(task, 7, set_name, 20_000)
    )
    counts = Counter(source[-1] for source in sources)
    assert set(counts) == set(task.symbols[1:base])
    assert max(counts.values()) < 1.4 * min(counts.values())


def test_sets_hold_what_they_say() -> None:
    def pairs(set_name: str) -> list[tuple[str, int]]:
        return [(source[:-2], int(source[-1])) for source in evaluation_strings(PLAIN, 7, set_name, 600)]

    assert all(re.fullmatch(r"[1-9]\d{6}", number) for number, _ in pairs(UNIFORM))
    assert len({len(number) for number, _ in pairs(UNEQUAL)}) > 3
    carry = pairs(CARRY)
    assert {divisor for number, divisor in carry if number == "9999999"} == set(range(1, 10))
    assert any(re.fullmatch(r"([1-8])\1{6}", number) for number, _ in carry)
    assert any(re.search(r"(\d)\1{4}", number) and len(set(number)) > 2 for number, _ in carry)
    varied = [(int(number), divisor) for number, divisor in carry if len(set(number)) > 4 and divisor > 5]
    assert sum(number % divisor == 0 for number, divisor in varied) > 0.4 * len(varied)
    zeros = [number for number, _ in pairs(ZEROS)]
    for pattern in (r"0{7}", r"0{3,}[1-9]\d*", r"[1-9]\d*0{3,}", r"\d*[1-9]00+[1-9]\d*"):
        assert any(re.fullmatch(pattern, number) for number in zeros), pattern


def test_training_holds_every_kind() -> None:
    sources = training_strings(PLAIN, (3,))
    assert {f"{number}/{divisor}" for number in ("000", "999") for divisor in range(1, 10)} < set(sources)
    assert sum(source[0] == "0" for source in sources) > 0.08 * len(sources)
    exact = [source for source in sources if source.endswith(("/7", "/9")) and divided(source).endswith(" r 0")]
    assert len(exact) > 0.03 * len(sources)


@pytest.mark.parametrize("base", [2, 10, 16])
def test_the_rule_is_held_to_problems_with_a_divisor(base: int) -> None:
    task = Division(max_length=2, base=base)
    assert compare_with_oracle(task, small_windows.rule_of(task)) >= (HELD_TO, 20)


def test_each_line_of_a_small_window_is_needed() -> None:
    task, (*rules, above) = small_windows.RULES["division"]
    assert above.key_segment == "remainder"
    # The remainder before is what was written last where a quotient digit follows, and nothing else needs it: a
    # remainder is the digit less the divisor's multiple, modulo the base.
    evidence = Evidence(task, generator(), num_problems=300)
    assert not evidence.conflicts(small_windows.window(task, rules))
    for rule in rules:
        fewer = [other for other in rules if other != rule]
        assert evidence.conflicts(small_windows.window(task, fewer)), rule.describe()


@pytest.mark.parametrize("set_name", [UNIFORM, CARRY])
def test_problems_of_200000_digits(set_name: str) -> None:
    task = Division()
    problems = task.sample(generator(), 2, (200_000,), set_name)
    for source, target in zip(problems.source, problems.target, strict=True):
        same = task.solve(task.vocabulary.decode(source)) == task.vocabulary.decode(target)
        assert same


def test_oracle_at_a_million_digits() -> None:
    task, length = Division(), 10**6
    same = task.answer(task.solve(task.parse(f"1{'0' * length}/9")[1])) == f"{'1' * length} r 1"
    assert same
