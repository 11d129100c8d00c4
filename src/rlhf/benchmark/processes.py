"""One process against several, method by method: what a run logs and leaves, each rank's share, and the time of PPO on a core each."""

import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from rlhf.config import REPO
from rlhf.files import FINAL, METRICS_FILE, read_json, read_lines
from rlhf.output.tables import grid

SMOKE = ("debug=smoke", "debug.max_steps=4", "evaluation.prompts=8", "logging.steps=1", "dataset.options.train=60")
BATCH = ("batch_size=8", "hardware.micro_batch_size=2")
WHOLE = ("adapter=none", "quantization=none")
PPO = ("recipe=support/ppo", "method.args.num_mini_batches=2", "method.args.whiten_rewards=true")
PPO += ("method.args.reward_normalization=running", "method.args.kl_target=6.0", "method.args.max_update_kl=5.0")
STAGES = {
    "sft": ("recipe=support/sft",),
    "sft, all weights": ("recipe=support/sft", *WHOLE),
    "sft, sharded": ("recipe=support/sft", *WHOLE),
    "reward, pairs": ("recipe=support/reward", "method.kwise=false"),
    "reward, K-wise": ("recipe=support/reward", "method.kwise=true"),
    "dpo [sigmoid]": ("recipe=support/dpo", "method.args.loss_type=[sigmoid]", "method.args.loss_weights=[1.0]"),
    "dpo [sigmoid, sft]": ("recipe=support/dpo",),
    "kto": ("method=kto", "dataset=support_thumbs", "run.recipe=support"),
    "ppo": PPO,
}
CLOCK = ("time", "seconds", "runtime", "per_second", "memory", "epoch")  # parts of the names of what no two runs share


def compare_processes(repeats: int) -> dict[str, Any]:
    """By method and number of processes: the largest difference of `loss` (all that is logged), of `weights`, and each `share` of the work;
    `ppo_speed`: how many times as fast PPO's updates are on two processes with a core each as on one."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for stage in ("base", "sft", "reward"):
            train(root, stage, f"recipe=support/{stage}", *SMOKE)
        found: dict[str, Any] = {"methods": {}}
        for name, settings in STAGES.items():
            runs = {
                count: train(
                    root,
                    f"{re.sub(r'[^a-zA-Z]+', '-', name)}-{count}",
                    *settings,
                    *SMOKE,
                    *BATCH,
                    *(["hardware.sharding=fsdp2"] if "sharded" in name and count > 1 else []),
                    devices=count,
                )
                for count in ((1, 2, 4) if name == "ppo" else (1, 2))
            }
            for count, run in list(runs.items())[1:]:
                told, weights = distance(runs[1], run)
                key = name if count == 2 else f"{name}, {count} processes"
                found["methods"][key] = {
                    "loss": told,
                    "weights": weights,
                    "share": read_json(run / "run.json")["ranks"],
                }
                print(f"{key:22s} {told:.1e} {weights:.1e} {found['methods'][key]['share']}", flush=True)
        found["ppo_speed"] = _speed(root, repeats)
    return found


def train(root: Path, stage: str, *settings: str, devices: int = 1, **environment: str) -> Path:
    own = (f"run.root={root}", f"run.stage='{stage}'", f"hardware.devices={devices}")
    command = [sys.executable, str(REPO / "src/train.py"), *settings, *own]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} left with {done.returncode}\n{done.stderr}")
    return root / "support" / stage


def distance(one: Path, other: Path) -> tuple[float, float]:
    """The largest difference of what two runs have logged, relative where it is above 1, and that of their weights."""
    from safetensors.torch import load_file

    told = 0.0
    for mine, theirs in zip(read_lines(one / METRICS_FILE), read_lines(other / METRICS_FILE), strict=True):
        if mine.keys() != theirs.keys():
            raise ValueError(f"step {mine['step']}: {sorted(mine.keys() ^ theirs.keys())} are in one of the two")
        keys = [key for key in mine if key != "eps" and not any(part in key for part in CLOCK)]
        told = max([told, *(abs(mine[key] - theirs[key]) / max(1, abs(mine[key])) for key in keys)])
    files = [file.relative_to(one) for file in (one / FINAL).rglob("*.safetensors")]
    pairs = [(load_file(one / file), load_file(other / file)) for file in files]
    return told, max(float((a[key].float() - b[key].float()).abs().max()) for a, b in pairs for key in a)


def _speed(root: Path, repeats: int) -> dict[str, Any]:
    """Seconds of rollout, scoring and steps of an update after the first, in alternation; medians. `most` is what the machine has to give:
    how many times the work of one process two that know nothing of each other do in its time."""
    sizes = ("recipe=support/ppo", "debug=smoke", "debug.rows=64", "debug.max_steps=4", "debug.reply_tokens=null")
    sizes += ("evaluation.prompts=0", "logging.steps=1", "batch_size=32", "hardware.micro_batch_size=8")
    sizes += ("method.args.eval_strategy=no",)

    def took(name: str, devices: int = 1) -> float:
        run = train(root, name, *sizes, devices=devices, OMP_NUM_THREADS="1")
        lines = [json.loads(line) for line in (run / METRICS_FILE).read_text().splitlines()][1:]
        return median(sum(line[f"time/{part}"] for part in ("rollout", "score", "update")) for line in lines)

    seconds: dict[str, list[float]] = {"one": [], "two": [], "one beside another": []}
    for repeat in range(repeats):
        seconds["one"].append(took(f"speed-1-{repeat}"))
        seconds["two"].append(took(f"speed-2-{repeat}", devices=2))
        with ThreadPoolExecutor() as pool:
            seconds["one beside another"] += pool.map(took, (f"beside-{repeat}-{place}" for place in range(2)))
    one, two, beside = map(median, seconds.values())
    return {"seconds": seconds, "times_as_fast": one / two, "most": 2 * one / beside}


def processes_table(report: dict[str, Any]) -> str:
    """A row a method and number of processes, and PPO's speed."""
    rows = [("against one process", "largest difference logged", "of weights", "shares of the work")]
    for name, one in report["methods"].items():
        shares = ", ".join(f"{share:.0%}" for share in one["share"])
        rows.append((name, f"{one['loss']:.1e}", f"{one['weights']:.1e}", shares))
    speed = report["ppo_speed"]
    one, two, _ = map(median, speed["seconds"].values())
    told = f"An update of PPO on two processes with a core each: {speed['times_as_fast']:.2f} times as fast as on one ({two:.2f} s / {one:.2f} s); two"
    told += f" runs side by side, which share nothing, do {speed['most']:.2f} times the work of one on this machine."
    return f"{grid(rows)}\n\n{told}"
