"""The table of a local rule, and what follows from it: steps, reachable states, relations of states over places."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import product
from typing import Any

import torch
from torch import Tensor

from abc_toolkit.proof.receptive_field import CannotDecideError
from abc_toolkit.tasks.digits.base import DigitTask
from abc_toolkit.tasks.digits.identity import Identity
from abc_toolkit.tasks.digits.rule import LocalRule, Read
from abc_toolkit.vocabulary import NUM_SPECIAL

_MOST_ENTRIES = 2 * 10**6


def all_of(sizes: Sequence[int]) -> Tensor:
    """All tuples of numbers below the sizes, in lexicographic order, `[tuple, size]`."""
    return choices_of([range(size) for size in sizes])


def choices_of(values: Sequence[Sequence[int]]) -> Tensor:
    """All tuples of one of the values of each, in lexicographic order, `[tuple, number of each]`."""
    return torch.tensor(list(product(*values)), dtype=torch.long).reshape(math.prod(map(len, values)), len(values))


class TabledRule(LocalRule):
    """A local rule as the table of its steps.

    The rule's own code is run once, to make the table. The proof rests on the table, and the certificate holds it.

    Args:
        task: The task.
        rule: Its local rule.

    Attributes:
        base: Number of digits.
        table: The next state and the symbol of each answer, `[state, digits of the operands, constants, 1 + answer]`.
        inside: Whether an entry is a state of the rule and symbols of the task, `[state, digits, constants]`.
        values: The digits that each operand can have, as the task says of its segment.
        constant_values: The values that each constant can have where it has a token.
        ends: Whether each state is accepting.

    Raises:
        CannotDecideError: If a reachable step leaves the rule's states or the task's symbols, or the table is too
            large.
    """

    def __init__(self, task: DigitTask, rule: LocalRule) -> None:
        self.rule, self.base = rule, task.base
        if not rule.starts or not all(0 <= start < rule.num_states for start in rule.starts):
            raise CannotDecideError(f"the local rule of {task.name} begins in no state of its own")
        self.operands, self.constants, self.answers = rule.operands, rule.constants, rule.answers  # type: ignore[misc]
        self.least_constant, self.along, self.starts = rule.least_constant, rule.along, rule.starts  # type: ignore[misc]
        self.num_states, self.rows = rule.num_states, rule.rows  # type: ignore[misc]
        possible = [task.values(rule.read(name).segment) for name in rule.operands]
        self.values = [tuple(v - NUM_SPECIAL for v in own if 0 <= v - NUM_SPECIAL < task.base) for own in possible]
        possible = [task.values(rule.read(name).segment) for name in rule.constants]
        self.constant_values = [tuple(v - NUM_SPECIAL for v in own if v - NUM_SPECIAL < task.base) for own in possible]
        num_constants = task.base - rule.least_constant
        shape = [rule.num_states, *[task.base] * len(rule.operands), *[num_constants] * len(rule.constants)]
        if torch.tensor(shape, dtype=torch.float64).prod() > _MOST_ENTRIES:
            raise CannotDecideError(
                f"the table of the local rule of {task.name} has more than {_MOST_ENTRIES:,} entries"
            )
        state, *read = all_of(shape).unbind(1)
        digits, constants = read[: len(rule.operands)], read[len(rule.operands) :]
        after, written = rule.step(state, digits, [value + rule.least_constant for value in constants])
        table = torch.stack([after, *written], dim=1)
        if table.shape[1] != 1 + len(rule.answers):
            raise CannotDecideError(f"the local rule of {task.name} does not write one symbol for each of its answers")
        limit = torch.tensor([rule.num_states, *[len(task.symbols)] * len(rule.answers)])
        inside = ((table >= 0) & (table < limit)).all(dim=1)
        # Steps from unreachable states, such as a remainder beyond the divisor, may be anything: their entries are 0.
        self.table = torch.where(inside[:, None], table, 0).reshape(*shape, -1)
        self.inside = inside.reshape(shape)
        for found, states in self.reachable.items():
            which = tuple(value - rule.least_constant for value in found)
            if not self.possible(self.inside)[(list(states), *[slice(None)] * len(rule.operands), *which)].all():
                raise CannotDecideError(f"the local rule of {task.name} leaves its states or the task's symbols")
        self.ends = rule.ends_well(torch.arange(rule.num_states)).tolist()
        self._check_what_is_read_again(task)
        self._leads: dict[tuple[bool, ...], Tensor] = {}
        self._reached: dict[tuple[tuple[bool, ...], ...], Tensor] = {}

    def possible(self, entries: Tensor) -> Tensor:
        """Entries `[state, digits, ...]` of the digits that operands can have, 0 among them: it is read beyond ends."""
        for dim, own in enumerate(self.values, 1):
            entries = entries.index_select(dim, torch.tensor(sorted({0, *own})))
        return entries

    def _check_what_is_read_again(self, task: DigitTask) -> None:
        """Refuses a rule that writes what the operand of the same segment cannot have.

        Raises:
            CannotDecideError: If it does.
        """
        for operand, own in zip(self.operands, self.values, strict=True):
            segment = self.read(operand).segment
            for number, answer in enumerate(self.answers):
                if self.read(answer).segment != segment:
                    continue
                if not {symbols[number] for *_, symbols in self.steps} <= set(own):
                    raise CannotDecideError(f"the local rule of {task.name} writes in {segment} what it cannot read")

    def digits(self, present: Sequence[bool]) -> list[tuple[int, ...]]:
        """The digits that each operand can have at a place.

        Args:
            present: Which operands have a digit there; others read 0.
        """
        return [own if there else (0,) for own, there in zip(self.values, present, strict=True)]

    def step(
        self, state: Tensor, digits: Sequence[Tensor], constants: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        found = self.table[(state, *digits, *(value - self.least_constant for value in constants))]
        return found[..., 0], list(found[..., 1:].unbind(-1))

    def ends_well(self, state: Tensor) -> Tensor:
        return torch.tensor(self.ends)[state]

    def read(self, name: str) -> Read:
        return self.rule.read(name)

    def identities(self) -> tuple[Identity, ...]:
        return self.rule.identities()

    def plain(self) -> dict[str, Any]:
        """The rule as JSON."""
        roles = {"operand": self.operands, "constant": self.constants, "answer": self.answers}
        reads: list[dict[str, Any]] = []
        for role, names in roles.items():
            for name in names:
                own = self.read(name)
                where = {"segment": own.segment, "row": own.row, "shift": own.shift}
                reads.append({"name": name, "role": role} | where)
                if role == "operand" and (values := self.values[self.operands.index(name)]) != tuple(range(self.base)):
                    reads[-1]["values"] = list(values)
                if role == "constant":
                    values = self.constant_values[self.constants.index(name)]
                    if not set(range(self.least_constant, self.base)) <= set(values):
                        reads[-1]["values"] = list(values)
        return {
            "along": self.along,
            "base": self.base,
            "num_states": self.num_states,
            "starts": list(self.starts),
            "ends": self.ends,
            "least_constant": self.least_constant,
            "reads": reads,
            "table": self.table.tolist(),
        }

    @cached_property
    def steps(self) -> list[tuple[int, tuple[int, ...], tuple[int, ...], int, tuple[int, ...]]]:
        """Every step from a reachable state: state, digits, constants, next state, symbols."""
        found: list[tuple[int, tuple[int, ...], tuple[int, ...], int, tuple[int, ...]]] = []
        table = self.table.reshape(-1, self.table.shape[-1]).tolist()
        possible = [{0, *own} for own in self.values]
        for (state, *read), (after, *symbols) in zip(all_of(self.table.shape[:-1]).tolist(), table, strict=True):
            digits, constants = read[: len(self.operands)], read[len(self.operands) :]
            constants = tuple(value + self.least_constant for value in constants)
            if state in self.reachable[constants] and all(
                digit in own for digit, own in zip(digits, possible, strict=True)
            ):
                found.append((state, tuple(digits), constants, after, tuple(symbols)))
        return found

    @cached_property
    def reachable(self) -> Mapping[tuple[int, ...], set[int]]:
        """The reachable states for each choice of constants: the fixed point of all steps from the starts."""
        found: dict[tuple[int, ...], set[int]] = {}
        for constants in product(range(self.least_constant, self.base), repeat=len(self.constants)):
            which = tuple(value - self.least_constant for value in constants)
            after = self.possible(self.table)[(slice(None), *[slice(None)] * len(self.operands), *which)][..., 0]
            leads = [set(row) for row in after.reshape(self.num_states, -1).tolist()]
            states, new = set(self.starts), set(self.starts)
            while new:
                new = set().union(*(leads[state] for state in new)) - states
                states |= new
            found[constants] = states
        return found

    @cached_property
    def choices(self) -> list[tuple[int, ...]]:
        """All choices of the constants' values."""
        return list(product(range(self.least_constant, self.base), repeat=len(self.constants)))

    def leads(self, present: tuple[bool, ...]) -> Tensor:
        """The relation of states over one place, boolean `[choice of constants, state, next state]`.

        Args:
            present: Which operands have a digit there; others read 0.
        """
        if present not in self._leads:
            after = self.table
            for dim, own in enumerate(self.digits(present), 1):
                after = after.index_select(dim, torch.tensor(own))
            after = after[..., 0]
            after = after.reshape(self.num_states, -1, len(self.choices)).permute(2, 0, 1)
            found = torch.zeros(len(self.choices), self.num_states, self.num_states, dtype=torch.bool)
            self._leads[present] = found.scatter(2, after, True)
        return self._leads[present]

    def reached(self, places: tuple[tuple[bool, ...], ...]) -> Tensor:
        """The states that are reachable after some places, boolean `[choice of constants, state]`.

        Args:
            places: For each place, which operands have a digit there.
        """
        if places not in self._reached:
            if places:
                before = self.reached(places[:-1])
                self._reached[places] = (before.unsqueeze(2) & self.leads(places[-1])).any(dim=1)
            else:
                found = torch.zeros(len(self.choices), self.num_states, dtype=torch.bool)
                found[:, list(self.starts)] = True
                self._reached[places] = found
        return self._reached[places]
