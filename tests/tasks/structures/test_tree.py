"""Trees: the law of random ones, and what is made of them, against oracles on nested lists and on paths.

A nested list is `[label]` or `[label, left, right]`. A table has a label for each path from the root, such as "01":
left, then right.
"""

import math
import random
from collections import Counter
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abc_toolkit.errors import UserError
from abc_toolkit.tasks.structures.tree import (
    CYCLIC,
    PLAIN,
    UNIQUE,
    Alphabet,
    Edit,
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
from abc_toolkit.testing.task_contract import generator
from tests.tasks.functions.laws import assert_mean, assert_share

Nested = list[Any]


def trees(alphabet: Alphabet) -> st.SearchStrategy[Tree]:
    """Trees of any shape with up to 24 leaves."""
    leaves, operators = st.sampled_from(alphabet.leaves).map(Tree), st.sampled_from(alphabet.operators)

    def above(children: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
        return st.tuples(operators, children, children).map(Tree._make)

    return st.recursive(leaves, above, max_leaves=24)


def nested(tree: Tree) -> Nested:
    return [tree.label] if tree.left is None or tree.right is None else [tree[0], nested(tree.left), nested(tree.right)]


def table(tree: Nested, path: str = "") -> dict[str, int]:
    labels = {path: tree[0]}
    for branch, child in enumerate(tree[1:]):
        labels |= table(child, f"{path}{branch}")
    return labels


def from_table(labels: dict[str, int], path: str = "") -> Nested:
    inner = f"{path}0" in labels
    return [labels[path], *(from_table(labels, path + branch) for branch in "01" if inner)]


def renumbered(tree: Nested) -> Nested:
    """The same shape with labels 1, 2, ... of its own for each node."""
    return from_table({path: number for number, path in enumerate(table(tree), start=1)})


def as_tree(tree: Nested) -> Tree:
    return Tree(tree[0], *map(as_tree, tree[1:]))


def height(tree: Nested) -> int:
    return max(map(len, table(tree)))


def left_to_right(tree: Nested) -> list[int]:
    return tree if len(tree) == 1 else [*left_to_right(tree[1]), tree[0], *left_to_right(tree[2])]


# Random trees


def shape_law(depth: int) -> dict[str, Fraction]:
    """The probability of each shape of a depth, in brackets, by the draws that the study's code makes."""
    if depth == 0:
        return {"": Fraction(1)}
    other_depth: Counter[int] = Counter()
    for first in range(depth):
        for second in range(depth):
            other_depth[second if first == depth - 1 else first] += 1
    law: dict[str, Fraction] = {}
    for other, cases in other_depth.items():
        for deep_shape, deep_chance in shape_law(depth - 1).items():
            for shape, chance in shape_law(other).items():
                for left, right in ((deep_shape, shape), (shape, deep_shape)):
                    both = f"({left})({right})"
                    share = Fraction(cases, 2 * depth**2) * deep_chance * chance
                    law[both] = law.get(both, Fraction(0)) + share
    return law


def shape(tree: Tree) -> str:
    return "" if tree.left is None or tree.right is None else f"({shape(tree.left)})({shape(tree.right)})"


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_shapes_have_the_law_of_the_draws(depth: int) -> None:
    law = shape_law(depth)
    assert sum(law.values()) == 1
    number = 12_000
    found = Counter(map(shape, draw_trees(generator(), [depth] * number)))
    assert set(found) == set(law)
    for drawn, share in law.items():
        if share < 1:
            assert_share(found[drawn], number, float(share))


@pytest.mark.parametrize("depth", [5, 8])
def test_the_other_depth_has_the_law_of_one_redraw_and_sides_are_fair(depth: int) -> None:
    number = 3000
    others: Counter[int] = Counter()
    deep_left = 0
    for tree in draw_trees(generator(), [depth] * number):
        _, left, right = nested(tree)
        depths = height(left), height(right)
        assert max(depths) == depth - 1
        others[min(depths)] += 1
        deep_left += depths[0] > depths[1]
    assert_share(others[depth - 1], number, 1 / depth**2)
    for other in range(depth - 1):
        assert_share(others[other], number, 1 / depth + 1 / depth**2)
    assert_share(deep_left, number, (1 - 1 / depth**2) / 2)


def test_labels_are_uniform() -> None:
    leaves: Counter[int] = Counter()
    operators: Counter[int] = Counter()
    for tree in draw_trees(generator(), [5] * 500):
        labels = table(nested(tree))
        for path, label in labels.items():
            (operators if f"{path}0" in labels else leaves)[label] += 1
    for found, labels in ((leaves, PLAIN.leaves), (operators, PLAIN.operators)):
        assert sorted(found) == list(labels)
        for label in labels:
            assert_share(found[label], found.total(), 1 / len(labels))


def test_unique_labels_are_drawn_without_repetition() -> None:
    at_root: Counter[int] = Counter()
    at_leaf: Counter[int] = Counter()
    number = 3000
    for tree in draw_trees(generator(), [4] * number, UNIQUE):
        labels = table(nested(tree))
        assert len(set(labels.values())) == len(labels)
        for path, label in labels.items():
            assert label in (UNIQUE.operators if f"{path}0" in labels else UNIQUE.leaves)
        at_root[labels[""]] += 1
        at_leaf[labels[max(labels)]] += 1  # The last leaf from left to right: others have been drawn before.
    for found, labels in ((at_root, UNIQUE.operators), (at_leaf, UNIQUE.leaves)):
        for label in labels:
            assert_share(found[label], number, 1 / len(labels))


@pytest.mark.parametrize("alphabet", [Alphabet(range(1, 3), range(3, 9), True), Alphabet(range(4), range(4, 6), True)])
def test_trees_that_exhaust_their_labels_are_refused_in_one_line(alphabet: Alphabet) -> None:
    with pytest.raises(UserError, match=r"^trees that exhaust their labels: a tree of depth 3 .* smaller depth$"):
        draw_trees(generator(), [3], alphabet)


@pytest.mark.parametrize("depth", range(9))
def test_expected_nodes_is_the_mean_of_random_trees(depth: int) -> None:
    numbers = [len(breadth_first(tree).labels) for tree in draw_trees(generator(), [depth] * 1500, CYCLIC)]
    assert_mean(torch.tensor(numbers), expected_nodes(depth))


def test_expected_nodes_by_hand_and_as_measured_in_the_study() -> None:
    # Depth 2: five nodes unless the other child has depth 1 as well, which it has in one case of four.
    assert [expected_nodes(depth) for depth in range(3)] == [1, 3, 5.5]
    assert [round(expected_nodes(depth)) for depth in range(4, 9)] == [13, 19, 27, 37, 50]


@pytest.mark.parametrize("mean", [7, 0.3])
def test_depths_are_the_floor_of_a_normal_variable_and_never_negative(mean: float) -> None:
    number = 20_000
    found = Counter(draw_depths(generator(), mean, number))
    assert min(found) >= 0

    def below(bound: float) -> float:
        return (1 + math.erf((bound - mean) / math.sqrt(2))) / 2

    assert_share(found[0], number, below(1))
    for depth in range(1, 10):
        assert_share(found[depth], number, below(depth + 1) - below(depth))


def test_the_generator_is_the_only_source_of_randomness() -> None:
    source = torch.Generator().manual_seed(3)
    depths = draw_depths(source, 4, 8)
    first, second = draw_trees(source, depths), draw_trees(source, depths)
    assert [height(nested(tree)) for tree in first] == depths
    assert first != second
    again = torch.Generator().manual_seed(3)
    assert draw_depths(again, 4, 8) == depths
    assert [draw_trees(again, depths) for _ in range(2)] == [first, second]
    assert draw_trees(source, []) == []


# Rotations


def rotations(tree: Nested, path: str = "") -> list[tuple[str, Nested]]:
    """Where the tree has an operator with an operator on its left, and the subtree there after the rotation."""
    match tree:
        case [root, left, right]:
            below = rotations(left, f"{path}0") + rotations(right, f"{path}1")
            match left:
                case [p, l, r]:
                    return [(path, [p, l, [root, r, right]]), *below]
            return below
    return []


def replaced(tree: Nested, path: str, subtree: Nested) -> Nested:
    if not path:
        return subtree
    children = tree[1:]
    branch = int(path[0])
    children[branch] = replaced(children[branch], path[1:], subtree)
    return [tree[0], *children]


@given(trees(PLAIN), st.randoms(use_true_random=False))
def test_rotations_in_any_order_reach_the_one_fixpoint(tree: Tree, choice: random.Random) -> None:
    found = nested(tree)
    while possible := rotations(found):
        found = replaced(found, *choice.choice(possible))
    assert nested(rotated(tree)) == found


@given(trees(PLAIN))
def test_at_the_fixpoint_every_left_child_is_a_leaf(tree: Tree) -> None:
    labels = left_to_right(nested(tree))
    fixpoint = rotated(tree)
    assert rotated(fixpoint) == fixpoint
    assert left_to_right(nested(fixpoint)) == labels
    found = table(nested(fixpoint))
    assert {path for path in found if "0" in path} == {"1" * depth + "0" for depth in range(len(labels) // 2)}
    assert height(nested(fixpoint)) == len(labels) // 2
    assert breadth_first(fixpoint) == depth_first(fixpoint)


@given(trees(PLAIN))
def test_one_pass_rotates_from_the_root_until_a_left_child_is_a_leaf(tree: Tree) -> None:
    def one_pass(tree: Nested) -> Nested:
        match tree:
            case [root, [p, l, r], right]:
                return [p, one_pass(l), [root, one_pass(r), one_pass(right)]]
        return tree

    found = rotated(tree, to_fixpoint=False)
    assert nested(found) == one_pass(nested(tree))
    assert left_to_right(nested(found)) == left_to_right(nested(tree))
    # Passes leave the right subtree of a left leaf as it is, so they do not reach the fixpoint of rotations.
    while (further := rotated(found, to_fixpoint=False)) != found:
        found = further
    assert found.left is None or found.left.left is None


def test_rotations_by_hand() -> None:
    leaves = [Tree(label) for label in range(1, 6)]
    left = Tree(12, Tree(11, leaves[0], leaves[1]), leaves[2])
    # (13 (12 (11 1 2) 3) (14 4 5))
    tree = Tree(13, left, Tree(14, leaves[3], leaves[4]))
    assert nested(rotated(tree, to_fixpoint=False)) == [12, [11, [1], [2]], [13, [3], [14, [4], [5]]]]
    assert nested(rotated(tree)) == [11, [1], [12, [2], [13, [3], [14, [4], [5]]]]]
    whole = Tree(15, Tree(6), tree)
    assert rotated(whole, to_fixpoint=False) == whole
    assert rotated(whole) == Tree(15, Tree(6), rotated(tree))


def test_a_fixpoint_deeper_than_the_bits_of_an_integer() -> None:
    tree = Tree(1)
    for _ in range(100):
        tree = Tree(11, tree, Tree(2))
    nodes = depth_first(rotated(tree))
    assert nodes == breadth_first(rotated(tree))
    assert max(nodes.numbers) == 2**101 - 1
    assert branches(nodes.numbers[-1]) == (1,) * 100


# Reductions

PRODUCTS = {(1, 1): 1, (1, 2): 2, (1, 3): 3, (2, 2): 3, (2, 3): 1, (3, 3): 2}


@given(trees(CYCLIC))
def test_one_step_of_reduction_multiplies_leaves_of_one_parent(tree: Tree) -> None:
    labels = table(nested(tree))
    expected = dict(labels)
    for path in labels:
        children = [labels.get(f"{path}{branch}", 4) for branch in "01"]
        if 4 not in children:
            expected[path] = PRODUCTS[min(children), max(children)]
            del expected[f"{path}0"], expected[f"{path}1"]
    assert nested(reduced(tree)) == from_table(expected)


@given(trees(CYCLIC))
def test_as_many_steps_as_the_depth_leave_the_product_of_all_leaves(tree: Tree) -> None:
    labels = table(nested(tree))
    for steps in range(height(nested(tree)), 0, -1):
        assert height(nested(tree)) == steps
        tree = reduced(tree)
    exponent = sum(label - 1 for label in labels.values() if label < 4)
    assert nested(tree) == [exponent % 3 + 1]


# Edits


@given(trees(PLAIN), st.data())
def test_edits_by_paths(shape: Tree, data: st.DataObject) -> None:
    tree = renumbered(nested(shape))
    labels = table(tree)
    path = data.draw(st.sampled_from(sorted(labels)))
    subtree = {other[len(path) :]: label for other, label in labels.items() if other.startswith(path)}
    flip = str.maketrans("01", "10")
    swapped = {other[:1].translate(flip) + other[1:]: label for other, label in subtree.items()}
    cut = {other: label for other, label in labels.items() if other == path or not other.startswith(path)}
    expected = {Edit.RETURN: subtree, Edit.SWAP: swapped, Edit.CUT: cut, Edit.KEEP: labels}
    for edit in Edit:
        assert nested(edited(as_tree(tree), edit, labels[path])) == from_table(expected[edit])


def test_edits_by_hand() -> None:
    tree = as_tree([70, [66, [1], [2]], [3]])
    assert [nested(edited(tree, edit, 66)) for edit in range(4)] == [
        [66, [1], [2]],
        [66, [2], [1]],
        [70, [66], [3]],
        [70, [66, [1], [2]], [3]],
    ]
    assert nested(edit_request(tree, Edit.CUT, 66)) == [126, [66], nested(tree)]
    assert nested(edit_request(tree, Edit.RETURN, 3, first_edit=125)) == [125, [3], nested(tree)]


def test_edits_need_a_label_of_the_tree_and_a_known_number() -> None:
    tree = as_tree([70, [1], [3]])
    for edit in Edit:
        with pytest.raises(ValueError, match="no node has the label 2"):
            edited(tree, edit, 2)
    with pytest.raises(ValueError, match="4"):
        edited(tree, 4, 1)


# Orders


@given(trees(PLAIN))
def test_orders_of_nodes_by_paths(tree: Tree) -> None:
    labels = table(nested(tree))
    orders = {
        breadth_first: sorted(labels, key=lambda path: (len(path), path)),
        depth_first: sorted(labels),
    }
    for order, paths in orders.items():
        nodes = order(tree)
        assert nodes.labels == [labels[path] for path in paths]
        assert nodes.numbers == [int(f"1{path}", base=2) for path in paths]
        assert ["".join(map(str, branches(number))) for number in nodes.numbers] == paths
