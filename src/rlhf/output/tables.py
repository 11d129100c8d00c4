"""Tables that read as Markdown and in a terminal, and the pages that hold them between two markers."""

from collections.abc import Sequence
from pathlib import Path

from rlhf.errors import ConfigError


def grid(rows: Sequence[Sequence[str]]) -> str:
    """Fixed-width columns; the first row is the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def between_markers(page: Path, mark: str, text: str) -> None:
    """Replace what stands between `<!-- mark -->` and `<!-- /mark -->` in a page."""
    before, start, rest = page.read_text().partition(f"<!-- {mark} -->")
    _, end, after = rest.partition(f"<!-- /{mark} -->")
    if not start or not end:
        raise ConfigError(
            f"{page} lacks the markers <!-- {mark} --> and <!-- /{mark} -->\n  fix: add both, each on a line"
        )
    page.write_text(f"{before}{start}\n{text}\n{end}{after}")
