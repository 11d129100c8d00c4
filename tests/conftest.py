"""What tests share: composed stages, a tiny base with adapters, a finished chain of stages, doors run as a user runs them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
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
