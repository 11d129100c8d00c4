"""One measurement in a process of its own, since peak memory is a property of the process.

Called by `compare` as `python -m rlhf.benchmark <folder> <task as JSON>`; its last line is the result as JSON.
"""

import contextlib
import json
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from rlhf.benchmark.instrument import Memory, in_use, matrix_rate, now
from rlhf.benchmark.preferences import builder
from rlhf.benchmark.process import MARK
from rlhf.benchmark.workload import Size, Task, Workload, make


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

    start = in_use(work.device)
    contender = builder(task)(work, task)
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


def main() -> None:
    from rlhf.process import quiet

    quiet()
    folder, what = Path(sys.argv[1]), json.loads(sys.argv[2])
    if "size" in what:
        import torch

        device = "cuda" if what["device"] == "auto" and torch.cuda.is_available() else what["device"]
        work = make(folder, Size(**what["size"]), "cpu" if device == "auto" else device)
        found: dict[str, Any] = {"device": work.device}
    elif "rows" in what:
        from rlhf.benchmark.rows import run

        found = run(folder, what)
    elif "method" in what:
        from rlhf.benchmark.planned import measure_stage

        with contextlib.redirect_stdout(sys.stderr):
            found = measure_stage(Workload.read(folder), what["method"])
    else:
        found = measure(Workload.read(folder), Task(**what))
    print(MARK + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
