"""Supervised fine-tuning: maximize the likelihood of the demonstrated replies.

The loss is the mean negative log-likelihood, in nats a token, of the assistant's tokens and the EOS after them; the prompt is not
scored. With text instead of dialogues (pretraining) every token is. Ouyang et al. 2022, arXiv:2203.02155.
"""

from typing import Any

from trl.trainer.sft_trainer import SFTTrainer

from rlhf.config import Stage
from rlhf.data.prepare import Prepared
from rlhf.methods.arguments import training_arguments
from rlhf.models.adapters import trainable_kept_in_fp32, with_adapter
from rlhf.models.base import load_base, load_whole
from rlhf.models.checks import check_packing


class TokenizedSFTTrainer(SFTTrainer):
    """TRL's trainer on rows that are tokenized and cut already; it only packs them."""

    def _prepare_dataset(self, dataset, processing_class, args, packing, *more):
        return super()._prepare_dataset(dataset, processing_class, args, packing, *more) if packing else dataset


def build(stage: Stage, tokenizer: Any, data: Prepared) -> SFTTrainer:
    """A trainer of a new adapter on the base, or of all weights with adapter=none."""
    args = training_arguments(stage, data.eval is not None, max_length=stage.dataset.max_length)
    if stage.adapter.name == "none":
        model = load_whole(stage, tokenizer)
    else:
        model = with_adapter(stage, load_base(stage, tokenizer), stage.method.start_from, "CAUSAL_LM")
    if args.packing or args.padding_free or args.eval_packing:
        check_packing(model)
    with trainable_kept_in_fp32(model):
        return TokenizedSFTTrainer(
            model, args, train_dataset=data.train, eval_dataset=data.eval, processing_class=tokenizer
        )
