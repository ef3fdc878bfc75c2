"""Writes English and German pairs of the help of LibreOffice, and a subword file for both languages.

    apt-get install libreoffice-help-en-us libreoffice-help-de
    python experiments/translation/prepare.py

A paragraph has the same id in the page of each language, so that paragraphs align by page and id. Pages are parsed:
nothing in them is executed. A pair has 3 to 25 words a side, and its sides differ. The pages are split by a hash of
their names: eight of ten go to `train`, one to `valid` and one to `test`. A pair is written once. A source of `valid`
is none of `test`, and a source of `train` is none of either.

It needs the extra `abc_toolkit[text]`.
"""

import argparse
import hashlib
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path

from abc_toolkit.runs.files import replacing

HELP = Path("/usr/share/libreoffice/help")
PREFIXES = ("par_id", "hd_id")
BLOCKS = ("p", "h1", "h2", "h3", "h4", "h5", "h6")
LANGUAGES = {"en": "en-US", "de": "de"}
PARTS = ("test", "valid", "train")
LEAST_WORDS, MOST_WORDS = 3, 25


class Paragraphs(HTMLParser):
    """The paragraphs of a page that have an id.

    Attributes:
        found: Their text by id; the first one of an id.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self._id: str | None = None
        self._text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in BLOCKS:
            return
        self._keep()
        name = dict(attrs).get("id") or ""
        self._id = name if name.startswith(PREFIXES) else None

    def handle_endtag(self, tag: str) -> None:
        if tag in BLOCKS:
            self._keep()

    def handle_data(self, data: str) -> None:
        if self._id is not None:
            self._text.append(data)

    def _keep(self) -> None:
        if self._id is not None:
            self.found.setdefault(self._id, " ".join("".join(self._text).split()))
        self._id, self._text = None, []


def paragraphs(page: Path) -> Mapping[str, str]:
    """Text of the paragraphs of a page, by id."""
    parser = Paragraphs()
    parser.feed(page.read_text(encoding="utf-8"))
    parser.close()
    return parser.found


def part_of(name: str) -> str:
    """The part that the page of a name goes into."""
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 10
    return {0: "test", 1: "valid"}.get(number, "train")


def pairs_of_page(english: Path, german: Path) -> Iterator[tuple[str, str]]:
    """The pairs of one page in their order."""
    other = paragraphs(german)
    for name, line in paragraphs(english).items():
        translated = other.get(name, "")
        if line != translated and all(LEAST_WORDS <= len(side.split()) <= MOST_WORDS for side in (line, translated)):
            yield line, translated


def read_help(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """Distinct pairs, by part."""
    english, german = (folder / name / "text" for name in LANGUAGES.values())
    pages = [page.relative_to(english) for page in sorted(english.rglob("*.html"))]
    pages = [page for page in pages if (german / page).is_file()]
    if not pages:
        raise SystemExit(
            f"there is no help in English and German at {folder}: "
            "apt-get install libreoffice-help-en-us libreoffice-help-de"
        )
    found: dict[str, list[tuple[str, str]]] = {}
    earlier: set[str] = set()
    for part in PARTS:
        own = [page for page in pages if part_of(page.as_posix()) == part]
        pairs = dict.fromkeys(pair for page in own for pair in pairs_of_page(english / page, german / page))
        found[part] = [pair for pair in pairs if pair[0] not in earlier]
        earlier |= {source for source, _ in pairs}
    return found


def write_lines(path: Path, lines: list[str]) -> None:
    with replacing(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_subwords(path: Path, lines: list[str], size: int) -> None:
    """Trains byte-level BPE on the lines of both languages."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # an extra

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(lines, trainer)
    with replacing(path) as temporary:
        temporary.write_text(tokenizer.to_str(), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--help_folder", type=Path, default=HELP, help="where the packages put the help")
    parser.add_argument("--out", type=Path, default=Path("runs") / "translation")
    parser.add_argument("--subwords", type=int, default=4000, help="entries of the subword file, 256 of them bytes")
    chosen = parser.parse_args()
    found = read_help(chosen.help_folder)
    chosen.out.mkdir(parents=True, exist_ok=True)
    for part, pairs in found.items():
        for side, language in enumerate(LANGUAGES):
            write_lines(chosen.out / f"{part}.{language}", [pair[side] for pair in pairs])
        print(f"{chosen.out / part}: {len(pairs):,} pairs")
    write_subwords(chosen.out / "subwords.json", [line for pair in found["train"] for line in pair], chosen.subwords)
    print(f"{chosen.out / 'subwords.json'}: {chosen.subwords:,} subwords")


if __name__ == "__main__":
    main()
