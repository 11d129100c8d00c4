"""Runs of commit 3061bf3, made before the package got its rooms, are read; `former/` holds two, cut to a few rules, lines and replies."""

import json
import shutil
from pathlib import Path

import pytest

from rlhf.config import read_stage
from rlhf.errors import ConfigError
from rlhf.evaluation.samples import final_samples
from rlhf.monitor.feed import points, watch_finished
from rlhf.reports.recipe import report
from rlhf.reports.reproduce import measured
from rlhf.runs import record


@pytest.fixture
def support(tmp_path, monkeypatch):
    """The folder of the recipe's runs, under the name that their settings have for it, with the ids of what they build on."""
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/support")
    shutil.copytree(Path(__file__).parent / "former/support", folder)
    for entry in record.read_run(folder / "ppo")["lineage"]:
        below = Path("runs") / entry["stage"]
        below.mkdir(exist_ok=True)
        if below.name != "sft":
            (below / "run.json").write_text(json.dumps({"id": entry["id"], "recipe": "support", "stage": below.name}))
    return folder


@pytest.mark.parametrize(
    "name, learning_rate, below", [("sft", 0.002, {"base"}), ("ppo", 0.001, {"base", "sft", "reward"})]
)
def test_settings_are_read_and_digested_as_before(support, name, learning_rate, below):
    stage = record.finished_stage(support / name)
    assert (stage.method.name, stage.method.args["learning_rate"]) == (name, learning_rate)
    then, now = record.read_run(support / name)["inputs"], record.inputs(stage)
    assert then.keys() == now.keys() == {"config", "data", *(f"stage:{stage}" for stage in below)}
    assert {key for key in now if then[key] != now[key]} <= {"data"}  # that of a generator changes with its code
    now["data"] = then["data"]
    assert now == then
    assert record.lineage(stage) == record.read_run(support / name)["lineage"]


@pytest.mark.parametrize("name", ["sft", "ppo"])
def test_who_judges_a_report_is_no_input_of_a_run(support, name):
    """`evaluation.gold` came after these runs, which are not trained again because a recipe has got one."""
    assert "\n  gold: " not in (support / name / "config.yaml").read_text()
    stage = record.finished_stage(support / name)
    assert stage.evaluation.gold is None
    before = record.inputs(stage)
    for gold in ("reward:runs/support/judge/final", "reward:function:sentiment"):
        stage.evaluation.gold = gold
        assert record.inputs(stage) == before and record.changes(stage) in ("", "data")
    stage.evaluation.prompts += 1
    assert record.inputs(stage) != before, "what the stage itself asks is one"


def test_replies_are_read_with_the_reward_under_its_name_of_today(support):
    (step, _, [reply]), *_ = (point for point in points(support / "ppo", "support") if point[2])
    assert (step, reply["reward"], reply["gold"]) == (30, 1.5, 2.25) and "score" not in reply
    assert [sample["gold"] for sample in final_samples(support / "ppo")] == [2.25, 1.75]
    assert watch_finished(support / "ppo") == []


def test_a_report_is_made_of_them(support):
    table = report(support)
    found = json.loads((support / "report.json").read_text())
    assert (found["sft"]["gold_score"], found["ppo"]["gold_score"]) == (1.75, 2.0)
    assert found["ppo"]["wins_ties_losses"] == [1, 1, 0] and "| ppo |" in table
    assert found["costs"]["ppo"] == {"seconds": 89.2, "peak_memory_mb": 848.3}
    assert measured(support / "ppo", "gold_score") == 3.0018643978771578
    assert measured(support / "ppo", "win_rate_vs_sft") == 0.75
    assert measured(support / "sft", "loss") == 0.3708008050918579


@pytest.mark.parametrize("line", ["unheard_of: 1", "seed: [1, 2]"])
def test_settings_that_are_none_any_more_are_refused_with_the_command_that_makes_the_run_again(support, line):
    config = support / "ppo/config.yaml"
    config.write_text(config.read_text().replace("seed: 1\n", f"{line}\n", 1))
    for read in (read_stage, record.finished_stage, watch_finished):
        with pytest.raises(ConfigError) as refused:
            read(support / "ppo")
        first, fix = str(refused.value).splitlines()
        assert first.startswith(f"{config}: {line.partition(':')[0]} is not read by this version ("), first
        assert fix == "  fix: make the run again: python src/train.py recipes=support/ppo run.overwrite=true"
