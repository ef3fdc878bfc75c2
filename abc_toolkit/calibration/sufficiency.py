"""Whether a window is sufficient: two predictions for which it shows the same must need the same token.

What a window shows for a prediction is hashed to an integer, its *view*. Two predictions with equal views get equal
logits from every model without positions inside the window, whatever its weights. Two predictions with equal views and
different next tokens therefore prove that the window lacks a line.

Views are computed layer by layer, as the model runs. The new view of a token is a hash of its old view and, for each
head, of the views of its open keys with their shares and biases. A softmax without positions depends on nothing else:
not on the order or the number of the keys but on their proportions, and not on the biases but on their differences.
"""

import math
from contextlib import suppress

import torch
from torch import Generator, Tensor

from abc_toolkit.hashing import scatter
from abc_toolkit.layout import Layout
from abc_toolkit.models.base import prefix_of
from abc_toolkit.positions import Site
from abc_toolkit.tasks import Calibratable, ProblemError, Problems, Shape, Solvable
from abc_toolkit.vocabulary import EOS
from abc_toolkit.windows.conflict import Conflict
from abc_toolkit.windows.lowering import dense_bias, site_positions
from abc_toolkit.windows.rules import Window

_MOST_KEYS = 4096
# The share 1/n as an integer: a common multiple of all n, divided by n, modulo 2^64.
_COMMON = math.lcm(*range(1, _MOST_KEYS + 1))
MOST_PREDICTIONS = 2**17  # compared by one check of a window, of which a search needs many
_SHARES = torch.tensor([0, *((_COMMON // n + 2**63) % 2**64 - 2**63 for n in range(1, _MOST_KEYS + 1))])

Clash = tuple[tuple[Problems, int, int], ...]  # a conflict as indices: problems, row and target token of both


def views(window: Window, problems: Problems, layout: Layout) -> Tensor:
    """The view of every prediction, given the true tokens before it, int64 `[batch, target_length]`."""
    layout, held = window.read(layout), prefix_of(problems.target)
    if window.reads_one_string:
        held = torch.cat([problems.source, held], dim=1)
    memory = scatter(problems.source + 1)
    for layer in range(window.layers("encoder")):
        memory = _attended(window, "encoder", layer, layout, memory, memory)
    stream = scatter(held + 1)
    for layer in range(window.num_decoder_layers):
        stream = _attended(window, "decoder", layer, layout, stream, stream)
        if window.layers("cross"):
            stream = _attended(window, "cross", layer, layout, stream, memory)
    return stream[:, -problems.target.shape[1] :]


def _attended(window: Window, site: Site, layer: int, layout: Layout, stream: Tensor, keys: Tensor) -> Tensor:
    """Views `[batch, query]` of a stream after one attention to keys with views `[batch, key]`."""
    bias = dense_bias(window, site, layer, *site_positions(site, layout))
    if site == "decoder":
        bias = bias.masked_fill(~torch.ones_like(bias[0], dtype=torch.bool).tril(), -torch.inf)
    is_open = bias > -torch.inf
    shares = _SHARES[is_open.sum(dim=-1)]
    bias = (bias - bias.amax(dim=-1, keepdim=True)).double()
    result = scatter(stream)
    for head, head_bias in enumerate(bias):
        seen = torch.zeros_like(stream)
        for value in head_bias[is_open[head]].unique():
            open_cells = (head_bias == value).long()
            seen = seen + scatter(keys + value.view(torch.int64)) @ open_cells.T
        result = result + scatter(seen * shares[head] + 104729 * (head + 1))
    return scatter(result)


def receptive_fields(window: Window, layout: Layout) -> tuple[Tensor, Tensor]:
    """Receptive fields: the tokens on which a prediction can depend through all layers, its query's token among them.

    Returns:
        The source's tokens, boolean `[target_length, source_length]`, and the target's tokens before the prediction,
        boolean `[target_length, target_length]`.
    """
    reached, num_sources = reach(window, layout)[-len(layout.target) :], len(layout.source)
    return reached[:, :num_sources], reached[:, num_sources:]


def reach(window: Window, layout: Layout) -> Tensor:
    """The tokens on which each stream of the decoder can depend through all layers.

    Returns:
        Boolean `[query, token]`: the tokens are the source's, then the target's prefix. The queries are those of the
        target, or, of a model that reads both as one string, those of the source before them.
    """
    read, num_sources = window.read(layout), len(layout.source)
    source = torch.eye(num_sources, dtype=torch.bool)
    for layer in range(window.layers("encoder")):
        source = source | _reach(window, "encoder", layer, read, source)
    own = torch.eye(len(read.target), dtype=torch.bool)
    seen = torch.zeros(len(own), num_sources, dtype=torch.bool)
    for layer in range(window.num_decoder_layers):
        own, seen = (part | _reach(window, "decoder", layer, read, part) for part in (own, seen))
        if window.layers("cross"):
            seen = seen | _reach(window, "cross", layer, read, source)
    return own if window.reads_one_string else torch.cat([seen, own], dim=1)


def _reach(window: Window, site: Site, layer: int, layout: Layout, keys: Tensor) -> Tensor:
    """The tokens `[query, token]` that queries reach through one attention, given those `[key, token]` of the keys."""
    is_open = (dense_bias(window, site, layer, *site_positions(site, layout)) > -torch.inf).any(dim=0)
    if site == "decoder":
        is_open = is_open.tril()
    return is_open.float() @ keys.float() > 0


class Evidence:
    """Training problems on which windows are compared.

    Args:
        task: The task.
        generator: Draws the problems.
        num_problems: Problems of each training shape; fewer if they have more than `MOST_PREDICTIONS` predictions.
        num_pairs: For each prediction of the longest shape, problems that are altered outside its receptive field;
            fewer if all of them have more than `MOST_PREDICTIONS` predictions.
    """

    def __init__(self, task: Calibratable, generator: Generator, num_problems: int = 512, num_pairs: int = 128) -> None:
        self.task = task
        shapes = task.training_shapes()
        tokens = [task.num_tokens(shape)[1] for shape in shapes]
        num_problems = min(num_problems, MOST_PREDICTIONS // sum(tokens))
        num_pairs = min(num_pairs, MOST_PREDICTIONS // tokens[-1] ** 2)
        self.batches = [task.sample(generator, num_problems, shape) for shape in shapes]
        longest = shapes[-1]
        self.bases = task.sample(generator, num_pairs, longest)
        self.others = task.sample(generator, num_pairs, longest)

    def conflicts(self, window: Window) -> list[Clash]:
        """Pairs of predictions with equal views and different tokens.

        Any pair proves that the window lacks a line. If there is none, other problems may still have one.
        """
        batches = [*self.batches, *self._altered(window)]
        seen, tokens, where = [], [], []
        for number, batch in enumerate(batches):
            seen.append(views(window, batch, self.task.layout(batch.shape)).flatten())
            tokens.append(batch.target.flatten())
            rows, columns = torch.meshgrid(*(torch.arange(size) for size in batch.target.shape), indexing="ij")
            where.append(torch.stack([torch.full_like(rows, number), rows, columns], dim=-1).flatten(0, 1))
        view, token, location = torch.cat(seen), torch.cat(tokens), torch.cat(where)
        order = view.argsort(stable=True)
        view, token, location = view[order], token[order], location[order]
        differs = ((view[1:] == view[:-1]) & (token[1:] != token[:-1])).nonzero()[:, 0]
        pairs = torch.stack([location[differs], location[differs + 1]], dim=1).tolist()
        return [tuple((batches[batch], row, column) for batch, row, column in pair) for pair in pairs]

    def describe(self, clash: Clash) -> Conflict:
        """A pair of predictions in words."""
        vocabulary = self.task.vocabulary
        sources, tokens = [], []
        for problems, row, column in clash:
            token = problems.target[row, column : column + 1]
            sources.append(vocabulary.decode(problems.source[row]))
            tokens.append("the end" if int(token) == EOS else vocabulary.decode(token))
        return Conflict((sources[0], sources[1]), (clash[0][2], clash[1][2]), (tokens[0], tokens[1]))

    def _altered(self, window: Window) -> list[Problems]:
        """For each prediction of the longest shape, problems that differ outside its receptive field."""
        task, base = self.task, self.bases
        if not isinstance(task, Solvable):  # the targets of altered sources are not known
            return [base]
        field, _ = receptive_fields(window, task.layout(base.shape))
        altered = [base]
        for visible in field.unique(dim=0):
            source = torch.where(visible, base.source, self.others.source)
            altered.append(solved(task, base.shape, source))
        return altered


def solved(task: Solvable, shape: Shape, source: Tensor) -> Problems:
    """Problems of given sources `[batch, source_length]`, with the task's answers; sources that are no problem go."""
    vocabulary, length = task.vocabulary, len(task.layout(shape).target)
    sources, targets = [source[:0]], [source.new_empty(0, length)]
    for row in source:
        with suppress(ProblemError):  # an altered source may be no problem: copies of one digit may differ
            target = vocabulary.encode(task.solve(vocabulary.decode(row)))
            targets.append(torch.nn.functional.pad(target, (0, length - len(target)), value=EOS)[None])
            sources.append(row[None])
    return Problems(shape, torch.cat(sources), torch.cat(targets))
