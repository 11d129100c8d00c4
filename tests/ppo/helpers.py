"""What a PPO run logged and which weights it ended with, for comparing runs."""

import torch
from transformers import TrainerCallback

TIMES = ("time/", "memory/", "eps", "eval_runtime")


def history(trainer, key):
    return [row[key] for row in trainer.state.log_history if key in row]


def timeless(trainer):
    return [{k: v for k, v in row.items() if not k.startswith(TIMES)} for row in trainer.state.log_history]


def weights(trainer):
    parts = [*trainer.policy.trainable(), *trainer.value.trainable()]
    return {f"{i}/{name}": p.detach().clone() for i, (name, p) in enumerate(parts)}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step
