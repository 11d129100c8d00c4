"""The engine of our own: finished runs in memory, whose requests are answered together in one thread, token by token."""

import asyncio
import queue
import threading
import traceback
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

from rlhf.data.contract import BadRow, Dialogue
from rlhf.feedback.schema import Reply
from rlhf.generation.rows import Batch, Row, Text
from rlhf.models.tokenizer import stops
from rlhf.people.collect import Speaker
from rlhf.web.protocol import Piece, Sampling, Wrong

TOKENS = 4096  # of prompts, padding included, that are read at once
WAITING = 1000  # requests that may wait for a place


class Line:
    """A request that is answered: its row, and where its pieces go."""

    def __init__(self, speaker: Speaker, row: Row) -> None:
        self.speaker, self.row, self.gone = speaker, row, False
        self.loop, self.pieces = asyncio.get_running_loop(), asyncio.Queue[Piece | Exception]()

    def tell(self, piece: Piece | Exception) -> None:
        with suppress(RuntimeError):  # its loop has ended
            self.loop.call_soon_threadsafe(self.pieces.put_nowait, piece)

    def follow(self) -> None:
        """Tells what the last step added."""
        row = self.row
        if row.done:
            self.tell(Piece(row.piece, row.done, (len(row.prompt), len(row.text.ids))))
        elif row.piece:
            self.tell(Piece(row.piece))


class Embedded:
    """Answers as the given runs, up to `most` requests at once; those that come later join as others end.

    `limit` is how many tokens a reply has where the request does not say, by default what the run was evaluated with.
    """

    def __init__(self, speakers: Sequence[Speaker], most: int = 32, limit: int | None = None) -> None:
        self.speakers, self.most, self.limit = {one.name: one for one in speakers}, most, limit
        self.asked = queue.SimpleQueue[Line | None]()
        self.waiting: list[Line] = []
        self.batches: dict[Batch, Speaker] = {}
        self.lines: dict[Row, Line] = {}
        self.thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self.thread.start()

    async def open(self, run: str, messages: list[dict[str, Any]], sampling: Sampling) -> AsyncIterator[Piece]:
        """The pieces of a reply, which are waited for; who stops listening frees the row.

        Raises:
            Wrong: the run's template can't write these turns, they leave no room for a reply, or too many wait.
        """
        speaker = self.speakers[run]
        try:
            ids = speaker.renderer.prompt(Dialogue(messages))
        except BadRow as bad:
            raise Wrong(f"messages: {bad}", "messages") from bad
        room = getattr(speaker.role.model.config, "max_position_embeddings", 1 << 20) - len(ids)
        if room < (sampling.limit or 1):
            why = f"This model's maximum context length is {room + len(ids)} tokens. However, your messages are {len(ids)} tokens"
            why += f", and {sampling.limit} more were asked for. Please shorten the messages" if sampling.limit else ""
            raise Wrong(f"{why}.", "messages", "context_length_exceeded")
        if len(self.waiting) + self.asked.qsize() >= WAITING:
            raise Wrong(f"{WAITING} requests wait already; try again later", status=429)
        limit = sampling.limit or min(room, self.limit or speaker.stage.evaluation.max_new_tokens)
        text = Text(speaker.tokenizer, sampling.stop)
        return self._pieces(Line(speaker, Row(ids, limit, text, sampling.temperature, sampling.top_p, sampling.seed)))

    async def _pieces(self, line: Line) -> AsyncIterator[Piece]:
        self.asked.put(line)
        try:
            while True:
                piece = await line.pieces.get()
                if isinstance(piece, Exception):
                    raise piece
                yield piece
                if piece.finish:
                    return
        finally:
            line.gone = True

    def reply(self, run: str, text: str, sampling: Sampling) -> Reply:
        """A reply as the store keeps it."""
        speaker = self.speakers[run]
        limit = sampling.limit or self.limit or speaker.stage.evaluation.max_new_tokens
        return Reply(text, run, speaker.run, speaker.adapter, sampling.told(max_new_tokens=limit), sampling.seed)

    def close(self) -> None:
        """Ends the thread after the step that it is at."""
        self.asked.put(None)
        self.thread.join()

    # -- in the thread

    def _work(self) -> None:
        while True:
            try:
                self._admit()
                for batch in list(self.batches):
                    self._advance(batch)
                self.lines = {row: self.lines[row] for batch in self.batches for row in batch.rows}
            except SystemExit:
                return
            except Exception as error:  # a bug: nobody may wait for ever
                traceback.print_exc()
                for line in [*self.lines.values(), *self.waiting]:
                    line.tell(_broken(line, error))
                self.lines, self.waiting, self.batches = {}, [], {}

    def _admit(self) -> None:
        """Gives those who wait the places that are free, those of a run together; waits where there is nothing to do."""
        while not (self.batches or self.waiting) or not self.asked.empty():
            if (line := self.asked.get()) is None:
                raise SystemExit
            self.waiting.append(line)
        self.waiting = [line for line in self.waiting if not line.gone]
        free = self.most - sum(len(batch.rows) for batch in self.batches)
        taken, self.waiting = self.waiting[: max(free, 0)], self.waiting[max(free, 0) :]
        self.lines |= {line.row: line for line in taken}
        for speaker in self.speakers.values():
            for rows in _stretches([line.row for line in taken if line.speaker is speaker]):
                self._start(speaker, rows)

    def _start(self, speaker: Speaker, rows: Sequence[Row]) -> None:
        """Reads prompts, with what was written of their replies, and puts the rows among the others of their run."""
        tokenizer = speaker.tokenizer
        batch = Batch(speaker.role, rows, stops(tokenizer, speaker.role.model), tokenizer.pad_token_id)
        self.batches[batch] = speaker
        self._advance(batch)
        others = [one for one, who in self.batches.items() if who is speaker and one is not batch and one.joins]
        if batch in self.batches and batch.joins and others:
            others[0].join(batch)
            del self.batches[batch]

    def _advance(self, batch: Batch) -> None:
        """One token for each row. Where that fails each row goes on alone, so that only the one at fault ends."""
        batch.keep([row for row in batch.rows if not self.lines[row].gone])
        rows = list(batch.rows)
        try:
            if rows:
                batch.step()
        except Exception as error:
            speaker = self.batches.pop(batch)
            for row in rows if len(rows) > 1 else []:
                self._start(speaker, [row])
            if len(rows) == 1:
                traceback.print_exception(error)
                self.lines[rows[0]].tell(_broken(self.lines[rows[0]], error))
            return
        for row in rows:
            self.lines[row].follow()
        if not batch.rows:
            del self.batches[batch]


def _broken(line: Line, error: Exception) -> Wrong:
    why = f"{line.speaker.name} broke off in the middle of its reply: {type(error).__name__}: {error}"
    return Wrong(why[:500], status=500)


def _stretches(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows in the order of their lengths, in stretches that are read at once."""
    found: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: len(row.ids)):
        if found and (len(found[-1]) + 1) * len(row.ids) <= TOKENS:
            found[-1].append(row)
        else:
            found.append([row])
    return found
