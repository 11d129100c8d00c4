"""Doors run as a user runs them, each in a process of its own: forked from one that has the libraries and rows, which saves seconds a call."""

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
LIBRARIES = ("hydra", "matplotlib.pyplot", "torch", "datasets", "peft", "bitsandbytes", "safetensors.torch", "trl")
LIBRARIES += ("transformers.models.llama.modeling_llama", "transformers.integrations.bitsandbytes")
LIBRARIES += tuple(f"trl.trainer.{method}_trainer" for method in ("sft", "reward", "dpo"))
HEAVY = {"torch", "trl", "transformers", "datasets", "peft", "bitsandbytes"}  # a second or more each
SECONDS = 600  # the longest a door may take
Done = subprocess.CompletedProcess[str]


class Doors:
    """`doors("train.py", "recipes=support/sft", ...)`; with an `environment`, which libraries read as they load, nothing is forked."""

    def __init__(self) -> None:
        self.server: subprocess.Popen[str] | None = None

    def __call__(self, script: str, *arguments: str, stdin: str = "", **environment: str) -> Done:
        command = [sys.executable, str(REPO / "src" / script), *arguments]
        if environment:
            own = {"input": stdin, "env": os.environ | environment, "cwd": REPO, "timeout": SECONDS}
            return subprocess.run(command, capture_output=True, text=True, **own)
        if self.server is None:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self.server = subprocess.Popen([sys.executable, __file__], text=True, cwd=REPO, **pipes)
        with tempfile.TemporaryDirectory() as folder:
            streams = [Path(folder, name) for name in ("stdin", "stdout", "stderr")]
            streams[0].write_text(stdin)
            print(json.dumps([command[1:], folder]), file=self.server.stdin, flush=True)
            code = int(self.server.stdout.readline())
            return subprocess.CompletedProcess(command, code, *(stream.read_text() for stream in streams[1:]))

    def close(self) -> None:
        if self.server is not None:
            self.server.communicate()


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


def serve() -> list[str]:
    """Answers each door asked for with its exit code; returns, in the process forked for it, the door's command."""
    for library in LIBRARIES:
        importlib.import_module(library)
    make_rows()
    for request in iter(sys.stdin.readline, ""):
        command, folder = json.loads(request)
        child = os.fork()
        if not child:
            signal.alarm(SECONDS)
            for place, name in enumerate(("stdin", "stdout", "stderr")):
                os.dup2(os.open(Path(folder, name), os.O_RDONLY if place == 0 else os.O_WRONLY | os.O_CREAT), place)
            sys.stdin = os.fdopen(0)
            return command
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    return []


if __name__ == "__main__":
    sys.argv = serve() or sys.exit()
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
