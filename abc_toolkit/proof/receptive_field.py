"""Receptive fields: the tokens on which a prediction inside a window depends, and the open keys among them.

A prediction is read from the decoder's stream at its query. Going down the layers, a stream depends on the streams of
its open keys; the tokens that are reached at the bottom are the *leaves*. The model computes a prediction from the
values of the leaves, the open keys of each layer, and the vectors that positions add. Two predictions that agree in all
but the values are of one *kind*: the model is the same function of the values in both.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from weakref import WeakKeyDictionary

import torch

from abc_toolkit.layout import Layout, Positions
from abc_toolkit.positions import SITES, ModelPosition, OpenKeys, Site
from abc_toolkit.windows.lowering import open_keys, site_positions
from abc_toolkit.windows.rules import Window

Leaf = tuple[str, int]  # "source" or "prefix", and the token's number in that string
Described = tuple[str, dict[str, int]]  # segment and coordinates of a token
Keys = tuple[tuple[tuple[tuple[int, float], ...], ...], ...]  # open keys and biases, by head and query


class CannotDecideError(Exception):
    """The certifier cannot decide; the message is one line that names what is to blame."""


@dataclass(frozen=True)
class ReceptiveField:
    """The receptive field of one prediction, layer by layer.

    Attributes:
        layout: The layout, as the model reads it.
        query: The number of the predicted token in the target.
        before: Number of tokens of the decoder's string before the target's: those of the source in a model that reads
            both as one string, else 0.
        streams: The tokens of the decoder's string whose streams are needed before each layer, and after the last one,
            where it is the query alone.
        sources: The same of the encoder; the tokens needed after its last layer are the keys of cross-attention.
        keys: The open keys of each site and layer, with their biases, for each head and each token needed after the
            layer. A key has its number among the tokens needed before the layer.
        added: The vector that positions add to the embedding of each leaf, as bytes; empty where nothing is added.
    """

    layout: Layout
    query: int
    before: int
    streams: tuple[tuple[int, ...], ...]
    sources: tuple[tuple[int, ...], ...]
    keys: Mapping[tuple[Site, int], Keys]
    added: tuple[bytes, ...]

    @cached_property
    def leaves(self) -> tuple[Leaf, ...]:
        """The tokens of the receptive field, those of the source first."""
        held = (("source", i) if i < self.before else ("prefix", i - self.before) for i in self.streams[0])
        return (*(("source", i) for i in self.sources[0]), *held)

    @cached_property
    def tokens(self) -> list[Described]:
        """Segment and coordinates of each leaf."""
        held = _described(self.layout.prefix)
        return [*(_described(self.layout.source)[i] for i in self.sources[0]), *(held[i] for i in self.streams[0])]

    @property
    def predicted(self) -> Described:
        """Segment and coordinates of the token that is predicted."""
        return _described(self.layout.target)[self.before + self.query]

    @cached_property
    def tables(self) -> dict[tuple[Site, int], OpenKeys]:
        """The open keys as attention takes them."""
        return {where: _table(heads) for where, heads in self.keys.items()}

    @cached_property
    def kind(self) -> Hashable:
        """Everything that the model computes the prediction from, but the values of the leaves."""
        inner = tuple(
            tuple(part[i].index(token) for token in part[i + 1])
            for part in (self.streams, self.sources)
            for i in range(len(part) - 1)
        )
        return tuple(sorted(self.keys.items())), inner, self.added, len(self.sources[0]), len(self.streams[0])


def _table(heads: Keys) -> OpenKeys:
    """Open keys as tensors, padded with keys of bias minus infinity."""
    num_slots = max([1, *(len(keys) for head in heads for keys in head)])
    shape = (len(heads), len(heads[0]), num_slots)
    index, bias = torch.zeros(shape, dtype=torch.long), torch.full(shape, -torch.inf)
    for head, rows in enumerate(heads):
        for row, keys in enumerate(rows):
            for slot, (key, own) in enumerate(keys):
                index[head, row, slot], bias[head, row, slot] = key, own
    return OpenKeys(index, bias)


_known: WeakKeyDictionary[Positions, list[Described]] = WeakKeyDictionary()


def _described(positions: Positions) -> list[Described]:
    """Segment and coordinates of each token of a string."""
    if positions not in _known:
        columns: dict[str, list[int]] = {name: values.tolist() for name, values in positions.coordinates.items()}
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        _known[positions] = [(positions.names[row["segment"]], row) for row in rows]
    return _known[positions]


class ReceptiveFields:
    """The receptive fields of the predictions of a layout.

    Args:
        window: The window.
        layout: The layout.
        positioning: The position method of the built model, which says what it adds; nothing, if not given.
    """

    def __init__(self, window: Window, layout: Layout, positioning: ModelPosition | None = None) -> None:
        self.window = window
        self.layout = window.read(layout)
        self.before = len(self.layout.target) - len(layout.target)
        self.added = [_added(positioning, positions) for positions in (self.layout.source, self.layout.target)]
        self._open: dict[tuple[Site, int], list[list[tuple[tuple[int, float], ...]]]] = {}
        for site in SITES:
            for layer in range(window.layers(site)):
                table = open_keys(window, site, layer, *site_positions(site, self.layout))
                assert table is not None
                index: list[list[list[int]]] = table.index.tolist()
                bias: list[list[list[float]]] = table.bias.tolist()
                self._open[site, layer] = [
                    [
                        tuple(sorted((k, b) for k, b in zip(keys, biases, strict=True) if b > -torch.inf))
                        for keys, biases in zip(*rows, strict=True)
                    ]
                    for rows in zip(index, bias, strict=True)
                ]

    def _read(self, site: Site, layer: int, queries: Sequence[int]) -> set[int]:
        """The open keys of some queries, in any head."""
        return {key for head in self._open[site, layer] for query in queries for key, _ in head[query]}

    def at(self, query: int) -> ReceptiveField:
        """The receptive field of one prediction."""
        streams: list[tuple[int, ...]] = [(self.before + query,)]
        read: set[int] = set()
        for layer in reversed(range(self.window.num_decoder_layers)):
            if self.window.layers("cross"):
                read |= self._read("cross", layer, streams[0])
            streams.insert(0, tuple(sorted({*streams[0], *self._read("decoder", layer, streams[0])})))
        sources = [tuple(sorted(read))]
        for layer in reversed(range(self.window.num_encoder_layers)):
            sources.insert(0, tuple(sorted({*sources[0], *self._read("encoder", layer, sources[0])})))
        keys: dict[tuple[Site, int], Keys] = {}
        for layer in range(self.window.num_encoder_layers):
            keys["encoder", layer] = self._within("encoder", layer, sources[layer + 1], sources[layer])
        for layer in range(self.window.num_decoder_layers):
            keys["decoder", layer] = self._within("decoder", layer, streams[layer + 1], streams[layer])
            if self.window.layers("cross"):
                keys["cross", layer] = self._within("cross", layer, streams[layer + 1], sources[-1])
        added = (*(self.added[0][i] for i in sources[0]), *(self.added[1][i] for i in streams[0]))
        return ReceptiveField(self.layout, query, self.before, tuple(streams), tuple(sources), keys, added)

    def _within(self, site: Site, layer: int, queries: Sequence[int], keys: Sequence[int]) -> Keys:
        """The open keys of some queries, each by its number within `keys`."""
        number = {key: n for n, key in enumerate(keys)}
        return tuple(
            tuple(tuple((number[key], bias) for key, bias in head[query]) for query in queries)
            for head in self._open[site, layer]
        )


@torch.no_grad()
def _added(positioning: ModelPosition | None, positions: Positions) -> list[bytes]:
    """The vector that positions add to the embedding of each token, as bytes; empty where it is 0."""
    if positioning is None:
        return [b""] * len(positions)
    vectors = positioning.embed(torch.zeros(1, len(positions), positioning.sizes.model_dim), positions)[0]
    return [row.numpy().tobytes() if row.any() else b"" for row in vectors]
