"""What a checkpoint of a PPO run holds, in safetensors and JSON, never pickle, and how a run goes on from it."""

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers.trainer import TRAINER_STATE_NAME

from rlhf import files
from rlhf.errors import Refusal
from rlhf.models import roles
from rlhf.ppo.objective import KLController, RunningMoments


def save_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """State tensors to safetensors, everything else (step sizes, betas, plain numbers) to JSON."""
    state = optimizer.state_dict()
    tensors, plain = {}, {}
    for index, entry in state["state"].items():
        for name, value in entry.items():
            (tensors if torch.is_tensor(value) else plain)[f"{index}/{name}"] = value
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, folder / "optimizer.safetensors")
    (folder / "optimizer.json").write_text(json.dumps({"groups": state["param_groups"], "plain": plain}, indent=1))


def load_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    stored = json.loads((folder / "optimizer.json").read_text())
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**stored["plain"], **load_file(str(folder / "optimizer.safetensors"))}.items():
        index, name = key.split("/", 1)
        state.setdefault(int(index), {})[name] = value
    groups = [{k: tuple(v) if k == "betas" else v for k, v in group.items()} for group in stored["groups"]]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def save_random_states(folder: Path) -> None:
    """The global generators: the loop draws from none (`sampling.stream`), reward functions and callbacks may."""
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    save_file(tensors, folder / "random.safetensors")
    version, keys, gauss = random.getstate()
    kind, words, position, has_gauss, cached = np.random.get_state(legacy=True)  # pyright: ignore
    numpy_state = [kind, np.asarray(words).tolist(), position, has_gauss, cached]
    (folder / "random.json").write_text(json.dumps({"python": [version, list(keys), gauss], "numpy": numpy_state}))


def load_random_states(folder: Path) -> None:
    tensors = load_file(str(folder / "random.safetensors"))
    torch.set_rng_state(tensors["torch"])
    if torch.cuda.is_available() and len(tensors) == 1 + torch.cuda.device_count():
        torch.cuda.set_rng_state_all([tensors[f"cuda{i}"] for i in range(torch.cuda.device_count())])
    stored = json.loads((folder / "random.json").read_text())
    version, keys, gauss = stored["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, words, position, has_gauss, cached = stored["numpy"]
    np.random.set_state((kind, np.array(words, dtype=np.uint32), position, has_gauss, cached))


STATE = "ppo_state.json"


def fingerprint(trainer: Any) -> dict[str, Any]:
    """What must be the same for a run to continue; prompts and random numbers are functions of it."""
    return {
        "prompts": trainer.prompts.rows,
        "batch_size": trainer.args.batch_size,
        "seed": trainer.args.seed,
        "policy_parameters": len(trainer.policy.trainable()),
        "value_parameters": len(trainer.value.trainable()),
    }


def write_state(trainer: Any, folder: Path) -> None:
    """Everything but the weights: optimizer, schedule, KL controller, reward moments, counters, random states."""
    save_optimizer(trainer.optimizer, folder)
    save_random_states(folder)
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
    """The newest checkpoint whose bytes are those written, or the one named; raises Refusal if there is none."""
    if resume_from is True:
        found, left_out = files.newest(output_dir)
        if found is None:
            why = f"{output_dir} has no complete checkpoint" + "".join(f"; {why}" for why in left_out.values())
            raise Refusal("resume_from_checkpoint", "true", why, fix="resume_from_checkpoint=false")
        return found
    folder = Path(str(resume_from))
    if why := files.broken(folder):
        fix = f"one that holds the file `{files.COMPLETE}`, or resume_from_checkpoint=true for the newest"
        raise Refusal("resume_from_checkpoint", folder, f"is not a complete checkpoint: {why}", fix=fix)
    return folder


def restore(trainer: Any, folder: Path) -> None:
    """Puts a trainer into the state in which it wrote `folder`."""
    stored = json.loads((folder / STATE).read_text())
    was = stored["fingerprint"]
    differing = [f"{k} was {was.get(k)}, is {v}" for k, v in fingerprint(trainer).items() if was.get(k) != v]
    if differing:
        why, fix = f"belongs to another run: {'; '.join(differing)}", "the settings of that run, or another output_dir"
        raise Refusal("resume_from_checkpoint", folder, why, fix=fix)
    restore_weights(trainer, folder)
    load_optimizer(trainer.optimizer, folder)
    trainer.lr_scheduler.load_state_dict({**trainer.lr_scheduler.state_dict(), **stored["schedule"]})
    kl_controller = {**stored["kl_controller"], "target": trainer.args.kl_target, "horizon": trainer.args.kl_horizon}
    trainer.loop.kl_controller = KLController(**kl_controller)
    trainer.loop.moments = RunningMoments(**stored["moments"])
    trainer.state = type(trainer.state).load_from_json(str(folder / TRAINER_STATE_NAME))
    load_random_states(folder)


def restore_weights(trainer: Any, folder: Path) -> None:
    roles.load_role(trainer.policy, folder)
    roles.load_role(trainer.value, folder / "value")
