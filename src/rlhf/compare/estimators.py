"""Estimators on arrays: best-of-n, what an arm is worth at equal KL, the law of over-optimization, the best checkpoint."""

import math
from dataclasses import dataclass
from typing import Literal

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


def at_equal_kl(kl: np.ndarray, chosen_by: np.ndarray, at: np.ndarray) -> np.ndarray:
    """`[C]` KLs and gold of an arm's checkpoints, `[G]` KLs to compare at -> `[G, C]` weights of the checkpoints.

    `weights @ gold` with gold of other prompts than `chosen_by` does not flatter the arm with more checkpoints. The frontier
    is the checkpoints that no other one beats at a smaller KL, linear in sqrt(KL) between them and level after the last.
    A row is nan where the arm has no checkpoint so near or so far: nothing is extrapolated. Put the start in with KL 0.
    """
    d = np.sqrt(np.maximum(np.asarray(kl, dtype=float), 0.0))
    order = np.lexsort((-np.asarray(chosen_by), d))
    best, kept = -np.inf, []
    for index in order:
        if chosen_by[index] > best:
            best = chosen_by[index]
            kept.append(index)
    weights = np.full((len(at), len(d)), np.nan)
    for row, where in enumerate(np.sqrt(np.maximum(np.asarray(at, dtype=float), 0.0))):
        if not d[kept[0]] <= where <= d.max():
            continue
        hats = np.eye(len(kept))
        weights[row] = 0.0
        weights[row, kept] = [np.interp(where, d[kept], hat) for hat in hats]
    return weights


Kind = Literal["best-of-n", "rl"]


@dataclass(frozen=True)
class Law:
    """gold - gold of the start = d (alpha - beta d) for best-of-n, d (alpha - beta log d) for RL, with d = sqrt(KL)."""

    kind: Kind
    alpha: float
    beta: float
    furthest: float  # the largest d that was fitted; a peak beyond it is extrapolated
    residual: float  # root mean square error of the fit

    def __call__(self, d: np.ndarray | float) -> np.ndarray:
        return _columns(self.kind, np.asarray(d, dtype=float)) @ np.array([self.alpha, self.beta])

    @property
    def peak(self) -> float | None:
        """The d of the highest gold; None where the law does not turn down."""
        if self.beta <= 0:
            return None
        if self.kind == "best-of-n":
            return self.alpha / (2 * self.beta) if self.alpha > 0 else None
        return math.exp(min(self.alpha / self.beta - 1, 700.0))

    @property
    def turns(self) -> bool:
        """Whether it peaks among the fitted points and falls behind the peak by more than twice the error of the fit."""
        if self.peak is None or self.peak >= self.furthest:
            return False
        return float(self(self.peak) - self(self.furthest)) > 2 * self.residual


def fit_law(kl: np.ndarray, gold: np.ndarray, kind: Kind) -> Law:
    """Least squares over `[points]` of KL in nats a reply and mean gold relative to the start's, which the law sets to 0.

    Raises ValueError with fewer than three different KLs above 0, or where a value is not a number.
    """
    kl, gold = np.asarray(kl, dtype=float), np.asarray(gold, dtype=float)
    if not (np.isfinite(kl).all() and np.isfinite(gold).all()):
        raise ValueError("a KL or gold score is not a number")
    d = np.sqrt(np.maximum(kl, 0.0))  # a sampled KL may come out slightly negative
    if len(np.unique(d[d > 0])) < 3:
        raise ValueError(f"a law needs 3 different KLs above 0; these are {np.unique(d[d > 0] ** 2).tolist()}")
    columns = _columns(kind, d)
    (alpha, beta), *_ = np.linalg.lstsq(columns, gold, rcond=None)
    error = gold - columns @ np.array([alpha, beta])
    return Law(kind, float(alpha), float(beta), float(d.max()), float(np.sqrt((error**2).mean())))


def _columns(kind: Kind, d: np.ndarray) -> np.ndarray:
    bend = d if kind == "best-of-n" else np.log(np.where(d > 0, d, 1.0))
    return np.stack([d, -d * bend], axis=-1)


def choose_checkpoint(gold: np.ndarray) -> tuple[int, float, float]:
    """`[checkpoints, prompts]` -> the checkpoint that is best on every other prompt, its gold there and on the rest.

    The first gold flatters, because it was chosen for being high; the second does not.
    """
    chosen_on, reported_on = gold[:, ::2].mean(axis=1), gold[:, 1::2].mean(axis=1)
    best = int(chosen_on.argmax())
    return best, float(chosen_on[best]), float(reported_on[best])
