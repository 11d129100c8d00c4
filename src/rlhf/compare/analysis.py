"""From replies to a report: the frontier, win rates, equal KL, over-optimization, costs and alerts, all of it without a model.

The setting and checkpoint of an arm are chosen on every other prompt; everything that compares arms is counted on the rest, so
that an arm does not win by having been chosen.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rlhf.compare.costs import costs, fairness
from rlhf.compare.estimators import Kind, at_equal_kl, best_of_n, best_of_n_kl, choose_checkpoint, fit_law
from rlhf.compare.evidence import Evidence, Point, table
from rlhf.compare.replies import POOL, Replies
from rlhf.compare.trials import KNOBS, Comparison, Trial
from rlhf.evaluation.length_control import length_controlled
from rlhf.evaluation.samples import Sample, column
from rlhf.evaluation.statistics import Judgements, estimate, holm, prompts_to_settle, verdict, win_rate
from rlhf.monitor.feed import monitor_of, watch_finished
from rlhf.runs import provenance

BEST = f"best-of-{POOL}"
EQUAL_KLS = 5  # places at which the arms are compared at equal KL
Z95 = 1.959964  # normal quantile of 97.5%
SHOWN = 2  # prompts a situation whose replies are shown
Compare = Callable[[Sequence[Sample], Sequence[Sample]], Judgements]


def analyze(
    comparison: Comparison,
    replies: Replies,
    trials: Sequence[Trial],
    compare: Compare,
    judge: str,
    failed: Sequence[tuple[Trial, str]],
) -> dict[str, Any]:
    """The content of report.json; `compare` judges two lists of replies to the same prompts."""
    evidence = Evidence(comparison, replies, trials)
    chosen = {arm: evidence.chosen(arm) for arm in KNOBS}
    policies = {
        "sft": evidence.sft,
        **{arm: evidence.points[arm][point] for arm, point in chosen.items()},
        BEST: evidence.best_of_pool,
    }
    held = {name: {seed: rows[1::2] for seed, rows in by_seed.items()} for name, by_seed in policies.items()}
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
        **equal_kl(evidence),
        "win_rates": win_rates(held, compare),
        "overoptimization": overoptimization(evidence, chosen),
        **costs(comparison, trials),
        "alerts": alerts(evidence),
        "behaviours": behaviours(held),
        "replies": side_by_side(policies, comparison.seeds[0]),
        "failed": [{"trial": trial.name, "why": why} for trial, why in failed],
    }


def frontier(evidence: Evidence) -> list[dict[str, Any]]:
    """A row for each policy and seed: the KL it spends and what that buys, with 95% intervals over prompts."""
    rows = [_row("sft", None, seed, 0, samples) for seed, samples in evidence.sft.items()]
    n = 2
    while n <= POOL:
        for seed in evidence.seeds:
            rewards = evidence.pooled(seed, "reward")
            columns = {
                key: best_of_n(rewards, evidence.pooled(seed, key), n) for key in ("gold", "reward", "length", "ended")
            }
            columns["kl"] = np.full(len(rewards), best_of_n_kl(n))
            rows.append(_numbers("best-of-n", n, seed, 0, columns))
        n *= 2
    for arm in KNOBS:
        lasts = {(setting, seed): step for (setting, step), at in sorted(evidence.points[arm].items()) for seed in at}
        for (setting, step), at in sorted(evidence.points[arm].items()):
            rows += [
                _row(arm, setting, seed, step, samples, last=lasts[setting, seed] == step)
                for seed, samples in sorted(at.items())
            ]
    return rows


def _row(arm: str, setting: float | None, seed: int, step: int, samples: Sequence[Sample], last: bool = True) -> Any:
    columns = {key: column(samples, key) for key in ("kl", "gold", "reward", "length", "ended")}
    return _numbers(arm, setting, seed, step, columns, last)


def _numbers(
    arm: str, setting: float | None, seed: int, step: int, columns: Mapping[str, np.ndarray], last: bool = True
) -> dict[str, Any]:
    means = {key: float(values.mean()) for key, values in columns.items()}
    errors = {key: float(values.std(ddof=1) / math.sqrt(len(values))) for key, values in columns.items()}
    return {
        "arm": arm,
        "setting": setting,
        "seed": seed,
        "step": step,
        "kl": means["kl"],
        "kl_error": errors["kl"],
        "gold": means["gold"],
        "gold_low": means["gold"] - Z95 * errors["gold"],
        "gold_high": means["gold"] + Z95 * errors["gold"],
        "proxy": means["reward"],
        "proxy_error": errors["reward"],
        "length": means["length"],
        "eos_rate": means["ended"],
        "last": last,
    }


def equal_kl(evidence: Evidence) -> dict[str, Any]:
    """Gold of the arms at the same distance from SFT, by interpolation between each seed's checkpoints."""
    kls: dict[str, dict[int, np.ndarray]] = {}
    golds: dict[str, dict[int, np.ndarray]] = {}
    for arm in KNOBS:
        for seed in evidence.seeds:
            rows = [evidence.sft[seed], *(at[seed] for _, at in sorted(evidence.points[arm].items()) if seed in at)]
            kls.setdefault(arm, {})[seed] = np.array([0.0, *(np.mean([s["kl"] for s in r]) for r in rows[1:])])
            golds.setdefault(arm, {})[seed] = np.array([[s["gold"] for s in r] for r in rows])
    furthest = min(float(k.max()) for by_seed in kls.values() for k in by_seed.values())
    if furthest <= 0:
        return {"equal_kl": [], "equal_kl_note": "an arm never left the SFT model, so there is no KL that both reach"}
    at = furthest * np.linspace(1 / EQUAL_KLS, 1, EQUAL_KLS)
    values = {
        arm: np.array(
            [
                at_equal_kl(kls[arm][s], golds[arm][s][:, ::2].mean(axis=1), at) @ golds[arm][s][:, 1::2]
                for s in evidence.seeds
            ]
        )
        for arm in KNOBS
    }  # [seeds, places, prompts]
    rows = []
    for place, kl in enumerate(at):
        found = estimate(values["ppo"][:, place] - values["dpo"][:, place])
        means = {arm: float(values[arm][:, place].mean()) for arm in KNOBS}
        rows.append({"kl": float(kl), **means, "difference": found.mean, "low": found.low, "high": found.high})
    return {"equal_kl": rows, "equal_kl_note": ""}


def win_rates(policies: Mapping[str, Mapping[int, Sequence[Sample]]], compare: Compare) -> list[dict[str, Any]]:
    """Each pair of policies, over prompts and seeds; p-values corrected for there being several pairs."""
    names = [name for name in ("ppo", "dpo", BEST, "sft") if name in policies]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    asked = {(a, b): [compare(policies[a][seed], policies[b][seed]) for seed in sorted(policies[a])] for a, b in pairs}
    found = {pair: win_rate([judged.outcomes for judged in each]) for pair, each in asked.items()}
    corrected = holm({" ".join(pair): rate.p for pair, rate in found.items()})
    rows = []
    for (first, second), rate in found.items():
        each, p = asked[first, second], corrected[f"{first} {second}"]
        ours, theirs = (table(policies[name], "length") for name in (first, second))
        fair = length_controlled([judged.outcomes for judged in each], ours, theirs)
        rows.append(
            {
                "first": first,
                "second": second,
                **{key: getattr(rate, key) for key in ("rate", "low", "high", "p", "wins", "ties", "losses")},
                "p_corrected": p,
                "flip_rate": float(np.nanmean([judged.flip_rate for judged in each])),
                "abstained": sum(judged.abstained for judged in each),
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


def overoptimization(evidence: Evidence, chosen: Mapping[str, Point]) -> dict[str, Any]:
    """For each arm the fitted law, the curve of each setting from its peak to its last checkpoint, and what was chosen."""
    found = {}
    start = {seed: float(np.mean([s["gold"] for s in rows])) for seed, rows in evidence.sft.items()}
    for arm in KNOBS:
        points = [
            (float(np.mean([s["kl"] for s in rows])), float(np.mean([s["gold"] for s in rows])) - start[seed])
            for at in evidence.points[arm].values()
            for seed, rows in at.items()
        ]
        curves = [_curve(evidence, arm, setting) for setting in sorted({s for s, _ in evidence.complete(arm)})]
        gold = table(evidence.points[arm][chosen[arm]], "gold")
        found[arm] = {
            **_law(points, "rl"),
            **{key: value for key, value in curves[0].items() if key != "setting"},  # held least, so it goes furthest
            "settings": curves,
            "best": {
                "setting": chosen[arm][0],
                "step": chosen[arm][1],
                "gold_chosen": float(gold[:, ::2].mean()),
                "gold_reported": float(gold[:, 1::2].mean()),
            },
        }
    found["best-of-n"] = _best_of_n(evidence, start)
    return found


def _best_of_n(evidence: Evidence, start: Mapping[int, float]) -> dict[str, Any]:
    ns = range(1, POOL + 1)
    golds = {
        seed: [float(best_of_n(evidence.pooled(seed, "reward"), evidence.pooled(seed, "gold"), n).mean()) for n in ns]
        for seed in evidence.seeds
    }
    points = [
        (best_of_n_kl(n), gold - start[seed]) for seed, of in golds.items() for n, gold in zip(ns, of, strict=True)
    ]
    means = np.mean(list(golds.values()), axis=0)
    return _law(points, "best-of-n") | _peak(
        [(best_of_n_kl(n), float(gold)) for n, gold in zip(ns, means, strict=True)]
    )


def _law(points: Sequence[tuple[float, float]], kind: Kind) -> dict[str, Any]:
    try:
        law = fit_law(np.array([kl for kl, _ in points]), np.array([gain for _, gain in points]), kind)
    except ValueError as error:
        return {"law": None, "law_note": str(error)}
    peak = law.peak
    return {
        "law": {
            "kind": kind,
            "alpha": law.alpha,
            "beta": law.beta,
            "peak_kl": None if peak is None or peak > 10 * law.furthest else peak**2,
            "furthest_kl": law.furthest**2,
            "residual": law.residual,
            "turns": law.turns,
        },
        "law_note": "",
    }


def _curve(evidence: Evidence, arm: str, setting: float) -> dict[str, Any]:
    """Gold, mean over seeds and prompts, at the best and at the last checkpoint of a setting, the start included.

    `fall` is from the best on every other prompt to the last, on the rest: a best that is luck does not fall there.
    """
    rows = [evidence.sft, *(at for (own, _), at in evidence.complete(arm).items() if own == setting)]
    kls, golds = [float(table(at, "kl").mean()) for at in rows], [table(at, "gold") for at in rows]
    best, *_ = choose_checkpoint(np.array([gold.mean(axis=0) for gold in golds]))
    fall = estimate((golds[best] - golds[-1])[:, 1::2])
    return {
        "setting": setting,
        **_peak([*zip(kls, (float(gold.mean()) for gold in golds), strict=True)]),
        "fall": {"kl": kls[best], "mean": fall.mean, "low": fall.low, "high": fall.high},
    }


def _peak(at: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """KL and gold of the best and of the last of `at`."""
    (kl_peak, peak), (kl_last, last) = max(at, key=lambda point: point[1]), at[-1]
    return {
        "gold_peak": peak,
        "kl_at_peak": kl_peak,
        "gold_last": last,
        "kl_last": kl_last,
        "last_over_peak": last / peak if peak > 0 else None,
    }


def alerts(evidence: Evidence) -> list[dict[str, Any]]:
    """What the monitor says of each trial: of its log, and of its checkpoints' replies after those of the SFT model."""
    found = []
    for trial in evidence.trials:
        said = list(watch_finished(trial.path))
        monitor = monitor_of(trial.stage)
        monitor.update(0, {}, evidence.sft[trial.seed])
        for (setting, step), at in sorted(evidence.points[trial.arm].items()):
            if setting == trial.setting and trial.seed in at:
                said += monitor.update(step, {}, at[trial.seed])
        found += [
            {"trial": trial.name, "step": a.step, "level": a.level, "rule": a.rule, "source": a.source, "text": str(a)}
            for a in said
        ]
    return found


def behaviours(policies: Mapping[str, Mapping[int, Sequence[Sample]]]) -> dict[str, Any]:
    """Gold of each policy by the situation that the prompts are about; empty where nobody says which."""
    first = next(iter(next(iter(policies.values())).values()))
    kinds = [(s.get("facts") or {}).get("situation") for s in first]
    found: dict[str, Any] = {}
    for kind in sorted({kind for kind in kinds if kind}):
        where = np.array([own == kind for own in kinds])
        for name, by_seed in policies.items():
            mean = estimate(table(by_seed, "gold")[:, where])
            found.setdefault(kind, {})[name] = {"gold": mean.mean, "low": mean.low, "high": mean.high}
    return found


def side_by_side(policies: Mapping[str, Mapping[int, Sequence[Sample]]], seed: int) -> list[dict[str, Any]]:
    """Replies of all policies to the first prompts of each situation that were not chosen on."""
    seen: dict[str, int] = {}
    found = []
    for index in range(1, len(policies["sft"][seed]), 2):
        sample = policies["sft"][seed][index]
        kind = (sample.get("facts") or {}).get("situation", "")
        seen[kind] = seen.get(kind, 0) + 1
        if seen[kind] > (SHOWN if kind else 5 * SHOWN):
            continue
        rows = {name: by_seed[seed][index] for name, by_seed in policies.items()}
        said = {n: {"text": r["reply"], "gold": r["gold"], "proxy": r["reward"]} for n, r in rows.items()}
        found.append({"prompt": sample["prompt"], "situation": kind, "seed": seed, "replies": said})
    return sorted(found, key=lambda row: row["situation"])
