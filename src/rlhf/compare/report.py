"""The content of a comparison's report.json, which its pages, pictures and conclusion are made from."""

from collections.abc import Iterable
from typing import Any, NotRequired, TypedDict

ORDER = ("dpo", "ppo", "best-of", "sft")  # the place of a policy in every table and picture, by how its name begins
Row = dict[str, Any]


class Report(TypedDict):
    """What was compared and what came out; the comments name the keys of each row.

    KL in nats a reply; `low` to `high` (`gold_low` to `gold_high`) is a 95% interval, `_error` a standard error.
    """

    recipe: str
    provenance: Row
    # prompts (their number), seeds, gold, proxy, judge, temperature; for each of `arms` the `key` that it varies and
    # its `values`, for each of `chosen` the `setting` and `step` that stand for it; chosen_on
    setup: Row
    # `shared`: `what` and its `value`; `differs`: `what` and a text for each arm
    fairness: dict[str, list[dict[str, str]]]
    # means over the prompts of one policy and seed: arm, setting (or None), seed, step, kl, kl_error, gold, gold_low,
    # gold_high, proxy, proxy_error, length, eos_rate, last
    frontier: list[Row]
    # gold of both arms at one KL: kl, dpo, ppo, difference (PPO's less DPO's), low, high
    equal_kl: list[Row]
    equal_kl_note: str
    # of `first` over `second`: rate, low, high, p, wins, ties, losses, p_corrected (for the other pairs), flip_rate,
    # abstained, length_controlled (`LengthControlled`: rate, low, high, overlap, matched, matched_rate or None),
    # verdict, prompts_to_settle (or None)
    win_rates: list[Row]
    # by arm: law (`estimators.Law`: kind, alpha, beta, peak_kl, furthest_kl, residual, turns; peak_kl is None where the
    # law has none within ten times what was reached) or None and law_note (why); gold_peak, kl_at_peak, gold_last,
    # kl_last, last_over_peak (or None) of the best and the last checkpoint. Of trained arms alone: fall (gold lost from
    # the best checkpoint, which has this kl, to the last: mean, low, high), settings (each setting's peak and fall, mean
    # over seeds and prompts), best (the chosen setting and step; gold_chosen where it was chosen, gold_reported on the
    # other half of the prompts)
    overoptimization: dict[str, Row]
    # of an arm's trials, PPO's with its reward models: arm, trials, seconds_a_trial, seconds_reward_model, seconds_all,
    # tokens_generated, tokens_trained, peak_memory_mb
    costs: list[Row]
    dpo_with_ppo_time: str
    # of the monitor: trial, step, level, rule, source, text
    alerts: list[Row]
    # by situation and policy: mean gold, low, high
    behaviours: dict[str, dict[str, Row]]
    # to one prompt: prompt, situation, seed, and for each policy of `replies` its text, gold, proxy
    replies: list[Row]
    # trial and why
    failed: list[dict[str, str]]
    # where learning rates were tried, with the first seed and on the prompts that choose: arm, learning_rate, gold and kl at its best
    # checkpoint, seconds, chosen
    tuning: NotRequired[list[Row]]
    conclusion: NotRequired[str]


def numbers(of: object, *keys: str) -> Row:
    """Attributes of a result as keys of a row."""
    return {key: getattr(of, key) for key in keys}


def place(policy: str) -> int:
    """Its place in ORDER; behind all of them for a policy that nobody named."""
    return next((place for place, name in enumerate(ORDER) if policy.startswith(name)), len(ORDER))


def by_order(policies: Iterable[str]) -> list[str]:
    return sorted(policies, key=lambda policy: (place(policy), policy))


def title(policy: str) -> str:
    """How a policy is written for people: PPO for ppo; anything else as it is."""
    return policy.upper() if policy in ORDER else policy


def policies(report: Report) -> list[str]:
    """Those whose gold is known by situation, in that order."""
    return by_order({policy for golds in report["behaviours"].values() for policy in golds})


def trained(report: Report) -> list[str]:
    """The arms that were trained, in the order of every table and picture."""
    return by_order({row["arm"] for row in report["frontier"]} - {"sft", "best-of-n"})
