"""A GPU that is not there: it refuses what CUDA refuses, counts its bytes, and stages run on it from start to end."""

import json
import os
import subprocess
import sys

import pytest

from rlhf.config import REPO


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    command = [sys.executable, "-m", "tests.benchmark.on_card", str(tmp_path_factory.mktemp("card") / "runs")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPO / "src"), str(REPO)])}
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]
    return {name: value for line in lines for name, value in line.items()}


def test_tensors_are_where_they_were_put(found):
    assert set(found["on the card"].values()) == {"cuda:0"}, found["on the card"]
    assert set(found["on the host"].values()) == {"cpu"}, found["on the host"]


def test_what_cuda_refuses_is_refused(found):
    """In forward, in a backward pass that is written in Python, and where a checkpointed layer is computed again."""
    assert len(found["refused"]) == 8
    for name, why in found["refused"].items():
        assert why and any(word in why for word in ("same device", "numpy", "generator", "type='cpu'")), (name, why)


def test_autocast_and_bytes_are_those_of_cuda(found):
    assert found["autocast"] == ["torch.bfloat16", "torch.float32"]
    assert found["bytes"] == [4_000_000, 0, 8_000_000]


def test_stages_run_on_the_card_and_beside_it(found):
    """From rows to the evaluation of what was saved; with hardware=cpu a 4-bit base stays off a card that is there."""
    for name, number in (("base", "train_loss"), ("sft", "train_loss"), ("reward", "accuracy"), ("ppo", "kl")):
        assert number in found[name]
    assert "kl" in found["on the host of it"]


def test_a_tensor_that_was_forgotten_on_the_host_is_found(found):
    assert "aten::index_put_ was given cpu" in found["a fault"]


def test_one_process_trains_on_the_batch_of_one_gpu(found):
    assert found["rows of a step where two are seen"] == 2
