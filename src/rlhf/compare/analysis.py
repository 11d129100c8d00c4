"""The report of a comparison from its replies, without a model: who was compared, win rates, alerts, replies side by side.

The setting and checkpoint of an arm are chosen on every other prompt. What compares arms is counted on the other prompts, because
the highest of several scores is too high on the prompts on which it was the highest.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rlhf.compare.costs import costs, fairness
from rlhf.compare.curves import Evidence, equal_kl, frontier, overoptimization, table
from rlhf.compare.replies import POOL, Replies
from rlhf.compare.report import Report, Row, numbers
from rlhf.compare.trials import KNOBS, Trial
from rlhf.evaluation.length_control import length_controlled
from rlhf.evaluation.samples import Sample, situation
from rlhf.evaluation.statistics import Judgements, estimate, holm, prompts_to_settle, verdict, win_rate
from rlhf.monitor.feed import monitor_of, watch_finished
from rlhf.runs import provenance

BEST = f"best-of-{POOL}"
SHOWN = 2  # prompts a situation whose replies are shown
Compare = Callable[[Sequence[Sample], Sequence[Sample]], Judgements]
BySeed = Mapping[int, Sequence[Sample]]


def analyze(
    replies: Replies, trials: Sequence[Trial], compare: Compare, judge: str, failed: Sequence[tuple[Trial, str]]
) -> Report:
    """The content of report.json; `compare` judges two lists of replies to the same prompts."""
    comparison, evidence = replies.comparison, Evidence(replies, trials)
    chosen = {arm: evidence.chosen(arm) for arm in KNOBS}
    arms = {arm: evidence.points[arm][point] for arm, point in chosen.items()}
    policies = {"sft": evidence.sft, **arms, BEST: evidence.best_of_pool}
    unseen = {name: {seed: rows[1::2] for seed, rows in by_seed.items()} for name, by_seed in policies.items()}
    at_equal_kl, note = equal_kl(evidence)
    spent, dpo_with_ppo_time = costs(trials)
    proxy = "reward model of each seed" if "reward" in comparison.stages else str(replies.stage.method.reward_model)
    return {
        "recipe": comparison.recipe,
        "provenance": provenance.provenance(),
        "setup": {
            "prompts": len(next(iter(evidence.sft.values()))),
            "seeds": comparison.seeds,
            "gold": replies.gold_name,
            "proxy": proxy,
            "judge": judge,
            "temperature": 1.0,
            "arms": {a: {"key": f"method.args.{k}", "values": comparison.settings[a]} for a, k in KNOBS.items()},
            "chosen": {arm: {"setting": point[0], "step": point[1]} for arm, point in chosen.items()},
            "chosen_on": "every other prompt; win rates, equal KL and behaviours are counted on the other half",
        },
        "fairness": fairness(comparison, trials),
        "frontier": frontier(evidence),
        "equal_kl": at_equal_kl,
        "equal_kl_note": note,
        "win_rates": win_rates(unseen, compare),
        "overoptimization": overoptimization(evidence, chosen),
        "costs": spent,
        "dpo_with_ppo_time": dpo_with_ppo_time,
        "alerts": alerts(evidence),
        "behaviours": behaviours(unseen),
        "replies": side_by_side(policies, comparison.seeds[0]),
        "failed": [{"trial": trial.name, "why": why} for trial, why in failed],
    }


def win_rates(policies: Mapping[str, BySeed], compare: Compare) -> list[Row]:
    """Each pair of policies, over prompts and seeds; p-values corrected for there being several pairs."""
    pairs = list(itertools.combinations(("ppo", "dpo", BEST, "sft"), 2))
    seeds = sorted(policies["sft"])
    judged = {(a, b): [compare(policies[a][seed], policies[b][seed]) for seed in seeds] for a, b in pairs}
    outcomes = {pair: [of_seed.outcomes for of_seed in each] for pair, each in judged.items()}
    rates = {pair: win_rate(of_pair) for pair, of_pair in outcomes.items()}
    corrected = holm({" ".join(pair): rate.p for pair, rate in rates.items()})
    rows = []
    for (first, second), rate in rates.items():
        each, p = judged[first, second], corrected[f"{first} {second}"]
        ours, theirs = (table(policies[name], "length") for name in (first, second))
        fair = length_controlled(outcomes[first, second], ours, theirs)
        equal = {"rate": fair.estimate.mean} | numbers(fair.estimate, "low", "high")
        equal |= numbers(fair, "overlap", "matched")
        row = {"first": first, "second": second}
        row |= numbers(rate, "rate", "low", "high", "p", "wins", "ties", "losses") | {"p_corrected": p}
        row["flip_rate"] = float(np.nanmean([of_seed.flip_rate for of_seed in each]))
        row["abstained"] = sum(of_seed.abstained for of_seed in each)
        row["length_controlled"] = equal | {"matched_rate": fair.matched_rate if fair.matched else None}
        rows.append(row | {"verdict": verdict(rate, first, second, p), "prompts_to_settle": prompts_to_settle(rate)})
    return rows


def alerts(evidence: Evidence) -> list[Row]:
    """What the monitor says of each trial: of its log, and of its checkpoints' replies after those of the SFT model."""
    rows = []
    for trial in evidence.trials:
        raised, monitor = watch_finished(trial.path), monitor_of(trial.stage)
        monitor.update(0, {}, evidence.sft[trial.seed])
        for (setting, step), at in sorted(evidence.points[trial.arm].items()):
            if setting == trial.setting and trial.seed in at:
                raised += monitor.update(step, {}, at[trial.seed])
        for alert in raised:
            about = numbers(alert, "step", "level", "rule", "source")
            rows.append({"trial": trial.name, **about, "text": str(alert)})
    return rows


def behaviours(policies: Mapping[str, BySeed]) -> dict[str, dict[str, Row]]:
    """Gold of each policy by the situation that the prompts are about; empty where nobody says which."""
    first = next(iter(next(iter(policies.values())).values()))
    kinds = [situation(sample) for sample in first]
    means: dict[str, dict[str, Row]] = {}
    for kind in sorted({*kinds} - {""}):
        for name, by_seed in policies.items():
            mean = estimate(table(by_seed, "gold")[:, np.array(kinds) == kind])
            means.setdefault(kind, {})[name] = {"gold": mean.mean} | numbers(mean, "low", "high")
    return means


def side_by_side(policies: Mapping[str, BySeed], seed: int) -> list[Row]:
    """Replies of all policies to the first prompts of each situation that were not chosen on."""
    seen: Counter[str] = Counter()
    prompts = []
    for index, sample in list(enumerate(policies["sft"][seed]))[1::2]:
        kind = situation(sample)
        seen[kind] += 1
        if seen[kind] <= (SHOWN if kind else 5 * SHOWN):
            rows = {name: by_seed[seed][index] for name, by_seed in policies.items()}
            said = {name: {"text": r["reply"], "gold": r["gold"], "proxy": r["reward"]} for name, r in rows.items()}
            prompts.append({"prompt": sample["prompt"], "situation": kind, "seed": seed, "replies": said})
    return sorted(prompts, key=lambda row: row["situation"])
