"""Positions that are drawn at random, for any position method that counts tokens."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from abc_toolkit.errors import UserError, check_numbers
from abc_toolkit.layout import Layout, Positions
from abc_toolkit.positions.absolute import Learned
from abc_toolkit.positions.base import (
    AttentionPosition,
    ModelPosition,
    ModelSizes,
    PositionMethod,
    Site,
    check_methods,
)

_DRAWN = {"raw": "drawn raw", "raw_from_end": "drawn raw_from_end"}


@dataclass(frozen=True)
class RandomizedPositions(PositionMethod):
    """Another position method, with random increasing numbers in place of the tokens' numbers in their string.

    For a string of `n` tokens, `n` of the numbers 0 .. `capacity - 1` are drawn without replacement and sorted. The
    `i`-th number is the `raw` of the `i`-th token; the last number minus it is its `raw_from_end`. Source and target
    have draws of their own, one a batch, in training and in evaluation. An evaluation draws for every few problems
    again, as its seed determines: a single draw would not measure a model. Source: Ruoss et al. 2023 (arXiv
    2305.16843), section 3, whose released code draws for each attention layer.

    Other coordinates that the inner method reads are the layout's own, and so are all coordinates of a window around
    this method. A string of more than `capacity` tokens is refused. Up to that length every number occurs in training.
    Sites, pointwise or not, and parameters are those of the inner method. In cross-attention, query and key have the
    numbers of different draws.

    Attributes:
        inner: The position method; its `coordinate` should be `raw`.
        capacity: How many numbers there are to draw from, the paper's L: at least the length of the longest string.
    """

    inner: PositionMethod
    capacity: int = 2048

    def __post_init__(self) -> None:
        check_methods(self, [self.inner])
        check_numbers(self, "model.position", ("capacity",), at_least=1)

    def build(self, sizes: ModelSizes) -> ModelPosition:
        return _RandomizedModel(self, sizes)


class _RandomizedModel(ModelPosition):
    """`RandomizedPositions` in one model."""

    method: RandomizedPositions
    draws = True
    makes = tuple(_DRAWN.values())

    def __init__(self, method: RandomizedPositions, sizes: ModelSizes) -> None:
        super().__init__(method, sizes)
        self.inner = method.inner.build(sizes)
        self.check_apart()
        for part in (module.method for module in self.inner.modules() if isinstance(module, ModelPosition)):
            # The check comes before training, not at the first number for which `Learned` has no vector.
            if isinstance(part, Learned) and part.coordinate in _DRAWN and part.capacity < method.capacity:
                raise UserError(
                    f"RandomizedPositions draws from {method.capacity} numbers and Learned has a capacity of "
                    f"{part.capacity}: raise the capacity"
                )

    def prepare(self, layout: Layout) -> Layout:
        source, target = self._draw(len(layout.source)), self._draw(len(layout.target))
        own = (layout.source, layout.target, layout.prefix)
        # The decoder's keys are the tokens one before its queries, so both count in the same way.
        drawn = (_numbered(positions, raw) for positions, raw in zip(own, (source, target, target), strict=True))
        inner = self.inner.prepare(Layout(*drawn))
        prepared = zip(own, (inner.source, inner.target, inner.prefix), strict=True)
        return Layout(*(_beside(positions, drawn) for positions, drawn in prepared))

    def embed(self, x: Tensor, positions: Positions) -> Tensor:
        return self.inner.embed(x, _drawn(positions))

    def at(self, site: Site, layer: int) -> AttentionPosition:
        inner = self.inner.at(site, layer)
        if inner.why_not_gathered() is None:
            raise UserError(
                f"RandomizedPositions: {type(self.method.inner).__name__} opens keys by their distance, which drawn "
                "numbers do not keep: put it beside this method in a Compose"
            )
        return inner if inner.does_nothing else RandomizedAttention(inner)

    def _draw(self, length: int) -> Tensor:
        """Increasing numbers for the tokens of a string."""
        capacity = self.method.capacity
        if length > capacity:
            raise UserError(
                f"RandomizedPositions: position {length - 1} is beyond the capacity of {capacity}: raise capacity"
            )
        return torch.randperm(capacity)[:length].sort().values


class RandomizedAttention(nn.Module, AttentionPosition):
    """`RandomizedPositions` in one site and layer: the inner method's hooks with the drawn numbers.

    Args:
        inner: The hooks of the inner method.
    """

    def __init__(self, inner: AttentionPosition) -> None:
        super().__init__()
        self.inner = inner
        self.pointwise = inner.pointwise
        self.transforms = inner.transforms
        self.numbers_a_pair = inner.numbers_a_pair

    @property
    def rotates(self) -> bool:
        return self.inner.rotates

    def rotate(self, q: Tensor, k: Tensor, q_positions: Positions, k_positions: Positions) -> tuple[Tensor, Tensor]:
        return self.inner.rotate(q, k, _drawn(q_positions), _drawn(k_positions))

    def bias(self, q_positions: Positions, k_positions: Positions) -> Tensor | None:
        return self.inner.bias(_drawn(q_positions), _drawn(k_positions))

    def transform(
        self,
        scores: Tensor,
        q: Tensor,
        k: Tensor,
        q_positions: Positions,
        k_positions: Positions,
        mask: Tensor | None = None,
    ) -> Tensor:
        return self.inner.transform(scores, q, k, _drawn(q_positions), _drawn(k_positions), mask)


class _Drawn(Mapping[str, Tensor]):
    """Coordinates with the drawn numbers in place of the layout's own; each is looked up when it is read."""

    def __init__(self, coordinates: Mapping[str, Tensor]) -> None:
        self._all = coordinates

    def __getitem__(self, name: str) -> Tensor:
        return self._all[_DRAWN.get(name, name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)


def _drawn(positions: Positions) -> Positions:
    """Positions as the inner method reads them."""
    return Positions(positions.names, _Drawn(positions.coordinates))


def _numbered(positions: Positions, raw: Tensor) -> Positions:
    """Positions with drawn numbers."""
    raw = raw.to(positions.segment.device)
    return positions.beside({"raw": raw, "raw_from_end": raw[-1] - raw})


def _beside(positions: Positions, inner: Positions) -> Positions:
    """Positions with their own numbers, which masks and windows read, and with those that the inner method prepared."""
    drawn = {name: inner.coordinates[counted] for counted, name in _DRAWN.items()}
    kept = {name: positions.coordinates[name] for name in _DRAWN}
    together = dict(inner.coordinates) | drawn | kept
    return Positions(positions.names, together, inner.own | positions.own, positions.present)
