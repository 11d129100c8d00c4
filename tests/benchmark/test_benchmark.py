"""The benchmark end to end at a size of seconds, and its arithmetic on measurements written by hand."""

import json
import math
import re
from dataclasses import fields
from typing import get_args, get_type_hints

import pytest

from rlhf.benchmark.ratios import ratios, tasks
from rlhf.benchmark.tables import BARS, table
from rlhf.benchmark.workload import NATURAL, SIZES, Size, stopping_chance
from rlhf.config import options
from rlhf.door import arguments
from rlhf.errors import ConfigError
from tests.helpers import door_module, needs_stock

TINY = SIZES["tiny"]
PARTS = ("fixed", "natural", "growth", "sft", "dpo", "reward")


@needs_stock
@pytest.mark.slow
def test_the_tiny_size_measures_every_part(door, tmp_path):
    parts = f"parts=[{','.join(PARTS)}]"
    done = door("benchmark.py", parts, "size=tiny", "repeats=1", "threads=1", f"run.root={tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "benchmark" / "report.json").read_text())
    for part, key in BARS:
        assert math.isfinite(report[part][key]) and report[part][key] > 0, (part, key)
    assert math.isfinite(report["rollout_growth"]["stock_memory_ratio"])
    for key in ("git", "versions", "machine", "command", "size", "threads", "device"):
        assert report[key]
    assert report["command"] == ["python", "src/benchmark.py", *done.args[2:]]
    for row in report["measurements"]:
        task, lengths = row["task"], row["reply_tokens"]
        assert len(row["seconds"]) == task["updates"] == len(lengths)
        assert row["above_weights_mb"] > 0 and row["peak_mb"] > row["loaded_mb"] > row["weights_mb"] > 0
        if task["contender"].startswith("sft/"):
            assert 4 <= lengths[0] < 0.8 * (TINY.prompt_tokens + TINY.reply_tokens)
        elif "/" in task["contender"]:
            assert lengths[0] in (TINY.reply_tokens, TINY.reply_tokens / 2)
        elif task["replies"] == "fixed":
            assert lengths == [TINY.reply_tokens] * task["updates"]
        else:
            assert 2 <= lengths[0] < 0.8 * TINY.reply_tokens
        if task["contender"] == "ours":
            assert sum(row["phases"][name][0] for name in ("rollout", "score", "update")) <= row["seconds"][0]
    # two megabytes of logits a micro-batch are nothing here; whoever keeps those of a rollout of 32 grows with it
    assert report["rollout_growth"]["memory_ratio"] < 1.5
    ours = [m["above_weights_mb"] for m in report["measurements"] if m["task"]["contender"] == "ours"]
    assert max(ours) < 300
    assert "ratio" in done.stdout and "report.json" in done.stdout


def test_stopping_chance_gives_the_mean_length():
    for limit in (24, 128, 1000):
        p = stopping_chance(limit)
        mean = sum(k * p * (1 - p) ** (k - 1) for k in range(1, limit)) + limit * (1 - p) ** (limit - 1)
        assert mean == pytest.approx(NATURAL * limit, rel=1e-6)


def measured(task, seconds, memory):
    values = {"above_weights_mb": memory, "weights_mb": 10.0, "peak_mb": memory + 100.0, "matrix_tflops": 1.0}
    phases = {"rollout": [9.0, 1.0], "score": [9.0, 1.0], "update": [9.0, 2.0]} if task.contender == "ours" else {}
    return values | {
        "task": vars(task),
        "seconds": seconds,
        "processor_seconds": seconds,
        "phases": phases,
        "reply_tokens": [24.0, 20.0],
    }


def test_ratios_are_of_medians_of_warm_updates():
    found = []
    for repeat, factor in enumerate((1.0, 1.1, 5.0)):
        for task in tasks(PARTS, TINY):
            seconds, memory = {"stock": (8.0, 1000.0), "ours": (4.0, 200.0), "sft": (1.0, 160.0)}[
                task.contender.rpartition("/")[2]
            ]
            grown = 1.05 if task.prompts == TINY.grown else 1.0
            task = type(task)(**(vars(task) | {"seed": repeat + 1}))
            found.append(measured(task, [100.0, seconds * factor], memory * grown))
    report = ratios(PARTS, TINY, found)
    assert report["fixed"]["time_ratio"] == report["natural"]["time_ratio"] == pytest.approx(0.5)
    assert report["fixed"]["stock"]["seconds"] == pytest.approx(8.8)
    assert report["fixed"]["memory_ratio"] == pytest.approx(0.2)
    assert report["dpo_pairs"]["time_ratio"] == pytest.approx(0.5) and report["dpo_rankings"][
        "memory_ratio"
    ] == pytest.approx(0.2)
    assert report["rollout_growth"]["memory_ratio"] == pytest.approx(1.05)
    assert report["ppo_over_sft"]["memory_ratio"] == pytest.approx(1.25)
    assert report["sft"]["memory_ratio"] == report["reward_kwise"]["memory_ratio"] == pytest.approx(0.2)
    ours = report["natural"]["ours"]
    assert ours["phases"] == {"rollout": 1.0, "score": 1.0, "update": 2.0}
    assert ours["rollout_tokens_per_second"] == pytest.approx(TINY.prompts * 22)
    # 2 layers: q and o 64x64, k and v 64x32, three of 64x128; policy and value, forward and backward, and the head
    matrices = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    work = TINY.prompts * TINY.epochs * (2 * 4 * matrices * (8 + 22) + 4 * 2000 * 64 * 22)
    assert ours["matrix_share"] == pytest.approx(work / 2.0 / 1e12)
    shown = table(report | {"size": vars(TINY)})
    assert re.search(r"24 tokens\s+\| 0.50\s+\| 0.68\s+\| 4.4 s / 8.8 s", shown)
    assert len({len(line) for line in shown.split("\n\n")[0].splitlines()}) == 1


def test_a_measurement_that_two_parts_need_is_made_once():
    names = [(task.contender, task.replies, task.prompts) for task in tasks(PARTS, TINY)]
    assert len(names) == len(set(names)) == 21
    assert [task.contender for task in tasks(("sft",), TINY)] == ["sft", "ours", "sft/stock", "sft/ours"]
    assert [task.contender for task in tasks(("ppo_over_sft",), TINY)] == ["sft", "ours"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("parts=[fixed,fixd]", "did you mean fixed"),
        ("size=tinny", "'tinny' is not one of cpu, 8b, tiny"),
        ("repeats=none", "repeats=none: 'none' is not a whole number"),
        ("threads=0", "threads=0: '0' is not a whole number from 1"),
        ("promts=8", "promts is not a key; did you mean prompts"),
        ("prompts=7", "micro_batch=4"),
        ("page=nowhere.md", "fix: page=docs/benchmarks.md"),
        ("device=tpu", "auto, cpu, cuda"),
        ("root=x", "fix: run.root=x"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(argument, message):
    script = door_module("benchmark")
    with pytest.raises(ConfigError, match=re.escape(message)):
        script.main(arguments(script.Arguments, [argument], script.__doc__))


def test_stock_is_named_where_trl_has_none(monkeypatch, tmp_path):
    script = door_module("benchmark")
    monkeypatch.setattr("rlhf.benchmark.run.has_stock", lambda: False)
    given = arguments(script.Arguments, ["parts=[plan,fixed,support]", f"run.root={tmp_path}"], script.__doc__)
    with pytest.raises(ConfigError, match=r"parts=\[fixed, support\]: (.|\n)*fix: python -m pip install trl==1\.12\.0"):
        script.main(given)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_rows_are_measured_as_if_for_the_first_time(tmp_path, monkeypatch):
    from datasets import config

    from rlhf.benchmark.rows import RECIPES, run, stages_table

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", config.HF_DATASETS_CACHE)
    run(tmp_path, {"rows": "tokenizer"})
    for kind in ("dialogues", "pairs"):
        run(tmp_path, {"rows": "make", "kind": kind, "count": 6, "tokens": 1200})
    written = []
    for who in ("ours", "again", "ours"):
        run(tmp_path, {"rows": who, "kind": "pairs"})
        (entry,) = tmp_path.glob("cache-ours/rlhf/*/done.json")
        written.append(entry.stat().st_mtime_ns)
    assert written[0] == written[1] < written[2], "only a second stage finds what a first one left"
    names = [name for name in options("recipes") if name.partition("/")[0] in RECIPES]
    report = {name: run(tmp_path, {"rows": "stage", "stage": name}) for name in names}
    assert len(names) == 7 and all(one["rows"] == 6 for one in report.values()), report
    assert all(0 < one["disk_mb"] <= one["planned_disk_mb"] for one in report.values()), report
    assert stages_table(report).count("| 6 ") == 7


def test_every_way_out_is_held_against_the_run(chain):
    """Three policies, six right variants and two wrong ones, which are told apart (docs/export.md)."""
    from rlhf.benchmark.exports import compare_exports, exports_table

    report = compare_exports(chain, "support", 2)
    rows = {(row["run"], row["variant"]): row for row in report["rows"]}
    assert len(rows) == 3 * 8 and {run for run, _ in rows} == {"sft", "dpo", "ppo"}
    for (_, variant), row in rows.items():
        assert row["within"] == (not variant.startswith("wrong: ")) and row["prompts"] == 2
        assert (row["max_logit"] < 1e-3) == (variant in ("HF float32", "GGUF f32"))
    assert exports_table(report).count("| no ") == 6


def test_the_door_offers_every_size_part_and_field():
    own = get_type_hints(door_module("benchmark").Arguments)
    assert get_args(get_args(own["size"])[0]) == tuple(SIZES) and get_args(*get_args(own["parts"])) == (
        *PARTS,
        "support",
        "plan",
        "data",
        "rows",
        "stages",
        "export",
        "serve",
        "gpu",
        "processes",
        "failures",
        "costs",
    )
    assert {field.name for field in fields(Size)} < set(own)
