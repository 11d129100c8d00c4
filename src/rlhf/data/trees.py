"""Conversation trees as Open Assistant publishes them: messages that name their parents, or replies in replies."""

from collections.abc import Iterable, Iterator
from typing import Any

from rlhf.data.rows import BadRow, Row

ROLE = {"prompter": "user", "assistant": "assistant"}
MESSAGE = ("message_id", "parent_id", "role", "text")


def rankings(messages: Iterable[Row]) -> Iterator[Row]:
    """Rows {prompt: the messages from the root, replies, ranks}; rank 0 is the best sibling.

    A reply nobody ranked (`rank` is null) or that was deleted is left out; a message with fewer than two replies left gives no row,
    nor does one whose way to the root is cut by a slice of the split. A bad row stands for a message without one of MESSAGE, with
    another role or a rank that is no number, or its own ancestor.
    """
    rows: dict[str, Row] = {}
    for row in messages:
        for message in [row] if row.bad else _flat(row):
            if bad := message.bad or _wrong(message.cells):
                yield Row(message.where, {}, bad)
            else:
                rows[message.cells["message_id"]] = message
    children: dict[str, list[Row]] = {}
    for row in rows.values():
        if row.cells["role"] == "assistant" and row.cells.get("rank") is not None and not row.cells.get("deleted"):
            children.setdefault(row.cells["parent_id"], []).append(row)
    for parent, replies in children.items():
        path, at = [], parent
        while at in rows and len(path) <= len(rows):
            path.append({"role": ROLE[rows[at].cells["role"]], "content": rows[at].cells["text"]})
            at = rows[at].cells["parent_id"]
        if len(path) > len(rows):
            ring = BadRow("its own ancestor", f"message_id={parent} is its own ancestor")
            yield Row(rows[parent].where, {}, ring)
        elif len(replies) > 1 and at is None:
            values = {"prompt": path[::-1], "replies": [reply.cells["text"] for reply in replies]}
            yield Row(rows[parent].where, values | {"ranks": [reply.cells["rank"] for reply in replies]})


def _flat(row: Row) -> Iterator[Row]:
    """The messages of a nested tree; a row that is a message is itself."""
    root = row.cells.get("prompt")
    if not isinstance(root, dict) or "message_id" in row.cells:
        yield row
        return
    waiting: list[tuple[Any, Any]] = [(root, None)]
    while waiting:
        message, parent = waiting.pop()
        if not isinstance(message, dict) or not isinstance(message.get("replies") or [], list):
            yield Row(
                row.where, {}, BadRow("not a tree", f"a message is an object with replies, found {message!r:.80}")
            )
            continue
        yield Row(row.where, {"parent_id": parent, **message})
        waiting += [(reply, message.get("message_id")) for reply in reversed(message.get("replies") or [])]


def _wrong(message: dict[str, Any]) -> BadRow | None:
    lacking = [column for column in MESSAGE if column not in message]
    if lacking:
        has = f"it has: {', '.join(map(str, message))}"
        return BadRow("not a message", f"dataset.format=tree reads a message's {', '.join(lacking)}\n  {has}")
    if not isinstance(message["role"], str) or message["role"] not in ROLE:
        allowed = ", ".join(ROLE)
        return BadRow("wrong role", f"role={message['role']!r} of a message\n  allowed: {allowed}")
    if not all(isinstance(message[name], str | None) for name in MESSAGE) or message["message_id"] is None:
        return BadRow("not a message", f"{', '.join(MESSAGE)} must be text, found {message!r:.80}")
    rank = message.get("rank")
    if isinstance(rank, bool) or not isinstance(rank, int | float | None) or rank != rank:
        return BadRow("not a rank", f"rank={rank!r} must be a number or null")
    return None
