"""Noisy rankings: a Bradley-Terry annotator whose rate of disagreement with the truth is a setting."""

import math
import random

from rlhf.support.annotator import MARGIN


def levels(scores: list[float], margin: float = MARGIN) -> list[int]:
    """True ranks, 0 for the best; a run of scores with gaps below `margin` is one rank.

    So replies on different ranks always differ by `margin` or more, and `prefer` is strict about them.
    """
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    ranks, rank = [0] * len(scores), 0
    for previous, current in zip(order, order[1:], strict=False):
        rank += scores[previous] - scores[current] >= margin
        ranks[current] = rank
    return ranks


def gaps(scores: list[float]) -> list[float]:
    """The differences in utility, between levels, of all strict pairs."""
    means, ranks = _level_means(scores), levels(scores)
    return [abs(means[a] - means[b]) for i, a in enumerate(ranks) for b in ranks[:i] if a != b]


def temperature(strict_gaps: list[float], noise: float) -> float:
    """The Gumbel temperature at which a share `noise` of pairs with these gaps is expected to be turned around.

    The difference of two Gumbel variables is logistic, so a pair with gap d is turned with probability
    1 / (1 + exp(d / t)) (Bradley-Terry); the mean over the pairs grows with t from 0 to 1/2.
    """
    if not 0.0 <= noise <= 0.5:
        raise ValueError(f"noise = {noise} is not a rate of disagreement; it is 0 (always true) to 0.5 (a coin)")
    if noise == 0.0 or not strict_gaps:
        return 0.0
    if noise == 0.5:
        return math.inf
    low, high = 1e-3, 1e4
    for _ in range(60):
        middle = math.sqrt(low * high)
        turned = sum(1.0 / (1.0 + math.exp(min(gap / middle, 700.0))) for gap in strict_gaps) / len(strict_gaps)
        low, high = (middle, high) if turned < noise else (low, middle)
    return math.sqrt(low * high)


def noisy_ranks(scores: list[float], t: float, rng: random.Random) -> list[int]:
    """Ranks by the utility of each level plus Gumbel noise of temperature `t`; true ties stay ties."""
    means = _level_means(scores)
    noise = {level: -math.log(-math.log(1.0 - rng.random() or 0.5)) if t else 0.0 for level in means}
    heard = {level: noise[level] + (means[level] / t if 0 < t < math.inf else 0.0) for level in means}
    if t == 0.0:
        heard = means
    place = {level: i for i, level in enumerate(sorted(heard, key=lambda level: -heard[level]))}
    return [place[level] for level in levels(scores)]


def _level_means(scores: list[float]) -> dict[int, float]:
    groups: dict[int, list[float]] = {}
    for score, level in zip(scores, levels(scores), strict=True):
        groups.setdefault(level, []).append(score)
    return {level: sum(group) / len(group) for level, group in groups.items()}
