"""DPO by TRL's trainer and losses, where each reply is read once, beside the others of its prompt.

TRL reads the prompt with each reply of each pair, and the reference again in every place: a ranking of four is 12 rows of 192 tokens
where 64 + 4 * 128 have something to say.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.utils import hash_module

from rlhf.data import store
from rlhf.errors import Refusal
from rlhf.generation.batches import MicroBatch
from rlhf.generation.logprobs import Forward, tile
from rlhf.generation.rankings import Ranking, can_share, grouped, lay_out
from rlhf.methods import METHODS
from rlhf.models.attention import attend_where_seen
from rlhf.models.layers import keep_inputs_once
from rlhf.models.roles import Role
from rlhf.models.shared import unwrap
from rlhf.parallel import ranks
from rlhf.parallel.sharding import gathered, is_sharded
from rlhf.parallel.trainer import WholeBatch


def trainer(
    model: Any, reference: Any, args: Any, tokenizer: Any, train: Any, held_out: Any = None, *, longest: int
) -> DPOTrainer:
    """TRL's trainer on pairs or rankings of up to `longest` tokens a sequence."""
    peft, base, adapter = unwrap(model)
    policy = Role("policy", base, peft=peft, adapter=adapter)
    attend_where_seen(base)
    if why := _needs_logits(policy, args):
        if "replies" in train.column_names:
            raise Refusal("method.kwise", "true", why, fix="method.kwise=false")
        return TokenizedDPOTrainer(model, reference, args, None, train, held_out, processing_class=tokenizer)
    collator = SidesCollator(policy.filler(tokenizer.pad_token_id), can_share(policy, longest))
    made = SharedDPOTrainer(model, reference, args, collator, train, held_out, processing_class=tokenizer)
    if peft is not None:
        keep_inputs_once(peft)
    return made


def _needs_logits(policy: Role, args: Any) -> str:
    """Why a loss needs TRL's logits of whole sequences; empty where log-probabilities of replies are enough."""
    if args.use_weighting:
        return "use_weighting reads the logits of whole sequences"
    try:
        policy.check_lm_head()
    except Refusal as error:  # scaled logits, as of Cohere and Granite
        return error.why
    return ""


class TokenizedDPOTrainer(WholeBatch, DPOTrainer):
    """TRL's trainer on rows that are tokenized already: the same ids as the reward model sees."""

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset

    def _set_signature_columns_if_needed(self):
        if self._signature_columns is None:
            super()._set_signature_columns_if_needed()
            self._signature_columns.append("length")  # for train_sampling_strategy=group_by_length


@dataclass
class SidesCollator:
    """Pairs, or rankings, to one micro-batch of their different replies; `sides` `[2, pairs]` are the numbers of chosen and rejected."""

    pad_id: int
    share: bool

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        found, sides, first = rows if "replies" in rows[0] else grouped(rows), ([], []), 0
        for row in found:
            for side, name in zip(sides, ("chosen", "rejected"), strict=True):
                side += [first + number for number in row[name]]
            first += len(row["replies"])
        batch = lay_out([Ranking(row["prompt_ids"], row["replies"]) for row in found], self.pad_id, self.share)
        scored = [value for row in found for value in row.get("reference", [])]
        lengths = [len(row["prompt_ids"]) + len(reply) for row in found for reply in row["replies"]]
        tensors = {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}
        tensors["input_ids"] = tensors.pop("ids")
        tensors |= {"reference": torch.tensor(scored)} if scored else {}
        return tensors | {"sides": torch.tensor(sides), "lengths": torch.tensor(lengths)}


class SharedDPOTrainer(TokenizedDPOTrainer):
    """TRL's trainer and losses on log-probabilities that are computed once for each reply, beside the others of its prompt.

    TRL reads logits, or since 1.15 log-probabilities. It is given two logits for each token, of which its softmax makes the same
    probability again; so a loss_type is TRL's own code, whatever it does with log-probabilities. What TRL logs of logits over the
    vocabulary is put in afterwards.
    """

    means: tuple[float, float] | None = None  # pairs and chosen tokens of a micro-batch, in the mean over its batch

    def __init__(self, model: Any, reference: Any, args: Any, collator: Any, *rows: Any, **named: Any) -> None:
        peft, base, adapter = unwrap(model)
        policy = Role("policy", base, peft=peft, adapter=adapter, trained=True)
        self.roles = policy, Role("reference", reference or base, peft=peft, adapter="ref" if peft else None)
        super().__init__(model, reference, args, collator, *rows, **named)
        self.precompute_ref_logps = True  # TRL finds them in what `_compute_loss` hands it

    def _set_signature_columns_if_needed(self):
        self._signature_columns = ["prompt_ids", "chosen_ids", "rejected_ids", "ranking", "k", "length"]
        self._signature_columns += ["replies", "chosen", "rejected", "reference"]

    def units(self, inputs):
        return inputs["sides"].shape[1]

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, pairs = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.means = pairs, sum(map(_chosen_tokens, batches)) / max(1, len(batches))
        return batches, pairs

    def _compute_loss(self, model, inputs, return_outputs):
        batch, sides, looked = _batch(inputs), inputs["sides"].flatten(), {}
        forward = self._forward()
        with self.roles[0].active():
            ours = _table(forward.logprobs(self.roles[0], batch, looked), batch)[sides]
        mask = _table(torch.ones_like(batch.target), batch)[sides]
        pairs = {"input_ids": mask.new_zeros(mask.shape[0], mask.shape[1] + 1), "completion_mask": _behind_one(mask)}
        pairs["attention_mask"] = mask.new_ones(int(inputs["lengths"][sides].sum()))  # whose sum TRL logs
        pairs["ref_chosen_logps"], pairs["ref_rejected_logps"] = self._reference(inputs, batch, sides, mask).chunk(2)
        later = torch.zeros_like(ours, requires_grad=False)
        outputs = SimpleNamespace(logits=_two_logits(ours), log_probs=ours, entropy=later, mean_logits=later)
        outputs.is_top1 = later.bool()
        loss = super()._compute_loss(lambda **_: outputs, pairs, False)
        trained: Any = self.model
        if (
            self.means and trained.training and "sft" in self.loss_types
        ):  # a mean over tokens: each token of the batch counts once, as each pair does
            chosen = slice(0, len(ours) // 2)
            tokens, pairs = mask[chosen].sum() / self.means[1], self.units(inputs) / self.means[0]
            weights: Any = self.loss_weights
            weight = weights[self.loss_types.index("sft")]
            loss = loss - weight * (tokens / pairs - 1) * ours[chosen].sum() / mask[chosen].sum()
        logged = self._metrics["train" if trained.training else "eval"]
        for name, value in _told(torch.cat([looked[start] for start in sorted(looked)]), batch, sides):
            logged[name][-1] = value
        return (loss, outputs) if return_outputs else loss

    def _forward(self) -> Forward:
        autocast: Any = self.accelerator.autocast
        return Forward(1.0, (), tile(self.roles[0], METHODS["dpo"].chunk), autocast)

    def _reference(self, inputs: dict[str, Tensor], batch: MicroBatch, sides: Tensor, mask: Tensor) -> Tensor:
        """Log-probabilities of the replies of the pairs under the reference, `[2 pairs]`; in LD-DPO a token behind the end of the
        shorter reply of a pair counts `ld_alpha`."""
        if "reference" in inputs:
            return inputs["reference"][sides]
        with torch.no_grad(), self.roles[1].active():
            tokens = _table(self._forward().logprobs(self.roles[1], batch), batch)[sides]
        if self.ld_alpha is not None:
            chosen, rejected = mask.chunk(2)
            tokens = tokens * torch.where(torch.cat([chosen * rejected] * 2) > 0, 1.0, self.ld_alpha)
        return tokens.sum(1)

    def _precompute_ref_logps(self, dataset, name, batch_size):
        """Rows with `reference`, the log-probability of each of their replies before training: each reply is read once, and what was
        computed is found again by the tokens and the weights, by another run too."""
        args: Any = self.args
        if self.ld_alpha is not None or not args.precompute_ref_log_probs:
            return dataset  # asked beside the policy
        found: list[Any] = list(dataset) if "replies" in dataset.column_names else grouped(dataset)
        weights: Any = self.roles[1].model if self.ref_model else self.model
        with gathered(weights):  # which others hold parts of
            key = ranks.from_main(store.key(hash_module(weights), self.accelerator.mixed_precision, found))
        file = store.cache() / f"reference-{key}.npy"
        if ranks.from_main(file.is_file()):
            flat: Any = ranks.from_main(None if ranks.rank() else np.load(file, allow_pickle=False).tolist())
        else:
            pieces = [found[start : start + batch_size] for start in range(0, len(found), batch_size)]
            uneven = -len(pieces) % ranks.size() if is_sharded(weights) else 0  # all ranks gather its layers together
            scored = ranks.gather([self._scores(piece) for piece in ranks.share(pieces + pieces[:1] * uneven)])
            flat = [value for place in range(len(pieces)) for value in scored[ranks.owner(place)][place // len(scored)]]
            if not ranks.rank():
                file.parent.mkdir(parents=True, exist_ok=True)
                with NamedTemporaryFile(dir=file.parent, delete=False) as partial:
                    np.save(partial, np.array(flat, np.float32))
                Path(partial.name).rename(file)
        sums = {}
        for ranking in found:
            for reply in ranking["replies"]:
                sums[(ranking["ranking"], *ranking["prompt_ids"], -1, *reply)] = flat[len(sums)]

        def of(row: dict[str, Any]) -> dict[str, Any]:
            replies = row["replies"] if "replies" in row else [row["chosen_ids"], row["rejected_ids"]]
            return {"reference": [sums[(row["ranking"], *row["prompt_ids"], -1, *reply)] for reply in replies]}

        return dataset.map(of, new_fingerprint=key)

    @torch.no_grad()
    def _scores(self, rows: list[dict[str, Any]]) -> list[float]:
        batch = _batch(self._prepare_inputs(self.data_collator(rows)))
        with self.roles[1].active():
            return _table(self._forward().logprobs(self.roles[1], batch), batch).sum(1).tolist()


FIELDS = ("row", "state", "target", "batch_row", "step", "last", "positions", "segments")


def _batch(inputs: dict[str, Tensor]) -> MicroBatch:
    return MicroBatch(inputs["input_ids"], **{name: inputs.get(name) for name in FIELDS}, rows=[])  # pyright: ignore[reportArgumentType]


def _chosen_tokens(inputs: dict[str, Tensor]) -> int:
    return int(torch.bincount(inputs["batch_row"])[inputs["sides"][0]].sum())


def _table(values: Tensor, batch: MicroBatch) -> Tensor:
    """`[N]` values of the reply tokens to `[replies, R]`, 0 where a reply has no token."""
    table = values.new_zeros(int(batch.batch_row[-1]) + 1, int(batch.step.max()) + 1)
    return table.index_put((batch.batch_row, batch.step), values)


def _behind_one(mask: Tensor) -> Tensor:
    """With a column of zeros before it: TRL predicts each place from the one before."""
    return torch.nn.functional.pad(mask, (1, 0))


def _two_logits(logprobs: Tensor) -> Tensor:
    """`[rows, R]` log-probabilities to `[rows, R + 1, 2]` logits: of the token, and of any other."""
    other = torch.log(-torch.expm1(logprobs.clamp(max=-1e-7)))
    return torch.nn.functional.pad(torch.stack([logprobs, other], -1), (0, 0, 0, 1))


def _told(looked: Tensor, batch: MicroBatch, sides: Tensor) -> Iterator[tuple[str, float]]:
    """What TRL logs of the logits of pairs, from `look` at each reply token `[N, 3]`: means over tokens, a reply as often as it is in a pair."""
    entropy, logit, hit = (_table(one, batch).sum(1)[sides] for one in looked.unbind(-1))
    length = _table(torch.ones_like(batch.target), batch).sum(1)[sides]
    (chosen, rejected), (long, other) = logit.chunk(2), length.chunk(2)
    yield "entropy", float(entropy.sum() / length.sum())
    yield "logits/chosen", float(chosen.sum() / long.sum())
    yield "logits/rejected", float(rejected.sum() / other.sum())
    yield "mean_token_accuracy", float(hit.chunk(2)[0].sum() / long.sum())
