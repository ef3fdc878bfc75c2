"""Random tasks, windows and models that try to be certified although they are wrong, and what judges them."""

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from unittest.mock import patch

import torch
from torch import Generator, Tensor

from abc_toolkit.layout import Layout, LayoutDescription, Positions, Repeat, Token
from abc_toolkit.linear import symbol
from abc_toolkit.models.base import Architecture, predict
from abc_toolkit.models.decoding import solve_problems
from abc_toolkit.models.transformer import EncoderDecoder
from abc_toolkit.positions import Compose, Cyclic, Learned, ModelPosition, ModelSizes, NoPE, PositionMethod
from abc_toolkit.proof import meaning, verdict
from abc_toolkit.tasks import Addition, Comparison, Copy, Division, Problems, Reverse, Shape, Subtraction
from abc_toolkit.tasks.base import ProblemError
from abc_toolkit.tasks.digits import copying
from abc_toolkit.tasks.digits.base import CARRY, DIGITS, SETS, UNEQUAL, ZEROS, DigitTask
from abc_toolkit.tasks.digits.rule import LocalRule, Read
from abc_toolkit.tasks.digits.sampling import choose_rows, keep_places, pad, pairs_of_lengths, random_run, with_zeros
from abc_toolkit.vocabulary import NUM_SPECIAL
from abc_toolkit.windows.attention import Windowed
from abc_toolkit.windows.rules import Condition, Rule, Window

LETTERS = "ABCDEF"  # a symbol for each state
FALLBACK_LONGEST = 40  # where a certificate says of no length that it was gone through
FAR = (4, 5, 5, 6, 7, 9, 10**6, 10**18)


# Tasks.


@dataclass(frozen=True)
class Transducer(LocalRule):
    """A finite-state transducer by its table.

    Attributes:
        base: Number of digits.
        states: Its states; twice as many where the answer depends on the verdict on the last one, which is guessed.
        moves: Next state by state, digits and constant.
        writes: Digit that is written by guess, state, digits and constant.
        verdicts: The verdict on each state; none if nothing is guessed.
        reveals: Whether the next state is written in place of a digit.
        operands: As of every rule, as the others.
        constants: As of every rule.
        answers: As of every rule.
        along: As of every rule.
    """

    base: int
    states: int
    moves: tuple[int, ...]
    writes: tuple[int, ...]
    verdicts: tuple[int, ...]
    reveals: bool
    operands: tuple[str, ...]  # type: ignore[assignment]
    constants: tuple[str, ...] = ()  # type: ignore[assignment]
    answers: tuple[str, ...] = ("answer",)  # type: ignore[assignment]
    along: str = "place"  # type: ignore[assignment]

    @property
    def num_states(self) -> int:  # type: ignore[override]
        return self.states * (2 if self.verdicts else 1)

    @property
    def starts(self) -> tuple[int, ...]:  # type: ignore[override]
        return (0, self.states) if self.verdicts else (0,)

    @cached_property
    def _tables(self) -> tuple[Tensor, Tensor, Tensor]:
        return torch.tensor(self.moves), torch.tensor(self.writes), torch.tensor(self.verdicts or (0,) * self.states)

    def step(
        self, state: Tensor, digits: Sequence[Tensor], constants: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        moves, writes, _ = self._tables
        guess, own = state // self.states, state % self.states
        cell, written = own, state
        for digit in (*digits, *constants):
            cell, written = cell * self.base + digit, written * self.base + digit
        after, digit = moves[cell], writes[written]
        symbols = {"trace": self.base + after, "answer": self.base + after if self.reveals else digit}
        return guess * self.states + after, [symbols[name] for name in self.answers]

    def ends_well(self, state: Tensor) -> Tensor:
        if not self.verdicts:
            return super().ends_well(state)
        return self._tables[2][state % self.states] == state // self.states


@dataclass(frozen=True)
class Machine(DigitTask):
    """What a transducer writes of one or two operands.

    Attributes:
        max_length: Longest training length.
        base: Number of digits.
        states: States of the transducer.
        moves: Next state by state, digits and constant.
        writes: Digit that is written by guess, state, digits and constant.
        verdicts: The verdict on each state; none if nothing is guessed.
        form: `hidden` writes digits, `reveal` states, `turn` both in turn, `after` digits after all states.
        second: `` none, `same` or `own` width, `constant`, or one that does not matter: `idle` or `idle digit`.
        along_index: Whether the transducer begins at the most significant digit.
        down: Whether the target is written from the most significant digit down.
        more: By how many places the answer is longer than the operands; one less, if it is -1.
        jump: Length of operands from which on the answer is one place longer still; 0 for none.
        fixed: Width that operands are padded to; 0 for none.
        pairs: Whether two operands are written in turn.
    """

    max_length: int = 3
    base: int = 2
    states: int = 1
    moves: tuple[int, ...] = (0, 0)
    writes: tuple[int, ...] = (0, 1)
    verdicts: tuple[int, ...] = ()
    form: str = "hidden"
    second: str = ""
    along_index: bool = False
    down: bool = False
    more: int = 0
    jump: int = 0
    fixed: int = 0
    pairs: bool = False

    @property
    def symbols(self) -> str:  # type: ignore[override]
        return DIGITS[: self.base] + LETTERS[: self.states] + "+"

    @property
    def operator(self) -> str:
        return "+" if self.second else ""

    @property
    def in_turn(self) -> bool:
        return self.pairs

    @property
    def answers_in_turn(self) -> bool:  # type: ignore[override]
        return self.form == "turn"

    @property
    def downwards(self) -> bool:  # type: ignore[override]
        return self.down

    @property
    def _two(self) -> bool:
        """Whether the operands have lengths of their own."""
        return self.second in ("own", "idle")

    def training_shapes(self) -> tuple[Shape, ...]:
        lengths = range(1 if self.more >= 0 else 2, self.max_length + 1)
        if not self._two:
            return tuple((n,) for n in lengths)
        return tuple(sorted(itertools.product(lengths, lengths), key=max))

    def evaluation_shapes(self, length: int, set_name: str, generator: Generator) -> tuple[Shape, ...]:
        if not self._two:
            return ((length,),)
        other = int(torch.randint(1, length + 1, (), generator=generator))
        return (length, length), (length, other), (other, length)

    def operand_lengths(self, shape: Shape) -> tuple[int, ...]:
        if not self.second:
            return shape
        return shape if self._two else (shape[0], 1 if self.second in ("constant", "idle digit") else shape[0])

    def widths(self, shape: Shape) -> tuple[int, ...]:
        lengths = self.operand_lengths(shape)
        if self.more < 0 and lengths[0] < 2:
            raise ProblemError("an operand is too short: give two digits")
        if not self.fixed:
            return lengths
        width = max(self.fixed, lengths[0])
        return (width, *((width,) if self.second == "same" else lengths[1:]))

    @property
    def _read(self) -> int:
        """Operands that the transducer reads."""
        return 2 if self.second in ("same", "own") else 1

    def answer_length(self, shape: Shape) -> int:
        return sum(length for _, length in self.answers(shape))

    def answers(self, shape: Shape) -> Sequence[tuple[str, int]]:
        length = self._written(max(self.widths(shape)[: self._read]))
        names = ("trace", "answer") if self.form in ("turn", "after") else ("answer",)
        return [(name, length) for name in names]

    def _written(self, width: int) -> int:
        """Places of the answer to operands of a width."""
        return width + self.more + 1 if self.jump and width >= self.jump else width + self.more

    def draw(self, generator: Generator, batch: int, shape: Shape, set_name: str) -> list[Tensor]:
        operands = []
        for length in self.operand_lengths(shape):
            digits = torch.randint(0, self.base, (batch, length), generator=generator)
            if set_name == CARRY:
                same = digits[:, :1].expand(-1, length)
                period = torch.randint(1, max(length // 2, 1) + 1, (batch, 1), generator=generator)
                run = torch.where(random_run(generator, batch, length), same, digits)
                digits = choose_rows(generator, same, digits.gather(1, torch.arange(length) % period), run)
            elif set_name == ZEROS:
                digits = with_zeros(generator, digits)
            elif set_name == UNEQUAL:
                digits = keep_places(digits, torch.randint(0, length + 1, (batch,), generator=generator))
            operands.append(digits)
        return operands

    def local_rule(self) -> Transducer:
        return Transducer(
            self.base,
            self.states,
            self.moves,
            self.writes,
            self.verdicts,
            self.form == "reveal",
            tuple(f"operand {i}" for i in range(1, self._read + 1)),
            ("operand 2",) if self.second == "constant" else (),
            ("trace", "answer") if self.form in ("turn", "after") else ("answer",),
            "index" if self.along_index else "place",
        )

    def compute(self, operands: Sequence[Tensor]) -> Tensor:
        rule = self.local_rule()
        width = max(part.shape[1] for part in operands[: self._read])
        read = [pad(part, width) for part in operands[: self._read]]
        read = [part.flip(1) if self.along_index else part for part in read]
        length = self._written(width)
        read = [pad(part, max(length, width)) for part in read]
        constants = [operands[1][:, 0]] if self.second == "constant" else []
        target = torch.zeros(0)
        for start in rule.starts:
            state, found = torch.full_like(read[0][:, 0], start), []
            for place in range(max(length, width)):
                state, symbols = rule.step(state, [part[:, place] for part in read], constants)
                found.append(torch.stack(list(symbols), dim=1))
            columns = torch.stack(found[:length], dim=1)
            columns = columns.flip(1) if self.down != self.along_index else columns
            own = columns.flatten(1) if self.form == "turn" else columns.transpose(1, 2).flatten(1)
            target = own if start == 0 else torch.where(rule.ends_well(state)[:, None], own, target)
        return target

    def parse(self, text: str) -> tuple[Shape, str]:
        if not self.second:
            shape = (len(self.digits(text, "the operand")),)
            return shape, text.zfill(self.widths(shape)[0])
        first, second = self.operands(text, "two operands")
        shape = (len(first), len(second)) if self._two else (max(len(first), len(second)),)
        widths = self.widths(shape)
        return shape, self.written(first.zfill(widths[0]), second.zfill(widths[1]))

    def solve(self, source: str) -> str:
        texts = self.split(source) if self.second else [source]
        numbers = [[DIGITS.index(digit) for digit in text] for text in texts]
        read = numbers[: self._read]
        width = max(map(len, read))
        length = self._written(width)
        constant = numbers[1] if self.second == "constant" else []
        state, cells = 0, []
        for place in range(max(length, width)):
            column = [state]
            for digits in read:
                number = place if self.along_index else len(digits) - 1 - place
                column.append(digits[number] if 0 <= number < len(digits) else 0)
            cells.append([*column, *constant])
            state = self.moves[self._cell(cells[-1])]
        guess = self.verdicts[state] if self.verdicts else 0
        states = ([cell[0] for cell in cells[1:]] + [state])[:length]
        trace = [LETTERS[own] for own in states]
        answer = [
            DIGITS[self.writes[self._cell([guess * self.states + cell[0], *cell[1:]])]] for cell in cells[:length]
        ]
        if self.down != self.along_index:
            trace, answer = trace[::-1], answer[::-1]
        if self.form == "turn":
            return "".join(itertools.chain.from_iterable(zip(trace, answer, strict=True)))
        return "".join({"hidden": answer, "reveal": trace, "after": trace + answer}[self.form])

    def _cell(self, column: Sequence[int]) -> int:
        """Where a table holds a state, digits and a constant."""
        number = 0
        for value in column:
            number = number * self.base + value
        return number

    def answer(self, target: str) -> str:
        return target


def random_machine(draw: random.Random) -> Machine:
    """A task whose transducer has a graph of its own kind: it counts, goes in a circle, remembers, or wanders."""
    base = draw.choice((2, 2, 2, 3, 4))
    second = draw.choice(("", "", "", "same", "constant", "idle digit", "own" if draw.random() < 0.4 else ""))
    second = "idle" if not second and draw.random() < 0.06 else second
    if base == 4 and second in ("same", "own"):
        base = 3
    form = draw.choice(("hidden", "reveal", "turn", "turn", "after"))
    states = draw.choice((1, 2, 2, 3, 3, 4, 5, 6))
    along_index = second != "own" and draw.random() < 0.25
    inputs = 1 + (second in ("same", "own", "constant"))
    columns = list(itertools.product(range(base), repeat=inputs))
    graph = draw.choice(("count", "circle", "rho", "wander", "definite", "count and wander"))
    turn = draw.randrange(states)
    moves = []
    definite = [draw.randrange(states) for _ in columns]
    for state, (number, _) in itertools.product(range(states), enumerate(columns)):
        counted = min(state + 1, states - 1)
        after = {
            "count": counted,
            "circle": (state + 1) % states,
            "rho": state + 1 if state + 1 < states else turn,
            "wander": draw.randrange(states),
            "definite": definite[number],
            "count and wander": counted if draw.random() < 0.8 else draw.randrange(states),
        }
        moves.append(after[graph])
    guesses = 2 if form == "after" and states > 1 and draw.random() < 0.7 else 1
    verdicts = tuple(draw.randrange(2) for _ in range(states)) if guesses == 2 else ()
    writes = [draw.randrange(base) for _ in range(guesses * states * len(columns))]
    if draw.random() < 0.3:  # one that has only to be copied while nothing is counted
        writes = [column[0] for _ in range(guesses * states) for column in columns]
        writes = [draw.randrange(base) if draw.random() < 0.15 else digit for digit in writes]
    return Machine(
        max_length=draw.choice((2, 3, 3, 4)),
        base=base,
        states=states,
        moves=tuple(moves),
        writes=tuple(writes),
        verdicts=verdicts,
        form=form,
        second=second,
        along_index=along_index,
        down=along_index != (draw.random() < 0.1),
        more=draw.choice((0, 0, 1, 1, 2, -1)) if second != "own" else draw.choice((0, 1)),
        jump=draw.randint(3, 6) if draw.random() < 0.08 else 0,
        fixed=draw.choice((4, 6, 12)) if second != "own" and draw.random() < 0.08 else 0,
        pairs=second == "same" and draw.random() < 0.3,
    )


@dataclass(frozen=True)
class RowTransducer(Transducer):
    """A transducer that begins anew in each row of a table, and reads the row above.

    Attributes:
        shift: Columns by which the row above is moved down.
    """

    rows = True

    shift: int = 0

    def read(self, name: str) -> Read:
        return Read("answer", row=1, shift=self.shift) if name == "above" else Read(name, row=0)


@dataclass(frozen=True)
class Grid(DigitTask):
    """A table with a row for each of some numbers, in which a transducer reads the number and the row above.

    Attributes:
        max_length: Longest number in training, and most numbers.
        base: Number of digits.
        states: States of the transducer.
        moves: Next state by state, digit, and digit above.
        writes: Digit that is written by the same.
        shift: Columns by which the row above is moved down.
    """

    max_length: int = 3
    base: int = 2
    states: int = 1
    moves: tuple[int, ...] = (0,) * 4
    writes: tuple[int, ...] = (0, 1, 1, 0)
    shift: int = 0

    @property
    def symbols(self) -> str:  # type: ignore[override]
        return DIGITS[: self.base] + LETTERS[: self.states] + "+,"

    @property
    def operator(self) -> str:
        return "+"

    @property
    def literals(self) -> Mapping[str, str]:
        return {"operator": "+", "comma": ","}

    def training_shapes(self) -> tuple[Shape, ...]:
        return pairs_of_lengths(self.max_length)

    def evaluation_shapes(self, length: int, set_name: str, generator: Generator) -> tuple[Shape, ...]:
        return (length, 2), (2, length)

    def operand_lengths(self, shape: Shape) -> tuple[int, ...]:
        return (shape[0],) * shape[1]

    def widths(self, shape: Shape) -> tuple[int, ...]:
        return self.operand_lengths(shape)

    def num_tokens(self, shape: Shape) -> tuple[int, int]:
        return shape[1] * (shape[0] + 1) - 1, self.answer_length(shape) + 1

    def answer_length(self, shape: Shape) -> int:
        return shape[1] * (2 * shape[0] + 1)

    def describe_layout(self, sizes: Shape) -> LayoutDescription:
        width, count = sizes
        i, j = symbol("i"), symbol("j")
        first, last = (Repeat(width, "j", (Token("operand", width - 1 - j, j, row),)) for row in (i, count - 1))
        pair = tuple(Token(name, j, width - 1 - j, i) for name in ("trace", "answer"))
        row = (Repeat(width, "j", pair), Token("comma", width, -1, i))
        return LayoutDescription(
            ("operand", "operator", "start", "trace", "answer", "comma", "end"),
            (Repeat(count - 1, "i", (first, Token("operator", 0, 0, i))), last),
            Token("start", 0, width - 1),
            (Repeat(count, "i", row), Token("end", 0, width - 1, count)),
        )

    def draw(self, generator: Generator, batch: int, shape: Shape, set_name: str) -> list[Tensor]:
        same = set_name == CARRY
        rows = [
            torch.randint(0, self.base, (batch, 1 if same else shape[0]), generator=generator) for _ in range(shape[1])
        ]
        return [row.expand(-1, shape[0]) for row in rows]

    def numbers(self, problems: Problems) -> list[Tensor]:
        width = problems.shape[0]
        return [row[:, :width].flip(1) - NUM_SPECIAL for row in problems.source.split(width + 1, dim=1)]

    def local_rule(self) -> RowTransducer:
        names = ("operand", "above"), (), ("trace", "answer")
        return RowTransducer(self.base, self.states, self.moves, self.writes, (), False, *names, shift=self.shift)

    def compute(self, operands: Sequence[Tensor]) -> Tensor:
        rule, none = self.local_rule(), torch.zeros_like(operands[0][:, 0])
        above, rows = [none] * operands[0].shape[1], []
        for operand in operands:
            state, tokens = none, []
            for digit, upper in zip(operand.unbind(1), above, strict=True):
                state, both = rule.step(state, [digit, upper], [])
                tokens += both
            above = [*tokens[1::2], *[none] * self.shift][self.shift :]
            rows += [*tokens, torch.full_like(none, len(self.symbols) - 1)]
        return torch.stack(rows, dim=1)

    def parse(self, text: str) -> tuple[Shape, str]:
        parts = [self.digits(part, "an operand") for part in text.split("+")]
        width = max(map(len, parts))
        return (width, len(parts)), "+".join(part.zfill(width) for part in parts)

    def solve(self, source: str) -> str:
        rows, above = [], ""
        for text in source.split("+"):
            state, row, digits = 0, "", ""
            for place, digit in enumerate(reversed(text)):
                upper = above[place + self.shift : place + self.shift + 1] or "0"
                cell = (state * self.base + int(digit)) * self.base + int(upper)
                state, digits = self.moves[cell], digits + DIGITS[self.writes[cell]]
                row += LETTERS[state] + digits[-1]
            rows.append(row + ",")
            above = digits
        return "".join(rows)

    def answer(self, target: str) -> str:
        return target


def random_grid(draw: random.Random) -> Grid:
    """A table of some transducer."""
    states = draw.choice((1, 2, 3))
    moves = tuple(draw.randrange(states) for _ in range(4 * states))
    writes = tuple(draw.randrange(2) for _ in range(4 * states))
    return Grid(2, 2, states, moves, writes, draw.choice((0, 0, 1)))


SHIPPED: tuple[DigitTask, ...] = (
    Addition(max_length=3, base=2),
    Addition(max_length=2, base=3),
    Addition(max_length=3, base=2, padding="none"),
    Addition(max_length=3, base=2, interleaved=True),
    Addition(max_length=3, base=2, padding="fixed", width=7),
    Subtraction(max_length=3, base=2),
    Comparison(max_length=3, base=2),
    Comparison(max_length=3, base=3),
    Copy(max_length=4, base=3),
    Reverse(max_length=4, base=2),
    copying.Repeat(max_length=3, base=2),
    Division(max_length=3, base=3),
)


def segments_of(task: DigitTask) -> tuple[list[str], list[str]]:
    """Names of the segments of source and target."""
    if isinstance(task, Grid):
        return ["operand", "operator"], ["trace", "answer", "comma"]
    shape = task.training_shapes()[0]
    return [name for name, _ in task.segments(shape)], [name for name, _ in task.answers(shape)]


# Windows.


def sufficient_lines(task: DigitTask) -> list[Rule]:
    """Lines that show what a rule needs where states are written down; layers and heads are yet to be given."""
    rule = task.local_rule()
    assert rule is not None
    if isinstance(task, Grid):
        same, above = Condition("row", 0, "row"), Condition("row", 1, "row")
        return [
            Rule("cross", 0, 0, "operand", (same, Condition("column", 0, "column"))),
            Rule("decoder", 0, 0, "answer", (above, Condition("column", -task.shift, "column"))),
            Rule("decoder", 0, 0, "trace", (same, Condition("column", 1, "column"))),
        ]
    along, other = rule.along, "index" if rule.along == "place" else "place"
    _, targets = segments_of(task)
    more = 0
    if isinstance(task, Machine):
        more = max(task.more, 0) + (task.jump > 0)
    elif isinstance(task, Addition):
        more = 1

    def own(offset: int) -> tuple[Condition, ...]:
        return (Condition(along, offset, along),)

    lines = [Rule("cross", 0, 0, name, own(offset)) for name in rule.operands for offset in range(more + 1)]
    lines += [Rule("cross", 0, 0, name, (Condition("place", 0),)) for name in rule.constants]
    if len(targets) > 1:
        lines += [Rule("decoder", 0, 0, name, own(1)) for name in targets[: 1 + (task.name == "division")]]
        lines.append(Rule("decoder", 0, 0, targets[0], (Condition(other, 0),)))
        lines.append(Rule("decoder", 0, 0, targets[0], own(0)))
    return lines


def random_condition(draw: random.Random) -> Condition:
    """A condition of any kind; those that are usual come more often."""
    coordinate = draw.choice(("place", "place", "index", "index", "raw" if draw.random() < 0.2 else "place"))
    small = draw.choice((0, 0, 1, 1, 2, 3, -1, -2))
    kind = draw.random()
    if kind < 0.55:
        return Condition(coordinate, small, coordinate)
    if kind < 0.85:
        return Condition(draw.choice(("place", "index")), abs(small))
    if kind < 0.93:
        return Condition(draw.choice(("place", "index")), draw.choice(FAR))
    if kind < 0.96:
        pair = draw.sample(("place", "index", "raw", "raw_from_end", "column"), 2)
        return Condition(pair[0], small, pair[1])
    coordinate = draw.choice(("place", "index", "column", "row", "raw_from_end", "segment"))
    return Condition(coordinate, draw.choice(FAR) * draw.choice((1, -1)), coordinate)


def random_line(draw: random.Random, task: DigitTask, encoder: int) -> Rule:
    """A line of any kind, in layer 0 and head 0."""
    sources, targets = segments_of(task)
    site = draw.choice(("cross", "cross", "decoder", *(("encoder",) * 2 if encoder else ())))
    keys = [*targets, "start"] if site == "decoder" else sources
    conditions = [random_condition(draw) for _ in range(draw.choice((1, 1, 1, 2, 2, 3)))]
    if isinstance(task, Grid) and draw.random() < 0.8:
        conditions.append(Condition("row", draw.choice((0, 0, 1, 2)), draw.choice(("row", "row", None))))
    return Rule(
        site,  # type: ignore[arg-type]
        0,
        0,
        draw.choice((*keys, *keys, None, "nowhere") if draw.random() < 0.3 else keys),
        tuple(conditions),
        draw.choice((0.0, 0.0, 0.0, 0.5, -1.0, 20.0)),
        draw.choice((*targets, "end")) if site != "encoder" and draw.random() < 0.2 else None,
        draw.random() < 0.15,
    )


def pinning_line(draw: random.Random, task: DigitTask, shortest: int, longest: int) -> Rule:
    """A line that opens at one length, or from one on, beyond those that are short."""
    name = draw.choice(segments_of(task)[0])
    row = (Condition("row", draw.randint(0, 3), draw.choice(("row", None))),) if isinstance(task, Grid) else ()
    far = draw.randint(shortest, longest)
    ways = (
        (Condition("place", far),),
        (Condition("index", far),),
        (Condition("place", far), Condition("index", draw.randint(0, far))),
        (Condition("place", far, "place"), Condition("index", draw.randint(0, 3))),
        (Condition("index", far, "index"), Condition("place", draw.randint(0, 3))),
        (
            Condition("place", far // 2),
            Condition("place", far - far // 2, "place"),
            Condition("index", far // 2, "index"),
        ),
        (Condition("place", far // 3), Condition("place", far // 3, "place"), Condition("index", -far // 3, "place")),
        (Condition("place", far // 2), Condition("place", 0, "place"), Condition("index", far - far // 2)),
    )
    return Rule("cross", 0, 0, name, (*draw.choice(ways), *row), draw.choice((0.0, 20.0)))


def placed(draw: random.Random, rules: Sequence[Rule], layers: int, heads: int, crowded: float) -> list[Rule]:
    """The rules in layers and heads of their own as long as there are some."""
    free = {
        site: draw.sample(list(itertools.product(range(count), range(heads))), count * heads)
        for site, count in (("encoder", 1), ("decoder", layers), ("cross", layers))
    }
    found = []
    for rule in rules:
        every = list(itertools.product(range(1 if rule.site == "encoder" else layers), range(heads)))
        layer, head = free[rule.site].pop() if free[rule.site] and draw.random() > crowded else draw.choice(every)
        found.append(replace(rule, layer=layer, head=head))
    return found


# Position methods beside the window.


@dataclass(frozen=True)
class Liar(PositionMethod):
    """Says that it repeats, and adds more and more.

    Attributes:
        coordinate: Which coordinate.
    """

    coordinate: str = "place"

    @property
    def repeats_after(self) -> int | None:
        return 3

    def embed(self, x: Tensor, positions: Positions) -> Tensor:
        grows = positions.coordinates[self.coordinate].to(x.dtype) / 10
        return x + grows[:, None] * torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype)


@dataclass(frozen=True)
class High(Liar):
    """Writes to the channels above the sixteenth alone."""

    def embed(self, x: Tensor, positions: Positions) -> Tensor:
        added = super().embed(x, positions)
        return torch.cat([x[..., :16], added[..., 16:]], dim=-1)


@dataclass(frozen=True)
class Unbound(Cyclic):
    """Cyclic by its name alone."""

    def values(self, positions: Positions, coordinate: Any) -> Tensor:
        return positions.coordinates[coordinate]


class _Drawn(ModelPosition):
    """Draws a number for each token of a layout."""

    draws = True
    makes = ("drawn",)

    def prepare(self, layout: Layout) -> Layout:
        def drawn(positions: Positions) -> Positions:
            number = torch.rand(len(positions))
            return Positions(positions.names, {**positions.coordinates, "drawn": number})

        return Layout(*(drawn(part) for part in (layout.source, layout.target, layout.prefix)))

    def embed(self, x: Tensor, positions: Positions) -> Tensor:
        if "drawn" not in positions.coordinates:  # asked without a layout that was prepared
            return x
        return x + positions.coordinates["drawn"].to(x.dtype)[:, None] * torch.linspace(-9, 9, x.shape[-1]).to(x.dtype)


@dataclass(frozen=True)
class Drawing(PositionMethod):
    """Adds what is drawn, and says that it repeats."""

    @property
    def repeats_after(self) -> int | None:
        return 1

    def build(self, sizes: ModelSizes) -> ModelPosition:
        return _Drawn(self, sizes)


class _Shifted(ModelPosition):
    """A vector of the model's own for each place from the 25th on."""

    def __init__(self, method: PositionMethod, sizes: ModelSizes) -> None:
        super().__init__(method, sizes)
        self.vectors = torch.nn.Parameter(5 * torch.randn(64, sizes.model_dim))
        self.vectors.data[:25] = 0

    def embed(self, x: Tensor, positions: Positions) -> Tensor:
        return x + self.vectors.to(x.dtype)[positions.coordinates["place"].clamp(0, 63)]


@dataclass(frozen=True)
class Shifted(PositionMethod):
    """Vectors that are the model's; its settings alone add nothing."""

    @property
    def repeats_after(self) -> int | None:
        return 1

    def build(self, sizes: ModelSizes) -> ModelPosition:
        return _Shifted(self, sizes)


def random_position(draw: random.Random, task: DigitTask) -> PositionMethod:
    """A method beside the window."""

    def cyclic(periods: Sequence[int]) -> Cyclic:
        names = draw.sample(
            ("place", "index", "raw", "raw_from_end", "segment", "row", "column"), 1 + (draw.random() < 0.3)
        )
        if draw.random() < 0.6:
            names = [draw.choice(("place", "index"))]
        return Cyclic(
            tuple(names),  # type: ignore[arg-type]
            base=draw.choice((1.0, 100.0, 10000.0)),
            channels=draw.choice(("interleaved", "concatenated")),
            period=draw.choice(periods),
        )

    kind = draw.random()
    if kind < 0.7:
        return NoPE()
    if kind < 0.82:
        states = task.states if isinstance(task, Machine) else 2
        return cyclic((1, 2, 3, 4, 5, 2 * states, 30 if draw.random() < 0.2 else 7))
    if kind < 0.92:
        parts = [cyclic((1, 2, 3, 5)) for _ in range(draw.choice((1, 2, 2, 3)))]
        return Compose((*parts, NoPE()) if draw.random() < 0.3 else tuple(parts))
    odd: tuple[PositionMethod, ...] = (Liar(), Liar("raw"), High(), Unbound(("place",)), Drawing(), Shifted())
    method = draw.choice((*odd, Learned("raw", 4096)))
    return Compose((cyclic((2, 3)), method)) if draw.random() < 0.5 else method


# Models.


def orthogonal(generator: Generator, rows: int, columns: int) -> Tensor:
    """Rows at right angles to one another, as far as there is room."""
    size = max(rows, columns)
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.double))[0][:rows, :columns]


def fresh(
    generator: Generator, task: DigitTask, sizes: Architecture, position: PositionMethod, attends: float, spread: float
) -> EncoderDecoder:
    """A model that mixes what it reads and changes nothing else: no feed-forward layer does anything.

    Args:
        generator: Draws the weights.
        task: The task.
        sizes: Sizes.
        position: The window and what is beside it.
        attends: How much attention among open keys depends on what they hold.
        spread: How much longer an embedding is than what positions add to it.
    """
    model = EncoderDecoder(len(task.vocabulary), sizes, position).double().eval()
    dim = sizes.model_dim
    vectors = torch.randn(len(task.vocabulary), dim, generator=generator, dtype=torch.double)
    vectors -= vectors.mean(dim=1, keepdim=True)
    model.embedding.weight.data = spread * vectors / vectors.norm(dim=1, keepdim=True)
    for stack in (model.encoder, model.decoder):
        for block in stack:
            for attention in (block.self_attention, *((block.cross_attention,) if block.cross else ())):
                scale = 1.0 if attention is block.self_attention else 1 / spread
                attention.query.weight.data = attends * orthogonal(generator, dim, dim)
                keys, values = orthogonal(generator, dim, dim), orthogonal(generator, dim, dim)
                attention.key_value.weight.data = torch.cat([attends * keys, values * scale * sizes.num_heads**0.5])
                attention.output.weight.data = orthogonal(generator, dim, dim)
            for layer in (block.feedforward[0], block.feedforward[3]):
                layer.weight.data.zero_()
                layer.bias.data.zero_()
    return model


@dataclass(frozen=True)
class Views:
    """What the last feed-forward layer sees of some predictions, and what it should say.

    Attributes:
        seen: Vectors, `[view, model_dim]`.
        required: Tokens, `[view]`.
        conflicts: Whether two of them that are alike need different tokens.
    """

    seen: Tensor
    required: Tensor
    conflicts: bool


@torch.no_grad()
def views_of(task: DigitTask, model: EncoderDecoder, batches: Sequence[Problems]) -> Views:
    """The distinct views of all predictions of some problems."""
    caught: list[Tensor] = []
    handle = model.decoder[-1].feedforward.register_forward_pre_hook(lambda _, given: caught.append(given[0]))
    for problems in batches:
        predict(model, problems, task.layout(problems.shape))
    handle.remove()
    seen = torch.cat([part.flatten(0, 1) for part in caught])
    required = torch.cat([problems.target.flatten() for problems in batches])
    direction = torch.randn(seen.shape[1], generator=Generator().manual_seed(0), dtype=seen.dtype)
    _, which = ((seen @ direction) * 1e7).round().unique(return_inverse=True)
    number = torch.arange(len(which))
    first = torch.full((int(which.max()) + 1,), len(which)).scatter_reduce(0, which, number, "amin")
    conflicts = bool((required[first][which] != required).any())
    return Views(seen[first], required[first], conflicts)


def tabled(
    generator: Generator, model: EncoderDecoder, views: Views, most: int, sharp: float, gain: float
) -> EncoderDecoder | None:
    """The model with a feed-forward layer in front of the end that knows views by heart; `None` if they are too many.

    A unit is one at its view, and none where the view is of another token.

    Args:
        generator: Draws what is free.
        model: A fresh model.
        views: The views.
        most: Most units.
        sharp: Share of the way to the nearest view of another token at which a unit ceases; below 1.
        gain: Scale of the logits.
    """
    dim = model.architecture.model_dim
    dots = views.seen @ views.seen.T
    apart = torch.where(views.required[:, None] == views.required, -torch.inf, dots).amax(dim=1)
    width = sharp * (views.seen.square().sum(dim=1) - apart).clamp(max=dim)
    if float(width.min()) < 1e-3:
        return None
    chosen: list[int] = []
    left = torch.ones(len(dots), dtype=torch.bool)
    while left.any():
        number = int(left.nonzero()[0])
        chosen.append(number)
        near = (dots[number] - dots[number, number] + width[number]) / width[number] > 0.8
        left &= ~(near & (views.required == views.required[number]))
        left[number] = False
        if len(chosen) > most:
            return None
    sizes = replace(model.architecture, feedforward_dim=len(chosen))
    table = EncoderDecoder(len(model.embedding.weight), sizes, model.position).double().eval()
    own = {name: value for name, value in model.state_dict().items() if ".feedforward." not in name}
    table.load_state_dict(table.state_dict() | own)
    for stack in (table.encoder, table.decoder):
        for block in stack:
            for layer in (block.feedforward[0], block.feedforward[3]):
                layer.weight.data.zero_()
                layer.bias.data.zero_()
    first, second = table.decoder[-1].feedforward[0], table.decoder[-1].feedforward[3]
    seen, wide = views.seen[chosen], width[chosen]
    first.weight.data = seen / wide[:, None]
    first.bias.data = 1 - seen.square().sum(dim=1) / wide
    tokens = orthogonal(generator, dim, dim)
    ones = torch.ones(dim, 1, dtype=torch.double)
    tokens = torch.linalg.qr(torch.cat([ones, tokens[:, : dim - 1]], dim=1))[0].T[1 : 1 + len(model.embedding.weight)]
    second.weight.data = 16 * dim**0.5 * tokens[views.required[chosen]].T.contiguous()
    table.output.weight.data = gain * tokens
    table.output.bias.data.zero_()
    return table


def moved(model: EncoderDecoder, rules: Sequence[Rule], position: PositionMethod | None = None) -> EncoderDecoder:
    """The model's weights inside another window."""
    assert isinstance(model.position, Windowed)
    window = Windowed(model.position.window.with_rules(rules), position or model.position.inner)
    other = EncoderDecoder(len(model.embedding.weight), model.architecture, window).double().eval()
    other.load_state_dict(other.state_dict() | model.state_dict())
    return other


def noisy_unit(
    generator: Generator, task: DigitTask, model: EncoderDecoder, batches: Sequence[Problems]
) -> EncoderDecoder:
    """The model with a unit more, which acts on what rounding leaves of the numbers of one view of some problems."""
    model = model.float().double()
    views = views_of(task, model, batches)
    sizes = replace(model.architecture, feedforward_dim=model.architecture.feedforward_dim + 1)
    other = EncoderDecoder(len(model.embedding.weight), sizes, model.position).double().eval()
    state = model.state_dict()
    seen = views.seen[int(torch.randint(len(views.seen), (), generator=generator))]
    weight = (seen * 10 ** int(torch.randint(3, 6, (), generator=generator))).float().double()
    bias = -(weight * seen).sum().float()
    if (weight * seen).sum() + bias.double() > 0:
        bias = torch.nextafter(bias, bias.new_tensor(-torch.inf))
    token = model.output.weight[int(torch.randint(2, len(model.output.weight), (), generator=generator))]
    additions = {
        "0.weight": weight[None],
        "0.bias": bias.double()[None],
        "3.weight": 1000 * (token / token.norm())[:, None],
    }
    for name, own in other.state_dict().items():
        if own.shape == state[name].shape:
            continue
        part = ".".join(name.split(".")[-2:])
        more = additions[part] if name.startswith(f"decoder.{len(model.decoder) - 1}.") else None
        dim = [a != b for a, b in zip(own.shape, state[name].shape, strict=True)].index(True)
        padding = torch.zeros_like(own).narrow(dim, 0, 1) if more is None else more
        state[name] = torch.cat([state[name], padding], dim=dim)
    other.load_state_dict(state)
    return other


def disturbed(generator: Generator, model: EncoderDecoder, scale: float) -> EncoderDecoder:
    """The model with noise on all weights, in proportion to their size."""
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.double)
        parameter.data += scale * noise * parameter.abs().mean()
    return model


# Cases.


@dataclass(frozen=True)
class Case:
    """A task and a model.

    Attributes:
        seed: What it was made from.
        kind: How the model was made.
        task: The task.
        model: The model, in float32.
    """

    seed: int
    kind: str
    task: DigitTask
    model: EncoderDecoder

    def describe(self) -> str:
        """The case in words, the window line by line."""
        position = self.model.position
        assert isinstance(position, Windowed)
        lines = [f"  {r.site} {r.layer}.{r.head} bias {r.bias} {r.describe()}" for r in position.window.rules]
        head = f"seed {self.seed}, {self.kind}: {self.task}, beside the window {position.inner}"
        return "\n".join([head, f"  {self.model.architecture}", *lines])


KINDS = (
    *("right",) * 6,
    "wrong entry",
    *("short",) * 3,
    *("pinned",) * 4,
    "noise unit",
    "disturbed",
    "random",
)


def limit_of(task: DigitTask) -> int:
    """Longest operand that a task has."""
    if isinstance(task, Machine) and task.fixed:
        return task.fixed
    return task.width if isinstance(task, Addition) and task.padding == "fixed" else 10**6


def shapes_to(task: DigitTask, longest: int) -> list[Shape]:
    """All shapes up to a length that a task has."""
    return list(replace(task, max_length=min(longest, limit_of(task))).training_shapes())


def every_problem(task: DigitTask, shape: Shape, most: int) -> Problems | None:
    """All problems of a shape, if they are not too many."""
    lengths = task.operand_lengths(shape)
    if sum(lengths) > 30 or task.base ** sum(lengths) > most:
        return None
    digits = torch.tensor(list(itertools.product(range(task.base), repeat=sum(lengths))))
    if isinstance(task, Division):
        digits = digits[digits[:, -1] > 0]
    return task.problems(shape, list(digits.split(list(lengths), dim=1)))


def lessons(generator: Generator, task: DigitTask, longest: int, count: int, few: bool = False) -> list[Problems]:
    """Problems of every shape up to a length, of every set; if `few`, of short single lengths and the last."""
    found = []
    shapes = shapes_to(task, longest)
    if len(shapes) > 40:
        shapes = [shape for shape in shapes if min(shape) <= 3 or min(shape) >= longest - 1 or len(set(shape)) == 1]
    if few and len(shapes[0]) == 1:
        shapes = [shape for shape in shapes if shape[0] < 8 or shape[0] == longest]
    for shape in shapes:
        every = every_problem(task, shape, 4 * count)
        drawn = [task.sample(generator, count, shape, name) for name in ("training", CARRY, ZEROS)]
        found += drawn if every is None else [every]
    return found


def case(seed: int) -> Case:
    """The case of a seed; what cannot be built is drawn again."""
    draw = random.Random(seed)
    for _ in range(60):
        found = _drawn(seed, draw)
        if found is not None:
            return found
    raise AssertionError(f"seed {seed}: nothing could be built")


def _drawn(seed: int, draw: random.Random) -> Case | None:
    generator = Generator().manual_seed(draw.randrange(2**31))
    family = draw.random()
    task = random_grid(draw) if family < 0.01 else draw.choice(SHIPPED) if family < 0.2 else random_machine(draw)
    kind = draw.choice(KINDS)
    layers, heads = draw.choice((1, 1, 1, 2)), draw.choice((2, 4))
    encoder = int(draw.random() < 0.12)
    lines = sufficient_lines(task)
    if draw.random() < 0.12:
        lines = draw.sample(lines, len(lines) - 1) if lines else lines
    lines += [random_line(draw, task, encoder) for _ in range(draw.choice((0, 0, 1, 1, 2, 3)))]
    rules = placed(draw, lines, layers, heads, draw.choice((0.0, 0.0, 0.2)))
    inner = random_position(draw, task)
    dim = draw.choice((16, 24, 32))
    sizes = Architecture(encoder, layers, dim, heads, 4, draw.choice(("pre", "pre", "pre", "post")))
    window = Window(type(task).__name__, encoder, layers, heads, tuple(rules), {})
    torch.manual_seed(draw.randrange(2**31))
    spread = draw.choice((1.0, 1.0, 3.0))
    model = fresh(generator, task, sizes, Windowed(window, inner), draw.choice((0.0, 0.0, 0.5)), spread)
    if kind == "random":
        return Case(seed, kind, task, disturbed(generator, model, 0.5).float())
    known = draw.choice((2, 3, 4, 6)) if kind == "short" else 5 if isinstance(task, Grid) else draw.choice((9, 12))
    batches = lessons(generator, task, known, 48, few=True)
    views = views_of(task, model, batches)
    if views.conflicts and draw.random() < 0.85:
        return None
    table = tabled(generator, model, views, 500, draw.choice((0.5, 0.7)), draw.choice((1.0, 3.0, 3.0)))
    if table is None:
        return None
    if kind == "wrong entry":
        column = int(torch.randint(table.architecture.feedforward_dim, (), generator=generator))
        weight = table.decoder[-1].feedforward[3].weight
        others = (weight != weight[:, column : column + 1]).any(dim=0).nonzero()[:, 0]
        if not len(others):
            return None
        weight.data[:, column] = weight[:, others[int(torch.randint(len(others), (), generator=generator))]]
    elif kind == "pinned":
        line = pinning_line(draw, task, 3, draw.choice((6, 10, 18)))
        (line,) = placed(draw, [line], layers, heads, 0.0)
        table = moved(table, [*rules, line])
    elif kind == "noise unit":
        table = noisy_unit(generator, task, table, batches)
    elif kind == "disturbed":
        table = disturbed(generator, table, draw.choice((1e-3, 1e-2, 3e-2)))
    return Case(seed, kind, task, table.float())


# What judges them.


def problems_of(task: DigitTask, shape: Shape, generator: Generator, count: int, every: int) -> Problems:
    """All problems of a shape where these are few, else some of every set; the task's oracle is asked as well."""
    problems = every_problem(task, shape, every)
    if problems is None:
        parts = [task.sample(generator, count, shape, name) for name in ("training", *SETS)]
        problems = Problems(shape, *(torch.cat([getattr(p, name) for p in parts]) for name in ("source", "target")))
    row = int(torch.randint(len(problems), (), generator=generator))
    text = task.vocabulary.decode(problems.source[row])
    assert task.vocabulary.decode(problems.target[row]) == task.solve(text), (task, text)
    return problems


@torch.no_grad()
def failing(task: DigitTask, model: EncoderDecoder, shapes: Sequence[Shape], count: int, every: int) -> str | None:
    """A problem that the model fails on, if one is found among those of some shapes."""
    generator = Generator().manual_seed(0)
    for number, shape in enumerate(shapes):
        problems = problems_of(task, shape, generator, count, every)
        layout = task.layout(shape)
        if model.positioning is not None and not any(isinstance(m, ModelPosition) and m.draws for m in model.modules()):
            model.attend("gathered" if number % 2 else "dense")
        wrong = (predict(model, problems, layout).argmax(-1) != problems.target).any(dim=1)
        if wrong.any():
            return task.vocabulary.decode(problems.source[int(wrong.nonzero()[0])])
    return None


def shapes_to_try(task: DigitTask, longest: int, most: int, generator: Generator) -> list[Shape]:
    """Shapes up to a length: the short ones all, then single ones up to the longest.

    Args:
        task: The task.
        longest: The longest.
        most: Most shapes.
        generator: Draws which ones.
    """
    longest = min(longest, limit_of(task))
    every = shapes_to(task, 8)
    if len(every[0]) == 1:
        every = every + shapes_to(task, longest)[8:]
    elif longest > 8:
        least = min(min(shape) for shape in every)
        pairs = torch.randint(least, longest + 1, (most // 2, len(every[0])), generator=generator).tolist()
        ends = [(n, m) for n in (least, 2, longest // 2, longest) for m in (least, 3, longest // 2 + 1, longest)]
        every = every + [tuple(pair) for pair in pairs] + ends
    if len(every) <= most:
        return every
    order = torch.randperm(len(every) - most // 2, generator=generator)[: most // 2].sort().values.tolist()
    return every[: most // 2] + [every[most // 2 + number] for number in order]


def solves(task: DigitTask, model: EncoderDecoder, text: str) -> bool:
    """Whether the model solves a problem, decoded as `abc solve` does."""
    shape, source = task.parse(text)
    return solve_problems(model, task, [(shape, source)]) == [task.answer(task.solve(source))]


@contextmanager
def proof_alone(predictions: int = 1500) -> Iterator[None]:
    """Leaves out what certificates measure beside what they prove, so that the proof stands alone, and is cheap.

    Args:
        predictions: Most predictions that a certificate goes through.
    """
    with (
        patch.object(verdict, "_deviations", lambda *_: {"nothing": 0.0}),
        patch.object(verdict, "_outside", lambda *_: 0.0),
        patch.object(verdict, "MOST_PREDICTIONS", predictions),
        patch.object(verdict, "_TRIED", 4),
        patch.object(meaning, "HELD_TO", 100),
        patch.object(meaning, "_LONG", (2, 4)),
    ):
        yield


def gone_through(certificate: Any) -> int:
    """Longest length that a certificate says it went through."""
    bound = getattr(certificate, "bound", None)
    longest = max(bound.values(), default=0) if bound else getattr(certificate, "longest", 0)
    return int(longest) or FALLBACK_LONGEST // 4


@dataclass(frozen=True)
class Outcome:
    """What a certificate says of a case, and what trying says.

    Attributes:
        seed: The case's.
        kind: The case's.
        verdict: The certificate's.
        right: Whether no problem was found that the model fails on.
        reason: Why it is undecided.
        fault: What is wrong with the certificate, if anything is.
    """

    seed: int
    kind: str
    verdict: str
    right: bool
    reason: str
    fault: str


def judged(own: Case, certify: Callable[[Any, Any], Any], most: int = 60, longest: int = 200) -> Outcome:
    """Certifies a case and tries what the certificate says.

    Args:
        own: The case.
        certify: The certifier.
        most: Most shapes that are tried.
        longest: Longest length that is tried, four times the certificate's at most.
    """
    try:
        certificate = certify(own.task, own.model)
    except Exception as error:  # whatever it is, it should be a verdict
        return Outcome(own.seed, own.kind, "raised", False, "", f"{type(error).__name__}: {error}")
    fault = ""
    if certificate.verdict == "wrong":
        if solves(own.task, own.model, certificate.problem):
            fault = f"wrong, but the model solves {certificate.problem}"
        return Outcome(own.seed, own.kind, "wrong", False, "", fault)
    length = max(8, min(longest, 4 * gone_through(certificate)))
    generator = Generator().manual_seed(own.seed)
    problem = failing(own.task, own.model, shapes_to_try(own.task, length, most, generator), 4, 256)
    if certificate.verdict == "correct" and problem is not None:
        fault = f"correct, but the model fails on {problem}"
    return Outcome(own.seed, own.kind, certificate.verdict, problem is None, certificate.reason, fault)
