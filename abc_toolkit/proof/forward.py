"""The model's own layers run on everything that a receptive field can hold."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from abc_toolkit.layout import Positions
from abc_toolkit.models.attention import Gather, Scope
from abc_toolkit.models.transformer import Block, EncoderDecoder
from abc_toolkit.positions import OpenKeys, Site
from abc_toolkit.proof.enumeration import Kind
from abc_toolkit.proof.receptive_field import ReceptiveField
from abc_toolkit.windows.lowering import site_positions

_AT_ONCE = 2**15


@dataclass(frozen=True, eq=False)
class _Stream:
    """The stream of one token of a receptive field, computed once for all assignments that agree on what it depends on.

    Attributes:
        columns: Leaves that it depends on.
        values: Its values, `[distinct, ...]`.
        which: The value in each assignment, `[assignment]`.
    """

    columns: frozenset[int]
    values: Tensor
    which: Tensor

    def rows(self, assignments: Tensor) -> Tensor:
        """Its values in some assignments."""
        return self.values[self.which[assignments]]


def distinct(tokens: Tensor, columns: frozenset[int], radix: int) -> tuple[Tensor, Tensor]:
    """An assignment for each way in which some leaves differ, and for each assignment that which is like it.

    Args:
        tokens: Token ids of the leaves, `[assignment, leaf]`.
        columns: The leaves that count.
        radix: Number of token ids.
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
def receptive_field_logits(model: EncoderDecoder, field: ReceptiveField, tokens: Tensor) -> Tensor:
    """Logits `[assignment, num_tokens]` of a receptive field's prediction.

    Args:
        model: The model, inside the window that the receptive field is of.
        field: The receptive field.
        tokens: Token ids of its leaves, `[assignment, leaf]`.
    """
    layout, radix = field.layout, model.interface.num_tokens

    def embedded(positions: Positions, numbers: Sequence[int], start: int) -> list[_Stream]:
        streams = []
        for column, number in enumerate(numbers, start):
            first, which = distinct(tokens, frozenset({column}), radix)
            x = model.embed(tokens[first, column][:, None], positions[torch.tensor([number])])
            streams.append(_Stream(frozenset({column}), x, which))
        return streams

    def through(
        blocks: Sequence[Block],
        side: Site,
        streams: list[_Stream],
        needed: Sequence[Sequence[int]],
        encoded: Sequence[_Stream] = (),
    ) -> list[_Stream]:
        queries, keys = site_positions(side, layout)
        sources = layout.source[torch.tensor(field.sources[-1], dtype=torch.long)]
        for layer, block in enumerate(blocks):
            reads = {side: (field.tables[side, layer], [_mapped(s, block.keys_values) for s in streams])}
            if encoded:
                read = block.cross_attention.keys_values
                reads["cross"] = (field.tables["cross", layer], [_mapped(s, read) for s in encoded])
            after = []
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
                after.append(_Stream(columns, x, which))
            streams = after
        return streams

    encoded = through(list(model.encoder), "encoder", embedded(layout.source, field.sources[0], 0), field.sources)
    encoded = [_mapped(stream, model.encoder_norm) for stream in encoded]
    if not encoded:  # so that there is something to point at
        nothing = torch.zeros(1, 1, model.architecture.model_dim, dtype=model.output.weight.dtype)
        encoded = [_Stream(frozenset(), nothing, torch.zeros(len(tokens), dtype=torch.long))]
    streams = embedded(layout.target, field.streams[0], len(field.sources[0]))
    (last,) = through(list(model.decoder), "decoder", streams, field.streams, encoded)
    return model.output(model.decoder_norm(last.values[:, 0]))[last.which]


def _mapped(stream: _Stream, function: Callable[[Tensor], Tensor]) -> _Stream:
    return _Stream(stream.columns, function(stream.values), stream.which)


def margins(model: EncoderDecoder, kind: Kind, assignments: Tensor) -> Tensor:
    """By how much the required token's logit leads over the next best in each assignment, `[assignment]`.

    Not above zero where it does not lead.

    Args:
        model: The model.
        kind: The kind of its predictions.
        assignments: Some of its assignments.
    """
    found = []
    for part in assignments.split(_AT_ONCE):
        tokens, required = kind.enumeration.tokens(part)
        logits = receptive_field_logits(model, kind.enumeration.field, tokens)
        own = logits.gather(1, required[:, None])[:, 0]
        found.append(own - logits.scatter(1, required[:, None], -torch.inf).amax(dim=1))
    return torch.cat(found).nan_to_num(nan=-torch.inf)
