"""Estimates of the memory that problems need, made before any of it is allocated."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from abc_toolkit.errors import UserError
from abc_toolkit.models.base import Model
from abc_toolkit.models.transformer import TransformerModel
from abc_toolkit.tasks import Shape, Task

try:
    import resource
except ImportError:  # on Windows, where a process has no such limits
    resource = None


def check_memory(task: Task, model: Model, shape: Shape, device: torch.device) -> None:
    """Refuses a shape whose problems do not fit into memory one by one. Their number does not matter.

    Raises:
        UserError: With the estimate.
    """
    source, target = task.num_tokens(shape)
    sizes = model.architecture
    # Measured: what problem, layout and streams take a token; then keys and values; then index tables.
    needed = (source + target) * (300 + 8 * sizes.model_dim)
    needed += source * 8 * sizes.model_dim * sizes.num_decoder_layers
    if isinstance(model, TransformerModel) and target:
        needed += target * 40 * sum(_num_slots(task, model, max(shape)))
    elif not target:  # what is not decoded attends densely, as a whole
        needed += 12 * sizes.num_heads * source**2
    available = memory_of(device)
    if needed > available:
        raise UserError(
            f"length {max(shape):,}: one problem takes about {math.ceil(needed / 2**30):,} GiB and there are "
            f"{available / 2**30:.1f} GiB; choose a shorter one"
        )


def _num_slots(task: Task, model: TransformerModel, length: int) -> Iterator[float]:
    """Slots per query, in all heads, of each attention that gathers at a length; extrapolated from short problems."""
    short, longest = max(1, task.max_length // 2), task.max_length
    shapes = [task.evaluation_shapes(n, task.suites[0], torch.Generator())[0] for n in (short, longest)]
    for few, many in zip(*(model.num_slots(task.layout(shape)) for shape in shapes), strict=True):
        growth = max(0, many - few) / max(1, longest - short)
        if growth == 0 or model.path == "gathered":  # else there are too many slots for anything but the dense path
            yield many + growth * max(0, length - longest)


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
