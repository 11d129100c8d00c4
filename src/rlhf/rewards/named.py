"""What `method.reward_model` or a judge names: checked before any weight is loaded, then loaded as scorers."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlhf.config import Stage
from rlhf.errors import Refusal, nearest
from rlhf.models.adapters import read_adapter_config
from rlhf.models.base import load_base, placement
from rlhf.models.checks import CONFIG
from rlhf.models.layers import plain_4bit_kernels
from rlhf.models.tokenizer import check_tokenizer, pretrained
from rlhf.rewards.functions import PREFIX, RULES, unknown_rule
from rlhf.rewards.scorers import FunctionScorer, TextScorer
from rlhf.shell import element

KEY, LABEL = "method.reward_model", "method.reward_label="


@dataclass(frozen=True)
class Named:
    """One reward: a `function`; an `adapter` for the shared base; a model that reads the policy's `ids`, because it has
    the same tokenizer and template and one label; or a model that reads `text` by `tokenizer` and scores by a label.
    """

    source: str
    kind: Literal["function", "adapter", "ids", "text"]
    tokenizer: Any = None
    label: int = 0


def named_rewards(stage: Stage, tokenizer: Any, rows: Any) -> list[Named]:
    """The rewards of a stage in the order of its configuration; reads configs and tokenizers, no weights.

    Raises:
        Refusal: something that is not there, does not fit the base, or has several labels and none chosen; a rule on
            rows that lack what it reads.
    """
    label = stage.method.reward_label
    found = [named_reward(source, stage, tokenizer, label) for source in stage.method.reward_models]
    for reward in found:
        check_columns(reward, rows, stage.dataset.path)
    if label is not None and not any(reward.kind == "text" for reward in found):
        why = "no reward model of this run has labels"
        raise Refusal("method.reward_label", label, why, fix="method.reward_label=null")
    return found


def check_columns(reward: Named, rows: Mapping[str, Sequence[str | None]], where: str, key: str = KEY) -> None:
    """Refuse rows that lack what a rule reads."""
    if reward.kind != "function":
        return
    column = RULES[reward.source.removeprefix(PREFIX)].reads
    if column is not None and any(value in ("", "null", None) for value in rows[column]):
        why = f"compares with `{column}`, which rows of {where} lack"
        raise Refusal(key, reward.source, why, fix="dataset.columns with a completion or messages, or another reward")


def named_reward(
    source: str, stage: Stage, tokenizer: Any, label: str | None, key: str = KEY, label_key: str = LABEL
) -> Named:
    """What one name stands for; messages call it `key`, and write `label_key` before a label."""
    if source.startswith(PREFIX):
        if wrong := unknown_rule(source, key):
            raise wrong
        return Named(source, "function")
    if (Path(source) / CONFIG).is_file():
        if stage.adapter.name == "none":
            fix = "adapter=lora, or a reward model trained with adapter=none"
            raise Refusal(key, source, "holds an adapter, which needs a shared base", fix=fix)
        read_adapter_config(Path(source), stage.model.path, key)
        check_tokenizer(Path(source), tokenizer, key)
        return Named(source, "adapter")
    return _classifier(source, tokenizer, label, key, label_key)


def _classifier(source: str, tokenizer: Any, chosen: str | None, key: str, label_key: str) -> Named:
    from transformers import AutoConfig, AutoTokenizer

    allowed = (f"a folder with {CONFIG}", "a sequence classifier with its tokenizer", f"{PREFIX}<name>")
    config, own = (pretrained(kind, source, key, allowed) for kind in (AutoConfig, AutoTokenizer))
    kinds = config.architectures or []
    if not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        fix = "a model for sequence classification, such as the `final` folder of a reward stage"
        raise Refusal(key, source, f"is a {', '.join(kinds) or 'model without a head'}, which does not score", fix=fix)
    labels = {str(name): int(index) for index, name in config.id2label.items()}
    if len(labels) > 1 and chosen not in labels:
        wrong = f"{label_key}{chosen} is none of them{nearest(chosen, labels)}"
        last = next(reversed(labels))
        text = last if label_key != LABEL else element(last)
        why = f"has {len(labels)} labels, and {'none is chosen' if chosen is None else wrong}"
        raise Refusal(key, source, why, allowed=list(labels)[:20], fix=shlex.quote(f"{label_key}{text}"))
    same = own.get_vocab() == tokenizer.get_vocab() and own.chat_template == tokenizer.chat_template
    if len(labels) == 1 and same:
        return Named(source, "ids")
    return Named(source, "text", own, labels.get(str(chosen), 0))


def load_scorer(reward: Named, stage: Stage, tokenizer: Any) -> Any:
    """What PPOTrainer takes as a reward model for anything but an adapter."""
    if reward.kind == "function":
        return FunctionScorer(RULES[reward.source.removeprefix(PREFIX)].score, tokenizer)
    if reward.kind == "ids":
        return load_base(stage, tokenizer, path=reward.source, reward=True)
    from transformers import AutoModelForSequenceClassification

    options = placement(stage)
    model = pretrained(AutoModelForSequenceClassification, reward.source, KEY, raised=OSError, **options).eval()
    plain_4bit_kernels(model)
    size = stage.hardware.micro_batch_size
    return TextScorer(model.requires_grad_(False), reward.tokenizer, tokenizer, reward.label, size)
