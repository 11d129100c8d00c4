"""The passes over a rollout: what is computed once, and each minibatch's two backward passes and clipping."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from rlhf.errors import NonFinite
from rlhf.generation.batches import MicroBatch
from rlhf.generation.logprobs import Forward
from rlhf.models.roles import Role
from rlhf.parallel import ranks
from rlhf.ppo.objective import PolicyTerms, ValueTerms

Terms = TypeVar("Terms", PolicyTerms, ValueTerms)


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

    One after the other on purpose: PEFT can put the adapters of several roles into one batch (`adapter_names`), but
    that holds the activations of all of them at once, and the old log-probabilities would no longer come from the
    batches of training, in which a ratio of 1 is exactly 1.
    """
    logprobs, values, entropy = (torch.zeros(mask.shape, device=mask.device) for _ in range(3))
    with policy.active():
        for batch in ranks.share(batches):
            for into, part in zip((logprobs, entropy), forward.logprobs_and_entropy(policy, batch), strict=True):
                batch.put(into, part)
    reference_logprobs = forward.reply_logprobs(reference, batches, mask)
    with value.active():
        for batch in ranks.share(batches):
            batch.put(values, forward.values(value, batch))
    logprobs, values, entropy = map(ranks.total, (logprobs, values, entropy))
    return Experience(logprobs, reference_logprobs, values, entropy, mask)


@dataclass
class UpdateStats:
    """What each minibatch reported: its terms as means over tokens, and gradient norms before clipping."""

    policy: list[PolicyTerms] = field(default_factory=list)
    value: list[ValueTerms] = field(default_factory=list)
    policy_norms: list[Tensor] = field(default_factory=list)
    value_norms: list[Tensor] = field(default_factory=list)
    steps: int = 0
    stopped_early: bool = False


def minibatches(batches: Sequence[MicroBatch], count: int, generator: torch.Generator) -> list[list[MicroBatch]]:
    """Shuffles whole micro-batches into `count` minibatches of equally many."""
    order = torch.randperm(len(batches), generator=generator).tolist()
    size = len(batches) // count
    return [[batches[i] for i in order[start : start + size]] for start in range(0, len(order), size)]


def backward(
    role: Role, minibatch: Sequence[MicroBatch], terms_of: Callable[[MicroBatch], Terms], coefficient: float = 1.0
) -> Terms:
    """Accumulates the role's gradient of `coefficient` times the loss of one minibatch, a mean over its tokens; each rank computes its
    share of the micro-batches.

    Returns the terms of the minibatch from those of its micro-batches: sums become means; of a `_max`, the largest.
    """
    kind: Any = PolicyTerms if role.head is None else ValueTerms
    tokens, names = sum(batch.tokens for batch in minibatch), [one.name for one in fields(kind)]
    table = torch.zeros(len(minibatch), len(names), device=role.device)
    rows = list(enumerate(minibatch))
    if ranks.size() > 1:  # an equal share of the tokens
        rows.sort(key=lambda one: one[1].ids.numel())
    with role.active():
        for row, batch in ranks.share(rows):
            terms = terms_of(batch)
            (coefficient * terms.loss / tokens).backward()
            table[row] = torch.stack([getattr(terms, name).detach().float() for name in names])
    ranks.add_gradients([parameter for _, parameter in role.trainable()])
    columns = dict(zip(names, ranks.total(table).unbind(1), strict=True))
    means: dict[str, Any] = {
        name: column.max() if name.endswith("_max") else sum(column.unbind()) / tokens
        for name, column in columns.items()
    }
    return kind(**means)


def clip_gradients(parameters: Sequence[torch.nn.Parameter], max_norm: float | None) -> Tensor:
    """Scales gradients to a total norm of at most `max_norm` (0 or None: not at all); returns the norm before."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if max_norm and gradients:
        torch.nn.utils.clip_grads_with_norm_(list(parameters), max_norm, norm)
    return norm


def require_finite(update: int, values: Mapping[str, Tensor]) -> None:
    """Raises NonFinite for the first value that is NaN or infinite."""
    for name, value in values.items():
        bad = value[~torch.isfinite(value)]
        if len(bad):
            raise NonFinite(name, float(bad[0]), update)
