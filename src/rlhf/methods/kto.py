"""Kahneman-Tversky optimization: a reply with a thumb up is to gain on what the policy gains anywhere, one with a thumb down to lose.

r = log pi/ref (reply), z = KL(pi || ref), estimated from replies to other prompts of the same forward pass, without a gradient.
loss = mean of weight_up * (1 - sigmoid(beta * (r - z))) over thumbs up and weight_down * (1 - sigmoid(beta * (z - r))) over
thumbs down. It starts at 1/2, since policy and reference are the same. Ethayarajh et al. 2024, arXiv:2402.01306, equations 7 and 8.
"""

from typing import Any

from trl.trainer.kto_trainer import KTOTrainer

from rlhf.config import Stage
from rlhf.data.prepare import Prepared
from rlhf.methods.arguments import training_arguments
from rlhf.models.adapters import trainable_kept_in_fp32, with_adapter
from rlhf.models.base import load_base, load_whole
from rlhf.parallel.trainer import WholeBatch


class TokenizedKTOTrainer(WholeBatch, KTOTrainer):
    """TRL's trainer on rows that are tokenized already: the same ids as SFT and DPO see, in an order drawn from the seed.

    TRL 1.12 takes rows as they stand, in each pass over them, for a reply to be read after the prompt of its known neighbour too. Pairs
    that it takes apart are a thousand thumbs up and then a thousand down, and a last row alone is its own neighbour.
    """

    def _prepare_dataset(self, dataset: Any, processing_class, args, dataset_name):
        dataset = dataset.shuffle(seed=args.seed)  # both replies of a pair have one prompt, and nothing is mismatched
        if not self.calculate_KL:
            return dataset
        last: list[list[int]] = []  # a forward pass of one row takes its reply from the pass before

        def mismatched(rows):
            replies = rows["completion_ids"]
            others = [*(replies[-1:] if len(replies) > 1 else last or replies), *replies[:-1]]
            last[:] = replies[-1:]
            return {"KL_completion_ids": others}

        return dataset.map(
            mismatched, batched=True, batch_size=args.per_device_train_batch_size, load_from_cache_file=False
        )

    def _set_signature_columns_if_needed(self):
        if self._signature_columns is None:
            super()._set_signature_columns_if_needed()
            self._signature_columns.append("length")  # for train_sampling_strategy=group_by_length, without KL


def build(stage: Stage, tokenizer: Any, data: Prepared) -> KTOTrainer:
    """A trainer that starts from the SFT weights; TRL keeps a frozen copy of the adapter as the reference (`ref`).

    With adapter=none the reference is a second model in memory.
    """
    args = training_arguments(stage, data.eval is not None, max_length=None)
    reference = None
    if stage.adapter.name == "none":
        model, reference = (load_whole(stage, tokenizer) for _ in range(2))
    else:
        model = with_adapter(stage, load_base(stage, tokenizer), stage.method.start_from, "CAUSAL_LM")
    with trainable_kept_in_fp32(model):
        return TokenizedKTOTrainer(
            model, reference, args, train_dataset=data.train, eval_dataset=data.eval, processing_class=tokenizer
        )
