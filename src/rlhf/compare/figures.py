"""The pictures of a comparison, drawn from its report alone: labelled axes with units, 95% intervals, readable without colour."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf.compare.estimators import Law
from rlhf.compare.report import Report, Row, place, policies, title, trained
from rlhf.output.plots import STYLES, intervals, legend, picture

DISTANCE = "square root of KL from SFT, sqrt(nats a reply)"
MEAN_LOOK = {"capsize": 2.5, "elinewidth": 1, "markersize": 6.5}  # of the mean of the seeds with its interval
SEED_LOOK = {"alpha": 0.3, "markersize": 3.5, "markeredgewidth": 0}  # of the single seeds behind it
HATCHES = ("//", "xx", "..", "", "||")  # by `place`
OTHER = ("--", "v", "#8a2be2")  # a policy that has no place in the order


def draw(folder: Path, report: Report) -> dict[str, Path]:
    """Write the PNGs for which the report has numbers and remove those of an earlier report; returns them by name."""
    drawn = {}
    for plot in (frontier, overoptimization, win_rates, behaviours, costs):
        file = folder / f"{plot.__name__}.png"
        file.unlink(missing_ok=True)
        plot(file, report)
        if file.exists():
            drawn[plot.__name__] = file
    return drawn


def frontier(file: Path, report: Report) -> None:
    """Gold against sqrt(KL): a line a setting, the mean of its seeds with the interval, the seeds faint behind."""
    rows = _measured(report, "kl", "gold")
    if not rows:
        return
    with picture(file, (6, 6.2)) as (figure, axes):
        for arm in trained(report):
            line, marker, colour = _style(arm)
            mine = [row for row in rows if row["arm"] == arm]
            axes.plot(*_points(mine), marker, color=colour, **SEED_LOOK)
            for label, points, fill in _settings(report, arm, mine):
                _errorbar(axes, points, fmt=line + marker, color=colour, mfc=fill, linewidth=1.2, label=label)
        start = _means([row for row in rows if row["arm"] == "sft"])
        pool = _means([row for row in rows if row["arm"] == "best-of-n"])
        if pool:
            line, marker, colour = _style("best-of-n")  # best of one sample is SFT itself, so the curve begins there
            look = {"fmt": line + marker, "color": colour, "mfc": "white", "linewidth": 1.2}
            _errorbar(axes, start + pool, **look, label="best-of-n")
        if start:
            axes.axhline(start[0]["gold"], color="gray", linewidth=0.8, linestyle=":")
            _errorbar(axes, start, fmt="D", color="black", label="SFT")
        chosen = report["setup"].get("chosen") or {}
        picked = [r for r in _means(rows) if _at(r) == _at(chosen.get(r["arm"]) or {})]
        if picked:
            axes.plot(*_points(picked), "o", mfc="none", mec="black", markersize=15, label="chosen checkpoint")
        axes.set(xlabel=DISTANCE, ylabel="true preference score (points)")
        axes.grid(alpha=0.3)
        legend(figure, [axes], columns=3)


def overoptimization(file: Path, report: Report) -> None:
    """Per trained arm what the proxy and the gold gain over SFT while KL grows, and the law fitted to the gold."""
    rows = _measured(report, "kl", "gold", "proxy")
    start = {row["seed"]: row for row in rows if row["arm"] == "sft"}
    gains = [_gain(row, start[row["seed"]]) for row in rows if row["seed"] in start]
    arms = [arm for arm in trained(report) if any(row["arm"] == arm for row in gains)]
    if not arms:
        return
    with picture(file, (6, 6), nrows=2, ncols=len(arms), sharex=True, sharey="row", squeeze=False) as (figure, grid):
        for column, arm in zip(grid.T, arms, strict=True):
            _, marker, colour = _style(arm)
            mine = [row for row in gains if row["arm"] == arm]
            for axes, value in zip(column, ("proxy", "gold"), strict=True):
                axes.axhline(0, color="gray", linewidth=0.8)
                axes.plot(*_points(mine, value), marker, color=colour, **SEED_LOOK)
                for label, points, fill in _settings(report, arm, mine):
                    _errorbar(axes, points, value, fmt=marker, color=colour, mfc=fill, label=label)
                axes.grid(alpha=0.3)
            _draw_law(column, report["overoptimization"].get(arm, {}).get("law"))
            column[0].set_title(title(arm))
        grid[0, 0].set_ylabel("proxy, gain over SFT\n(reward model's points)")
        grid[1, 0].set_ylabel("gold, gain over SFT\n(true preference points)")
        figure.supxlabel(DISTANCE, fontsize=12)
        legend(figure, grid[1], columns=3)


def win_rates(file: Path, report: Report) -> None:
    """Each pair, raw and at equal length."""
    raw, equal = {}, {}
    for row in report["win_rates"]:
        pair = f"{title(row['first'])} over {title(row['second'])}"
        for rates, side in ((raw, row), (equal, row.get("length_controlled") or {})):
            if side.get("rate") is not None:
                rates[pair] = _interval(side, "rate")
    if raw:
        series = {"raw": raw} | ({"length-controlled": equal} if equal else {})
        intervals(file, series, "share of prompts won, 95% interval", rates=True)


def behaviours(file: Path, report: Report) -> None:
    """The true preference of each policy in each situation."""
    golds = {
        title(policy): {
            name: _interval(by[policy], "gold") for name, by in report["behaviours"].items() if policy in by
        }
        for policy in policies(report)
    }
    if golds:
        styles = [_style(policy) for policy in policies(report)]
        intervals(file, golds, "true preference score (points), 95% interval", styles=styles)


def costs(file: Path, report: Report) -> None:
    """Time and tokens by arm, a number at each bar."""
    rows = report["costs"]
    if not rows:
        return
    panels = (
        ("time a trial (seconds)", "seconds_a_trial", 1),
        ("time of all trials (minutes)", "seconds_all", 60),
        ("tokens generated (millions)", "tokens_generated", 1e6),
        ("tokens trained on (millions)", "tokens_trained", 1e6),
    )
    with picture(file, (6, 1.6 + len(rows) * 0.7), nrows=2, ncols=2, sharey=True) as (_, grid):
        for axes, (label, key, unit) in zip(grid.flat, panels, strict=True):
            values = [(row[key] or 0) / unit for row in rows]
            hatches = [HATCHES[place(row["arm"])] for row in rows]
            bars = axes.barh(range(len(rows)), values, 0.7, color="#dddddd", edgecolor="black", hatch=hatches)
            axes.bar_label(bars, fmt="{:,.3g}" if unit > 60 else "{:,.0f}", padding=4, fontsize=11)
            axes.set_yticks(range(len(rows)), [title(row["arm"]) for row in rows])
            axes.set_ylim(len(rows) - 0.5, -0.5)
            axes.margins(x=0.3)
            axes.locator_params(axis="x", nbins=4)
            axes.set_xlabel(label)


def _style(policy: str) -> tuple[str, str, str]:
    return (*STYLES, OTHER)[place(policy)]


def _measured(report: Report, *keys: str) -> list[Row]:
    return [row for row in report["frontier"] if all(row[key] is not None for key in keys)]


def _at(row: Mapping[str, Any]) -> tuple[Any, Any]:
    return row.get("setting"), row.get("step")


def _means(rows: Sequence[Row]) -> list[Row]:
    """One row for each (arm, setting, step), its numbers the mean over seeds, by growing KL."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["arm"], *_at(row)), []).append(row)
    means = []
    for (arm, setting, step), group in groups.items():
        known = [
            k for k in ("kl", "gold", "gold_low", "gold_high", "proxy") if all(r.get(k) is not None for r in group)
        ]
        mean = {key: float(np.mean([row[key] for row in group])) for key in known}
        means.append({"arm": arm, "setting": setting, "step": step} | mean)
    return sorted(means, key=lambda row: row["kl"])


def _settings(report: Report, arm: str, rows: list[Row]) -> list[tuple[str, list[Row], Any]]:
    """Each setting's label, means, and fill of its markers: white for the smallest to the arm's colour for the largest."""
    from matplotlib.colors import to_rgb

    key = report["setup"]["arms"].get(arm, {}).get("key", "setting").rpartition(".")[2]
    settings = sorted({row["setting"] for row in rows if row["setting"] is not None})
    shares = np.linspace(0, 1, len(settings)) if len(settings) > 1 else [1.0]
    found = []
    for setting, share in zip(settings, shares, strict=True):
        fill = tuple(1 - share * (1 - part) for part in to_rgb(_style(arm)[2]))
        means = _means([row for row in rows if row["setting"] == setting])
        found.append((f"{title(arm)}, {key} {setting:g}", means, fill))
    return found


def _points(rows: Sequence[Row], value: str = "gold") -> tuple[list[float], list[float]]:
    return [max(row["kl"], 0.0) ** 0.5 for row in rows], [row[value] for row in rows]  # a sampled KL may be below 0


def _errorbar(axes: Any, rows: Sequence[Row], value: str = "gold", **look: Any) -> None:
    """Means with their intervals, where the rows have any."""
    ends = [[row[value], *(row.get(f"{value}_{end}", row[value]) for end in ("low", "high"))] for row in rows]
    mean, low, high = np.array(ends).T
    axes.errorbar(*_points(rows, value), yerr=[mean - low, high - mean], **MEAN_LOOK, **look)


def _gain(row: Row, start: Row) -> Row:
    """Gold with its interval and proxy, counted from those of SFT with the same seed; SFT's own noise is left out."""
    base = dict.fromkeys(("gold", "gold_low", "gold_high"), start["gold"]) | {"proxy": start["proxy"]}
    return row | {name: row[name] - base[name] for name in base if row[name] is not None}


def _interval(row: Mapping[str, Any], name: str) -> tuple[float, float, float]:
    """A mean and its interval; where there is none, both ends are the mean."""
    low, high = row["low"], row["high"]
    return row[name], row[name] if low is None else low, row[name] if high is None else high


def _draw_law(column: Any, law: Row | None) -> None:
    if law is None:
        return
    fitted = Law(law["kind"], law["alpha"], law["beta"], law["furthest_kl"] ** 0.5, law["residual"])
    d = np.linspace(0, fitted.furthest, 200)
    column[1].plot(d, fitted(d), "--", color="black", linewidth=1.6, label="law fitted to the gold")
    if law["turns"] and law["peak_kl"] is not None:
        for axes in column:
            axes.axvline(law["peak_kl"] ** 0.5, linestyle=":", color="black", label="its peak")
