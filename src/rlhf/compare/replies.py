"""What each checkpoint says: a reply to every test prompt, sampled at temperature 1, with its KL, length, reward and gold.

Every policy draws with the same random numbers, and what was drawn once is kept, so that a report is made again without a model.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

from rlhf import files
from rlhf.compare.trials import Comparison, Trial
from rlhf.config import Stage
from rlhf.errors import DataError, GuardStop, ResourceError
from rlhf.evaluation.judges import Judge, load_judge
from rlhf.evaluation.samples import Sample, to_samples
from rlhf.process import die_with_parent
from rlhf.runs import record
from rlhf.runs.launcher import threads

Prompt = dict[str, Any]  # a row of the test set
Scores = Sequence[float]
Score = Callable[[Sequence[Sample]], list[float]]
KEPT = ("prompt", "prompt_ids", "messages", "reference", "facts", "reply", "ids", "length", "ended")
POOL = 16  # samples of the SFT model to each prompt that best-of-n draws from


class Replies:
    """The replies of a comparison, on disk in `<folder>/replies/`; `gold` names the judge whose score counts as true."""

    def __init__(self, comparison: Comparison, gold: str) -> None:
        self.comparison, self.gold_name = comparison, gold
        self.folder = comparison.folder / "replies"
        self.stage: Stage = comparison.plan.stage(comparison.stages["ppo"])
        self.start = Path(str(self.stage.method.start_from))

    @cached_property
    def tokenizer(self) -> Any:
        from rlhf.models.tokenizer import saved_tokenizer

        return saved_tokenizer(self.start)

    def judge(self, name: str) -> Judge:
        """Raises ConfigError for a judge that is not there or, as gold, can only compare."""
        return load_judge(name, self.stage, None if name == "annotator" else self.tokenizer, self.comparison.folder)

    def score(self, name: str) -> Score:
        return cast(Score, self.judge(name).scores)  # run() lets nobody score who can only compare

    @cached_property
    def gold(self) -> Score:
        return self.score(self.gold_name)

    def of(self, trial: Trial, step: int) -> list[Sample]:
        return _read(self._file(trial, step))

    def pool(self, seed: int) -> list[Sample]:
        """`prompts * (POOL + seeds)` samples of the SFT model, prompt by prompt, scored by the reward model of `seed`."""
        return _read(self._pool_file(seed))

    def make(self, trials: Sequence[Trial], jobs: int = 1) -> None:
        """Draw and score what is missing, `jobs` policies at a time.

        Raises DataError without test prompts, GuardStop for a score that is not a number.
        """
        wanted = [trial for trial in trials if trial.arm != "reward" and self._missing(trial)]
        pools = [s for s in self.comparison.seeds if _key_of(self._pool_file(s)) != self._key(None, s)]
        if not wanted and not pools:
            return
        from rlhf.data.prepare import test_prompts
        from rlhf.models.tokenizer import prompt_renderer
        from rlhf.process import quiet

        quiet()
        rows = test_prompts(self.stage, prompt_renderer(self.stage, self.tokenizer))
        if len(rows) < 20:
            raise DataError(
                f"dataset.splits.test={self.stage.dataset.splits.test}: {len(rows)} prompts are too few for an interval\n"
                "  fix: a larger split, or evaluation.prompts=200"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        tasks: list[list[int] | Trial] = [*([pools] if pools else []), *wanted]
        for count, name in enumerate(self._drawn(tasks, rows, min(jobs, len(tasks))), 1):
            print(f"replies of {name}  ({count} of {len(tasks)})", flush=True)

    def _drawn(self, tasks: Sequence[list[int] | Trial], rows: Sequence[Prompt], jobs: int) -> Iterator[str]:
        """Do the tasks, in processes of their own if there are several jobs; gives the name of each as it is done."""
        if jobs < 2:
            yield from (self._draw(task, rows) for task in tasks)
            return
        mine = Replies(self.comparison, self.gold_name)  # without what has been loaded here
        pool = ProcessPoolExecutor(jobs, get_context("spawn"), _start_worker, (threads(jobs),))
        try:
            yield from pool.map(mine._draw, tasks, [rows] * len(tasks))
        except BrokenProcessPool as broken:
            raise ResourceError(
                f"a process that drew replies was killed, most likely because {jobs} at a time need more memory than there is\n"
                f"  fix: jobs={jobs - 1}; what was drawn is kept"
            ) from broken
        finally:
            pool.shutdown(cancel_futures=True)

    def _draw(self, task: list[int] | Trial, rows: Sequence[Prompt]) -> str:
        """Replies of the SFT model, scored for each of some seeds, or those of a trial's checkpoints."""
        if isinstance(task, Trial):
            self._draw_trial(task, rows)
            return task.name
        self._draw_pools(task, rows)
        return "sft"

    def _draw_pools(self, seeds: Sequence[int], prompts: Sequence[Prompt]) -> None:
        from rlhf.models.shared import load_roles

        policy = load_roles(self.stage, self.tokenizer, {"policy": self.start})["policy"]
        samples = self._sample(policy, [row for row in prompts for _ in range(POOL + len(self.comparison.seeds))])
        golds = self.gold(samples)
        for seed in seeds:
            _, reward = self._roles({}, seed)
            _write(self._pool_file(seed), self._key(None, seed), "sft", samples, golds, reward(samples))

    def _draw_trial(self, trial: Trial, rows: Sequence[Prompt]) -> None:
        from rlhf.evaluation.evaluate import reply_kl

        missing = {f"step{step}": folder for step, folder in self._missing(trial).items()}
        together = self.stage.adapter.name != "none"  # adapters share a base, whole models would not fit side by side
        prompts, key = [row["input_ids"] for row in rows], self._key(trial, trial.seed)
        for group in [missing] if together else [{name: folder} for name, folder in missing.items()]:
            roles, reward = self._roles(group | {"reference": self.start}, trial.seed)
            for name in group:
                samples = self._sample(roles[name], rows)
                ids = [s["ids"] for s in samples]
                kls = reply_kl(self.stage, self.tokenizer, roles[name], roles["reference"], prompts, ids)
                file = self._file(trial, int(name.removeprefix("step")))
                _write(file, key, trial.name, samples, self.gold(samples), reward(samples), kls)

    def _sample(self, role: Any, rows: Sequence[Prompt]) -> list[Sample]:
        from rlhf.evaluation.evaluate import about, answer

        drawn = answer(self.stage, self.tokenizer, role, [row["input_ids"] for row in rows], temperature=1.0)
        return [sample | about(row) for sample, row in zip(drawn, rows, strict=True)]

    def _roles(self, folders: dict[str, Path], seed: int) -> tuple[dict[str, Any], Score]:
        """Policies by name, and who scores replies as PPO's reward does with this seed."""
        from rlhf.models.shared import load_roles
        from rlhf.rewards.scorers import scorer

        source = self._reward(seed)
        if not is_adapter(source):
            return load_roles(self.stage, self.tokenizer, folders), self.score(f"reward:{source}")
        roles = load_roles(self.stage, self.tokenizer, folders, reward=Path(source))
        score = scorer(self.stage, self.tokenizer, roles["reward"])
        return roles, lambda rows: score([s["prompt_ids"] for s in rows], [s["ids"] for s in rows], []).tolist()

    def _reward(self, seed: int) -> str:
        """The weights that score the replies of this seed."""
        return self.comparison.trial("ppo", self.comparison.settings["ppo"][0], seed).stage.method.reward_models[0]

    def _file(self, trial: Trial, step: int) -> Path:
        return self.folder / f"{trial.name}-step{step}.jsonl"

    def _pool_file(self, seed: int) -> Path:
        return self.folder / f"sft-seed{seed}.jsonl"

    def _missing(self, trial: Trial) -> dict[int, Path]:
        """Steps and weights of the checkpoints whose replies have not been drawn, or from something else."""
        key = self._key(trial, trial.seed)
        return {step: folder for step, folder in trial.checkpoints() if _key_of(self._file(trial, step)) != key}

    def _key(self, trial: Trial | None, seed: int) -> str:
        """What the replies in a file follow from: the weights, the reward model, the prompts and how they were asked."""
        stage = self.stage
        chain = [self.start, Path(self._reward(seed)), *([trial.path / files.FINAL] if trial else [])]
        weights = [record.read_run(folder.parent).get("id") or str(folder) for folder in chain]
        asked = (stage.dataset.path, stage.dataset.options, stage.dataset.splits.test, vars(stage.evaluation))
        parts = (weights, asked, POOL + len(self.comparison.seeds), self.gold_name)
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _start_worker(count: str) -> None:
    """Runs before torch is loaded, which reads the number once."""
    die_with_parent()
    os.environ["OMP_NUM_THREADS"] = count
    from rlhf.process import quiet

    quiet()


def is_adapter(source: str) -> bool:
    """Whether weights are an adapter for the base that all arms share."""
    return (Path(source) / "adapter_config.json").is_file()


def _write(
    file: Path, key: str, name: str, samples: Sequence[Sample], golds: Scores, rewards: Scores, kls: Scores = ()
) -> None:
    entries: list[dict[str, Any]] = [{"key": key}]
    for index, (sample, gold, reward) in enumerate(zip(samples, golds, rewards, strict=True)):
        scores = {"kl": kls[index] if kls else 0.0, "gold": gold, "reward": reward}
        for what, value in scores.items():
            if not math.isfinite(value):
                raise GuardStop(f"{name}: the {what} of reply {index} is {value}; the finished trials are kept")
        entries.append({k: sample[k] for k in KEPT} | scores)
    files.write_lines(file, entries)


def _key_of(file: Path) -> str | None:
    return next(iter(files.read_lines(file)), {}).get("key")


def _read(file: Path) -> list[Sample]:
    return to_samples(files.read_lines(file)[1:])
