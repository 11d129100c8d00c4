"""What is computed once of a rollout, and the optimizer steps on it: minibatches, the two backward passes, clipping, and when to stop."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlhf.errors import NonFinite
from rlhf.generation.batches import MicroBatch
from rlhf.generation.logprobs import Forward
from rlhf.models.roles import Role
from rlhf.ppo.objective import policy_terms, value_terms


@dataclass
class Experience:
    """What is fixed while a rollout is trained on: `[B, R]` tensors, true to `mask` only."""

    logprobs: Tensor
    reference_logprobs: Tensor
    values: Tensor
    entropy: Tensor
    mask: Tensor


@torch.no_grad()
def collect(
    forward: Forward, policy: Role, reference: Role, value: Role, batches: Sequence[MicroBatch], mask: Tensor
) -> Experience:
    """Old and reference log-probabilities, entropies and values, role after role in the micro-batches of training.

    One after the other on purpose: PEFT can put the adapters of several roles into one batch (`adapter_names`), but that
    holds the activations of all of them at once, and the old log-probabilities would no longer come from the batches of
    training, in which a ratio of 1 is exactly 1.
    """
    empty = torch.zeros(mask.shape, device=mask.device)
    result = Experience(empty, empty.clone(), empty.clone(), empty.clone(), mask)
    with policy.active():
        for batch in batches:
            logprobs, entropy = forward.logprobs_and_entropy(policy, batch)
            batch.put(result.logprobs, logprobs)
            batch.put(result.entropy, entropy)
    with reference.active():
        for batch in batches:
            batch.put(result.reference_logprobs, forward.logprobs(reference, batch))
    with value.active():
        for batch in batches:
            batch.put(result.values, forward.values(value, batch))
    return result


@dataclass(frozen=True)
class Rules:
    """What one update may do; the names are those of PPOConfig."""

    num_ppo_epochs: int
    num_mini_batches: int
    cliprange: float
    cliprange_value: float
    vf_coef: float
    max_grad_norm: float
    max_update_kl: float | None
    train_policy: bool


@dataclass
class UpdateStats:
    """What each minibatch reported: per-token means (`policy_backward`, `value_backward`) and gradient norms before
    clipping.
    """

    policy: list[Tensor] = field(default_factory=list)
    value: list[Tensor] = field(default_factory=list)
    ratio_max: list[Tensor] = field(default_factory=list)
    policy_norms: list[Tensor] = field(default_factory=list)
    value_norms: list[Tensor] = field(default_factory=list)
    steps: int = 0
    stopped_early: bool = False


def optimize(
    forward: Forward,
    policy: Role,
    value: Role,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[MicroBatch],
    experience: Experience,
    advantages: Tensor,
    returns: Tensor,
    rules: Rules,
    generator: torch.Generator,
    update: int,
) -> UpdateStats:
    """`num_ppo_epochs * num_mini_batches` optimizer steps, unless `max_update_kl` is passed before.

    The policy's graph is gone before the value's is built: they share no parameter, so the gradients are the same and
    only one graph is in memory. Raises NonFinite before a step that would spoil the weights.
    """
    stats = UpdateStats()
    policy_parameters = [p for _, p in policy.trainable()]
    value_parameters = [p for _, p in value.trainable()]
    for _ in range(rules.num_ppo_epochs):
        for minibatch in minibatches(batches, rules.num_mini_batches, generator):
            optimizer.zero_grad(set_to_none=True)
            if rules.train_policy:
                means, worst = policy_backward(
                    forward, policy, minibatch, experience.logprobs, advantages, rules.cliprange
                )
                norm = clip_gradients(policy_parameters, rules.max_grad_norm)
                require_finite(update, loss__policy_avg=means[0], policy__grad_norm=norm)
                stats.policy.append(means)
                stats.ratio_max.append(worst)
                stats.policy_norms.append(norm)
                if rules.max_update_kl is not None and float(means[3]) > rules.max_update_kl:
                    stats.stopped_early = True
                    optimizer.zero_grad(set_to_none=True)
                    return stats
            means = value_backward(
                forward, value, minibatch, experience.values, returns, rules.cliprange_value, rules.vf_coef
            )
            norm = clip_gradients(value_parameters, rules.max_grad_norm)
            require_finite(update, loss__value_avg=means[0], value__grad_norm=norm)
            stats.value.append(means)
            stats.value_norms.append(norm)
            optimizer.step()
            stats.steps += 1
    optimizer.zero_grad(set_to_none=True)
    return stats


def minibatches(batches: Sequence[MicroBatch], count: int, generator: torch.Generator) -> list[list[MicroBatch]]:
    """Shuffles whole micro-batches into `count` minibatches of equally many."""
    order = torch.randperm(len(batches), generator=generator).tolist()
    size = len(batches) // count
    return [[batches[i] for i in order[start : start + size]] for start in range(0, len(order), size)]


def policy_backward(
    forward: Forward, policy: Role, minibatch: Sequence[MicroBatch], old: Tensor, advantages: Tensor, cliprange: float
) -> tuple[Tensor, Tensor]:
    """Accumulates the policy's gradient of one minibatch; returns per-token means `[6]` and the ratio farthest from 1.

    Means are of loss, clipped, squared difference, k3, ratio and squared ratio.
    """
    tokens = sum(batch.tokens for batch in minibatch)
    sums, worst = torch.zeros(6, device=old.device), torch.ones((), device=old.device)
    with policy.active():
        for batch in minibatch:
            logprobs = forward.logprobs(policy, batch)
            terms = policy_terms(logprobs, batch.pick(old), batch.pick(advantages), cliprange)
            (terms.loss / tokens).backward()
            parts = (terms.loss.detach(), terms.clipped, terms.squared, terms.k3, terms.ratio, terms.ratio_squared)
            sums += torch.stack([p.float() for p in parts])
            worst = torch.maximum(worst, terms.ratio_max)
    return sums / tokens, worst


def value_backward(
    forward: Forward,
    value: Role,
    minibatch: Sequence[MicroBatch],
    old: Tensor,
    returns: Tensor,
    cliprange: float,
    coefficient: float,
) -> Tensor:
    """Accumulates `coefficient` times the value's gradient of one minibatch; returns the means `[2]` of loss and
    clipped.
    """
    tokens = sum(batch.tokens for batch in minibatch)
    sums = torch.zeros(2, device=old.device)
    with value.active():
        for batch in minibatch:
            terms = value_terms(forward.values(value, batch), batch.pick(old), batch.pick(returns), cliprange)
            (coefficient * terms.loss / tokens).backward()
            sums += torch.stack([terms.loss.detach(), terms.clipped.float()])
    return sums / tokens


def clip_gradients(parameters: Sequence[torch.nn.Parameter], max_norm: float) -> Tensor:
    """Scales gradients to a total norm of at most `max_norm` (0: only measures); returns the norm before."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if max_norm > 0 and gradients:
        torch.nn.utils.clip_grads_with_norm_(list(parameters), max_norm, norm)
    return norm


def require_finite(update: int, **values: Tensor | float) -> None:
    """Raises NonFinite for the first value that is NaN or infinite."""
    for name, value in values.items():
        tensor = torch.as_tensor(value)
        if not bool(torch.isfinite(tensor).all()):
            bad = tensor.flatten()[~torch.isfinite(tensor.flatten())][0]
            raise NonFinite(name.replace("__", "/"), float(bad), update)
