"""What a checkpoint of a PPO run holds, and how a run continues from it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME

from rlhf.ppo import checkpoint
from rlhf.ppo.kl import KLController
from rlhf.ppo.scoring import RunningMoments

STATE = "ppo_state.json"


def fingerprint(trainer: Any) -> dict[str, Any]:
    """What must be the same for a run to continue; prompts and random numbers are functions of it."""
    args = trainer.args
    return {
        "prompts": trainer.prompts.rows,
        "batch_size": args.batch_size,
        "seed": args.seed,
        "policy_parameters": len(trainer.policy.trainable()),
        "value_parameters": len(trainer.value.trainable()),
    }


def write_state(trainer: Any, folder: Path) -> None:
    """Everything but the weights: optimizer, schedule, KL controller, reward moments, counters, random states."""
    checkpoint.save_optimizer(trainer.optimizer, folder)
    checkpoint.save_random_states(folder)
    schedule = {k: v for k, v in trainer.lr_scheduler.state_dict().items() if k != "lr_lambdas"}
    state = {
        "fingerprint": fingerprint(trainer),
        "update": trainer.state.global_step,
        "schedule": schedule,
        "kl_controller": asdict(trainer.loop.kl_controller),
        "moments": asdict(trainer.loop.moments),
    }
    (folder / STATE).write_text(json.dumps(state, indent=1))
    trainer.state.save_to_json(str(folder / TRAINER_STATE_NAME))


def find(resume_from: bool | str | Path, output_dir: Path) -> Path:
    """The newest complete checkpoint, or the one named; raises ValueError if there is none."""
    if resume_from is True:
        found = checkpoint.checkpoints(output_dir)
        if not found:
            raise ValueError(
                f"resume_from_checkpoint = true, but {output_dir} has no complete checkpoint; start without it"
            )
        return found[-1]
    folder = Path(str(resume_from))
    if not checkpoint.is_complete(folder):
        raise ValueError(
            f"resume_from_checkpoint = {folder} is not a complete checkpoint; use one that holds the file `{checkpoint.MARKER}`"
        )
    return folder


def restore(trainer: Any, folder: Path) -> None:
    """Puts a trainer into the state in which it wrote `folder`."""
    stored = json.loads((folder / STATE).read_text())
    now = fingerprint(trainer)
    differing = [
        f"{k} was {stored['fingerprint'].get(k)}, is {v}" for k, v in now.items() if stored["fingerprint"].get(k) != v
    ]
    if differing:
        raise ValueError(f"{folder} belongs to another run: {'; '.join(differing)}; resume with the same settings")
    restore_weights(trainer, folder)
    checkpoint.load_optimizer(trainer.optimizer, folder)
    trainer.lr_scheduler.load_state_dict({**trainer.lr_scheduler.state_dict(), **stored["schedule"]})
    kl_controller = {**stored["kl_controller"], "target": trainer.args.kl_target, "horizon": trainer.args.kl_horizon}
    trainer.loop.kl_controller = KLController(**kl_controller)
    trainer.loop.moments = RunningMoments(**stored["moments"])
    trainer.state = type(trainer.state).load_from_json(str(folder / TRAINER_STATE_NAME))
    checkpoint.load_random_states(folder)


def restore_weights(trainer: Any, folder: Path) -> None:
    checkpoint.load_role(trainer.policy, folder)
    checkpoint.load_role(trainer.value, folder / "value")
