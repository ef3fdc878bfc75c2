"""Binary trees: copied, rotated, reduced, edited.

Source: Kogkalidis et al. 2024 (arXiv 2312.16045). `tree.py` has the trees, and what each task makes of them.
"""

import abc
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from abc_toolkit.errors import UserError, check_literals
from abc_toolkit.tasks.base import TRAINING, Problems
from abc_toolkit.tasks.lengths import Shape
from abc_toolkit.tasks.structures.base import StructureTask, padded_problems
from abc_toolkit.tasks.structures.tree import (
    CYCLIC,
    FIRST_EDIT,
    PLAIN,
    UNIQUE,
    Alphabet,
    Edit,
    Nodes,
    Tree,
    branches,
    breadth_first,
    depth_first,
    draw_depths,
    draw_trees,
    edit_request,
    edited,
    expected_nodes,
    reduced,
    rotated,
)
from abc_toolkit.vocabulary import BOS, NUM_SPECIAL

DEEPEST = 16  # mean depth of trees: a tree has some 340 nodes then, and a quarter more with each step
_DEEPER = 4  # steps beyond the mean depth at which hardly a tree is
_LARGER = 4  # times the mean nodes of a depth that hardly a tree has
_REFUSED = 3  # trees that may have too many nodes even in a small batch


@dataclass(frozen=True)
class TreeTask(StructureTask):
    """A task on random binary trees of depth `floor(N(n, 1))`, of a shape `(n,)`.

    The source has `BOS`, then a tree's nodes breadth-first; the target has the nodes of another tree, without an end.
    Each token carries the coordinate `path` of its node, and `BOS` that of the root. A query of the target carries the
    path of the token that it holds, so that the decoder is told where that stands and not where the next one does.
    Position methods for sequences read the same tokens without the paths.

    Attributes:
        max_length: Mean depth of training trees, plus a half.
        order: Order of the target's nodes: `breadth` (breadth-first) or `depth` (depth-first).
    """

    max_length: int = 4
    order: Literal["breadth", "depth"] = "breadth"

    alphabet: ClassVar[Alphabet] = PLAIN
    largest_label: ClassVar[int] = PLAIN.operators[-1]
    least_depth: ClassVar[int] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_literals(self)
        if self.max_length > DEEPEST:
            raise UserError(f"max_length {self.max_length}: trees of more than {DEEPEST} steps have too many nodes")

    @property
    def vocabulary_size(self) -> int:
        return NUM_SPECIAL + self.largest_label

    def evaluation_shapes(self, length: int, suite: str, generator: Generator) -> tuple[Shape, ...]:
        """The depth.

        Raises:
            UserError: If it is more than `DEEPEST`.
        """
        if length > DEEPEST:
            raise UserError(f"--length: trees of depth {length} have too many nodes; choose at most {DEEPEST}")
        return super().evaluation_shapes(length, suite, generator)

    @abc.abstractmethod
    def problem(self, tree: Tree, chosen: float) -> tuple[Tree, Tree]:
        """What a problem on a tree asks, as a tree, and its answer; `chosen`, in 0 .. 1, decides what is left open."""

    def draw(self, generator: Generator, batch: int, mean: int) -> list[Tree]:
        """Trees of random depths.

        Raises:
            UserError: If more than one in ten has more nodes than labels, where no two nodes may have the same.
        """

        def draw(number: int) -> list[Tree]:
            depths = (max(self.least_depth, depth) for depth in draw_depths(generator, mean, number))
            return draw_trees(generator, [depth - self.least_depth for depth in depths], self.alphabet)

        if not self.alphabet.unique:
            return draw(batch)
        trees: list[Tree] = []
        left = _REFUSED + batch // 10
        while len(trees) < batch:
            try:
                trees += draw(1)
            except UserError:  # noqa: PERF203
                left -= 1
                if left < 0:
                    raise
        return trees

    def sample(self, generator: Generator, batch: int, shape: Shape, suite: str = TRAINING) -> Problems:
        trees = self.draw(generator, batch, shape[0])
        chosen = torch.rand(batch, generator=generator, dtype=torch.float64).tolist()
        problems = [self.problem(tree, number) for tree, number in zip(trees, chosen, strict=True)]
        in_order = breadth_first if self.order == "breadth" else depth_first
        sources = [breadth_first(asked) for asked, _ in problems]
        targets = [in_order(answer) for _, answer in problems]
        source_tokens, target_tokens = ([_tokens(nodes) for nodes in side] for side in (sources, targets))
        paths = _paths([nodes.numbers for nodes in sources]), _paths([nodes.numbers[:-1] for nodes in targets])
        return padded_problems(shape, [[BOS, *tokens] for tokens in source_tokens], target_tokens, paths)

    def num_tokens(self, shape: Shape) -> tuple[int, int]:
        nodes = math.ceil(_LARGER * expected_nodes(min(shape[0], 2 * DEEPEST) + _DEEPER))
        return 3 + nodes, nodes


@dataclass(frozen=True)
class TreeCopy(TreeTask):
    """Writes the tree again. Leaves have the labels 1 to 10, operators 11 to 20.

    Attributes:
        max_length: Mean depth of training trees, plus a half.
        order: Order of the target's nodes: `breadth` (breadth-first) or `depth` (depth-first).
    """

    def problem(self, tree: Tree, chosen: float) -> tuple[Tree, Tree]:
        return tree, tree


@dataclass(frozen=True)
class TreeRotate(TreeTask):
    """Rotates the tree to the right: `(root (p l r) R)` becomes `(p l (root r R))`, where an operator is on the left.

    At the fixpoint no operator is a left child, and both orders are the same. The released code makes one pass instead,
    which leaves a tree with a leaf on the left as it is, its right side too.

    Attributes:
        max_length: Mean depth of training trees, plus a half.
        order: Order of the target's nodes: `breadth` (breadth-first) or `depth` (depth-first).
        to_fixpoint: Whether rotations go on until none is left, as the paper says.
    """

    to_fixpoint: bool = True

    def problem(self, tree: Tree, chosen: float) -> tuple[Tree, Tree]:
        return tree, rotated(tree, self.to_fixpoint)


@dataclass(frozen=True)
class TreeC3(TreeTask):
    """One step of evaluation in the cyclic group of order 3: each operator over two leaves becomes their product.

    Attributes:
        max_length: Mean depth of training trees, plus a half.
        order: Order of the target's nodes: `breadth` (breadth-first) or `depth` (depth-first).
    """

    alphabet: ClassVar[Alphabet] = CYCLIC
    largest_label: ClassVar[int] = CYCLIC.operators[-1]

    def problem(self, tree: Tree, chosen: float) -> tuple[Tree, Tree]:
        return tree, reduced(tree)


@dataclass(frozen=True)
class TreeOperations(TreeTask):
    """Does with one subtree what the root says: return it, return it with its children swapped, cut it, or nothing.

    The source is the label of the operation over a leaf with the label of the subtree, and over the tree, one step less
    deep. Labels of a tree are unique: 64 for leaves, 60 for operators. The label of the first operation, 124, is also
    that of the last operator, as in the study. A tree with more nodes than labels is drawn again, with its depth.

    Attributes:
        max_length: Mean depth of training trees, plus a half.
        order: Order of the target's nodes: `breadth` (breadth-first) or `depth` (depth-first).
    """

    alphabet: ClassVar[Alphabet] = UNIQUE
    largest_label: ClassVar[int] = FIRST_EDIT + max(Edit)
    least_depth: ClassVar[int] = 1

    def problem(self, tree: Tree, chosen: float) -> tuple[Tree, Tree]:
        labels = breadth_first(tree).labels
        edit, node = divmod(int(chosen * len(Edit) * len(labels)), len(labels))
        return edit_request(tree, edit, labels[node]), edited(tree, edit, labels[node])


def _tokens(nodes: Nodes) -> list[int]:
    return [label + NUM_SPECIAL - 1 for label in nodes.labels]


def _paths(rows: list[list[int]]) -> Tensor:
    """The coordinate `path` of `BOS` and of nodes by their numbers in a heap, `[batch, length, depth]`."""
    paths = [[(), *map(branches, row)] for row in rows]
    length, depth = max(map(len, paths)), max(len(path) for row in paths for path in row)
    padding = (-1,) * depth
    return torch.tensor(
        [[(*path, *padding[len(path) :]) for path in row] + [padding] * (length - len(row)) for row in paths],
        dtype=torch.long,
    ).view(len(rows), length, depth)
