"""The points of every arm, worked out before anything runs: its store of labels, its reward model, its policy."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf import files
from rlhf.config import Stage, compose_config, needs, to_stage
from rlhf.errors import ConfigError, Refusal
from rlhf.runs.pipeline import Pipeline
from rlhf.shell import element

# whose replies are judged, and what is paid: `rounds` the policy of the point before, by a reward model of all labels so far;
# `at_once` the SFT model, by one of as many labels; `frozen` nobody, by the reward model of the first point
ARMS = ("rounds", "at_once", "frozen")
FIRST = "first"  # the point that all arms begin with
DATASET = "support_feedback"
STEP = 100  # between the seeds of a trial's points, so that none sees another's prompts


@dataclass(frozen=True)
class Run:
    """A stage with what a user would type for it."""

    stage: Stage
    words: list[str]

    @property
    def weights(self) -> Path:
        return self.stage.path / files.FINAL

    @property
    def name(self) -> str:
        """What src/collect.py calls it."""
        return f"{self.stage.run.recipe}/{self.stage.run.stage}"


@dataclass(frozen=True)
class Point:
    """One point of an arm: after `labels` judgements in `store`, those of `before` among them, the new ones of what `asked` answered.

    Without a store there are no new ones, and `reward` is the first point's.
    """

    name: str
    seed: int
    number: int
    labels: int
    store: Path | None
    before: Path | None
    asked: str
    reward: Run
    policy: Run


class Rounds:
    """Raises a ConfigError for a recipe that has no PPO on a reward model or whose truth nobody knows, and for settings that cannot be."""

    def __init__(
        self,
        recipe: str,
        overrides: Sequence[str],
        rounds: int = 3,
        labels: int = 400,
        seeds: Sequence[int] = (1, 2, 3),
        replies: int = 4,
        name: str = "rounds",
        arms: Sequence[str] = ARMS,
    ) -> None:
        if any(override.lstrip("+~").partition("=")[0].rpartition(".")[2] == "seed" for override in overrides):
            raise ConfigError(f"{' '.join(overrides)}: each trial has a seed of its own\n  fix: seeds=[1,2,3]")
        if rounds < 2:
            raise Refusal(
                "rounds", rounds, "one round is one collection, with nothing to compare it with", fix="rounds=3"
            )
        if not {"rounds"} <= set(arms) <= set(ARMS):
            raise Refusal("arms", ",".join(arms), "must be of those, rounds among them", allowed=ARMS)
        if replies < 2:
            raise Refusal("replies", replies, "one alone has no rank", fix="replies=4")
        self.recipe, self.rounds, self.labels, self.replies = recipe, rounds, labels, replies
        self.seeds, self.arms = sorted(set(seeds)), [arm for arm in ARMS if arm in arms]
        self.plan = Pipeline(recipe, overrides)
        if not re.fullmatch(r"[\w-]+", name) or name in self.plan.order:
            raise Refusal("name", name, f"must be a folder name that no stage of {recipe} has", fix="name=rounds")
        methods = {stage: self.plan.stage(stage).method.name for stage in self.plan.order}
        found = {method: [stage for stage in methods if methods[stage] == method] for method in ("ppo", "reward")}
        alone = all(len(stages) == 1 for stages in found.values())
        if not alone or found["reward"][0] not in needs(self.plan.configs[found["ppo"][0]]):
            raise Refusal("recipe", recipe, "rounds need one stage of ppo, paid by one of reward", fix="recipe=support")
        (self.ppo,), (self.reward,) = found["ppo"], found["reward"]
        self.planned = self.plan.stage(self.ppo)
        if self.planned.dataset.annotator != "support":
            why = "the simulated people know the truth of `support` alone"
            raise Refusal("recipe", recipe, why, fix="recipe=support")
        self.shared = [stage for stage in self.plan.order if methods[stage] == "sft"]
        self.start = Path(str(self.planned.method.start_from))
        self.root, self.name = Path(self.planned.run.root), name
        self.folder = self.root / recipe / name
        self.points: dict[tuple[str, int], list[Point]] = {}  # of an arm those that it has for itself
        for seed in self.seeds:
            self.points[FIRST, seed] = [self._point(FIRST, seed, 1, None)]
            for arm in self.arms:
                points = list(self.points[FIRST, seed])
                for number in range(2, rounds + 1):
                    points.append(self._point(arm, seed, number, points[-1]))
                self.points[arm, seed] = points[1:]

    def _point(self, arm: str, seed: int, number: int, last: Point | None) -> Point:
        place = f"{self.name}/{arm}-seed{seed}"
        store = self.folder / f"{arm}-seed{seed}/feedback-{number}.sqlite"
        asked = f"{self.recipe}/{self.start.parent.name}"
        if last and arm == "frozen":
            reward, store = last.reward, None
        else:
            part = {"path": str(store), "columns": {"prompt": "prompt", "ranking": "replies", "ranks": "ranks"}}
            mixture = [part | {"options": {"held_out": 0}}]
            own = (f"dataset={DATASET}", f"dataset.mixture={element(mixture)}")
            reward = self._run(self.reward, f"{place}/reward-{number}", seed, *own)
        own = [f"method.reward_model={element(str(reward.weights))}", "method.args.save_total_limit=1"]
        if not any(word.startswith("monitor=") for word in self.plan.overrides[self.ppo]):
            own.append("monitor=none")  # a reward that is gamed is what is measured here
        if last:
            starts = {"method.start_from": last.policy.weights, "method.reference": self.start}
            own += [f"{key}={element(str(path))}" for key, path in starts.items()]
            asked = last.policy.name if arm == "rounds" else asked
        policy = self._run(self.ppo, f"{place}/ppo-{number}", seed + STEP * (number - 1), *own)
        labels = number * self.labels if store else self.labels
        return Point(f"{arm}-seed{seed}", seed, number, labels, store, last and last.store, asked, reward, policy)

    def _run(self, stage: str, place: str, seed: int, *own: str) -> Run:
        words = [*self.plan.overrides[stage], *own, f"seed={seed}", f"run.stage={place}"]
        full = f"{self.recipe}/{stage}"
        return Run(to_stage(compose_config([f"recipes={full}", *words])), [f"recipe={full}", *words])

    def of(self, arm: str, seed: int) -> list[Point]:
        """All points of an arm, the first included."""
        return [*self.points[FIRST, seed], *self.points[arm, seed]]
