"""Transducers in words, as tables on the terminal, as Graphviz text and as JSON."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from abc_toolkit.proof.explanation import Explained, Explanation, Read, RuleDifference, Value, Written
from abc_toolkit.proof.transducer import END, Transducer
from abc_toolkit.report.console import escaped
from abc_toolkit.tasks.digits.base import DigitTask
from abc_toolkit.vocabulary import EOS, NUM_SPECIAL

SCHEMA = 1
_MOST_ROWS = 40  # of steps on the terminal; the files hold all
_MOST_RUNS = 10  # of a row
_MOST_NAMES = 6  # of states in a summary, and of what is written in many cases
_ORDERS = {-1: "<", 0: "=", 1: ">"}


@dataclass(frozen=True)
class Edge:
    """Steps from one state to another, folded.

    Attributes:
        state: The state.
        following: The next state, or `END`.
        reads: What is read, in words.
        writes: What is written, in words.
    """

    state: int
    following: int
    reads: str
    writes: str


def folded(explanation: Explanation, machine: Explained) -> list[Edge]:
    """The steps of a machine in groups: one for each state, next state, and operands that are present.

    Where a state's steps depend on the sum of the digits alone, on their difference or on their order, a group is told
    by it.
    """
    found: list[Edge] = []
    for state, steps in enumerate(machine.transducer.steps):
        groups: dict[tuple[tuple[bool, ...], tuple[bool, ...]], dict[Read, tuple[Written, int]]] = {}
        for read, step in steps.items():
            groups.setdefault((tuple(value is not None for value in read.digits), read.writes), {})[read] = step
        for (present, _), own in sorted(groups.items(), reverse=True):
            found += _folded_group(explanation, state, present, own)
    return found


def _folded_group(
    explanation: Explanation, state: int, present: Sequence[bool], steps: Mapping[Read, tuple[Written, int]]
) -> list[Edge]:
    """The edges of the steps from one state that read digits of the same operands."""
    digits = {read: [value - NUM_SPECIAL for value in read.digits if value is not None] for read in steps}
    what, keys = _keys(digits, steps)
    lacking = [name for name, there in zip(explanation.operands, present, strict=True) if not there]
    by_next: dict[int, dict[Any, Written]] = {}
    for read, (written, following) in steps.items():
        by_next.setdefault(following, {})[keys[read]] = written
    found: list[Edge] = []
    for following, entries in by_next.items():
        if not any(present):
            reads, writes = "no digit", _written(explanation, next(iter(entries.values())))
        else:
            reads, writes = _runs(explanation, what, entries)
            reads += "".join(f", no {name}" for name in lacking)
        found.append(Edge(state, following, reads, writes))
    return found


def _keys(
    digits: Mapping[Read, Sequence[int]], steps: Mapping[Read, tuple[Written, int]]
) -> tuple[str, dict[Read, Any]]:
    """What tells the steps of a state apart, in words, and its value for each of them."""
    first = next(iter(digits.values()))
    if len(first) == 1:
        return "", {read: own[0] for read, own in digits.items()}
    ways: dict[str, Callable[[Sequence[int]], Any]] = {"any digits": lambda _: 0, "sum ": sum}
    if len(first) == 2:
        ways = {
            "any digits": lambda _: 0,
            "order": lambda own: (own[0] > own[1]) - (own[0] < own[1]),
            "sum ": sum,
            "difference ": lambda own: own[0] - own[1],
        }
    for what, way in ways.items():
        keys = {read: way(own) for read, own in digits.items()}
        met: dict[Any, tuple[Written, int]] = {}
        if all(met.setdefault(keys[read], step) == step for read, step in steps.items()):
            return what, keys
    return "", {read: tuple(own) for read, own in digits.items()}


def _runs(explanation: Explanation, what: str, entries: Mapping[Any, Written]) -> tuple[str, str]:
    """Keys and what is written, where keys that follow one another are one run if what is written does, or is one."""
    if what == "any digits":
        return what, _written(explanation, entries[0])
    if what == "order":
        names = [f"first {_ORDERS[key]} second" for key in sorted(entries)]
        written = [_written(explanation, entries[key]) for key in sorted(entries)]
        if len(set(written)) == 1:
            return " or ".join(names), written[0]
        return "; ".join(names), "; ".join(written)
    keys = sorted(entries)
    if isinstance(keys[0], tuple):
        return _pairs(explanation, entries)
    runs: list[list[int]] = []
    for key in keys:
        if not (runs and _goes_on(entries, runs[-1], key)):
            runs.append([])
        runs[-1].append(key)
    if len(runs) > _MOST_RUNS:
        return (
            f"{what}{len(keys)} of {_name(explanation, what, keys[0])} to {_name(explanation, what, keys[-1])}",
            "...",
        )
    reads, writes = [], []
    for run in runs:
        reads.append(_range([_name(explanation, what, key) for key in (run[0], run[-1])]))
        writes.append(_range([_written(explanation, entries[key]) for key in (run[0], run[-1])]))
    if len(set(writes)) == 1:
        writes = writes[:1]
    return what + ", ".join(reads), ", ".join(writes)


def _goes_on(entries: Mapping[int, Written], run: Sequence[int], key: int) -> bool:
    """Whether a key goes on a run: it is the next one, and so is what is written, or that stays as it is."""
    if key != run[-1] + 1:
        return False

    def change(one: int, other: int) -> list[int]:
        pairs = zip(entries[one], entries[other], strict=True)
        return [0 if a is None or b is None else b - a for a, b in pairs]

    last = change(run[-1], key)
    if any(abs(step) > 1 for step in last):
        return False
    return len(run) < 2 or last == change(run[-2], run[-1])


def _pairs(explanation: Explanation, entries: Mapping[tuple[int, ...], Written]) -> tuple[str, str]:
    """Pairs of digits, by what is written."""
    by_output: dict[str, list[tuple[int, ...]]] = {}
    for key, written in entries.items():
        by_output.setdefault(_written(explanation, written), []).append(key)
    shown = [" ".join(_name(explanation, "", digit) for digit in keys[0]) for keys in by_output.values()]
    if len(entries) <= _MOST_RUNS:
        return ", ".join(" ".join(_name(explanation, "", digit) for digit in key) for key in entries), ", ".join(
            _written(explanation, written) for written in entries.values()
        )
    writes = ", ".join(by_output) if len(by_output) <= _MOST_NAMES else "..."
    return f"{len(entries)} cases such as {shown[0]}", writes


def _name(explanation: Explanation, what: str, key: int) -> str:
    """A digit as it is written; a sum or a difference as a number."""
    return str(key) if what else explanation.text(key + NUM_SPECIAL)


def _range(ends: Sequence[str]) -> str:
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def _written(explanation: Explanation, written: Written) -> str:
    return " ".join(explanation.text(token) or "-" for token in written)


def parameters_in_words(explanation: Explanation, machine: Explained) -> str:
    """The values of the parameters, in words."""
    found: dict[str, list[str]] = {}
    for own in machine.parameters:
        for name, value in own.items():
            text = explanation.text(value) or "none"
            if text not in found.setdefault(name, []):
                found[name].append(text)
    return ", ".join(f"{name} = {' or '.join(values)}" for name, values in found.items())


def difference_in_words(explanation: Explanation, difference: RuleDifference) -> str:
    """Where a machine differs from the task's rule."""
    values = [f"{name} = {explanation.text(value) or 'none'}" for name, value in difference.parameters.items()]
    where = f" where {', '.join(values)}" if values else ""
    if difference.difference is None:
        return f"{difference.reason}{where}"
    own = difference.difference

    def read(symbol: Read) -> str:
        return " ".join(explanation.text(value) or "-" for value in symbol.digits)

    *earlier, last = own.word
    before = f" after {', '.join(map(read, earlier))}" if earlier else ""
    return (
        f"at step {len(own.word)}{where}, reading {read(last)}{before}, it writes "
        f"{_written(explanation, own.first)}, and the rule {_written(explanation, own.second)}"
    )


def print_explanation(explanation: Explanation) -> None:
    """Tables of states and steps, and what was checked."""
    console = Console()
    machines = explanation.machines
    states = f"{explanation.num_states} state{'s' * (explanation.num_states != 1)}"
    if len(machines) > 1:
        table = Table(
            title=_plain(f"{explanation.task.name}: {len(machines)} machines, {states}"), title_justify="left"
        )
        for heading in ("machine", "states", "names"):
            table.add_column(heading, justify="right" if heading == "states" else "left")
        for own in machines:
            table.add_row(
                _plain(parameters_in_words(explanation, own)), str(len(own.transducer)), _plain(_few(own.names))
            )
        console.print(table)
    rows = 0
    for number, own in enumerate(machines):
        edges = folded(explanation, own)
        rows += len(edges)
        if rows > _MOST_ROWS and number:
            console.print(f"The steps of {len(machines) - number} more machines are in the files.", highlight=False)
            break
        title = parameters_in_words(explanation, own) if len(machines) > 1 else f"{explanation.task.name}: {states}"
        _print_steps(console, explanation, own, title, edges)
    _print_checks(console, explanation)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= _MOST_NAMES else ", ".join([*names[: _MOST_NAMES - 2], "...", names[-1]])


def _plain(text: str) -> Text:
    return Text(escaped(text))


def _print_steps(
    console: Console, explanation: Explanation, machine: Explained, title: str, edges: Sequence[Edge]
) -> None:
    table = Table(title=_plain(title), title_justify="left")
    operands = ", ".join(explanation.operands)
    for heading in ("state", f"reads ({operands})", f"writes ({' '.join(explanation.answers)})", "next state"):
        table.add_column(heading)
    before = None
    for edge in edges[:_MOST_ROWS]:
        name = machine.names[edge.state] + (" (start)" if edge.state == machine.transducer.start else "")
        if before not in (None, edge.state):
            table.add_section()
        following = "end" if edge.following == END else machine.names[edge.following]
        table.add_row(_plain(name if before != edge.state else ""), *map(_plain, (edge.reads, edge.writes, following)))
        before = edge.state
    console.print(table)
    if len(edges) > _MOST_ROWS:
        console.print(f"{len(edges) - _MOST_ROWS:,} more rows are in the files.", highlight=False)


def _print_checks(console: Console, explanation: Explanation) -> None:
    table = Table(show_header=False)
    difference = explanation.difference
    said = "yes" if difference is None else f"no: {difference_in_words(explanation, difference)}"
    table.add_row("the task's rule, up to renaming", _plain(said))
    fixed = f", {explanation.fixed:,} of them of tokens that the layout tells" if explanation.fixed else ""
    table.add_row("held to the model", f"{explanation.held:,} of {explanation.assignments:,} assignments{fixed}")
    proved = all(own.is_least for own in explanation.machines)
    table.add_row(
        "least", "yes: all states differ pairwise" if proved else "not proved: there may be one of fewer states"
    )
    steps = sum(len(steps) for own in explanation.machines for steps in own.transducer.steps)
    table.add_row("steps", f"{steps:,}")
    console.print(table)


def as_json(explanation: Explanation) -> dict[str, Any]:
    """An explanation as JSON. A step is a list: state, digits read, tokens written, next state (`null`: the end)."""

    def text(value: Value) -> str | None:
        return None if value is None else explanation.text(value)

    difference = explanation.difference
    return {
        "schema": SCHEMA,
        "task": explanation.task.name,
        "tape": {
            "reads": list(explanation.operands),
            "writes": list(explanation.answers),
            "along": explanation.along,
            "downwards": explanation.downwards,
            "once_for_each_row": explanation.rows,
        },
        "machines": [
            {
                "parameters": [{name: text(value) for name, value in values.items()} for values in own.parameters],
                "states": list(own.names),
                "start": own.transducer.start,
                "least": own.is_least,
                "steps": [
                    [
                        state,
                        list(map(text, read.digits)),
                        list(map(text, written)),
                        None if following == END else following,
                    ]
                    for state, steps in enumerate(own.transducer.steps)
                    for read, (written, following) in steps.items()
                ],
            }
            for own in explanation.machines
        ],
        "checks": {
            "is_the_rule": difference is None,
            "difference": None if difference is None else difference_in_words(explanation, difference),
            "assignments": explanation.assignments,
            "of_fixed_tokens": explanation.fixed,
            "held_to_the_model": explanation.held,
        },
    }


def read_explanation(data: Mapping[str, Any], task: DigitTask) -> Explanation:
    """The explanation that `as_json` made a file of; where it differs from the rule is known in words alone.

    Args:
        data: The content of `transducer.json`.
        task: The task, whose tokens are read and written.
    """
    tape, checks = data["tape"], data["checks"]

    def value(text: str | None) -> Value:
        return None if text is None else int(task.vocabulary.encode(text)[0]) if text else EOS

    def machine(own: Mapping[str, Any]) -> Explained:
        steps: list[dict[Read, tuple[Written, int]]] = [{} for _ in own["states"]]
        for state, digits, written, following in own["steps"]:
            read = Read(tuple(map(value, digits)), tuple(token is not None for token in written))
            steps[state][read] = (tuple(map(value, written)), END if following is None else following)
        parameters = tuple({name: value(text) for name, text in values.items()} for values in own["parameters"])
        return Explained(parameters, Transducer(steps, own["start"]), own["least"], tuple(own["states"]))

    difference = None if checks["is_the_rule"] else RuleDifference({}, None, checks["difference"])
    return Explanation(
        task,
        tuple(tape["reads"]),
        tuple(tape["writes"]),
        tape["along"],
        tape["downwards"],
        tape["once_for_each_row"],
        tuple(map(machine, data["machines"])),
        checks["assignments"],
        checks["of_fixed_tokens"],
        checks["held_to_the_model"],
        difference,
    )


Symbol = str | None


def read_machines(text: str) -> list[Transducer[tuple[Symbol, ...], tuple[Symbol, ...]]]:
    """The transducers of a file, which read and write texts.

    What is read is followed by whether each answer has a token: `-` where it has none.

    Args:
        text: The text of `transducer.json`.
    """
    found: list[Transducer[tuple[Symbol, ...], tuple[Symbol, ...]]] = []
    for own in json.loads(text)["machines"]:
        steps: list[dict[tuple[Symbol, ...], tuple[tuple[Symbol, ...], int]]] = [{} for _ in own["states"]]
        for state, digits, written, following in own["steps"]:
            read = (*digits, *("-" if token is None else "+" for token in written))
            steps[state][read] = (tuple(written), END if following is None else following)
        found.append(Transducer(steps, own["start"]))
    return found


def as_dot(explanation: Explanation) -> str:
    """An explanation as Graphviz text: a cluster for each machine, an edge for each group of steps."""
    lines = [f"digraph {_quoted(explanation.task.name)} {{", "  rankdir=LR;", "  node [shape=circle];"]
    for number, own in enumerate(explanation.machines):
        lines += [f"  subgraph cluster_{number} {{", f"    label={_quoted(parameters_in_words(explanation, own))};"]
        lines += [f"    m{number}_s{state} [label={_quoted(name)}];" for state, name in enumerate(own.names)]
        lines += [f"    m{number}_start [shape=point];", f"    m{number}_start -> m{number}_s{own.transducer.start};"]
        labels: dict[tuple[int, int], list[str]] = {}
        for edge in folded(explanation, own):
            labels.setdefault((edge.state, edge.following), []).append(f"{edge.reads} / {edge.writes}")
        if any(following == END for _, following in labels):
            lines.append(f"    m{number}_end [shape=doublecircle, label={_quoted('end')}];")
        for (state, following), texts in labels.items():
            to = "end" if following == END else f"s{following}"
            lines.append(f"    m{number}_s{state} -> m{number}_{to} [label={_quoted(chr(10).join(texts))}];")
        lines.append("  }")
    return "\n".join([*lines, "}", ""])


def _quoted(text: str) -> str:
    """A text as a quoted string of Graphviz, in which a backslash begins an escape."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n"}
    return '"' + "".join(escapes.get(letter, letter) for letter in text) + '"'
