"""The trials of a sweep: a short folder for each, and in the end a table of what came of them."""

import hashlib
import json
import re
import sys
from collections.abc import Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from rlhf.config import Launcher, Stage
from rlhf.errors import Preempted, Refusal
from rlhf.files import RESULTS_FILE
from rlhf.runs.cluster import launcher
from rlhf.runs.launcher import Task, last_error
from rlhf.shell import element

LONGEST = 60  # bytes of a trial's folder name
ELSEWHERE = (
    "recipes",
    "run.recipe",
    "run.root",
    "run.overwrite",
)  # say where a trial lies, not what it is, as `launcher` does
MAIN = ("gold_score", "accuracy", "held_out_loss", "eval_loss", "train_loss")  # the first of these is the result


@dataclass(eq=False)
class Trial:
    """One run of a sweep; `code` is its exit code, `error` the first line of what ended it."""

    overrides: list[str]
    folder: Path
    code: int = 0
    error: str = ""
    stage: Stage | None = None  # of one that is still to be run


trials: list[Trial] = []  # of this process


def name(overrides: Sequence[str], swept: Sequence[str] = ()) -> str:
    """A trial's folder, `method.args.beta-0.1+seed-2`: the same overrides in any order give the same name, others another.

    Names need no quotes in bash or Hydra. Where characters are left out or the name would be long, it shows what is `swept`
    over (all, if nobody knows) and ends in a hash of all overrides.
    """
    keys = [override.partition("=")[0].lstrip("+~") for override in overrides]
    own = sorted(
        o
        for o, key in zip(overrides, keys, strict=True)
        if key not in ELSEWHERE and key.partition(".")[0] != "launcher"
    )
    pairs = [override.partition("=")[::2] for override in own]
    whole = "+".join(f"{key}-{value}" for key, value in pairs) or "trial"
    if len(whole) <= LONGEST and all(re.fullmatch(r"[A-Za-z_][\w.]*=[\w.-]+", override, re.A) for override in own):
        return whole
    digest = hashlib.sha256("\n".join(own).encode()).hexdigest()[:8]
    shown = [pair for pair in pairs if pair[0].lstrip("+") in swept] or pairs
    short = "+".join(f"{key.rpartition('.')[2].strip('+~')}-{_slug(value)}" for key, value in shown)
    return f"{short.encode()[: LONGEST - 9].decode(errors='ignore')}-{digest}"


def _slug(value: str) -> str:
    """The end of a path with its folder, or a value, in letters, digits, dots and dashes."""
    return re.sub(r"[^\w.]+", "-", "-".join(value.strip("\"'").rstrip("/").split("/")[-2:])).strip("-")


def _folder(*swept: str, _root_: DictConfig) -> str:
    return name(list(_root_.hydra.overrides.task), swept)


OmegaConf.register_new_resolver("trial", _folder, replace=True)  # of hydra.sweep.subdir in conf/train.yaml


def refuse_alone(stage: Stage) -> None:
    """One stage runs where it is started."""
    if stage.launcher != Launcher():
        what = "is about the trials of a sweep; one stage runs where it is started"
        raise Refusal("launcher", stage.launcher.name, what, fix="the same command with -m, a sweep of one trial")


def launch() -> None:
    """Run the trials that no job of Hydra's has run, by what `launcher=` says. A signal ends them all (exit code 75)."""
    todo = {trial: trial.stage for trial in trials if trial.stage is not None and not trial.code}
    if not todo:
        return
    first = next(iter(todo.values()))
    logs = first.path.parent / "logs"
    try:
        own = launcher(first.launcher, first, logs)
    except Refusal:
        trials.clear()  # nothing has run
        raise
    tasks = {trial: _task(trial, stage, logs / f"{trial.folder.name}.log") for trial, stage in todo.items()}
    if first.launcher.dry_run:
        own.show(list(tasks.values()))
        trials.clear()  # no table
        sys.exit(0)
    with own, own.pool() as pool:
        running = {pool.submit(own.start, task): trial for trial, task in tasks.items()}
        for one in as_completed(running):
            trial = running[one]
            trial.code = one.result()
            trial.error = last_error(tasks[trial].log)[:60] if trial.code else ""
            print(f"{trial.folder} ended with exit code {trial.code}  ({tasks[trial].log})", flush=True)
    if own.asked:
        sys.exit(Preempted.code)


def _task(trial: Trial, stage: Stage, log: Path) -> Task:
    return Task(trial.folder.name, "train.py", words(trial, stage), stage, log)


def words(trial: Trial, stage: Stage) -> list[str]:
    """The arguments of the command that is a trial alone, which can be typed to go on with it."""
    own = [word for word in trial.overrides if not re.match(r"\+*(launcher[=.]|run\.(root|stage)=)", word)]
    own += [f"run.root={element(stage.run.root)}", f"run.stage={element(stage.run.stage)}"]
    return [re.sub(r"^(\+*)recipes=", r"\1recipe=", word) for word in own]


def table() -> str:
    """Each trial with the overrides in which it differs from the others, its folder, exit code and main result."""
    from rlhf.output.tables import grid

    common = set.intersection(*(set(trial.overrides) for trial in trials)) if len(trials) > 1 else set()
    rows = [("trial", "differs in", "folder", "exit", "result")]
    for number, trial in enumerate(trials):
        differs = " ".join(override for override in trial.overrides if override not in common)
        rows.append((str(number), differs, str(trial.folder), str(trial.code), trial.error or _result(trial.folder)))
    return grid(rows)


def _result(folder: Path) -> str:
    file = folder / RESULTS_FILE
    results = json.loads(file.read_text()) if file.is_file() else {}
    numbers = {key: value for key, value in results.items() if isinstance(value, int | float)}
    key = next((key for key in (*MAIN, *numbers) if key in numbers), None)
    return f"{key} {numbers[key]:.4g}" if key else ""
