"""Trees and sequences, against examples that the study's released code drew and made targets of."""

from pathlib import Path

import numpy as np
import pytest

from abc_toolkit.tasks.structures.tree import (
    CYCLIC,
    FIRST_EDIT,
    PLAIN,
    UNIQUE,
    Edit,
    Nodes,
    Tree,
    breadth_first,
    depth_first,
    edit_request,
    edited,
    reduced,
    rotated,
)

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "ape_tasks.npz")
TREE_TASKS = ("copy", "reorder", "c3", "apply")
ORDERS = {"breadth": breadth_first, "depth": depth_first}
PADDING, START, END = -1, 0, 21


def nodes(task: str, order: str, side: str) -> list[Nodes]:
    """The nodes of each tree of a task, after the start token at position 0 and before padding."""
    ids, positions = (GOLDEN[f"tree_{task}_{order}_{side}_{kind}"] for kind in ("ids", "pos"))
    found = []
    for labels, numbers in zip(ids, positions, strict=True):
        assert (labels[0], numbers[0]) == (START, 0)
        length = int((numbers != PADDING).sum())
        assert (labels[length:] == PADDING).all()
        assert (numbers[length:] == PADDING).all()
        found.append(Nodes(labels[1:length].tolist(), numbers[1:length].tolist()))
    return found


def tree(nodes: Nodes, number: int = 1) -> Tree:
    """The tree below the node with a number."""
    labels = dict(zip(nodes.numbers, nodes.labels, strict=True))
    below = [tree(nodes, child) for child in (2 * number, 2 * number + 1) if child in labels]
    return Tree(labels[number], *below)


def target(task: str, source: Tree) -> Tree:
    if task == "apply":
        assert source.left is not None
        assert source.right is not None
        edit, label = source.label - FIRST_EDIT, source.left.label
        assert edit_request(source.right, edit, label) == source
        return edited(source.right, edit, label)
    functions = {"copy": lambda source: source, "reorder": lambda s: rotated(s, to_fixpoint=False), "c3": reduced}
    return functions[task](source)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("task", TREE_TASKS)
def test_targets_of_trees(task: str, order: str) -> None:
    sources, targets = nodes(task, order, "input"), nodes(task, order, "output")
    assert len(sources) == len(targets) == 4
    for given, expected in zip(sources, targets, strict=True):
        source = tree(given)
        assert breadth_first(source) == given
        assert ORDERS[order](target(task, source)) == expected


@pytest.mark.parametrize("task", TREE_TASKS)
def test_labels_of_trees(task: str) -> None:
    alphabet = {"c3": CYCLIC, "apply": UNIQUE}.get(task, PLAIN)
    for given in nodes(task, "breadth", "input"):
        for label, number in zip(*given, strict=True):
            if task == "apply" and number == 1:
                assert Edit(label - FIRST_EDIT) in Edit
            elif task == "apply" and number == 2:
                assert label in given.labels[2:]  # An operator or a leaf of the tree, which is what it points to.
            else:
                assert label in (alphabet.operators if 2 * number in given.numbers else alphabet.leaves)


def test_released_rotations_stop_short_of_the_fixpoint() -> None:
    sources = list(map(tree, nodes("reorder", "depth", "input")))
    assert any(rotated(source, to_fixpoint=False) != rotated(source) for source in sources)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("task", TREE_TASKS)
def test_target_nodes_see_those_up_to_their_own(task: str, order: str) -> None:
    positions, masks = (GOLDEN[f"tree_{task}_{order}_{array}"] for array in ("output_pos", "causal_mask"))
    for numbers, mask in zip(positions, masks, strict=True):
        token = numbers != PADDING
        assert (mask == np.tri(len(mask), dtype=bool) & token & token[:, None]).all()


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("task", ["copy", "repeat", "reverse"])
def test_sequences(task: str, number: int) -> None:
    source, expected = (GOLDEN[f"seq_{task}_train{number}_{side}"].tolist() for side in "xy")
    assert expected == {"copy": source, "repeat": source * 2, "reverse": source[::-1]}[task]
    assert GOLDEN[f"seq_{task}_sos_eos"].tolist() == [START, END]
    tokens = source[1:-1] if task == "copy" else source
    assert task != "copy" or (source[0], source[-1]) == (START, END)
    assert all(1 <= token <= (20 if task == "copy" else 19) for token in tokens)
