"""Log-probabilities of chosen tokens in fp32, without ever storing logits over the vocabulary.

`[N, vocabulary]` logits are what made stock PPO need gigabytes for a 41M-parameter model. Here the LM head runs over
`chunk` tokens at a time, and backward either recomputes a chunk (`torch.utils.checkpoint`) or, when the head is frozen,
as it is under LoRA, multiplies by a derivative that forward already took: one number per token has one gradient row per
token.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rlhf.generation.batches import MicroBatch
from rlhf.methods import LOGITS
from rlhf.models.roles import Role, width
from rlhf.parallel import ranks

Looked = dict[int, Tensor] | None


def tile(role: Role, most: int) -> int:
    """Tokens whose logits are made at once: `most`, and of a large vocabulary fewer, so that logits stay small beside what layers keep."""
    return min(most, max(8, LOGITS * width(role.model) // role.embeddings))


def chunk_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """log softmax(logits)[targets]: `[N, V]`, `[N]` -> `[N]`. The one way it is computed: a ratio of 1 is exactly 1."""
    return torch.log_softmax(logits, dim=-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def look(logits: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    """Entropy in nats, mean logit, and whether the target is the likeliest: `[N, V]` logits, their log-softmax, `[N]` -> `[N, 3]`."""
    with torch.autocast(table.device.type, enabled=False):  # which would multiply copies in bf16
        entropy = -torch.einsum("nv,nv->n", table.exp(), table)
    return torch.stack([entropy, logits.mean(-1), (logits.argmax(-1) == targets).float()], -1)


class _FrozenHead(torch.autograd.Function):
    """Log-probabilities whose gradient with respect to the hidden states is taken chunk by chunk in forward.

    Token i's log-probability depends on hidden row i alone, so its derivative, the head's pullback of `onehot -
    softmax`, is one row; backward scales row i by the incoming gradient. Saves the recomputation of the head, and a
    chunk's logits are gone before the next chunk's are made (the idea of Liger's fused linear losses,
    arXiv:2410.10989).
    """

    @staticmethod
    def forward(
        ctx, hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor], chunk: int, looked: Looked
    ) -> Tensor:
        rows = torch.empty_like(hidden)
        logprobs = []
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            with torch.enable_grad():
                leaf = hidden[part].detach().requires_grad_()
                logits = head(leaf)
            table, index = torch.log_softmax(logits.detach(), dim=-1), targets[part].unsqueeze(-1)
            logprobs.append(table.gather(-1, index).squeeze(-1))
            if looked is not None:
                looked[start] = look(logits.detach(), table, targets[part])
            slope = table.exp_().neg_().scatter_add_(-1, index, torch.ones_like(index, dtype=table.dtype))
            (rows[part],) = torch.autograd.grad(logits, leaf, slope)
            del logits, table, slope  # before the next ones are made
        ctx.save_for_backward(rows)
        return torch.cat(logprobs)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        (rows,) = ctx.saved_tensors
        return (rows * gradients[0].unsqueeze(-1)).to(rows.dtype), None, None, None, None


def token_logprobs(
    hidden: Tensor,
    targets: Tensor,
    head: Callable[[Tensor], Tensor],
    *,
    chunk: int = 256,
    frozen_head: bool = False,
    looked: Looked = None,
) -> Tensor:
    """Log-probability of each target under `head(hidden)`: `[N, H]`, `[N]` -> fp32 `[N]`.

    `head` maps `[n, H]` hidden states to `[n, V]` shaped logits (`shape_logits` applied inside). `frozen_head` says
    that no parameter of the head is trained: the cheaper backward is then exact. `looked` is filled with what `look` says of
    each chunk, by its start.
    """
    if not len(hidden):
        return hidden.new_zeros(0, dtype=torch.float32)

    def piece(states: Tensor, chosen: Tensor, start: int) -> Tensor:
        logits = head(states)
        if looked is not None and start not in looked:
            with torch.no_grad():
                looked[start] = look(logits, torch.log_softmax(logits, dim=-1), chosen)
        return chunk_logprobs(logits, chosen)

    if not (torch.is_grad_enabled() and hidden.requires_grad):
        run = piece
    elif frozen_head:
        return _FrozenHead.apply(hidden, targets, head, chunk, looked)  # pyright: ignore[reportReturnType]
    else:
        run = partial(checkpoint, piece, use_reentrant=False, preserve_rng_state=False)
    parts: Any = [run(hidden[i : i + chunk], targets[i : i + chunk], i) for i in range(0, len(hidden), chunk)]
    return torch.cat(parts)


def token_logprobs_and_entropy(
    hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor], *, chunk: int = 256
) -> tuple[Tensor, Tensor]:
    """As `token_logprobs`, without gradient, with each token's entropy in nats: two `[N]` tensors."""
    logprobs, entropies = [], []
    with torch.no_grad():
        for i in range(0, len(hidden), chunk):
            table = torch.log_softmax(head(hidden[i : i + chunk]), dim=-1)
            logprobs.append(table.gather(-1, targets[i : i + chunk].unsqueeze(-1)).squeeze(-1))
            entropies.append(-(table.exp() * table).sum(-1))
    return torch.cat(logprobs), torch.cat(entropies)


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


@dataclass
class Forward:
    """How every pass of every role is computed: the same autocast, temperature, suppressed ids and chunk size."""

    temperature: float
    suppress: tuple[int, ...]
    chunk: int
    autocast: Callable[[], AbstractContextManager[Any]]

    def logprobs(self, role: Role, batch: MicroBatch, looked: Looked = None) -> Tensor:
        """Log-probabilities of the reply tokens, fp32 `[N]`, with gradient if it is enabled."""
        with self.autocast():
            states = batch.reply_states(role.hidden(*batch.inputs()))
            head = role.logits_of(self.temperature, self.suppress)
            frozen = role.frozen_lm_head()
            return token_logprobs(states, batch.target, head, chunk=self.chunk, frozen_head=frozen, looked=looked)

    @torch.no_grad()
    def reply_logprobs(self, role: Role, batches: Sequence[MicroBatch], mask: Tensor) -> Tensor:
        """Log-probabilities of every reply token under the role, fp32 `[B, R]`, 0 outside the mask; the ranks share the work."""
        result = torch.zeros(mask.shape, device=mask.device)
        with role.active():
            for batch in ranks.share(batches):
                batch.put(result, self.logprobs(role, batch))
        return ranks.total(result)

    def logprobs_and_entropy(self, role: Role, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        with self.autocast(), torch.no_grad():
            states = batch.reply_states(role.hidden(*batch.inputs()))
            head = role.logits_of(self.temperature, self.suppress)
            return token_logprobs_and_entropy(states, batch.target, head, chunk=self.chunk)

    def values(self, role: Role, batch: MicroBatch) -> Tensor:
        """Values of the states before each reply token, fp32 `[N]`."""
        assert role.head is not None, f"role {role.name} has no scalar head"
        with self.autocast():
            hidden = role.hidden(*batch.inputs())
        return role.head(batch.reply_states(hidden))


def kl_of_replies(
    forward: Forward, policy: Role, reference: Role, batches: Sequence[MicroBatch], mask: Tensor
) -> tuple[Tensor, Tensor]:
    """KL of each reply from the reference in nats, by k1 and by k3: two fp64 `[B]` on the CPU.

    k1 is log pi(reply) - log ref(reply), unbiased for the KL when the policy sampled the replies.
    """
    ours, theirs = (forward.reply_logprobs(role, batches, mask).cpu().double() for role in (policy, reference))
    k1, k3 = kl_estimates(ours, theirs)
    return k1.sum(1), k3.sum(1)
