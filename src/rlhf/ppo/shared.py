"""One base model carries an adapter a role: policy, reference, reward and value for the memory of one."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf.ppo.roles import Role, ScalarHead, copy_adapter, copy_config, disable_dropout, switch_adapter

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
# modules_to_save of a sequence classifier: its head, which lives outside PEFT here
HEAD_MODULES = {"score", "classifier"}


@dataclass
class Roles:
    """The four roles on one base; `peft` is the PeftModel that carries their adapters.

    `reward` is what PPOTrainer takes: the reward roles, or what replaces them.
    """

    policy: Role
    reference: Role
    reward: Any
    value: Role
    peft: Any


def shared_roles(
    base: Any,
    tokenizer: Any,
    policy_start: Path | None,
    reward_start: Path | Sequence[Path],
    lora: Any = None,
    *,
    value_head: str = "copy",
) -> Roles:
    """Puts the four adapters on `base`, a causal LM, quantized or not.

    `policy_start` is the adapter folder that SFT left (None: a fresh LoRA from the config `lora`); the reference is a
    frozen copy of it. `reward_start` is the adapter folder of the reward model, whose `score` head is read from the
    same file, or several such folders, each an adapter of its own. The value starts as a trainable copy of the first
    adapter and head, or with `value_head="zero"` with a head of zeros, as in the code of Ziegler et al.; without a
    reward adapter it starts from the policy's, with a head of zeros.

    Raises ValueError when a folder does not fit: another base, tokenizer, shape or target module, or no head.
    """
    from peft import PeftModelForCausalLM

    if value_head not in ("copy", "zero"):
        raise ValueError(f"value_head = {value_head!r} is not allowed (copy, zero)")
    if policy_start is None and lora is None:
        raise ValueError("policy_start = None needs a LoRA config to start a fresh adapter from")
    plain_4bit_kernels(base)
    trained_on = getattr(base.config, "_name_or_path", None)
    policy_config = read_adapter_config(policy_start, trained_on, "policy_start") if policy_start else copy_config(lora)
    policy_config.task_type = "CAUSAL_LM"
    peft = PeftModelForCausalLM(base, policy_config, adapter_name="policy")
    if policy_start:
        load_adapter(peft, "policy", policy_start)
    copy_adapter(peft, "policy", "reference")
    folders = [reward_start] if isinstance(reward_start, str | Path) else list(reward_start)
    rewards = [_add_reward(peft, base, tokenizer, Path(folder), i) for i, folder in enumerate(folders)]
    copy_adapter(peft, str(rewards[0].adapter) if rewards else "policy", "value")
    first = rewards[0].head if rewards and value_head == "copy" else None

    switch_adapter(peft, "policy")
    for name, parameter in peft.named_parameters():
        parameter.requires_grad_(".policy." in name or ".value." in name)
    disable_dropout(peft)
    hidden_size = base.config.get_text_config().hidden_size
    start = ScalarHead.of_size(hidden_size, first.linear.weight if first else None, base.device)
    return Roles(
        policy=Role("policy", base, peft=peft, adapter="policy", trained=True),
        reference=Role("reference", base, peft=peft, adapter="reference"),
        reward=rewards[0] if len(rewards) == 1 else rewards,
        value=Role("value", base, peft=peft, adapter="value", head=start, trained=True),
        peft=peft,
    )


def _add_reward(peft: Any, base: Any, tokenizer: Any, folder: Path, index: int) -> Role:
    """One reward model on the base: its adapter and its frozen head."""
    name = f"reward{index or ''}"
    config = read_adapter_config(folder, getattr(base.config, "_name_or_path", None), "reward_start")
    check_tokenizer(folder, tokenizer, "reward_start")
    config.task_type = "CAUSAL_LM"
    peft.add_adapter(name, config)
    weight = load_adapter(peft, name, folder)
    head = reward_head(weight, base, f"reward_start = {folder}")
    head.requires_grad_(False)
    return Role("reward", base, peft=peft, adapter=name, head=head)


def reward_head(weight: Tensor | None, base: Any, what: str) -> ScalarHead:
    """The head that `load_adapter` found; raises ValueError when there is none, or one of several labels."""
    hidden_size = base.config.get_text_config().hidden_size
    if weight is None:
        raise ValueError(
            f"{what}: {WEIGHTS} has no `score.weight`, so this is not the adapter of a reward model "
            "(or its head was not saved); train one with task_type=SEQ_CLS, which saves the head"
        )
    if tuple(weight.shape) != (1, hidden_size):
        raise ValueError(
            f"{what}: the `score` head has shape {tuple(weight.shape)}, wanted (1, {hidden_size}): one label on this base"
        )
    return ScalarHead.of_size(hidden_size, weight, base.device)


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


def check_tokenizer(folder: Path, tokenizer: Any, key: str) -> None:
    """Token ids go straight from the policy into the reward role, so both must mean the same by them (TRL#1674)."""
    if not (Path(folder) / "tokenizer_config.json").is_file():
        return
    from transformers import AutoTokenizer

    stored: Any = AutoTokenizer.from_pretrained(str(folder))
    ours, theirs = tokenizer.get_vocab(), stored.get_vocab()
    if ours != theirs:
        differing = sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k))
        raise ValueError(
            f"{key} = {folder}: its tokenizer differs from the policy's in {len(differing)} tokens (first: "
            f"{differing[:3]}); train the reward model with this tokenizer, or use it as a separate scorer of text"
        )


def plain_4bit_kernels(base: torch.nn.Module) -> None:
    """Keeps bitsandbytes from repacking 4-bit weights in place for its CPU kernel.

    In eval mode on CPUs with avx512_bf16, Linear4bit rewrites its weights into another layout with bf16 scales, and
    back when saved: the base then computes other numbers in scoring than in training, and the ratio is not 1.
    """
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False
