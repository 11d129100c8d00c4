"""Micro-batches of prompts with replies, laid out once an update and used by every pass of it.

Old, reference and new log-probabilities of a row are computed next to the same neighbours with the same padding, so a
ratio that should be 1 is 1 to the last bit; in bf16, changing the neighbours alone moves 8% of the tokens by more than
10% (TRL#6789). Rows are sorted by length, which leaves little to pad. Minibatches are drawn by shuffling whole
micro-batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class MicroBatch:
    """`b` sequences, prompt and reply in one piece, padded on the right to little more than the longest of them.

    Reply tokens are addressed as a flat list of `N`: `row` within the micro-batch, `state` the position whose hidden
    state predicts the token, `target` the token itself, (`batch_row`, `step`) its place in the `[B, R]` tensors of the
    rollout. `ids` are the padded tokens `[b, T]`, `rows` the places of the sequences in the batch, `last` `[b]` the
    position of each reply's last token. Replies that share a prompt are told by `segments` `[b, T]` (0 the prompt, then each reply, -1
    padding) and have `positions` `[b, T]` of their own (rlhf.generation.rankings).
    """

    ids: Tensor
    row: Tensor
    state: Tensor
    target: Tensor
    batch_row: Tensor
    step: Tensor
    last: Tensor
    rows: list[int]
    positions: Tensor | None = None
    segments: Tensor | None = None

    def inputs(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What `Role.hidden` takes."""
        return self.ids, None if self.segments is None else seen(self.segments), self.positions

    @property
    def tokens(self) -> int:
        return len(self.target)

    def reply_states(self, hidden: Tensor) -> Tensor:
        """The states that predict the reply tokens: `[b, T, ...]` -> `[N, ...]`."""
        return hidden[self.row, self.state]

    def last_states(self, hidden: Tensor) -> Tensor:
        """The states at the last token of each reply, which the reward head reads: `[b, T, H]` -> `[b, H]`."""
        return hidden[torch.arange(len(hidden), device=hidden.device), self.last]

    def pick(self, values: Tensor) -> Tensor:
        """`[B, R]` values of the rollout at this micro-batch's tokens, `[N]`."""
        return values[self.batch_row, self.step]

    def put(self, into: Tensor, values: Tensor) -> None:
        into[self.batch_row, self.step] = values.to(into.dtype)


def seen(segments: Tensor) -> Tensor:
    """Who sees whom: `[b, T]` segments (0 the prompt, then the replies, -1 padding) to a boolean `[b, 1, T, T]`."""
    queries, keys = segments[:, :, None], segments[:, None, :]
    before = torch.ones(segments.shape[-1], segments.shape[-1], dtype=torch.bool, device=segments.device).tril()
    return (((keys == 0) | (keys == queries)) & before).unsqueeze(1)


def lay_out(
    prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]], size: int, pad_id: int, device: torch.device
) -> list[MicroBatch]:
    """Sorts rows by total length, shortest first, and cuts them into micro-batches of `size`."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(replies[i]))
    batches = []
    for rows in (order[start : start + size] for start in range(0, len(order), size)):
        # to a multiple of 8: oneDNN compiles kernels for every new shape and keeps them, tensor cores like it, and
        # contexts are multiples of 8 too
        width = -(-max(len(prompts[i]) + len(replies[i]) for i in rows) // 8) * 8
        ids, row, state, target, batch_row, step, last = [], [], [], [], [], [], []
        for k, i in enumerate(rows):
            prompt, reply = list(prompts[i]), list(replies[i])
            ids.append(prompt + reply + [pad_id] * (width - len(prompt) - len(reply)))
            row += [k] * len(reply)
            state += range(len(prompt) - 1, len(prompt) + len(reply) - 1)
            target += reply
            batch_row += [i] * len(reply)
            step += range(len(reply))
            last.append(len(prompt) + len(reply) - 1)
        columns = (ids, row, state, target, batch_row, step, last)
        batches.append(MicroBatch(*(torch.tensor(c, dtype=torch.long, device=device) for c in columns), rows=rows))
    return batches


def reply_mask(replies: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """`[B, R]`, true on the tokens a reply has; R is the longest reply."""
    lengths = torch.tensor([len(r) for r in replies], device=device)
    return torch.arange(int(lengths.max()), device=device) < lengths.unsqueeze(1)
