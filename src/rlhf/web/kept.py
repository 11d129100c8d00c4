"""What was answered, in memory until somebody says something of it; only then it goes to the store, with what was said."""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from rlhf.errors import Refusal, ResourceError
from rlhf.feedback.schema import Judgement, Reply
from rlhf.feedback.store import PATIENCE, Store, dumped
from rlhf.web.protocol import Wrong

CHARACTERS = 1 << 26  # of answers that are remembered, the latest ones


class Feedback(BaseModel):
    """`POST /v1/feedback`: a thumb on one choice of an answer, or a word on all of them: ranks in their order (0 is best, equals are
    ties), or that all are bad, or that somebody does not want to say."""

    model_config = ConfigDict(strict=True, extra="forbid")
    id: str
    choice: int = Field(0, ge=0)
    thumb: Literal["up", "down"] | None = None
    ranks: list[int] | None = None
    outcome: Literal["all bad", "skipped"] | None = None
    user: str = Field("owner", pattern=r"\S", max_length=100)
    milliseconds: int | None = Field(None, ge=0, lt=2**53)

    def check(self, choices: int) -> None:
        """Raises Wrong where it does not fit an answer of so many choices."""
        if sum(one is not None for one in (self.thumb, self.ranks, self.outcome)) != 1:
            raise Wrong("one of thumb, ranks and outcome is to be said")
        if self.choice >= choices:
            raise Wrong(f"choice: the answer has {choices}, counted from 0", "choice")
        if self.thumb is None and choices < 2:
            raise Wrong("the answer has one choice: give it a thumb", "thumb")
        if self.ranks is not None and (len(self.ranks) != choices or min(self.ranks) < 0):
            raise Wrong(f"ranks: one from 0 for each of {choices} choices", "ranks")


@dataclass
class Given:
    """An answer that was given: its choices in the order in which they are shown."""

    messages: list[dict[str, Any]]
    replies: list[Reply]

    @property
    def size(self) -> int:
        return sum(len(turn["content"]) for turn in self.messages) + sum(len(one.text) for one in self.replies)


class Kept:
    """The latest answers, and the store that gets those of which somebody said something."""

    def __init__(self, store: Path, patience: float = PATIENCE) -> None:
        self.store, self.patience, self.lock = store, patience, threading.Lock()
        self.answers, self.size = OrderedDict[str, Given](), 0

    def remember(self, name: str, given: Given) -> None:
        self.answers[name] = given
        self.size += given.size
        while self.size > CHARACTERS:
            self.size -= self.answers.popitem(last=False)[1].size

    def say(self, feedback: Feedback) -> None:
        """Writes it, and the answer with it if it is the first word on it; another word of the same person replaces the first.

        Raises:
            Wrong: an answer that is not remembered, a word that does not fit it, a store that cannot be written now.
        """
        given = self.answers.get(feedback.id)
        if given is None:
            why = "no answer of that id is remembered: it was given before this server started, did not end, or is long ago"
            raise Wrong(why, "id", "answer_not_found", 404)
        feedback.check(len(given.replies))
        try:
            with self.lock, Store(self.store, patience=self.patience) as store, store.transaction():
                self._write(store, given, feedback)
        except (Refusal, ResourceError) as error:
            raise Wrong(f"not kept, say it again: {error}", status=503) from error

    def _write(self, store: Store, given: Given, said: Feedback) -> None:
        different = {reply.text: reply for reply in given.replies}
        ranks = dict(zip((reply.text for reply in given.replies), said.ranks or (), strict=False))
        if said.thumb is None and (len(different) < 2 or "" in different):
            raise Wrong("replies that are all the same, or one that is empty, can't be compared", "ranks")
        if said.ranks and any(ranks[reply.text] != rank for reply, rank in zip(given.replies, said.ranks, strict=True)):
            raise Wrong("ranks: replies that are the same have the same rank", "ranks")
        collection = dumped({"served": said.id})
        store.add(given.messages, None, collection, list(different.values()))
        query = "SELECT r.text, r.id, r.item FROM replies r JOIN items i ON i.id = r.item WHERE i.collection = ?"
        rows = store.db.execute(query, (collection,)).fetchall()
        numbers, item = {row["text"]: row["id"] for row in rows}, rows[0]["item"]
        if said.thumb is not None:
            store.thumb(numbers[given.replies[said.choice].text], said.user, said.thumb == "up")
            return
        store.undo(said.user, item)
        order = {"shown": [numbers[text] for text in different], "ranks": [ranks[text] for text in different if ranks]}
        outcome = said.outcome or "ranked"
        store.judge(Judgement(item, said.user, **order, outcome=outcome, milliseconds=said.milliseconds))
