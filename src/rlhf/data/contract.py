"""One contract for every dataset: columns are mapped to roles, and each row becomes checked messages or is refused by name.

Roles a dataset may map: `messages`; `prompt`, `completion`; `prompt`, `chosen`, `rejected` (the prompt may be implied by two whole
dialogues); `prompt`, `ranking` and `ranks` (K replies, rank 0 is best, equal ranks are ties); `text`; and beside a prompt
`context`, a passage that is put after it unless it is empty; beside a ranking `truth`, the annotator's true scores of its replies.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, combinations, islice
from typing import Any

from rlhf.config import Dataset
from rlhf.data import sources
from rlhf.data.rows import BadRow, Row, first_good
from rlhf.errors import DataError, nearest

Messages = list[dict[str, Any]]
TURNS = ("messages", "prompt", "context", "completion", "chosen", "rejected", "ranking", "ranks", "truth")
ROLES = {"chat": TURNS, "transcript": TURNS, "plain": (*TURNS, "text"), "tree": ("prompt", "ranking", "ranks")}

# what each kind of row is read from: the first form whose roles are all mapped, and beside it what else is mapped
FORMS = {
    "demonstrations": (("text",), ("messages",), ("prompt", "completion")),
    "pairs": (("prompt", "ranking"), ("prompt", "chosen", "rejected"), ("chosen", "rejected")),
    "prompts": (("prompt",), ("messages",), ("chosen", "rejected")),
}
BESIDE = {"prompt": ("context",), "ranking": ("ranks", "truth")}


@dataclass(frozen=True)
class Dialogue:
    """The turns of a row, with what its chat template is given beside them.

    A turn has `role` (system, user, assistant or tool) and `content`, a text; it may have `reasoning_content`, `tool_calls`, `name`,
    `tool_call_id`, and `learn`, which is False on an assistant turn that is read and not learned.
    """

    messages: Messages
    tools: list[dict[str, Any]] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def then(self, messages: Messages) -> "Dialogue":
        """The same dialogue with more turns."""
        return replace(self, messages=[*self.messages, *messages])


@dataclass(frozen=True)
class Pair:
    """Two replies to one prompt, out of `k` that were ranked.

    `true_margin` is the annotator's true score of chosen minus rejected, where one knows it.
    """

    prompt: Dialogue
    chosen: Messages
    rejected: Messages
    true_margin: float | None = None
    k: int = 2


def read(
    dataset: Dataset, split: str | None, kind: str, limit: int | None = None, weight: float = 1.0
) -> tuple[Row | None, Iterator[Row]]:
    """The first row of a split that can be read, None if there is none, and all its rows, read `weight` times, of which that
    first one has every column that is read.

    Raises:
        DataError: no split, a role or a column that is not there, or none of the forms of `kind` is mapped.
    """
    if split is None:
        raise DataError("dataset.splits.train=null: there is nothing to train on\n  fix: dataset.splits.train=train")
    known = ROLES[dataset.format]
    for role, column in dataset.columns.items():
        if role not in known:
            hint = f"{nearest(role, known)}\n  allowed: {', '.join(known)}"
            hint += "\n  fix: dataset.format=plain, for text without turns" if role == "text" else ""
            raise DataError(f"dataset.columns.{role}={column}: not a role of dataset.format={dataset.format}{hint}")
    roles = _form(dataset, kind)
    roles += tuple(more for role in roles for more in BESIDE.get(role, ()) if more in dataset.columns)
    rows = islice(sources.Part(dataset, split, weight).open().read(), limit)
    first = first_good(before := [], rows)
    if first is None:
        return None, iter(before)
    check_columns(dataset, roles, [first])
    return first, chain(before, rows)


def check_columns(dataset: Dataset, roles: Iterable[str], rows: Sequence[Row]) -> None:
    """Raise a DataError where none of `rows`, if there are any, has the column of one of `roles`."""
    there = list(dict.fromkeys(str(name) for row in rows for name in row.values))
    for role in roles:
        column = dataset.columns[role]
        if rows and column not in there:
            hint = f"{nearest(column, there)}\n  allowed: {', '.join(there)}"
            place = rows[0].where.rpartition(":")[0]
            raise DataError(f"dataset.columns.{role}={column}: not a column of {place}{hint}")


def _form(dataset: Dataset, kind: str) -> tuple[str, ...]:
    for form in FORMS[kind]:
        if set(form) <= set(dataset.columns):
            return form
    needed = ", or ".join(" and ".join(form) for form in FORMS[kind])
    raise DataError(f"dataset.columns={dict(dataset.columns)}: gives no {kind}\n  allowed: {needed}")


def _cell(row: Row, column: str) -> Any:
    if column not in row.values:
        raise BadRow("no such column", f"{column} is not there, only {', '.join(map(str, row.values)) or 'nothing'}")
    return row.values[column]


def dialogue(dataset: Dataset, row: Row) -> Dialogue:
    """A whole demonstration, ending in an assistant turn (for sft)."""
    columns, form = dataset.columns, _form(dataset, "demonstrations")
    if "text" in form:
        return Dialogue([{"role": "assistant", "content": _text(_cell(row, columns["text"]), columns["text"])}])
    if "messages" in form:
        messages = _messages(dataset, _cell(row, columns["messages"]), columns["messages"])
    else:
        messages = _asked(dataset, row) + _reply(_cell(row, columns["completion"]), columns["completion"])
    return Dialogue(_checked(dataset, messages, last="assistant"))


def pairs(dataset: Dataset, row: Row) -> Iterator[Pair]:
    """The strict preferences in a row: one, or for a ranking up to K(K-1)/2; ties give none (for reward and dpo)."""
    columns = dataset.columns
    if "ranking" in _form(dataset, "pairs"):
        yield from _ranking(dataset, row)
        return
    prompt, chosen, rejected = _split_pair(dataset, row)
    if chosen == rejected:
        both = f"{columns['chosen']} and {columns['rejected']}"
        raise BadRow("chosen equals rejected", f"{both} are the same reply: {_short(chosen)}")
    yield Pair(Dialogue(prompt), chosen, rejected)


def prompt(dataset: Dataset, row: Row) -> Dialogue:
    """What a policy is asked to answer, ending in a user turn (for ppo and for evaluation)."""
    form = _form(dataset, "prompts")
    if "prompt" in form:
        return Dialogue(_checked(dataset, _asked(dataset, row), last="user"))
    if "messages" in form:
        messages = dialogue(dataset, row).messages
        asked = max((i + 1 for i, message in enumerate(messages) if message["role"] == "user"), default=0)
        return Dialogue(_checked(dataset, messages[:asked], last="user"))
    return Dialogue(_split_pair(dataset, row)[0])


def reference(dataset: Dataset, row: Row) -> str:
    """The reply that a row itself gives to its prompt, for rewards that compare with it; empty where it has none."""
    columns = dataset.columns
    if {"prompt", "completion"} <= set(columns) and columns["completion"] in row.values:
        return _reply(row.values[columns["completion"]], columns["completion"])[-1]["content"]
    if "messages" in columns and "prompt" not in columns:
        return dialogue(dataset, row).messages[-1]["content"]
    return ""


def _ranking(dataset: Dataset, row: Row) -> Iterator[Pair]:
    columns, column = dataset.columns, dataset.columns["ranking"]
    asked = _checked(dataset, _asked(dataset, row), last="user")
    replies = _cell(row, column)
    if not isinstance(replies, list) or len(replies) < 2:
        raise BadRow("not a ranking", f"{column} must be a list of at least two replies, found {_short(replies)}")
    ranks = _cell(row, columns["ranks"]) if "ranks" in columns else list(range(len(replies)))
    truth = _cell(row, columns["truth"]) if "truth" in columns else None
    for name, values in (("ranks", ranks), ("truth", truth)):
        if values is None or (isinstance(values, list) and len(values) == len(replies) and all(map(_number, values))):
            continue
        found = f"{len(replies)} numbers, found {_short(values)}"
        raise BadRow("not a ranking", f"{columns.get(name, name)} must hold {found}")
    messages = [_reply(reply, column) for reply in replies]
    for first, second in combinations(range(len(replies)), 2):
        if ranks[first] == ranks[second]:
            continue
        best, worst = (first, second) if ranks[first] < ranks[second] else (second, first)
        if messages[best] == messages[worst]:
            detail = f"{column} has the same reply at two ranks: {_short(replies[best])}"
            raise BadRow("chosen equals rejected", detail)
        margin = None if truth is None else truth[best] - truth[worst]
        yield Pair(Dialogue(asked), messages[best], messages[worst], margin, k=len(replies))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _split_pair(dataset: Dataset, row: Row) -> tuple[Messages, Messages, Messages]:
    columns = dataset.columns
    chosen, rejected = _cell(row, columns["chosen"]), _cell(row, columns["rejected"])
    if "prompt" in columns:
        asked = _checked(dataset, _asked(dataset, row), last="user")
        return asked, _reply(chosen, columns["chosen"]), _reply(rejected, columns["rejected"])
    whole = [
        _checked(dataset, _messages(dataset, value, columns[role]), last="assistant")
        for role, value in (("chosen", chosen), ("rejected", rejected))
    ]
    if whole[0][:-1] != whole[1][:-1]:
        raise BadRow("prompts differ", f"{columns['chosen']} and {columns['rejected']} differ before the last turn")
    if len(whole[0]) < 2:
        raise BadRow("no prompt", f"{columns['chosen']} has a single message; a prompt and a reply are needed")
    return whole[0][:-1], whole[0][-1:], whole[1][-1:]


def _asked(dataset: Dataset, row: Row) -> Messages:
    """The prompt of a row, with its context below the last turn."""
    column = dataset.columns["prompt"]
    messages = _messages(dataset, _cell(row, column), column)
    context = row.values.get(dataset.columns.get("context", ""))
    if messages and isinstance(context, str) and context.strip():
        last = messages[-1]
        messages = [*messages[:-1], {**last, "content": f"{last['content']}\n\n{context}"}]
    return messages


def _messages(dataset: Dataset, value: Any, column: str) -> Messages:
    """A cell as messages: a list of them, a transcript with markers, or a string that is one user turn."""
    if isinstance(value, str) and dataset.format == "transcript":
        return _transcript(dataset, value, column)
    if isinstance(value, str) and value.lstrip().startswith("[{"):  # messages in a CSV cell
        with contextlib.suppress(json.JSONDecodeError):
            value = json.loads(value)
    if isinstance(value, str):
        return [{"role": "user", "content": _text(value, column)}]
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise BadRow("not messages", f"{column} must be a text or a list of messages, found {_short(value)}")
    for turn in value:
        if not isinstance(turn.get("content"), str) or not isinstance(turn.get("role"), str):
            needed = "a message needs a role and a content, both text"
            raise BadRow("not messages", f"{column}: {needed}, found {_short(turn)}")
    return [{"role": turn["role"], "content": turn["content"]} for turn in value]


def _reply(value: Any, column: str) -> Messages:
    """A cell as one assistant turn; a list of messages may be the reply alone or the dialogue that ends in it."""
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1].get("content") if value[-1].get("role") == "assistant" else None
        if value is None:
            raise BadRow("wrong role order", f"{column} must end in an assistant turn")
    return [{"role": "assistant", "content": _text(value, column)}]


def _text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise BadRow("not text", f"{column} must be text, found {type(value).__name__} {_short(value)}")
    if not value.strip():
        raise BadRow("empty text", f"{column} is empty")
    return value


def _transcript(dataset: Dataset, value: str, column: str) -> Messages:
    markers, messages, rest = dataset.markers or {}, [], value
    while rest.strip():
        role = next((role for role, marker in markers.items() if rest.lstrip().startswith(marker.strip())), None)
        if role is None:
            known = list(markers.values())
            raise BadRow("not a transcript", f"{column} must start with one of {known}, found {_short(rest)}")
        body = rest.lstrip()[len(markers[role].strip()) :]
        ends = [at for marker in markers.values() if (at := body.find(marker.rstrip())) >= 0]
        messages.append({"role": role, "content": body[: min(ends, default=len(body))].strip()})
        rest = body[min(ends, default=len(body)) :]
    if not messages:
        raise BadRow("empty text", f"{column} is empty")
    return messages


def _checked(dataset: Dataset, messages: Messages, last: str) -> Messages:
    """Turns alternate, an optional system turn comes first, nothing is empty, and the last turn has the role `last`."""
    turns = [m["role"] for m in messages]
    body = turns[1:] if turns[:1] == ["system"] else turns
    expected = ["user" if i % 2 == 0 else "assistant" for i in range(len(body))]
    if not body or body != expected or body[-1] != last:
        raise BadRow("wrong role order", f"turns must alternate from user to {last}, found {' '.join(turns) or 'none'}")
    for message in messages:
        if message["role"] != "system" and not message["content"].strip():
            raise BadRow("empty text", f"a {message['role']} turn is empty")
    if dataset.system is not None and turns[0] != "system":
        return [{"role": "system", "content": dataset.system}, *messages]
    return messages


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
