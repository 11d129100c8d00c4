"""Numbers about replies, each defined once."""

from collections.abc import Hashable, Sequence

import numpy as np

from rlhf.evaluation.samples import Sample, situation

DEFINITIONS = {
    "gold_score": "mean true preference score of the replies, as the dataset's annotator gives it, or `evaluation.gold`",
    "known_words": "share of replies in which every word is a word of the dataset's language",
    "kl": "KL(policy || reference) in nats a reply: mean of log pi(reply) - log ref(reply) over replies sampled at temperature 1",
    "length": "mean tokens a reply, EOS included",
    "eos_rate": "share of replies that end in EOS within the limit",
    "distinct_2": "different pairs of neighbouring words over all pairs, in all replies together",
    "reward_score": "mean score of the replies under the recipe's reward model",
    "win_rate_vs_sft": "share of prompts on which that judge prefers the reply to that of sft; ties count a half",
}


def words(reply: str) -> list[str]:
    """What the n-grams of a reply's text are made of; training counts those of its token ids."""
    return reply.lower().split()


def ngrams(sequence: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    """All runs of `n` neighbours, in order; none in what is shorter."""
    return [tuple(sequence[i : i + n]) for i in range(len(sequence) - n + 1)]


def distinct(replies: Sequence[Sequence[Hashable]], n: int = 2) -> float:
    """Different n-grams over all n-grams (Li et al. 2016, arXiv:1510.03055); 0 when there are none."""
    grams = [gram for reply in replies for gram in ngrams(reply, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repeated(replies: Sequence[Sequence[Hashable]], n: int = 4) -> float:
    """Fraction of n-grams that occurred before in the same reply; 0 when there is none."""
    grams = [ngrams(reply, n) for reply in replies]
    total = sum(map(len, grams))
    return (total - sum(len(set(reply)) for reply in grams)) / total if total else 0.0


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def correlation(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    """Pearson's, of two columns of the same samples; 0 where one of them does not vary."""
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) > 0 and np.ptp(b) > 0 else 0.0


def summary(samples: Sequence[Sample]) -> dict[str, float]:
    """The metrics that one policy's samples give by themselves."""
    metrics = {
        "length": mean([s["length"] for s in samples]),
        "eos_rate": mean([float(s["ended"]) for s in samples]),
        "distinct_2": distinct([words(s["reply"]) for s in samples]),
    }
    for key, name in (("gold", "gold_score"), ("known", "known_words"), ("kl", "kl"), ("reward", "reward_score")):
        if samples and all(s.get(key) is not None for s in samples):
            metrics[name] = mean([float(s[key]) for s in samples])
    return metrics


def by_situation(samples: Sequence[Sample], key: str) -> dict[str, float]:
    """Mean of `key` for each situation that the facts name."""
    groups: dict[str, list[float]] = {}
    for sample in samples:
        if (kind := situation(sample)) and sample.get(key) is not None:
            groups.setdefault(kind, []).append(float(sample[key]))
    return {kind: mean(values) for kind, values in sorted(groups.items())}
