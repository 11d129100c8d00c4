"""How the true preference bends while the policy leaves its start: the law of Gao et al. 2022 (arXiv:2210.10760)."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

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
