"""How every pass of every role is computed, and what is computed once before a rollout is trained on."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf.ppo.batches import MicroBatch
from rlhf.ppo.logprobs import token_logprobs, token_logprobs_and_entropy
from rlhf.ppo.roles import Role


@dataclass
class Forward:
    """How every pass of every role is computed: the same autocast, temperature, suppressed ids and chunk size."""

    temperature: float
    suppress: tuple[int, ...]
    chunk: int
    autocast: Callable[[], AbstractContextManager[Any]]

    def logprobs(self, role: Role, batch: MicroBatch) -> Tensor:
        """Log-probabilities of the reply tokens, fp32 `[N]`, with gradient if it is enabled."""
        with self.autocast():
            states = batch.reply_states(role.hidden(batch.ids))
            head = role.logits_of(self.temperature, self.suppress)
            return token_logprobs(states, batch.target, head, chunk=self.chunk, frozen_head=role.frozen_lm_head())

    def logprobs_and_entropy(self, role: Role, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        with self.autocast(), torch.no_grad():
            states = batch.reply_states(role.hidden(batch.ids))
            head = role.logits_of(self.temperature, self.suppress)
            return token_logprobs_and_entropy(states, batch.target, head, chunk=self.chunk)

    def values(self, role: Role, batch: MicroBatch) -> Tensor:
        """Values of the states before each reply token, fp32 `[N]`."""
        assert role.head is not None, f"role {role.name} has no scalar head"
        with self.autocast():
            hidden = role.hidden(batch.ids)
        return role.head(batch.reply_states(hidden))


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
