"""From replies to a report: the frontier, win rates, equal KL, over-optimization, costs and alerts, all of it without a model.

The setting and checkpoint of an arm are chosen on every other prompt; everything that compares arms is counted on the rest, so
that an arm does not win by having been chosen.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from rlhf import record
from rlhf.compare.best_of_n import best_of_n, best_of_n_kl
from rlhf.compare.frontier import at_equal_kl
from rlhf.compare.overoptimization import Kind, fit_law
from rlhf.compare.replies import POOL, Replies
from rlhf.compare.trials import KNOBS, Comparison, Trial
from rlhf.config import Stage
from rlhf.evaluation.length_control import length_controlled
from rlhf.evaluation.metrics import Sample
from rlhf.evaluation.monitor import Monitor
from rlhf.evaluation.statistics import Judged, estimate, holm, prompts_to_settle, verdict, win_rate

BEST = f"best-of-{POOL}"
EQUAL_KLS = 5  # places at which the arms are compared at equal KL
SHOWN = 2  # prompts a situation whose replies are shown
Point = tuple[float, int]  # setting, step
Compare = Callable[[Sequence[Sample], Sequence[Sample]], Judged]


class Evidence:
    """The replies of all policies, by arm, setting, step and seed; `table` and `mean` read numbers off them."""

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
        values = np.array([s[key] for s in self.pools[seed]], dtype=float)
        return values.reshape(-1, POOL + len(self.seeds))[:, :POOL]

    @cached_property
    def best_of_pool(self) -> dict[int, list[Sample]]:
        """To each prompt the reply of the pool that the reward model of the seed likes best."""
        width = POOL + len(self.seeds)
        chosen = {seed: self.pooled(seed, "proxy").argmax(axis=1) for seed in self.seeds}
        return {seed: [self.pools[seed][p * width + i] for p, i in enumerate(chosen[seed])] for seed in self.seeds}

    def complete(self, arm: str) -> dict[Point, dict[int, list[Sample]]]:
        """The points of an arm that every seed has."""
        return {point: at for point, at in sorted(self.points[arm].items()) if len(at) == len(self.seeds)}

    def chosen(self, arm: str) -> Point:
        """The setting and step with the highest gold, mean over seeds, on every other prompt."""
        return max(self.complete(arm), key=lambda point: float(table(self.complete(arm)[point], "gold")[:, ::2].mean()))


def table(by_seed: Mapping[int, Sequence[Sample]], key: str) -> np.ndarray:
    """`[seeds, prompts]` of one number of the samples."""
    return np.array([[float(s[key]) for s in by_seed[seed]] for seed in sorted(by_seed)])


def analyze(
    comparison: Comparison,
    replies: Replies,
    trials: Sequence[Trial],
    compare: Compare,
    judge: str,
    failed: Sequence[tuple[Trial, str]],
) -> dict[str, Any]:
    """The content of report.json; `compare` judges two lists of replies to the same prompts."""
    evidence = Evidence(comparison, replies, trials)
    chosen = {arm: evidence.chosen(arm) for arm in KNOBS}
    policies = {
        "sft": evidence.sft,
        **{arm: evidence.points[arm][point] for arm, point in chosen.items()},
        BEST: evidence.best_of_pool,
    }
    held = {name: {seed: rows[1::2] for seed, rows in by_seed.items()} for name, by_seed in policies.items()}
    return {
        "recipe": comparison.recipe,
        "provenance": record.provenance(),
        "setup": {
            "prompts": len(next(iter(evidence.sft.values()))),
            "seeds": comparison.seeds,
            "gold": replies.gold_name,
            "proxy": "reward model of each seed"
            if "reward" in comparison.stages
            else str(replies.stage.method.reward_model),
            "judge": judge,
            "temperature": 1.0,
            "arms": {
                arm: {"key": f"method.args.{knob}", "values": comparison.settings[arm]} for arm, knob in KNOBS.items()
            },
            "chosen": {arm: {"setting": point[0], "step": point[1]} for arm, point in chosen.items()},
            "chosen_on": "every other prompt; win rates, equal KL and behaviours are counted on the other half",
        },
        "fairness": fairness(comparison, trials),
        "frontier": frontier(evidence),
        **equal_kl(evidence),
        "win_rates": win_rates(held, compare),
        "overoptimization": overoptimization(evidence, chosen),
        **costs(comparison, trials),
        "alerts": alerts(evidence),
        "behaviours": behaviours(held),
        "replies": side_by_side(policies, comparison.seeds[0]),
        "failed": [{"trial": trial.name, "why": why} for trial, why in failed],
    }


def frontier(evidence: Evidence) -> list[dict[str, Any]]:
    """A row for each policy and seed: the KL it spends and what that buys, with 95% intervals over prompts."""
    rows = [_row("sft", None, seed, 0, samples) for seed, samples in evidence.sft.items()]
    n = 2
    while n <= POOL:
        for seed in evidence.seeds:
            proxies = evidence.pooled(seed, "proxy")
            found = {
                key: best_of_n(proxies, evidence.pooled(seed, key), n) for key in ("gold", "proxy", "length", "ended")
            }
            rows.append(_numbers("best-of-n", n, seed, 0, np.full(len(proxies), best_of_n_kl(n)), **found))
        n *= 2
    for arm in KNOBS:
        lasts = {(setting, seed): step for (setting, step), at in sorted(evidence.points[arm].items()) for seed in at}
        for (setting, step), at in sorted(evidence.points[arm].items()):
            rows += [
                _row(arm, setting, seed, step, samples, last=lasts[setting, seed] == step)
                for seed, samples in sorted(at.items())
            ]
    return rows


def _row(arm: str, setting: float | None, seed: int, step: int, samples: Sequence[Sample], last: bool = True) -> Any:
    columns = {key: np.array([float(s[key]) for s in samples]) for key in ("kl", "gold", "proxy", "length", "ended")}
    return _numbers(arm, setting, seed, step, columns.pop("kl"), last=last, **columns)


def _numbers(
    arm: str,
    setting: float | None,
    seed: int,
    step: int,
    kl: np.ndarray,
    gold: np.ndarray,
    proxy: np.ndarray,
    length: np.ndarray,
    ended: np.ndarray,
    last: bool = True,
) -> dict[str, Any]:
    half = 1.959964 * _error(gold)
    return {
        "arm": arm,
        "setting": setting,
        "seed": seed,
        "step": step,
        "kl": float(kl.mean()),
        "kl_error": _error(kl),
        "gold": float(gold.mean()),
        "gold_low": float(gold.mean() - half),
        "gold_high": float(gold.mean() + half),
        "proxy": float(proxy.mean()),
        "proxy_error": _error(proxy),
        "length": float(length.mean()),
        "eos_rate": float(ended.mean()),
        "last": last,
    }


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def equal_kl(evidence: Evidence) -> dict[str, Any]:
    """Gold of the arms at the same distance from SFT, by interpolation between each seed's checkpoints."""
    kls: dict[str, dict[int, np.ndarray]] = {}
    golds: dict[str, dict[int, np.ndarray]] = {}
    for arm in KNOBS:
        for seed in evidence.seeds:
            rows = [evidence.sft[seed], *(at[seed] for _, at in sorted(evidence.points[arm].items()) if seed in at)]
            kls.setdefault(arm, {})[seed] = np.array([0.0, *(np.mean([s["kl"] for s in r]) for r in rows[1:])])
            golds.setdefault(arm, {})[seed] = np.array([[s["gold"] for s in r] for r in rows])
    furthest = min(float(k.max()) for by_seed in kls.values() for k in by_seed.values())
    if furthest <= 0:
        return {"equal_kl": [], "equal_kl_note": "an arm never left the SFT model, so there is no KL that both reach"}
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
    rows = []
    for place, kl in enumerate(at):
        found = estimate(values["ppo"][:, place] - values["dpo"][:, place])
        means = {arm: float(values[arm][:, place].mean()) for arm in KNOBS}
        rows.append({"kl": float(kl), **means, "difference": found.mean, "low": found.low, "high": found.high})
    return {"equal_kl": rows, "equal_kl_note": ""}


def win_rates(policies: Mapping[str, Mapping[int, Sequence[Sample]]], compare: Compare) -> list[dict[str, Any]]:
    """Each pair of policies, over prompts and seeds; p-values corrected for there being several pairs."""
    names = [name for name in ("ppo", "dpo", BEST, "sft") if name in policies]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    asked = {(a, b): [compare(policies[a][seed], policies[b][seed]) for seed in sorted(policies[a])] for a, b in pairs}
    found = {pair: win_rate([judged.outcomes for judged in each]) for pair, each in asked.items()}
    corrected = holm({" ".join(pair): rate.p for pair, rate in found.items()})
    rows = []
    for (first, second), rate in found.items():
        each, p = asked[first, second], corrected[f"{first} {second}"]
        lengths = [table(policies[name], "length") for name in (first, second)]
        fair = length_controlled([judged.outcomes for judged in each], *lengths)
        rows.append(
            {
                "first": first,
                "second": second,
                **{key: getattr(rate, key) for key in ("rate", "low", "high", "p", "wins", "ties", "losses")},
                "p_corrected": p,
                "flip_rate": float(np.nanmean([judged.flip_rate for judged in each])),
                "abstained": sum(judged.abstained for judged in each),
                "length_controlled": {
                    "rate": fair.estimate.mean,
                    "low": fair.estimate.low,
                    "high": fair.estimate.high,
                    "overlap": fair.overlap,
                    "matched": fair.matched,
                    "matched_rate": None if math.isnan(fair.matched_rate) else fair.matched_rate,
                },
                "verdict": verdict(rate, first, second, p),
                "prompts_to_settle": prompts_to_settle(rate),
            }
        )
    return rows


def overoptimization(evidence: Evidence, chosen: Mapping[str, Point]) -> dict[str, Any]:
    """For each arm the fitted law, the curve of each setting from its peak to its last checkpoint, and what was chosen."""
    found = {}
    start = {seed: float(np.mean([s["gold"] for s in rows])) for seed, rows in evidence.sft.items()}
    for arm in KNOBS:
        points = [
            (float(np.mean([s["kl"] for s in rows])), float(np.mean([s["gold"] for s in rows])) - start[seed])
            for at in evidence.points[arm].values()
            for seed, rows in at.items()
        ]
        curves = [_curve(evidence, arm, setting) for setting in sorted({s for s, _ in evidence.complete(arm)})]
        gold = table(evidence.points[arm][chosen[arm]], "gold")
        found[arm] = {
            **_law(points, "rl"),
            **{key: value for key, value in curves[0].items() if key != "setting"},  # held least, so it goes furthest
            "settings": curves,
            "best": {
                "setting": chosen[arm][0],
                "step": chosen[arm][1],
                "gold_chosen": float(gold[:, ::2].mean()),
                "gold_reported": float(gold[:, 1::2].mean()),
            },
        }
    pooled = [
        (
            best_of_n_kl(n),
            float(best_of_n(evidence.pooled(seed, "proxy"), evidence.pooled(seed, "gold"), n).mean()) - start[seed],
        )
        for seed in evidence.seeds
        for n in range(2, POOL + 1)
    ]
    found["best-of-n"] = _law(pooled, "best-of-n")
    return found


def _law(points: Sequence[tuple[float, float]], kind: Kind) -> dict[str, Any]:
    try:
        law = fit_law(np.array([kl for kl, _ in points]), np.array([gain for _, gain in points]), kind)
    except ValueError as error:
        return {"law": None, "law_note": str(error)}
    peak = law.peak
    return {
        "law": {
            "kind": kind,
            "alpha": law.alpha,
            "beta": law.beta,
            "peak_kl": None if peak is None or peak > 10 * law.furthest else peak**2,
            "furthest_kl": law.furthest**2,
            "residual": law.residual,
        },
        "law_note": "",
    }


def _curve(evidence: Evidence, arm: str, setting: float) -> dict[str, Any]:
    """Gold, mean over seeds and prompts, at the best and at the last checkpoint of a setting, the start included."""
    at = [(0.0, float(table(evidence.sft, "gold").mean()))]
    at += [
        (float(table(rows, "kl").mean()), float(table(rows, "gold").mean()))
        for (own, _), rows in evidence.complete(arm).items()
        if own == setting
    ]
    (kl_peak, peak), (kl_last, last) = max(at, key=lambda point: point[1]), at[-1]
    return {
        "setting": setting,
        "gold_peak": peak,
        "kl_at_peak": kl_peak,
        "gold_last": last,
        "kl_last": kl_last,
        "last_over_peak": last / peak if peak > 0 else None,
    }


def costs(comparison: Comparison, trials: Sequence[Trial]) -> dict[str, Any]:
    """Seconds, tokens and memory of an arm's trials; PPO's include its reward models."""
    spent: dict[str, list[dict[str, float]]] = {"reward": []}
    for trial in trials:
        run = record.read_run(trial.path)
        spent.setdefault(trial.arm, []).append(
            {"seconds": run["seconds"], "peak": run["peak_memory_mb"]} | tokens(trial.stage)
        )
    rows = []
    for arm in KNOBS:
        own, scoring = spent[arm], spent["reward"] if arm == "ppo" else []
        rows.append(
            {
                "arm": arm,
                "trials": len(own),
                "seconds_a_trial": float(np.mean([t["seconds"] for t in own])),
                "seconds_reward_model": float(np.mean([t["seconds"] for t in scoring])) if scoring else 0.0,
                "seconds_all": sum(t["seconds"] for t in own + scoring),
                "tokens_generated": round(sum(t["generated"] for t in own)),
                "tokens_trained": round(sum(t["trained"] for t in own + scoring)),
                "peak_memory_mb": max(t["peak"] for t in own + scoring),
            }
        )
    by_arm = {row["arm"]: row for row in rows}
    whole = by_arm["ppo"]["seconds_a_trial"] + by_arm["ppo"]["seconds_reward_model"]
    text = (
        f"One PPO trial with its reward model takes {whole:.0f} s; in that time DPO trains "
        f"{whole / by_arm['dpo']['seconds_a_trial']:.1f} trials of {by_arm['dpo']['seconds_a_trial']:.0f} s."
    )
    return {"costs": rows, "dpo_with_ppo_time": text}


def tokens(stage: Stage) -> dict[str, float]:
    """Tokens generated, and tokens of the sequences in gradient passes, prompts included, as the run's files tell them."""
    lines = [json.loads(line) for line in (stage.path / "metrics.jsonl").read_text().splitlines()]
    if stage.method.name != "ppo":
        return {"generated": 0.0, "trained": max((line.get("num_tokens", 0.0) for line in lines), default=0.0)}
    ledger = json.loads((stage.path / "data.json").read_text())["splits"]["train"]
    prompt = ledger["tokens"]["sum"] / ledger["kept"]
    logged = [line for line in lines if "length/mean" in line]
    reply = float(np.mean([line["length/mean"] for line in logged])) if logged else 0.0
    episodes = max((line["episode"] for line in logged), default=0)
    epochs = stage.method.args.get("num_ppo_epochs", 4)
    return {"generated": episodes * reply, "trained": episodes * epochs * (prompt + reply)}


def alerts(evidence: Evidence) -> list[dict[str, Any]]:
    """What the monitor says of each trial: of its log, and of its checkpoints' replies after those of the SFT model."""
    from rlhf.evaluation.watch import watch_finished

    found = []
    for trial in evidence.trials:
        said = list(watch_finished(trial.path))
        monitor = Monitor(trial.stage.monitor)
        monitor.update(0, {}, _scored(evidence.sft[trial.seed]))
        for (setting, step), at in sorted(evidence.points[trial.arm].items()):
            if setting == trial.setting and trial.seed in at:
                said += monitor.update(step, {}, _scored(at[trial.seed]))
        found += [
            {"trial": trial.name, "step": a.step, "level": a.level, "rule": a.rule, "source": a.source, "text": str(a)}
            for a in said
        ]
    return found


def _scored(samples: Sequence[Sample]) -> list[Sample]:
    return [sample | {"reward": sample["proxy"]} for sample in samples]


def behaviours(policies: Mapping[str, Mapping[int, Sequence[Sample]]]) -> dict[str, Any]:
    """Gold of each policy by the situation that the prompts are about; empty where nobody says which."""
    first = next(iter(next(iter(policies.values())).values()))
    kinds = [(s.get("facts") or {}).get("situation") for s in first]
    found: dict[str, Any] = {}
    for kind in sorted({kind for kind in kinds if kind}):
        where = np.array([own == kind for own in kinds])
        for name, by_seed in policies.items():
            mean = estimate(table(by_seed, "gold")[:, where])
            found.setdefault(kind, {})[name] = {"gold": mean.mean, "low": mean.low, "high": mean.high}
    return found


def side_by_side(policies: Mapping[str, Mapping[int, Sequence[Sample]]], seed: int) -> list[dict[str, Any]]:
    """Replies of all policies to the first prompts of each situation that were not chosen on."""
    seen: dict[str, int] = {}
    found = []
    for index in range(1, len(policies["sft"][seed]), 2):
        sample = policies["sft"][seed][index]
        kind = (sample.get("facts") or {}).get("situation", "")
        seen[kind] = seen.get(kind, 0) + 1
        if seen[kind] > (SHOWN if kind else 5 * SHOWN):
            continue
        rows = {name: by_seed[seed][index] for name, by_seed in policies.items()}
        said = {n: {"text": r["reply"], "gold": r["gold"], "proxy": r["proxy"]} for n, r in rows.items()}
        found.append({"prompt": sample["prompt"], "situation": kind, "seed": seed, "replies": said})
    return sorted(found, key=lambda row: row["situation"])


def fairness(comparison: Comparison, trials: Sequence[Trial]) -> dict[str, Any]:
    """What the arms share, as their finished runs tell it, and what differs between them."""
    by_arm = {arm: [t for t in trials if t.arm == arm] for arm in (*KNOBS, "reward")}
    stages = {arm: found[0].stage for arm, found in by_arm.items() if found}

    def ids(stage: str) -> str:
        return ", ".join(sorted({record.read_run(t.path)["inputs"].get(f"stage:{stage}", "-") for t in trials}))

    shared = [{"what": f"weights of {name}", "value": f"run {ids(name)}"} for name in comparison.shared]
    shared.append({"what": "base", "value": f"{stages['dpo'].model.path}, {stages['dpo'].quantization.name}"})
    shared.append({"what": "reference", "value": "the SFT weights, frozen"})
    shared.append(
        {"what": "KL", "value": "log pi/ref summed over a reply, on the policy's own samples, fp32, temperature 1"}
    )
    if "reward" in stages:
        pairs = {
            json.loads((t.path / "data.json").read_text())["splits"]["train"]["fingerprint"]
            for t in trials
            if t.arm != "ppo"
        }
        shared.append(
            {
                "what": "pairs of DPO and the reward model",
                "value": f"{stages['dpo'].dataset.path}, fingerprint {', '.join(sorted(pairs))}",
            }
        )
    shared.append(
        {
            "what": "trials an arm",
            "value": f"{len(comparison.settings['dpo'])} settings x {len(comparison.seeds)} seeds",
        }
    )
    differs = [
        {"what": what, **{arm: str(read(stages[arm])) for arm in KNOBS}}
        for what, read in DIFFERS.items()
        if read(stages["dpo"]) != read(stages["ppo"])
    ]
    return {"shared": shared, "differs": differs}


DIFFERS: dict[str, Callable[[Stage], Any]] = {
    "learns from": lambda stage: stage.dataset.path,
    "reward model": lambda stage: "none" if stage.method.name == "dpo" else "trained on the pairs, one a seed",
    "rows or episodes a step": lambda stage: stage.batch_size,
    "learning rate": lambda stage: stage.method.args.get("learning_rate"),
    "passes": lambda stage: stage.method.args.get("num_train_epochs", stage.method.args.get("num_ppo_epochs")),
    "episodes": lambda stage: stage.method.args.get("total_episodes", "no replies are sampled"),
    "adapter": lambda stage: vars(stage.adapter),
    "loss": lambda stage: stage.method.args.get(
        "loss_type", "clipped policy gradient" if stage.method.name == "ppo" else "sigmoid"
    ),
}
