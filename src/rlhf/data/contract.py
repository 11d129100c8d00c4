"""One contract for every dataset: columns are mapped to roles, and each row becomes checked messages or is refused by name.

Roles a dataset may map: `messages`; `prompt`, `completion`; `prompt`, `chosen`, `rejected` (the prompt may be implied by two whole
dialogues); `prompt`, `ranking` and `ranks` (K replies, rank 0 is best, equal ranks are ties) or `scores` (the highest is best);
`text`. Beside a prompt `context`, a passage that is put after it unless it is empty, and `history`, pairs of turns before it; beside
a ranking `truth`, the annotator's true scores of its replies; beside a pair `margin`; beside a reply `label`, whether people liked it;
beside any dialogue `system`, `tools` and `chat_template_kwargs`. What is not mapped is found out from the rows (`settle`).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, combinations, islice
from math import isfinite
from os.path import commonprefix
from typing import Any, NamedTuple

from rlhf.config import Dataset
from rlhf.data import shapes, sources, turns
from rlhf.data.rows import BadRow, Row, Rows
from rlhf.data.turns import Messages, short, text
from rlhf.errors import DataError, nearest
from rlhf.shell import setting

ALONGSIDE = ("system", "tools", "chat_template_kwargs")
TURNS = ("messages", "prompt", "context", "history", "completion", "label", "chosen", "rejected", "margin")
TURNS += ("ranking", "ranks", "scores", "truth", *ALONGSIDE)
ROLES = {
    "chat": TURNS,
    "transcript": TURNS,
    "plain": (*TURNS, "text"),
    "tree": ("prompt", "ranking", "ranks"),
}

# what each kind of row is read from: the first form whose roles are all mapped, and beside it what else is mapped
FORMS = {
    "demonstrations": (("text",), ("messages",), ("prompt", "completion")),
    "pairs": (("prompt", "ranking"), ("prompt", "chosen", "rejected"), ("chosen", "rejected")),
    "prompts": (("prompt",), ("messages",), ("chosen", "rejected")),
}
BESIDE = {
    "prompt": ("context", "history", *ALONGSIDE),
    "messages": ("label", *ALONGSIDE),
    "completion": ("label",),
    "chosen": ("margin", *ALONGSIDE),
    "ranking": ("ranks", "scores", "truth"),
}
FOUND = ("history", "label", "margin", *ALONGSIDE)  # columns of these names are read although nobody mapped them
LOOKED_AT = 20  # first rows, by which a shape is judged


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


class Read(NamedTuple):
    """Rows of a split; `dataset` has the columns that they turned out to have, `shape` says in words how they are read."""

    dataset: Dataset
    shape: str
    first: Row | None
    rows: Iterator[Row]
    source: Rows


def read(dataset: Dataset, split: str | None, kind: str, limit: int | None = None, weight: float = 1.0) -> Read:
    """The rows of a split, read `weight` times, with the first of them that can be read, None if there is none.

    Raises:
        DataError: no split, a role or a column that is not there, or rows that give no `kind` (demonstrations, pairs, prompts).
    """
    if split is None:
        raise DataError("dataset.splits.train=null: there is nothing to train on\n  fix: dataset.splits.train=train")
    source = sources.Part(dataset, split, weight).open()
    rows = source.read(0, limit)
    ahead = list(islice(rows, LOOKED_AT))
    good = [row for row in ahead if row.bad is None]
    settled, shape = settle(dataset, good, kind)
    if dataset.bad_rows == "error" and len(good) > 1:
        _refuse_all(settled, good, kind)
    return Read(settled, shape, good[0] if good else None, chain(ahead, rows), source)


def settle(dataset: Dataset, rows: Sequence[Row], kind: str) -> tuple[Dataset, str]:
    """The dataset with the columns that its first rows have, and in words how they are read.

    A role that is mapped to a column of its own name, as the presets of local files do, is left out where there is no such column. If
    what remains gives no `kind`, the shape is found out from the rows. A role that is mapped to another name stands as it was said.

    Raises:
        DataError: a role that is none, a column that is not there, no shape that fits, or several.
    """
    known, mapped = (
        ROLES[dataset.format],
        {role: column for role, column in dataset.columns.items() if column is not None},
    )
    for role, column in mapped.items():
        if role not in known:
            hint = f"{nearest(role, known)}\n  allowed: {', '.join(known)}"
            hint += "\n  fix: dataset.format=plain, for text without turns" if role == "text" else ""
            raise DataError(f"dataset.columns.{role}={column}: not a role of dataset.format={dataset.format}{hint}")
    if mapped.get("ranks") in shapes.SCORES:
        why = "ranks are 0 for the best, and a column of that name has a high number for the best"
        fix = f"'~dataset.columns.ranks' +dataset.columns.scores={mapped['ranks']}"
        raise DataError(f"dataset.columns.ranks={mapped['ranks']}: {why}\n  fix: {fix}")
    held = shapes.values([row.values for row in rows])
    there = {role: column for role, column in mapped.items() if column in held or column != role or not rows}
    form, name = _form(there, kind), ""
    guess = dataset.format == "chat" or (dataset.format == "plain" and (form is not None or not there))
    if rows and guess and (form is None or _lacks_prompt(form, there, held)):
        form, name, there, dataset = _found_out(dataset, rows, kind, form, there, held)
    if form is None:
        if (whole := _form(mapped, kind)) is not None:
            _no_such_columns(dataset, [role for role in whole if role not in there], mapped, rows)
        needed = ", or ".join(" and ".join(form) for form in FORMS[kind])
        raise DataError(f"dataset.columns={dict(mapped)}: gives no {kind}\n  allowed: {needed}")
    beside = {role for first in form for role in BESIDE.get(first, ())}
    if dataset.format in ("chat", "plain"):
        for role in FOUND:
            if role in beside and role in known and role not in dataset.columns and _speaks(role, held.get(role, ())):
                there[role] = role
    if "ranking" in form and not {"ranks", "scores"} & set(there):
        there |= {role: role for role in ("ranks", "scores") if role in held and role not in dataset.columns}
    used = [*form, *(role for role in there if role in beside and role not in form)]
    _no_such_columns(dataset, [role for role in used if role not in BESIDE or role in there], there, rows)
    more = [role for role in used if role in (*FOUND, "context", "ranks", "scores")]
    name = name or _called(form, there, held)
    return replace(dataset, columns=there), name + (f" with {', '.join(more)}" if more else "")


def _found_out(
    dataset: Dataset,
    rows: Sequence[Row],
    kind: str,
    form: tuple[str, ...] | None,
    there: dict[str, str],
    held: shapes.Values,
) -> tuple[tuple[str, ...] | None, str, dict[str, str], Dataset]:
    """The one public shape that the rows have; what was settled so far where they have none."""
    flat = rows[0].flat
    found = shapes.shapes(
        {name: [turns.unfolded(v) for v in cells] for name, cells in held.items()} if flat else held, kind
    )
    found = [
        shape for shape in found if all(shape.columns.get(role, column) == column for role, column in there.items())
    ] or found
    if len(found) > 1:
        listed = "; ".join(f"{shape.name}: {_mapping(shape.columns, dataset)}" for shape in found)
        place = rows[0].where.rpartition(":")[0]
        raise DataError(f"{place} can be read in {len(found)} ways\n  say which, with one of these: {listed}")
    if found:
        columns = there | found[0].columns
        return _form(columns, kind), found[0].name, columns, dataset
    chosen = there.get("chosen", "chosen")
    if kind != "demonstrations" and form is not None and _texts(held.get(chosen, ())):
        if markers := shapes.transcript(held[chosen]):
            return form, "pairs of transcripts", there, replace(dataset, format="transcript", markers=markers)
        if dataset.format == "plain":
            return form, "pairs of texts that begin alike", there, dataset
        why = "two texts of which no column holds the prompt"
        fix = "dataset.format=plain, which takes what both begin with, or +dataset.columns.prompt= the column that asks"
        raise DataError(f"{rows[0].where}: {chosen} and {there['rejected']} are {why}\n  fix: {fix}")
    if kind == "demonstrations" and _texts(held.get("text", ())) and dataset.format == "chat":
        why = f"the rows of {rows[0].where.rpartition(':')[0]} are texts without turns"
        raise DataError(f"dataset.format=chat: {why}\n  fix: dataset.format=plain +dataset.columns.text=text")
    if kind == "pairs" and any(isinstance(value, bool) for value in held.get("label", ())):
        why = "thumbs up and down, each for one reply, are no pairs"
        raise DataError(f"{rows[0].where}: {why}\n  fix: method=sft, which learns the replies that people liked")
    return form, "", there, dataset


def _mapping(columns: dict[str, str], dataset: Dataset) -> str:
    """Overrides that map these columns and no others, to be pasted."""
    gone = [f"'~dataset.columns.{role}'" for role in dataset.columns if role not in columns]
    put = [
        setting(("" if role in dataset.columns else "+") + f"dataset.columns.{role}", c) for role, c in columns.items()
    ]
    return " ".join([*gone, *put])


def _lacks_prompt(form: tuple[str, ...], there: dict[str, str], held: shapes.Values) -> bool:
    if form != ("chosen", "rejected"):
        return False
    return not any(turns.is_whole(turns.unfolded(value)) for value in held.get(there["chosen"], ()))


def _speaks(role: str, cells: Sequence[Any]) -> bool:
    """Whether a column that nobody mapped says what its name promises: a `label` may be a class, a `system` a number."""
    if role == "label":
        return (
            bool(cells)
            and all(value in (0, 1, "true", "false", "True", "False") for value in cells if not isinstance(value, list))
            and not any(isinstance(value, list) for value in cells)
        )
    if role == "margin":
        return any(_number(value) for value in cells)
    kinds = {"system": str, "tools": (str, list, dict), "chat_template_kwargs": (str, dict), "history": list}
    return any(value and isinstance(value, kinds[role]) for value in cells)


def _called(form: tuple[str, ...], there: dict[str, str], held: shapes.Values) -> str:
    column = there[form[-1] if form[0] == "prompt" and len(form) == 1 else form[0]]
    cells = [value for value in held.get(column, ()) if isinstance(value, list)]
    foreign = any(isinstance(turn, dict) and "from" in turn for value in cells for turn in value)
    names = {
        ("text",): "texts",
        ("messages",): "dialogues",
        ("prompt", "completion"): "prompts and completions",
        ("prompt", "ranking"): "rankings",
        ("prompt", "chosen", "rejected"): "pairs",
        ("chosen", "rejected"): "pairs of whole dialogues",
        ("prompt",): "prompts",
    }
    return ("ShareGPT " if foreign else "") + names[form]


def _texts(cells: Sequence[Any]) -> bool:
    return bool(cells) and all(isinstance(value, str) for value in cells)


def _refuse_all(dataset: Dataset, rows: Sequence[Row], kind: str) -> None:
    """Refuse rows that all break in one way: leaving them out would leave nothing."""
    reasons = []
    for row in rows:
        try:
            made = {"demonstrations": dialogue, "pairs": lambda *a: list(pairs(*a)), "prompts": prompt}[kind](
                dataset, row
            )
            if made or not isinstance(made, list):
                return
        except BadRow as bad:
            reasons.append(bad)
    if reasons and len({bad.reason for bad in reasons}) == 1:
        fix = reasons[0].fix or f"map the columns that the rows have, which are {', '.join(map(str, rows[0].values))}"
        what = f"{rows[0].where}: {reasons[0]}\n  and so are all of the first {len(rows)} rows"
        raise DataError(f"{what}\n  fix: {fix}")


def check_columns(dataset: Dataset, roles: Iterable[str], rows: Sequence[Row]) -> None:
    """Raise a DataError where none of `rows`, if there are any, has the column of one of `roles`."""
    _no_such_columns(dataset, [role for role in roles if dataset.columns.get(role) != role], dataset.columns, rows)


def _no_such_columns(dataset: Dataset, roles: Iterable[str], columns: dict[str, Any], rows: Sequence[Row]) -> None:
    there = list(dict.fromkeys(str(name) for row in rows for name in row.values))
    for role in roles:
        column = columns.get(role)
        if rows and column is not None and column not in there:
            hint = f"{nearest(column, there)}\n  allowed: {', '.join(there)}"
            place = rows[0].where.rpartition(":")[0]
            raise DataError(f"dataset.columns.{role}={column}: not a column of {place}{hint}")


def _form(columns: dict[str, str], kind: str) -> tuple[str, ...] | None:
    return next((form for form in FORMS[kind] if set(form) <= set(columns)), None)


def _mapped(dataset: Dataset, kind: str) -> tuple[str, ...]:
    form = _form(dataset.columns, kind)  # pyright: ignore[reportArgumentType]
    if form is None:
        raise BadRow("no such column", f"dataset.columns={dict(dataset.columns)} gives no {kind}")
    return form


def _name(dataset: Dataset, role: str) -> str:
    """The column of a role; empty where none is mapped."""
    return dataset.columns.get(role) or ""


def _cell(row: Row, column: str | None) -> Any:
    if column not in row.values:
        raise BadRow("no such column", f"{column} is not there, only {', '.join(map(str, row.values)) or 'nothing'}")
    return turns.unfolded(row.values[column]) if row.flat else row.values[column]


def dialogue(dataset: Dataset, row: Row) -> Dialogue:
    """A whole demonstration, ending in an assistant turn (for sft)."""
    columns, form = dataset.columns, _mapped(dataset, "demonstrations")
    if "text" in form:
        return Dialogue([{"role": "assistant", "content": text(_cell(row, columns["text"]), str(columns["text"]))}])
    if "label" in columns:
        _liked(_cell(row, columns["label"]), str(columns["label"]))
    if "messages" in form:
        messages = _messages(dataset, row, "messages")
    else:
        asked = _asked(dataset, row)
        messages = _continued(asked, _reply(dataset, row, "completion"), str(columns["completion"]))
    return _given(dataset, row, messages, ("assistant",))


def _liked(label: Any, column: str) -> None:
    """Only what people liked is learned from rows with one reply and a thumb."""
    value = {"true": True, "false": False, "1": True, "0": False}.get(str(label).lower().removesuffix(".0"))
    if value is None:
        raise BadRow("not a label", f"{column} must be true or false, found {short(label)}")
    if not value:
        raise BadRow(
            "disliked",
            f"{column} is false: people disliked the reply",
            fix="dataset.bad_rows=drop, which leaves out what people disliked",
        )


def pairs(dataset: Dataset, row: Row) -> Iterator[Pair]:
    """The strict preferences in a row: one, or for a ranking up to K(K-1)/2; ties give none (for reward and dpo)."""
    columns = dataset.columns
    if "ranking" in _mapped(dataset, "pairs"):
        yield from _ranking(dataset, row)
        return
    asked, chosen, rejected = _split_pair(dataset, row)
    margin = row.values.get(_name(dataset, "margin"))
    margin = 0 if margin is None else margin
    if not _number(margin):
        raise BadRow("not a margin", f"{columns['margin']} must be a number, found {short(margin)}")
    if chosen == rejected:
        both = f"{columns['chosen']} and {columns['rejected']}"
        raise BadRow("chosen equals rejected", f"{both} are the same reply: {short(chosen)}")
    yield Pair(asked, chosen, rejected, margin=float(margin) if "margin" in columns else None)


def prompt(dataset: Dataset, row: Row) -> Dialogue:
    """What a policy is asked to answer, ending in a user's turn or a tool's (for ppo and for evaluation)."""
    form, columns = _mapped(dataset, "prompts"), dataset.columns
    if {"prompt", "chosen", "rejected"} <= set(columns) and turns.is_whole(row.values.get(_name(dataset, "chosen"))):
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
    if {"prompt", "completion"} <= set(columns) and columns["completion"] in row.values:
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
        if not isinstance(given, list) or len(given) != len(replies) or not all(map(_number, given)):
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


def _number(value: Any) -> bool:
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
    both = [_given(dataset, row, _messages(dataset, row, role), ("assistant",)) for role in cells]
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
    return reply


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
