"""What follows from the replies of all checkpoints: the frontier, the arms at equal KL, and where an arm's gold peaks."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from rlhf.compare.estimators import Kind, at_equal_kl, best_of_n, best_of_n_kl, choose_checkpoint, fit_law
from rlhf.compare.replies import POOL, Replies
from rlhf.compare.report import AtKL, Checkpoint, Curve, FittedLaw, Overoptimization, Peak
from rlhf.compare.trials import KNOBS, Comparison, Trial
from rlhf.evaluation.samples import Sample, column
from rlhf.evaluation.statistics import Z95, estimate

EQUAL_KLS = 5  # places at which the arms are compared at equal KL
Point = tuple[float, int]  # setting, step


class Evidence:
    """The replies of all policies of a comparison, by arm, setting, step and seed; `table` reads numbers off them."""

    def __init__(self, comparison: Comparison, replies: Replies, trials: Sequence[Trial]) -> None:
        self.comparison, self.seeds = comparison, comparison.seeds
        self.trials = [trial for trial in trials if trial.arm != "reward"]
        self.points: dict[str, dict[Point, dict[int, list[Sample]]]] = {arm: {} for arm in KNOBS}
        for trial in self.trials:
            for step, _ in trial.checkpoints():
                assert trial.setting is not None
                at = self.points[trial.arm].setdefault((trial.setting, step), {})
                at[trial.seed] = replies.of(trial, step)
        self.pools = {seed: replies.pool(seed) for seed in self.seeds}

    @cached_property
    def sft(self) -> dict[int, list[Sample]]:
        """One sample of the SFT model to each prompt, another one for every seed, none of them in the pool of best-of-n."""
        width = POOL + len(self.seeds)
        return {seed: self.pools[seed][POOL + place :: width] for place, seed in enumerate(self.seeds)}

    def pooled(self, seed: int, key: str) -> np.ndarray:
        """`[prompts, POOL]` of what best-of-n draws from."""
        return column(self.pools[seed], key).reshape(-1, POOL + len(self.seeds))[:, :POOL]

    @cached_property
    def best_of_pool(self) -> dict[int, list[Sample]]:
        """To each prompt the reply of the pool that the reward model of the seed likes best."""
        width = POOL + len(self.seeds)
        chosen = {seed: self.pooled(seed, "reward").argmax(axis=1) for seed in self.seeds}
        return {seed: [self.pools[seed][p * width + i] for p, i in enumerate(chosen[seed])] for seed in self.seeds}

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


def frontier(evidence: Evidence) -> list[Checkpoint]:
    """A row for each policy and seed: the KL it spends and what that buys, with 95% intervals over prompts."""
    rows = [_row("sft", None, seed, 0, samples) for seed, samples in evidence.sft.items()]
    n = 2
    while n <= POOL:
        for seed in evidence.seeds:
            rewards = evidence.pooled(seed, "reward")
            columns = {
                key: best_of_n(rewards, evidence.pooled(seed, key), n) for key in ("gold", "reward", "length", "ended")
            }
            columns["kl"] = np.full(len(rewards), best_of_n_kl(n))
            rows.append(_numbers("best-of-n", n, seed, 0, columns))
        n *= 2
    for arm in KNOBS:
        lasts = {(setting, seed): step for (setting, step), at in sorted(evidence.points[arm].items()) for seed in at}
        for (setting, step), at in sorted(evidence.points[arm].items()):
            rows += [
                _row(arm, setting, seed, step, samples, last=lasts[setting, seed] == step)
                for seed, samples in sorted(at.items())
            ]
    return rows


def _row(
    arm: str, setting: float | None, seed: int, step: int, samples: Sequence[Sample], last: bool = True
) -> Checkpoint:
    columns = {key: column(samples, key) for key in ("kl", "gold", "reward", "length", "ended")}
    return _numbers(arm, setting, seed, step, columns, last)


def _numbers(
    arm: str, setting: float | None, seed: int, step: int, columns: Mapping[str, np.ndarray], last: bool = True
) -> Checkpoint:
    means = {key: float(values.mean()) for key, values in columns.items()}
    errors = {key: float(values.std(ddof=1) / math.sqrt(len(values))) for key, values in columns.items()}
    return {
        "arm": arm,
        "setting": setting,
        "seed": seed,
        "step": step,
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


def equal_kl(evidence: Evidence) -> tuple[list[AtKL], str]:
    """Gold of the arms at the same distance from SFT, by interpolation between each seed's checkpoints; else why not."""
    kls: dict[str, dict[int, np.ndarray]] = {}
    golds: dict[str, dict[int, np.ndarray]] = {}
    for arm in KNOBS:
        for seed in evidence.seeds:
            of_seed = [evidence.sft[seed], *(at[seed] for _, at in sorted(evidence.points[arm].items()) if seed in at)]
            kls.setdefault(arm, {})[seed] = np.array([0.0, *(column(r, "kl").mean() for r in of_seed[1:])])
            golds.setdefault(arm, {})[seed] = np.array([column(r, "gold") for r in of_seed])
    furthest = min(float(k.max()) for by_seed in kls.values() for k in by_seed.values())
    if furthest <= 0:
        return [], "an arm never left the SFT model, so there is no KL that both reach"
    at = furthest * np.linspace(1 / EQUAL_KLS, 1, EQUAL_KLS)
    values = {
        arm: np.array(
            [
                at_equal_kl(kls[arm][s], golds[arm][s][:, ::2].mean(axis=1), at) @ golds[arm][s][:, 1::2]
                for s in evidence.seeds
            ]
        )
        for arm in KNOBS
    }  # [seeds, places, prompts]
    rows: list[AtKL] = []
    for place, kl in enumerate(at):
        dpo, ppo = (values[arm][:, place] for arm in ("dpo", "ppo"))
        gap = estimate(ppo - dpo)
        rows.append(
            {
                "kl": float(kl),
                "dpo": float(dpo.mean()),
                "ppo": float(ppo.mean()),
                "difference": gap.mean,
                "low": gap.low,
                "high": gap.high,
            }
        )
    return rows, ""


def overoptimization(evidence: Evidence, chosen: Mapping[str, Point]) -> dict[str, Overoptimization]:
    """For each arm the fitted law, the curve of each setting from its peak to its last checkpoint, and what was chosen."""
    arms: dict[str, Overoptimization] = {}
    start = {seed: float(column(rows, "gold").mean()) for seed, rows in evidence.sft.items()}
    for arm in KNOBS:
        points = [
            (float(column(rows, "kl").mean()), float(column(rows, "gold").mean()) - start[seed])
            for at in evidence.points[arm].values()
            for seed, rows in at.items()
        ]
        curves = [_curve(evidence, arm, setting) for setting in sorted({s for s, _ in evidence.complete(arm)})]
        gold = table(evidence.points[arm][chosen[arm]], "gold")
        furthest = curves[0]  # the setting that held it least
        law, note = _law(points, "rl")
        arms[arm] = {
            "law": law,
            "law_note": note,
            "gold_peak": furthest["gold_peak"],
            "kl_at_peak": furthest["kl_at_peak"],
            "gold_last": furthest["gold_last"],
            "kl_last": furthest["kl_last"],
            "last_over_peak": furthest["last_over_peak"],
            "fall": furthest["fall"],
            "settings": curves,
            "best": {
                "setting": chosen[arm][0],
                "step": chosen[arm][1],
                "gold_chosen": float(gold[:, ::2].mean()),
                "gold_reported": float(gold[:, 1::2].mean()),
            },
        }
    arms["best-of-n"] = _best_of_n(evidence, start)
    return arms


def _best_of_n(evidence: Evidence, start: Mapping[int, float]) -> Overoptimization:
    ns = range(1, POOL + 1)
    golds = {
        seed: [float(best_of_n(evidence.pooled(seed, "reward"), evidence.pooled(seed, "gold"), n).mean()) for n in ns]
        for seed in evidence.seeds
    }
    points = [
        (best_of_n_kl(n), gold - start[seed]) for seed, of in golds.items() for n, gold in zip(ns, of, strict=True)
    ]
    means = np.mean(list(golds.values()), axis=0)
    law, note = _law(points, "best-of-n")
    peak = _peak([(best_of_n_kl(n), float(gold)) for n, gold in zip(ns, means, strict=True)])
    return {"law": law, "law_note": note, **peak}


def _law(points: Sequence[tuple[float, float]], kind: Kind) -> tuple[FittedLaw | None, str]:
    """The law fitted to (KL, gain) in numbers, or why there is none."""
    try:
        law = fit_law(np.array([kl for kl, _ in points]), np.array([gain for _, gain in points]), kind)
    except ValueError as error:
        return None, str(error)
    peak = law.peak
    return {
        "kind": kind,
        "alpha": law.alpha,
        "beta": law.beta,
        "peak_kl": None if peak is None or peak > 10 * law.furthest else peak**2,
        "furthest_kl": law.furthest**2,
        "residual": law.residual,
        "turns": law.turns,
    }, ""


def _curve(evidence: Evidence, arm: str, setting: float) -> Curve:
    """Gold, mean over seeds and prompts, at the best and at the last checkpoint of a setting, the start included.

    `fall` is from the best on every other prompt to the last, on the rest: a best by chance does not fall there.
    """
    rows = [evidence.sft, *(at for (other, _), at in evidence.complete(arm).items() if other == setting)]
    kls, golds = [float(table(at, "kl").mean()) for at in rows], [table(at, "gold") for at in rows]
    best, *_ = choose_checkpoint(np.array([gold.mean(axis=0) for gold in golds]))
    fall = estimate((golds[best] - golds[-1])[:, 1::2])
    return {
        "setting": setting,
        **_peak([*zip(kls, (float(gold.mean()) for gold in golds), strict=True)]),
        "fall": {"kl": kls[best], "mean": fall.mean, "low": fall.low, "high": fall.high},
    }


def _peak(at: Sequence[tuple[float, float]]) -> Peak:
    """KL and gold of the best and of the last of `at`."""
    (kl_peak, peak), (kl_last, last) = max(at, key=lambda point: point[1]), at[-1]
    return {
        "gold_peak": peak,
        "kl_at_peak": kl_peak,
        "gold_last": last,
        "kl_last": kl_last,
        "last_over_peak": last / peak if peak > 0 else None,
    }
