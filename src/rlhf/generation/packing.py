"""The rows of a batch laid out again so that little padding is multiplied: the longest first, short ones beside each other, in
micro-batches of as many tokens.

A row sees itself alone, at the positions that it would have alone, so nothing but the order of sums changes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

IGNORED = -100  # the label of a token that is not learned


def lay_out(batches: Sequence[dict[str, Any]], pad_id: int, share: bool) -> list[dict[str, Tensor]]:
    """As many micro-batches of the same rows, padded on the right as those of TRL's collator are: `input_ids`, `labels`, `attention_mask`.

    `weight` is 1 over the learned tokens of the micro-batch that a row came in: what a mean over that one counts a token. Where rows
    lie beside each other (`share`), `positions` and `segments` say where each begins; all are `[lines, T]`.
    """
    rows: list[tuple[Tensor, Tensor, float]] = []
    for batch in batches:
        weight = 1 / max(1, int((batch["labels"][:, 1:] != IGNORED).sum()))
        lengths = batch["attention_mask"].sum(1).tolist()
        rows += [
            (ids[:end], labels[:end], weight)
            for ids, labels, end in zip(batch["input_ids"], batch["labels"], lengths, strict=True)
        ]
    found = []
    for lines in arrange([len(ids) for ids, _, _ in rows], len(batches), share):
        width = -(-max(sum(len(rows[i][0]) for i in line) for line in lines) // 8) * 8  # as rlhf.generation.batches
        filled = {"input_ids": pad_id, "labels": IGNORED, "positions": 0, "segments": -1, "weight": 0.0}
        device = rows[0][0].device
        made = {name: torch.full((len(lines), width), fill, device=device) for name, fill in filled.items()}
        for at, line in enumerate(lines):
            start = 0
            for number, (ids, labels, weight) in enumerate((rows[i] for i in line), 1):
                end = start + len(ids)
                made["input_ids"][at, start:end], made["segments"][at, start:end] = ids, number
                made["labels"][at, start + 1 : end] = labels[1:]  # nothing before a row's first token predicts it
                made["positions"][at, start:end] = torch.arange(len(ids), device=device)
                made["weight"][at, start:end] = weight
                start = end
        made["attention_mask"] = (made["segments"] >= 0).long()
        if all(len(line) == 1 for line in lines):
            del made["positions"], made["segments"]
        found.append(made)
    return found


def arrange(lengths: Sequence[int], parts: int, share: bool) -> list[list[list[int]]]:
    """`parts` micro-batches of lines of row numbers: a line is a row, or with `share` rows that together are no longer than the longest.

    Of all ways to cut the lines, sorted by length, into so many parts it takes the one whose largest part has the fewest tokens,
    padding included.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    lines = [[i] for i in order]
    if share:
        beside: list[list[int]] = []
        room: list[int] = []
        for i in order:
            at = next((at for at, left in enumerate(room) if lengths[i] <= left), len(room))
            if at == len(room):
                beside.append([])
                room.append(lengths[order[0]])
            beside[at].append(i)
            room[at] -= lengths[i]
        lines = beside if len(beside) >= parts else lines
    lines.sort(key=lambda line: -sum(lengths[i] for i in line))
    widths = [sum(lengths[i] for i in line) for line in lines]
    low, high = max(widths, default=0), max(widths, default=0) * len(lines)
    while low < high:
        limit = (low + high) // 2
        low, high = (low, limit) if len(_cut(widths, limit)) <= parts else (limit + 1, high)
    starts = _cut(widths, low)
    while len(starts) < min(parts, len(lines)):  # the part with the most lines becomes two
        sizes = [end - start for start, end in zip(starts, [*starts[1:], len(lines)], strict=True)]
        most = sizes.index(max(sizes))
        starts.insert(most + 1, starts[most] + sizes[most] // 2)
    return [lines[start:end] for start, end in zip(starts, [*starts[1:], len(lines)], strict=True)]


def _cut(widths: Sequence[int], limit: int) -> list[int]:
    """Where parts of `limit` tokens at most begin, each as wide as its first line."""
    starts: list[int] = []
    for at in range(len(widths)):
        if not starts or (at - starts[-1] + 1) * widths[starts[-1]] > limit:
            starts.append(at)
    return starts
