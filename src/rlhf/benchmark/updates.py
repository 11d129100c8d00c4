"""The updates of one contender: their seconds, and the peak of memory."""

import contextlib
import sys
from typing import Any

from rlhf.benchmark.instrument import Memory, clocked, differences, in_use, matrix_rate
from rlhf.benchmark.preferences import builder
from rlhf.benchmark.workload import Task, Workload


def measure(work: Workload, task: Task) -> dict[str, Any]:
    """Seconds of each update and peak memory of one trainer."""
    import torch

    start = in_use(work.device)
    contender = builder(task)(work, task)
    clock, processor = clocked(contender.trainer, work.device)
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
        "seconds": differences(clock),
        "processor_seconds": differences(processor),
        "phases": contender.phases,
        "reply_tokens": lengths,
        "weights_mb": memory.before - start,
        "loaded_mb": memory.before,
        "above_weights_mb": peak - memory.before,
        "peak_mb": peak,
        "matrix_tflops": matrix_rate(work.device),
    }
