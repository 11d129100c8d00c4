"""A finished run as plain weights: its adapter merged into the very numbers that it was trained against."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf import files
from rlhf.config import Stage
from rlhf.errors import Refusal
from rlhf.methods import METHODS
from rlhf.models.base import load_base, merge
from rlhf.runs import record


def exportable(folder: Path, root: Path) -> Stage:
    """The stage of a finished run, to be computed with on the CPU in fp32.

    Raises a ConfigError or DataError for a run that is none, has not finished, or was trained on weights that are gone or others by
    now, and for a base in int8, whose rounding of activations no plain weights have.
    """
    stage = record.finished_stage(folder, root, reward=True)
    record.check_current(folder, stage)
    if stage.quantization.name == "int8":
        why = "multiplies rounded activations (LLM.int8), which is a function that no plain weights compute"
        fix = "train it with quantization=nf4 or quantization=none"
        raise Refusal("quantization", "int8", why, fix=fix)
    return replace(stage, hardware=replace(stage.hardware, device="cpu", devices=1, precision="fp32"))


def is_reward(stage: Stage) -> bool:
    return METHODS[stage.method.name].leaves == "reward"


def whole(stage: Stage, tokenizer: Any) -> Any:
    """The causal LM, or for a reward model the sequence classifier, in fp32 and without adapter or quantization.

    The base is quantized as in training, made whole again, and only then is the adapter merged into it: merged into the weights that
    were quantized it is another model, since NF4 rounds by 9% of a weight. No forward pass comes before (layers.plain_4bit_kernels).
    """
    reward, final = is_reward(stage), stage.path / files.FINAL
    if stage.adapter.name == "none":
        return load_base(stage, tokenizer, path=str(final), reward=reward).eval()
    return merge(load_base(stage, tokenizer, reward=reward), final, "run").eval()
