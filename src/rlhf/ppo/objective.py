"""The two clipped PPO losses, as sums over tokens so that the caller normalizes by the minibatch's own token count.

A mean of micro-batch means would weigh a token by its neighbours' lengths (the gradient-accumulation bug); sums divided
once do not, so 1 x 4 and 4 x 1 rows give the same gradient. Formulas: arXiv:1707.06347, equation 7; value clipping from
the OpenAI baselines (arXiv:1909.08593's code).
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class PolicyTerms:
    """Sums over `[N]` tokens: the loss with gradient, and what is logged without."""

    loss: Tensor
    clipped: Tensor
    squared: Tensor
    k3: Tensor
    ratio: Tensor
    ratio_squared: Tensor
    ratio_max: Tensor


@dataclass
class ValueTerms:
    loss: Tensor
    clipped: Tensor


def policy_terms(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, cliprange: float) -> PolicyTerms:
    """max(-A r, -A clip(r, 1 - c, 1 + c)) summed over tokens, r = exp(new - old log-probability); all inputs `[N]`.

    That is all: no entropy bonus, dual clip or pretraining loss. The KL in the reward holds the policy near the
    reference, and `max_update_kl` ends an update that runs away.
    """
    difference = logprobs - old_logprobs
    ratio = torch.exp(difference)
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    loss = torch.maximum(unclipped, clipped).sum()
    with torch.no_grad():
        return PolicyTerms(
            loss=loss,
            clipped=(clipped > unclipped).sum(),
            squared=(difference**2).sum(),
            k3=(torch.expm1(difference) - difference).sum(),
            ratio=ratio.sum(),
            ratio_squared=(ratio**2).sum(),
            # how far the worst token is from 1 in either direction: 1 before the first step
            ratio_max=torch.exp(difference.abs().max()),
        )


def value_terms(values: Tensor, old_values: Tensor, returns: Tensor, cliprange: float) -> ValueTerms:
    """0.5 max((V - R)^2, (clip(V, old - c, old + c) - R)^2) summed over tokens; all inputs `[N]`.

    The clip range is in units of the reward: where scores spread over much more than 1, scale them (`reward_scale`).
    """
    near = values.clamp(old_values - cliprange, old_values + cliprange)
    unclipped, clipped = (values - returns) ** 2, (near - returns) ** 2
    loss = 0.5 * torch.maximum(unclipped, clipped).sum()
    return ValueTerms(loss=loss, clipped=(clipped.detach() > unclipped.detach()).sum())
