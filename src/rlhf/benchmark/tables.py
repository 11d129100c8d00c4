"""The table of a benchmark, and the sentence that says where its numbers come from."""

from typing import Any

from rlhf.output.tables import grid

# what issue and design ask for; the table says whether it is met
BARS = {
    ("fixed", "time_ratio"): 0.68,
    ("fixed", "memory_ratio"): 0.23,
    ("natural", "time_ratio"): 0.44,
    ("natural", "memory_ratio"): 0.25,
    ("rollout_growth", "memory_ratio"): 1.1,
    ("ppo_over_sft", "memory_ratio"): 1.3,
    ("dpo_rankings", "time_ratio"): 0.35,
    ("dpo_rankings", "memory_ratio"): 0.35,
    ("dpo_pairs", "time_ratio"): 0.8,
    ("dpo_pairs", "memory_ratio"): 0.35,
    ("dpo_long_prompts", "time_ratio"): 0.65,
    ("dpo_long_prompts", "memory_ratio"): 0.35,
    ("dpo_again", "time_ratio"): 0.55,
    ("dpo_again", "memory_ratio"): 0.35,
    ("reward_kwise", "time_ratio"): 0.7,
    ("reward_kwise", "memory_ratio"): 0.8,
    ("sft", "time_ratio"): 0.85,
    ("sft", "memory_ratio"): 0.6,
}
MEANING = {
    ("fixed", "time_ratio"): "time an update, every reply {limit} tokens",
    ("fixed", "memory_ratio"): "peak memory above the weights, the same run",
    ("natural", "time_ratio"): "time an update, replies of natural length",
    ("natural", "memory_ratio"): "peak memory above the weights, the same run",
    ("rollout_growth", "memory_ratio"): "our peak above the weights, {grown} prompts over {prompts}",
    ("rollout_growth", "stock_memory_ratio"): "stock's peak above the weights, {grown} prompts over {prompts}",
    ("ppo_over_sft", "memory_ratio"): "PPO's peak above the weights over that of TRL's SFTTrainer",
    ("dpo_rankings", "time_ratio"): "DPO, rankings of 4: time an update",
    ("dpo_rankings", "memory_ratio"): "peak memory above the weights, the same run",
    ("dpo_pairs", "time_ratio"): "DPO, pairs, a prompt as long as a reply: time an update",
    ("dpo_pairs", "memory_ratio"): "peak memory above the weights, the same run",
    ("dpo_long_prompts", "time_ratio"): "DPO, pairs, a prompt three times a reply: time an update",
    ("dpo_long_prompts", "memory_ratio"): "peak memory above the weights, the same run",
    ("dpo_again", "time_ratio"): "DPO, the same pairs a second time: time an update",
    ("dpo_again", "memory_ratio"): "peak memory above the weights, the same run",
    (
        "reward_kwise",
        "time_ratio",
    ): "reward, K=4, a prompt as long as a reply, over K-wise with a prompt a reply: time an update",
    ("reward_kwise", "memory_ratio"): "peak memory above the weights, the same run",
    ("reward_pairs", "time_ratio"): "the same over TRL's RewardTrainer on all pairs: time an update",
    ("reward_pairs", "memory_ratio"): "peak memory above the weights, the same run",
    ("sft", "time_ratio"): "SFT, rows of natural lengths: time an update",
    ("sft", "memory_ratio"): "peak memory above the weights, the same run",
}


def table(report: dict[str, Any]) -> str:
    """One row a ratio, then one a contender; reads as Markdown and in a terminal."""
    size = report["size"]
    names = {"limit": size["reply_tokens"], "grown": size["grown"], "prompts": size["prompts"]}
    rows = [["", "ratio", "at most", "measured"]]
    for (part, key), text in MEANING.items():
        if part in report:
            bar = BARS.get((part, key))
            rows.append([text.format(**names), f"{report[part][key]:.2f}", f"{bar:.2f}" if bar else "-"])
            rows[-1].append(_measured(report[part], part, key))
    parts = [grid(rows)]
    runs = [(f"{who}, {part}", report[part][who]) for part in ("fixed", "natural") if part in report for who in WHO]
    if runs:
        parts.append(
            grid([["", *COLUMNS], *([name, *(_cell(run, c) for c in COLUMNS.values())] for name, run in runs)])
        )
    return "\n\n".join(parts)


WHO = ("stock", "ours")
COLUMNS = {
    "s an update": "seconds",
    "rollout": "rollout",
    "score": "score",
    "update": "update",
    "tokens a reply": "reply_tokens_mean",
    "MB above": "above_weights_mb",
    "MB peak": "peak_mb",
    "rollout tokens/s": "rollout_tokens_per_second",
    "update tokens/s": "update_tokens_per_second",
    "of matrix rate": "matrix_share",
}


def _cell(run: dict[str, Any], key: str) -> str:
    value = run.get(key, run["phases"].get(key))
    if value is None:
        return "-"
    return f"{value:.0f}" if key.endswith("_mb") or value >= 100 else f"{value:.2f}"


def _measured(part: dict[str, Any], name: str, key: str) -> str:
    if key == "time_ratio":
        low, high = part["time_ratio_range"]
        repeats, processor = f"repeats {low:.2f} to {high:.2f}", f"processor time {part['processor_time_ratio']:.2f}"
        return f"{part['ours']['seconds']:.1f} s / {part['stock']['seconds']:.1f} s, {repeats}, {processor}"
    if "stock" in part:
        return f"{part['ours']['above_weights_mb']:.0f} MB / {part['stock']['above_weights_mb']:.0f} MB"
    if name == "rollout_growth":
        few, many = part["above_weights_mb"]["stock" if key.startswith("stock") else "ours"]
        return f"{many:.0f} MB / {few:.0f} MB"
    ppo, sft = part["ppo"], part["sft"]
    absolute = f"all memory {ppo['peak_mb']:.0f} / {sft['peak_mb']:.0f} MB, {part['peak_ratio']:.2f}"
    return f"{ppo['above_weights_mb']:.0f} MB / {sft['above_weights_mb']:.0f} MB; {absolute}"


def support_table(found: dict[str, Any]) -> str:
    """What SFT, stock PPO and ours are worth to the annotator."""
    rows = [["", "gold_score", "win_rate_vs_stock", "length", "eos_rate", "seconds"]]
    for name in ("sft", "stock", "ours"):
        one, (low, high) = found[name], found["win_rate_ci"]
        rate = f"{found['win_rate']:.2f} [{low:.2f}, {high:.2f}]" if name == "ours" else "-"
        seconds = f"{one['seconds']:.0f}" if "seconds" in one else "-"
        cells = [f"{one[key]:.2f}" for key in ("gold_score", "length", "eos_rate")]
        rows.append([name, cells[0], rate, *cells[1:], seconds])
    return grid(rows)


def plan_table(found: dict[str, Any]) -> str:
    """What `src/plan.py` tells beforehand, and what was measured."""
    rows = [["peak in MB", "planned", "measured", "ratio", "with libraries: planned", "measured"]]
    for method, one in found["methods"].items():
        cells = [f"{one[key]:.0f}" for key in ("planned_mb", "measured_mb", "planned_peak_mb", "peak_mb")]
        rows.append([method, *cells[:2], f"{one['ratio']:.2f}", *cells[2:]])
    return grid(rows)


def origin(report: dict[str, Any]) -> str:
    """The sentence under a table: where its numbers come from."""
    machine, versions = report["machine"], report["versions"]
    dirty = " with uncommitted changes" if report["git"]["dirty"] else ""
    used = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "trl", "peft", "bitsandbytes"))
    chip = f" on {report['device']}" if report.get("device", "cpu") != "cpu" else ""
    threads = f", {report['threads']} threads" if "threads" in report else ""
    parts = [
        f"`{' '.join(report['command'])}`{chip}",
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']:.0f} GB{threads}",
        f"{used}, Python {versions['python']}",
        f"commit {report['git']['commit'][:8]}{dirty}",
    ]
    if "repeats" in report:
        parts.append(f"medians of {report['repeats']} repeats in alternation")
    return "; ".join(parts) + "."
