"""A position method inside a window."""

from dataclasses import dataclass
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from abc_toolkit.layout import Layout, Positions
from abc_toolkit.positions import AttentionPosition, ModelPosition, ModelSizes, OpenKeys, PositionMethod, Site
from abc_toolkit.windows.lowering import dense_bias, open_keys
from abc_toolkit.windows.rules import Window

T = TypeVar("T")
_CACHED_CELLS = 2**18  # more than any training shape needs


@dataclass(frozen=True)
class Windowed(PositionMethod):
    """A position method inside a window: the bias is the sum of the method's and the window's, and other keys close.

    Source: attention bias calibration, arXiv 2310.11984, section 5. Any length; every site; pointwise if the inner
    method is.

    Attributes:
        window: The window.
        inner: The position method.
    """

    window: Window
    inner: PositionMethod

    def build(self, sizes: ModelSizes) -> ModelPosition:
        return _WindowedModel(self, sizes)


class _WindowedModel(ModelPosition):
    """`Windowed` in one model."""

    method: Windowed

    def __init__(self, method: Windowed, sizes: ModelSizes) -> None:
        super().__init__(method, sizes)
        self.inner = method.inner.build(sizes)

    def prepare(self, layout: Layout) -> Layout:
        return self.inner.prepare(layout)

    def embed(self, x: Tensor, positions: Positions) -> Tensor:
        return self.inner.embed(x, positions)

    def at(self, site: Site, layer: int) -> AttentionPosition:
        return WindowedAttention(self.method.window, site, layer, self.inner.at(site, layer))


class _Cache(Generic[T]):
    """What a window lowered to for the positions of queries and keys, for as long as these positions exist."""

    def __init__(self) -> None:
        self._by_query: WeakKeyDictionary[Positions, WeakKeyDictionary[Positions, T]] = WeakKeyDictionary()

    def get(self, q_positions: Positions, k_positions: Positions) -> T | None:
        """The value of two positions, or `None` if there is none."""
        by_key = self._by_query.get(q_positions)
        return None if by_key is None else by_key.get(k_positions)

    def put(self, q_positions: Positions, k_positions: Positions, value: T, cells: int) -> None:
        """Keeps a value, unless it has too many cells."""
        if cells <= _CACHED_CELLS:
            self._by_query.setdefault(q_positions, WeakKeyDictionary())[k_positions] = value

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _Cache, ()  # the copy of a model starts with an empty cache: positions are not copied with the model


class WindowedAttention(nn.Module, AttentionPosition):
    """`Windowed` in one site and layer."""

    def __init__(self, window: Window, site: Site, layer: int, inner: AttentionPosition) -> None:
        super().__init__()
        self.window = window
        self.site: Site = site
        self.layer = layer
        self.inner = inner
        self.pointwise = inner.pointwise
        self.transforms = inner.transforms
        self.numbers_a_pair = inner.numbers_a_pair
        self._biases: _Cache[Tensor] = _Cache()
        self._tables: _Cache[OpenKeys] = _Cache()

    @property
    def rotates(self) -> bool:
        return self.inner.rotates

    def among_open_keys(self) -> AttentionPosition:
        return self.inner

    def rotate(self, q: Tensor, k: Tensor, q_positions: Positions, k_positions: Positions) -> tuple[Tensor, Tensor]:
        return self.inner.rotate(q, k, q_positions, k_positions)

    def transform(
        self,
        scores: Tensor,
        q: Tensor,
        k: Tensor,
        q_positions: Positions,
        k_positions: Positions,
        mask: Tensor | None = None,
    ) -> Tensor:
        return self.inner.transform(scores, q, k, q_positions, k_positions, mask)

    def bias(self, q_positions: Positions, k_positions: Positions) -> Tensor:
        bias = self._biases.get(q_positions, k_positions)
        if bias is None:
            bias = dense_bias(self.window, self.site, self.layer, q_positions, k_positions)
            self._biases.put(q_positions, k_positions, bias, bias.numel())
        inner = self.inner.bias(q_positions, k_positions)
        return bias if inner is None else bias + inner

    def open_keys(self, q_positions: Positions, k_positions: Positions, most: float) -> OpenKeys | None:
        table = self._tables.get(q_positions, k_positions)
        if table is None:
            table = open_keys(self.window, self.site, self.layer, q_positions, k_positions, most)
            if table is None:
                return None
            self._tables.put(q_positions, k_positions, table, table.index.numel())
        return table if table.index.shape[-1] <= most else None

    def why_not_gathered(self) -> str | None:
        return None if self.inner.pointwise else self.inner.not_pointwise()
