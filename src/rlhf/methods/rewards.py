"""What `method.reward_model` names: told apart and checked before any weight is loaded, then loaded as scorers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlhf.config import Stage
from rlhf.errors import ConfigError, nearest
from rlhf.models.load import load_base, placement
from rlhf.ppo.rules import PREFIX, RULES
from rlhf.ppo.scoring import FunctionScorer, TextScorer
from rlhf.ppo.shared import CONFIG, check_tokenizer, plain_4bit_kernels, read_adapter_config

KEY = "method.reward_model"


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
        ConfigError, ValueError: something that is not there, does not fit the base, or has several labels and none
            chosen; a rule on rows that lack what it reads.
    """
    found = [_named(stage, source, tokenizer, rows) for source in stage.method.reward_models]
    label = stage.method.reward_label
    if label is not None and not any(reward.kind == "text" for reward in found):
        raise ConfigError(
            f"method.reward_label={label}, but no reward model of this run has labels\n  fix: method.reward_label=null"
        )
    return found


def _named(stage: Stage, source: str, tokenizer: Any, rows: Any) -> Named:
    if source.startswith(PREFIX):
        column = RULES[source.removeprefix(PREFIX)].reads
        if any(value in ("", "null", None) for value in rows[column]):
            raise ConfigError(
                f"{KEY}={source} compares with `{column}`, which rows of {stage.dataset.path} lack\n"
                "  fix: dataset.columns with a completion or messages, or another reward"
            )
        return Named(source, "function")
    if (Path(source) / CONFIG).is_file():
        if stage.adapter.name == "none":
            raise ConfigError(
                f"{KEY}={source} holds an adapter, which needs a shared base\n"
                "  fix: adapter=lora, or a reward model trained with adapter=none"
            )
        read_adapter_config(Path(source), stage.model.path, KEY)
        check_tokenizer(Path(source), tokenizer, KEY)
        return Named(source, "adapter")
    return _classifier(stage, source, tokenizer)


def _classifier(stage: Stage, source: str, tokenizer: Any) -> Named:
    from transformers import AutoConfig, AutoTokenizer

    try:
        config: Any = AutoConfig.from_pretrained(source)
        own: Any = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{KEY}={source} can't be read: {str(error).splitlines()[0][:300]}\n"
            f"  allowed: a folder with {CONFIG}, a sequence classifier with its tokenizer, {PREFIX}<name>"
        ) from error
    kinds = config.architectures or []
    if not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise ConfigError(
            f"{KEY}={source} is a {', '.join(kinds) or 'model without a head'}, which does not score\n"
            "  fix: a model for sequence classification, such as the `final` folder of a reward stage"
        )
    labels, chosen = {str(name): int(index) for index, name in config.id2label.items()}, stage.method.reward_label
    if len(labels) > 1 and chosen not in labels:
        what = (
            "none is chosen"
            if chosen is None
            else f"method.reward_label={chosen} is none of them{nearest(chosen, labels)}"
        )
        raise ConfigError(
            f"{KEY}={source} has {len(labels)} labels ({', '.join(list(labels)[:20])}) and {what}\n"
            f"  fix: method.reward_label={next(reversed(labels))}"
        )
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

    model = AutoModelForSequenceClassification.from_pretrained(reward.source, **placement(stage)).eval()
    plain_4bit_kernels(model)
    size = stage.hardware.micro_batch_size
    return TextScorer(model.requires_grad_(False), reward.tokenizer, tokenizer, reward.label, size)
