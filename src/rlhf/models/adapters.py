"""Every way an adapter is made, read, checked, copied, widened and switched."""

import copy
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf.config import Stage
from rlhf.errors import Refusal, nearest
from rlhf.fields import checked
from rlhf.files import FINAL
from rlhf.shell import setting


def lora_config(stage: Stage, task: str) -> Any:
    """The group `adapter` as a peft.LoraConfig for `task` (CAUSAL_LM or SEQ_CLS)."""
    from peft import LoraConfig

    settings = checked(LoraConfig, dict(stage.adapter.args), "adapter.args")
    try:
        return LoraConfig(task_type=task, **settings)
    except (ValueError, TypeError) as error:
        raise Refusal("adapter.args", settings, f"refused by peft.LoraConfig: {error}") from error


def with_adapter(stage: Stage, base: Any, start: str | None, task: str) -> Any:
    """A trainable LoRA named `default` on `base`: new, or the weights of the adapter folder `start`.

    For SEQ_CLS the scalar head is trained and saved with it. Adapters are fp32: updates of a bf16 weight below 1/256
    are lost.
    """
    from peft import get_peft_model

    lora, widen = lora_config(stage, task), None
    check_targets(lora, base)
    if start is not None:
        stored = read_adapter_config(Path(start), stage.model.path, "method.start_from")
        if lora.r < stored.r:
            fix = f"adapter.args.r={stored.r} or more, or train that stage again"
            raise Refusal("adapter.args.r", lora.r, f"method.start_from={start} has rank {stored.r}", fix=fix)
        widen = _scale(stored) / _scale(lora)
    if task == "SEQ_CLS":
        lora.modules_to_save = ["score"]
    model = get_peft_model(base, lora)
    if start is not None:
        fill_adapter(model, "default", Path(start), "method.start_from", widen)
    return model


def check_targets(lora: Any, base: Any) -> None:
    """Refuses target modules that `base` lacks; PEFT refuses them only where none is left, and otherwise skips them."""
    given, names = lora.target_modules or (), [name for name, _ in base.named_modules()]
    if isinstance(given, str):
        absent = [] if given.lower() == "all-linear" or any(re.fullmatch(given, name) for name in names) else [given]
    else:
        absent = sorted(target for target in given if not any(f".{name}".endswith(f".{target}") for name in names))
    if absent:
        known = {name.rpartition(".")[2] for name, module in base.named_modules() if hasattr(module, "in_features")}
        why = f"{type(base).__name__} has no such layers{nearest(absent[0], known)}"
        raise Refusal("adapter.args.target_modules", ",".join(absent), why, allowed=["all-linear", *sorted(known)])


def _scale(lora: Any) -> float:
    """What PEFT multiplies B A by."""
    return lora.lora_alpha / (lora.r**0.5 if lora.use_rslora else lora.r)


@contextmanager
def trainable_kept_in_fp32(model: Any) -> Iterator[None]:
    """TRL's constructors cast what is trainable on a quantized base to bf16 (trl 1.12, sft_trainer:1148); undo that.

    The rounded copy would differ from its own reference, so DPO would not start at ln 2, and fp32 heads would not be
    fp32.
    """
    kept = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    yield
    for name, parameter in model.named_parameters():
        if name in kept:
            parameter.data = kept[name]


WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"

# modules_to_save of a sequence classifier: its head, which lives outside PEFT here
HEAD_MODULES = {"score", "classifier"}


def read_adapter_config(folder: Path, base: str | None, key: str) -> Any:
    """The LoRA config in an adapter folder as one for a causal LM, checked against the name of the base it will sit on.

    Raises a Refusal of `key=folder`: no adapter there, not LoRA, another base, or one that changed its base or holds
    full layers.
    """
    from peft import LoraConfig

    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise Refusal(key, folder, f"no {name} there", fix="the folder in which a stage saved its adapter")
    try:
        stored = json.loads((folder / CONFIG).read_text())
    except ValueError as error:
        raise Refusal(key, folder, f"{CONFIG} is not JSON ({error})", fix="train that stage again") from error
    if stored.get("peft_type") != "LORA":
        why = f"peft_type is {stored.get('peft_type')}, and only LORA adapters can share a base"
        raise Refusal(key, folder, why, fix="train that stage again with adapter=lora")
    trained_on = stored.get("base_model_name_or_path")
    if trained_on and base and not same_base(trained_on, base):
        why = f"trained on the base {trained_on}, and this run uses {base}"
        raise Refusal(key, folder, why, fix=f"{setting('model.path', trained_on)}, or train it on this base")
    config: Any = LoraConfig.from_pretrained(str(folder))
    init = str(config.init_lora_weights)
    if init.lower().startswith(("pissa", "olora", "corda", "loftq")):
        why = f"init_lora_weights={init} changed the base it was trained on, so it cannot share one"
        raise Refusal(key, folder, why, fix="train it with adapter.args.init_lora_weights=true")
    if extra := sorted(set(config.modules_to_save or ()) - HEAD_MODULES):
        fix = "train it with LoRA on them instead: adapter.args.target_modules"
        raise Refusal(key, folder, f"modules_to_save has {extra}, which are full layers", fix=fix)
    config.modules_to_save, config.task_type = None, "CAUSAL_LM"
    return copy_config(config)


def same_base(one: str, other: str) -> bool:
    """Whether two names mean one base: the same id or folder, or the same run of a recipe whose runs were moved."""
    if one == other or os.path.realpath(one) == os.path.realpath(other):
        return True
    ends = [Path(name).parts[-3:] for name in (one, other)]
    return ends[0] == ends[1] and ends[0][-1] == FINAL


def read_weights(folder: Path) -> tuple[dict[str, Tensor], Tensor | None]:
    """The tensors of an adapter folder by name, and its scalar head's `[labels, H]` weight in fp32, if it has one."""
    from safetensors.torch import load_file

    stored = load_file(str(folder / WEIGHTS)) if (folder / WEIGHTS).is_file() else {}
    heads = [stored.pop(name) for name in list(stored) if _is_head(name)]
    return stored, heads[0].float() if heads else None


def adapter_weights(peft: Any, adapter: str) -> dict[str, Tensor]:
    """The parameters of an adapter, without a scalar head's, by the names under which PEFT saves them."""
    from peft import get_peft_model_state_dict

    named = dict(peft.named_parameters())
    own = get_peft_model_state_dict(peft, state_dict=named, adapter_name=adapter, save_embedding_layers=False)
    return {name: parameter for name, parameter in own.items() if not _is_head(name)}


def _is_head(name: str) -> bool:
    return name.endswith("score.weight") or ".score.modules_to_save." in name


def fill_adapter(peft: Any, adapter: str, folder: Path, key: str, widen: float | None = None) -> Tensor | None:
    """Fills an adapter from a folder; returns the `[labels, H]` weight of the folder's scalar head, if it has one."""
    stored, head = read_weights(folder)
    fill(adapter_weights(peft, adapter), stored, folder, key, widen)
    return head


@torch.no_grad()
def fill(own: dict[str, Tensor], stored: dict[str, Tensor], folder: Path, key: str, widen: float | None = None) -> None:
    """Copies `stored`, read from `folder`, into the tensors of the same names in `own`: every one of them or none.

    With `widen`, the ratio of the two scalings, an adapter may have a higher rank than the stored one and sit on more
    layers: B is zero in what is new and rescaled in what is old, so that the model computes what it did before. Raises
    a Refusal of `key=folder`.
    """
    missing = sorted(own.keys() - stored.keys()) if widen is None else []
    extra = sorted(stored.keys() - own.keys())
    if missing or extra:
        why = f"{len(missing)} tensors are missing ({missing[:1]}), {len(extra)} have no place ({extra[:1]})"
        fix = "the adapter.args.target_modules and model.path that it was trained with, or train it again"
        raise Refusal(key, folder, f"{why}; it was trained with other target modules or on another base", fix=fix)
    for name, given in stored.items():
        if not _fits(name, given, own[name], widen is not None):
            why = f"{name} has shape {tuple(given.shape)}, this base needs {tuple(own[name].shape)}"
            fix = "the model.path and adapter.args that it was trained with, or train it again"
            raise Refusal(key, folder, f"{why}; it was trained on another base", fix=fix)
    for name, given in stored.items():
        if widen is not None and ".lora_B." in name:
            own[name].zero_()
            given = given * widen
        own[name][tuple(map(slice, given.shape))].copy_(given)


def _fits(name: str, given: Tensor, own: Tensor, widen: bool) -> bool:
    """A is `[rank, in]`, B is `[out, rank]`: only the rank may grow."""
    if not widen:
        return given.shape == own.shape
    rank = 0 if ".lora_A." in name else 1
    kept = given.ndim == own.ndim == 2 and given.shape[1 - rank] == own.shape[1 - rank]
    return kept and given.shape[rank] <= own.shape[rank]


def switch_adapter(peft: Any, adapter: str | None) -> None:
    """Activates one adapter and leaves every `requires_grad` as it was.

    PEFT's `set_adapter` makes what it activates trainable and freezes the rest (peft#2759): the reference would start
    to learn, and the policy's gradients would vanish.
    """
    flags = [(p, p.requires_grad) for p in peft.parameters()]
    peft.set_adapter(adapter)
    for parameter, flag in flags:
        parameter.requires_grad_(flag)


def copy_adapter(peft: Any, source: str | None, target: str) -> None:
    """Adds a frozen copy of the adapter `source` under the name `target`; the active adapter stays the same."""
    flags = [(p, p.requires_grad) for p in peft.parameters()]
    peft.add_adapter(target, copy_config(peft.peft_config[source]))
    weights = dict(peft.named_parameters())
    with torch.no_grad():
        for name, parameter in weights.items():
            if f".{target}." in name:
                parameter.copy_(weights[name.replace(f".{target}.", f".{source}.")])
                parameter.requires_grad_(False)
    for parameter, flag in flags:
        parameter.requires_grad_(flag)


def copy_config(config: Any) -> Any:
    """The same LoRA with plain initialization: the weights are loaded over it, the base must not be touched."""
    config = copy.deepcopy(config)
    config.inference_mode, config.lora_dropout, config.init_lora_weights = False, 0.0, True
    return config
