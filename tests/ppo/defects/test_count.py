"""How many defects this folder shows, counted from the tests that are collected."""

from pathlib import Path

import pytest

from tests.ppo.defects.helpers import Ours, Stock


class Collected:
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.items = session.items


def test_at_least_25_defects_fail_on_stock_and_pass_on_ours():
    folder = Collected()
    assert pytest.main(["--collect-only", "-qq", str(Path(__file__).parent)], plugins=[folder]) == 0
    items = [item for item in folder.items if isinstance(item, pytest.Function) and hasattr(item, "callspec")]
    visited = {
        side: {i.nodeid.split("[")[0]: i for i in items if i.callspec.params.get("contender") is side}
        for side in (Stock, Ours)
    }
    assert visited[Stock].keys() == visited[Ours].keys()
    assert len(visited[Stock]) >= 25
    expected = [item.get_closest_marker("xfail") for item in visited[Stock].values()]
    assert all(mark and mark.kwargs["strict"] and mark.kwargs["reason"] for mark in expected)
    assert not [
        item for item in visited[Ours].values() if item.get_closest_marker("xfail") or item.get_closest_marker("skip")
    ]
