"""Which of the public shapes rows have, judged by the names of their columns and by the values of the first of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.data.turns import is_turn, is_turns, is_whole

Values = dict[str, list[Any]]  # by column: what the first rows hold, without nulls

TALKS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns")
ASKED = ("prompt", "instruction", "question", "query", "problem", "input", "inputs", "user")
REPLIED = ("completion", "output", "response", "answer", "reply", "target", "targets", "solution", "assistant")
PAIRS = (
    ("chosen", "rejected"),
    ("chosen_messages", "rejected_messages"),
    ("chosen_response", "rejected_response"),
    ("response_chosen", "response_rejected"),
    ("answer_chosen", "answer_rejected"),
    ("preferred", "dispreferred"),
    ("preferred_output", "non_preferred_output"),
)
RANKED = ("replies", "responses", "completions", "answers", "candidates", "outputs", "ranking")
LABELS = ("label", "thumb", "thumbs", "liked", "feedback")
RANKS, SCORES = ("ranks", "rank"), ("scores", "score", "ratings", "rating", "rewards")
MARKERS = (
    {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: "},
    {"user": "### Human: ", "assistant": "### Assistant: "},
)


@dataclass(frozen=True)
class Shape:
    """A way to read rows: what it is called, and the role of each column."""

    name: str
    columns: dict[str, str]


def values(rows: Sequence[dict[str, Any]]) -> Values:
    """What each column holds."""
    found: Values = {}
    for row in rows:
        for name, value in row.items():
            found.setdefault(str(name), []).extend([] if value is None else [value])
    return found


def shapes(held: Values, kind: str) -> list[Shape]:
    """The ways in which rows give `demonstrations`, `pairs`, `thumbs` or `prompts`; more than one where they can't be told apart."""
    return list({tuple(found.columns.items()): found for found in globals()[f"_{kind}"](held)}.values())


def _demonstrations(held: Values) -> Iterator[Shape]:
    for talk in _talks(held):
        yield Shape(_named(held, talk, "dialogues"), {"messages": talk})
    for ask, beside in _asks(held):
        for reply in REPLIED:
            if reply in held and reply not in (ask, *beside.values()) and _says(held[reply]):
                alpaca = ask == "instruction" and reply == "output"
                yield Shape(
                    "Alpaca" if alpaca else "prompts and completions", {"prompt": ask, **beside, "completion": reply}
                )


def _pairs(held: Values) -> Iterator[Shape]:
    for chosen, rejected in PAIRS:
        if chosen not in held or rejected not in held:
            continue
        both = {"chosen": chosen, "rejected": rejected}
        if any(is_whole(value) for value in held[chosen]):
            yield Shape(_named(held, chosen, "pairs of whole dialogues"), both)
            continue
        asks = [({"prompt": ask} | beside) for ask, beside in _asks(held)] or [
            {"prompt": talk} for talk in _talks(held)
        ]
        for prompt in asks:
            yield Shape(_named(held, prompt["prompt"], "pairs"), prompt | both)
    for ranking in RANKED:
        if ranking in held and any(isinstance(value, list) for value in held[ranking]):
            for ask, beside in _asks(held):
                for role, names in (("ranks", RANKS), ("scores", SCORES)):
                    for name in names:
                        if any(isinstance(value, list) for value in held.get(name, ())):
                            yield Shape("rankings", {"prompt": ask, **beside, "ranking": ranking, role: name})


def _thumbs(held: Values) -> Iterator[Shape]:
    """Replies with a thumb each; where none has one, pairs."""
    labels = [name for name in LABELS if name in held]
    for shape in _demonstrations(held) if labels else ():
        yield from (Shape("thumbs", {**shape.columns, "label": name}) for name in labels)
    if not labels:
        yield from _pairs(held)


def _prompts(held: Values) -> Iterator[Shape]:
    """The first way only: what is asked is the same in all of them."""
    asks = [Shape("prompts", {"prompt": ask} | beside) for ask, beside in _asks(held)]
    talks = [Shape("prompts of dialogues", {_role_of(held, talk): talk}) for talk in _talks(held)]
    pairs = [shape for shape in _pairs(held) if "ranking" not in shape.columns]
    yield from [*asks, *talks, *pairs][:1]


def _role_of(held: Values, talk: str) -> str:
    """Dialogues that end with the question are prompts."""
    last = [value[-1] for value in held[talk] if is_turns(value)]
    return "messages" if any(turn.get("role", turn.get("from")) in ("assistant", "gpt") for turn in last) else "prompt"


def _talks(held: Values) -> list[str]:
    return [name for name in TALKS if any(is_turns(value) for value in held.get(name, ()))]


def _asks(held: Values) -> list[tuple[str, dict[str, str]]]:
    """Columns that ask, each with what belongs to it: an instruction has an input, a question a context."""
    found = [name for name in ASKED if name in held and _says(held[name]) and name not in _talks(held)]
    if "instruction" in found:
        beside = {"context": "input"} if "input" in held else {"context": "context"} if "context" in held else {}
        return [
            ("instruction", beside),
            *((name, {}) for name in found if name not in ("instruction", *beside.values())),
        ]
    return [(name, {"context": "context"} if "context" in held else {}) for name in found]


def _says(cells: Sequence[Any]) -> bool:
    return any(isinstance(value, str) or is_turns(value) or is_turn(value) for value in cells)


def _named(held: Values, column: str, what: str) -> str:
    turns = [turn for value in held[column] if isinstance(value, list) for turn in value if isinstance(turn, dict)]
    return f"ShareGPT {what}" if turns and all("from" in turn for turn in turns) else what


def transcript(cells: Sequence[Any]) -> dict[str, str] | None:
    """The markers of public transcripts that every one of these texts begins with; None if there are none."""
    for markers in MARKERS:
        first = markers["user"].strip()
        if cells and all(isinstance(cell, str) and cell.lstrip().startswith(first) for cell in cells):
            return dict(markers)
    return None
