"""What tests share: composed stages, a tiny base with adapters, a finished chain of stages, doors run as a user runs them."""

import atexit
import gc
import os
from collections import Counter
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

import pytest
from filelock import FileLock

from tests.doors import COLLECT, Doors
from tests.faults.tiny import SMALL

gc.set_threshold(*COLLECT)
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that reaches for the hub fails at once
if "HF_DATASETS_CACHE" not in os.environ:  # by the first process, and its workers find it there
    os.environ["HF_DATASETS_CACHE"] = mkdtemp(prefix="datasets-")
    atexit.register(rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)
os.environ["OMP_NUM_THREADS"] = "1"  # models this small lose more to threads that wait for each other than they gain


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the cases of tests/faults ended in, counted."""
    reports = [report for report in terminalreporter.getreports("passed") if report.when == "call"]
    seen = Counter(what for report in reports for name, what in report.user_properties if name == "fault")
    if seen:
        terminalreporter.section(f"{seen.total()} faults, by what they ended in")
        for what, count in sorted(seen.items()):
            terminalreporter.write_line(f"{count:4}  {what}")


@pytest.fixture
def compose_stage(tmp_path):
    """`compose_stage("recipes=support/sft", ...)`: a resolved stage whose runs lie in a temporary folder."""
    from rlhf.config import compose_config, to_stage

    return lambda *overrides: to_stage(compose_config([f"run.root={tmp_path}/runs", *overrides]))


@pytest.fixture(scope="session")
def door():
    """`door("train.py", "recipes=support/sft", ...)`: run a door in its own process."""
    doors = Doors()
    yield doors
    doors.close()


@pytest.fixture(scope="session")
def chain(tmp_path_factory, door) -> Path:
    """The recipe `support` with debug=smoke and a smaller base: five finished stages and the pipeline's report, made once for all workers."""
    root = tmp_path_factory.getbasetemp()
    root = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "chain/runs"
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root.parent / "lock"):
        if not (root / "support/report.json").exists():
            done = door("pipeline.py", "recipe=support", "debug=smoke", *SMALL, f"run.root={root}")
            assert done.returncode == 0, done.stdout + done.stderr
    return root


@pytest.fixture(scope="session")
def workshop(tmp_path_factory):
    """A tiny base model with an SFT adapter and a reward adapter, saved the way the stages save them."""
    from tests.workshop import build  # torch is imported where a test needs it, not where tests are collected

    return build(tmp_path_factory.mktemp("workshop"))


@pytest.fixture(scope="session")
def folders(workshop, tmp_path_factory) -> Path:
    from tests.workshop import reward_models

    return reward_models(workshop, tmp_path_factory.mktemp("rewards"))


@pytest.fixture(scope="session")
def prompts():
    from tests.workshop import draw_prompts

    return draw_prompts()


@pytest.fixture
def stage_of(compose_stage, workshop):
    """`stage_of(reward model, ..., key__of__a=setting)`: a PPO stage on the tiny base."""

    def compose(*reward_models, **settings):
        given = f"[{','.join(map(str, reward_models))}]" if len(reward_models) != 1 else reward_models[0]
        return compose_stage(
            "method=ppo",
            "dataset=support_prompts",
            "model.chat_template=plain",
            f"model.path={workshop.base}",
            f"method.start_from={workshop.sft}",
            f"method.reward_model={given}",
            "batch_size=4",
            "method.args.total_episodes=8",
            "method.args.response_length=6",
            "method.args.missing_eos_penalty=null",
            *(f"{key.replace('__', '.')}={value}" for key, value in settings.items()),
        )

    return compose


@pytest.fixture
def make_trainer(workshop, prompts, tmp_path):
    """`make_trainer(roles, option=...)`: PPO on the tiny base; roles and prompts are the workshop's if none are given."""
    from tests.workshop import trainer

    def make(roles=None, *, dataset=None, **options):
        return trainer(
            workshop, roles or workshop.roles(), prompts if dataset is None else dataset, tmp_path / "run", **options
        )

    return make
