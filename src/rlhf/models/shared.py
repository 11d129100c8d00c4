"""One base model carries an adapter a role, in training and afterwards: several for the memory of one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor

from rlhf.config import Stage
from rlhf.models.adapters import (
    WEIGHTS,
    copy_adapter,
    copy_config,
    load_adapter,
    load_lora,
    read_adapter_config,
    switch_adapter,
)
from rlhf.models.base import load_base
from rlhf.models.layers import plain_4bit_kernels
from rlhf.models.roles import Role, ScalarHead, disable_dropout
from rlhf.models.tokenizer import check_tokenizer


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


def scalar_role(name: str, model: Any, trained: bool) -> Role:
    """A reward or value role from a sequence classifier, plain or under PEFT."""
    peft, base = unwrap(model)
    score = getattr(base, "score", None)
    if score is None:
        raise ValueError(
            f"{name} model {type(base).__name__} has no `score` head; load it with AutoModelForSequenceClassification"
        )
    if peft is not None and hasattr(score, "modules_to_save"):
        score = score.modules_to_save[peft.active_adapter]
    if score.out_features != 1:
        raise ValueError(
            f"{name} model has {score.out_features} labels and none is chosen; load it with num_labels=1, or pass a "
            "function "
            "that picks the label as a scorer"
        )
    adapter = peft.active_adapter if peft is not None else None
    return Role(name, base, peft=peft, adapter=adapter, head=ScalarHead(score), trained=trained)


def unwrap(model: Any) -> tuple[Any, Any]:
    return (model, model.get_base_model()) if isinstance(model, PeftModel) else (None, model)


def load_roles(
    stage: Stage, tokenizer: Any, folders: Mapping[str, Path | None], reward: Path | None = None
) -> dict[str, Role]:
    """Roles by name from the folders that stages left; None stands for the bare base. `reward` adds a role of that name.

    Adapters share one base; with adapter=none each folder is a model of its own.
    """
    if stage.adapter.name == "none":
        roles = {}
        for name, folder in folders.items():
            roles[name] = Role(name, load_base(stage, tokenizer, path=str(folder) if folder else None).eval())
        if reward is not None:
            pass

            roles["reward"] = scalar_role(
                "reward", load_base(stage, tokenizer, path=str(reward), reward=True).eval(), trained=False
            )
        return roles
    from peft import PeftModelForCausalLM

    base, peft = load_base(stage, tokenizer), None
    adapters = {name: folder for name, folder in folders.items() if folder is not None}
    if reward is not None:
        adapters["reward"] = reward
    heads: dict[str, Any] = {}
    for name, folder in adapters.items():
        config = read_adapter_config(folder, base.config._name_or_path, name)
        config.task_type = "CAUSAL_LM"
        if peft is None:
            peft = PeftModelForCausalLM(base, config, adapter_name=name)
        else:
            peft.add_adapter(name, config)
        if name == "reward":
            heads[name] = load_adapter(peft, name, folder)
        else:
            load_lora(peft, folder, name)
    base.eval().requires_grad_(False)
    disable_dropout(base)
    roles = {}
    for name, folder in (dict(folders) | ({"reward": reward} if reward else {})).items():
        head = None
        if name in heads:
            head = reward_head(heads[name], base, f"reward = {folder}")
        roles[name] = Role(name, base, peft=peft, adapter=name if folder else None, head=head)
    return roles
