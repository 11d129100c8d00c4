"""Tasks under each launcher: what ends how, what is tried again, what is refused. Slurm is a handful of scripts here."""

import json
import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from rlhf.compare.trials import Comparison
from rlhf.config import REPO
from rlhf.errors import ConfigError, Refusal
from rlhf.rounds.plan import Rounds
from rlhf.rounds.run import run as rounds
from rlhf.runs import cluster, jobs
from rlhf.runs.cluster import launcher
from rlhf.runs.launcher import Task, last_error
from rlhf.runs.pipeline import Pipeline
from rlhf.runs.pipeline import run as pipeline

LAUNCHERS = ("basic", "joblib", "local", "slurm")

TASK = """
import os, pathlib, signal, sys, time
what, folder = sys.argv[1], pathlib.Path(sys.argv[2])
begun = folder / f"{what}.begun"
first = not begun.exists()
begun.write_text(str(os.getpid()))
print(what, os.environ["OMP_NUM_THREADS"], sorted(key for key in os.environ if key in STEP), flush=True)
if what == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if what == "misconfigured":
    print("error: seed=x: is not a whole number", file=sys.stderr)
    sys.exit(2)
if what == "worker" and first:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)
if what in ("preempted", "waits") and first:
    def save(*_):
        (folder / f"{what}.saved").touch()
        sys.exit(75)
    signal.signal(signal.SIGTERM, save)
    if what == "preempted":  # as its scheduler does: to the worker, or to what stands between
        os.kill(int(os.environ.get("SUBMITIT_LOCAL_JOB_ID") or os.getppid()), signal.SIGTERM)
    time.sleep(60)
""".replace("STEP", str(jobs.STEP))

# sbatch starts the script at once; sacct says of a job what is in a file, if it is; srun gives a job as many lives as it has nodes
SLURM = {
    "sbatch": """
        [ -e $here/refuse ] && { echo "sbatch: error: invalid partition specified: gpu" >&2; exit 1; }
        id=$$
        cp $1 $here/$id.sh
        (export SLURM_JOB_ID=$id SLURM_PROCID=0 SLURM_NTASKS=1 SLURM_LOCALID=0
         bash $here/$id.sh >/dev/null 2>&1 || { [ -e $here/$id.state ] || echo FAILED > $here/$id.state; }) </dev/null >/dev/null 2>&1 &
        echo "Submitted batch job $id" """,
    "srun": """
        if [ -e $here/nodes ]; then
          node=$(head -1 $here/nodes); sed -i 1d $here/nodes
          [ "$node" = dies ] && { echo NODE_FAIL > $here/$SLURM_JOB_ID.state; exit 1; }
          [ "$node" = elsewhere ] && exit 1
        fi
        echo $$ > $here/$SLURM_JOB_ID.pid
        while [ "$1" != env ]; do
          case "$1" in --output) out=$2; shift;; --error) err=$2; shift;; esac; shift
        done
        out=${out/\\%j/$SLURM_JOB_ID}; err=${err/\\%j/$SLURM_JOB_ID}
        exec "$@" >> ${out/\\%t/0} 2>> ${err/\\%t/0}""",
    "sacct": """
        echo "JobID|State|NodeList"
        for file in $here/*.state; do [ -e $file ] && echo "$(basename $file .state)|$(cat $file)|n1"; done; true""",
    "scancel": "kill -TERM $(cat $here/$1.pid)",
}


@pytest.fixture
def nodes(tmp_path, monkeypatch) -> Path:
    """A folder of commands that pass for Slurm's."""
    here = tmp_path / "slurm"
    here.mkdir()
    for name, text in SLURM.items():
        (here / name).write_text(f"#!/bin/bash\nhere={here}\n{text}\n")
        (here / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{here}:{os.environ['PATH']}")
    monkeypatch.setattr(cluster, "LOOK", 0.2)
    return here


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    (tmp_path / "task.py").write_text(TASK)
    monkeypatch.setattr(jobs, "POLL", 0.05)
    monkeypatch.setattr(jobs.Jobs, "late", 0.2)
    monkeypatch.setattr(cluster.Slurm, "late", 0.2)
    return lambda *names: [
        Task(name, str(tmp_path / "task.py"), [name, str(tmp_path)], log=tmp_path / f"logs/{name}.log")
        for name in names
    ]


@pytest.fixture
def make(tmp_path, compose_stage):
    """`make("slurm", key=value)`: a launcher with its logs in a temporary folder."""

    def made(name: str, *overrides: str):
        stage = compose_stage(f"launcher={name}", "launcher.jobs=4", *overrides)
        return launcher(stage.launcher, stage, tmp_path / "logs")

    return made


@pytest.mark.parametrize("name", LAUNCHERS)
def test_each_task_ends_by_itself_and_who_was_preempted_goes_on(name, nodes, tasks, make, tmp_path):
    given = tasks("fine", "killed", "misconfigured", *(["preempted"] if name != "basic" else []))
    with make(name) as own, own.pool() as pool:
        codes = dict(zip([task.name for task in given], pool.map(own.start, given), strict=True))
    assert codes == {"fine": 0, "killed": -9, "misconfigured": 2} | ({"preempted": 0} if name != "basic" else {})
    cores = "4" if name == "slurm" else str(max(1, (os.cpu_count() or 1) // 4))
    log = given[0].log.read_text().splitlines()
    assert log == [f"$ {given[0].shown()}", f"fine {cores} []"]
    assert last_error(given[2].log) == "seed=x: is not a whole number"
    if name != "basic":
        assert (tmp_path / "preempted.saved").exists() and given[3].log.read_text().count("$ python") == 2
        assert not list(tmp_path.glob("logs/jobs/*.json"))


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_sigterm_reaches_each_task_and_ends_them_all(name, nodes, tasks, make, tmp_path):
    """As of a comparison that is preempted itself: those that run save, those that wait are not begun."""
    given = tasks("waits", "fine")

    def strike():
        while not (tmp_path / "waits.begun").exists() or not (tmp_path / "waits.begun").read_text():
            time.sleep(0.05)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=strike).start()
    with make(name, "launcher.jobs=1") as own, own.pool() as pool:
        codes = list(pool.map(own.start, given))
    assert codes == [75, 75] and (tmp_path / "waits.saved").exists() and not (tmp_path / "fine.begun").exists()


def test_a_killed_worker_of_a_pool_takes_no_task_with_it(tasks, make, tmp_path):
    with make("joblib") as own, own.pool() as pool:
        assert list(pool.map(own.start, tasks("worker", "fine"))) == [0, 0]
    assert (tmp_path / "logs/worker.log").read_text().count("$ python") == 2


def test_a_node_that_dies_costs_at_most_its_trial(nodes, tasks, make, tmp_path):
    (nodes / "nodes").write_text("dies\n")
    with make("slurm") as own:
        assert [own.start(task) for task in tasks("fine", "misconfigured")] == [0, 2]
    (nodes / "nodes").write_text("dies\n" * 9)
    lost, fine = tasks("waits", "fine")
    with make("slurm", "launcher.attempts=2") as own:
        assert own.start(lost) == 1
        (nodes / "nodes").unlink()
        assert own.start(fine) == 0
    assert last_error(lost.log) == "its job was NODE_FAIL after 2 of 2 attempts"


def test_a_folder_that_nodes_do_not_share_is_said_once_and_nothing_runs(nodes, tasks, make, tmp_path):
    (nodes / "nodes").write_text("elsewhere\n")
    with (
        make("slurm", "launcher.jobs=1") as own,
        pytest.raises(Refusal, match="run.root=(.|\n)*did not share(.|\n)*fix: run.root"),
    ):
        own.start(tasks("fine")[0])
    assert own.asked and not (tmp_path / "fine.begun").exists()


def test_what_sbatch_refuses_is_told(nodes, tasks, make):
    (nodes / "refuse").touch()
    with (
        make("slurm", "launcher.args.partition=gpu") as own,
        pytest.raises(Refusal, match="launcher.args=.*invalid partition specified: gpu"),
    ):
        own.start(tasks("fine")[0])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["launcher=slurm"], "this machine has no sbatch and srun\n  fix: .*launcher.dry_run=true"),
        (
            ["launcher=slurm", "launcher.args.partitoin=gpu"],
            "launcher.args.partitoin is not a field .* did you mean partition",
        ),
        (["launcher=slurm", "launcher.args.timeout_min=day"], "launcher.args.timeout_min='day' is not a whole number"),
        (["launcher=slurm", "launcher.args.nodes=2"], "launcher.args.nodes=2: it follows from hardware.devices"),
        (["launcher=joblib", "launcher.args.n_jobs=2"], "launcher.args=.*fix: launcher.jobs=2"),
        (["launcher=joblib", "launcher.jobs=-1"], "launcher.jobs=-1: must be at least 1"),
        (["launcher=local", "launcher.attempts=0"], "launcher.attempts=0: must be at least 1"),
        (["launcher.name=ray"], "launcher=ray: is not a launcher\n  allowed: basic, joblib, local, slurm"),
    ],
)
def test_what_cannot_be_launched_is_refused(compose_stage, tmp_path, given, said):
    stage = compose_stage(*given)
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        launcher(stage.launcher, stage, tmp_path)


@pytest.mark.parametrize(
    ("name", "package"),
    [("joblib", "joblib"), ("local", "submitit"), ("slurm", "hydra_plugins.hydra_submitit_launcher")],
)
def test_a_package_that_is_missing_is_named_before_anything_starts(tmp_path, monkeypatch, name, package):
    monkeypatch.setattr(jobs, "find_spec", lambda module: None if module == package else True)
    comparison = Comparison("support", [f"run.root={tmp_path}", f"launcher={name}"], [1, 2])
    with pytest.raises(
        Refusal, match=f"launcher={name}: {package} is not installed\n  fix: pip install -r requirements-cluster.txt"
    ):
        comparison.run(2)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(jobs, "find_spec", lambda module: exec(f"raise ModuleNotFoundError({module!r})"))
    with pytest.raises(Refusal, match="pip install"):
        comparison.run(2)


def test_a_dry_run_shows_the_script_without_slurm_and_starts_nothing(tmp_path, monkeypatch, capsys):
    asks = ["launcher=slurm", "launcher.dry_run=true", "launcher.args.partition=gpu", "launcher.args.mem_gb=32"]
    sweep = ["recipe=support/dpo", "batch_size=128", "hardware=gpu_8x80gb", f"run.root={tmp_path}", "-m", "seed=1,2"]
    monkeypatch.setattr(sys, "argv", [str(REPO / "src/train.py"), *sweep, *asks])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(sys.argv[0], run_name="__main__")
    assert left.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    wanted = [
        "partition=gpu",
        "mem=32GB",
        "time=1440",
        "signal=TERM@120",
        "no-requeue",
        "gpus-per-node=8",
        "ntasks-per-node=1",
    ]
    assert [option for option in wanted if f"#SBATCH --{option}" not in lines] == []
    commands = [line for line in lines if line.startswith("python src/train.py")]
    assert len(commands) == 2 and "launcher" not in "".join(commands) and commands[1].count("seed=2") == 1
    assert "run.stage=dpo-sweep/" in commands[0] and any(line.startswith("srun ") for line in lines)

    monkeypatch.setattr(Pipeline, "check_arguments", lambda plan, names: None)  # imports TRL
    overrides = [f"run.root={tmp_path}/c", *asks]
    ways = {
        8: Comparison("support", overrides, [1, 2], {"dpo": [0.3], "ppo": [0.1]}).run,
        7: lambda: rounds(Rounds("support", overrides, 2, seeds=[1]), None, "simulated"),
        5: lambda: sys.exit(pipeline(Pipeline("support", overrides))),
    }
    for tasks, way in ways.items():
        with pytest.raises(SystemExit) as left:
            way()
        told = capsys.readouterr().out.splitlines()
        assert left.value.code == 0 and told[0] == f"launcher=slurm: {tasks} tasks would be started, 256 at a time"
        assert sum(line.startswith("python src/") for line in told) == tasks and "#SBATCH --partition=gpu" in told
    assert not (tmp_path / "c").exists() and not list(tmp_path.rglob("jobs"))


def test_one_stage_and_hydras_own_launchers_are_refused(door, tmp_path):
    alone = door("train.py", "recipe=support/base", "launcher=local", f"run.root={tmp_path}/a")
    assert alone.returncode == 2 and "launcher=local: is about the trials of a sweep" in alone.stderr, alone.stderr
    theirs = door("train.py", "recipe=support/base", "-m", "hydra/launcher=submitit_local", f"run.root={tmp_path}/a")
    assert theirs.returncode == 2 and "fix: launcher=slurm" in theirs.stderr, theirs.stderr
    with pytest.raises(Refusal, match="dpo.launcher=local: is one for all stages"):
        Comparison("support", [f"run.root={tmp_path}/a", "dpo.launcher=local"], [1, 2])
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_a_sweep_by_submitit_leaves_what_the_loop_leaves(door, tmp_path):
    """The same folders, table and exit code: of the first trial that failed; who is finished is not run again."""
    sweep = ["recipe=support/base", "debug=smoke", "debug.rows=16", "evaluation.prompts=0", "debug.max_steps=1"]
    sweep += [f"run.root={tmp_path}", "-m", "batch_size=8,0"]
    done = door("train.py", *sweep, "launcher=local", "launcher.jobs=2")
    table = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in done.stdout.splitlines()
        if line[:3] in ("| 0", "| 1")
    ]
    assert done.returncode == 2 and [row[3] for row in table] == ["0", "2"], done.stdout + done.stderr
    assert table[0][4].startswith("held_out_loss") and table[1][4].startswith("batch_size"), table
    run = json.loads(next(tmp_path.glob("support/base-sweep/*/run.json")).read_text())
    assert run["status"] == "finished" and not any(word.startswith("launcher") for word in run["command"])
    again = door("train.py", *sweep)
    assert again.returncode == 2 and again.stdout.count("is finished and unchanged") == 1, again.stdout + again.stderr
