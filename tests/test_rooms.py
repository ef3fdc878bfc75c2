"""The rooms of the package: which one imports which."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "abc_toolkit"
# Rooms, and modules that stand beside them, each of which may import those before it and no others.
BELOW_PHASES = (
    "errors hashing linear vocabulary seeds layout positions windows tasks models runs calibration proof training"
)


def imported(file: Path) -> set[str]:
    """The rooms that a module imports, but for what a type checker alone reads."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE.name:
            names = [node.module] if "." in str(node.module) else [f"{node.module}.{name.name}" for name in node.names]
            found.update(str(name).split(".")[1] for name in names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(file.read_text(encoding="utf-8")))
    return found


def rooms() -> dict[str, set[str]]:
    """What each room imports of the others."""
    graph: dict[str, set[str]] = {}
    for file in PACKAGE.rglob("*.py"):
        room = file.relative_to(PACKAGE).with_suffix("").parts[0]
        graph.setdefault(room, set()).update(imported(file) - {room})
    return graph


def test_no_room_imports_itself_by_way_of_others() -> None:
    order = list(TopologicalSorter(rooms()).static_order())
    assert order.index("tasks") < order.index("models") < order.index("training") < order.index("phases")


def test_nothing_below_a_phase_draws_or_calls_a_phase() -> None:
    graph = rooms()
    below = BELOW_PHASES.split()
    for room in below:
        assert graph[room] <= set(below), room
    assert not graph["report"] & {"phases", "cli", "training"}


def test_the_checker_imports_nothing_of_the_toolkit() -> None:
    assert rooms()["checker"] == set()
