"""What every task on digit strings must do. A test case inherits all of it by giving `cases`."""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abc_toolkit.layout import COORDINATES, Layout
from abc_toolkit.linear import NotLinearError, cases, symbol
from abc_toolkit.proof.enumeration import Reading
from abc_toolkit.proof.meaning import HELD_TO, meaning_of
from abc_toolkit.proof.table import TabledRule
from abc_toolkit.tasks import ProblemError, Shape
from abc_toolkit.tasks.base import TRAINING, UNIFORM
from abc_toolkit.tasks.digits.base import SETS, UNEQUAL, DigitTask
from abc_toolkit.testing.task_contract import TaskContract, generator
from abc_toolkit.vocabulary import EOS

LENGTHS = (1, 2, 9)
STRANGE = ("x", " ", "-", ".", "\n", "\u2028", "\u0663", "\uff13", "\u00b2", "2")  # 3 in two other scripts, squared


@dataclass(frozen=True)
class Example:
    """A problem as a person writes it, and all that belongs to it, written by hand."""

    text: str
    shape: Shape
    source: str
    target: str
    answer: str


@dataclass(frozen=True)
class TaskCase:
    """What a contract test is given.

    Attributes:
        task: The task, small.
        oracle: The answer, from the source's text: an integer, or as it is written.
        grammar: Regular expression of the texts that are problems.
        examples: Problems by hand.
        wrong: Texts that are no problems, with what the message has to name.
    """

    task: DigitTask
    oracle: Callable[[str], int | str]
    grammar: str
    examples: tuple[Example, ...]
    wrong: Mapping[str, str] = field(default_factory=dict)


def short_lengths(task: DigitTask) -> list[int]:
    """Some lengths of which a task has problems."""
    return [length for length in LENGTHS if length >= task.shortest]


def evaluation_strings(task: DigitTask, length: int, suite: str, batch: int = 256) -> list[str]:
    """Sources of an evaluation set."""
    g = generator()
    problems = [task.sample(g, batch, shape, suite) for shape in task.evaluation_shapes(length, suite, g)]
    return [task.vocabulary.decode(row) for batch_of_shape in problems for row in batch_of_shape.source]


def training_strings(task: DigitTask, shape: Shape, batch: int = 4000) -> list[str]:
    """Sources of the mixture trained on."""
    return [task.vocabulary.decode(row) for row in task.sample(generator(), batch, shape).source]


def significant(number: str) -> int:
    """Digits from the first that is not zero; 0 has one."""
    return len(number.lstrip("0")) or 1


def operands(task: DigitTask, shape: Shape, source: str) -> list[tuple[str, list[int]]]:
    """The operands in a source, and the numbers of their tokens, as the layout marks them."""
    positions = task.layout(shape).source
    found = []
    for name in (name for name in positions.names if name.startswith("operand")):
        tokens = positions.within(name).nonzero()[:, 0]
        begins = (positions.coordinates["index"][tokens] == 0).cumsum(0)  # several may be of one segment
        parts = [tokens[begins == number].tolist() for number in begins.unique()]
        found += [("".join(source[token] for token in part), part) for part in parts]
    return found


Row = tuple[str, int, int, int, int]


def written_out(items: list[dict[str, Any]], values: Mapping[str, int]) -> Iterator[Row]:
    """Segment, place, index, row and column of the tokens of a description in JSON, one by one.

    Args:
        items: What it holds.
        values: The values of its symbols.
    """

    def number(expression: Mapping[str, int]) -> int:
        return sum(factor * (values[name] if name else 1) for name, factor in expression.items())

    for item in items:
        if "segment" in item:
            place, index, row, column = (number(item[name]) for name in ("place", "index", "row", "column"))
            yield item["segment"], place, index, row, column
            continue
        for turn in range(number(item["repeat"])):
            yield from written_out(item["items"], {**values, item["variable"]: turn})


def described(plain: Mapping[str, Any], values: Mapping[str, int]) -> list[list[Row]]:
    """The tokens of source, target and prefix that a description in JSON says."""
    source, target = (list(written_out(plain[name], values)) for name in ("source", "target"))
    (start,) = written_out([plain["start"]], values)
    return [source, target, [start, *target[:-1]]]


def rows_of(layout: Layout) -> list[list[Row]]:
    """The same of the source, the target and the prefix of a layout, as its tensors say it."""
    found = []
    for positions in (layout.source, layout.target, layout.prefix):
        columns = [positions.coordinates[name].tolist() for name in ("segment", "place", "index", "row", "column")]
        found.append([(positions.names[segment], *others) for segment, *others in zip(*columns, strict=True)])
        assert positions.coordinates["raw"].tolist() == list(range(len(positions)))
        assert positions.coordinates["raw_from_end"].tolist() == list(range(len(positions)))[::-1]
    return found


def far_shapes(task: DigitTask) -> list[Shape]:
    """Training shapes and some far beyond; none beyond a fixed width."""
    found, g = list(task.training_shapes()), generator()
    for length in (*short_lengths(task), 4 * task.max_length, 40):
        for name in (UNIFORM, UNEQUAL):
            with contextlib.suppress(ProblemError):
                for shape in task.evaluation_shapes(length, name, g):
                    if sum(task.num_tokens(shape)) < 4000:
                        task.layout(shape)
                        found.append(shape)
    return list(dict.fromkeys(found))


def refuse(task: DigitTask, text: str) -> str:
    """The message with which a task refuses a text: one line."""
    with pytest.raises(ProblemError) as error:
        task.parse(text)
    message = str(error.value)
    assert message.splitlines() == [message]
    return message


class DigitTaskContract(TaskContract):
    """Checks of a task; `cases` holds a task and its examples by name."""

    cases: ClassVar[dict[str, TaskCase]]

    def test_the_first_suite_is_uniform(self, case: TaskCase) -> None:
        assert case.task.suites[0] == UNIFORM

    @pytest.mark.parametrize("suite", [TRAINING, *SETS])
    def test_problems_are_right(self, case: TaskCase, suite: str) -> None:
        task, g = case.task, generator()
        shapes = list(task.training_shapes())
        if suite != TRAINING:
            lengths = short_lengths(task)
            shapes += [shape for length in lengths for shape in task.evaluation_shapes(length, suite, g)]
        for shape in dict.fromkeys(shapes):
            problems, layout = task.sample(g, 24, shape, suite), task.layout(shape)
            assert problems.shape == shape
            assert problems.source.shape == (24, len(layout.source))
            assert problems.target.shape == (24, len(layout.target)) == (24, len(layout.prefix))
            assert problems.source.dtype == problems.target.dtype == torch.int64
            ends = int(task.end == "token")
            assert (problems.target[:, len(layout.target) - ends :] == EOS).all()
            assert (problems.target[:, : len(layout.target) - ends] != EOS).all()
            for source, target in zip(problems.source, problems.target, strict=True):
                source, target = task.vocabulary.decode(source), task.vocabulary.decode(target)
                assert target == task.solve(source)
                assert len(target) == len(layout.target) - ends
                assert task.answer(target) == str(case.oracle(source))
                assert re.fullmatch(case.grammar, source)
                assert task.parse(source)[1] == source

    def test_layout_tells_where_the_digits_are(self, case: TaskCase) -> None:
        task = case.task
        digits = task.symbols[: task.base]
        for shape in task.training_shapes():
            positions = task.layout(shape).source
            source = task.vocabulary.decode(task.sample(generator(), 1, shape).source[0])
            assert set(positions.coordinates) == set(COORDINATES)
            for character, segment in zip(source, positions.segment.tolist(), strict=True):
                name = positions.names[segment]
                assert (character in digits and name not in task.literals) == name.startswith("operand")
            for operand, tokens in operands(task, shape, source):
                place, index = (positions.coordinates[c][tokens].tolist() for c in ("place", "index"))
                values = [digits.index(character) for character in operand]
                assert sum(v * task.base**p for v, p in zip(values, place, strict=True)) == int(operand, task.base)
                assert index == list(range(len(operand)))

    def test_layouts_are_what_the_description_says(self, case: TaskCase) -> None:
        task = case.task
        for shape in far_shapes(task):
            sizes = task.sizes(shape)
            assert all(size >= least for size, least in zip(sizes, task.least_sizes, strict=True)), shape
            plain = task.describe_layout(sizes).plain()
            assert described(plain, {}) == rows_of(task.layout(shape)), shape
            assert len(plain["segments"]) == len(set(plain["segments"]))

    def test_the_description_of_every_length_is_that_of_each(self, case: TaskCase) -> None:
        """Run on symbols, it is of all lengths at once; a task with a local rule must allow that, for a proof."""
        task = case.task
        names = [f"s{number}" for number in range(len(task.least_sizes))]
        try:
            found = list(cases(lambda *sizes: task.describe_layout(sizes), [symbol(name) for name in names]))
        except NotLinearError:
            assert task.local_rule() is None
            return
        for shape in far_shapes(task):
            sizes = dict(zip(names, task.sizes(shape), strict=True))
            (own,) = (own for where, own in found if all(expression.at(sizes) >= 0 for expression in where))
            assert not isinstance(own, Exception), shape
            assert described(own.plain(), sizes) == rows_of(task.layout(shape)), shape

    def test_each_token_can_be_what_stands_there(self, case: TaskCase) -> None:
        task = case.task
        for shape in task.training_shapes():
            problems, layout = task.sample(generator(), 50, shape), task.layout(shape)
            for positions, tokens in ((layout.source, problems.source), (layout.target, problems.target)):
                for number, segment in enumerate(positions.segment.tolist()):
                    assert set(tokens[:, number].tolist()) <= set(task.values(positions.names[segment]))
        for segment, character in task.literals.items():
            assert task.values(segment) == tuple(task.vocabulary.encode(character).tolist())

    def test_the_local_rule_means_what_it_says(self, case: TaskCase) -> None:
        """It reads every token that it writes by one name, keeps its identities, and agrees with the oracle."""
        task, rule = case.task, case.task.local_rule()
        if rule is None:
            return
        tabled = TabledRule(task, rule)
        readings = [Reading(tabled, task.layout(shape)) for shape in task.training_shapes()]
        names = (*rule.operands, *rule.constants, *rule.answers)
        assert {tabled.read(name).segment for name in names} <= set(
            task.layout(task.training_shapes()[-1]).source.names
        )
        for reading in readings:
            for segment, place, index, row, _ in rows_of(reading.layout)[1]:
                where = {"place": place, "index": index, "row": row}
                named = reading.written(segment, where)
                assert named is not None or len(task.values(segment)) == 1, segment
                assert named is None or named[1] < len(reading.present(row))
        meaning = meaning_of(task, tabled, readings)  # refuses what does not hold
        assert meaning.proved == tuple(identity.statement for identity in rule.identities())
        assert meaning.held_to >= HELD_TO
        assert meaning.longest >= task.max_length

    @pytest.mark.parametrize("suite", SETS)
    def test_tokens_are_counted(self, case: TaskCase, suite: str) -> None:
        task, g = case.task, generator()
        shapes = [shape for length in short_lengths(task) for shape in task.evaluation_shapes(length, suite, g)]
        for shape in (*task.training_shapes(), *shapes):
            problems, layout = task.sample(g, 1, shape, suite), task.layout(shape)
            assert task.num_tokens(shape) == (len(layout.source), len(layout.target))
            assert task.num_tokens(shape) == (problems.source.shape[1], problems.target.shape[1])

    def test_tokens_are_counted_where_no_memory_could_hold_them(self, case: TaskCase) -> None:
        for shape in case.task.evaluation_shapes(10**12, UNIFORM, generator()):
            with contextlib.suppress(ProblemError):  # beyond a fixed width
                assert case.task.num_tokens(shape)[0] >= 10**12 - 1  # some lengths are odd

    def test_training_stays_within_max_length(self, case: TaskCase) -> None:
        task = case.task
        shapes = task.training_shapes()
        assert len(set(shapes)) == len(shapes)
        assert {max(shape) for shape in shapes} == set(range(1, task.max_length + 1))
        for shape in shapes:
            for source in training_strings(task, shape, 200):
                parts = [part for part, _ in operands(task, shape, source)]
                assert all(significant(part) <= task.max_length for part in parts), f"{source} in shape {shape}"

    def test_problems_of_the_smallest_shape_are_counted(self, case: TaskCase) -> None:
        shape = case.task.training_shapes()[0]
        count = case.task.num_problems(shape)
        assert len(set(training_strings(case.task, shape, max(4000, 40 * count)))) == count

    @pytest.mark.parametrize("suite", SETS)
    def test_evaluation_shapes_are_of_the_length(self, case: TaskCase, suite: str) -> None:
        for length in short_lengths(case.task):
            shapes = case.task.evaluation_shapes(length, suite, generator())
            assert shapes
            assert all(max(shape) <= length and min(shape) >= 1 for shape in shapes)
            assert suite != UNIFORM or all(set(shape) == {length} for shape in shapes)

    def test_examples(self, case: TaskCase) -> None:
        task = case.task
        for example in case.examples:
            assert task.parse(example.text) == (example.shape, example.source)
            assert task.solve(example.source) == example.target
            assert task.answer(example.target) == example.answer
            assert len(task.layout(example.shape).source) == len(example.source)
            assert len(task.layout(example.shape).target) == len(example.target) + (task.end == "token")
            assert task.vocabulary.decode(task.vocabulary.encode(example.source)) == example.source

    def test_docstring_examples(self) -> None:
        tasks = [case.task for case in self.cases.values()]
        claims = re.findall(r"`([^`]+)`\s+has\s+the\s+target\s+`([^`]+)`", type(tasks[0]).__doc__ or "")
        assert claims
        for text, target in claims:
            assert any(task.solve(task.parse(text)[1]) == target for task in tasks)

    def test_wrong_texts_are_refused_in_one_line(self, case: TaskCase) -> None:
        good = case.examples[0].text
        for character in STRANGE:
            for text in (character + good, good + character, good[:1] + character + good[1:]):
                if not re.fullmatch(case.grammar, text):
                    message = refuse(case.task, text)
                    assert repr(character)[1:-1] in message
        for text, named in case.wrong.items():
            assert named in refuse(case.task, text)
        assert refuse(case.task, "")

    def test_long_texts_are_quoted_in_part(self, case: TaskCase) -> None:
        long = case.examples[0].text[0] * 50_000
        odd = next(character for character in STRANGE if character not in case.task.symbols)
        message = refuse(case.task, f"{long}{case.examples[0].text}{odd}")
        assert f"({50_000 + len(case.examples[0].text) + 1} characters)" in message
        assert repr(odd) in message
        for wrong in case.wrong:
            for text in (long + wrong, wrong + long):
                if not re.fullmatch(case.grammar, text):
                    assert len(refuse(case.task, text)) < 200

    @settings(deadline=None)
    @given(data=st.data())
    def test_parse_takes_the_grammar_and_nothing_else(self, case: TaskCase, data: st.DataObject) -> None:
        right = st.from_regex(case.grammar, fullmatch=True)
        odd = st.text(st.sampled_from([*case.task.symbols[-3:], *"+*", *STRANGE]), max_size=6)
        text = data.draw(right | odd)
        if not re.fullmatch(case.grammar, text):
            refuse(case.task, text)
            return
        shape, source = case.task.parse(text)
        assert len(source) == len(case.task.layout(shape).source)
        assert case.oracle(source) == case.oracle(text)
        assert case.task.answer(case.task.solve(source)) == str(case.oracle(text))
        assert case.task.parse(source)[1] == source

    def test_malformed_targets_are_not_repaired(self, case: TaskCase) -> None:
        target = case.examples[0].target
        assert "^" in case.task.answer(f"{target}^")
        assert case.task.answer("") == ""


class NumberContract(DigitTaskContract):
    """Checks of a task whose answer is a number, written least significant digit first at a fixed width."""

    @pytest.mark.parametrize("suite", [TRAINING, *SETS])
    def test_target_is_the_result_the_other_way_round(self, case: TaskCase, suite: str) -> None:
        for shape in case.task.training_shapes():
            problems = case.task.sample(generator(), 24, shape, suite)
            width = problems.target.shape[1] - (case.task.end == "token")
            for source, target in zip(problems.source, problems.target, strict=True):
                result = case.oracle(case.task.vocabulary.decode(source))
                assert case.task.vocabulary.decode(target) == str(result).zfill(width)[::-1]

    def test_answers_are_in_natural_order(self, case: TaskCase) -> None:
        assert case.task.answer("0210") == "120"
        assert case.task.answer("0000") == "0"
        assert case.task.answer("5") == "5"
