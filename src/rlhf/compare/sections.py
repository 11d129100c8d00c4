"""The parts of a comparison's pages: heading, sentences, picture and table of each, from the report alone."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.compare.report import Report, Row, by_order, policies, title, trained

ALWAYS = ("Frontier", "Equal KL", "Alerts")  # parts that say something without rows too


@dataclass(frozen=True)
class Section:
    """A heading with sentences, a picture (the name it was drawn under, alternative text, caption) and rows of a table."""

    heading: str
    words: str = ""
    rows: Sequence[Row] = ()
    figure: tuple[str, str, str] = ("", "", "")
    level: int = 2


def sections(report: Report) -> list[Section]:
    """What the pages say, in order; a part of which the report has nothing is left out."""
    arms, situations, alerts = report["overoptimization"], report["behaviours"], report["alerts"]
    names = listed(trained(report))
    parts = [
        Section(
            "Frontier",
            "How much true preference each arm gains for the distance it goes from SFT. Best-of-n trains no policy: of "
            "n replies of SFT to a prompt it keeps the one that the reward model scores highest.",
            figure=(
                "frontier",
                f"True preference score against the square root of KL from SFT: checkpoints of {names}, SFT and "
                "best-of-n.",
                "Mean of the seeds with the 95% interval over prompts, single seeds faint behind. Markers fill as the "
                "setting grows; lines follow its checkpoints. Further up is better, further right is further from SFT; "
                "best of one is SFT.",
            ),
        ),
        Section(
            "Equal KL",
            "True preference at the same KL (nats a reply), interpolated between checkpoints. The difference is PPO's "
            "less DPO's; a 95% interval (low to high) that includes 0 leaves open who is better."
            if report["equal_kl"]
            else f"Not compared: {report.get('equal_kl_note') or 'no KL was reached by both arms'}",
            report["equal_kl"],
        ),
        Section(
            "Win rates",
            "The share of prompts on which the first is preferred, a tie a half, with 95% intervals over prompts and "
            "seeds; p is corrected for all pairs (Holm). At equal length: the rate that would be left if replies were "
            "equally long, extrapolated where the overlap is near 0.",
            [_win_rate(row) for row in report["win_rates"]],
            (
                "win_rates",
                "Win rate of each pair with its 95% interval, raw and length-controlled, against one half.",
                "An interval that crosses the dashed line leaves open who is better.",
            ),
        ),
        Section(
            "Over-optimization",
            "The best checkpoint is chosen on one half of the prompts and reported on the other: the first number is "
            "chosen for being high.",
            [_over(arm, arms[arm]) for arm in by_order(arms)],
            (
                "overoptimization",
                "Gain over SFT of the proxy and of the true preference against the square root of KL: "
                f"{names}, fitted law and peak.",
                "A proxy that rises where the gold falls is being gamed. Mean of the seeds, single seeds faint behind; "
                "intervals are 95% of the gold, SFT's score taken as it is. With d = sqrt(KL), the law is that of Gao et "
                "al. 2022.",
            ),
        ),
        Section(
            "Each setting from its best to its last checkpoint",
            "The fall is from the checkpoint that is best on one half of the prompts, counted on the other, with a 95% "
            "interval.",
            [
                {"arm": arm, **curve, "fall": _interval(curve["fall"], "mean")}
                for arm in by_order(arms)
                for curve in arms[arm].get("settings", ())
            ],
        ),
        Section(
            "By behaviour",
            "True preference by what the situation asks for, with 95% intervals.",
            [
                {"behaviour": situation, **{name: _interval(golds.get(name, {}), "gold") for name in policies(report)}}
                for situation, golds in situations.items()
            ],
            (
                "behaviours",
                f"True preference by situation: {listed(situations)}.",
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
        Section("Alerts", "" if alerts else "The monitor of reward hacking raised none.", alerts),
        Section(
            "Learning rates",
            "Each rate's best checkpoint with the first seed, on the prompts that choose settings: win rates are counted on the others.",
            report.get("tuning", []),
        ),
        Section("Failed trials", rows=report["failed"]),
        Section("Setup", rows=_setup(report["setup"])),
        Section("What the arms share", rows=report["fairness"]["shared"]),
        Section("What differs between the arms", rows=report["fairness"]["differs"]),
        Section("All checkpoints", rows=report["frontier"]),
    ]
    parts = [part for part in parts if part.rows or part.heading in ALWAYS]
    if report["replies"]:
        parts.append(Section("Replies side by side", "A score does not show how a reply sounds."))
    return parts + [_replies(prompt) for prompt in report["replies"]]


def _win_rate(row: Row) -> Row:
    equal = row.get("length_controlled") or {}
    verdict = re.sub(r" \([^)]*\)", "", row["verdict"])  # its numbers are cells of their own
    return {
        "pair": f"{title(row['first'])} over {title(row['second'])}",
        "win rate": _interval(row, "rate"),
        "p": row["p_corrected"],
        "at equal length": _interval(equal, "rate"),
        "overlap": equal.get("overlap"),
        "won / tied / lost": f"{row['wins']} / {row['ties']} / {row['losses']}",
        "changed by order": row["flip_rate"],
        "abstained": row["abstained"],
        "verdict": " ".join(map(title, verdict.split())),
    }


def _over(arm: str, over: Row) -> Row:
    law, best = over["law"], over.get("best")
    bend = "d" if law and law["kind"] == "best-of-n" else "log d"
    sign = "+" if law and law["beta"] < 0 else "-"
    return {
        "arm": arm,
        "highest gold": over["gold_peak"],
        "at KL": over["kl_at_peak"],
        "last gold": over["gold_last"],
        "last / highest": over["last_over_peak"],
        "law": f"d ({law['alpha']:.2f} {sign} {abs(law['beta']):.2f} {bend})" if law else over["law_note"],
        "its error": law and law["residual"],
        "its peak, KL": law and (law["peak_kl"] if law["peak_kl"] is not None else "none"),
        "KL reached": law and law["furthest_kl"],
        "best checkpoint": f"{cell(best['setting'])}, step {cell(best['step'])}" if best else None,
        "gold where chosen": best and best["gold_chosen"],
        "gold elsewhere": best and best["gold_reported"],
    }


def _setup(setup: Row) -> list[Row]:
    values = {key: cell(setup[key]) for key in ("prompts", "gold", "proxy", "judge", "temperature")}
    values["seeds"] = listed(setup["seeds"])
    values |= {f"{title(arm)} varies {knob['key']}": listed(knob["values"]) for arm, knob in setup["arms"].items()}
    for arm, at in (setup.get("chosen") or {}).items():
        values[f"{title(arm)} of the win rates"] = f"setting {cell(at['setting'])}, step {cell(at['step'])}"
    values["chosen on"] = cell(setup.get("chosen_on"))
    return [{"what": what, "value": value} for what, value in values.items()]


def _replies(prompt: Row) -> Section:
    about = ", ".join(filter(None, [prompt.get("situation"), f"seed {prompt['seed']}"]))
    rows = []
    for policy in by_order(prompt["replies"]):
        said = prompt["replies"][policy]
        rows.append(
            {"policy": policy, "reply": said["text"] or "(nothing)", "gold": said["gold"], "proxy": said["proxy"]}
        )
    return Section(f"{prompt['prompt']} ({about})", rows=rows, level=3)


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """Rows with the same keys as text, the keys as the head."""
    head = [title(key).replace("_", " ") for key in rows[0]]
    return [head, *([cell(value) for value in row.values()] for row in rows)]


def cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return title(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _interval(row: Row, key: str) -> str | None:
    if row.get(key) is None:
        return None
    return f"{row[key]:.2f}" + (f" [{row['low']:.2f}, {row['high']:.2f}]" if row.get("low") is not None else "")


def listed(values: Iterable[Any]) -> str:
    return ", ".join(map(cell, values))
