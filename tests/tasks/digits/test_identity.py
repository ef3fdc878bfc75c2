"""What identities say of whole runs: every single step keeps them, so whole numbers do; told by Python's integers."""

import dataclasses
import json
import random
from collections.abc import Sequence
from itertools import product

import pytest
import torch

from abc_toolkit.tasks import (
    Addition,
    BinaryMultiplication,
    Comparison,
    Copy,
    CycleNavigation,
    Division,
    LongMultiplication,
    MultiOperandAddition,
    Multiplication,
    OddsFirst,
    Parity,
    Repeat,
    Reverse,
    Subtraction,
    Successor,
)
from abc_toolkit.tasks.digits.base import DigitTask
from abc_toolkit.tasks.digits.identity import (
    CarryIdentity,
    CopyIdentity,
    Identity,
    OrderIdentity,
    RunningIdentity,
    Share,
    SumIdentity,
    carried_sum,
    share,
)
from abc_toolkit.tasks.digits.rule import LocalRule

TASKS: dict[str, tuple[DigitTask, tuple[str, ...]]] = {
    "addition": (Addition(), ("linear",)),
    "addition in base 3": (Addition(base=3), ("linear",)),
    "successor": (Successor(), ("linear",)),
    "multiplication": (Multiplication(), ("linear",)),
    "multiplication in base 16": (Multiplication(base=16), ("linear",)),
    "division": (Division(), ("linear", "remainder")),
    "subtraction": (Subtraction(), ("linear", "order")),
    "parity": (Parity(), ("running",)),
    "cycle navigation": (CycleNavigation(), ("running",)),
    "odds first": (OddsFirst(), ("copy",)),
    "rows of binary products": (BinaryMultiplication(), ("linear", "remainder")),
    "comparison": (Comparison(), ("order",)),
    "copy": (Copy(), ("copy",)),
    "reverse": (Reverse(), ("copy",)),
    "repeat": (Repeat(), ("copy", "copy")),
    "rows of products": (LongMultiplication(), ("linear", "remainder")),
    "rows of sums": (MultiOperandAddition(), ("linear",)),
}


def rule_of(name: str) -> tuple[LocalRule, int]:
    task = TASKS[name][0]
    rule = task.local_rule()
    assert rule is not None
    return rule, task.base


class Run:
    """One run of a rule on given digits, in the order of its places."""

    def __init__(self, rule: LocalRule, start: int, digits: Sequence[Sequence[int]], constants: Sequence[int]) -> None:
        self.states, self.read = [start], {name: [d[k] for d in digits] for k, name in enumerate(rule.operands)}
        self.written: dict[str, list[int]] = {name: [] for name in rule.answers}
        for column in digits:
            state = torch.tensor([self.states[-1]])
            after, symbols = rule.step(
                state, [torch.tensor([d]) for d in column], [torch.tensor([c]) for c in constants]
            )
            self.states.append(int(after))
            for name, symbol in zip(rule.answers, symbols, strict=True):
                self.written[name].append(int(symbol))


def number(digits: Sequence[int], base: int, along: str) -> int:
    """The number that digits make, in the order of places or of indices."""
    ordered = digits if along == "place" else digits[::-1]
    return sum(digit * base**power for power, digit in enumerate(ordered))


def random_runs(name: str, count: int, length: int) -> list[tuple[Run, int]]:
    """Runs that count, on random digits and constants; those of numbers that fit, with zeros at the end."""
    rule, base = rule_of(name)
    draw, found = random.Random(0), []
    for _ in range(count):
        constants = [draw.randrange(rule.least_constant, base) for _ in rule.constants]
        high = draw.choice((base, base, 2))
        digits = [[draw.choice((draw.randrange(high), base - 1)) for _ in rule.operands] for _ in range(length)]
        if rule.along == "place":
            digits += [[0] * len(rule.operands)] * 2
        runs = [Run(rule, start, digits, constants) for start in rule.starts]
        good = [run for run in runs if bool(rule.ends_well(torch.tensor([run.states[-1]])))]
        assert len(good) == 1
        found.append((good[0], constants[0] if constants else 1))
    return found


@pytest.mark.parametrize("name", TASKS)
def test_what_identities_say_holds_of_whole_numbers(name: str) -> None:
    rule, base = rule_of(name)
    identities = rule.identities()
    assert tuple(identity.kind for identity in identities) == TASKS[name][1]
    for (run, constant), identity in product(random_runs(name, 40, 6), identities):
        check(run, constant, identity, base, rule.along)


def check(run: Run, constant: int, identity: Identity, base: int, along: str) -> None:
    """Whether a whole run says what an identity claims of whole numbers."""
    if isinstance(identity, SumIdentity):

        def total(shares: Sequence[Share], digits: dict[str, list[int]]) -> int:
            return sum(
                own.per_state[run.states[-1]]
                * (constant if own.times_constant else 1)
                * number(digits[own.name], base, along)
                for own in shares
            )

        taken, given = total(identity.takes, run.read), total(identity.gives, run.written)
        first, last = identity.carry[run.states[0]], identity.carry[run.states[-1]]
        assert taken + first == given if along == "place" else taken == given + last
        assert along != "place" or last == 0
    elif isinstance(identity, CarryIdentity):
        bound = constant if identity.bound == "constant" else identity.bound
        assert all(0 <= own < int(bound) for own in run.written[identity.answer])
        assert run.written[identity.answer] == [identity.carry[state] for state in run.states[1:]]
    elif isinstance(identity, RunningIdentity):
        each = [digit + identity.offset for digit in run.read[identity.operand]]
        sums = [sum(each[: n + 1]) % identity.modulus for n in range(len(run.states) - 1)]
        assert run.written[identity.answer] == sums
    elif isinstance(identity, OrderIdentity):
        for place, shown in enumerate(run.written[identity.answer]):
            first, second = (number(run.read[own][: place + 1], base, along) for own in identity.operands)
            assert shown == identity.symbols[(first > second) - (first < second) + 1]
    else:
        assert isinstance(identity, CopyIdentity)
        assert run.written[identity.answer] == run.read[identity.operand]


def test_subtraction_is_the_difference_of_the_numbers() -> None:
    rule, base = rule_of("subtraction")
    for run, _ in random_runs("subtraction", 60, 5):
        first, second = (number(run.read[name], base, "place") for name in rule.operands)
        assert number(run.written["magnitude"], base, "place") == abs(first - second)


def test_division_is_quotient_and_remainder() -> None:
    _, base = rule_of("division")
    for run, constant in random_runs("division", 60, 5):
        dividend = number(run.read["operand 1"], base, "index")
        quotient = number(run.written["quotient"], base, "index")
        assert (quotient, run.written["remainder"][-1]) == divmod(dividend, constant)


@pytest.mark.parametrize("name", TASKS)
def test_identities_are_json(name: str) -> None:
    for identity in rule_of(name)[0].identities():
        plain = json.loads(json.dumps(identity.plain()))
        assert plain.pop("kind") == identity.kind
        fields = dataclasses.fields(identity)
        assert plain.keys() == {own.name for own in fields if getattr(identity, own.name) or own.name != "offset"}
        assert plain["statement"] == identity.statement
        assert "\n" not in identity.statement
        if isinstance(identity, SumIdentity):
            expected = [
                {"name": own.name, "per_state": list(own.per_state), "times_constant": own.times_constant}
                for own in (*identity.takes, *identity.gives)
            ]
            assert plain["takes"] + plain["gives"] == expected
            assert plain["carry"] == list(identity.carry)


@pytest.mark.parametrize("name", TASKS)
def test_identities_speak_of_every_state_and_of_names_that_there_are(name: str) -> None:
    rule, _ = rule_of(name)
    for identity in rule.identities():
        for field in ("carry", "order"):
            assert len(getattr(identity, field, range(rule.num_states))) == rule.num_states
        if isinstance(identity, SumIdentity):
            assert {own.name for own in identity.takes} <= {*rule.operands}
            assert {own.name for own in identity.gives} <= {*rule.answers}
            assert all(len(own.per_state) == rule.num_states for own in (*identity.takes, *identity.gives))


def test_shares_of_one_and_the_state_as_the_carry() -> None:
    assert share("a", 3) == Share("a", (1, 1, 1), False)
    assert share("a", 2, times_constant=True) == Share("a", (1, 1), True)
    made = carried_sum("a = b", 3, [share("a", 3)], [share("b", 3)])
    assert made == SumIdentity("a = b", (share("a", 3),), (share("b", 3),), (0, 1, 2))
    assert hash(made) == hash(carried_sum("a = b", 3, [share("a", 3)], [share("b", 3)]))
