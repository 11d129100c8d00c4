"""Doors run as a user runs them, each in a process of its own: forked from one that has the libraries and rows, which saves seconds a call."""

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
LIBRARIES = ("hydra", "matplotlib.pyplot", "torch", "datasets", "peft", "bitsandbytes", "safetensors.torch", "trl")
LIBRARIES += ("transformers.models.llama.modeling_llama", "transformers.integrations.bitsandbytes")
LIBRARIES += tuple(f"trl.trainer.{method}_trainer" for method in ("sft", "reward", "dpo"))
HEAVY = {"torch", "trl", "transformers", "datasets", "peft", "bitsandbytes"}  # a second or more each
SECONDS = 600  # the longest a door may take
COLLECT = (50_000, 20)  # objects between two collections: a configuration is made of many, and they live as long as it
GOES_ON = 1000  # no exit code
Done = subprocess.CompletedProcess[str]


class Doors:
    """`doors("train.py", "recipes=support/sft", ...)`, or by its whole path the door of another checkout; with an `environment`, which
    libraries read as they load, nothing is forked."""

    def __init__(self) -> None:
        self.server: subprocess.Popen[str] | None = None

    def __call__(
        self, script: str, *arguments: str, stdin: str = "", trap: Sequence[str] = (), **environment: str
    ) -> Done:
        command = [sys.executable, str(REPO / "src" / script), *arguments]
        if environment:
            own = {"input": stdin, "env": os.environ | environment, "cwd": REPO, "timeout": SECONDS}
            return subprocess.run(command, capture_output=True, text=True, **own)
        with tempfile.TemporaryDirectory() as folder:
            started = self.start(script, *arguments, stdin=stdin, folder=folder, trap=trap)
            code = started.wait()
            return Done(command, code, *(Path(folder, name).read_text() for name in ("stdout", "stderr")))

    def start(
        self, script: str, *arguments: str, stdin: str = "", folder: str | Path, trap: Sequence[str] = ()
    ) -> "Started":
        """A door that goes on while the test does; `folder` gets what it prints, `trap` calls a function of faults/traps.py in it."""
        Path(folder, "stdin").write_text(stdin)
        return Started(self, self.ask([str(REPO / "src" / script), *arguments], str(folder), list(trap)))

    def ask(self, *request: object) -> int:
        """The server's answer: a process id to a command, its folder and its trap, an exit code or GOES_ON to a process id and options of waitpid."""
        if self.server is None:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self.server = subprocess.Popen([sys.executable, __file__], text=True, cwd=REPO, **pipes)
        print(json.dumps(request), file=self.server.stdin, flush=True)
        return int(self.server.stdout.readline())

    def close(self) -> None:
        if self.server is not None:
            self.server.communicate()


class Started:
    """A door that runs, with what a test needs of subprocess.Popen."""

    def __init__(self, doors: Doors, pid: int) -> None:
        self.doors, self.pid = doors, pid
        self.code: int | None = None

    def poll(self) -> int | None:
        if self.code is None and (code := self.doors.ask(self.pid, os.WNOHANG)) != GOES_ON:
            self.code = code
        return self.code

    def wait(self) -> int:
        self.code = self.doors.ask(self.pid, 0) if self.code is None else self.code
        return self.code

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


class Forked(subprocess.Popen[str]):
    """The stage that a pipeline starts, the trial of a comparison, a rank, or a measurement of the benchmark, forked from its door as
    it stands; any other command as ever."""

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, *rest: Any) -> None:
        environment, out, error = rest[3], rest[10], rest[12]
        measures = args[1:3] == ["-m", "rlhf.benchmark"]
        command = [str(SRC / "rlhf/benchmark/__main__.py"), *args[3:]] if measures else args[1:]
        if args[0] != sys.executable or not measures and Path(args[1]).parent != SRC:
            return super()._execute_child(args, executable, preexec_fn, *rest)
        self.pid = os.fork()
        self._child_created = True
        if self.pid:
            return self._close_pipe_fds(*rest[7:13])
        try:
            if preexec_fn:
                preexec_fn()
            os.environ |= environment or {}
            for place, number in ((out, 1), (error, 2)):
                if place != -1:
                    os.dup2(place, number)
            os._exit(_door(command))
        finally:
            os._exit(GOES_ON % 256)


def _door(command: list[str]) -> int:
    """The exit code of a door that knows nothing of the one that it was forked from."""
    os.closerange(3, 256)
    atexit._clear()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _forget()
    sys.modules["hydra"].core.global_hydra.GlobalHydra.instance().clear()  # of the stage whose rank this is
    sys.argv, sys.path[0] = command, str(SRC)
    code = 0
    try:
        runpy.run_path(command[0], run_name="__main__")
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _forget() -> None:
    """What is imported next is of this process's own checkout."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "rlhf"]:
        del sys.modules[name]


def imported(done: Done) -> set[str]:
    """The packages that a door imported which was called with PYTHONPROFILEIMPORTTIME=1."""
    names = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {name.partition(".")[0] for name in names}


def make_rows() -> None:
    """The rows of `support`, which every stage would make again, all of them for the few that it reads."""
    sys.path.insert(0, str(REPO / "src"))
    from rlhf.config import compose_config, to_stage
    from rlhf.data import sources

    for stage in ("base", "sft", "reward", "ppo"):
        dataset = to_stage(compose_config([f"recipes=support/{stage}"])).dataset
        for split in (dataset.splits.train, dataset.splits.eval, dataset.splits.test):
            if split is not None:
                len(sources.open(dataset, split))
    sys.path.pop(0)


def compose_once() -> None:
    """Hydra composes a first time to find a `hydra.mode` among the settings, which nobody sets."""
    hydra = importlib.import_module("hydra._internal.hydra").Hydra
    hydra.get_mode = lambda *_, **__: None


def serve() -> list[str]:
    """Answers each door asked for with its exit code; returns, in the process forked for it, the door's command."""
    for library in LIBRARIES:
        importlib.import_module(library)
    compose_once()
    make_rows()
    gc.freeze()  # a collection, which trainers ask for, would go through a million objects of these libraries each time
    gc.set_threshold(*COLLECT)
    for request in iter(sys.stdin.readline, ""):
        asked, more, *trap = json.loads(request)
        if isinstance(asked, int):
            ended, status = os.waitpid(asked, more)
            print(os.waitstatus_to_exitcode(status) if ended else GOES_ON, flush=True)
            continue
        child = os.fork()
        if not child:
            signal.alarm(SECONDS)
            for place, name in enumerate(("stdin", "stdout", "stderr")):
                os.dup2(os.open(Path(more, name), os.O_RDONLY if place == 0 else os.O_WRONLY | os.O_CREAT), place)
            sys.stdin = os.fdopen(0)
            signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
            if trap[0]:
                sys.path[:0] = [str(REPO), str(REPO / "src")]
                getattr(importlib.import_module("tests.faults.traps"), trap[0][0])(*trap[0][1:])
                del sys.path[:2]
            else:
                subprocess.Popen = Forked
            return asked
        print(child, flush=True)
    return []


if __name__ == "__main__":
    sys.argv = serve() or sys.exit()
    SRC = Path(sys.argv[0]).parent
    if SRC != REPO / "src":
        _forget()
    sys.path[0] = str(SRC)
    runpy.run_path(sys.argv[0], run_name="__main__")
