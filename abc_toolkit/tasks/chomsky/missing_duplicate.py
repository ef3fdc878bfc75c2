"""The symbol that is hidden in a string that stands there twice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from abc_toolkit.layout import ANSWER, END, START, LayoutDescription, Repeat, Token
from abc_toolkit.linear import symbol
from abc_toolkit.tasks.base import ProblemError, quoted
from abc_toolkit.tasks.chomsky.base import ChomskyTask, at_most_one
from abc_toolkit.tasks.digits.copying import draw_string
from abc_toolkit.tasks.digits.rule import LocalRule
from abc_toolkit.tasks.lengths import Shape

HIDDEN = 2
PADDING = "padding"


class Finding(LocalRule):
    """The bit that stands where the other copy hides one, from there on.

    A state is what the answer is: 0, 1, or 2 as long as nothing is hidden. In state 3 a run does not count: the two
    copies differ otherwise than by one hidden bit.
    """

    operands = ("operand 1", "operand 2")
    along = "index"
    num_states = 4
    starts = (HIDDEN,)

    def step(
        self, state: Tensor, digits: Sequence[Tensor], constants: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        first, second = digits
        finds = ((first == HIDDEN) != (second == HIDDEN)) & (state == HIDDEN)
        same = (first == second) & (first != HIDDEN) & (state < 3)
        after = torch.where(finds, torch.minimum(first, second), torch.where(same, state, 3))
        return after, [after.clamp(max=HIDDEN)]

    def name_of(self, state: int) -> str:
        return "nothing hidden" if state == HIDDEN else f"hidden {state}"

    def ends_well(self, state: Tensor) -> Tensor:
        return state < HIDDEN


@dataclass(frozen=True)
class MissingDuplicate(ChomskyTask):
    """Tells which bit is hidden in a string that stands there twice: `01100210` has the target `2111`, the answer is 1.

    `2` hides a bit; `3` at the end pads the input to an odd length. The target goes through both copies at once, from
    the first bit on: it holds `2` as long as nothing was hidden, and then the hidden bit. The benchmark's output is the
    last token. (Of length 1 the benchmark has the single input `1`; here the shortest length is 2.)

    Attributes:
        max_length: Longest training length, in tokens of the input.
    """

    characters: ClassVar[str] = "0123"
    alphabets: ClassVar[Mapping[str, str]] = {"operand 1": "012", "operand 2": "012", PADDING: "3", ANSWER: "012"}
    shortest: ClassVar[int] = 2
    base = 3

    max_length: int = 12

    @property
    def literals(self) -> Mapping[str, str]:
        return {PADDING: "3"}

    def operand_lengths(self, shape: Shape) -> tuple[int, ...]:
        return (shape[0] // 2,) * 2

    def sizes(self, shape: Shape) -> tuple[int, ...]:
        """The length of a copy, and the number of padding tokens."""
        return divmod(shape[0], 2)

    def shape_of(self, sizes: Shape) -> Shape | None:
        length, padding = sizes
        return (2 * length + padding,) if padding < 2 else None

    @property
    def least_sizes(self) -> tuple[int, ...]:
        return 1, 0

    def describe_layout(self, sizes: Shape) -> LayoutDescription:
        length, padding = sizes[0], at_most_one(sizes[1])
        i = symbol("i")

        def string(name: str) -> Repeat:
            return Repeat(length, "i", (Token(name, length - 1 - i, i),))

        return LayoutDescription(
            ("operand 1", "operand 2", PADDING, START, ANSWER, END),
            (string("operand 1"), string("operand 2"), Repeat(padding, "i", (Token(PADDING, i, i),))),
            Token(START, 0, 0),
            (string(ANSWER), Token(END, -1, length)),
        )

    def answer_length(self, shape: Shape) -> int:
        return shape[0] // 2

    def num_problems(self, shape: Shape) -> int:
        length = shape[0] // 2
        return 2 * length * 2**length

    def all_operands(self, shape: Shape) -> list[Tensor]:
        length = shape[0] // 2
        strings = torch.cartesian_prod(*[torch.arange(2)] * length).reshape(-1, length).repeat(1, 2)
        hidden = torch.arange(2 * length).repeat_interleave(len(strings))
        both = strings.repeat(2 * length, 1).scatter(1, hidden[:, None], HIDDEN)
        return [both[:, :length], both[:, length:]]

    def draw(self, generator: Generator, batch: int, shape: Shape, suite: str) -> list[Tensor]:
        length = shape[0] // 2
        string = draw_string(generator, batch, length, suite, 2)
        hidden = torch.randint(0, 2 * length, (batch, 1), generator=generator)
        both = torch.cat([string, string], dim=1).scatter(1, hidden, HIDDEN)
        return [both[:, :length], both[:, length:]]

    def compute(self, operands: Sequence[Tensor]) -> Tensor:
        first, second = (symbols.flip(1) for symbols in operands)
        differs = first != second
        bit = (torch.minimum(first, second) * differs).sum(dim=1, keepdim=True)
        return torch.where(differs.cumsum(1) > 0, bit, HIDDEN)

    def parse(self, text: str) -> tuple[Shape, str]:
        self.checked(text, self.characters, "the string")
        length = len(text) // 2
        first, second, rest = text[:length], text[length : 2 * length], text[2 * length :]
        differ = sum(a != b for a, b in zip(first, second, strict=True))
        if text.count("2") != 1 or differ != 1 or rest not in ("", "3") or "3" in first + second:
            raise ProblemError(
                f"{quoted(text)} is not a bit string written twice with one bit hidden by '2', and a 3 after it if its "
                "length is odd: 01100210"
            )
        return (len(text),), text

    def solve(self, source: str) -> str:
        self.parse(source)
        length, at = len(source) // 2, source.index("2")
        before = at % length
        return "2" * before + source[(at + length) % (2 * length)] * (length - before)

    def answer(self, target: str) -> str:
        return target[-1:]

    def local_rule(self) -> LocalRule | None:
        return Finding()
