import itertools
import re
from collections import Counter

import numpy as np
import pytest
import torch

from abc_toolkit.calibration.sufficiency import Evidence
from abc_toolkit.errors import UserError
from abc_toolkit.tasks import Subtraction
from abc_toolkit.tasks.base import TRAINING, UNIFORM
from abc_toolkit.tasks.digits.base import CARRY, UNEQUAL, ZEROS
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
from tests import small_windows

PLAIN = Subtraction(max_length=3)


def difference(text: str) -> int:
    first, second = text.split("-")
    return int(first) - int(second)


def difference_in(base: int):
    """The difference in another base, by NumPy's way to write it."""

    def difference(text: str) -> str:
        first, second = text.split("-")
        return np.base_repr(int(first, base) - int(second, base), base).lower()

    return difference


class TestSubtraction(DigitTaskContract):
    cases = {  # noqa: RUF012
        "base 10": TaskCase(
            PLAIN,
            difference,
            r"[0-9]+-[0-9]+",
            (
                Example("45-123", (2, 3), "045-123", ">><870", "-78"),
                Example("123-45", (3, 2), "123-045", "<<>870", "78"),
                Example("1000-1", (4, 1), "1000-0001", "<<<>9990", "999"),
                Example("1-1000", (1, 4), "0001-1000", ">>><9990", "-999"),
                Example("77-77", (2, 2), "77-77", "==00", "0"),
                Example("0-0", (1, 1), "0-0", "=0", "0"),
                Example("0-7", (1, 1), "0-7", "<7", "-7"),
                Example("120-110", (3, 3), "120-110", "=>>010", "10"),
                Example("007-1", (3, 1), "007-001", ">>>600", "6"),
            ),
            {
                "12": "'12' is not a subtraction",
                "1-2-3": "one '-'",
                "-3": "operand 1 of '-3' is empty",
                "3-": "operand 2 of '3-' is empty",
                "-": "is empty",
                "-5-3": "'-5-3' is not a subtraction",
                "12+3": "'12+3' is not a subtraction",
                "1x-2": "operand 1 of '1x-2' holds 'x'",
                "1-2<": "operand 2 of '1-2<' holds '<'",
            },
        ),
        "base 2": TaskCase(
            Subtraction(max_length=3, base=2),
            difference_in(2),
            r"[01]+-[01]+",
            (Example("1-110", (1, 3), "001-110", "><<101", "-101"), Example("10-1", (2, 1), "10-01", "<>10", "1")),
            {"12-1": "operand 1 of '12-1' holds '2', which is not one of the digits 01"},
        ),
        "base 16": TaskCase(
            Subtraction(max_length=3, base=16),
            difference_in(16),
            r"[0-9a-f]+-[0-9a-f]+",
            (Example("a0-ff", (2, 2), "a0-ff", "<<f5", "-5f"), Example("100-1", (3, 1), "100-001", "<<>ff0", "ff")),
            {"1g-1": "operand 1 of '1g-1' holds 'g'", "1-A": "operand 2 of '1-A' holds 'A'"},
        ),
    }

    def test_malformed_targets_are_not_repaired(self, case: TaskCase) -> None:
        good = case.examples[0].target
        for target in (
            "",
            "^",
            good + "^",
            good[:-1],
            good[1:],
            good[::-1],
            "0" * len(good),
            "<" * len(good),
            good + "-",
        ):
            assert case.task.answer(target) == target
        assert case.task.answer("<0") == "-0"  # which no right target says


@pytest.mark.parametrize("settings", [{"max_length": 0}, {"base": 1}, {"base": 37}])
def test_settings_that_make_no_task_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(UserError) as error:
        Subtraction(**settings)
    (name, value) = next(iter(settings.items()))
    assert str(error.value).startswith(f"{name} {value}: give at least")


def test_layout() -> None:
    target = PLAIN.layout((2, 3)).target
    assert [target.names[i] for i in target.segment] == ["order"] * 3 + ["magnitude"] * 3 + ["end"]
    assert target.coordinates["place"].tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert target.coordinates["index"].tolist() == [2, 1, 0, 2, 1, 0, -1]


@pytest.mark.parametrize("set_name", [TRAINING, UNIFORM, UNEQUAL, CARRY, ZEROS])
def test_answers_are_as_often_negative_as_positive(set_name: str) -> None:
    task = Subtraction()
    strings = training_strings(task, (6, 6)) if set_name == TRAINING else evaluation_strings(task, 7, set_name, 4000)
    signs = Counter(str(np.sign(difference(source))) for source in strings)
    assert 0.9 < signs["-1"] / signs["1"] < 1.1
    assert (signs["0"] > 0.2 * len(strings)) == (set_name == CARRY)


def test_unequal_operands_differ_in_length() -> None:
    pairs = [tuple(map(significant, source.split("-"))) for source in evaluation_strings(PLAIN, 7, UNEQUAL)]
    assert all(max(pair) == 7 > min(pair) for pair in pairs)
    assert {pair.index(7) for pair in pairs} == {0, 1}
    assert {min(pair) for pair in pairs} == set(range(1, 7))


@pytest.mark.parametrize("base", [2, 10, 16])
def test_long_runs_of_borrows(base: int) -> None:
    task, length = Subtraction(max_length=3, base=base), 8
    highest = task.symbols[base - 1]
    sources = evaluation_strings(task, length, CARRY, 600)
    thousand, one = "1" + "0" * (length - 1), "1".zfill(length)
    pairs = {(thousand, one)}
    pairs |= {
        (task.symbols[d] + "0" * (length - 1), task.symbols[d - 1] + highest * (length - 1)) for d in range(1, base)
    }
    wanted = {f"{a}-{b}" for pair in pairs for a, b in (pair, pair[::-1])}
    assert wanted < set(sources)
    parts = [source.split("-") for source in sources]
    assert sum(a == b for a, b in parts) > 0.2 * len(parts)
    # Digits that are alike pass on what is borrowed below them, inside the numbers and up to their ends.
    alike = ["".join("=" if x == y else "." for x, y in zip(a, b, strict=True)) for a, b in parts]
    assert any(re.fullmatch(r".*\.={5,}\..*", text) for text in alike)
    assert any(re.fullmatch(r"={5,}\..*", text) for text in alike)
    assert any(re.fullmatch(r".*\.={5,}", text) for text in alike)


def test_zeros_lead_trail_and_fill() -> None:
    sources = evaluation_strings(PLAIN, 7, ZEROS, 600)
    assert "0000000-0000000" in sources
    for position in (0, 1):
        parts = [source.split("-")[position] for source in sources]
        for pattern in (r"0{7}", r"0{3,}[1-9]\d*", r"[1-9]\d*0{3,}", r"\d*[1-9]00+[1-9]\d*"):
            assert any(re.fullmatch(pattern, part) for part in parts), pattern
        assert any(source.split("-")[1 - position] != "0000000" == source.split("-")[position] for source in sources)


def test_training_holds_every_kind() -> None:
    sources = training_strings(PLAIN, (3, 3))
    share = Counter()
    for source in sources:
        first, second = source.split("-")
        share["leading zeros"] += first[0] == "0"
        share["unequal"] += significant(first) != significant(second)
        share["zero"] += "000" in (first, second)
        share["equal"] += first == second
        share["borrowed throughout"] += {first, second} == {"100", "001"}
    least = {"leading zeros": 0.08, "unequal": 0.2, "zero": 0.02, "equal": 0.03, "borrowed throughout": 0.01}
    assert {name: count for name, count in share.items() if count < least[name] * len(sources)} == {}


@pytest.mark.parametrize("set_name", [UNEQUAL, CARRY, ZEROS])
def test_operands_are_drawn_at_their_own_lengths(set_name: str) -> None:
    first, second = PLAIN.draw(generator(), 5, (2, 4), set_name)
    assert (first.shape, second.shape) == ((5, 2), (5, 4))


def test_of_the_runs_of_the_rule_exactly_one_ends_well_and_it_is_right() -> None:
    task = Subtraction(max_length=3, base=3)
    rule = small_windows.rule_of(task)
    for digits in itertools.product(range(3), repeat=6):
        source = "{}{}{}-{}{}{}".format(*digits)
        written = []
        for start in rule.starts:
            state, orders, magnitude = torch.tensor([start]), "", ""
            for pair in zip(digits[2::-1], digits[:2:-1], strict=True):
                state, (order, digit) = rule.step(state, [torch.tensor([d]) for d in pair], [])
                orders, magnitude = orders + task.symbols[int(order)], magnitude + task.symbols[int(digit)]
            if rule.ends_well(state):
                written.append(orders + magnitude)
        assert written == [task.solve(source)]


def test_each_line_of_a_small_window_is_needed() -> None:
    task, rules = small_windows.RULES["subtraction"]
    evidence = Evidence(task, generator(), num_problems=300)
    assert not evidence.conflicts(small_windows.window(task, rules))
    for rule in rules:
        fewer = [other for other in rules if other != rule]
        assert evidence.conflicts(small_windows.window(task, fewer)), rule.describe()


@pytest.mark.parametrize("set_name", [UNIFORM, CARRY])
def test_problems_of_200000_digits(set_name: str) -> None:
    task = Subtraction()
    problems = task.sample(generator(), 2, (200_000, 200_000), set_name)
    for source, target in zip(problems.source, problems.target, strict=True):
        same = task.solve(task.vocabulary.decode(source)) == task.vocabulary.decode(target)
        assert same


def test_oracle_at_a_million_digits() -> None:
    task, length = Subtraction(), 10**6
    same = task.answer(task.solve(task.parse(f"1-1{'0' * length}")[1])) == "-" + "9" * length
    assert same
    assert len(refuse(task, f"1-{'1' * length}x")) < 200
