from math import isqrt

from abc_toolkit.calibration.sufficiency import Evidence
from abc_toolkit.tasks import SquareRoot
from abc_toolkit.tasks.base import UNIFORM
from abc_toolkit.tasks.digits.base import CARRY
from abc_toolkit.testing.digit_contract import Example, TaskCase, evaluation_strings, generator
from abc_toolkit.windows.rules import Condition, Rule, Window
from tests.tasks.chomsky.contract import ChomskyContract


def root(text: str) -> str:
    """The benchmark's output: the root, most significant bit first, in half as many bits."""
    return format(isqrt(int(text, 2)), "b").zfill(-(-len(text) // 2))


class TestSquareRoot(ChomskyContract):
    cases = {  # noqa: RUF012
        "small": TaskCase(
            SquareRoot(max_length=6),
            root,
            r"[01]+",
            (
                Example("1101", (4,), "1101", "5-0-1-1,5-1-2+1,", "11"),
                Example("100101", (6,), "100101", "4+1-1-1-1,5-1-3-1-1,5-1-2+3+0,", "110"),
                Example("0", (1,), "0", "4+0+0,", "0"),
            ),
            {"2": "holds '2'", "1a": "holds 'a'"},
        ),
    }

    def test_malformed_targets_are_not_repaired(self, case: TaskCase) -> None:
        good = case.examples[0].target
        for target in ("", "^", f"{good}^", f"^{good}", good[1:], good[:-1], f"{good},", f"{good}{good}"):
            assert case.task.answer(target) == target


def test_uniform_numbers_are_not_zero() -> None:
    for length in (1, 2, 3, 8):
        numbers = {int(text, 2) for text in evaluation_strings(SquareRoot(), length, UNIFORM, 3000)}
        assert numbers == set(range(1, 2**length))


def test_sets_hold_squares_and_their_neighbours() -> None:
    numbers = [int(text, 2) for text in evaluation_strings(SquareRoot(), 12, CARRY, 400)]
    assert sum(isqrt(number) ** 2 == number for number in numbers) > 80
    assert sum(isqrt(number + 1) ** 2 == number + 1 for number in numbers) > 20


def test_each_line_of_a_small_window_is_needed() -> None:
    task = SquareRoot(max_length=8)

    def line(head: int, segment: str, row: int, column: int) -> Rule:
        return Rule("decoder", 0, head, segment, (Condition("row", row, "row"), Condition("column", column, "column")))

    own = (Condition("row", 0, "row"), Condition("column", 0, "column"))
    rules = [Rule("cross", 0, 0, "operand 1", own), line(0, "digit", 1, 2), line(1, "digit", 1, 1)]
    rules += [line(2, "carry", 0, 1), Rule("decoder", 0, 3, "root", (Condition("row", 1, "row"),))]
    evidence = Evidence(task, generator(), num_problems=300)
    assert not evidence.conflicts(Window(task.name, 0, 1, 4, tuple(rules), {}))
    for rule in rules:
        fewer = [other for other in rules if other != rule]
        assert evidence.conflicts(Window(task.name, 0, 1, 4, tuple(fewer), {})), rule.describe()


def test_a_number_of_400_bits() -> None:
    task = SquareRoot()
    text = format(3**1261, "b")[:400]
    assert task.answer(task.solve(text)) == root(text)
