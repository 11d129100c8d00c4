"""What feeds the reward-hacking monitor: the lines that a run writes, while it trains, when it goes on, or afterwards."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from omegaconf import OmegaConf

from rlhf.config import REPO, Stage, read_stage
from rlhf.config import Monitor as Settings
from rlhf.evaluation.annotators import with_gold
from rlhf.evaluation.samples import TEST, Sample, to_samples
from rlhf.files import CONFIG_FILE, FINAL, METRICS_FILE, RESULTS_FILE, SAMPLES_FILE, read_json, read_lines, verify
from rlhf.methods import METHODS
from rlhf.monitor.rules import Alert, Monitor

Point = tuple[int, Mapping[str, float], Sequence[Sample]]  # what Monitor.update takes


def watch_finished(folder: Path, settings: Settings | None = None) -> list[Alert]:
    """The alerts of a run by what it left; `settings` are its own unless given, or the default of runs that have none."""
    stage = read_stage(folder)
    if settings is None and "monitor" not in OmegaConf.load(folder / CONFIG_FILE):
        default = OmegaConf.load(REPO / "conf/monitor/default.yaml")
        settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Settings), default))  # pyright: ignore
    monitor = monitor_of(stage, settings)
    return [alert for point in points(folder, stage.dataset.annotator) for alert in monitor.update(*point)]


def monitor_of(stage: Stage, settings: Settings | None = None) -> Monitor:
    """A monitor that knows the stage's beta, if its rewards are implicit, and the scale of a reward model that was trained here."""
    beta = stage.method.args.get("beta") if METHODS[stage.method.name].reward == "implicit" else None
    top, rewards = None, [Path(reward) for reward in stage.method.reward_models]
    if len(rewards) == 1 and rewards[0].name == FINAL and (results := rewards[0].parent / RESULTS_FILE).is_file():
        verify(results.parent, RESULTS_FILE)
        top = read_json(results).get("score_p99")
    return Monitor(settings or stage.monitor, None if beta is None else float(beta), top)


def points(folder: Path, annotator: str | None, last: float = math.inf) -> list[Point]:
    """All that a run has logged and replied up to step `last`, in the order in which it did."""
    verify(folder, METRICS_FILE, SAMPLES_FILE)
    lines = read_lines(folder / METRICS_FILE)
    logged: list[Point] = [(line["step"], line, ()) for line in lines if line["step"] <= last]
    return sorted([*logged, *replies(folder, annotator, last=last)], key=lambda point: point[0])


def replies(folder: Path, annotator: str | None, first: float = 0, last: float = math.inf) -> Iterator[Point]:
    """The replies of each evaluation during training. Those after it, the set `test`, are greedy and to other prompts, so
    nothing can be read off a change to them.
    """
    rows = [row for row in read_lines(folder / SAMPLES_FILE) if first <= row["step"] <= last and row["set"] != TEST]
    for step, group in groupby(rows, key=lambda row: row["step"]):
        yield step, {}, with_gold(to_samples(group), annotator)
