import contextlib
import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from abc_toolkit.calibration import Places
from abc_toolkit.calibration.capture import AttentionMaps
from abc_toolkit.models.base import Architecture, prefix_of
from abc_toolkit.models.transformer import EncoderDecoder
from abc_toolkit.positions import NoPE
from abc_toolkit.proof.receptive_field import CannotDecideError
from abc_toolkit.tasks import LongMultiplication
from abc_toolkit.tasks.digits.base import CARRY, SETS, ZEROS
from abc_toolkit.testing.digit_contract import DigitTaskContract, Example, TaskCase, generator
from abc_toolkit.training.coverage import Coverage
from abc_toolkit.windows import Window
from abc_toolkit.windows.attention import Windowed
from abc_toolkit.windows.rules import Condition, Rule

TASK = LongMultiplication(max_length=3)


def product(source: str) -> int:
    first, second = source.split("*")
    return int(first) * int(second)


class TestLongMultiplication(DigitTaskContract):
    cases = {  # noqa: RUF012
        "it": TaskCase(
            TASK,
            oracle=product,
            grammar="[0-9]+[*][0-9]+",
            examples=(
                Example("12*34", (2, 2), "12*34", "80400,01400,", "408"),
                Example("9*9", (1, 1), "9*9", "188,", "81"),
                Example("99*7", (2, 1), "99*7", "36966,", "693"),
                Example("07*10", (2, 2), "07*10", "00000,70000,", "70"),
                Example("0*0", (1, 1), "0*0", "000,", "0"),
            ),
            wrong={"12": "two numbers", "1*2*3": "two numbers", "1*": "operand 2", "1+2": "two numbers"},
        )
    }


def test_tokens_stand_in_a_table() -> None:
    """Of 12*34: columns of digit and carry, the last one of a digit alone, and a comma; `EOS` begins a third row."""
    layout = TASK.layout((2, 2))
    target = layout.target
    names = [target.names[segment] for segment in target.segment]
    row = ["digit", "carry", "digit", "carry", "digit", "comma"]
    assert names == [*row, *row, "end"]
    assert target.coordinates["row"].tolist() == [0] * 6 + [1] * 6 + [2]
    assert target.coordinates["column"].tolist() == [0, 0, 1, 1, 2, 3] * 2 + [0]
    prefix = layout.prefix
    assert [prefix.names[segment] for segment in prefix.segment] == ["start", *row, *row]
    assert prefix.coordinates["row"].tolist() == [0] * 7 + [1] * 6
    assert prefix.coordinates["column"].tolist() == [0, *[0, 0, 1, 1, 2, 3] * 2]
    source = layout.source
    assert source.coordinates["column"].tolist() == [1, 0, 0, 0, 0]
    assert source.coordinates["row"].tolist() == [0, 0, 0, 1, 0]


def test_a_token_follows_from_four_others() -> None:
    """Digit and carry are those of operand 1 at the column times operand 2 at the row, the row above and the carry."""
    shape = (3, 3)
    problems, layout = TASK.sample(generator(), 50, shape), TASK.layout(shape)
    row, column = (layout.target.coordinates[name].tolist() for name in ("row", "column"))
    segments = [layout.target.names[segment] for segment in layout.target.segment]
    where = {key: i for i, key in enumerate(zip(segments, row, column, strict=True))}
    for source, target in zip(problems.source, problems.target, strict=True):
        first, second = (part[::-1] for part in TASK.vocabulary.decode(source).split("*"))
        text = TASK.vocabulary.decode(target)
        for j, c in itertools.product(range(3), range(3)):
            above = int(text[where["digit", j - 1, c + 1]]) if j else 0
            carry = int(text[where["carry", j, c - 1]]) if c else 0
            total = int(first[c]) * int(second[j]) + above + carry
            assert (text[where["digit", j, c]], text[where["carry", j, c]]) == (str(total % 10), str(total // 10))
            if c == 2:
                assert text[where["digit", j, 3]] == str(total // 10)


@given(st.integers(0, 10**12), st.integers(0, 10**9))
def test_products_are_pythons(first: int, second: int) -> None:
    source = TASK.parse(f"{first}*{second}")[1]
    assert TASK.answer(TASK.solve(source)) == str(first * second)


def test_sets_hold_what_they_say() -> None:
    def drawn(name: str) -> list[list[str]]:
        problems = TASK.sample(generator(), 500, (6, 6), name)
        return [TASK.vocabulary.decode(source).split("*") for source in problems.source]

    assert any(a == "999999" for a, _ in drawn(CARRY))
    assert any(a == b == "999999" for a, b in drawn(CARRY))
    zeros = drawn(ZEROS)
    assert any(a[0] != "0" and set(a[1:]) == {"0"} for a, _ in zeros)
    assert any(set(a[:-1]) == {"0"} and a[-1] != "0" and set(b[:-1]) == {"0"} for a, b in zeros)
    for name in SETS:
        assert len({tuple(pair) for pair in drawn(name)}) > 20


def test_a_long_layout_is_made_fast() -> None:
    layout = TASK.layout((200, 300))
    assert len(layout.target) == 300 * 402 + 1 == TASK.num_tokens((200, 300))[1]
    assert torch.equal(layout.target.coordinates["raw"], torch.arange(len(layout.target)))


OWN_ROW = Condition("row", 0, "row")
WINDOW = (
    Rule("cross", 0, 0, "operand 1", (Condition("place", 0, "place"),)),
    Rule("cross", 0, 1, "operand 2", (OWN_ROW,)),
    Rule("decoder", 0, 0, "digit", (Condition("row", 1, "row"), Condition("column", -1, "column"))),
    Rule("decoder", 0, 1, "carry", (OWN_ROW, Condition("column", 1, "column"))),
    Rule("decoder", 0, 2, "digit", (OWN_ROW, Condition("column", 0, "column"))),
)


def covered(rules: tuple[Rule, ...]) -> Coverage:
    sizes = Architecture(num_encoder_layers=0, num_decoder_layers=1, model_dim=32, num_heads=4, feedforward_dim=64)
    window = Window("LongMultiplication", 0, 1, 4, rules, {})
    return Coverage(TASK, EncoderDecoder(len(TASK.vocabulary), sizes, Windowed(window, NoPE())))


def test_every_assignment_of_a_table_is_gone_through() -> None:
    """A digit or a carry follows from a digit of either operand, one above and the carry: no more is enumerated."""
    coverage = covered(WINDOW)
    counts = {kind.enumeration.describe(): len(kind.assignments) for kind in coverage.kinds}
    carries = sum(digit + 1 for digit in range(10))  # they are no more than the digit of the row
    inner = "from operand 1 place 1, operand 2 place 1, digit place 2, carry place 0"
    assert counts[f"at digit place 1 of 2x2, {inner}"] == 100 * carries == 100 * 55
    assert counts["at digit place 0 of 1x1, from operand 1 place 0, operand 2 place 0, start place 0"] == 100
    for kind in coverage.kinds:
        for assignment in kind.assignments[:: max(1, len(kind.assignments) // 3)]:
            tokens, required = kind.enumeration.tokens(assignment[None])
            for enumeration in kind.predictions_with(assignment):
                with contextlib.suppress(CannotDecideError):
                    problem = enumeration.problem(assignment)
                    strings = {"source": problem.source[0], "prefix": prefix_of(problem.target)[0]}
                    found = [int(strings[string][number]) for string, number in enumeration.field.leaves]
                    assert found == tokens[0].tolist()
                    assert problem.target[0, enumeration.field.query] == required
                    break
            else:
                raise AssertionError("no problem with this assignment")


def test_a_row_that_is_not_the_one_above_may_hold_anything() -> None:
    """The rule does not name it, so every symbol is tried there, whatever the others are."""
    conditions = (Condition("row", 2, "row"), Condition("column", 0, "column"))
    counts = []
    for rules in (WINDOW, (*WINDOW, Rule("decoder", 0, 3, "digit", conditions))):
        parts = [part for kind in covered(rules).kinds for part in kind.parts]
        counts.append({(own.shape, own.field.query): len(assignments) for own, assignments in parts})
    assert counts[0].keys() == counts[1].keys()
    grown = {key for key, count in counts[1].items() if count != counts[0][key]}
    assert all(counts[1][key] == len(TASK.symbols) * counts[0][key] for key in grown)
    rows = {key: int(TASK.layout(key[0]).target.coordinates["row"][key[1]]) for key in counts[0]}
    assert {rows[key] for key in grown} == {2, 3}  # at the end the row is that after the last
    assert {rows[key] for key in counts[0].keys() - grown} >= {0, 1}


def test_lines_of_rows_and_columns_are_found() -> None:
    """Attention that is all on the row above, one column on: that is the one line."""
    layouts = {shape: TASK.layout(shape) for shape in TASK.training_shapes()}
    maps = {}
    for shape, layout in layouts.items():
        weights = WINDOW[2].holds(layout.target, layout.prefix).float().tril()
        maps[shape] = {"decoder.0": weights[None], "cross.0": torch.zeros(1, len(layout.target), len(layout.source))}
    found = Places().lines(AttentionMaps(maps, dict.fromkeys(maps, 1)), layouts)
    assert (found[0].rule, found[0].attention) == (WINDOW[2], 1.0)
    assert found[1].attention < 0.5
