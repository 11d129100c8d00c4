"""What the arms came to: the true preference by labels, the first reward model's opinion of it, and what that supports in words."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf import files
from rlhf.evaluation.samples import Sample, column, final_samples
from rlhf.evaluation.statistics import Estimate, estimate, told_apart, verdict
from rlhf.output.plots import legend, picture
from rlhf.output.tables import grid
from rlhf.rounds.plan import FIRST, Rounds
from rlhf.runs import record
from rlhf.runs.provenance import provenance

Row = dict[str, Any]
TITLES = {"rounds": "rounds", "at_once": "at once", "frozen": "reward model of round 1"}
LOOKS = {"rounds": ("-", "o", "#12305f"), "at_once": ("--", "s", "#e08e2b"), "frozen": (":", "^", "#3b7a5a")}
MEANS = ("kl", "length")  # means over the replies of a point


def write(rounds: Rounds) -> str:
    """Writes report.json, report.md and gold.png into the folder of the rounds; returns the table and what it says in words.

    report.json has for each arm a list of {labels, gold, low, high, proxy, kl, length, accuracy_true, seconds}, one a point: gold with its 95%
    interval over prompts and seeds, `proxy` the mean score by the reward model of the first point. `difference`: gold of `rounds` less that
    of another arm at each point after the first. `fall`: of `frozen`, the last point less the best one (`from`, 0 is SFT), and the same two
    points of `rounds`.
    """
    replies = _replies(rounds)
    golds, proxies = ({arm: _table(of, key) for arm, of in replies.items()} for key in ("gold", "reward"))
    start = estimate(golds["sft"][0])
    report: Row = {"recipe": rounds.recipe, "provenance": provenance()}
    report["setup"] = {
        "labels": rounds.labels,
        "replies": rounds.replies,
        "seeds": rounds.seeds,
        "prompts": start.prompts,
    }
    report["sft"] = {"gold": start.mean, "low": start.low, "high": start.high, "proxy": float(proxies["sft"].mean())}
    for arm in rounds.arms:
        report[arm] = [
            _row(rounds, arm, place, golds[arm], proxies[arm], replies[arm]) for place in range(rounds.rounds)
        ]
    apart = {
        arm: [estimate(a - b) for a, b in zip(golds["rounds"], golds[arm], strict=True)][1:] for arm in rounds.arms[1:]
    }
    report["difference"] = {arm: [_numbers(one) for one in of] for arm, of in apart.items()}
    if "frozen" in rounds.arms:
        report["fall"] = _fall(golds, proxies)
    report["conclusion"] = conclusion(report, {arm: of[-1] for arm, of in apart.items()})
    files.write_json(rounds.folder / "report.json", report)
    draw(rounds.folder / "gold.png", report)
    text = [
        f"# Rounds on {rounds.recipe}",
        report["conclusion"],
        "![True preference by labels](gold.png)",
        table(report),
    ]
    files.write_text(rounds.folder / "report.md", "\n\n".join(text) + "\n")
    return f"\n{table(report)}\n\n{report['conclusion']}\n\nreport   {rounds.folder}/report.md, report.json, gold.png"


def _replies(rounds: Rounds) -> dict[str, list[list[list[Sample]]]]:
    """By arm, and of `sft` as one point, `[points][seeds]` of replies to the test prompts, with the first reward model's scores."""
    from rlhf.people.collect import Speaker
    from rlhf.process import quiet
    from rlhf.rewards.scorers import scorer

    quiet()
    found: dict[str, list[list[list[Sample]]]] = {"sft": [[]]} | {
        arm: [[] for _ in range(rounds.rounds)] for arm in rounds.arms
    }
    for seed in rounds.seeds:
        (judge,) = Speaker.load(rounds.root, [rounds.points[FIRST, seed][0].reward.name], scores=True)
        score = scorer(judge.stage, judge.tokenizer, judge.role)
        paths = {arm: [point.policy.stage.path for point in rounds.of(arm, seed)] for arm in rounds.arms}
        for arm, places in ({"sft": [rounds.start.parent]} | paths).items():
            for of_point, path in zip(found[arm], places, strict=True):
                samples = final_samples(path)
                scores = score([one["prompt_ids"] for one in samples], [one["ids"] for one in samples], []).tolist()
                of_point.append([{**one, "reward": value} for one, value in zip(samples, scores, strict=True)])
    return found


def _table(replies: Sequence[Sequence[Sequence[Sample]]], key: str) -> np.ndarray:
    """`[points, seeds, prompts]`."""
    return np.array([[column(samples, key) for samples in of_point] for of_point in replies])


def _row(rounds: Rounds, arm: str, place: int, gold: np.ndarray, proxy: np.ndarray, replies: Any) -> Row:
    points = [rounds.of(arm, seed)[place] for seed in rounds.seeds]
    mean = estimate(gold[place])
    found = {"labels": points[0].labels, "gold": mean.mean, "low": mean.low, "high": mean.high}
    found |= {"proxy": float(proxy[place].mean())}
    found |= {key: float(np.mean([column(samples, key) for samples in replies[place]])) for key in MEANS}
    told = [files.read_json(point.reward.stage.path / files.RESULTS_FILE)["accuracy_true"] for point in points]
    runs = [record.read_run(one.stage.path) for point in points for one in (point.reward, point.policy)]
    return found | {"accuracy_true": float(np.mean(told)), "seconds": sum(run["seconds"] for run in runs) / len(points)}


def _numbers(of: Estimate) -> Row:
    return {"mean": of.mean, "low": of.low, "high": of.high, "p": of.p}


def _fall(golds: dict[str, np.ndarray], proxies: dict[str, np.ndarray]) -> Row:
    """From the point at which the frozen reward model had done most good to the last."""
    best = int(np.concatenate([golds["sft"], golds["frozen"]]).mean(axis=(1, 2)).argmax())
    found: Row = {"from": best}
    for arm in ("frozen", "rounds"):
        for key, of in (("gold", golds), ("proxy", proxies)):
            table = np.concatenate([of["sft"], of[arm]])
            found.setdefault(arm, {})[key] = _numbers(estimate(table[-1] - table[best]))
    return found


def conclusion(report: Row, last: dict[str, Estimate]) -> str:
    """One paragraph, of these numbers alone; `last` are the differences of `rounds` from the other arms at the last point."""
    labels, count, parts = report["rounds"][-1]["labels"], len(report["rounds"]), []
    if "at_once" in last:
        parts.append(f"With {labels} labels: {verdict(last['at_once'], f'asking in {count} rounds', 'asking once')}.")
    if "frozen" in last:
        parts += _over(report["fall"], last["frozen"], count)
    seeds, prompts = len(report["setup"]["seeds"]), report["setup"]["prompts"]
    judged = f"{prompts} prompts and {seeds} seed{'s' * (seeds > 1)}, greedy replies and simulated people"
    return " ".join([*parts, f"This rests on {judged}."])


def _over(fall: Row, apart: Estimate, count: int) -> list[str]:
    gold, proxy = fall["frozen"]["gold"], fall["frozen"]["proxy"]
    ends = f"from {fall['from'] and 'point ' + str(fall['from']) or 'SFT'} to point {count}"
    if fall["from"] == count:
        found = "The reward model of round 1 was not over-optimized: the last policy that it paid is its best."
    elif gold["high"] < 0 < proxy["low"]:
        moved = f"its score rose by {_interval(proxy)} while the true preference changed by {_interval(gold)}"
        healed = told_apart(apart.low, apart.high, apart.p, 0) and apart.mean > 0 and fall["rounds"]["gold"]["high"] > 0
        cure = (
            f"Rounds {'cure' if healed else 'do not cure'} that: theirs changed by {_interval(fall['rounds']['gold'])}."
        )
        found = f"The reward model of round 1 was over-optimized: {ends} {moved}. {cure}"
    else:
        moved = f"{ends} the true preference changed by {_interval(gold)} and its score by {_interval(proxy)}"
        found = f"Over-optimization of the reward model of round 1 is not established: {moved}."
    return [found, f"At the end {verdict(apart, 'the policy of the rounds', 'that of the first reward model')}."]


def _interval(of: Row) -> str:
    return f"{of['mean']:+.2f} [{of['low']:+.2f}, {of['high']:+.2f}]"


def table(report: Row) -> str:
    """SFT, and the points of each arm; the first is the same for all."""
    rows = [["", "point", "labels", "gold", "95% interval", "score by reward model 1", "KL", "length", "accuracy_true"]]
    rows.append(["SFT", "0", "0", *_cells(report["sft"]), "0", "", ""])
    for arm in (arm for arm in TITLES if arm in report):
        for point, row in enumerate(report[arm], 1):
            if point > 1 or arm == "rounds":
                numbers = [f"{row['kl']:.2f}", f"{row['length']:.1f}", f"{row['accuracy_true']:.3f}"]
                rows.append(
                    [TITLES[arm] if point > 1 else "all", str(point), str(row["labels"]), *_cells(row), *numbers]
                )
    return grid(rows)


def _cells(row: Row) -> list[str]:
    return [f"{row['gold']:.2f}", f"{row['low']:.2f} to {row['high']:.2f}", f"{row['proxy']:.2f}"]


def draw(file: Path, report: Row) -> None:
    """Gold of each arm by labels, above the first reward model's score of the same replies."""
    step = report["setup"]["labels"]
    with picture(file, (6, 6.4), nrows=2, sharex=True) as (figure, (above, below)):
        for place, arm in enumerate(arm for arm in TITLES if arm in report):
            line, marker, colour = LOOKS[arm]
            rows = [report["sft"], *report[arm]]
            at = [step * (point + 0.03 * (place - 1)) for point in range(len(rows))]
            mean, low, high = (np.array([row[key] for row in rows]) for key in ("gold", "low", "high"))
            look = {"color": colour, "linewidth": 1.4, "markersize": 6, "fmt": line + marker}
            above.errorbar(at, mean, yerr=[mean - low, high - mean], capsize=3, label=TITLES[arm], **look)
            below.errorbar(at, [row["proxy"] for row in rows], **look)
        above.set_ylabel("true preference (points)")
        below.set_ylabel("score by the reward\nmodel of round 1")
        below.set_xticks([step * point for point in range(len(report["rounds"]) + 1)])
        below.set_xlabel("labels of the arms that ask (0: SFT); a PPO stage a point")
        for axes in (above, below):
            axes.grid(alpha=0.3)
        legend(figure, [above], columns=3)
