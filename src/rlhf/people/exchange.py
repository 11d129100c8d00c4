"""Judgements as files that other programs read and write.

rankings      JSON lines of our own, one a judgement: prompt, replies in the order they were shown, ranks (0 is best), annotator, outcome
pairs         JSON lines as TRL takes them: prompt, chosen, rejected
argilla       the JSON of `dataset.records.to_json()`: fields, and under responses a list of field names, the best first, without ties
label-studio  the JSON export of a project with the tags List and Ranker: an order of ids, or buckets of them, which are ties here
"""

import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from rlhf.config import Splits, compose_config, to_stage
from rlhf.data import columns, contract
from rlhf.errors import DataError
from rlhf.feedback.schema import Item, Judgement, Reply
from rlhf.feedback.store import Store, dumped
from rlhf.files import read_json, read_lines, write_json, write_lines

Turns = list[dict[str, Any]]
NAMES = uuid.UUID("5f0ba0a6-7b51-4a8e-9d0c-6f1a3f0f7d11")  # Argilla knows people by such numbers
UNRANKED = "_"  # Label Studio's bucket of what nobody moved


@dataclass(frozen=True)
class Word:
    """What one person said of the replies to a prompt; `why` it cannot be kept, or empty."""

    messages: Turns
    replies: list[str]
    annotator: str
    ranks: list[int]
    outcome: str = "ranked"
    facts: dict[str, str] | None = None
    better: str | None = None
    milliseconds: int | None = None
    why: str = ""


def written(store: Store, path: Path, form: str) -> tuple[int, Counter[str]]:
    """Writes what stands into a file; returns how many lines or records, and what was left out, by reason."""
    left: Counter[str] = Counter()
    stands: dict[int, list[Judgement]] = {}
    for one in store.judgements():
        if one.undone is None:
            stands.setdefault(one.item, []).append(one)
        else:
            left["undone"] += 1
    rows = [row for item in store.items() for row in WRITERS[form](item, stands.get(item.id, []), left)]
    (write_lines if form in ("rankings", "pairs") else write_json)(path, rows)
    return len(rows), left


def _rankings(item: Item, said: Sequence[Judgement], left: Counter[str]) -> Iterator[dict[str, Any]]:
    texts = {reply.id: reply.text for reply in item.replies}
    for one in said:
        row = {"prompt": _short(item.messages), "replies": [texts[reply] for reply in one.shown]}
        row |= {"ranks": list(one.ranks), "annotator": one.annotator, "outcome": one.outcome, "facts": item.facts}
        yield row | {"better": one.better, "milliseconds": one.milliseconds}


def _pairs(item: Item, said: Sequence[Judgement], left: Counter[str]) -> Iterator[dict[str, Any]]:
    texts = {reply.id: [{"role": "assistant", "content": reply.text}] for reply in item.replies}
    for one in said:
        left[one.outcome] += one.outcome != "ranked"
        for first, second in combinations(zip(one.shown, one.ranks, strict=False), 2):
            (chosen, best), (rejected, worst) = sorted((first, second), key=lambda pair: pair[1])
            left["ties"] += best == worst
            if best != worst:
                yield {"prompt": item.messages, "chosen": texts[chosen], "rejected": texts[rejected]}


def _argilla(item: Item, said: Sequence[Judgement], left: Counter[str]) -> Iterator[dict[str, Any]]:
    names = {reply.id: f"reply_{number}" for number, reply in enumerate(item.replies, 1)}
    fields = {"prompt": _short(item.messages)} | {names[reply.id]: reply.text for reply in item.replies}
    responses = []
    for one in said:
        if why := one.outcome if one.outcome != "ranked" else "with ties" * (len(set(one.ranks)) < len(one.ranks)):
            left[why] += 1
            continue
        order = [names[reply] for _, reply in sorted(zip(one.ranks, one.shown, strict=True))]
        responses.append({"value": order, "user_id": str(uuid.uuid5(NAMES, one.annotator))})
    row = {"id": str(item.id), "fields": fields, "metadata": {}, "suggestions": {}}
    yield row | {"responses": {"ranking": responses} if responses else {}, "vectors": {}, "_server_id": None}


def _label_studio(item: Item, said: Sequence[Judgement], left: Counter[str]) -> Iterator[dict[str, Any]]:
    shown = [{"id": str(reply.id), "body": reply.text} for reply in item.replies]
    annotations = []
    for one in said:
        buckets: dict[str, list[str]] = {}
        for rank, reply in sorted(zip(one.ranks, one.shown, strict=False)):
            buckets.setdefault(str(rank + 1), []).append(str(reply))
        ties = any(len(ids) > 1 for ids in buckets.values())
        value = {"ranker": buckets if ties else [reply for ids in buckets.values() for reply in ids]}
        result = [{"from_name": "rank", "to_name": "replies", "type": "ranker", "value": value}]
        left[one.outcome] += one.outcome == "all bad"
        if one.outcome != "all bad":
            skipped = one.outcome == "skipped"
            row = {"result": [] if skipped else result, "was_cancelled": skipped, "completed_by": one.annotator}
            annotations.append(row | {"lead_time": one.milliseconds and one.milliseconds / 1000})
    yield {"id": item.id, "data": {"prompt": _short(item.messages), "items": shown}, "annotations": annotations}


def _short(messages: Turns) -> Any:
    """A single question as a text."""
    return messages[0]["content"] if len(messages) == 1 and messages[0]["role"] == "user" else messages


WRITERS: dict[str, Callable[[Item, Sequence[Judgement], Counter[str]], Iterator[dict[str, Any]]]] = {
    "rankings": _rankings,
    "pairs": _pairs,
    "argilla": _argilla,
    "label-studio": _label_studio,
}


def taken_in(store: Store, path: Path, form: str) -> tuple[int, Counter[str]]:
    """Puts the judgements of a file into the store, all or none; returns how many, and what was left out, by reason.

    Replies that the store has under their prompt keep their item, with where they come from; a person's second word on an item is left
    out, so that the same file adds nothing twice.
    """
    left: Counter[str] = Counter()
    words = list(READERS[form](path))
    items = {(dumped(one.messages), frozenset(reply.text for reply in one.replies)): one for one in store.items()}
    done = {(one.item, one.annotator) for one in store.judgements() if one.undone is None}
    count = 0
    with store.transaction():
        for word in words:
            key = (dumped(word.messages), frozenset(word.replies))
            if why := word.why or ("the same reply twice" if len(key[1]) < len(word.replies) else ""):
                left[why] += 1
                continue
            if key not in items:
                collection = dumped({"file": path.name, "replies": sorted(key[1])})
                made = store.add(
                    word.messages, word.facts, collection, [Reply(text, path.name) for text in word.replies]
                )
                (items[key],) = store.items(made)
            ids = {reply.text: reply.id for reply in items[key].replies}
            if (items[key].id, word.annotator) in done:
                left["judged by this person already"] += 1
                continue
            shown = [ids[text] for text in word.replies]
            words_of = (word.annotator, shown, word.ranks, word.outcome, word.better)
            store.judge(Judgement(items[key].id, *words_of, milliseconds=word.milliseconds))
            done.add((items[key].id, word.annotator))
            count += 1
    return count, left


def _read_rankings(path: Path) -> Iterator[Word]:
    for number, row in enumerate(_lines(path), 1):
        with_words: dict[str, Any] = {name: row.get(name) for name in ("facts", "better", "milliseconds")}
        try:
            replies, ranks = list(map(str, row["replies"])), [int(rank) for rank in row.get("ranks") or []]
            outcome, who = row.get("outcome") or "ranked", row.get("annotator") or path.stem
            if len(ranks) != (len(replies) if outcome == "ranked" else 0):
                raise ValueError(f"{len(ranks)} ranks for {len(replies)} replies")
            yield Word(_turns(row["prompt"]), replies, who, ranks, outcome, **with_words)
        except (KeyError, TypeError, ValueError) as error:
            raise _bad(f"{path}:{number}", error) from error


def _read_pairs(path: Path) -> Iterator[Word]:
    """In any shape of docs/data.md; two turns or more behind a prompt are no reply that people rank here."""
    dataset = to_stage(compose_config(["dataset=local_pairs", "method=dpo", "dataset.path=pairs.jsonl"])).dataset
    read = columns.read(replace(dataset, path=str(path), splits=Splits("train", None, None)), "train", "pairs")
    for row in read.rows:
        try:
            for pair in contract.pairs(read.dataset, row):
                sides = (pair.chosen, pair.rejected)
                why = "" if all(len(side) == 1 for side in sides) else "a reply of several turns"
                texts = [side[-1]["content"] for side in sides]
                yield Word(pair.prompt.messages, texts, path.stem, [0, 1], why=why)
        except contract.BadRow as error:
            raise _bad(row.where, error) from error


def _read_argilla(path: Path) -> Iterator[Word]:
    for number, row in enumerate(read_json(path), 1):
        try:
            fields, responses = row["fields"], row.get("responses") or {}
            for answer in (one for many in responses.values() for one in many):
                value = answer["value"]
                if not isinstance(value, list) or not value:
                    continue  # of another question
                ranked = [one if isinstance(one, dict) else {"value": one, "rank": at} for at, one in enumerate(value)]
                names = [one["value"] for one in ranked]
                if not set(names) <= set(fields):
                    continue
                ask = next(text for name, text in fields.items() if name not in names)
                ranks = [one.get("rank", at) for at, one in enumerate(ranked)]
                texts = [str(fields[name]) for name in names]
                yield Word(_turns(ask), texts, str(answer.get("user_id") or path.stem), _dense(ranks))
        except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
            raise _bad(f"{path}, record {number}", error) from error


def _read_label_studio(path: Path) -> Iterator[Word]:
    for number, task in enumerate(read_json(path), 1):
        try:
            texts = {
                str(one["id"]): str(one.get("body") or one.get("html") or one["title"]) for one in task["data"]["items"]
            }
            for said in task.get("annotations") or []:
                who = said.get("completed_by") or path.stem
                who = str(who.get("email") or who["id"]) if isinstance(who, dict) else str(who)
                seconds = said.get("lead_time")
                result = next((one for one in said["result"] if one["type"] == "ranker"), None)
                given = {} if result is None else result["value"]["ranker"]
                buckets = (
                    [[one] for one in given]
                    if isinstance(given, list)
                    else [ids for name, ids in given.items() if name != UNRANKED]
                )
                ranks = {str(one): rank for rank, ids in enumerate(buckets) for one in ids}
                skipped = bool(said.get("was_cancelled"))
                why = "" if skipped or set(ranks) == set(texts) else "not every reply was ranked"
                yield Word(
                    _turns(task["data"]["prompt"]),
                    list(texts.values()),
                    who,
                    [] if skipped or why else _dense([ranks[name] for name in texts]),
                    "skipped" if skipped else "ranked",
                    milliseconds=None if seconds is None else round(1000 * float(seconds)),
                    why=why,
                )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _bad(f"{path}, task {number}", error) from error


READERS: dict[str, Callable[[Path], Iterator[Word]]] = {
    "rankings": _read_rankings,
    "pairs": _read_pairs,
    "argilla": _read_argilla,
    "label-studio": _read_label_studio,
}


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise DataError(f"{path}: no such file\n  fix: read= the file that was exported")
    return read_lines(path)


def _turns(value: Any) -> Turns:
    if isinstance(value, str) and value.strip():
        return [{"role": "user", "content": value}]
    if isinstance(value, list) and value and all(isinstance(turn, dict) and "content" in turn for turn in value):
        return [{"role": turn["role"], "content": turn["content"]} for turn in value]
    raise ValueError(f"a prompt must be a text or turns, found {value!r:.60}")


def _dense(ranks: Sequence[Any]) -> list[int]:
    order = {rank: place for place, rank in enumerate(sorted(set(ranks)))}
    return [order[rank] for rank in ranks]


def _bad(where: str, error: Exception) -> DataError:
    what = f"{error.args[0]} is not there" if isinstance(error, KeyError) else str(error)
    return DataError(f"{where}: {what}\n  fix: docs/feedback.md shows the shape of each format")
