"""A measurement in a process of its own, as the process that asks for it sees it."""

import json
import os
import subprocess
import sys
from typing import Any

from rlhf.config import REPO
from rlhf.errors import ResourceError

MARK = "measured: "
Measurement = dict[str, Any]


def worker(folder: str, what: dict[str, Any], threads: int | None) -> Measurement:
    """What `python -m rlhf.benchmark` prints for `what`, in a process of its own; raises ResourceError with its last line."""
    environment = os.environ | {"PYTHONPATH": str(REPO / "src"), "HF_HUB_OFFLINE": "1"}
    if threads:
        environment |= {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "rlhf.benchmark", folder, json.dumps(what)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    last = done.stdout.splitlines()[-1:]
    if done.returncode or not last or not last[0].startswith(MARK):
        reason = (done.stderr.strip().splitlines() or ["it was killed, most likely for memory"])[-1]
        raise ResourceError(f"measuring {json.dumps(what)} ended with code {done.returncode}\n  {reason}")
    return json.loads(last[0].removeprefix(MARK))
