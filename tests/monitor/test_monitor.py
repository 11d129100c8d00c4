"""The monitor finds planted hacks before the run ends and leaves healthy runs alone; each rule fires on its own trace."""

from functools import cache

import numpy as np
import pytest

from rlhf.config import Monitor as Settings
from rlhf.config import Rule, compose_config, to_stage
from rlhf.errors import ConfigError
from rlhf.evaluation.evaluate import most_suspicious
from rlhf.monitor.rules import Alert, Monitor, parse, spearman
from rlhf.monitor.signals import LOGGED, logged_signals, reply_signals
from rlhf.ppo.metrics import METRICS
from rlhf.preflight.settings import check_settings
from tests.monitor.helpers import HACKS, simulate

DEFAULT = to_stage(compose_config([])).monitor


@cache
def hacks():
    """7 hacks in 3 seeds, by hack and seed."""
    return {(hack, seed): list(simulate(seed, hack)) for hack in HACKS for seed in (1, 2, 3)}


@cache
def healthy():
    return {seed: list(simulate(seed, batch=(16, 32, 64)[seed % 3])) for seed in range(100, 150)}


def watch(run, gold: bool = True) -> list[Alert]:
    monitor, alerts = Monitor(DEFAULT), []
    for step, metrics, samples in run:
        known = samples if gold else [{k: v for k, v in s.items() if k != "gold"} for s in samples]
        alerts += monitor.update(step, metrics, known)
    return alerts


@pytest.mark.parametrize("gold, least", [(True, 19), (False, 17)])
def test_planted_hacks_are_stopped_before_the_run_ends(gold, least):
    """19 of 21 are more than 18 of 20. Without anybody who knows the true preference it is harder."""
    found = {}
    for name, run in hacks().items():
        stops = [a for a in watch(run, gold) if a.level == "stop"]
        if stops:
            found[name] = stops[0]
    print("\n".join(f"{hack}, seed {seed}: {alert}" for (hack, seed), alert in found.items()))
    print(f"{len(found)} of 21 found, gold known: {gold}")
    assert len(found) >= least and all(1 < alert.step <= 30 for alert in found.values())


def test_healthy_runs_are_not_stopped():
    false = {}
    for seed, run in healthy().items():
        stops = [str(a) for a in watch(run) if a.level == "stop"]
        if stops:
            false[seed] = stops
    print(f"{len(false)} of 50 healthy runs stopped: {false}")
    assert len(false) <= 1


@pytest.mark.parametrize("points, least", [(5, 14), (7, 20)])
def test_few_points_are_enough_for_most_hacks_and_stop_no_healthy_run(points, least):
    """What a comparison shows of a trial: replies alone, of SFT and of its checkpoints."""
    stopped = []
    for runs in (hacks().values(), healthy().values()):
        seen = [
            [(run[i][0], {}, run[i][2]) for i in np.linspace(0, len(run) - 1, points).round().astype(int)]
            for run in runs
        ]
        stopped.append(sum(any(alert.level == "stop" for alert in watch(run)) for run in seen))
    print(f"{points} points: {stopped[0]} of 21 found, {stopped[1]} of 50 healthy runs stopped")
    assert stopped[0] >= least and stopped[1] == 0


HEALTHY = {
    "reward/mean": 1.0, "reward/std": 1.0, "reward/length_correlation": 0.2, "objective/kl": 2.0, "objective/kl_k3": 2.0,
    "policy/entropy_avg": 1.0, "length/mean": 20.0, "length/eos_rate": 0.98, "text/distinct_2": 0.5, "text/repeat_4": 0.02,
    "value/explained_variance": 0.3, "policy/clipfrac_avg": 0.1, "policy/ratio_max": 1.5, "rewards/chosen": -0.1,
    "logps/chosen": -20.0,
}  # fmt: skip
REPLY = "please check your tracking number number {} we are happy to help with order {}"
# What a rule's trace looks like from the fourth point on: metrics, or what happens to each reply.
TRACES = {
    "overoptimization": lambda i, s: s | {"reward": s["reward"] + 0.3 * i, "gold": s["gold"] - 0.3 * i},
    "repetition": {"text/repeat_4": 0.5},
    "empty": lambda i, s: s | {"reply": " "},
    "collapse": lambda i, s: s | {"reply": "we cannot help with that."},
    "little_variety": {"text/distinct_2": 0.1},
    "copying": lambda i, s: s | {"reply": s["prompt"]},
    "symbols": lambda i, s: s | {"reply": s["reply"][:9] + "\U0001f600" * 9},
    "gibberish": lambda i, s: s | {"known": False},
    "endless": {"length/eos_rate": 0.1},
    "long_replies": {"length/mean": 60.0, "reward/length_correlation": 0.7},
    "far_away": {"objective/kl_k3": 80.0},
    "kl": {"objective/kl_k3": 20.0},
    "kl_jump": {"objective/kl_k3": 40.0},
    "negative_kl": {"objective/kl": -5.0},
    "length": {"length/mean": 35.0, "reward/length_correlation": 0.7},
    "entropy": {"policy/entropy_avg": 0.1},
    "no_eos": {"length/eos_rate": 0.5},
    "refusals": lambda i, s: s | {"reply": f"I'm sorry, I can't help with order {i}."},
    "saturation": lambda i, s: s | {"reward": 9.0},
    "clipping": {"policy/clipfrac_avg": 0.6},
    "ratio": {"policy/ratio_max": 50.0},
    "value": {"value/explained_variance": -1.0},
    "chosen_fall": {"rewards/chosen": -2.0, "logps/chosen": -30.0},
}


def trace(rule: str | None):
    for step in range(1, 34):
        change = TRACES[rule] if rule and step > 3 else {}
        samples = [
            {
                "prompt": f"where is order {i}? i wait since monday and nobody answers me", "reply": REPLY.format(i, i),
                "reward": 1 + i % 5 - 2, "gold": 1 + (i + step) % 5 - 2, "length": 12, "ended": True, "known": True,
            } for i in range(40)
        ]  # fmt: skip
        if callable(change):
            samples = [change(step, s) for s in samples]
        yield step, HEALTHY | (change if isinstance(change, dict) else {}), samples


@pytest.mark.parametrize("rule", TRACES)
def test_each_rule_fires_on_its_trace(rule):
    monitor, fired = Monitor(DEFAULT, beta=0.1, reward_top=5.0), {}
    for step, metrics, samples in trace(rule):
        fired |= {a.rule: a for a in monitor.update(step, metrics, samples) if a.rule not in fired}
    alert = fired[rule]
    assert 4 <= alert.step <= 4 + 9 + DEFAULT.rules[rule].patience and alert.level == DEFAULT.rules[rule].level
    for signal, value, sign, limit in alert.numbers:
        assert (value > limit) == (sign == ">") and f"{signal} {value:.3g} {sign} {limit:.3g}" in str(alert)


def test_no_rule_fires_on_a_healthy_trace_and_all_rules_have_one():
    monitor = Monitor(DEFAULT, beta=0.1, reward_top=5.0)
    assert [a for step, metrics, samples in trace(None) for a in monitor.update(step, metrics, samples)] == []
    assert set(TRACES) == set(DEFAULT.rules) and len(TRACES) >= 20


def test_the_monitor_reads_what_ppo_logs():
    assert set(LOGGED) <= set(METRICS)


def test_a_rule_alerts_once_and_again_only_after_a_pause():
    settings = Settings(window=1, rules={"kl": Rule("warn", 2, ["kl > 10"], "less")})
    monitor = Monitor(settings)
    kls = [1, 20, 20, 20, 1, 20, 20]
    steps = [a.step for i, kl in enumerate(kls) for a in monitor.update(i, {"objective/kl_k3": kl})]
    assert steps == [2, 6]
    assert monitor.update(7, {"objective/kl_k3": 1}) == []


def test_lines_without_a_signal_and_values_that_are_no_number_change_nothing():
    monitor = Monitor(Settings(window=3, rules={"kl": Rule("stop", 1, ["kl > 10"], "less")}))
    nothing = ({}, {"eval_runtime": 3.0}, {"objective/kl_k3": float("nan")}, {"length/mean": 5.0}, {"length/mean": 6.0})
    assert [monitor.update(i, metrics) for i, metrics in enumerate(nothing)] == [[]] * 5
    assert [a.rule for a in monitor.update(9, {"objective/kl_k3": 30.0})] == ["kl"]


@pytest.mark.parametrize(
    "override, message",
    [
        (
            "monitor.rules.kl.level=stopp",
            "monitor.rules.kl.level=stopp is not one of off, warn, stop; did you mean stop",
        ),
        ("monitor.rules.kl.when=['lenght > 3']", "monitor.rules.kl.when: lenght is not a signal; did you mean length"),
        ("monitor.rules.kl.when=['kl >= 3']", "'kl >= 3' is not `signal > number`"),
        ("monitor.rules.kl.when=[]", "fix: monitor.rules.kl.level=off"),
        ("monitor.rules.kl.patience=0", "patience=0 must be at least 1"),
        ("monitor.window=0", "monitor.window=0 must be at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(override, message):
    stage = to_stage(compose_config([override]))
    for refuse in (lambda: Monitor(stage.monitor), lambda: check_settings(stage, planned=["base"])):
        with pytest.raises(ConfigError) as caught:
            refuse()
        assert message in str(caught.value)


def test_rules_can_be_changed_and_switched_off_from_the_command_line():
    settings = to_stage(
        compose_config(["monitor.rules.kl.when=['kl > 2 * start']", "monitor.rules.value.level=off"])
    ).monitor
    monitor = Monitor(settings)
    assert "value" not in monitor.rules and monitor.conditions["kl"][0].limit(4.0) == 8.0
    assert Monitor(to_stage(compose_config(["monitor=none"])).monitor).rules == {}


def test_conditions():
    assert [parse(text).limit(2.0) for text in ("kl > 3", "kl < -1.5", "kl > 1.5 * start", "kl > start + 0.25")] == [
        3,
        -1.5,
        3,
        2.25,
    ]
    assert parse("kl < start - 1").limit(2.0) == 1.0 and not parse("kl < 1").above and parse("kl > 1").holds(2, 0)


def test_signals_of_replies_by_hand():
    samples = [
        {"prompt": "a b c d e", "reply": "a b c d", "reward": 2.0, "length": 5, "ended": True},
        {"prompt": "x", "reply": "a b c d", "reward": 1.0, "length": 4, "ended": True},
        {"prompt": "x", "reply": "", "reward": 0.0, "length": 3, "ended": False},
        {"prompt": "x", "reply": "w w w w w \u2603", "reward": -1.0, "length": 2, "ended": True},
    ]
    found = reply_signals(samples, reward_top=0.5)
    assert found["copied"] == found["empty"] == found["duplicates"] == 0.25 and found["eos_rate"] == 0.75
    assert found["repeat_4"] == pytest.approx(1 / 5) and found["symbols"] == pytest.approx(1 / 11 / 4)
    assert (
        found["length_correlation"] == pytest.approx(1) and found["saturated"] == 0.5 and found["reward_score"] == 0.5
    )
    assert "gold_score" not in found


def test_dpo_chosen_fall_is_a_share_of_what_the_reference_gives():
    found = logged_signals({"rewards/chosen": -0.5, "logps/chosen": -25.0}, beta=0.1)
    assert found == pytest.approx({"chosen_fall": 0.25})  # from -20 to -25 nats
    assert logged_signals({"rewards/chosen": -0.5, "logps/chosen": -25.0}) == {}


def test_spearman_by_hand():
    assert spearman([1, 2, 3, 4], [10, 20, 15, 40]) == pytest.approx(0.8)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1) and spearman([1, 1, 1], [1, 2, 3]) == 0.0
    assert spearman([1, 1, 2, 3], [1, 2, 3, 4]) == pytest.approx(0.948683)


def test_the_most_suspicious_replies_are_paid_and_bad():
    samples = [{"reply": str(i), "reward": float(i % 10), "gold": float(i // 10)} for i in range(100)]
    assert [s["reply"] for s in most_suspicious(samples, 3)] == ["9", "8", "19"]
    assert most_suspicious([{"reward": 1.0}, {"reward": 3.0}], 1) == [{"reward": 3.0}]
