"""Reward functions that a config can name, `method.reward_model=function:<name>`: plain Python on texts, one a rule."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from rlhf.errors import Refusal, nearest

PREFIX = "function:"

Texts = Sequence[str]
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Rule:
    """`score(prompts, replies, rows)` gives one number a reply; `reads` is the column that no row may lack, if there is one,
    `needs` a package that is no requirement of ours, as pip is told it.
    """

    score: Callable[[Texts, Texts, Rows], list[float]]
    reads: str | None
    needs: str | None = None


RULES: dict[str, Rule] = {}


def rule(reads: str | None = None, needs: str | None = None) -> Callable[[Any], Any]:
    """Registers the function below it under its own name."""

    def register(function: Any) -> Any:
        RULES[function.__name__] = Rule(function, reads, needs)
        return function

    return register


def unknown_rule(name: str, key: str) -> Refusal | None:
    """What to refuse in `key=function:<rule>`, if no rule has that name or what it needs is not installed."""
    rule = name.removeprefix(PREFIX)
    if not name.startswith(PREFIX):
        return None
    if rule in RULES:
        needs = RULES[rule].needs
        lacking = needs is not None and find_spec(needs.partition("==")[0]) is None
        return Refusal(key, name, f"needs the package {needs}", fix=f"pip install {needs}") if lacking else None
    return Refusal(key, name, f"not a function{nearest(rule, RULES)}", allowed=[PREFIX + rule for rule in RULES])


@rule(reads="reference")
def exact_match(prompts: Texts, replies: Texts, rows: Rows) -> list[float]:
    """1 for the reply that the row itself gives (`completion`, or the last turn of `messages`), else 0."""
    return [float(reply.strip() == row["reference"].strip()) for reply, row in zip(replies, rows, strict=True)]


@rule(reads="reference")
def last_number(prompts: Texts, replies: Texts, rows: Rows) -> list[float]:
    """1 if the last number of the reply is the last number of the row's own reply, else 0: the rule of GSM8K."""
    return [
        float((said := _last_number(reply)) is not None and said == _last_number(row["reference"]))
        for reply, row in zip(replies, rows, strict=True)
    ]


@rule(reads="facts")
def support(prompts: Texts, replies: Texts, rows: Rows) -> list[float]:
    """The true preference of the embedded dataset `support`, by the annotator that made its rankings."""
    from rlhf.support.annotator import score

    return [score(json.loads(row["facts"]), reply.strip()) for reply, row in zip(replies, rows, strict=True)]


@rule(needs="vaderSentiment==3.3.2")
def sentiment(prompts: Texts, replies: Texts, rows: Rows) -> list[float]:
    """How kind prompt and reply are together, -1 to 1, by the words of VADER's lexicon (Hutto and Gilbert 2014, ICWSM)."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()
    texts = [f"{prompt}{reply}" for prompt, reply in zip(prompts, replies, strict=True)]
    return [float(analyzer.polarity_scores(text)["compound"]) for text in texts]


def _last_number(text: str) -> float | None:
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    return float(found[-1].replace(",", "")) if found else None
