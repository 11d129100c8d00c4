"""What follows from the replies of all checkpoints: the frontier, the arms at equal KL, and where an arm's gold peaks."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from rlhf.compare.estimators import Kind, at_equal_kl, best_of_n, best_of_n_kl, choose_checkpoint, fit_law
from rlhf.compare.replies import POOL, Replies
from rlhf.compare.report import Row, numbers
from rlhf.compare.trials import KNOBS, Trial
from rlhf.evaluation.samples import Sample, column
from rlhf.evaluation.statistics import Z95, estimate

EQUAL_KLS = 5  # places at which the arms are compared at equal KL
NUMBERS = ("kl", "gold", "reward", "length", "ended")  # of a sample that the frontier shows
Point = tuple[float, int]  # setting, step


class Evidence:
    """The replies of all policies of a comparison, by arm, setting, step and seed; `table` reads numbers off them."""

    def __init__(self, replies: Replies, trials: Sequence[Trial]) -> None:
        self.seeds = replies.comparison.seeds
        self.trials = [trial for trial in trials if trial.arm != "reward"]
        self.points: dict[str, dict[Point, dict[int, list[Sample]]]] = {arm: {} for arm in KNOBS}
        for trial in self.trials:
            for step, _ in trial.checkpoints():
                assert trial.setting is not None
                at = self.points[trial.arm].setdefault((trial.setting, step), {})
                at[trial.seed] = replies.of(trial, step)
        self.pools = {seed: replies.pool(seed) for seed in self.seeds}
        self.width = POOL + len(self.seeds)  # samples of the SFT model to each prompt

    @cached_property
    def sft(self) -> dict[int, list[Sample]]:
        """One sample of the SFT model to each prompt, another one for every seed, none of them in the pool of best-of-n."""
        return {seed: self.pools[seed][POOL + place :: self.width] for place, seed in enumerate(self.seeds)}

    def pooled(self, seed: int, key: str) -> np.ndarray:
        """`[prompts, POOL]` of what best-of-n draws from."""
        return column(self.pools[seed], key).reshape(-1, self.width)[:, :POOL]

    @cached_property
    def best_of_pool(self) -> dict[int, list[Sample]]:
        """To each prompt the reply of the pool that the reward model of the seed likes best."""
        chosen = {seed: enumerate(self.pooled(seed, "reward").argmax(axis=1)) for seed in self.seeds}
        return {seed: [self.pools[seed][p * self.width + i] for p, i in best] for seed, best in chosen.items()}

    def complete(self, arm: str) -> dict[Point, dict[int, list[Sample]]]:
        """The points of an arm that every seed has."""
        return {point: at for point, at in sorted(self.points[arm].items()) if len(at) == len(self.seeds)}

    def chosen(self, arm: str) -> Point:
        """The setting and step with the highest gold, mean over seeds, on every other prompt."""
        points = self.complete(arm)
        best, *_ = choose_checkpoint(np.array([table(at, "gold").mean(axis=0) for at in points.values()]))
        return list(points)[best]


def table(by_seed: Mapping[int, Sequence[Sample]], key: str) -> np.ndarray:
    """`[seeds, prompts]` of one number of the samples."""
    return np.array([[float(s[key]) for s in by_seed[seed]] for seed in sorted(by_seed)])


def frontier(evidence: Evidence) -> list[Row]:
    """A row for each policy and seed: the KL it spends and what that buys, with 95% intervals over prompts."""
    rows = [_row("sft", None, seed, 0, _columns(samples)) for seed, samples in evidence.sft.items()]
    for n in (2**power for power in range(1, POOL.bit_length())):
        for seed in evidence.seeds:
            rewards = evidence.pooled(seed, "reward")
            columns = {key: best_of_n(rewards, evidence.pooled(seed, key), n) for key in NUMBERS if key != "kl"}
            rows.append(_row("best-of-n", n, seed, 0, columns | {"kl": np.full(len(rewards), best_of_n_kl(n))}))
    for arm in KNOBS:
        points = sorted(evidence.points[arm].items())
        lasts = {(setting, seed): step for (setting, step), at in points for seed in at}
        for (setting, step), at in points:
            for seed, samples in sorted(at.items()):
                rows.append(_row(arm, setting, seed, step, _columns(samples), last=lasts[setting, seed] == step))
    return rows


def _columns(samples: Sequence[Sample]) -> dict[str, np.ndarray]:
    return {key: column(samples, key) for key in NUMBERS}


def _row(
    arm: str, setting: float | None, seed: int, step: int, columns: Mapping[str, np.ndarray], last: bool = True
) -> Row:
    means = {key: float(values.mean()) for key, values in columns.items()}
    errors = {key: float(values.std(ddof=1) / math.sqrt(len(values))) for key, values in columns.items()}
    return {"arm": arm, "setting": setting, "seed": seed, "step": step} | {
        "kl": means["kl"],
        "kl_error": errors["kl"],
        "gold": means["gold"],
        "gold_low": means["gold"] - Z95 * errors["gold"],
        "gold_high": means["gold"] + Z95 * errors["gold"],
        "proxy": means["reward"],
        "proxy_error": errors["reward"],
        "length": means["length"],
        "eos_rate": means["ended"],
        "last": last,
    }


def equal_kl(evidence: Evidence) -> tuple[list[Row], str]:
    """Gold of the arms at the same distance from SFT, by interpolation between each seed's checkpoints; else why not."""
    paths: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {arm: [] for arm in KNOBS}  # of each seed its KLs and golds
    for arm in KNOBS:
        for seed in evidence.seeds:
            moved = [at[seed] for _, at in sorted(evidence.points[arm].items()) if seed in at]
            kls = np.array([0.0, *(column(rows, "kl").mean() for rows in moved)])
            paths[arm].append((kls, np.array([column(rows, "gold") for rows in (evidence.sft[seed], *moved)])))
    furthest = min(float(kls.max()) for of_arm in paths.values() for kls, _ in of_arm)
    if furthest <= 0:
        return [], "an arm never left the SFT model, so there is no KL that both reach"
    at = furthest * np.linspace(1 / EQUAL_KLS, 1, EQUAL_KLS)
    golds = {  # [seeds, places, prompts]
        arm: np.array([at_equal_kl(kls, gold[:, ::2].mean(axis=1), at) @ gold[:, 1::2] for kls, gold in of_arm])
        for arm, of_arm in paths.items()
    }
    rows = []
    for place, kl in enumerate(at):
        dpo, ppo = golds["dpo"][:, place], golds["ppo"][:, place]
        gap = estimate(ppo - dpo)
        row = {"kl": float(kl), "dpo": float(dpo.mean()), "ppo": float(ppo.mean())}
        rows.append(row | {"difference": gap.mean} | numbers(gap, "low", "high"))
    return rows, ""


def overoptimization(evidence: Evidence, chosen: Mapping[str, Point]) -> dict[str, Row]:
    """For each arm the fitted law, the curve of each setting from its peak to its last checkpoint, and what was chosen."""
    arms = {}
    start = {seed: float(column(rows, "gold").mean()) for seed, rows in evidence.sft.items()}
    for arm in KNOBS:
        points = [
            (float(column(rows, "kl").mean()), float(column(rows, "gold").mean()) - start[seed])
            for at in evidence.points[arm].values()
            for seed, rows in at.items()
        ]
        curves = {s: _curve(evidence, arm, s) for s in sorted({s for s, _ in evidence.complete(arm)})}
        gold = table(evidence.points[arm][chosen[arm]], "gold")
        furthest = curves[min(curves)]  # of the setting that held it least
        best = {"setting": chosen[arm][0], "step": chosen[arm][1]}
        best |= {"gold_chosen": float(gold[:, ::2].mean()), "gold_reported": float(gold[:, 1::2].mean())}
        settings = [{"setting": setting} | curve for setting, curve in curves.items()]
        arms[arm] = _law(points, "rl") | furthest | {"settings": settings, "best": best}
    return arms | {"best-of-n": _best_of_n(evidence, start)}


def _best_of_n(evidence: Evidence, start: Mapping[int, float]) -> Row:
    ns = range(1, POOL + 1)
    kls = [best_of_n_kl(n) for n in ns]
    golds = {}
    for seed in evidence.seeds:
        rewards, values = evidence.pooled(seed, "reward"), evidence.pooled(seed, "gold")
        golds[seed] = [float(best_of_n(rewards, values, n).mean()) for n in ns]
    points = [(kl, gold - start[seed]) for seed, of in golds.items() for kl, gold in zip(kls, of, strict=True)]
    means = np.mean(list(golds.values()), axis=0)
    return _law(points, "best-of-n") | _peak([*zip(kls, map(float, means), strict=True)])


def _law(points: Sequence[tuple[float, float]], kind: Kind) -> Row:
    """The law fitted to (KL, gain) in numbers, or why there is none."""
    try:
        law = fit_law(np.array([kl for kl, _ in points]), np.array([gain for _, gain in points]), kind)
    except ValueError as error:
        return {"law": None, "law_note": str(error)}
    peak_kl = None if law.peak is None or law.peak > 10 * law.furthest else law.peak**2
    found = numbers(law, "kind", "alpha", "beta") | {"peak_kl": peak_kl, "furthest_kl": law.furthest**2}
    return {"law": found | numbers(law, "residual", "turns"), "law_note": ""}


def _curve(evidence: Evidence, arm: str, setting: float) -> Row:
    """Gold, mean over seeds and prompts, at the best and at the last checkpoint of a setting, the start included.

    `fall` is from the best on every other prompt to the last, on the rest: a best by chance does not fall there.
    """
    rows = [evidence.sft, *(at for (other, _), at in evidence.complete(arm).items() if other == setting)]
    kls, golds = [float(table(at, "kl").mean()) for at in rows], [table(at, "gold") for at in rows]
    best, *_ = choose_checkpoint(np.array([gold.mean(axis=0) for gold in golds]))
    fall = estimate((golds[best] - golds[-1])[:, 1::2])
    peak = _peak([*zip(kls, (float(gold.mean()) for gold in golds), strict=True)])
    return peak | {"fall": {"kl": kls[best], **numbers(fall, "mean", "low", "high")}}


def _peak(at: Sequence[tuple[float, float]]) -> Row:
    """KL and gold of the best and of the last of `at`."""
    (kl_peak, peak), (kl_last, last) = max(at, key=lambda point: point[1]), at[-1]
    found = {"gold_peak": peak, "kl_at_peak": kl_peak, "gold_last": last, "kl_last": kl_last}
    return found | {"last_over_peak": last / peak if peak > 0 else None}
