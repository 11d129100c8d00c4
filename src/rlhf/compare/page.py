"""A comparison as pages to read: Markdown beside its pictures, and one HTML file that holds everything."""

import base64
import re
from html import escape
from pathlib import Path
from typing import Any

from rlhf.compare.conclusion import conclusion
from rlhf.compare.figures import draw
from rlhf.compare.report import Report
from rlhf.compare.sections import Section, cells, listed, sections
from rlhf.files import write_text
from rlhf.output.tables import grid, plain

FOLD = 15  # rows above which a table opens on a click


def write_pages(folder: Path, report: Report) -> None:
    """Draw the pictures into `folder` and write report.md and report.html from the report alone."""
    drawn, parts = draw(folder, report), sections(report)
    heading, verdict = f"PPO against DPO on {report['recipe']}", conclusion(report)
    origin = _origin(report["provenance"])
    markdown = [f"# {plain(heading)}", plain(verdict), *(_markdown(part, drawn) for part in parts), plain(origin)]
    write_text(folder / "report.md", "\n\n".join(markdown) + "\n")
    contents = " · ".join(f'<a href="#{_id(p)}">{escape(p.heading)}</a>' for p in parts if p.level == 2)
    html = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        # replies come from a model: even one that slipped through as markup could load and run nothing
        """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">""",
        f"<title>{escape(heading)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(heading)}</h1>",
        f'<p class="conclusion">{escape(verdict)}</p>\n<nav>{contents}</nav>',
        *(_html(part, drawn) for part in parts),
        f"<footer>{escape(origin)}</footer>\n</body>\n</html>\n",
    ]
    write_text(folder / "report.html", "\n".join(html))


def _origin(provenance: dict[str, Any]) -> str:
    commit = provenance["git"]["commit"][:8] + (" with uncommitted changes" if provenance["git"]["dirty"] else "")
    versions = listed(f"{name} {version}" for name, version in provenance["versions"].items())
    known = {key: value for key, value in provenance["machine"].items() if value}
    machine = ", ".join(f"{value} cores" if key == "cores" else value for key, value in known.items())
    return f"Made by {' '.join(provenance['command'])} at commit {commit}; {versions}; {machine}."


def _markdown(part: Section, drawn: dict[str, Path]) -> str:
    lines = [f"{'#' * part.level} {plain(part.heading)}", plain(part.words)]
    name, alternative, caption = part.figure
    if name in drawn:
        lines += [f"![{alternative}]({drawn[name].name})", caption]
    if part.rows:
        lines.append(grid([[plain(cell) for cell in row] for row in cells(part.rows)]))
    return "\n\n".join(filter(None, lines))


def _html(part: Section, drawn: dict[str, Path]) -> str:
    lines = [f'<section>\n<h{part.level} id="{_id(part)}">{escape(part.heading)}</h{part.level}>']
    if part.words:
        lines.append(f"<p>{escape(part.words)}</p>")
    name, alternative, caption = part.figure
    if name in drawn:
        data = base64.b64encode(drawn[name].read_bytes()).decode()
        lines.append(f'<figure><img src="data:image/png;base64,{data}" alt="{escape(alternative)}">')
        lines.append(f"<figcaption>{escape(caption)}</figcaption></figure>")
    if part.rows:
        head, *body = cells(part.rows)
        rows = [_html_row("th", head), *(_html_row("td", row) for row in body)]
        table = ['<div class="wide"><table>', *rows, "</table></div>"]
        folded = ["<details>", f"<summary>{len(body)} rows</summary>", *table, "</details>"]
        lines += folded if len(body) > FOLD else table
    return "\n".join([*lines, "</section>"])


def _html_row(tag: str, row: list[str]) -> str:
    cells = (f"<{tag}{' class=short' if len(cell) < 20 else ''}>{escape(cell)}</{tag}>" for cell in row)
    return f"<tr>{''.join(cells)}</tr>"


def _id(part: Section) -> str:
    return re.sub(r"[^a-z0-9]+", "-", part.heading.lower()).strip("-")


STYLE = """
body { max-width: 68rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; color: #111; background: #fff; }
h1, h2, h3 { line-height: 1.25; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #bbb; }
h3 { font-size: 1rem; overflow-wrap: anywhere; }
.conclusion { padding: .75rem 1rem; border-left: .3rem solid #111; background: #f3f3f3; }
figure { margin: 1rem 0; }
img { display: block; width: 100%; max-width: 42rem; height: auto; }
figcaption, nav, footer { font-size: .9rem; color: #444; max-width: 42rem; }
nav { max-width: none; line-height: 2; } nav a { color: inherit; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem .3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd; }
td { white-space: pre-line; overflow-wrap: anywhere; min-width: 10rem; max-width: 32rem; }
td.short { white-space: nowrap; min-width: 3rem; }
th { max-width: 8rem; border-bottom: 1px solid #111; }
footer { margin-top: 3rem; border-top: 1px solid #bbb; overflow-wrap: anywhere; }
@media print {
  body { max-width: none; margin: 0; } nav { display: none; }
  figure, tr, h2, h3 { break-inside: avoid; } h2, h3 { break-after: avoid; }
  .wide { overflow: visible; }
  table { font-size: .7rem; }
  details::details-content { content-visibility: visible; display: block; }
}
"""
