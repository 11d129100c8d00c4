"""Ranking in a terminal, for who comes by ssh: what the page does, a line at a time."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from io import TextIOWrapper
from string import ascii_lowercase

from rlhf.errors import Refusal
from rlhf.feedback.schema import Item, Reply
from rlhf.output.tables import printable
from rlhf.people.desk import TAGS, Desk

KEYS = """\
  2 1 1 3             the places of a, b, c, d: 1 is best, equal numbers are ties; sends
  bad, skip           all replies are bad; not for me: sends
  better At nine.     a reply of your own, which goes with what you send
  tag b kind brief    tags of a reply, or `tag` for all of them; `tag b` takes them off
  undo                takes your last judgement back
  rules, quit"""


@dataclass
class Draft:
    """What is said of the item on the screen, and not sent yet."""

    item: Item
    shown: dict[str, Reply]
    since: float
    better: str = ""
    tags: dict[str, list[str]] = field(default_factory=dict)


def rank(desk: Desk, annotator: str, rules: Callable[[], str]) -> None:
    """Hands out items until there is none, `quit` or the end of the input."""
    for stream, errors in ((sys.stdin, "replace"), (sys.stdout, "backslashreplace")):  # whatever bytes come by ssh
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=errors)
    print(f"{printable(rules())}\n\n{KEYS}\n  tags: {', '.join(TAGS)}", flush=True)
    draft = _next(desk, annotator)
    while draft is not None:
        try:
            line = input(f"{annotator}> ").strip()
        except EOFError:
            print()
            return
        if line in ("quit", "/quit"):
            return
        try:
            draft = _said(desk, annotator, draft, line, rules)
        except Refusal as error:
            print(f"  {error}", flush=True)
    progress = desk.progress(annotator)
    with_others = f"; {progress['away']} are with others" if progress["away"] else ""
    print(f"nothing is left for {annotator}, who has judged {progress['own']}{with_others}", flush=True)


def _said(desk: Desk, annotator: str, draft: Draft, line: str, rules: Callable[[], str]) -> Draft | None:
    """The draft after a line; another one where it sent a judgement."""
    word, _, rest = line.partition(" ")
    outcome = {"bad": "all bad", "skip": "skipped"}.get(line)
    if outcome or line[:1].isdecimal():
        allowed = [str(place) for place in range(1, len(draft.shown) + 1)]
        places = [] if outcome else [allowed.index(place) for place in line.split() if place in allowed]
        if not outcome and len(places) != len(line.split()) or len(places) not in (0, len(allowed)):
            raise Refusal(
                "places", printable(line)[:60], f"one of {', '.join(allowed)} for each of {len(allowed)} replies"
            )
        spent = round(1000 * (time.monotonic() - draft.since))
        desk.judge(
            annotator, draft.item.id, [*draft.shown], places, outcome or "ranked", draft.better, draft.tags, spent
        )
        return _next(desk, annotator)
    if line == "undo":
        last = desk.progress(annotator)["last"]
        if last is None:
            raise Refusal("undo", annotator, "has said nothing that could be taken back")
        item, said = desk.undo(annotator, last)
        names = {str(reply.id): name for name, reply in desk.shown(item, annotator).items()}
        tags = {names.get(reply, ""): given for reply, given in said.tags.items()}
        return _shown(desk, Draft(item, desk.shown(item, annotator), 0.0, said.better or "", tags), annotator)
    if word == "better":
        draft.better = rest.strip()
        print("  goes with what you send" if draft.better else "  taken off", flush=True)
    elif word == "tag":
        _tag(draft, rest.split())
    elif line == "rules":
        print(f"{printable(rules())}\n\n{KEYS}", flush=True)
    elif line:
        raise Refusal("line", printable(line)[:60], f"is none of these:\n{KEYS}")
    return draft


def _tag(draft: Draft, words: list[str]) -> None:
    letters = dict(zip(ascii_lowercase, draft.shown, strict=False))
    key = letters[words.pop(0).lower()] if words and words[0].lower() in letters else ""
    if wrong := [word for word in words if word not in TAGS]:
        raise Refusal("tag", printable(wrong[0])[:60], "is none, nor one of the replies", allowed=TAGS)
    draft.tags[key] = words
    print(f"  {', '.join(words) or 'no tags'}", flush=True)


def _next(desk: Desk, annotator: str) -> Draft | None:
    item = desk.next(annotator)
    return item and _shown(desk, Draft(item, desk.shown(item, annotator), 0.0), annotator)


def _shown(desk: Desk, draft: Draft, annotator: str) -> Draft:
    progress = desk.progress(annotator)
    print(f"\n{progress['own']} judged, {progress['left']} left")
    for turn in draft.item.messages:
        print(f"{turn['role']}: {printable(str(turn.get('content') or ''))}")
    for letter, reply in zip(ascii_lowercase, draft.shown.values(), strict=False):
        lines = printable(reply.text).splitlines() or [""]
        print("\n     ".join([f"  {letter}: {lines[0]}", *lines[1:]]))
    if draft.better:
        print(f"  better: {printable(draft.better)}")
    print(end="", flush=True)
    draft.since = time.monotonic()
    return draft
