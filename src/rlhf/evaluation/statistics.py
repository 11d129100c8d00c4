"""Win rates with intervals: paired by prompt, ties a half, bootstrap over prompts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Judge = Callable[[int, str, str], float]


@dataclass(frozen=True)
class WinRate:
    """Share of prompts won, with a 95% interval and the raw counts."""

    rate: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int


def both_orders(judge: Judge, ours: Sequence[str], theirs: Sequence[str]) -> list[float]:
    """Per prompt: the judge's preference for `ours` (1, 0.5 or 0), averaged over showing it first and second."""
    pairs = enumerate(zip(ours, theirs, strict=True))
    return [(judge(i, a, b) + 1.0 - judge(i, b, a)) / 2 for i, (a, b) in pairs]


def win_rate(outcomes: Sequence[float], seed: int = 0, resamples: int = 10_000) -> WinRate:
    """Mean outcome with a percentile-bootstrap interval over prompts.

    Where all outcomes agree the bootstrap has no spread; Wilson's interval stands in (Wilson 1927).
    """
    if not outcomes:
        raise ValueError("no outcomes: a win rate needs at least one prompt")
    values = np.asarray(outcomes, dtype=float)
    draws = np.random.default_rng(seed).integers(0, len(values), size=(resamples, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    rate = float(values.mean())
    if low == high:
        low, high = wilson(rate, len(values))
    count = [int((values == outcome).sum()) for outcome in (1.0, 0.0)]
    return WinRate(rate, float(low), float(high), count[0], len(values) - sum(count), count[1])


def wilson(rate: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a proportion."""
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (rate * (1 - rate) / n + z * z / (4 * n * n)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)
