"""The arithmetic of PPO: KL control, shaped scores, rewards, advantages, whitening, and the two clipped losses.

Tensors are `[B, R]` over reply tokens unless a docstring says otherwise, with a boolean mask that is true on the tokens
a reply really has; values outside the mask are never read. The last true position of a row is the last token of the
reply (its EOS, if it has one).

The losses are sums over tokens, and the caller divides by the minibatch's own token count: a mean of micro-batch means
would weigh a token by its neighbours' lengths (the gradient-accumulation bug), and 1 x 4 and 4 x 1 rows would give
different gradients. Formulas: arXiv:1707.06347, equation 7; value clipping as in OpenAI's baselines and in the code of
arXiv:1909.08593.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class KLController:
    """Proportional control of the KL coefficient in log space (Ziegler et al. 2019, arXiv:1909.08593, section 2.2).

    With e = clip(kl / target - 1, -0.2, 0.2) the coefficient is multiplied by 1 + e * episodes / horizon after every
    batch. Without a target it stays as it is. `kl` is nats a reply, the mean over the batch.
    """

    coefficient: float
    target: float | None = None
    horizon: int = 10_000

    def update(self, kl: float, episodes: int) -> None:
        if self.target is None:
            return
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.coefficient *= 1 + error * episodes / self.horizon


@dataclass
class RunningMoments:
    """Mean and variance of all scores seen so far (Chan et al. 1979), for reward scaling as in arXiv:2307.04964."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def update(self, scores: Tensor) -> None:
        n, mean = len(scores), float(scores.double().mean())
        squares = float(((scores.double() - mean) ** 2).sum())
        total = self.count + n
        self.squares += squares + (mean - self.mean) ** 2 * self.count * n / total
        self.mean += (mean - self.mean) * n / total
        self.count = total

    @property
    def std(self) -> float:
        return (self.squares / (self.count - 1)) ** 0.5 if self.count > 1 and self.squares > 0 else 1.0


def shape_scores(
    scores: Tensor,
    ended: Tensor,
    *,
    center: float,
    scale: float,
    clip: float | None,
    missing_eos_penalty: float | None,
    replace: bool,
) -> Tensor:
    """(score - center) / scale, clipped to +-clip; a reply without EOS then gets `-missing_eos_penalty` as its score.

    That is the "EOS trick" of Ziegler et al. and of arXiv:2403.17031 (detail 23): the score of a text that stops in the
    middle means nothing. `replace=False` subtracts the penalty from the score, as stock TRL does. `[B]` -> new `[B]`.
    """
    shaped = (scores - center) / scale
    if clip is not None:
        shaped = shaped.clamp(-clip, clip)
    if missing_eos_penalty is None:
        return shaped
    penalty = torch.full_like(shaped, -missing_eos_penalty)
    return torch.where(ended, shaped, penalty if replace else shaped + penalty)


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
    """GAE (arXiv:1506.02438, equation 16) over ragged replies: advantages and returns, `[B, R]`, 0 outside the mask.

    The state behind the last token is terminal with value 0, also for a reply cut off at the length limit: that text is
    what a reader gets, and its score has already been replaced (`shape_scores`), so there is nothing to bootstrap. One
    gamma and one lambda serve advantages and returns of any length; what decouples them (arXiv:2503.01491) pays off in
    chains of thought thousands of tokens long.
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
    """1 - Var(returns - values) / Var(returns): 1 is a perfect critic, 0 knows the mean, below 0 is worse than that."""
    variance = masked_variance(returns, mask)
    return torch.where(variance > 1e-12, 1 - masked_variance(returns - values, mask) / variance.clamp(min=1e-12), 0.0)


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
