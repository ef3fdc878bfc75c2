"""What a prediction inside a window depends on: its receptive field, the open keys within, the vectors added there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from abc_toolkit.calibration.window import Window, site_positions
from abc_toolkit.layout import Layout, Positions
from abc_toolkit.positions import SITES, ModelPosition, OpenKeys, Site

Leaf = tuple[str, int]  # "source" or "prefix", and the token's number in that string


class CannotDecideError(Exception):
    """It cannot be said what a model does at every length; the message is one line that says what is to blame."""


@dataclass(frozen=True)
class ReceptiveField:
    """What one prediction of a layout depends on, layer by layer.

    Attributes:
        layout: The layout.
        query: Which target token is predicted.
        streams: Tokens whose decoder stream is needed, before each layer and after the last, `[query]` at the end.
        sources: The same of the encoder; the last are the keys of cross-attention.
        tables: Open keys of the tokens needed after each layer, by site and layer, numbered within those before it.
        added: What positions add to the embedding of each leaf, as bytes; empty where nothing is added.
    """

    layout: Layout
    query: int
    streams: tuple[tuple[int, ...], ...]
    sources: tuple[tuple[int, ...], ...]
    tables: Mapping[tuple[Site, int], OpenKeys]
    added: tuple[bytes, ...]

    @cached_property
    def leaves(self) -> tuple[Leaf, ...]:
        """The tokens of the receptive field: those of the source first."""
        return (*(("source", i) for i in self.sources[0]), *(("prefix", i) for i in self.streams[0]))

    @cached_property
    def tokens(self) -> list[tuple[str, dict[str, int]]]:
        """Segment and coordinates of each."""
        strings = {"source": self.layout.source, "prefix": self.layout.prefix}
        return [_token(strings[string], number) for string, number in self.leaves]

    @cached_property
    def predicted(self) -> tuple[str, dict[str, int]]:
        """Segment and coordinates of the token that is predicted."""
        return _token(self.layout.target, self.query)

    @cached_property
    def kind(self) -> tuple:
        """What the model sees beside the values of the tokens; receptive fields of one kind are one function of them.

        Only keys that are open count, in the order of their numbers: empty slots of a table add exactly nothing.
        """
        tables = tuple((key, _open(table)) for key, table in sorted(self.tables.items()))
        inner = tuple(
            tuple(part[i].index(token) for token in part[i + 1])
            for part in (self.streams, self.sources)
            for i in range(len(part) - 1)
        )
        return tables, inner, self.added, len(self.sources[0]), len(self.streams[0])


def _open(table: OpenKeys) -> tuple:
    """The open keys of a table with their biases: a tuple for each head and query."""
    return tuple(
        tuple(
            tuple(sorted((key, bias) for key, bias in zip(keys, biases, strict=True) if bias > -torch.inf))
            for keys, biases in zip(*rows, strict=True)
        )
        for rows in zip(table.index.tolist(), table.bias.tolist(), strict=True)
    )


def _token(positions: Positions, number: int) -> tuple[str, dict[str, int]]:
    coordinates = {name: int(values[number]) for name, values in positions.coordinates.items()}
    return positions.names[coordinates["segment"]], coordinates


class ReceptiveFields:
    """Receptive fields of the predictions of a layout.

    Args:
        window: The window.
        layout: The layout.
        positioning: What the built model knows of positions: it is asked at its own width what it adds.
    """

    def __init__(self, window: Window, layout: Layout, positioning: ModelPosition | None = None) -> None:
        self.window = window
        self.layout = layout
        self.added = [_added(positioning, positions) for positions in (layout.source, layout.target)]
        self.tables: dict[tuple[Site, int], OpenKeys] = {}
        self._keys: dict[tuple[Site, int], list[set[int]]] = {}
        for site in SITES:
            for layer in range(window.layers(site)):
                table = window.open_keys(site, layer, *site_positions(site, layout))
                assert table is not None
                self.tables[site, layer] = table
                index, is_open = table.index.transpose(0, 1).flatten(1), table.bias.transpose(0, 1).flatten(1)
                pairs = zip(index.tolist(), (is_open > -torch.inf).tolist(), strict=True)
                self._keys[site, layer] = [
                    {k for k, o in zip(keys, opened, strict=True) if o} for keys, opened in pairs
                ]

    def _read(self, site: Site, layer: int, queries: Sequence[int]) -> set[int]:
        return set().union(*(self._keys[site, layer][query] for query in queries))

    def of(self, query: int) -> ReceptiveField:
        """The receptive field of one prediction."""
        streams: list[tuple[int, ...]] = [(query,)]
        read: set[int] = set()
        for layer in reversed(range(self.window.num_decoder_layers)):
            read |= self._read("cross", layer, streams[0])
            streams.insert(0, tuple(sorted({*streams[0], *self._read("decoder", layer, streams[0])})))
        sources = [tuple(sorted(read))]
        for layer in reversed(range(self.window.num_encoder_layers)):
            sources.insert(0, tuple(sorted({*sources[0], *self._read("encoder", layer, sources[0])})))
        tables: dict[tuple[Site, int], OpenKeys] = {}
        for layer in range(self.window.num_encoder_layers):
            tables["encoder", layer] = self._within("encoder", layer, sources[layer + 1], sources[layer])
        for layer in range(self.window.num_decoder_layers):
            tables["decoder", layer] = self._within("decoder", layer, streams[layer + 1], streams[layer])
            tables["cross", layer] = self._within("cross", layer, streams[layer + 1], sources[-1])
        added = (*(self.added[0][i] for i in sources[0]), *(self.added[1][i] for i in streams[0]))
        return ReceptiveField(self.layout, query, tuple(streams), tuple(sources), tables, added)

    def _within(self, site: Site, layer: int, queries: Sequence[int], keys: Sequence[int]) -> OpenKeys:
        """The rows of some queries, with keys numbered among some."""
        table = self.tables[site, layer]
        number = torch.zeros(int(table.index.max()) + 1 + max(keys, default=0), dtype=torch.long)
        number[list(keys)] = torch.arange(len(keys))
        bias = table.bias[:, list(queries)]
        return OpenKeys(number[table.index[:, list(queries)]] * (bias > -torch.inf), bias)


@torch.no_grad()
def _added(positioning: ModelPosition | None, positions: Positions) -> list[bytes]:
    """What positions add to the embedding of each token."""
    if positioning is None:
        return [b""] * len(positions)
    vectors = positioning.embed(torch.zeros(1, len(positions), positioning.sizes.model_dim), positions)[0]
    return [row.numpy().tobytes() if row.any() else b"" for row in vectors]
