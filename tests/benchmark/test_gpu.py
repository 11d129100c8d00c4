"""`parts=[gpu]`: the rehearsal from the door to its report, and what is left out when time runs out or a part fails."""

import json
import math
import re

import pytest

from rlhf.benchmark import gpu
from rlhf.benchmark.gpu import ASSUMED, CHIP, STAGES, gpu_table, measure_parts, rehearse
from rlhf.benchmark.workload import SIZES
from rlhf.door import arguments
from rlhf.errors import ConfigError, ResourceError
from tests.helpers import door_module

TINY = SIZES["tiny"]
# large enough for tensors that grow with the model to be most of the memory
SIZED = ("size=tiny", "width=128", "inner=320", "vocabulary=4000", "prompt_tokens=16", "rank=8")


@pytest.mark.slow
def test_the_rehearsal_runs_every_method_and_contender(door, tmp_path):
    done = door("benchmark.py", "parts=[gpu]", *SIZED, "threads=1", f"run.root={tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "benchmark" / "gpu.json").read_text())
    assert report["left_out"] == {} and report["rehearsal"], report["left_out"]
    assert set(report["stages"]) == set(STAGES)
    for part, one in report["stages"].items():
        figures = [
            one[key] for key in ("seconds", "tokens_per_second", "matrix_share", "weights_mb", "above_weights_mb")
        ]
        assert all(math.isfinite(value) and value > 0 for value in figures), (part, one)
        # bytes are counted, so the plan of a GPU is held to what it is held to on the CPU; a plan takes K-wise prompts for long ones
        if "K-wise" not in part:
            assert one["planned_mb"] == pytest.approx(one["measured_mb"], rel=0.15), part
    for one in report["measurements"]:
        assert one["loaded_mb"] - one["weights_mb"] < 1, "what was measured before is gone"
    for name in ("fixed", "natural"):
        assert 0 < report[name]["memory_ratio"] < 1 and report[name]["time_ratio"] > 0
    assert report["ppo_over_sft"]["memory_ratio"] > 0
    assert len(report["measurements"]) == 5 and {one["device"] for one in report["measurements"]} == {report["device"]}
    assert "a rehearsal" in done.stdout and "teraflops a second" not in gpu_table(report)
    assert "teraflops a second" in gpu_table(report | {"rehearsal": False})


def test_parts_that_would_end_too_late_are_left_out_by_name(tmp_path, monkeypatch):
    clock = [0.0]

    def measured(folder, size, part, known):
        clock[0] += 2 * ASSUMED[part if part in STAGES else known[part].contender if part in known else part]
        if part == "dpo":
            raise ValueError("no such thing\nmore of it")
        return {"seconds": [1.0]}

    monkeypatch.setattr(gpu, "_measure", measured)
    monkeypatch.setattr(gpu, "_clear", lambda: None)
    monkeypatch.setattr(gpu.time, "monotonic", lambda: clock[0])
    names = [CHIP, "ppo", "dpo", "sft"]
    what = {
        "gpu": names,
        "size": vars(TINY),
        "there": True,
        "seconds": 2 * (ASSUMED[CHIP] + ASSUMED["ppo"] + ASSUMED["dpo"]) + 40,
    }
    found = list(measure_parts(tmp_path, what))
    assert [one["part"] for one in found] == names
    assert [one.get("left_out") for one in found] == [
        None,
        None,
        "ValueError: no such thing",
        "50 s, of which 40 were left",
    ]


def test_what_is_measured_is_told_at_once_and_goes_on_after_a_death(monkeypatch):
    asked, told = [], []

    def measurements(folder, what, threads, seconds):
        asked.append(list(what["gpu"]))
        if len(asked) == 1:
            yield {"part": CHIP, "device": "a chip", "seconds": 1.0, "matrix_tflops": 500.0}
            raise ResourceError("measuring ended with code -11\n  an illegal memory access")
        for part in what["gpu"]:
            yield {"part": part, "left_out": "another reason"}

    monkeypatch.setattr(gpu, "measurements", measurements)
    report = rehearse(TINY, minutes=9, there=True, threads=1, tell=lambda report: told.append(dict(report["left_out"])))
    assert asked[1] == asked[0][2:] and asked[0][:2] == [CHIP, "ppo"]
    assert report["left_out"]["ppo"] == "an illegal memory access" and len(report["left_out"]) == len(asked[0]) - 1
    assert [len(left) for left in told] == list(range(len(asked[0]))), "after each part"
    assert "Left out: ppo (an illegal memory access)." in gpu_table(report)


def test_no_time_leaves_everything_out_by_name():
    report = rehearse(TINY, minutes=0, there=False, threads=1, tell=print)
    assert set(report["left_out"].values()) == {"out of time"} and CHIP in report["left_out"]


def test_all_parts_are_assumed_to_end_in_nine_minutes():
    contenders = sum(ASSUMED[gpu._kind(task)] for task in gpu._tasks(TINY))
    assert sum(ASSUMED[part] for part in (CHIP, *STAGES)) + contenders < 9 * 60


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["parts=[gpu]"], "fix: size=tiny"),
        (["parts=[gpu]", "size=tiny", "page=docs/benchmarks.md"], "fix: page=null"),
    ],
)
def test_a_machine_without_a_gpu_is_told_what_it_can_do(given, message, tmp_path):
    script = door_module("benchmark")
    with pytest.raises(ConfigError, match=re.escape(message)):
        script.main(arguments(script.Arguments, [*given, f"run.root={tmp_path}"], script.__doc__ or ""))
    assert not list(tmp_path.iterdir())
