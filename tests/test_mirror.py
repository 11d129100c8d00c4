"""The tests lie as the code lies, and no test module needs another."""

import ast
from pathlib import Path

TESTS = Path(__file__).resolve().parent
PACKAGE = TESTS.parent / "src/rlhf"
APART = {
    "recipes",
    "ppo/defects",
    "faults",
}  # the YAML recipes on this machine, what stock TRL must fail, what strikes runs


def test_every_folder_of_tests_is_a_room_of_the_package():
    folders = {file.parent.relative_to(TESTS).as_posix() for file in TESTS.rglob("test_*.py")} - {"."}
    rooms = {file.parent.name for file in PACKAGE.glob("*/__init__.py")}
    assert folders > APART and len(folders - APART) >= 14
    assert folders - APART <= rooms


def test_no_test_module_imports_a_test_module():
    """What several need stands in a `helpers.py`, named by its whole path: a bare name can be met twice."""
    modules = {
        file.relative_to(TESTS.parent).with_suffix("").as_posix().replace("/", ".") for file in TESTS.rglob("*.py")
    }
    bare, found = {name.rpartition(".")[2] for name in modules}, []
    for file in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                assert name.partition(".")[0] not in bare, f"{file}: {name} needs its whole path"
                found += [name] if name.startswith("tests.") else []
    assert len(found) > 25 and set(found) <= modules
    assert not [name for name in found if name.rpartition(".")[2].startswith(("test_", "conftest"))]
