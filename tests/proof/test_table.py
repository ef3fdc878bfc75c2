"""The table of a local rule, compared with the rule's own steps and with runs one by one."""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from abc_toolkit.proof.receptive_field import CannotDecideError
from abc_toolkit.proof.table import TabledRule, all_of
from abc_toolkit.tasks import (
    Addition,
    BinaryMultiplication,
    Comparison,
    Copy,
    CycleNavigation,
    Division,
    LongMultiplication,
    ModularArithmetic,
    MultiOperandAddition,
    Multiplication,
    Parity,
    Subtraction,
    Successor,
)
from abc_toolkit.tasks.digits.base import DigitTask
from abc_toolkit.tasks.digits.rule import LocalRule
from abc_toolkit.vocabulary import NUM_SPECIAL
from tests.proof.adversary import random_machine

TASKS: tuple[DigitTask, ...] = (
    Addition(),
    Addition(base=3),
    Subtraction(base=4),
    Multiplication(),
    Division(base=7),
    Parity(),
    Successor(),
    Copy(base=5),
    Comparison(base=3),
    LongMultiplication(),
    MultiOperandAddition(),
    BinaryMultiplication(),
)


def rule_of(task: DigitTask) -> LocalRule:
    rule = task.local_rule()
    assert rule is not None
    return rule


def machines(count: int) -> Iterator[DigitTask]:
    for seed in range(count):
        yield replace(random_machine(random.Random(seed)), fixed=0)


def single(rule: LocalRule, state: int, digits: Sequence[int], constants: Sequence[int]) -> tuple[int, tuple[int, ...]]:
    """One step of the rule itself."""
    after, symbols = rule.step(
        *(torch.tensor([state]),), *([torch.tensor([x]) for x in part] for part in (digits, constants))
    )
    return int(after), tuple(int(symbol) for symbol in symbols)


def reads_of(rule: LocalRule, base: int, present: Sequence[bool]) -> Iterator[tuple[int, ...]]:
    return itertools.product(*(range(base if there else 1) for there in present))


def choices_of(rule: LocalRule, base: int) -> list[tuple[int, ...]]:
    return list(itertools.product(range(rule.least_constant, base), repeat=len(rule.constants)))


def graph_of(rule: LocalRule, base: int, constants: Sequence[int], present: Sequence[bool]) -> dict[int, set[int]]:
    """The relation of reachable states over one place, by single steps."""
    found: dict[int, set[int]] = {}
    pending = list(reached_from(rule, base, constants))
    for state in pending:
        found[state] = {single(rule, state, digits, constants)[0] for digits in reads_of(rule, base, present)}
    return found


def reached_from(rule: LocalRule, base: int, constants: Sequence[int]) -> set[int]:
    every = [True] * len(rule.operands)
    states, pending = set(rule.starts), list(rule.starts)
    while pending:
        state = pending.pop()
        for digits in reads_of(rule, base, every):
            after, _ = single(rule, state, digits, constants)
            if after not in states:
                states.add(after)
                pending.append(after)
    return states


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.name} {task.base}")
def test_steps_of_the_table_are_the_rules(task: DigitTask) -> None:
    rule = rule_of(task)
    table = TabledRule(task, rule)
    for name in ("operands", "constants", "answers", "least_constant", "along", "starts", "num_states", "rows"):
        assert getattr(table, name) == getattr(rule, name)
    draw = random.Random(0)
    cases = []
    for constants in choices_of(rule, task.base):
        states = table.reachable[constants]
        cases += [(state, constants) for state in states]
    for _ in range(300):
        state, constants = draw.choice(cases)
        digits = [draw.randrange(task.base) for _ in rule.operands]
        assert single(table, state, digits, constants) == single(rule, state, digits, constants)
    states = torch.arange(rule.num_states)
    assert torch.equal(table.ends_well(states), rule.ends_well(states))
    assert all(table.read(name) == rule.read(name) for name in (*rule.operands, *rule.constants, *rule.answers))
    assert table.identities() == rule.identities()


@pytest.mark.parametrize("task", [*TASKS[:8:3], *machines(6)], ids=str)
def test_the_table_as_json_is_the_rule(task: DigitTask) -> None:
    rule = rule_of(task)
    plain = TabledRule(task, rule).plain()
    draw = random.Random(1)
    for _ in range(60):
        constants = draw.choice(choices_of(rule, task.base))
        state = draw.choice(sorted(reached_from(rule, task.base, constants)))
        digits = [draw.randrange(task.base) for _ in rule.operands]
        entry: Any = plain["table"][state]
        for value in (*digits, *(constant - plain["least_constant"] for constant in constants)):
            entry = entry[value]
        after, symbols = single(rule, state, digits, constants)
        assert entry == [after, *symbols]
    assert plain["starts"] == list(rule.starts)
    assert plain["ends"] == [bool(rule.ends_well(torch.tensor([state]))) for state in range(rule.num_states)]
    assert [own["name"] for own in plain["reads"]] == [*rule.operands, *rule.constants, *rule.answers]
    roles = ["operand"] * len(rule.operands) + ["constant"] * len(rule.constants) + ["answer"] * len(rule.answers)
    assert [own["role"] for own in plain["reads"]] == roles
    assert [(plain["base"], plain["along"], plain["num_states"])] == [(task.base, rule.along, rule.num_states)]


@pytest.mark.parametrize(
    "task", [Division(base=4), Multiplication(base=4), Subtraction(base=3), *machines(14)], ids=str
)
def test_what_leads_where_is_found_by_going_through_it(task: DigitTask) -> None:
    rule = rule_of(task)
    table = TabledRule(task, rule)
    choices = choices_of(rule, task.base)
    assert table.choices == choices
    assert dict(table.reachable) == {constants: reached_from(rule, task.base, constants) for constants in choices}
    for present in itertools.product((False, True), repeat=len(rule.operands)):
        leads = table.leads(present)
        assert leads.shape == (len(choices), rule.num_states, rule.num_states)
        for number, constants in enumerate(choices):
            for state, after in graph_of(rule, task.base, constants, present).items():
                assert set(leads[number, state].nonzero()[:, 0].tolist()) == after
    steps = {(state, digits, constants): (after, symbols) for state, digits, constants, after, symbols in table.steps}
    assert (
        len(steps)
        == len(table.steps)
        == sum(len(states) * task.base ** len(rule.operands) for states in table.reachable.values())
    )
    for (state, digits, constants), found in steps.items():
        assert state in table.reachable[constants]
        assert single(rule, state, digits, constants) == found


@pytest.mark.parametrize("task", [Division(base=3), Addition(base=3), Subtraction(base=3), *machines(10)], ids=str)
def test_states_after_some_places_are_those_of_runs(task: DigitTask) -> None:
    """Every run over short places, digit by digit."""
    rule, draw = rule_of(task), random.Random(2)
    table = TabledRule(task, rule)
    for length in (0, 1, 2, 3, 3):
        places = tuple(tuple(draw.random() < 0.6 for _ in rule.operands) for _ in range(length))
        reached = table.reached(places)
        for number, constants in enumerate(choices_of(rule, task.base)):
            runs = set(rule.starts)
            for present in places:
                runs = {single(rule, s, d, constants)[0] for s in runs for d in reads_of(rule, task.base, present)}
            assert set(reached[number].nonzero()[:, 0].tolist()) == runs


# What is refused.


@dataclass(frozen=True)
class Odd(LocalRule):
    """Copies, but for one step.

    Attributes:
        state: The state of the step.
        after: The state that it leads to.
        symbol: What it writes.
        starts: As of every rule.
    """

    operands = ("operand 1",)
    num_states = 3

    state: int
    after: int
    symbol: int
    starts: tuple[int, ...] = (0,)  # type: ignore[misc]

    def step(self, state: Tensor, digits: Sequence[Tensor], constants: Sequence[Tensor]) -> Any:
        odd = (state == self.state) & (digits[0] == 1)
        other = (state == 2).long() * 2  # 2 stays 2; 1 is never come to but from 0
        after = torch.where(odd, self.after, other)
        return after, [torch.where(odd, self.symbol, digits[0])]


@pytest.mark.parametrize(("after", "symbol"), [(3, 0), (-1, 0), (10**9, 0), (0, 11), (0, 10**9), (0, -1)])
@pytest.mark.parametrize("starts", [(0,), (0, 2)])
def test_a_rule_that_leaves_its_states_or_symbols_is_refused(after: int, symbol: int, starts: tuple[int, ...]) -> None:
    """In a reachable state; steps from other states do not matter."""
    task = Addition()  # of 11 symbols
    with pytest.raises(CannotDecideError, match="local rule of addition leaves its states or the task's symbols"):
        TabledRule(task, Odd(0, after, symbol, starts))
    for state in {1, 2} - set(starts):
        table = TabledRule(task, Odd(state, after, symbol, starts))
        assert table.reachable[()] == {0, *starts}
        assert not bool(table.inside[state, 1])
    assert len(TabledRule(task, Odd(0, 1, 10)).steps) == 2 * 10


@pytest.mark.parametrize("starts", [(3,), (-1,), (0, 7), ()])
def test_a_rule_begins_in_a_state_of_its_own(starts: tuple[int, ...]) -> None:
    with pytest.raises(CannotDecideError):
        TabledRule(Addition(), Odd(0, 1, 0, starts))


class Silent(Odd):
    """Writes nothing."""

    def step(self, state: Tensor, digits: Sequence[Tensor], constants: Sequence[Tensor]) -> Any:
        return super().step(state, digits, constants)[0], []


class Vast(Odd):
    """Has more states than a table is made of."""

    num_states: ClassVar[int] = 10**6


def test_other_tables_are_refused() -> None:
    with pytest.raises(CannotDecideError, match="one symbol for each of its answers"):
        TabledRule(Addition(), Silent(0, 0, 0))
    with pytest.raises(CannotDecideError, match=r"more than 2,000,000 entries"):
        TabledRule(Addition(), Vast(0, 0, 0))


def test_all_tuples_are_in_the_order_of_counting() -> None:
    for sizes in ([], [3], [2, 0], [2, 3, 2], [1, 1]):
        assert all_of(sizes).tolist() == [list(own) for own in itertools.product(*map(range, sizes))]


def test_an_operand_has_the_digits_of_its_segment() -> None:
    rule = TabledRule(CycleNavigation(), rule_of(CycleNavigation()))
    assert rule.values == [(0, 1, 2)]
    assert [read.get("values") for read in rule.plain()["reads"]] == [[0, 1, 2], None]
    assert {digits for _, digits, *_ in rule.steps} == {(0,), (1,), (2,)}
    assert rule.leads((True,))[0, 0].tolist() == [True, True, False, False, True]
    assert "values" not in TabledRule(Addition(), rule_of(Addition())).plain()["reads"][0]


def test_zero_is_read_beyond_an_end_whatever_a_segment_holds() -> None:
    rule = TabledRule(ModularArithmetic(), rule_of(ModularArithmetic()))
    assert rule.digits((True, True)) == [(0, 1, 2, 3, 4), (5, 6, 7)]
    assert rule.digits((True, False)) == [(0, 1, 2, 3, 4), (0,)]
    assert {operator for _, (_, operator), *_ in rule.steps} == {0, 5, 6, 7}


def test_what_a_rule_writes_it_must_be_able_to_read() -> None:
    class Narrow(BinaryMultiplication):
        def values(self, segment: str) -> tuple[int, ...]:
            return (NUM_SPECIAL,) if segment == "digit" else super().values(segment)

    with pytest.raises(CannotDecideError, match="writes in digit what it cannot read"):
        TabledRule(Narrow(), rule_of(Narrow()))
