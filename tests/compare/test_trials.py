"""Which trials a comparison has, what it refuses, and what a second call does: no trial is trained here."""

import json
import subprocess
import threading

import pytest

from rlhf import files
from rlhf.compare import trials
from rlhf.compare.trials import Comparison
from rlhf.config import compose_config, to_stage
from rlhf.errors import ConfigError
from rlhf.process import Children
from rlhf.runs import launcher, record
from rlhf.runs.launcher import parallel
from tests.helpers import remember_stages


@pytest.fixture
def comparison(tmp_path, monkeypatch):
    remember_stages(monkeypatch)
    return lambda *overrides, **more: Comparison("support", [f"run.root={tmp_path}", *overrides], **more)


@pytest.fixture
def small(comparison):
    """Two seeds, one setting an arm: six trials."""
    return lambda: comparison(seeds=[1, 2], settings={"dpo": [0.3], "ppo": [0.1]})


def test_arms_get_the_same_trials_from_the_same_start(comparison):
    found = comparison()
    every = found.trials()
    assert [t.name for t in every[:3]] == ["reward-seed1", "reward-seed2", "reward-seed3"]
    by_arm = {arm: [t for t in every if t.arm == arm] for arm in ("dpo", "ppo")}
    assert [len(each) for each in by_arm.values()] == [9, 9]
    own = {arm: found.plan.stage(arm).method.args[knob] for arm, knob in trials.KNOBS.items()}
    for arm, each in by_arm.items():
        assert {t.setting for t in each} == set(found.settings[arm]) and own[arm] in found.settings[arm]
        assert {t.stage.method.args[trials.KNOBS[arm]] for t in each} == set(found.settings[arm])
        assert {(t.stage.method.start_from, t.stage.model.path) for t in each} == {
            (by_arm["dpo"][0].stage.method.start_from, by_arm["dpo"][0].stage.model.path)
        }
    for trial in by_arm["ppo"]:
        assert trial.stage.method.reward_model == f"{found.folder}/reward-seed{trial.seed}/final"
    assert len({t.path for t in every}) == len(every) == 21
    for trial in (
        every[0],
        by_arm["dpo"][0],
        by_arm["ppo"][-1],
    ):  # the command trains what the comparison thinks it does
        assert trial.stage == to_stage(compose_config([f"recipes=support/{trial.arm}", *trial.overrides]))


@pytest.mark.parametrize(
    ("overrides", "more", "said"),
    [
        (["seed=2"], {}, "seeds="),
        ([], {"seeds": [1]}, "second seed"),
        ([], {"settings": {"dpo": [0.1, 0.2]}}, "same number of trials"),
        ([], {"settings": {"ppo": [-1.0, 0.1, 0.2]}}, "from 0 upwards"),
        ([], {"rates": {"dpo": [1e-4, 5e-4]}}, "both arms try as many"),
        ([], {"rates": {"dpo": [1e-4], "ppo": [0.0]}}, "both arms try as many, all above 0"),
        ([], {"name": "ppo"}, "no stage of support has"),
        ([], {"name": "../x"}, "folder name"),
        (["dpo.dataset.options.noise=0.3"], {}, "dataset.options differs, so the pairs do"),
        (["dpo.dataset.splits.train=held_out"], {}, "dataset.splits.train differs"),
        (["dpo.method.start_from=null"], {}, "method.start_from differs"),
        (["ppo.quantization=none"], {}, "quantization differs"),
    ],
)
def test_what_cannot_be_compared_is_refused(comparison, overrides, more, said):
    with pytest.raises(ConfigError, match=said.replace("[", r"\[")):
        comparison(*overrides, **more)


@pytest.mark.parametrize("arm", ["sft", "reward", "dpo", "ppo"])
def test_a_trainers_setting_is_refused_before_anything_runs(comparison, arm, tmp_path):
    with pytest.raises(
        ConfigError, match=rf"support/{arm}: method.args.lerning_rate is not a field(.|\n)*learning_rate"
    ):
        comparison(f"{arm}.method.args.lerning_rate=1").run(1)
    assert not list(tmp_path.iterdir())


def test_a_recipe_without_both_arms_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="0 stages of method=dpo"):
        Comparison("guanaco-7b", [f"run.root={tmp_path}"])


def _trains(monkeypatch, fail=()):
    """Trials that take no time: what the door would leave is written, and a shell takes its place, with the exit code in `fail`."""
    started, start, one_at_a_time = [], subprocess.run, threading.Lock()  # Hydra composes in one thread

    def run(command, **options):
        overrides = [word for word in command[3:] if word != "run.overwrite=true"]
        with one_at_a_time:
            stage = to_stage(compose_config([command[2], *overrides]))
        started.append(stage.path.name)
        if stage.path.name in fail:
            return start(
                ["sh", "-c", f"echo error: $OMP_NUM_THREADS threads >&2; exit {fail[stage.path.name]}"], **options
            )
        (stage.path / "final").mkdir(parents=True, exist_ok=True)
        left = {"id": stage.path.name, "status": "finished", "inputs": record.inputs(stage)}
        (stage.path / "run.json").write_text(json.dumps(left))
        return start(["true"], **options)

    monkeypatch.setattr(Children, "run", lambda self, command, **more: run(command, **more).returncode)
    monkeypatch.setattr(trials, "run_stages", lambda plan, names, children: 0)
    return started


def test_a_second_call_runs_nothing_and_a_lost_trial_alone_again(small, monkeypatch):
    started = _trains(monkeypatch)
    assert small().run(jobs=2) == []
    assert len(started) == len(set(started)) == 6
    started.clear()
    assert small().run(jobs=2) == [] and not started
    (small().folder / "dpo-0.3-seed2/run.json").unlink()
    assert small().run(jobs=2) == [] and started == ["dpo-0.3-seed2"]


def test_a_failed_trial_leaves_the_others(small, monkeypatch):
    started = _trains(monkeypatch, {"reward-seed2": 3, "dpo-0.3-seed1": 1})
    monkeypatch.setattr(launcher.os, "cpu_count", lambda: 8)
    failed = small().run(jobs=2)
    names = {trial.name for trial, _ in failed}
    assert {"reward-seed2", "dpo-0.3-seed1"} < names
    assert {n for n in names if n.startswith("ppo")} == {
        n for n in names if n.endswith("seed2") and n != "reward-seed2"
    }
    assert not any(
        name.startswith("ppo") and name.endswith("seed2") for name in started
    )  # nothing scores their replies
    assert len(started) == 6 - 1
    assert all("exit code" in why for _, why in failed)
    why = {trial.name: why for trial, why in failed}
    assert why["reward-seed2"].startswith("failed with exit code 3; 4 threads (")
    assert why["dpo-0.3-seed1"].startswith("failed with exit code 1; 4 threads (")


def test_a_seed_that_an_arm_lost_is_left_out_of_the_verdict(comparison):
    """A verdict needs a setting of each arm that all its seeds have; with another setting a lost trial costs that one alone."""
    from rlhf.compare.run import _compared

    def left(*lost, **more):
        found = comparison(seeds=[1, 2], **more)
        return _compared([trial for trial in found.trials() if trial.name not in lost])

    one, two = ({"dpo": [0.3, 0.4][:n], "ppo": [0.1, 0.2][:n]} for n in (1, 2))
    assert left(settings=one) == [1, 2] and left("ppo-0.1-seed1", settings=one) == [2]
    assert left("ppo-0.1-seed1", "dpo-0.3-seed1", settings=one) == [2]
    assert left("ppo-0.1-seed1", "dpo-0.3-seed2", settings=one) == []
    assert left("ppo-0.1-seed1", "dpo-0.3-seed2", settings=two) == [1, 2]


def test_an_equal_run_of_the_recipe_itself_is_a_trial(small, monkeypatch, tmp_path):
    """What `make demo` trained is not trained again, as long as it is what the comparison would train."""
    started = _trains(monkeypatch)
    for stage in ("reward", "dpo"):
        Children().run(["python", "src/train.py", f"recipes=support/{stage}", f"run.root={tmp_path}"])
    started.clear()
    found = small()
    assert found.trial("reward", None, 1).path == tmp_path / "support/reward"
    assert found.trial("dpo", 0.3, 1).path == tmp_path / "support/dpo"
    assert found.trial("dpo", 0.3, 2).path == found.folder / "dpo-0.3-seed2"
    assert found.trial("ppo", 0.1, 1).stage.method.reward_model == f"{tmp_path}/support/reward/final"
    found.run(jobs=1)
    assert not {"reward-seed1", "dpo-0.3-seed1"} & set(started) and len(started) == 4
    (tmp_path / "support/dpo/run.json").write_text(json.dumps({"status": "finished", "inputs": {}}))
    assert small().trial("dpo", 0.3, 1).path == found.folder / "dpo-0.3-seed1"


def test_a_stopped_trial_is_not_started_again(small, monkeypatch):
    started = _trains(monkeypatch)
    small().run(jobs=1)
    trial = small().trial("ppo", small().settings["ppo"][0], 1)
    (trial.path / "final").rmdir()
    checkpoint = trial.path / "checkpoint-8"
    checkpoint.mkdir()
    (checkpoint / files.COMPLETE).write_text("{}")
    run = json.loads((trial.path / "run.json").read_text())
    (trial.path / "run.json").write_text(json.dumps(run | {"status": "running"}))
    assert trial.state == "resumable"
    (trial.path / "alerts.jsonl").write_text(json.dumps({"step": 8, "level": "stop"}) + "\n")
    started.clear()
    assert trial.state == "stopped" and trial.checkpoints() == [(8, checkpoint)]
    assert small().run(jobs=1) == [] and not started


def test_each_arm_gets_its_best_learning_rate(comparison, monkeypatch, tmp_path):
    """As many rates an arm, with one seed, at the recipe's setting; chosen on every other prompt; then all trials have it."""
    from rlhf.compare import replies, run

    started = _trains(monkeypatch)
    rates = {"dpo": [1e-4, 4e-4, 1e-3], "ppo": [2e-4, 5e-4, 1e-3]}
    found = comparison(seeds=[1, 2], settings={"dpo": [0.1, 0.3], "ppo": [0.15, 0.4]}, rates=rates)
    golds = {"dpo": {1e-4: 1.0, 4e-4: 3.0, 1e-3: 2.0}, "ppo": {2e-4: 1.0, 5e-4: 2.0, 1e-3: 3.0}}

    class Drawn(replies.Replies):
        def make(self, trials, jobs=1):
            assert [t.name for t in trials][:2] == ["reward-seed1", "reward-seed2"]

        def of(self, trial, step):  # on the prompts of the verdict the other way round
            gold = golds[trial.arm][trial.rate]
            return [{"gold": gold if i % 2 == 0 else -gold, "kl": 1.0} for i in range(20)]

    monkeypatch.setattr(replies, "Replies", Drawn)
    monkeypatch.setattr(trials.Trial, "checkpoints", lambda trial: [(8, trial.path)])
    monkeypatch.setattr(record, "read_run", lambda folder, read=record.read_run: {"seconds": 1.0} | read(folder))
    rows = run._tune(found, 1, "annotator")
    assert started[2:] == [
        *("dpo-lr0.0001-0.3-seed1", "ppo-lr0.0002-0.15-seed1", "dpo-lr0.0004-0.3-seed1"),
        *("ppo-lr0.0005-0.15-seed1", "dpo-lr0.001-0.3-seed1", "ppo-lr0.001-0.15-seed1"),
    ]
    assert {row["arm"]: row["learning_rate"] for row in rows if row["chosen"]} == {"dpo": 4e-4, "ppo": 1e-3}
    assert [row["gold"] for row in rows if row["arm"] == "dpo"] == [1.0, 3.0, 2.0] and len(rows) == 6
    arms = [trial for trial in found.trials() if trial.arm != "reward"]
    assert {(t.arm, t.rate, t.stage.method.args["learning_rate"]) for t in arms} == {
        ("dpo", 4e-4, 4e-4),
        ("ppo", 1e-3, 1e-3),
    }
    assert len(arms) == 8 and {t.name for t in arms} >= {"dpo-lr0.0004-0.3-seed1", "ppo-lr0.001-0.15-seed1"}
    started.clear()
    found.run(jobs=1)
    assert len(started) == 6  # two of the eight have chosen the rate
    trial = arms[-1]
    assert trial.stage == to_stage(compose_config([f"recipes=support/{trial.arm}", *trial.overrides]))


def test_trials_at_a_time_follow_the_machine(comparison, monkeypatch):
    stage = comparison().plan.stage("ppo")
    monkeypatch.setattr(launcher.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(launcher.os, "sysconf", lambda name: 1 if name == "SC_PAGE_SIZE" else int(10e9))
    assert parallel(stage) == 2  # 10 GB free, 4 a trial
    stage.hardware.device = "cuda"
    assert parallel(stage) == 1
