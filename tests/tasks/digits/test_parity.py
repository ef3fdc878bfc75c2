import re

import pytest

from abc_toolkit.tasks import Parity
from abc_toolkit.tasks.base import UNIFORM
from abc_toolkit.tasks.digits.base import CARRY, UNEQUAL, ZEROS
from abc_toolkit.testing.digit_contract import (
    DigitTaskContract,
    Example,
    TaskCase,
    evaluation_strings,
    training_strings,
)

SCRATCHPAD = Parity(max_length=5)
LABEL = Parity(max_length=5, form="label")
WRONG = {"2": "the bit string '2' holds '2'", "10+1": "holds '+'"}


def odd(text: str) -> int:
    parity = False
    for bit in text:
        parity = parity != (bit == "1")
    return int(parity)


class TestParity(DigitTaskContract):
    cases = {  # noqa: RUF012
        "scratchpad": TaskCase(
            SCRATCHPAD,
            odd,
            r"[01]+",
            (
                Example("10110", (5,), "10110", "01001", "1"),
                Example("1", (1,), "1", "1", "1"),
                Example("0011", (4,), "0011", "1000", "0"),
            ),
            WRONG,
        ),
        "label": TaskCase(
            LABEL,
            odd,
            r"[01]+",
            (Example("10110", (5,), "10110", "1", "1"), Example("00", (2,), "00", "0", "0")),
            WRONG,
        ),
    }


def test_scratchpad_is_the_running_parity_from_the_last_bit() -> None:
    for source in training_strings(SCRATCHPAD, (5,), 50):
        bits = [int(c) for c in reversed(source)]
        assert SCRATCHPAD.solve(source) == "".join(str(sum(bits[: n + 1]) % 2) for n in range(5))


@pytest.mark.parametrize("task", [SCRATCHPAD, LABEL], ids=["scratchpad", "label"])
def test_sets_hold_what_they_say(task: Parity) -> None:
    uniform = evaluation_strings(task, 12, UNIFORM, 400)
    assert {len(source) for source in uniform} == {12}
    assert all(0.35 < sum(source[i] == "1" for source in uniform) / 400 < 0.65 for i in range(12))
    carry = evaluation_strings(task, 12, CARRY, 400)
    assert {"1" * 12, "01" * 6, "10" * 6} < set(carry)
    assert any(re.search(r"0.*1{6,}.*0", source) for source in carry)
    zeros = evaluation_strings(task, 12, ZEROS, 400)
    assert "0" * 12 in zeros
    assert sum(source.count("1") for source in zeros) < 400 * 12 * 0.35
    assert len({len(source) for source in evaluation_strings(task, 12, UNEQUAL)}) > 3


def test_training_holds_every_string() -> None:
    sources = training_strings(SCRATCHPAD, (5,))
    assert len(set(sources)) == 32
    assert {sources.count(s) / len(sources) > 0.03 for s in ("11111", "00000")} == {True}
