"""The reward-hacking monitor inside training."""

from collections.abc import Iterable
from typing import Any

from transformers import TrainerCallback

from rlhf.config import Stage
from rlhf.errors import GuardStop
from rlhf.files import ALERTS_FILE, append_lines, checkpoints, keep_lines, read_lines
from rlhf.monitor import feed
from rlhf.monitor.rules import Alert
from rlhf.parallel.ranks import is_main


class Watch(TrainerCallback):
    """Feeds the reward-hacking monitor with what is logged and replied. A warning is told; a stop saves a checkpoint and ends
    the run, with its alerts in `stops`.

    A run that goes on feeds it with the lines it has written before, so it has to come after MetricsFile.
    """

    def __init__(self, trainer: Any, stage: Stage) -> None:
        self.trainer, self.path, self.annotator = trainer, stage.path, stage.dataset.annotator
        self.monitor = feed.monitor_of(stage)
        self.alerts, self.suspicious = stage.path / ALERTS_FILE, stage.path / "suspicious.jsonl"
        self.told: set[tuple[int, str, str]] = set()
        self.stops: list[Alert] = []

    def on_train_begin(self, args, state, control, **kwargs):
        keep_lines(self.alerts, state.global_step)
        self.told = {(entry["step"], entry["rule"], entry["source"]) for entry in read_lines(self.alerts)}
        before = feed.points(self.path, self.annotator, state.global_step)
        self._feed(before, control)
        if self.stops:  # the same command again is no way around a stop
            raise self.stopped()
        replies = args.eval_strategy != "no" and getattr(self.trainer, "eval_datasets", None)
        if self.monitor.rules and replies and not state.global_step and not any(samples for *_, samples in before):
            self.trainer.evaluate()  # the replies that later ones are compared with are the SFT model's

    def on_log(self, args, state, control, logs=None, **kwargs):
        self._feed([(state.global_step, logs or {}, ())], control)

    def on_evaluate(self, args, state, control, **kwargs):
        self._feed(feed.replies(self.path, self.annotator, first=state.global_step), control)

    def _feed(self, points: Iterable[feed.Point], control: Any) -> None:
        for alert in (alert for point in points for alert in self.monitor.update(*point)):
            if is_main() and (alert.step, alert.rule, alert.source) not in self.told:
                print(f"monitor  {alert}", flush=True)
                entry = {"step": alert.step, "rule": alert.rule, "level": alert.level, "source": alert.source}
                append_lines(self.alerts, [entry | {"text": str(alert)}])
            if alert.level == "stop":
                self.stops.append(alert)
                control.should_save = control.should_training_stop = True

    def stopped(self) -> GuardStop:
        """What the user is told; raised by the stage when the checkpoint is saved and the replies are written."""
        names = dict.fromkeys(alert.rule for alert in self.stops)
        left = [*checkpoints(self.path)[-1:], *([self.suspicious] if self.suspicious.is_file() else [])]
        return GuardStop(
            f"the monitor stopped the run at {self.stops[0]}\n"
            f"  saved: {', '.join(map(str, left))}\n"
            "  fix: what it advises and run.overwrite=true; or the same command goes on from the checkpoint with "
            f"{' '.join(f'monitor.rules.{name}.level=warn' for name in names)} (or monitor=none)"
        )
