"""One model of each kind that was once wrongly certified, or took too long to decide."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Generator, Tensor

from abc_toolkit.layout import Layout, digit_layout
from abc_toolkit.models.base import Architecture
from abc_toolkit.models.transformer import EncoderDecoder
from abc_toolkit.positions import Compose, Cyclic, NoPE, PositionMethod
from abc_toolkit.proof import certify
from abc_toolkit.tasks import Addition, Shape
from abc_toolkit.tasks.digits.base import DigitTask
from abc_toolkit.windows.attention import Windowed
from abc_toolkit.windows.rules import Condition, Rule, Window
from tests.proof.adversary import (
    Drawing,
    High,
    Liar,
    Machine,
    Shifted,
    Transducer,
    fresh,
    lessons,
    moved,
    noisy_unit,
    solves,
    sufficient_lines,
    tabled,
    views_of,
)

SECONDS = 30  # of a processor, for each certificate, on a slow machine
Made = tuple[DigitTask, EncoderDecoder]
ADDITION = Addition(max_length=3, base=2)


def own(rules: Sequence[Rule], heads: int = 4) -> list[Rule]:
    """The rules with a head for each, layer by layer."""
    count: dict[str, int] = {}
    found = []
    for rule in rules:
        number = count[rule.site] = count.get(rule.site, -1) + 1
        found.append(replace(rule, layer=number // heads, head=number % heads))
    return found


def built(
    task: DigitTask,
    lines: Sequence[Rule],
    inner: PositionMethod | None = None,
    known: int = 3,
    dim: int = 32,
    layers: int = 1,
    most: int = 2000,
    count: int = 100,
) -> EncoderDecoder:
    """A model that has memorised all problems up to a length."""
    generator = Generator().manual_seed(0)
    window = Window(type(task).__name__, 0, layers, 4, tuple(own(lines)), {})
    position = Windowed(window, NoPE() if inner is None else inner)
    model = fresh(generator, task, Architecture(0, layers, dim, 4, 4), position, 0.0, 1.0)
    views = views_of(task, model, lessons(generator, task, known, count))
    assert not views.conflicts
    table = tabled(generator, model, views, most, 0.7, 3.0)
    assert table is not None
    return table


def adder(inner: PositionMethod | None = None, known: int = 3, extra: Sequence[Rule] = ()) -> Made:
    """A model of addition in base 2 that is right up to a length."""
    model = built(ADDITION, sufficient_lines(ADDITION), inner, known)
    assert isinstance(model.position, Windowed)
    return ADDITION, moved(model, [*model.position.window.rules, *extra]).float()


def beside(inner: PositionMethod) -> Made:
    """A model of addition that would be right at every length without the added positions."""
    task, model = adder(known=10)
    assert isinstance(model.position, Windowed)
    return task, moved(model.double(), model.position.window.rules, inner).float()


def with_line(*conditions: Condition, segment: str = "operand 1", bias: float = 20.0) -> Made:
    """A model of addition that would be right at every length without one more line."""
    return adder(known=10, extra=[Rule("cross", 0, 0, segment, conditions, bias)])


# 1. Position methods.

CIRCLE = Compose((Cyclic(("place",), base=100.0, period=12),))
WRONG_POSITIONS: dict[str, PositionMethod] = {
    "parameters of its own": Shifted(),
    "high channels": High(),
    "drawn positions": Drawing(),
    "no circle at all": Liar(),
    "no circle in a composition": Compose((Liar(), Cyclic(("place",), period=2))),
}

# 2. Lines that open at one length alone.

PINNED = (Condition("place", 10), Condition("place", 10, "place"), Condition("place", 10, "index"))
BOTH_ENDS = (Condition("place", 25), Condition("index", 24))
DISTANT = (Condition("place", -37, "place"), Condition("index", 0))


# 3. A rule that counts.


def counting() -> Made:
    """Copies five places and inverts all other bits; a window of one place cannot tell them apart."""
    moves = tuple(min(state + 1, 5) for state in range(6) for _ in range(2))
    writes = tuple(bit ^ (state == 5) for state in range(6) for bit in range(2))
    task = Machine(max_length=5, base=2, states=6, moves=moves, writes=writes, down=True)
    model = built(task, sufficient_lines(task), known=5)
    return task, model.float()


# 4. Rounding and numbers that are none.


def planted(seed: int = 0) -> Made:
    """A unit that acts on rounding errors, in a single receptive field."""
    task = Addition(max_length=2, base=3)
    model = built(task, sufficient_lines(task), known=6, count=2000)
    generator = Generator().manual_seed(seed)
    return task, noisy_unit(generator, task, model, lessons(generator, task, 2, 2000)).float()


def not_a_number(name: str, value: float, row: int) -> Made:
    """The adder with a NaN or an infinite number in one matrix."""
    task, model = adder(known=10)
    model.state_dict()[name][row] = value
    return task, model


# 5. A rule that says the same as `compute`, and something else than integers.


@dataclass(frozen=True)
class Dropping(Machine):
    """Adds in base 16 and drops each carry that comes from a carry; its oracle does not."""

    def solve(self, source: str) -> str:
        moves = tuple(
            int(a + b + state >= self.base) for state in range(2) for a in range(self.base) for b in range(self.base)
        )
        return Machine.solve(replace(self, moves=moves), source)


def dropping(max_length: int = 3) -> Made:
    """A model that drops carries as the rule does."""
    digits = range(16)
    moves = tuple(int(a + b >= 16) for _ in range(2) for a in digits for b in digits)
    writes = tuple((a + b + state) % 16 for state in range(2) for a in digits for b in digits)
    task = Dropping(max_length, 16, 2, moves, writes, form="turn", second="same", more=1)
    lines = [
        *(Rule("cross", 0, 0, f"operand {i}", (Condition("place", 0, "place"),)) for i in (1, 2)),
        Rule("cross", 0, 0, "operand 1", (Condition("place", 1, "place"),)),
        Rule("decoder", 0, 0, "trace", (Condition("place", 1, "place"),)),
    ]
    generator = Generator().manual_seed(0)
    window = Window("Dropping", 0, 1, 4, tuple(own(lines)), {})
    model = fresh(generator, task, Architecture(0, 1, 64, 4, 4), Windowed(window, NoPE()), 0.0, 1.0)
    # Digits are alike where they are held, and told apart where they are read; the place below tells the end alone.
    digit, values = model.embedding.weight.data[2:18], model.decoder[0].cross_attention.key_value
    shared = digit[0] / digit[0].norm()
    digit.copy_(shared + 0.1 * (digit - (digit @ shared)[:, None] * shared))
    values.weight.data[64:] = 10 * (values.weight[64:] - (values.weight[64:] @ shared)[:, None] * shared)
    values.weight.data[64 + 32 : 64 + 48] = 0
    values.bias.data[64 + 32 : 64 + 48] = 1.0
    problems = [task.sample(generator, 3000, (n,), name) for n in (1, 2, 3) for name in ("uniform", "carry")]
    views = views_of(task, model, problems)
    table = tabled(generator, model, views, 3000, 0.7, 3.0)
    assert table is not None
    return task, table.float()


# 6. An operand that does not matter.


def idle(wrong: int | None) -> Made:
    """Copies a number and ignores a digit, except for one digit with which it fails."""
    task = Machine(3, 6, 1, (0,) * 6, tuple(range(6)), second="idle digit")
    lines = [*sufficient_lines(task), Rule("cross", 0, 0, "operand 2", (Condition("place", 0),))]
    generator = Generator().manual_seed(0)
    window = Window("Machine", 0, 1, 4, tuple(own(lines)), {})
    model = fresh(generator, task, Architecture(0, 1, 32, 4, 4), Windowed(window, NoPE()), 0.0, 1.0)
    problems = [task.sample(generator, 3000, (n,), "uniform") for n in (1, 2, 3)]
    for part in problems:
        if wrong is not None:
            part.target[:, 0][part.source[:, -1] == wrong + 2] = 2
    table = tabled(generator, model, views_of(task, model, problems), 3000, 0.7, 3.0)
    assert table is not None
    return task, table.float()


def shown() -> list[int]:
    """The ignored digits that single samples of short shapes show."""
    task = Machine(3, 6, 1, (0,) * 6, tuple(range(6)), second="idle digit")
    return [int(task.sample(Generator(), 1, (n,)).source[0, -1]) - 2 for n in range(1, 15)]


# 8. What takes long.


def never(offset: int) -> Made:
    """A line whose conditions contradict each other."""
    return with_line(Condition("place", offset, "place"), Condition("place", 0, "place"))


def fixed_width(width: int) -> Made:
    """Operands that are all padded to one width."""
    task = Addition(max_length=3, base=2, padding="fixed", width=width)
    _, model = adder(known=10)
    return task, model


def circle(period: int) -> Made:
    """A copy beside positions that repeat."""
    task = Machine(4, 2)
    lines = [Rule("cross", 0, 0, "operand 1", (Condition("place", 0, "place"),))]
    model = built(task, lines, Cyclic(("place",), base=100.0, period=period), known=2 * period + 4)
    return task, model.float()


# What a task says of itself in two ways.


@dataclass(frozen=True)
class Turned(Machine):
    """Lays out problems of one length in another way than it describes."""

    def layout(self, shape: Shape) -> Layout:
        return digit_layout([("operand 1", 17)], 17, downwards=True) if shape == (17,) else super().layout(shape)


@dataclass(frozen=True)
class Lying(Machine):
    """Copies bits; its rule turns them."""

    def local_rule(self) -> Transducer:
        own = super().local_rule()
        return Transducer(own.base, own.states, own.moves, (1, 0), own.verdicts, own.reveals, own.operands)

    def compute(self, operands: Sequence[Tensor]) -> Tensor:
        return Machine(4, 2).compute(operands)


def copying(task: DigitTask, plain: Machine) -> Made:
    """A model of one task, right up to a length, given to another."""
    return task, built(plain, sufficient_lines(plain), known=6).float()


WRONG: dict[str, Callable[[], Made]] = {
    "another layout than is described": lambda: copying(Turned(4, 2), Machine(4, 2)),
    "a rule that is not the task's": lambda: copying(Lying(4, 2), Machine(4, 2, writes=(1, 0))),
    "1, a circle in a composition": lambda: adder(CIRCLE, known=7),
    **{f"1, {name}": lambda inner=inner: beside(inner) for name, inner in WRONG_POSITIONS.items()},
    "2, three conditions": lambda: with_line(*PINNED),
    "2, both ends": lambda: with_line(*BOTH_ENDS),
    "2, far away and an end": lambda: with_line(*DISTANT),
    "3, counting": counting,
    "4, planted": planted,
    "4, nan": lambda: not_a_number("output.weight", torch.nan, 2),
    "4, infinity": lambda: not_a_number("decoder.0.feedforward.3.weight", torch.inf, 0),
    "5, dropped carries": dropping,
    "5, dropped carries, one digit": lambda: dropping(max_length=1),
    "6, idle, not sampled": lambda: idle(min(set(range(6)) - set(shown()))),
    "6, idle, sampled": lambda: idle(shown()[0]),
    "8, opens at 30": lambda: with_line(Condition("place", 30, "place")),
    "8, opens at 100": lambda: with_line(Condition("place", 100, "place")),
    "8, opens at a million": lambda: with_line(Condition("place", 10**6, "place")),
}
RIGHT: dict[str, Callable[[], Made]] = {
    "the adder": lambda: adder(known=10),
    "6, idle": lambda: idle(None),
    "8, never, 30": lambda: never(30),
    "8, never, 100": lambda: never(100),
    "8, never, a million": lambda: never(10**6),
    "8, fixed width of 40": lambda: fixed_width(40),
    "8, fixed width of 200": lambda: fixed_width(200),
    "8, a circle of 7": lambda: circle(7),
    "8, a circle of 30": lambda: circle(30),
}
# What is not finite and does nothing, or does it where nothing is asked.
REFUSED: dict[str, Callable[[], Made]] = {
    "4, nan that is not read": lambda: not_a_number("embedding.weight", torch.nan, 1),
}


SLOW = ("8, fixed width of 200", "8, a circle of 30")


def check_within_seconds(start: float) -> None:
    assert time.process_time() - start < SECONDS


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_model_is_not_certified(name: str) -> None:
    task, model = WRONG[name]()
    start = time.process_time()
    certificate = certify(task, model)
    check_within_seconds(start)
    assert certificate.verdict in ("wrong", "undecided"), certificate
    if certificate.verdict == "wrong":
        assert not solves(task, model, certificate.problem)
    else:
        assert certificate.reason
        assert "\n" not in certificate.reason


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in RIGHT])
def test_a_right_model_is_decided(name: str) -> None:
    task, model = RIGHT[name]()
    start = time.process_time()
    certificate = certify(task, model)
    check_within_seconds(start)
    assert (certificate.verdict, certificate.reason) == ("correct", "")


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_finite_is_refused(name: str) -> None:
    task, model = REFUSED[name]()
    certificate = certify(task, model)
    assert certificate.verdict == "undecided"
    assert "finite" in certificate.reason
