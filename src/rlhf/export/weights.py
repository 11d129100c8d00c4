"""A finished run as plain weights: its adapter merged into the very numbers that it was trained against."""

from typing import Any

from rlhf import files
from rlhf.config import Stage
from rlhf.export.refuse import is_reward
from rlhf.models.base import load_base, merge


def whole(stage: Stage, tokenizer: Any) -> Any:
    """The causal LM, or for a reward model the sequence classifier, in fp32 and without adapter or quantization.

    The base is quantized as in training, made whole again, and only then is the adapter merged into it: merged into the weights that
    were quantized it is another model, since NF4 rounds by 9% of a weight. No forward pass comes before (layers.plain_4bit_kernels).
    """
    reward, final = is_reward(stage), stage.path / files.FINAL
    if stage.adapter.name == "none":
        return load_base(stage, tokenizer, path=str(final), reward=reward).eval()
    return merge(load_base(stage, tokenizer, reward=reward), final, "run").eval()
