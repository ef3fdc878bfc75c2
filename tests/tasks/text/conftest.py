import random
from pathlib import Path

import pytest

WORDS = ["the", "tree", "of", "a", "sun", "moon", "sees", "and", "was", "in", "water", "über", "木"]


def written(folder: Path, files: int = 12, words: int = 300, seed: int = 0) -> Path:
    """A folder of text files, some of them in a folder inside."""
    draws = random.Random(seed)
    for number in range(files):
        file = folder / ("inside" if number % 3 else ".") / f"{number}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(" ".join(draws.choices(WORDS, k=words)) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return written(tmp_path / "text")


def subword_file(path: Path, text: Path, size: int = 120) -> Path:
    """A subword file trained on a folder of text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=256 + size, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train([str(file) for file in sorted(text.rglob("*.[tm][xd]*"))], trainer)
    tokenizer.save(str(path))
    return path
