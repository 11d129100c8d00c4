"""A comparison from its command to its report: trials, replies, analysis, pages."""

from collections.abc import Sequence
from typing import Any

from rlhf import record
from rlhf.compare.trials import Comparison, Trial, parallel
from rlhf.config import Stage
from rlhf.errors import ConfigError


def run(
    recipe: str,
    overrides: Sequence[str],
    seeds: Sequence[int],
    settings: dict[str, Sequence[float]],
    name: str,
    jobs: int | None,
    judge: str | None,
    gold: str | None,
) -> list[tuple[Trial, str]]:
    """Returns the trials that failed, and why; raises where there is nothing to compare."""
    comparison = Comparison(recipe, overrides, seeds, settings, name)
    stage = comparison.plan.stage(comparison.stages["ppo"])
    gold = gold or ("annotator" if stage.dataset.annotator else None)
    if gold is None:
        raise ConfigError(
            f"recipe={recipe}: dataset.annotator=null, so nobody knows the true score of a reply\n"
            "  fix: gold=reward:<a reward model that neither arm learned from>"
        )
    for seed in comparison.seeds:
        if gold.removeprefix("reward:") in comparison.trial("ppo", comparison.settings["ppo"][0], seed).stage.method.reward_models:
            raise ConfigError(f"gold={gold} is the reward that PPO is trained on\n  fix: a reward model that neither arm learned from")
    failed = comparison.run(jobs or parallel(stage))
    lost = {trial.name for trial, _ in failed}
    trials = [trial for trial in comparison.trials() if trial.name not in lost]
    for arm in ("dpo", "ppo"):
        if not any(trial.arm == arm for trial in trials):
            raise ConfigError(f"no trial of {arm} is left to compare: {failed[0][1]}")

    from rlhf.compare.replies import Replies
    from rlhf.compare.analysis import analyze
    from rlhf.compare.page import write_pages
    from rlhf.compare.words import conclusion
    from rlhf.evaluation.judges import load_judge

    def load(name: str, stage: Stage, tokenizer: Any) -> Any:
        return load_judge(name, stage, tokenizer, comparison.folder)

    replies = Replies(comparison, gold, lambda stage, tokenizer: load(gold, stage, tokenizer).scores)
    replies.make(trials)
    decides = load(judge or gold, stage, None)
    report = analyze(comparison, replies, trials, decides.compare, decides.name, failed)
    report["conclusion"] = conclusion(report)
    record.write_json(comparison.folder / "report.json", report)
    write_pages(comparison.folder, report)
    print(f"\n{report['conclusion']}\n\nreport   {comparison.folder}/report.html, report.md, report.json")
    for trial, why in failed:
        print(f"failed   {trial.name}: {why}")
    return failed
