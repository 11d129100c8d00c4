"""Stock's failures count only where they are meant."""

import re
from typing import Any

import pytest

REASON = "stock failed for another reason than the defect: {error}"


@pytest.fixture
def contender(request: pytest.FixtureRequest, tmp_path, monkeypatch) -> Any:
    return request.param(tmp_path / "run", monkeypatch)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "defect(match): stock fails this test, with this text if it is a crash")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    """Turns an expected failure into a failure if a line of TRL asserted instead of the test, or another text came."""
    report = yield
    mark = item.get_closest_marker("defect")
    if mark and call.excinfo and report.skipped and hasattr(report, "wasxfail"):
        match, error = mark.args[0], call.excinfo.value
        asserted = isinstance(error, AssertionError) and call.excinfo.traceback[-1].path == item.path
        meant = bool(re.search(match, str(error))) if match else asserted
        if not meant:
            report.outcome, report.longrepr = "failed", REASON.format(error=repr(error))
            del report.wasxfail
    return report
