"""One update: prompts, rollout, scores, advantages, optimizer steps."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlhf.errors import Refusal
from rlhf.generation.batches import MicroBatch, lay_out, reply_mask
from rlhf.generation.logprobs import Forward, kl_estimates
from rlhf.generation.sampling import Replies, sample_replies, stream
from rlhf.models.layers import dense_base
from rlhf.models.roles import Role
from rlhf.parallel import ranks
from rlhf.ppo import logged, objective
from rlhf.ppo.objective import KLController, RunningMoments
from rlhf.ppo.update import Experience, UpdateStats, backward, clip_gradients, collect, minibatches, require_finite
from rlhf.process import peak_memory_mb
from rlhf.rewards.scorers import Scorer


def prompt_of(row: dict[str, Any]) -> list[int]:
    """The prompt's ids without padding: by the row's own attention mask, if it has one."""
    ids = list(row["input_ids"])
    mask = row.get("attention_mask")
    return ids if mask is None else [token for token, real in zip(ids, mask, strict=True) if real]


def check_prompts(dataset: Any, name: str, *, response_length: int, context: int | None, vocabulary: int) -> None:
    """Raises Refusal for a dataset with rows that cannot be replied to, naming the row."""
    if "input_ids" not in dataset.column_names:
        why = "there is no column input_ids"
        raise Refusal(f"{name}.column_names", dataset.column_names, why, fix="tokenize the prompts first")
    prompts = dataset["input_ids"]
    for i, ids in enumerate(prompts):
        if not len(ids):
            raise Refusal(f"{name}[{i}]", ids, "the prompt is empty", fix="drop it, or give it a BOS token")
        if outside := [token for token in ids if not 0 <= token < vocabulary]:
            why = f"the token id is outside the model's vocabulary of {vocabulary}"
            raise Refusal(f"{name}[{i}]", outside[0], why, fix="the policy's tokenizer")
    longest = max(range(len(prompts)), key=lambda i: len(prompts[i]), default=None)
    if context is None or longest is None:
        return
    length = len(prompts[longest])
    if length + response_length > context:
        why = f"with the {length} tokens of {name}[{longest}] this exceeds the model's context of {context}"
        room = f"response_length={context - length}" if length < context else "shorter prompts"
        raise Refusal("response_length", response_length, why, fix=room)


@dataclass(frozen=True)
class PromptOrder:
    """Which rows an update (from 1) trains on: each pass over the data is a new permutation without a ragged rest.

    A function of the seed and the update, so the position in the prompts needs no state to be resumed.
    """

    rows: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if self.rows < self.batch_size:
            why = f"fewer prompts than one batch of {self.batch_size}"
            fix = "more prompts, or a lower per_device_train_batch_size * gradient_accumulation_steps"
            raise Refusal("len(train_dataset)", self.rows, why, fix=fix)

    @property
    def updates_per_epoch(self) -> int:
        return self.rows // self.batch_size

    def batch(self, update: int) -> list[int]:
        epoch, position = divmod(update - 1, self.updates_per_epoch)
        order = torch.randperm(self.rows, generator=stream(self.seed, "prompts", epoch)).tolist()
        return order[position * self.batch_size : (position + 1) * self.batch_size]


@dataclass
class Loop:
    """What an update works on; `args` is the PPOConfig. Knows nothing of TRL, callbacks or files."""

    args: Any
    policy: Role
    reference: Role
    value: Role
    scorer: Scorer
    dataset: Any
    order: PromptOrder
    optimizer: torch.optim.Optimizer
    scheduler: Any
    eos_ids: Sequence[int]
    pad_id: int
    micro_batch_size: int
    forward: Forward
    kl_controller: KLController
    moments: RunningMoments = field(default_factory=RunningMoments)

    def sample(self, prompts: list[list[int]], update: int) -> Replies:
        """The rollout: one reply a prompt from the policy as it is now."""
        args = self.args
        dense = dense_base(self.policy.model) if args.rollout_base == "dense" else nullcontext()
        with dense:
            return self.reply(prompts, args.temperature, stream(args.seed, "sampling", update))

    def reply(self, prompts: list[list[int]], temperature: float, generator: torch.Generator) -> Replies:
        with self.forward.autocast():
            return sample_replies(
                self.policy,
                prompts,
                max_new_tokens=self.args.response_length,
                temperature=temperature,
                eos_ids=self.eos_ids,
                pad_id=self.pad_id,
                generator=generator,
                chunk_size=self.args.local_rollout_forward_batch_size,
            )

    def update(self, update: int) -> dict[str, float]:
        """One update, from prompts to changed weights; returns what it measured."""
        args, device, clock, peaks = self.args, self.args.device, [time.time()], []
        memory = "gpu" if device.type == "cuda" else "cpu"
        lr = {group.get("role", "policy"): group["lr"] for group in self.optimizer.param_groups}
        rows = [self.dataset[i] for i in self.order.batch(update)]
        prompts = [prompt_of(row) for row in rows]
        replies = self.sample(prompts, update)
        clock.append(time.time())
        peaks.append(peak_memory_mb()[memory])

        raw = self.scorer(prompts, replies.tokens, rows).float()
        require_finite(update, {"reward/mean": raw})
        scores = self.paid_scores(raw, torch.tensor(replies.ended))
        mask = reply_mask(replies.tokens, device)
        pad_id = self.policy.filler(self.pad_id)
        batches = lay_out(prompts, replies.tokens, self.micro_batch_size, pad_id, device)
        experience = collect(self.forward, self.policy, self.reference, self.value, batches, mask)
        k1, k3 = kl_estimates(experience.logprobs, experience.reference_logprobs)
        kl_coef = self.kl_controller.coefficient
        rewards = objective.token_rewards(k1, scores.to(device), mask, kl_coef)
        if args.whiten_rewards:
            rewards = objective.whiten(rewards, mask, shift_mean=False)
        advantages, returns = objective.generalized_advantages(rewards, experience.values, mask, args.gamma, args.lam)
        if args.whiten_advantages:
            advantages = objective.whiten(advantages, mask)
        advantages, returns = ranks.same(advantages), ranks.same(returns)
        require_finite(update, {"objective/kl": k1[mask], "value/mean": experience.values[mask]})
        clock.append(time.time())
        peaks.append(peak_memory_mb()[memory])

        stats = self.optimize(batches, experience, advantages, returns, update)
        self.scheduler.step()
        clock.append(time.time())
        logs = logged.reward_metrics(raw, scores, replies) | logged.step_metrics(stats)
        logs |= logged.experience_metrics(experience, k1, k3, returns, kl_coef, replies)
        self.kl_controller.update(logs["objective/kl"], args.batch_size)
        logs["objective/rlhf_reward"] = logs["objective/scores"] + logs["objective/non_score_reward"]
        logs |= {f"time/{name}": clock[i + 1] - clock[i] for i, name in enumerate(("rollout", "score", "update"))}
        logs["time/tokens_per_second"] = float(mask.sum()) / (clock[-1] - clock[0])
        return logs | {
            "memory/peak_mb": peak_memory_mb()[memory],
            "memory/peak_rollout_mb": peaks[0],
            "memory/peak_score_mb": peaks[1],
            "lr": lr["policy"],
            "lr_value": lr.get("value", lr["policy"]),
        }

    def paid_scores(self, raw: Tensor, ended: Tensor) -> Tensor:
        """The scores `[B]` after the options on centring, scale, clipping and missing EOS."""
        args = self.args
        center, scale = args.reward_center, args.reward_scale
        if args.reward_normalization == "running":
            self.moments.update(raw)
            center, scale = self.moments.mean, self.moments.std
        eos = {"missing_eos_penalty": args.missing_eos_penalty, "replace": args.missing_eos_mode == "replace"}
        return objective.shape_scores(raw, ended, center=center, scale=scale, clip=args.reward_clip, **eos)

    def optimize(
        self, batches: Sequence[MicroBatch], experience: Experience, advantages: Tensor, returns: Tensor, update: int
    ) -> UpdateStats:
        """`num_ppo_epochs * num_mini_batches` optimizer steps, unless `max_update_kl` is passed before.

        The policy's graph is gone before the value's is built: they share no parameter, so the gradients are the same
        and only one graph is in memory. Raises NonFinite before a step that would spoil the weights.
        """
        args, stats = self.args, UpdateStats()
        policy_parameters, value_parameters = ([p for _, p in role.trainable()] for role in (self.policy, self.value))

        def policy_loss(batch: MicroBatch) -> objective.PolicyTerms:
            new, old = self.forward.logprobs(self.policy, batch), batch.pick(experience.logprobs)
            return objective.policy_terms(new, old, batch.pick(advantages), args.cliprange)

        def value_loss(batch: MicroBatch) -> objective.ValueTerms:
            new, old = self.forward.values(self.value, batch), batch.pick(experience.values)
            return objective.value_terms(new, old, batch.pick(returns), args.cliprange_value)

        generator = stream(args.seed, "minibatches", update)
        with self._train_mode():
            for _ in range(args.num_ppo_epochs):
                for minibatch in minibatches(batches, args.num_mini_batches, generator):
                    self.optimizer.zero_grad(set_to_none=True)
                    if update > args.value_warmup_updates:
                        terms = backward(self.policy, minibatch, policy_loss)
                        norm = clip_gradients(policy_parameters, args.max_grad_norm)
                        require_finite(update, {"loss/policy_avg": terms.loss, "policy/grad_norm": norm})
                        stats.policy.append(terms)
                        stats.policy_norms.append(norm)
                        if args.max_update_kl is not None and float(terms.k3) > args.max_update_kl:
                            stats.stopped_early = True
                            self.optimizer.zero_grad(set_to_none=True)
                            return stats
                    terms = backward(self.value, minibatch, value_loss, args.vf_coef)
                    norm = clip_gradients(value_parameters, args.max_grad_norm)
                    require_finite(update, {"loss/value_avg": terms.loss, "value/grad_norm": norm})
                    stats.value.append(terms)
                    stats.value_norms.append(norm)
                    self.optimizer.step()
                    stats.steps += 1
            self.optimizer.zero_grad(set_to_none=True)
        return stats

    @contextmanager
    def _train_mode(self) -> Iterator[None]:
        """Only for gradient checkpointing: with dropout off nothing else depends on the mode."""
        models = (self.policy.model, self.value.model)
        for model in models:
            model.train(bool(self.args.activation_checkpointing))
        try:
            yield
        finally:
            for model in models:
                model.eval()
