"""Checkpoints that are complete or absent, in safetensors and JSON, never pickle."""

import copy
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlhf.ppo.roles import Role
from rlhf.ppo.shared import WEIGHTS
from rlhf.record import COMPLETE as MARKER
from rlhf.record import is_complete

PREFIX = "checkpoint-"
HEAD_KEY = "base_model.model.score.weight"


def write_complete(folder: Path, write: Callable[[Path], None]) -> None:
    """Writes a checkpoint: what `write` puts there, then the marker with the size of every file, and only then a name.

    The marker is for what happens to a checkpoint later: a deletion that was cut short, a copy that lost its end.
    """

    def write_and_mark(partial: Path) -> None:
        write(partial)
        sizes = {str(p.relative_to(partial)): p.stat().st_size for p in sorted(partial.rglob("*")) if p.is_file()}
        (partial / MARKER).write_text(json.dumps(sizes, indent=1))

    replace_folder(folder, write_and_mark)


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a hidden sibling of `folder`, makes it durable, and renames it to `folder` last.

    Killed at any moment, `folder` is absent, what it was before, or all that it should be.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial, old = (folder.parent / f".{kind}-{folder.name}" for kind in ("partial", "old"))
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir()
    write(partial)
    for path in [*partial.rglob("*"), partial]:
        _sync(path)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [p for p in output_dir.glob(f"{PREFIX}*") if p.name[len(PREFIX) :].isdigit() and is_complete(p)]
    return sorted(found, key=lambda p: int(p.name[len(PREFIX) :]))


def rotate(output_dir: Path, limit: int | None, best: str | None) -> None:
    """Deletes the oldest complete checkpoints beyond `limit`, never the newest and never the best."""
    if not limit or limit < 1:
        return
    found = checkpoints(output_dir)
    keep = {found[-1]} | ({p for p in found if best and p == Path(best)}) if found else set()
    excess = len(found) - max(limit, len(keep))
    for path in [p for p in found if p not in keep][: max(excess, 0)]:
        (path / MARKER).unlink()  # a deletion cut short must not look complete
        shutil.rmtree(path)


def save_role(role: Role, folder: Path) -> None:
    """An adapter in PEFT's layout (with its head as a sequence classifier's), or a whole model in Hugging Face's."""
    folder.mkdir(parents=True, exist_ok=True)
    if role.peft is None:
        role.model.save_pretrained(folder)
        return
    from peft import get_peft_model_state_dict

    tensors = get_peft_model_state_dict(role.peft, adapter_name=str(role.adapter), save_embedding_layers=False)
    config = copy.deepcopy(role.peft.peft_config[role.adapter])
    config.inference_mode = True
    if role.head is not None:
        tensors[HEAD_KEY] = role.head.linear.weight
        config.task_type, config.modules_to_save = "SEQ_CLS", ["classifier", "score"]
    save_file(
        {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, folder / WEIGHTS, {"format": "pt"}
    )
    config.save_pretrained(folder)


@torch.no_grad()
def load_role(role: Role, folder: Path) -> None:
    """Puts back what `save_role` saved, bit for bit; raises ValueError when names or shapes do not match."""
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob(WEIGHTS if role.peft is not None else "model*.safetensors")):
        tensors |= load_file(str(path))
    if role.peft is None:
        own = role.model.state_dict(keep_vars=True)
        pointers = {own[name].data_ptr() for name in tensors if name in own}
        missing = [
            n for n, t in own.items() if n not in tensors and t.data_ptr() not in pointers
        ]  # tied ones are not saved
    else:
        from peft import get_peft_model_state_dict

        names = get_peft_model_state_dict(role.peft, adapter_name=str(role.adapter), save_embedding_layers=False)
        parameters = {p.data_ptr(): p for p in role.peft.parameters()}
        own = {name: parameters[tensor.data_ptr()] for name, tensor in names.items()}
        if role.head is not None:
            own[HEAD_KEY] = role.head.linear.weight
        missing = sorted(set(own) - set(tensors))
    extra = sorted(set(tensors) - set(own))
    if missing or extra:
        raise ValueError(
            f"{folder} does not hold the {role.name} of this run: missing {missing[:2]}, unknown {extra[:2]}"
        )
    for name, tensor in tensors.items():
        own[name].copy_(tensor)


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
    """The global generators. The loop draws from none of them (`rollout.stream`), but reward functions and callbacks
    may.
    """
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
