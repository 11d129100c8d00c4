"""Weights that are cut over the ranks: the run of one process, whole wherever it is written, and refused where it does nothing."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from rlhf.benchmark.processes import distance
from rlhf.errors import ConfigError
from rlhf.parallel.start import start
from rlhf.preflight.memory import estimate
from rlhf.preflight.settings import check_settings
from rlhf.preflight.sizes import shape_of
from tests.faults.tiny import settings

CUTTING = [sys.executable, str(Path(__file__).with_name("cutting.py"))]
CUT = ("hardware.devices=2", "hardware.sharding=fsdp2")


def test_two_ranks_hold_parts_and_step_as_one(capfd):
    assert start(2, CUTTING) == 0, capfd.readouterr().err
    assert capfd.readouterr().out == "cut\n"


def test_a_stopped_run_goes_on_without_sharding_and_equals_the_unbroken_one(door, tmp_path):
    """Three micro-batches for two ranks; checkpoints and final/ are whole, in the formats of plain libraries."""
    from transformers import AutoModelForCausalLM

    words = [*settings("base", tmp_path), "batch_size=6", "hardware.micro_batch_size=2", "logging.steps=1"]
    words += ["dataset.options.train=20", "debug.max_steps=8", "hardware.micro_batch_size=1"]
    done = door("train.py", *words)
    assert done.returncode == 0, done.stderr
    cut = [*words, "run.stage=cut"]
    started = door.start("train.py", *cut, *CUT, folder=tmp_path)
    folder = tmp_path / "support/cut"
    while not any(folder.glob("checkpoint-*/complete")):
        assert started.poll() is None, (tmp_path / "stderr").read_text()
        time.sleep(0.05)
    os.kill(started.pid, signal.SIGTERM)
    assert started.wait() == 75, (tmp_path / "stderr").read_text()
    done = door("train.py", *cut)
    assert done.returncode == 0 and "going on from" in done.stdout, done.stderr
    told, weights = distance(tmp_path / "support/base", folder)
    assert told < 1e-4 and weights < 1e-6
    found = AutoModelForCausalLM.from_pretrained(folder / "final")
    assert type(found).__name__ == "LlamaForCausalLM" and found.config.architectures == ["LlamaForCausalLM"]


ALL = ("recipe=support/sft", "adapter=none", "quantization=none")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("recipe=support/sft", *CUT), "trains few\n  fix: hardware.sharding=none, or adapter=none quantization=none"),
        (("recipe=support/ppo", *CUT), "method=ppo asks its models in turns"),
        ((*ALL, "hardware.sharding=fsdp2"), "one device to cut weights over\n  fix: hardware.sharding=none, or hardware.devices=2"),
        ((*ALL, *CUT, "method.args.optim=paged_adamw_8bit"), "method.args.optim=paged_adamw_8bit"),
        ((*ALL, "hardware.sharding=fsdp"), "hardware.sharding=fsdp is not one of none, fsdp2"),
    ],
)  # fmt: skip
def test_what_cannot_be_cut_is_refused(compose_stage, words, said):
    with pytest.raises(ConfigError) as refused:
        check_settings(compose_stage(*words), planned=("base", "sft", "reward"))
    assert said in str(refused.value)


def test_the_plan_counts_a_part_of_what_is_cut(compose_stage):
    eight = ("recipe=zephyr-7b/sft", "adapter=none", "quantization=none", "hardware=gpu_8x80gb")
    whole, cut = (
        estimate(stage, shape_of(stage))
        for stage in (compose_stage(*eight), compose_stage(*eight, "hardware.sharding=fsdp2"))
    )
    for part in ("policy", "optimizer", "gradients"):
        assert cut["step"][part] == pytest.approx(whole["step"][part] / 8)
    assert sum(whole["update"].values()) > 80 * 2**30 > 2 * sum(cut["update"].values())
    assert cut["evaluation"] == whole["evaluation"]
