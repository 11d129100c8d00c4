"""The reward-hacking monitor: fed with metrics and replies step by step, it says when a reward is being gamed.

It knows no trainer and no file, so the same object serves PPO and DPO while they train and finished runs afterwards.
The rules are `conf/monitor/`: each is a list of conditions that must all hold, for `patience` points in a row.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rlhf.config import Monitor as Settings
from rlhf.errors import ConfigError, nearest
from rlhf.evaluation.metrics import correlation
from rlhf.evaluation.samples import Sample
from rlhf.monitor.signals import SIGNALS, logged_signals, reply_signals

LEVELS = ("off", "warn", "stop")
MOST, FEWEST = 8, 4  # points over which reward and gold are compared: the last 8, from the fourth on
CONDITION = re.compile(r"(\w+) *([<>]) *(?:start *([+-]) *(\d+\.?\d*)|(-?\d+\.?\d*)( *\* *start)?)")


class Condition(NamedTuple):
    """`signal > start * times + plus`, or `<`."""

    signal: str
    above: bool
    times: float
    plus: float

    def limit(self, start: float) -> float:
        return start * self.times + self.plus

    def holds(self, value: float, start: float) -> bool:
        return value > self.limit(start) if self.above else value < self.limit(start)


@dataclass(frozen=True)
class Alert:
    """A rule that began to hold. `source` is `log` or `replies`; `numbers` is (signal, value, `>` or `<`, limit)."""

    step: int
    rule: str
    level: str
    source: str
    numbers: tuple[tuple[str, float, str, float], ...]
    advice: str

    def __str__(self) -> str:
        numbers = ", ".join(f"{signal} {value:.3g} {sign} {limit:.3g}" for signal, value, sign, limit in self.numbers)
        return f"step {self.step}: {self.level}: {self.rule.replace('_', ' ')} ({numbers}): {self.advice}"


class Monitor:
    """Raises ConfigError, naming the rule, for settings that make no sense.

    `beta` is DPO's; `reward_top` the 99th percentile of the reward model's held-out scores, where it is known.
    A run that goes on after an interruption feeds a new monitor with the lines it has already written.
    """

    def __init__(self, settings: Settings, beta: float | None = None, reward_top: float | None = None) -> None:
        wrong = problems(settings)
        if wrong:
            raise ConfigError("\n".join(wrong))
        self.rules = {name: rule for name, rule in settings.rules.items() if rule.level != "off"}
        self.conditions = {name: [parse(text) for text in rule.when] for name, rule in self.rules.items()}
        self.beta, self.reward_top = beta, reward_top
        self.series = {source: Series(settings.window) for source in ("log", "replies")}
        self.held = {(source, name): 0 for source in self.series for name in self.rules}

    def update(self, step: int, metrics: Mapping[str, float], samples: Sequence[Sample] = ()) -> list[Alert]:
        """What began to be wrong at this step. The first metrics and the first samples are the start that the rules
        compare with: those of the SFT model. A rule alerts again only after it has stopped holding.
        """
        seen = {"log": logged_signals(metrics, self.beta)}
        if samples:
            seen["replies"] = reply_signals(samples, self.reward_top)
        alerts = []
        for source, signals in seen.items():
            if signals:
                series = self.series[source]
                series.add(signals, len(samples))
                alerts += [alert for name in self.rules if (alert := self._alert(step, source, series, name))]
        return alerts

    def _alert(self, step: int, source: str, series: "Series", name: str) -> Alert | None:
        conditions, now = self.conditions[name], series.now
        if len(series.points) < 2 or not all(c.signal in now for c in conditions):
            return None
        starts = [series.start.get(c.signal, 0.0) for c in conditions]
        holds = all(c.holds(now[c.signal], start) for c, start in zip(conditions, starts, strict=True))
        self.held[source, name] = self.held[source, name] + 1 if holds else 0
        rule = self.rules[name]
        if self.held[source, name] != rule.patience:
            return None
        numbers = tuple(
            (c.signal, now[c.signal], ">" if c.above else "<", c.limit(s))
            for c, s in zip(conditions, starts, strict=True)
        )
        return Alert(step, name, rule.level, source, numbers, rule.advice)


class Series:
    """Points of one source; `now` has the mean of each signal over the last `window` points, and what follows from history."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.points: list[dict[str, float]] = []
        self.smooth: list[dict[str, float]] = []
        self.start: dict[str, float] = {}

    @property
    def now(self) -> dict[str, float]:
        return self.smooth[-1]

    def add(self, signals: dict[str, float], replies: int) -> None:
        self.points.append(signals)
        self.start = signals | self.start
        recent = self.points[-self.window :]
        smooth = {name: float(np.mean([p[name] for p in recent if name in p])) for name in signals}
        self.smooth.append(smooth)
        smooth |= self._history(smooth, len(recent), replies)

    def _history(self, smooth: dict[str, float], recent: int, replies: int) -> dict[str, float]:
        signals, start = {}, self.start
        if start.get("reward_std") and "reward_score" in smooth:
            signals["reward_gain"] = (smooth["reward_score"] - start["reward_score"]) / start["reward_std"]
        if start.get("gold_std") and "gold_score" in smooth:
            fall = max(p["gold_score"] for p in self.smooth if "gold_score" in p) - smooth["gold_score"]
            error = start["gold_std"] * (2 / (replies * recent)) ** 0.5
            signals |= {"gold_fall": fall / start["gold_std"], "gold_fall_errors": fall / error}
        both = [p for p in self.points if {"reward_score", "gold_score"} <= set(p)][-MOST:]
        if len(both) >= FEWEST:
            signals["agreement"] = spearman([p["reward_score"] for p in both], [p["gold_score"] for p in both])
        before = self.smooth[-1 - self.window].get("kl", 0.0) if len(self.smooth) > self.window else 0.0
        if "kl" in smooth and before > 0:
            signals["kl_growth"] = smooth["kl"] / before
        return signals


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation; 0 where one of them does not vary."""
    ranks = []
    for values in (a, b):
        _, place, count = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(count) - (count - 1) / 2)[place])  # equal values share their mean rank
    return correlation(*ranks)


def parse(text: str) -> Condition:
    """`length > 1.5 * start`, `empty > start + 0.2`, `kl_k1 < -1`; raises ValueError for anything else."""
    match = CONDITION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not `signal > number`, `signal < number * start` or `signal > start + number`")
    signal, sign, direction, shift, number, of_start = match.groups()
    if signal not in SIGNALS:
        raise ValueError(f"{signal} is not a signal{nearest(signal, SIGNALS)}\n  signals: {', '.join(SIGNALS)}")
    if direction:
        return Condition(signal, sign == ">", 1.0, float(direction + shift))
    return Condition(signal, sign == ">", float(number) if of_start else 0.0, 0.0 if of_start else float(number))


def problems(settings: Settings) -> list[str]:
    """Everything about the settings that cannot work, a line or two each."""
    wrong = [] if settings.window >= 1 else [f"monitor.window={settings.window} must be at least 1"]
    for name, rule in settings.rules.items():
        key = f"monitor.rules.{name}"
        if rule.level not in LEVELS:
            wrong.append(f"{key}.level={rule.level} is not one of {', '.join(LEVELS)}{nearest(rule.level, LEVELS)}")
        if rule.patience < 1:
            wrong.append(f"{key}.patience={rule.patience} must be at least 1")
        if not rule.when:
            wrong.append(f"{key}.when is empty, so the rule would always hold\n  fix: {key}.level=off")
        for text in rule.when:
            try:
                parse(text)
            except ValueError as error:
                wrong.append(f"{key}.when: {error}")
    return wrong
