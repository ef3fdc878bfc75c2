"""Tasks of other kinds than digit strings, from the outside.

They are classes after pooling, a layout for each problem, and a class of functions learned in context.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

import abc_toolkit
from abc_toolkit.errors import UserError
from abc_toolkit.layout import Layout, stream_layout
from abc_toolkit.models.base import Architecture, Backbone, predict
from abc_toolkit.models.transformer import DecoderOnly, EncoderDecoder, EncoderOnly
from abc_toolkit.positions import Sinusoidal
from abc_toolkit.tasks.base import TRAINING, Batch, Interface, Task
from abc_toolkit.tasks.functions.base import BooleanTask, drawn_subsets
from abc_toolkit.tasks.lengths import Shape
from abc_toolkit.tasks.objective import Objective, Stopping, TokenCrossEntropy
from abc_toolkit.testing.task_contract import TaskContract
from abc_toolkit.training.data import Data
from abc_toolkit.training.loop import TrainerSettings
from abc_toolkit.training.module import Optimizer


@dataclass(frozen=True)
class First(Task):
    """Whether a string of bits begins with a 1: one class for a whole input."""

    max_length: int = 4

    @property
    def interface(self) -> Interface:
        return Interface(num_outputs=2, num_tokens=2, pooled=True)

    @property
    def objective(self) -> Objective:
        return TokenCrossEntropy()

    def training_shapes(self) -> tuple[Shape, ...]:
        return tuple((n,) for n in range(1, self.max_length + 1))

    def evaluation_shapes(self, length: int, suite: str, generator: Generator) -> tuple[Shape, ...]:
        return ((length,),)

    def sample(self, generator: Generator, batch: int, shape: Shape, suite: str = TRAINING) -> Batch:
        bits = torch.randint(0, 2, (batch, *shape), generator=generator)
        return Batch(shape, bits, bits[:, :1].clone())

    def num_tokens(self, shape: Shape) -> tuple[int, int]:
        return shape[0], 0

    def layout(self, shape: Shape) -> Layout:
        return LAYOUTS.setdefault(shape[0], in_order(torch.arange(shape[0])))


@dataclass(frozen=True)
class Shuffled(First):
    """Whether each token's place, which differs from problem to problem, is an even one."""

    @property
    def interface(self) -> Interface:
        return Interface(num_outputs=2, num_tokens=2)

    def sample(self, generator: Generator, batch: int, shape: Shape, suite: str = TRAINING) -> Batch:
        places = torch.rand(batch, *shape, generator=generator).argsort(dim=1)
        tokens = torch.randint(0, 2, (batch, *shape), generator=generator)
        own = {"place": places, "index": shape[0] - 1 - places}
        return Batch(
            shape, tokens, places % 2, layout=stream_layout(("bits",), torch.zeros(shape, dtype=torch.long), {}, own)
        )


LAYOUTS: dict[int, Layout] = {}


def in_order(places: torch.Tensor) -> Layout:
    """A layout of one segment with these places."""
    return stream_layout(("bits",), torch.zeros_like(places), {"place": places, "index": len(places) - 1 - places})


@dataclass(frozen=True)
class Dictator(BooleanTask):
    """One coordinate decides: all that a class of functions has to say."""

    def draw_function(self, generator: Generator, batch: int) -> Tensor:
        return drawn_subsets(generator, batch, self.dim, 1)

    def labels(self, function: Tensor, points: Tensor) -> Tensor:
        return (points @ function[..., None])[..., 0]


class TestDictator(TaskContract):
    cases = {"small": Dictator(max_length=6, dim=3), "marked": Dictator(max_length=4, dim=2, marked=True)}  # noqa: RUF012


class TestForeignTasks(TaskContract):
    cases = {"classes": First(), "own layouts": Shuffled()}  # noqa: RUF012


ENCODER = Architecture(num_encoder_layers=1, model_dim=16, num_heads=2, feedforward_dim=16, backbone="encoder-only")
CASES: dict[str, tuple[Task, Architecture]] = {
    "encoder-only, pooled": (First(), ENCODER),
    "decoder-only, pooled": (First(), Architecture(model_dim=16, num_heads=2, feedforward_dim=16)),
    "mamba, pooled": (First(), Architecture(model_dim=16, num_heads=2, backbone="mamba")),
    "own layouts": (Shuffled(), Architecture(model_dim=16, num_heads=2, position=Sinusoidal(("place",), base=10.0))),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_learned_and_evaluated(name: str, tmp_path: Path) -> None:
    task, sizes = CASES[name]
    fitted = abc_toolkit.fit(
        task,
        run=tmp_path / "run",
        model=sizes,
        data=Data(batch_size=32, validation_problems=64),
        optimizer=Optimizer(learning_rate=0.01, warmup_steps=10, averaging=0.9),
        stopping=Stopping(exact_match=1.0, loss=0.2),
        trainer=TrainerSettings(max_steps=600, validate_every=50, accelerator="cpu"),
    )
    assert fitted.trained.reached
    assert fitted.trained.metrics == {"exact_match": 1.0}
    rows = abc_toolkit.evaluate(run=tmp_path / "run", length="1x", samples=20).rows
    assert [(row.metric, row.value, row.weights, row.suite) for row in rows] == [("exact_match", 1.0, "fit", "uniform")]
    record: dict[str, Any] = json.loads((tmp_path / "run" / "fit" / "record.json").read_text(encoding="utf-8"))
    assert record["model"]["backbone"] == (sizes.backbone or "decoder-only")


def test_each_problem_is_read_under_its_own_layout(generator: Generator) -> None:
    batch = Shuffled().sample(generator, 6, (4,))
    assert batch.layout is not None
    torch.manual_seed(0)
    model = DecoderOnly(Shuffled().interface, Architecture(model_dim=8, num_heads=2)).eval()
    whole = predict(model, batch, Shuffled().layout((4,)))
    for number, places in enumerate(batch.layout.source.coordinates["place"]):
        row = batch[number : number + 1]
        torch.testing.assert_close(model(row.inputs, None, in_order(places)), whole[number : number + 1])
        torch.testing.assert_close(predict(model, row, Shuffled().layout((4,))), whole[number : number + 1])
    assert not torch.allclose(predict(model, Batch((4,), batch.inputs, batch.targets), in_order(places)), whole)


@pytest.mark.parametrize(
    ("model", "interface", "said"),
    [
        (EncoderDecoder, First().interface, "encoder-decoder needs a target to decode"),
        (EncoderOnly, Interface.token_streams(4), "encoder-only decodes no target"),
    ],
)
def test_backbones_that_cannot_serve_a_task_are_refused(model: Any, interface: Interface, said: str) -> None:
    with pytest.raises(UserError, match=said):
        model(interface, ENCODER)


@pytest.mark.parametrize("backbone", ["encoder-only", "decoder-only", "mamba"])
def test_backbones_need_their_own_layers(backbone: Backbone) -> None:
    with pytest.raises(UserError, match="num_encoder_layers"):
        Architecture(num_encoder_layers=0 if backbone == "encoder-only" else 1, backbone=backbone)
