"""A conversation in the terminal with one finished run, streamed, or with several side by side."""

import secrets
import shutil
import sys
import textwrap
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.data.contract import BadRow, Dialogue, Messages
from rlhf.output.tables import printable
from rlhf.process import quiet

if TYPE_CHECKING:
    from rlhf.people.collect import Speaker


def answer(speaker: "Speaker", messages: Messages, temperature: float, limit: int) -> Iterator[str]:
    """The reply, piece by piece as it is written; ends at an EOS id or after `limit` tokens."""
    from rlhf.generation.rows import Batch, Row, Text
    from rlhf.models.tokenizer import stops

    tokenizer, ids = speaker.tokenizer, speaker.renderer.prompt(Dialogue(messages))
    row = Row(ids, limit, Text(tokenizer), temperature, seed=secrets.randbits(31))
    batch = Batch(speaker.role, [row], stops(tokenizer, speaker.role.model), tokenizer.pad_token_id)
    while not row.done:
        batch.step()
        yield row.piece


def chat(root: Path, runs: list[str], temperature: float, limit: int) -> None:
    """Read a line, answer it, until the input ends."""
    quiet()
    from rlhf.people.collect import Speaker

    speakers = Speaker.load(root, runs)
    heard: list[Messages] = [[] for _ in speakers]
    print("  ".join(speaker.name for speaker in speakers) + "   (/new forgets, /quit leaves)", flush=True)
    while True:
        try:
            line = input("you> ").strip()
        except EOFError:
            print()
            return
        if line == "/quit":
            return
        if line == "/new":
            heard = [[] for _ in speakers]
            continue
        if not line:
            continue
        replies = []
        for speaker, messages in zip(speakers, heard, strict=True):
            messages.append({"role": "user", "content": line})
            pieces = []
            try:
                for piece in answer(speaker, messages, temperature, limit):
                    pieces.append(piece)
                    if len(speakers) == 1:
                        sys.stdout.write(printable(piece))
                        sys.stdout.flush()
            except BadRow as bad:  # its template can't write this
                pieces = [f"({bad})"]
                print(pieces[0] if len(speakers) == 1 else "", flush=True)
            replies.append("".join(pieces).strip())
            messages.append({"role": "assistant", "content": replies[-1] or "…"})
        print(
            "" if len(speakers) == 1 else columns([s.name for s in speakers], [printable(reply) for reply in replies]),
            flush=True,
        )


def columns(names: list[str], replies: list[str]) -> str:
    """Replies side by side under their names, as wide as the terminal allows."""
    width = max(20, (shutil.get_terminal_size().columns - 3 * (len(names) - 1)) // len(names))
    wrapped = (textwrap.wrap(reply or "(nothing)", width) for reply in replies)
    cells = [[name, "─" * width, *lines] for name, lines in zip(names, wrapped, strict=True)]
    rows = zip_longest(*cells, fillvalue="")
    return "\n".join(" │ ".join(cell.ljust(width) for cell in row).rstrip() for row in rows)
