"""Windows, blocks, and the commands on a language model."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from abc_toolkit.errors import UserError
from abc_toolkit.models.base import Architecture, predict
from abc_toolkit.models.decoding import pieces
from abc_toolkit.models.memory import check_memory
from abc_toolkit.phases.measure import Total, evaluation_problems
from abc_toolkit.positions import (
    DAPE,
    FIRE,
    ALiBi,
    Compose,
    CoPE,
    DAPEv2,
    KerpleLog,
    NoPE,
    PositionMethod,
    RandomizedPositions,
    RoPE,
    T5RelativeBias,
)
from abc_toolkit.runs.folder import build_model
from abc_toolkit.tasks import LanguageModel
from abc_toolkit.testing.task_contract import TaskContract
from abc_toolkit.training.data import validation_problems
from tests.tasks.text.conftest import subword_file, written

DOCS = Path(__file__).parents[3] / "docs"
Abc = Callable[..., tuple[int, str, str]]
METHODS = [NoPE(), RoPE(), T5RelativeBias(), ALiBi(), KerpleLog(), FIRE(), CoPE()]
METHODS += [kind(base) for kind in (DAPE, DAPEv2) for base in (ALiBi(), KerpleLog(), FIRE(activation="leaky_relu"))]
TINY = ["--model.num_decoder_layers", "1", "--model.model_dim", "16", "--model.num_heads", "2"]
TINY += ["--model.feedforward_dim", "16", "--model.position", "ALiBi", "--trainer.max_steps", "6"]
TINY += ["--trainer.validate_every", "3", "--data.validation_problems", "8", "--data.batch_size", "4"]
TINY += ["--trainer.accelerator", "cpu", "--trainer.threads", "1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return subword_file(tmp_path_factory.mktemp("subwords") / "words.json", DOCS)


class TestLanguageModel(TaskContract):
    cases = {  # noqa: RUF012
        "bytes": LanguageModel(DOCS, max_length=8, held_out_share=0.4),
        "bytes, one scored": LanguageModel(DOCS, max_length=8, scored=1, held_out_share=0.4),
        "a single file": LanguageModel(DOCS / "method.md", max_length=8, held_out_share=0.2),
        "subwords": LanguageModel(DOCS, DOCS / "method.md", 8, vocabulary=Path("made")),
    }

    @pytest.fixture
    def task(self, case: LanguageModel, made: Path) -> LanguageModel:
        return case if case.vocabulary is None else replace(case, vocabulary=made)


@pytest.fixture
def task(text: Path) -> LanguageModel:
    return LanguageModel(text, max_length=16, held_out_share=0.4)


def test_training_windows_are_of_the_training_text(task: LanguageModel, generator: torch.Generator) -> None:
    batch = task.sample(generator, 50, (16,))
    whole = bytes(task.corpus.training.tolist())
    for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        assert bytes([*inputs, targets[-1]]) in whole
        assert inputs[1:] == targets[:-1]
    assert batch.counted is None
    # Every window can be drawn, the first and the last included.
    short = replace(task, max_length=len(whole) - 2)
    starts = {tuple(row[:3]) for row in short.sample(generator, 40, (len(whole) - 2,)).inputs.tolist()}
    assert len(starts) == 2


def test_blocks_partition_the_end_of_the_held_out_text(task: LanguageModel) -> None:
    tokens = task.corpus.held_out
    number = task.num_listed((16,), "held_out")
    before_first = min(64 * 16, len(tokens) // 2)
    assert number == (len(tokens) - before_first) // 4
    for length in (1, 3, 16, 100, before_first):
        batch = task.listed(torch.arange(number).flip(0), (length,), "held_out")
        assert batch.counted is not None
        assert batch.counted.sum(dim=1).eq(min(4, length)).all()
        scored = batch.targets[batch.counted]
        if length >= 4:
            assert torch.equal(scored, tokens[before_first : before_first + 4 * number].long())
        assert task.num_listed((length,), "held_out") == number
        assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])


def test_longer_windows_keep_the_numbers_of_blocks(task: LanguageModel) -> None:
    tokens, short = len(task.corpus.held_out), task.num_listed((16,), "held_out")
    before_first = min(64 * 16, tokens // 2)
    most = before_first + short * 4 - 1
    for length in (before_first + 3, before_first + 4, before_first + 50, most - 1, most):
        number = task.num_listed((length,), "held_out")
        # As many as have room for the context, by counting.
        ends = [before_first + 4 * (short - block) for block in range(short)]
        assert number == sum(end >= length + 1 for end in ends)
        batch = task.listed(torch.arange(number), (length,), "held_out")
        assert torch.equal(batch.targets[:, -4:], task.listed(torch.arange(number), (16,), "held_out").targets[:, -4:])
    for length in (most + 1, tokens, 10**9):
        with pytest.raises(UserError, match=rf"length {length:,}: .* holds {tokens:,} tokens: .* at most {most:,}$"):
            task.evaluation_shapes(length, "held_out", torch.Generator())


def test_an_evaluation_scores_the_same_blocks_at_every_length(
    task: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = task.num_listed((16,), "held_out")
    monkeypatch.setattr("abc_toolkit.phases.measure._TOKENS_DRAWN", 16 * 7)  # several pieces
    scored = {}
    for length in (16, 32, 128):
        pieces = list(evaluation_problems(task, length, "held_out", number, 0))
        assert len(pieces) > 1
        scored[length] = torch.cat([piece.targets[:, -4:] for piece in pieces])
    assert torch.equal(scored[16], scored[32])
    assert torch.equal(scored[16], scored[128])
    every = task.listed(torch.arange(number), (16,), "held_out").targets[:, -4:]
    assert sorted(scored[16].tolist()) == sorted(every.tolist())  # none twice, none left out
    assert not torch.equal(scored[16][:20], next(evaluation_problems(task, 16, "held_out", 20, 1)).targets[:20, -4:])
    with pytest.raises(UserError, match=rf"--samples {number + 1}: there are {number:,} problems of length 16"):
        list(evaluation_problems(task, 16, "held_out", number + 1, 0))


def test_validation_is_of_the_held_out_text(task: LanguageModel) -> None:
    (batch,) = validation_problems(task, 0, 10)
    assert len(batch) == 10
    for row in batch.inputs.tolist():
        assert bytes(row) in bytes(task.corpus.held_out.tolist())
    assert sum(map(len, validation_problems(task, 0, 10**6))) == task.num_listed((16,), "held_out")


def test_evaluation_is_causal(task: LanguageModel) -> None:
    """What is scored does not depend on later tokens, and so not on the rest of its block."""
    torch.manual_seed(0)
    model = build_model(task, Architecture(model_dim=16, num_heads=2, feedforward_dim=16).for_task(False), None).eval()
    batch = task.listed(torch.arange(3), (16,), "held_out")
    with torch.no_grad():
        outputs = predict(model, batch, task.layout((16,)))
        batch.inputs[:, -1] = 7
        assert torch.equal(outputs[:, :-1], predict(model, batch, task.layout((16,)))[:, :-1])


def test_perplexity_of_a_uniform_guess_is_the_vocabulary(task: LanguageModel) -> None:
    batch = task.sample(torch.Generator(), 6, (16,), "held_out")
    values = task.objective.measured(torch.zeros(6, 16, 256), batch)["perplexity"]
    assert torch.allclose(values.exp(), torch.tensor(256.0))
    (metric,) = task.objective.metrics
    assert metric.summary(float(values.sum()), float((values**2).sum()), 6)[0] == pytest.approx(256)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"max_length": 0}, "max_length 0"),
        ({"scored": 0}, "scored 0: give at least 1"),
        ({"max_length": 8, "scored": 9}, "scored 9: .* at most the max_length, 8"),
        ({"held_out_share": 0.0}, "held_out_share 0"),
        ({"held_out_share": 1.0}, "held_out_share 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        LanguageModel(Path("nowhere"), **settings)


def test_nothing_is_read_before_it_is_needed() -> None:
    task = LanguageModel(Path("nowhere"))
    assert (task.interface.num_tokens, task.interface.num_outputs) == (256, 256)
    assert task.training_shapes() == ((128,),)
    with pytest.raises(UserError, match="there is no text at nowhere"):
        task.sample(torch.Generator(), 1, (128,))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_every_position_method_of_the_study_learns_and_is_evaluated(
    method: PositionMethod, task: LanguageModel, generator: torch.Generator
) -> None:
    torch.manual_seed(0)
    sizes = Architecture(num_decoder_layers=2, model_dim=16, num_heads=2, feedforward_dim=16, position=method)
    model = build_model(task, sizes.for_task(decoded=False), None)
    batch, optimizer = task.sample(generator, 4, (16,)), torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(6):
        loss = task.objective.loss(predict(model, batch, task.layout((16,))), batch)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert all(parameter.grad is not None for parameter in model.positioning.parameters())
    model.eval()
    for length in (16, 256):
        (batch,) = evaluation_problems(task, length, "held_out", 3, 0)
        total = Total(task)
        total.add(model, batch, task.layout((length,)), "parallel")
        ((metric, (value, low, high)),) = total.summaries()
        assert (metric.name, total.samples) == ("perplexity", 3)
        assert 1 < low <= value <= high < math.inf


def test_what_a_method_holds_for_each_pair_is_counted(task: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of DAPE fewer windows go through the model at once, by the hidden channels beside the heads."""
    sizes = Architecture(model_dim=16, num_heads=2, feedforward_dim=16, position=ALiBi()).for_task(decoded=False)
    plain = build_model(task, sizes, None)
    nested = (DAPE(ALiBi(), width=6), RandomizedPositions(DAPEv2(ALiBi(), width=6)), Compose((DAPE(width=6), ALiBi())))
    assert plain.numbers_a_pair == 2
    batch = task.listed(torch.arange(32), (16,), "held_out")
    monkeypatch.setattr("abc_toolkit.models.decoding._CELLS", 16**2 * 32)
    assert [len(piece) for piece in pieces(plain, batch)] == [16, 16]
    for method in nested:
        model = build_model(task, replace(sizes, position=method), None)
        assert model.numbers_a_pair == 8
        assert [len(piece) for piece in pieces(model, batch)] == [4] * 8


def test_a_length_beyond_memory_is_refused(task: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("abc_toolkit.models.memory.memory_of", lambda device: 2**27)
    sizes = Architecture(model_dim=16, num_heads=2, feedforward_dim=16, position=ALiBi()).for_task(decoded=False)
    check_memory(task, build_model(task, sizes, None), (2000,), torch.device("cpu"))
    model = build_model(task, replace(sizes, position=DAPE(ALiBi())), None)
    with pytest.raises(UserError, match=r"length 2,000: one problem takes about .* choose a shorter one"):
        check_memory(task, model, (2000,), torch.device("cpu"))


@pytest.mark.parametrize("base", ["ALiBi", "KerpleLog", "FIRE"])
@pytest.mark.parametrize("kind", ["DAPE", "DAPEv2"])
def test_a_method_over_another_is_named_by_two_options(kind: str, base: str, abc: Abc) -> None:
    words = ["--model.position", kind, "--model.position.base", base]
    status, out, err = abc("fit", "--config", "text/language_model", *words, "--print_config")
    assert status == 0, err
    position = yaml.safe_load(out)["model"]["position"]
    assert position["class_path"].endswith(f".{kind}")
    assert position["init_args"]["base"]["class_path"].endswith(f".{base}")


def refused(abc: Abc, *words: str) -> str:
    status, out, err = abc(*words)
    assert (status, out, len(err.splitlines())) == (2, "", 1), (status, out, err)
    return err


def test_fit_evaluate_and_resume(abc: Abc, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    chosen = ["--task", "LanguageModel", "--task.path", "text", "--task.max_length", "16", *TINY, "--run", "run"]
    chosen += ["--task.held_out_share", "0.4"]
    status, _, err = abc("fit", *chosen)
    assert status == 0, err
    record = json.loads(Path("run/fit/record.json").read_text())
    assert list(record["data_files"]) == ["text"]
    status, _, err = abc("evaluate", "--run", "run", "--length", "1x,2x,8x", "--samples", "40")
    assert status == 0, err
    rows = json.loads(Path("run/evaluate/results.json").read_text())
    assert [(row["length"], row["metric"], row["samples"], row["suite"]) for row in rows] == [
        (length, "perplexity", 40, "held_out") for length in (16, 32, 128)
    ]
    assert all(1 < row["low"] < row["value"] < row["high"] < 400 for row in rows)
    assert Path("run/evaluate/perplexity.png").exists()
    kept = Path("run/evaluate/record.json").read_bytes()

    # Bad requests leave everything as it was.
    over = ["--run", "run", "--overwrite"]
    assert "holds" in refused(abc, "evaluate", *over, "--length", "100000")
    assert "--samples 100000: there are" in refused(abc, "evaluate", *over, "--length", "1x", "--samples", "100000")
    assert "no problems of shape 3x200" in refused(abc, "evaluate", *over, "--length", "3x200")
    assert "names no evaluation set" in refused(abc, "evaluate", *over, "--sets", "uniform")
    refused(abc, "calibrate", "--run", "run")
    assert "there is nothing to resume" not in refused(abc, "fit", *chosen)
    status, _, err = abc("fit", *chosen, "--trainer.max_steps", "8", "--resume")
    assert status == 0, err
    assert json.loads(Path("run/fit/record.json").read_text())["results"]["steps"] == 8

    # Another text behind the path, then none.
    file = text / "0.txt"
    before = file.read_bytes()
    file.write_bytes(before[:-1] + b"x")
    changed = "the content of text is not what 'fit' in run was trained on"
    assert changed in refused(abc, "evaluate", "--run", "run", "--overwrite")
    assert changed in refused(abc, "fit", *chosen, "--trainer.max_steps", "9", "--resume")
    text.rename(tmp_path / "moved")
    assert "there is no text at text" in refused(abc, "evaluate", "--run", "run", "--overwrite")
    (tmp_path / "moved").rename(text)
    file.write_bytes(before)
    assert Path("run/evaluate/record.json").read_bytes() == kept
    assert sorted(path.name for path in Path("run").iterdir()) == ["evaluate", "fit"]


def test_bad_data_leaves_no_run(abc: Abc, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    Path("words.json").write_text("{}")
    for words, reason in (
        (["--task.path", "nowhere"], "there is no text at nowhere: .*apt-get install"),
        (["--task.path", "empty"], "empty holds no text"),
        (["--task.path", "text", "--task.held_out_path", "nowhere"], "there is no text at nowhere"),
        (["--task.path", "text", "--task.vocabulary", "words.json"], "words.json is no subword file"),
        (["--task.path", "text", "--task.vocabulary", "nowhere.json"], "there is no subword file nowhere.json"),
        (["--task.path", "text", "--task.max_length", "100000"], "length 100,000: the text held out of text holds"),
    ):
        message = refused(abc, "fit", "--task", "LanguageModel", *words, *TINY, "--run", "run")
        assert re.search(reason, message), message
        assert not Path("run").exists()
    assert "missing: path" in refused(abc, "fit", "--task", "LanguageModel", *TINY)


def test_another_subword_file_is_noticed(abc: Abc, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    subword_file(Path("words.json"), text)
    chosen = ["--task", "LanguageModel", "--task.path", "text", "--task.max_length", "16", *TINY, "--run", "run"]
    status, _, err = abc("fit", *chosen, "--task.vocabulary", "words.json", "--task.held_out_share", "0.4")
    assert status == 0, err
    assert abc("evaluate", "--run", "run", "--length", "2x", "--samples", "10")[0] == 0
    subword_file(Path("words.json"), written(tmp_path / "other", seed=3), size=60)
    message = refused(abc, "evaluate", "--run", "run", "--overwrite")
    assert "the content of words.json is not what 'fit' in run was trained on" in message


def test_untrained_perplexity_is_near_that_of_a_guess(task: LanguageModel) -> None:
    torch.manual_seed(0)
    model = build_model(task, Architecture(model_dim=16, num_heads=2, feedforward_dim=16).for_task(False), None).eval()
    batch = task.sample(torch.Generator(), 20, (64,), "held_out")
    with torch.no_grad():
        loss = task.objective.loss(predict(model, batch, task.layout((64,))), batch)
    assert math.log(256) - 0.5 < loss.item() < math.log(256) + 2
