"""The rooms of src/rlhf and the one way in which they may import each other."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "src/rlhf"
# a room may import from those before it
ROOMS = (
    *(
        "errors",
        "methods",
        "files",
        "process",
        "config",
        "fields",
        "support",
        "output",
        "data",
        "models",
        "generation",
        "rewards",
    ),
    *(
        "evaluation",
        "monitor",
        "ppo",
        "methods.*",
        "preflight",
        "runs",
        "reports",
        "compare",
        "benchmark",
        "chat",
        "door",
    ),
)


def imports(package: Path) -> dict[str, set[str]]:
    """Each module with the modules of the package that it imports, inside functions too."""
    files = {name_of(file, package): file for file in package.rglob("*.py")}
    found: dict[str, set[str]] = {name: set() for name in files}
    for name, file in files.items():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found[name] |= {a.name.partition(".")[2] for a in node.names if a.name.startswith("rlhf.")}
            if isinstance(node, ast.ImportFrom):
                assert not node.level, f"{file}: imports are absolute"
                if (node.module or "").partition(".")[0] == "rlhf":
                    below = [f"{node.module}.{alias.name}".partition(".")[2] for alias in node.names]
                    found[name] |= {b if b in files else str(node.module).partition(".")[2] for b in below}
    return found


def name_of(file: Path, package: Path) -> str:
    parts = file.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(name: str) -> str:
    """The first part of a module's name. The table of methods holds strings alone: it is a room below all that read it, and
    below its pages."""
    first = name.partition(".")[0]
    return f"{first}.*" if name.startswith("methods.") else first


def upward(graph: dict[str, set[str]]) -> list[str]:
    """Imports from a room of one that comes later."""
    rank = {name: index for index, name in enumerate(ROOMS)}
    return [
        f"{name} imports {other}"
        for name, others in sorted(graph.items())
        for other in sorted(others)
        if other and rank[room(other)] > rank[room(name)]
    ]


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a ring; none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_imports_run_one_way():
    graph = imports(PACKAGE)
    assert len(graph) > 80
    assert sum(map(len, graph.values())) > 250  # the reader of imports sees them
    assert {room(name) for name in graph} - {""} == set(ROOMS)
    assert upward(graph) == []
    assert circle(graph) == []


def test_an_arrow_that_is_turned_round_is_found():
    graph = imports(PACKAGE)
    arrows = [(name, other) for name, others in graph.items() for other in others if name and other]
    between = [(name, other) for name, other in arrows if room(name) != room(other)]
    assert len(between) > 150
    for name, other in between:
        turned = graph | {other: graph[other] | {name}}
        assert upward(turned) == [f"{other} imports {name}"]
        assert circle(turned)


@pytest.mark.parametrize(("room", "most"), [(".", 8), ("ppo", 12)])
def test_a_room_can_be_looked_over(room, most):
    assert len(list((PACKAGE / room).glob("*.py"))) <= most
