"""What the monitor looks at: the same names for what trainers log and for what a set of replies shows."""

import math
import re
import string
from collections.abc import Mapping, Sequence

from rlhf.evaluation.metrics import correlation, mean, ngrams, repeated, summary, words
from rlhf.evaluation.samples import Sample, column

SIGNALS = {
    "reward_score": "mean score under the reward model in training",
    "reward_std": "standard deviation of that score over replies",
    "gold_score": "mean true preference, or score of a reward model that nobody trains on",
    "gold_std": "standard deviation of that score over replies",
    "kl": "KL from the reference in nats a reply; PPO's k3, which is never negative, or the k1 of samples",
    "kl_k1": "the same by PPO's k1, which is unbiased, so that it is below 0 only if sampling and training disagree",
    "entropy": "entropy of the next token in nats",
    "length": "tokens a reply",
    "length_correlation": "correlation of reward and length over replies",
    "eos_rate": "share of replies that end by themselves",
    "distinct_2": "different pairs of neighbours over all pairs",
    "repeat_4": "share of 4-grams that repeat an earlier one of the same reply",
    "known_words": "share of replies in the dataset's language",
    "empty": "share of replies without a word",
    "duplicates": "share of replies that repeat another reply to the letter",
    "copied": "share of a reply's 4-grams of words that its prompt has",
    "symbols": "share of characters that are neither letters, digits, spaces nor ASCII punctuation",
    "refusals": "share of replies that decline or do not know",
    "saturated": "share of replies scored above the top hundredth of what the reward model gives held-out replies",
    "explained_variance": "1 - Var(return - value) / Var(return)",
    "clipfrac": "share of tokens at which PPO's clipped loss is active",
    "ratio_max": "largest change of a token's probability since the rollout, as a ratio",
    "chosen_fall": "share of its log-probability that the chosen reply lost under DPO",
    # from the history of those above
    "reward_gain": "rise of reward_score since the start in standard deviations of the start",
    "gold_fall": "fall of gold_score from its highest in standard deviations of the start",
    "gold_fall_errors": "the same fall in its standard errors",
    "agreement": "Spearman correlation of reward_score and gold_score over the last 8 points, from the fourth on",
    "kl_growth": "kl over what it was a window ago",
}

LOGGED = {
    "reward/mean": "reward_score",
    "reward/std": "reward_std",
    "objective/kl_k3": "kl",
    "objective/kl": "kl_k1",
    "policy/entropy_avg": "entropy",
    "length/mean": "length",
    "length/eos_rate": "eos_rate",
    "reward/length_correlation": "length_correlation",
    "text/distinct_2": "distinct_2",
    "text/repeat_4": "repeat_4",
    "value/explained_variance": "explained_variance",
    "policy/clipfrac_avg": "clipfrac",
    "policy/ratio_max": "ratio_max",
}

REFUSAL = re.compile(
    r"\b(can ?not|can't|will not|won't|unable to) (help|do|answer|assist|talk|discuss|say)\b"
    r"|\b(do not|don't) know\b|\bnot sure\b",
    re.IGNORECASE,
)


def logged_signals(metrics: Mapping[str, float], beta: float | None = None) -> dict[str, float]:
    """The signals in a line of PPO's or DPO's log; `beta` is DPO's, whose rewards are beta * nats.

    DPO logs the chosen log-probability over batches whose replies differ in length, so its fall is measured from the
    reference's on the same pairs: reward / beta nats of logps - reward / beta.
    """
    signals = {name: float(metrics[key]) for key, name in LOGGED.items() if key in metrics}
    if beta and {"rewards/chosen", "logps/chosen"} <= set(metrics):
        moved = float(metrics["rewards/chosen"]) / beta
        start = float(metrics["logps/chosen"]) - moved
        if start:
            signals["chosen_fall"] = moved / start
    return {name: value for name, value in signals.items() if math.isfinite(value)}


def reply_signals(samples: Sequence[Sample], reward_top: float | None = None) -> dict[str, float]:
    """The signals in lines of samples.jsonl; `reward_top` is the 99th percentile of the reward model's held-out scores."""
    texts = [words(s["reply"]) for s in samples]
    signals = summary(samples) | {
        "repeat_4": repeated(texts, 4),
        "empty": mean([float(not text) for text in texts]),
        "duplicates": 1 - len({s["reply"] for s in samples}) / len(samples),
        "symbols": mean([_symbols(s["reply"]) for s in samples]),
        "refusals": mean([float(bool(REFUSAL.search(s["reply"]))) for s in samples]),
    }
    if all("prompt" in s for s in samples):
        signals["copied"] = mean([_copied(text, words(s["prompt"])) for text, s in zip(texts, samples, strict=True)])
    if "gold_score" in signals:
        signals["gold_std"] = float(column(samples, "gold").std())
    if "reward_score" in signals:
        rewards = column(samples, "reward")
        signals["reward_std"] = float(rewards.std())
        signals["length_correlation"] = correlation(rewards, column(samples, "length"))
        if reward_top is not None:
            signals["saturated"] = float((rewards > reward_top).mean())
    return {name: value for name, value in signals.items() if math.isfinite(value)}


def _copied(reply: Sequence[str], prompt: Sequence[str], n: int = 4) -> float:
    grams, known = ngrams(reply, n), set(ngrams(prompt, n))
    return mean([float(gram in known) for gram in grams]) if grams else 0.0


def _symbols(text: str) -> float:
    odd = [not (c.isalnum() or c.isspace() or c in string.punctuation) for c in text]
    return sum(odd) / len(odd) if odd else 0.0
