"""The replies of all policies of a comparison, by arm, setting, step and seed, and numbers read off them."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from rlhf.compare.estimators import choose_checkpoint
from rlhf.compare.replies import POOL, Replies
from rlhf.compare.trials import KNOBS, Comparison, Trial
from rlhf.evaluation.samples import Sample

Point = tuple[float, int]  # setting, step


class Evidence:
    """The replies of all policies, by arm, setting, step and seed; `table` and `mean` read numbers off them."""

    def __init__(self, comparison: Comparison, replies: Replies, trials: Sequence[Trial]) -> None:
        self.comparison, self.seeds = comparison, comparison.seeds
        self.trials = [trial for trial in trials if trial.arm != "reward"]
        self.points: dict[str, dict[Point, dict[int, list[Sample]]]] = {arm: {} for arm in KNOBS}
        for trial in self.trials:
            for step, _ in trial.checkpoints():
                assert trial.setting is not None
                at = self.points[trial.arm].setdefault((trial.setting, step), {})
                at[trial.seed] = replies.of(trial, step)
        self.pools = {seed: replies.pool(seed) for seed in self.seeds}

    @cached_property
    def sft(self) -> dict[int, list[Sample]]:
        """One sample of the SFT model to each prompt, another one for every seed, none of them in the pool of best-of-n."""
        width = POOL + len(self.seeds)
        return {seed: self.pools[seed][POOL + place :: width] for place, seed in enumerate(self.seeds)}

    def pooled(self, seed: int, key: str) -> np.ndarray:
        """`[prompts, POOL]` of what best-of-n draws from."""
        values = np.array([s[key] for s in self.pools[seed]], dtype=float)
        return values.reshape(-1, POOL + len(self.seeds))[:, :POOL]

    @cached_property
    def best_of_pool(self) -> dict[int, list[Sample]]:
        """To each prompt the reply of the pool that the reward model of the seed likes best."""
        width = POOL + len(self.seeds)
        chosen = {seed: self.pooled(seed, "reward").argmax(axis=1) for seed in self.seeds}
        return {seed: [self.pools[seed][p * width + i] for p, i in enumerate(chosen[seed])] for seed in self.seeds}

    def complete(self, arm: str) -> dict[Point, dict[int, list[Sample]]]:
        """The points of an arm that every seed has."""
        return {point: at for point, at in sorted(self.points[arm].items()) if len(at) == len(self.seeds)}

    def chosen(self, arm: str) -> Point:
        """The setting and step with the highest gold, mean over seeds, on every other prompt."""
        points = self.complete(arm)
        best, *_ = choose_checkpoint(np.array([table(at, "gold").mean(axis=0) for at in points.values()]))
        return list(points)[best]


def table(by_seed: Mapping[int, Sequence[Sample]], key: str) -> np.ndarray:
    """`[seeds, prompts]` of one number of the samples."""
    return np.array([[float(s[key]) for s in by_seed[seed]] for seed in sorted(by_seed)])
