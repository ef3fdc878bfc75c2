"""Trains a subword file for `--task.vocabulary`: byte-level BPE, of the files of a folder that are UTF-8.

    python experiments/language_models/subwords.py /usr/share/doc/python3.11/html/_sources subwords.json

It needs the extra `abc_toolkit[text]`. Any text can be encoded by it, as every byte is a subword.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from abc_toolkit.runs.files import replacing


def texts(folder: Path) -> Iterator[str]:
    """The files of a folder that are UTF-8, in the order of their names."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            try:
                yield path.read_bytes().decode()
            except UnicodeDecodeError:
                continue


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--size", type=int, default=2000, help="entries of the vocabulary, 256 of them bytes")
    chosen = parser.parse_args()

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # an extra

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=chosen.size, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts(chosen.folder), trainer)
    with replacing(chosen.file) as temporary:
        temporary.write_text(tokenizer.to_str(), encoding="utf-8")
    print(f"{chosen.file}: {tokenizer.get_vocab_size():,} subwords")


if __name__ == "__main__":
    main()
