"""Tasks as jobs of other processes, which may be lost with their machine: what they have in common, and a pool of them (joblib).

What came of a job is read from a note that it writes on the shared disk, never from a return value: no pickle is loaded here. A job
that was stopped (exit code 75) or lost with its machine is submitted again, and the trial goes on from its last checkpoint.
"""

import math
import os
import shlex
import signal
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from rlhf import config, files
from rlhf.config import REPO, Stage
from rlhf.errors import Preempted, Refusal
from rlhf.process import Children, die_with_parent
from rlhf.runs.launcher import Launcher, Task, opened

POLL = 0.5  # seconds between two looks at a job's note
GRACE = 60.0  # seconds that a job has for its last checkpoint
LOST_WORKER = "WORKER_LOST"
# how a job ends that is no fault of its trial's
AGAIN = ("NODE_FAIL", "BOOT_FAIL", "PREEMPTED", "TIMEOUT", LOST_WORKER)
LOST = -1  # no exit code
# what srun says of the one task that a job is, and a stage that starts its ranks itself would take for a rank
STEP = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS", "SLURM_LOCALID", "SLURM_NODEID")
INSTALL = "pip install -r requirements-cluster.txt"


def work(command: Sequence[str], log: Path, note: Path, environment: dict[str, str]) -> None:
    """A job, in its worker: run the command, then say in `note` what its exit code was. A SIGTERM goes to the command."""
    with Children() as children:
        files.write_json(note, {"process": os.getpid()})
        kept = {key: value for key, value in os.environ.items() if key not in STEP}
        with log.open("a") as stream:
            code = children.run(command, stdout=stream, stderr=stream, env=kept | environment)
    files.write_json(note, {"code": code})


def installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it is in
        return False


class Jobs(Launcher):
    """What jobs have in common."""

    needs: tuple[str, ...] = ()
    late = 2.0  # seconds after a job's end in which its note may still appear

    def __init__(self, own: config.Launcher, stage: Stage, folder: Path, most: int | None = None) -> None:
        if lacking := [name for name in self.needs if not installed(name)]:
            raise Refusal("launcher", own.name, f"{', '.join(lacking)} is not installed", fix=INSTALL)
        self.parameters = self.checked(own.args, stage)
        super().__init__(own, stage, folder, most)

    def checked(self, args: dict[str, Any], stage: Stage) -> dict[str, Any]:
        """`launcher.args` in the words of what starts the jobs."""
        if args:
            raise Refusal("launcher.args", args, "has no settings", fix="launcher.jobs=2")
        return {}

    def start(self, task: Task) -> int:
        log = task.log or self.folder / f"{task.name}.log"
        if task.log is None:
            print(f"log      {log}", flush=True)
        for attempt in range(1, self.own.attempts + 1):
            words = task.now(again=attempt > 1)
            opened(log, f"python src/{task.script} {shlex.join(words)}").close()
            code, ended = self._once(task, [sys.executable, str(REPO / "src" / task.script), *words], log)
            if self.asked:
                return Preempted.code
            if code != Preempted.code and not ended.startswith(AGAIN):
                break
            if attempt < self.own.attempts:
                print(
                    f"{task.name} goes on, its job was {ended or 'stopped'}  ({attempt} of {self.own.attempts})",
                    flush=True,
                )
        if code in (LOST, Preempted.code):
            why = f"{ended or 'stopped'} after {attempt} of {self.own.attempts} attempts"
            with log.open("a") as stream:
                stream.write(f"error: its job was {why}\n")
            code = 1
        return code

    def _once(self, task: Task, command: Sequence[str], log: Path) -> tuple[int, str]:
        """Submit and wait: the exit code, or LOST and how the job ended."""
        if self.asked:
            return Preempted.code, ""
        note = self.folder / "jobs" / f"{task.name}-{uuid.uuid4().hex[:8]}.json"
        note.parent.mkdir(parents=True, exist_ok=True)
        job = self.submit(task.name, (command, log.absolute(), note.absolute(), self.environment))
        end, told = math.inf, ""
        while time.monotonic() < end:
            said = files.read_json(note) if note.exists() else {}
            if "code" in said:
                break
            if self.asked and end == math.inf and self.cancel(job, said.get("process")):
                end = time.monotonic() + GRACE
            if not told and (told := self.ended(job)):
                end = min(end, time.monotonic() + self.late)
            time.sleep(POLL)
        note.unlink(missing_ok=True)
        return (said["code"], "") if "code" in said else (LOST, self.lost(job, told, bool(said)))

    def submit(self, name: str, job: tuple[Any, ...]) -> Any:
        """Hand `work(*job)` over."""
        raise NotImplementedError

    def ended(self, job: Any) -> str:
        """How a job ended, in a word; empty while it lasts."""
        raise NotImplementedError

    def lost(self, job: Any, ended: str, begun: bool) -> str:
        """The same, with what is known of it."""
        return ended

    def cancel(self, job: Any, process: int | None) -> bool:
        """Ask a job to stop; whether it could be asked. `process` is its worker's id, once it has begun."""
        if process is not None:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
        return process is not None


class Pool(Jobs):
    """launcher=joblib: the processes of a pool. One that is killed takes the others with it: their tasks begin again in a new pool."""

    needs = ("joblib",)

    def __enter__(self) -> Self:
        super().__enter__()
        self.opening = threading.Lock()
        self.executor = self._open()
        return self

    def __exit__(self, *ended: object) -> None:
        self.executor.shutdown(kill_workers=True)
        super().__exit__(*ended)

    def _open(self) -> Any:
        from joblib.externals.loky import ProcessPoolExecutor

        executor = ProcessPoolExecutor(self.most, timeout=None, initializer=die_with_parent)
        executor.submit(os.getpid).result()  # starts them all, as children of this thread, with which they end
        return executor

    def submit(self, name: str, job: tuple[Any, ...]) -> Any:
        from joblib.externals.loky.process_executor import BrokenProcessPool, ShutdownExecutorError

        with self.opening:
            try:
                return self.executor.submit(work, *job)
            except (BrokenProcessPool, ShutdownExecutorError):
                self.executor = self._open()
                return self.executor.submit(work, *job)

    def ended(self, job: Any) -> str:
        from joblib.externals.loky.process_executor import BrokenProcessPool

        if not job.done():
            return ""
        error = job.exception()
        return LOST_WORKER if isinstance(error, BrokenProcessPool) else f"FAILED: {error}"
