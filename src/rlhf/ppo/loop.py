"""One update: rollout, scores, advantages, optimizer steps, in the order in which a reader would explain them."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlhf.ppo import report
from rlhf.ppo.advantages import generalized_advantages, kl_estimates, token_rewards, whiten
from rlhf.ppo.batches import MicroBatch, lay_out, reply_mask
from rlhf.ppo.dense import dense_base
from rlhf.ppo.kl import KLController
from rlhf.ppo.passes import Experience, Forward, collect
from rlhf.ppo.prompts import PromptOrder, prompt_of
from rlhf.ppo.roles import Role
from rlhf.ppo.rollout import Replies, sample_replies, stream
from rlhf.ppo.scoring import RunningMoments, Scorer, shape_scores
from rlhf.ppo.update import Rules, UpdateStats, optimize, require_finite


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
        peaks.append(report.peak_memory_mb(device))

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
        peaks.append(report.peak_memory_mb(device))

        stats = self.optimize(batches, experience, advantages, returns, update)
        self.scheduler.step()
        clock.append(time.time())
        logs = report.reward_metrics(raw, scores, replies) | report.step_metrics(stats)
        logs |= report.experience_metrics(experience, k1, k3, returns, kl_coef, replies)
        self.kl_controller.update(logs["objective/kl"], args.batch_size)
        logs["objective/rlhf_reward"] = logs["objective/scores"] + logs["objective/non_score_reward"]
        logs |= {f"time/{name}": clock[i + 1] - clock[i] for i, name in enumerate(("rollout", "score", "update"))}
        logs["time/tokens_per_second"] = float(mask.sum()) / (clock[-1] - clock[0])
        return logs | {
            "memory/peak_mb": report.peak_memory_mb(device),
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
