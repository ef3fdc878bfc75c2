"""Whether a window shows enough: two problems that look alike within it must need the same tokens.

What a window shows to a prediction is given a number, its *view*: two predictions with equal views get equal logits
from every model without positions inside the window, whatever its weights. A view is computed layer by layer as the
model itself runs: a token's view becomes a hash of its own view and, for each head, of the shares that each view has
among those it attends to (with their biases). A softmax without positions tells its keys apart by nothing else: it
knows neither their order nor their number, only their proportions, and of their biases only the differences. So a
key brings along what it saw in the layers below, and two problems with equal views and different next tokens prove
that the window lacks a line.
"""

import math
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from abc_toolkit.hashing import scatter
from abc_toolkit.layout import Layout
from abc_toolkit.models.base import prefix_of
from abc_toolkit.positions import Site
from abc_toolkit.tasks import Calibratable, ProblemError, Problems, Shape, Solvable
from abc_toolkit.vocabulary import EOS
from abc_toolkit.windows.lowering import dense_bias, site_positions
from abc_toolkit.windows.rules import Window

_MOST_KEYS = 4096
# A share of n keys, 1/n, as an integer: a multiple that all n have in common, modulo 2^64, over n.
_COMMON = math.lcm(*range(1, _MOST_KEYS + 1))
MOST_PREDICTIONS = 2**17  # that are compared; a search compares them many times
_SHARES = torch.tensor([0, *((_COMMON // n + 2**63) % 2**64 - 2**63 for n in range(1, _MOST_KEYS + 1))])

Clash = tuple[tuple[Problems, int, int], ...]


@dataclass(frozen=True)
class Conflict:
    """Two predictions that a window cannot tell apart and that need different tokens.

    Attributes:
        sources: The two problems.
        places: Which token of each target is predicted, 0 = the first.
        tokens: The tokens that are needed, in words where they are no characters.
    """

    sources: tuple[str, str]
    places: tuple[int, int]
    tokens: tuple[str, str]

    def describe(self) -> str:
        """The conflict in words."""
        (first, second), (i, j), (a, b) = self.sources, self.places, self.tokens
        needs = f"{first} needs {a} at place {i} and {second} needs {b} at place {j}"
        return f"{needs}, but all that the window shows is the same"


def views(window: Window, problems: Problems, layout: Layout) -> Tensor:
    """Views of every prediction under the true tokens before it, int64 `[batch, target_length]`."""
    prefix = prefix_of(problems.target)
    memory = scatter(problems.source + 1)
    for layer in range(window.num_encoder_layers):
        memory = _attended(window, "encoder", layer, layout, memory, memory)
    stream = scatter(prefix + 1)
    for layer in range(window.num_decoder_layers):
        stream = _attended(window, "decoder", layer, layout, stream, stream)
        stream = _attended(window, "cross", layer, layout, stream, memory)
    return stream


def _attended(window: Window, site: Site, layer: int, layout: Layout, stream: Tensor, keys: Tensor) -> Tensor:
    """Views `[batch, query]` after one attention."""
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
    """Tokens on which a prediction can depend, through any number of layers, the query's own among them.

    Returns:
        Those of the source, boolean `[target_length, source_length]`, and of the target so far,
        `[target_length, target_length]`. Dependence through the tokens written before counts as far as the layers
        carry it.
    """
    source = torch.eye(len(layout.source), dtype=torch.bool)
    for layer in range(window.num_encoder_layers):
        source = source | _reach(window, "encoder", layer, layout, source)
    seen = torch.zeros(len(layout.target), len(layout.source), dtype=torch.bool)
    own = torch.eye(len(layout.target), dtype=torch.bool)
    for layer in range(window.num_decoder_layers):
        own, seen = (part | _reach(window, "decoder", layer, layout, part) for part in (own, seen))
        seen = seen | _reach(window, "cross", layer, layout, source)
    return seen, own


def _reach(window: Window, site: Site, layer: int, layout: Layout, keys: Tensor) -> Tensor:
    is_open = (dense_bias(window, site, layer, *site_positions(site, layout)) > -torch.inf).any(dim=0)
    if site == "decoder":
        is_open = is_open.tril()
    return is_open.float() @ keys.float() > 0


class Evidence:
    """Training problems on which windows are compared.

    Args:
        task: The task.
        generator: Draws the problems.
        num_problems: Problems of every training shape, if these make no more than `MOST_PREDICTIONS` predictions.
        num_pairs: For every prediction of the longest shape, problems that are altered outside its receptive field; as
            many.
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
        """Pairs of predictions with equal views and different tokens: none proves a window insufficient, one does."""
        batches = [*self.batches, *self._altered(window)]
        seen, tokens, where = [], [], []
        for number, batch in enumerate(batches):
            seen.append(views(window, batch, self.task.layout(batch.shape)).flatten())
            tokens.append(batch.target.flatten())
            rows, places = torch.meshgrid(*(torch.arange(size) for size in batch.target.shape), indexing="ij")
            where.append(torch.stack([torch.full_like(rows, number), rows, places], dim=-1).flatten(0, 1))
        view, token, place = torch.cat(seen), torch.cat(tokens), torch.cat(where)
        order = view.argsort(stable=True)
        view, token, place = view[order], token[order], place[order]
        differs = ((view[1:] == view[:-1]) & (token[1:] != token[:-1])).nonzero()[:, 0]
        pairs = torch.stack([place[differs], place[differs + 1]], dim=1).tolist()
        return [tuple((batches[batch], row, target_place) for batch, row, target_place in pair) for pair in pairs]

    def describe(self, clash: Clash) -> Conflict:
        """A pair of predictions as a person reads it."""
        vocabulary = self.task.vocabulary
        sources, tokens = [], []
        for problems, row, place in clash:
            token = problems.target[row, place : place + 1]
            sources.append(vocabulary.decode(problems.source[row]))
            tokens.append("the end" if int(token) == EOS else vocabulary.decode(token))
        return Conflict((sources[0], sources[1]), (clash[0][2], clash[1][2]), (tokens[0], tokens[1]))

    def _altered(self, window: Window) -> list[Problems]:
        """For every prediction of the longest shape, problems that differ outside what it can depend on."""
        task, base = self.task, self.bases
        if not isinstance(task, Solvable):  # nothing else says what other sources have as targets
            return [base]
        field, _ = receptive_fields(window, task.layout(base.shape))
        altered = [base]
        for visible in field.unique(dim=0):
            source = torch.where(visible, base.source, self.others.source)
            altered.append(solved(task, base.shape, source))
        return altered


def solved(task: Solvable, shape: Shape, source: Tensor) -> Problems:
    """Problems of given sources `[batch, source_length]`, their targets by the task's oracle; without what is none."""
    vocabulary = task.vocabulary
    sources, targets = [source[:0]], [source.new_empty(0, len(task.layout(shape).target) - 1)]
    for row in source:
        with suppress(ProblemError):  # the copies of a repeated digit may differ
            targets.append(vocabulary.encode(task.solve(vocabulary.decode(row)))[None])
            sources.append(row[None])
    target = torch.nn.functional.pad(torch.cat(targets), (0, 1), value=EOS)
    return Problems(shape, torch.cat(sources), target)
