"""Where stages and trials run: here in processes of this machine, in rlhf.runs.jobs in those of a pool or a cluster."""

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rlhf import config
from rlhf.config import GB, REPO, Stage
from rlhf.errors import Refusal
from rlhf.process import Children
from rlhf.runs import record

OVERWRITE = "run.overwrite=true"


@dataclass(frozen=True)
class Task:
    """One command: `python src/<script> <words>`; the stage that it trains, if it does, and the log that gets what it prints (None:
    this terminal)."""

    name: str
    script: str
    words: Sequence[str]
    stage: Stage | None = None
    log: Path | None = None

    def now(self, again: bool = False) -> list[str]:
        """Its words as things stand: a stale run is replaced, one that an attempt before this has begun goes on."""
        words = [word for word in self.words if not (again and word == OVERWRITE)]
        stale = self.stage is not None and OVERWRITE not in words and record.state(self.stage) == "stale"
        return [*words, OVERWRITE] if stale else words

    def shown(self) -> str:
        return f"python src/{self.script} {shlex.join(self.now())}"


class Launcher(Children):
    """launcher=basic: a task is a process of this machine, which ends with this one. Enter it in the main thread.

    `most` is the number of tasks at a time, by default what the configuration says, or as many as fit.
    """

    def __init__(self, own: config.Launcher, stage: Stage, folder: Path, most: int | None = None) -> None:
        super().__init__()
        self.own, self.stage, self.folder = own, stage, folder
        self.most = most or own.jobs or self.fitting()
        if self.most < 1 or own.attempts < 1:
            key, value = ("jobs", own.jobs) if self.most < 1 else ("attempts", own.attempts)
            raise Refusal(f"launcher.{key}", value, "must be at least 1", fix=f"launcher.{key}=1")

    def fitting(self) -> int:
        return parallel(self.stage)

    @property
    def environment(self) -> dict[str, str]:
        return {"OMP_NUM_THREADS": threads(self.most)}

    def start(self, task: Task) -> int:
        """The exit code of a task, waited for; may be called from several threads."""
        command = [sys.executable, str(REPO / "src" / task.script), *task.now()]
        if task.log is None:
            return self.run(command)
        with opened(task.log, task.shown()) as log:
            return self.run(command, stdout=log, stderr=log, env=os.environ | self.environment)

    def show(self, tasks: Sequence[Task]) -> None:
        """What launcher.dry_run=true prints."""
        print(f"launcher={self.own.name}: {len(tasks)} tasks would be started, {self.most} at a time")
        for task in tasks:
            print(f"# {task.name}\n{task.shown()}")

    @contextmanager
    def pool(self) -> Iterator[ThreadPoolExecutor]:
        """Threads that wait for tasks. Where the block ends in an error no other task is started; a Ctrl-C ends those that run."""
        with ThreadPoolExecutor(self.most) as pool:
            try:
                yield pool
            except BaseException as error:
                self.asked |= isinstance(error, KeyboardInterrupt)
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def opened(log: Path, command: str) -> IO[Any]:
    """The end of a log, after a line with the command."""
    log.parent.mkdir(parents=True, exist_ok=True)
    stream = log.open("a")
    stream.write(f"$ {command}\n")
    stream.flush()
    return stream


def last_error(log: Path | None) -> str:
    """What a task said last of what ended it; empty if nothing."""
    lines = log.read_text(errors="replace").splitlines() if log is not None and log.exists() else []
    return next((line for line in reversed(lines) if line.startswith("error: ")), "").removeprefix("error: ")


def threads(jobs: int) -> str:
    """OMP_NUM_THREADS of each of so many processes at a time: two of them with all the cores each wait for one another."""
    return str(max(1, (os.cpu_count() or 1) // jobs))


def parallel(stage: Stage) -> int:
    """How many trials fit at once: on the CPU one a core within the memory that is free, on a GPU one."""
    if stage.hardware.device != "cpu":
        return 1
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GB
    return max(1, min(os.cpu_count() or 1, int(free / stage.hardware.memory_gb)))
