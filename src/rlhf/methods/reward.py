"""Reward model: the SFT model with a scalar head learns which of two replies people prefer.

loss = -log sigmoid(r(prompt, chosen) - r(prompt, rejected)), the Bradley-Terry likelihood of the ranking: only differences of
rewards are learned, so a small pull of the mean to zero fixes the level. Ouyang et al. 2022, arXiv:2203.02155.
"""

from typing import Any

from trl.trainer.reward_trainer import RewardTrainer

from rlhf.args import training_arguments
from rlhf.config import Stage
from rlhf.data.prepare import Prepared
from rlhf.models.load import load_base, trainable_kept_in_fp32, with_adapter


def build(stage: Stage, tokenizer: Any, data: Prepared) -> RewardTrainer:
    """A trainer that starts from the SFT weights with a new fp32 head."""
    args = training_arguments(stage, data.eval is not None, max_length=None)
    if stage.adapter.name == "none":
        model = load_base(stage, tokenizer, path=stage.method.start_from, reward=True)
    else:
        model = with_adapter(stage, load_base(stage, tokenizer, reward=True), stage.method.start_from, "SEQ_CLS")
    train, held_out = (_joined(split) for split in (data.train, data.eval))
    with trainable_kept_in_fp32(model):
        return RewardTrainer(model, args, train_dataset=train, eval_dataset=held_out, processing_class=tokenizer)


def _joined(split: Any) -> Any:
    """TRL's reward model takes prompt and reply as one sequence."""
    if split is None:
        return None
    sides = ("chosen_ids", "rejected_ids")
    joined = {side: [p + r for p, r in zip(split["prompt_ids"], split[side], strict=True)] for side in sides}
    return type(split).from_dict(joined)
