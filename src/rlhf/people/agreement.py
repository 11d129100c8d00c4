"""How far people agree in what they said, and whether the order in which they saw replies decided it.

Krippendorff's alpha is computed here: the package of that name is under the GPL, and the formula is short (Krippendorff 2011, "Computing
Krippendorff's Alpha-Reliability"). 1 is perfect agreement, 0 what chance gives.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import Any, Literal, get_args

import numpy as np

from rlhf.evaluation.statistics import Estimate, estimate
from rlhf.feedback.rankings import Ranks, agreement, mean_ranks, standing
from rlhf.feedback.schema import OUTCOMES, Judgement

Level = Literal["ordinal", "nominal"]
RESAMPLES = 1000


@dataclass(frozen=True)
class Alpha:
    """Krippendorff's alpha with its 95% interval over items."""

    value: float
    low: float
    high: float
    items: int


def coincidences(table: np.ndarray, values: np.ndarray) -> np.ndarray:
    """`[annotators, units]` with NaN where one said nothing -> `[V, V]`: how often two values meet in a unit, each unit weighed by the
    number of its pairs."""
    counts = np.stack([(table == value).sum(axis=0) for value in values]).astype(float)  # [V, units]
    said = counts.sum(axis=0)
    counts, said = counts[:, said > 1], said[said > 1]
    return (counts / (said - 1)) @ counts.T - np.diag((counts / (said - 1)).sum(axis=1))


def alpha(table: np.ndarray, level: Level = "ordinal") -> float:
    """Krippendorff's alpha of `[annotators, units]` values, NaN where one said nothing: 1 - observed / expected disagreement.

    NaN where no unit was judged twice, or where all values are one.
    """
    values = np.unique(table[~np.isnan(table)])
    return _alpha(coincidences(table, values), level)


def _alpha(met: np.ndarray, level: Level) -> float:
    each = met.sum(axis=1)  # how often a value stands in a pair
    if level == "nominal":
        distance = 1.0 - np.eye(len(each))
    else:  # squared: how many values lie between two, their own counted half
        upto = np.cumsum(each) - each / 2
        distance = np.subtract.outer(upto, upto) ** 2
    expected = (np.outer(each, each) * distance).sum()
    return float(1 - (each.sum() - 1) * (met * distance).sum() / expected) if expected else float("nan")


def alpha_of(judgements: Sequence[Judgement], level: Level = "ordinal", seed: int = 0) -> Alpha | None:
    """Alpha of the ranks that replies got, with a percentile bootstrap over items: the replies of an item are ranked together, so that
    they are drawn together. None where no item was ranked by two."""
    tables = [_table(rankings) for rankings in standing(judgements).values() if len(rankings) > 1]
    if not tables:
        return None
    values = np.unique(np.concatenate([table[~np.isnan(table)] for table in tables]))
    met = np.stack([coincidences(table, values) for table in tables])
    draws = np.random.default_rng(seed).integers(0, len(met), size=(RESAMPLES, len(met)))
    drawn = np.array([_alpha(met[draw].sum(axis=0), level) for draw in draws])
    low, high = np.nanquantile(drawn, [0.025, 0.975]) if not np.isnan(drawn).all() else (np.nan, np.nan)
    return Alpha(_alpha(met.sum(axis=0), level), float(low), float(high), len(met))


def _table(rankings: dict[str, Ranks]) -> np.ndarray:
    """`[annotators, replies]` of an item: middle ranks, in which ties of one and orders of another can be compared."""
    middle = [mean_ranks([ranks]) for ranks in rankings.values()]
    return np.array([[ranks[reply] for reply in middle[0]] for ranks in middle])


def pairwise(judgements: Sequence[Judgement]) -> dict[tuple[str, str], tuple[float, int]]:
    """For each two annotators the share of pairs of replies on which they agree, and on how many items."""
    found: dict[tuple[str, str], list[float]] = {}
    for rankings in standing(judgements).values():
        for a, b in combinations(sorted(rankings), 2):
            found.setdefault((a, b), []).append(agreement(rankings[a], rankings[b]))
    return {pair: (sum(shares) / len(shares), len(shares)) for pair, shares in sorted(found.items())}


def disagreement(judgements: Sequence[Judgement]) -> dict[str, tuple[float, int]]:
    """For each annotator the share of pairs on which they differ from the mean rank of the others, and on how many items."""
    found: dict[str, list[float]] = {}
    for rankings in standing(judgements).values():
        for name, own in rankings.items():
            if others := [ranks for other, ranks in rankings.items() if other != name]:
                found.setdefault(name, []).append(1 - agreement(own, mean_ranks(others)))
    return {name: (sum(shares) / len(shares), len(shares)) for name, shares in sorted(found.items())}


def position_bias(judgements: Sequence[Judgement]) -> Estimate | None:
    """By how much more often the reply shown first is the best than one in K, with interval and p-value over judgements; a tie for the
    best counts in parts. 0 where the order decides nothing. None where nothing was ranked."""
    excess = []
    for one in judgements:
        if one.undone is None and one.outcome == "ranked":
            best = [rank == min(one.ranks) for rank in one.ranks]
            excess.append(best[0] / sum(best) - 1 / len(best))
    return estimate(excess) if excess else None


def figures(judgements: Sequence[Judgement]) -> dict[str, Any]:
    """All of it, by name."""
    stand = [one for one in judgements if one.undone is None]
    names = sorted({one.annotator for one in stand})
    times = {name: [one.milliseconds for one in stand if one.annotator == name and one.milliseconds] for name in names}
    return {
        "judgements": {name: sum(one.annotator == name for one in stand) for name in names},
        "outcomes": {outcome: sum(one.outcome == outcome for one in stand) for outcome in OUTCOMES},
        "undone": len(judgements) - len(stand),
        "alpha": {level: alpha_of(judgements, level) for level in get_args(Level)},
        "pairwise": pairwise(judgements),
        "disagreement": disagreement(judgements),
        "seconds": {name: median(of) / 1000 for name, of in times.items() if of},
        "position": position_bias(judgements),
    }


def lines(judgements: Sequence[Judgement]) -> Iterator[str]:
    """The figures as text."""
    told = figures(judgements)
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in told["outcomes"].items())
    yield f"said     {outcomes}, {told['undone']} undone"
    for name, count in told["judgements"].items():
        rate, on = told["disagreement"].get(name, (None, 0))
        apart = "" if rate is None else f", differs from the others on {rate:.0%} of the pairs of {on} prompts"
        pace = f", {told['seconds'][name]:.1f} s each" if name in told["seconds"] else ""
        yield f"  {name}: {count} judgements{apart}{pace}"
    for (first, second), (share, on) in told["pairwise"].items():
        yield f"  {first} and {second} agree on {share:.0%} of the pairs of {on} prompts"
    for level, found in told["alpha"].items():
        numbers = "no prompt was ranked by two" if found is None else _interval(found.value, found.low, found.high)
        yield f"alpha    {level}: {numbers}"
    if (bias := told["position"]) is not None:
        numbers = _interval(bias.mean, bias.low, bias.high)
        yield f"order    the reply shown first is best more often than chance by {numbers}, p = {bias.p:.2g}"


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"
