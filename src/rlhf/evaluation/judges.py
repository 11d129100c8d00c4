"""Judges of replies: the dataset's annotator, a held-out reward model, or a chat model behind an endpoint.

A reply is a sample: texts `prompt` and `reply`, tokens `prompt_ids` and `ids` (EOS included), `facts`, and where the
dataset has them `messages` (JSON, as in its rows) and `reference`.
"""

import json
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from rlhf.config import Stage
from rlhf.errors import DataError, GuardStop, Refusal, nearest
from rlhf.evaluation.annotators import annotator
from rlhf.evaluation.judge_endpoint import EndpointJudge
from rlhf.evaluation.samples import Sample
from rlhf.evaluation.statistics import Judgements, judgements


class Judge(Protocol):
    """Scores replies, or says None where it can only compare; compares two replies to each prompt, in both orders."""

    name: str

    def scores(self, replies: Sequence[Sample]) -> list[float] | None: ...

    def compare(self, ours: Sequence[Sample], theirs: Sequence[Sample]) -> Judgements: ...


@dataclass
class AnnotatorJudge:
    """The true preference; scores closer than the annotator's own margin are ties."""

    name: str
    annotator: ModuleType

    def scores(self, replies: Sequence[Sample]) -> list[float]:
        return finite(self.name, [self.annotator.score(_facts(r, i), r["reply"]) for i, r in enumerate(replies)])

    def compare(self, ours: Sequence[Sample], theirs: Sequence[Sample]) -> Judgements:
        facts = [_facts(reply, i) for i, reply in enumerate(ours)]
        texts = ([reply["reply"] for reply in side] for side in (ours, theirs))
        return judgements(lambda i, a, b: float(self.annotator.prefer(facts[i], a, b)), *texts)


def _facts(reply: Sample, index: int) -> dict[str, str]:
    facts = reply.get("facts")
    if not facts:
        raise DataError(
            f"prompt {index} has no facts, which the annotator judges by: {reply['prompt'][:80]!r}\n"
            "  fix: rows with `facts`, or judge=reward: with a folder or hub id"
        )
    return facts


@dataclass
class RewardJudge:
    """A reward model or rule as PPO computes it; equal scores are ties.

    `reward` and `scorer` are what `rlhf.rewards.named` made of the name.
    """

    name: str
    reward: Any
    scorer: Any
    tokenizer: Any

    def scores(self, replies: Sequence[Sample]) -> list[float]:
        from rlhf.rewards.named import check_columns

        columns = {
            "messages": [reply.get("messages") or "null" for reply in replies],
            "reference": [reply.get("reference") or "" for reply in replies],
            "facts": [json.dumps(reply.get("facts")) for reply in replies],
        }
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        check_columns(self.reward, columns, "the samples", "judge")
        ids = [reply["ids"] if "ids" in reply else self._ids(reply["reply"]) for reply in replies]
        return finite(self.name, self.scorer([reply["prompt_ids"] for reply in replies], ids, rows).tolist())

    def compare(self, ours: Sequence[Sample], theirs: Sequence[Sample]) -> Judgements:
        pairs = zip(ours, theirs, self.scores(ours), self.scores(theirs), strict=True)
        # the same reply in two batches can differ by rounding
        outcomes: list[float | None] = [0.5 if a == b or _same(x, y) else float(a > b) for x, y, a, b in pairs]
        return Judgements(outcomes, outcomes)  # it reads one reply at a time, so there is no order

    def _ids(self, text: str) -> list[int]:
        """Tokens of a reply that nobody sampled."""
        return [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]


def _same(a: Sample, b: Sample) -> bool:
    return a.get("ids", a["reply"]) == b.get("ids", b["reply"])


# `annotator`, or `<kind>:<what>` as it is written, with who makes it of (name, what, stage, tokenizer, cache)
KINDS: dict[str, tuple[str, Callable[..., Judge]]] = {}


def kind(written: str) -> Callable[[Any], Any]:
    """Registers the function below it: it makes the judge that is `written` so."""

    def register(function: Any) -> Any:
        KINDS[written.partition(":")[0]] = (written, function)
        return function

    return register


def load_judge(name: str, stage: Stage, tokenizer: Any, cache: Path) -> Judge:
    """The judge `annotator`, `reward:<folder, hub id or function:rule>[#label]` or `openai:<model>`.

    An adapter of a reward stage sits on the stage's base. An endpoint keeps its answers in `cache`/judge.jsonl.

    Raises:
        Refusal: a name that means nothing, an annotator that the dataset lacks, a reward model that cannot be loaded
            or does not fit, an endpoint whose URL or key cannot work.
    """
    kind, colon, what = name.partition(":")
    written, make = KINDS.get(kind, (":", None))
    if make is None or not (bool(colon) == bool(what) == (":" in written)):
        allowed = [written for written, _ in KINDS.values()]
        raise Refusal("judge", name, f"is not known{nearest(kind, KINDS)}", allowed=allowed)
    return make(name, what, stage, tokenizer, cache)


@kind("annotator")
def _annotator_judge(name: str, what: str, stage: Stage, tokenizer: Any, cache: Path) -> AnnotatorJudge:
    known = annotator(stage.dataset.annotator)
    if known is None:
        why = f"nobody knows the true preference of {stage.dataset.path} (dataset.annotator=null)"
        fix = "judge=reward: with a reward model that neither arm trained on, or judge=openai: with a model"
        raise Refusal("judge", name, why, fix=fix)
    return AnnotatorJudge(name, known)


@kind("reward:<folder or hub id>")
def _reward_judge(name: str, what: str, stage: Stage, tokenizer: Any, cache: Path) -> RewardJudge:
    from rlhf.models.shared import load_roles, scalar_role
    from rlhf.rewards.named import load_scorer, named_reward
    from rlhf.rewards.scorers import scorer

    source, _, label = what.partition("#")
    try:
        reward = named_reward(source, stage, tokenizer, label or None, "judge", f"judge=reward:{source}#")
        if label and reward.kind != "text":
            raise Refusal("judge", name, "it has no labels to choose from", fix=shlex.quote(f"judge=reward:{source}"))
        if reward.kind == "adapter":
            role = load_roles(stage, tokenizer, {}, reward=Path(source))["reward"]
            return RewardJudge(name, reward, scorer(stage, tokenizer, role), tokenizer)
        loaded = load_scorer(reward, stage, tokenizer)
        if reward.kind == "ids":
            loaded = scorer(stage, tokenizer, scalar_role("reward", loaded.eval(), trained=False))
        return RewardJudge(name, reward, loaded, tokenizer)
    except Refusal as refusal:
        raise Refusal("judge", name, refusal.why, allowed=refusal.allowed, fix=refusal.fix) from refusal


@kind("openai:<model>")
def _endpoint_judge(name: str, what: str, stage: Stage, tokenizer: Any, cache: Path) -> EndpointJudge:
    return EndpointJudge(what, cache)


def finite(name: str, scores: Sequence[float]) -> list[float]:
    """The scores; raises GuardStop at the first that is not a number."""
    for index, score in enumerate(scores):
        if not math.isfinite(score):
            raise GuardStop(
                f"judge={name} scored {score} on prompt {index}; allowed: finite numbers\n"
                "  fix: another judge, or train this reward model again and watch its loss"
            )
    return list(scores)
