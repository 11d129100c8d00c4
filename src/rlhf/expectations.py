"""Published numbers that a stage should reach again: which metrics there are to compare with, and what a measured one is worth."""

import json
from pathlib import Path
from typing import Any

from rlhf.config import Expected, Stage
from rlhf.errors import nearest
from rlhf.ppo.metrics import METRICS

_REPLIES = {"length", "eos_rate", "distinct_2", "gold_score", "known_words"}
_EVERY = {"train_loss", "held_out_loss", "eval_loss", "loss", "learning_rate", "grad_norm", "epoch"}
_REWARDS = {
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
}
# What a stage leaves in results.json or metrics.jsonl, by method. The smoke runs of the tests hold this against what is there.
LOGGED: dict[str, set[str]] = {
    "sft": _EVERY
    | (_REPLIES - {"kl"})
    | {"mean_token_accuracy", "eval_mean_token_accuracy", "entropy", "eval_entropy"},
    "reward": _EVERY
    | {"accuracy", "mean_margin", "accuracy_true", "accuracy_noisy", "annotator_accuracy", "margin", "min_reward"}
    | {
        "mean_reward",
        "max_reward",
        "eval_accuracy",
        "eval_margin",
        "eval_min_reward",
        "eval_mean_reward",
        "eval_max_reward",
    },
    "dpo": _EVERY | _REPLIES | {"kl"} | _REWARDS | {f"eval_{name}" for name in _REWARDS},
    "ppo": _REPLIES | {"kl"} | set(METRICS),
}
# in report.json, of a policy whose recipe has a reward stage or an annotator
REPORTED = {"reward_score", "win_rate_vs_sft"}


def problems(stage: Stage) -> list[str]:
    """What is wrong with a stage's `expect`, before anything runs."""
    found = []
    for metric, expected in stage.expect.items():
        key, known = f"expect.{metric}", LOGGED.get(stage.method.name, set()) | REPORTED
        if expected.needs is not None:
            if expected.low is not None or expected.high is not None:
                found.append(
                    f"{key}.needs={expected.needs!r}, so nothing here is held against {key}.low and high; leave them out"
                )
            continue
        if metric not in known:
            found.append(
                f"{key} is not a metric of method={stage.method.name}{nearest(metric, known)}\n"
                f"  fix: a metric that the stage logs, or {key}.needs=<what measures it>"
            )
        if expected.low is None or expected.high is None or not expected.low <= expected.published <= expected.high:
            found.append(
                f"{key}: the band [{expected.low}, {expected.high}] must hold the published {expected.published}"
            )
        if expected.band not in ("ours", "source"):
            found.append(f"{key}.band={expected.band} is not one of ours, source: say whose band it is")
    return found


def measured(folder: Path, metric: str) -> float | None:
    """The value that a finished stage left: of its results, its last log line that has it, or the recipe's report."""
    files: list[Any] = [json.loads((folder / "results.json").read_text())]
    lines = folder / "metrics.jsonl"
    files += [json.loads(line) for line in reversed(lines.read_text().splitlines())] if lines.is_file() else []
    report = folder.parent / "report.json"
    files += [json.loads(report.read_text()).get(folder.name, {})] if report.is_file() else []
    return next((float(file[metric]) for file in files if isinstance(file.get(metric), int | float)), None)


def verdict(expected: Expected, value: float | None) -> str:
    """`reproduced`, `outside` (a number that is not a number is outside), or why it was not checked."""
    if expected.needs is not None:
        return f"not checked: needs {expected.needs}"
    if value is None:
        return "not run"
    assert expected.low is not None and expected.high is not None
    return "reproduced" if expected.low <= value <= expected.high else "outside"
