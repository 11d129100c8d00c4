"""The pictures of a comparison, drawn from its report alone: labelled axes with units, 95% intervals, readable without colour."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from rlhf.compare.overoptimization import Law
from rlhf.plots import STYLES, intervals, picture

Row = dict[str, Any]
ORDER = ("dpo", "ppo", "best-of", "sft")  # which of STYLES a policy has in every picture
DISTANCE = "square root of KL from SFT, sqrt(nats a reply)"
BAR = {"capsize": 2.5, "elinewidth": 1, "markersize": 6.5}


def draw(folder: Path, report: Row) -> dict[str, Path]:
    """Write the PNGs for which the report has numbers and remove those of an earlier report; returns them by name."""
    drawn = {}
    for plot in (frontier, overoptimization, win_rates, behaviours, costs):
        file = folder / f"{plot.__name__}.png"
        file.unlink(missing_ok=True)
        plot(file, report)
        if file.exists():
            drawn[plot.__name__] = file
    return drawn


def named(policy: str) -> str:
    """How a policy is written for people: `PPO` for ppo, best-of-16 as it is."""
    return policy.upper() if policy.isalpha() else policy


def frontier(file: Path, report: Row) -> None:
    """Gold against sqrt(KL): a line a setting, the mean of its seeds with the interval, the seeds faint behind."""
    rows = _measured(report, "kl", "gold")
    if not rows:
        return
    with picture(file, (6, 6.2)) as (figure, axes):
        for arm in trained(report):
            line, marker, colour = _style(arm)
            key = report["setup"]["arms"].get(arm, {}).get("key", "setting").rpartition(".")[2]
            mine = [row for row in rows if row["arm"] == arm]
            axes.plot(*_points(mine), marker, color=colour, alpha=0.25, markersize=3.5, markeredgewidth=0)
            for setting, fill in _fills(mine, colour):
                points = _means([row for row in mine if row["setting"] == setting])
                label = f"{named(arm)}, {key} {setting:g}"
                _errorbar(axes, points, fmt=line + marker, color=colour, mfc=fill, linewidth=1.2, label=label)
        pool = _means([row for row in rows if row["arm"] == "best-of-n"])
        if pool:
            line, marker, colour = _style("best-of-n")
            _errorbar(axes, pool, fmt=line + marker, color=colour, mfc="white", linewidth=1.2, label="best-of-n")
        start = _means([row for row in rows if row["arm"] == "sft"])
        if start:
            axes.axhline(start[0]["gold"], color="gray", linewidth=0.8, linestyle=":")
            _errorbar(axes, start, fmt="D", color="black", label="SFT")
        chosen = report["setup"].get("chosen") or {}
        picked = [r for r in _means(rows) if _at(r) == _at(chosen.get(r["arm"]) or {})]
        if picked:
            axes.plot(*_points(picked), "o", mfc="none", mec="black", markersize=15, label="chosen for the win rates")
        axes.set(xlabel=DISTANCE, ylabel="true preference score (points)")
        axes.grid(alpha=0.3)
        figure.legend(loc="outside upper center", ncols=2)


def overoptimization(file: Path, report: Row) -> None:
    """Per trained arm what the proxy and the gold gain over SFT while KL grows, and the law fitted to the gold."""
    rows = _measured(report, "kl", "gold", "proxy")
    start = {row["seed"]: row for row in rows if row["arm"] == "sft"}
    gains = [
        row | {name: row[name] - start[row["seed"]][name] for name in ("gold", "proxy")}
        for row in rows
        if row["seed"] in start
    ]
    arms = [arm for arm in trained(report) if any(row["arm"] == arm for row in gains)]
    if not arms:
        return
    with picture(file, (6, 6), nrows=2, ncols=len(arms), sharex="col", sharey="row", squeeze=False) as (figure, grid):
        for column, arm in zip(grid.T, arms, strict=True):
            _, marker, colour = _style(arm)
            mine = [row for row in gains if row["arm"] == arm]
            for axes, value in zip(column, ("proxy", "gold"), strict=True):
                axes.axhline(0, color="gray", linewidth=0.8)
                axes.plot(*_points(mine, value), marker, color=colour, alpha=0.25, markersize=3.5, markeredgewidth=0)
                for setting, fill in _fills(mine, colour):
                    points = _points(_means([row for row in mine if row["setting"] == setting]), value)
                    axes.plot(*points, marker, color=colour, mfc=fill, markersize=6.5)
                axes.grid(alpha=0.3)
            _draw_law(column, report["overoptimization"].get(arm, {}).get("law"))
            column[0].set_title(named(arm))
        grid[0, 0].set_ylabel("proxy, gain over SFT\n(reward model's points)")
        grid[1, 0].set_ylabel("gold, gain over SFT\n(true preference points)")
        figure.supxlabel(DISTANCE, fontsize=12)
        labels = {label: handle for axes in grid[1] for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        if labels:
            figure.legend(labels.values(), labels, loc="outside upper center", ncols=2)


def win_rates(file: Path, report: Row) -> None:
    """Each pair, raw and at equal length."""
    raw, equal = {}, {}
    for row in report["win_rates"]:
        pair = f"{named(row['first'])} over {named(row['second'])}"
        for rates, found in ((raw, row), (equal, row.get("length_controlled") or {})):
            if found.get("rate") is not None:
                rates[pair] = _interval(found, "rate")
    if raw:
        series = {"raw": raw} | ({"length-controlled": equal} if equal else {})
        intervals(file, series, "share of prompts won, 95% interval", rates=True)


def behaviours(file: Path, report: Row) -> None:
    """The true preference of each policy in each situation."""
    found = {
        policy: {name: _interval(by[policy], "gold") for name, by in report["behaviours"].items() if policy in by}
        for policy in by_order({policy for by in report["behaviours"].values() for policy in by})
    }
    if found:
        styles = [_style(policy) for policy in found]
        series = {named(policy): values for policy, values in found.items()}
        intervals(file, series, "true preference score (points), 95% interval", styles=styles)


def costs(file: Path, report: Row) -> None:
    """Time and tokens by arm, each bar with its number."""
    rows = report["costs"]
    if not rows:
        return
    panels: list[tuple[str, list[tuple[str, str, Callable[[Row], float]]]]] = [
        ("time a trial (seconds)", [("", "//", lambda row: row["seconds_a_trial"] or 0)]),
        ("time of all trials (minutes)", [("", "//", lambda row: (row["seconds_all"] or 0) / 60)]),
        (
            "tokens of all trials (millions)",
            [
                ("generated", "", lambda row: (row["tokens_generated"] or 0) / 1e6),
                ("trained on", "xx", lambda row: (row["tokens_trained"] or 0) / 1e6),
            ],
        ),
    ]
    height = 1.9 + len(rows) * 1.25
    ratios = {"height_ratios": [len(bars) + 0.4 for _, bars in panels]}
    with picture(file, (6, height), nrows=len(panels), gridspec_kw=ratios) as (_, grid):
        for axes, (label, bars) in zip(grid, panels, strict=True):
            for place, (title, hatch, value) in enumerate(bars):
                width = 0.8 / len(bars)
                at = np.arange(len(rows)) + width * (place - (len(bars) - 1) / 2)
                drawn = axes.barh(
                    at, [value(row) for row in rows], width, color="#d9d9d9", edgecolor="black", hatch=hatch, label=title
                )
                axes.bar_label(drawn, fmt="{:,.3g}" if "million" in label else "{:,.0f}", padding=4, fontsize=11)
            axes.set_yticks(range(len(rows)), [named(row["arm"]) for row in rows])
            axes.set_ylim(len(rows) - 0.5, -0.5)
            axes.margins(x=0.15)
            axes.set_xlabel(label)
            if len(bars) > 1:
                axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def trained(report: Row) -> list[str]:
    """The arms that were trained, in the order of every table and picture."""
    return by_order({row["arm"] for row in report["frontier"]} - {"sft", "best-of-n"})


def by_order(policies: Iterable[str]) -> list[str]:
    return sorted(policies, key=lambda policy: (_place(policy), policy))


def _place(policy: str) -> int:
    return next((place for place, name in enumerate(ORDER) if policy.startswith(name)), 0)


def _style(policy: str) -> tuple[str, str, str]:
    return STYLES[_place(policy)]


def _measured(report: Row, *keys: str) -> list[Row]:
    return [row for row in report["frontier"] if all(row[key] is not None for key in keys)]


def _at(row: Row) -> tuple[Any, Any]:
    return row.get("setting"), row.get("step")


def _means(rows: list[Row]) -> list[Row]:
    """One row for each (arm, setting, step), its numbers the mean over seeds, by growing KL."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["arm"], *_at(row)), []).append(row)
    numbers = ("kl", "gold", "gold_low", "gold_high", "proxy")
    means = [
        {"arm": arm, "setting": setting, "step": step}
        | {k: float(np.mean([r[k] for r in group])) for k in numbers if all(r.get(k) is not None for r in group)}
        for (arm, setting, step), group in groups.items()
    ]
    return sorted(means, key=lambda row: row["kl"])


def _fills(rows: list[Row], colour: str) -> list[tuple[float, Any]]:
    """Each setting with what its markers are filled with: from white for the smallest to the arm's colour for the largest."""
    from matplotlib.colors import to_rgb

    settings = sorted({row["setting"] for row in rows})
    shares = np.linspace(0, 1, len(settings)) if len(settings) > 1 else [1.0]
    return [(s, tuple(1 - share * (1 - c) for c in to_rgb(colour))) for s, share in zip(settings, shares, strict=True)]


def _points(rows: list[Row], value: str = "gold") -> tuple[list[float], list[float]]:
    return [max(row["kl"], 0.0) ** 0.5 for row in rows], [row[value] for row in rows]  # a sampled KL may be below 0


def _errorbar(axes: Any, rows: list[Row], **look: Any) -> None:
    x, y = _points(rows)
    ends = zip(*(_interval(row, "gold") for row in rows), strict=True)
    mean, low, high = (np.array(end) for end in ends)
    axes.errorbar(x, y, yerr=[mean - low, high - mean], **BAR, **look)


def _interval(row: Row, name: str) -> tuple[float, float, float]:
    """A mean and its interval; without one, as with a single prompt, both ends are the mean."""
    prefix = "gold_" if f"{name}_low" in row else ""
    low, high = row.get(f"{prefix}low"), row.get(f"{prefix}high")
    return row[name], row[name] if low is None else low, row[name] if high is None else high


def _draw_law(column: Any, law: Row | None) -> None:
    if law is None:
        return
    fitted = Law(law["kind"], law["alpha"], law["beta"], law["furthest_kl"] ** 0.5, law["residual"])
    d = np.linspace(0, fitted.furthest, 200)
    column[1].plot(d, fitted(d), "--", color="black", linewidth=1.6, label="law fitted to the gold")
    if law["peak_kl"] is not None and law["peak_kl"] <= law["furthest_kl"]:
        for axes in column:
            axes.axvline(law["peak_kl"] ** 0.5, linestyle=":", color="black", label="its peak")
