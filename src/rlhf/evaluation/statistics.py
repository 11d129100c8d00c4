"""Means over prompts and seeds with what they can and cannot tell apart: intervals, p-values, win rates, verdicts."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

# How far `first` is preferred to `second` as the reply to a prompt (by its index), 0 to 1; None abstains.
Preference = Callable[[int, str, str], float | None]
Outcomes = Sequence[float] | Sequence[Sequence[float]] | np.ndarray
Z95 = 1.959964  # normal quantile of 97.5%: half the width of a 95% interval in standard errors
POWER = 0.841621  # normal quantile of 80%: the probability with which `prompts_to_settle` prompts would settle it
# seeds that differ by less than this share of what their prompts explain count as alike; keeps coverage near 95%
CALM = 0.85


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% interval and the two-sided p-value of `null`.

    The squared standard error is `prompt_variance / prompts + seed_variance`.
    """

    mean: float
    low: float
    high: float
    null: float
    p: float
    prompts: int
    prompt_variance: float
    seed_variance: float


@dataclass(frozen=True)
class WinRate(Estimate):
    """Share of prompts won; `wins`, `ties` and `losses` count prompts of all seeds."""

    wins: int
    ties: int
    losses: int

    @property
    def rate(self) -> float:
        return self.mean


@dataclass(frozen=True)
class Judgements:
    """Per prompt the preference for `ours`, shown first and shown second; None where the judge abstained."""

    shown_first: list[float | None]
    shown_second: list[float | None]

    @property
    def outcomes(self) -> list[float]:
        """Mean of both orders; a prompt on which the judge abstained counts as a tie."""
        return [0.5 if a is None or b is None else (a + b) / 2 for a, b in self._pairs()]

    @property
    def abstained(self) -> int:
        return sum(a is None or b is None for a, b in self._pairs())

    @property
    def flip_rate(self) -> float:
        """Share of the judged prompts whose winner changes with the order of the two replies."""
        flips = [(a - 0.5) * (b - 0.5) < 0 for a, b in self._pairs() if a is not None and b is not None]
        return sum(flips) / len(flips) if flips else math.nan

    def _pairs(self) -> list[tuple[float | None, float | None]]:
        return list(zip(self.shown_first, self.shown_second, strict=True))


def judgements(prefers: Preference, ours: Sequence[str], theirs: Sequence[str]) -> Judgements:
    """Ask about each prompt in both orders; raises ValueError where an answer is not in 0..1."""
    pairs = list(enumerate(zip(ours, theirs, strict=True)))
    first = [_in_range(i, prefers(i, a, b)) for i, (a, b) in pairs]
    second = [_in_range(i, prefers(i, b, a)) for i, (a, b) in pairs]
    return Judgements(first, [None if answer is None else 1.0 - answer for answer in second])


def _in_range(index: int, answer: float | None) -> float | None:
    if answer is not None and not 0.0 <= answer <= 1.0:
        raise ValueError(f"the judge answered {answer} on prompt {index}; allowed: 0 to 1, or None to abstain")
    return answer


def estimate(values: Outcomes, null: float = 0.0, seed: int = 0, resamples: int = 10_000) -> Estimate:
    """The mean of `[prompts]` or `[seeds, prompts]`, the same prompts for every seed, for prompts and seeds nobody has seen.

    Percentile bootstrap over prompts, each with its outcomes under all seeds; where seeds differ by more than their prompts
    explain (a two-way layout without replication), their part is drawn from Student's t with `seeds - 1` degrees of
    freedom in place of resampling: three seeds resampled as they are understate how seeds differ, and bring the prompts'
    noise in twice. For intervals of a sum of a normal and a Student part see Howe 1974, JASA 69. With two seeds they cover
    the truth less often than they say; three are enough.

    Raises ValueError when there are no values or one of them is not a number.
    """
    table = np.atleast_2d(np.asarray(values, dtype=float))
    if not table.size:
        raise ValueError("no outcomes: a mean needs at least one prompt")
    if not np.isfinite(table).all():
        row, column = np.argwhere(~np.isfinite(table))[0]
        raise ValueError(f"the outcome of seed {row}, prompt {column} is {table[row, column]}; allowed: numbers")
    seeds, prompts = table.shape
    per_prompt, rng = table.mean(axis=0), np.random.default_rng(seed)
    mean = float(per_prompt.mean())
    draws = per_prompt[rng.integers(0, prompts, size=(resamples, prompts))].mean(axis=1)
    error, seed_variance = float(per_prompt.var()) / prompts, 0.0
    if seeds > 1 and prompts > 1:
        between = float(table.mean(axis=1).var(ddof=1)) / seeds
        residual = table - table.mean(axis=1, keepdims=True) - per_prompt + mean
        noise = float((residual**2).sum()) / ((seeds - 1) * (prompts - 1)) / prompts / seeds
        if between > CALM * noise + 1e-15:  # more than rounding
            seed_variance = max(0.0, between - noise)
            kept = math.sqrt(max(0.0, error - noise) / error) if error else 0.0  # `between` holds the noise already
            student = rng.normal(size=resamples) * np.sqrt((seeds - 1) / rng.chisquare(seeds - 1, size=resamples))
            draws = mean + kept * (draws - mean) + math.sqrt(between) * student
    low, high = np.quantile(draws, [0.025, 0.975])
    beyond = min((draws <= null).sum(), (draws >= null).sum())
    p = min(1.0, 2 * (beyond + 1) / (resamples + 1))
    if draws.min() == draws.max():  # all prompts agree, so the bootstrap has no spread: the sign test instead
        p = 1.0 if mean == null else min(1.0, 2 * 0.5**prompts)
    return Estimate(mean, float(low), float(high), null, float(p), prompts, float(per_prompt.var()), seed_variance)


def win_rate(outcomes: Outcomes, seed: int = 0, resamples: int = 10_000) -> WinRate:
    """`estimate` of outcomes in 0..1 against one half, its interval inside 0..1.

    Where all outcomes agree the bootstrap has no spread; Wilson's interval stands in (Wilson 1927).
    """
    raw = estimate(outcomes, 0.5, seed, resamples)
    low, high = max(0.0, raw.low), min(1.0, raw.high)
    if raw.low == raw.high:
        low, high = wilson(raw.mean, raw.prompts)
    values = np.asarray(outcomes, dtype=float)
    wins, losses = int((values == 1.0).sum()), int((values == 0.0).sum())
    inside = vars(replace(raw, low=low, high=high))
    return WinRate(**inside, wins=wins, ties=values.size - wins - losses, losses=losses)


def wilson(rate: float, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion."""
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (rate * (1 - rate) / n + z * z / (4 * n * n)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values that stay valid when the smallest of several comparisons is looked at (Holm 1979)."""
    adjusted, highest = {}, 0.0
    for place, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        highest = max(highest, min(1.0, p_values[name] * (len(p_values) - place)))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}


def prompts_to_settle(difference: Estimate) -> int | None:
    """Prompts at which a difference as large as the one seen would be established with 80% probability.

    None where no number would do: nothing was seen, or seeds differ so much that more of them are needed.
    """
    error = math.sqrt(difference.prompt_variance / difference.prompts + difference.seed_variance)
    if not error:
        return None
    half_widths = (difference.high - difference.low) / 2 / error
    spare = ((difference.mean - difference.null) / (half_widths + POWER)) ** 2 - difference.seed_variance
    return math.ceil(difference.prompt_variance / spare) if spare > 1e-12 and difference.prompt_variance else None


def told_apart(low: float, high: float, p: float, null: float = 0.5) -> bool:
    """Whether a mean differs from `null`: by its 95% interval and by a p-value that may be corrected for other comparisons."""
    return p < 0.05 and not low <= null <= high


def verdict(difference: Estimate, ours: str, theirs: str, p: float | None = None) -> str:
    """Who is better in words, by `p` (corrected for the other comparisons; default: that of `difference` alone)."""
    p = difference.p if p is None else p
    numbers = f"{difference.mean:.3f}, 95% interval {difference.low:.3f} to {difference.high:.3f}, p = {p:.3g}"
    if told_apart(difference.low, difference.high, p, difference.null):
        better, worse = (ours, theirs) if difference.mean > difference.null else (theirs, ours)
        return f"{better} is better than {worse} ({numbers})"
    enough = prompts_to_settle(difference)
    if enough is not None:
        advice = f"about {max(enough, difference.prompts + 1):,} prompts would settle a difference of this size"
    elif difference.seed_variance:
        advice = "no number of prompts would settle it, because the seeds differ: train more of them"
    else:
        advice = "no difference was seen that more prompts could settle"
    return f"{ours} and {theirs} are not distinguishable ({numbers}); {advice}"
