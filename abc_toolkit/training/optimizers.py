"""Optimisers: AdamW, or Muon for the matrices of the layers and AdamW for everything else."""

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import nn
from torch.nn import Parameter

from abc_toolkit.errors import UserError
from abc_toolkit.models.base import Model
from abc_toolkit.positions import AttentionPosition, ModelPosition


class Together(torch.optim.Optimizer):
    """Several optimisers, each of its own parameters, as one.

    Args:
        parts: The optimisers.
    """

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        # The groups are the parts' own, so that a schedule of the rate reaches them.
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def with_muon(
    model: Model, rate: float, weight_decay: float, adamw: Callable[[list[Parameter]], torch.optim.Optimizer]
) -> Together:
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) for the matrices of the layers; AdamW for the rest.

    Args:
        model: The model.
        rate: Learning rate of Muon.
        weight_decay: Decoupled weight decay of Muon.
        adamw: Makes the optimiser of the other parameters.

    Raises:
        UserError: If this version of PyTorch has no Muon.
    """
    if not hasattr(torch.optim, "Muon"):
        raise UserError(
            f"--optimizer.muon_rate needs PyTorch 2.9 or newer, and this is {torch.__version__}: leave it out"
        )
    matrices = list(layer_matrices(model))
    those = {id(matrix) for matrix in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in those]
    return Together(torch.optim.Muon(matrices, lr=rate, weight_decay=weight_decay), adamw(others))


def layer_matrices(model: Model) -> Iterator[Parameter]:
    """The weights of the linear layers of a model, but for those of its read-in, its read-out and position methods."""
    aside = {model.embedding, model.output}
    for part in model.modules():
        if isinstance(part, AttentionPosition | ModelPosition):
            aside |= set(part.modules())
    for part in model.modules():
        if isinstance(part, nn.Linear) and part not in aside:
            yield cast(Parameter, part.weight)
