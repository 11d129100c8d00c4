"""One contract for every dataset: columns are mapped to roles, and each row becomes checked messages or is refused by name.

Roles a dataset may map: `messages`; `prompt`, `completion`; `prompt`, `chosen`, `rejected` (the prompt may be implied by two whole
dialogues); `prompt`, `ranking` and `ranks` (K replies, rank 0 is best, equal ranks are ties) or `scores` (the highest is best);
`text`. Beside a prompt `context`, a passage that is put after it unless it is empty, and `history`, pairs of turns before it; beside
a ranking `truth`, the annotator's true scores of its replies; beside a pair `margin`; beside a reply `label`, a thumb up or down;
beside any dialogue `system`, `tools` and `chat_template_kwargs`. What is not mapped, `rlhf.data.columns` finds out.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from math import isfinite
from os.path import commonprefix
from typing import Any

from rlhf.config import Dataset
from rlhf.data import turns
from rlhf.data.rows import BadRow, Row
from rlhf.data.turns import Messages, short, text

# what each kind of row is read from: the first form whose roles are all mapped, and beside it what else is mapped
FORMS = {
    "demonstrations": (("text",), ("messages",), ("prompt", "completion")),
    "pairs": (("prompt", "ranking"), ("prompt", "chosen", "rejected"), ("chosen", "rejected")),
    "thumbs": (
        ("prompt", "completion", "label"),
        ("messages", "label"),
        ("prompt", "ranking"),
        ("prompt", "chosen", "rejected"),
        ("chosen", "rejected"),
    ),
    "prompts": (("prompt",), ("messages",), ("chosen", "rejected")),
}
UP, DOWN = ("true", "1", "+1", "up", "👍"), ("false", "0", "-1", "down", "👎")
THUMBS = dict.fromkeys(UP, True) | dict.fromkeys(DOWN, False)


@dataclass(frozen=True)
class Dialogue:
    """The turns of a row, as `rlhf.data.turns` makes them, with what its chat template is given beside them."""

    messages: Messages
    tools: list[dict[str, Any]] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def then(self, messages: Messages) -> "Dialogue":
        """The same dialogue with more turns."""
        return replace(self, messages=[*self.messages, *messages])


@dataclass(frozen=True)
class Pair:
    """Two replies to one prompt, out of `k` that were ranked. Each may have several turns, the last of them an assistant's.

    `margin` is by how much chosen is to win in the loss of a reward model, `true_margin` the annotator's true score of chosen minus
    rejected, where one knows it.
    """

    prompt: Dialogue
    chosen: Messages
    rejected: Messages
    true_margin: float | None = None
    k: int = 2
    margin: float | None = None


@dataclass(frozen=True)
class Thumb:
    """A reply to a prompt, and whether people liked it. It may have several turns, the last of them an assistant's. `ranked` tells
    whether that follows from a comparison with others."""

    prompt: Dialogue
    reply: Messages
    liked: bool
    ranked: bool = False


def form_of(columns: Mapping[str, str | None], kind: str) -> tuple[str, ...] | None:
    """The first form of `kind` whose roles are all mapped."""
    return next((form for form in FORMS[kind] if set(form) <= set(columns)), None)


def _mapped(dataset: Dataset, kind: str) -> tuple[str, ...]:
    form = form_of(dataset.columns, kind)
    if form is None:
        raise BadRow("no such column", f"dataset.columns={dict(dataset.columns)} gives no {kind}")
    return form


def _name(dataset: Dataset, role: str) -> str:
    """The column of a role; empty where none is mapped."""
    return dataset.columns.get(role) or ""


def _cell(row: Row, column: str | None) -> Any:
    if column not in row.values:
        raise BadRow("no such column", f"{column} is not there, only {', '.join(map(str, row.values)) or 'nothing'}")
    value = row.values[column]
    if isinstance(value, BadRow):  # the row has no such thing, and says why
        raise value
    return turns.unfolded(value) if row.flat else value


def dialogue(dataset: Dataset, row: Row) -> Dialogue:
    """A whole demonstration, ending in an assistant turn (for sft)."""
    columns, form = dataset.columns, _mapped(dataset, "demonstrations")
    if "text" in form:
        return Dialogue([{"role": "assistant", "content": text(_cell(row, columns["text"]), str(columns["text"]))}])
    if "label" in columns:
        _liked(_cell(row, columns["label"]), str(columns["label"]))
    return _given(dataset, row, _demonstrated(dataset, row, form), ("assistant",))


def _demonstrated(dataset: Dataset, row: Row, form: tuple[str, ...]) -> Messages:
    """The turns of a whole dialogue, or of a prompt with its completion."""
    if "messages" in form:
        return _messages(dataset, row, "messages")
    return _continued(_asked(dataset, row), _reply(dataset, row, "completion"), str(dataset.columns["completion"]))


def _liked(label: Any, column: str) -> None:
    """Only what people liked is learned from rows with one reply and a thumb."""
    if not _thumb(label, column):
        raise BadRow("disliked", f"{column} is false: people disliked the reply", fix="dataset.bad_rows=drop")


def thumb_of(label: Any) -> str:
    """A label as it stands in THUMBS, if it is one: 1.0 is 1."""
    return str(label).strip().lower().removesuffix(".0")


def _thumb(label: Any, column: str) -> bool:
    value = THUMBS.get(thumb_of(label))
    if value is None:
        allowed = f"{', '.join(UP)} (up) or {', '.join(DOWN)} (down)"
        raise BadRow("not a label", f"{column} must be true or false, found {short(label)}\n  allowed: {allowed}")
    return value


def pairs(dataset: Dataset, row: Row) -> Iterator[Pair]:
    """The strict preferences in a row: one, or for a ranking up to K(K-1)/2; ties give none (for reward and dpo)."""
    columns = dataset.columns
    if "ranking" in _mapped(dataset, "pairs"):
        yield from _ranking(dataset, row)
        return
    asked, chosen, rejected = _split_pair(dataset, row)
    margin = row.values.get(_name(dataset, "margin"))
    margin = 0 if margin is None else margin
    if not is_number(margin):
        raise BadRow("not a margin", f"{columns['margin']} must be a number, found {short(margin)}")
    if chosen == rejected:
        both = f"{columns['chosen']} and {columns['rejected']}"
        raise BadRow("chosen equals rejected", f"{both} are the same reply: {short(chosen)}")
    yield Pair(asked, chosen, rejected, margin=float(margin) if "margin" in columns else None)


def thumbs(dataset: Dataset, row: Row) -> Iterator[Thumb]:
    """The thumbs in a row (for kto): its own; up for chosen and down for rejected; or one for each reply of a ranking, up where it wins
    more comparisons than it loses, down where it loses more, none where it wins as many. A row of feedback may have both."""
    form, columns = _mapped(dataset, "thumbs"), dataset.columns
    none = {role for role in ("label", "ranking") if isinstance(row.values.get(_name(dataset, role)), BadRow)}
    if "label" in form and not ("label" in none and "ranking" in columns):
        liked = _thumb(_cell(row, columns["label"]), str(columns["label"]))
        whole = _given(dataset, row, _demonstrated(dataset, row, form), ("assistant",))
        asks = ("user", "tool") if "messages" in form else ("user",)  # a completion is liked as a whole
        asked = max((i + 1 for i, turn in enumerate(whole.messages) if turn["role"] in asks), default=0)
        if not asked:
            raise BadRow("no prompt", "no turn of a user; a prompt and a reply are needed")
        yield Thumb(replace(whole, messages=whole.messages[:asked]), whole.messages[asked:], liked)
        if "ranking" in none or "ranking" not in columns:
            return
    won: dict[str, int] = {}
    replies: dict[str, tuple[Dialogue, Messages]] = {}
    for pair in pairs(dataset, row):
        for reply, point in ((pair.chosen, 1), (pair.rejected, -1)):
            replies[str(reply)] = (pair.prompt, reply)
            won[str(reply)] = won.get(str(reply), 0) + point
    for key, points in won.items():
        if points:
            yield Thumb(*replies[key], points > 0, ranked=True)


def prompt(dataset: Dataset, row: Row) -> Dialogue:
    """What a policy is asked to answer, ending in a user's turn or a tool's (for ppo and for evaluation)."""
    form, columns = _mapped(dataset, "prompts"), dataset.columns
    whole = {"prompt", "chosen", "rejected"} <= set(columns) and columns["chosen"] in row.values
    if whole and turns.is_whole(_cell(row, columns["chosen"])):  # it may say more than the prompt beside it
        return _split_pair(dataset, row)[0]
    if "prompt" in form:
        return _given(dataset, row, _asked(dataset, row), ("user", "tool"))
    if "messages" in form:
        whole = _given(dataset, row, _messages(dataset, row, "messages"), ("assistant",))
        asked = max((i + 1 for i, turn in enumerate(whole.messages) if turn["role"] in ("user", "tool")), default=0)
        return replace(whole, messages=_checked(whole.messages[:asked], ("user", "tool")))
    return _split_pair(dataset, row)[0]


def reference(dataset: Dataset, row: Row) -> str:
    """The reply that a row itself gives to its prompt, for rewards that compare with it; empty where it has none."""
    columns = dataset.columns
    told = row.values.get(_name(dataset, "completion"))
    if (
        {"prompt", "completion"} <= set(columns)
        and columns["completion"] in row.values
        and not isinstance(told, BadRow)
    ):
        return _reply(dataset, row, "completion")[-1]["content"]
    if "messages" in columns and "prompt" not in columns:
        return _messages(dataset, row, "messages")[-1]["content"]
    return ""


def _ranking(dataset: Dataset, row: Row) -> Iterator[Pair]:
    columns, column = dataset.columns, str(dataset.columns["ranking"])
    asked = _given(dataset, row, _asked(dataset, row), ("user", "tool"))
    replies = _cell(row, column)
    if not isinstance(replies, list) or len(replies) < 2:
        raise BadRow("not a ranking", f"{column} must be a list of at least two replies, found {short(replies)}")
    numbers = {role: _cell(row, columns[role]) if role in columns else None for role in ("ranks", "scores", "truth")}
    for role, given in numbers.items():
        if given is None and role not in columns:
            continue
        if not isinstance(given, list) or len(given) != len(replies) or not all(map(is_number, given)):
            found = f"{len(replies)} numbers, found {short(given)}"
            raise BadRow("not a ranking", f"{columns[role]} must hold {found}")
    ranks, truth = numbers["ranks"] or list(range(len(replies))), numbers["truth"]
    if numbers["scores"] is not None:
        ranks = [-score for score in numbers["scores"]]
    messages = [_answer(dataset, reply, column) for reply in replies]
    for first, second in combinations(range(len(replies)), 2):
        if ranks[first] == ranks[second]:
            continue
        best, worst = (first, second) if ranks[first] < ranks[second] else (second, first)
        if messages[best] == messages[worst]:
            detail = f"{column} has the same reply at two ranks: {short(replies[best])}"
            raise BadRow("chosen equals rejected", detail)
        margin = None if truth is None else truth[best] - truth[worst]
        yield Pair(asked, messages[best], messages[worst], margin, k=len(replies))


def is_number(value: Any) -> bool:
    """Whether a value orders others: no truth value, nothing infinite, not NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _split_pair(dataset: Dataset, row: Row) -> tuple[Dialogue, Messages, Messages]:
    """The prompt of a pair, and what follows it on both sides.

    Whole dialogues part where they first differ after the last turn of the user. Beside a prompt they must begin with it.
    """
    columns = dataset.columns
    names = f"{columns['chosen']} and {columns['rejected']}"
    cells = {role: _cell(row, columns[role]) for role in ("chosen", "rejected")}
    asked = _asked(dataset, row) if "prompt" in columns else []
    if dataset.format == "plain" and not asked and all(isinstance(cell, str) for cell in cells.values()):
        return _split_texts(cells["chosen"], cells["rejected"], names)
    if asked and not any(turns.is_whole(cell) for cell in cells.values()):
        replies = [_answer(dataset, cell, str(columns[role])) for role, cell in cells.items()]
        whole = _given(dataset, row, asked, ("user", "tool"))
        for reply in replies:
            _checked([*whole.messages, *reply], ("assistant",))
        return whole, replies[0], replies[1]
    both = [
        _given(dataset, row, _with_system(asked, _messages(dataset, row, role), names), ("assistant",))
        for role in cells
    ]
    chosen, rejected = (one.messages for one in both)
    asks = [
        max((i + 1 for i, turn in enumerate(one) if turn["role"] == "user"), default=0) for one in (chosen, rejected)
    ]
    if chosen[: asks[0]] != rejected[: asks[1]]:
        raise BadRow("prompts differ", f"{names} differ before the last turn")
    if not asks[0]:
        raise BadRow("no prompt", f"{names} have no turn of a user; a prompt and a reply are needed")
    if asked and not _begins(chosen, asked):
        raise BadRow(
            "prompts differ",
            f"{names} answer {short(chosen[0]['content'])}, {columns['prompt']} is {short(asked[0]['content'])}",
        )
    same = asks[0]
    while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
        same += 1
    while same > asks[0] and (
        same >= min(len(chosen), len(rejected)) or "assistant" not in (chosen[same]["role"], rejected[same]["role"])
    ):
        same -= 1
    return replace(both[0], messages=chosen[:same]), chosen[same:], rejected[same:]


def _begins(whole: Messages, asked: Messages) -> bool:
    """Whether a dialogue begins with what was asked, its system turn aside."""
    bare = [[turn for turn in side if turn["role"] != "system"] for side in (whole, asked)]
    return [turn["content"].strip() for turn in bare[0][: len(bare[1])]] == [
        turn["content"].strip() for turn in bare[1]
    ]


def _with_system(asked: Messages, whole: Messages, column: str) -> Messages:
    """A whole dialogue with the system turn of the prompt beside it, where that has one."""
    first = [turn for side in (asked, whole) for turn in side[:1] if turn["role"] == "system"]
    if len(first) == 2 and first[0]["content"].strip() != first[1]["content"].strip():
        raise BadRow("two system turns", f"{column} and the prompt differ: {short(first[0]['content'])}")
    return whole if not first or whole[:1] == first[-1:] else [first[0], *whole]


def _split_texts(chosen: str, rejected: str, names: str) -> tuple[Dialogue, Messages, Messages]:
    """Two texts as a prompt, which is what both begin with up to a space, and its replies."""
    same = commonprefix([chosen, rejected])
    same = same[: same.rstrip().rfind(" ")] if " " in same.rstrip() and not same[-1:].isspace() else same.rstrip()
    if not same.strip():
        raise BadRow("no prompt", f"{names} have no beginning in common: {short(chosen)}")
    better, worse = ([{"role": "assistant", "content": text(side[len(same) :], names)}] for side in (chosen, rejected))
    return Dialogue([{"role": "user", "content": same}]), better, worse


def _given(dataset: Dataset, row: Row, messages: Messages, last: tuple[str, ...]) -> Dialogue:
    """Turns with what the row says beside them; raises BadRow where their order is wrong."""
    columns, values = dataset.columns, row.values
    for name in turns.MEDIA:
        if name not in columns and values.get(name):
            fix = f"{turns.NO_WORDS}; or +dataset.columns.{name}=null, to learn the words without it"
            raise BadRow(f"{name} of a row", f"the row has {name}={short(values[name])}, which no model here sees", fix)
    system = values.get(_name(dataset, "system"))
    if isinstance(system, str) and system.strip():
        if messages[:1] and messages[0]["role"] == "system" and messages[0]["content"].strip() != system.strip():
            raise BadRow("two system turns", f"{columns['system']} and the first turn differ: {short(system)}")
        if not messages[:1] or messages[0]["role"] != "system":
            messages = [{"role": "system", "content": turns.unicode(system, str(columns["system"]))}, *messages]
    elif system is not None and not isinstance(system, str):
        raise BadRow("not text", f"{columns['system']} must be text, found {short(system)}")
    messages = _checked(messages, last)
    if dataset.system is not None and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": dataset.system}, *messages]
    offered = turns.tools(values.get(_name(dataset, "tools")), str(columns.get("tools")))
    options = values.get(_name(dataset, "chat_template_kwargs"))
    options = turns.loaded(options)
    if not isinstance(options, dict | None):
        raise BadRow(
            "not template options", f"{columns['chat_template_kwargs']} must be an object, found {short(options)}"
        )
    return Dialogue(messages, offered, {key: value for key, value in (options or {}).items() if value is not None})


def _asked(dataset: Dataset, row: Row) -> Messages:
    """The prompt of a row, with its context below the last turn and its history above."""
    messages = _messages(dataset, row, "prompt")
    context = row.values.get(_name(dataset, "context"))
    if messages and isinstance(context, str) and context.strip():
        last = messages[-1]
        messages = [*messages[:-1], {**last, "content": f"{last['content']}\n\n{turns.unicode(context, 'context')}"}]
    history = row.values.get(_name(dataset, "history")) or []
    if not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        raise BadRow("not a history", f"{dataset.columns['history']} must be a list of pairs, found {short(history)}")
    before = [
        {"role": role, "content": text(said, "history")}
        for pair in history
        for role, said in zip(("user", "assistant"), pair, strict=True)
    ]
    return [*before, *messages]


def _messages(dataset: Dataset, row: Row, role: str) -> Messages:
    """A cell as messages: a list of them, a transcript with markers, or a string that is one user turn."""
    column = str(dataset.columns[role])
    value = _cell(row, column)
    if isinstance(value, str) and dataset.format == "transcript":
        return _transcript(dataset, value, column)
    if isinstance(value, str) and role == "messages":
        value = turns.unfolded(value)  # a list that somebody stored as a text
    if isinstance(value, str):
        return [{"role": "user", "content": text(value, column)}]
    if isinstance(value, dict) and turns.is_turn(value):
        value = [value]
    if not isinstance(value, list):
        raise BadRow("not messages", f"{column} must be a text or a list of messages, found {short(value)}")
    return turns.turns(value, column)


def _reply(dataset: Dataset, row: Row, role: str) -> Messages:
    return _answer(dataset, _cell(row, dataset.columns[role]), str(dataset.columns[role]))


def _answer(dataset: Dataset, value: Any, column: str) -> Messages:
    """A cell as what follows a prompt: a text, one turn, or turns of which the last is the assistant's."""
    if isinstance(value, dict) and turns.is_turn(value):
        value = [value]
    if not isinstance(value, list) or not value or not isinstance(value[-1], dict):
        return [{"role": "assistant", "content": text(value, column)}]
    found = turns.turns(value, column)
    if found[-1]["role"] != "assistant":
        raise BadRow("wrong role order", f"{column} must end in an assistant turn")
    return found


def _continued(asked: Messages, reply: Messages, column: str) -> Messages:
    """A prompt with its reply, which may repeat the prompt."""
    if reply[0]["role"] in ("assistant", "tool"):
        return [*asked, *reply]
    if not _begins(reply, asked):
        raise BadRow("prompts differ", f"{column} answers {short(reply[0]['content'])}, and not the prompt")
    return _with_system(asked, reply, column)


def _transcript(dataset: Dataset, value: str, column: str) -> Messages:
    markers, messages, rest = dataset.markers or {}, [], value
    while rest.strip():
        role = next((role for role, marker in markers.items() if rest.lstrip().startswith(marker.strip())), None)
        if role is None:
            known = list(markers.values())
            raise BadRow("not a transcript", f"{column} must start with one of {known}, found {short(rest)}")
        body = rest.lstrip()[len(markers[role].strip()) :]
        ends = [at for marker in markers.values() if (at := body.find(marker.rstrip())) >= 0]
        messages.append({"role": role, "content": turns.unicode(body[: min(ends, default=len(body))].strip(), column)})
        rest = body[min(ends, default=len(body)) :]
    if not messages:
        raise BadRow("empty text", f"{column} is empty")
    return messages


FOLLOWS = {
    "": ("user",),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}


def _checked(messages: Messages, last: tuple[str, ...]) -> Messages:
    """User and assistant alternate, tools answer the assistant, an optional system turn comes first, nothing is empty, and the last
    turn has one of the roles `last`."""
    roles = [turn["role"] for turn in messages]
    steps = zip(["", *roles], roles, strict=False)
    good = all(
        role in FOLLOWS[before] or (role == "system" and not before) for before, role in steps if before in FOLLOWS
    )
    if not roles or not good or not set(roles) <= set(FOLLOWS) or roles[-1] not in last:
        found = " ".join(roles) or "none"
        raise BadRow("wrong role order", f"turns must alternate from user to {last[0]}, found {found}")
    for turn in messages:
        empty = not turn["content"].strip() and not turn.get("tool_calls")
        if empty and turn["role"] not in ("system", "tool"):
            raise BadRow("empty text", f"a {turn['role']} turn is empty")
    return messages
