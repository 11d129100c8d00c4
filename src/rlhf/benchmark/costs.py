"""What a thousand tokens cost, by method: against the length of a sequence, and the number of replies in a ranking."""

import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

from rlhf.benchmark.process import worker
from rlhf.benchmark.workload import Size, Task
from rlhf.output.tables import grid

LENGTHS = (256, 512, 1024, 2048, 4096)  # half of it prompt, half reply
RANKINGS, LENGTH = (2, 4, 6, 8), 512
TOKENS, MICRO = 8192, 2048  # of an update and of a micro-batch, about
METHODS = {"sft": "sft/ours", "reward": "reward-2/ours", "dpo": "dpo-2/ours", "ppo": "ours"}


def measure_costs(size: Size, *, device: str, repeats: int, threads: int | None) -> dict[str, Any]:
    """`lengths` and `rankings`: by method, seconds for 1,000 tokens, each read once, at every length and number of replies."""
    lengths: dict[str, dict[int, float]] = {method: {} for method in METHODS}
    rankings: dict[str, dict[int, float]] = {"reward": {}, "dpo": {}}
    for length in LENGTHS:
        rows = TOKENS // length
        one = _of(size, length, prompts=rows, micro_batch=max(1, MICRO // length), rollout_batch=rows)
        for method, contender in METHODS.items():
            lengths[method][length] = _cost(one, contender, device, repeats, threads)
            print(f"{method:8s} {length:5d} tokens  {lengths[method][length]:.3f} s for 1,000", flush=True)
    for count in RANKINGS:
        one = _of(size, LENGTH, prompts=max(1, 2 * TOKENS // LENGTH // (1 + count)), micro_batch=1)
        for method, found in rankings.items():
            found[count] = _cost(one, f"{method}-{count}/ours", device, repeats, threads)
            print(f"{method:8s} {count:5d} replies {found[count]:.3f} s for 1,000", flush=True)
    return {"lengths": lengths, "rankings": rankings, "tokens": TOKENS, "length_of_rankings": LENGTH}


def _of(size: Size, length: int, prompts: int, **more: int) -> Size:
    half = {"prompt_tokens": length // 2, "reply_tokens": length // 2}
    return replace(size, **half, prompts=prompts, grown=prompts, updates=2, **more)


def _cost(size: Size, contender: str, device: str, repeats: int, threads: int | None) -> float:
    times, task = [], Task(contender, "fixed", size.prompts, 1, size.updates)
    with tempfile.TemporaryDirectory() as folder:
        worker(folder, {"size": asdict(size), "device": device}, threads)
        for seed in range(1, repeats + 1):
            found = worker(folder, asdict(replace(task, seed=seed)), threads)
            count = int(contender.partition("/")[0].partition("-")[2] or 1)
            once = size.prompt_tokens + count * size.reply_tokens
            tokens = size.prompts * (mean(found["reply_tokens"]) if contender.startswith("sft") else once)
            times.append(1000 * found["seconds"][-1] / tokens)
    return median(times)


def draw_costs(report: dict[str, Any], file: Path) -> None:
    """The costs against the length, a line a method."""
    from rlhf.output.plots import draw

    series: dict[str, list[tuple[float, float]]] = {
        method: [(int(x), y) for x, y in found.items()] for method, found in report["lengths"].items()
    }
    draw(file, series, x="tokens of a sequence", y="seconds for 1,000 tokens")


def costs_table(report: dict[str, Any]) -> str:
    """Seconds for 1,000 tokens, a row a method."""
    lengths, rankings = ([*next(iter(report[of].values()))] for of in ("lengths", "rankings"))
    rows = [("s for 1,000 tokens", *(f"{length:,} tokens" for length in lengths))]
    rows += [(method, *(f"{value:.2f}" for value in found.values())) for method, found in report["lengths"].items()]
    more = [(f"rankings, {report['length_of_rankings']} tokens", *(f"{count} replies" for count in rankings))]
    more += [(method, *(f"{value:.2f}" for value in found.values())) for method, found in report["rankings"].items()]
    return f"{grid(rows)}\n\n{grid(more)}"
