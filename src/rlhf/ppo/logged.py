"""Turns one update into the numbers that `metrics.METRICS` defines, each over real tokens only."""

import resource
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf.evaluation.metrics import correlation, distinct, repeated
from rlhf.generation.sampling import Replies
from rlhf.ppo.objective import explained_variance, masked_mean
from rlhf.ppo.update import Experience, UpdateStats


def reward_metrics(raw: Tensor, shaped: Tensor, replies: Replies) -> dict[str, float]:
    """`[B]` scores before and after shaping, and the texts they were given to."""
    lengths = torch.tensor([float(len(t)) for t in replies.tokens])
    ended = sum(replies.ended)
    return {
        "objective/scores": float(shaped.mean()),
        "reward/mean": float(raw.mean()),
        "reward/std": float(raw.std()) if len(raw) > 1 else 0.0,
        "reward/min": float(raw.min()),
        "reward/max": float(raw.max()),
        "reward/length_correlation": correlation(raw.double().numpy(), lengths.numpy()),
        "length/mean": float(lengths.mean()),
        "length/p95": float(lengths.quantile(0.95)),
        "length/max": float(lengths.max()),
        "length/clip_ratio": 1 - ended / len(raw),
        "length/eos_rate": ended / len(raw),
        "val/num_eos_tokens": float(ended),
        "text/distinct_2": distinct(replies.tokens, 2),
        "text/repeat_4": repeated(replies.tokens, 4),
    }


def experience_metrics(
    experience: Experience, k1: Tensor, k3: Tensor, returns: Tensor, kl_coef: float, replies: Replies
) -> dict[str, float]:
    """What is known before the first step: KL, entropy, the critic's fit, decoding against training."""
    mask = experience.mask
    kl = torch.where(mask, k1, 0).sum(1).mean()
    kl_k3 = torch.where(mask, k3, 0).sum(1).mean()
    decoded = torch.zeros_like(experience.logprobs)
    decoded[mask] = torch.tensor([x for row in replies.logprobs for x in row], device=mask.device)
    mismatch = (experience.logprobs - decoded).abs()
    values = {
        "objective/kl": kl,
        "objective/kl_k3": kl_k3,
        "objective/kl_per_token": masked_mean(k1, mask),
        "objective/sqrt_kl": kl_k3.clamp(min=0).sqrt(),
        "objective/kl_coef": kl_coef,
        "objective/entropy": torch.where(mask, -experience.logprobs, 0).sum(1).mean(),
        "objective/non_score_reward": -kl_coef * kl,
        "policy/entropy_avg": masked_mean(experience.entropy, mask),
        "text/reference_perplexity": torch.exp(-masked_mean(experience.reference_logprobs, mask)),
        "value/explained_variance": explained_variance(experience.values, returns, mask),
        "value/mean": masked_mean(experience.values, mask),
        "value/return_mean": masked_mean(returns, mask),
        "mismatch/rollout_vs_train_mean_abs": masked_mean(mismatch, mask),
        "mismatch/mult_prob_error": masked_mean(torch.exp(mismatch), mask),
    }
    return {name: float(value) for name, value in values.items()}


def step_metrics(stats: UpdateStats) -> dict[str, float]:
    """Means over the minibatches of one update; those of the policy are 0 when only the value was trained."""

    def mean(tensors: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(tensors)).mean(0)

    values: dict[str, Tensor | float] = {
        "update/optimizer_steps": stats.steps,
        "update/stopped_early": float(stats.stopped_early),
        "update/value_only": float(not stats.policy),
    }
    if stats.policy:
        loss, clipped, squared, k3, ratio, ratio_squared = mean(stats.policy)
        values |= {
            "loss/policy_avg": loss,
            "policy/clipfrac_avg": clipped,
            "policy/approxkl_avg": 0.5 * squared,
            "policy/approx_kl_k3": k3,
            "policy/ratio_max": torch.stack(stats.ratio_max).max(),
            "policy/ratio_max_first": stats.ratio_max[0],
            "policy/grad_norm": mean(stats.policy_norms),
            "val/ratio": ratio,
            "val/ratio_var": (ratio_squared - ratio**2).clamp(min=0),
        }
    if stats.value:
        loss, clipped = mean(stats.value)
        values |= {"loss/value_avg": loss, "val/clipfrac_avg": clipped, "value/grad_norm": mean(stats.value_norms)}
    return {name: float(value) for name, value in values.items()}


def peak_memory_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes on Linux, bytes on macOS
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
