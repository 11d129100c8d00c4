"""What tests share: composed stages, a small finished chain of stages, and doors run as a user runs them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that reaches for the hub fails at once
os.environ["OMP_NUM_THREADS"] = "1"  # models this small lose more to threads that wait for each other than they gain


@pytest.fixture
def compose_stage(tmp_path):
    """`compose_stage("recipes=support/sft", ...)`: a resolved stage whose runs lie in a temporary folder."""
    from rlhf.config import compose_config, to_stage

    return lambda *overrides: to_stage(compose_config([f"run.root={tmp_path}/runs", *overrides]))


@pytest.fixture(scope="session")
def door():
    """`door("train.py", "recipes=support/sft", ...)`: run a door in its own process."""

    def run(script: str, *arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(REPO / "src" / script), *arguments],
            capture_output=True,
            text=True,
            input=stdin,
            env=os.environ | environment,
            cwd=REPO,
            timeout=600,
        )

    return run


@pytest.fixture(scope="session")
def chain(tmp_path_factory, door) -> Path:
    """The recipe `support` through its pipeline with debug=smoke: five finished stages and a report, in about a minute."""
    root = tmp_path_factory.mktemp("chain") / "runs"
    done = door("pipeline.py", "recipe=support", "debug=smoke", f"run.root={root}")
    assert done.returncode == 0, done.stdout + done.stderr
    (root / "pipeline.log").write_text(done.stdout)
    return root
