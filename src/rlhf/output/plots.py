"""Curves and intervals as PNG, readable without colour."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf.files import METRICS_FILE, read_lines

CURVES = {
    "loss.png": ("loss", (("loss", "training"), ("eval_loss", "held out"))),
    "accuracy.png": ("accuracy on pairs", (("accuracy", "training"), ("eval_accuracy", "held out"), ("rewards/accuracies", "training"), ("eval_rewards/accuracies", "held out"))),
    "reward.png": ("reward of the replies", (("objective/scores", "reward model"), ("objective/rlhf_reward", "after the KL penalty"))),
    "kl.png": ("KL to the reference, nats a reply", (("objective/kl", "policy"),)),
}  # fmt: skip
# line, marker and a colour; the colours differ in lightness, so that a print in black and white keeps them apart
STYLES = (("--", "s", "#e08e2b"), ("-", "o", "#12305f"), (":", "^", "#3b7a5a"), ("-.", "D", "#000000"))
Interval = tuple[float, float, float]  # a mean and the ends of its interval


def curves(path: Path, x: str) -> None:
    """Draw what metrics.jsonl holds, over its steps, which the axis calls `x`."""
    lines = read_lines(path / METRICS_FILE)
    for name, (label, series) in CURVES.items():
        found = {key: [(line["step"], float(line[key])) for line in lines if key in line] for key, _ in series}
        if titled := {title: found[key] for key, title in series if found[key]}:
            draw(path / name, titled, x=x, y=label)


def draw(file: Path, series: dict[str, list[tuple[float, float]]], x: str, y: str) -> Path:
    """One figure with a line a series, labelled axes and a legend."""
    with picture(file, (6, 3.6)) as (_, axes):
        for (title, points), (line, marker, colour) in zip(series.items(), STYLES, strict=False):
            style = {"marker": marker, "color": colour, "markevery": max(1, len(points) // 12), "markersize": 4}
            axes.plot(*zip(*points, strict=True), line, label=title, **style)
        axes.set(xlabel=x, ylabel=y)
        axes.grid(alpha=0.3)
        axes.legend()
    return file


def intervals(
    file: Path,
    series: dict[str, dict[str, Interval]],
    x: str,
    rates: bool = False,
    styles: Sequence[tuple[str, str, str]] = (("", "o", "#000000"), ("", "v", "#555555")),
) -> Path:
    """A row a name, in it a marker and its 95% interval for each series that has the name; `rates` shows 0 to 1 and one half."""
    rows = list(dict.fromkeys(name for values in series.values() for name in values))
    with picture(file, (6, 1.3 + len(rows) * (0.22 + 0.2 * len(series)))) as (figure, axes):
        for place, ((title, values), (_, marker, colour)) in enumerate(zip(series.items(), styles, strict=False)):
            offset = 0.75 * ((place + 0.5) / len(series) - 0.5)
            at = [rows.index(name) + offset for name in values]
            mean, low, high = zip(*values.values(), strict=True)
            ends = [[m - a for m, a in zip(mean, low, strict=True)], [b - m for m, b in zip(mean, high, strict=True)]]
            fill = colour if place % 2 == 0 else "white"
            axes.errorbar(mean, at, xerr=ends, fmt=marker, color=colour, mfc=fill, markersize=6, capsize=3, label=title)
        if rates:
            axes.axvline(0.5, linestyle="--", color="gray", label="no difference")
            axes.set_xlim(0, 1)
        for edge in range(1, len(rows)):
            axes.axhline(edge - 0.5, color="#dddddd", linewidth=0.8)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(x)
        legend(figure, [axes], columns=4)
    return file


def legend(figure: Any, axes: Sequence[Any], columns: int) -> None:
    """One for all axes, outside of them so that it covers nothing; what has intervals comes first."""
    found = {label: handle for one in axes for handle, label in zip(*one.get_legend_handles_labels(), strict=True)}
    order = sorted(found, key=lambda label: not hasattr(found[label], "has_yerr"))
    handles = [found[label] for label in order]
    figure.legend(handles, order, loc="outside upper center", ncols=columns, handlelength=1.6, columnspacing=1.2)


@contextmanager
def picture(file: Path, size: tuple[float, float], **grid: Any) -> Iterator[tuple[Any, Any]]:
    """The figure and axes of `plt.subplots(**grid)`, of a size in inches; saved when the block ends without an error."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    # a page 6 inches wide shows this text at its size, a phone at two thirds of it
    with plt.rc_context({"font.size": 12, "legend.fontsize": 11, "xtick.labelsize": 11, "ytick.labelsize": 11}):
        figure, axes = plt.subplots(figsize=size, dpi=160, layout="constrained", **grid)
        try:
            yield figure, axes
            figure.savefig(file)
        finally:
            plt.close(figure)
