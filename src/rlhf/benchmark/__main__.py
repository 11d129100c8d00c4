"""One measurement in a process of its own, since peak memory is a property of the process.

Called by `compare` as `python -m rlhf.benchmark <folder> <task as JSON>`; its last line is the result as JSON.
"""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from rlhf.benchmark.instrument import Memory, clocked, differences, in_use, matrix_rate
from rlhf.benchmark.preferences import builder
from rlhf.benchmark.process import MARK
from rlhf.benchmark.workload import Size, Task, Workload, make


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
