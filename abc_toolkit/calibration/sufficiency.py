"""Whether a window is sufficient: two predictions for which it shows the same must need the same token.

What a window shows for a prediction is hashed to an integer, its *view*. Two predictions with equal views get equal
logits from every model without positions inside the window, whatever its weights. Two predictions with equal views and
different next tokens therefore prove that the window lacks a line.

Views are computed layer by layer, as the model runs. The new view of a token is a hash of its old view and, for each
head, of the views of its open keys with their shares and biases. A softmax without positions depends on nothing else:
not on the order or the number of the keys but on their proportions, and not on the biases but on their differences.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Generic, TypeVar

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
from abc_toolkit.windows.rules import Rule, Window

T = TypeVar("T")

_MOST_KEYS = 4096
# The share 1/n as an integer: a common multiple of all n, divided by n, modulo 2^64.
_COMMON = math.lcm(*range(1, _MOST_KEYS + 1))
_MOST_HEADS = 64  # of which a viewer keeps what they show
_MOST_FIELDS = 256  # of which problems that differ outside of them are kept
MOST_PREDICTIONS = 2**17  # compared by one check of a window, of which a search needs many
_SHARES = torch.tensor([0, *((_COMMON // n + 2**63) % 2**64 - 2**63 for n in range(1, _MOST_KEYS + 1))])

Clash = tuple[tuple[Problems, int, int], ...]  # a conflict as indices: problems, row and target token of both


def views(window: Window, problems: Problems, layout: Layout) -> Tensor:
    """The view of every prediction, given the true tokens before it, int64 `[batch, target_length]`."""
    return _Viewer(problems, layout).views(window)


class _Kept(Generic[T]):
    """Values that are computed once, of which those used last are kept.

    Args:
        most: How many are kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[Hashable, T] = OrderedDict()

    def get(self, name: Hashable, make: Callable[[], T]) -> T:
        """The value of a name, which is made if it is not kept."""
        value = self._values.pop(name) if name in self._values else make()
        self._values[name] = value
        if len(self._values) > self._most:
            self._values.popitem(last=False)
        return value


class _Viewer:
    """Computes the views of some problems inside one window after another.

    A search for a window changes a head at a time. So what a head shows is kept, by its rules and by those that its
    keys' views follow from, and is computed once for many windows.

    Args:
        problems: The problems.
        layout: Their layout.
    """

    def __init__(self, problems: Problems, layout: Layout) -> None:
        self.problems = problems
        self._layout = layout
        self._shown: _Kept[Tensor] = _Kept(_MOST_HEADS)

    def views(self, window: Window) -> Tensor:
        """The view of every prediction, given the true tokens before it, int64 `[batch, target_length]`."""
        problems, held = self.problems, prefix_of(self.problems.target)
        layout = window.read(self._layout)
        if window.reads_one_string:
            held = torch.cat([problems.source, held], dim=1)
        memory, stream = scatter(problems.source + 1), scatter(held + 1)
        encoder: tuple[Rule, ...] = ()  # the rules that the views of the memory follow from, and those of the stream
        for layer in range(window.layers("encoder")):
            memory = self._attended(window, "encoder", layer, layout, memory, memory, encoder)
            encoder += window.rules_at("encoder", layer)
        below = encoder
        for layer in range(window.num_decoder_layers):
            stream = self._attended(window, "decoder", layer, layout, stream, stream, below)
            below += window.rules_at("decoder", layer)
            if window.layers("cross"):
                stream = self._attended(window, "cross", layer, layout, stream, memory, encoder)
                below += window.rules_at("cross", layer)
        return stream[:, -problems.target.shape[1] :]

    def _attended(
        self,
        window: Window,
        site: Site,
        layer: int,
        layout: Layout,
        stream: Tensor,
        keys: Tensor,
        below: tuple[Rule, ...],
    ) -> Tensor:
        """Views `[batch, query]` of a stream after one attention to keys with views `[batch, key]`."""
        result, rules = scatter(stream), window.rules_at(site, layer)
        model = (window.num_heads, window.num_encoder_layers, window.reads_one_string)
        for head in range(window.num_heads):
            own = tuple(replace(rule, head=0) for rule in rules if rule.head == head)

            def hashed(head: int = head, own: tuple[Rule, ...] = own) -> Tensor:
                alone = replace(window, num_heads=1, rules=own)
                bias = dense_bias(alone, site, layer, *site_positions(site, layout))[0]
                return scatter(_shown(bias, keys, site) + 104729 * (head + 1))

            result = result + self._shown.get((site, head, own, below, model), hashed)  # a rule names its layer
        return scatter(result)


def _shown(bias: Tensor, keys: Tensor, site: Site) -> Tensor:
    """What a head with biases `[query, key]` shows of keys with views `[batch, key]`, before any hash."""
    if site == "decoder":
        bias = bias.masked_fill(~torch.ones_like(bias, dtype=torch.bool).tril(), -torch.inf)
    is_open = bias > -torch.inf
    bias = (bias - bias.amax(dim=-1, keepdim=True)).double()
    seen = keys.new_zeros(len(keys), len(bias))
    for value in bias[is_open].unique():
        seen = seen + scatter(keys + value.view(torch.int64)) @ (bias == value).long().T
    return seen * _SHARES[is_open.sum(dim=-1)]


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


class _Clashes(Sequence[Clash]):
    """Conflicts, of which a search reads the number and one.

    Args:
        problems: Batches of problems.
        pairs: Numbers of predictions, among those of all batches one after another, `[conflict, 2]`.
    """

    def __init__(self, problems: Sequence[Problems], pairs: Tensor) -> None:
        self._problems, self._pairs = problems, pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return _Clashes(self._problems, self._pairs[index])
        return tuple(self._located(number) for number in self._pairs[index].tolist())

    def _located(self, number: int) -> tuple[Problems, int, int]:
        for problems in self._problems:
            if number < problems.target.numel():
                return problems, *divmod(number, problems.target.shape[1])
            number -= problems.target.numel()
        raise IndexError


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
        self._batches = [self._viewer(task.sample(generator, num_problems, shape)) for shape in shapes]
        longest = shapes[-1]
        self._base = self._viewer(task.sample(generator, num_pairs, longest))
        self._others = task.sample(generator, num_pairs, longest)
        self._by_field: _Kept[_Viewer] = _Kept(_MOST_FIELDS)

    def conflicts(self, window: Window) -> Sequence[Clash]:
        """Pairs of predictions with equal views and different tokens.

        Any pair proves that the window lacks a line. If there is none, other problems may still have one.
        """
        viewers = [*self._batches, *self._altered(window)]
        view = torch.cat([viewer.views(window).flatten() for viewer in viewers])
        token = torch.cat([viewer.problems.target.flatten() for viewer in viewers])
        order = view.argsort(stable=True)
        view, token = view[order], token[order]
        differs = ((view[1:] == view[:-1]) & (token[1:] != token[:-1])).nonzero()[:, 0]
        return _Clashes([viewer.problems for viewer in viewers], torch.stack([order[differs], order[differs + 1]], 1))

    def describe(self, clash: Clash) -> Conflict:
        """A pair of predictions in words."""
        vocabulary = self.task.vocabulary
        sources, tokens = [], []
        for problems, row, column in clash:
            token = problems.target[row, column : column + 1]
            sources.append(vocabulary.decode(problems.source[row]))
            tokens.append("the end" if int(token) == EOS else vocabulary.decode(token))
        return Conflict((sources[0], sources[1]), (clash[0][2], clash[1][2]), (tokens[0], tokens[1]))

    def _altered(self, window: Window) -> list[_Viewer]:
        """For each prediction of the longest shape, problems that differ outside its receptive field."""
        task, base = self.task, self._base.problems
        if not isinstance(task, Solvable):  # the targets of altered sources are not known
            return [self._base]
        field, _ = receptive_fields(window, task.layout(base.shape))
        altered = [self._base]
        for visible in field.unique(dim=0):

            def differing(visible: Tensor = visible) -> _Viewer:
                source = torch.where(visible, base.source, self._others.source)
                return self._viewer(solved(task, base.shape, source))

            altered.append(self._by_field.get(visible.numpy().tobytes(), differing))
        return altered

    def _viewer(self, problems: Problems) -> _Viewer:
        return _Viewer(problems, self.task.layout(problems.shape))


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
