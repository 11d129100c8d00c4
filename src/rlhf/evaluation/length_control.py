"""The win rate that would be left if replies were equally long (Dubois et al. 2024, arXiv:2404.04475)."""

from dataclasses import dataclass, replace

import numpy as np

from rlhf.evaluation.statistics import Estimate, Outcomes, estimate

RIDGE = 0.01  # on the length term alone: it stays finite where length explains every outcome
NEAR = 0.1  # replies whose lengths differ by less than a tenth of the longer one count as equally long


@dataclass(frozen=True)
class LengthControlled:
    """`estimate` is the rate at equal length. `overlap` is the smaller of the shares of replies that are longer and that are
    not; near 0, length and policy cannot be told apart, and the rate is extrapolated. `matched` pairs of nearly equal
    length have the raw rate `matched_rate` (nan if there are none).
    """

    estimate: Estimate
    overlap: float
    matched: int
    matched_rate: float


def length_controlled(ours: Outcomes, lengths: Outcomes, their_lengths: Outcomes, seed: int = 0) -> LengthControlled:
    """Outcomes and both replies' lengths in tokens, each `[prompts]` or `[seeds, prompts]`.

    Logistic regression of the outcome on an intercept and tanh(length difference / its standard deviation); the rate is that
    of the intercept alone. Its interval comes from the regression's influence function (Hampel 1974): values whose
    mean is the rate, and whose mean varies as the rate would over other prompts and seeds.
    """
    outcomes, own, other = (np.atleast_2d(np.asarray(x, dtype=float)) for x in (ours, lengths, their_lengths))
    if not outcomes.shape == own.shape == other.shape:
        raise ValueError(f"outcomes {outcomes.shape} and lengths {own.shape}, {other.shape} must have one shape")
    if not np.isfinite(outcomes).all():
        raise ValueError("an outcome is not a number; allowed: 0 to 1")
    difference = own - other
    scale = difference.std() or 1.0
    x = np.stack([np.ones(difference.size), np.tanh(difference.ravel() / scale)], axis=1)
    y, ridge = outcomes.ravel(), np.array([0.0, RIDGE])
    b = _fit(x, y, ridge)
    p = _sigmoid(x @ b)
    hessian = (x * (p * (1 - p))[:, None]).T @ x + np.diag(ridge + 1e-9)
    score = x * (y - p)[:, None] - ridge * b / len(y)
    rate = float(_sigmoid(b[0]))
    influence = rate * (1 - rate) * len(y) * (score @ np.linalg.inv(hessian))[:, 0]
    found = estimate((rate + influence).reshape(outcomes.shape), null=0.5, seed=seed)
    near = np.abs(difference) <= NEAR * np.maximum(own, other)
    return LengthControlled(
        replace(found, low=max(0.0, found.low), high=min(1.0, found.high)),
        overlap=float(min((difference > 0).mean(), (difference <= 0).mean())),
        matched=int(near.sum()),
        matched_rate=float(outcomes[near].mean()) if near.any() else float("nan"),
    )


def _fit(x: np.ndarray, y: np.ndarray, ridge: np.ndarray) -> np.ndarray:
    """Ridge logistic regression; 1/4 bounds the curvature of the loss, so no step overshoots (Boehning & Lindsay 1988)."""
    b = np.zeros(x.shape[1])
    step = np.linalg.inv(x.T @ x / 4 + np.diag(ridge + 1e-9))
    for _ in range(20_000):
        move = step @ (x.T @ (y - _sigmoid(x @ b)) - ridge * b)
        b += move
        if np.abs(move).max() < 1e-9 or np.abs(b).max() > 30:  # beyond 30 a rate is 0 or 1 to the last digit
            break
    return b


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(z, -40, 40)))
