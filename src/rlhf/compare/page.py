"""A comparison as pages to read: Markdown beside its pictures, and one HTML file that holds everything."""

import base64
import re
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from rlhf.compare.conclusion import conclusion
from rlhf.compare.figures import by_order, draw, named, trained
from rlhf.output.tables import grid

Row = dict[str, Any]
FOLD = 15  # rows above which a table opens on a click
ALWAYS = ("Frontier", "Equal KL", "Alerts")  # parts that say something without rows too


@dataclass(frozen=True)
class Section:
    """A heading with sentences, a picture (the name it was drawn under, alternative text, caption) and rows of a table."""

    heading: str
    words: str = ""
    rows: list[Row] | tuple[()] = ()
    figure: tuple[str, str, str] = ("", "", "")
    level: int = 2


def write_pages(folder: Path, report: Row) -> None:
    """Draw the pictures into `folder` and write report.md and report.html from the report alone."""
    drawn, parts = draw(folder, report), sections(report)
    title, said, origin = f"PPO against DPO on {report['recipe']}", conclusion(report), _origin(report["provenance"])
    markdown = [f"# {_plain(title)}", _plain(said), *(_markdown(part, drawn) for part in parts), _plain(origin)]
    (folder / "report.md").write_text("\n\n".join(markdown) + "\n", encoding="utf-8")
    contents = " · ".join(f'<a href="#{_id(p)}">{escape(p.heading)}</a>' for p in parts if p.level == 2)
    html = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        # replies come from a model: even one that slipped through as markup could load and run nothing
        """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">""",
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>",
        f'<p class="conclusion">{escape(said)}</p>\n<nav>{contents}</nav>',
        *(_html(part, drawn) for part in parts),
        f"<footer>{escape(origin)}</footer>\n</body>\n</html>\n",
    ]
    (folder / "report.html").write_text("\n".join(html), encoding="utf-8")


def sections(report: Row) -> list[Section]:
    """What the pages say, in order; a part of which the report has nothing is left out."""
    arms = _list(trained(report))
    parts = [
        Section(
            "Frontier",
            "How much true preference each arm gains for the distance it goes from SFT. Best-of-n trains no policy: of n replies of "
            "SFT to a prompt it keeps the one that the reward model scores highest.",
            figure=(
                "frontier",
                f"True preference score against the square root of KL from SFT: checkpoints of {arms}, SFT and best-of-n.",
                "Mean of the seeds with the 95% interval over prompts, single seeds faint behind. Markers fill as the setting grows; "
                "lines follow its checkpoints. Further up is better, further right is further from SFT; best of one is SFT.",
            ),
        ),
        Section(
            "Equal KL",
            "True preference at the same KL (nats a reply), interpolated between checkpoints. The difference is PPO's less DPO's; "
            "a 95% interval (low to high) that includes 0 leaves open who is better."
            if report["equal_kl"]
            else f"Not compared: {report.get('equal_kl_note') or 'no KL was reached by both arms'}",
            report["equal_kl"],
        ),
        Section(
            "Win rates",
            "The share of prompts on which the first is preferred, a tie a half, with 95% intervals over prompts and seeds; p is "
            "corrected for all pairs (Holm). At equal length: the rate that would be left if replies were equally long, extrapolated "
            "where the overlap is near 0.",
            [_win_rate(row) for row in report["win_rates"]],
            (
                "win_rates",
                "Win rate of each pair with its 95% interval, raw and length-controlled, against one half.",
                "An interval that crosses the dashed line leaves open who is better.",
            ),
        ),
        Section(
            "Over-optimization",
            "The best checkpoint is chosen on one half of the prompts and reported on the other: the first number is chosen for being high.",
            [_over(arm, report["overoptimization"][arm]) for arm in by_order(report["overoptimization"])],
            (
                "overoptimization",
                f"Gain over SFT of the proxy and of the true preference against the square root of KL: {arms}, fitted law and peak.",
                "A proxy that rises where the gold falls is being gamed. Mean of the seeds, single seeds faint behind; intervals are "
                "95% of the gold, SFT's score taken as it is. With d = sqrt(KL), the law is that of Gao et al. 2022.",
            ),
        ),
        Section(
            "Each setting from its best to its last checkpoint",
            "The fall is from the checkpoint that is best on one half of the prompts, counted on the other, with a 95% interval.",
            _settings(report["overoptimization"]),
        ),
        Section(
            "By behaviour",
            "True preference by what the situation asks for, with 95% intervals.",
            _behaviours(report["behaviours"]),
            (
                "behaviours",
                f"True preference by situation: {_list(report['behaviours'])}.",
                "A situation has part of the prompts only.",
            ),
        ),
        Section(
            "Costs",
            f"DPO with PPO's time: {report['dpo_with_ppo_time']}" if report.get("dpo_with_ppo_time") else "",
            report["costs"],
            (
                "costs",
                "Time and tokens of each arm.",
                "The time of all trials includes the reward models an arm needs.",
            ),
        ),
        Section("Alerts", "" if report["alerts"] else "The monitor of reward hacking raised none.", report["alerts"]),
        Section("Failed trials", rows=report["failed"]),
        Section("Setup", rows=_setup(report["setup"])),
        Section("What the arms share", rows=report["fairness"]["shared"]),
        Section("What differs between the arms", rows=report["fairness"]["differs"]),
        Section("All checkpoints", rows=report["frontier"]),
    ]
    found = [part for part in parts if part.rows or part.heading in ALWAYS]
    if report["replies"]:
        found.append(Section("Replies side by side", "A score does not show how a reply sounds."))
    return found + [_replies(asked) for asked in report["replies"]]


def _win_rate(row: Row) -> Row:
    equal = row.get("length_controlled") or {}
    verdict = re.sub(r" \([^)]*\)", "", row["verdict"])  # its numbers are cells of their own
    return {
        "pair": f"{named(row['first'])} over {named(row['second'])}",
        "win rate": _interval(row, "rate"),
        "p": row["p_corrected"],
        "at equal length": _interval(equal, "rate"),
        "overlap": equal.get("overlap"),
        "won / tied / lost": f"{row['wins']} / {row['ties']} / {row['losses']}",
        "changed by order": row["flip_rate"],
        "abstained": row["abstained"],
        "verdict": " ".join(map(named, verdict.split())),
    }


def _over(arm: str, found: Row) -> Row:
    law, best = found["law"], found.get("best") or {}
    bend = "d" if law and law["kind"] == "best-of-n" else "log d"
    sign = "+" if law and law["beta"] < 0 else "-"
    return {
        "arm": arm,
        "highest gold": found["gold_peak"],
        "at KL": found["kl_at_peak"],
        "last gold": found["gold_last"],
        "last / highest": found["last_over_peak"],
        "law": f"d ({law['alpha']:.2f} {sign} {abs(law['beta']):.2f} {bend})" if law else found["law_note"],
        "its error": law and law["residual"],
        "its peak, KL": law and (law["peak_kl"] if law["peak_kl"] is not None else "none"),
        "KL reached": law and law["furthest_kl"],
        "best checkpoint": f"{_cell(best['setting'])}, step {_cell(best['step'])}" if best else None,
        "gold where chosen": best.get("gold_chosen"),
        "gold elsewhere": best.get("gold_reported"),
    }


def _settings(found: dict[str, Row]) -> list[Row]:
    return [
        {"arm": arm, **curve, "fall": _interval(curve["fall"], "mean")}
        for arm in by_order(found)
        for curve in found[arm].get("settings", ())
    ]


def _behaviours(behaviours: dict[str, dict[str, Row]]) -> list[Row]:
    policies = by_order({policy for by in behaviours.values() for policy in by})
    return [
        {"behaviour": name} | {p: _interval(by.get(p, {}), "gold") for p in policies} for name, by in behaviours.items()
    ]


def _setup(setup: Row) -> list[Row]:
    values = {key: _cell(setup[key]) for key in ("prompts", "gold", "proxy", "judge", "temperature")}
    values["seeds"] = _list(setup["seeds"])
    values |= {f"{named(arm)} varies {tried['key']}": _list(tried["values"]) for arm, tried in setup["arms"].items()}
    for arm, at in (setup.get("chosen") or {}).items():
        values[f"{named(arm)} of the win rates"] = f"setting {_cell(at['setting'])}, step {_cell(at['step'])}"
    values["chosen on"] = _cell(setup.get("chosen_on"))
    return [{"what": what, "value": value} for what, value in values.items()]


def _replies(asked: Row) -> Section:
    replies = {policy: asked["replies"][policy] for policy in by_order(asked["replies"])}
    about = ", ".join(filter(None, [asked.get("situation"), f"seed {asked['seed']}"]))
    rows = [
        {"policy": policy, "reply": reply["text"] or "(nothing)", "gold": reply["gold"], "proxy": reply["proxy"]}
        for policy, reply in replies.items()
    ]
    return Section(f"{asked['prompt']} ({about})", rows=rows, level=3)


def _cells(rows: Iterable[Row]) -> list[list[str]]:
    """Rows with the same keys as text, the keys as the head."""
    rows = list(rows)
    return [
        [named(key).replace("_", " ") for key in rows[0]],
        *([_cell(value) for value in row.values()] for row in rows),
    ]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return named(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _interval(row: Row, key: str) -> str | None:
    if row.get(key) is None:
        return None
    return f"{row[key]:.2f}" + (f" [{row['low']:.2f}, {row['high']:.2f}]" if row.get("low") is not None else "")


def _list(values: Iterable[Any]) -> str:
    return ", ".join(map(_cell, values))


def _origin(made: Row) -> str:
    commit = made["git"]["commit"][:8] + (" with uncommitted changes" if made["git"]["dirty"] else "")
    versions = _list(f"{name} {version}" for name, version in made["versions"].items())
    machine = ", ".join(
        f"{value} cores" if key == "cores" else value for key, value in made["machine"].items() if value
    )
    return f"Made by {' '.join(made['command'])} at commit {commit}; {versions}; {machine}."


def _plain(text: str) -> str:
    """Text of a model for Markdown: one line without markup, so that it can neither break a table nor load a picture."""
    text = escape(" ".join(text.split()), quote=False)
    return re.sub(r"[|`]|\](?=[(\[:])|!(?=\[)", lambda found: "\\" + found[0], text)


def _markdown(part: Section, drawn: dict[str, Path]) -> str:
    lines = [f"{'#' * part.level} {_plain(part.heading)}", _plain(part.words)]
    name, alternative, caption = part.figure
    if name in drawn:
        lines += [f"![{alternative}]({drawn[name].name})", caption]
    if part.rows:
        lines.append(grid([[_plain(cell) for cell in row] for row in _cells(part.rows)]))
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
        head, *body = _cells(part.rows)
        lines += ["<details>", f"<summary>{len(body)} rows</summary>"] if len(body) > FOLD else []
        lines += [
            '<div class="wide"><table>',
            _html_row("th", head),
            *(_html_row("td", row) for row in body),
            "</table></div>",
        ]
        lines += ["</details>"] if len(body) > FOLD else []
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
