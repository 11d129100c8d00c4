"""The report of a comparison from its replies, without a model: who was compared, win rates, alerts, replies side by side.

The setting and checkpoint of an arm are chosen on every other prompt. What compares arms is counted on the other prompts, because
the highest of several scores is too high on the prompts on which it was the highest.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rlhf.compare.costs import costs, fairness
from rlhf.compare.curves import Evidence, equal_kl, frontier, overoptimization, table
from rlhf.compare.replies import POOL, Replies
from rlhf.compare.report import MeanGold, Pair, Reply, Report, SideBySide, TrialAlert
from rlhf.compare.trials import KNOBS, Comparison, Trial
from rlhf.evaluation.length_control import length_controlled
from rlhf.evaluation.samples import Sample
from rlhf.evaluation.statistics import Judgements, estimate, holm, prompts_to_settle, verdict, win_rate
from rlhf.monitor.feed import monitor_of, watch_finished
from rlhf.runs import provenance

BEST = f"best-of-{POOL}"
SHOWN = 2  # prompts a situation whose replies are shown
Compare = Callable[[Sequence[Sample], Sequence[Sample]], Judgements]
BySeed = Mapping[int, Sequence[Sample]]


def analyze(
    comparison: Comparison,
    replies: Replies,
    trials: Sequence[Trial],
    compare: Compare,
    judge: str,
    failed: Sequence[tuple[Trial, str]],
) -> Report:
    """The content of report.json; `compare` judges two lists of replies to the same prompts."""
    evidence = Evidence(comparison, replies, trials)
    chosen = {arm: evidence.chosen(arm) for arm in KNOBS}
    policies = {
        "sft": evidence.sft,
        **{arm: evidence.points[arm][point] for arm, point in chosen.items()},
        BEST: evidence.best_of_pool,
    }
    unseen = {name: {seed: rows[1::2] for seed, rows in by_seed.items()} for name, by_seed in policies.items()}
    at_equal_kl, note = equal_kl(evidence)
    spent, dpo_with_ppo_time = costs(comparison, trials)
    return {
        "recipe": comparison.recipe,
        "provenance": provenance.provenance(),
        "setup": {
            "prompts": len(next(iter(evidence.sft.values()))),
            "seeds": comparison.seeds,
            "gold": replies.gold_name,
            "proxy": "reward model of each seed"
            if "reward" in comparison.stages
            else str(replies.stage.method.reward_model),
            "judge": judge,
            "temperature": 1.0,
            "arms": {
                arm: {"key": f"method.args.{knob}", "values": comparison.settings[arm]} for arm, knob in KNOBS.items()
            },
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


def win_rates(policies: Mapping[str, BySeed], compare: Compare) -> list[Pair]:
    """Each pair of policies, over prompts and seeds; p-values corrected for there being several pairs."""
    names = [name for name in ("ppo", "dpo", BEST, "sft") if name in policies]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    seeds = sorted(policies[names[0]])
    judgements = {(a, b): [compare(policies[a][seed], policies[b][seed]) for seed in seeds] for a, b in pairs}
    outcomes = {pair: [of_seed.outcomes for of_seed in each] for pair, each in judgements.items()}
    rates = {pair: win_rate(of_pair) for pair, of_pair in outcomes.items()}
    corrected = holm({" ".join(pair): rate.p for pair, rate in rates.items()})
    rows: list[Pair] = []
    for (first, second), rate in rates.items():
        each, p = judgements[first, second], corrected[f"{first} {second}"]
        ours, theirs = (table(policies[name], "length") for name in (first, second))
        fair = length_controlled(outcomes[first, second], ours, theirs)
        rows.append(
            {
                "first": first,
                "second": second,
                "rate": rate.rate,
                "low": rate.low,
                "high": rate.high,
                "p": rate.p,
                "wins": rate.wins,
                "ties": rate.ties,
                "losses": rate.losses,
                "p_corrected": p,
                "flip_rate": float(np.nanmean([of_seed.flip_rate for of_seed in each])),
                "abstained": sum(of_seed.abstained for of_seed in each),
                "length_controlled": {
                    "rate": fair.estimate.mean,
                    "low": fair.estimate.low,
                    "high": fair.estimate.high,
                    "overlap": fair.overlap,
                    "matched": fair.matched,
                    "matched_rate": None if math.isnan(fair.matched_rate) else fair.matched_rate,
                },
                "verdict": verdict(rate, first, second, p),
                "prompts_to_settle": prompts_to_settle(rate),
            }
        )
    return rows


def alerts(evidence: Evidence) -> list[TrialAlert]:
    """What the monitor says of each trial: of its log, and of its checkpoints' replies after those of the SFT model."""
    rows: list[TrialAlert] = []
    for trial in evidence.trials:
        raised = watch_finished(trial.path)
        monitor = monitor_of(trial.stage)
        monitor.update(0, {}, evidence.sft[trial.seed])
        for (setting, step), at in sorted(evidence.points[trial.arm].items()):
            if setting == trial.setting and trial.seed in at:
                raised += monitor.update(step, {}, at[trial.seed])
        for a in raised:
            rows.append(
                {
                    "trial": trial.name,
                    "step": a.step,
                    "level": a.level,
                    "rule": a.rule,
                    "source": a.source,
                    "text": str(a),
                }
            )
    return rows


def behaviours(policies: Mapping[str, BySeed]) -> dict[str, dict[str, MeanGold]]:
    """Gold of each policy by the situation that the prompts are about; empty where nobody says which."""
    first = next(iter(next(iter(policies.values())).values()))
    kinds = [(s.get("facts") or {}).get("situation") for s in first]
    means: dict[str, dict[str, MeanGold]] = {}
    for kind in sorted({kind for kind in kinds if kind}):
        where = np.array([each == kind for each in kinds])
        for name, by_seed in policies.items():
            mean = estimate(table(by_seed, "gold")[:, where])
            means.setdefault(kind, {})[name] = {"gold": mean.mean, "low": mean.low, "high": mean.high}
    return means


def side_by_side(policies: Mapping[str, BySeed], seed: int) -> list[SideBySide]:
    """Replies of all policies to the first prompts of each situation that were not chosen on."""
    seen: dict[str, int] = {}
    prompts: list[SideBySide] = []
    for index in range(1, len(policies["sft"][seed]), 2):
        sample = policies["sft"][seed][index]
        kind = (sample.get("facts") or {}).get("situation", "")
        seen[kind] = seen.get(kind, 0) + 1
        if seen[kind] > (SHOWN if kind else 5 * SHOWN):
            continue
        rows = {name: by_seed[seed][index] for name, by_seed in policies.items()}
        replies: dict[str, Reply] = {
            name: {"text": row["reply"], "gold": row["gold"], "proxy": row["reward"]} for name, row in rows.items()
        }
        prompts.append({"prompt": sample["prompt"], "situation": kind, "seed": seed, "replies": replies})
    return sorted(prompts, key=lambda row: row["situation"])
