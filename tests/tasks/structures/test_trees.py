import re

import pytest
import torch

from abc_toolkit.errors import UserError
from abc_toolkit.tasks import TreeC3, TreeCopy, TreeOperations, TreeRotate
from abc_toolkit.tasks.structures.tree import Tree
from abc_toolkit.tasks.structures.trees import DEEPEST, TreeTask
from abc_toolkit.testing.task_contract import TaskContract
from abc_toolkit.vocabulary import BOS
from tests.tasks.structures.test_sequences import strings

TASKS = (TreeCopy, TreeRotate, TreeC3, TreeOperations)
Nested = tuple[int, "Nested | None", "Nested | None"]


class TestTrees(TaskContract):
    cases = {  # noqa: RUF012
        "copy": TreeCopy(max_length=2),
        "rotate": TreeRotate(max_length=3, order="depth"),
        "rotate in one pass": TreeRotate(max_length=3, to_fixpoint=False),
        "c3": TreeC3(max_length=2, order="depth"),
        "operations": TreeOperations(max_length=2),
    }


def nested(tokens: list[int], paths: list[list[int]]) -> Nested:
    """The tree of some nodes, by their labels and the paths to them."""
    at = {tuple(step for step in path if step >= 0): token - 1 for token, path in zip(tokens, paths, strict=True)}
    assert len(at) == len(tokens)

    def below(path: tuple[int, ...]) -> Nested | None:
        return (at[path], below((*path, 0)), below((*path, 1))) if path in at else None

    found = below(())
    assert found is not None
    return found


def depth_first(tree: Nested | None) -> list[int]:
    return [] if tree is None else [tree[0], *depth_first(tree[1]), *depth_first(tree[2])]


def one_pass(tree: Nested) -> Nested:
    root, left, right = tree
    if left is None or right is None or left[1] is None or left[2] is None:
        return tree
    return left[0], one_pass(left[1]), (root, one_pass(left[2]), one_pass(right))


def comb(tree: Nested) -> Nested:
    """Rotations, one at a time at the root, until its left child is a leaf; then the right side."""
    while tree[1] is not None and tree[1][1] is not None:
        root, (p, below_left, below_right), right = tree
        tree = p, below_left, (root, below_right, right)
    root, left, right = tree
    return root, left, None if right is None else comb(right)


def product(tree: Nested) -> Nested:
    root, left, right = tree
    if left is None or right is None:
        return tree
    if left[1] is None and right[1] is None:
        return {2: 1, 3: 2, 4: 3, 5: 1, 6: 2}[left[0] + right[0]], None, None
    return root, product(left), product(right)


def subtree(tree: Nested | None, label: int) -> Nested | None:
    if tree is None or tree[0] == label:
        return tree
    return subtree(tree[1], label) or subtree(tree[2], label)


def without(tree: Nested | None, label: int) -> Nested | None:
    if tree is None:
        return None
    return (label, None, None) if tree[0] == label else (tree[0], without(tree[1], label), without(tree[2], label))


def answer(task: TreeTask, asked: Nested) -> Nested:
    """The oracle: what a task makes of what it is asked."""
    if isinstance(task, TreeRotate):
        return comb(asked) if task.to_fixpoint else one_pass(asked)
    if isinstance(task, TreeC3):
        return product(asked)
    if not isinstance(task, TreeOperations):
        return asked
    operation, pointer, tree = asked
    assert pointer is not None
    assert tree is not None
    found = subtree(tree, pointer[0])
    assert found is not None
    changed = [found, (found[0], found[2], found[1]), without(tree, pointer[0]), tree][operation - 124]
    assert changed is not None
    return changed


@pytest.mark.parametrize("order", ["breadth", "depth"])
@pytest.mark.parametrize(
    "task", [TreeCopy(), TreeRotate(), TreeRotate(to_fixpoint=False), TreeC3(), TreeOperations()], ids=repr
)
def test_targets_follow_from_sources(task: TreeTask, order: str, generator: torch.Generator) -> None:
    """Trees are read from tokens and paths; an oracle answers; its nodes are written in order."""
    task = type(task)(**{**vars(task), "order": order})
    batch = task.sample(generator, 60, (4,))
    layout = batch.layout
    assert layout is not None
    sources, targets = strings(batch.source, layout.source.present), strings(batch.target, layout.target.present)
    paths, held = (positions.coordinates["path"].tolist() for positions in (layout.source, layout.prefix))
    assert torch.equal(layout.target.coordinates["path"], layout.prefix.coordinates["path"])
    for source, target, own, prefix in zip(sources, targets, paths, held, strict=True):
        assert source[0] == BOS
        assert set(own[0]) | set(prefix[0]) <= {-1}
        asked = nested(source[1:], own[1 : len(source)])
        expected = answer(task, asked)
        if len(target) > 1:
            assert depth_first(nested(target[:-1], prefix[1 : len(target)])) == depth_first_but_last(expected, order)
        if order == "depth":
            assert [token - 1 for token in target] == depth_first(expected)
        else:
            level = [expected]
            for node in level:
                level += [child for child in node[1:] if child is not None]
            assert [token - 1 for token in target] == [node[0] for node in level]


def depth_first_but_last(tree: Nested, order: str) -> list[int]:
    """Labels depth-first, without the node that comes last in an order."""
    labelled: list[tuple[tuple[int, ...], int]] = []

    def visit(node: Nested | None, path: tuple[int, ...]) -> None:
        if node is not None:
            labelled.append((path, node[0]))
            visit(node[1], (*path, 0))
            visit(node[2], (*path, 1))

    visit(tree, ())
    last = max(labelled, key=lambda item: (len(item[0]), item[0]))[0] if order == "breadth" else labelled[-1][0]
    return [label for path, label in labelled if path != last]


def test_operations_and_their_subtrees_are_uniform(generator: torch.Generator) -> None:
    """Shares of the four operations, and of the root as the subtree of trees with three nodes, to 4.5 deviations."""
    task, drawn = TreeOperations(), 8000
    numbers = torch.rand(drawn, generator=generator, dtype=torch.float64).tolist()
    tree = Tree(70, Tree(1), Tree(2))
    asked = [task.problem(tree, number)[0] for number in numbers]
    for operation in range(4):
        share = sum(source.label == 124 + operation for source in asked) / drawn
        assert abs(share - 1 / 4) < 4.5 * (3 / 16 / drawn) ** 0.5
    for label in (70, 1, 2):
        share = sum(source.left is not None and source.left.label == label for source in asked) / drawn
        assert abs(share - 1 / 3) < 4.5 * (2 / 9 / drawn) ** 0.5


@pytest.mark.parametrize("kind", TASKS)
def test_depths_beyond_reach_are_refused(kind: type[TreeTask], generator: torch.Generator) -> None:
    with pytest.raises(UserError, match=f"max_length {DEEPEST + 1}"):
        kind(max_length=DEEPEST + 1)
    with pytest.raises(UserError, match=re.escape(f"trees of depth {10**9}")):
        kind().evaluation_shapes(10**9, "uniform", generator)


def test_trees_that_exhaust_their_labels_are_refused(generator: torch.Generator) -> None:
    assert len(TreeOperations().sample(generator, 20, (7,))) == 20  # one in 50,000 is drawn again
    with pytest.raises(UserError, match="exhaust their labels") as refused:
        TreeOperations().sample(generator, 2, (16,))
    assert len(str(refused.value).splitlines()) == 1
