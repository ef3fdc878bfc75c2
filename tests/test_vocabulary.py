import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abc_toolkit.vocabulary import BOS, EOS, NUM_SPECIAL, Vocabulary

SYMBOLS = "0123456789+"
VOCABULARY = Vocabulary(SYMBOLS)


def test_ids() -> None:
    assert (BOS, EOS, NUM_SPECIAL) == (0, 1, 2)
    assert len(VOCABULARY) == 13
    assert VOCABULARY.encode("0129+").tolist() == [2, 3, 4, 11, 12]
    assert VOCABULARY.encode("").shape == (0,)
    assert VOCABULARY.encode("").dtype == VOCABULARY.encode("7").dtype == torch.int64


@given(st.text(SYMBOLS))
def test_round_trip(text: str) -> None:
    assert VOCABULARY.decode(VOCABULARY.encode(text)) == text


@pytest.mark.parametrize(
    ("tokens", "text"), [([EOS, 2], ""), ([2, 3, EOS, 4, EOS], "01"), ([BOS, 12, BOS], "^+^"), ([], "")]
)
def test_special_tokens(tokens: list[int], text: str) -> None:
    assert VOCABULARY.decode(torch.tensor(tokens, dtype=torch.long)) == text


def test_wrong_characters_are_named() -> None:
    with pytest.raises(KeyError, match="x"):
        VOCABULARY.encode("1x")
    with pytest.raises(ValueError, match="'0120' name a character twice"):
        Vocabulary("0120")
