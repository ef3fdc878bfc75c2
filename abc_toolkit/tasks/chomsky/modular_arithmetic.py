"""The value of an expression without brackets, modulo 5."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from abc_toolkit.errors import UserError
from abc_toolkit.layout import LayoutDescription, digit_description
from abc_toolkit.tasks.base import ProblemError, quoted
from abc_toolkit.tasks.chomsky.base import ChomskyTask
from abc_toolkit.tasks.digits.rule import LocalRule, Read
from abc_toolkit.tasks.lengths import Shape

MODULUS = 5
OPERATORS = "+-*"
PRODUCT = "product"
SUM = "sum"


class Evaluating(LocalRule):
    """The product of the term so far, with its sign, and the value so far, modulo 5; the state is both.

    At each number it reads the operator before it. Before the first number there is none, which is as good as `+`.
    """

    operands = ("operand 1", "operator before")
    answers = (PRODUCT, SUM)
    along = "index"
    num_states = MODULUS**2

    def step(
        self, state: Tensor, digits: Sequence[Tensor], constants: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        value, product = state // MODULUS, state % MODULUS
        number, operator = digits[0], digits[1] - MODULUS
        multiplies = operator == OPERATORS.index("*")
        new = torch.where(multiplies, product * number, torch.where(operator == OPERATORS.index("-"), -number, number))
        value = (value + new - torch.where(multiplies, product, 0)) % MODULUS
        product = new % MODULUS
        return MODULUS * value + product, [product, value]

    def name_of(self, state: int) -> str:
        return f"sum {state // MODULUS}, product {state % MODULUS}"

    def read(self, name: str) -> Read:
        return Read("operand 2", shift=-1) if name == "operator before" else Read(name)


@dataclass(frozen=True)
class ModularArithmetic(ChomskyTask):
    """Evaluates an expression modulo 5, products before sums: `1+2*3` has the target `112312`, the answer is 2.

    For each number, from the first on, the target holds two tokens: the *product* of the term up to there, with the
    sign of the term, and the *sum*, which is the value of the expression up to there. For `1+2*3` these are 1 and 1,
    2 and 3, 6 and 7, all modulo 5. The benchmark's output is the last token. The length of an expression is odd; an
    even length means the length below it, as in the benchmark.

    Attributes:
        max_length: Longest training length, in tokens of the input; odd.
    """

    characters: ClassVar[str] = "01234" + OPERATORS
    alphabets: ClassVar[Mapping[str, str]] = {
        "operand 1": "01234",
        "operand 2": OPERATORS,
        PRODUCT: "01234",
        SUM: "01234",
    }
    base = MODULUS + len(OPERATORS)

    max_length: int = 11

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_length % 2 == 0:
            raise UserError(f"max_length {self.max_length}: an expression has an odd number of tokens: give an odd one")

    def training_shapes(self) -> tuple[Shape, ...]:
        return tuple((n,) for n in range(1, self.max_length + 1, 2))

    def evaluation_shapes(self, length: int, suite: str, generator: Generator) -> tuple[Shape, ...]:
        shapes = super().evaluation_shapes(length, suite, generator)
        return tuple((n - 1 + n % 2,) for (n,) in shapes)

    def operand_lengths(self, shape: Shape) -> tuple[int, ...]:
        (numbers,) = self.sizes(shape)
        return numbers, numbers - 1

    def sizes(self, shape: Shape) -> tuple[int, ...]:
        """The number of numbers."""
        return ((shape[0] + 1) // 2,)

    def shape_of(self, sizes: Shape) -> Shape | None:
        return (2 * sizes[0] - 1,)

    def describe_layout(self, sizes: Shape) -> LayoutDescription:
        (numbers,) = sizes
        source, target = [("operand 1", numbers), ("operand 2", numbers - 1)], [(PRODUCT, numbers), (SUM, numbers)]
        return digit_description(source, target, in_turn=True, answers_in_turn=True, downwards=True)

    def answer_length(self, shape: Shape) -> int:
        return shape[0] + 1

    def compute(self, operands: Sequence[Tensor]) -> Tensor:
        numbers, operators = (symbols.flip(1) for symbols in operands)
        term, others = numbers[:, 0], torch.zeros_like(numbers[:, 0])  # the term so far, and the sum of those before
        written = [term, term]
        for number, operator in zip(numbers[:, 1:].unbind(1), (operators - MODULUS).unbind(1), strict=True):
            times = operator == 2
            others = torch.where(times, others, others + term) % MODULUS
            term = torch.where(times, term * number, torch.where(operator == 1, -number, number)) % MODULUS
            written += [term, (others + term) % MODULUS]
        return torch.stack(written, dim=1)

    def parse(self, text: str) -> tuple[Shape, str]:
        self.checked(text, self.characters, "the expression")
        wrong = [character for i, character in enumerate(text) if (character in OPERATORS) != bool(i % 2)]
        if wrong or text[-1] in OPERATORS:
            raise ProblemError(
                f"{quoted(text)} is not an expression: write digits from 0 to 4, and +, - or * between them: 1+2*3"
            )
        return (len(text),), text

    def solve(self, source: str) -> str:
        written, before, term = [], 0, int(source[0])
        for operator, number in zip("+" + source[1::2], map(int, source[::2]), strict=True):
            if operator == "*":
                term *= number
            elif written:
                before, term = before + term, number if operator == "+" else -number
            before, term = before % MODULUS, term % MODULUS
            written += [str(term), str((before + term) % MODULUS)]
        return "".join(written)

    def answer(self, target: str) -> str:
        return target[-1:]

    def local_rule(self) -> LocalRule | None:
        return Evaluating()
