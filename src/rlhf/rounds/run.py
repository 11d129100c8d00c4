"""The points of a plan, each step a process of its own; what is there is not made again, whenever the command was ended."""

import sqlite3
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

from rlhf import files
from rlhf.config import Stage
from rlhf.errors import DataError, Preempted, Refusal, StageError
from rlhf.feedback.store import Store
from rlhf.rounds.plan import FIRST, Point, Rounds, Run
from rlhf.runs import record
from rlhf.runs.cluster import launcher
from rlhf.runs.launcher import Launcher, Task, last_error
from rlhf.runs.lock import hold
from rlhf.runs.pipeline import run_stages

SETTINGS = "settings.json"
ENOUGH = (1, 2, 4)  # times as many prompts as labels are asked, where some have no two different replies


def run(rounds: Rounds, jobs: int | None, judge: str) -> None:
    """Make what is missing, `jobs` chains of points at a time: the first points, then each arm of each seed.

    Raises a StageError with the code of the first step that failed, Preempted where people have not judged enough yet.
    """
    own = launcher(rounds.plan.launcher, rounds.planned, rounds.folder / "logs", jobs)
    if rounds.plan.launcher.dry_run:
        trained = [one for points in rounds.points.values() for point in points for one in (point.reward, point.policy)]
        runs = {run.name: run for run in trained if record.state(run.stage) != "finished"}
        own.show([Task(run.stage.path.name, "train.py", run.words, run.stage) for run in runs.values()])
        sys.exit(0)
    _same_settings(rounds)
    rounds.plan.check_arguments([rounds.reward, rounds.ppo])
    hold(rounds.folder, " ".join(sys.argv))
    with own:
        if code := run_stages(rounds.plan, rounds.shared, own):
            sys.exit(code)
        work = Work(rounds, own, judge)
        for arms in ((FIRST,), rounds.arms):
            chains = [points for arm in arms for seed in rounds.seeds if (points := rounds.points[arm, seed])]
            with own.pool() as pool:
                for one in [pool.submit(work.chain, points) for points in chains]:
                    one.result()


def _same_settings(rounds: Rounds) -> None:
    """Refuse a folder of rounds with other labels: their stores would hold both."""
    file, own = rounds.folder / SETTINGS, {"labels": rounds.labels, "replies": rounds.replies}
    there = files.read_json(file) if file.exists() else own
    for key, value in own.items():
        if there[key] != value:
            why = f"{rounds.folder} was begun with {key}={there[key]}"
            raise Refusal(key, value, why, fix=f"{key}={there[key]}, or name=rounds-{value}")
    rounds.folder.mkdir(parents=True, exist_ok=True)
    files.write_json(file, own)


class Work:
    """The steps of a point: labels, reward model, policy."""

    def __init__(self, rounds: Rounds, own: Launcher, judge: str) -> None:
        self.rounds, self.own, self.judge = rounds, own, judge

    def chain(self, points: Sequence[Point]) -> None:
        for point in points:
            if point.store is not None:
                self.labelled(point, point.store)
                self.trained(point, point.reward)
            self.trained(point, point.policy)

    def labelled(self, point: Point, store: Path) -> None:
        """Its store holds what the point before had, and as many labels more as a round has, of the policy that is there now."""
        if not _current(store, self._answering(point)):
            for file in (store, *(store.with_name(f"{store.name}-{end}") for end in ("wal", "shm"))):
                file.unlink(missing_ok=True)
            if point.before is not None:
                _copied(point.before, store)
        own = [f"run={point.asked}", f"store={store}", f"replies={self.rounds.replies}", f"run.root={self.rounds.root}"]
        for times in ENOUGH:
            if _counted(store)[0] >= point.labels:
                break
            asked = [*own, f"limit={times * self.rounds.labels}", f"seed={point.policy.stage.seed}"]
            self._run(point, f"collect-{point.number}", "collect.py", asked)
        items, labels = _counted(store)
        if items < point.labels:
            fix = f"labels={self.rounds.labels // 2} name={self.rounds.name}-{self.rounds.labels // 2}"
            why = f"{store}: {point.asked} gave two different replies to {items} prompts, and {point.labels} are wanted"
            raise DataError(f"{why}\n  fix: {fix}")
        if labels < point.labels and self.judge == "people":
            where = f"python src/feedback.py recipe={self.rounds.recipe} store={store}"
            raise Preempted(
                f"{point.name}, round {point.number}: {point.labels - labels} judgements are lacking in {store}\n"
                f"  fix: {where} write=tasks.json format=label-studio, have them ranked,\n"
                f"       {where} read=project.json format=label-studio, then the same command again"
            )
        if labels < point.labels:
            told = [f"recipe={self.rounds.recipe}", f"store={store}", "judge=simulated", "shared=0"]
            told += [f"labels={point.labels - labels}", f"seed={point.seed}"]
            self._run(point, f"judge-{point.number}", "feedback.py", told)

    def _answering(self, point: Point) -> set[str]:
        """The runs whose replies may be in its store: SFT, and in the arm of rounds the policies of the points before."""
        chain = self.rounds.of("rounds", point.seed)[: point.number - 1] if point.name.startswith("rounds") else []
        paths = [self.rounds.start.parent, *(one.policy.stage.path for one in chain)]
        return {str(record.read_run(path).get("id")) for path in paths}

    def trained(self, point: Point, run: Run) -> None:
        if record.state(run.stage) != "finished":
            self._run(point, run.stage.path.name, "train.py", run.words, run.stage)

    def _run(self, point: Point, what: str, script: str, words: Sequence[str], stage: Stage | None = None) -> None:
        """One step as a user would type it; raises what it ended with."""
        began, log = time.time(), self.rounds.folder / f"logs/{point.name}.log"
        if code := self.own.start(Task(f"{point.name}-{what}", script, words, stage, log)):
            then = "" if code == Preempted.code else "\n  once that is mended, the same command goes on from there"
            error = StageError(f"{point.name}, {what}: {last_error(log) or 'see its log'} ({log}){then}")
            error.code = code
            raise error
        print(f"{point.name}  {what} in {time.time() - began:.0f} s", flush=True)


def _counted(store: Path) -> tuple[int, int]:
    """Items, and judgements that stand."""
    if not store.is_file():
        return 0, 0
    with Store(store, write=False) as held, held.snapshot():
        return len(held.items()), sum(one.undone is None for one in held.judgements())


def _current(store: Path, runs: set[str]) -> bool:
    """Whether there is a store, and all its replies are of these runs."""
    if not store.is_file():
        return False
    with Store(store, write=False) as held:
        return {reply.run for item in held.items() for reply in item.replies} <= runs


def _copied(before: Path, store: Path) -> None:
    """A store with all that was judged in another, whole or not there."""
    store.parent.mkdir(parents=True, exist_ok=True)
    half = store.with_suffix(".half")
    with suppress(FileNotFoundError):
        half.unlink()
    with closing(sqlite3.connect(before)) as source, closing(sqlite3.connect(half)) as copy:
        source.backup(copy)
        for table, key in (
            ("replies", "item"),
            ("items", "id"),
        ):  # a spare prompt would be judged before those of this round
            copy.execute(f"DELETE FROM {table} WHERE {key} NOT IN (SELECT item FROM judgements)")
        copy.commit()
    half.replace(store)
