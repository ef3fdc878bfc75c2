"""Expressions with brackets, modulo 5: their value, and the unknown in an equation."""

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import ClassVar

import torch
from torch import Generator, Tensor

from abc_toolkit.tasks.base import ProblemError, quoted
from abc_toolkit.tasks.chomsky.tables import ABSENT, CELL, INPUT, Neighbours, TokenTable
from abc_toolkit.tasks.digits.base import CARRY, ZEROS
from abc_toolkit.tasks.lengths import Shape

MODULUS = 5
DIGITS = "01234"
_OPERATOR, _CLOSE = -1, -2  # what is left to write of an expression, beside the lengths of its parts


def depth(length: int) -> int:
    """Most brackets that are open at once in an expression of a length."""
    return (length + 1) // 4


def draw_expressions(generator: Generator, batch: int, length: int, operators: str, suite: str) -> list[Tensor]:
    """Expressions `[batch, length]` as codes of characters, in reading order, and which of them are digits.

    An expression of up to four tokens is `d`, `-d`, `(d)` or `(-d)`. A longer one is two expressions in brackets with
    an operator between them; the length of the first one is uniform, and so are digits and operators. In the suite
    `carry` one of the two is as short as can be, so that brackets are nested deep; in `zeros` most digits are 0.
    """
    rows = torch.arange(batch)
    todo, size = torch.zeros(batch, length + 4, dtype=torch.long), torch.zeros(batch, dtype=torch.long)
    todo[:, 0] = length
    letters = torch.tensor([ord(letter) for letter in operators])
    codes: list[Tensor] = []

    def push(items: Tensor, which: Tensor) -> None:
        size.add_(which)
        todo[rows[which], size[which]] = items[which]

    for _ in range(length):
        top = todo[rows, size]
        size -= 1
        digit = torch.randint(0, MODULUS, (batch,), generator=generator)
        if suite == ZEROS:
            digit = digit * (torch.rand(batch, generator=generator) < 0.2)
        operator = letters[torch.randint(0, len(letters), (batch,), generator=generator)]
        share = torch.rand(batch, generator=generator)
        if suite == CARRY:
            share = torch.where(share < 0.3, 0, 1 - 1e-6)
        first = 1 + (share * (top - 4)).long().clamp(min=0)
        first = torch.minimum(first, (top - 4).clamp(min=1))
        code = torch.where(top == 1, ord("0") + digit, ord("("))
        code = torch.where(top == 2, ord("-"), torch.where(top == _OPERATOR, operator, code))
        codes.append(torch.where(top == _CLOSE, ord(")"), code))
        push(torch.full_like(top, _CLOSE), top > 2)
        push(torch.where(top > 4, top - 3 - first, top - 2), top > 2)
        push(torch.full_like(top, _OPERATOR), top > 4)
        push(first, top > 4)
        push(torch.ones_like(top), top == 2)
    expressions = torch.stack(codes, dim=1)
    return [expressions, (expressions >= ord("0")) & (expressions <= ord("9"))]


def check_expression(text: str, operators: str, atoms: str, whole: str) -> None:
    """Refuses what is no expression.

    Args:
        text: The expression.
        operators: The operators that it may hold.
        atoms: What may stand for a digit.
        whole: What a message quotes.

    Raises:
        ProblemError: If it is none.
    """
    kinds: list[str] = []  # of what has been read: an atom or a closed part is "v", a negated atom too

    def refuse(reason: str) -> None:
        raise ProblemError(f"{quoted(whole)} is not such an expression as ((1+-2)*3): {reason}")

    for number, letter in enumerate(text, 1):
        where = f"{letter!r} at token {number}"
        before = kinds[-1] if kinds else "("
        if letter in atoms:
            if before in "vV":
                refuse(f"{where} follows a value")
            if before == "u":
                kinds.pop()
            kinds.append("v")
        elif letter == "(":
            if before in "vVu":
                refuse(f"{where} follows {'a sign' if before == 'u' else 'a value'}")
            kinds.append("(")
        elif letter == ")":
            part = "".join(kinds[-4:])
            if "(" not in kinds:
                refuse(f"{where} closes no bracket")
            if part.endswith("(v"):
                del kinds[-2:]
            elif part.lower() == "(vov":
                del kinds[-4:]
            else:
                refuse(f"{where} closes a bracket that holds neither a number nor two parts and an operator")
            kinds.append("V")
        elif before in "vV":
            if len(kinds) < 2 or kinds[-2] != "(":
                refuse(f"{where} is not the only operator inside a pair of brackets")
            kinds.append("o")
        elif letter == "-" and before != "u":
            kinds.append("u")
        else:
            refuse(f"{where} follows no value")
    if "(" in kinds:
        refuse("a bracket is not closed")
    if not kinds or kinds[-1] not in "vV":
        refuse("it ends without a value")


@lru_cache
def _strings(length: int, operators: str, atoms: str) -> tuple[str, ...]:
    """All expressions of a length."""
    signed = {1: "{}", 2: "-{}", 3: "({})", 4: "(-{})"}
    if length in signed:
        return tuple(signed[length].format(atom) for atom in atoms)
    found: list[str] = []
    for first in range(1, length - 3):
        parts = (_strings(first, operators, atoms), operators, _strings(length - 3 - first, operators, atoms))
        found += [f"({left}{operator}{right})" for left, operator, right in product(*parts)]
    return tuple(found)


@lru_cache
def _count(length: int, operators: int, atoms: int) -> int:
    """How many expressions of a length there are."""
    if length <= 4:
        return atoms
    known = [_count(part, operators, atoms) for part in range(1, length - 3)]
    return operators * sum(left * right for left, right in zip(known, reversed(known), strict=True))


@lru_cache
def _digits(length: int, operators: int) -> int:
    """How many digits all expressions of a length have together, each of them counted with one digit in its place."""
    if length <= 4:
        return 1
    known = [(_count(part, operators, MODULUS), _digits(part, operators)) for part in range(1, length - 3)]
    return operators * sum(
        one * more + another * count for (one, another), (count, more) in zip(known, reversed(known), strict=True)
    )


@dataclass(frozen=True)
class ModularArithmeticBrackets(TokenTable):
    """The value of an expression with brackets, modulo 5: `(3*-2)` has the target `,a,3,n,m,4,4`, the answer is 4.

    An expression is a digit, a negated digit, either of them in brackets, or two expressions in brackets with an
    operator `+`, `-` or `*` between them. Row i of the target is a stack after i tokens, top first. A cell holds what
    becomes of the next value: letters `a` to `e` add it to 0 to 4, `f` to `j` subtract it from 0 to 4, and `k` to `o`
    multiply 0 to 4 by it; or it holds the value itself, a digit. An open bracket pushes `a`. A closing one takes the
    value off, and the cell below says what becomes of it. The answer is the last row's first cell.

    Attributes:
        max_length: Longest training length, in tokens of the input.
    """

    characters: ClassVar[str] = ",01234+-*()abcdefghijklmno"
    alphabets: ClassVar[dict[str, str]] = {INPUT: "01234+-*()", CELL: "01234abcdefghijklmno"}
    operators: ClassVar[str] = "+-*"

    base = 26
    max_length: int = 16

    def width(self, length: int) -> int:
        return max(1, depth(length))

    def num_problems(self, shape: Shape) -> int:
        return _count(shape[0], len(self.operators), MODULUS)

    def all_operands(self, shape: Shape) -> list[Tensor]:
        texts = _strings(shape[0], self.operators, DIGITS)
        return [torch.stack([self.numbers_of(text) for text in texts]).flip(1)]

    def draw(self, generator: Generator, batch: int, shape: Shape, suite: str) -> list[Tensor]:
        expressions, _ = draw_expressions(generator, batch, shape[0], self.operators, suite)
        return [self.of_codes(expressions).flip(1)]

    def cell(self, above: Neighbours) -> Tensor:
        letter, zero = self.numbers_of("a0")
        token, top = above.token, above.column == 0
        own, left, right = (torch.where(part == ABSENT, letter, part) for part in (above.own, above.left, above.right))
        digit = token - zero
        opened, closed = (token == self.numbers_of(bracket) for bracket in "()")
        below = torch.where(closed, right, own) - letter
        value = torch.where(closed, own - zero, digit)
        kind, number = below.div(MODULUS, rounding_mode="floor"), below % MODULUS
        applied = torch.where(kind == 0, number + value, torch.where(kind == 1, number - value, number * value))
        applied = zero + applied % MODULUS
        # A sign before a value turns sums and differences into each other, and a product's factor into its negative.
        negated = torch.where(kind == 2, 2 * MODULUS + -number % MODULUS, (1 - kind) * MODULUS + number)
        operation = torch.zeros_like(token)
        for place, operator in enumerate(self.operators):
            operation = torch.where(token == self.numbers_of(operator), place, operation)
        held = torch.where(own < letter, operation * MODULUS + own - zero, negated) + letter
        first = torch.where((digit < MODULUS) | closed, applied, torch.where(opened, letter, held))
        further = torch.where(opened, left, torch.where(closed, right, own))
        return torch.where(top, first, further)

    def occurs(self, above: Neighbours) -> Tensor:
        letter, zero = self.numbers_of("a0")
        token = above.token
        has_value = (above.own != ABSENT) & (above.own < letter)
        minus, opened = (token == self.numbers_of(sign) for sign in "-(")
        needs_value = (token >= zero + MODULUS) & ~opened
        good = torch.where(above.column == 0, minus | (has_value == needs_value), ~has_value)
        for part, least in ((above.left, 2), (above.right, 0)):
            good &= (above.column < least) | (part == ABSENT) | (part >= letter)
        # No bracket is opened where all cells are in use, and only a bracket begins an expression of several rows.
        good &= ~(opened & (above.right == ABSENT) & (above.own > letter))
        good &= (above.column == 0) | (above.own != ABSENT) | opened
        # Behind the last row there is a value and nothing else.
        last = torch.where(above.column == 0, has_value, above.own == letter)
        return torch.where(token == ABSENT, last, good)

    def parse(self, text: str) -> tuple[Shape, str]:
        self.checked(text, self.alphabets[INPUT], "the expression")
        check_expression(text, self.operators, DIGITS, text)
        return (len(text),), text

    def solve(self, source: str) -> str:
        self.parse(source)
        width = self.width(len(source))
        stack, value, rows = [("+", 0)], -1, []

        def become(number: int) -> int:
            operator, other = stack[-1]
            return (other + number if operator == "+" else other - number if operator == "-" else other * number) % 5

        for token in source:
            if token == "(":
                stack.append(("+", 0))
            elif token == ")":
                stack.pop()
                value = become(value)
            elif token in DIGITS:
                value = become(int(token))
            elif value >= 0:
                stack[-1], value = (token, value), -1
            else:
                operator, other = stack[-1]
                stack[-1] = ("*", -other % 5) if operator == "*" else ("-" if operator == "+" else "+", other)
            names = [self.alphabets[CELL][5 + 5 * "+-*".index(operator) + other] for operator, other in stack[::-1]]
            if value >= 0:
                names[0] = str(value)
            rows.append("".join(names)[:width].ljust(width, "a"))
        return "".join(f",{row}" for row in rows)

    def answer(self, target: str) -> str:
        rows = self.rows(target)
        return rows[-1][0] if rows and rows[-1][0] in DIGITS else target


@dataclass(frozen=True)
class SolveEquation(TokenTable):
    """The unknown of an equation, modulo 5: `(3-x)=4` has the target `,0++,3)+,3-+,i)+,i)+,i==,4)=`, the answer is 4.

    The left side is an expression with brackets, `+` and `-` in which one digit is the unknown `x`; the right side is a
    digit. Row i of the target is what i tokens leave behind. Its first cell is the sum so far: a digit before the
    unknown has come; then a letter, `a` to `e` if the unknown is added and `f` to `j` if it is subtracted; and a digit
    again at the end, which is the unknown. Its second cell is the sign of the next number, `)` where a value is
    complete, and `=` behind the equals sign. Further cells are a stack, top first: with which sign each open bracket
    counts; behind the equals sign they hold it too.

    Attributes:
        max_length: Longest training length, in tokens of the input.
    """

    characters: ClassVar[str] = ",01234+-()x=abcdefghij"
    alphabets: ClassVar[dict[str, str]] = {INPUT: "01234+-()x=", CELL: "01234abcdefghij+-)="}
    operators: ClassVar[str] = "+-"
    shortest: ClassVar[int] = 3

    base = 22
    max_length: int = 16

    def width(self, length: int) -> int:
        # The sign of the outermost brackets is +, as that of all that is beyond the stack.
        return 2 + max(1, depth(length - 2) - 1)

    @property
    def least_sizes(self) -> tuple[int, ...]:
        return 3, 3

    def num_problems(self, shape: Shape) -> int:
        return MODULUS * _digits(shape[0] - 2, len(self.operators))

    def all_operands(self, shape: Shape) -> list[Tensor]:
        sides = _strings(shape[0] - 2, self.operators, f"{DIGITS}x")
        texts = [f"{side}={digit}" for side in sides if side.count("x") == 1 for digit in DIGITS]
        return [torch.stack([self.numbers_of(text) for text in texts]).flip(1)]

    def draw(self, generator: Generator, batch: int, shape: Shape, suite: str) -> list[Tensor]:
        length = shape[0] - 2
        side, digits = draw_expressions(generator, batch, length, self.operators, suite)
        # The unknown is at the first digit from a token on that is uniform; behind the last digit the first comes.
        token = torch.randint(0, length, (batch, 1), generator=generator)
        away = (torch.arange(length) - token) % length
        unknown = away.masked_fill(~digits, length).argmin(dim=1, keepdim=True)
        side = side.scatter(1, unknown, ord("x"))
        value = ord("0") + torch.randint(0, MODULUS, (batch, 1), generator=generator)
        return [self.of_codes(torch.cat([side, torch.full_like(value, ord("=")), value], dim=1)).flip(1)]

    def cell(self, above: Neighbours) -> Tensor:
        zero, plus, minus, done, equals = self.numbers_of("0+-)=")
        token, column = above.token, above.column
        unknown, opened = (token == self.numbers_of(letter) for letter in "x(")
        digit = token - zero
        is_digit = (digit >= 0) & (digit < MODULUS)
        # The first cell: the sum, and whether the unknown has come, and with which sign.
        own = torch.where(above.own == ABSENT, zero, above.own)
        sign = torch.where(above.right == ABSENT, plus, above.right)
        letters = own - self.numbers_of("a")
        kind = torch.where(letters < 0, 0, 1 + letters.div(MODULUS, rounding_mode="floor"))
        total = torch.where(letters < 0, own - zero, letters % MODULUS)
        left_over = torch.where(kind == 1, digit - total, total - digit)
        added = torch.where(sign == equals, left_over, torch.where(sign == minus, total - digit, total + digit))
        total = torch.where(is_digit, added, total) % MODULUS
        kind = torch.where(unknown, torch.where(sign == minus, 2, 1), kind)
        kind = torch.where(is_digit & (sign == equals), 0, kind)
        first = torch.where(kind == 0, zero + total, self.numbers_of("a") + (kind - 1) * MODULUS + total)
        # The second cell: the sign of what comes next.
        own, left, right = (torch.where(part == ABSENT, plus, part) for part in (above.own, above.left, above.right))
        other = plus + minus - torch.where(own == done, right, own)
        second = torch.where(token == plus, right, torch.where(token == minus, other, done))
        second = torch.where(opened, own, torch.where(token == equals, equals, second))
        further = torch.where(opened, left, torch.where(token == done, right, own))
        further = torch.where(token == equals, equals, further)
        return torch.where(column == 0, first, torch.where(column == 1, second, further))

    def occurs(self, above: Neighbours) -> Tensor:
        zero, plus, minus, done, equals = self.numbers_of("0+-)=")
        letter = self.numbers_of("a")
        token, column = above.token, above.column
        unknown, opened = (token == self.numbers_of(letter) for letter in "x(")

        def is_sum(part: Tensor) -> Tensor:
            return ((part >= zero) & (part < zero + MODULUS)) | (part >= letter)

        def is_sign(part: Tensor) -> Tensor:
            return (part == plus) | (part == minus)

        own, left, right = above.own, above.left, above.right
        value_or_end = (own == done) | (own == equals)
        kinds = {
            0: (left == ABSENT, is_sum(own), is_sign(right) | (right == done) | (right == equals)),
            1: (is_sum(left), is_sign(own) | value_or_end, is_sign(right) | (right == equals)),
            2: (~is_sum(left), is_sign(own) | (own == equals), is_sign(right) | (right == equals)),
        }
        good = torch.zeros_like(own, dtype=torch.bool)
        for number, fits in kinds.items():
            each = [fit | (part == ABSENT) for fit, part in zip(fits, (left, own, right), strict=True)]
            good |= (column.clamp(max=2) == number) & each[0] & each[1] & each[2]
        # What may come after what.
        sign = torch.where(right == ABSENT, plus, right)
        needs_value = (token == plus) | (token == done) | (token == equals)
        follows = torch.where(needs_value, sign == done, (token == minus) | (sign != done))
        follows &= (sign != equals) | ((token >= zero) & (token < zero + MODULUS))
        has_come = own >= letter
        follows &= ~(unknown & has_come) & (has_come | ((token != equals) & (sign != equals)))
        good &= (column > 0) | follows
        # Behind the equals sign all cells hold it, and where it comes no bracket is open.
        for one, another, least in ((left, own, 2), (own, right, 1)):
            good &= (column < least) | (another == ABSENT) | ((one == equals) == (another == equals))
        good &= ~((column > 1) & (token == equals) & (own == minus))
        # No bracket is opened where all cells are in use, and only a bracket begins an equation of many columns.
        good &= ~(opened & (column > 1) & (right == ABSENT) & (own == minus))
        first = own == ABSENT
        good &= ~(first & (column == 0) & (token >= zero) & (token < zero + MODULUS))
        good &= ~(first & (column == 3) & ~opened)
        # Behind the last row there is the unknown.
        last = torch.where(column == 0, (own >= zero) & (own < zero + MODULUS), own == equals)
        return torch.where(token == ABSENT, torch.where(column == 1, own == done, last), good)

    def parse(self, text: str) -> tuple[Shape, str]:
        self.checked(text, self.alphabets[INPUT], "the equation")
        side, equals, value = text.partition("=")
        if not equals or len(value) != 1 or value not in DIGITS:
            raise ProblemError(f"{quoted(text)} is not an equation: write '=' and one digit at its end, as in (3-x)=4")
        if side.count("x") != 1:
            raise ProblemError(f"{quoted(text)} has {side.count('x')} unknowns: write one x")
        check_expression(side, self.operators, f"{DIGITS}x", text)
        return (len(text),), text

    def solve(self, source: str) -> str:
        self.parse(source)
        width = self.width(len(source))
        total, factor, sign, stack, rows = 0, 0, "+", ["+"], []
        for token in source:
            if token in DIGITS and sign == "=":
                total, factor, sign = factor * (int(token) - total) % 5, 0, ")"
            elif token in DIGITS:
                total, sign = (total + int(f"{sign}{token}")) % 5, ")"
            elif token == "x":
                factor, sign = int(f"{sign}1"), ")"
            elif token == "(":
                stack.append(sign)
            elif token == ")":
                stack.pop()
                sign = ")"
            elif token == "=":
                sign, stack = "=", ["="] * width
            elif token == "+":
                sign = stack[-1]
            else:
                sign = "-" if (stack[-1] if sign == ")" else sign) == "+" else "+"
            number = ("01234", "abcde", "fghij")[factor][total]
            rows.append(f"{number}{sign}{''.join(reversed(stack))}"[:width].ljust(width, "+"))
        return "".join(f",{row}" for row in rows)

    def answer(self, target: str) -> str:
        rows = self.rows(target)
        return rows[-1][0] if rows and rows[-1][0] in DIGITS else target
