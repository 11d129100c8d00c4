"""The instruments: a clock, peak memory, the rate of a matrix product."""

import contextlib
import ctypes
import gc
import time
from itertools import pairwise
from pathlib import Path
from typing import Any


def now(device: str) -> float:
    """Seconds, after everything queued on the GPU is done."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()


def clocked(trainer: Any, device: str) -> tuple[list[float], list[float]]:
    """Two lists that fill while it trains: the time, and the seconds that all threads have had, at the start and after each step."""
    from transformers import TrainerCallback

    clock: list[float] = []
    # of all threads: what is left of a time when other processes want the same cores
    processor: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.append(now(device))
            processor.append(time.process_time())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.on_train_begin()

    trainer.add_callback(Clock)
    return clock, processor


def differences(times: list[float]) -> list[float]:
    return [after - before for before, after in pairwise(times)]


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


def in_use(device: str) -> float:
    import torch

    return torch.cuda.memory_allocated() / 2**20 if device == "cuda" else _resident("VmRSS")


def matrix_rate(device: str) -> float:
    """Teraflops a second of a large bf16 matrix product, the fastest of a few: what the chip can do here and now.

    Wide enough to take a millisecond: 1024 on a CPU, 8192 on a GPU.
    """
    import torch

    width, seconds = 512, 0.0
    while seconds < 1e-3 and width < 8192:
        width *= 2
        a, b = (torch.randn(width, width, device=device, dtype=torch.bfloat16) for _ in range(2))
        took = []
        for _ in range(10):
            began = now(device)
            torch.mm(a, b)
            took.append(now(device) - began)
        seconds = min(took)
    return 2 * width**3 / seconds / 1e12
