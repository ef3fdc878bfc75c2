import contextlib
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abc_toolkit.models.base import prefix_of
from abc_toolkit.proof.receptive_field import CannotDecideError
from abc_toolkit.tasks import MultiOperandAddition
from abc_toolkit.tasks.base import UNIFORM
from abc_toolkit.tasks.digits.base import CARRY, SETS, UNEQUAL, ZEROS
from abc_toolkit.tasks.digits.sampling import pad
from abc_toolkit.testing.digit_contract import DigitTaskContract, Example, TaskCase, generator
from abc_toolkit.training.coverage import Coverage
from abc_toolkit.vocabulary import NUM_SPECIAL
from abc_toolkit.windows.rules import Condition, Rule
from tests import small_windows

TASK = MultiOperandAddition(max_length=3)


def total(source: str) -> int:
    return sum(map(int, source.split("+")))


class TestMultiOperandAddition(DigitTaskContract):
    cases = {  # noqa: RUF012
        "it": TaskCase(
            TASK,
            oracle=total,
            grammar="[0-9]+([+][0-9]+)*",
            examples=(
                Example("12+34+56", (2, 3), "012+034+056", "210,640,201,", "102"),
                Example("1+2", (1, 2), "01+02", "10,30,", "3"),
                Example("9+9+9+9", (1, 4), "09+09+09+09", "90,81,72,63,", "36"),
                Example("7+0+123", (2, 3), "007+000+123", "700,700,031,", "130"),
                Example("950+50", (3, 2), "0950+0050", "0590,0001,", "1000"),
                Example("12", (1, 1), "12", "21,", "12"),
            ),
            wrong={"1++2": "operand 2", "1+2+": "operand 3", "1+2*3": "'*'"},
        )
    }


def test_tokens_stand_in_a_table() -> None:
    """Of 12+34, written 012+034: a row of sums for each operand, and a comma; `EOS` begins a third row."""
    layout = TASK.layout((2, 2))
    source, target, prefix = layout.source, layout.target, layout.prefix
    assert [source.names[segment] for segment in source.segment] == [*["operand"] * 3, "operator", *["operand"] * 3]
    assert source.coordinates["row"].tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert source.coordinates["column"].tolist() == [2, 1, 0, 0, 2, 1, 0]
    row = ["sum", "sum", "sum", "comma"]
    assert [target.names[segment] for segment in target.segment] == [*row, *row, "end"]
    assert target.coordinates["row"].tolist() == [0] * 4 + [1] * 4 + [2]
    assert target.coordinates["column"].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    assert [prefix.names[segment] for segment in prefix.segment] == ["start", *row, *row]
    assert prefix.coordinates["row"].tolist() == [0] * 5 + [1] * 4
    assert prefix.coordinates["column"].tolist() == [0, 0, 1, 2, 3, 0, 1, 2, 3]


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=12))
def test_sums_are_pythons(numbers: list[int]) -> None:
    text = "+".join(map(str, numbers))
    shape, source = TASK.parse(text)
    assert TASK.parse(source) == (shape, source)
    target = TASK.solve(source)
    assert [int(row[::-1]) for row in target.split(",")[:-1]] == list(itertools.accumulate(numbers))
    assert TASK.answer(target) == str(sum(numbers))


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (2, 10), (2, 11), (1, 120)])
@pytest.mark.parametrize("set_name", SETS)
def test_rows_do_not_overflow(shape: tuple[int, int], set_name: str) -> None:
    problems = TASK.sample(generator(), 50, shape, set_name)
    for source, target in zip(problems.source, problems.target, strict=True):
        text = TASK.vocabulary.decode(source)
        assert TASK.answer(TASK.vocabulary.decode(target)) == str(total(text))
        assert TASK.parse(text) == (shape, text)


def test_numbers_are_those_that_problems_were_made_of() -> None:
    operands = TASK.draw(generator(), 20, (3, 4), UNIFORM)
    numbers = TASK.numbers(TASK.problems((3, 4), operands))
    assert len(numbers) == 4
    for drawn, found in zip(operands, numbers, strict=True):
        assert torch.equal(pad(drawn, 4), found)


@pytest.mark.parametrize("shape", TASK.training_shapes())
def test_training_fills_the_width_where_numbers_stay_short_enough(shape: tuple[int, int]) -> None:
    problems = TASK.sample(generator(), 2000, shape)
    higher = torch.stack([digits[:, shape[0] :] for digits in TASK.numbers(problems)])
    filled = (higher > 0).flatten(2).any(dim=2).any(dim=0)
    if shape[0] == TASK.max_length:
        assert not filled.any()
    else:
        assert 20 < filled.sum() < 600
        assert (higher.sum(dim=0) >= 9).any()
    for source, target in zip(problems.source[filled], problems.target[filled], strict=True):
        text = TASK.vocabulary.decode(source)
        assert TASK.answer(TASK.vocabulary.decode(target)) == str(total(text))
        assert TASK.parse(text) == (shape, text)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (1, 3)])
def test_problems_are_counted(shape: tuple[int, int]) -> None:
    numbers = itertools.product(range(100), repeat=shape[1])
    assert TASK.num_problems(shape) == sum(sum(operands) < 100 for operands in numbers)


def test_sets_hold_what_they_say() -> None:
    def drawn(name: str) -> list[list[str]]:
        problems = TASK.sample(generator(), 500, (5, 4), name)
        return [[part[1:] for part in TASK.vocabulary.decode(source).split("+")] for source in problems.source]

    carry = drawn(CARRY)
    assert any(set(parts) == {"99999"} for parts in carry)
    assert any(parts[0] == "99999" and set(parts[1:]) == {"00000", "00001"} for parts in carry)
    assert any(part[0] == part[1] == "0" != part[-1] for parts in drawn(ZEROS) for part in parts)
    lengths = [{len(part.lstrip("0")) for part in parts} for parts in drawn(UNEQUAL)]
    assert all(5 in own for own in lengths)
    assert sum(len(own) > 1 for own in lengths) > 400
    for name in SETS:
        assert len({tuple(parts) for parts in drawn(name)}) > 20


OWN = (Condition("row", 0, "row"), Condition("column", 0, "column"))
BEFORE = (Condition("row", 0, "row"), Condition("column", 1, "column"))
ABOVE = (Condition("row", 1, "row"), Condition("column", 0, "column"))
ABOVE_BEFORE = (Condition("row", 1, "row"), Condition("column", 1, "column"))
WINDOW = (
    Rule("cross", 0, 0, "operand", OWN),
    Rule("cross", 0, 1, "operand", BEFORE),
    Rule("decoder", 0, 0, "sum", ABOVE),
    Rule("decoder", 0, 1, "sum", ABOVE_BEFORE),
)


def test_every_assignment_of_a_table_is_gone_through() -> None:
    """Two digits and the two one place below, the sum there: of its two carries each digit of the three allows one."""
    coverage = Coverage(TASK, small_windows.make(TASK, WINDOW))
    largest = max(coverage.kinds, key=lambda kind: len(kind.assignments))
    assert len(largest.assignments) == 100 * 100 * 2
    checked = 0
    for kind in coverage.kinds:
        for assignment in kind.assignments[:: max(1, len(kind.assignments) // 5)]:
            tokens, required = kind.enumeration.tokens(assignment[None])
            for enumeration in kind.predictions_with(assignment):
                with contextlib.suppress(CannotDecideError):
                    problem = enumeration.problem(assignment)
                    text = TASK.vocabulary.decode(problem.source[0])
                    assert TASK.parse(text) == (problem.shape, text)
                    assert TASK.vocabulary.decode(problem.target[0]) == TASK.solve(text)
                    strings = {"source": problem.source[0], "prefix": prefix_of(problem.target)[0]}
                    found = [int(strings[string][number]) for string, number in enumeration.field.leaves]
                    assert found == tokens[0].tolist()
                    assert problem.target[0, enumeration.field.query] == required
                    checked += 1
                    break
    assert checked > 10


def test_a_row_that_is_not_the_one_above_may_hold_anything() -> None:
    """The rule does not name it, so every symbol is tried there, whatever the others are."""
    conditions = (Condition("row", 2, "row"), Condition("column", 0, "column"))
    counts = []
    for rules in (WINDOW, (*WINDOW, Rule("decoder", 0, 1, "sum", conditions))):
        parts = [part for kind in Coverage(TASK, small_windows.make(TASK, rules)).kinds for part in kind.parts]
        counts.append({(own.shape, own.field.query): len(assignments) for own, assignments in parts})
    assert counts[0].keys() == counts[1].keys()
    grown = {key for key, count in counts[1].items() if count != counts[0][key]}
    assert all(counts[1][key] == len(TASK.symbols) * counts[0][key] for key in grown)
    rows = {key: int(TASK.layout(key[0]).target.coordinates["row"][key[1]]) for key in counts[0]}
    assert {rows[key] for key in grown} == {2, 3}  # at the end the row is that after the last
    assert {rows[key] for key in counts[0].keys() - grown} >= {0, 1}


def test_a_row_that_overflows_is_no_assignment() -> None:
    """At a comma the highest digits of operand and row above are seen, which carry nothing."""
    coverage = Coverage(TASK, small_windows.make(TASK, WINDOW))
    seen = set()
    for kind in coverage.kinds:
        segment, asked = kind.enumeration.field.predicted
        if segment == "comma" and asked["row"]:
            tokens, _ = kind.enumeration.tokens(kind.assignments)
            names = [name for name, _ in kind.enumeration.field.tokens]
            rows = [token["row"] for _, token in kind.enumeration.field.tokens]
            operand = tokens[:, names.index("operand")] - NUM_SPECIAL
            above = tokens[:, [*zip(names, rows, strict=True)].index(("sum", asked["row"] - 1))] - NUM_SPECIAL
            seen |= set(zip(operand.tolist(), above.tolist(), strict=True))
    assert seen == {(a, b) for a in range(10) for b in range(10 - a)}
