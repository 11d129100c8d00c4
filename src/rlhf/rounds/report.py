"""What the arms came to: the true preference by labels, the first reward model's opinion of it, and what that supports in words."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf import files
from rlhf.evaluation.samples import Sample, column, final_samples
from rlhf.evaluation.statistics import Estimate, estimate, told_apart, verdict
from rlhf.output.plots import legend, picture
from rlhf.output.tables import grid
from rlhf.rounds.plan import ARMS, FIRST, Point, Rounds
from rlhf.runs import record
from rlhf.runs.provenance import provenance

Row = dict[str, Any]
TITLES = {"rounds": "rounds", "at_once": "at once, SFT's replies", "frozen": "reward model of round 1"}
LOOKS = {"rounds": ("-", "o", "#12305f"), "at_once": ("--", "s", "#e08e2b"), "frozen": (":", "^", "#3b7a5a")}


def write(rounds: Rounds) -> str:
    """Writes report.json, report.md and gold.png into the folder of the rounds; returns what it says in words.

    report.json has for each arm a list of {labels, gold, low, high, proxy, kl, length, accuracy_true, seconds}: gold with a 95% interval
    over prompts and seeds, `proxy` the mean score of the first point's reward model, which `frozen` is paid by all along (its labels are those
    that the others have by then); `difference`: gold of `rounds` less that of another arm; `change`: last point less first.
    """
    replies = {arm: _replies(rounds, arm) for arm in ARMS}
    golds, proxies = (
        {arm: _table(of, key) for arm, of in replies.items()} for key in ("gold", "reward")
    )  # [points, seeds, prompts]
    sft = column(final_samples(rounds.start.parent), "gold")
    report: Row = {
        "recipe": rounds.recipe,
        "provenance": provenance(),
        "setup": {"labels": rounds.labels, "replies": rounds.replies, "seeds": rounds.seeds, "prompts": len(sft)},
        "sft": {"gold": float(sft.mean())},
    }
    report |= {
        arm: [_row(rounds, arm, number, golds[arm], proxies[arm], replies[arm]) for number in range(rounds.rounds)]
        for arm in ARMS
    }
    report["difference"] = {
        other: [
            _numbers(estimate(golds["rounds"][number] - golds[other][number])) for number in range(1, rounds.rounds)
        ]
        for other in ("at_once", "frozen")
    }
    report["change"] = {
        arm: {
            "gold": _numbers(estimate(golds[arm][-1] - golds[arm][0])),
            "proxy": _numbers(estimate(proxies[arm][-1] - proxies[arm][0])),
        }
        for arm in ARMS
    }
    last = {other: estimate(golds["rounds"][-1] - golds[other][-1]) for other in ("at_once", "frozen")}
    report["conclusion"] = conclusion(report, last)
    files.write_json(rounds.folder / "report.json", report)
    draw(rounds.folder / "gold.png", report)
    text = [f"# Rounds on {rounds.recipe}", report["conclusion"], "![Gold by labels](gold.png)", table(report)]
    files.write_text(rounds.folder / "report.md", "\n\n".join(text) + "\n")
    return f"\n{table(report)}\n\n{report['conclusion']}\n\nreport   {rounds.folder}/report.md, report.json"


def _replies(rounds: Rounds, arm: str) -> list[list[list[Sample]]]:
    """`[points][seeds]` of replies to the test prompts, each with the score of the first reward model of its seed."""
    from rlhf.people.collect import Speaker
    from rlhf.process import quiet
    from rlhf.rewards.scorers import scorer

    quiet()
    found: list[list[list[Sample]]] = [[] for _ in range(rounds.rounds)]
    for seed in rounds.seeds:
        judge = Speaker.load(rounds.root, rounds.points[FIRST, seed][0].reward.name, scores=True)
        score = scorer(judge.stage, judge.tokenizer, judge.role)
        for of_point, point in zip(found, rounds.of(arm, seed), strict=True):
            samples = final_samples(point.policy.stage.path)
            scores = score([one["prompt_ids"] for one in samples], [one["ids"] for one in samples], []).tolist()
            of_point.append([{**one, "reward": value} for one, value in zip(samples, scores, strict=True)])
    return found


def _table(replies: Sequence[Sequence[Sequence[Sample]]], key: str) -> np.ndarray:
    return np.array([[column(samples, key) for samples in of_point] for of_point in replies])


def _row(rounds: Rounds, arm: str, place: int, gold: np.ndarray, proxy: np.ndarray, replies: Any) -> Row:
    points: list[Point] = [rounds.of(arm, seed)[place] for seed in rounds.seeds]
    mean = estimate(gold[place])
    found = {
        "labels": points[0].labels,
        "gold": mean.mean,
        "low": mean.low,
        "high": mean.high,
        "proxy": float(proxy[place].mean()),
    }
    found |= {key: float(np.mean([column(samples, key) for samples in replies[place]])) for key in ("kl", "length")}
    accuracies = [
        files.read_json(point.reward.stage.path / files.RESULTS_FILE).get("accuracy_true") for point in points
    ]
    runs = [record.read_run(one.stage.path) for point in points for one in (point.reward, point.policy)]
    return found | {
        "accuracy_true": float(np.mean(accuracies)),
        "seconds": round(sum(run["seconds"] for run in runs) / len(points), 1),
    }


def _numbers(of: Estimate) -> Row:
    return {"mean": of.mean, "low": of.low, "high": of.high, "p": of.p}


def conclusion(report: Row, last: Mapping[str, Estimate]) -> str:
    """One paragraph, of these numbers alone; `last` are the differences of `rounds` at the last point."""
    setup, labels = report["setup"], report["rounds"][-1]["labels"]
    count = len(report["rounds"])
    parts = [f"After {labels} labels: {verdict(last['at_once'], f'{count} rounds', 'one collection of as many')}."]
    gold, proxy = report["change"]["frozen"]["gold"], report["change"]["frozen"]["proxy"]
    moved = f"gold changed by {_interval(gold)} while its score changed by {_interval(proxy)}"
    if proxy["low"] > 0 and gold["high"] < 0:
        parts.append(f"The reward model of round 1 was over-optimized: from the first point to the last {moved}.")
        cured = report["change"]["rounds"]["gold"]["low"] > gold["high"] and told_apart(
            last["frozen"].low, last["frozen"].high, last["frozen"].p, 0
        )
        parts.append(
            f"Rounds {'cure' if cured else 'do not cure'} that: their gold changed by {_interval(report['change']['rounds']['gold'])}."
        )
    else:
        parts.append(
            f"Paid by the reward model of round 1 all along there is no over-optimization to speak of: {moved}."
        )
    parts.append(f"At the end {verdict(last['frozen'], 'the policy of the rounds', 'that of the first reward model')}.")
    seeds = len(setup["seeds"])
    parts.append(
        f"All this rests on {setup['prompts']} prompts and {seeds} seed{'s' * (seeds > 1)}, greedy replies, simulated people."
    )
    return " ".join(parts)


def _interval(of: Row) -> str:
    return f"{of['mean']:+.2f} [{of['low']:+.2f}, {of['high']:+.2f}]"


def table(report: Row) -> str:
    """The points of each arm; the first is the same for all."""
    head = ["", "labels", "gold", "95% interval", "score of reward model 1", "KL", "length", "accuracy_true"]
    rows = [
        [
            f"{TITLES[arm]}, {place} times PPO",
            row["labels"],
            f"{row['gold']:.2f}",
            f"{row['low']:.2f} to {row['high']:.2f}",
        ]
        + [f"{row['proxy']:.2f}", f"{row['kl']:.2f}", f"{row['length']:.1f}", f"{row['accuracy_true']:.3f}"]
        for arm in ARMS
        for place, row in enumerate(report[arm], 1)
        if place > 1 or arm == ARMS[0]
    ]
    return grid([head, *([str(cell) for cell in row] for row in rows)])


def draw(file: Path, report: Row) -> None:
    """Gold of each arm by labels, above the first reward model's score of the same replies."""
    with picture(file, (6, 6.4), nrows=2, sharex=True) as (figure, (above, below)):
        for place, arm in enumerate(ARMS):
            line, marker, colour = LOOKS[arm]
            at = [row["labels"] * (1 + 0.012 * (place - 1)) for row in report[arm]]
            mean, low, high = (np.array([row[key] for row in report[arm]]) for key in ("gold", "low", "high"))
            look = {"color": colour, "linewidth": 1.4, "markersize": 6}
            above.errorbar(
                at, mean, yerr=[mean - low, high - mean], fmt=line + marker, capsize=3, label=TITLES[arm], **look
            )
            below.plot(at, [row["proxy"] for row in report[arm]], line + marker, **look)
        above.axhline(report["sft"]["gold"], color="gray", linewidth=0.9, linestyle=":", label="SFT")
        above.set_ylabel("true preference (points)")
        below.set_ylabel("score by the\nreward model of round 1")
        below.set_xticks([row["labels"] for row in report["rounds"]])
        below.set_xlabel("labels; a PPO stage at each point")
        for axes in (above, below):
            axes.grid(alpha=0.3)
        legend(figure, [above], columns=2)
