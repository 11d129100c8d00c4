"""From replies to a report: what was planted in the replies is what the report says."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest

from rlhf.compare.analysis import BEST, alerts, analyze
from rlhf.compare.page import write_pages
from rlhf.compare.replies import POOL, Replies
from rlhf.compare.run import _by_gold
from rlhf.compare.trials import Comparison

PROMPTS = 60
NUMBERS = itertools.count()  # no two replies are the same
KINDS = ("brief", "kind", "safe")
# what a checkpoint's gold is above SFT's: setting -> by checkpoint; KL grows with the step
GAIN = {"dpo": {0.1: (0.2, 0.4), 0.3: (0.3, 0.6)}, "ppo": {0.1: (0.8, 0.3), 0.3: (0.7, 1.2)}}
KL = {"dpo": {0.1: (1.0, 4.0), 0.3: (0.5, 2.0)}, "ppo": {0.1: (2.0, 6.0), 0.3: (0.5, 2.0)}}


@pytest.fixture
def make(tmp_path):
    def make(gain):
        comparison = Comparison(
            "support",
            [f"run.root={tmp_path}"],
            seeds=[1, 2, 3],
            settings={arm: list(of) for arm, of in gain.items()},
        )
        replies = Replies(comparison, "annotator")
        replies.folder.mkdir(parents=True)
        rng = np.random.default_rng(0)
        gold = rng.normal(1.0, 0.3, PROMPTS)  # some prompts are easier for everybody
        for seed in comparison.seeds:
            rows = [(p, i) for p in range(PROMPTS) for i in range(POOL + 3)]
            write(replies.folder / f"sft-seed{seed}.jsonl", [(p, gold[p] + rng.normal(0, 0.3), 0.0) for p, _ in rows])
        trials = comparison.trials()
        for trial in trials:
            leave(trial)
            if trial.arm != "reward":
                for place, step in enumerate((10, 20)):
                    lift, kl = gain[trial.arm][trial.setting][place], KL[trial.arm][trial.setting][place]
                    rows = [(p, gold[p] + lift + rng.normal(0, 0.3), kl) for p in range(PROMPTS)]
                    write(replies.folder / f"{trial.name}-step{step}.jsonl", rows)
        return analyze(replies, trials, _by_gold, "annotator", [])

    return make


def write(file, rows):
    """Replies whose reward is their gold; `rows` are (prompt, gold, kl)."""
    lines = [{"key": "k"}]
    for prompt, gold, kl in rows:
        number = next(NUMBERS)
        facts = {"situation": KINDS[prompt % len(KINDS)]}
        sample = {"prompt": f"prompt {prompt}", "prompt_ids": [prompt], "facts": facts, "ids": [number], "kl": kl}
        lines.append(sample | {"reply": f"reply {number}", "length": 10, "ended": True, "gold": gold, "reward": gold})
    file.write_text("\n".join(map(json.dumps, lines)))


def leave(trial):
    """What a finished trial leaves, as far as a report reads it."""
    (trial.path / "final").mkdir(parents=True)
    (trial.path / "checkpoint-10").mkdir()
    (trial.path / "checkpoint-10" / "complete").write_text("{}")
    (trial.path / "config.yaml").write_text("")
    lines = [{"step": step, "num_tokens": 100.0 * step, "episode": 64 * step, "length/mean": 8.0} for step in (10, 20)]
    (trial.path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    ledger = {"kept": 2, "tokens": {"sum": 10}, "fingerprint": "f"}
    (trial.path / "data.json").write_text(json.dumps({"splits": {"train": ledger}}))
    run = {"id": trial.name, "inputs": {"stage:sft": "s", "stage:base": "b"}, "seconds": 60.0, "peak_memory_mb": 900.0}
    (trial.path / "run.json").write_text(json.dumps(run))


@pytest.fixture(autouse=True)
def unwatched(monkeypatch):
    from rlhf.compare import analysis

    monkeypatch.setattr(analysis, "watch_finished", lambda folder: [])  # tests/monitor/test_watch.py has its own runs


def test_the_report_says_what_was_planted(make, tmp_path):
    report = make(GAIN)
    json.dumps(report, allow_nan=False)
    assert report["setup"]["chosen"] == {"dpo": {"setting": 0.3, "step": 20}, "ppo": {"setting": 0.3, "step": 20}}
    rows = report["frontier"]
    assert len(rows) == 3 + 3 * 4 + 2 * 2 * 2 * 3  # SFT, best of 2, 4, 8, 16, and each checkpoint of each trial
    golds = {(r["arm"], r["setting"], r["step"]): [] for r in rows}
    for r in rows:
        assert r["gold_low"] < r["gold"] < r["gold_high"]
        golds[r["arm"], r["setting"], r["step"]].append(r["gold"])
    start = np.mean(golds["sft", None, 0])
    for arm, settings in GAIN.items():
        for setting, gains in settings.items():
            for step, gain in zip((10, 20), gains, strict=True):
                assert np.mean(golds[arm, setting, step]) - start == pytest.approx(gain, abs=0.12)
    bests = [np.mean(golds["best-of-n", n, 0]) for n in (2, 4, 8, 16)]
    assert start < bests[0] < bests[1] < bests[2] < bests[3]
    pairs = {(r["first"], r["second"]): r for r in report["win_rates"]}
    assert len(pairs) == 6 and BEST == "best-of-16"
    ours = pairs["ppo", "dpo"]
    assert (
        ours["rate"] > 0.75 and ours["low"] > 0.5 and ours["p_corrected"] < 0.01 and "ppo is better" in ours["verdict"]
    )
    assert ours["wins"] + ours["ties"] + ours["losses"] == 3 * PROMPTS // 2  # the half that nothing was chosen on
    curves = {c["setting"]: c for c in report["overoptimization"]["ppo"]["settings"]}
    assert curves[0.1]["gold_last"] < curves[0.1]["gold_peak"] and curves[0.1]["kl_at_peak"] == pytest.approx(2.0)
    assert curves[0.3]["last_over_peak"] == 1.0
    assert curves[0.1]["fall"]["low"] > 0 and curves[0.3]["fall"] == {
        "kl": curves[0.3]["kl_last"],
        "mean": 0,
        "low": 0,
        "high": 0,
    }
    at = report["equal_kl"]
    assert (
        at[-1]["kl"] == pytest.approx(4.0)
        and at[-1]["difference"] == pytest.approx(0.6, abs=0.15)
        and at[-1]["low"] > 0
    )
    assert set(report["behaviours"]) == set(KINDS)
    costs = {row["arm"]: row for row in report["costs"]}
    assert costs["ppo"]["seconds_all"] == 60.0 * 9 and costs["dpo"]["seconds_all"] == 60.0 * 6
    assert costs["ppo"]["tokens_generated"] == 6 * 64 * 20 * 8
    assert costs["ppo"]["tokens_trained"] == 6 * 64 * 20 * 2 * (5 + 8) + 3 * 2000
    assert report["alerts"] == [], "three points of a trial are too few for any rule that these replies could break"
    write_pages(tmp_path, report)
    assert (tmp_path / "report.html").stat().st_size > 100_000 and "Each setting from" in (
        tmp_path / "report.md"
    ).read_text()


def test_the_monitor_names_the_trials_whose_reward_rises_while_the_gold_falls(tmp_path):
    """SFT and four checkpoints a trial, as a comparison has by default."""
    comparison = Comparison("support", [f"run.root={tmp_path}"], [1, 2], {"dpo": [0.3], "ppo": [0.1]})
    trials = [trial for trial in comparison.trials() if trial.arm != "reward"]
    rng = np.random.default_rng(0)

    def samples(reward, gold):
        numbers = [{"reward": reward + rng.normal(), "gold": gold + rng.normal()} for _ in range(PROMPTS)]
        return [s | {"reply": f"reply {next(NUMBERS)}", "length": 10, "ended": True} for s in numbers]

    def checkpoints(slope):
        return {step: {seed: samples(0.5 * step, slope * step) for seed in (1, 2)} for step in (1, 2, 3, 4)}

    points = {"dpo": {(0.3, step): at for step, at in checkpoints(0.4).items()}}
    points |= {"ppo": {(0.1, step): at for step, at in checkpoints(-0.8).items()}}
    evidence = SimpleNamespace(trials=trials, sft={seed: samples(0, 0) for seed in (1, 2)}, points=points)
    raised = [(a["trial"], a["step"], a["rule"], a["level"]) for a in alerts(evidence)]
    assert raised == [(f"ppo-0.1-seed{seed}", 4, "overoptimization", "stop") for seed in (1, 2)]


def test_equal_arms_are_not_told_apart(make):
    same = {0.1: (0.3, 0.3), 0.3: (0.3, 0.3)}
    report = make({"dpo": same, "ppo": same})
    ours = next(r for r in report["win_rates"] if (r["first"], r["second"]) == ("ppo", "dpo"))
    assert ours["low"] < 0.5 < ours["high"] and "not distinguishable" in ours["verdict"]
    assert all(r["low"] < 0 < r["high"] for r in report["equal_kl"])
