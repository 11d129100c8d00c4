"""A made-up report of a comparison, whole and realistic: 2 arms x 3 settings x 3 seeds x 4 checkpoints, SFT and best-of-n."""

import math
from typing import Any

import numpy as np

from rlhf.compare.estimators import best_of_n_kl, fit_law

SEEDS = (1, 2, 3)
REACH = {"dpo": {0.1: 6.0, 0.3: 3.0, 1.0: 1.0}, "ppo": {0.02: 14.0, 0.1: 5.0, 0.3: 1.6}}  # KL of the last checkpoint
GAIN = {"dpo": (0.75, 0.28), "ppo": (1.1, 0.6)}  # alpha and beta of the law that the gold follows
SITUATIONS = ("kind", "honest", "clarifying", "safe", "brief")


def synthetic_report() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    frontier = [_row(rng, "sft", None, seed, 0, 0.0, 0.0) for seed in SEEDS]
    for n in (2, 4, 8, 16, 32):
        kl = best_of_n_kl(n)
        frontier += [_row(rng, "best-of-n", n, s, 0, kl, math.sqrt(kl) * (0.9 - 0.2 * math.sqrt(kl))) for s in SEEDS]
    for arm, settings in REACH.items():
        alpha, beta = GAIN[arm]
        for setting, reach in settings.items():
            for seed in SEEDS:
                for step in (50, 100, 150, 200):
                    kl = reach * step / 200 * rng.uniform(0.85, 1.15)
                    gain = math.sqrt(kl) * (alpha - beta * math.log(math.sqrt(kl)))
                    frontier.append(_row(rng, arm, setting, seed, step, kl, gain + rng.normal(0, 0.05)))
    return {
        "recipe": "support",
        "provenance": {
            "command": ["python", "src/compare.py", "recipe=support"],
            "git": {"commit": "98ddafb1234567890", "dirty": False},
            "versions": {"python": "3.11.2", "torch": "2.13.0", "trl": "1.12.0"},
            "machine": {"system": "Linux", "processor": "a processor", "cores": 2, "gpu": None},
        },
        "setup": {
            "prompts": 200,
            "seeds": list(SEEDS),
            "gold": "annotator of support",
            "proxy": "reward model of each seed",
            "judge": "annotator of support",
            "temperature": 1.0,
            "arms": {
                "dpo": {"key": "method.args.beta", "values": list(REACH["dpo"])},
                "ppo": {"key": "method.args.kl_coef", "values": list(REACH["ppo"])},
            },
            "chosen": {"dpo": {"setting": 0.1, "step": 100}, "ppo": {"setting": 0.1, "step": 150}},
            "chosen_on": "prompts 0, 2, 4, ...; everything else is reported on the other half",
        },
        "fairness": {
            "shared": [
                {"what": "SFT adapter", "value": "support/sft 3fe1a2b4"},
                {"what": "base model", "value": "support_scratch, sha256 90ab12cd"},
                {"what": "KL estimator", "value": "Monte Carlo, own samples, fp32, temperature 1"},
            ],
            "differs": [
                {"what": "reward model", "dpo": "none", "ppo": "one a seed"},
                {"what": "samples while training", "dpo": "none", "ppo": "9,600 replies a trial"},
            ],
        },
        "frontier": frontier,
        "equal_kl": [
            {"kl": 1.0, "dpo": 2.41, "ppo": 2.78, "difference": 0.37, "low": 0.21, "high": 0.53},
            {"kl": 4.0, "dpo": 2.62, "ppo": 3.2, "difference": 0.58, "low": 0.33, "high": 0.8},
        ],
        "win_rates": [
            _pair("ppo", "dpo", 0.61, 0.55, 0.66, 0.004, (0.58, 0.53, 0.64)),
            _pair("dpo", "sft", 0.7, 0.65, 0.75, 0.0006, (0.66, 0.61, 0.72)),
            _pair("ppo", "sft", 0.79, 0.74, 0.83, 0.0006, (0.74, 0.68, 0.79)),
            _pair("best-of-16", "sft", 0.68, 0.63, 0.73, 0.0006, (0.69, 0.63, 0.74)),
            _pair("ppo", "best-of-16", 0.54, 0.48, 0.6, 0.31, (0.47, 0.4, 0.55)),
            _pair("dpo", "best-of-16", 0.49, 0.43, 0.55, 0.74, (0.48, 0.42, 0.55)),
        ],
        "overoptimization": {arm: _over(frontier, arm) for arm in ("dpo", "ppo", "best-of-n")},
        "costs": [
            _cost("dpo", 9, 150.0, 0.0, 0, 400_000),
            _cost("ppo", 9, 620.0, 90.0, 1_850_000, 2_100_000),
            _cost("best-of-n", 3, 40.0, 90.0, 610_000, 0),
        ],
        "dpo_with_ppo_time": "DPO trained 4.1 times as long (beta 0.1) reaches 2.58, not above 2.61 before",
        "alerts": [
            {"trial": "ppo-kl_coef=0.02-seed2", "step": 24, "level": "warn", "rule": "kl", "source": "log", "text": "step 24: warn: kl 11.2 > 10"},
            {"trial": "ppo-kl_coef=0.02-seed3", "step": 40, "level": "warn", "rule": "length", "source": "samples", "text": "step 40: warn: length 31 > 1.5 x 17"},
        ],
        "behaviours": {
            name: {
                policy: {"gold": gold + 0.1 * i, "low": gold + 0.1 * i - 0.15, "high": gold + 0.1 * i + 0.15}
                for policy, gold in (("sft", 1.7), ("dpo", 2.3), ("ppo", 2.6), ("best-of-16", 2.2))
            }
            for i, name in enumerate(SITUATIONS)
        },
        "replies": [
            {
                "prompt": f"my parcel {i} is broken, what now?",
                "situation": name,
                "seed": 1,
                "replies": {
                    policy: {"text": f"{policy}: i am sorry to hear that. please send a photo of parcel {i}.", "gold": 2.0 + i / 10, "proxy": 0.5}
                    for policy in ("sft", "dpo", "ppo", "best-of-16")
                },
            }
            for i, name in enumerate(SITUATIONS)
        ],
        "failed": [],
    }  # fmt: skip


def _row(
    rng: np.random.Generator, arm: str, setting: Any, seed: int, step: int, kl: float, gain: float
) -> dict[str, Any]:
    gold = 1.7 + gain
    return {
        "arm": arm, "setting": setting, "seed": seed, "step": step, "kl": kl, "kl_error": 0.03 * kl, "gold": gold,
        "gold_low": gold - 0.12, "gold_high": gold + 0.12, "proxy": seed + 0.9 * math.sqrt(kl) + rng.normal(0, 0.05),
        "proxy_error": 0.03, "length": 17.0 + kl, "eos_rate": 1.0, "last": step == 200,
    }  # fmt: skip


def _pair(
    first: str, second: str, rate: float, low: float, high: float, p: float, equal: tuple[float, ...]
) -> dict[str, Any]:
    settled = p < 0.05
    better, worse = (first, second) if rate > 0.5 else (second, first)
    verdict = f"({rate:.3f}, 95% interval {low:.3f} to {high:.3f}, p = {p:.3g})"
    return {
        "first": first, "second": second, "rate": rate, "low": low, "high": high, "p": p / 2, "p_corrected": p,
        "wins": round(600 * rate) - 10, "ties": 20, "losses": 590 - round(600 * rate), "flip_rate": 0.0, "abstained": 0,
        "length_controlled": {"rate": equal[0], "low": equal[1], "high": equal[2], "overlap": 0.4, "matched": 80, "matched_rate": rate - 0.01},
        "verdict": f"{better} is better than {worse} {verdict}" if settled
        else f"{first} and {second} are not distinguishable {verdict}; about 1,900 prompts would settle a difference of this size",
        "prompts_to_settle": None if settled else 1900,
    }  # fmt: skip


def _over(frontier: list[dict[str, Any]], arm: str) -> dict[str, Any]:
    rows = [row for row in frontier if row["arm"] == arm]
    law = fit_law(
        np.array([row["kl"] for row in rows]),
        np.array([row["gold"] - 1.7 for row in rows]),
        "best-of-n" if arm == "best-of-n" else "rl",
    )
    peak, last = max(rows, key=lambda row: row["gold"]), max(rows, key=lambda row: row["kl"])
    fall = peak["gold"] - last["gold"]
    return {
        "law": {
            "kind": law.kind, "alpha": law.alpha, "beta": law.beta, "peak_kl": None if law.peak is None else law.peak**2,
            "furthest_kl": law.furthest**2, "residual": law.residual, "turns": law.turns,
        },
        "law_note": "", "gold_peak": peak["gold"], "kl_at_peak": peak["kl"], "gold_last": last["gold"],
        "last_over_peak": last["gold"] / peak["gold"],
        "fall": {"kl": peak["kl"], "mean": fall, "low": fall - 0.15, "high": fall + 0.15},
        "best": {"setting": peak["setting"], "step": peak["step"], "gold_chosen": peak["gold"], "gold_reported": peak["gold"] - 0.06},
    }  # fmt: skip


def _cost(arm: str, trials: int, seconds: float, reward: float, generated: int, trained: int) -> dict[str, Any]:
    return {
        "arm": arm, "trials": trials, "seconds_a_trial": seconds, "seconds_reward_model": reward,
        "seconds_all": trials * seconds + reward, "tokens_generated": generated, "tokens_trained": trained, "peak_memory_mb": 1500.0,
    }  # fmt: skip
