"""What a GPU is asked in the minutes in which one is at hand, in the order of its worth: `parts=[gpu]`.

Every method as src/train.py builds it, on the 8B shape in NF4 with random weights (rlhf.models.drawn), then PPO beside stock TRL and
beside SFT. All in one process, since the peak of a GPU's memory can be set back; another one goes on where it dies. Without a GPU the
same code runs on one that is not there (rlhf.benchmark.fake_gpu), for its errors and its bytes; its seconds are those of the CPU.
"""

import contextlib
import gc
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rlhf.benchmark.process import measurements
from rlhf.benchmark.ratios import PPO_OVER_SFT, ratios, tasks, warm
from rlhf.benchmark.tables import table
from rlhf.benchmark.workload import Size, Task, Workload, make
from rlhf.errors import ConfigError, ResourceError
from rlhf.output.tables import grid

CHIP, KWISE, ROWS = "chip", "method.kwise=true", 4  # micro-batches of a size that a stage takes at once
STAGES: dict[str, tuple[str, ...]] = {
    "ppo": (),
    "sft": (),
    "dpo": (),
    "reward": (),
    "kto": (),
    "dpo, K-wise": (KWISE,),
    "reward, K-wise": (KWISE,),
}
# seconds that each part takes on an 80 GB card, as assumed beforehand: for the first one; then as those before it took longer or shorter
ASSUMED = {CHIP: 40.0, "ppo": 50.0, **dict.fromkeys(STAGES, 25.0), "stock": 80.0, "ours": 40.0, "sft beside": 20.0}
# forward passes that a token takes at least (a backward pass through frozen weights is one more): of the layers, and of the LM head
PASSES = {"sft": (2, 2), "reward": (2, 0), "dpo": (3, 3), "kto": (5, 5), "ppo": (9, 5)}


def rehearse(
    size: Size, *, minutes: float, there: bool, threads: int | None, tell: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """The report, which `tell` is also given after each part. What would end after `minutes` is left out, and named.

    `there` says whether there is a GPU. Raises ConfigError for a size that only a GPU can hold, and ResourceError where not even the
    weights can be made.
    """
    if not there and size.matrix_parameters > 1e8:
        raise ConfigError(f"size: {size.matrix_parameters:.2g} parameters, and there is no GPU here\n  fix: size=tiny")
    until = time.monotonic() + 60 * minutes
    report: dict[str, Any] = {"size": asdict(size), "minutes": minutes, "rehearsal": not there, "stages": {}}
    report |= {"measurements": [], "left_out": {}}
    left = [CHIP, *STAGES, *(task.name for task in _tasks(size))]
    with tempfile.TemporaryDirectory() as folder:
        while left:
            if (seconds := until - time.monotonic()) <= 0:
                for part in left:
                    _take(report, size, {"part": part, "left_out": "out of time"})
                break
            what = {"gpu": list(left), "size": asdict(size), "there": there, "seconds": seconds}
            try:
                for one in measurements(folder, what, threads, seconds + 5):
                    left.remove(one["part"])
                    _take(report, size, one)
                    tell(report)
            except ResourceError as error:
                if CHIP in left:
                    raise
                why = str(error).splitlines()[-1].strip() if time.monotonic() < until else "out of time"
                _take(report, size, {"part": left.pop(0), "left_out": why})
                tell(report)
    return report


def _take(report: dict[str, Any], size: Size, one: dict[str, Any]) -> None:
    part = one.pop("part")
    if "left_out" in one:
        report["left_out"][part] = one["left_out"]
        print(f"{part:28s} left out: {one['left_out']}", flush=True)
    elif part == CHIP:
        report |= one
        print(f"{one['device']}, {one['matrix_tflops']:.3g} teraflops, weights in {one['seconds']:.1f} s", flush=True)
    elif part in STAGES:
        report["stages"][part] = one
        figures = f"{one['seconds']:.2f} s a step, {one['planned_mb']:.0f} MB planned, {one['measured_mb']:.0f} MB"
        print(f"{part:28s} {figures} measured", flush=True)
    else:
        report["measurements"].append(one)
        print(
            f"{part:28s} {warm(one['seconds']):.2f} s, {one['above_weights_mb']:.0f} MB above the weights", flush=True
        )
        made = [Task(**found["task"]) for found in report["measurements"]]
        for name in ("fixed", PPO_OVER_SFT, "natural"):
            if set(tasks([name], size)) <= {replace(task, rollout_base="quantized") for task in made}:
                report |= ratios([name], size, report["measurements"])


def _tasks(size: Size) -> list[Task]:
    return list(dict.fromkeys(task for part in ("fixed", PPO_OVER_SFT, "natural") for task in tasks([part], size)))


def measure_parts(folder: Path, what: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """In the process that measures: each part of `what["gpu"]`, or why it is left out. Only what spoils the process ends it."""
    if not what["there"]:
        from rlhf.benchmark import fake_gpu

        fake_gpu.install()
    size, until, slower = Size(**what["size"]), time.monotonic() + what["seconds"], 1.0
    known = {task.name: task for task in _tasks(size)}
    for part in what["gpu"]:
        began, assumed = time.monotonic(), ASSUMED.get(part) or ASSUMED[_kind(known[part])]
        if part != CHIP and began + assumed * slower > until:
            yield {"part": part, "left_out": f"{assumed * slower:.0f} s, of which {until - began:.0f} were left"}
            continue
        try:
            with contextlib.redirect_stdout(sys.stderr):
                found = _measure(folder, size, part, known)
            slower = (time.monotonic() - began) / assumed
        except Exception as error:  # of any library: what comes after it may do
            if part == CHIP:
                raise
            found = {"left_out": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"}
        _clear()
        if part == CHIP:
            gc.freeze()  # what libraries hold need not be looked through again
        yield {"part": part, **found}


def _kind(task: Task) -> str:
    return "sft beside" if task.contender == "sft" else task.contender


def _measure(folder: Path, size: Size, part: str, known: dict[str, Task]) -> dict[str, Any]:
    if part == CHIP:
        return _chip(folder, size)
    work = Workload.read(folder)
    if part in STAGES:
        wide = replace(work, size=replace(size, micro_batch=ROWS * size.micro_batch))
        return _stage(wide, part)
    from rlhf.benchmark.updates import measure

    return measure(work, replace(known[part], rollout_base="dense"))


def _chip(folder: Path, size: Size) -> dict[str, Any]:
    import torch

    from rlhf.benchmark.instrument import matrix_rate, now

    began = now("cuda")
    make(folder, size, "cuda", drawn=True)
    seconds = now("cuda") - began
    _clear()
    memory = torch.cuda.get_device_properties(0).total_memory / 2**20
    return {
        "device": torch.cuda.get_device_name(),
        "device_mb": memory,
        "seconds": seconds,
        "matrix_tflops": matrix_rate("cuda"),
    }


def _stage(work: Workload, part: str) -> dict[str, Any]:
    """A step of a stage: seconds, tokens (each once, though TRL reads a prompt with each reply), memory planned and measured."""
    from rlhf.benchmark.instrument import matrix_rate
    from rlhf.benchmark.planned import measure_stage

    method, size = part.partition(",")[0], work.size
    settings = (f"debug.max_steps={size.updates + 1}", "hardware.gradient_checkpointing=true", *STAGES[part])
    found = measure_stage(work, method, *settings)
    seconds = warm(found["seconds"])
    said = found["rows"] * found["sequences"] * size.reply_tokens
    read = found["rows"] * size.prompt_tokens + said
    layers, head = PASSES[method]
    scored = read if method == "sft" else said  # all of a demonstration is learned here
    operations = 2 * (layers * read * size.matrix_parameters + head * scored * size.vocabulary * size.width)
    found |= {"seconds": seconds, "tokens": read, "tokens_per_second": read / seconds}
    found |= {"above_weights_mb": found["measured_mb"] - found["weights_mb"]}
    found |= {"ratio": found["planned_mb"] / found["measured_mb"]}
    return found | {"matrix_share": operations / seconds / 1e12 / matrix_rate(work.device)}


def _clear() -> None:
    """Gives back what the last part held; raises where the GPU answers no more, and then another process goes on."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.synchronize()


COLUMNS = {
    "s a step": ("seconds", ".2f"),
    "tokens/s": ("tokens_per_second", ".0f"),
    "of matrix rate": ("matrix_share", ".2f"),
    "MB of weights": ("weights_mb", ".0f"),
    "MB above": ("above_weights_mb", ".0f"),
    "MB in all": ("measured_mb", ".0f"),
    "planned": ("planned_mb", ".0f"),
    "ratio": ("ratio", ".2f"),
}


def gpu_table(report: dict[str, Any]) -> str:
    """A row a method, the ratios of PPO that are there, and what was left out."""
    rows: list[Sequence[str]] = [["", *COLUMNS]]
    rows += [
        [part, *(f"{one[key]:{form}}" for key, form in COLUMNS.values())] for part, one in report["stages"].items()
    ]
    parts = [grid(rows)] if report["stages"] else []
    if any(name in report for name in ("fixed", "natural", "ppo_over_sft")):
        parts.append(table(report))
    parts += [f"Left out: {part} ({why})." for part, why in report["left_out"].items()]
    if "matrix_tflops" in report:
        rate = f"One bf16 product of 8192 x 8192 x 8192: {report['matrix_tflops']:.0f} teraflops a second."
        parts.append(
            "Seconds are those of the CPU, which stands in for a GPU: a rehearsal." if report["rehearsal"] else rate
        )
    return "\n\n".join(parts)
