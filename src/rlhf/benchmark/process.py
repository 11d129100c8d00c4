"""A measurement in a process of its own, as the process that asks for it sees it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from tempfile import TemporaryFile
from threading import Timer
from typing import Any

from rlhf.config import REPO
from rlhf.errors import ResourceError

MARK = "measured: "
Measurement = dict[str, Any]


def worker(folder: str, what: dict[str, Any], threads: int | None) -> Measurement:
    """What `python -m rlhf.benchmark` prints for `what`, in a process of its own; raises ResourceError with its last line."""
    return list(measurements(folder, what, threads))[-1]


def measurements(
    folder: str, what: dict[str, Any], threads: int | None, seconds: float | None = None
) -> Iterator[Measurement]:
    """The same of one that prints several, each as soon as it is there; it is killed after `seconds`."""
    environment = os.environ | {"PYTHONPATH": str(REPO / "src"), "HF_HUB_OFFLINE": "1"}
    if threads:
        environment |= {"OMP_NUM_THREADS": str(threads)}
    command, some = [sys.executable, "-m", "rlhf.benchmark", folder, json.dumps(what)], False
    with (
        TemporaryFile("w+") as told,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=told, text=True, env=environment) as process,
    ):
        ending = Timer(seconds or 0, process.kill)
        if seconds is not None:
            ending.start()
        try:
            for line in process.stdout or ():
                if line.startswith(MARK):
                    some = True
                    yield json.loads(line.removeprefix(MARK))
            code = process.wait()
        finally:
            ending.cancel()
            process.kill()
        if code or not some:
            told.seek(0)
            reason = (told.read().strip().splitlines() or ["it was killed, most likely for memory"])[-1]
            raise ResourceError(f"measuring {json.dumps(what)} ended with code {code}\n  {reason}")
