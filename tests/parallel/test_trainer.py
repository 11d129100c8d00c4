"""Several processes make the run of one, whatever the method, and end together."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from rlhf.benchmark.processes import distance
from tests.faults.tiny import TINY, settings

KTO = ("method=kto", "dataset=support_thumbs", "run.recipe=support")
ROWS = ("batch_size=4", "hardware.micro_batch_size=1", "dataset.options.train=14", "logging.steps=1")  # 14 = 3 * 4 + 2
STAGES = {
    "sft": ("recipe=support/sft",),
    "whole": ("recipe=support/sft", "adapter=none", "quantization=none"),
    "reward": ("recipe=support/reward", "method.kwise=false"),
    "kwise": ("recipe=support/reward", "method.kwise=true"),
    "dpo": ("recipe=support/dpo", "method.args.loss_type=[sigmoid,sft]"),
    "kto": (*KTO, "hardware.micro_batch_size=2"),
    "ppo": ("recipe=support/ppo", "method.args.response_length=4", "method.args.num_mini_batches=2", "method.args.whiten_rewards=true",
            "method.args.kl_target=6.0", "method.args.max_update_kl=5.0", "method.args.reward_normalization=running"),
}  # fmt: skip


@pytest.fixture(scope="module")
def root(door, tmp_path_factory):
    root = tmp_path_factory.mktemp("several")
    for name in ("base", "sft", "reward"):
        done = door("train.py", *settings(name, root))
        assert done.returncode == 0, done.stderr
    return root


def words(name: str, root: Path, *more: str) -> list[str]:
    return [*STAGES[name], *TINY, *ROWS, *STAGES[name], f"run.root={root}", *more]


def run(door, *words: str) -> str:
    done = door("train.py", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", STAGES)
def test_two_processes_make_the_run_of_one(door, root, name):
    for devices in (1, 2):
        said = run(door, *words(name, root, f"run.stage={name}-{devices}", f"hardware.devices={devices}"))
    told, weights = distance(*(root / "support" / f"{name}-{devices}" for devices in (1, 2)))
    assert told < (1e-6 if name == "ppo" else 1e-5) and weights < (1e-6 if name == "ppo" else 1e-4)
    shares = json.loads((root / f"support/{name}-2/run.json").read_text())["ranks"]
    assert len(shares) == 2 and 0.35 < shares[0] < 0.65 and f"0 did {shares[0]:.0%}" in said


@pytest.mark.parametrize("name", ["reward", "kwise", "dpo"])
def test_a_batch_is_one_however_it_is_cut(door, root, name):
    """Four micro-batches of a row, and one of four: also the last batch of a pass, which has fewer rows."""
    for micro in (1, 4):
        run(door, *words(name, root, f"run.stage={name}-by-{micro}", f"hardware.micro_batch_size={micro}", "method.args.eval_strategy=no", "method.args.max_grad_norm=0"))  # fmt: skip
    runs = [root / "support" / f"{name}-by-{micro}" for micro in (1, 4)]
    losses = [[json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines() if '"loss"' in line] for run in runs]  # fmt: skip
    assert len(losses[0]) == 4 and losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert distance(*runs)[1] < 1e-4


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="asks Linux who is whose child")
@pytest.mark.parametrize(("name", "number", "code"), [("dpo", signal.SIGKILL, 5), ("ppo", signal.SIGTERM, 75)])
def test_a_signal_to_one_rank_ends_all_and_the_same_command_goes_on(door, root, tmp_path, name, number, code):
    more = ("debug.max_steps=16", "method.args.save_steps=2")
    struck = words(name, root, f"run.stage={name}-{code}", *more)
    started = door.start("train.py", *struck, "hardware.devices=2", folder=tmp_path)
    folder = root / "support" / f"{name}-{code}"
    while not any(folder.glob("checkpoint-*/complete")):
        assert started.poll() is None, (tmp_path / "stderr").read_text()
        time.sleep(0.05)
    ranks = children(started.pid)
    assert len(ranks) == 2
    os.kill(ranks[1], number)
    began = time.monotonic()
    assert started.wait() == code
    assert time.monotonic() - began < 30 and not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    error = (tmp_path / "stderr").read_text()
    assert error.count("error: ") == 1 and "the same command goes on from" in error and "Traceback" not in error
    assert "going on from" in run(door, *struck)  # on one device
    unbroken = root / "support" / f"{name}-unbroken"
    run(door, *words(name, root, f"run.stage={unbroken.name}", *more))
    told, weights = distance(unbroken, folder)
    assert told < 1e-5 and weights < 1e-4


def test_a_stage_of_several_processes_is_refused_once(door, root):
    done = door("train.py", *words("dpo", root, "run.stage=no", "hardware.devices=2", "method.start_from=./nowhere"))
    assert done.returncode == 2 and done.stderr.count("error: ") == 1 and "no such folder" in done.stderr
    done = door("train.py", *words("dpo", root, "run.stage=no", "hardware.devices=2", "method.args.optim=none"))
    assert done.returncode == 2 and done.stderr.count("error: ") == 1 and "method.args.optim=none" in done.stderr
    assert not (root / "support/no").exists()
