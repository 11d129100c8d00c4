"""One base model carries an adapter a role, in training and afterwards: several for the memory of one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from rlhf.config import Stage
from rlhf.errors import Refusal
from rlhf.models import adapters
from rlhf.models.adapters import WEIGHTS, belongs, copy_adapter, fill_adapter, read_adapter_config
from rlhf.models.base import load_base
from rlhf.models.layers import plain_4bit_kernels
from rlhf.models.roles import Role, ScalarHead, disable_dropout, width
from rlhf.models.tokenizer import check_tokenizer

START, REFERENCE, REWARD = "method.start_from", "method.reference", "method.reward_model"


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
    reference_start: Path | None = None,
    value_head: str = "copy",
) -> Roles:
    """Puts the four adapters on `base`, a causal LM, quantized or not.

    `policy_start` is the adapter folder that SFT left (None: a fresh LoRA from the config `lora`); the reference is a
    frozen copy of it, or the adapter in `reference_start`. `reward_start` is the adapter folder of the reward model, whose `score` head is read from the
    same file, or several such folders, each an adapter of its own. The value starts as a trainable copy of the first
    adapter and head, or with `value_head="zero"` with a head of zeros, as in the code of Ziegler et al.; without a
    reward adapter it starts from the policy's, with a head of zeros.

    Raises a Refusal when a folder does not fit: another base, tokenizer, shape or target module, or no head. It names
    the starts as the configuration does, `method.start_from`, `method.reference` and `method.reward_model`.
    """
    from peft import PeftModelForCausalLM

    if value_head not in ("copy", "zero"):
        raise Refusal("value_head", value_head, "is unknown", allowed=("copy", "zero"))
    if policy_start is None and lora is None:
        raise Refusal(START, None, "a fresh adapter needs a LoRA config", fix="lora=LoraConfig(...)")
    plain_4bit_kernels(base)
    if policy_start:
        policy_start = Path(policy_start)
        config = read_adapter_config(policy_start, getattr(base.config, "_name_or_path", None), START)
    else:
        adapters.check_targets(lora, base)
        config = adapters.copy_config(lora)
    config.task_type = "CAUSAL_LM"
    peft = PeftModelForCausalLM(base, config, adapter_name="policy")
    if policy_start:
        fill_adapter(peft, "policy", policy_start, START)
    if reference_start:
        peft.add_adapter("reference", read_adapter_config(reference_start, base.config._name_or_path, REFERENCE))
        fill_adapter(peft, "reference", reference_start, REFERENCE)
    else:
        copy_adapter(peft, "policy", "reference")
    folders = [reward_start] if isinstance(reward_start, str | Path) else list(reward_start)
    rewards = [_add_reward(peft, base, tokenizer, Path(folder), i) for i, folder in enumerate(folders)]
    copy_adapter(peft, str(rewards[0].adapter) if rewards else "policy", "value")
    first = rewards[0].head if rewards and value_head == "copy" else None

    adapters.switch_adapter(peft, "policy")
    for name, parameter in peft.named_parameters():
        parameter.requires_grad_(belongs(name, "policy") or belongs(name, "value"))
    disable_dropout(peft)
    start = ScalarHead.on(base, first.linear.weight if first else None)
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
    config = read_adapter_config(folder, getattr(base.config, "_name_or_path", None), REWARD)
    check_tokenizer(folder, tokenizer, REWARD)
    peft.add_adapter(name, config)
    head = reward_head(fill_adapter(peft, name, folder, REWARD), base, folder, REWARD)
    return Role("reward", base, peft=peft, adapter=name, head=head)


def reward_head(weight: Tensor | None, base: Any, folder: Path, key: str) -> ScalarHead:
    """The frozen head that an adapter folder holds; a Refusal of `key=folder` if it has none, or several labels."""
    hidden_size = width(base)
    if weight is None:
        why = f"{WEIGHTS} has no `score.weight`, so it is not the adapter of a reward model, or its head was not saved"
        fix = "train one with method=reward, or with task_type=SEQ_CLS, which saves the head"
        raise Refusal(key, folder, why, fix=fix)
    if tuple(weight.shape) != (1, hidden_size):
        why = f"its `score` head has shape {tuple(weight.shape)}, wanted (1, {hidden_size}): one label on this base"
        raise Refusal(key, folder, why, fix="train it again with one label, on this base")
    return ScalarHead.on(base, weight).requires_grad_(False)


def scalar_role(name: str, model: Any, trained: bool) -> Role:
    """A reward or value role from a sequence classifier, plain or under PEFT."""
    peft, base, adapter = unwrap(model)
    score, key = getattr(base, "score", None), f"{name}_model"
    if score is None:
        fix = "AutoModelForSequenceClassification.from_pretrained(..., num_labels=1)"
        raise Refusal(key, type(base).__name__, "has no `score` head", fix=fix)
    if peft is not None and hasattr(score, "modules_to_save"):
        score = score.modules_to_save[adapter]
    if score.out_features != 1:
        why = f"has {score.out_features} labels and none is chosen"
        raise Refusal(key, type(base).__name__, why, fix="num_labels=1, or a function that picks the label as a scorer")
    return Role(name, base, peft=peft, adapter=adapter, head=ScalarHead(score), trained=trained)


def unwrap(model: Any) -> tuple[Any, Any, Any]:
    """The PeftModel, or None, what is below it, and the name of the adapter that is active."""
    peft = model if isinstance(model, PeftModel) else None
    return peft, model.get_base_model() if peft else model, peft.active_adapter if peft else None


@torch.random.fork_rng()
def load_roles(
    stage: Stage, tokenizer: Any, folders: Mapping[str, Path | None], reward: Path | None = None
) -> dict[str, Role]:
    """Frozen roles by name from the folders that stages left; None stands for the bare base. `reward` adds a role of
    that name.

    Adapters share one base; with adapter=none each folder is a model of its own. The global generators stay as they
    were.
    """
    if stage.adapter.name == "none":
        paths = {name: str(folder) if folder else None for name, folder in folders.items()}
        roles = {name: Role(name, load_base(stage, tokenizer, path=path).eval()) for name, path in paths.items()}
        if reward is not None:
            model = load_base(stage, tokenizer, path=str(reward), reward=True).eval()
            roles["reward"] = scalar_role("reward", model, trained=False)
        return roles
    from peft import PeftModelForCausalLM

    base, peft, heads = load_base(stage, tokenizer), None, {}
    folders = {**folders, **({"reward": reward} if reward else {})}
    for name, folder in folders.items():
        if folder is None:
            continue
        config = read_adapter_config(folder, base.config._name_or_path, name)
        if peft is None:
            peft = PeftModelForCausalLM(base, config, adapter_name=name)
        else:
            peft.add_adapter(name, config)
        weight = fill_adapter(peft, name, folder, name)
        if name == "reward":
            heads[name] = reward_head(weight, base, folder, name)
    base.eval().requires_grad_(False)
    disable_dropout(base)
    names = {name: name if folder else None for name, folder in folders.items()}
    return {name: Role(name, base, peft=peft, adapter=own, head=heads.get(name)) for name, own in names.items()}
