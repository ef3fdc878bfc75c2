"""Sample problems: answers, and where the model looked."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

import abc_toolkit
from abc_toolkit.models.base import Architecture, Model
from abc_toolkit.phases.samples import sample_problems
from abc_toolkit.runs.folder import Run, build_model
from abc_toolkit.tasks import Addition, Parity, Solvable

SIZES = {"model_dim": 16, "num_heads": 2, "feedforward_dim": 16}


def _models(task: Solvable, **sizes: object) -> Mapping[str, Model]:
    architecture = Architecture(**{**SIZES, **sizes}).for_task(decoded=True)  # type: ignore[arg-type]
    return {"fit": build_model(task, architecture, None).eval()}


def test_answers_are_those_of_solve(pipeline: Path) -> None:
    run = Run(pipeline)
    task = run.task("fit")
    assert isinstance(task, Solvable)
    samples = sample_problems(task, {phase: run.load_model(phase) for phase in ("fit", "retrain")}, 10_000)
    assert [sample.beyond for sample in samples] == [False, False, True, True]
    assert [len(sample.source) for sample in samples] == [3, 3, 6, 6]
    for phase in ("fit", "retrain"):
        solved = abc_toolkit.solve([sample.source for sample in samples], run=pipeline, weights=phase)
        assert [sample.answers[phase].text for sample in samples] == solved
    for sample in samples:
        assert sample.right.text == task.answer(task.solve(sample.source))
        assert sample.right.tokens[:-1] == tuple(task.solve(sample.source))[: len(sample.right.tokens) - 1]
        assert len(sample.answers["fit"].tokens) == len(sample.right.tokens)


@pytest.mark.parametrize("backbone", ["encoder-decoder", "decoder-only"])
def test_attention_is_to_the_problem_and_to_what_is_written(backbone: str) -> None:
    task = Addition(max_length=2)
    samples = sample_problems(task, _models(task, backbone=backbone, num_decoder_layers=2), 10_000)
    for sample in samples:
        num_source, num_target = len(sample.source), len(sample.right.tokens)
        assert set(sample.attention) == {(layer, head) for layer in range(2) for head in range(2)}
        for weights in sample.attention.values():
            assert weights.shape == (num_target, num_source + num_target)
            to_source, to_written = weights.split([num_source, num_target], dim=1)
            assert not to_written.triu(1).any()  # nothing that is yet to be written
            parts = [to_source + 0, to_written] if backbone == "encoder-decoder" else [weights]
            for part in parts:
                torch.testing.assert_close(part.sum(dim=1), torch.ones(num_target))


def test_lengths_follow_the_room_there_is() -> None:
    task = Parity(max_length=20)
    models = _models(task)
    wide, narrow = (sample_problems(task, models, cells) for cells in (40_000, 4 * 2 * 10 * 20))
    assert [len(sample.source) for sample in wide] == [20, 20, 40, 40]
    assert [len(sample.source) for sample in narrow] == [9, 9]  # and none beyond, for which there is no room
    assert sample_problems(task, models, 4) == []


def test_models_without_attention_answer_too() -> None:
    task = Parity(max_length=2)
    samples = sample_problems(task, _models(task, backbone="mamba", num_encoder_layers=0), 10_000)
    assert len(samples) == 4
    assert not any(sample.attention for sample in samples)
