"""The model's own layers, run on all assignments of a receptive field.

A stream inside a receptive field depends on few of its leaves. It is computed once for all assignments that agree on
these leaves, so the cost of a layer is that of the distinct values and not that of the assignments.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from abc_toolkit.layout import Positions
from abc_toolkit.models.attention import Gather, Scope
from abc_toolkit.models.transformer import Block, EncoderDecoder, TransformerModel
from abc_toolkit.positions import OpenKeys, Site
from abc_toolkit.proof.enumeration import Kind
from abc_toolkit.proof.receptive_field import ReceptiveField
from abc_toolkit.windows.lowering import site_positions

_AT_ONCE = 2**15


class Rows(Protocol):
    """Vectors, a row each, of which some can be selected."""

    def __getitem__(self, rows: Tensor, /) -> Any:
        """The rows of some numbers."""


V = TypeVar("V", bound=Rows)
W = TypeVar("W", bound=Rows)


@dataclass(frozen=True, eq=False)
class Stream(Generic[V]):
    """The stream of one token of a receptive field, with a row for each distinct value.

    Attributes:
        columns: The leaves that it depends on.
        values: Its distinct values, a row each.
        which: The row of each assignment, `[assignment]`.
    """

    columns: frozenset[int]
    values: V
    which: Tensor

    def rows(self, assignments: Tensor) -> V:
        """Its values in some assignments."""
        return self.values[self.which[assignments]]

    def mapped(self, function: Callable[[V], W]) -> "Stream[W]":
        """The stream after a function that acts on each row."""
        return Stream(self.columns, function(self.values), self.which)


def distinct(tokens: Tensor, columns: frozenset[int], radix: int) -> tuple[Tensor, Tensor]:
    """The distinct values of some leaves.

    Args:
        tokens: Token ids of the leaves, `[assignment, leaf]`.
        columns: The leaves that count.
        radix: Number of token ids.

    Returns:
        The first assignment that has each distinct value, `[distinct]`, and the value of each assignment by its number,
        `[assignment]`.
    """
    everything = torch.arange(len(tokens))
    if len(columns) == tokens.shape[1]:
        return everything, everything
    code = torch.zeros_like(everything)
    for column in sorted(columns):
        code = code * radix + tokens[:, column]
    found, which = code.unique(return_inverse=True)
    return torch.zeros_like(found).scatter_reduce(0, which, everything, "amin", include_self=False), which


@torch.no_grad()
def receptive_field_logits(model: TransformerModel, field: ReceptiveField, tokens: Tensor) -> Tensor:
    """Logits `[assignment, num_tokens]` of a receptive field's prediction.

    Args:
        model: The model, inside the window that the receptive field is of.
        field: The receptive field.
        tokens: Token ids of its leaves, `[assignment, leaf]`.
    """
    layout, radix = field.layout, model.interface.num_tokens

    def embedded(positions: Positions, numbers: Sequence[int], start: int) -> list[Stream[Tensor]]:
        streams: list[Stream[Tensor]] = []
        for column, number in enumerate(numbers, start):
            first, which = distinct(tokens, frozenset({column}), radix)
            x = model.embed(tokens[first, column][:, None], positions[torch.tensor([number])])
            streams.append(Stream(frozenset({column}), x, which))
        return streams

    def through(
        blocks: Sequence[Block],
        side: Site,
        streams: list[Stream[Tensor]],
        needed: Sequence[Sequence[int]],
        encoded: Sequence[Stream[Tensor]] = (),
    ) -> list[Stream[Tensor]]:
        queries, keys = site_positions(side, layout)
        sources = layout.source[torch.tensor(field.sources[-1], dtype=torch.long)]
        for layer, block in enumerate(blocks):
            reads = {side: (field.tables[side, layer], [s.mapped(block.keys_values) for s in streams])}
            if encoded:
                read = block.cross_attention.keys_values
                reads["cross"] = (field.tables["cross", layer], [s.mapped(read) for s in encoded])
            after: list[Stream[Tensor]] = []
            for row, token in enumerate(needed[layer + 1]):
                own = streams[needed[layer].index(token)]
                tables = {
                    site: OpenKeys(t.index[:, row : row + 1], t.bias[:, row : row + 1])
                    for site, (t, _) in reads.items()
                }
                is_open = {site: set(t.index[t.bias > -torch.inf].tolist()) for site, t in tables.items()}
                columns = own.columns.union(*(reads[site][1][k].columns for site in reads for k in is_open[site]))
                first, which = distinct(tokens, columns, radix)
                fetched = {site: torch.cat([s.rows(first) for s in parts], dim=1) for site, (_, parts) in reads.items()}
                scope = Scope(keys[torch.tensor(needed[layer])], gather=Gather.from_table(tables[side]))
                memory = None
                if encoded:
                    memory = (fetched["cross"], Scope(sources, gather=Gather.from_table(tables["cross"])))
                x = block(own.rows(first), queries[torch.tensor([token])], scope, memory, whole=fetched[side])
                after.append(Stream(columns, x, which))
            streams = after
        return streams

    encoded: list[Stream[Tensor]] = []
    if isinstance(model, EncoderDecoder):
        encoded = through(list(model.encoder), "encoder", embedded(layout.source, field.sources[0], 0), field.sources)
        encoded = [stream.mapped(model.encoder_norm) for stream in encoded]
    if isinstance(model, EncoderDecoder) and not encoded:  # keys that are not open point at one
        nothing = torch.zeros(1, 1, model.architecture.model_dim, dtype=model.output.weight.dtype)
        encoded = [Stream(frozenset(), nothing, torch.zeros(len(tokens), dtype=torch.long))]
    streams = embedded(layout.target, field.streams[0], len(field.sources[0]))
    (last,) = through(list(model.decoder), "decoder", streams, field.streams, encoded)
    return model.output(model.decoder_norm(last.values[:, 0]))[last.which]


def margins(model: TransformerModel, kind: Kind, assignments: Tensor) -> Tensor:
    """The lead of the required token's logit over the next best, `[assignment]`; minus infinity where it is undefined.

    Args:
        model: The model.
        kind: The kind of its predictions.
        assignments: Some of its assignments.
    """
    found: list[Tensor] = []
    for part in assignments.split(_AT_ONCE):
        tokens, required = kind.enumeration.tokens(part)
        logits = receptive_field_logits(model, kind.enumeration.field, tokens)
        own = logits.gather(1, required[:, None])[:, 0]
        found.append(own - logits.scatter(1, required[:, None], -torch.inf).amax(dim=1))
    return torch.cat(found).nan_to_num(nan=-torch.inf)
