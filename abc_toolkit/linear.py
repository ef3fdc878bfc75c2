"""Linear expressions of integer symbols, and functions of integers that are run on them.

A task describes its layout by a function of lengths. Given integers, this function describes the layout of one shape.
Given symbols, the same code describes the layouts of all shapes at once.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")
Plain = dict[str, int]


class NotLinearError(Exception):
    """A computation on symbols is not linear, so nothing is known about it for every integer."""


class Linear:
    """`constant + sum of coefficient * symbol`, with integer coefficients.

    A comparison of two expressions that depends on symbols gives the outcome that `cases` is exploring. Operations that
    are not linear raise an error. If code runs to its end on symbols, its result is therefore right for all integers.

    Args:
        terms: Coefficient of each symbol.
        constant: The constant.
    """

    __slots__ = ("constant", "terms")

    def __init__(self, terms: Mapping[str, int], constant: int = 0) -> None:
        self.terms = {symbol: factor for symbol, factor in terms.items() if factor}
        self.constant = constant

    @classmethod
    def from_value(cls, value: "int | Linear") -> "Linear":
        """An integer or an expression as an expression.

        Raises:
            NotLinearError: If it is neither.
        """
        if isinstance(value, Linear):
            return value
        if type(value) is not int:
            raise NotLinearError(f"{value!r} is no integer")
        return cls({}, value)

    def __add__(self, other: "int | Linear") -> "Linear":
        other = Linear.from_value(other)
        symbols = {**self.terms, **other.terms}
        total = {symbol: self.terms.get(symbol, 0) + other.terms.get(symbol, 0) for symbol in symbols}
        return Linear(total, self.constant + other.constant)

    __radd__ = __add__

    def __neg__(self) -> "Linear":
        return self * -1

    def __sub__(self, other: "int | Linear") -> "Linear":
        return self + -Linear.from_value(other)

    def __rsub__(self, other: "int | Linear") -> "Linear":
        return -self + other

    def __mul__(self, factor: "int | Linear") -> "Linear":
        one, other = self, Linear.from_value(factor)
        if other.terms:
            one, other = other, one
        if other.terms:
            raise NotLinearError(f"{self.words()} times {other.words()} is no linear expression")
        return Linear(
            {symbol: own * other.constant for symbol, own in one.terms.items()}, one.constant * other.constant
        )

    __rmul__ = __mul__

    def __gt__(self, other: "int | Linear") -> bool:
        return _is_positive(self - other)

    def __lt__(self, other: "int | Linear") -> bool:
        return _is_positive(Linear.from_value(other) - self)

    def __ge__(self, other: "int | Linear") -> bool:
        return not self < other

    def __le__(self, other: "int | Linear") -> bool:
        return not self > other

    def __eq__(self, other: object) -> bool:
        if type(other) is not int and not isinstance(other, Linear):
            self._not_linear()  # it may equal a number of another kind, which is not told apart here
        return self <= other and self >= other

    __hash__ = None  # type: ignore[assignment]  # a set or a cache would tell equal values apart

    def _not_linear(self, *_: Any) -> NoReturn:
        raise NotLinearError("a symbol is used where only a number makes sense")

    __bool__ = __int__ = __index__ = __float__ = __str__ = __format__ = __floordiv__ = __mod__ = _not_linear
    __rfloordiv__ = __rmod__ = __truediv__ = __rtruediv__ = __pow__ = __rpow__ = __abs__ = __round__ = _not_linear
    __divmod__ = __rdivmod__ = __iter__ = __len__ = _not_linear

    def __repr__(self) -> str:
        if _explorations:
            self._not_linear()  # code that is explored could measure it
        return self.words()

    def words(self) -> str:
        """The expression in words."""
        parts = [f"{factor} {name}" for name, factor in sorted(self.terms.items())]
        return " + ".join([*parts, str(self.constant)])

    def same_as(self, other: "Linear") -> bool:
        """Whether it is the same expression."""
        return self.terms == other.terms and self.constant == other.constant

    def at(self, values: "Mapping[str, Any]") -> Any:
        """The expression with some of its symbols replaced.

        Args:
            values: A number, a tensor or an expression for each symbol that is replaced.
        """
        result: Any = Linear({symbol: own for symbol, own in self.terms.items() if symbol not in values}, self.constant)
        if not result.terms:
            result = self.constant
        for symbol, own in self.terms.items():
            if symbol in values:
                result = result + own * values[symbol]
        return result

    def plain(self) -> Plain:
        """The expression as JSON: coefficients by symbol, the constant under the empty name."""
        constant = {"": self.constant} if self.constant or not self.terms else {}
        return dict(sorted(self.terms.items())) | constant


def symbol(name: str) -> Linear:
    """The expression that is one symbol."""
    return Linear({name: 1})


@dataclass
class _Exploration:
    """One run of a function on expressions.

    Attributes:
        sides: The outcomes of the run's comparisons, in their order.
        facts: Expressions that are at least 0 by these outcomes.
        taken: Number of comparisons so far.
    """

    sides: list[bool]
    facts: list[Linear]
    taken: int = 0


_explorations: list[_Exploration] = []


def _is_positive(expression: Linear) -> bool:
    if not expression.terms:
        return expression.constant > 0
    if not _explorations:
        raise NotLinearError("two symbols are compared outside `cases`")
    now = _explorations[-1]
    for fact in now.facts:  # a comparison that is repeated has the same outcome
        if fact.same_as(expression - 1):
            return True
        if fact.same_as(-expression):
            return False
    if now.taken == len(now.sides):
        now.sides.append(True)
    side = now.sides[now.taken]
    now.taken += 1
    now.facts.append(expression - 1 if side else -expression)
    return side


def cases(function: Callable[..., T], arguments: Sequence[Linear], most: int = 64) -> Iterator[tuple[list[Linear], T]]:
    """All results that a function of integers can have, found by running it on expressions.

    Args:
        function: The function, which is called once for each combination of outcomes of its comparisons.
        arguments: Its arguments.
        most: Largest number of cases.

    Yields:
        Expressions that are all at least 0 in this case, and the function's result in it. Every choice of integers
        belongs to exactly one case. If the function raises a `ValueError`, such as for a length that is too large, the
        error is yielded in place of the result.

    Raises:
        NotLinearError: If the function is not linear, or has more than `most` cases.
    """
    pending: list[list[bool]] = [[]]
    for _ in range(most):
        if not pending:
            return
        known = pending.pop()
        now = _Exploration(list(known), [])
        _explorations.append(now)
        result: Any
        try:
            result = function(*arguments)
        except (NotLinearError, TypeError, AttributeError) as error:
            raise NotLinearError(f"it is no linear function of the lengths ({error})") from None
        except ValueError as error:  # such as a length beyond a fixed width
            result = error
        finally:
            _explorations.pop()
        pending += [[*now.sides[:number], False] for number in range(len(known), len(now.sides))]
        yield now.facts, result
    if pending:
        raise NotLinearError(f"it has more than {most} cases")
