import itertools
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abc_toolkit.calibration.sufficiency import Evidence
from abc_toolkit.errors import UserError
from abc_toolkit.models.base import predict
from abc_toolkit.tasks import Addition, Multiplication, ProblemError
from abc_toolkit.tasks.base import TRAINING, UNIFORM
from abc_toolkit.tasks.digits.base import CARRY, SETS, UNEQUAL, ZEROS
from abc_toolkit.testing.digit_contract import (
    Example,
    NumberContract,
    TaskCase,
    evaluation_strings,
    generator,
    refuse,
    significant,
    training_strings,
)
from abc_toolkit.windows.rules import Window
from tests import small_windows

LONGEST = Addition(max_length=3)
NONE = Addition(max_length=3, padding="none")
FIXED = Addition(max_length=3, padding="fixed", width=12)
ALL = pytest.mark.parametrize("task", [LONGEST, NONE, FIXED], ids=["longest", "none", "fixed"])
PAIRS = Addition(max_length=3, interleaved=True)
FIXED_PAIRS = Addition(max_length=3, padding="fixed", width=12, interleaved=True)


def apart(text: str) -> str:
    """A sum as a person writes it, of one whose digits may be in turn."""
    pairs = re.findall(r"(\d)(\d)", text[1:])
    return "+".join("".join(digits) for digits in zip(*pairs, strict=True)) if text.startswith("+") else text


def total(text: str) -> int:
    first, second = apart(text).split("+")  # a zero in front changes nothing
    return int(first) + int(second)


def total_in(base: int) -> Callable[[str], str]:
    """The sum in another base, by NumPy's way to write it."""

    def total(text: str) -> str:
        first, second = text.split("+")
        return np.base_repr(int(first, base) + int(second, base), base).lower()

    return total


def sums(source: str) -> list[int]:
    """Sum of the two digits of every place, least significant first."""
    first, second = (part[::-1] for part in source.split("+"))
    digits = itertools.zip_longest(first, second, fillvalue="0")
    return [int(a) + int(b) for a, b in digits]


def carry_chain(source: str) -> int:
    """Most places in a row that pass a carry on."""
    longest = chain = carry = 0
    for digits in sums(source):
        carry = int(digits + carry > 9)
        chain = (chain + 1) * carry
        longest = max(longest, chain)
    return longest


WRONG = {
    "12": "'12' is not an addition",
    "1+2+3": "one '+'",
    "+3": "operand 1 of '+3' is empty",
    "3+": "operand 2 of '3+' is empty",
    "+": "is empty",
    "12*3": "'12*3' is not an addition",
    "1x+2": "operand 1 of '1x+2' holds 'x'",
    "1+2x": "operand 2 of '1+2x' holds 'x'",
}


class TestAddition(NumberContract):
    cases = {  # noqa: RUF012
        "longest": TaskCase(
            LONGEST,
            total,
            r"[0-9]+\+[0-9]+",
            (
                Example("123+989", (3, 3), "123+989", "2111", "1112"),
                Example("123+456", (3, 3), "123+456", "9750", "579"),
                Example("9+91", (1, 2), "09+91", "001", "100"),
                Example("0+0", (1, 1), "0+0", "00", "0"),
                Example("007+1", (3, 1), "007+001", "8000", "8"),
            ),
            WRONG,
        ),
        "none": TaskCase(
            NONE,
            total,
            r"[0-9]+\+[0-9]+",
            (
                Example("123+45", (3, 2), "123+45", "8610", "168"),
                Example("9+991", (1, 3), "9+991", "0001", "1000"),
            ),
            WRONG,
        ),
        "fixed": TaskCase(
            FIXED,
            total,
            r"[0-9]{1,12}\+[0-9]{1,12}",
            (Example("99+1", (2, 1), "000000000099+000000000001", "0010000000000", "100"),),
            WRONG | {"1234567890123+1": "13 digits does not fit the fixed width of 12"},
        ),
        "ended by the layout": TaskCase(
            Addition(max_length=3, end="layout"),
            total,
            r"[0-9]+\+[0-9]+",
            (Example("123+989", (3, 3), "123+989", "2111", "1112"), Example("9+91", (1, 2), "09+91", "001", "100")),
            WRONG,
        ),
        "a leading zero": TaskCase(
            Addition(max_length=3, end="layout", leading_zero=True),
            total,
            r"[0-9]+\+[0-9]+",
            (
                Example("123+989", (3, 3), "0123+989", "2111", "1112"),
                Example("0123+989", (3, 3), "0123+989", "2111", "1112"),
                Example("0123+98", (4, 2), "00123+0098", "12200", "221"),
                Example("00+0", (1, 1), "00+0", "00", "0"),
            ),
            WRONG,
        ),
        "a leading zero, unequal": TaskCase(
            Addition(max_length=3, padding="none", end="layout", leading_zero=True),
            total,
            r"[0-9]+\+[0-9]+",
            (
                Example("123+45", (3, 2), "0123+45", "8610", "168"),
                Example("0123+45", (3, 2), "0123+45", "8610", "168"),
                Example("9+991", (1, 3), "09+991", "0001", "1000"),
                Example("0+5", (1, 1), "00+5", "50", "5"),
            ),
            WRONG,
        ),
        "interleaved": TaskCase(
            PAIRS,
            total,
            r"[0-9]+\+[0-9]+|\+([0-9]{2})+",
            (
                Example("123+989", (3, 3), "+192839", "2111", "1112"),
                Example("+192839", (3, 3), "+192839", "2111", "1112"),
                Example("9+91", (1, 2), "+0991", "001", "100"),
                Example("0+0", (1, 1), "+00", "00", "0"),
                Example("007+1", (3, 1), "+000071", "8000", "8"),
                Example("+10", (1, 1), "+10", "10", "1"),
            ),
            WRONG
            | {
                "+3": "operand 2 of '+3' is empty",
                "+345": "'+345' has an odd number of digits",
                "+3x": "operand 2 of '+3x' holds 'x'",
                "+x3": "operand 1 of '+x3' holds 'x'",
                "+34+": "operand 1 of '+34+' holds '+'",
                "12+34+": "one '+'",
            },
        ),
        "interleaved, fixed": TaskCase(
            FIXED_PAIRS,
            total,
            r"[0-9]{1,12}\+[0-9]{1,12}|\+([0-9]{2}){1,12}",
            (
                Example("99+1", (2, 1), f"+{'00' * 10}9091", "0010000000000", "100"),
                Example("+9091", (2, 2), f"+{'00' * 10}9091", "0010000000000", "100"),
            ),
            WRONG
            | {
                "+3": "is empty",
                f"+{'12' * 13}": "13 digits does not fit",
                "1234567890123+1": "13 digits does not fit",
            },
        ),
        "base 2": TaskCase(
            Addition(max_length=3, base=2),
            total_in(2),
            r"[01]+\+[01]+",
            (
                Example("101+11", (3, 2), "101+011", "0001", "1000"),
                Example("10+1", (2, 1), "10+01", "110", "11"),
                Example("0+0", (1, 1), "0+0", "00", "0"),
            ),
            {"12+1": "operand 1 of '12+1' holds '2', which is not one of the digits 01", "1+": "operand 2 of '1+'"},
        ),
        "base 16": TaskCase(
            Addition(max_length=3, base=16),
            total_in(16),
            r"[0-9a-f]+\+[0-9a-f]+",
            (Example("ff+1", (2, 1), "ff+01", "001", "100"), Example("9a+b", (2, 1), "9a+0b", "5a0", "a5")),
            {"1g+1": "operand 1 of '1g+1' holds 'g'", "F+1": "operand 1 of 'F+1' holds 'F'", "+f": "is empty"},
        ),
        "base 36": TaskCase(
            Addition(max_length=2, base=36),
            total_in(36),
            r"[0-9a-z]+\+[0-9a-z]+",
            (Example("zz+1", (2, 1), "zz+01", "001", "100"), Example("x+2", (1, 1), "x+2", "z0", "z")),
            {"1A+1": "operand 1 of '1A+1' holds 'A'", "z*1": "'z*1' is not an addition"},
        ),
    }


def test_layout_of_unequal_operands() -> None:
    source = NONE.layout((3, 2)).source
    assert source.segment.tolist() == [0, 0, 0, 1, 2, 2]
    assert source.names[:3] == ("operand 1", "operator", "operand 2")
    assert source.coordinates["place"].tolist() == [2, 1, 0, 0, 1, 0]
    assert len(NONE.layout((3, 2)).target) == 5


@ALL
@pytest.mark.parametrize("length", [1, 2, 7])
def test_uniform_operands_have_the_length(task: Addition, length: int) -> None:
    sources = evaluation_strings(task, length, UNIFORM, 1500)
    parts = [part.lstrip("0").zfill(1) for source in sources for part in source.split("+")]
    assert {len(part) for part in parts} == {length}
    for place in range(length):
        counts = Counter(part[place] for part in parts)
        digits = "123456789" if length > 1 and place == 0 else "0123456789"
        assert set(counts) == set(digits)
        assert min(counts.values()) > 0.7 * len(parts) / len(digits)


@ALL
def test_unequal_operands_differ_in_length(task: Addition) -> None:
    pairs = [tuple(map(significant, s.split("+"))) for s in evaluation_strings(task, 7, UNEQUAL)]
    assert all(max(pair) == 7 > min(pair) for pair in pairs)
    assert {pair.index(7) for pair in pairs} == {0, 1}
    assert len({min(pair) for pair in pairs}) > 2
    if task.padding == "none":
        assert all(len({len(part) for part in s.split("+")}) == 2 for s in evaluation_strings(task, 7, UNEQUAL))


@ALL
def test_carry_chains_are_long(task: Addition) -> None:
    def numbers(source: str) -> str:
        return "+".join(part.lstrip("0") for part in source.split("+"))

    length = 12
    sources = evaluation_strings(task, length, CARRY, 400)
    chains = [carry_chain(source) for source in sources]
    assert sum(chain == length for chain in chains) > 0.4 * len(chains)
    assert {f"{'9' * length}+1", f"1+{'9' * length}"} < {numbers(source) for source in sources}
    # Digits that are none of these, and one more than all nines together.
    ordinary = [source for source in sources if not re.search(r"9{12}|0{11}1|\b1\b", source)]
    full = [source for source in ordinary if total(source) == 10**length]
    assert len(full) > 0.05 * len(sources)
    assert sum(total(source) == 10**length - 1 for source in ordinary) > 0.05 * len(sources)
    # Chains that begin and end inside the operands: a carry, then nothing but nines.
    inner = [re.search(r"[a-i]9{4,}[0-8a-i]", "".join("0123456789abcdefghi"[s] for s in sums(o)[1:])) for o in ordinary]
    assert sum(map(bool, inner)) > 0.02 * len(sources)


@ALL
def test_zeros_lead_trail_and_fill(task: Addition) -> None:
    sources = [re.sub(r"(^|\+)0*(\d{7})(?=\+|$)", r"\1\2", s) for s in evaluation_strings(task, 7, ZEROS, 600)]
    for position in (0, 1):
        parts = [source.split("+")[position] for source in sources]
        assert all(len(part) == 7 for part in parts)
        assert "0000000" in parts
        assert any(re.fullmatch(r"0{3,}[1-9]\d*", part) for part in parts)
        assert any(re.fullmatch(r"[1-9]\d*0{3,}", part) for part in parts)
        assert any(re.search(r"[1-9]00+[1-9]", part) for part in parts)
    assert "0000000+0000000" in sources


@ALL
def test_training_holds_every_kind(task: Addition) -> None:
    sources = training_strings(task, (3, 3))
    share = Counter()
    for source in sources:
        first, second = (part[-3:] for part in source.split("+"))
        share["leading zeros"] += first[0] == "0"
        share["unequal"] += significant(first) != significant(second)
        share["zero"] += first == "000" or second == "000"
        share["all carry"] += carry_chain(f"{first}+{second}") == 3
        share["nines and one"] += {first, second} == {"999", "001"}
    least = {"leading zeros": 0.08, "unequal": 0.2, "zero": 0.02, "all carry": 0.1, "nines and one": 0.02}
    assert {name: count for name, count in share.items() if count < least[name] * len(sources)} == {}


def test_training_without_padding_holds_unequal_lengths() -> None:
    assert set(NONE.training_shapes()) == {(n, m) for n in (1, 2, 3) for m in (1, 2, 3)}
    assert "999+1" in training_strings(NONE, (3, 1), 500)
    assert "1+999" in training_strings(NONE, (1, 3), 500)


def test_fixed_width_is_enforced() -> None:
    assert "13 digits" in refuse(FIXED, "1+1234567890123")
    with pytest.raises(ProblemError, match="13 digits does not fit the fixed width of 12"):
        FIXED.layout((13, 1))


@pytest.mark.parametrize(("padding", "width"), [("longest", 5), ("none", 5), ("fixed", 12)])
def test_training_on_the_numbers_below_a_limit(padding: str, width: int) -> None:
    task = Addition(max_length=5, padding=padding, width=12, numbers_below=1050)
    assert task.training_shapes() == ((5, 5),)
    pairs = [source.split("+") for source in training_strings(task, (5, 5))]
    assert {len(part) for pair in pairs for part in pair} == {width}
    for position in (0, 1):
        numbers = [int(pair[position]) for pair in pairs]
        assert max(numbers) < 1050
        assert sum(numbers) / len(numbers) == pytest.approx(1049 / 2, rel=0.05)
        assert sum(number >= 1000 for number in numbers) == pytest.approx(len(numbers) * 50 / 1050, rel=0.25)
    assert len(set(map(tuple, pairs))) > 0.99 * len(pairs)


def test_layout_of_pairs() -> None:
    source = PAIRS.layout((1, 2)).source
    assert source.names[:3] == ("operator", "operand 1", "operand 2")
    assert source.segment.tolist() == [0, 1, 2, 1, 2]
    assert source.coordinates["place"].tolist() == [0, 1, 1, 0, 0]
    assert source.coordinates["index"].tolist() == [0, 0, 0, 1, 1]
    # Whichever of the two was made first.
    assert replace(PAIRS, interleaved=False).layout((1, 2)).source.segment.tolist() == [0, 0, 1, 2, 2]
    assert len(FIXED_PAIRS.layout((1, 2)).source) == 1 + 2 * 12


@pytest.mark.parametrize("task", [PAIRS, FIXED_PAIRS], ids=["longest", "fixed"])
@pytest.mark.parametrize("set_name", [TRAINING, *SETS])
@given(length=st.integers(1, 12), seed=st.integers(0, 2**30))
def test_pairs_are_the_same_problems_in_another_form(task: Addition, set_name: str, length: int, seed: int) -> None:
    plain = replace(task, interleaved=False)
    ours, theirs = (t.sample(generator(seed), 5, (length, length), set_name) for t in (task, plain))
    assert torch.equal(ours.target, theirs.target)
    for source, other in zip(ours.source, theirs.source, strict=True):
        source, other = task.vocabulary.decode(source), task.vocabulary.decode(other)
        assert source.startswith("+")
        assert apart(source) == other
        assert task.parse(other) == task.parse(source)
        assert task.solve(source) == plain.solve(other)


def test_operands_of_unequal_width_make_no_pairs() -> None:
    with pytest.raises(UserError) as error:
        Addition(padding="none", interleaved=True)
    assert str(error.value) == ("interleaved: operands of unequal width have no pairs: choose padding longest or fixed")


def test_a_window_shows_the_same_of_pairs() -> None:
    """Lines are of places, and these do not care where a token stands."""
    model = small_windows.make(*small_windows.RULES["addition"])
    for shape in LONGEST.training_shapes():
        logits = []
        for own in (LONGEST, PAIRS):
            problems = own.sample(generator(), 20, shape)
            logits.append(predict(model, problems, own.layout(shape)))
        torch.testing.assert_close(*logits)


def test_calibration_judges_windows_of_pairs() -> None:
    conditions = (small_windows.OWN, small_windows.BELOW)
    lines = itertools.product(conditions, ("operand 1", "operand 2"))
    rules = [small_windows.cross(head, condition, name) for head, (condition, name) in enumerate(lines)]
    evidence = Evidence(PAIRS, generator(), num_problems=300)
    assert not evidence.conflicts(Window("Addition", 0, 1, 4, tuple(rules), {}))
    for rule in rules:
        fewer = tuple(other for other in rules if other != rule)
        assert evidence.conflicts(Window("Addition", 0, 1, 4, fewer, {})), rule.describe()


@pytest.mark.parametrize("task", [Addition, Multiplication], ids=lambda task: task.__name__)
@pytest.mark.parametrize("base", [-1, 0, 1, 37, 10**9])
def test_a_base_without_digits_is_refused_in_one_line(task: type[Addition], base: int) -> None:
    with pytest.raises(UserError) as error:
        task(base=base)
    assert str(error.value) == f"base {base}: give at least 2 and at most 36, as there are so many digits"


@pytest.mark.parametrize("base", [2, 16, 36])
def test_carry_chains_in_other_bases(base: int) -> None:
    task = Addition(max_length=3, base=base)
    highest, length = task.symbols[base - 1], 9
    sources = evaluation_strings(task, length, CARRY, 400)
    assert {f"{highest * length}+{'1':0>{length}}", f"{'1':0>{length}}+{highest * length}"} < set(sources)
    totals = [sum(int(part, base) for part in source.split("+")) for source in sources]
    assert sum(number in (base**length - 1, base**length) for number in totals) > 0.4 * len(totals)
    digits = {digit for source in evaluation_strings(task, length, UNIFORM) for digit in source}
    assert digits == {*task.symbols[:base], "+"}


def test_a_proof_goes_through_in_base_2() -> None:
    _, rules = small_windows.RULES["addition without a decoder"]
    counts = []
    for base in (2, 3):
        task = Addition(max_length=2, base=base)
        kinds = small_windows.kinds(task, small_windows.make(task, rules))
        counts.append(sum(len(kind.assignments) for kind in kinds))
        problems = small_windows.every_problem(task, (2, 2))
        for assignment in kinds[-1].assignments:
            problem = kinds[-1].predictions_with(assignment)[0].problem(assignment)
            assert problem.shape != (2, 2) or (problems.source == problem.source).all(dim=1).any()
    # A carry read off the two digits below: the number of assignments goes with the fourth power of the base.
    assert counts[0] < counts[1] < (3 / 2) ** 4 * counts[0]
