"""Positions drawn at random, for any method that counts."""

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
    """Another method, with a random increasing sequence in place of the tokens' numbers in their string.

    Of `capacity` numbers 0 .. `capacity - 1`, as many as the string has tokens are drawn without replacement and
    sorted; the `i`-th token has the `i`-th of them as its `raw`, and what is left up to the last one as its
    `raw_from_end`. Source and target are drawn apart from one another, once a batch, in evaluation as in training: an
    evaluation draws anew for every few problems, as one draw is no measure of a model, and draws as its seed says.
    Source: Ruoss et al. 2023 (arXiv 2305.16843), section 3, whose released code draws for each attention layer anew.

    Where the inner method reads other coordinates, they are the layout's own, and so are those of a window around this
    method. A string of more than `capacity` tokens is refused; up to there a model meets no number that training has
    not. Sites, what is pointwise and what is shared are the inner method's; in cross-attention the numbers of query
    and key are of two draws. No parameters but the inner method's.

    Attributes:
        inner: The method; it should count in `raw`, as its `coordinate` says.
        capacity: How many numbers are drawn from: the longest string that will ever be met, at least. The paper's L.
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
            # Now rather than at the first draw that it has no vector for, in the midst of training.
            if isinstance(part, Learned) and part.coordinate in _DRAWN and part.capacity < method.capacity:
                raise UserError(
                    f"RandomizedPositions draws from {method.capacity} numbers and Learned has a capacity of "
                    f"{part.capacity}: raise that"
                )

    def prepare(self, layout: Layout) -> Layout:
        source, target = self._draw(len(layout.source)), self._draw(len(layout.target))
        own = (layout.source, layout.target, layout.prefix)
        # A token that the decoder holds is the one before that which it predicts: both strings count alike.
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
                "numbers do not keep: put it beside this method, in a Compose"
            )
        return inner if inner.does_nothing else RandomizedAttention(inner)

    def _draw(self, length: int) -> Tensor:
        """Numbers for a string, increasing."""
        capacity = self.method.capacity
        if length > capacity:
            raise UserError(
                f"RandomizedPositions: position {length - 1} is beyond the capacity of {capacity}: raise capacity"
            )
        return torch.randperm(capacity)[:length].sort().values


class RandomizedAttention(nn.Module, AttentionPosition):
    """`RandomizedPositions` in one site and layer: the inner method's hooks, told the drawn numbers.

    Args:
        inner: The inner method's.
    """

    def __init__(self, inner: AttentionPosition) -> None:
        super().__init__()
        self.inner = inner
        self.pointwise = inner.pointwise
        self.transforms = inner.transforms

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
    """Coordinates with the drawn numbers in place of the layout's own, looked up when they are asked for."""

    def __init__(self, coordinates: Mapping[str, Tensor]) -> None:
        self._all = coordinates

    def __getitem__(self, name: str) -> Tensor:
        return self._all[_DRAWN.get(name, name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)


def _drawn(positions: Positions) -> Positions:
    """Positions as the inner method sees them."""
    return Positions(positions.names, _Drawn(positions.coordinates))


def _numbered(positions: Positions, raw: Tensor) -> Positions:
    """Positions with drawn numbers."""
    raw = raw.to(positions.segment.device)
    return Positions(positions.names, dict(positions.coordinates) | {"raw": raw, "raw_from_end": raw[-1] - raw})


def _beside(positions: Positions, inner: Positions) -> Positions:
    """Positions with their own numbers, for masks and windows, beside those that the inner method prepared."""
    drawn = {name: inner.coordinates[counted] for counted, name in _DRAWN.items()}
    own = {name: positions.coordinates[name] for name in _DRAWN}
    return Positions(positions.names, dict(inner.coordinates) | drawn | own)
