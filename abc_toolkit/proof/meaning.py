"""The meaning of a local rule: the identities that its steps keep, its runs, and its agreement with the oracle.

A proof of a model says that the model writes what the local rule writes. What that is in integers is a claim of its
own, which has three parts.

* **Identities.** An identity is a claim about one step, such as `a + b + carry = w + 10 next carry` for addition. It is
  checked on every step of the rule's table from a reachable state. By induction over the places it holds for whole
  numbers (`tasks.digits.identity`).
* **Runs.** A rule may have several runs over the same digits, of which those count that end in an accepting state. That
  exactly one counts is checked on the sets of states that runs over the same digits reach (the subset construction).
* **Agreement.** The rule, the training data (`compute`) and the oracle (`solve`) are compared on at least `HELD_TO`
  problems. This is a measurement: no claim of the proof rests on it.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product

import torch
from torch import Generator, Tensor

from abc_toolkit.proof.enumeration import Reading
from abc_toolkit.proof.receptive_field import CannotDecideError
from abc_toolkit.proof.table import TabledRule
from abc_toolkit.tasks import ProblemError, Problems
from abc_toolkit.tasks.base import TRAINING
from abc_toolkit.tasks.digits.base import SETS, DigitTask
from abc_toolkit.tasks.digits.identity import (
    CarryIdentity,
    CopyIdentity,
    Identity,
    OrderIdentity,
    RunningIdentity,
    Share,
    SumIdentity,
)
from abc_toolkit.tasks.lengths import shape_name
from abc_toolkit.vocabulary import NUM_SPECIAL

HELD_TO = 10_000  # least number of problems on which a rule is compared with the oracle
_SHORT = 2_000  # problems of a shape up to which all of them are compared
_LONG = (2, 4, 10)  # multiples of the longest training length that are compared too
_LONG_TOKENS = 1_000  # of the longest problems


@dataclass(frozen=True)
class Meaning:
    """What is known of a local rule.

    Attributes:
        proved: The statements of its identities, which hold for every length.
        runs: Why exactly one run counts for every problem, in words.
        held_to: Number of problems on which the rule, `compute` and `solve` agree.
        longest: Digits of the longest operand of these problems.
    """

    proved: tuple[str, ...]
    runs: str
    held_to: int
    longest: int


def meaning_of(task: DigitTask, rule: TabledRule, readings: Sequence[Reading]) -> Meaning:
    """Checks the identities and the runs of a rule, and compares it with the oracle.

    Args:
        task: The task.
        rule: Its local rule.
        readings: Every layout up to the bound, as the rule reads it.

    Raises:
        CannotDecideError: If a step breaks an identity, or the rule, `compute` and `solve` differ on a problem.
    """
    _check_constants(task, rule)
    held_to, longest = compare_with_oracle(task, rule)
    ends = _ends(rule, readings)
    for identity in rule.identities():
        reason = broken_step(rule, identity, ends) or _incomplete_answer(rule, identity, readings)
        if reason is not None:
            raise CannotDecideError(f"the local rule of {task.name} does not keep '{identity.statement}': {reason}")
    return Meaning(tuple(identity.statement for identity in rule.identities()), _runs(rule), held_to, longest)


def _check_constants(task: DigitTask, rule: TabledRule) -> None:
    """Refuses a task some of whose problems have a constant below the least of its rule.

    Raises:
        CannotDecideError: If there is such a problem.
    """
    problems = task.sample(Generator().manual_seed(0), 1, task.training_shapes()[0])
    source = task.layout(problems.shape).source
    for name, value in product(rule.constants, range(rule.least_constant)):
        own = problems.source[0].clone()
        own[source.within(rule.read(name).segment)] = value + NUM_SPECIAL
        text = task.vocabulary.decode(own)
        with suppress(ProblemError):
            task.parse(text)
            raise CannotDecideError(f"{text} is a problem of {task.name}, and its local rule has no {name} of {value}")


def _ends(rule: TabledRule, readings: Iterable[Reading]) -> set[tuple[tuple[int, ...], int]]:
    """The pairs of constants and state with which a run may end, in any row that has an answer."""
    found: set[tuple[tuple[int, ...], int]] = set()
    known: set[tuple[tuple[bool, ...], ...]] = set()
    for reading in readings:
        target = reading.layout.target
        rows = [target.coordinates["row"][target.within(reading.reads[name].segment)] for name in rule.answers]
        for row in torch.cat(rows).unique().tolist():
            present = tuple(reading.present(row))
            if present in known:
                continue
            known.add(present)
            for constants in rule.reachable:
                states = set(rule.starts)
                choice = rule.choices.index(constants)
                for there in present:
                    after = rule.leads(there)[choice, list(states)].any(dim=0)
                    states = set(after.nonzero()[:, 0].tolist())
                found |= {(constants, state) for state in states if rule.ends[state]}
    return found


def _incomplete_answer(rule: TabledRule, identity: Identity, readings: Iterable[Reading]) -> str | None:
    """An answer of an identity that has no token at some place of a run, in words; `None` if there is none."""
    names = [own.name for own in identity.gives] if isinstance(identity, SumIdentity) else []
    names += [identity.answer] if isinstance(identity, CopyIdentity) else []
    for reading, name in product(readings, names):
        target = reading.layout.target
        for row in target.coordinates["row"][target.within(reading.reads[name].segment)].unique().tolist():
            if len(reading.places(name, row)) < len(reading.present(row)):
                return f"{name} has not a token at every place"
    return None


def _runs(rule: TabledRule) -> str:
    """Why exactly one run counts for every problem, in words."""
    if len(rule.starts) == 1 and all(rule.ends):
        return "it begins in one state, and every run counts"
    for constants in rule.reachable:
        which = tuple(value - rule.least_constant for value in constants)
        leads = rule.possible(rule.table)[(slice(None), *[slice(None)] * len(rule.operands), *which)][..., 0]
        leads = leads.reshape(rule.num_states, -1)
        together, new = {rule.starts}, {rule.starts}
        while new:  # the sets of states of all runs over the same digits, to a fixed point
            new = {tuple(states) for one in new for states in leads[list(one)].T.tolist()} - together
            together |= new
        if any(sum(rule.ends[state] for state in states) != 1 for states in together):
            return "taken as given: problems on which no run counts do not occur"
    return "of the runs on any digits exactly one ends well"


def broken_step(rule: TabledRule, identity: Identity, ends: Iterable[tuple[tuple[int, ...], int]] = ()) -> str | None:
    """A step in which a rule breaks an identity, in words; `None` if every step keeps it.

    The first and the last state of a run are checked too: they must carry nothing.

    Args:
        rule: The rule.
        identity: The identity.
        ends: The pairs of constants and state with which runs may end.
    """
    for state, digits, constants, after, symbols in rule.steps:
        shown = dict(zip(rule.answers, symbols, strict=True))
        read = dict(zip(rule.operands, digits, strict=True))
        step = _Step(state, after, read, shown, constants[0] if constants else 1)
        try:
            keeps = step.keeps(identity, rule.base, rule.along == "place")
        except (IndexError, KeyError):
            return "it names what the rule has not"
        if not keeps:
            return f"in state {state}, at digits {digits} with constants {constants}"
    if isinstance(identity, SumIdentity):
        left = {state for _, state in ends} if rule.along == "place" else set(rule.starts)
        carrying = next((state for state in left if identity.carry[state]), None)
        if carrying is not None:
            return f"a run {'ends' if rule.along == 'place' else 'begins'} in state {carrying}, which carries"
    if isinstance(identity, OrderIdentity) and any(identity.order[start] for start in rule.starts):
        return "a run does not begin with two equal numbers"
    if isinstance(identity, RunningIdentity) and any(identity.carry[start] for start in rule.starts):
        return "a run does not begin with nothing"
    return None


@dataclass(frozen=True)
class _Step:
    """One step of a rule.

    Attributes:
        state: The state before it.
        after: The state after it.
        read: The digit of each operand.
        shown: The symbol of each answer.
        constant: The constant; 1 if there is none.
    """

    state: int
    after: int
    read: Mapping[str, int]
    shown: Mapping[str, int]
    constant: int

    def keeps(self, identity: Identity, base: int, up: bool) -> bool:
        """Whether the step keeps an identity.

        Args:
            identity: The identity.
            base: Number of digits.
            up: Whether the rule goes along `place`, from the least significant digit on.
        """
        if isinstance(identity, SumIdentity):
            return self._keeps_sum(identity, base, up)
        if isinstance(identity, CarryIdentity):
            own = identity.carry[self.after]
            bound = self.constant if identity.bound == "constant" else int(identity.bound)
            return 0 <= own < bound and self.shown[identity.answer] == own
        if isinstance(identity, RunningIdentity):
            own = (identity.carry[self.state] + self.read[identity.operand] + identity.offset) % identity.modulus
            return identity.carry[self.after] == self.shown[identity.answer] == own
        if isinstance(identity, OrderIdentity):
            first, second = (self.read[name] for name in identity.operands)
            sign, before = (first > second) - (first < second), identity.order[self.state]
            order = (sign or before) if up else (before or sign)
            return identity.order[self.after] == order and self.shown[identity.answer] == identity.symbols[order + 1]
        assert isinstance(identity, CopyIdentity)
        return self.shown[identity.answer] == self.read[identity.operand]

    def _keeps_sum(self, identity: SumIdentity, base: int, up: bool) -> bool:
        def total(shares: Sequence[Share], digits: Mapping[str, int]) -> int:
            return sum(
                own.per_state[self.state] * (self.constant if own.times_constant else 1) * digits[own.name]
                for own in shares
            )

        low, high = identity.carry[self.state], identity.carry[self.after]
        left, right = total(identity.takes, self.read), total(identity.gives, self.shown)
        equal = left + low == right + base * high if up else left + base * low == right + high
        return (
            equal
            and all(
                own.per_state[self.state] == own.per_state[self.after] for own in (*identity.takes, *identity.gives)
            )
            and all(self.shown[own.name] < base for own in identity.gives)
        )


def compare_with_oracle(task: DigitTask, rule: TabledRule) -> tuple[int, int]:
    """Compares a rule, `compute` and `solve` on problems.

    The problems are all of the short shapes, and samples of the training mixture and of every evaluation suite. The
    lengths of the samples are the training lengths and multiples of the longest, up to `_LONG_TOKENS` tokens.

    Returns:
        The number of problems, and the digits of the longest operand.

    Raises:
        CannotDecideError: If they differ.
    """
    generator = Generator().manual_seed(0)
    count = longest = 0
    for shape in task.training_shapes():
        if task.num_problems(shape) <= _SHORT:
            count += _agree(task, rule, _every(task, rule, shape))
    lengths = [*range(task.shortest, task.max_length + 1), *(times * task.max_length for times in _LONG)]
    work = []
    for length, name in product(lengths, (TRAINING, *SETS)):
        with suppress(ProblemError):  # the length exceeds a fixed width
            for shape in task.evaluation_shapes(length, SETS[0] if name == TRAINING else name, generator):
                task.layout(shape)
                if sum(task.num_tokens(shape)) <= _LONG_TOKENS:
                    work.append((shape, name, length > task.max_length))
    training = sum(not is_long for _, _, is_long in work)
    each = -(-HELD_TO // max(training, 1))
    for shape, name, is_long in work:
        if name == TRAINING and is_long:
            continue
        count += _agree(task, rule, task.sample(generator, 32 if is_long else each, shape, name))
        longest = max(longest, *task.operand_lengths(shape))
    return count, longest


def _every(task: DigitTask, rule: TabledRule, shape: tuple[int, ...]) -> Problems:
    """All problems of a shape."""
    operands = task.all_operands(shape)
    kept = torch.ones(len(operands[0]), dtype=torch.bool)
    for number, digits in enumerate(operands, 1):
        if f"operand {number}" in rule.constants:
            kept &= (digits >= rule.least_constant).all(dim=1)
    return task.problems(shape, [digits[kept] for digits in operands])


def written_by(task: DigitTask, rule: TabledRule, problems: Problems) -> Tensor:
    """Targets that a rule's table writes, `[batch, target_length]`.

    The rule reads and writes by its names alone, as in the enumeration. In a table, each row is written under the right
    rows above it. A token is -1 where no run ends in an accepting state, or the rule does not write it and its segment
    has several values.
    """
    layout = task.layout(problems.shape)
    reading, target = Reading(rule, layout), layout.target
    written = torch.full_like(problems.target, -1)
    for number, segment in enumerate(target.segment.tolist()):
        values = task.values(target.names[segment])
        written[:, number] = values[0] if len(values) == 1 else -1
    own = [target.within(reading.reads[name].segment) for name in rule.answers]
    for row in target.coordinates["row"][torch.stack(own).any(dim=0)].unique().tolist():
        columns = _columns(reading, problems, row)
        none = torch.zeros_like(written[:, 0])
        constants = [columns.get((name, 0), none + rule.least_constant) for name in rule.constants]
        runs = []
        for start in rule.starts:
            state, symbols = torch.full_like(none, start), []
            for place in range(len(reading.present(row))):
                digits = [columns.get((name, place), none) for name in rule.operands]
                state, here = rule.step(state, digits, constants)
                symbols.append(here)
            runs.append((rule.ends_well(state), symbols))
        for name, within in zip(rule.answers, own, strict=True):
            number = rule.answers.index(name)
            for token in (within & (target.coordinates["row"] == row)).nonzero()[:, 0].tolist():
                place = int(target.coordinates[rule.along][token]) - reading.reads[name].shift
                written[:, token] = -1
                for ends, symbols in runs:
                    said = symbols[place][number] + NUM_SPECIAL
                    written[:, token] = torch.where(ends, said, written[:, token])
    return written


def _columns(reading: Reading, problems: Problems, row: int) -> dict[tuple[str, int], Tensor]:
    """The digits that a rule reads for a row, by name and place, `[batch]` each."""
    rule = reading.rule
    found: dict[tuple[str, int], Tensor] = {}
    strings = (reading.layout.source, problems.source), (reading.layout.target, problems.target)
    for name, (positions, tokens) in product((*rule.operands, *rule.constants), strings):
        read = reading.reads[name]
        fits = positions.within(read.segment)
        if read.row is not None:
            fits = fits & (positions.coordinates["row"] == row - read.row)
        for token in fits.nonzero()[:, 0].tolist():
            place = 0 if name in rule.constants else int(positions.coordinates[rule.along][token]) - read.shift
            if place >= 0:
                found[name, place] = tokens[:, token] - NUM_SPECIAL
    return found


def _agree(task: DigitTask, rule: TabledRule, problems: Problems) -> int:
    """The number of problems, on all of which the rule and `compute` agree with `solve`.

    Raises:
        CannotDecideError: If they differ on one.
    """
    written, vocabulary, checked = written_by(task, rule, problems), task.vocabulary, 0
    for source, own, computed in zip(problems.source, written, problems.target, strict=True):
        text = vocabulary.decode(source)
        right = task.solve(text)
        for who, said in (("the local rule", own), ("'compute'", computed)):
            if (said < 0).any() or vocabulary.decode(said) != right:
                size = shape_name(problems.shape)
                raise CannotDecideError(f"{who} of {task.name} does not say what 'solve' says of {text} (shape {size})")
        checked += 1
    return checked
