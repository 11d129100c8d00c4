"""The result table of a recipe: finished policies on the same held-out prompts, with win rates against SFT, and replies to read."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf import files
from rlhf.config import Stage, read_stage
from rlhf.errors import ConfigError
from rlhf.evaluation.judges import Judge, load_judge
from rlhf.evaluation.metrics import DEFINITIONS, by_situation, summary
from rlhf.evaluation.samples import Sample, final_samples
from rlhf.evaluation.statistics import win_rate
from rlhf.methods import METHODS
from rlhf.models.shared import load_roles
from rlhf.output.console import memory
from rlhf.output.tables import between_markers, grid, plain
from rlhf.rewards.scorers import scorer
from rlhf.runs import record
from rlhf.runs.record import finished_stage

COLUMNS = ("gold_score", "win_rate_vs_sft", "reward_score", "kl", "length", "eos_rate", "distinct_2", "known_words")


def report(folder: Path) -> str:
    """Write report.json, report.md and win_rates.png into a recipe's folder; returns the table.

    Raises:
        ConfigError: no finished stage in the folder wrote replies.
    """
    runs = {name: run for name, run in record.runs(folder).items() if run.get("status") == "finished"}
    samples = {name: rows for name in runs if (rows := final_samples(folder / name))}
    if not samples:
        fix = f"python src/pipeline.py recipe={shlex.quote(folder.name)}"
        raise ConfigError(f"{folder} has no finished stage with replies\n  fix: {fix}")
    samples, apart = comparable(samples)
    rewards = [name for name in runs if METHODS[read_stage(folder / name).method.name].leaves == "reward"]
    stages = [finished_stage(folder / name) for name in samples]
    asked = {Path(path).parent.name for stage in stages for path in stage.method.reward_models}
    if scoring := [name for name in rewards if name in asked] or rewards:
        _score(samples, stages, folder / scoring[0])
    found = _measure(folder, samples, rewards, _gold(folder, samples, stages))
    costs = ("seconds", *record.PEAKS.values())
    found["costs"] = {name: {key: run[key] for key in costs if key in run} for name, run in runs.items()}
    files.write_json(folder / "report.json", found)
    policies = [name for name in samples if "win_rate_ci" in found[name] and name != "sft"]
    if policies:
        from rlhf.output.plots import intervals

        rates = {n: (found[n]["win_rate_vs_sft"], *found[n]["win_rate_ci"]) for n in policies}
        intervals(folder / "win_rates.png", {"against SFT": rates}, x="win rate against SFT, 95% interval", rates=True)
    table = _table(found, list(samples), rewards)
    if apart:
        table += f"\n\n{', '.join(apart)}: asked other prompts, so not in the table"
    files.write_text(folder / "report.md", _markdown(folder, found, samples, table, bool(policies)))
    return table


def _measure(folder: Path, samples: dict[str, list[Sample]], rewards: list[str], judge: Judge | None) -> dict[str, Any]:
    """The numbers of each policy and each reward model."""
    found: dict[str, Any] = {}
    for name in samples:
        found[name] = summary(samples[name]) | {"gold_by_situation": by_situation(samples[name], "gold")}
        if name == "sft":
            found[name]["kl"] = 0.0  # the reference of every KL here is the SFT model itself
        found[name] |= _against_sft(samples, name, judge) if judge else {}
    for name in rewards:
        files.verify(folder / name, files.RESULTS_FILE)
        results = files.read_json(folder / name / files.RESULTS_FILE)
        keys = ("accuracy", "accuracy_true", "accuracy_noisy", "annotator_accuracy", "held_out_loss")
        found[name] = {key: results[key] for key in keys if key in results}
    return found


def into_readme(readme: Path, folder: Path, table: str) -> None:
    """Replace what stands between the markers by the table and where its numbers come from."""
    runs = list(record.runs(folder).values())
    minutes, machine = sum(run["seconds"] for run in runs) / 60, runs[0]["machine"]
    found = {key: [run[key] for run in runs if key in run] for key in record.PEAKS.values()}
    peaks = {key: max(values) for key, values in found.items() if values}
    stages = [read_stage(folder / name) for name in record.runs(folder)]
    gold = next((stage.evaluation.gold for stage in stages if stage.evaluation.gold), None)
    judge = (
        "the annotator who knows the truth" if gold is None or any(s.dataset.annotator for s in stages) else f"`{gold}`"
    )
    origin = (
        f"`python src/pipeline.py recipe={folder.name} seed={runs[0]['seed']}`: {len(runs)} stages in {minutes:.1f} minutes on "
        f"{machine['cores']} cores ({machine['processor']}), peak memory {memory(peaks)}, commit {runs[0]['git']['commit'][:8]}. "
        f"Greedy replies to the same held-out prompts; win rate by {judge}, with a 95% bootstrap "
        "interval; KL in nats a reply."
    )
    between_markers(readme, "results", f"{table}\n\n{origin}")


def comparable(samples: dict[str, list[Sample]]) -> tuple[dict[str, list[Sample]], list[str]]:
    """The policies that were asked the same prompts, as many as there are, and the names of the others; of a policy that was asked
    more after them, the first so many replies.

    Stages of one recipe may use datasets with other test prompts: only replies to the same ones can be compared.
    """
    prompts = {name: [s["prompt"] for s in rows] for name, rows in samples.items()}
    groups = [
        {name: samples[name][: len(asked)] for name, own in prompts.items() if own[: len(asked)] == asked}
        for asked in prompts.values()
    ]
    kept = max(reversed(groups), key=len)
    return kept, [name for name in samples if name not in kept]


def _gold(folder: Path, samples: dict[str, list[Sample]], stages: list[Stage]) -> Judge | None:
    """Who knows the true preference: the annotator of the dataset, who has scored already, or `evaluation.gold`, who does now."""
    known = next((stage for stage in stages if stage.dataset.annotator), None)
    if known is not None:
        return load_judge("annotator", known, None, folder)
    known = next((stage for stage in stages if stage.evaluation.gold), None)
    if known is None:
        return None
    from rlhf.models.tokenizer import saved_tokenizer
    from rlhf.process import quiet

    quiet()
    judge = load_judge(str(known.evaluation.gold), known, saved_tokenizer(known.path / files.FINAL), folder)
    for rows in samples.values():
        for sample, score in zip(rows, judge.scores(rows) or [], strict=True):
            sample["gold"] = score
    return judge


def _score(samples: dict[str, list[Sample]], stages: list[Stage], reward: Path) -> None:
    """Put the recipe's reward model's score on every sample; the model is loaded once."""
    from rlhf.models.tokenizer import saved_tokenizer
    from rlhf.process import quiet

    quiet()
    stage = next((stage for stage in stages if stage.model.path is not None), None)
    if stage is None:  # only a base, made from scratch
        return
    tokenizer = saved_tokenizer(reward / files.FINAL)
    score = scorer(stage, tokenizer, load_roles(stage, tokenizer, {}, reward=reward / files.FINAL)["reward"])
    for rows in samples.values():
        scores = score([s["prompt_ids"] for s in rows], [s["ids"] for s in rows], [])
        for sample, value in zip(rows, scores.tolist(), strict=True):
            sample["reward"] = value


def _against_sft(samples: dict[str, list[Sample]], name: str, judge: Judge) -> dict[str, Any]:
    if "sft" not in samples:
        return {}
    if name == "sft":
        return {"win_rate_vs_sft": 0.5, "win_rate_ci": [0.5, 0.5]}
    found = win_rate(judge.compare(samples[name], samples["sft"]).outcomes)
    counts = [found.wins, found.ties, found.losses]
    return {"win_rate_vs_sft": found.rate, "win_rate_ci": [found.low, found.high], "wins_ties_losses": counts}


def _table(found: dict[str, Any], policies: list[str], rewards: list[str]) -> str:
    """Fixed-width columns that read as Markdown too."""
    heads = [c for c in COLUMNS if any(c in found[p] for p in policies)]
    rows = [["", *heads]]
    for name in policies:
        cells = []
        for column in heads:
            value = found[name].get(column)
            text = "-" if value is None else f"{value:.2f}"
            if column == "win_rate_vs_sft" and value is not None and name != "sft":
                low, high = found[name]["win_rate_ci"]
                text += f" [{low:.2f}, {high:.2f}]"
            cells.append(text)
        rows.append([name, *cells])
    lines = [grid(rows)]
    for name in filter(found.get, rewards):
        facts = ", ".join(f"{k.replace('_', ' ')} {v:.3f}" for k, v in found[name].items())
        lines.append(f"\n{name}: {facts}")
    return "\n".join(lines)


def _markdown(folder: Path, found: dict[str, Any], samples: dict[str, list[Sample]], table: str, compared: bool) -> str:
    names = list(samples)
    situations = list(next(iter(found[n]["gold_by_situation"] for n in names)))
    parts = [f"# {folder.name}", table]
    if compared:
        parts.append("![Win rates against SFT with 95% intervals](win_rates.png)")
    parts.append("\n".join(f"- `{key}`: {text}." for key, text in DEFINITIONS.items()))
    if situations:
        rows = [[n, *(f"{found[n]['gold_by_situation'][s]:.2f}" for s in situations)] for n in names]
        parts.append(grid([["true preference by situation", *situations], *rows]))
    parts += ["## Replies side by side", *_replies(samples), "## Curves"]
    for image in sorted(folder.glob("*/*.png")):
        parts.append(f"![{image.parent.name}, {image.stem}]({image.relative_to(folder).as_posix()})")
    return "\n\n".join(parts) + "\n"


def _replies(samples: dict[str, list[Sample]]) -> Iterator[str]:
    """What every policy says to a prompt of each situation, five at most."""
    seen: dict[str, int] = {}
    for index, sample in enumerate(next(iter(samples.values()))):
        situation = (sample.get("facts") or {}).get("situation", "")
        if situation and situation in seen:
            continue
        seen[situation] = seen.get(situation, 0) + 1
        if len(seen) > 5 or (not situation and seen[situation] > 5):
            break
        lines = [f"**{plain(sample['prompt'])}** {f'({situation})' if situation else ''}", ""]
        lines += [f"- {name}: {plain(rows[index]['reply']) or '(nothing)'}" for name, rows in samples.items()]
        yield "\n".join(lines)
