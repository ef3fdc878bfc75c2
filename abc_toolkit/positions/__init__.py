"""Position methods: one file a family."""

from abc_toolkit.positions.absolute import Cyclic, NoPE, Sinusoidal
from abc_toolkit.positions.base import (
    SITES,
    AttentionPosition,
    ModelPosition,
    ModelSizes,
    OpenKeys,
    PositionMethod,
    Site,
)

__all__ = [
    "SITES",
    "AttentionPosition",
    "Cyclic",
    "ModelPosition",
    "ModelSizes",
    "NoPE",
    "OpenKeys",
    "PositionMethod",
    "Sinusoidal",
    "Site",
]
