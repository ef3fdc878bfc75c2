"""Finite-state transducers: the least one that does what a given one does, and the first difference of two.

A transducer may be partial: a state has no step for inputs that no problem offers there, such as a digit after the end
of an operand. Least then means: the fewest states of all that write the same wherever there is a step.
"""

from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Generic, TypeVar

import numpy as np

I = TypeVar("I", bound=Hashable)  # noqa: E741
O = TypeVar("O", bound=Hashable)  # noqa: E741
END = -1  # in place of a state: nothing follows


@dataclass(frozen=True)
class Transducer(Generic[I, O]):
    """A deterministic, partial Mealy machine.

    Attributes:
        steps: For each state, its steps: what is read, to what is written and the next state, or `END`.
        start: The state that it begins in.
    """

    steps: Sequence[Mapping[I, tuple[O, int]]]
    start: int = 0

    def __len__(self) -> int:
        return len(self.steps)

    def run(self, word: Sequence[I]) -> list[O] | None:
        """What is written on a word, symbol by symbol; `None` if there is no step for one of them."""
        state, written = self.start, []
        for read in word:
            if state == END or read not in self.steps[state]:
                return None
            output, state = self.steps[state][read]
            written.append(output)
        return written


@dataclass(frozen=True)
class Least(Generic[I, O]):
    """The least transducer that does what another does.

    Attributes:
        transducer: The least transducer; its states are numbered in the order in which they are first reached.
        groups: For each of its states, the states of the other that it stands for.
        at_least: Number of the other's states that differ pairwise on what both of them read. No transducer that does
            the same has fewer states.
    """

    transducer: Transducer[I, O]
    groups: Sequence[Sequence[int]]
    at_least: int

    @property
    def is_proved(self) -> bool:
        """Whether no transducer with fewer states does the same."""
        return self.at_least == len(self.transducer)


def least(machine: Transducer[I, O]) -> Least[I, O]:
    """The least transducer that does what a transducer does.

    States are first split until any two in one class have the same steps, up to the class of the next state (partition
    refinement). Of a complete transducer that gives the least one. Classes of a partial one may still agree wherever
    both have a step. They are merged one after another, in the order in which they are first reached. The result has
    the fewest states if as many differ pairwise on words that both read: `Least.is_proved`.
    """
    order = _reached(machine)
    number = {state: i for i, state in enumerate(order)}
    inputs = {read: i for i, read in enumerate(dict.fromkeys(read for state in order for read in machine.steps[state]))}
    outputs: dict[O, int] = {}
    written = np.full((len(order), len(inputs)), -1)
    after = np.full((len(order), len(inputs)), -1)
    for row, state in enumerate(order):
        for read, (output, following) in machine.steps[state].items():
            written[row, inputs[read]] = outputs.setdefault(output, len(outputs))
            after[row, inputs[read]] = number[following]
    classes = _refined(written, after)
    first = dict(zip(reversed(classes), reversed(range(len(order))), strict=True))
    live = {own: row for own, row in first.items() if machine.steps[order[row]]}
    steps: dict[int, dict[I, tuple[O, int]]] = {}
    for own in sorted(live, key=lambda own: live[own]):
        steps[own] = {
            read: (output, following if (following := classes[number[state]]) in live else END)
            for read, (output, state) in machine.steps[order[live[own]]].items()
        }
    merged = _merged(steps)
    kept = list(dict.fromkeys(merged[own] for own in steps))
    small = _renumbered(kept, steps, merged)
    groups: list[list[int]] = [[] for _ in kept]
    for row, state in enumerate(order):
        if classes[row] in live:
            groups[kept.index(merged[classes[row]])].append(state)
    return Least(small, groups, _pairwise_different(steps))


def _reached(machine: Transducer[I, O]) -> list[int]:
    """The reachable states, nearest first."""
    found = {machine.start: None}
    todo = deque(found)
    while todo:
        for _, following in machine.steps[todo.popleft()].values():
            if following not in found:
                found[following] = None
                todo.append(following)
    return list(found)


def _refined(written: np.ndarray, after: np.ndarray) -> list[int]:
    """The class of each state: states of one class write the same on every word, and read the same words.

    Args:
        written: The number of what is written, `[state, input]`; -1 where there is no step.
        after: The next state, `[state, input]`.
    """
    classes = np.zeros(len(written), dtype=np.int64)
    count = 1
    while True:
        following = np.where(written < 0, -1, classes[after])
        known: dict[bytes, int] = {}
        rows = np.concatenate([written, following], axis=1)
        classes = np.array([known.setdefault(row.tobytes(), len(known)) for row in rows], dtype=np.int64)
        if len(known) == count:
            return classes.tolist()
        count = len(known)


def _pairwise_different(steps: Mapping[int, Mapping[I, tuple[O, int]]]) -> int:
    """The size of a set of states of which any two write different things on a word that both read.

    A set is grown from the first state, and from each that is not yet in one: the largest is not sought.
    """
    differ: set[tuple[int, int]] = set()
    leading: dict[tuple[int, int], list[tuple[int, int]]] = {}  # to each pair, those that a common input leads to it
    todo: list[tuple[int, int]] = []
    for one, other in combinations(sorted(steps), 2):
        for read, (output, following) in steps[one].items():
            if read in steps[other]:
                if steps[other][read][0] != output:
                    todo.append((one, other))
                    break
                after = (min(following, steps[other][read][1]), max(following, steps[other][read][1]))
                leading.setdefault(after, []).append((one, other))
    while todo:
        pair = todo.pop()
        if pair not in differ:
            differ.add(pair)
            todo += leading.get(pair, [])
    largest, seen = 0, set[int]()
    for first in steps:
        if first in seen:
            continue
        clique = [first]
        for own in steps:
            if all((min(own, other), max(own, other)) in differ for other in clique):
                clique.append(own)
        seen.update(clique)
        largest = max(largest, len(clique))
    return largest


def _merged(steps: Mapping[int, Mapping[I, tuple[O, int]]]) -> dict[int, int]:
    """The state that each state is merged into: two are merged if they, and all that follows, agree on common steps."""
    root = {own: own for own in steps}
    merged = {own: dict(found) for own, found in steps.items()}
    kept: list[int] = []
    for own in steps:
        if root[own] != own:
            continue
        for other in kept:
            if root[other] != other:
                continue
            tried = _union(root, merged, other, own)
            if tried is not None:
                root, merged = tried
                break
        else:
            kept.append(own)
    return {own: _root(root, own) for own in steps}


def _root(root: Mapping[int, int], state: int) -> int:
    while state != END and root[state] != state:
        state = root[state]
    return state


def _union(
    root: dict[int, int], merged: dict[int, dict[I, tuple[O, int]]], first: int, second: int
) -> tuple[dict[int, int], dict[int, dict[I, tuple[O, int]]]] | None:
    """Merges two states, and those that therefore must be one; `None` if any two of these disagree."""
    root, merged = dict(root), dict(merged)
    todo = [(first, second)]
    while todo:
        one, other = (_root(root, state) for state in todo.pop())
        if one == other or END in (one, other):
            continue
        root[other] = one
        steps = dict(merged[one])
        for read, (output, following) in merged[other].items():
            if read not in steps or steps[read][1] == END:
                if read in steps and steps[read][0] != output:
                    return None
                steps[read] = (output, following)
            elif steps[read][0] != output:
                return None
            else:
                todo.append((steps[read][1], following))
        merged[one] = steps
    return root, merged


def _renumbered(
    kept: Sequence[int], steps: Mapping[int, Mapping[I, tuple[O, int]]], merged: Mapping[int, int]
) -> Transducer[I, O]:
    """The transducer of merged states, numbered in their order."""
    number = {state: i for i, state in enumerate(kept)} | {END: END}
    found: list[dict[I, tuple[O, int]]] = [{} for _ in kept]
    for own, own_steps in steps.items():
        into = found[number[merged[own]]]
        for read, (output, following) in own_steps.items():
            after = number[following if following == END else merged[following]]
            if read not in into or into[read][1] == END:
                into[read] = (output, after)
    return Transducer(found)


@dataclass(frozen=True)
class Difference(Generic[I, O]):
    """Where two transducers differ.

    Attributes:
        word: A shortest word after whose last symbol they differ.
        first: What the first writes at the end of it.
        second: What the second writes there.
    """

    word: tuple[I, ...]
    first: O
    second: O


def compare(first: Transducer[I, O], second: Transducer[I, O]) -> tuple[Difference[I, O] | None, dict[int, set[int]]]:
    """Runs two transducers side by side, on all words that both read.

    Returns:
        The first difference in what they write, and for each state of the first those of the second that it meets.
    """
    met: dict[int, set[int]] = {first.start: {second.start}}
    start = (first.start, second.start)
    before: dict[tuple[int, int], tuple[tuple[int, int], I] | None] = {start: None}
    todo = deque([start])
    while todo:
        pair = todo.popleft()
        one, other = first.steps[pair[0]], second.steps[pair[1]]
        for read, (output, following) in one.items():
            if read not in other:
                continue
            if other[read][0] != output:
                word = [read]
                at = before[pair]
                while at is not None:
                    word.append(at[1])
                    at = before[at[0]]
                return Difference(tuple(reversed(word)), output, other[read][0]), met
            after = (following, other[read][1])
            if END not in after and after not in before:
                before[after] = (pair, read)
                met.setdefault(after[0], set()).add(after[1])
                todo.append(after)
    return None, met


def is_renaming(met: Mapping[int, set[int]], first: Transducer[I, O], second: Transducer[I, O]) -> bool:
    """Whether states that meet are one to one, and all of both transducers meet."""
    others = [other for own in met.values() for other in own]
    return (
        all(len(own) == 1 for own in met.values())
        and len(met) == len(first)
        and (len(set(others)) == len(others) == len(second))
    )
