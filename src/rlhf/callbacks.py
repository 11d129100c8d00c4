"""What trainers do beside training: one progress bar, metrics.jsonl, complete checkpoints, guards and preemption."""

import math
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from rlhf.config import Stage
from rlhf.errors import GuardStop
from rlhf.evaluation import watch
from rlhf.evaluation.monitor import Alert
from rlhf.ppo.checkpoint import checkpoints
from rlhf.record import COMPLETE, append_lines, is_main, keep_lines, read_lines


class MetricsFile(TrainerCallback):
    """Appends each log line to metrics.jsonl, and drops the lines of steps that a resumed run is about to repeat."""

    def __init__(self, path: Path) -> None:
        self.path = path / "metrics.jsonl"

    def on_train_begin(self, args, state, control, **kwargs):
        keep_lines(self.path, state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs:
            append_lines(self.path, [{"step": state.global_step, "time": round(time.time(), 2), **logs}])


class Finite(TrainerCallback):
    """Stops a run whose loss or gradient is no longer a number; the last checkpoint stays untouched."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        for key in ("loss", "grad_norm", "eval_loss"):
            value = (logs or {}).get(key)
            if value is not None and not math.isfinite(float(value)):
                raise GuardStop(
                    f"{key} is {value} at step {state.global_step}; training stopped\n"
                    f"  the last checkpoint in {args.output_dir} is good\n"
                    "  fix: a smaller method.args.learning_rate, or hardware.precision=fp32, with run.overwrite=true"
                )


class Complete(TrainerCallback):
    """Marks a checkpoint when all of it is on disk; one without the mark is not resumed from."""

    def on_save(self, args, state, control, **kwargs):
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if is_main() and folder.is_dir():
            (folder / COMPLETE).touch()


class Preemption(TrainerCallback):
    """SIGTERM saves a checkpoint after the current step and ends the run; the same command goes on from there."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: Any) -> None:
        self.asked = True

    def on_step_end(self, args, state, control, **kwargs):
        if self.asked:
            control.should_save = control.should_training_stop = True


class Watch(TrainerCallback):
    """Feeds the reward-hacking monitor with what is logged and replied. A warning is told; a stop saves a checkpoint and ends
    the run, with its alerts in `stops`.

    A run that goes on feeds it with the lines it has written before, so it has to come after MetricsFile.
    """

    def __init__(self, trainer: Any, stage: Stage) -> None:
        self.trainer, self.path, self.annotator = trainer, stage.path, stage.dataset.annotator
        self.monitor = watch.monitor_of(stage)
        self.alerts, self.suspicious = stage.path / "alerts.jsonl", stage.path / "suspicious.jsonl"
        self.told: set[tuple[int, str, str]] = set()
        self.stops: list[Alert] = []

    def on_train_begin(self, args, state, control, **kwargs):
        keep_lines(self.alerts, state.global_step)
        self.told = {(entry["step"], entry["rule"], entry["source"]) for entry in read_lines(self.alerts)}
        before = watch.points(self.path, self.annotator, state.global_step)
        self._feed(before, control)
        if self.stops:  # the same command again is no way around a stop
            raise self.stopped()
        replies = args.eval_strategy != "no" and getattr(self.trainer, "eval_datasets", None)
        if self.monitor.rules and replies and not state.global_step and not any(samples for *_, samples in before):
            self.trainer.evaluate()  # the replies that later ones are compared with are the SFT model's

    def on_log(self, args, state, control, logs=None, **kwargs):
        self._feed([(state.global_step, logs or {}, ())], control)

    def on_evaluate(self, args, state, control, **kwargs):
        self._feed(watch.replies(self.path, self.annotator, first=state.global_step), control)

    def _feed(self, points: Iterable[watch.Point], control: Any) -> None:
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


class Bar(TrainerCallback):
    """One bar a stage with rate and time left; a plain line now and then where there is no terminal."""

    SHOWN = {"loss": "loss", "eval_loss": "held-out", "objective/scores": "reward", "objective/kl": "kl"}

    def __init__(self, name: str) -> None:
        self.name, self.bar, self.facts, self.began, self.first, self.told = name, None, {}, 0.0, 0, 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.began, self.first = time.time(), state.global_step
        if is_main() and sys.stderr.isatty():
            from tqdm import tqdm

            width = min(100, shutil.get_terminal_size().columns)
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.name, ncols=width, leave=True)

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)
        elif is_main() and (time.time() - self.told > 15 or state.global_step == state.max_steps):
            self.told = time.time()
            spent, done = time.time() - self.began, max(1, state.global_step - self.first)
            left = spent / done * (state.max_steps - state.global_step)
            facts = "  ".join(f"{k} {v}" for k, v in self.facts.items())
            print(
                f"{self.name}  step {state.global_step}/{state.max_steps}  {done / spent:.2f}/s  {left:.0f} s left  {facts}",
                flush=True,
            )

    def on_log(self, args, state, control, logs=None, **kwargs):
        logs = logs or {}
        self.facts |= {short: f"{float(logs[key]):.3f}" for key, short in self.SHOWN.items() if key in logs}
        if self.bar is not None:
            self.bar.set_postfix(self.facts, refresh=False)

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.close()


def install(trainer: Any, stage: Stage) -> tuple[Preemption, Watch]:
    """Give a trainer our callbacks in place of the library's printing ones; rewards are watched where there are any."""
    for printing in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printing)
    preemption, watching = Preemption(), Watch(trainer, stage)
    rewarded = [watching] if stage.method.name in ("ppo", "dpo") else []
    for callback in (MetricsFile(stage.path), Complete(), Finite(), preemption, *rewarded, Bar(stage.run.stage)):
        trainer.add_callback(callback)
    return preemption, watching
