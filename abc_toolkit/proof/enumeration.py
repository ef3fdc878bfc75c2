"""Assignments: all values that the tokens of a receptive field can have, each with the token that it requires.

The local rule is a transducer over places. An `Enumeration` runs it over all digits, place by place. A *partial
assignment* holds what the remaining places depend on, and what the receptive field shows: the constants, the state, the
values of the leaves so far, and the required token. Equal partial assignments are merged after each place. Of the
places before the first leaf only the reachable states are needed. The work therefore depends on the number of
assignments and hardly on the length.

Tokens that the rule does not name take all values of their segment. The result may hold assignments that no problem
has, which is harmless: a model that is right in more assignments is right in those that occur.
"""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property

import torch
from torch import Generator, Tensor

from abc_toolkit.layout import Layout
from abc_toolkit.models.base import prefix_of
from abc_toolkit.proof.receptive_field import CannotDecideError, ReceptiveField
from abc_toolkit.proof.table import TabledRule, all_of, choices_of
from abc_toolkit.tasks import ProblemError, Problems, Shape
from abc_toolkit.tasks.digits.base import DigitTask
from abc_toolkit.tasks.lengths import shape_name
from abc_toolkit.vocabulary import NUM_SPECIAL

MOST_ASSIGNMENTS = 2 * 10**7


class Reading:
    """A layout, as a local rule reads it.

    Args:
        rule: The rule.
        layout: The layout.
    """

    def __init__(self, rule: TabledRule, layout: Layout) -> None:
        self.rule = rule
        self.layout = layout
        names = (*rule.operands, *rule.constants, *rule.answers)
        self.reads = {name: rule.read(name) for name in names}
        self._present: dict[int, list[tuple[bool, ...]]] = {}

    def name_of(self, segment: str, token: Mapping[str, int], row: int) -> tuple[str, int] | None:
        """The name and the place under which the rule reads or writes a token; `None` if it does neither.

        Args:
            segment: The token's segment.
            token: Its coordinates.
            row: The row of the predicted token.
        """
        for name, read in self.reads.items():
            if read.segment == segment and read.row in (None, row - token["row"]):
                place = 0 if name in self.rule.constants else token[self.rule.along] - read.shift
                if place >= 0:
                    return name, place
        return None

    def written(self, segment: str, token: Mapping[str, int]) -> tuple[str, int] | None:
        """The answer and the place of a token of the target; `None` if the rule does not write it."""
        named = self.name_of(segment, token, token["row"])
        return named if named is not None and named[0] in self.rule.answers else None

    def present(self, row: int) -> list[tuple[bool, ...]]:
        """For each place of a row, whether each operand has a digit there.

        Raises:
            CannotDecideError: If two tokens have the same name and place.
        """
        if row not in self._present:
            places = {name: self.places(name, row) for name in self.reads}
            for name in self.rule.constants:  # constants are read at every place
                del places[name]
            length = 1 + max((place for found in places.values() for place in found), default=-1)
            self._present[row] = [
                tuple(place in places[name] for name in self.rule.operands) for place in range(length)
            ]
        return self._present[row]

    def places(self, name: str, row: int) -> set[int]:
        """The places at which the layout has a token of a name.

        Args:
            name: An operand, a constant or an answer of the rule.
            row: The row of the predicted token.

        Raises:
            CannotDecideError: If two tokens have the same name and place.
        """
        read, found = self.reads[name], []
        for positions in (self.layout.source, self.layout.target):
            fits = positions.within(read.segment)
            if read.row is not None:
                fits = fits & (positions.coordinates["row"] == row - read.row)
            found += (positions.coordinates[self.rule.along][fits] - read.shift).tolist()
        if len(found) > (1 if name in self.rule.constants else len(set(found))):
            raise CannotDecideError(f"the local rule knows several tokens of {read.segment} by one name and place")
        return {place for place in found if place >= 0}


class Enumeration:
    """The assignments of one receptive field, each with the token that it requires.

    An assignment is stored as one integer. Its digits, in a base that exceeds every token id, are the token ids of the
    leaves, followed by that of the required token.

    Args:
        task: The task.
        reading: The layout, as the task's local rule reads it.
        sizes: The layout's sizes.
        shape: A shape of problems with these sizes, if there is one.
        field: The receptive field.
        known: A cache of the assignments of receptive fields that were enumerated before.
        most: Largest number of assignments.

    Attributes:
        present: For each place of the predicted token's row, whether each operand has a digit there.
        asked: Name and place of the predicted token; `None` if the rule does not write it.
        lacking: Numbers of the constants that have no token for the predicted token's row.
        required: Token id of the predicted token if the rule does not write it: the only one of its segment.
        columns: The leaf that shows each name and place.
        free: The values of each leaf that the rule does not name.

    Raises:
        CannotDecideError: If nothing says which token is required.
    """

    def __init__(
        self,
        task: DigitTask,
        reading: Reading,
        sizes: Shape,
        shape: Shape | None,
        field: ReceptiveField,
        known: dict[Hashable, Tensor] | None = None,
        most: int = MOST_ASSIGNMENTS,
    ) -> None:
        self.task, self.rule, self.sizes, self.shape, self.field = task, reading.rule, sizes, shape, field
        self.known = {} if known is None else known
        self.most = most
        segment, predicted = field.predicted
        self.present = reading.present(predicted["row"])
        row = predicted["row"]
        self.lacking = [number for number, name in enumerate(self.rule.constants) if not reading.places(name, row)]
        self.asked = reading.written(segment, predicted)
        self.required = -1
        if self.asked is None:
            values = task.values(segment)
            if len(values) != 1:
                raise CannotDecideError(f"the local rule of {task.name} does not say what stands in {segment}")
            self.required = values[0]
        self.columns: dict[tuple[str, int], int] = {}
        self.free: dict[int, tuple[int, ...]] = {}
        for column, (own, token) in enumerate(field.tokens):
            named = reading.name_of(own, token, predicted["row"])
            if named is None:
                self.free[column] = task.values(own)
            else:
                self.columns[named] = column

    def assignments(self) -> Tensor:
        """The assignments, `[assignment]`. Receptive fields for which the rule does the same share one tensor.

        Raises:
            CannotDecideError: If there are too many.
        """
        rule = self.rule
        places = [place for name, place in self.columns if name not in rule.constants]
        places += [] if self.asked is None else [self.asked[1]]
        first, last = min(places, default=0), max(places, default=-1)
        reached = rule.reached(tuple(self.present[:first]))
        possible = [
            all(
                value == rule.least_constant if number in self.lacking else value in rule.constant_values[number]
                for number, value in enumerate(choice)
            )
            for choice in rule.choices
        ]
        reached = reached & torch.tensor(possible)[:, None]
        choice, state = reached.nonzero(as_tuple=True)
        constants = torch.tensor(rule.choices, dtype=torch.long).reshape(len(rule.choices), -1)[choice]
        partial: dict[Hashable, Tensor] = {f"constant {i}": column for i, column in enumerate(constants.unbind(1))}
        partial["state"] = state
        # The key of the cache: everything that the assignments depend on, with places counted from the first.
        start = tuple((name, tuple(values.tolist())) for name, values in partial.items())
        columns = tuple(
            (name, place - first * (name not in rule.constants), column)
            for (name, place), column in self.columns.items()
        )
        present = tuple(self.present[first : last + 1])
        asked = self.required if self.asked is None else (self.asked[0], self.asked[1] - first)
        ends = None if all(rule.ends) else tuple(self.present[last + 1 :])
        key = (start, columns, tuple(self.free.items()), present, asked, ends)
        if key not in self.known:
            for place in range(first, last + 1):
                partial = self._extended(place, partial)
            partial = self._accepted(last + 1, partial)
            every = torch.ones_like(partial["state"])
            for (name, _), column in self.columns.items():
                if name in rule.constants:
                    partial[column] = partial[f"constant {rule.constants.index(name)}"] + NUM_SPECIAL
            self.known[key] = self._completed(partial, every)
        return self.known[key]

    def _completed(self, partial: dict[Hashable, Tensor], every: Tensor) -> Tensor:
        """The assignments of some partial ones, with all values of the leaves that the rule does not name.

        Args:
            partial: The partial assignments, a column each.
            every: Ones, `[partial assignment]`.
        """
        required = partial.get("required", self.required * every)
        count = len(every) * math.prod(map(len, self.free.values()))
        if count > self.most:
            raise CannotDecideError(
                f"there are more than {self.most:,} assignments: a prediction depends on {self.describe()}"
            )
        values = all_of([len(ids) for ids in self.free.values()])
        row = torch.arange(len(every)).repeat_interleave(len(values))
        way = torch.arange(len(values)).repeat(len(every))
        chosen = {
            column: torch.tensor(ids)[values[way, number]] for number, (column, ids) in enumerate(self.free.items())
        }
        leaves = [
            chosen[column] if column in chosen else partial[column][row] for column in range(len(self.field.leaves))
        ]
        return self._packed([*leaves, required[row]], self._radices(len(leaves))).unique()

    def _accepted(self, place: int, partial: dict[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        """The partial assignments from which the rule can reach an accepting state.

        Args:
            place: The first place that has not been run.
            partial: The partial assignments.
        """
        if all(self.rule.ends):
            return partial
        accepting = torch.tensor(self.rule.ends).expand(len(self.rule.choices), -1)
        for present in reversed(self.present[place:]):
            accepting = (self.rule.leads(present) & accepting.unsqueeze(1)).any(dim=2)
        choice = torch.zeros_like(partial["state"])
        for number in range(len(self.rule.constants)):
            values = partial[f"constant {number}"] - self.rule.least_constant
            choice = choice * (self.rule.base - self.rule.least_constant) + values
        kept = accepting[choice, partial["state"]]
        return {name: values[kept] for name, values in partial.items()}

    def _extended(self, place: int, partial: dict[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        """The partial assignments after one more place.

        Args:
            place: The place that is run.
            partial: The partial assignments before it.
        """
        rule = self.rule
        digits = choices_of(rule.digits(self.present[place]))
        # The steps depend on constants and state alone: they are computed once for all that share these.
        names = ["state", *(f"constant {i}" for i in range(len(rule.constants)))]
        symbols = self._radices(len(names) - 1)
        before, which = self._packed([partial[name] for name in names], symbols).unique(return_inverse=True)
        number = torch.arange(len(before)).repeat_interleave(len(digits))
        drawn = digits.repeat(len(before), 1).unbind(1)
        state, *constants = (part[number] for part in self._unpacked(before, symbols))
        after, written = rule.step(state, drawn, constants)
        here: dict[Hashable, Tensor] = {"state": after}
        for name, value in zip((*rule.operands, *rule.answers), (*drawn, *written), strict=True):
            if (name, place) in self.columns:
                here[self.columns[name, place]] = value + NUM_SPECIAL
            if (name, place) == self.asked:
                here["required"] = value + NUM_SPECIAL
        radices = [rule.num_states, *self._radices(len(here) - 1)]  # the state comes first
        number, *values = self._unpacked(self._packed([number, *here.values()], radices).unique(), radices)
        ways = number.bincount(minlength=len(before))
        total = int(ways[which].sum())
        if total > self.most:
            raise CannotDecideError(
                f"there are more than {self.most:,} assignments: a prediction depends on {self.describe()}"
            )
        row = torch.arange(len(which)).repeat_interleave(ways[which])
        first = ways.cumsum(0) - ways  # of each pair of constants and state, its first step
        way = first[which[row]] + torch.arange(total) - (ways[which].cumsum(0) - ways[which])[row]
        partial = {name: part[row] for name, part in partial.items()}
        partial.update((name, part[way]) for name, part in zip(here, values, strict=True))
        first, *others = partial
        radices = [rule.num_states if name == "state" else len(self.task.vocabulary) for name in others]
        code = self._packed([partial[first], *(partial[name] for name in others)], radices).unique()
        return dict(zip(partial, self._unpacked(code, radices), strict=True))

    def tokens(self, assignments: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids of the leaves `[assignment, leaf]`, and the required tokens `[assignment]`."""
        *leaves, required = self._unpacked(assignments, self._radices(len(self.field.leaves)))
        return torch.stack(leaves, dim=1), required

    def _radices(self, count: int) -> list[int]:
        """The radices of so many columns of symbols."""
        return [len(self.task.vocabulary)] * count

    def _packed(self, parts: Sequence[Tensor], radices: Sequence[int]) -> Tensor:
        """Columns of numbers as one number each; all but the first column must be below their radices."""
        first = int(parts[0].max()) + 1 if len(parts[0]) else 1
        if first * math.prod(radices) > 2**63:
            raise CannotDecideError(f"a prediction depends on too many tokens: {self.describe()}")
        code = parts[0]
        for part, radix in zip(parts[1:], radices, strict=True):
            code = code * radix + part
        return code

    def _unpacked(self, code: Tensor, radices: Sequence[int]) -> list[Tensor]:
        """The columns that `_packed` was given."""
        parts: list[Tensor] = []
        for radix in reversed(radices):
            parts.append(code % radix)
            code = code // radix
        return [code, *reversed(parts)]

    def problem(self, assignment: Tensor, generator: Generator | None = None) -> Problems:
        """A problem in which an assignment occurs.

        Args:
            assignment: The assignment.
            generator: Draws everything else of the problem; the smallest values are taken, if not given.

        Raises:
            CannotDecideError: If none is found.
        """
        if self.shape is None:
            raise CannotDecideError(f"no problem has the sizes of {self.describe(assignment)}")
        if self.rule.rows:
            return self._tried(self.shape, assignment, generator)
        rule = self.rule
        (leaves,), (required,) = (part.tolist() for part in self.tokens(assignment[None]))
        shown = {key: leaves[column] - NUM_SPECIAL for key, column in self.columns.items()}
        if self.asked is not None:
            shown[self.asked] = required - NUM_SPECIAL

        def shuffled(rows: Tensor) -> Tensor:
            return rows if generator is None else rows[torch.randperm(len(rows), generator=generator)]

        given = {name: value for (name, _), value in shown.items() if name in rule.constants}
        for number in shuffled(torch.arange(len(rule.choices))).tolist():
            constants = rule.choices[number]
            if any(given.get(name, value) != value for name, value in zip(rule.constants, constants, strict=True)):
                continue
            ways: dict[int, list[tuple[int, ...]]] = {start: [] for start in rule.starts}
            for place, present in enumerate(self.present):
                digits = choices_of(rule.digits(present))
                before, ways = ways, {}
                for state, way in before.items():
                    every = torch.full_like(digits[:, 0], state)
                    after, written = rule.step(every, digits.unbind(1), [torch.full_like(every, c) for c in constants])
                    fits = torch.ones_like(every, dtype=torch.bool)
                    for name, value in zip((*rule.operands, *rule.answers), (*digits.unbind(1), *written), strict=True):
                        fits &= value == shown.get((name, place), value)
                    for row in shuffled(fits.nonzero()[:, 0]).tolist():
                        ways.setdefault(int(after[row]), [*way, tuple(digits[row].tolist())])
            for state, way in ways.items():
                if rule.ends_well(torch.tensor(state)):
                    return self._problem_of(self.shape, way, constants, leaves, generator)
        raise AssertionError("every assignment that is enumerated occurs in a problem")

    def _problem_of(
        self,
        shape: Shape,
        way: Sequence[tuple[int, ...]],
        constants: Sequence[int],
        leaves: Sequence[int],
        generator: Generator | None,
    ) -> Problems:
        """A problem with given digits.

        Args:
            shape: The problem's shape.
            way: The digits of the rule's operands, place by place.
            constants: Its constants.
            leaves: Token ids of the leaves; only those that the rule does not name are used.
            generator: Draws the digits of operands that the rule does not name; they are 0, if not given.
        """
        digits = {name: list(column) for name, column in zip(self.rule.operands, zip(*way, strict=True), strict=True)}
        digits |= {name: [value] for name, value in zip(self.rule.constants, constants, strict=True)}
        source, operands = self.field.layout.source, []
        for number, width in enumerate(self.task.widths(shape), 1):
            name = f"operand {number}"
            if name in digits:
                own = digits[name][:width]
                backwards = self.rule.along == "index" and name in self.rule.operands
                operands.append(torch.tensor([own[::-1] if backwards else own]))
                continue
            other = torch.zeros(1, width, dtype=torch.long)
            if generator is not None:
                values = torch.tensor(self.task.values(name)) - NUM_SPECIAL
                other = values[torch.randint(len(values), (1, width), generator=generator)]
            for column in self.free:
                string, token = self.field.leaves[column]
                if string == "source" and bool(source.within(name)[token]):
                    other[0, int(source.coordinates["place"][token])] = leaves[column] - NUM_SPECIAL
            operands.append(other)
        return self.task.problems(shape, operands)

    def _tried(self, shape: Shape, assignment: Tensor, generator: Generator | None, batches: int = 8) -> Problems:
        """A problem in which an assignment occurs, found by drawing problems that have its tokens of the source.

        Raises:
            CannotDecideError: If none is found.
        """
        generator = Generator().manual_seed(0) if generator is None else generator
        (leaves,), (required,) = (part.tolist() for part in self.tokens(assignment[None]))
        where = [(string, number, token) for (string, number), token in zip(self.field.leaves, leaves, strict=True)]
        source = {number: token for string, number, token in where if string == "source"}
        for _ in range(batches):
            problems = self.task.holding(generator, shape, source)
            fits, prefix = problems.target[:, self.field.query] == required, prefix_of(problems.target)
            for string, number, token in where:
                fits &= (problems.source if string == "source" else prefix)[:, number] == token
            for row in fits.nonzero()[:, 0].tolist():
                text = self.task.vocabulary.decode(problems.source[row])
                with suppress(ProblemError):  # it may be no problem
                    if self.task.parse(text) == (shape, text):  # some operands are too large for their width
                        return problems[row : row + 1]
        raise CannotDecideError(f"no problem was found in which this occurs: {self.describe(assignment)}")

    def describe(self, assignment: Tensor | None = None) -> str:
        """The receptive field in words, with the tokens of an assignment."""
        tokens = [""] * len(self.field.leaves)
        if assignment is not None:
            leaves = self.tokens(assignment[None])[0][0]
            tokens = [f" = {self.task.vocabulary.decode(token[None])}" for token in leaves]
        along = self.rule.along
        places = zip(self.field.tokens, tokens, strict=True)
        words = ", ".join(f"{segment} {along} {own[along]}{token}" for (segment, own), token in places)
        return f"{self.where()}, from {words}"

    def where(self) -> str:
        """The prediction, in words."""
        along = self.rule.along
        segment, token = self.field.predicted
        place = token[along]
        which = f"{along} {place}" if len(self.rule.answers) == 1 else f"{segment} {along} {place}"
        return f"at {which} of {shape_name(self.sizes if self.shape is None else self.shape)}"


class Kind:
    """A kind: predictions for which the model is the same function of the values of the leaves.

    Attributes:
        parts: Each prediction, with its assignments.
    """

    def __init__(self) -> None:
        self.parts: list[tuple[Enumeration, Tensor]] = []

    @property
    def enumeration(self) -> Enumeration:
        """The first prediction, which represents all."""
        return self.parts[0][0]

    @cached_property
    def assignments(self) -> Tensor:
        """All assignments, each once, `[assignment]`."""
        return torch.cat(list({id(part): part for _, part in self.parts}.values())).unique()

    def predictions_with(self, assignment: Tensor) -> list[Enumeration]:
        """The predictions in which an assignment occurs."""
        distinct = {id(part): part for _, part in self.parts}
        holds = {key: bool((part == assignment).any()) for key, part in distinct.items()}
        return [enumeration for enumeration, part in self.parts if holds[id(part)]]


# The layout as the rule reads it, its sizes, a shape of problems with these sizes, and the receptive field.
Prediction = tuple[Reading, Shape, Shape | None, ReceptiveField]


def kinds_of(task: DigitTask, predictions: Iterable[Prediction], most: int = MOST_ASSIGNMENTS) -> list[Kind]:
    """The kinds of some predictions, each with all of its assignments.

    Args:
        task: The task.
        predictions: The predictions.
        most: Largest number of assignments, all together.

    Raises:
        CannotDecideError: If there are more.
    """
    kinds: dict[Hashable, Kind] = {}
    known: dict[Hashable, Tensor] = {}
    for reading, sizes, shape, field in predictions:
        enumeration = Enumeration(task, reading, sizes, shape, field, known, most)
        kinds.setdefault(field.kind, Kind()).parts.append((enumeration, enumeration.assignments()))
    count = sum(len(kind.assignments) for kind in kinds.values())
    if count > most:
        raise CannotDecideError(f"there are {count:,} assignments, more than {most:,}")
    return list(kinds.values())
