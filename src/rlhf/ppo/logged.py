"""The numbers of one update that `metrics.METRICS` defines, each over real tokens only."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf.evaluation.metrics import correlation, distinct, repeated
from rlhf.generation.sampling import Replies
from rlhf.ppo.objective import PolicyTerms, ValueTerms, explained_variance, masked_mean
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


def averages(terms: Sequence[PolicyTerms] | Sequence[ValueTerms]) -> dict[str, Tensor]:
    """The mean over minibatches of each field that is a mean over tokens."""
    names = [name for name in vars(terms[0]) if not name.endswith("_max")]
    table = torch.stack([torch.stack([getattr(term, name) for name in names]) for term in terms])
    return dict(zip(names, table.mean(0), strict=True))


def step_metrics(stats: UpdateStats) -> dict[str, float]:
    """Means over the minibatches of one update; those of the policy are left out when only the value was trained."""
    values: dict[str, Tensor | float] = {
        "update/optimizer_steps": stats.steps,
        "update/stopped_early": float(stats.stopped_early),
        "update/value_only": float(not stats.policy),
    }
    if stats.policy:
        policy = averages(stats.policy)
        values |= {
            "loss/policy_avg": policy["loss"],
            "policy/clipfrac_avg": policy["clipped"],
            "policy/approxkl_avg": 0.5 * policy["squared"],
            "policy/approx_kl_k3": policy["k3"],
            "policy/ratio_max": torch.stack([terms.ratio_max for terms in stats.policy]).max(),
            "policy/ratio_max_first": stats.policy[0].ratio_max,
            "policy/grad_norm": torch.stack(stats.policy_norms).mean(0),
            "val/ratio": policy["ratio"],
            "val/ratio_var": (policy["ratio_squared"] - policy["ratio"] ** 2).clamp(min=0),
        }
    if stats.value:
        value = averages(stats.value)
        values |= {
            "loss/value_avg": value["loss"],
            "val/clipfrac_avg": value["clipped"],
            "value/grad_norm": torch.stack(stats.value_norms).mean(0),
        }
    return {name: float(value) for name, value in values.items()}
