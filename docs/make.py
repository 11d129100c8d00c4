"""The parts of docs/ that are made from the code: the rooms with their imports, and every option of conf/.

  python docs/make.py

writes them between the markers of docs/architecture.md and docs/configuration.md. Needs the editable install.
"""

import ast
from pathlib import Path

from rlhf.config import GROUPS, REPO, options
from rlhf.output.tables import between_markers

PACKAGE = REPO / "src/rlhf"
# a room may import from those before it
ROOMS = tuple(
    [
        "errors",
        "shell",
        "methods",
        "process",
        "parallel",
        "files",
        "config",
        "support",
        "output",
        "feedback",
        "data",
        "models",
        "generation",
        "rewards",
        "evaluation",
        "monitor",
        "ppo",
        "methods.*",
        "preflight",
        "runs",
        "people",
        "web",
        "public",
        "reports",
        "export",
        "compare",
        "rounds",
        "benchmark",
        "chat",
        "door",
    ]
)


def imports(package: Path = PACKAGE) -> dict[str, set[str]]:
    """Each module with the modules of the package that it imports, inside functions too; names without `rlhf.`."""
    files = {name_of(file, package): file for file in package.rglob("*.py")}
    graph: dict[str, set[str]] = {name: set() for name in files}
    for name, file in files.items():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                graph[name] |= {a.name.partition(".")[2] for a in node.names if a.name.startswith("rlhf.")}
            if isinstance(node, ast.ImportFrom):
                assert not node.level, f"{file}: imports are absolute"
            if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "rlhf":
                below = [f"{node.module}.{alias.name}".partition(".")[2] for alias in node.names]
                graph[name] |= {b if b in files else str(node.module).partition(".")[2] for b in below}
    return graph


def name_of(file: Path, package: Path) -> str:
    """`ppo.loop` for ppo/loop.py, `ppo` for ppo/__init__.py."""
    parts = file.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """The first part of a module's name. The table of methods holds strings alone: it is a room below all that read it, and
    below its pages."""
    return "methods.*" if module.startswith("methods.") else module.partition(".")[0]


def rooms() -> str:
    """The rooms as a Mermaid picture, an arrow from a room to what it imports, and as a list of their sentences.

    An arrow that follows from two others is left out (the transitive reduction), so that the picture can be read.
    """
    graph = imports()
    below = {room: {room_of(o) for m in graph if room_of(m) == room for o in graph[m]} - {room, ""} for room in ROOMS}
    reach: dict[str, set[str]] = {}
    for room in ROOMS:  # imports run one way, so that what is below is known already
        reach[room] = set().union(below[room], *(reach[other] for other in below[room]))
    arrows = [
        f"  {_node(room)} --> {_node(other)}"
        for room in reversed(ROOMS)
        for other in sorted(below[room])
        if not any(other in reach[between] for between in below[room] - {other})
    ]
    lines = [f"- `{_file(room)}`: {_sentence(room)}" for room in ROOMS]
    return "\n".join(["```mermaid", "flowchart TD", *arrows, "```", "", *lines])


def _node(room: str) -> str:
    """The two rooms of methods/ are its table and its pages."""
    return {"methods": 'table["methods: table"]', "methods.*": 'pages["methods: pages"]'}.get(room, room)


def _file(room: str) -> str:
    if room.startswith("methods"):
        return "methods/*.py" if room.endswith("*") else "methods/__init__.py"
    return f"{room}/" if (PACKAGE / room).is_dir() else f"{room}.py"


def _sentence(room: str) -> str:
    if room == "methods.*":
        return "A page a method: what its trainer is built from, and how its settings become the trainer's arguments."
    file = PACKAGE / room / "__init__.py" if (PACKAGE / room).is_dir() else PACKAGE / f"{room}.py"
    return str(ast.get_docstring(ast.parse(file.read_text()))).partition("\n\n")[0].replace("\n", " ")


def configuration() -> str:
    """Every group with its purpose, and every option of it with the comment that its file begins with."""
    purposes = _comments((REPO / "conf/train.yaml").read_text())
    parts = []
    for group in GROUPS:
        rows = [f"| `{group}={name}` | {_purpose(REPO / f'conf/{group}/{name}.yaml')} |" for name in options(group)]
        parts.append(
            "\n".join([f"## {group}", f"{purposes[group]}.", "", "| option | what it is |", "|---|---|", *rows])
        )
    return "\n\n".join(parts)


def _comments(text: str) -> dict[str, str]:
    """The comment above each entry of a defaults list, by group."""
    found, comment = {}, []
    for line in text.partition("\nseed:")[0].splitlines():
        entry = line.strip().removeprefix("- ")
        if entry.startswith("#"):
            comment.append(entry.lstrip("# "))
            continue
        if ": " in entry:
            found[entry.partition(":")[0]] = " ".join(comment)
        comment = []
    return found


def _purpose(file: Path) -> str:
    """The first comment of an option file as one line."""
    lines = [line for line in file.read_text().splitlines() if not line.startswith("# @package")]
    head = [line.lstrip("# ") for line in lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]]
    return " ".join(head).replace("|", "\\|")


def write() -> None:
    """Both pages, as they should be now."""
    between_markers(REPO / "docs/architecture.md", "rooms", rooms())
    between_markers(REPO / "docs/configuration.md", "options", configuration())


if __name__ == "__main__":
    write()
