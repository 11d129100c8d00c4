"""Direct preference optimization: raise the preferred reply's likelihood over the other's, relative to the reference.

loss = -log sigmoid(beta * (log pi/ref (chosen) - log pi/ref (rejected))): the policy is its own reward model, and no reply is
sampled. It starts at ln 2, since policy and reference are the same. Rafailov et al. 2023, arXiv:2305.18290.
"""

from typing import Any

from trl.trainer.dpo_trainer import DPOTrainer

from rlhf.config import Stage
from rlhf.data.prepare import Prepared
from rlhf.generation.rankings import grouped
from rlhf.methods.arguments import training_arguments
from rlhf.methods.dpo_once import trainer
from rlhf.models.adapters import trainable_kept_in_fp32, with_adapter
from rlhf.models.base import load_base, load_whole


def build(stage: Stage, tokenizer: Any, data: Prepared) -> DPOTrainer:
    """A trainer that starts from the SFT weights; TRL keeps a frozen copy of the adapter as the reference (`ref`).

    With adapter=none the reference is a second model in memory.
    """
    args = training_arguments(stage, data.eval is not None, max_length=None)
    reference = None
    if stage.adapter.name == "none":
        model, reference = (load_whole(stage, tokenizer) for _ in range(2))
    else:
        model = with_adapter(stage, load_base(stage, tokenizer), stage.method.start_from, "CAUSAL_LM")
    train, held_out = data.train, data.eval
    if stage.method.kwise:
        train, held_out = (split and type(split).from_list(grouped(split)) for split in (train, held_out))
    with trainable_kept_in_fp32(model):
        return trainer(model, reference, args, tokenizer, train, held_out, longest=stage.dataset.max_length)
