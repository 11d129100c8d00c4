"""Tables that read as Markdown and in a terminal, and the pages that hold them between two markers."""

from collections.abc import Sequence
from pathlib import Path

from rlhf.errors import ConfigError
from rlhf.files import write_text


def grid(rows: Sequence[Sequence[str]]) -> str:
    """Fixed-width columns; the first row is the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


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
