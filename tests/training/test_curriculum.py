"""Stages of a training: their numbers, the batches that follow them, and a training that is resumed among them."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from abc_toolkit.errors import UserError
from abc_toolkit.models.base import Architecture
from abc_toolkit.phases.training import fit
from abc_toolkit.positions import NoPE
from abc_toolkit.runs.folder import WEIGHTS
from abc_toolkit.tasks import Addition, Conjunction, LinearRegression
from abc_toolkit.tasks.objective import Stopping
from abc_toolkit.training.curriculum import Curriculum
from abc_toolkit.training.data import Data, TrainingBatches
from abc_toolkit.training.loop import TrainerSettings
from abc_toolkit.training.module import Optimizer

GOLDEN = Path(__file__).parent.parent / "golden" / "icl_curriculum.npz"
RELEASED = {
    "dim-20_pts-50": (5, 1, 20, 11, 2, 51),
    "dim-20_pts-100": (5, 1, 20, 11, 5, 101),
    "dim-50_pts-100": (5, 3, 50, 11, 5, 101),
    "dim-50_pts-200": (5, 3, 50, 11, 10, 201),
}
TASK = LinearRegression(max_length=6, dim=4)
SMALL = Curriculum(2, 1, 4, 2, 2, 6, every=4)
SETTINGS: dict[str, Any] = {
    "model": Architecture(model_dim=8, num_heads=2, feedforward_dim=8, position=NoPE()),
    "data": Data(batch_size=4, validation_problems=8),
    "optimizer": Optimizer(warmup_steps=2),
    "stopping": Stopping(decay_steps=3),
    "curriculum": SMALL,
}


@pytest.mark.parametrize("name", RELEASED)
def test_stages_are_those_of_the_released_code(name: str) -> None:
    curriculum = Curriculum(*RELEASED[name])
    with np.load(GOLDEN) as golden:
        for step, dim, points in golden[name].tolist():
            assert curriculum.stage(step) == (dim, points)


def test_batches_follow_the_stages() -> None:
    batches = TrainingBatches(TASK, Data(batch_size=16), 0, lambda: 0, SMALL)
    for step in range(14):
        dim, points = min(2 + step // 4, 4), min(2 + 2 * (step // 4), 6)
        batch = batches.batch(step)
        assert batch.shape == (points,)
        x = batch.inputs[:, 0::2]
        assert not x[..., dim:].any()
        assert x[..., :dim].abs().min() > 0


def test_points_of_bits_have_all_their_channels_at_every_stage() -> None:
    batches = TrainingBatches(Conjunction(max_length=6, dim=4), Data(batch_size=4), 0, lambda: 0, SMALL)
    batch = batches.batch(0)
    assert batch.shape == (2,)
    assert (batch.inputs[:, 0::2].abs() == 1).all()


def test_a_resumed_training_goes_on_in_its_stage(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    trainer = TrainerSettings(max_steps=15, validate_every=5, accelerator="cpu", progress_bar=False)
    fit(TASK, run=whole, trainer=trainer, **SETTINGS)
    fit(TASK, run=parts, trainer=replace(trainer, max_steps=5), **SETTINGS)
    fit(TASK, run=parts, trainer=trainer, resume=True, **SETTINGS)
    assert (whole / "fit" / WEIGHTS).read_bytes() == (parts / "fit" / WEIGHTS).read_bytes()
    found = [json.loads((path / "fit" / "training.json").read_text())["stages"] for path in (whole, parts)]
    assert found[0] == found[1]
    assert [tuple(stage.values()) for stage in found[0]] == [(0, 2, 2), (4, 3, 4), (8, 4, 6)]


def test_a_training_on_a_schedule_has_a_fixed_length(tmp_path: Path) -> None:
    trainer = TrainerSettings(max_steps=5, validate_every=5, accelerator="cpu", progress_bar=False)
    settings = SETTINGS | {"optimizer": Optimizer(warmup_steps=2, schedule="cosine")}
    fit(TASK, run=tmp_path / "run", trainer=trainer, **settings)
    with pytest.raises(UserError, match="steps of the schedule was 5 and is 10"):
        fit(TASK, run=tmp_path / "run", trainer=replace(trainer, max_steps=10), resume=True, **settings)


@pytest.mark.parametrize(
    ("task", "curriculum", "said"),
    [
        (TASK, Curriculum(1, 1, 5, 1, 1, 6), "5 channels and 6 points: linearregression has 4 and 6"),
        (TASK, Curriculum(1, 1, 4, 1, 1, 7), "4 channels and 7 points: linearregression has 4 and 6"),
        (Addition(), SMALL, "addition has no easier stages: 'abc fit --curriculum' is not available for it"),
    ],
)
def test_a_curriculum_that_the_task_cannot_follow_is_refused(
    task: Any, curriculum: Curriculum, said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        fit(task, run=tmp_path / "run", curriculum=curriculum)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((0, 1, 4, 2, 2, 6), "--curriculum.dim_start 0"),
        ((2, -1, 4, 2, 2, 6), "--curriculum.dim_step -1"),
        ((2, 1, 1, 2, 2, 6), "--curriculum.dim_end 1: give at least the start, 2"),
        ((2, 1, 4, 2, 2, 1), "--curriculum.points_end 1: give at least the start, 2"),
    ],
)
def test_numbers_that_make_no_stages_are_refused(values: tuple[int, ...], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        Curriculum(*values)


def test_batches_of_a_step_do_not_depend_on_those_before(generator: torch.Generator) -> None:
    first = TrainingBatches(TASK, Data(batch_size=4), 3, lambda: 0, SMALL)
    second = TrainingBatches(TASK, Data(batch_size=4), 3, lambda: 9, SMALL)
    for _ in range(9):
        next_one = iter(first)
        next(next_one)
    assert torch.equal(first.batch(9).inputs, next(iter(second)).inputs)
