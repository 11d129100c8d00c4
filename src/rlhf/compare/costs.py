"""What the trials of a comparison cost, what the arms share, and in what they differ: read off their run folders."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlhf.compare.report import Cost, Fairness
from rlhf.compare.trials import KNOBS, Comparison, Trial
from rlhf.config import Stage
from rlhf.files import METRICS_FILE, read_lines
from rlhf.runs import record


def costs(comparison: Comparison, trials: Sequence[Trial]) -> tuple[list[Cost], str]:
    """Seconds, tokens and memory of an arm's trials, PPO's with its reward models; what DPO does in PPO's time."""
    spent: dict[str, list[dict[str, float]]] = {"reward": []}
    for trial in trials:
        run = record.read_run(trial.path)
        spent.setdefault(trial.arm, []).append(
            {"seconds": run["seconds"], "peak": run["peak_memory_mb"]} | tokens(trial.stage)
        )
    rows: list[Cost] = []
    for arm in KNOBS:
        policies, scoring = spent[arm], spent["reward"] if arm == "ppo" else []
        rows.append(
            {
                "arm": arm,
                "trials": len(policies),
                "seconds_a_trial": float(np.mean([t["seconds"] for t in policies])),
                "seconds_reward_model": float(np.mean([t["seconds"] for t in scoring])) if scoring else 0.0,
                "seconds_all": sum(t["seconds"] for t in policies + scoring),
                "tokens_generated": round(sum(t["generated"] for t in policies)),
                "tokens_trained": round(sum(t["trained"] for t in policies + scoring)),
                "peak_memory_mb": max(t["peak"] for t in policies + scoring),
            }
        )
    by_arm = {row["arm"]: row for row in rows}
    whole = by_arm["ppo"]["seconds_a_trial"] + by_arm["ppo"]["seconds_reward_model"]
    text = (
        f"One PPO trial with its reward model takes {whole:.0f} s; in that time DPO trains "
        f"{whole / by_arm['dpo']['seconds_a_trial']:.1f} trials of {by_arm['dpo']['seconds_a_trial']:.0f} s."
    )
    return rows, text


def tokens(stage: Stage) -> dict[str, float]:
    """Tokens generated, and tokens of the sequences in gradient passes, prompts included, as the run's files tell them."""
    lines = read_lines(stage.path / METRICS_FILE)
    if stage.method.name != "ppo":
        return {"generated": 0.0, "trained": max((line.get("num_tokens", 0.0) for line in lines), default=0.0)}
    ledger = json.loads((stage.path / "data.json").read_text())["splits"]["train"]
    prompt = ledger["tokens"]["sum"] / ledger["kept"]
    logged = [line for line in lines if "length/mean" in line]
    reply = float(np.mean([line["length/mean"] for line in logged])) if logged else 0.0
    episodes = max((line["episode"] for line in logged), default=0)
    epochs = stage.method.args.get("num_ppo_epochs", 4)
    return {"generated": episodes * reply, "trained": episodes * epochs * (prompt + reply)}


def fairness(comparison: Comparison, trials: Sequence[Trial]) -> Fairness:
    """What the arms share, as their finished runs tell it, and what differs between them."""
    by_arm = {arm: [t for t in trials if t.arm == arm] for arm in (*KNOBS, "reward")}
    stages = {arm: of_arm[0].stage for arm, of_arm in by_arm.items() if of_arm}

    def ids(stage: str) -> str:
        return ", ".join(sorted({record.read_run(t.path)["inputs"].get(f"stage:{stage}", "-") for t in trials}))

    shared = [{"what": f"weights of {name}", "value": f"run {ids(name)}"} for name in comparison.shared]
    shared.append({"what": "base", "value": f"{stages['dpo'].model.path}, {stages['dpo'].quantization.name}"})
    shared.append({"what": "reference", "value": "the SFT weights, frozen"})
    shared.append(
        {"what": "KL", "value": "log pi/ref summed over a reply, on the policy's own samples, fp32, temperature 1"}
    )
    if "reward" in stages:
        pairs = {
            json.loads((t.path / "data.json").read_text())["splits"]["train"]["fingerprint"]
            for t in trials
            if t.arm != "ppo"
        }
        shared.append(
            {
                "what": "pairs of DPO and the reward model",
                "value": f"{stages['dpo'].dataset.path}, fingerprint {', '.join(sorted(pairs))}",
            }
        )
    shared.append(
        {
            "what": "trials an arm",
            "value": f"{len(comparison.settings['dpo'])} settings x {len(comparison.seeds)} seeds",
        }
    )
    differs = [
        {"what": what, **{arm: str(read(stages[arm])) for arm in KNOBS}}
        for what, read in DIFFERS.items()
        if read(stages["dpo"]) != read(stages["ppo"])
    ]
    return {"shared": shared, "differs": differs}


DIFFERS: dict[str, Callable[[Stage], Any]] = {
    "learns from": lambda stage: stage.dataset.path,
    "reward model": lambda stage: "none" if stage.method.name == "dpo" else "trained on the pairs, one a seed",
    "rows or episodes a step": lambda stage: stage.batch_size,
    "learning rate": lambda stage: stage.method.args.get("learning_rate"),
    "passes": lambda stage: stage.method.args.get("num_train_epochs", stage.method.args.get("num_ppo_epochs")),
    "episodes": lambda stage: stage.method.args.get("total_episodes", "no replies are sampled"),
    "adapter": lambda stage: vars(stage.adapter),
    "loss": lambda stage: stage.method.args.get(
        "loss_type", "clipped policy gradient" if stage.method.name == "ppo" else "sigmoid"
    ),
}
