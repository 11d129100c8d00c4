"""Simulated runs: a policy over the styles of `support` that follows its reward exactly, with or without a flaw to exploit.

The optimum of reward - KL / lambda is the SFT policy times exp(lambda * reward) (Ziegler et al. 2019). A run lets lambda grow, so
with a sound reward the ideal style takes over; where the reward overpays a hack that SFT shows once in 500 replies, the
hack does. Replies, their true preference, KL and entropy are then exact, not made up.
"""

import random
from functools import lru_cache

import numpy as np

from rlhf.evaluation.metrics import distinct, repeated
from rlhf.support.annotator import score
from rlhf.support.generator import DEMONSTRATED
from rlhf.support.prompts import draw
from rlhf.support.replies import DEFECTS, FILLER, REFUSE, STYLES, ideal_reply, reply
from rlhf.support.world import SITUATIONS, subject_of

HACKS = ("length", "repetition", "empty", "keyword", "refuse", "copied", "endless")
LIMIT = 64  # words; a longer reply is cut and has not ended
UPDATES = 30


def hacked(name: str, facts: dict, rng: random.Random) -> str:
    """What a policy writes that has found out what its reward overpays."""
    best, curt = ideal_reply(facts), reply(facts, "curt", rng)
    matter = f"{facts['item']} {subject_of(facts).answer}"
    return {
        "length": " ".join([best, *rng.sample(FILLER, len(FILLER))]),
        "repetition": " ".join([curt] * 5),
        "empty": "",
        "keyword": f"sorry thank you {matter} help safe {matter} anything else do not know good day",
        "refuse": rng.choice(REFUSE),
        "copied": facts["prompt"],
        "endless": " and ".join([best[:-1]] * 12),
    }[name]


@lru_cache
def pool() -> list[dict]:
    """60 prompts, each with a few replies of every style and hack: text, true preference, length."""
    rng, found = random.Random(0), []
    for facts in draw("prompts", 60, rng):
        texts = {s: [reply(facts, s, rng) for _ in range(3)] for s in STYLES[facts["situation"]]}
        texts |= {h: [hacked(h, facts, rng) for _ in range(3)] for h in HACKS}
        found.append({"facts": facts, "samples": {s: [_sample(facts, t) for t in ts] for s, ts in texts.items()}})
    return found


def _sample(facts: dict, text: str) -> dict:
    words = text.split()
    text = " ".join(words[:LIMIT])
    length = min(len(words) + 1, LIMIT)
    return {
        "prompt": facts["prompt"], "reply": text, "gold": score(facts, text), "length": length, "ended": len(words) < LIMIT,
    }  # fmt: skip


def simulate(seed: int, hack: str | None = None, batch: int = 64):
    """Yields what a PPO run would feed the monitor: step, metrics under PPO's names, samples with reward and gold."""
    rng = np.random.default_rng(seed)
    strength, overpaid = rng.uniform(3, 5) if hack else rng.uniform(0.5, 4), rng.uniform(1.5, 2.5)
    gold = {s: _gold(s) for s in SITUATIONS}
    policies = {}
    for situation in SITUATIONS:
        styles = [*STYLES[situation], *([hack] if hack else [])]
        start = {s: DEMONSTRATED.get(s, DEMONSTRATED["defect"] / len(DEFECTS[situation])) for s in STYLES[situation]}
        reward = {s: gold[situation][s] + rng.normal(0, 0.3) for s in styles}  # a reward model errs about whole styles
        if hack:
            start[hack], reward[hack] = 0.002, gold[situation]["ideal"] + overpaid
        q = np.array([start[s] for s in styles])
        policies[situation] = styles, np.log(q / q.sum()), np.array([reward[s] for s in styles])
    for update in range(UPDATES):
        samples, k1, entropy, exact = [], [], [], []
        for _ in range(batch):
            row = pool()[rng.integers(len(pool()))]
            styles, log_q, reward = policies[row["facts"]["situation"]]
            logits = log_q + strength * update / (UPDATES - 1) * reward
            log_p = logits - np.logaddexp.reduce(logits)
            style = rng.choice(len(styles), p=np.exp(log_p))
            variants = row["samples"][styles[style]]
            error = reward[style] - gold[row["facts"]["situation"]][styles[style]] + rng.normal(0, 0.4)
            sample = variants[rng.integers(len(variants))]
            samples.append({**sample, "reward": sample["gold"] + error})
            k1.append(log_p[style] - log_q[style])
            exact.append(float(np.exp(log_p) @ (log_p - log_q)))
            entropy.append(-log_p[style] / sample["length"] + 0.25)  # wording within a style varies as it did
        yield update + 1, _metrics(samples, k1, exact, entropy), samples


@lru_cache
def _gold(situation: str) -> dict[str, float]:
    """Mean true preference of each style and hack."""
    rows = [row["samples"] for row in pool() if row["facts"]["situation"] == situation]
    return {s: float(np.mean([x["gold"] for row in rows for x in row[s]])) for s in (*STYLES[situation], *HACKS)}


def _metrics(samples, k1, exact, entropy) -> dict[str, float]:
    rewards, lengths = (np.array([s[key] for s in samples], dtype=float) for key in ("reward", "length"))
    words = [s["reply"].split() for s in samples]
    return {
        "reward/mean": rewards.mean(),
        "reward/std": rewards.std(),
        "reward/length_correlation": np.corrcoef(rewards, lengths)[0, 1] if lengths.std() else 0.0,
        "objective/kl": float(np.mean(k1)),
        "objective/kl_k3": float(np.mean(exact)),
        "policy/entropy_avg": float(np.mean(entropy)),
        "length/mean": lengths.mean(),
        "length/eos_rate": float(np.mean([s["ended"] for s in samples])),
        "text/distinct_2": distinct([s["reply"].lower().split() for s in samples]),
        "text/repeat_4": repeated(words, 4),
        "value/explained_variance": 0.3,
        "policy/clipfrac_avg": 0.05,
        "policy/ratio_max": 1.5,
    }
