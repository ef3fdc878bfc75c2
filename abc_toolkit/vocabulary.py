"""Characters to token ids and back."""

import torch
from torch import Tensor

BOS = 0
EOS = 1
NUM_SPECIAL = 2


class Vocabulary:
    """The token ids of one task.

    Two special tokens come first (`BOS` = 0 starts the decoder's input, `EOS` = 1 ends the target), then the
    task's symbols in their order, so that a digit's id is its value plus `NUM_SPECIAL` when the symbols begin
    with the digits.

    Args:
        symbols: Every character that may occur, each once.
    """

    def __init__(self, symbols: str) -> None:
        if len(set(symbols)) != len(symbols):
            raise ValueError(f"the symbols {symbols!r} name a character twice")
        self.symbols = symbols
        self._ids = {symbol: index + NUM_SPECIAL for index, symbol in enumerate(symbols)}

    def __len__(self) -> int:
        return NUM_SPECIAL + len(self.symbols)

    def encode(self, text: str) -> Tensor:
        """Token ids `[length]` of a string.

        Raises:
            KeyError: If a character is not among the symbols.
        """
        return torch.tensor([self._ids[character] for character in text], dtype=torch.long)

    def decode(self, tokens: Tensor) -> str:
        """The string of token ids `[length]`, up to and without the first `EOS`; a stray `BOS` becomes `^`."""
        characters = []
        for token in tokens.tolist():
            if token == EOS:
                break
            characters.append("^" if token == BOS else self.symbols[token - NUM_SPECIAL])
        return "".join(characters)
