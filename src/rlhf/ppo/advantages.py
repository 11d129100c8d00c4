"""From per-token log-probabilities and one score a reply to rewards, returns and whitened advantages.

All tensors are `[B, R]` over reply tokens, with a boolean mask that is true on the tokens a reply really has; values
outside the mask are never read. The last true position of a row is the last token of the reply (its EOS, if it has
one).
"""

import torch
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the true positions, each token weighing the same; 0 where there is none."""
    return torch.where(mask, values, 0).sum() / mask.sum().clamp(min=1)


def masked_variance(values: Tensor, mask: Tensor) -> Tensor:
    """Unbiased variance over the true positions; 0 for fewer than two, where stock divides by zero."""
    centred = torch.where(mask, values - masked_mean(values, mask), 0)
    return (centred**2).sum() / (mask.sum() - 1).clamp(min=1)


def whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """Unit variance over all tokens of the batch (and mean 0 with `shift_mean`); zeros outside the mask.

    Over the whole batch rather than a micro-batch, so that the split does not change the update. A variance below 1e-8
    (one token, or all equal) is left unscaled: dividing rounding noise by its own size would train on the noise.
    """
    mean, variance = masked_mean(values, mask), masked_variance(values, mask)
    scale = torch.where(variance > 1e-8, torch.rsqrt(variance + 1e-8), 1.0)
    whitened = (values - mean) * scale + (0 if shift_mean else mean)
    return torch.where(mask, whitened, 0)


def kl_estimates(logprobs: Tensor, reference_logprobs: Tensor) -> tuple[Tensor, Tensor]:
    """k1 = log(policy/reference) and k3 = exp(-k1) - 1 + k1 for each sampled token (Schulman,
    joschu.net/blog/kl-approx).

    Both have the KL as their expectation under the policy. k1 belongs into the reward (its gradient is unbiased there,
    that of k3 is not: arXiv:2512.21852); k3 is never negative, which makes it the better number to look at. In training
    both are of the distributions sampled from, at `temperature`, since those are what a step moves; evaluation measures
    the KL at temperature 1, which compares across runs and with DPO.
    """
    k1 = logprobs - reference_logprobs
    return k1, torch.expm1(-k1) + k1


def token_rewards(kl: Tensor, scores: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """`-kl_coef * kl` on every token, plus the score on the last token of each reply: `[B, R]`.

    Stock puts the score one position behind EOS, on a state that no action leads to (TRL#3750); here the token that
    ends the reply is the one that is paid.
    """
    rewards = torch.where(mask, -kl_coef * kl, 0)
    last = mask.sum(1) - 1
    return rewards.scatter_add(1, last.unsqueeze(1), scores.to(rewards.dtype).unsqueeze(1))


def generalized_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """GAE (arXiv:1506.02438, equation 16) over ragged replies: advantages and returns, `[B, R]`, zeros outside the
    mask.

    The state behind the last token is terminal with value 0, also for a reply cut off at the length limit: that text is
    what a reader gets, and its score has already been replaced (`scoring.shape_scores`), so there is nothing to
    bootstrap. One gamma and one lambda serve advantages and returns of any length; what decouples them
    (arXiv:2503.01491) pays off in chains of thought thousands of tokens long.
    """
    rewards, values = torch.where(mask, rewards, 0), torch.where(mask, values, 0)
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    next_value = torch.zeros_like(running)
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        running = torch.where(mask[:, t], delta + gamma * lam * running, 0)
        advantages[:, t] = running
        next_value = values[:, t]
    return advantages, torch.where(mask, advantages + values, 0)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns): 1 is a perfect critic, 0 one that knows the mean, below 0 a harmful
    one.
    """
    variance = masked_variance(returns, mask)
    return torch.where(variance > 1e-12, 1 - masked_variance(returns - values, mask) / variance.clamp(min=1e-12), 0.0)
