"""The tiny recipe, trained once; copies of its runs; and the note of what a case ended in."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.faults.tiny import STAGES, settings


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, door: Any) -> Path:
    """`runs/` of the six stages, unbroken; made once for all workers."""
    root = tmp_path_factory.getbasetemp()
    root = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "tiny/runs"
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root.parent / "lock"):
        for name in STAGES:
            if not (root / "support" / name / "results.json").exists():
                done = door("train.py", *settings(name, root))
                assert done.returncode == 0, done.stderr
    return root


@pytest.fixture
def below(whole: Path, tmp_path: Path) -> Callable[..., Path]:
    """`below("ppo")`: a copy of the runs that a stage builds on, the stage itself left out."""

    def copy(name: str) -> Path:
        for other in STAGES:
            if other != name:
                skip = shutil.ignore_patterns("checkpoint-*", "*.png")
                shutil.copytree(whole / "support" / other, tmp_path / "runs/support" / other, ignore=skip)
        return tmp_path / "runs"

    return copy


@pytest.fixture
def seen(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """`seen(outcome)`: what a case ended in, for the table at the end."""
    return lambda outcome: request.node.user_properties.append(("fault", outcome))
