"""A model's weights as the tensors of a file. A shared tensor is stored once."""

from collections.abc import Mapping, Sequence

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from abc_toolkit.errors import UserError
from abc_toolkit.models.base import Model


def check_savable(model: Model) -> None:
    """Checks that a file can hold a model.

    Raises:
        UserError: If part of its state is not a dense tensor of real numbers.
    """
    for name, part in model.state_dict(keep_vars=True).items():
        if not isinstance(part, Tensor) or part.layout != torch.strided or part.is_quantized or part.is_complex():
            raise UserError(f"{name} of the model is no dense tensor of real numbers: a run cannot save such a model")


def tensors_of(model: Model) -> dict[str, Tensor]:
    """The weights by name, on the CPU. A tensor that several modules share has its first name only."""
    return {names[0]: tensor.detach().to("cpu", copy=True) for tensor, names in _named(model)}


def fill(model: Model, tensors: Mapping[str, Tensor]) -> None:
    """Loads weights that `tensors_of` returned for a model of the same architecture.

    Raises:
        ValueError: If they are of another kind of model; the message names the differences.
    """
    check_fit(model, tensors)
    model.load_state_dict({name: tensors[names[0]] for _, names in _named(model) for name in names})


def check_fit(model: Model, tensors: Mapping[str, Tensor]) -> None:
    """Checks that weights are those of a model, which may be on the device `meta`: by name, shape and type.

    Raises:
        ValueError: If they are of another kind of model; the message names the differences.
    """
    named = _named(model)
    own = {names[0]: tensor for tensor, names in named}
    faults: list[str] = []
    if missing := [name for name in own if name not in tensors]:
        faults.append(f"it lacks {_listed(missing)}")
    if others := [name for name in tensors if name not in own]:
        faults.append(f"it has {_listed(others)}, which the model has not")
    for name in own:
        if name in tensors and (tensors[name].shape, tensors[name].dtype) != (own[name].shape, own[name].dtype):
            faults.append(f"{name} is {_form(tensors[name])} and must be {_form(own[name])}")
            break  # the others mostly differ in the same way
    if faults:
        raise ValueError("; ".join(faults))


def parse(content: bytes) -> dict[str, Tensor]:
    """The tensors in the content of a file.

    Raises:
        ValueError: If it is no such file; the message is one line.
    """
    try:
        return load(content)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def _named(model: Model) -> list[tuple[Tensor, list[str]]]:
    """Each tensor of a model's state, with all its names."""
    found: dict[int, tuple[Tensor, list[str]]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        found.setdefault(id(tensor), (tensor, []))[1].append(name)
    return list(found.values())


def _listed(names: Sequence[str]) -> str:
    few = ", ".join(map(repr, names[:3]))
    return few if len(names) <= 3 else f"{few} and {len(names) - 3} more"


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
