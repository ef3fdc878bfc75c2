"""Position methods: one file a family."""

from abc_toolkit.positions.absolute import Abacus, Cyclic, Learned, NoPE, PositionCoupling, Sinusoidal, Sinusoidal2D
from abc_toolkit.positions.algebraic import AlgebraicPE
from abc_toolkit.positions.base import (
    SITES,
    AttentionPosition,
    ModelPosition,
    ModelSizes,
    OpenKeys,
    PositionMethod,
    Site,
)
from abc_toolkit.positions.biases import FIRE, ALiBi, KerpleLog, T5RelativeBias
from abc_toolkit.positions.compose import Compose
from abc_toolkit.positions.contextual import DAPE, CoPE, DAPEv2
from abc_toolkit.positions.random import RandomizedPositions
from abc_toolkit.positions.relative import ShawRelative, TransformerXLBias
from abc_toolkit.positions.rotary import DynamicYaRN, RoPE, YaRN
from abc_toolkit.positions.trees import TreePE
from abc_toolkit.positions.windowed import WindowedBias

__all__ = [
    "DAPE",
    "FIRE",
    "SITES",
    "ALiBi",
    "Abacus",
    "AlgebraicPE",
    "AttentionPosition",
    "CoPE",
    "Compose",
    "Cyclic",
    "DAPEv2",
    "DynamicYaRN",
    "KerpleLog",
    "Learned",
    "ModelPosition",
    "ModelSizes",
    "NoPE",
    "OpenKeys",
    "PositionCoupling",
    "PositionMethod",
    "RandomizedPositions",
    "RoPE",
    "ShawRelative",
    "Sinusoidal",
    "Sinusoidal2D",
    "Site",
    "T5RelativeBias",
    "TransformerXLBias",
    "TreePE",
    "WindowedBias",
    "YaRN",
]
