"""The chat server in front of an engine without a model, which says back what it is asked, word for word; tests start it.

In the last message BREAK makes the engine fail in the middle of the reply, DIE ends the process there, SLOW makes it go on for seconds,
FULL leaves no room for a reply. Where the system turn is "count", the reply is how many replies have been left before their end.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf import door
from rlhf.feedback.schema import Reply
from rlhf.feedback.store import Store
from rlhf.web import server
from rlhf.web.chat import Chat
from rlhf.web.kept import Kept
from rlhf.web.protocol import Piece, Sampling, Wrong


@dataclass
class Arguments:
    store: str
    run: list[str] = field(default_factory=lambda: ["a/one", "a/two"])
    compare: door.Count = door.Count(0)
    port: door.Count = door.Count(0)


class Scripted:
    left = 0

    async def open(self, run: str, messages: list[dict[str, Any]], sampling: Sampling) -> AsyncIterator[Piece]:
        if "FULL" in messages[-1]["content"]:
            raise Wrong("no room is left", "messages", "context_length_exceeded")
        return self._pieces(run, messages, sampling)

    async def _pieces(self, run: str, messages: list[dict[str, Any]], sampling: Sampling) -> AsyncIterator[Piece]:
        asked, ended = messages[-1]["content"], False
        words = str(self.left) if messages[0]["content"] == "count" else f"{run} {sampling.seed} {asked}"
        pieces = [f"{word} " for word in words.split(" ")][: sampling.limit]
        try:
            for piece in pieces:
                if "BREAK" in piece:
                    raise Wrong(f"{run} broke off", status=500)
                if "DIE" in piece:
                    os._exit(1)
                yield Piece(piece)
                await asyncio.sleep(3 if "SLOW" in piece else 0)
            ended = True
            yield Piece("", "length" if len(pieces) == sampling.limit else "stop", (len(asked.split(" ")), len(pieces)))
        finally:
            Scripted.left += not ended

    def reply(self, run: str, text: str, sampling: Sampling) -> Reply:
        return Reply(text, run, "id of the run", "beef", sampling.told(), sampling.seed)


def main(own: Arguments) -> None:
    store = Path(own.store)
    with server.alone(store), Store(store):
        chat = Chat(Scripted(), own.run, Kept(store, patience=0.5), own.compare, 1.0)
        server.run(chat.app(), server.bound(own.port), "chat")


if __name__ == "__main__":
    door.enter(main, Arguments)
