"""The rooms of src/rlhf and the one way in which they may import each other."""

from graphlib import CycleError, TopologicalSorter

import pytest

from docs.make import PACKAGE, ROOMS, imports, room_of


def upward(graph: dict[str, set[str]]) -> list[str]:
    """Imports from a room of one that comes later."""
    rank = {name: index for index, name in enumerate(ROOMS)}
    return [
        f"{name} imports {other}"
        for name, others in sorted(graph.items())
        for other in sorted(others)
        if other and rank[room_of(other)] > rank[room_of(name)]
    ]


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a ring; none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_imports_run_one_way():
    graph = imports()
    assert len(graph) > 80
    assert sum(map(len, graph.values())) > 250  # the reader of imports sees them
    assert {room_of(name) for name in graph} - {""} == set(ROOMS)
    assert upward(graph) == []
    assert circle(graph) == []


def test_an_arrow_that_is_turned_round_is_found():
    graph = imports()
    arrows = [(name, other) for name, others in graph.items() for other in others if name and other]
    between = [(name, other) for name, other in arrows if room_of(name) != room_of(other)]
    assert len(between) > 150
    for name, other in between:
        turned = graph | {other: graph[other] | {name}}
        assert upward(turned) == [f"{other} imports {name}"]
        assert circle(turned)


@pytest.mark.parametrize(("room", "most"), [(".", 8), ("ppo", 12)])
def test_a_room_can_be_looked_over(room, most):
    assert len(list((PACKAGE / room).glob("*.py"))) <= most
