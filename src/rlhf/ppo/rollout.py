"""Sampling of replies: a batch of prompts goes in, a batch of replies with real lengths comes out.

An own decoding loop rather than `generate`: no generation config is read, changed or saved (TRL#2358, tf#42762), no scores are
kept, several EOS ids end a reply, pad cannot be sampled, and rows that have ended leave the batch and its cache.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf.ppo.roles import Role


def stream(seed: int, purpose: str, update: int) -> torch.Generator:
    """A generator of its own for each purpose and update, on the CPU.

    Derived rather than carried along: a resumed run draws what the unbroken one draws without restoring any state, and what a
    reward function does to the global generators changes nothing.
    """
    digest = hashlib.blake2b(f"{seed}/{purpose}/{update}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


@dataclass
class Replies:
    """What was sampled for `B` prompts, in the order of the prompts.

    `tokens[i]` ends with its EOS id if `ended[i]`; `logprobs[i]` are those of the decoding passes, kept only to measure how far
    decoding is from the training forward.
    """

    tokens: list[list[int]]
    logprobs: list[list[float]]
    ended: list[bool]


def left_pad(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """`[B, P]` ids and mask with the pads on the left, whatever side the tokenizer pads on (TRL#2778)."""
    width = max(len(p) for p in prompts)
    ids = torch.tensor([[pad_id] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask


def choose(logits: Tensor, uniforms: Tensor) -> Tensor:
    """The token at which the cumulative probability passes each row's uniform number: `[B, V]`, `[B]` -> `[B]`.

    One number a row instead of one a vocabulary entry; a uniform number below 0 takes the most likely token.
    """
    cumulative = torch.softmax(logits, dim=-1).cumsum(-1, dtype=torch.float64)
    position = torch.searchsorted(cumulative, (uniforms * cumulative[:, -1]).unsqueeze(-1), right=True).squeeze(-1)
    # rounding can push the last uniform past the last entry; a suppressed entry there must not be taken
    best = logits.argmax(-1)
    position = torch.where(position < logits.shape[-1], position, best)
    return torch.where(uniforms < 0, best, position)


@torch.no_grad()
def sample_chunk(
    policy: Role,
    prompts: Sequence[Sequence[int]],
    uniforms: Tensor,
    *,
    temperature: float,
    eos_ids: Sequence[int],
    pad_id: int,
) -> Replies:
    """Decodes one chunk of prompts with a cache; `uniforms` is `[B, max_new_tokens]`, so every row has its own randomness."""
    from transformers import DynamicCache

    device = policy.device
    head = policy.logits_of(temperature or 1.0, (pad_id,))
    ids, mask = left_pad(prompts, pad_id, device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    uniforms = uniforms.to(device)
    stops = torch.tensor(list(eos_ids), device=device)
    count, limit = uniforms.shape
    tokens, logprobs = torch.full((count, limit), pad_id, device=device), torch.zeros(count, limit, device=device)
    lengths, ended = torch.full((count,), limit, device=device), torch.zeros(count, dtype=torch.bool, device=device)
    alive = torch.arange(count, device=device)
    cache: Any = DynamicCache(config=policy.model.config)
    for step in range(limit):
        output = policy.backbone(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        logits = head(output.last_hidden_state[:, -1])
        chosen = choose(logits, uniforms[alive, step])
        tokens[alive, step] = chosen
        logprobs[alive, step] = torch.log_softmax(logits, -1).gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
        stopped = torch.isin(chosen, stops)
        ended[alive] = stopped
        lengths[alive[stopped]] = step + 1
        running = (~stopped).nonzero().squeeze(-1)
        if not len(running):
            break
        if len(running) < len(alive):
            cache.batch_select_indices(running)
            alive, chosen, mask, positions = alive[running], chosen[running], mask[running], positions[running]
        ids, positions = chosen.unsqueeze(-1), positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
    sizes = lengths.tolist()
    return Replies(
        tokens=[row[:n] for row, n in zip(tokens.tolist(), sizes, strict=True)],
        logprobs=[row[:n] for row, n in zip(logprobs.tolist(), sizes, strict=True)],
        ended=ended.tolist(),
    )


def sample_replies(
    policy: Role,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    eos_ids: Sequence[int],
    pad_id: int,
    generator: torch.Generator,
    chunk_size: int,
) -> Replies:
    """Samples one reply a prompt, in chunks of prompts of similar length.

    The random numbers are drawn for all rows beforehand, so a reply does not depend on which rows share its chunk (up to the
    rounding of the forward pass). Temperature 0 is greedy.
    """
    shape = (len(prompts), max_new_tokens)
    uniforms = torch.rand(shape, generator=generator, dtype=torch.float64) if temperature else -torch.ones(shape)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    tokens: list[list[int]] = [[] for _ in prompts]
    logprobs: list[list[float]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    was_training = policy.model.training
    policy.model.eval()
    try:
        with policy.active():
            for start in range(0, len(order), chunk_size):
                rows = order[start : start + chunk_size]
                part = sample_chunk(
                    policy,
                    [prompts[i] for i in rows],
                    uniforms[rows],
                    temperature=temperature,
                    eos_ids=eos_ids,
                    pad_id=pad_id,
                )
                for i, ids, values, end in zip(rows, part.tokens, part.logprobs, part.ended, strict=True):
                    tokens[i], logprobs[i], ended[i] = ids, values, end
    finally:
        policy.model.train(was_training)
    return Replies(tokens, logprobs, ended)
