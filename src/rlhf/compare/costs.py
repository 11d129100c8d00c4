"""What the trials of a comparison cost, what the arms share, and in what they differ: read off their run folders."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlhf.compare.report import Row
from rlhf.compare.trials import KNOBS, Comparison, Trial
from rlhf.config import Stage
from rlhf.files import METRICS_FILE, read_lines, verify
from rlhf.runs import record


def costs(trials: Sequence[Trial]) -> tuple[list[Row], str]:
    """Seconds, tokens and memory of an arm's trials, PPO's with its reward models; what DPO does in PPO's time."""
    spent: dict[str, list[Row]] = {"reward": []}
    for trial in trials:
        spent.setdefault(trial.arm, []).append(record.read_run(trial.path) | tokens(trial.stage))
    rows = {}
    for arm in KNOBS:
        policies, scoring = spent[arm], spent["reward"] if arm == "ppo" else []
        rows[arm] = {
            "arm": arm,
            "trials": len(policies),
            "seconds_a_trial": float(np.mean([t["seconds"] for t in policies])),
            "seconds_reward_model": float(np.mean([t["seconds"] for t in scoring] or [0.0])),
            "seconds_all": sum(t["seconds"] for t in policies + scoring),
            "tokens_generated": round(sum(t["generated"] for t in policies)),
            "tokens_trained": round(sum(t["trained"] for t in policies + scoring)),
            "peak_memory_mb": max(t["peak_memory_mb"] for t in policies + scoring),
        }
    whole, dpo = rows["ppo"]["seconds_a_trial"] + rows["ppo"]["seconds_reward_model"], rows["dpo"]["seconds_a_trial"]
    text = f"One PPO trial with its reward model takes {whole:.0f} s; in that time DPO trains "
    return list(rows.values()), text + f"{whole / dpo:.1f} trials of {dpo:.0f} s."


def tokens(stage: Stage) -> dict[str, float]:
    """Tokens generated, and tokens of the sequences in gradient passes, prompts included, as the run's files tell them."""
    verify(stage.path, METRICS_FILE)
    lines = read_lines(stage.path / METRICS_FILE)
    if stage.method.name != "ppo":
        return {"generated": 0.0, "trained": max((line.get("num_tokens", 0.0) for line in lines), default=0.0)}
    ledger = _train_split(stage)
    prompt = ledger["tokens"]["sum"] / ledger["kept"]
    logged = [line for line in lines if "length/mean" in line]
    reply = float(np.mean([line["length/mean"] for line in logged] or [0.0]))
    episodes = max((line["episode"] for line in logged), default=0)
    epochs = stage.method.args.get("num_ppo_epochs", 4)
    return {"generated": episodes * reply, "trained": episodes * epochs * (prompt + reply)}


def fairness(comparison: Comparison, trials: Sequence[Trial]) -> dict[str, list[dict[str, str]]]:
    """What the arms share, as their finished runs tell it, and what differs between them."""
    stages = {trial.arm: trial.stage for trial in reversed(trials)}
    dpo, ppo = stages["dpo"], stages["ppo"]
    shared = {}
    for name in comparison.shared:
        ids = sorted({record.read_run(trial.path)["inputs"].get(f"stage:{name}", "-") for trial in trials})
        if ids != ["-"]:  # as those of a judge, whom no arm reads
            shared[f"weights of {name}"] = f"run {', '.join(ids)}"
    shared["base"] = f"{dpo.model.path}, {dpo.quantization.name}"
    shared["reference"] = "the SFT weights, frozen"
    shared["KL"] = "log pi/ref summed over a reply, on the policy's own samples, fp32, temperature 1"
    if "reward" in stages:
        pairs = sorted({_train_split(trial.stage)["fingerprint"] for trial in trials if trial.arm != "ppo"})
        shared["pairs of DPO and the reward model"] = f"{dpo.dataset.path}, fingerprint {', '.join(pairs)}"
    shared["trials an arm"] = f"{len(comparison.settings['dpo'])} settings x {len(comparison.seeds)} seeds"
    differs = [
        {"what": what, "dpo": str(read(dpo)), "ppo": str(read(ppo))}
        for what, read in DIFFERS.items()
        if read(dpo) != read(ppo)
    ]
    return {"shared": [{"what": what, "value": value} for what, value in shared.items()], "differs": differs}


def _train_split(stage: Stage) -> Row:
    return json.loads((stage.path / "data.json").read_text())["splits"]["train"]


LOSSES = {"dpo": "sigmoid", "ppo": "clipped policy gradient"}
DIFFERS: dict[str, Callable[[Stage], Any]] = {
    "learns from": lambda stage: stage.dataset.path,
    "reward model": lambda stage: "none" if stage.method.name == "dpo" else "trained on the pairs, one a seed",
    "rows or episodes a step": lambda stage: stage.batch_size,
    "learning rate": lambda stage: stage.method.args.get("learning_rate"),
    "passes": lambda stage: stage.method.args.get("num_train_epochs", stage.method.args.get("num_ppo_epochs")),
    "episodes": lambda stage: stage.method.args.get("total_episodes", "no replies are sampled"),
    "adapter": lambda stage: vars(stage.adapter),
    "loss": lambda stage: stage.method.args.get("loss_type", LOSSES[stage.method.name]),
}
