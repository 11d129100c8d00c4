"""A comparison as pages to read: Markdown beside its pictures, and one HTML file that holds everything."""

import base64
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from rlhf.compare.figures import by_order, draw, named, trained
from rlhf.compare.words import conclusion
from rlhf.tables import grid

Row = dict[str, Any]
Rows = Sequence[Sequence[str]]
FOLD = 15  # rows above which a table opens on a click


@dataclass(frozen=True)
class Section:
    """A heading with sentences, a picture (its name, alternative text and caption) and a table, whose first row is its head."""

    heading: str
    words: str = ""
    figure: tuple[str, str, str] | None = None
    rows: Rows = ()
    level: int = 2


def write_pages(folder: Path, report: Row) -> None:
    """Draw the pictures into `folder` and write report.md and report.html from the report alone."""
    drawn = draw(folder, report)
    title = f"PPO against DPO on {report['recipe']}"
    parts = sections(report)
    origin = _origin(report["provenance"])
    markdown = [f"# {title}", _plain(conclusion(report)), *(_markdown(part, drawn) for part in parts), _plain(origin)]
    (folder / "report.md").write_text("\n\n".join(markdown) + "\n")
    contents = " · ".join(f'<a href="#{_id(p.heading)}">{escape(p.heading)}</a>' for p in parts if p.level == 2)
    body = "\n".join(_html(part, drawn) for part in parts)
    (folder / "report.html").write_text(
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # replies come from a model: even one that slipped through as markup could load and run nothing
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f'<p class="conclusion">{escape(conclusion(report))}</p>\n<nav>{contents}</nav>\n{body}\n'
        f"<footer>{escape(origin)}</footer>\n</body>\n</html>\n"
    )


def sections(report: Row) -> list[Section]:
    """What the pages say, in order; a part without numbers is left out or says why."""
    arms = trained(report)
    found = [
        Section(
            "Frontier",
            figure=(
                "frontier",
                f"True preference score against the square root of KL from SFT for {_list(arms)}, SFT and best-of-n; "
                "the table of all checkpoints has the numbers.",
                "Mean of the seeds with the 95% interval over prompts; single seeds faint behind. Markers fill with the setting, "
                "lines follow a setting's checkpoints. Further up is better, further right is further from SFT.",
            ),
        ),
        Section("Equal KL", *_equal_kl(report)),
        Section(
            "Win rates",
            "A win rate is the share of prompts on which the first is preferred, a tie a half. Intervals are 95%, over prompts and "
            "seeds; p is corrected for all comparisons of the table (Holm). At equal length: the rate that would be left if replies "
            "were equally long; near an overlap of 0 it is extrapolated.",
            (
                "win_rates",
                "Win rates of each pair with 95% intervals, raw and length-controlled, against one half; the table has the numbers.",
                "An interval that crosses the dashed line leaves open who is better.",
            ),
            _win_rates(report["win_rates"]),
        ),
        Section(
            "Over-optimization",
            "The best checkpoint is chosen on one half of the prompts and reported on the other: the first number flatters.",
            (
                "overoptimization",
                f"Gain over SFT of the proxy and of the true preference against the square root of KL for {_list(arms)}, with the "
                "fitted law and its peak; the table has the numbers.",
                "A proxy that rises where the gold falls is being gamed. Mean of the seeds, single seeds faint behind; intervals are "
                "those of the gold, SFT's score taken as it is. The law is that of Gao et al. 2022.",
            ),
            _overoptimization(report["overoptimization"]),
        ),
        Section(
            "By behaviour",
            figure=(
                "behaviours",
                f"True preference score with its 95% interval in {len(report['behaviours'])} situations; the table has the numbers.",
                "True preference by what the situation asks for.",
            ),
            rows=_behaviours(report["behaviours"]),
        ),
        Section(
            "Costs",
            _sentence("DPO with PPO's time", report.get("dpo_with_ppo_time")),
            ("costs", "Time and tokens of each arm; the table has the numbers.", "Time and tokens of each arm, a number at each bar."),
            _costs(report["costs"]),
        ),
        Section("Alerts", "" if report["alerts"] else "The monitor of reward hacking raised none.", rows=_table(report["alerts"])),
        Section("Failed trials", rows=_table(report["failed"])),
        Section("Setup", rows=_setup(report["setup"])),
        Section("What the arms share", rows=_table(report["fairness"]["shared"])),
        Section("What differs between the arms", rows=_table(report["fairness"]["differs"])),
        Section("All checkpoints", rows=_table(report["frontier"])),
    ]  # fmt: skip
    kept = [part for part in found if part.words or part.rows or part.heading == "Frontier"]
    return kept + _replies(report["replies"])


def _equal_kl(report: Row) -> tuple[str, None, Rows]:
    rows = [["KL, nats a reply", "DPO", "PPO", "PPO - DPO", "95% interval"]]
    for row in report["equal_kl"]:
        numbers = [_number(row[key]) for key in ("kl", "dpo", "ppo", "difference")]
        rows.append([*numbers, _span(row)])
    if len(rows) == 1:
        return _sentence("Not compared", report.get("equal_kl_note") or "no KL was reached by both arms"), None, ()
    return "True preference at the same KL, interpolated between checkpoints; an interval around 0 leaves open who is better.", None, rows


def _win_rates(pairs: list[Row]) -> Rows:
    head = ["pair", "win rate", "95% interval", "p", "won / tied / lost", "changed by order", "abstained"]
    rows = [head + ["at equal length", "95% interval", "overlap", "verdict"]]
    for row in pairs:
        equal = row.get("length_controlled") or {}
        counts = " / ".join(str(row[key]) for key in ("wins", "ties", "losses"))
        verdict = re.sub(r" \([^)]*\)", "", row["verdict"])  # its numbers are the cells before it
        rows.append(
            [
                f"{named(row['first'])} over {named(row['second'])}", _number(row["rate"]), _span(row), _number(row["p_corrected"], "{:.2g}"),
                counts, _number(row["flip_rate"]), str(row["abstained"]), _number(equal.get("rate")), _span(equal), _number(equal.get("overlap")),
                " ".join(named(word) if word in ("sft", "dpo", "ppo") else word for word in verdict.split()),
            ]
        )  # fmt: skip
    return rows if pairs else ()


def _overoptimization(arms: dict[str, Row]) -> Rows:
    head = ["arm", "highest gold", "at KL", "gold at the last", "last / highest", "law", "peak of the law, KL", "data reach, KL"]
    rows = [head + ["best checkpoint", "gold, choosing half", "gold, other half"]]
    for arm in by_order(arms):
        found, law, best = arms[arm], arms[arm]["law"] or {}, arms[arm].get("best") or {}
        bend = "d" if law.get("kind") == "best-of-n" else "log d"
        fitted = f"d ({law['alpha']:.2f} - {law['beta']:.2f} {bend}), error {law['residual']:.2g}" if law else found["law_note"]
        chosen = f"{_number(best['setting'], '{:g}')}, step {best['step']}" if best else "-"
        rows.append(
            [
                named(arm), *(_number(found[key]) for key in ("gold_peak", "kl_at_peak", "gold_last", "last_over_peak")), fitted,
                _number(law.get("peak_kl")) if law.get("peak_kl") is not None or not law else "none: it does not turn down",
                _number(law.get("furthest_kl")), chosen, _number(best.get("gold_chosen")), _number(best.get("gold_reported")),
            ]
        )  # fmt: skip
    return rows if arms else ()


def _behaviours(behaviours: dict[str, dict[str, Row]]) -> Rows:
    policies = by_order({policy for by in behaviours.values() for policy in by})
    rows = [["behaviour", *(named(policy) for policy in policies)]]
    for name, by in behaviours.items():
        rows.append([name, *(f"{_number(by[p]['gold'])} [{_span(by[p])}]" if p in by else "-" for p in policies)])
    return rows if behaviours else ()


def _costs(costs: list[Row]) -> Rows:
    head = ["arm", "trials", "seconds a trial", "seconds of reward models", "seconds in all", "tokens generated", "tokens trained on"]
    keys = ("trials", "seconds_a_trial", "seconds_reward_model", "seconds_all", "tokens_generated", "tokens_trained", "peak_memory_mb")
    rows = [[named(row["arm"]), *(_number(row[key], "{:,.0f}") for key in keys)] for row in costs]
    return [[*head, "peak memory, MB"], *rows] if costs else ()


def _setup(setup: Row) -> Rows:
    rows = [["what", "value"], ["prompts", f"{setup['prompts']:,}"], ["seeds", _list(setup["seeds"])]]
    rows += [[key, _cell(setup[key])] for key in ("gold", "proxy", "judge", "temperature")]
    rows += [[f"{named(arm)} varies {tried['key']}", _list(tried["values"])] for arm, tried in setup["arms"].items()]
    chosen = (setup.get("chosen") or {}).items()
    rows += [[f"{named(arm)} of the win rates", f"setting {_cell(at['setting'])}, step {_cell(at['step'])}"] for arm, at in chosen]
    return [*rows, ["chosen on", setup.get("chosen_on") or "-"]]


def _replies(prompts: list[Row]) -> list[Section]:
    parts = [Section("Replies side by side", "Read them: a score does not show how a reply sounds.")] if prompts else []
    for asked in prompts:
        rows = [["policy", "reply", "gold", "proxy"]]
        for policy in by_order(asked["replies"]):
            reply = asked["replies"][policy]
            rows.append([named(policy), reply["text"] or "(nothing)", _number(reply["gold"]), _number(reply["proxy"])])
        about = ", ".join(filter(None, [asked.get("situation"), f"seed {asked['seed']}"]))
        parts.append(Section(f"{asked['prompt']} ({about})", rows=rows, level=3))
    return parts


def _table(rows: list[Row]) -> Rows:
    """Any list of rows with the same keys."""
    head = list(rows[0]) if rows else []
    return [[key.replace("_", " ") for key in head], *([_cell(row[key]) for key in head] for row in rows)] if rows else ()


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _number(value: float | None, form: str = "{:.2f}") -> str:
    return "-" if value is None else form.format(value)


def _span(row: Row) -> str:
    return "-" if row.get("low") is None or row.get("high") is None else f"{row['low']:.2f} to {row['high']:.2f}"


def _list(values: Sequence[Any]) -> str:
    return ", ".join(named(value) if isinstance(value, str) else _cell(value) for value in values)


def _sentence(what: str, text: str | None) -> str:
    return f"{what}: {text.rstrip('.')}." if text else ""


def _origin(made: Row) -> str:
    commit = made["git"]["commit"][:8] + (" with uncommitted changes" if made["git"]["dirty"] else "")
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    machine = ", ".join(f"{value} cores" if key == "cores" else str(value) for key, value in made["machine"].items() if value)
    return f"Made by {' '.join(made['command'])} at commit {commit}; {versions}; {machine}."


def _plain(text: str) -> str:
    """Text of a model for Markdown: in one line, without markup, so that it can neither break a table nor load a picture."""
    text = escape(" ".join(text.split()), quote=False)
    return re.sub(r"[|`]|\](?=[(\[])|!(?=\[)", lambda found: "\\" + found[0], text)


def _markdown(part: Section, drawn: dict[str, Path]) -> str:
    lines = [f"{'#' * part.level} {_plain(part.heading)}"]
    if part.words:
        lines.append(_plain(part.words))
    if part.figure and part.figure[0] in drawn:
        name, alternative, caption = part.figure
        lines += [f"![{alternative}]({drawn[name].name})", caption]
    if part.rows:
        lines.append(grid([[_plain(cell) for cell in row] for row in part.rows]))
    return "\n\n".join(lines)


def _html(part: Section, drawn: dict[str, Path]) -> str:
    name = f' id="{_id(part.heading)}"' if part.level == 2 else ""
    lines = [f"<section>\n<h{part.level}{name}>{escape(part.heading)}</h{part.level}>"]
    if part.words:
        lines.append(f"<p>{escape(part.words)}</p>")
    if part.figure and part.figure[0] in drawn:
        figure, alternative, caption = part.figure
        image = base64.b64encode(drawn[figure].read_bytes()).decode()
        lines.append(f'<figure><img src="data:image/png;base64,{image}" alt="{escape(alternative)}">')
        lines.append(f"<figcaption>{escape(caption)}</figcaption></figure>")
    if part.rows:
        lines.append(_html_table(part.rows))
    return "\n".join([*lines, "</section>"])


def _html_table(rows: Rows) -> str:
    cells: Callable[[Sequence[str], str], str] = lambda row, tag: "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row)
    body = "\n".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows[1:])
    table = f'<div class="wide"><table>\n<thead><tr>{cells(rows[0], "th")}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'
    return f"<details><summary>{len(rows) - 1} rows</summary>\n{table}\n</details>" if len(rows) - 1 > FOLD else table


def _id(heading: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")


STYLE = """
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; color: #111; background: #fff; }
h1, h2, h3 { line-height: 1.25; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #bbb; }
h3 { font-size: 1rem; overflow-wrap: anywhere; }
a { color: inherit; }
.conclusion { padding: .75rem 1rem; border-left: .3rem solid #111; background: #f3f3f3; }
figure { margin: 1rem 0; }
img { display: block; width: 100%; max-width: 42rem; height: auto; }
figcaption, nav, footer { font-size: .9rem; color: #444; max-width: 42rem; }
nav { max-width: none; line-height: 2; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem .3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd; min-width: 3.5rem; }
td { overflow-wrap: break-word; max-width: 32rem; }
th { border-bottom: 1px solid #111; }
footer { margin-top: 3rem; border-top: 1px solid #bbb; overflow-wrap: anywhere; }
@media print {
  body { max-width: none; margin: 0; }
  nav { display: none; }
  figure, tr, h2, h3 { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .wide { overflow: visible; }
  table { font-size: .7rem; }
  details::details-content { content-visibility: visible; display: block; }
}
"""
