"""What a certified model computes: the least transducer, read out of the model.

Inside its window the model is a finite function: of each assignment of each kind of predictions, the token that it
writes next. Here the model is asked for that token, and the task's rule is not. What the rule lends is the *tape*:
which tokens stand at one place, in which order the places are read, and which words no problem has.

One step of the machine is one place (in tables: one place of one row). It reads the digits there, an operand that has
ended reads nothing, and it writes a token of each answer that has one there. Constants, and tokens of the last place
that are read at every place, such as the sign of a difference, are *parameters*: there is a machine for each of their
values.

1. *Reduction.* Of each prediction the leaves are left out, one by one, without which the next token is still a function
   of the others on all assignments. What is left is a table.
2. *Walk.* A state is what the tables read of the places before: digits, written tokens, where the operands began and
   ended. The walk begins before the first place, offers all digits, writes what the tables say, and slides the columns
   by one place.
3. *Least transducer.* States are merged that write the same on everything that can follow: `transducer.least`.
4. *Checks.* The least transducer is run beside the walk; all entries of all tables, hence all assignments, must have
   been met. The task's rule, walked over the same places, is made least and compared.
"""

from collections import deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor

from abc_toolkit.models.transformer import TransformerModel
from abc_toolkit.proof.basis import Basis, basis_of
from abc_toolkit.proof.enumeration import Enumeration, Kind, kinds_of
from abc_toolkit.proof.forward import receptive_field_logits
from abc_toolkit.proof.receptive_field import CannotDecideError
from abc_toolkit.proof.table import TabledRule
from abc_toolkit.proof.transducer import Difference, Least, Transducer, compare, is_renaming, least
from abc_toolkit.proof.verdict import Progress, predictions_up_to_bound, silent
from abc_toolkit.tasks import Task
from abc_toolkit.tasks.digits.base import DigitTask
from abc_toolkit.vocabulary import NUM_SPECIAL

_AT_ONCE = 2**15
MOST_STEPS = 4 * 10**6  # of a walk

Value = int | None  # a token id; None where there is no token
Presence = tuple[bool, ...]  # of each operand and each answer, whether it has a token at a place
Past = tuple[Presence, ...]  # of the places before, the last one first; empty before the first place
Column = tuple[str, str, int]  # how a token is found: "back", "first", "last" or "constant"; its name; places back
Columns = tuple[tuple[Column, ...], ...]  # for each leaf, all ways to find it


@dataclass(frozen=True)
class Read:
    """What a step reads.

    Attributes:
        digits: Token id of each operand; `None` where it has none.
        writes: Whether each answer has a token at the place.
    """

    digits: tuple[Value, ...]
    writes: Presence


# What is known before a step: what was present, the memory, first tokens, and the states that the rule may be in.
_State = tuple[Past, tuple[Value, ...], tuple[Value, ...], frozenset[int] | None]
Written = tuple[Value, ...]  # token id of each answer; None where it has none
Machine = Transducer[Read, Written]


@dataclass(frozen=True)
class Explained:
    """The least transducer for some values of the parameters.

    Attributes:
        parameters: The values for which it is the same: for each, the parameters' token ids by name.
        transducer: The transducer.
        is_least: Whether it is proved that no other has fewer states.
        names: A name for each state.
    """

    parameters: tuple[Mapping[str, Value], ...]
    transducer: Machine
    is_least: bool
    names: tuple[str, ...]


@dataclass(frozen=True)
class RuleDifference:
    """The first difference from the task's rule.

    Attributes:
        parameters: The parameters' token ids by name.
        difference: Where what is written differs; `None` if only states do.
        reason: The difference in words.
    """

    parameters: Mapping[str, Value]
    difference: Difference[Read, Written] | None
    reason: str


@dataclass(frozen=True)
class Explanation:
    """What a model computes.

    Attributes:
        task: The task.
        operands: Names of what is read at each place.
        answers: Names of what is written.
        along: The coordinate that steps go along.
        downwards: Whether they go from the largest to the least.
        rows: Whether the machine runs once for each row of a table.
        machines: The transducers, by parameters.
        assignments: Number of assignments of all kinds.
        fixed: Number of those whose next token the layout tells, such as a comma or the end.
        held: Number of assignments on which the machine writes what the model writes.
        difference: The first difference from the task's rule; `None` if the machine is the rule up to renaming.
    """

    task: DigitTask
    operands: tuple[str, ...]
    answers: tuple[str, ...]
    along: str
    downwards: bool
    rows: bool
    machines: tuple[Explained, ...]
    assignments: int
    fixed: int
    held: int
    difference: RuleDifference | None

    @property
    def num_states(self) -> int:
        """States of all machines."""
        return sum(len(own.transducer) for own in self.machines)

    def text(self, token: Value) -> str:
        """A token as it is written; empty where there is none."""
        return "" if token is None else self.task.vocabulary.decode(torch.tensor([token]))


def explain(task: Task, model: TransformerModel, progress: Progress = silent) -> Explanation:
    """Reads the least transducer out of a model.

    Args:
        task: The task.
        model: The model, on the CPU, inside a window.
        progress: Shows the progress of long loops.

    Raises:
        CannotDecideError: If the model has no basis of a proof, or reads something that no transducer over places has.
    """
    return _Explaining(basis_of(task, model.eval()), model, progress).explanation()


@dataclass
class _Table:
    """A kind's next tokens on the assignments of some predictions, reduced to some leaves.

    Attributes:
        entries: The next token, by the values of the leaves.
        row: For each assignment, the number of its entry.
        met: The entries that a walk has met.
    """

    entries: dict[tuple[Value, ...], int]
    row: Tensor
    met: set[tuple[Value, ...]] = field(default_factory=set[tuple[Value, ...]])


@dataclass(eq=False)
class _Prediction:
    """A prediction of a token that the tape has.

    Attributes:
        kind: The number of its kind.
        where: The numbers of its assignments among those of its kind.
        enumeration: The prediction and its leaves.
        part: Its assignments.
        line: The layout and row that it is of.
        answer: The name of the predicted token.
        step: Its step.
        leaves: For each leaf, its name and step; a constant has no step. `None` for what the tape does not have.
        kept: The leaves that matter.
    """

    kind: int
    where: Tensor
    enumeration: Enumeration
    part: Tensor
    line: "_Line"
    answer: str
    step: int
    leaves: Sequence[tuple[str, int | None] | None]
    kept: tuple[int, ...]

    @property
    def needed(self) -> Iterator[tuple[str, int | None]]:
        """Name and step of the leaves that matter."""
        for column in self.kept:
            leaf = self.leaves[column]
            if leaf is None:
                raise CannotDecideError(f"{self.enumeration.describe()}: no place of the tape has leaf {column}")
            yield leaf


@dataclass
class _Line:
    """One run of the machine: a row of a layout.

    Attributes:
        lacking: Whether each constant has no token for it.
        presence: For each step, whether each operand and each answer has a token there.
        order: Query of each answer at each step, by name and step.
    """

    lacking: Presence
    presence: tuple[Presence, ...]
    order: dict[tuple[str, int], int] = field(default_factory=dict[tuple[str, int], int])

    def ends(self, number: int) -> tuple[int, int]:
        """The first and the last step at which a name has a token."""
        steps = [step for step, present in enumerate(self.presence) if present[number]]
        return steps[0], steps[-1]


class _Explaining:
    """The work of `explain`.

    Args:
        basis: The basis of the proof of the model.
        model: The model.
        progress: Shows the progress of long loops.

    Attributes:
        kinds: All kinds of predictions up to the bound.
        next_tokens: For each kind, what the model writes in each assignment.
        fixed: For each kind, which assignments are of tokens that the layout tells, and in which of them the model
            writes another token.
        names: Names of the operands, then of the answers.
        downwards: Whether steps go from the largest place to the least.
        lines: The runs of the machine, by layout and row.
        predictions: The predictions of tokens that the tape has.
        last_names: Names whose last token is a parameter.
        relative: For each name, how many places back it is read.
        firsts: Names whose first token is read from anywhere.
        depth: Number of earlier places of which it is known what was present there.
        memory: Names and places back of the tokens that are remembered.
        parts: Kind, assignments and table of predictions that share a table.
        tables: The tables by where they apply: constants that are lacking, what was present before and is now, answer.
        following: What can be present at the next place.
        order: The answers in the order in which a place's tokens are written.
        reads: Everything that a step can read, by what is present.
    """

    def __init__(self, basis: Basis, model: TransformerModel, progress: Progress) -> None:
        self.task, self.rule, self.model, self.progress = basis.task, basis.rule, model, progress
        predictions = list(predictions_up_to_bound(basis, model, progress))
        self.reading = {id(found): reading for reading, _, _, found in predictions}
        self.kinds = kinds_of(basis.task, predictions)
        self.names = (*self.rule.operands, *self.rule.answers)
        self.downwards = self._downwards()
        self.lines: dict[tuple[int, int], _Line] = {}
        self.fixed: list[tuple[Tensor, Tensor]] = []
        self.next_tokens: list[Tensor] = []
        self.predictions = list(self._reduced())
        self.last_names = self._names_of_the_end()
        self.relative, firsts = self._distances()
        self.firsts = sorted(firsts)
        self.depth = 1 + max(max(found) for found in self.relative.values())  # the first places are told from others
        self.memory = [(name, back) for name, found in self.relative.items() for back in range(1, 1 + max(found))]
        self.slots = {slot: number for number, slot in enumerate(self.memory)}
        self._steps_of_the_rule: dict[Hashable, tuple[int, ...]] = {}
        self._tokens_seen: dict[tuple[int, int], set[int]] = {}
        self.parts: dict[tuple[int, int], tuple[int, Tensor, _Table]] = {}
        self._index()
        self.reads = {now: self._reads(now) for line in self.lines.values() for now in line.presence}

    # Reduction.

    def _downwards(self) -> bool:
        """Whether the answers' tokens are written from the largest place to the least."""
        up = down = 0
        for kind in self.kinds:
            for enumeration, _ in kind.parts:
                if enumeration.asked is None or enumeration.field.query == 0:
                    continue
                before = [p for name, p in enumeration.columns if name == enumeration.asked[0]]
                up += sum(place < enumeration.asked[1] for place in before)
                down += sum(place > enumeration.asked[1] for place in before)
        if up or down:
            return down > up
        return bool(self.task.downwards and self.rule.along == "place")

    def _line(self, enumeration: Enumeration) -> _Line:
        """The run of the machine that a prediction belongs to."""
        reading, row = self.reading[id(enumeration.field)], enumeration.field.predicted[1]["row"]
        if (id(reading), row) not in self.lines:
            places = {name: reading.places(name, row) for name in self.names}
            length = 1 + max(place for found in places.values() for place in found)
            order = range(length - 1, -1, -1) if self.downwards else range(length)
            presence = tuple(tuple(place in places[name] for name in self.names) for place in order)
            lacking = tuple(not reading.places(name, row) for name in self.rule.constants)
            self.lines[id(reading), row] = _Line(lacking, presence)
        return self.lines[id(reading), row]

    def _reduced(self) -> Iterator[_Prediction]:
        """Every prediction of a token that the tape has, with the leaves that matter."""
        known: dict[Hashable, tuple[int, ...]] = {}
        for number, kind in enumerate(self.progress(self.kinds, "asking the model")):
            self.next_tokens.append(self._next_tokens(kind))
            fixed, wrong = (torch.zeros(len(kind.assignments), dtype=torch.bool) for _ in range(2))
            numbers: dict[int, Tensor] = {}
            for enumeration, part in kind.parts:
                if not len(part):
                    continue
                if id(part) not in numbers:  # predictions share their assignments
                    numbers[id(part)] = torch.searchsorted(kind.assignments, part)
                where = numbers[id(part)]
                if enumeration.asked is None:
                    fixed[where] = True
                    wrong[where] |= self.next_tokens[-1][where] != enumeration.required
                    continue
                line = self._line(enumeration)
                leaves = self._steps_of(enumeration, line)
                step = self._step(enumeration.asked[1], line)
                line.order[enumeration.asked[0], step] = enumeration.field.query
                dropping = self._dropping(leaves, step)
                key = (number, id(part), tuple(dropping))
                if key not in known:
                    tokens, _ = enumeration.tokens(part)
                    radix = len(self.task.vocabulary)
                    known[key] = _leaves_that_matter(tokens, self.next_tokens[-1][where], dropping, radix)
                yield _Prediction(
                    number, where, enumeration, part, line, enumeration.asked[0], step, leaves, known[key]
                )
            self.fixed.append((fixed, wrong))

    def _next_tokens(self, kind: Kind) -> Tensor:
        """The token that the model writes next in each assignment of a kind, `[assignment]`."""
        found: list[Tensor] = []
        for part in kind.assignments.split(_AT_ONCE):
            tokens, _ = kind.enumeration.tokens(part)
            found.append(receptive_field_logits(self.model, kind.enumeration.field, tokens).argmax(dim=1))
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.long)

    def _step(self, place: int, line: _Line) -> int:
        """The step of a place."""
        return len(line.presence) - 1 - place if self.downwards else place

    def _steps_of(self, enumeration: Enumeration, line: _Line) -> list[tuple[str, int | None] | None]:
        """Name and step of each leaf; `None` for leaves that the tape does not have."""
        found: list[tuple[str, int | None] | None] = [None] * len(enumeration.field.leaves)
        for (name, place), column in enumeration.columns.items():
            found[column] = (name, None if name in self.rule.constants else self._step(place, line))
        return found

    def _dropping(self, leaves: Sequence[tuple[str, int | None] | None], step: int) -> list[int]:
        """The order in which leaves are left out, if possible.

        First those that the tape does not have and those of later places, then the farthest back, operands before what
        was written, at last what the step reads.
        """

        def rank(column: int) -> tuple[int, int, bool]:
            leaf = leaves[column]
            if leaf is None:
                return (0, 0, False)
            name, own = leaf
            if own is None:
                return (5, 0, False)
            written = name in self.rule.answers
            if own > step:
                return (1, step - own, written)
            if own < step:
                return (2, own - step, written)
            return (3, 0, False) if written else (4, 0, False)

        return sorted(range(len(leaves)), key=rank)

    # Columns.

    def _names_of_the_end(self) -> frozenset[str]:
        """The names whose last token is read at places before it."""
        found: set[str] = set()
        for own in self.predictions:
            for name, step in own.needed:
                if step is None or step <= own.step:
                    continue
                if step != own.line.ends(self.names.index(name))[1]:
                    raise CannotDecideError(f"a token of {own.answer} depends on one of {name} at a later place")
                found.add(name)
        return frozenset(found)

    def _distances(self) -> tuple[dict[str, set[int]], set[str]]:
        """For each name how many places back it is read, and the names whose first token is read from anywhere."""
        found: dict[str, set[int]] = {name: {0} for name in self.names}
        far: dict[str, set[int]] = {name: set() for name in self.names}
        for own in self.predictions:
            for name, step in own.needed:
                if step is None or step > own.step or self._is_of_the_end(own.line, name, step):
                    continue
                is_first = step == own.line.ends(self.names.index(name))[0]
                (far if is_first else found)[name].add(own.step - step)
        return found, {name for name, own in far.items() if own - found[name]}

    def _is_of_the_end(self, line: _Line, name: str, step: int) -> bool:
        """Whether a token is a parameter because it is the last of its name."""
        return name in self.last_names and step == line.ends(self.names.index(name))[1]

    def _ways(self, own: _Prediction, leaf: tuple[str, int | None] | None) -> tuple[Column, ...]:
        """All ways to find a leaf of a prediction from its step."""
        if leaf is None:
            return ()
        name, step = leaf
        if step is None:
            return (("constant", name, 0),)
        first, _ = own.line.ends(self.names.index(name))
        found: list[Column] = []
        if self._is_of_the_end(own.line, name, step):
            found.append(("last", name, 0))
        if own.step - step in self.relative[name]:
            found.append(("back", name, own.step - step))
        if step == first < own.step and name in self.firsts:
            found.append(("first", name, 0))
        return tuple(found)

    def _past(self, line: _Line, step: int) -> Past:
        """What was present at the places before a step, the last one first, as far as is read back."""
        return tuple(line.presence[at] for at in range(step - 1, max(-1, step - 1 - self.depth), -1))

    def _index(self) -> None:
        """The tables by where they apply, and what can follow on what."""
        self.tables: dict[tuple[Presence, Past, Presence, str], list[tuple[Columns, _Table]]] = {}
        self.following: dict[tuple[Presence, Past], dict[Presence, None]] = {}
        self.order: dict[tuple[Presence, Past, Presence], tuple[str, ...]] = {}
        for line in self.lines.values():
            for step, now in enumerate(line.presence):
                past = self._past(line, step)
                self.following.setdefault((line.lacking, past), {})[now] = None
                asked = [name for name in self.rule.answers if (name, step) in line.order]
                asked.sort(key=lambda name, line=line, step=step: line.order[name, step])
                self.order[line.lacking, past, now] = tuple(asked)
        wanted: dict[tuple[Presence, Past, Presence, str], set[Column]] = {}
        for own in self.predictions:
            # What matters in one layout is kept in all in which the place looks alike: the values that occur in a
            # layout may leave something out that matters elsewhere.
            into = wanted.setdefault(self._where(own), set())
            into.update(way for column in own.kept for way in self._ways(own, own.leaves[column]))
        known: dict[Hashable, _Table] = {}
        for own in self.predictions:
            key = self._where(own)
            ways = [self._ways(own, leaf) for leaf in own.leaves]
            kept = [column for column, found in enumerate(ways) if column in own.kept or wanted[key] & set(found)]
            tabled = (own.kind, id(own.part), tuple(kept))
            if tabled not in known:
                tokens, _ = own.enumeration.tokens(own.part)
                radix = len(self.task.vocabulary)
                known[tabled] = _table(tokens[:, kept], self.next_tokens[own.kind][own.where], radix)
            table = known[tabled]
            self.parts[id(own.part), id(table)] = (own.kind, own.where, table)
            entry = (tuple(ways[column] for column in kept), table)
            if all(other[0] != entry[0] or other[1] is not table for other in self.tables.setdefault(key, [])):
                self.tables[key].append(entry)

    def _where(self, own: _Prediction) -> tuple[Presence, Past, Presence, str]:
        """What the place of a prediction looks like."""
        return own.line.lacking, self._past(own.line, own.step), own.line.presence[own.step], own.answer

    # Walk.

    def _parameters(self) -> Iterator[tuple[Presence, dict[str, Value]]]:
        """All values of the parameters, with the constants that are lacking."""
        ends: dict[str, set[int]] = {name: set() for name in self.last_names}
        for own in self.predictions:
            for column in own.kept:
                for how, name, _ in self._ways(own, own.leaves[column]):
                    if how == "last":
                        ends[name] |= self._seen(own, column)
        for lacking in dict.fromkeys(line.lacking for line in self.lines.values()):
            constants: list[Sequence[Value]] = [
                (None,) if lacks else [value + NUM_SPECIAL for value in values if value >= self.rule.least_constant]
                for lacks, values in zip(lacking, self.rule.constant_values, strict=True)
            ]
            names = (*self.rule.constants, *ends)
            for values in product(*constants, *(sorted(own) for own in ends.values())):
                yield lacking, dict(zip(names, values, strict=True))

    def _seen(self, own: _Prediction, column: int) -> set[int]:
        """The tokens that a leaf has in the assignments of a prediction."""
        key = (id(own.part), column)
        if key not in self._tokens_seen:
            self._tokens_seen[key] = set(own.enumeration.tokens(own.part)[0][:, column].unique().tolist())
        return self._tokens_seen[key]

    def _reads(self, now: Presence) -> list[Read]:
        """Everything that a step can read where some tokens are present."""
        count = len(self.rule.operands)
        digits = self.rule.digits(now[:count])
        choices: list[Sequence[Value]] = [
            [value + NUM_SPECIAL for value in own] if there else [None]
            for own, there in zip(digits, now[:count], strict=True)
        ]
        return [Read(values, now[count:]) for values in product(*choices)]

    def _walked(self, lacking: Presence, parameters: Mapping[str, Value]) -> Machine:
        """The transducer whose states are what the tables read of the places before."""
        answers = self.rule.answers
        living = None if len(_fruitful(self.rule)) == self.rule.num_states else frozenset(self.rule.starts)
        start: _State = ((), (None,) * len(self.memory), (None,) * len(self.firsts), living)
        number: dict[_State, int] = {start: 0}
        steps: list[dict[Read, tuple[Written, int]]] = [{}]
        todo: deque[_State] = deque([start])
        reads = self.reads
        total = 0
        while todo:
            state = todo.popleft()
            past, memory, firsts, living = state
            into = steps[number[state]]
            for now in self.following.get((lacking, past), ()):
                order = self.order[lacking, past, now]
                tables = [self.tables.get((lacking, past, now, answer), []) for answer in order]
                after_past = (now, *past)[: self.depth]
                for read in reads[now]:
                    after_living = None if living is None else self._living(living, read, parameters)
                    if after_living == frozenset():  # no problem has such a word
                        continue
                    here = dict(zip(self.rule.operands, read.digits, strict=True)) | dict.fromkeys(answers)
                    for answer, own in zip(order, tables, strict=True):
                        token = self._looked_up(own, here, memory, firsts, parameters)
                        if token is None:
                            break
                        here[answer] = token
                    else:
                        after_memory = tuple(
                            here[name] if back == 1 else memory[self.slots[name, back - 1]]
                            for name, back in self.memory
                        )
                        after_firsts = tuple(
                            here[name] if value is None else value
                            for name, value in zip(self.firsts, firsts, strict=True)
                        )
                        after = (after_past, after_memory, after_firsts, after_living)
                        if after not in number:
                            number[after] = len(number)
                            steps.append({})
                            todo.append(after)
                        into[read] = (tuple(here[name] for name in answers), number[after])
            total += len(into)
            if total > MOST_STEPS:
                raise CannotDecideError(f"the model's memory has more than {MOST_STEPS:,} steps")
        return Transducer(steps)

    def _living(self, states: frozenset[int], read: Read, parameters: Mapping[str, Value]) -> frozenset[int]:
        """The states that the rule may be in after a step, of those from which it can reach an accepting one."""
        following = {self._of_the_table(state, read, parameters)[0] for state in states}
        return frozenset(following & _fruitful(self.rule))

    def _of_the_table(self, state: int, read: Read, parameters: Mapping[str, Value]) -> tuple[int, ...]:
        """The rule's next state and the number of each answer's symbol."""
        constants = tuple(parameters[name] for name in self.rule.constants)
        key = (state, read.digits, constants)
        if key not in self._steps_of_the_rule:
            digits = (0 if value is None else value - NUM_SPECIAL for value in read.digits)
            least_value = self.rule.least_constant
            which = (0 if value is None else value - NUM_SPECIAL - least_value for value in constants)
            self._steps_of_the_rule[key] = tuple(self.rule.table[(state, *digits, *which)].tolist())
        return self._steps_of_the_rule[key]

    def _looked_up(
        self,
        tables: Sequence[tuple[Columns, _Table]],
        here: Mapping[str, Value],
        memory: Sequence[Value],
        firsts: Sequence[Value],
        parameters: Mapping[str, Value],
    ) -> Value:
        """The next token by the tables of a place; `None` if no problem has such tokens there.

        Raises:
            CannotDecideError: If two tables disagree.
        """

        def value(column: Column) -> Value:
            how, name, back = column
            if how == "back":
                return memory[self.slots[name, back]] if back else here[name]
            return firsts[self.firsts.index(name)] if how == "first" else parameters[name]

        found: Value = None
        for columns, table in tables:
            if any(len(ways) > 1 and len({value(way) for way in ways}) > 1 for ways in columns):
                continue
            key = tuple(value(ways[0]) for ways in columns)
            token = table.entries.get(key)
            if token is None:
                continue
            if found not in (None, token):
                words = ", ".join(f"{how} {name} {back}" for ways in columns for how, name, back in ways[:1])
                raise CannotDecideError(f"the model tells places apart that no transducer does, by {words}")
            found = token
            table.met.add(key)
        return found

    # The task's rule.

    def _of_the_rule(
        self, walked: Machine, parameters: Mapping[str, Value], start: int
    ) -> tuple[Machine, list[tuple[int, int]]]:
        """The rule as a transducer on the words that a walk reads.

        Args:
            walked: The walk.
            parameters: The parameters.
            start: The state in which the rule begins.

        Returns:
            The transducer, and the walk's and the rule's state in each of its states.
        """
        number = {(walked.start, start): 0}
        steps: list[dict[Read, tuple[Written, int]]] = [{}]
        todo = deque(number)
        while todo:
            pair = todo.popleft()
            into = steps[number[pair]]
            for read, (output, walks_to) in walked.steps[pair[0]].items():
                state, *symbols = self._of_the_table(pair[1], read, parameters)
                own = tuple(
                    None if value is None else symbol + NUM_SPECIAL
                    for value, symbol in zip(output, symbols, strict=True)
                )
                if (walks_to, state) not in number:
                    number[walks_to, state] = len(number)
                    steps.append({})
                    todo.append((walks_to, state))
                into[read] = (own, number[walks_to, state])
        return Transducer(steps), list(number)

    def _compared(
        self, walked: Machine, found: Least[Read, Written], parameters: Mapping[str, Value]
    ) -> tuple[RuleDifference | None, list[set[int]] | None]:
        """The difference of a machine from the rule, or the rule's states that each of its states stands for."""
        if self.downwards and self.rule.num_states > 1:
            return RuleDifference(self._named(parameters), None, "the rule reads the places in the other order"), None
        differences: list[RuleDifference] = []
        for start in self.rule.starts:
            raw, pairs = self._of_the_rule(walked, parameters, start)
            difference, _ = compare(walked, raw)
            if difference is not None:
                differences.append(
                    RuleDifference(self._named(parameters), difference, "the rule writes something else")
                )
                continue
            own = least(raw)
            _, met = compare(found.transducer, own.transducer)
            if not is_renaming(met, found.transducer, own.transducer):
                reason = f"the machine has {len(found.transducer)} states, and the rule {len(own.transducer)}"
                differences.append(RuleDifference(self._named(parameters), None, reason))
                continue
            return None, [{pairs[state][1] for state in own.groups[next(iter(met[s]))]} for s in range(len(met))]
        return max(differences, key=lambda own: 0 if own.difference is None else len(own.difference.word)), None

    # The explanation.

    def explanation(self) -> Explanation:
        """The machines for all values of the parameters, with what was checked."""
        machines: dict[Hashable, tuple[list[Mapping[str, Value]], Explained]] = {}
        first: RuleDifference | None = None
        for lacking, parameters in self.progress(list(self._parameters()), "reading out the transducer"):
            walked = self._walked(lacking, parameters)
            if not walked.steps[0]:
                continue
            found = least(walked)
            difference, met = compare(walked, found.transducer)
            assert difference is None
            assert all(len(own) == 1 for own in met.values())
            other, states = self._compared(walked, found, parameters)
            first = first or other
            names = self._names(len(found.transducer), states)
            own = Explained((), found.transducer, found.is_proved, names)
            key = (tuple(tuple(steps.items()) for steps in own.transducer.steps), names)
            machines.setdefault(key, ([], own))[0].append(self._named(parameters))
        explained = tuple(
            Explained(tuple(values), own.transducer, own.is_least, own.names) for values, own in machines.values()
        )
        return Explanation(
            self.task,
            self.rule.operands,
            self.rule.answers,
            self.rule.along,
            self.downwards,
            self.rule.rows,
            explained,
            sum(len(kind.assignments) for kind in self.kinds),
            sum(int(fixed.sum()) for fixed, _ in self.fixed),
            self._held(),
            first,
        )

    def _named(self, parameters: Mapping[str, Value]) -> dict[str, Value]:
        """Parameters by the names that people read."""
        return {f"last {name}" if name in self.last_names else name: value for name, value in parameters.items()}

    def _names(self, count: int, states: Sequence[set[int]] | None) -> tuple[str, ...]:
        """A name for each state: the rule's, or q0, q1 and so on."""
        plain = tuple(f"q{number}" for number in range(count))
        if states is None or any(len(own) > 2 for own in states):
            return plain
        names = tuple(" or ".join(self.rule.rule.name_of(state) for state in sorted(own)) for own in states)
        return names if len(set(names)) == count else plain

    def _held(self) -> int:
        """The number of assignments that walks have met, so that the machine writes there what the model writes.

        Those of tokens that the layout tells count if the model writes them.
        """
        met = [fixed & ~wrong for fixed, wrong in self.fixed]
        for kind, where, table in self.parts.values():
            entries = torch.tensor([values in table.met for values in table.entries], dtype=torch.bool)
            met[kind][where[entries[table.row]]] = True
        return sum(int(own.sum()) for own in met)


@lru_cache(maxsize=4)
def _fruitful(rule: TabledRule) -> frozenset[int]:
    """The states of a rule from which an accepting state can be reached, with some constants."""
    leads = torch.zeros(rule.num_states, rule.num_states, dtype=torch.bool)
    for present in product((False, True), repeat=len(rule.operands)):
        leads |= rule.leads(present).any(dim=0)
    found = torch.tensor(rule.ends)
    while True:
        more = found | (leads & found).any(dim=1)
        if bool((more == found).all()):
            return frozenset(found.nonzero()[:, 0].tolist())
        found = more


def _leaves_that_matter(tokens: Tensor, next_tokens: Tensor, dropping: Sequence[int], radix: int) -> tuple[int, ...]:
    """Leaves of whose values the next token is a function.

    Args:
        tokens: Token ids of the leaves, `[assignment, leaf]`.
        next_tokens: What the model writes, `[assignment]`.
        dropping: The leaves in the order in which they are left out, if possible.
        radix: Number of token ids.
    """
    kept = sorted(dropping)
    for column in dropping:
        fewer = [other for other in kept if other != column]
        code = _coded(tokens[:, fewer], radix)
        if len(code.unique()) == len((code * radix + next_tokens).unique()):
            kept = fewer
    return tuple(kept)


def _table(tokens: Tensor, next_tokens: Tensor, radix: int) -> _Table:
    """The next tokens `[assignment]` as a table over the values of some leaves, `[assignment, leaf]`."""
    values, row = _coded(tokens, radix).unique(return_inverse=True)
    first = torch.zeros_like(values).scatter_reduce(0, row, torch.arange(len(row)), "amin", include_self=False)
    entries: dict[tuple[Value, ...], int] = {tuple(tokens[i].tolist()): int(next_tokens[i]) for i in first.tolist()}
    return _Table(entries, row)


def _coded(tokens: Tensor, radix: int) -> Tensor:
    """Each row of token ids as one number, which leaves room for one more token id."""
    code = torch.zeros(len(tokens), dtype=torch.long)
    for column in tokens.unbind(1):
        code = code * radix + column
        if len(code) and int(code.max()) >= 2**63 // radix**2:  # or the next column would not fit into 64 bits
            code = code.unique(return_inverse=True)[1]
    return code
