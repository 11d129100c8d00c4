"""Best-of-n: what reranking the samples of one policy is worth for every n, from one pool of samples and without training."""

import math

import numpy as np


def best_of_n_weights(scores: np.ndarray, n: int) -> np.ndarray:
    """`[N]` scores of one prompt's samples -> `[N]` probability of each to be the best-scored of n drawn without replacement.

    With it the expectation of anything under best-of-n is unbiased (Nakano et al. 2021, arXiv:2112.09332, appendix I):
    C(i - 1, n - 1) / C(N, n) for the i-th smallest score. Samples of equal score share their probability.
    Raises ValueError for n outside 1..N or a score that is not a number.
    """
    size = len(scores)
    if not 1 <= n <= size:
        raise ValueError(f"n = {n} cannot be drawn from {size} samples; allowed: 1 to {size}")
    if not np.isfinite(scores).all():
        raise ValueError(f"a score is not a number: sample {int(np.argmin(np.isfinite(scores)))}")
    by_rank = np.array([math.comb(rank, n - 1) / math.comb(size, n) for rank in range(size)])
    _, tied = np.unique(scores, return_inverse=True)
    weights = np.empty(size)
    weights[np.argsort(scores, kind="stable")] = by_rank
    return (np.bincount(tied, weights) / np.bincount(tied))[tied]


def best_of_n(scores: np.ndarray, values: np.ndarray, n: int) -> np.ndarray:
    """`[prompts, N]` scores to choose by and values of the same samples -> `[prompts]` expected value of the chosen."""
    return np.array([best_of_n_weights(s, n) @ v for s, v in zip(scores, values, strict=True)])


def best_of_n_kl(n: int) -> float:
    """KL of best-of-n from the policy sampled, in nats a reply; exact without ties (Stiennon et al. 2020)."""
    return math.log(n) - (n - 1) / n
