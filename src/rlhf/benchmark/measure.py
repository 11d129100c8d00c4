"""One measurement in a process of its own, since peak memory is a property of the process.

Called by `compare` as `python -m rlhf.benchmark.measure <folder> <task as JSON>`; its last line is the result as JSON.
"""

import contextlib
import ctypes
import gc
import json
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from rlhf.benchmark.compare import MARK
from rlhf.benchmark.contenders import BUILDERS, Task
from rlhf.benchmark.workload import Size, Workload, make


def now(device: str) -> float:
    """Seconds, after everything queued on the GPU is done."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()


class Memory:
    """Peak memory in MB above what was in use at `start`: of the GPU's allocator, or resident memory of the process.

    On Linux the kernel keeps the exact peak and lets a process reset it (proc(5), clear_refs), so no peak is missed
    between two samples.
    """

    def __init__(self, device: str) -> None:
        self.device, self.before = device, 0.0

    def start(self) -> None:
        gc.collect()
        if self.device == "cuda":
            import torch

            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated() / 2**20
            return
        with contextlib.suppress(OSError, AttributeError):  # what loading freed goes back first, or it hides growth
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        self.before = _resident("VmRSS")

    def peak(self) -> float:
        if self.device == "cuda":
            import torch

            return torch.cuda.max_memory_allocated() / 2**20
        return _resident("VmHWM")


def _resident(key: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def measure(work: Workload, task: Task) -> dict[str, Any]:
    """Seconds of each update and peak memory of one trainer."""
    import torch
    from transformers import TrainerCallback

    clock: list[float] = []
    processor: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.append(now(work.device))
            processor.append(time.process_time())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.on_train_begin()

    start = _in_use(work.device)
    contender = BUILDERS[task.contender](work, task)
    contender.trainer.add_callback(Clock)
    memory = Memory(work.device)
    memory.start()
    with contextlib.redirect_stdout(sys.stderr):
        contender.trainer.train()
    peak = memory.peak()
    lengths = [sum(rows) / len(rows) for rows in contender.lengths]
    return {
        "task": vars(task),
        "device": torch.cuda.get_device_name() if work.device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "seconds": _differences(clock),
        # of all threads: what is left of a time when other processes want the same cores
        "processor_seconds": _differences(processor),
        "phases": contender.phases,
        "reply_tokens": lengths,
        "weights_mb": memory.before - start,
        "loaded_mb": memory.before,
        "above_weights_mb": peak - memory.before,
        "peak_mb": peak,
        "matrix_tflops": matrix_rate(work.device),
    }


def _differences(times: list[float]) -> list[float]:
    return [after - before for before, after in pairwise(times)]


def _in_use(device: str) -> float:
    import torch

    return torch.cuda.memory_allocated() / 2**20 if device == "cuda" else _resident("VmRSS")


def matrix_rate(device: str) -> float:
    """Teraflops a second of a large bf16 matrix product, the fastest of a few: what the chip can do here and now."""
    import torch

    width = 8192 if device == "cuda" else 1024
    a, b = (torch.randn(width, width, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(10):
        began = now(device)
        torch.mm(a, b)
        best = max(best, 2 * width**3 / (now(device) - began) / 1e12)
    return best


def main() -> None:
    from rlhf.stage import quiet

    quiet()
    folder, what = Path(sys.argv[1]), json.loads(sys.argv[2])
    if "size" in what:
        import torch

        device = "cuda" if what["device"] == "auto" and torch.cuda.is_available() else what["device"]
        work = make(folder, Size(**what["size"]), "cpu" if device == "auto" else device)
        found: dict[str, Any] = {"device": work.device}
    elif "method" in what:
        from rlhf.benchmark.stages import measure_stage

        with contextlib.redirect_stdout(sys.stderr):
            found = measure_stage(Workload.read(folder), what["method"])
    else:
        found = measure(Workload.read(folder), Task(**what))
    print(MARK + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
