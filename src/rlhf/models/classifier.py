"""A text classifier from elsewhere as the reward of PPO: it reads texts with a tokenizer of its own."""

from collections.abc import Sequence
from typing import Any

import torch

from rlhf.config import Stage
from rlhf.errors import ConfigError, nearest
from rlhf.ppo.scoring import FunctionScorer

CHUNK = 32  # texts read at once


def classifier(stage: Stage, tokenizer: Any) -> FunctionScorer:
    """The logit that `method.classifier` gives to the class `method.label`, for prompt and reply as one text.

    Raises:
        ConfigError: the classifier can't be loaded, or has no such class.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    name, label = stage.method.classifier, stage.method.label
    try:
        model: Any = AutoModelForSequenceClassification.from_pretrained(name)
        reader: Any = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"method.classifier={name} can't be loaded: {str(error).splitlines()[0][:300]}\n"
            "  fix: check the name, `hf auth login` for a gated model, or method.classifier=<local folder>"
        ) from error
    labels = {text: index for index, text in model.config.id2label.items()}
    if label not in labels:
        raise ConfigError(
            f"method.label={label} is not a class of {name}{nearest(label, labels)}\n  it has: {', '.join(labels)}"
        )
    model = model.to(stage.hardware.device).eval()

    @torch.no_grad()
    def score(prompts: list[str], replies: list[str], rows: Sequence[dict[str, Any]]) -> list[float]:
        texts = [prompt + reply for prompt, reply in zip(prompts, replies, strict=True)]
        scores: list[float] = []
        for start in range(0, len(texts), CHUNK):
            batch = reader(texts[start : start + CHUNK], return_tensors="pt", padding=True, truncation=True)
            scores += model(**batch.to(model.device)).logits[:, labels[label]].float().tolist()
        return scores

    return FunctionScorer(score, tokenizer)
