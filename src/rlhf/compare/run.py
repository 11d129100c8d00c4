"""A comparison from its command to its report: trials, replies, analysis, pages."""

from collections.abc import Sequence

import numpy as np

from rlhf import files
from rlhf.compare.report import Row
from rlhf.compare.trials import KNOBS, Comparison, Trial
from rlhf.errors import ConfigError, Refusal
from rlhf.evaluation.samples import Sample, column
from rlhf.evaluation.statistics import Judgements
from rlhf.runs import record
from rlhf.runs.launcher import parallel


def run(comparison: Comparison, jobs: int | None, judge: str | None, gold: str | None) -> list[tuple[Trial, str]]:
    """Returns the trials that failed, and why; raises where there is nothing to compare."""
    gold = _gold_judge(comparison, gold)
    tuning = _tune(comparison, jobs, gold) if comparison.rates["dpo"] else []
    failed = comparison.run(jobs)
    names = {trial.name for trial, _ in failed}
    trials = [trial for trial in comparison.trials() if trial.name not in names]
    for arm in ("dpo", "ppo"):
        if not any(trial.arm == arm for trial in trials):
            raise ConfigError(f"no trial of {arm} is left to compare: {failed[0][1]}")
    left = _compared(trials)
    if not left:
        raise ConfigError(f"no seed is left that both arms were trained with: {failed[0][1]}")
    if left != comparison.seeds:
        print(f"compared by seeds {left}: the others have no setting of both arms", flush=True)
        comparison.seeds, trials = left, [trial for trial in trials if trial.seed in left]

    from rlhf.compare.analysis import analyze
    from rlhf.compare.conclusion import conclusion
    from rlhf.compare.page import write_pages
    from rlhf.compare.replies import Replies

    replies = Replies(comparison, gold)
    replies.make(trials, jobs or parallel(comparison.planned["ppo"]))
    judge = judge or gold
    compare = _by_gold if judge == gold != "annotator" else replies.judge(judge).compare
    report = analyze(replies, trials, compare, judge, failed)
    if tuning:
        report["tuning"] = tuning
    report["conclusion"] = conclusion(report)
    files.write_json(comparison.folder / "report.json", report)
    write_pages(comparison.folder, report)
    print(f"\n{report['conclusion']}\n\nreport   {comparison.folder}/report.html, report.md, report.json")
    for trial, why in failed:
        print(f"failed   {trial.name}: {why}")
    return failed


def _compared(trials: Sequence[Trial]) -> list[int]:
    """The most seeds for which both arms have a setting that all of them have: all seeds, unless trials failed."""
    have: dict[str, dict[float | None, set[int]]] = {arm: {} for arm in KNOBS}
    for trial in (trial for trial in trials if trial.arm in KNOBS):
        have[trial.arm].setdefault(trial.setting, set()).add(trial.seed)
    return sorted(max((dpo & ppo for dpo in have["dpo"].values() for ppo in have["ppo"].values()), key=len))


def _tune(comparison: Comparison, jobs: int | None, gold: str) -> list[Row]:
    """Run a trial of each learning rate and keep each arm's best: by gold, at its best checkpoint, on the prompts that choose.

    A rate that was tried is a row: arm, learning_rate, gold and kl there, seconds, chosen. Raises ConfigError where no rate of an arm
    could be trained.
    """
    from rlhf.compare.replies import Replies

    failed = {trial.name for trial, _ in comparison.run(jobs, comparison.tuning)}
    trials = [trial for trial in comparison.tuning() if trial.name not in failed]
    replies, rows = Replies(comparison, gold), list[Row]()
    replies.make(trials, jobs or parallel(comparison.planned["ppo"]))
    for trial in (trial for trial in trials if trial.arm in KNOBS):
        points = [replies.of(trial, step)[::2] for step, _ in trial.checkpoints()]
        golds, kls = ([float(np.mean(column(rows, key))) for rows in points] for key in ("gold", "kl"))
        best = int(np.argmax(golds))
        seconds = record.read_run(trial.path)["seconds"]
        rows.append(
            {"arm": trial.arm, "learning_rate": trial.rate, "gold": golds[best], "kl": kls[best], "seconds": seconds}
        )
    for arm in KNOBS:
        tried = [row for row in rows if row["arm"] == arm]
        if not tried:
            raise ConfigError(f"no learning rate of {arm} could be trained: {', '.join(sorted(failed))}")
        comparison.rate[arm] = max(tried, key=lambda row: row["gold"])["learning_rate"]
        print(
            f"learning rate of {arm}: {comparison.rate[arm]:g}, of {', '.join(f'{r:g}' for r in comparison.rates[arm])}",
            flush=True,
        )
    return [row | {"chosen": comparison.rate[row["arm"]] == row["learning_rate"]} for row in rows]


def _gold_judge(comparison: Comparison, gold: str | None) -> str:
    """The judge whose score counts as true: `gold`, the recipe's, or the dataset's annotator; raises ConfigError where it can't be."""
    planned = comparison.planned["ppo"]
    gold = gold or planned.evaluation.gold or ("annotator" if planned.dataset.annotator else None)
    if gold is None:
        why = "dataset.annotator=null, so nobody knows the true score of a reply"
        fix = "gold=reward: with a reward model that neither arm learned from"
        raise Refusal("recipe", comparison.recipe, why, fix=fix)
    if gold.startswith("openai:"):
        raise ConfigError(f"gold={gold} can only compare, and gold has to score\n  fix: judge={gold} with another gold")
    for seed in comparison.seeds:
        ppo = comparison.trial("ppo", comparison.settings["ppo"][0], seed).stage
        if gold.removeprefix("reward:") in ppo.method.reward_models:
            fix = "a reward model that neither arm learned from"
            raise ConfigError(f"gold={gold} is the reward that PPO is trained on\n  fix: {fix}")
    return gold


def _by_gold(ours: Sequence[Sample], theirs: Sequence[Sample]) -> Judgements:
    """As the reward model that is gold decides, from the scores that it has given already."""
    pairs = zip(ours, theirs, strict=True)
    outcomes = [0.5 if a["ids"] == b["ids"] else (1 + np.sign(a["gold"] - b["gold"])) / 2 for a, b in pairs]
    return Judgements(outcomes, outcomes)
