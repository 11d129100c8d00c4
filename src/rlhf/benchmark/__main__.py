"""One measurement in a process of its own, since peak memory is a property of the process; on a GPU, where it is not, several.

Called as `python -m rlhf.benchmark <folder> <task as JSON>` (rlhf.benchmark.process); a line of the result as JSON, or one for each.
"""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from rlhf.benchmark.process import MARK
from rlhf.benchmark.updates import measure
from rlhf.benchmark.workload import Size, Task, Workload, make


def main() -> None:
    from rlhf.process import quiet

    quiet()
    folder, what = Path(sys.argv[1]), json.loads(sys.argv[2])
    if "gpu" in what:
        from rlhf.benchmark.gpu import measure_parts

        for found in measure_parts(folder, what):
            print(MARK + json.dumps(found), flush=True)
        return
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
