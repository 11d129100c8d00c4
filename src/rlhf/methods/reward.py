"""Reward model: the SFT model with a scalar head learns which of two replies people prefer.

loss = -log sigmoid(r(prompt, chosen) - r(prompt, rejected)), the Bradley-Terry likelihood of the ranking: only differences of
rewards are learned, so a small pull of the mean to zero fixes the level. Ouyang et al. 2022, arXiv:2203.02155.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_outputs import SequenceClassifierOutput
from trl.trainer.reward_trainer import DataCollatorForPreference, RewardTrainer

from rlhf.config import Stage
from rlhf.data.prepare import Prepared
from rlhf.generation.batches import seen
from rlhf.generation.rankings import Ranking, can_share, grouped, lay_out
from rlhf.methods.arguments import training_arguments
from rlhf.models.adapters import trainable_kept_in_fp32, with_adapter
from rlhf.models.attention import attend_where_seen
from rlhf.models.base import load_base, load_whole
from rlhf.models.layers import keep_inputs_once
from rlhf.models.roles import Role
from rlhf.models.shared import unwrap
from rlhf.parallel.trainer import WholeBatch


def build(stage: Stage, tokenizer: Any, data: Prepared) -> RewardTrainer:
    """A trainer that starts from the SFT weights with a new fp32 head."""
    args = training_arguments(stage, data.eval is not None, max_length=None)
    if stage.adapter.name == "none":
        model = load_whole(stage, tokenizer, reward=True)
    else:
        model = with_adapter(stage, load_base(stage, tokenizer, reward=True), stage.method.start_from, "SEQ_CLS")
    train, held_out = data.train, data.eval
    if stage.method.kwise:
        train, held_out = (split and type(split).from_list(grouped(split)) for split in (train, held_out))
    with trainable_kept_in_fp32(model):
        return trainer(model, args, tokenizer, train, held_out, longest=stage.dataset.max_length)


def trainer(model: Any, args: Any, tokenizer: Any, train: Any, held_out: Any, *, longest: int) -> RewardTrainer:
    """TRL's trainer on pairs or rankings of up to `longest` tokens a sequence."""
    role, kind, collator = _role(model), PairTrainer, PairCollator(tokenizer.pad_token_id)
    if "replies" in train.column_names:
        attend_where_seen(role.model)
        kind, collator = RankingTrainer, RankingCollator(role.filler(tokenizer.pad_token_id), can_share(role, longest))
    made = kind(model, args, collator, train, held_out, processing_class=tokenizer)
    if role.peft is not None:
        keep_inputs_once(role.peft)
    return made


def _role(model: Any) -> Role:
    peft, base, adapter = unwrap(model)
    return Role("reward", base, peft=peft, adapter=adapter, trained=True)


SIDES = ("chosen_ids", "rejected_ids")


def joined(row: dict[str, Any]) -> dict[str, Any]:
    """A pair as TRL's reward model takes it: prompt and reply are one sequence."""
    margin = {"margin": row["margin"] or 0.0} if "margin" in row else {}  # of a mixture some parts may have none
    return row | margin | {side: [*row["prompt_ids"], *row[side]] for side in SIDES}


class PairCollator(DataCollatorForPreference):
    """Joins prompt and replies batch by batch, so that the rows stay on disk as they are."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        return super().torch_call([joined(row) for row in examples])


class PairTrainer(WholeBatch, RewardTrainer):
    """TRL's trainer on rows that are tokenized already."""

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset

    def _set_signature_columns_if_needed(self):
        self._signature_columns = [
            "prompt_ids",
            *SIDES,
            "margin",
            "length",
        ]  # length: for train_sampling_strategy=group_by_length


@dataclass
class RankingCollator:
    """Rankings to a batch of their replies, with their prompts once (`share`) or each with its own, then one entry a pair.

    `input_ids` and, with `share`, `positions` and `segments` are `[rows, T]`; `rows` and `last` say where a reply ends; `chosen` and
    `rejected` number replies, `weight` is 1 / C(K, 2).
    """

    pad_token_id: int
    share: bool

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        made = lay_out([Ranking(row["prompt_ids"], row["replies"]) for row in rows], self.pad_token_id, self.share)
        batch: dict[str, Any] = {"chosen": [], "rejected": [], "weight": []}
        first = 0
        for row in rows:
            for side in ("chosen", "rejected"):
                batch[side] += [first + position for position in row[side]]
            batch["weight"] += [2 / (row["k"] * (row["k"] - 1))] * len(row["chosen"])
            first += len(row["replies"])
        shared = {} if made.segments is None else {"positions": made.positions, "segments": made.segments}
        places = {"input_ids": made.ids, "rows": torch.tensor(made.rows), "last": made.last}
        return places | shared | {name: torch.tensor(values) for name, values in batch.items()}


class RankingTrainer(WholeBatch, RewardTrainer):
    """The K-wise loss: all pairs of a prompt are one batch element, a pair counts 1 / C(K, 2), and each reply is read once.

    The mean over a batch is a weighted one, so that dropped ties don't shrink it: it equals the pairwise loss for K = 2, and
    ln 2 with a zeroed head. Ouyang et al. 2022, arXiv:2203.02155, equation 1: pairs of a prompt that are shuffled apart overfit.
    """

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset

    def _set_signature_columns_if_needed(self):
        self._signature_columns = ["prompt_ids", "replies", "chosen", "rejected", "k", "length"]

    def units(self, inputs):
        return float(inputs["weight"].sum())

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """TRL's metrics of all pairs, with their weighted loss."""
        sides, weight = torch.cat([inputs.pop("chosen"), inputs.pop("rejected")]), inputs.pop("weight")
        segments, role = inputs.get("segments"), _role(self.model)
        mask = None if segments is None else seen(segments)

        def each_pair(**_):
            with self.accelerator.autocast():
                hidden = role.hidden(inputs["input_ids"], mask, inputs.get("positions"))
                logits = role.model.score(hidden[inputs["rows"], inputs["last"]])
            return SequenceClassifierOutput(logits=logits.float()[sides])

        inputs["attention_mask"] = inputs["last"] + 1 if segments is None else segments >= 0  # whose sum TRL logs
        args: Any = self.args
        reads_once: Any = each_pair
        outputs: Any = RewardTrainer.compute_loss(self, reads_once, dict(inputs), return_outputs=True)[1]
        chosen, rejected = outputs.logits.squeeze(-1).chunk(2)
        loss = -torch.nn.functional.logsigmoid(chosen - rejected)
        loss += (args.center_rewards_coefficient or 0.0) * (chosen + rejected) ** 2
        loss = (weight * loss).sum() / (num_items_in_batch or weight.sum())
        return (loss, outputs) if return_outputs else loss
