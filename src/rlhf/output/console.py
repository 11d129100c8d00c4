"""What a stage prints: a header before it, a closing block after it."""

import shlex
import shutil
import textwrap
from typing import Any

from rlhf.config import GB, Stage, options, split_batch
from rlhf.files import FINAL
from rlhf.methods import METHODS
from rlhf.parallel.ranks import is_main
from rlhf.shell import setting


def _width() -> int:
    return min(100, shutil.get_terminal_size().columns)


def rule(title: str) -> str:
    return f"── {title} " + "─" * max(0, _width() - len(title) - 4)


def header(stage: Stage, data: Any) -> None:
    """Recipe, model, rows, effective batch, steps, and one row with its mask."""
    if not is_main():
        return
    micro, accumulation = split_batch(stage)
    rows = {role: ledger for role, ledger in data.ledger.items() if role != "test"}
    print(rule(f"{stage.run.recipe}/{stage.run.stage}"))
    weights = stage.model.path or f"random {stage.model.init['model_type'] if stage.model.init else ''}"
    start = f" + {stage.method.start_from}" if stage.method.start_from else ""
    kind = f"{stage.quantization.name}, adapter {stage.adapter.name}, {stage.hardware.precision}"
    print(f"model    {weights}{start}   {kind}")
    print(f"method   {stage.method.name}   " + "  ".join(f"{k}={v}" for k, v in stage.method.args.items()))
    for role, ledger in rows.items():
        lost = "".join(f", {n} {reason}" for reason, n in ledger["dropped"].items())
        lost += f", {ledger['truncated']} truncated" if ledger["truncated"] else ""
        lost += f", {ledger['ties']} ties" if ledger["ties"] else ""
        print(f"{role:8s} {ledger['kept']} rows kept of {ledger['read']} read{lost}   {ledger['from']}")
        if role == "train":
            print(f"read as  {ledger['read_as']}" + (", tokenized before" if ledger.get("cached") else ""))
            if "thumbs" in ledger:
                balance(stage, **ledger["thumbs"])
    for role, ledger in data.ledger.items():
        if ledger.get("in_train"):
            print(f"warning  {ledger['in_train']} of {ledger['kept']} rows of {role} ask what rows of train ask")
    print(f"batch    {stage.batch_size} = {stage.hardware.devices} device(s) x {micro} rows x {accumulation} passes")
    shown = data.shown if len(data.shown) <= 600 else data.shown[:400] + " … " + data.shown[-200:]
    print(textwrap.fill(f"a row    {shown!r}", _width(), subsequent_indent=" " * 9), flush=True)


def balance(stage: Stage, up: int, down: int) -> None:
    """How many thumbs there are of each kind, and the weight to give where one counts for more (arXiv:2402.01306, equation 8)."""
    names = ("desirable_weight", "undesirable_weight")
    for_up, for_down = (1.0 if (given := stage.method.args.get(name)) is None else float(given) for name in names)
    print(f"thumbs   {up} up x {for_up:g}, {down} down x {for_down:g}")
    ratio = up * for_up / (down * for_down)
    if not 0.995 <= ratio <= 1.335:  # as TRL rounds
        which, weight = (0, 1.15 * for_down * down / up) if ratio < 1 else (1, for_up * up / down / 1.15)
        fix = f"method.args.{names[which]}={weight:.2g}"
        print(f"warning  thumbs up count {ratio:.2f} times what thumbs down count, and 1 to 4/3 is recommended: {fix}")


def memory(run: dict[str, Any]) -> str:
    """The peaks in a run.json, of the host and of the GPU if one was used."""
    host, gpu = (f"{run.get(key, 0) * 2**20 / GB:.2f} GB" for key in ("peak_memory_mb", "peak_gpu_memory_mb"))
    return f"{host}, of the GPU {gpu}" if "peak_gpu_memory_mb" in run else host


def closing(stage: Stage, results: dict[str, Any], run: dict[str, Any]) -> None:
    """Results, where everything is, and the next command."""
    if not is_main():
        return
    numbers = {k: v for k, v in results.items() if isinstance(v, int | float)}
    line = "  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in numbers.items())
    print(textwrap.fill(f"result   {line}", _width(), subsequent_indent=" " * 9))
    print(f"time     {run['seconds']:.0f} s, peak memory {memory(run)}")
    if "ranks" in run:
        print("ranks    " + "  ".join(f"{number} did {share:.0%}" for number, share in enumerate(run["ranks"])))
    print(f"files    {stage.path}/  (final/, results.json, metrics.jsonl, data.json, *.png)")
    print(f"next     {following(stage)}")
    print(f"export   {exporting(stage)}", flush=True)


def exporting(stage: Stage) -> str:
    """The command that makes a finished stage loadable by other programs."""
    return _of_run("export", stage)


def _of_run(door: str, stage: Stage) -> str:
    run = stage.run
    root = [f"run.root={run.root}"] if run.root != "runs" else []
    return shlex.join(["python", f"src/{door}.py", f"run={run.recipe}/{run.stage}", *root])


def following(stage: Stage) -> str:
    """The command that makes use of a finished stage, to be pasted; for a reward model of no recipe, the setting for PPO."""
    run = stage.run
    root = [f"run.root={run.root}"] if run.root != "runs" else []
    if METHODS[stage.method.name].leaves == "policy":
        return _of_run("chat", stage)
    if f"{run.recipe}/{run.stage}" in options("recipes"):
        more = [setting("run.root", run.root)] if root else []
        return " ".join(["python", "src/pipeline.py", f"recipe={run.recipe}", *more])
    return f"method=ppo {setting('method.reward_model', f'{stage.path}/{FINAL}')}"
