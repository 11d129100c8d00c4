"""Which measurements each part of the benchmark needs, run in alternation, and the ratios that follow from them."""

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from rlhf.benchmark.preferences import WORKS
from rlhf.benchmark.process import Measurement, worker
from rlhf.benchmark.workload import Size, Task

PARTS = ("fixed", "natural", "growth", "sft", "dpo", "reward")
PPO_OVER_SFT = "ppo_over_sft"  # which the part `sft` holds, and a GPU is asked alone
MEMORY = ("above_weights_mb", "weights_mb", "peak_mb")


def tasks(parts: Sequence[str], size: Size) -> list[Task]:
    """The measurements of one repeat, stock beside ours, each once though two parts may need it."""
    found: list[Task] = []
    for replies in ("fixed", "natural"):
        if replies in parts:
            found += [_updates(who, replies, size) for who in ("stock", "ours")]
    if "growth" in parts:
        found += [_rollout(who, count) for count in (size.prompts, size.grown) for who in ("stock", "ours")]
    if {"sft", PPO_OVER_SFT} & set(parts):
        found += [_tuning(size), _updates("ours", "fixed", size)]
    found += [task for name in WORKS if WORKS[name].part in parts for task in _works(name, size)]
    return list(dict.fromkeys(found))


def _works(name: str, size: Size) -> list[Task]:
    """Stock's and our update of as many pairs or texts as the work of PPO has prompts, or of rankings that have a few more pairs. Each
    update has other texts, so there are more of them."""
    rows, updates = -(-size.prompts // WORKS[name].pairs), size.updates if WORKS[name].k else 3 * size.updates
    return [Task(f"{name}/{who}", "fixed", rows, 1, updates) for who in ("stock", "ours")]


def _updates(who: str, replies: str, size: Size) -> Task:
    return Task(who, replies, size.prompts, size.epochs, size.updates)


def _rollout(who: str, prompts: int) -> Task:
    """For memory alone: in the second epoch of one update everything is there that ever will be."""
    return Task(who, "fixed", prompts, epochs=2, updates=1)


def _tuning(size: Size) -> Task:
    return Task("sft", "fixed", size.prompts, 1, size.updates)


def compare(
    parts: Sequence[str], size: Size, *, device: str, repeats: int, threads: int | None, rollout_base: str
) -> dict[str, Any]:
    """Measures in alternation, every measurement in a new process, and returns the report without its provenance.

    Each repeat samples with a seed of its own, the same for both. Who comes first changes with every repeat, so that a
    machine that slows down does not favour anybody. `growth`, which compares memory alone, runs once.
    """
    found: list[Measurement] = []
    with tempfile.TemporaryDirectory() as folder:
        worker(folder, {"size": asdict(size), "device": device}, threads)
        for repeat in range(repeats):
            order = tasks([p for p in parts if p != "growth" or repeat == 0], size)
            for task in order if repeat % 2 == 0 else reversed(order):
                one = worker(folder, asdict(replace(task, seed=repeat + 1, rollout_base=rollout_base)), threads)
                found.append(one)
                seconds = ", ".join(f"{s:.2f}" for s in one["seconds"])
                memory = f"{one['above_weights_mb']:.0f} MB above the weights"
                print(f"{task.name:28s} {seconds} s an update, {memory}", flush=True)
    report = ratios(parts, size, found) | {"device": found[0]["device"], "threads": found[0]["threads"]}
    report |= {"size": asdict(size), "repeats": repeats, "rollout_base": rollout_base}
    return report | {"measurements": found}


def ratios(parts: Sequence[str], size: Size, found: Sequence[Measurement]) -> dict[str, Any]:
    """Medians over repeats, and the ratio of ours to stock, of much to little, of PPO to SFT.

    Times are of warm updates: all but the first of a process, if there are several.
    """

    def pick(task: Task) -> list[Measurement]:
        return [m for m in found if Task(**m["task"]).is_repeat_of(task)]

    def memory(task: Task, key: str = "above_weights_mb") -> float:
        return statistics.median(m[key] for m in pick(task))

    report: dict[str, Any] = {}
    compared = {
        one: [_updates(who, one, size) for who in ("stock", "ours")] for one in ("fixed", "natural") if one in parts
    }
    compared |= {name: _works(name, size) for name, work in WORKS.items() if work.part in parts}
    for name, (theirs, our) in compared.items():
        pairs = [warm(b["seconds"]) / warm(a["seconds"]) for a, b in zip(pick(theirs), pick(our), strict=True)]
        stock, ours = summary(pick(theirs), size), summary(pick(our), size)
        report[name] = {
            "time_ratio": ours["seconds"] / stock["seconds"],
            "time_ratio_range": [min(pairs), max(pairs)],
            "processor_time_ratio": ours["processor_seconds"] / stock["processor_seconds"],
            "memory_ratio": memory(our) / memory(theirs),
            "peak_ratio": memory(our, "peak_mb") / memory(theirs, "peak_mb"),
            "stock": stock,
            "ours": ours,
        }
    if "growth" in parts:
        prompts = [size.prompts, size.grown]
        growth = {who: [memory(_rollout(who, count)) for count in prompts] for who in ("ours", "stock")}
        (few, many), (stock_few, stock_many) = growth["ours"], growth["stock"]
        found_ratios = {"memory_ratio": many / few, "stock_memory_ratio": stock_many / stock_few}
        report["rollout_growth"] = found_ratios | {"prompts": prompts, "above_weights_mb": growth}
    if {"sft", PPO_OVER_SFT} & set(parts):
        sft, ppo = ({k: memory(t, k) for k in MEMORY} for t in (_tuning(size), _updates("ours", "fixed", size)))
        report[PPO_OVER_SFT] = {
            "memory_ratio": ppo["above_weights_mb"] / sft["above_weights_mb"],
            "peak_ratio": ppo["peak_mb"] / sft["peak_mb"],
            "sft": sft,
            "ppo": ppo,
        }
    return report


def summary(found: Sequence[Measurement], size: Size) -> dict[str, Any]:
    """Medians of one contender: seconds an update and by phase, memory, reply length, rates.

    `matrix_share` is the arithmetic of the passes over the rate of a large bf16 matrix product measured in the same
    process: parameters in matrices (2 operations a token and pass, backward through frozen weights as much as forward).
    """
    tokens = statistics.mean(statistics.mean(m["reply_tokens"]) for m in found)
    phases = {
        name: statistics.median(warm(m["phases"][name]) for m in found)
        for name in found[0]["phases"]
        if all(m["phases"][name] for m in found)
    }
    result: dict[str, Any] = {
        "seconds": statistics.median(warm(m["seconds"]) for m in found),
        "processor_seconds": statistics.median(warm(m["processor_seconds"]) for m in found),
        "phases": phases,
        **{key: statistics.median(m[key] for m in found) for key in MEMORY},
        "reply_tokens_mean": tokens,
        "matrix_tflops": statistics.median(m["matrix_tflops"] for m in found),
    }
    prompts, epochs = found[0]["task"]["prompts"], found[0]["task"]["epochs"]
    if "rollout" in phases:
        result["rollout_tokens_per_second"] = prompts * tokens / phases["rollout"]
    if "update" in phases:
        passes = prompts * epochs * (size.prompt_tokens + tokens) * 2 * 2 * 2 * size.matrix_parameters
        passes += prompts * epochs * tokens * 2 * 2 * size.vocabulary * size.width
        result["update_tokens_per_second"] = prompts * epochs * tokens / phases["update"]
        result["matrix_share"] = passes / phases["update"] / 1e12 / result["matrix_tflops"]
    return result


def warm(values: Sequence[float]) -> float:
    return statistics.median(values[1:] or values)
