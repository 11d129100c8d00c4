"""Message trees to rankings: each message with several ranked replies becomes one row (Open Assistant, arXiv:2304.07327)."""

from collections.abc import Iterable, Iterator

from rlhf.data.sources import Row

ROLE = {"prompter": "user", "assistant": "assistant"}


def rankings(messages: Iterable[Row]) -> Iterator[Row]:
    """Rows {prompt: the messages from the root, replies, ranks}; rank 0 is the best sibling.

    A reply nobody ranked (`rank` is null) or that was deleted is left out; a message with fewer than two replies left gives no row,
    nor does one whose way to the root is cut by a slice of the split.
    """
    rows = {row.values["message_id"]: row for row in messages}
    children: dict[str, list[Row]] = {}
    for row in rows.values():
        if row.values["role"] == "assistant" and row.values.get("rank") is not None and not row.values.get("deleted"):
            children.setdefault(row.values["parent_id"], []).append(row)
    for parent, replies in children.items():
        path, at = [], parent
        while at in rows:
            path.append({"role": ROLE[rows[at].values["role"]], "content": rows[at].values["text"]})
            at = rows[at].values["parent_id"]
        if len(replies) < 2 or at is not None:
            continue
        values = {"prompt": path[::-1], "replies": [reply.values["text"] for reply in replies]}
        yield Row(rows[parent].where, values | {"ranks": [int(reply.values["rank"]) for reply in replies]})
