"""What takes how much memory: problems, models, trainings and matrices, estimated before any of it is taken."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import psutil
import torch

from abc_toolkit.errors import UserError
from abc_toolkit.models.base import Architecture, Model
from abc_toolkit.models.transformer import TransformerModel
from abc_toolkit.tasks import Shape, Task

try:
    import resource
except ImportError:  # Windows has no limits for a process
    resource = None

_FLOAT = 4  # bytes
_COPIES = 5  # of each parameter: itself, its gradient, two moments, its average
_LAYERS = 1024  # each takes hundredths of a second to be made, and thousandths at every step, however small
_SHAPE = 200  # bytes of a training shape
_KEPT = 6  # streams of a layer that wait for the gradient, at least
_STATES = 16  # of each channel of a Mamba block


def memory_of(device: torch.device) -> int:
    """Bytes that this process may take on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limits = [psutil.virtual_memory().total]
    if resource is not None:
        limits += [limit for limit in resource.getrlimit(resource.RLIMIT_AS) if limit != resource.RLIM_INFINITY]
    with contextlib.suppress(OSError, ValueError):  # a container's limit, where there is one
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")))
    return min(limits)


def check_fits(needed: float, what: str, device: torch.device) -> None:
    """Refuses what does not fit into a device's memory.

    Args:
        needed: Bytes.
        what: What takes them, as the message names it.
        device: The device.

    Raises:
        UserError: With the estimate.
    """
    available = memory_of(device)
    if needed > available:
        size = f"{math.ceil(needed / 2**30):,}" if needed < 2**60 else f"{needed / 2**30:.0e}"
        raise UserError(f"{what} would take about {size} GiB and there are {available / 2**30:.1f} GiB: choose less")


# Answering a problem.


def check_memory(task: Task, model: Model, shape: Shape, device: torch.device) -> None:
    """Refuses a shape of which a single problem does not fit into memory; any number of problems does.

    Raises:
        UserError: With the estimate.
    """
    source, target = task.num_tokens(shape)
    architecture = model.architecture
    # Measured: problem, layout and streams by token; then keys and values; then index tables.
    needed = (source + target) * (300 + 8 * architecture.model_dim)
    needed += source * 8 * architecture.model_dim * architecture.num_decoder_layers
    if isinstance(model, TransformerModel) and target:
        needed += target * 40 * sum(_num_slots(task, model, max(shape)))
    elif not target:  # what is not decoded attends densely, as a whole
        needed += 12 * model.numbers_a_pair * source**2
    available = memory_of(device)
    if needed > available:
        raise UserError(
            f"length {max(shape):,}: one problem takes about {math.ceil(needed / 2**30):,} GiB and there are "
            f"{available / 2**30:.1f} GiB; choose a shorter one"
        )


def _num_slots(task: Task, model: TransformerModel, length: int) -> Iterator[float]:
    """Slots a query, in all heads, of each attention that gathers at a length; extrapolated from short problems."""
    longest = task.max_length
    short = longest if task.one_length else max(1, longest // 2)
    shapes = [_shape(task, n) for n in (short, longest)]
    for few, many in zip(*(model.num_slots(task.layout(shape)) for shape in shapes), strict=True):
        growth = max(0, many - few) / max(1, longest - short)
        if growth == 0 or model.path == "gathered":  # else there are too many slots for anything but the dense path
            yield many + growth * max(0, length - longest)


# Training a model.


def check_training_memory(
    task: Task, architecture: Architecture, batch_size: int, held_out: int, accelerator: str
) -> None:
    """Refuses a training that does not fit into memory, before a model or a problem is made. What passes may still not.

    Args:
        task: What is learned.
        architecture: The model.
        batch_size: Problems in a batch.
        held_out: Number of held-out problems.
        accelerator: Where the model is trained.

    Raises:
        UserError: With the estimate.
    """
    architecture = architecture.for_task(task.interface.decoded)
    layers = architecture.num_encoder_layers + architecture.num_decoder_layers
    if layers > _LAYERS:
        raise UserError(f"--model.num_decoder_layers: a model has at most {_LAYERS:,} layers, and this has {layers:,}")
    here = torch.device("cpu")
    there = torch.device("cuda") if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available() else here
    numbers = min(2, len(_shape(task, task.max_length)))
    batch = batch_size * _trained_problem_bytes(task, architecture)
    check_fits(_trained_model_bytes(task, architecture), "the model (--model)", there)
    check_fits(batch, "a batch of the longest problems (--data.batch_size, --task)", there)
    check_fits(_SHAPE * task.max_length**numbers, "the list of all training shapes (--task)", here)
    check_held_out(task, held_out, "--data.validation_problems")


def check_held_out(task: Task, count: int, option: str) -> None:
    """Refuses more held-out problems than fit into memory.

    Args:
        task: The task.
        count: The number of problems.
        option: The option that gives it, as the message names it.

    Raises:
        UserError: With the estimate.
    """
    what = f"{count:,} held-out problems ({option})"
    check_fits(16 * count * sum(_longest(task)), what, torch.device("cpu"))


def _shape(task: Task, length: int) -> Shape:
    """A shape of a length."""
    return task.evaluation_shapes(length, task.suites[0], torch.Generator().manual_seed(0))[0]


def _longest(task: Task) -> tuple[int, int]:
    """Tokens of source and target of the longest training problems."""
    return task.num_tokens(_shape(task, task.max_length))


def _trained_model_bytes(task: Task, architecture: Architecture) -> float:
    """Bytes of a model's parameters, with their gradients, moments and averages."""
    dim, hidden = architecture.model_dim, architecture.feedforward_dim
    interface = task.interface
    adapters = dim * (interface.num_tokens + interface.input_dim + interface.num_outputs)
    encoder, decoder = architecture.num_encoder_layers, architecture.num_decoder_layers
    attentions = encoder + decoder * (2 if architecture.kind == "encoder-decoder" else 1)
    matrices = 3 if architecture.block == "llama" else 2  # of a feed-forward block
    parameters = adapters + 4 * dim**2 * attentions + matrices * dim * hidden * (encoder + decoder)
    if architecture.kind == "mamba":
        parameters = adapters + 6 * dim**2 * (encoder + decoder)
    rows = sum(_whole_numbers(architecture.position))  # a method learns at most a row of the width for each
    return _FLOAT * _COPIES * (parameters + dim * rows)


def _whole_numbers(value: Any) -> list[int]:
    """The whole numbers among the settings of a position method and of its parts."""
    if isinstance(value, bool):
        return []
    if isinstance(value, int):
        return [value]
    if isinstance(value, list | tuple):
        return [number for item in cast(Sequence[Any], value) for number in _whole_numbers(item)]
    if isinstance(value, Mapping):
        return _whole_numbers(list(cast(Mapping[Any, Any], value).values()))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _whole_numbers([getattr(value, field.name) for field in dataclasses.fields(value)])
    return []


def _trained_problem_bytes(task: Task, architecture: Architecture) -> float:
    """Bytes of one of the longest training problems, and of the activations that wait for its gradient."""
    source, target = _longest(task)
    encoded, decoded = source * architecture.num_encoder_layers, target * architecture.num_decoder_layers
    cells = source * encoded + (source + target) * decoded
    if architecture.kind != "encoder-decoder":
        decoded = (source + target) * architecture.num_decoder_layers
        cells = (source + target) * decoded
    width = _KEPT * architecture.model_dim + (4 if architecture.block == "llama" else 2) * architecture.feedforward_dim
    if architecture.kind == "mamba":
        cells, width = 0, 2 * _STATES * architecture.model_dim
    logits = (target or source) * task.interface.num_outputs
    tokens = 8 * (source + target) + _FLOAT * source * task.interface.input_dim
    return tokens + _FLOAT * (cells * architecture.num_heads + (encoded + decoded) * width + logits)
