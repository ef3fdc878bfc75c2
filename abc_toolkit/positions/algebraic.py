"""Algebraic positional encodings: queries and keys are multiplied by products of orthogonal matrices."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from abc_toolkit.errors import UserError, check_literals, check_numbers
from abc_toolkit.layout import Layout, Positions
from abc_toolkit.positions.base import (
    AttentionPosition,
    ModelPosition,
    ModelSizes,
    PositionMethod,
    Site,
    check_coordinates,
)

Structure = Literal["sequence", "grid", "tree"]
_MATRICES = "matrices of paths"  # a coordinate that trees are given; the name keeps it out of messages


@dataclass(frozen=True)
class AlgebraicPE(PositionMethod):
    """Queries and keys are multiplied by learned orthogonal matrices, so that logits depend on the path between them.

    With a learned `X`, `W = expm(X - X^T)` is one step. A query or key `x` becomes `M x`:

    - sequence: `M = W^p` with the coordinate `p`, so that the logit of `i` and `j` is `q^T W^(j - i) k`;
    - grid: the first half of the channels is multiplied by `W_1^x`, the second half by `W_2^y`;
    - tree: `M = W_b1^T W_b2^T ... W_bt^T` with the branches `b1 .. bt` from the root. The common beginning of two paths
      cancels, so that the logit depends on the path from one node to the other.

    The layout must have the coordinates `x` and `y` for a grid, and for a tree `path`, `[length, depth]`: the branches
    from the root, numbered from 0, then -1. `tree_paths` computes it for nodes that are numbered level by level.

    Source: Kogkalidis et al. 2024 (arXiv 2312.16045). The released code multiplies every logit by 0.98 to the power of
    the distance, which the paper does not say: `decay` does it, with the distance `|i - j|`, on a grid the Euclidean
    one rounded down, on a tree the steps `|a| + |b| - 2 |common beginning|`, where the released ones also count
    padding. The released code rotates a grid's keys by the queries' positions, which differs only where these differ,
    looks a tree's paths up one entry late (`tree_paths` has it as an option) and has all heads share a tree's matrices;
    here every head has its own.

    Defined at any length, but beyond the training length a model meets new products. Powers are computed by repeated
    squaring in double precision, so that they stay orthogonal; a device without double precision cannot run this. It
    acts in self-attention; with `cross` it acts in cross-attention too, on the same coordinates of both strings, each
    counted from its own start. Pointwise.

    Parameters, shared by all layers and sites: `primitives`, the `X`, `[1, head, d, d]` of a sequence with `d` the
    head's width, `[2, head, d/2, d/2]` of a grid, `[branching, head, d, d]` of a tree. The released code fits random
    ones by gradient descent until each `W` is a rotation of the planes `2j` and `2j + 1` by the angles
    `-10000^(-2 floor(j/2) / (d/2))`, each of RoPE's kind twice; here they start there in closed form,
    `X_(2j, 2j+1) = -X_(2j+1, 2j)` half the angle's size, which is the same but for a symmetric part of `X`, which `W`
    does not depend on.

    Attributes:
        structure: Whether positions are in a sequence, in a grid or in a tree.
        coordinate: Coordinate of the layout for a sequence, for queries and keys.
        branching: The most children of a node of a tree.
        decay: Factor of a logit for each step of distance; `None` for none.
        cross: Whether it acts in cross-attention too.
    """

    structure: Structure = "sequence"
    coordinate: str = "raw"
    branching: int = 2
    decay: float | None = None
    cross: bool = False

    def __post_init__(self) -> None:
        check_literals(self)
        check_coordinates(self, "coordinate")
        check_numbers(self, "model.position", ("branching",), at_least=1)
        if self.decay is not None:
            check_numbers(self, "model.position", ("decay",), at_most=1)

    @property
    def coordinates(self) -> tuple[str, ...]:
        """The coordinates that it reads."""
        return {"sequence": (self.coordinate,), "grid": ("x", "y"), "tree": ("path",)}[self.structure]

    def build(self, sizes: ModelSizes) -> ModelPosition:
        return AlgebraicModel(self, sizes)


class AlgebraicModel(ModelPosition):
    """`AlgebraicPE` in one model."""

    makes = (_MATRICES,)
    method: AlgebraicPE

    def __init__(self, method: AlgebraicPE, sizes: ModelSizes) -> None:
        super().__init__(method, sizes)
        parts = 2 if method.structure == "grid" else 1
        width = sizes.head_dim // parts
        if sizes.head_dim % parts or width < 2:
            wanted = "an even head width of at least 4" if parts == 2 else "a head width of at least 2"
            raise UserError(
                f"AlgebraicPE of a {method.structure} needs {wanted} and has {sizes.head_dim}: change model_dim or "
                "num_heads"
            )
        count = method.branching if method.structure == "tree" else parts
        self.primitives = nn.Parameter(_rope_like(width).repeat(count, sizes.num_heads, 1, 1))

    def steps(self) -> Tensor:
        """The orthogonal matrices, `[primitive, head, width, width]`, in double precision."""
        primitives = self.primitives.double()
        return torch.linalg.matrix_exp(primitives - primitives.mT)

    def prepare(self, layout: Layout) -> Layout:
        """The layout; that of a tree with each node's matrix, which all layers share."""
        for positions in (layout.source, layout.target, layout.prefix):
            for name in self.method.coordinates:
                if self.method.structure == "sequence":
                    positions.coordinate(name)
                elif name not in positions.coordinates:
                    raise UserError(
                        f"AlgebraicPE of a {self.method.structure} needs the coordinate {name}, which the layout of "
                        "this task does not have: choose the structure sequence, or a task that has it"
                    )
        if self.method.structure != "tree":
            return layout
        steps = self.steps()
        return Layout(*(self._with_matrices(part, steps) for part in (layout.source, layout.target, layout.prefix)))

    def _with_matrices(self, positions: Positions, steps: Tensor) -> Positions:
        path = positions.coordinates["path"]
        if (path >= self.method.branching).any():
            raise UserError(
                f"AlgebraicPE meets branch {int(path.max())}, counted from 0, and has a branching of "
                f"{self.method.branching}: raise branching"
            )
        matrices = _from_root(steps, path.flatten(0, -2))
        matrices = matrices.to(torch.promote_types(self.primitives.dtype, torch.float32))
        return positions.beside({_MATRICES: matrices.unflatten(0, path.shape[:-1])}, own="path" in positions.own)

    def at(self, site: Site, layer: int) -> AttentionPosition:
        return AttentionPosition() if site == "cross" and not self.method.cross else AlgebraicAttention(self)


class AlgebraicAttention(AttentionPosition):
    """`AlgebraicPE` in one attention, which reads the matrices of the model."""

    takes_batches = True

    def __init__(self, model: AlgebraicModel) -> None:
        self.model = model
        self.method = model.method
        self.transforms = model.method.decay is not None

    def rotate(self, q: Tensor, k: Tensor, q_positions: Positions, k_positions: Positions) -> tuple[Tensor, Tensor]:
        if self.method.structure == "tree":
            return _along_paths(q, q_positions), _along_paths(k, k_positions)
        steps = self.model.steps()
        return self._moved(q, q_positions, steps), self._moved(k, k_positions, steps)

    def transform(
        self,
        scores: Tensor,
        q: Tensor,
        k: Tensor,
        q_positions: Positions,
        k_positions: Positions,
        mask: Tensor | None = None,
    ) -> Tensor:
        if self.method.decay is None:
            return scores
        return scores * (self.method.decay ** self._distance(q_positions, k_positions)).to(scores.dtype)

    def _coordinates(self, positions: Positions) -> list[Tensor]:
        """The coordinates that it reads; those that differ from problem to problem, `[batch, 1, length]`."""
        found = ((name, positions.coordinates[name]) for name in self.method.coordinates)
        return [coordinate[:, None] if name in positions.own else coordinate for name, coordinate in found]

    def _moved(self, x: Tensor, positions: Positions, steps: Tensor) -> Tensor:
        coordinates = self._coordinates(positions)
        parts = x.to(torch.promote_types(x.dtype, torch.float32)).chunk(len(coordinates), dim=-1)
        each = zip(parts, steps, coordinates, strict=True)
        moved = torch.cat([_powers(part, step, power) for part, step, power in each], dim=-1)
        return moved.to(x.dtype)

    def _distance(self, q_positions: Positions, k_positions: Positions) -> Tensor:
        """Steps from each query to each key, `[query, key]`, or `[batch, 1, query, key]`."""
        keys = zip(self.method.coordinates, self._coordinates(k_positions), strict=True)
        keys = [key[:, :, None] if name in k_positions.own else key for name, key in keys]
        both = zip(self._coordinates(q_positions), keys, strict=True)
        if self.method.structure == "tree":
            ((q, k),) = both
            # The paths of two strings may have room for different depths.
            common = min(q.shape[-1], k.shape[-1])
            ours, theirs = q[..., None, :common], k[..., :common]
            shared = ((ours == theirs) & (ours >= 0)).cumprod(dim=-1).sum(dim=-1)
            return (q >= 0).sum(dim=-1)[..., None] + (k >= 0).sum(dim=-1) - 2 * shared
        differences = torch.stack([q[..., None] - k for q, k in both])
        return differences.double().norm(dim=0).floor()


def tree_paths(numbers: Tensor, branching: int = 2, released: bool = False) -> Tensor:
    """The coordinate `path` of a tree's nodes.

    Args:
        numbers: Their numbers level by level, the root's 1, `[length]`; what is no node of the tree has one below 1,
            and the root's path.
        branching: Children of a node.
        released: Whether paths are looked up one entry late, as in the code that the paper released: each node has
            the path of the one after it, and the root that of its first child.

    Returns:
        The branches from the root, then -1, `[length, depth]`.
    """
    left = (numbers if released else numbers - 1).clamp(min=0)
    path = left.new_empty(len(left), 0)
    while left.any():
        below = left > 0
        branch, end = (left - 1) % branching, torch.full_like(left, -1)
        path = torch.where(below[:, None], torch.column_stack([branch, path]), torch.column_stack([path, end]))
        left = torch.where(below, (left - 1) // branching, left)
    return path


def _rope_like(width: int) -> Tensor:
    """The `X` that a matrix starts at, `[width, width]`."""
    even = torch.arange(0, width - 1, 2)
    half = 10000.0 ** (-2 * (even // 4) / (width / 2)) / 2
    primitive = torch.zeros(width, width)
    primitive[even, even + 1] = half
    primitive[even + 1, even] = -half
    return primitive


def _through(matrices: Tensor, x: Tensor) -> Tensor:
    """Vectors `[batch, head, ..., dim]` through one matrix a head."""
    return torch.einsum("hed,bh...d->bh...e", matrices.to(x.dtype), x)


def _powers(x: Tensor, step: Tensor, power: Tensor) -> Tensor:
    """Vectors `[batch, head, ..., dim]` each through its own power of a matrix.

    The powers are `[...]`, or of a batch whose problems differ `[batch, 1, ...]`.
    """
    width = x.shape[-1]
    if len(x) <= width or power.dim() == x.dim() - 1:
        return _through_powers(x, step, power)
    # Of more vectors to a position than channels, it is less work to find each position's matrix, column by column.
    columns = torch.eye(width, dtype=x.dtype, device=x.device).view(width, *(1,) * (x.dim() - 2), width)
    columns = _through_powers(columns.expand(width, *x.shape[1:]), step, power)
    return torch.einsum("ch...e,bh...c->bh...e", columns, x)


def _through_powers(x: Tensor, step: Tensor, power: Tensor) -> Tensor:
    """What `_powers` returns, by squares of the matrix for the binary digits of the power."""
    digits, negative = _binary(power)
    for digit in range(digits):
        x = torch.where((power >> digit & 1)[..., None] == 1, _through(step, x), x)
        step = step @ step
    # The digits of a negative number, in two's complement, are those of its sum with the power of two that is next.
    return torch.where(power[..., None] < 0, _through(step.mT, x), x) if negative else x


def _binary(numbers: Tensor) -> tuple[int, bool]:
    """Binary digits that hold the numbers, whatever their signs, and whether one may be negative."""
    if torch.compiler.is_compiling():  # a number taken out of a tensor would cut the graph in two
        return 31, True
    least, most = (int(number) for number in numbers.aminmax())
    return max(-least, most).bit_length(), least < 0


def _along_paths(x: Tensor, positions: Positions) -> Tensor:
    """Vectors `[batch, head, ..., dim]` of nodes through the matrices of their paths."""
    matrices = positions.coordinates[_MATRICES]
    if positions.segment.dim() > 1:  # gathered keys: in each head, others
        matrices = matrices.diagonal(dim1=0, dim2=-3).movedim(-1, 0)
    else:
        matrices = matrices.movedim(-3, -4)
    batch = "b" if _MATRICES in positions.own else ""
    return torch.einsum(f"{batch}h...ed,bh...d->bh...e", matrices, x.to(matrices.dtype)).to(x.dtype)


def _from_root(steps: Tensor, path: Tensor) -> Tensor:
    """The matrix of each path from the root, `[path, head, width, width]`, the deepest branch first.

    Args:
        steps: The matrix of each branch, `[branch, head, width, width]`.
        path: The paths, `[path, depth]`.
    """
    # Many paths have their beginning in common. Level by level, each beginning's matrix is computed once.
    num_branches = len(steps)
    which = path.new_zeros(len(path))
    matrices = torch.eye(steps.shape[-1], dtype=steps.dtype, device=steps.device).expand(1, steps.shape[1], -1, -1)
    for branch in path.unbind(dim=1):
        distinct, which = (which * (num_branches + 1) + branch + 1).unique(return_inverse=True)
        before, last = distinct // (num_branches + 1), distinct % (num_branches + 1) - 1
        matrices = matrices[before]
        matrices = torch.where((last >= 0)[:, None, None, None], matrices @ steps[last].mT, matrices)
    return matrices[which]
