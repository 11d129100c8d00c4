"""Prompts with several replies each, laid out so that every token is read once: a prompt, then its replies side by side.

Each reply sees the prompt and itself, at the positions it would have alone, so its log-probabilities are those of a row of its own
(prefix sharing, arXiv:2410.20305): P + K R tokens in place of K (P + R).
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from rlhf.generation.batches import MicroBatch
from rlhf.models.attention import ATTENTION, SEEN
from rlhf.models.roles import Role

LONGEST = 4096  # tokens of a row; replies that do not fit beside a prompt go into a row with the prompt again
MASKED = {"sdpa", ATTENTION, SEEN, "eager"}  # attention that takes a mask of its own making


class Ranking(NamedTuple):
    """A prompt and different replies to it, as tokens."""

    prompt: Sequence[int]
    replies: Sequence[Sequence[int]]


def grouped(pairs: Iterable[Any]) -> list[dict[str, Any]]:
    """Pairs to rankings, each with its prompt and different replies, and its pairs as positions among them; `length` is that of all."""
    found: dict[tuple[int, ...], dict[str, Any]] = {}
    for pair in pairs:
        prompt = pair["prompt_ids"]
        new = {
            "prompt_ids": prompt,
            "replies": [],
            "chosen": [],
            "rejected": [],
            "ranking": pair["ranking"],
            "k": pair["k"],
            "length": len(prompt),
        }
        ranking = found.setdefault((pair["ranking"], *prompt), new)
        for number, side in enumerate(("chosen", "rejected")):
            ids = pair[f"{side}_ids"]
            if ids not in ranking["replies"]:
                ranking["replies"].append(ids)
                ranking["length"] += len(ids)
                if pair.get("reference"):
                    ranking.setdefault("reference", []).append(pair["reference"][number])
            ranking[side].append(ranking["replies"].index(ids))
    return list(found.values())


def lay_out(rankings: Sequence[Ranking], pad_id: int, share: bool, device: torch.device | str = "cpu") -> MicroBatch:
    """One micro-batch; `batch_row` numbers the replies of all rankings in order, and
    `rows` and `last` say where each ends. Without `share` each reply has a row of its own."""
    rows = list(_rows(rankings, LONGEST if share else 0))
    width = -(-max(sum(map(len, (prompt, *replies))) for prompt, replies, _ in rows) // 8) * 8
    ids, positions, segments = (torch.full((len(rows), width), fill) for fill in (pad_id, 0, -1))
    row, state, target, batch_row, step, last, of_reply = [], [], [], [], [], [], []
    for at, (prompt, replies, first) in enumerate(rows):
        start = len(prompt)
        ids[at, :start], positions[at, :start], segments[at, :start] = torch.tensor(prompt), torch.arange(start), 0
        for number, reply in enumerate(replies):
            end = start + len(reply)
            ids[at, start:end], segments[at, start:end] = torch.tensor(reply), number + 1
            positions[at, start:end] = torch.arange(len(prompt), len(prompt) + len(reply))
            row += [at] * len(reply)
            state += [len(prompt) - 1, *range(start, end - 1)]
            target += reply
            batch_row += [first + number] * len(reply)
            step += range(len(reply))
            last.append(end - 1)
            of_reply.append(at)
            start = end
    columns = (torch.tensor(c, dtype=torch.long, device=device) for c in (row, state, target, batch_row, step, last))
    batch = MicroBatch(ids.to(device), *columns, rows=of_reply)
    if any(len(replies) > 1 for _, replies, _ in rows):
        batch.positions, batch.segments = positions.to(device), segments.to(device)
    return batch


def _rows(rankings: Sequence[Ranking], longest: int) -> Iterator[tuple[list[int], list[list[int]], int]]:
    """Prompt, replies beside it, and the number of the first of them."""
    number = 0
    for prompt, replies in rankings:
        beside: list[list[int]] = []
        length = len(prompt)
        for reply in replies:
            if beside and length + len(reply) > longest:
                yield list(prompt), beside, number - len(beside)
                beside, length = [], len(prompt)
            beside.append(list(reply))
            length, number = length + len(reply), number + 1
        yield list(prompt), beside, number - len(beside)


@torch.no_grad()
def can_share(role: Role, longest: int) -> bool:
    """Whether replies beside each other have the hidden states that they have alone, in rows of up to `longest` tokens alone.

    A window that slides must be as long as such a row; the rest is tried out: positions that the model takes from elsewhere, layers that
    mix tokens without a mask.
    """
    config = role.model.config.get_text_config()
    windows = [size for name in ("sliding_window", "attention_chunk_size") if (size := getattr(config, name, None))]
    if config._attn_implementation not in MASKED or any(size < longest for size in windows):
        return False
    asked = [Ranking([1, 2, 3], [[4, 5, 6], [7, 8, 9], [2, 3, 4]])]
    apart, beside = (lay_out(asked, 0, share, role.device) for share in (False, True))
    training = role.model.training
    role.model.eval()
    try:
        with role.active():
            ours, theirs = (batch.reply_states(role.hidden(*batch.inputs())).float() for batch in (beside, apart))
    except (TypeError, ValueError, RuntimeError, IndexError):
        return False
    finally:
        role.model.train(training)
    return torch.allclose(ours, theirs, rtol=2e-2, atol=2e-2 * float(theirs.abs().max()))
