"""Curves of one run as PNG, readable without colour."""

import json
from pathlib import Path
from typing import Any

CURVES = {
    "loss.png": ("loss", (("loss", "training"), ("eval_loss", "held out"))),
    "accuracy.png": ("accuracy on pairs", (("accuracy", "training"), ("eval_accuracy", "held out"), ("rewards/accuracies", "training"), ("eval_rewards/accuracies", "held out"))),
    "reward.png": ("reward of the replies", (("objective/scores", "reward model"), ("objective/rlhf_reward", "after the KL penalty"))),
    "kl.png": ("KL to the reference, nats a reply", (("objective/kl", "policy"),)),
}  # fmt: skip
STYLES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "d"))


def curves(path: Path) -> list[Path]:
    """Draw what metrics.jsonl holds; returns the files written."""
    file = path / "metrics.jsonl"
    if not file.exists():
        return []
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    written = []
    for name, (label, series) in CURVES.items():
        found = {}
        for key, title in series:
            points = [(line["step"], float(line[key])) for line in lines if key in line]
            if points:
                found[title] = points
        if found:
            written.append(
                draw(path / name, found, x="optimizer steps" if "objective" not in series[0][0] else "updates", y=label)
            )
    return written


def draw(file: Path, series: dict[str, list[tuple[float, float]]], x: str, y: str) -> Path:
    """One figure with a line a series, labelled axes and a legend."""
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(6, 3.6), dpi=120, layout="constrained")
    for (title, points), (line, marker) in zip(series.items(), STYLES, strict=False):
        every = max(1, len(points) // 12)
        axes.plot(*zip(*points, strict=True), line, marker=marker, markevery=every, markersize=4, label=title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file)
    plt.close(figure)
    return file


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def intervals(file: Path, rates: dict[str, tuple[float, float, float]]) -> Path:
    """Win rates with their 95% intervals, and the line at one half."""
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(5, 1.2 + 0.5 * len(rates)), dpi=120, layout="constrained")
    for row, (rate, low, high) in enumerate(rates.values()):
        axes.errorbar(rate, row, xerr=[[rate - low], [high - rate]], fmt="o", color="black", capsize=4)
    axes.axvline(0.5, linestyle="--", color="gray", label="no difference")
    axes.set_yticks(range(len(rates)), list(rates))
    axes.set_ylim(-0.5, len(rates) - 0.5)
    axes.set_xlim(0, 1)
    axes.set_xlabel("win rate against SFT, 95% interval")
    axes.legend(loc="upper left", fontsize=8)
    figure.savefig(file)
    plt.close(figure)
    return file
