import re
from collections import Counter

import pytest

from abc_toolkit.calibration.sufficiency import Evidence
from abc_toolkit.tasks import BucketSort, ModularArithmeticBrackets, SolveEquation, StackManipulation
from abc_toolkit.tasks.base import UNIFORM
from abc_toolkit.tasks.chomsky.expressions import depth
from abc_toolkit.tasks.chomsky.tables import TokenTable
from abc_toolkit.tasks.digits.base import CARRY, ZEROS
from abc_toolkit.testing.digit_contract import Example, TaskCase, evaluation_strings, generator
from abc_toolkit.windows.rules import Condition, Rule, Window
from tests.tasks.chomsky.contract import ChomskyContract


class TokenTableContract(ChomskyContract):
    def test_malformed_targets_are_not_repaired(self, case: TaskCase) -> None:
        good = case.examples[0].target
        for target in ("", "^", f"{good}^", f"^{good}", good[1:], good[:-1], f"{good},", f"{good}{good}"):
            assert case.task.answer(target) == target


class TestBucketSort(TokenTableContract):
    cases = {  # noqa: RUF012
        "small": TaskCase(
            BucketSort(max_length=5),
            lambda text: "".join(sorted(text)),
            r"[0-4]+",
            (
                Example("3142", (4,), "3142", ",3000,3100,4310,4321", "1234"),
                Example("10204112", (8,), "10204112", ",10000000,10000000,21000000,21000000,"
                        "42100000,42110000,42111000,42211100", "00111224"),
                Example("0", (1,), "0", ",0", "0"),
            ),
            {"5": "holds '5'", "1a": "holds 'a'"},
        ),
    }  # fmt: skip


def final_stack(text: str) -> str:
    """The benchmark's output: the stack from its top, a 2, and zeros."""
    stack = ""
    for token in text:
        stack = stack[:-1] if token == "2" else stack + {"3": "0", "4": "1"}.get(token, token)
    return f"{stack[::-1]}2".ljust(len(text) + 1, "0")


class TestStackManipulation(TokenTableContract):
    cases = {  # noqa: RUF012
        "small": TaskCase(
            StackManipulation(max_length=5),
            final_stack,
            r"[01]+[234]*",
            (
                Example("01342", (5,), "01342", ",02222,10222,01022,10102,01022", "010200"),
                Example("0110422", (7,), "0110422", ",0222222,1022222,1102222,0110222,1011022,0110222,1102222",
                        "11020000"),
                Example("110222", (6,), "110222", ",122222,112222,011222,112222,122222,222222", "2000000"),
                Example("1", (1,), "1", ",1", "12"),
            ),
            {
                "2": "'2' begins with an action",
                "301": "'301' begins with an action",
                "0130": "'0130' has a bit behind an action",
                "05": "holds '5'",
            },
        ),
    }  # fmt: skip

    def test_uniform_problems_are_the_benchmarks(self) -> None:
        strings = evaluation_strings(StackManipulation(), 6, UNIFORM, 4000)
        sizes = Counter(len(text) - len(text.lstrip("01")) for text in strings)
        assert set(sizes) == {1, 2, 3, 4, 5}
        assert max(sizes.values()) < 1.3 * min(sizes.values())
        assert all(text in ("0", "1") for text in evaluation_strings(StackManipulation(), 1, UNIFORM))

    def test_sets_fill_and_empty_the_stack(self) -> None:
        strings = evaluation_strings(StackManipulation(), 8, CARRY, 2000)
        outputs = [final_stack(text) for text in strings]
        assert any(output.startswith("2") for output in outputs)
        assert any(re.fullmatch(r"[01]{8}2", output) for output in outputs)


SIGNED = "-?[0-4]"


def nested(operators: str, times: int = 4) -> str:
    """A regular expression of expressions with brackets, nested up to so many times."""
    known = rf"(?:{SIGNED}|\({SIGNED}\))"
    for _ in range(times):
        known = rf"(?:{SIGNED}|\({SIGNED}\)|\({known}[{operators}]{known}\))"
    return known


class TestModularArithmeticBrackets(TokenTableContract):
    cases = {  # noqa: RUF012
        "small": TaskCase(
            ModularArithmeticBrackets(max_length=8),
            lambda text: eval(text) % 5,
            nested("+*-", 2),
            (
                Example("(3*-2)", (6,), "(3*-2)", ",a,3,n,m,4,4", "4"),
                Example("4", (1,), "4", ",4", "4"),
                Example("-3", (2,), "-3", ",f,2", "2"),
                Example("(-0)", (4,), "(-0)", ",a,f,0,0", "0"),
                Example("((1-3)-4)", (9,), "((1-3)-4)", ",aa,aa,1a,ga,3a,3a,ia,4a,4a", "4"),
                Example("(4)", (3,), "(4)", ",a,4,4", "4"),
            ),
            {
                "1+2": "'+' at token 2 is not the only operator inside a pair of brackets",
                "(1+2+3)": "'+' at token 5 is not the only operator inside a pair of brackets",
                "(1+2))": "')' at token 6 closes no bracket",
                "((1+2)": "a bracket is not closed",
                "(1+)": "')' at token 4 closes a bracket that holds neither",
                "()": "')' at token 2 closes a bracket that holds neither",
                "((1))": "')' at token 5 closes a bracket that holds neither",
                "-(1+2)": "'(' at token 2 follows a sign",
                "--1": "'-' at token 2 follows no value",
                "+1": "'+' at token 1 follows no value",
                "12": "'2' at token 2 follows a value",
                "1(2)": "'(' at token 2 follows a value",
                "-": "it ends without a value",
                "x": "holds 'x'",
                "5": "holds '5'",
            },
        ),
    }


def unknown(text: str) -> int:
    """The only digit that makes both sides of an equation equal."""
    side, _, value = text.partition("=")
    (found,) = (digit for digit in range(5) if (eval(side.replace("x", str(digit))) - int(value)) % 5 == 0)
    return found


class TestSolveEquation(TokenTableContract):
    cases = {  # noqa: RUF012
        "small": TaskCase(
            SolveEquation(max_length=9),
            unknown,
            rf"(?=[^x]*x[^x]*=){nested('+-', 2).replace('[0-4]', '[0-4x]')}=[0-4]",
            (
                Example("(3-x)=4", (7,), "(3-x)=4", ",0++,3)+,3-+,i)+,i)+,i==,4)=", "4"),
                Example("x=2", (3,), "x=2", ",a)+,a==,2)=", "2"),
                Example("-x=2", (4,), "-x=2", ",0-+,f)+,f==,3)=", "3"),
                Example("((1-x)-4)=0", (11,), "((1-x)-4)=0",
                        ",0++,0++,1)+,1-+,g)+,g)+,g-+,h)+,h)+,h==,2)=", "2"),
            ),
            {
                "(1+2)=3": "has 0 unknowns: write one x",
                "(x+x)=3": "has 2 unknowns: write one x",
                "(x+2)": "'(x+2)' is not an equation",
                "(x+2)=": "is not an equation",
                "(x+2)=12": "is not an equation",
                "3=x": "is not an equation",
                "(x+2=3": "a bracket is not closed",
                "x+2=3": "'+' at token 2 is not the only operator",
                "(x*2)=3": "holds '*'",
            },
        ),
    }  # fmt: skip

    def test_every_digit_can_be_the_unknown(self) -> None:
        strings = evaluation_strings(SolveEquation(), 11, UNIFORM, 3000)
        assert {text.index("x") for text in strings} == {1, 2, 3, 4, 6, 7}  # no digit is at 5
        assert {unknown(text) for text in strings} == set(range(5))


@pytest.mark.parametrize("operators", ["+-*", "+-"])
def test_expressions_are_those_of_the_benchmark(operators: str) -> None:
    """Of length 9, the first part is as likely to have each length, and so are its operators."""
    task = ModularArithmeticBrackets()
    strings = evaluation_strings(task, 9, UNIFORM, 6000)
    firsts = Counter(re.match(rf"\(({nested('+*-', 1)})[+*-]", text)[1] for text in strings)  # type: ignore[index]
    lengths = Counter(len(first) for first in firsts.elements())
    assert set(lengths) == {1, 2, 3, 4, 5}
    assert max(lengths.values()) < 1.3 * min(lengths.values())
    deep = evaluation_strings(task, 33, CARRY, 200)
    assert max(max_open(text) for text in deep) == depth(33) == 8
    zeros = "".join(evaluation_strings(task, 17, ZEROS, 200))
    assert zeros.count("0") > 4 * sum(zeros.count(digit) for digit in "1234") / 2


def max_open(text: str) -> int:
    return max(text[:end].count("(") - text[:end].count(")") for end in range(len(text) + 1))


@pytest.mark.parametrize("length", range(1, 60))
def test_no_expression_has_more_open_brackets(length: int) -> None:
    strings = evaluation_strings(ModularArithmeticBrackets(), length, CARRY, 60)
    assert max(map(max_open, strings)) <= depth(length)


def line(head: int, column: int) -> Rule:
    conditions = (Condition("row", 1, "row"), Condition("column", column, "column"))
    return Rule("decoder", 0, head, "cell", conditions)


@pytest.mark.parametrize(
    ("task", "columns"),
    [
        (BucketSort(max_length=5), (0, 1)),
        (StackManipulation(max_length=5), (1, -1)),
        (ModularArithmeticBrackets(max_length=13), (0, 1, -1)),
        (SolveEquation(max_length=15), (0, 1, -1)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, TokenTable) else "",
)
def test_a_row_follows_from_its_token_and_the_row_above(task: TokenTable, columns: tuple[int, ...]) -> None:
    rules = [Rule("cross", 0, 0, "operand 1", (Condition("row", 0, "row"),))]
    rules += [line(head, column) for head, column in enumerate(columns)]
    evidence = Evidence(task, generator(), num_problems=300)
    assert not evidence.conflicts(Window(task.name, 0, 1, 4, tuple(rules), {}))
    for rule in rules:
        fewer = [other for other in rules if other != rule]
        assert evidence.conflicts(Window(task.name, 0, 1, 4, tuple(fewer), {})), rule.describe()
