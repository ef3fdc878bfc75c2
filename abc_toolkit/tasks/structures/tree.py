"""Labelled binary trees: random ones, what the study's tasks make of them, and their nodes in order.

Source of the study: *Algebraic Positional Encodings*, NeurIPS 2024 (arXiv 2312.16045). An inner node is an operator;
its label is never that of a leaf.
"""

from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple, Optional

import torch
from torch import Generator

from abc_toolkit.errors import UserError


class Tree(NamedTuple):
    """A leaf, which has a label alone, or an operator with two children.

    It is a tuple, since a training makes hundreds of thousands of trees.

    Attributes:
        label: The label of the root.
        left: The left child, or None at a leaf.
        right: The right child, or None at a leaf.
    """

    label: int
    left: Optional["Tree"] = None
    right: Optional["Tree"] = None


class Alphabet(NamedTuple):
    """The labels of random trees.

    Attributes:
        leaves: Labels of leaves.
        operators: Labels of operators.
        unique: Whether no two nodes of a tree have the same label.
    """

    leaves: range
    operators: range
    unique: bool = False


# The study's alphabets: of copies and rotations, of reductions in the cyclic group, and of edits.
PLAIN = Alphabet(range(1, 11), range(11, 21))
CYCLIC = Alphabet(range(1, 4), range(4, 5))
UNIQUE = Alphabet(range(1, 65), range(65, 125), unique=True)


def draw_depths(generator: Generator, mean: float, number: int) -> list[int]:
    """Depths of `number` trees: `floor(N(mean, 1))`, and 0 where that is negative.

    With the study's mean of 7, one depth in 10^12 is negative.
    """
    depths = torch.randn(number, generator=generator, dtype=torch.float64) + mean
    return depths.floor().clamp(min=0).int().tolist()


def expected_nodes(depth: int) -> float:
    """The mean number of nodes of a random tree of a depth."""
    means = [1.0]
    for deep in range(1, depth + 1):
        shallow = ((deep + 1) * sum(means[:-1]) + means[-1]) / deep**2
        means.append(1 + means[-1] + shallow)
    return means[depth]


def draw_trees(generator: Generator, depths: Sequence[int], alphabet: Alphabet = PLAIN) -> list[Tree]:
    """Random trees of exactly the given depths, by the law of the study.

    A tree of depth 0 is a leaf. One child of a tree of depth `D` has depth `D - 1`. The depth of the other child is
    uniform in `0 .. D-1`, and is drawn once more if it is `D - 1`. Sides are fair, and labels are uniform.

    Args:
        generator: The source of all randomness.
        depths: The depth of each tree.
        alphabet: The labels.

    Raises:
        UserError: If labels are unique, and a tree has more leaves or operators than there are labels.
    """
    # A call of the generator takes longer than a node does, so the numbers for all trees are drawn at once. Trees take
    # three numbers for two nodes on average; the block is a third larger.
    block = int(2 * sum(map(expected_nodes, depths))) + 1
    uniform = _uniform(generator, block)
    return [_draw_tree(uniform, depth, alphabet) for depth in depths]


def _uniform(generator: Generator, block: int) -> Iterator[float]:
    """Uniform numbers in `[0, 1)`, taken from the generator in blocks of a size."""
    while True:
        yield from torch.rand(block, generator=generator, dtype=torch.float64).tolist()


def _draw_tree(uniform: Iterator[float], depth: int, alphabet: Alphabet) -> Tree:
    """A random tree of a depth, from uniform numbers: a label for each node, and a shape for each operator."""
    leaves, operators = list(alphabet.leaves), list(alphabet.operators)

    def draw_label(labels: list[int]) -> int:
        if not labels:
            raise UserError(
                f"trees that exhaust their labels: a tree of depth {depth} has more than {len(alphabet.leaves)} leaves "
                f"or {len(alphabet.operators)} operators, all with labels of their own: choose a smaller depth"
            )
        index = int(next(uniform) * len(labels))
        return labels.pop(index) if alphabet.unique else labels[index]

    def draw(depth: int) -> Tree:
        if depth == 0:
            return Tree(draw_label(leaves))
        label = draw_label(operators)
        # One number stands for both draws: of D^2 equal cases, one has depth D - 1, and each smaller depth has D + 1.
        case, side = divmod(int(next(uniform) * 2 * depth**2), 2)
        deep, other = draw(depth - 1), draw(case // (depth + 1))
        return Tree(label, deep, other) if side else Tree(label, other, deep)

    return draw(depth)


def rotated(tree: Tree, to_fixpoint: bool = True) -> Tree:
    """The tree after right rotations: `(root (p l r) R)` becomes `(p l (root r R))`.

    Rotations keep the labels in order: those of the left child, of the operator, of the right child.

    At the fixpoint, nothing is left to rotate: every left child is a leaf. Rotations reach it in any order, since each
    makes the left subtree of one operator smaller and that of no operator larger. The fixpoint is unique, since the
    labels in order determine a tree whose left children are leaves. Its depth is the number of operators, and its
    breadth-first order is its depth-first order.

    Args:
        tree: The tree.
        to_fixpoint: Whether to rotate up to the fixpoint, as the paper says. Its released code makes one pass instead:
            `(root (p l r) R)` becomes `(p l' (root r' R'))`, with `l`, `r` and `R` treated likewise, and a tree whose
            left child is a leaf stays as it is, its right child too.
    """
    if not to_fixpoint:
        return _rotated_once(tree)
    labels = _labels_in_order(tree)
    result = Tree(labels[-1])
    for i in range(len(labels) - 2, 0, -2):
        result = Tree(labels[i], Tree(labels[i - 1]), result)
    return result


def _rotated_once(tree: Tree) -> Tree:
    label, left, right = tree
    if left is None or right is None or left.left is None or left.right is None:
        return tree
    below = Tree(label, _rotated_once(left.right), _rotated_once(right))
    return Tree(left.label, _rotated_once(left.left), below)


def _labels_in_order(tree: Tree) -> list[int]:
    """Labels in order: those of the left child, of the operator, of the right child."""
    labels: list[int] = []
    waiting: list[Tree] = []
    node: Tree | None = tree
    while node is not None or waiting:
        while node is not None:
            waiting.append(node)
            node = node.left
        parent = waiting.pop()
        labels.append(parent.label)
        node = parent.right
    return labels


def reduced(tree: Tree) -> Tree:
    """One step of evaluation in the cyclic group of order 3, whose elements are 1 (neutral), 2 and 3.

    Each operator over two leaves becomes the leaf that is their product: 1 x = x, 2 2 = 3, 2 3 = 1, 3 3 = 2. All other
    nodes stay.
    """
    label, left, right = tree
    if left is None or right is None:
        return tree
    if left.left is None and right.left is None:
        return Tree((left.label + right.label - 2) % 3 + 1)
    return Tree(label, reduced(left), reduced(right))


class Edit(IntEnum):
    """What is done with a subtree, numbered as in the study."""

    RETURN = 0
    """The subtree alone."""
    SWAP = 1
    """The subtree alone, with its children swapped."""
    CUT = 2
    """The whole tree, with a leaf of the subtree's label in its place."""
    KEEP = 3
    """The whole tree."""


# The study's label of the first edit, which is that of the last operator, too.
FIRST_EDIT = 124


def edit_request(tree: Tree, edit: int, label: int, first_edit: int = FIRST_EDIT) -> Tree:
    """A tree that asks for an edit: the edit's label over a leaf, which points to a subtree, and the tree.

    Args:
        tree: The tree, with unique labels.
        edit: An `Edit`.
        label: The label of the subtree's root.
        first_edit: The label of edit 0. In the study's vocabulary of 128 tokens, it is 124, which is the label of an
            operator as well; 125 sets them apart.
    """
    return Tree(first_edit + edit, Tree(label), tree)


def edited(tree: Tree, edit: int, label: int) -> Tree:
    """What an edit makes of a tree.

    Args:
        tree: The tree, with unique labels.
        edit: An `Edit`.
        label: The label of the subtree's root. A leaf has no children to swap.

    Raises:
        ValueError: If no node has the label, or there is no such edit.
    """
    edit = Edit(edit)
    subtree = _subtree(tree, label)
    if subtree is None:
        raise ValueError(f"no node has the label {label}")
    if edit is Edit.RETURN:
        return subtree
    if edit is Edit.SWAP:
        return Tree(label, subtree.right, subtree.left)
    return _cut(tree, label) if edit is Edit.CUT else tree


def _subtree(tree: Tree, label: int) -> Tree | None:
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if node.label == label:
            return node
        if node.left is not None and node.right is not None:
            waiting += (node.left, node.right)
    return None


def _cut(tree: Tree, label: int) -> Tree:
    """The tree with a leaf in place of the subtree of a label."""
    if tree.label == label:
        return Tree(label)
    if tree.left is None or tree.right is None:
        return tree
    return Tree(tree.label, _cut(tree.left, label), _cut(tree.right, label))


class Nodes(NamedTuple):
    """The nodes of a tree in some order.

    Attributes:
        labels: The label of each node.
        numbers: The number of each node in a heap: the root has 1, and the children of `p` have `2p` and `2p + 1`.
            A node of depth 63 or more has a number that no integer tensor holds.
    """

    labels: list[int]
    numbers: list[int]


def breadth_first(tree: Tree) -> Nodes:
    """The nodes level by level, each level from left to right."""
    nodes, numbers = [tree], [1]
    for node, number in zip(nodes, numbers, strict=True):  # Both grow: children go to the end.
        if node.left is not None and node.right is not None:
            nodes += (node.left, node.right)
            numbers += (2 * number, 2 * number + 1)
    return Nodes([node.label for node in nodes], numbers)


def depth_first(tree: Tree) -> Nodes:
    """The nodes, each operator before its left subtree, and that before its right subtree."""
    labels, numbers = [], []
    waiting = [(tree, 1)]
    while waiting:
        node, number = waiting.pop()
        labels.append(node.label)
        numbers.append(number)
        if node.left is not None and node.right is not None:
            waiting += ((node.right, 2 * number + 1), (node.left, 2 * number))
    return Nodes(labels, numbers)


def branches(number: int) -> tuple[int, ...]:
    """The path from the root to the node with a number in a heap: 0 is a step to the left, 1 to the right."""
    return tuple(map(int, f"{number:b}"[1:]))
