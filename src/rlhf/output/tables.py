"""Tables that read as Markdown and in a terminal, the pages that hold them between two markers, and what a model wrote, as text."""

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from rlhf.errors import ConfigError
from rlhf.files import write_text

# all but line feeds and tabs, and the directions of writing, which go on past the text
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def grid(rows: Sequence[Sequence[str]]) -> str:
    """Fixed-width columns; the first row is the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def plain(text: str) -> str:
    """Text of a model for Markdown: one line without markup, so that it can neither break a table nor load a picture."""
    text = escape(" ".join(printable(text).split()), quote=False)
    return re.sub(r"[|`]|\](?=[(\[:])|!(?=\[)", lambda mark: "\\" + mark[0], text)


def printable(text: str) -> str:
    """Text of a model for a terminal: control characters, which move the cursor, set colours or turn lines round, are written out."""
    return CONTROL.sub(lambda character: ascii(character[0])[1:-1], text)


def between_markers(page: Path, mark: str, text: str) -> bool:
    """Replace what stands between `<!-- mark -->` and `<!-- /mark -->` in a page; whether that changed anything.

    Raises ConfigError where the page is absent or lacks the markers.
    """
    now = page.read_text() if page.is_file() else ""
    before, start, rest = now.partition(f"<!-- {mark} -->")
    _, end, after = rest.partition(f"<!-- /{mark} -->")
    if not start or not end:
        lacking = f"<!-- {mark} --> and <!-- /{mark} -->"
        raise ConfigError(f"{page} lacks the markers {lacking}\n  fix: add both, each on a line")
    new = f"{before}{start}\n{text}\n{end}{after}"
    if new != now:
        write_text(page, new)
    return new != now
