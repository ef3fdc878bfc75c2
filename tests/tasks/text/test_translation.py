"""Pairs of lines, their decoding, BLEU, and the commands on a translation."""

import json
import random
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import torch

from abc_toolkit.errors import UserError
from abc_toolkit.models.base import Architecture, DecodingModel, predict
from abc_toolkit.models.decoding import beam_search, decode_problems, greedy
from abc_toolkit.phases.measure import Total, evaluate_models, evaluation_problems, reported_metrics
from abc_toolkit.positions import AlgebraicPE, Learned, RoPE, ShawRelative, Sinusoidal
from abc_toolkit.runs.folder import build_model
from abc_toolkit.tasks import LanguageModel, SequenceCopy, Translation
from abc_toolkit.tasks.structures.base import padded_problems
from abc_toolkit.testing.task_contract import TaskContract
from abc_toolkit.vocabulary import EOS, NUM_SPECIAL
from tests.tasks.text.conftest import subword_file

Abc = Callable[..., tuple[int, str, str]]
WORDS = {"the": "das", "tree": "baum", "sun": "sonne", "sees": "sieht", "and": "und", "over": "über", "water": "wasser"}
TINY = ["--model.num_encoder_layers", "1", "--model.num_decoder_layers", "1", "--model.model_dim", "16"]
TINY += ["--model.num_heads", "2", "--model.feedforward_dim", "16", "--trainer.max_steps", "4"]
TINY += ["--trainer.validate_every", "2", "--data.validation_problems", "8", "--data.batch_size", "8"]
TINY += ["--trainer.accelerator", "cpu", "--trainer.threads", "1"]
FILES = ["--task", "Translation", "--task.source_path", "a.en", "--task.target_path", "a.de"]
FILES += ["--task.vocabulary", "words.json", "--task.held_out_share", "0.3"]


def written(folder: Path, name: str = "a", pairs: int = 200, seed: int = 0) -> None:
    """Two files whose lines translate one another word by word."""
    draws = random.Random(seed)
    lines = {" ".join(draws.choices(list(WORDS), k=draws.randint(2, 6))) for _ in range(pairs)}
    ordered = sorted(lines)
    (folder / f"{name}.en").write_text("".join(f"{line}\n" for line in ordered), encoding="utf-8")
    translated = (" ".join(WORDS[word] for word in line.split()) + "!" for line in ordered)
    (folder / f"{name}.de").write_text("".join(f"{line}\n" for line in translated), encoding="utf-8")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    written(folder)
    written(folder, "b", 60, seed=1)
    (folder / "text").mkdir()
    (folder / "text" / "all.txt").write_bytes((folder / "a.en").read_bytes() + (folder / "a.de").read_bytes())
    subword_file(folder / "words.json", folder / "text", 40)
    return folder


def task_of(folder: Path, **settings: Any) -> Translation:
    known = {"max_length": 30, "held_out_share": 0.3} | settings
    return Translation(folder / "a.en", folder / "a.de", folder / "words.json", **known)


@pytest.fixture
def task(data: Path) -> Translation:
    return task_of(data)


@pytest.fixture
def here(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with copies of the files, which a test may change."""
    for name in ("a.en", "a.de", "b.en", "b.de", "words.json"):
        (tmp_path / name).write_bytes((data / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestTranslation(TaskContract):
    cases = {  # noqa: RUF012
        "a share": Translation(Path("a.en"), Path("a.de"), Path("words.json"), max_length=30, held_out_share=0.3),
        "files of their own": Translation(
            Path("a.en"), Path("a.de"), Path("words.json"), Path("b.en"), Path("b.de"), max_length=12
        ),
    }

    @pytest.fixture
    def task(self, case: Translation, here: Path) -> Translation:
        return case


def lines_of(task: Translation, tokens: torch.Tensor) -> list[str]:
    return [task.line(row) for row in tokens]


def test_problems_are_pairs_of_the_files(task: Translation, data: Path) -> None:
    pairs = dict(zip(*((data / f"a.{x}").read_text(encoding="utf-8").splitlines() for x in ("en", "de")), strict=True))
    for suite in ("training", "held_out"):
        batch = task.sample(torch.Generator(), 30, (30,), suite)
        assert batch.layout is not None
        assert batch.layout.target.present is not None
        assert [pairs[line] for line in lines_of(task, batch.source)] == lines_of(task, batch.target)
        assert batch.counted is not None
        assert torch.equal(batch.counted, batch.layout.target.present)
        for tokens, present in ((batch.source, batch.layout.source.present), (batch.target, batch.counted)):
            assert present is not None
            ends = (tokens == EOS) & present
            assert torch.equal(ends.sum(dim=1), torch.ones(30, dtype=torch.long))
            assert torch.equal(ends.long().argmax(dim=1), present.sum(dim=1) - 1)


def test_one_source_is_never_on_both_sides(here: Path) -> None:
    task = task_of(here)
    whole = len(Path("a.en").read_text().splitlines())
    sides = [{task.line(torch.tensor(part.sources[i]) + NUM_SPECIAL) for i in range(len(part))}
             for part in (task.text.training, task.text.held_out)]  # fmt: skip
    assert not sides[0] & sides[1]
    assert sum(map(len, sides)) == whole
    assert 0.15 < len(sides[1]) / whole < 0.45
    # The same source with several translations, and a training pair with the source of a held-out file.
    for name in ("en", "de"):
        path = Path(f"a.{name}")
        path.write_text(path.read_text() * 2)
    assert len(task_of(here).text.held_out) == 2 * len(sides[1])
    own = task_of(here, held_out_source_path=Path("b.en"), held_out_target_path=Path("b.de"))
    other = set(Path("b.en").read_text().splitlines())
    assert len(own.text.held_out) == len(other)
    both = [own.line(torch.tensor(own.text.training.sources[i]) + NUM_SPECIAL) for i in range(len(own.text.training))]
    assert len(both) < 2 * whole
    assert not other & set(both)


def test_long_pairs_are_left_out_and_told(task: Translation) -> None:
    whole = task.text
    short = replace(task, max_length=8)
    assert task.remarks() == []
    for part, all_of in ((short.text.training, whole.training), (short.text.held_out, whole.held_out)):
        assert part.too_long
        assert len(part) + part.too_long == len(all_of)
        expected = sum(max(len(all_of.sources[i]), len(all_of.targets[i])) <= 8 for i in range(len(all_of)))
        assert len(part) == expected
    training, _ = short.remarks()
    assert training.startswith(f"Of {len(whole.training)} pairs to train on, {short.text.training.too_long} have")


def test_a_target_has_no_coordinates_that_tell_its_end(task: Translation) -> None:
    batch = task.sample(torch.Generator(), 4, (30,))
    assert batch.layout is not None
    layouts = [batch.layout, task.layout((30,)), task.decoding_layout(7)]
    for layout in layouts:
        for positions in (layout.target, layout.prefix):
            assert set(positions.coordinates) == {"place", "raw", "segment"}
            assert not positions.own
        assert {"index", "raw_from_end"} < set(layout.source.coordinates)
    assert (len(layouts[2].source), len(layouts[2].target)) == (7, 24)
    assert not layouts[2].differ


def trained(task: Translation, position: Any, steps: int = 60) -> DecodingModel:
    torch.manual_seed(0)
    sizes = Architecture(1, 1, 32, 2, 32, position=position, backbone="encoder-decoder")
    model = build_model(task, sizes, None)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = task.sample(generator, 16, (task.max_length,))
        loss = task.objective.loss(predict(model, batch, task.layout(batch.shape)), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert isinstance(model, DecodingModel)
    return model.eval()


METHODS = [Sinusoidal(("raw",)), Learned(capacity=128), ShawRelative(window=8, cross=True), RoPE(cross=True)]
METHODS += [AlgebraicPE(decay=0.98, cross=True)]


@pytest.mark.parametrize("position", METHODS, ids=lambda position: type(position).__name__)
def test_decoding_is_what_whole_passes_predict(position: Any, task: Translation) -> None:
    """Each decoded token is the likeliest one in a pass over padded problems with the decoded tokens as target."""
    model = trained(task, position, steps=12)
    problems = task.sample(torch.Generator(), 12, (30,), "held_out")
    done: list[int] = []
    decoded = decode_problems(model, task, problems, greedy, done.append)
    assert sum(done) == 12
    assert problems.layout is not None
    assert problems.layout.source.present is not None
    sources = [
        row[present].tolist() for row, present in zip(problems.source, problems.layout.source.present, strict=True)
    ]
    ends = [
        min([*(row == EOS).nonzero().flatten().tolist(), 2 * len(source) + 9]) + 1
        for row, source in zip(decoded, sources, strict=True)
    ]
    again = padded_problems((30,), sources, [row[:end].tolist() for row, end in zip(decoded, ends, strict=True)])
    with torch.no_grad():
        outputs = predict(model, again, task.layout((30,)))
    for row, end, logits in zip(decoded, ends, outputs, strict=True):
        chosen = logits[:end].gather(1, row[:end, None])[:, 0]
        assert torch.allclose(chosen, logits[:end].max(dim=1).values, atol=1e-4)
        assert row[end:].eq(EOS).all()


def test_bleu_is_that_of_sacrebleu(task: Translation) -> None:
    model = trained(task, None)
    problems = task.sample(torch.Generator(), 40, (30,), "held_out")
    for search in (greedy, partial(beam_search, beams=3)):
        decoded = decode_problems(model, task, problems, search)
        statistics = task.statistics(decoded, problems)
        expected = sacrebleu.corpus_bleu(lines_of(task, decoded), [lines_of(task, problems.target)])
        assert 5 < expected.score < 100
        assert task.score(statistics.sum(dim=0)) == pytest.approx(expected.score, abs=1e-9)
    assert task.score(task.statistics(problems.target, problems).sum(dim=0)) == pytest.approx(100)
    nothing = torch.full((40, 1), EOS)
    assert task.score(task.statistics(nothing, problems).sum(dim=0)) == 0


def test_an_evaluation_step_by_step_adds_bleu(task: Translation, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(task, None)
    cpu = torch.device("cpu")
    parallel, steps = (
        evaluate_models(task, {"fit": model}, [30], ["held_out"], 40, how, 0, cpu).rows for how in ("parallel", "steps")
    )
    assert [row.metric for row in parallel] == ["perplexity", "exact_match"]
    assert [row.metric for row in steps] == ["perplexity", "exact_match", "bleu"]
    assert [row.value for row in steps[:2]] == [row.value for row in parallel]
    bleu = steps[-1]
    (problems,) = evaluation_problems(task, 30, "held_out", 40, 0)
    decoded = decode_problems(model, task, problems, greedy)  # type: ignore[arg-type]
    expected = sacrebleu.corpus_bleu(lines_of(task, decoded), [lines_of(task, problems.targets)]).score
    assert bleu.value == pytest.approx(expected)
    assert bleu.low < bleu.value < bleu.high
    assert (bleu.samples, bleu.decode) == (40, "steps")
    # In several pieces, the same.
    monkeypatch.setattr("abc_toolkit.phases.measure._TOKENS_DRAWN", 62 * 7)
    assert evaluate_models(task, {"fit": model}, [30], ["held_out"], 40, "steps", 0, cpu).rows[-1] == bleu
    # In parallel nothing is decoded.
    total = Total(task)
    total.add(model, problems, task.layout((30,)), "parallel")
    assert list(total.decoded_summaries(torch.Generator())) == []


def test_only_what_can_be_decoded_is_decoded_step_by_step(task: Translation, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [metric.name for metric in reported_metrics(task, "steps")] == ["perplexity", "exact_match", "bleu"]
    for other in (SequenceCopy(), LanguageModel(Path("nowhere"))):
        assert reported_metrics(other, "parallel") == other.objective.metrics
        with pytest.raises(UserError, match=f"--decode steps is not available for {other.name}: leave it out$"):
            reported_metrics(other, "steps")
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    assert len(reported_metrics(task, "parallel")) == 2
    with pytest.raises(UserError, match=r"BLEU needs a library: pip install 'abc_toolkit\[text\]'$"):
        reported_metrics(task, "steps")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"max_length": 0}, "max_length"),
        ({"held_out_share": 1.0}, "held_out_share 1"),
        ({"held_out_source_path": Path("b.en")}, "held_out_source_path: give held_out_target_path with it"),
        ({"held_out_target_path": Path("b.de")}, "held_out_target_path: give held_out_source_path with it"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        task_of(Path("nowhere"), **settings)


def refused(abc: Abc, *words: str) -> str:
    status, out, err = abc(*words)
    assert (status, out, len(err.splitlines())) == (2, "", 1), (status, out, err)
    return err


def test_fit_evaluate_and_changes_of_files(abc: Abc, here: Path) -> None:
    chosen = [*FILES, "--task.max_length", "8", *TINY, "--run", "run"]
    status, _, err = abc("fit", *chosen)
    assert status == 0, err
    assert re.search(r"Of \d+ pairs to train on, \d+ have a side of more than 8 subwords and are left out\.", err)
    assert "abc evaluate --run run --length 1x" in err
    record = json.loads(Path("run/fit/record.json").read_text())
    assert list(record["data_files"]) == ["a.en", "a.de", "words.json"]
    evaluate = ["evaluate", "--run", "run", "--length", "1x", "--overwrite"]
    status, out, err = abc(*evaluate, "--decode", "steps")
    assert status == 0, err
    assert "pairs held out" in err
    rows = json.loads(Path("run/evaluate/results.json").read_text())
    assert [(row["metric"], row["length"], row["decode"]) for row in rows] == [
        (metric, 8, "steps") for metric in ("perplexity", "exact_match", "bleu")
    ]
    assert rows[2]["samples"] == len(task_of(here, max_length=8).text.held_out)
    assert {"perplexity.png", "accuracy.png", "bleu.png"} <= {path.name for path in Path("run/evaluate").iterdir()}
    assert "BLEU on translation" in out + err
    kept = Path("run/evaluate/record.json").read_bytes()

    assert "give --length 1x" in refused(abc, *evaluate[:-2], "2x", "--overwrite")
    assert "--samples 9999: there are" in refused(abc, *evaluate, "--samples", "9999")
    refused(abc, "calibrate", "--run", "run")
    refused(abc, "solve", "--run", "run", "the tree")
    for name in ("a.de", "words.json"):
        before = Path(name).read_bytes()
        changed = before.replace(b"das", b"dem", 1) if name == "a.de" else before.replace(b"\n", b" ", 1)
        assert changed != before
        Path(name).write_bytes(changed)
        message = f"the content of {name} is not what 'fit' in run was trained on"
        assert message in refused(abc, *evaluate)
        assert message in refused(abc, "fit", *chosen, "--trainer.max_steps", "9", "--resume")
        Path(name).write_bytes(before)
    assert Path("run/evaluate/record.json").read_bytes() == kept
    assert sorted(path.name for path in Path("run").iterdir()) == ["evaluate", "fit"]


def cut(path: Path) -> None:
    path.write_text("\n".join(path.read_text().splitlines()[:-3]) + "\n")


def emptied(path: Path) -> None:
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:4], "  ", *lines[5:]]) + "\n")


LOSSY = {"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0, "?": 1}, "unk_token": "?"}}


@pytest.mark.parametrize(
    ("change", "words", "reason"),
    [
        (lambda: Path("a.de").unlink(), [], r"there is no file a\.de: give --task\.target_path"),
        (lambda: None, ["--task.source_path", "."], r"there is no file \.: give --task\.source_path"),
        (lambda: Path("a.en").write_text(""), [], r"a\.en holds no text"),
        (lambda: Path("a.en").write_text("\n \n"), [], r"a\.en holds no text"),
        (lambda: Path("a.de").write_bytes(b"ab\xff\n"), [], r"a\.de is no UTF-8 text \(byte 3\)"),
        (lambda: cut(Path("a.de")), [], r"pairs that do not align: a\.en has \d+ lines, a\.de \d+"),
        (lambda: emptied(Path("a.en")), [], r"pairs that do not align: line 5 of a\.en is empty"),
        (lambda: emptied(Path("a.de")), [], r"pairs that do not align: line 5 of a\.de is empty"),
        (lambda: None, ["--task.held_out_source_path", "b.en", "--task.held_out_target_path", "a.de"],
         r"pairs that do not align: b\.en has"),
        (lambda: None, ["--task.held_out_source_path", "b.en"], "held_out_source_path: give held_out_target_path"),
        (lambda: None, ["--task.held_out_source_path", "a.en", "--task.held_out_target_path", "a.de"],
         "no pair of a.en is trained on"),
        (lambda: None, ["--task.max_length", "1"], "all [0-9]+ pairs are longer than --task.max_length 1"),
        (lambda: None, ["--task.held_out_share", "1e-9"], "no pair of a.en is held out"),
        (lambda: Path("words.json").write_text("{}"), [], r"words\.json is no subword file"),
        (lambda: Path("words.json").unlink(), [], r"there is no subword file words\.json"),
        (lambda: Path("words.json").write_text(json.dumps(LOSSY)), [], r"words\.json .*does not give '"),
    ],
)  # fmt: skip
def test_bad_files_leave_no_run(change: Callable[[], Any], words: list[str], reason: str, abc: Abc, here: Path) -> None:
    change()
    message = refused(abc, "fit", *FILES, *words, *TINY, "--run", "run")
    assert re.search(reason, message), message
    assert not Path("run").exists()


def test_backbones_that_take_no_padding_are_refused(abc: Abc, here: Path) -> None:
    words = TINY[2:]  # no encoder
    for backbone in ("decoder-only", "mamba"):
        message = refused(abc, "fit", *FILES, *words, "--model.backbone", backbone, "--run", "run")
        assert "choose --model.backbone encoder-decoder" in message
        assert not Path("run").exists()


def test_structures_are_not_decoded_step_by_step(abc: Abc, here: Path) -> None:
    status, _, err = abc("fit", "--task", "SequenceCopy", "--task.max_length", "4", *TINY, "--run", "run")
    assert status == 0, err
    evaluate = ["evaluate", "--run", "run", "--length", "1x", "--samples", "8"]
    assert "--decode steps is not available for sequencecopy" in refused(abc, *evaluate, "--decode", "steps")
    assert not Path("run/evaluate").exists()
    assert abc(*evaluate)[0] == 0


def test_a_missing_library_is_named(abc: Abc, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, _, err = abc("fit", *FILES, *TINY, "--run", "run")
    assert status == 0, err
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    assert "BLEU needs a library" in refused(abc, "evaluate", "--run", "run", "--length", "1x", "--decode", "steps")
    assert not Path("run/evaluate").exists()
