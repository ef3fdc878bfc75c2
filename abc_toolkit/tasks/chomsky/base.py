"""What the tasks of the benchmark share that are no tasks on numbers: strings over the alphabets of their segments.

The input of a task is the benchmark's, token by token. The target holds steps, from which the benchmark's output is
read off, token by token too: terminators and padding are part of an answer. The length of a problem is the number of
tokens of its input, as in the benchmark.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from abc_toolkit.errors import UserError
from abc_toolkit.hashing import scatter
from abc_toolkit.tasks.base import SMALL, UNIFORM, ProblemError, Problems, quoted
from abc_toolkit.tasks.digits.base import SETS, UNEQUAL, DigitTask
from abc_toolkit.tasks.digits.copying import draw_string
from abc_toolkit.tasks.digits.sampling import pick_rows
from abc_toolkit.tasks.lengths import Shape
from abc_toolkit.vocabulary import EOS, NUM_SPECIAL


def at_most_one(size: int) -> int:
    """A size, which may be a symbol, as the number 0 or 1.

    Raises:
        ProblemError: If it is larger.
    """
    if size > 1:
        raise ProblemError("at most one token is left over")
    return 1 if size > 0 else 0


@dataclass(frozen=True)
class ChomskyTask(DigitTask):
    """A task whose segments are strings, each over an alphabet of its own.

    An operand is a tensor of the numbers of its symbols, `[batch, length]`, in the order of `place`. A shape begins
    with the number of tokens of the input.

    Attributes:
        max_length: Longest training length, in tokens of the input.
        characters: Every character of its strings. The first `base` of them are those that the local rule reads.
        alphabets: The characters that a segment can hold; every character, where it is not named.
    """

    characters: ClassVar[str]
    alphabets: ClassVar[Mapping[str, str]]

    max_length: int = 10

    @property
    def symbols(self) -> str:  # type: ignore[override]
        return self.characters

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_length(self.max_length, "max_length")

    def num_tokens(self, shape: Shape) -> tuple[int, int]:
        return shape[0], self.answer_length(shape) + 1

    def keys(self, problems: Problems) -> Tensor:
        if self.num_problems(problems.shape) < SMALL:
            return torch.full((len(problems),), -1)
        hashed = torch.zeros(len(problems), dtype=torch.long)
        for number, symbols in enumerate(self.numbers(problems)):
            hashed += (symbols * scatter(torch.arange(symbols.shape[1]) * 64 + 2 * number + 1)).sum(dim=1)
        return scatter(hashed)

    def check_length(self, length: int, what: str = "length") -> None:
        """Refuses a length below the shortest.

        Raises:
            UserError: If it is.
        """
        if length < self.shortest:
            raise UserError(f"{what} {length}: the shortest problems of {self.name} have {self.shortest} tokens")

    def widths(self, shape: Shape) -> tuple[int, ...]:
        return self.operand_lengths(shape)

    def training_shapes(self) -> tuple[Shape, ...]:
        return tuple((n,) for n in range(self.shortest, self.max_length + 1))

    def evaluation_shapes(self, length: int, suite: str, generator: Generator) -> tuple[Shape, ...]:
        self.check_length(length)
        if suite != UNEQUAL:
            return ((length,),)
        return tuple((n,) for n in torch.randint(self.shortest, length + 1, (8,), generator=generator).tolist())

    def alphabet(self, segment: str) -> str:
        """The characters that a segment can hold."""
        return self.alphabets.get(segment, self.characters)

    def values(self, segment: str) -> tuple[int, ...]:
        if segment in self.alphabets:
            return tuple(self.vocabulary.encode(self.alphabets[segment]).tolist())
        return super().values(segment)

    def num_problems(self, shape: Shape) -> int:
        lengths = enumerate(self.operand_lengths(shape), 1)
        return math.prod(len(self.alphabet(f"operand {number}")) ** length for number, length in lengths)

    def draw(self, generator: Generator, batch: int, shape: Shape, suite: str) -> list[Tensor]:
        operands = []
        for number, length in enumerate(self.operand_lengths(shape), 1):
            letters = self.vocabulary.encode(self.alphabet(f"operand {number}")) - NUM_SPECIAL
            operands.append(letters[draw_string(generator, batch, length, suite, len(letters))])
        return operands

    def training_operands(self, generator: Generator, batch: int, shape: Shape) -> list[Tensor]:
        """Operands of which half of the rows are of the first suite, and the others of all suites in equal parts."""
        draws = [self.draw(generator, batch, shape, name) for name in (UNIFORM, *SETS)]
        kind = (torch.randint(0, 2 * len(SETS), (batch,), generator=generator) - len(SETS) + 1).clamp(min=0)
        return [pick_rows(kind, versions) for versions in zip(*draws, strict=True)]

    def problems(self, shape: Shape, operands: Sequence[Tensor]) -> Problems:
        """Problems of operands `[batch, length]`: each symbol stands where the layout says."""
        positions, batch = self.layout(shape).source, len(operands[0])
        source = torch.empty(batch, len(positions), dtype=torch.long)
        for segment, character in self.literals.items():
            source[:, positions.within(segment)] = self.vocabulary.encode(character)
        for number, symbols in enumerate(operands, 1):
            tokens = positions.within(f"operand {number}").nonzero()[:, 0]
            source[:, tokens] = symbols[:, positions.coordinates["place"][tokens]] + NUM_SPECIAL
        end = torch.full((batch, 1), EOS)
        return Problems(shape, source, torch.cat([self.compute(operands) + NUM_SPECIAL, end], dim=1))

    def checked(self, text: str, alphabet: str, what: str) -> str:
        """`text` if it is a string over an alphabet.

        Raises:
            ProblemError: If it is empty or holds another character.
        """
        if not text:
            raise ProblemError(f"{what} is empty")
        rest = text.lstrip(alphabet)
        if rest:
            raise ProblemError(f"{what} {quoted(text)} holds {rest[0]!r}, which is not one of {' '.join(alphabet)}")
        return text
