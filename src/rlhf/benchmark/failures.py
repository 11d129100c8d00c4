"""What strikes one rank of two, method by method: how soon all are gone, and what the same command makes of what they leave. And the same
run under other launchers."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf import files
from rlhf.benchmark.processes import SMOKE, distance, train
from rlhf.config import REPO
from rlhf.output.tables import grid
from rlhf.parallel import ranks

EVENTS = {"SIGTERM": 75, "SIGKILL": 5, "exception": 1, "guard": 4}  # with the exit code of each
METHODS = ("sft", "reward", "dpo", "ppo")
SETTINGS = (*SMOKE, "batch_size=8", "hardware.micro_batch_size=2", "method.args.save_steps=1")
LIMIT = 30  # seconds in which all have to be gone
LAUNCHERS = {
    "torchrun --nproc-per-node 2": ("torch.distributed.run", "--nproc-per-node", "2"),
    "accelerate launch --multi_gpu --num_processes 2": ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
    "srun, by its variables": (),
}  # fmt: skip
# what Python looks for as it starts: so the command is that of a user, and the package has no place where it fails on purpose
STRIKES = "import os\nif os.environ.get('RANK') == '1':\n    from rlhf.benchmark import failures\n    failures.arm({event!r}, {run!r})\n"


def arm(event: str, run: str | Path) -> None:
    """Once the folder `run` has a complete checkpoint, this process is struck as it hands over its share of a step's gradients: by a
    signal, an exception, or gradients that are no numbers, at which a guard stops. The time is that of the file `<run>.struck`."""
    add = ranks.add_gradients

    def struck(parameters: Sequence[Any]) -> None:
        if files.checkpoints(Path(run)):
            ranks.add_gradients = add
            Path(f"{run}.struck").touch()
            if event == "exception":
                raise RuntimeError("a rank was struck")
            for parameter in parameters if event == "guard" else ():
                if parameter.grad is not None:
                    parameter.grad.fill_(float("nan"))
            if event.startswith("SIG"):
                os.kill(os.getpid(), signal.Signals[event])
        add(parameters)

    ranks.add_gradients = struck


def seconds_until_gone(group: int, run: str | Path) -> float:
    """From the strike until no process of a group is left; of one that stays, as long as it was waited for."""
    struck = Path(f"{run}.struck").stat().st_mtime
    while time.time() - struck < 10 * LIMIT:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    return time.time() - struck


def messages(error: str) -> int:
    """How often a run has said why it ended."""
    return len(re.findall(r"^(?:error: |this is a bug)", error, re.M))


def measure_failures() -> dict[str, Any]:
    """`events`, a row a method and event: exit `code`, `seconds` until all were gone, `messages`, the `checkpoint` that is left, and the
    largest difference of `loss` (all that is logged) and `weights` between the run that the same command ends and an unbroken one.
    `launchers`, a row each: exit `code` and difference of `weights` from our own start; exit code and messages where `devices` are 4."""
    found: dict[str, Any] = {"events": [], "launchers": []}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("base", "sft", "reward"):
            train(root, name, f"recipe=support/{name}", *SMOKE)
        for method in METHODS:
            words = (f"recipe=support/{method}", *SETTINGS)
            unbroken = train(root, f"{method}-unbroken", *words, devices=2)
            for event in EVENTS:
                row = _strike(root, method, event, words, unbroken)
                found["events"].append({"method": method, "event": event} | row)
                print(found["events"][-1], flush=True)
        for name in LAUNCHERS:
            found["launchers"].append({"launcher": name} | _launch(root, name))
            print(found["launchers"][-1], flush=True)
    return found


def _strike(root: Path, method: str, event: str, words: Sequence[str], unbroken: Path) -> dict[str, Any]:
    run = root / "support" / f"{method}-{event}"
    (root / "armed").mkdir(exist_ok=True)
    (root / "armed/sitecustomize.py").write_text(STRIKES.format(event=event, run=str(run)))
    places = os.pathsep.join([str(root / "armed"), str(REPO / "src")])
    own = (f"run.root={root}", f"run.stage={run.name}", "hardware.devices=2")
    command = [sys.executable, str(REPO / "src/train.py"), *words, *own]
    options: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": places}, start_new_session=True, **options)
    error = process.communicate()[1]
    seconds = seconds_until_gone(process.pid, run)
    last, left_out = files.newest(run)
    row = {"code": process.returncode, "seconds": seconds, "messages": messages(error)}
    row |= {"checkpoint": last and last.name, "incomplete": [path.name for path in left_out]}
    told, weights = distance(unbroken, train(root, run.name, *words, devices=2))
    return row | {"loss": told, "weights": weights}


def launched(name: str, words: Sequence[str]) -> tuple[list[int], str]:
    """A stage by a launcher of LAUNCHERS, of two processes: the exit codes, the launcher's alone where it is a program; and stderr."""
    started = [f"-m {' '.join(LAUNCHERS[name])}".split()] if LAUNCHERS[name] else [[], []]
    running = []
    for number, before in enumerate(started):
        told = _srun(number) if not before else {}
        command = [sys.executable, *before, str(REPO / "src/train.py"), *words]
        options: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        running.append(subprocess.Popen(command, env=os.environ | told, **options))
    errors = [process.communicate()[1] for process in running]
    return [process.returncode for process in running], "".join(errors)


def _srun(number: int) -> Mapping[str, str]:
    """What srun tells a task of two; the first machine of the step and the job's number say where they meet."""
    told = {
        "PROCID": number,
        "LOCALID": number,
        "STEP_NUM_TASKS": 2,
        "STEP_NODELIST": "localhost",
        "JOB_ID": os.getpid(),
    }
    return {f"SLURM_{name}": str(value) for name, value in told.items()}


def _launch(root: Path, name: str) -> dict[str, Any]:
    words = ["recipe=support/sft", *SETTINGS, f"run.root={root}", "run.stage=launched", "run.overwrite=true"]
    codes, error = launched(name, [*words, "hardware.devices=2"])
    weights = distance(root / "support/sft-unbroken", root / "support/launched")[1] if not any(codes) else None
    refused, said = launched(name, [*words, "hardware.devices=4"])
    return {"codes": codes, "weights": weights, "said": error[-2000:], "refused": refused, "messages": messages(said)}


def failures_table(report: Mapping[str, Any]) -> str:
    """A row a method and event, then a row a launcher."""
    rows = [("at one rank of two", "exit code", "messages", "s until all are gone", "last checkpoint", "then largest difference logged", "of weights")]  # fmt: skip
    for row in report["events"]:
        left = (
            f"{row['checkpoint']}, complete"
            if not row["incomplete"]
            else f"{', '.join(row['incomplete'])} not complete"
        )
        first = (
            f"{row['method']}, {row['event']}",
            str(row["code"]),
            str(row["messages"]),
            f"{row['seconds']:.1f}",
            left,
        )
        rows.append((*first, f"{row['loss']:.1e}", f"{row['weights']:.1e}"))
    other = [
        (
            "two processes of sft by",
            "exit code",
            "weights from our own start",
            "hardware.devices=4: exit code",
            "messages",
        )
    ]
    for row in report["launchers"]:
        codes, refused = (", ".join(map(str, row[key])) for key in ("codes", "refused"))
        weights = "-" if row["weights"] is None else f"{row['weights']:.1e}"
        other.append((row["launcher"], codes, weights, refused, str(row["messages"])))
    return f"{grid(rows)}\n\n{grid(other)}"
