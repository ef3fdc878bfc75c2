import itertools
import math
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abc_toolkit.linear import Linear, NotLinearError, cases, symbol

NAMES = ("x", "y", "z")
X, Y, Z = SYMBOLS = [symbol(name) for name in NAMES]
VALUES = st.tuples(*[st.integers(-5, 9)] * 3)
FACTORS = st.integers(-4, 4)
GRID = list(itertools.product(range(-3, 5), repeat=2))

# Expressions as nested tuples: a test's own language, evaluated by Python on integers and on symbols alike.
LEAF = st.sampled_from(NAMES) | st.integers(-4, 4)
PLAIN = st.recursive(
    LEAF,
    lambda own: (
        st.tuples(st.sampled_from(["+", "-"]), own, own)
        | st.tuples(st.just("neg"), own)
        | st.tuples(st.sampled_from(["*", "times"]), FACTORS, own)
        | st.tuples(st.just("sum"), own, own, own)
    ),
    max_leaves=6,
)
COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "in": lambda a, b: a in (b, 3),
}
BRANCHED = st.recursive(
    LEAF,
    lambda own: (
        st.tuples(st.sampled_from(["+", "-", "max", "min"]), own, own)
        | st.tuples(st.just("neg"), own)
        | st.tuples(st.just("*"), FACTORS, own)
        | st.tuples(st.just("if"), st.sampled_from(list(COMPARE)), own, own, own, own)
        | st.tuples(st.just("top"), own, own, own)
    ),
    max_leaves=5,
)


def evaluated(tree: Any, values: dict[str, Any]) -> Any:
    """A tree's value, by the operators that its numbers bring."""
    if isinstance(tree, str):
        return values[tree]
    if isinstance(tree, int):
        return tree
    operator, *parts = tree
    if operator == "if":
        sign, first, second, yes, no = parts
        holds = COMPARE[sign](evaluated(first, values), evaluated(second, values))
        return evaluated(yes if holds else no, values)
    own = [evaluated(part, values) for part in parts]
    compute: dict[str, Callable[..., Any]] = {
        "+": lambda a, b: a + b,
        "-": lambda a, b: a - b,
        "neg": lambda a: -a,
        "*": lambda a, b: a * b,
        "times": lambda a, b: b * a,
        "sum": lambda *all_: sum(all_),
        "max": max,
        "min": min,
        "top": lambda *all_: sorted(all_)[-1],
    }
    return compute[operator](*own)


def at(expression: Any, values: Sequence[int]) -> int:
    """An expression's value, from its coefficients alone."""
    if isinstance(expression, int):
        return expression
    known = dict(zip(NAMES, values, strict=True))
    return expression.constant + sum(factor * known[name] for name, factor in expression.terms.items())


# Expressions.


@settings(max_examples=300)
@given(PLAIN, VALUES)
def test_operators_say_what_they_say_of_integers(tree: Any, values: tuple[int, ...]) -> None:
    symbolic = evaluated(tree, dict(zip(NAMES, SYMBOLS, strict=True)))
    number = evaluated(tree, dict(zip(NAMES, values, strict=True)))
    assert at(symbolic, values) == number
    own = Linear.from_value(symbolic)
    assert all(own.terms.values())
    assert own.at(dict(zip(NAMES, values, strict=True))) == number
    assert type(own.at(dict(zip(NAMES, values, strict=True)))) is int
    plain = own.plain()
    assert sum(factor * ({"": 1} | dict(zip(NAMES, values, strict=True)))[name] for name, factor in plain.items()) == (
        number
    )
    assert plain
    assert list(plain) == sorted(own.terms) + [""] * ("" in plain)
    assert own.same_as(Linear.from_value(evaluated(("+", tree, 0), dict(zip(NAMES, SYMBOLS, strict=True)))))


@given(PLAIN, PLAIN, VALUES)
def test_a_symbol_is_replaced_by_numbers_tensors_and_expressions(tree: Any, other: Any, values: Any) -> None:
    known = dict(zip(NAMES, SYMBOLS, strict=True))
    own, inner = Linear.from_value(evaluated(tree, known)), Linear.from_value(evaluated(other, known))
    replaced = own.at({"x": inner})
    assert at(replaced, values) == at(own, (at(inner, values), *values[1:]))
    swapped = own.at({"x": Y, "y": X})  # all at once, not one after the other
    assert at(swapped, values) == at(own, (values[1], values[0], values[2]))
    tensors = {name: torch.tensor([value, value + 1]) for name, value in zip(NAMES, values, strict=True)}
    found = torch.as_tensor(own.at(tensors)).expand(2).tolist()
    assert found == [at(own, values), at(own, [value + 1 for value in values])]


@given(PLAIN, PLAIN)
def test_expressions_are_the_same_if_they_agree_everywhere(tree: Any, other: Any) -> None:
    known = dict(zip(NAMES, SYMBOLS, strict=True))
    one, two = (Linear.from_value(evaluated(own, known)) for own in (tree, other))
    corners = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]  # tell linear functions apart
    assert one.same_as(two) == all(at(one, corner) == at(two, corner) for corner in corners)


def test_only_integers_and_expressions_are_expressions() -> None:
    for value in (1.0, True, "1", None, torch.tensor(1), Fraction(1)):
        with pytest.raises(NotLinearError):
            Linear.from_value(value)  # type: ignore[arg-type]
        with pytest.raises((NotLinearError, TypeError)):
            X + value  # type: ignore[operator]
        with pytest.raises((NotLinearError, TypeError)):
            X - value  # type: ignore[operator]
        with pytest.raises((NotLinearError, TypeError)):
            X * value  # type: ignore[operator]


def test_symbols_are_not_compared_outside_cases() -> None:
    for compare in COMPARE.values():
        with pytest.raises(NotLinearError, match="outside"):
            compare(X, Y)
    assert X - X == 0
    assert X < X + 1
    assert not X - 2 > X


# Functions.


def outcome(function: Callable[..., Any], values: Sequence[int]) -> Any:
    try:
        return function(*values)
    except ValueError as error:
        return error


def check_partition(function: Callable[..., Any], arguments: int, most: int = 64) -> None:
    """Every choice of integers is of exactly one case, whose result is the function's."""
    found = list(cases(function, SYMBOLS[:arguments], most))
    for values in itertools.product(range(-3, 5), repeat=arguments):
        padded = (*values, *[0] * (3 - arguments))
        fitting = [result for where, result in found if all(at(own, padded) >= 0 for own in where)]
        assert len(fitting) == 1, values
        expected = outcome(function, values)
        if isinstance(expected, ValueError):
            assert isinstance(fitting[0], ValueError), values
            assert str(fitting[0]) == str(expected)
            continue
        own = fitting[0] if isinstance(fitting[0], tuple) else (fitting[0],)
        expected = expected if isinstance(expected, tuple) else (expected,)
        assert tuple(at(part, padded) for part in own) == expected, values


@settings(max_examples=250)
@given(BRANCHED)
def test_cases_are_what_the_function_comes_to(tree: Any) -> None:
    def function(x: Any, y: Any) -> Any:
        return evaluated(tree, {"x": x, "y": y, "z": x + y - 1})

    check_partition(function, 2, most=10**4)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y, z: (max(x, y, z), min(x, y, z)),
        lambda x, y, z: tuple(sorted((x, y, z))),
        lambda x, y, z: x if x > y > z else (y if x == z else 2 * z),
        lambda x, y, z: sum([x, y, z]) if x != y and z >= 0 else -x,
        lambda x, y, z: max((x, y), (y, z))[0],
        lambda x, y, z: 1 if x in (0, y, 2) or not z < x else 0,
        lambda x, y, z: [x, y, z].index(max(x, y, z)),
        lambda x, y, z: sum(own > 0 for own in (x, y, z)),
    ],
)
def test_cases_of_functions_that_a_layout_may_use(function: Callable[..., Any]) -> None:
    check_partition(function, 3)


def test_what_was_decided_stays_decided() -> None:
    calls = []

    def function(x: Any, y: Any) -> int:
        calls.append(x > y)
        assert (x > y) == (y < x) == (not x <= y) == (not y >= x) == calls[-1]
        assert (x - y > 0) == calls[-1]
        return int(x > y)

    assert len(list(cases(function, [X, Y]))) == 2
    assert sorted(calls) == [False, True]


def test_an_error_ends_its_case_alone() -> None:
    def function(x: Any, y: Any) -> Any:
        if x > y:
            raise ValueError("too long")
        return y

    check_partition(function, 2)


def test_explorations_may_stand_inside_one_another() -> None:
    def inner(x: Any) -> Any:
        return max(x, 0)

    def function(x: Any, y: Any) -> int:
        before = x > y
        number = len(list(cases(inner, [Z])))
        assert (x > y) == before
        return number

    assert [result for _, result in cases(function, [X, Y])] == [2, 2]


def test_there_are_not_more_cases_than_asked_for() -> None:
    def function(x: Any) -> int:
        return sum(x > number for number in range(5))

    assert len(list(cases(function, [X], most=32))) == 32
    with pytest.raises(NotLinearError, match="more than 31 cases"):
        list(cases(function, [X], most=31))
    with pytest.raises(NotLinearError, match="outside"):  # nothing is left behind
        bool(X > Y)


NOT_LINEAR: dict[str, Callable[[Any, Any], Any]] = {
    "str": lambda x, _: str(x),
    "format": lambda x, _: f"{x}",
    "padded format": lambda x, _: f"{x:03}",
    "percent": lambda x, _: "%s" % x,  # noqa: UP031
    "decimal": lambda x, _: "%d" % x,  # noqa: UP031
    "len": lambda x, _: len(x),
    "range": lambda x, _: list(range(x)),
    "end of a range": lambda x, _: list(range(0, x, 2)),
    "half": lambda x, _: x // 2,
    "half of": lambda x, _: 100 // x,
    "modulo": lambda x, _: x % 2,
    "modulo of": lambda x, _: 100 % x,
    "divmod": lambda x, _: divmod(x, 2),
    "divmod of": lambda x, _: divmod(2, x),
    "quotient": lambda x, _: x / 2,
    "quotient of": lambda x, _: 2 / x,
    "int": lambda x, _: int(x),
    "float": lambda x, _: float(x),
    "complex": lambda x, _: complex(x),
    "bool": lambda x, _: bool(x),
    "if": lambda x, _: 1 if x else 0,
    "not": lambda x, _: not x,
    "and": lambda x, y: x and y,
    "abs": lambda x, _: abs(x),
    "round": lambda x, _: round(x),
    "round to tens": lambda x, _: round(x, -1),
    "ceil": lambda x, _: math.ceil(x),
    "floor": lambda x, _: math.floor(x),
    "trunc": lambda x, _: math.trunc(x),
    "log": lambda x, _: math.log2(x),
    "root": lambda x, _: math.isqrt(x),
    "greatest divisor": lambda x, y: math.gcd(x, y),
    "product": lambda x, y: x * y,
    "square": lambda x, _: x**2,
    "power": lambda x, _: 2**x,
    "power modulo": lambda x, _: pow(x, 2, 5),
    "hash": lambda x, _: hash(x),
    "set": lambda x, y: {x, y},
    "dict": lambda x, _: {x: 1},
    "looked up": lambda x, _: {1: 2}.get(x),
    "index": lambda x, _: [1, 2, 3][x],
    "slice": lambda x, _: [1, 2, 3][:x],
    "text": lambda x, _: "abc"[x],
    "repeated list": lambda x, _: [0] * x,
    "repeated text": lambda x, _: "0" * x,
    "repeated": lambda x, _: x * "0",
    "iterated": lambda x, _: list(x),
    "unpacked": lambda x, _: [*x],
    "bits": lambda x, _: x & 1,
    "shifted": lambda x, _: x << 1,
    "shifts": lambda x, _: 1 << x,
    "inverted": lambda x, _: ~x,
    "bit length": lambda x, _: x.bit_length(),
    "tensor": lambda x, _: torch.zeros(x),
    "half a number": lambda x, _: x + 0.5,
    "times a half": lambda x, _: 0.5 * x,
    "truth": lambda x, _: x + True,
    "filled": lambda x, _: "7".zfill(x),
    "order of texts": lambda x, _: x < "3",
    "order of floats": lambda x, _: x < 2.5,
    "equal to a float": lambda x, _: x == 2.0,
    "among floats": lambda x, _: x in (2.0, 4.0),
    "unequal to a float": lambda x, _: x != 2.0,
    "equal to a fraction": lambda x, _: x == Fraction(2),
    "equal to a decimal": lambda x, _: x == Decimal(2),
    "equal to a complex number": lambda x, _: x == 2 + 0j,
    "equal to a tensor": lambda x, _: x == torch.tensor(2),
    "equal to a truth value": lambda x, _: x == True,  # noqa: E712
}


@pytest.mark.parametrize("name", NOT_LINEAR)
def test_what_is_not_linear_raises(name: str) -> None:
    """Whatever could say something else of other integers."""
    with pytest.raises(NotLinearError):
        list(cases(NOT_LINEAR[name], [X, Y]))
