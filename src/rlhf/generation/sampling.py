"""Sampling of replies: a batch of prompts goes in, a batch of replies with real lengths comes out.

An own decoding loop rather than `generate`: no generation config is read, changed or saved (TRL#2358, tf#42762), no
scores are kept, several EOS ids end a reply, pad cannot be sampled, and rows that have ended leave the batch and its
cache.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.generation.cache import cache_argument, decoding_cache
from rlhf.models.roles import Role
from rlhf.parallel import ranks


def stream(seed: int, purpose: str, update: int) -> torch.Generator:
    """A generator of its own for each purpose and update, on the CPU.

    Derived rather than carried along: a resumed run draws what the unbroken one draws without restoring any state, and
    what a reward function does to the global generators changes nothing.
    """
    digest = hashlib.blake2b(f"{seed}/{purpose}/{update}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


@dataclass
class Replies:
    """What was sampled for `B` prompts, in the order of the prompts.

    `tokens[i]` ends with its EOS id if `ended[i]`; `logprobs[i]` are those of the decoding passes, kept only to measure
    how far decoding is from the training forward.
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


def choose(logits: Tensor, uniforms: Tensor | None, block: int = 256) -> tuple[Tensor, Tensor]:
    """Token and log-probability of each row: `[B, V]` fp32 logits, `[B]` uniform numbers (None: greedy) -> two `[B]`.

    The token at which the cumulative probability passes the uniform number: one random number a row, not one a
    vocabulary entry. Looked up in two levels, first among sums of `block` entries, then within the block.
    """
    logprobs = torch.log_softmax(logits, dim=-1)
    if uniforms is None:
        chosen = logits.argmax(-1)
        return chosen, logprobs.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
    rows = torch.arange(len(logits), device=logits.device)
    blocks = torch.nn.functional.pad(logprobs.exp(), (0, -logits.shape[-1] % block)).unflatten(-1, (-1, block))
    sums = blocks.sum(-1, dtype=torch.float64)
    outer, rest = _pass(sums, uniforms * sums.sum(-1))
    inner, _ = _pass(blocks[rows, outer].double(), rest)
    chosen = outer * block + inner
    return chosen, logprobs.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)


def _pass(weights: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """The first entry with weight whose cumulative sum passes the threshold, and what of the threshold lies in it.

    Rounding can put the threshold at or past the total; the last entry with weight is then the one.
    """
    cumulative = weights.cumsum(-1)
    index = (cumulative <= threshold.unsqueeze(-1)).sum(-1)
    last = weights.shape[-1] - 1 - (weights > 0).int().flip(-1).argmax(-1)
    index = torch.minimum(index, last)
    before = (cumulative - weights).gather(-1, index.unsqueeze(-1)).squeeze(-1)
    return index, (threshold - before).clamp(min=0)


@torch.no_grad()
def sample_chunk(
    policy: Role,
    prompts: Sequence[Sequence[int]],
    uniforms: Tensor,
    temperature: float,
    eos_ids: Sequence[int],
    pad_id: int,
) -> Replies:
    """Decodes one chunk of prompts with a cache; `uniforms` is `[B, max_new_tokens]`, a row of its own for each."""
    device, head = policy.device, policy.logits_of(temperature or 1.0, (pad_id,))
    ids, mask = left_pad(prompts, policy.filler(pad_id), device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    uniforms = uniforms.to(device)
    stops = torch.tensor(list(eos_ids), device=device)
    count, limit = uniforms.shape
    tokens, logprobs = torch.full((count, limit), pad_id, device=device), torch.zeros(count, limit, device=device)
    lengths, ended = torch.full((count,), limit, device=device), torch.zeros(count, dtype=torch.bool, device=device)
    alive = torch.arange(count, device=device)
    cache, taken_as = decoding_cache(policy.model.config, limit), cache_argument(policy.backbone)
    padded = bool((mask == 0).any())  # without padding the attention needs no mask, and is faster
    for step in range(limit):
        output = policy.backbone(
            input_ids=ids,
            attention_mask=mask if padded else None,
            position_ids=positions,
            use_cache=True,
            **{taken_as: cache},
        )
        logits = head(output.last_hidden_state[:, -1])
        chosen, logprobs[alive, step] = choose(logits, uniforms[alive, step] if temperature else None)
        tokens[alive, step] = chosen
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
    """Samples one reply a prompt, in chunks of prompts of similar length, which are shared out among the ranks.

    The random numbers are drawn for all rows beforehand, so a reply does not depend on which rows share its chunk (up
    to the rounding of the forward pass). Temperature 0 is greedy.
    """
    uniforms = torch.rand((len(prompts), max_new_tokens), generator=generator, dtype=torch.float64)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    tokens: list[list[int]] = [[] for _ in prompts]
    logprobs: list[list[float]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    was_training = policy.model.training
    policy.model.eval()
    try:
        with policy.active():
            for rows in ranks.share([order[start : start + chunk_size] for start in range(0, len(order), chunk_size)]):
                asked = [prompts[i] for i in rows]
                part = sample_chunk(policy, asked, uniforms[rows], temperature, eos_ids, pad_id)
                for i, ids, values, end in zip(rows, part.tokens, part.logprobs, part.ended, strict=True):
                    tokens[i], logprobs[i], ended[i] = ids, values, end
    finally:
        policy.model.train(was_training)
    every = ranks.gather((tokens, logprobs, ended))
    for place, i in enumerate(order):
        theirs = every[ranks.owner(place // chunk_size)]
        tokens[i], logprobs[i], ended[i] = theirs[0][i], theirs[1][i], theirs[2][i]
    return Replies(tokens, logprobs, ended)
