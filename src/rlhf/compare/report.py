"""The content of a comparison's report.json, which its pages, pictures and conclusion are made from."""

from collections.abc import Iterable
from typing import Any, NotRequired, TypedDict

ORDER = ("dpo", "ppo", "best-of", "sft")  # the place of a policy in every table and picture, by how its name begins


class Choice(TypedDict):
    """The checkpoint that stands for an arm."""

    setting: float
    step: int


class Setup(TypedDict):
    """What was compared, on how many prompts, by whose score; for each arm the `key` that it varies and its `values`."""

    prompts: int
    seeds: list[int]
    gold: str
    proxy: str
    judge: str
    temperature: float
    arms: dict[str, dict[str, Any]]
    chosen: dict[str, Choice]
    chosen_on: str


class Fairness(TypedDict):
    """`what` the arms share and its `value`; in `what` they differ, and a text for each arm."""

    shared: list[dict[str, str]]
    differs: list[dict[str, str]]


class Checkpoint(TypedDict):
    """Means over the prompts of one policy and seed; KL in nats a reply, errors are standard errors, low to high 95%."""

    arm: str
    setting: float | None
    seed: int
    step: int
    kl: float
    kl_error: float
    gold: float
    gold_low: float
    gold_high: float
    proxy: float
    proxy_error: float
    length: float
    eos_rate: float
    last: bool


class AtKL(TypedDict):
    """Gold of both arms at one KL; the difference is PPO's less DPO's, with its 95% interval."""

    kl: float
    dpo: float
    ppo: float
    difference: float
    low: float
    high: float


class EqualLength(TypedDict):
    """`length_control.LengthControlled` in numbers."""

    rate: float
    low: float
    high: float
    overlap: float
    matched: int
    matched_rate: float | None


class Pair(TypedDict):
    """The win rate of `first` over `second`; `p_corrected` allows for the other pairs."""

    first: str
    second: str
    rate: float
    low: float
    high: float
    p: float
    wins: int
    ties: int
    losses: int
    p_corrected: float
    flip_rate: float
    abstained: int
    length_controlled: EqualLength
    verdict: str
    prompts_to_settle: int | None


class FittedLaw(TypedDict):
    """`estimators.Law` in numbers; `peak_kl` is None where the law has none within ten times what was reached."""

    kind: str
    alpha: float
    beta: float
    peak_kl: float | None
    furthest_kl: float
    residual: float
    turns: bool


class Fall(TypedDict):
    """Gold lost from the best checkpoint, which has this KL, to the last, with its 95% interval."""

    kl: float
    mean: float
    low: float
    high: float


class Peak(TypedDict):
    """Gold and KL of the best and of the last checkpoint."""

    gold_peak: float
    kl_at_peak: float
    gold_last: float
    kl_last: float
    last_over_peak: float | None


class Curve(Peak):
    """One setting of an arm, mean over seeds and prompts."""

    setting: float
    fall: Fall


class Best(Choice):
    """The chosen checkpoint: its gold where it was chosen, and on the other half of the prompts."""

    gold_chosen: float
    gold_reported: float


class Overoptimization(Peak):
    """The law fitted to an arm or to best-of-n, and why there is none; the other keys are those of trained arms."""

    law: FittedLaw | None
    law_note: str
    fall: NotRequired[Fall]
    settings: NotRequired[list[Curve]]
    best: NotRequired[Best]


class Cost(TypedDict):
    """What an arm's trials took; PPO's include its reward models."""

    arm: str
    trials: int
    seconds_a_trial: float
    seconds_reward_model: float
    seconds_all: float
    tokens_generated: int
    tokens_trained: int
    peak_memory_mb: float


class TrialAlert(TypedDict):
    """An alert of the monitor about one trial."""

    trial: str
    step: int
    level: str
    rule: str
    source: str
    text: str


class MeanGold(TypedDict):
    """Mean gold with its 95% interval."""

    gold: float
    low: float
    high: float


class Reply(TypedDict):
    """What a policy said, with both scores."""

    text: str
    gold: float
    proxy: float


class SideBySide(TypedDict):
    """The replies of all policies to one prompt."""

    prompt: str
    situation: str
    seed: int
    replies: dict[str, Reply]


class Report(TypedDict):
    """`behaviours` is by situation and policy, `overoptimization` by arm; a row of `failed` is `trial` and `why`."""

    recipe: str
    provenance: dict[str, Any]
    setup: Setup
    fairness: Fairness
    frontier: list[Checkpoint]
    equal_kl: list[AtKL]
    equal_kl_note: str
    win_rates: list[Pair]
    overoptimization: dict[str, Overoptimization]
    costs: list[Cost]
    dpo_with_ppo_time: str
    alerts: list[TrialAlert]
    behaviours: dict[str, dict[str, MeanGold]]
    replies: list[SideBySide]
    failed: list[dict[str, str]]
    conclusion: NotRequired[str]


def place(policy: str) -> int:
    """Its place in ORDER; behind all of them for a policy that nobody named."""
    return next((place for place, name in enumerate(ORDER) if policy.startswith(name)), len(ORDER))


def by_order(policies: Iterable[str]) -> list[str]:
    return sorted(policies, key=lambda policy: (place(policy), policy))


def title(policy: str) -> str:
    """How a policy is written for people: PPO for ppo; anything else as it is."""
    return policy.upper() if policy in ORDER else policy


def trained(report: Report) -> list[str]:
    """The arms that were trained, in the order of every table and picture."""
    return by_order({row["arm"] for row in report["frontier"]} - {"sft", "best-of-n"})
