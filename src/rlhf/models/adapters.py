"""Every way an adapter is made, read, checked, copied, widened and switched."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf.config import Stage
from rlhf.errors import ConfigError
from rlhf.fields import checked


def lora_config(stage: Stage, task: str) -> Any:
    """The group `adapter` as a peft.LoraConfig for `task` (CAUSAL_LM or SEQ_CLS)."""
    from peft import LoraConfig

    settings = checked(LoraConfig, dict(stage.adapter.args), "adapter.args")
    try:
        return LoraConfig(task_type=task, **settings)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"adapter.args is refused by peft.LoraConfig: {error}") from error


def with_adapter(stage: Stage, base: Any, start: str | None, task: str) -> Any:
    """A trainable LoRA named `default` on `base`: new, or the weights of the adapter folder `start`.

    For SEQ_CLS the scalar head is trained and saved with it. Adapters are fp32: updates of a bf16 weight below 1/256 are lost.
    """
    from peft import LoraConfig, get_peft_model

    lora = lora_config(stage, task)
    if start is not None:
        stored: Any = LoraConfig.from_pretrained(start)
        if lora.r < stored.r:
            raise ConfigError(
                f"adapter.args.r={lora.r}, but method.start_from={start} has rank {stored.r}\n"
                f"  fix: adapter.args.r={stored.r} or more, or train that stage again"
            )
        trained_on, given = stored.base_model_name_or_path, stage.model.path
        if trained_on and given and not same_base(trained_on, given):
            raise ConfigError(
                f"model.path={given}, but the adapter method.start_from={start} was trained on {trained_on}\n"
                f"  fix: model.path={trained_on}, or method.start_from=null"
            )
    if task == "SEQ_CLS":
        lora.modules_to_save = ["score"]
    model = get_peft_model(base, lora)
    if start is not None:
        load_lora(model, Path(start), widen=_scale(stored) / _scale(lora))
    return model


def _scale(lora: Any) -> float:
    """What PEFT multiplies B A by."""
    return lora.lora_alpha / (lora.r**0.5 if lora.use_rslora else lora.r)


def load_lora(model: Any, folder: Path, adapter: str = "default", widen: float | None = None) -> None:
    """Copy the LoRA weights of an adapter folder into `model`'s adapter, every one of them or none.

    With `widen`, the ratio of the two scalings, the adapter may have a higher rank and sit on more layers than the stored one: B is
    zero in what is new and rescaled in what is old, so that the model computes what it did before.
    """
    from safetensors.torch import load_file

    stored = load_file(str(folder / "adapter_model.safetensors"))
    own = {
        name.replace(f".{adapter}.", "."): p
        for name, p in model.named_parameters()
        if ".lora_" in name and f".{adapter}." in name
    }
    given = {key: value for key, value in stored.items() if ".lora_" in key}
    odd = sorted(given.keys() - own.keys() if widen else given.keys() ^ own.keys())
    odd += [key for key in given.keys() & own.keys() if not _fits(key, given[key], own[key], widen is not None)]
    if odd:
        raise ConfigError(
            f"{folder} holds an adapter for another model: {', '.join(odd[:2])} do not fit\n"
            "  fix: the same adapter.args.target_modules, or train that stage again"
        )
    with torch.no_grad():
        for key, value in given.items():
            if ".lora_B." in key:
                own[key].zero_()
                value = value * (widen or 1.0)
            own[key][: value.shape[0], : value.shape[1]].copy_(value)


def _fits(key: str, given: torch.Tensor, own: torch.Tensor, widen: bool) -> bool:
    """A is `[rank, in]`, B is `[out, rank]`: only the rank may grow."""
    rank = 0 if ".lora_A." in key else 1
    grows = given.shape[rank] <= own.shape[rank] if widen else given.shape[rank] == own.shape[rank]
    return given.ndim == own.ndim == 2 and given.shape[1 - rank] == own.shape[1 - rank] and grows


@contextmanager
def trainable_kept_in_fp32(model: Any) -> Iterator[None]:
    """TRL's constructors cast what is trainable on a quantized base to bf16 (trl 1.12, sft_trainer:1148); undo that.

    The rounded copy would differ from its own reference, so DPO would not start at ln 2, and fp32 heads would not be fp32.
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
    """The LoRA config in an adapter folder, checked against the name of the base it will sit on."""
    from peft import LoraConfig

    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(
                f"{key} = {folder}: no {name} there; point to the folder in which a stage saved its adapter"
            )
    stored = json.loads((folder / CONFIG).read_text())
    if stored.get("peft_type") != "LORA":
        raise ValueError(
            f"{key} = {folder}: peft_type is {stored.get('peft_type')}, only LORA adapters can share a base"
        )
    trained_on = stored.get("base_model_name_or_path")
    if trained_on and base and not same_base(trained_on, base):
        raise ValueError(
            f"{key} = {folder}: trained on base {trained_on!r}, this run uses {base!r}; train it on this base"
        )
    config: Any = LoraConfig.from_pretrained(str(folder))
    if str(config.init_lora_weights).lower().startswith(("pissa", "olora", "corda", "loftq")):
        raise ValueError(
            f"{key} = {folder}: init_lora_weights = {config.init_lora_weights!r} changed the base it was trained on, "
            "so it cannot "
            "share one; train with init_lora_weights=true"
        )
    extra = set(config.modules_to_save or ()) - HEAD_MODULES
    if extra:
        raise ValueError(
            f"{key} = {folder}: modules_to_save has {sorted(extra)}, which are full layers; use LoRA on them instead"
        )
    config.modules_to_save = None
    return copy_config(config)


def same_base(one: str, other: str) -> bool:
    """Whether two names mean one base: the same id or folder, or the same run of a recipe whose runs were moved."""
    if one == other or os.path.realpath(one) == os.path.realpath(other):
        return True
    ends = [Path(name).parts[-3:] for name in (one, other)]
    return ends[0] == ends[1] and ends[0][-1] == "final"


def load_adapter(peft: Any, adapter: str, folder: Path) -> Tensor | None:
    """Fills an adapter from `adapter_model.safetensors`, every key or none, and returns the `score` weight if there is
    one.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    stored = load_file(str(Path(folder) / WEIGHTS))
    heads = [key for key in stored if key.endswith("score.weight") or ".score.modules_to_save." in key]
    head = [stored.pop(key) for key in heads]
    wanted = get_peft_model_state_dict(peft, adapter_name=adapter, save_embedding_layers=False)
    missing, extra = sorted(set(wanted) - set(stored)), sorted(set(stored) - set(wanted))
    if missing or extra:
        raise ValueError(
            f"{folder}: {WEIGHTS} does not fit this base: {len(missing)} tensors are missing (first: {missing[:1]}) "
            "and "
            f"{len(extra)} have no place (first: {extra[:1]}); it was trained with other target modules or on another "
            "base"
        )
    for key, tensor in stored.items():
        if tensor.shape != wanted[key].shape:
            raise ValueError(
                f"{folder}: {key} has shape {tuple(tensor.shape)}, this base needs {tuple(wanted[key].shape)}; it was "
                "trained "
                "on another base"
            )
    set_peft_model_state_dict(peft, stored, adapter_name=adapter)
    return head[0].float() if head else None


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
    config = copy_config(peft.peft_config[source])
    flags = [(p, p.requires_grad) for p in peft.parameters()]
    peft.add_adapter(target, config)
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
    import copy

    config = copy.deepcopy(config)
    config.inference_mode = False
    config.lora_dropout = 0.0
    config.init_lora_weights = True
    return config
