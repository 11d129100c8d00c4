"""Which column of a dataset has which role: as it is mapped, or as the first rows tell."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any, NamedTuple

from rlhf.config import Dataset
from rlhf.data import contract, shapes, sources, turns
from rlhf.data.contract import FORMS, THUMBS, form_of, is_number, thumb_of
from rlhf.data.rows import BadRow, Row, Rows
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

# what is read beside a role, if it is mapped
BESIDE = {
    "prompt": ("context", "history", *ALONGSIDE),
    "messages": ("label", *ALONGSIDE),
    "completion": ("label",),
    "chosen": ("margin", *ALONGSIDE),
    "ranking": ("ranks", "scores", "truth"),
}
FOUND = ("history", "label", "margin", *ALONGSIDE)  # columns of these names are read although nobody mapped them
LOOKED_AT = 20  # first rows, by which a shape is judged


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
        DataError: no split, a role or a column that is not there, or rows that give no `kind` (demonstrations, pairs, thumbs, prompts).
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
    known = ROLES[dataset.format]
    mapped = {role: column for role, column in dataset.columns.items() if column is not None}
    for role, column in mapped.items():
        if role not in known:
            hint = f"{nearest(role, known)}\n  allowed: {', '.join(known)}"
            hint += "\n  fix: dataset.format=plain, for text without turns" if role == "text" else ""
            raise DataError(f"dataset.columns.{role}={column}: not a role of dataset.format={dataset.format}{hint}")
    if mapped.get("ranks") in shapes.SCORES:
        why = "ranks are 0 for the best, and a column of that name has a high number for the best"
        fix = f"dataset.columns.ranks=null +dataset.columns.scores={mapped['ranks']}"
        raise DataError(f"dataset.columns.ranks={mapped['ranks']}: {why}\n  fix: {fix}")
    held = shapes.values([row.values for row in rows])
    there = {role: column for role, column in mapped.items() if column in held or column != role or not rows}
    form, name = form_of(there, kind), ""
    guess = dataset.format == "chat" or (dataset.format == "plain" and (form is not None or not there))
    if rows and guess and (form is None or _lacks_prompt(form, there, held)):
        form, name, there, dataset = _found_out(dataset, rows, kind, form, there, held)
    if form is None:
        if (whole := form_of(mapped, kind)) is not None:
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
    if kind == "thumbs" and _has_three(held.get(there.get("label", ""), ())):
        what = f"dataset.columns.label={there['label']}: holds 0 and -1, of which one is no thumb down"
        raise DataError(f"{what}\n  fix: rows with true and false, without those that say neither")
    more = [role for role in used if role in (*FOUND, "context", "ranks", "scores") and role not in form]
    name = name or _called(form, there, held)
    unseen = {name: None for name in turns.MEDIA if name in dataset.columns}  # of which somebody said so
    return replace(dataset, columns=there | unseen), name + (f" with {', '.join(more)}" if more else "")


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
        return form_of(columns, kind), found[0].name, columns, dataset
    chosen = there.get("chosen", "chosen")
    if kind != "demonstrations" and form is not None and _texts(held.get(chosen, ())):
        if markers := shapes.transcript(held[chosen]):
            return form, "pairs of transcripts", there, replace(dataset, format="transcript", markers=markers)
        if dataset.format == "plain":
            return form, "pairs of texts that begin alike", there, dataset
        why = "two texts of which no column holds the prompt"
        fix = "dataset.format=plain   (the prompt is what both begin with), or +dataset.columns.prompt= the column that asks"
        raise DataError(f"{rows[0].where}: {chosen} and {there['rejected']} are {why}\n  fix: {fix}")
    if kind == "demonstrations" and _texts(held.get("text", ())) and dataset.format == "chat":
        why = f"the rows of {rows[0].where.rpartition(':')[0]} are texts without turns"
        raise DataError(f"dataset.format=chat: {why}\n  fix: dataset.format=plain +dataset.columns.text=text")
    if kind == "pairs" and any(isinstance(value, bool) for value in held.get("label", ())):
        why = "thumbs up and down, each for one reply, are no pairs"
        fix = "method=kto   (it learns from both), or method=sft   (it learns the replies that people liked)"
        raise DataError(f"{rows[0].where}: {why}\n  fix: {fix}")
    if any(isinstance(value, list) for value in held.get("completions", ())):
        why = "several completions of one prompt, steps perhaps with a label each, which no method here learns from"
        fix = "rows with prompt and completion for method=sft, or prompt, chosen and rejected for method=dpo and method=reward"
        raise DataError(f"{rows[0].where}: {why}\n  fix: {fix}")
    return form, "", there, dataset


def _mapping(columns: dict[str, str], dataset: Dataset) -> str:
    """Overrides that map these columns and no others, to be pasted."""
    gone = [f"dataset.columns.{role}=null" for role in dataset.columns if role not in columns]
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
        return bool(cells) and {thumb_of(cell) for cell in cells} <= set(THUMBS) and not _has_three(cells)
    if role == "margin":
        return any(is_number(value) for value in cells)
    kinds = {"system": str, "tools": (str, list, dict), "chat_template_kwargs": (str, dict), "history": list}
    return any(value and isinstance(value, kinds[role]) for value in cells)


def _has_three(labels: Sequence[Any]) -> bool:
    """Whether labels may stand for good, neither and bad."""
    return {"0", "-1"} <= {thumb_of(label) for label in labels}


def _called(form: tuple[str, ...], there: dict[str, str], held: shapes.Values) -> str:
    column = there[form[-1] if form[0] == "prompt" and len(form) == 1 else form[0]]
    cells = [value for value in held.get(column, ()) if isinstance(value, list)]
    foreign = any(isinstance(turn, dict) and "from" in turn for value in cells for turn in value)
    names = {
        ("text",): "texts",
        ("messages",): "dialogues",
        ("prompt", "completion"): "prompts and completions",
        ("prompt", "completion", "label"): "thumbs",
        ("messages", "label"): "thumbs",
        ("prompt", "ranking"): "rankings",
        ("prompt", "chosen", "rejected"): "pairs",
        ("chosen", "rejected"): "pairs of whole dialogues",
        ("prompt",): "prompts",
    }
    return ("ShareGPT " if foreign else "") + names[form]


def _texts(cells: Sequence[Any]) -> bool:
    return bool(cells) and all(isinstance(value, str) for value in cells)


MAKE = {
    "demonstrations": contract.dialogue,
    "pairs": lambda dataset, row: list(contract.pairs(dataset, row)),
    "thumbs": lambda dataset, row: list(contract.thumbs(dataset, row)),
    "prompts": contract.prompt,
}


def _refuse_all(dataset: Dataset, rows: Sequence[Row], kind: str) -> None:
    """Refuse rows that all break in one way: leaving them out would leave nothing."""
    reasons = []
    for row in rows:
        try:
            if MAKE[kind](dataset, row):
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
