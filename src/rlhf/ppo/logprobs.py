"""Log-probabilities of chosen tokens in fp32, without ever storing logits over the vocabulary.

`[N, vocabulary]` logits are what made stock PPO need gigabytes for a 41M-parameter model. Here the LM head runs over `chunk`
tokens at a time, and backward either recomputes a chunk (`torch.utils.checkpoint`) or, when the head is frozen, as it is
under LoRA, multiplies by a derivative that forward already took: one number per token has one gradient row per token.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Low enough that the probability underflows to 0, finite so that 0 * logit stays 0 in the entropy.
SUPPRESSED = -1e30


def shape_logits(logits: Tensor, temperature: float, suppress: tuple[int, ...]) -> Tensor:
    """The distribution that is sampled from: fp32 `[N, V]` logits over `temperature`, without the suppressed ids.

    Sampling and every later log-probability go through this one function, so that the ratio and the KL compare like with
    like (TRL#2358, TRL#4647: repetition penalties that only sampling saw). Double stays double, for gradcheck.
    """
    logits = logits.float() if logits.dtype != torch.float64 else logits
    if temperature != 1.0:
        logits = logits / temperature
    if suppress:
        columns = torch.tensor(suppress, device=logits.device)
        logits = logits.index_fill(-1, columns, SUPPRESSED)
    return logits


def chunk_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """log softmax(logits)[targets]: `[N, V]`, `[N]` -> `[N]`."""
    return logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - torch.logsumexp(logits, dim=-1)


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of each row: `[N, V]` -> `[N]`."""
    normalizer = torch.logsumexp(logits, dim=-1)
    return normalizer - (torch.exp(logits - normalizer.unsqueeze(-1)) * logits).sum(-1)


class _FrozenHead(torch.autograd.Function):
    """Log-probabilities whose gradient with respect to the hidden states is taken chunk by chunk in forward.

    Token i's log-probability depends on hidden row i alone, so d(sum of log-probabilities)/d(hidden) holds every row's own
    derivative; backward scales row i by the incoming gradient. Saves the recomputation of the head, and a chunk's logits are
    gone before the next chunk's are made (the idea of Liger's fused linear losses, arXiv:2410.10989).
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor], chunk: int) -> Tensor:
        rows = torch.empty_like(hidden)
        logprobs = []
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            with torch.enable_grad():
                leaf = hidden[part].detach().requires_grad_()
                chosen = chunk_logprobs(head(leaf), targets[part])
            (rows[part],) = torch.autograd.grad(chosen, leaf, torch.ones_like(chosen))
            logprobs.append(chosen.detach())
        ctx.save_for_backward(rows)
        return torch.cat(logprobs)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        (rows,) = ctx.saved_tensors
        return (rows * gradients[0].unsqueeze(-1)).to(rows.dtype), None, None, None


def token_logprobs(
    hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor], *, chunk: int = 256, frozen_head: bool = False
) -> Tensor:
    """Log-probability of each target under `head(hidden)`: `[N, H]`, `[N]` -> fp32 `[N]`.

    `head` maps `[n, H]` hidden states to `[n, V]` shaped logits (`shape_logits` applied inside). `frozen_head` says that no
    parameter of the head is trained: the cheaper backward is then exact.
    """
    if not len(hidden):
        return hidden.new_zeros(0, dtype=torch.float32)
    if not (torch.is_grad_enabled() and hidden.requires_grad):
        parts = [
            chunk_logprobs(head(hidden[i : i + chunk]), targets[i : i + chunk]) for i in range(0, len(hidden), chunk)
        ]
        return torch.cat(parts)
    if frozen_head:
        return _FrozenHead.apply(hidden, targets, head, chunk)  # pyright: ignore[reportReturnType]

    def piece(states: Tensor, chosen: Tensor) -> Tensor:
        return chunk_logprobs(head(states), chosen)

    parts = [
        checkpoint(piece, hidden[i : i + chunk], targets[i : i + chunk], use_reentrant=False, preserve_rng_state=False)
        for i in range(0, len(hidden), chunk)
    ]
    return torch.cat(parts)  # pyright: ignore[reportCallIssue, reportArgumentType]


def token_logprobs_and_entropy(
    hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor], *, chunk: int = 256
) -> tuple[Tensor, Tensor]:
    """As `token_logprobs`, without gradient, with each token's entropy: two `[N]` tensors from one pass over the head."""
    logprobs, entropies = [], []
    with torch.no_grad():
        for i in range(0, len(hidden), chunk):
            logits = head(hidden[i : i + chunk])
            logprobs.append(chunk_logprobs(logits, targets[i : i + chunk]))
            entropies.append(entropy(logits))
    return torch.cat(logprobs), torch.cat(entropies)
