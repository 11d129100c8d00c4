"""A conversation in the terminal with one finished run, streamed, or with several side by side."""

import shutil
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rlhf.data.contract import BadRow, Dialogue, Messages
from rlhf.files import FINAL
from rlhf.output.tables import printable
from rlhf.process import quiet


@dataclass
class Speaker:
    """A finished run that answers."""

    name: str
    role: Any
    tokenizer: Any
    renderer: Any

    def answer(self, messages: Messages, temperature: float, limit: int) -> Iterator[str]:
        """The reply, piece by piece as it is written; ends at an EOS id or after `limit` tokens."""
        import torch

        from rlhf.generation.sampling import choose
        from rlhf.models.tokenizer import stops

        ids = self.renderer.prompt(Dialogue(messages))
        head = self.role.logits_of(temperature or 1.0, (self.tokenizer.pad_token_id,))
        ends, written = stops(self.tokenizer, self.role.model), []
        cache, shown, feed = None, "", torch.tensor([ids], device=self.role.device)
        with torch.no_grad(), self.role.active():
            for _ in range(limit):
                output = self.role.backbone(input_ids=feed, past_key_values=cache, use_cache=True)
                cache = output.past_key_values
                uniform = torch.rand(1, dtype=torch.float64).to(self.role.device) if temperature else None
                token = int(choose(head(output.last_hidden_state[:, -1]), uniform)[0])
                if token in ends:
                    return
                written.append(token)
                text = self.tokenizer.decode(written, skip_special_tokens=True)
                if not text.endswith("\ufffd"):  # half a character waits for its other half
                    yield text[len(shown) :]
                    shown = text
                feed = feed.new_tensor([[token]])


def load(root: Path, name: str) -> Speaker:
    """The policy that a finished run left, on the base and in the quantization it was trained with."""
    from rlhf.models.shared import load_roles
    from rlhf.models.tokenizer import prompt_renderer, saved_tokenizer
    from rlhf.runs.record import finished_stage

    folder = root / name
    stage = finished_stage(folder, root)
    tokenizer = saved_tokenizer(folder / FINAL)
    role = load_roles(stage, tokenizer, {"policy": folder / FINAL})["policy"]
    return Speaker(f"{folder.parent.name}/{folder.name}", role, tokenizer, prompt_renderer(stage, tokenizer))


def chat(root: Path, runs: list[str], temperature: float, limit: int) -> None:
    """Read a line, answer it, until the input ends."""
    quiet()
    speakers = [load(root, name) for name in runs]
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
                for piece in speaker.answer(messages, temperature, limit):
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
