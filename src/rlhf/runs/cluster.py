"""Tasks as jobs of submitit, on this machine and on a Slurm cluster; and which launcher a configuration means.

`launcher.args` are the fields of hydra-submitit-launcher's dataclasses. Its launcher itself does not run here: it ends a sweep with the
first job that is lost (findings/hydra-submitit-lost-job.sh). submitit 1.5.4 hands a job over as a pickle in `<logs>/jobs`, which its own
worker loads; what came of it is read from the job's note.
"""

import os
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf import config
from rlhf.config import REPO, Stage, checked
from rlhf.errors import Refusal
from rlhf.runs.jobs import Jobs, Pool, work
from rlhf.runs.launcher import Launcher, Task
from rlhf.shell import element

LOOK = 30.0  # seconds between two questions to Slurm
LASTING = ("PENDING", "RUNNING", "UNKNOWN", "READY", "REQUEUED", "COMPLETING", "CONFIGURING", "RESIZING", "SUSPENDED")
# fields of the plugin's dataclasses that follow from something else
COMPUTED = {"submitit_folder": "run.root", "name": "the trial", "max_num_timeout": "launcher.attempts"}
COMPUTED |= {"array_parallelism": "launcher.jobs", "nodes": "hardware.devices", "tasks_per_node": "hardware.devices"}
GPUS = ("gpus_per_node", "gpus_per_task", "gres")


class Local(Jobs):
    """launcher=local: submitit's jobs on this machine. They outlive this process if it is killed."""

    needs = ("submitit", "hydra_plugins.hydra_submitit_launcher")
    schema, name = "LocalQueueConf", "local"

    def checked(self, args: dict[str, Any], stage: Stage) -> dict[str, Any]:
        import hydra_plugins.hydra_submitit_launcher.config as plugin

        for key in COMPUTED.keys() & args.keys():
            raise Refusal(f"launcher.args.{key}", args[key], f"it follows from {COMPUTED[key]}", fix="leave it out")
        given = {key: value for key, value in args.items() if value is not None}
        found = checked(getattr(plugin, self.schema), given, "launcher.args")
        if stage.hardware.device != "cpu" and not set(GPUS) & found.keys():
            found["gpus_per_node"] = stage.hardware.devices
        return {"nodes": 1, "tasks_per_node": 1, **found}

    def _executor(self, name: str) -> Any:
        os.environ["SUBMITIT_PREEMPT_SIGNAL"] = (
            "TERM"  # read as it is imported; its own USR2 would end a training unsaved
        )
        from submitit import LocalExecutor, SlurmExecutor

        class Slurm(SlurmExecutor):
            """May be made where there is no Slurm, to show its script."""

            @classmethod
            def affinity(cls) -> int:
                return 2

        path = os.pathsep.join(filter(None, (str(REPO / "src"), os.environ.get("PYTHONPATH"))))
        python = shlex.join(["env", f"PYTHONPATH={path}", "SUBMITIT_PREEMPT_SIGNAL=TERM", sys.executable])
        kind = {"local": LocalExecutor, "slurm": Slurm}[self.name]
        executor = kind((self.folder / "jobs").absolute(), python=python)
        wanted = {"name": f"{self.stage.run.recipe}-{name}", **self.parameters}
        executor.update_parameters(**executor._convert_parameters(wanted))  # in sbatch's words
        return executor

    def submit(self, name: str, job: tuple[Any, ...]) -> Any:
        return self._executor(name).submit(work, *job)

    def ended(self, job: Any) -> str:
        return "FINISHED without a result" if job.done() else ""

    def lost(self, job: Any, ended: str, begun: bool) -> str:
        log = job.paths.stderr
        lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        return f"{ended}: {lines[-1]} ({log})" if lines else ended


class Slurm(Local):
    """launcher=slurm: a job a task, which asks for what `launcher.args` says."""

    schema, name = "SlurmQueueConf", "slurm"
    late = 60.0  # as long as NFS may remember how a folder was

    def __init__(self, own: config.Launcher, stage: Stage, folder: Path, most: int | None = None) -> None:
        super().__init__(own, stage, folder, most)
        self.asking, self.looked = threading.Lock(), 0.0
        if not own.dry_run and not (shutil.which("sbatch") and shutil.which("srun")):
            fix = "the same command on a login node of the cluster; here launcher=joblib, or launcher.dry_run=true"
            raise Refusal("launcher", own.name, "this machine has no sbatch and srun", fix=fix)

    def fitting(self) -> int:
        return 256  # the cluster's queue holds back what does not fit

    def checked(self, args: dict[str, Any], stage: Stage) -> dict[str, Any]:
        found = super().checked(args, stage)
        # who is preempted is submitted again here, and not by Slurm a second time
        return found | {"additional_parameters": {"no-requeue": True} | found.get("additional_parameters", {})}

    @property
    def environment(self) -> dict[str, str]:
        return {"OMP_NUM_THREADS": str(self.parameters.get("cpus_per_task", 1))}

    def show(self, tasks: Sequence[Task]) -> None:
        super().show(tasks)
        for task in tasks[:1]:
            executor = self._executor(task.name)
            print(f"# the batch script of {task.name}; others differ in their name\n")
            print(executor._make_submission_file_text(executor._submitit_command_str, ""))

    def submit(self, name: str, job: tuple[Any, ...]) -> Any:
        try:
            return super().submit(name, job)
        except RuntimeError as error:  # of sbatch
            self.asked = True
            lines = [line for line in str(error).splitlines() if "error" in line.lower()] or [str(error)]
            why = lines[0].partition("error:")[2].strip() or lines[0]
            raise Refusal("launcher.args", element(self.own.args), f"sbatch says: {why}") from error

    def ended(self, job: Any) -> str:
        with self.asking:
            if due := time.monotonic() - self.looked > LOOK:
                self.looked = time.monotonic()
            state = str(job.watcher.get_state(job.job_id, mode="force" if due else "cache")).upper()
        return "" if state.startswith(LASTING) else state

    def lost(self, job: Any, ended: str, begun: bool) -> str:
        if not begun and not self.asked and not job.paths.stdout.exists() and ended.startswith(("FAILED", "COMPLETED")):
            self.asked = True
            why = f"job {job.job_id} left nothing in {job.paths.folder}, as if the nodes of the cluster did not share that folder"
            raise Refusal(
                "run.root", self.stage.run.root, why, fix="run.root=/shared/runs, or another folder that all nodes see"
            )
        return super().lost(job, ended, begun)

    def cancel(self, job: Any, process: int | None) -> bool:
        job.cancel(check=False)
        return True


KINDS = {"basic": Launcher, "joblib": Pool, "local": Local, "slurm": Slurm}


def launcher(own: config.Launcher, stage: Stage, folder: Path, most: int | None = None) -> Launcher:
    """What `launcher=` names, checked before anything is started; `folder` gets its logs, `stage` says what a task needs.

    Raises a Refusal for a package or a cluster that is not here, and for settings that the launcher does not know.
    """
    kind = KINDS.get(own.name)
    if kind is None:
        raise Refusal("launcher", own.name, "is not a launcher", allowed=KINDS)
    return kind(own, stage, folder, most)
