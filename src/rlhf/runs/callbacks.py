"""What trainers do beside training: one progress bar, metrics.jsonl, complete checkpoints, guards and preemption."""

import math
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from rlhf.config import Stage
from rlhf.errors import GuardStop
from rlhf.files import CARD, METRICS_FILE, append_lines, keep_lines, mark, read_json, write_json
from rlhf.methods import METHODS
from rlhf.monitor.callback import Watch
from rlhf.parallel import ranks
from rlhf.parallel.ranks import is_main
from rlhf.parallel.sharding import part
from rlhf.parallel.trainer import COUNTED, Shared

TOKENS = "tokens.json"  # how many tokens were trained on when a checkpoint was written


class MetricsFile(TrainerCallback):
    """Appends each log line to metrics.jsonl, and drops the lines of steps that a resumed run is about to repeat."""

    def __init__(self, path: Path) -> None:
        self.path = path / METRICS_FILE

    def on_train_begin(self, args, state, control, **kwargs):
        logged = sum(entry["step"] == state.global_step for entry in state.log_history)
        with ranks.agreed():  # who reads these lines reads what was kept
            keep_lines(self.path, state.global_step, logged)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs:  # the mean loss of this process's steps at its end would not be that of a run that was resumed
            told = {key: value for key, value in logs.items() if key != "train_loss"}
            append_lines(self.path, [{"step": state.global_step, "time": round(time.time(), 2), **told}])


class Finite(TrainerCallback):
    """Stops a run whose loss, gradient or weights are no longer numbers, the weights before they are saved; the last checkpoint stays
    untouched."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.save = trainer, trainer._save_checkpoint
        trainer._save_checkpoint = self._save

    def on_log(self, args, state, control, logs=None, **kwargs):
        for key in ("loss", "grad_norm", "eval_loss"):
            value = (logs or {}).get(key)
            if value is not None and not math.isfinite(float(value)):
                self._stop(key, value)

    def _save(self, *given: Any, **named: Any) -> None:
        """Between two log lines a checkpoint may be due."""
        trained = [parameter for parameter in self.trainer.model.parameters() if parameter.requires_grad]
        if ranks.anywhere(not all(bool(part(parameter).isfinite().all()) for parameter in trained)):
            self._stop("a weight", math.nan)
        self.save(*given, **named)

    def _stop(self, key: str, value: Any) -> None:
        raise GuardStop(
            f"{key} is {value} at step {self.trainer.state.global_step}; training stopped\n"
            f"  the last checkpoint in {self.trainer.args.output_dir} is good\n"
            "  fix: a smaller method.args.learning_rate, or hardware.precision=fp32, with run.overwrite=true"
        )


class Complete(TrainerCallback):
    """Marks a checkpoint when all of it is on disk; one without the mark is not resumed from."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_save(self, args, state, control, **kwargs):
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if is_main() and folder.is_dir():
            write_json(folder / TOKENS, getattr(self.trainer, COUNTED, 0))
            (folder / CARD).unlink(missing_ok=True)  # PEFT's, of which nothing is filled in; final/ has a card
            mark(folder)


def go_on(trainer: Any, checkpoint: Path) -> None:
    """What the libraries leave out when they go on from a checkpoint.

    TRL 1.12 counts `num_tokens` from 0 again. The Trainer of transformers 5.23 makes one step more than `max_steps` where
    the last checkpoint was written in the middle of an epoch, and logs it.
    """
    if (checkpoint / TOKENS).is_file():  # older ones have none
        setattr(trainer, COUNTED, read_json(checkpoint / TOKENS))
    run_epoch = trainer._run_epoch

    def run_what_is_left(*args: Any, **options: Any) -> None:
        if trainer.state.global_step >= trainer.state.max_steps:
            trainer.control.should_training_stop = True
        else:
            run_epoch(*args, **options)

    trainer._run_epoch = run_what_is_left


class Preemption(TrainerCallback):
    """SIGTERM, to any rank, saves a checkpoint after the current step and ends the run; the same command goes on from there."""

    def __init__(self) -> None:
        self.asked = False
        self.before = signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: Any) -> None:
        self.asked = True

    def over(self) -> None:
        """From here on a SIGTERM does what it did before the training."""
        signal.signal(signal.SIGTERM, self.before)

    def on_step_end(self, args, state, control, **kwargs):
        self.asked = ranks.anywhere(self.asked)
        if self.asked:
            control.should_save = control.should_training_stop = True


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
            step = f"{state.global_step}/{state.max_steps}"
            print(f"{self.name}  step {step}  {done / spent:.2f}/s  {left:.0f} s left  {facts}", flush=True)

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
    if not METHODS[stage.method.name].own_loop:
        Shared(trainer, stage.seed)
    preemption, watching = Preemption(), Watch(trainer, stage)
    rewarded = [watching] if METHODS[stage.method.name].reward else []
    for callback in (
        MetricsFile(stage.path),
        Complete(trainer),
        Finite(trainer),
        preemption,
        *rewarded,
        Bar(stage.run.stage),
    ):
        trainer.add_callback(callback)
    return preemption, watching
