"""The trials of a comparison, from the same start and on the same pairs: one for each arm, setting and seed; run if missing."""

import copy
import math
import operator
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhf import files
from rlhf.config import Stage, needs
from rlhf.errors import ConfigError, Refusal
from rlhf.runs import record
from rlhf.runs.cluster import launcher
from rlhf.runs.launcher import Launcher, Task, last_error
from rlhf.runs.lock import hold
from rlhf.runs.pipeline import Pipeline, run_stages, task_of

KNOBS = {"dpo": "beta", "ppo": "kl_coef"}  # what holds each arm near the SFT model
FACTORS = (1 / 3, 1.0, 3.0)
ENDED = ("finished", "stopped")  # states of a trial that is not run again
STOPPED = 4  # exit code of a trial that a guard stopped: its checkpoints count

# the part of a dataset that decides which pairs a reward model and DPO see
PAIRS = ("path", "subset", "revision", "columns", "format", "options", "system", "max_length", "max_prompt_length")


@dataclass(frozen=True)
class Trial:
    """One run: an arm (`dpo`, `ppo`, or `reward` for the model that PPO's replies are scored by), a setting and a seed; a learning
    rate where several are tried."""

    arm: str
    setting: float | None
    seed: int
    stage: Stage
    overrides: list[str]
    rate: float | None = None

    @property
    def name(self) -> str:
        rate = [f"lr{self.rate:g}"] if self.rate is not None else []
        return "-".join(
            [self.arm, *rate, *([f"{self.setting:g}"] if self.setting is not None else []), f"seed{self.seed}"]
        )

    @property
    def path(self) -> Path:
        return self.stage.path

    @property
    def state(self) -> str:
        """As `record.state`, and `stopped` where a guard ended it."""
        now = record.state(self.stage)
        stops = any(alert["level"] == "stop" for alert in files.read_lines(self.path / files.ALERTS_FILE))
        return "stopped" if now == "resumable" and stops and self.checkpoints() else now

    def checkpoints(self) -> list[tuple[int, Path]]:
        """Steps and folders of the weights it left, oldest first; the last is what a user of the trial would load."""
        found = {files.step_of(path): path for path in files.checkpoints(self.path)}
        final = self.path / files.FINAL
        if final.is_dir():
            from rlhf.evaluation.samples import last_step

            found[max([last_step(self.path), *found])] = final
        return sorted(found.items())


class Comparison:
    """What is compared, worked out and checked before anything runs.

    Raises ConfigError for a recipe without both arms, for arms that start from other weights or learn from other pairs, and
    for seeds or settings that are too few. `rates` are learning rates to try, as many for each arm: `rate` holds the one of each arm
    that its trials have, once it is chosen.
    """

    def __init__(
        self,
        recipe: str,
        overrides: Sequence[str],
        seeds: Sequence[int] = (1, 2, 3),
        settings: Mapping[str, Sequence[float] | None] | None = None,
        name: str = "compare",
        rates: Mapping[str, Sequence[float] | None] | None = None,
    ) -> None:
        for override in overrides:
            key = override.lstrip("+~").partition("=")[0]
            if key in ("seed", "dpo.seed", "ppo.seed", "reward.seed"):
                raise ConfigError(f"{override}: a comparison has several seeds\n  fix: seeds=[1,2,3]")
        if len(set(seeds)) < 2:
            why = "without a second seed nobody knows how much of a difference is chance"
            raise Refusal("seeds", list(seeds), why, fix="seeds=[1,2,3]")
        self.recipe, self.name, self.seeds = recipe, name, sorted(set(seeds))
        self.plan = Pipeline(recipe, overrides)
        if not re.fullmatch(r"[\w-]+", name) or name in self.plan.order:
            raise ConfigError(f"name={name} must be a folder name that no stage of {recipe} has\n  fix: name=compare")
        self.stages = self._arms()
        self.planned = {role: self.plan.stage(stage) for role, stage in self.stages.items()}
        self.folder = self.planned["dpo"].path.parent / name
        self.settings = {arm: self._settings(arm, (settings or {}).get(arm)) for arm in KNOBS}
        if len(self.settings["dpo"]) != len(self.settings["ppo"]):
            given = f"{self.settings['dpo']} and kl_coef={self.settings['ppo']}"
            raise Refusal("beta", given, "both arms get the same number of trials", fix="as many values for each")
        self.rates = {arm: sorted(set((rates or {}).get(arm) or ())) for arm in KNOBS}
        self.rate: dict[str, float | None] = {arm: tried[0] if tried else None for arm, tried in self.rates.items()}
        if len(self.rates["dpo"]) != len(self.rates["ppo"]) or not all(
            r > 0 for tried in self.rates.values() for r in tried
        ):
            given = f"{self.rates['dpo']} and ppo_learning_rate={self.rates['ppo']}"
            raise Refusal(
                "dpo_learning_rate", given, "both arms try as many, all above 0", fix="as many values for each"
            )
        self._check_shared()

    def _arms(self) -> dict[str, str]:
        """The stage of each role: dpo and ppo, and reward if PPO reads a reward stage."""
        found: dict[str, str] = {}
        for arm in KNOBS:
            stages = [name for name in self.plan.order if self.plan.stage(name).method.name == arm]
            if len(stages) != 1:
                has = f"recipe={self.recipe} has {len(stages)} stages of method={arm}"
                raise ConfigError(f"{has}; a comparison needs one of dpo and one of ppo")
            found[arm] = stages[0]
        needed = needs(self.plan.configs[found["ppo"]])
        rewards = [name for name in needed if self.plan.stage(name).method.name == "reward"]
        return found | ({"reward": rewards[0]} if rewards else {})

    @property
    def shared(self) -> list[str]:
        """The stages that every trial builds on, in order."""
        return [name for name in self.plan.order if name not in self.stages.values()]

    def _settings(self, arm: str, values: Sequence[float] | None) -> list[float]:
        knob, planned = KNOBS[arm], self.planned[arm].method.args.get(KNOBS[arm])
        if values is None:
            if not planned:
                raise ConfigError(f"{knob}={planned} has no neighbours to try\n  fix: {knob}=[0.05,0.1,0.2]")
            values = [float(f"{planned * factor:.1g}") if factor != 1 else float(planned) for factor in FACTORS]
        if not values or not all(math.isfinite(value) and value >= 0 for value in values):
            raise ConfigError(f"{knob}={list(values)}: settings are numbers from 0 upwards")
        return sorted(set(values))

    def _check_shared(self) -> None:
        stages, problems = self.planned, []
        for key, read in SAME.items():
            values = {role: read(stage) for role, stage in stages.items()}
            if len({str(value) for value in values.values()}) > 1:
                problems.append(f"{key} differs: " + ", ".join(f"{role} {value}" for role, value in values.items()))
        if "reward" in stages:
            for key in (*PAIRS, "splits.train"):
                ours, theirs = (operator.attrgetter(key)(stages[role].dataset) for role in ("reward", "dpo"))
                if ours != theirs:
                    problems.append(f"dataset.{key} differs, so the pairs do: reward {ours}, dpo {theirs}")
        if problems:
            raise Refusal("recipe", self.recipe, "\n  ".join(["the arms can't be compared", *problems[:4]]))

    def trial(self, arm: str, setting: float | None, seed: int, rate: float | None = None) -> Trial:
        """The trial in this comparison's folder, or the recipe's own run of the same inputs if there is none yet."""
        settings: dict[str, object] = {"seed": seed}
        rate = rate or self.rate.get(arm)
        if rate is not None:
            settings["method.args.learning_rate"] = rate
        if setting is not None:
            settings[f"method.args.{KNOBS[arm]}"] = setting
        if arm == "ppo" and "reward" in self.stages:
            settings["method.reward_model"] = f"{self.trial('reward', None, seed).path}/{files.FINAL}"
        if arm != "reward":
            settings["method.args.save_total_limit"] = None  # every checkpoint is a point of the frontier
        ours = self._with(arm, setting, seed, settings, rate)
        settings["run.stage"] = f"{self.name}/{ours.name}"
        if arm != "reward":  # every checkpoint is asked once all trials are there; nothing else is worth a trial's time
            settings["evaluation.prompts"] = 0
        if arm == "dpo":
            settings["method.args.eval_strategy"] = "no"
        apart = self._with(arm, setting, seed, settings, rate)
        return ours if not record.read_run(apart.path) and ours.state == "finished" else apart

    def _with(
        self, arm: str, setting: float | None, seed: int, settings: dict[str, object], rate: float | None
    ) -> Trial:
        """A trial with these settings: its stage is what composing with them as overrides gives, without composing again."""
        stage = copy.deepcopy(self.planned[arm])
        for key, value in settings.items():
            groups, _, name = key.rpartition(".")
            group: Any = operator.attrgetter(groups)(stage) if groups else stage
            if isinstance(group, dict):
                group[name] = value
            else:
                setattr(group, name, value)
        overrides = [f"{key}={'null' if value is None else value}" for key, value in settings.items()]
        return Trial(arm, setting, seed, stage, [*self.plan.overrides[self.stages[arm]], *overrides], rate)

    def _rewards(self) -> list[tuple[str, None, int]]:
        return [("reward", None, seed) for seed in self.seeds if "reward" in self.stages]

    def tuning(self) -> list[Trial]:
        """The trials that the learning rates are chosen by, after the reward models: each rate at one setting, with the first seed."""
        at = {}
        for arm, values in self.settings.items():
            planned = self.planned[arm].method.args.get(KNOBS[arm])
            at[arm] = planned if planned in values else values[len(values) // 2]
        places = range(len(self.rates["dpo"]))
        arms = [(arm, at[arm], self.seeds[0], self.rates[arm][place]) for place in places for arm in KNOBS]
        return [*(self.trial(*which) for which in self._rewards()), *(self.trial(*which) for which in arms)]

    def trials(self) -> list[Trial]:
        """Reward models first, since PPO waits for them; then the arms in turn, so that a sweep cut short has both."""
        rewards = self._rewards()
        places = range(len(self.settings["dpo"]))
        arms = [(arm, self.settings[arm][place], seed) for seed in self.seeds for place in places for arm in KNOBS]
        return [self.trial(*which) for which in [*rewards, *arms]]

    def run(self, jobs: int | None = None, which: Callable[[], list[Trial]] | None = None) -> list[tuple[Trial, str]]:
        """Run what is missing or stale of `which` (all trials), `jobs` at a time; returns the trials that failed and why. Those that
        are done stay."""
        which = which or self.trials
        own = launcher(self.plan.launcher, self.planned["ppo"], self.folder / "logs", jobs)
        if any(trial.state not in ENDED for trial in which()):
            self.plan.check_arguments(self.plan.order)
        if self.plan.launcher.dry_run:
            stages = [
                task_of(self.plan, name) for name in self.shared if record.state(self.plan.stage(name)) != "finished"
            ]
            own.show([*stages, *(self._task(trial) for trial in which() if trial.state not in ENDED)])
            sys.exit(0)
        hold(self.folder, " ".join(sys.argv))
        with own:
            code = run_stages(self.plan, self.shared, own)
            if code:
                sys.exit(code)
            return self._trials(which(), own)  # only now is it known which weights they start from

    def _trials(self, trials: Sequence[Trial], own: Launcher) -> list[tuple[Trial, str]]:
        todo = [trial for trial in trials if trial.state not in ENDED]
        print(f"{len(trials)} trials, {len(trials) - len(todo)} finished", flush=True)
        began, rewards, results = time.time(), {}, {}
        with own.pool() as pool:
            for trial in todo:
                waits = rewards.get(trial.seed) if trial.arm == "ppo" else None
                results[trial.name] = pool.submit(self._start, trial, waits, own)
                if trial.arm == "reward":
                    rewards[trial.seed] = results[trial.name]
            failed = []
            for done, trial in enumerate(todo, 1):
                code = results[trial.name].result()
                if code in (75, 130):
                    sys.exit(code)
                words = {0: "finished", STOPPED: "stopped by a guard"}.get(code, f"failed with exit code {code}")
                if code and (code != STOPPED or not trial.checkpoints()):
                    failed.append((trial, self._why(trial, words)))
                print(f"{done:3d} of {len(todo)}  {trial.name} {words}  {time.time() - began:.0f} s", flush=True)
        return failed

    def _start(self, trial: Trial, waits: "Future[int] | None", own: Launcher) -> int:
        if waits is not None and waits.result():
            return 1  # its reward model failed
        return own.start(self._task(trial))

    def _task(self, trial: Trial) -> Task:
        words = [f"recipe={self.recipe}/{self.stages[trial.arm]}", *trial.overrides]
        return Task(trial.name, "train.py", words, trial.stage, self._log(trial))

    def _log(self, trial: Trial) -> Path:
        return self.folder / "logs" / f"{trial.name}.log"

    def _why(self, trial: Trial, words: str) -> str:
        return f"{words}; {last_error(self._log(trial)) or 'see'} ({self._log(trial)})"


SAME = {
    "model.path": lambda stage: stage.model.path,
    "model.revision": lambda stage: stage.model.revision,
    "quantization": lambda stage: asdict(stage.quantization),
    "method.start_from": lambda stage: stage.method.start_from,
}
