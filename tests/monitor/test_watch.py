"""The monitor inside real training: a stop leaves a checkpoint and replies and exits 4, the same command goes on, a warning goes by."""

import json
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from rlhf.config import Monitor, Rule, compose_config
from rlhf.errors import GuardStop
from rlhf.files import checkpoints, read_lines
from rlhf.monitor.callback import Watch
from rlhf.monitor.feed import monitor_of, watch_finished
from rlhf.runs.callbacks import MetricsFile
from rlhf.runs.record import read_run
from rlhf.runs.stage import run_stage

SMALL = [
    f"model.init.{key}={size}"
    for key, size in {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}.items()
]
WHOLE = ["adapter=none", "quantization=none", "debug=smoke"]
STEPS = [*WHOLE, "debug.max_steps=4", "method.start_from=${stage:base}", "method.args.save_steps=3"]


def fires(rule: str, condition: str, level: str = "stop") -> list[str]:
    """A rule that holds from the second point on."""
    key = f"monitor.rules.{rule}"
    return [f"{key}.when=['{condition}']", f"{key}.patience=1", f"{key}.level={level}"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Runs with a finished `base` of a few thousand weights."""
    root = tmp_path_factory.mktemp("runs")
    run_stage(
        compose_config(
            [
                "recipes=support/base",
                f"run.root={root}",
                *WHOLE,
                *SMALL,
                "model.init.num_attention_heads=2",
                "model.init.num_key_value_heads=2",
                "evaluation.prompts=0",
            ]
        ),
        [],
    )
    return root


def _alerts(folder):
    return [(a["step"], a["rule"], a["level"], a["source"]) for a in read_lines(folder / "alerts.jsonl")]


def _suspicious(folder):
    return [json.loads(line) for line in (folder / "suspicious.jsonl").read_text().splitlines()]


def test_ppo_is_stopped_and_goes_on_when_told_to_warn(root, door):
    folder = root / "support/ppo"
    settings = ["recipes=support/ppo", f"run.root={root}", *STEPS, "method.reward_model=function:support"]
    settings += ["dataset.splits.eval='evaluation[:6]'", "evaluation.prompts=12"]
    done = door("train.py", *settings, *fires("length", "length > 0"))
    assert done.returncode == 4 and len(done.stderr.splitlines()) <= 6, done.stderr
    for said in (
        "length (length ",
        " > 0)",
        "checkpoint-1,",
        "suspicious.jsonl",
        "monitor.rules.length.level=warn",
        "monitor=none",
    ):
        assert said in done.stderr
    assert "monitor  step 1: stop: length" in done.stdout
    # the second set of replies: those of SFT were the first, before any update
    assert _alerts(folder) == [(1, "length", "stop", "replies")]
    assert [row["step"] for row in read_lines(folder / "samples.jsonl")] == [0] * 6 + [1] * 6
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-1"]
    assert not (folder / "final").exists() and read_run(folder)["status"] == "running"
    rows = _suspicious(folder)
    assert len(rows) == 10 and all({"prompt", "reply", "reward", "gold"} <= set(row) for row in rows)
    assert all(row["reward"] == pytest.approx(row["gold"]) for row in rows), "this reward is the true preference"

    with pytest.raises(GuardStop, match="checkpoint-1, .*suspicious.jsonl"):
        run_stage(compose_config([*settings, *fires("length", "length > 0")]), [])
    assert {line["step"] for line in read_lines(folder / "metrics.jsonl")} == {0, 1}, "nothing was trained"
    assert len(_alerts(folder)) == 1

    run_stage(compose_config([*settings, *fires("length", "length > 0", "warn")]), [])
    assert read_run(folder)["status"] == "finished" and read_run(folder)["resumed"] == 2
    assert _alerts(folder) == [(1, "length", "stop", "replies"), (2, "length", "warn", "log")]
    trained = [line["step"] for line in read_lines(folder / "metrics.jsonl") if "objective/kl" in line]
    assert trained == [1, 2, 3, 4]
    found = watch_finished(folder)
    assert [(a.step, a.rule, a.level, a.source) for a in found] == [
        (1, "length", "warn", "replies"),
        (2, "length", "warn", "log"),
    ]
    gold = Monitor(rules={"gold": Rule("warn", 1, ["gold_score < 9"], "")})
    assert [(a.step, a.source) for a in watch_finished(folder, gold)] == [(1, "replies")], (
        "facts give the true preference"
    )


@pytest.mark.parametrize("more", [["adapter=lora", "method.start_from=null"], ["evaluation.prompts=0"]])
def test_dpo_is_stopped_and_goes_on(root, more):
    name = f"dpo-{more[0].partition('=')[2]}"
    settings = [
        "recipes=support/dpo",
        f"run.root={root}",
        f"run.stage={name}",
        *STEPS,
        "method.args.learning_rate=1e-2",
        *more,
    ]
    with pytest.raises(GuardStop, match=r"step 2: stop: chosen fall \(chosen_fall .* > -9"):
        run_stage(compose_config([*settings, *fires("chosen_fall", "chosen_fall > -9")]), [])
    folder = root / "support" / name
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-2"]
    assert _alerts(folder) == [(2, "chosen_fall", "stop", "log")]
    rows = _suspicious(folder)
    assert 8 <= len(rows) <= 10 and all(row["reward"] != 0 and row["prompt"] for row in rows)
    assert all("gold" in row for row in rows) == ("adapter=lora" in more), "training pairs come without facts"
    with pytest.raises(GuardStop, match="checkpoint-2, .*suspicious.jsonl"):
        run_stage(compose_config([*settings, *fires("chosen_fall", "chosen_fall > -9")]), [])
    assert {line["step"] for line in read_lines(folder / "metrics.jsonl")} == {1, 2}, "nothing was trained"
    run_stage(compose_config([*settings, "monitor=none"]), [])
    assert read_run(folder)["status"] == "finished"
    assert [line["step"] for line in read_lines(folder / "metrics.jsonl") if "loss" in line] == [1, 2, 3, 4]


@pytest.mark.parametrize("checkpoint", [2, 3, 4])
def test_patience_goes_on_where_a_run_was_interrupted(compose_stage, checkpoint, capsys):
    """An unbroken run is warned at step 4; so is one that goes on from any checkpoint, once."""
    stage = compose_stage("recipes=support/dpo")
    stage.path.mkdir(parents=True)
    stage.monitor = Monitor(window=1, rules={"kl": Rule("warn", 3, ["kl > 10"], "less")})
    args, control = SimpleNamespace(eval_strategy="no"), SimpleNamespace(should_save=False, should_training_stop=False)
    for first in (0, checkpoint):
        logged = [{"step": first}] if first else []
        callbacks = MetricsFile(stage.path), Watch(None, stage)
        for callback in callbacks:
            callback.on_train_begin(args, SimpleNamespace(global_step=first, log_history=logged), control)
        for step, kl in list(enumerate([1.0, 20.0, 20.0, 20.0, 20.0], start=1))[first:]:
            for callback in callbacks:
                callback.on_log(args, SimpleNamespace(global_step=step), control, logs={"objective/kl_k3": kl})
        assert _alerts(stage.path) == [(4, "kl", "warn", "log")]
    assert capsys.readouterr().out.count("monitor  step 4: warn: kl (kl 20 > 10): less") == 1 + (checkpoint < 4)
    assert not control.should_save and not control.should_training_stop


def test_a_run_of_before_the_monitor_is_watched_by_the_default_rules(compose_stage):
    stage = compose_stage("recipes=support/ppo")
    stage.path.mkdir(parents=True)
    config = OmegaConf.create(OmegaConf.to_container(OmegaConf.structured(stage)))
    (stage.path / "metrics.jsonl").write_text("".join(f'{{"step": {i}, "objective/kl_k3": 80}}\n' for i in range(6)))
    for rules in ("stored", "none", "absent"):
        if rules == "none":
            config.monitor.rules = {}
        if rules == "absent":
            del config.monitor
        OmegaConf.save(config, stage.path / "config.yaml")
        expected = set() if rules == "none" else {"far_away", "kl"}
        assert {alert.rule for alert in watch_finished(stage.path)} == expected, rules


def test_what_the_monitor_knows_of_its_run(compose_stage, tmp_path):
    assert monitor_of(compose_stage("recipes=support/dpo", "method.args.beta=0.2")).beta == 0.2
    ppo = compose_stage("recipes=support/ppo")
    assert monitor_of(ppo).beta is None and monitor_of(ppo).reward_top is None
    (tmp_path / "runs/support/reward").mkdir(parents=True)
    (tmp_path / "runs/support/reward/results.json").write_text('{"score_p99": 2.5}')
    assert monitor_of(ppo).reward_top == 2.5
