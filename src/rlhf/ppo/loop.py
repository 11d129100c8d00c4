"""One update: prompts, rollout, scores, advantages, optimizer steps, in the order in which a reader would explain them."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlhf.generation.batches import MicroBatch, lay_out, reply_mask
from rlhf.generation.logprobs import Forward, kl_estimates
from rlhf.generation.sampling import Replies, sample_replies, stream
from rlhf.models.layers import dense_base
from rlhf.models.roles import Role
from rlhf.ppo import logged
from rlhf.ppo.objective import KLController, RunningMoments, generalized_advantages, shape_scores, token_rewards, whiten
from rlhf.ppo.update import Experience, Rules, UpdateStats, collect, optimize, require_finite
from rlhf.rewards.scorers import Scorer


def prompt_of(row: dict[str, Any]) -> list[int]:
    """The prompt's ids without padding: by the row's own attention mask, if it has one."""
    ids = list(row["input_ids"])
    mask = row.get("attention_mask")
    return ids if mask is None else [token for token, real in zip(ids, mask, strict=True) if real]


def check_prompts(dataset: Any, name: str, *, response_length: int, context: int | None, vocabulary: int) -> None:
    """Raises ValueError for a dataset whose rows cannot be replied to, naming the row."""
    if "input_ids" not in dataset.column_names:
        raise ValueError(
            f"{name} has no column input_ids (has: {', '.join(dataset.column_names)}); tokenize the prompts first"
        )
    for i, ids in enumerate(dataset["input_ids"]):
        if not len(ids):
            raise ValueError(f"{name} row {i}: the prompt is empty; drop it or give it at least a BOS token")
        if context is not None and len(ids) + response_length > context:
            raise ValueError(
                f"{name} row {i}: a prompt of {len(ids)} tokens and response_length = {response_length} exceed the "
                "model's "
                f"context of {context}; shorten the prompt to {context - response_length} tokens or lower "
                "response_length"
            )
        if max(ids) >= vocabulary or min(ids) < 0:
            raise ValueError(f"{name} row {i}: token id {max(ids)} is outside the model's vocabulary of {vocabulary}")


@dataclass(frozen=True)
class PromptOrder:
    """Which rows update `u` (from 1) trains on: each pass over the data is a new permutation, a ragged rest is left
    out.

    A function of the seed and the update, so the position in the prompts needs no state to be resumed.
    """

    rows: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if self.rows < self.batch_size:
            raise ValueError(
                f"train_dataset has {self.rows} prompts, fewer than one batch of {self.batch_size}; add prompts or "
                "lower "
                "per_device_train_batch_size * gradient_accumulation_steps"
            )

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
        with dense, self.forward.autocast():
            return sample_replies(
                self.policy,
                prompts,
                max_new_tokens=args.response_length,
                temperature=args.temperature,
                eos_ids=self.eos_ids,
                pad_id=self.pad_id,
                generator=stream(args.seed, "sampling", update),
                chunk_size=args.local_rollout_forward_batch_size,
            )

    def update(self, update: int) -> dict[str, float]:
        """One update, from prompts to changed weights; returns what it measured."""
        args, device, clock, peaks = self.args, self.args.device, [time.time()], []
        lr = {group.get("role", "policy"): group["lr"] for group in self.optimizer.param_groups}
        rows = [self.dataset[i] for i in self.order.batch(update)]
        prompts = [prompt_of(row) for row in rows]
        replies = self.sample(prompts, update)
        clock.append(time.time())
        peaks.append(logged.peak_memory_mb(device))

        raw = self.scorer(prompts, replies.tokens, rows).float()
        require_finite(update, reward__mean=raw)
        scores = self.shape(raw, torch.tensor(replies.ended))
        mask = reply_mask(replies.tokens, device)
        batches = lay_out(prompts, replies.tokens, self.micro_batch_size, self.pad_id, device)
        experience = collect(self.forward, self.policy, self.reference, self.value, batches, mask)
        k1, k3 = kl_estimates(experience.logprobs, experience.reference_logprobs)
        kl_coef = self.kl_controller.coefficient
        rewards = token_rewards(k1, scores.to(device), mask, kl_coef)
        if args.whiten_rewards:
            rewards = whiten(rewards, mask, shift_mean=False)
        advantages, returns = generalized_advantages(rewards, experience.values, mask, args.gamma, args.lam)
        if args.whiten_advantages:
            advantages = whiten(advantages, mask)
        require_finite(update, objective__kl=k1[mask], value__mean=experience.values[mask])
        clock.append(time.time())
        peaks.append(logged.peak_memory_mb(device))

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
            "memory/peak_mb": logged.peak_memory_mb(device),
            "memory/peak_rollout_mb": peaks[0],
            "memory/peak_score_mb": peaks[1],
            "lr": lr["policy"],
            "lr_value": lr.get("value", lr["policy"]),
        }

    def shape(self, raw: Tensor, ended: Tensor) -> Tensor:
        """Scores as they are paid, by the options on centring, scale, clipping and missing EOS."""
        args = self.args
        center, scale = args.reward_center, args.reward_scale
        if args.reward_normalization == "running":
            self.moments.update(raw)
            center, scale = self.moments.mean, self.moments.std
        return shape_scores(
            raw,
            ended,
            center=center,
            scale=scale,
            clip=args.reward_clip,
            missing_eos_penalty=args.missing_eos_penalty,
            replace=args.missing_eos_mode == "replace",
        )

    def optimize(
        self, batches: Sequence[MicroBatch], experience: Experience, advantages: Tensor, returns: Tensor, update: int
    ) -> UpdateStats:
        """The gradient steps, in train mode only for gradient checkpointing: with dropout off nothing else depends on
        it.
        """
        args = self.args
        rules = Rules(
            num_ppo_epochs=args.num_ppo_epochs,
            num_mini_batches=args.num_mini_batches,
            cliprange=args.cliprange,
            cliprange_value=args.cliprange_value,
            vf_coef=args.vf_coef,
            max_grad_norm=args.max_grad_norm or 0.0,
            max_update_kl=args.max_update_kl,
            train_policy=update > args.value_warmup_updates,
        )
        for role in (self.policy, self.value):
            role.model.train(bool(args.activation_checkpointing))
        try:
            return optimize(
                self.forward,
                self.policy,
                self.value,
                self.optimizer,
                batches,
                experience,
                advantages,
                returns,
                rules,
                stream(args.seed, "minibatches", update),
                update,
            )
        finally:
            for role in (self.policy, self.value):
                role.model.eval()
