"""Supervised fine-tuning: maximize the likelihood of the demonstrated replies.

The loss is the mean negative log-likelihood, in nats a token, of the assistant's tokens and the EOS after them; the prompt is not
scored. With text instead of dialogues (pretraining) every token is. Ouyang et al. 2022, arXiv:2203.02155.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from trl.trainer.sft_trainer import SFTTrainer

from rlhf.config import Stage
from rlhf.data.prepare import Prepared
from rlhf.errors import Refusal
from rlhf.generation.batches import seen
from rlhf.generation.logprobs import Looked, tile, token_logprobs
from rlhf.generation.packing import IGNORED, lay_out
from rlhf.generation.rankings import can_share
from rlhf.methods import METHODS
from rlhf.methods.arguments import training_arguments
from rlhf.models.adapters import trainable_kept_in_fp32, with_adapter
from rlhf.models.attention import attend_where_seen
from rlhf.models.base import load_base, load_whole
from rlhf.models.checks import check_packing
from rlhf.models.layers import keep_inputs_once
from rlhf.models.roles import Role
from rlhf.models.shared import unwrap


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
        return trainer(model, args, tokenizer, data.train, data.eval)


def trainer(model: Any, args: Any, tokenizer: Any, train: Any, held_out: Any = None) -> SFTTrainer:
    """TRL's trainer on tokenized rows of up to `args.max_length` tokens: by our pass, or by TRL's own where that is asked for."""
    rows = {"train_dataset": train, "eval_dataset": held_out, "processing_class": tokenizer}
    peft, base, adapter = unwrap(model)
    policy = Role("policy", base, peft=peft, adapter=adapter, trained=True)
    if _trls(policy, args):
        return TokenizedSFTTrainer(model, args, **rows)
    attend_where_seen(base)
    share = can_share(policy, args.max_length)
    made = LeanSFTTrainer(model, args, **rows)
    made.policy, made.share = policy, share
    if peft is not None:
        keep_inputs_once(peft)
    return made


def _trls(policy: Role, args: Any) -> bool:
    """Whether TRL's own pass is needed: for what its arguments ask, scaled logits (Cohere, Granite), or the loss of a router."""
    row = METHODS["sft"]
    if any(getattr(args, name) not in (None, False, row.defaults.get(name)) for name in row.trls):
        return True
    try:
        policy.check_lm_head()
    except (Refusal, AttributeError):  # or a model that keeps its layers elsewhere
        return True
    return getattr(policy.model.config.get_text_config(), "output_router_logits", None) is not None


class TokenizedSFTTrainer(SFTTrainer):
    """TRL's trainer on rows that are tokenized and cut already; it only packs them."""

    def _prepare_dataset(self, dataset, processing_class, args, packing, *more):
        return super()._prepare_dataset(dataset, processing_class, args, packing, *more) if packing else dataset


class Read(dict):
    """What TRL takes from a model's output, by name."""

    __getattr__ = dict.__getitem__


class LeanSFTTrainer(TokenizedSFTTrainer):
    """TRL's trainer and metrics on log-probabilities of the learned tokens alone, in chunks (rlhf.generation.logprobs), of rows laid out
    without the padding of TRL's micro-batches (rlhf.generation.packing): the loss is the mean over the tokens of a batch either way."""

    policy: Role
    share: bool

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.model_accepts_loss_kwargs = True  # ours counts the tokens of the whole batch, whatever the model can

    def get_batch_samples(self, *given):
        batches, tokens = super().get_batch_samples(*given)
        tokenizer: Any = self.processing_class
        return lay_out(batches, self.policy.filler(tokenizer.pad_token_id), self.share) if batches else [], tokens

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        weight, looked = inputs.pop("weight", None), {}
        reads: Any = partial(self._read, looked)
        found = super().compute_loss(reads, inputs, return_outputs, num_items_in_batch)
        if weight is not None and looked:  # the means over TRL's own micro-batches
            of_tokens = weight[:, 1:][inputs["labels"][:, 1:] != IGNORED]
            logged = self._metrics["train"]
            logged["entropy"][-1], _, logged["mean_token_accuracy"][-1] = (of_tokens @ _each(looked)).tolist()
        return found

    def _read(self, looked: Looked, input_ids: Tensor, labels: Any = None, **given: Any) -> Read:
        if labels is None:  # TRL 1.16 asks for logits that nobody reads
            return Read(logits=None)
        learned, segments, autocast = labels[:, 1:] != IGNORED, given.get("segments"), self.accelerator.autocast
        mask = None if segments is None else seen(segments)
        with autocast():  # pyright: ignore[reportGeneralTypeIssues]
            states = self.policy.hidden(input_ids, mask, given.get("positions"))[:, :-1][learned]
            head, frozen = self.policy.logits_of(1.0, ()), self.policy.frozen_lm_head()
            chosen, chunk = labels[:, 1:][learned], tile(self.policy, METHODS["sft"].chunk)
            logprobs = token_logprobs(states, chosen, head, chunk=chunk, frozen_head=frozen, looked=looked)
        logprobs = torch.cat([logprobs, states[:0].sum()[None]])  # a slope of 0 where no token is learned
        count, tokens = learned.sum(), given.get("num_items_in_batch")
        loss = -logprobs.sum() / (count.clamp(min=1) if tokens is None else tokens)
        entropy, _, hit = _each(looked).unbind(-1) if looked else torch.zeros(3, 0, device=labels.device)
        # as TRL 1.12 names them, and as 1.15 and later do
        found = {"num_valid_tokens": count, "entropy_sum": entropy.sum(), "num_correct_tokens": hit.sum()}
        found |= {"log_probs": logprobs, "label_mask": learned, "entropy": entropy, "is_top1": hit}
        return Read(found, loss=loss, aux_loss=None)


def _each(looked: Any) -> Tensor:
    """`look` at each learned token, `[N, 3]`."""
    return torch.cat([looked[start] for start in sorted(looked)])
