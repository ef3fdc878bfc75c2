"""What a training or a matrix takes of memory, reckoned before any of it is taken."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch

from abc_toolkit.errors import UserError
from abc_toolkit.models.base import Architecture
from abc_toolkit.models.memory import memory_of
from abc_toolkit.tasks import Task
from abc_toolkit.training.data import Data

_FLOAT = 4  # bytes
_COPIES = 5  # of each parameter: itself, its gradient, two moments, its average
_LAYERS = 1024  # each takes hundredths of a second to be made, and thousandths at every step, however small
_SHAPE = 200  # bytes of a training shape
_KEPT = 6  # streams of a layer that wait for the gradient, at the least
_STATES = 16  # of each channel of a Mamba block


def check_training_memory(task: Task, architecture: Architecture, data: Data, accelerator: str) -> None:
    """Refuses a training that does not fit into memory, before a model or a problem is made. What passes may still not.

    Args:
        task: What is learned.
        architecture: The model.
        data: Batches and held-out problems.
        accelerator: Where it is trained.

    Raises:
        UserError: With the estimate.
    """
    architecture = architecture.for_task(task.interface.decoded)
    layers = architecture.num_encoder_layers + architecture.num_decoder_layers
    if layers > _LAYERS:
        raise UserError(f"--model.num_decoder_layers: a model has at most {_LAYERS:,} layers, and this has {layers:,}")
    here = torch.device("cpu")
    there = torch.device("cuda") if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available() else here
    parts = {
        "the model (--model)": (_model(task, architecture), there),
        "a batch of the longest problems (--data.batch_size, --task)": (_batch(task, architecture, data), there),
        "the list of all training shapes (--task)": (_SHAPE * task.max_length ** min(2, len(_shape(task))), here),
    }
    for what, (needed, where) in parts.items():
        check_fits(needed, what, where)
    check_held_out(task, data.validation_problems, "--data.validation_problems")


def check_held_out(task: Task, count: int, option: str) -> None:
    """Refuses more held-out problems than fit into memory.

    Raises:
        UserError: With the estimate.
    """
    what = f"{count:,} held-out problems ({option})"
    check_fits(16 * count * sum(_longest(task)), what, torch.device("cpu"))


def check_fits(needed: float, what: str, device: torch.device) -> None:
    """Refuses what does not fit into a device's memory.

    Raises:
        UserError: With the estimate.
    """
    available = memory_of(device)
    if needed > available:
        size = f"{math.ceil(needed / 2**30):,}" if needed < 2**60 else f"{needed / 2**30:.0e}"
        raise UserError(f"{what} would take about {size} GiB and there are {available / 2**30:.1f} GiB: choose less")


def _shape(task: Task) -> tuple[int, ...]:
    return task.evaluation_shapes(task.max_length, task.suites[0], torch.Generator().manual_seed(0))[0]


def _longest(task: Task) -> tuple[int, int]:
    """Tokens of source and target of the longest problems that are trained on."""
    return task.num_tokens(_shape(task))


def _model(task: Task, sizes: Architecture) -> float:
    """Bytes of a model's parameters and of all that goes with them."""
    dim, hidden = sizes.model_dim, sizes.feedforward_dim
    interface = task.interface
    adapters = dim * (interface.num_tokens + interface.input_dim + interface.num_outputs)
    attentions = sizes.num_encoder_layers + sizes.num_decoder_layers * (2 if sizes.kind == "encoder-decoder" else 1)
    layers = sizes.num_encoder_layers + sizes.num_decoder_layers
    parameters = adapters + 4 * dim**2 * attentions + 2 * dim * hidden * layers
    if sizes.kind == "mamba":
        parameters = adapters + 6 * dim**2 * layers
    rows = sum(_whole_numbers(sizes.position))  # a method learns, at the most, a row of the width for each
    return _FLOAT * _COPIES * (parameters + dim * rows)


def _whole_numbers(value: Any) -> list[int]:
    """The whole numbers among the settings of a position method, and of those that it is made of."""
    if isinstance(value, bool):
        return []
    if isinstance(value, int):
        return [value]
    if isinstance(value, list | tuple):
        return [number for item in value for number in _whole_numbers(item)]
    if isinstance(value, Mapping):
        return _whole_numbers(list(value.values()))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _whole_numbers([getattr(value, field.name) for field in dataclasses.fields(value)])
    return []


def _batch(task: Task, sizes: Architecture, data: Data) -> float:
    """Bytes of what waits for the gradient of a batch of the longest problems, and of the batch."""
    source, target = _longest(task)
    encoded, decoded = source * sizes.num_encoder_layers, target * sizes.num_decoder_layers
    cells = source * encoded + (source + target) * decoded
    if sizes.kind != "encoder-decoder":
        decoded = (source + target) * sizes.num_decoder_layers
        cells = (source + target) * decoded
    width = _KEPT * sizes.model_dim + 2 * sizes.feedforward_dim
    if sizes.kind == "mamba":
        cells, width = 0, 2 * _STATES * sizes.model_dim
    logits = (target or source) * task.interface.num_outputs
    return data.batch_size * (
        8 * (source + target)
        + _FLOAT * source * task.interface.input_dim
        + _FLOAT * (cells * sizes.num_heads + (encoded + decoded) * width + logits)
    )
