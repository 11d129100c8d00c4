"""What can strike a door, and the moments of a stage's life at which it does; armed in the process that was forked for the door."""

import errno
import importlib
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
WRITES = {
    "open",
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.symlink",
    "os.truncate",
}  # of Python's audit events


def _full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "the disk")


def _memory(*_: Any) -> None:
    raise MemoryError


def _send(number: int) -> Callable[..., None]:
    return lambda *_: os.kill(os.getpid(), number)


# name -> what it does, and the exit code that it is answered with
STRIKES: dict[str, tuple[Callable[..., None], int]] = {
    "kill": (_send(signal.SIGKILL), -signal.SIGKILL),
    "stop": (_send(signal.SIGTERM), 75),
    "interrupt": (_send(signal.SIGINT), 130),
    "disk full": (_full, 5),
    "no memory": (_memory, 5),
}


def _cut(folder: Path) -> None:
    """Half of each file is there, as after a power cut."""
    for file in folder.rglob("*"):
        if file.is_file():
            os.truncate(file, file.stat().st_size // 2)


def arm(moment: str, strike: str) -> None:
    """Once, at that moment, the strike; for MOMENTS see below."""
    from rlhf import files
    from rlhf.runs import callbacks, record, stage

    left = [STRIKES[strike][0]]

    def at(
        owner: Any, name: str, when: Callable[..., bool] = lambda *_: True, after: bool = False, first: Any = None
    ) -> None:
        original = getattr(owner, name)

        @wraps(original)
        def method(*args: Any, **options: Any) -> Any:
            chosen = bool(left) and when(*args)
            done = original(*args, **options) if after or not chosen else None
            if chosen:
                do = left.pop()
                if first:
                    first(*args)
                do()
            return done if after or not chosen else original(*args, **options)

        setattr(owner, name, method)

    def mark(**options: Any) -> None:
        for owner in (files, callbacks):
            at(owner, "mark", lambda folder: "checkpoint-4" in folder.name, **options)

    def third(_: Any, __: Any, state: Any, *___: Any, **____: Any) -> bool:
        return state.global_step == 3

    def torn(path: Path, *_: Any) -> None:
        with path.open("ab") as file:
            file.write(b'{"step": 3, "lo')

    def status(wanted: str) -> Callable[..., bool]:
        return lambda _, now: now == wanted

    moments: dict[str, Callable[[], None]] = {
        "rows prepared": lambda: at(stage, "prepare", after=True),
        "trainer built": lambda: at(stage, "build", after=True),
        "first run.json": lambda: at(record.Record, "_save"),
        "before step 1": lambda: at(callbacks.MetricsFile, "on_train_begin"),
        "step 3": lambda: at(callbacks.MetricsFile, "on_log", third),
        "half a line": lambda: at(callbacks, "append_lines", lambda _, lines: lines[0]["step"] == 3, first=torn),
        "half a checkpoint": lambda: mark(first=_cut),
        "before the mark": mark,
        "after the mark": lambda: mark(after=True),
        "half of final": lambda: at(stage, "_write", after=True, first=lambda *args: _cut(args[-1])),
        "final saved": lambda: at(stage, "save", after=True),
        "status trained": lambda: at(record.Record, "status", status("trained"), after=True),
        "evaluation": lambda: at(stage, "evaluate"),
        "results": lambda: at(Path, "replace", lambda path, _: path.name == f".partial-{files.RESULTS_FILE}"),
        "status finished": lambda: at(record.Record, "status", status("finished")),
    }
    moments[moment]()


def at_rank_1(event: str, run: str) -> None:
    """The second process of the run that this door starts is struck (rlhf.benchmark.failures); all of them make one group."""
    doors, run_path = sys.modules["__main__"], runpy.run_path

    def armed(script: str, run_name: str) -> Any:
        if os.environ.get("RANK") == "1":
            importlib.import_module("rlhf.benchmark.failures").arm(event, run)
        return run_path(script, run_name=run_name)

    os.setsid()
    subprocess.Popen, runpy.run_path = doors.Forked, armed


def read_only(place: str) -> None:
    """Nothing below this folder can be written, as on a mounted image."""

    def refuse(event: str, args: tuple[Any, ...]) -> None:
        if event in WRITES and str(args[0]).startswith(place) and (event != "open" or _to_write(args)):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(args[0]))

    sys.addaudithook(refuse)


def environment(name: str, value: str) -> None:
    """A variable that is looked up when it is needed, not as libraries are loaded."""
    os.environ[name] = value


def stand_in(folder: str) -> None:
    """The working directory."""
    os.chdir(folder)


def _to_write(args: tuple[Any, ...]) -> bool:
    mode, flags = args[1], args[2] or 0
    return (
        bool(set("wax+") & set(mode)) if isinstance(mode, str) else bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    )
