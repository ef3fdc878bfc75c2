"""Least transducers, against brute force: states are told apart by trying words."""

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from abc_toolkit.proof.transducer import END, Transducer, compare, is_renaming, least

Machine = Transducer[int, int]


@st.composite
def machines(draw: st.DrawFn, complete: bool = True) -> Machine:
    states, inputs = draw(st.integers(1, 7)), draw(st.integers(1, 3))
    outputs = draw(st.integers(1, 2))
    step = st.tuples(st.integers(0, outputs), st.integers(0, states - 1))
    steps = [{i: draw(step) for i in range(inputs) if complete or i == 0 or draw(st.booleans())} for _ in range(states)]
    return Transducer(steps)


def reachable(machine: Machine) -> set[int]:
    found, new = set(), {machine.start}
    while new:
        found |= new
        new = {after for state in new for _, after in machine.steps[state].values()} - found - {END}
    return found


def distinguished(machine: Machine, one: int, other: int) -> bool:
    """Whether a word tells two states apart; of n states, words of n symbols suffice."""
    inputs = sorted({read for steps in machine.steps for read in steps})
    return any(
        Transducer(machine.steps, one).run(word) != Transducer(machine.steps, other).run(word)
        for word in itertools.product(inputs, repeat=len(machine))
    )


def number_of_classes(machine: Machine) -> int:
    representatives: list[int] = []
    for state in sorted(reachable(machine)):
        if all(distinguished(machine, state, other) for other in representatives):
            representatives.append(state)
    return len(representatives)


def words(machine: Machine, seed: int = 0) -> list[list[int]]:
    inputs = sorted({read for steps in machine.steps for read in steps})
    draw = random.Random(seed)
    return [[draw.choice(inputs) for _ in range(draw.randint(0, 12))] for _ in range(40)]


@given(machines())
def test_the_least_transducer_has_as_many_states_as_words_tell_apart(machine: Machine) -> None:
    found = least(machine)
    assert len(found.transducer) == number_of_classes(machine) == found.at_least
    assert found.is_proved
    for word in words(machine):
        assert found.transducer.run(word) == machine.run(word)
    assert sorted(state for group in found.groups for state in group) == sorted(reachable(machine))
    assert least(found.transducer).transducer == found.transducer


def fewest(machine: Machine, most: int) -> int:
    """The fewest states of a transducer that writes the same wherever there is a step, by trying all groupings."""
    states = sorted(reachable(machine))
    for count in range(1, most):
        for colours in itertools.product(range(count), repeat=len(states)):
            cover: dict[tuple[int, int], tuple[int, int]] = {}
            colour = dict(zip(states, colours, strict=True))
            steps = [(s, read, *step) for s in states for read, step in machine.steps[s].items()]
            if all(
                cover.setdefault((colour[s], read), (out, colour[after])) == (out, colour[after])
                for s, read, out, after in steps
            ):
                return count
    return most


@given(machines(complete=False))
def test_partial_transducers_keep_what_they_write(machine: Machine) -> None:
    found = least(machine)
    for word in words(machine):
        written = machine.run(word)
        assert written is None or found.transducer.run(word) == written
    assert found.at_least <= len(found.transducer) <= len(reachable(machine))
    if len(reachable(machine)) <= 5 and found.is_proved:
        assert fewest(machine, len(found.transducer)) == len(found.transducer)


@given(machines(), st.randoms(use_true_random=False))
def test_renamed_states_are_recognised_and_other_outputs_are_not(machine: Machine, draw: random.Random) -> None:
    own = least(machine).transducer
    names = list(range(len(own)))
    draw.shuffle(names)
    steps: list[dict[int, tuple[int, int]]] = [{} for _ in names]
    for state, name in enumerate(names):
        steps[name] = {read: (out, names[after]) for read, (out, after) in own.steps[state].items()}
    renamed = Transducer(steps, names[own.start])
    difference, met = compare(own, renamed)
    assert difference is None
    assert is_renaming(met, own, renamed)
    assert met == {state: {name} for state, name in enumerate(names)}
    state = draw.randrange(len(names))
    read = draw.choice(list(steps[state]))
    out, after = steps[state][read]
    steps[state] = steps[state] | {read: (out + 5, after)}
    difference, _ = compare(own, renamed)
    assert difference is not None
    assert difference.second == out + 5
    right, wrong = own.run(difference.word), renamed.run(difference.word)
    assert right is not None
    assert wrong is not None
    assert (right[:-1], right[-1], wrong[-1]) == (wrong[:-1], difference.first, difference.second)
    # No shorter word shows it.
    inputs = list(own.steps[0])
    for length in range(len(difference.word)):
        if len(inputs) ** length < 500:
            assert all(own.run(w) == renamed.run(w) for w in itertools.product(inputs, repeat=length))


def test_a_state_in_which_nothing_follows_is_the_end() -> None:
    adder = Transducer([{0: (0, 1), 1: (1, 2)}, {2: (7, 3)}, {2: (8, 3)}, {}])
    found = least(adder)
    assert found.transducer.steps[0][0] == (0, 0)  # merged with the start, which has no step for 2
    assert found.transducer.steps[0][2] == (7, END)
    assert len(found.transducer) == 2
    assert found.groups == [[0, 1], [2]]


def test_a_machine_that_has_more_states_is_no_renaming() -> None:
    one, two = Transducer([{0: (0, 0)}]), Transducer([{0: (0, 1)}, {0: (0, 0)}])
    difference, met = compare(one, two)
    assert difference is None
    assert not is_renaming(met, one, two)
    assert least(two).transducer == one
