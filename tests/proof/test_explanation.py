"""What is read out of models: against the tasks' oracles, with models that are right, and with one output changed."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from matplotlib.text import Text
from torch import Tensor

from abc_toolkit.models.decoding import solve_problems
from abc_toolkit.models.transformer import EncoderDecoder
from abc_toolkit.proof import CannotDecideError, explanation
from abc_toolkit.proof.enumeration import Kind, Reading
from abc_toolkit.proof.explanation import Explained, Explanation, Read, explain
from abc_toolkit.report import figures
from abc_toolkit.report.transducers import (
    as_dot,
    as_json,
    difference_in_words,
    folded,
    print_explanation,
    read_machines,
)
from abc_toolkit.tasks import Copy, Parity, Repeat, Subtraction
from abc_toolkit.tasks.digits.base import DigitTask
from abc_toolkit.vocabulary import NUM_SPECIAL
from abc_toolkit.windows.rules import Condition
from tests.small_windows import ABOVE, RULES, cross, decoder, learnt, make, rule_of

BASES = {"multiplication": 4, "addition without a decoder": 5}
STATES = {
    "parity": {(): ["parity 0", "parity 1"]},
    "successor": {(): ["carry 1", "carry 0"]},
    "addition without a decoder": {(): ["carry 0", "carry 1"]},
    "multiplication": {(str(d),): [f"carry {c}" for c in range(max(d, 1))] for d in range(4)},
    "division": {(str(d),): [f"remainder {r}" for r in range(d)] for d in range(1, 6)},
    "subtraction": {("<",): ["equal", "less", "greater"], ("=",): ["equal"], (">",): ["equal", "less", "greater"]},
}


def required(_: object, kind: Kind) -> Tensor:
    """What a model writes that has learnt everything."""
    return kind.enumeration.tokens(kind.assignments)[1]


def of_window(name: str) -> tuple[DigitTask, EncoderDecoder]:
    """A small task, and an untrained model in a window that suffices for it."""
    task, rules = RULES[name]
    if name in BASES:
        task = replace(task, base=BASES[name])  # type: ignore[call-arg]
    return task, make(task, rules)


@lru_cache
def ideal(name: str) -> Explanation:
    """What a model computes that is right in all assignments of its window."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explanation._Explaining, "_next_tokens", required)
        return explain(*of_window(name))


@pytest.fixture(params=STATES)
def explained(request: pytest.FixtureRequest) -> tuple[str, Explanation]:
    return request.param, ideal(request.param)


def test_states_are_those_of_the_task(explained: tuple[str, Explanation]) -> None:
    name, found = explained
    states = {
        tuple(found.text(value) for value in parameters.values()): sorted(own.names)
        for own in found.machines
        for parameters in own.parameters
    }
    assert states == {values: sorted(names) for values, names in STATES[name].items()}
    assert found.machines[0].names[0] == next(iter(STATES[name].values()))[0]  # the start
    assert found.difference is None
    assert all(own.is_least for own in found.machines)
    assert found.held == found.assignments > found.fixed > 0


def written_by(found: Explanation, machine: Explained, reading: Reading, source: Mapping[tuple[str, int], int]) -> str:
    """The target that a machine writes for a problem, in the order of the layout, without its end."""
    rule, row = reading.rule, int(reading.layout.target.coordinates["row"][0])
    names = (*rule.operands, *rule.answers)
    places = {name: reading.places(name, row) for name in names}
    order = range(1 + max(place for own in places.values() for place in own))
    word = [
        Read(
            tuple(source.get((name, place)) for name in rule.operands),
            tuple(place in places[name] for name in rule.answers),
        )
        for place in (reversed(order) if found.downwards else order)
    ]
    run = machine.transducer.run(word)
    if run is None:
        return ""
    columns = dict(zip(reversed(order) if found.downwards else order, run, strict=True))
    target, text = reading.layout.target, ""
    for number in range(len(target)):
        coordinates = {name: int(values[number]) for name, values in target.coordinates.items()}
        asked = reading.written(target.names[coordinates["segment"]], coordinates)
        if asked is not None:
            text += found.text(columns[asked[1]][rule.answers.index(asked[0])])
    return text


def machines_write_the_targets(found: Explanation, longest: int) -> None:
    """Runs the machines on problems far beyond the training lengths, against the task's oracle."""
    task, rule = found.task, rule_of(found.task)
    generator = torch.Generator().manual_seed(0)
    for length in (1, 2, longest):
        shape = task.evaluation_shapes(length, "uniform", generator)[0]
        reading = Reading(rule, task.layout(shape))
        problems = task.sample(generator, 20, shape, "carry")
        for row in problems.source:
            source: dict[tuple[str, int], int] = {}
            strings = reading.layout.source
            for number, token in enumerate(row.tolist()):
                coordinates = {name: int(values[number]) for name, values in strings.coordinates.items()}
                named = reading.name_of(strings.names[coordinates["segment"]], coordinates, 0)
                if named is not None:
                    source[named] = token
            texts = [
                text
                for own in found.machines
                for parameters in own.parameters
                if all(parameters[name] == source[name, 0] for name in rule.constants)
                and (text := written_by(found, own, reading, source))
                and all(
                    text[: text_length(task, shape)].endswith(found.text(value))
                    for name, value in parameters.items()
                    if name.startswith("last ")
                )
            ]
            assert texts == [task.solve(task.vocabulary.decode(row))]


def text_length(task: DigitTask, shape: tuple[int, ...]) -> int:
    """Length of the answer whose last token is a parameter: the orders of a subtraction, before the magnitude."""
    return task.answer_length(shape) // (2 if isinstance(task, Subtraction) else 1)


def test_machines_do_what_the_tasks_ask_for_at_any_length(explained: tuple[str, Explanation]) -> None:
    machines_write_the_targets(explained[1], 60)


@pytest.mark.parametrize("task", [Copy(max_length=3), Repeat(max_length=3)], ids=lambda task: task.name)
def test_copies_have_one_state(task: DigitTask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explanation._Explaining, "_next_tokens", required)
    found = explain(task, make(task, (cross(0), decoder(0, ABOVE, task.answers((1,))[0][0]))))
    assert [len(own.transducer) for own in found.machines] == [1]
    assert found.downwards
    assert found.difference is None
    machines_write_the_targets(found, 40)


def test_a_model_of_its_own_is_read_out() -> None:
    task, model = learnt("parity")
    found = explain(task, model)
    assert [own.names for own in found.machines] == [("parity 0", "parity 1")]
    assert (found.held, found.difference) == (found.assignments, None)
    machines_write_the_targets(found, 200)


def test_a_broken_model_is_not_the_rule() -> None:
    task, model = learnt("parity")
    one = int(task.vocabulary.encode("1")[0])
    model.output.bias.data[one] += 1000  # it writes nothing else any more
    found = explain(task, model)
    assert found.difference is not None
    assert found.held < found.assignments
    assert [own.names for own in found.machines] == [("q0",)]
    difference = found.difference.difference
    assert difference is not None
    bits = "".join(found.text(read.digits[0]) for read in difference.word)
    assert bits == "0"
    (answer,) = solve_problems(model, task, [task.parse(bits)])
    assert (answer, task.solve(bits)) == (found.text(difference.first[0]), found.text(difference.second[0]))
    assert difference_in_words(found, found.difference) == "at step 1, reading 0, it writes 1, and the rule 0"


@pytest.mark.parametrize("name", ["addition without a decoder", "multiplication", "subtraction"])
def test_one_changed_output_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the machine first differs from the rule is the assignment that was changed."""
    changed: list[str] = []

    def all_but_one(_: object, kind: Kind) -> Tensor:
        found = required(_, kind)
        own = kind.enumeration
        if own.asked is None or changed or len(found) < 20:
            return found
        number = len(found) // 2
        right = int(found[number])
        zero = NUM_SPECIAL
        found[number] = zero + 1 if right == zero else zero
        changed.append(own.describe(kind.assignments[number]))
        return found

    monkeypatch.setattr(explanation._Explaining, "_next_tokens", all_but_one)
    found = explain(*of_window(name))
    assert changed
    assert found.difference is not None
    assert found.difference.difference is not None
    own = found.difference.difference
    words = difference_in_words(found, found.difference)
    assert re.match(rf"at step {len(own.word)}\b.*, reading .*, it writes .*, and the rule ", words)
    shown = [found.text(value) for value in own.word[-1].digits if value is not None]
    assert all(f"= {digit}" in changed[0] for digit in shown)
    assert any(name.startswith("q") for machine in found.machines for name in machine.names)


def test_a_token_of_a_later_place_is_no_transducers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that needs the digit of the place above writes it before a machine has read it."""
    task = Parity(max_length=3)
    model = make(task, (cross(0, (Condition("place", -1, "place"),)),))

    def sees_above(_: object, kind: Kind) -> Tensor:
        tokens, found = kind.enumeration.tokens(kind.assignments)
        return tokens[:, 0] if len(tokens) and kind.enumeration.asked is not None else found

    monkeypatch.setattr(explanation._Explaining, "_next_tokens", sees_above)
    with pytest.raises(CannotDecideError, match="at a later place"):
        explain(task, model)


def test_what_is_written_to_a_file_is_read_again(explained: tuple[str, Explanation]) -> None:
    _, found = explained
    text = json.dumps(as_json(found))
    for own, machine in zip(found.machines, read_machines(text), strict=True):
        assert len(machine) == len(own.transducer)
        assert machine.start == own.transducer.start
        for state, steps in enumerate(own.transducer.steps):
            expected = {
                (
                    *(None if value is None else found.text(value) for value in read.digits),
                    *("-" if token is None else "+" for token in written),
                ): (tuple(None if token is None else found.text(token) for token in written), following)
                for read, (written, following) in steps.items()
            }
            assert machine.steps[state] == expected
    described = json.loads(text)
    assert described["checks"]["is_the_rule"] is True
    assert described["checks"]["held_to_the_model"] == found.assignments


def test_graphviz_text_has_a_node_for_each_state_and_its_quotes_are_escaped(
    explained: tuple[str, Explanation],
) -> None:
    _, found = explained
    odd = ('say "hi" \\ there\n', *(f"s{i}" for i in range(1, 50)))
    renamed = replace(found, machines=tuple(replace(own, names=odd[: len(own.names)]) for own in found.machines))
    text = as_dot(renamed)
    quoted = r'"(?:[^"\\\n]|\\.)*"'
    words = re.sub(quoted, "Q", text)  # every string closes on its line
    assert '"' not in words
    assert words.count("{") == words.count("}") == 1 + len(found.machines)
    assert words.startswith("digraph Q {")
    statement = r"(?:node \[shape=circle\]|rankdir=LR|label=Q|\w+ \[(?:shape=\w+(?:, )?)?(?:label=Q)?\]|"
    statement += r"\w+ -> \w+(?: \[label=Q\])?)"
    lines = [line.strip() for line in words.splitlines()[1:]]
    assert all(re.fullmatch(rf"{statement};|subgraph \w+ {{|}}", line) for line in lines)
    nodes = re.findall(r"^ +(m\d+_s\d+) \[", text, re.MULTILINE)
    assert len(nodes) == len(set(nodes)) == found.num_states
    ends = re.findall(r"^ +(\w+) -> (\w+)", text, re.MULTILINE)
    declared = {*nodes, *re.findall(r"^ +(m\d+_(?:start|end)) \[", text, re.MULTILINE)}
    assert {end for pair in ends for end in pair} <= declared
    assert 'label="say \\"hi\\" \\\\ there\\n"' in text


def test_steps_are_folded_by_what_they_depend_on() -> None:
    found = ideal("addition without a decoder")
    (machine,) = found.machines
    shown = [(edge.state, edge.reads, edge.writes, edge.following) for edge in folded(found, machine)]
    assert shown == [
        (0, "sum 0 to 4", "0 to 4", 0),
        (0, "sum 5 to 8", "0 to 3", 1),
        (0, "no digit", "0", -1),
        (1, "sum 0 to 3", "1 to 4", 0),
        (1, "sum 4 to 8", "0 to 4", 1),
        (1, "no digit", "1", -1),
    ]


def test_figures_and_tables_show_every_machine(
    explained: tuple[str, Explanation], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, found = explained
    path = figures.transducer(tmp_path / "transducer.png", found)
    assert path.read_bytes()[:4] == b"\x89PNG"
    circles = [figure_text.get_text() for figure_text in figures.draw_transducer(found).findobj(Text)]
    names = {state for own in found.machines for state in own.names}
    assert names <= {text.replace("\n", " ").rpartition(", ")[2] for text in circles}
    print_explanation(found)
    out = " ".join(re.sub("[^ -~]", " ", capsys.readouterr().out).split())
    assert all(state in out for state in names)
    assert f"{found.held:,} of {found.assignments:,} assignments" in out
    assert (f"{len(found.machines)} machines" in out) == (len(STATES[name]) > 1)


@pytest.mark.parametrize("columns", [3, 14, 40])
def test_rows_of_tokens_have_one_number_each(columns: int, generator: torch.Generator) -> None:
    radix = 40  # with which 12 columns do not fit into 64 bits
    tokens = torch.randint(radix, (300, columns), generator=generator)
    tokens[150:] = tokens[:150]
    tokens[200, 0] = (tokens[200, 0] + 1) % radix  # the column that an overflow would lose
    code = explanation._coded(tokens, radix)
    numbers = {tuple(row): number for row, number in zip(tokens.tolist(), code.tolist(), strict=True)}
    assert len(numbers) == len(set(numbers.values())) == len(set(code.tolist()))
    assert int(code.max()) < 2**63 // radix**2
