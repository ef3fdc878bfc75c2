"""Several position methods as one."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from abc_toolkit.errors import UserError
from abc_toolkit.layout import Layout, Positions
from abc_toolkit.positions import by_problem
from abc_toolkit.positions.base import (
    AttentionPosition,
    ModelPosition,
    ModelSizes,
    OpenKeys,
    PositionMethod,
    Site,
    check_methods,
)


@dataclass(frozen=True)
class Compose(PositionMethod):
    """Several position methods as one, applied in their order.

    One method after the other prepares the layout, adds to the embeddings, and changes queries, keys and logits. Biases
    are summed: `softmax(t_n(.. t_1(s_ij)) + b_1 + .. + b_n)`. Source: arXiv 2310.11984, appendix A.4, joins cyclic
    positions and a window; the rest is ours. Lengths, sites and parameters are those of the methods. Pointwise if all
    methods are. Keys can be gathered if exactly one of the methods has a window.

    Attributes:
        methods: The position methods. At most one of them may rotate the queries and keys of a site.
    """

    methods: tuple[PositionMethod, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.methods, tuple) or not self.methods:
            raise UserError("Compose has no methods: give a tuple of at least one position method")
        check_methods(self, self.methods)

    def build(self, sizes: ModelSizes) -> ModelPosition:
        return _ComposedModel(self, sizes)


class _ComposedModel(ModelPosition):
    """`Compose` in one model."""

    takes_batches = True

    def __init__(self, method: Compose, sizes: ModelSizes) -> None:
        super().__init__(method, sizes)
        self.parts: list[ModelPosition] = [part.build(sizes) for part in method.methods]
        for number, part in enumerate(self.parts):
            self.add_module(str(number), part)
        self.check_apart()

    def prepare(self, layout: Layout) -> Layout:
        for part in self.parts:
            layout = part.prepare(layout)
        return layout

    def embed(self, x: Tensor, positions: Positions) -> Tensor:
        for part in self.parts:
            x = by_problem.embed(part, x, positions)
        return x

    def at(self, site: Site, layer: int) -> AttentionPosition:
        hooks = [part.at(site, layer) for part in self.parts]
        rotating = [type(part.method).__name__ for part, hook in zip(self.parts, hooks, strict=True) if hook.rotates]
        if len(rotating) > 1:
            raise UserError(f"Compose: {' and '.join(rotating)} both rotate queries and keys: keep one of them")
        joined = _joined(hooks)
        if isinstance(joined, _Joined) and any(isinstance(hook, nn.Module) for hook in joined.hooks):
            return _JoinedModule(joined.hooks)
        return joined


def _joined(hooks: Iterable[AttentionPosition]) -> AttentionPosition:
    """The hooks as one, without those that do nothing."""
    active = tuple(hook for hook in hooks if not hook.does_nothing)
    if len(active) > 1:
        return _Joined(active)
    return active[0] if active else AttentionPosition()


class _Joined(AttentionPosition):
    """The hooks of several methods as one."""

    takes_batches = True

    def __init__(self, hooks: tuple[AttentionPosition, ...]) -> None:
        self.hooks = hooks
        self.pointwise = all(hook.pointwise for hook in hooks)
        self.transforms = any(hook.transforms for hook in hooks)
        self.numbers_a_pair = max(hook.numbers_a_pair for hook in hooks)

    @property
    def rotates(self) -> bool:
        return any(hook.rotates for hook in self.hooks)

    def rotate(self, q: Tensor, k: Tensor, q_positions: Positions, k_positions: Positions) -> tuple[Tensor, Tensor]:
        for hook in self.hooks:
            q, k = by_problem.rotate(hook, q, k, q_positions, k_positions)
        return q, k

    def bias(self, q_positions: Positions, k_positions: Positions) -> Tensor | None:
        total = None
        for hook in self.hooks:
            bias = by_problem.bias(hook, q_positions, k_positions)
            if bias is not None:
                total = bias if total is None else total + bias
        return total

    def transform(
        self,
        scores: Tensor,
        q: Tensor,
        k: Tensor,
        q_positions: Positions,
        k_positions: Positions,
        mask: Tensor | None = None,
    ) -> Tensor:
        for hook in self.hooks:
            scores = by_problem.transform(hook, scores, q, k, q_positions, k_positions, mask)
        return scores

    def open_keys(self, q_positions: Positions, k_positions: Positions, most: float) -> OpenKeys | None:
        windows = self._windows()
        return windows[0].open_keys(q_positions, k_positions, most) if len(windows) == 1 else None

    def among_open_keys(self) -> AttentionPosition:
        return _joined(hook.among_open_keys() for hook in self.hooks)

    def why_not_gathered(self) -> str | None:
        for hook in self.hooks:
            if not hook.pointwise:
                return hook.not_pointwise()
        windows = self._windows()
        if len(windows) > 1:
            return f"{len(windows)} of its methods have a window, and only one of them may have one"
        return None if windows else super().why_not_gathered()

    def _windows(self) -> list[AttentionPosition]:
        return [hook for hook in self.hooks if hook.why_not_gathered() is None]


class _JoinedModule(nn.Module, _Joined):
    """The hooks of several methods as one, some of which have parameters of their own."""

    def __init__(self, hooks: tuple[AttentionPosition, ...]) -> None:
        nn.Module.__init__(self)
        _Joined.__init__(self, hooks)
        for number, hook in enumerate(hooks):
            if isinstance(hook, nn.Module):
                self.add_module(str(number), hook)
